"""The sandbox's limits: a rate limit for each operation, and one limit of parallel requests.

A request is counted when it arrives. A request that is refused because the window is full is not
counted. Otherwise a client that keeps retrying would never be served again. All other requests stay
counted, whatever the response was. The real Market may be less strict and not count a 5xx.
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
    """At most `rate.requests` in any `rate.per` seconds; `rate.burst` is ignored."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._times: deque[float] = deque()

    def used(self, now: float) -> int:
        """Return how many requests are counted in the window that ends now."""
        times = self._times
        per = self.rate.per
        while times and times[0] + per <= now:
            times.popleft()
        return len(times)

    def take(self, now: float, requests: int = 1) -> int:
        """Count this many requests, or as many as the limit allows; return how many."""
        requests = max(0, min(requests, self.rate.requests - self.used(now)))
        self._times.extend([now] * requests)
        return requests

    def until(self, now: float) -> float:
        """Return the time from which one more request is allowed than now."""
        used = self.used(now)
        if not used:
            return now
        return self._times[max(0, used - self.rate.requests)] + self.rate.per


class FixedWindow:
    """At most `rate.requests` from one multiple of `rate.per` since `start` to the next."""

    def __init__(self, rate: Rate, start: float) -> None:
        self.rate = rate
        self._start = start
        self._end = -math.inf
        self._used = 0

    def used(self, now: float) -> int:
        """Return how many requests are counted in the current window."""
        if now >= self._end:
            per = self.rate.per
            self._end = self._start + (math.floor((now - self._start) / per) + 1) * per
            self._used = 0
        return self._used

    def take(self, now: float, requests: int = 1) -> int:
        """Count this many requests, or as many as the limit allows; return how many."""
        requests = max(0, min(requests, self.rate.requests - self.used(now)))
        self._used += requests
        return requests

    def until(self, now: float) -> float:
        """Return the time at which the window ends and the next one begins."""
        self.used(now)
        return self._end


Window = RollingWindow | FixedWindow


class ParallelSlot:
    """The parallel slot of one request in progress."""

    __slots__ = ("_limit",)

    def __init__(self, limit: ParallelLimit) -> None:
        self._limit: ParallelLimit | None = limit

    def release(self) -> None:
        """Free the slot. Further calls do nothing."""
        if self._limit is not None:
            self._limit.in_progress -= 1
            self._limit = None


class ParallelLimit:
    """Counts the requests in progress, over all operations."""

    def __init__(self) -> None:
        self.in_progress: int = 0
        self._held_by_others = 0

    def acquire(self, slots: int) -> ParallelSlot | None:
        """Take one of `slots` parallel slots. None means that all of them are taken."""
        if self.in_progress + self._held_by_others >= slots:
            return None
        self.in_progress += 1
        return ParallelSlot(self)

    @contextmanager
    def held_by_others(self, slots: int) -> Iterator[None]:
        self._held_by_others += slots
        try:
            yield
        finally:
            self._held_by_others -= slots


def describe_period(seconds: float) -> str:
    """Name a period as the Market does: "1 hour" for 3600, "90 seconds" for 90."""
    for name, length in (("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return _plural(seconds / length, name)
    return _plural(seconds, "second")


def _plural(number: float, name: str) -> str:
    return f"{number:g} {name}" if number == 1 else f"{number:g} {name}s"
