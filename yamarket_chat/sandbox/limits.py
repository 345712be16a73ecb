"""What the Market lets in: requests over time for each operation, requests at once for all.

Everything here is counted when a request arrives. A request that is refused because the window is
full takes no place in it, or a client that keeps knocking would never be let in again. Any other
request keeps its place whatever came of it; the real Market may be milder and count no 5xx.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from yamarket_chat.limits import Rate

WindowKind = Literal["rolling", "fixed"]


class RollingWindow:
    """At most `rate.requests` in any `rate.per` seconds; `rate.burst` means nothing here."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._taken: deque[float] = deque()

    def used(self, now: float) -> int:
        taken = self._taken
        per = self.rate.per
        while taken and taken[0] + per <= now:
            taken.popleft()
        return len(taken)

    def take(self, now: float, places: int = 1) -> int:
        """Take so many places, or as many as are free; answers how many were taken."""
        places = max(0, min(places, self.rate.requests - self.used(now)))
        self._taken.extend([now] * places)
        return places

    def until(self, now: float) -> float:
        """When the next place becomes free."""
        used = self.used(now)
        if not used:
            return now
        return self._taken[max(0, used - self.rate.requests)] + self.rate.per


class FixedWindow:
    """At most `rate.requests` from one multiple of `rate.per` since `start` to the next."""

    def __init__(self, rate: Rate, start: float) -> None:
        self.rate = rate
        self._start = start
        self._end = -math.inf
        self._used = 0

    def used(self, now: float) -> int:
        if now >= self._end:
            per = self.rate.per
            self._end = self._start + (math.floor((now - self._start) / per) + 1) * per
            self._used = 0
        return self._used

    def take(self, now: float, places: int = 1) -> int:
        """Take so many places, or as many as are free; answers how many were taken."""
        places = max(0, min(places, self.rate.requests - self.used(now)))
        self._used += places
        return places

    def until(self, now: float) -> float:
        """When the window ends and the next begins."""
        self.used(now)
        return self._end


Window = RollingWindow | FixedWindow


class Place:
    """One request that is being processed."""

    __slots__ = ("_places",)

    def __init__(self, places: Places) -> None:
        self._places: Places | None = places

    def release(self) -> None:
        if self._places is not None:
            self._places.in_progress -= 1
            self._places = None


class Places:
    """The requests that are being processed at once, over all operations."""

    def __init__(self) -> None:
        self.in_progress = 0
        self._held_by_others = 0

    def take(self, limit: int) -> Place | None:
        """A place, or None where `limit` of them are taken."""
        if self.in_progress + self._held_by_others >= limit:
            return None
        self.in_progress += 1
        return Place(self)

    @contextmanager
    def held(self, places: int) -> Iterator[None]:
        self._held_by_others += places
        try:
            yield
        finally:
            self._held_by_others -= places


def describe_period(seconds: float) -> str:
    """3600 -> "1 hour", 90 -> "90 seconds"."""
    for name, length in (("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return _counted(seconds / length, name)
    return _counted(seconds, "second")


def _counted(number: float, name: str) -> str:
    return f"{number:g} {name}" if number == 1 else f"{number:g} {name}s"
