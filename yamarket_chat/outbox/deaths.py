"""Which workers are dead: those whose beat did not change while somebody watched.

No two clocks are compared. A watcher counts by its own clock, from one successful read to the next.
It also remembers when it first saw each beat: so it knows of a time that somebody counted from a
beat of its own how long ago that was at least.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ..system import stood_still

REMEMBERED = 600.0
"""Seconds for which the beats of a worker are remembered that has none any more."""

BEATS_KEPT = 64
"""How many beats of a worker are remembered."""


class Moment(NamedTuple):
    """A time by two clocks of this machine: one stands still while the machine sleeps."""

    own: float
    whole: float

    @classmethod
    def now(cls) -> Moment:
        """Return the time of the running loop, and the same with all sleeps."""
        loop = asyncio.get_running_loop()
        own = loop.time()
        return cls(own, own + stood_still(loop))

    def until(self, later: Moment) -> float:
        """Return the seconds up to another moment, by the clock that counts more of them."""
        return max(later.own - self.own, later.whole - self.whole)


class Beat(NamedTuple):
    """What is read of a worker: its token, how often it has beaten, its lease in seconds."""

    token: str
    beat: int
    lease: float
    lock: str | None = None


class _Count(NamedTuple):
    beat: int
    since: Moment  # the end of the first read that showed this beat
    last: Moment  # the beginning of the last one


class _Seen(NamedTuple):
    beat: int
    at: float  # the end of the first read that showed it, by the loop's time


class Watcher:
    """Counts for how long the beats of the other workers have not changed."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}
        self._seen: dict[str, deque[_Seen]] = {}

    def note(self, beats: Iterable[Beat], ended: Moment) -> None:
        """Remember the beats of a read. What was seen stays true, whatever reads fail later."""
        for token, beat, *_ in beats:
            seen = self._seen.setdefault(token, deque(maxlen=BEATS_KEPT))
            if not seen or seen[-1].beat < beat:
                seen.append(_Seen(beat, ended.own))
        for token, seen in list(self._seen.items()):
            if ended.own - seen[-1].at > REMEMBERED:
                del self._seen[token]

    def seen_at(self, token: str, beat: int) -> float | None:
        """Return a moment of the loop before which a beat surely began; None if nobody knows."""
        seen = self._seen.get(token, ())
        position = bisect_left(seen, beat, key=_number)
        return seen[position].at if position < len(seen) else None

    def begin_anew(self) -> None:
        """Forget all counts. After a failed read nothing tells what was missed."""
        self._counts.clear()

    def read(self, beats: Iterable[Beat], began: Moment, ended: Moment) -> list[Beat]:
        """Take a read of all beats, and return those of dead workers.

        A worker is dead if its beat did not change for its whole lease, over reads at most a third
        of it apart. If more time passed between two reads, the count begins anew: perhaps this
        process was paused, or its machine slept, and the worker could not beat either.
        """
        counts: dict[str, _Count] = {}
        dead: list[Beat] = []
        for worker in beats:
            count = self._counts.get(worker.token)
            if (
                count is None
                or count.beat != worker.beat
                or count.last.until(ended) > worker.lease / 3
            ):
                count = _Count(worker.beat, ended, began)
            counts[worker.token] = count = count._replace(last=began)
            # By the clock that counts less: this is how long was surely watched.
            if began.own - count.since.own >= worker.lease:
                dead.append(worker)
        self._counts = counts
        return dead


def _number(seen: _Seen) -> int:
    return seen.beat
