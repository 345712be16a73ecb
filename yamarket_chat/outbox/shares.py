"""How the businesses are spread over the workers: evenly, and without going back and forth.

A worker that holds few asks one that holds many for single businesses. The asked one gives them, so
no business is ever without a worker for this. A worker that may not serve a business does not ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def claimable(mine: int, total: int, workers: int) -> int:
    """Return how many free businesses a worker takes at once: up to an even share."""
    return max(0, -(-total // max(1, workers)) - mine)


def asks(me: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Return how many businesses a worker asks of which others.

    Args:
        me: The worker.
        counts: How many each living worker has, when all that was asked is given.
    """
    left = dict(counts)
    mine = left.pop(me, 0)
    share = claimable(0, mine + sum(left.values()), len(left) + 1)
    asked: dict[str, int] = {}
    while left and mine < share:
        richest = max(left, key=lambda token: (left[token], token))
        if left[richest] - mine < 2:
            break  # one more would only swap their roles
        left[richest] -= 1
        mine += 1
        asked[richest] = asked.get(richest, 0) + 1
    return asked


def gives(
    mine: int, counts: Mapping[str, int], wanted: Sequence[tuple[int, str]]
) -> tuple[list[tuple[int, str]], list[int]]:
    """Decide which of the businesses that are asked for a worker gives.

    Args:
        mine: How many it holds, without those that it is giving already.
        counts: How many the others hold, with those that it is giving them.
        wanted: The businesses, and who asks.

    Returns:
        The businesses to give, and to whom; the businesses to keep.
    """
    have = dict(counts)
    given: list[tuple[int, str]] = []
    kept: list[int] = []
    for business_id, token in wanted:
        if token in have and mine - have[token] >= 2:
            given.append((business_id, token))
            mine -= 1
            have[token] += 1
        else:
            kept.append(business_id)
    return given, kept
