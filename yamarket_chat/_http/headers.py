"""Headers of HTTP: numbers, dates, and how long to wait."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from functools import lru_cache

EARLIEST, LATEST = 946_684_800, 4_102_444_800
"""Seconds since 1970 between which a Date is taken to be true: the years 2000 to 2099."""


def number_of(text: str | int | None) -> int | None:
    """Return the number of a header; None if it has no valid one."""
    try:
        value = int(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 2**31 else None


@lru_cache(maxsize=1024)  # settling asks the same Dates again and again
def parse_date(text: str | None) -> int | None:
    """Return the seconds since 1970 of an RFC 822 date.

    None if it cannot be decoded, or is no time of these days: what is reckoned from it must be a
    time as well.
    """
    if text is None:
        return None
    try:
        parsed = email.utils.parsedate_tz(text)
        if parsed is None:
            return None
        seconds = email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return seconds if EARLIEST <= seconds < LATEST else None


def seconds_to(text: str | None, headers: Mapping[str, str]) -> float | None:
    """Return the seconds from the Date of the headers to another date."""
    until, date = parse_date(text), parse_date(headers.get("Date"))
    return None if until is None or date is None else float(max(until - date, 0))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; None if it has no valid number or date."""
    text = headers.get("Retry-After", "")
    seconds = number_of(text)
    return seconds_to(text, headers) if seconds is None else float(seconds)
