"""The Market's clock: the Date of its responses, plus the loop's time since then.

The local wall clock is not used, because it may be minutes off. But the loop's time may stand still
while the machine sleeps or is paused, and either clock may be set. So the clock keeps some Dates,
and dates a request by the responses that came before, during and after it. The system's clock is
asked only how long the loop's time has stood still: nothing else shows a sleep before the first
Date or since the last one.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from .._http.attempt import NEVER
from .._http.headers import parse_date
from ..system import stood_still

SPACING = 1.0
"""Seconds between two readings that are kept."""

KEPT = 256
"""The most readings that are kept. The older ones lie further apart."""

HOLDS = 60.0
"""Seconds for which the Date of a quick response is kept although slower ones come."""

SET = 30.0
"""Seconds by which the Market's clock may be set back while the loop's time stands still."""

NOTICEABLE = 0.5
"""Seconds. A shorter standstill of the loop's time is within a Date's accuracy."""


class Clock(msgspec.Struct, frozen=True):
    """How many seconds the Market's clock is ahead of the loop's, at least and at most."""

    least: float
    most: float


def overlap(clocks: Sequence[Clock]) -> Clock | None:
    """Return what all agree on; None if they do not agree."""
    clock = Clock(max(one.least for one in clocks), min(one.most for one in clocks))
    return clock if clock.least <= clock.most else None


def span(clocks: Sequence[Clock]) -> Clock:
    """Return the range that covers all.

    If some do not agree, the Market's clock has been set, or the loop's time has stood still.
    """
    return Clock(min(one.least for one in clocks), max(one.most for one in clocks))


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The headers of a response, and the loop's times of the request and the response.

    Its Date is decoded when somebody needs it. It is in whole seconds, and was written after the
    request was sent and before the response came.
    """

    headers: Mapping[str, str]
    asked: float
    answered: float

    def __repr__(self) -> str:
        return "Reading()"  # headers may echo the key

    def clock(self) -> Clock | None:
        """Return the clock that the Date shows; None if there is no readable Date."""
        seconds = parse_date(self.headers.get("Date"))
        if seconds is None:
            return None
        return Clock(seconds - self.answered, seconds + 1 - self.asked)


class MarketClock:
    """Readings of the Market's clock, the more the more recent."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._quickest: Reading | None = None  # recent: its Date is the most exact
        self._latest: Reading | None = None
        self._kept: list[Reading] = []
        self._next = NEVER  # when the next reading is kept
        # How long the loop's time had stood still, and when that was checked.
        self._stood_still: list[tuple[float, float]] = []
        self.look_from = NEVER
        """When a request that is sent must look at the system's clock again."""
        self.look_at_system()

    def read(self, headers: Mapping[str, str], asked: float, answered: float) -> None:
        """Take the headers of a response of the API."""
        latest = self._latest = Reading(headers, asked, answered)
        quickest = self._quickest
        if (
            quickest is None
            or answered - asked <= quickest.answered - quickest.asked
            or answered - quickest.answered > HOLDS
        ):
            self._quickest = latest
        if answered >= self._next:
            self._next = answered + SPACING
            self._kept.append(latest)
            _thin_out(self._kept)
            self.look_at_system()

    def now(self) -> Clock | None:
        """Return the Market's clock; None before its first Date.

        If the quickest and the latest reading do not agree, the latest one holds.
        """
        quickest = None if self._quickest is None else self._quickest.clock()
        latest = None if self._latest is None else self._latest.clock()
        if quickest is None or latest is None:
            return latest or quickest or self.at(self._loop.time())
        return overlap((latest, quickest)) or latest

    def at(self, moment: float) -> Clock | None:
        """Return the Market's clock around a moment of the loop; None if nothing is known of it.

        It is wide if the readings before and after do not agree.
        """
        readings = [*self._kept, *([] if self._latest is None else [self._latest])]
        position = bisect_right(readings, moment, key=_answered)
        before = _first_dated(reversed(readings[:position]))
        after = _first_dated(r for r in readings[position:] if r.asked >= moment)
        around = [r for r in readings[position:] if r.asked < moment]  # requests under way then
        clocks = [
            clock
            for reading in (before, *around, after)
            if reading is not None and (clock := reading.clock()) is not None
        ]
        if not clocks:
            return None
        quickest = None if self._quickest is None else self._quickest.clock()
        agreed = overlap(clocks)
        if agreed is not None and quickest is not None:
            agreed = overlap((agreed, quickest)) or agreed
        clock = agreed or span(clocks)
        # If the loop's time has stood still, the Market's clock may have been set back meanwhile,
        # so that the Dates before and after agree by chance. Not if the standstill explains why
        # they do not agree. A standstill after the next Date does not matter.
        earlier = None if before is None else before.clock()
        later = None if after is None else after.clock()
        least = clock.least
        if after is None or later is None:
            least -= self.stood_still_since(moment)
        elif stood := self.stood_still_since(moment, after.answered):
            least = min(least, later.least - stood)
        if earlier is not None:
            # The Market's time does not stand still.
            least = max(least, min(clock.least, earlier.least - SET))
        clock = Clock(least, clock.most)
        if before is not None and after is None:
            # It may have stood still between that Date and the moment. The Date may have been
            # written long before it came.
            return Clock(clock.least, clock.most + self.stood_still_since(before.asked))
        return clock

    def look_at_system(self) -> None:
        """Note for how long the loop's time has stood still until now."""
        now = self._loop.time()
        self.look_from = now + SPACING
        self._stood_still.append((now, stood_still(self._loop)))
        _thin_out(self._stood_still)

    def stood_still_since(self, moment: float, until: float | None = None) -> float:
        """Return for how many seconds the loop's time has stood still since a moment, at most.

        If `until` is given, what is surely later than that does not count.
        """
        totals = [total for at, total in self._stood_still if at <= moment]
        later = (total for at, total in self._stood_still if until is not None and at >= until)
        total = next(later, None)
        if total is None:
            total = stood_still(self._loop)
        stood = abs(total - (totals[-1] if totals else self._stood_still[0][1]))
        return stood if stood > NOTICEABLE else 0.0


def _thin_out(kept: list[Any]) -> None:
    """Drop every other item of the older half if there are too many. The first one stays.

    So something is known of any moment: to read a long history may take an hour.
    """
    if len(kept) > KEPT:
        del kept[1 : KEPT // 2 : 2]


def _first_dated(readings: Iterable[Reading]) -> Reading | None:
    """Return the first reading whose Date is readable. Those without one tell nothing."""
    return next((reading for reading in readings if reading.clock() is not None), None)


def _answered(reading: Reading) -> float:
    return reading.answered
