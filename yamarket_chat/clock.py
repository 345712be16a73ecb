"""The Market's clock, as the Date of its answers tells it.

The local wall clock has no part in it, it may be minutes off; the loop's time carries a Date on.
"""

from __future__ import annotations

import email.utils

import msgspec


class Clock(msgspec.Struct, frozen=True):
    """How far the Market's clock is ahead of the loop's, at least and at most.

    From the Date of one answer, which tells whole seconds: it was written after the question was
    asked and before the answer came.
    """

    least: float
    most: float

    @classmethod
    def of_answer(cls, date: str | None, asked: float, answered: float) -> Clock | None:
        """What one answer tells; None where its Date is missing or cannot be read."""
        seconds = parse_date(date)
        return None if seconds is None else cls(seconds - answered, seconds + 1 - asked)


def parse_date(text: str | None) -> int | None:
    """Seconds since 1970 of an RFC 822 date; None where it cannot be read."""
    if text is None:
        return None
    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
