"""The Market's clock, as the Date of its answers tells it.

The local wall clock has no part in it, it may be minutes off; the loop's time carries a Date on.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping

import msgspec


class Clock(msgspec.Struct, frozen=True):
    """How far the Market's clock is ahead of the loop's, at least and at most."""

    least: float
    most: float

    def or_else(self, other: Clock) -> Clock:
        """What holds where one of the two does."""
        return Clock(min(self.least, other.least), max(self.most, other.most))


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The headers of one answer, and when it was asked for and came, on the loop's clock.

    Its Date is not read before somebody needs it. It tells whole seconds, and was written after
    the question was asked and before the answer came.
    """

    headers: Mapping[str, str]
    asked: float
    answered: float

    def clock(self) -> Clock | None:
        """What it tells; None where there is no Date or it cannot be read."""
        seconds = parse_date(self.headers.get("Date"))
        if seconds is None:
            return None
        return Clock(seconds - self.answered, seconds + 1 - self.asked)


Readings = tuple[Reading | None, Reading | None]
"""The quickest answer of late, which tells most exactly, and the latest one."""

NO_READINGS: Readings = (None, None)


def clock_of(readings: Readings) -> Clock | None:
    """The Market's clock; None before its first answer.

    Where the two do not agree, one of the clocks has been set, or the machine has slept and the
    loop's clock with it: then the latest holds.
    """
    quickest, latest = (None if reading is None else reading.clock() for reading in readings)
    if quickest is None or latest is None:
        return latest or quickest
    least, most = max(quickest.least, latest.least), min(quickest.most, latest.most)
    return Clock(least, most) if least <= most else latest


def parse_date(text: str | None) -> int | None:
    """Seconds since 1970 of an RFC 822 date; None where it cannot be read."""
    if text is None:
        return None
    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
