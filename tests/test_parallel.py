"""send_many uses all parallel slots, whatever the server's pace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.helpers import now, outcomes_of, session_of
from yamarket_chat import Limits, OutgoingMessage, Rate
from yamarket_chat.sandbox import Sandbox

PLENTY = Rate(1_000_000, per=1.0)


def numbered(number: int) -> Iterator[OutgoingMessage]:
    return (OutgoingMessage(i, "hi") for i in range(1, number + 1))


async def asynchronous(number: int) -> AsyncIterator[OutgoingMessage]:
    for message in numbered(number):
        yield message


businesses = count()


async def seconds_of(parallel: int, latency: Any, messages: Any) -> tuple[float, list[int]]:
    """Return how long the arrivals of the messages took, and the requests in progress at each."""
    limits = {"send_message": PLENTY}
    # A business of its own: two sandboxes of a test may get the same free port.
    business_id = 1000 + next(businesses)
    async with Sandbox(
        business_id=business_id, latency=latency, parallel=parallel, limits=limits
    ) as market:
        ours = Limits(parallel=parallel, **limits)
        async with session_of(market, limits=ours) as session:
            outcomes = await outcomes_of(session.send_many(messages))
        assert {outcome.status for outcome in outcomes} == {"delivered"}
        arrivals = market.arrivals
        return arrivals[-1].time - arrivals[0].time, [a.in_progress for a in arrivals]


@pytest.mark.parametrize("latency", [0.0, 0.1])
@pytest.mark.parametrize("parallel", [4, 16])
async def test_n_parallel_requests_take_an_nth_of_the_time(parallel: int, latency: float) -> None:
    """If the server answers at once, the virtual clock counts loop passes."""
    alone, _ = await seconds_of(1, latency, numbered(400))
    together, _ = await seconds_of(parallel, latency, numbered(400))
    assert together == pytest.approx(alone / parallel, rel=0.15)


@pytest.mark.parametrize("source", [numbered, asynchronous])
@pytest.mark.parametrize("parallel", [2, 4, 16])
@pytest.mark.parametrize("step", [1e-4, 0.5])
async def test_freed_parallel_slot_is_reused_before_the_next_is_freed(
    step: float, parallel: int, source: Callable[[int], Any]
) -> None:
    ends = count(now() + 0.01, step)  # the first when all have left

    def latency() -> float:
        """One answer every `step` seconds, so that no two slots become free at the same time."""
        return max(next(ends) - now(), 0.0)

    _, under_way = await seconds_of(parallel, latency, source(100))
    assert under_way == [*range(1, parallel), *[parallel] * (101 - parallel)]
