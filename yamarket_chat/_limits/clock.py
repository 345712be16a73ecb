"""The Market's clock, as the Date of its responses tells it.

The local wall clock has no part in this: it may be minutes off. The loop's time carries a Date on.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping

import msgspec

HOLDS = 60.0
"""Seconds for which the Date of a quick response is kept although slower ones come."""


class Clock(msgspec.Struct, frozen=True):
    """How many seconds the Market's clock is ahead of the loop's, at least and at most."""

    least: float
    most: float

    def or_else(self, other: Clock) -> Clock:
        """Return the clock that holds if either of the two does."""
        return Clock(min(self.least, other.least), max(self.most, other.most))


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The headers of a response, and when it was asked for and came, on the loop's clock.

    Its Date is decoded when somebody needs it. It is in whole seconds, and was written after the
    request was sent and before the response came.
    """

    headers: Mapping[str, str]
    asked: float
    answered: float

    def __repr__(self) -> str:
        return "Reading()"  # headers may echo the key

    def clock(self) -> Clock | None:
        """Return what it tells; None if there is no Date or it cannot be decoded."""
        seconds = parse_date(self.headers.get("Date"))
        if seconds is None:
            return None
        return Clock(seconds - self.answered, seconds + 1 - self.asked)


class Readings(msgspec.Struct, frozen=True, gc=False):
    """What was read off the Market's responses until a moment."""

    quickest: Reading | None = None  # of late: it tells most exactly
    latest: Reading | None = None

    def clock(self) -> Clock | None:
        """Return the Market's clock; None before its first response.

        If the two readings do not agree, one of the clocks has been set, or the machine has slept
        and the loop's clock has stood still. Then the latest one holds.
        """
        quickest = None if self.quickest is None else self.quickest.clock()
        latest = None if self.latest is None else self.latest.clock()
        if quickest is None or latest is None:
            return latest or quickest
        least, most = max(quickest.least, latest.least), min(quickest.most, latest.most)
        return Clock(least, most) if least <= most else latest


class MarketClock:
    """Keeps the readings of the Market's clock."""

    def __init__(self) -> None:
        self.readings = Readings()

    def read(self, headers: Mapping[str, str], asked: float, answered: float) -> None:
        """Keep the headers of a response of the API."""
        latest = Reading(headers, asked, answered)
        quickest = self.readings.quickest
        if (
            quickest is None
            or answered - asked <= quickest.answered - quickest.asked
            or answered - quickest.answered > HOLDS
        ):
            quickest = latest
        self.readings = Readings(quickest, latest)

    def now(self) -> Clock | None:
        """Return the Market's clock; None before its first response."""
        return self.readings.clock()


def parse_date(text: str | None) -> int | None:
    """Return the seconds since 1970 of an RFC 822 date; None if it cannot be decoded."""
    if text is None:
        return None
    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
