"""What the Market says about its rate limits: headers, and the texts of its 420 responses."""

from __future__ import annotations

import re
from collections.abc import Mapping

from multidict import istr

from .._http.headers import number_of, seconds_to

# With istr, aiohttp looks up a header without lower-casing its name each time.
LIMIT_HEADER = istr("X-RateLimit-Resource-Limit")
REMAINING_HEADER = istr("X-RateLimit-Resource-Remaining")
UNTIL_HEADER = istr("X-RateLimit-Resource-Until")

_PARALLEL_REFUSAL = re.compile(r"rate limit of ([0-9]{1,9}) parallel requests", re.IGNORECASE)
_RESOURCE_REFUSAL = re.compile(r"rate limit of ([0-9]{1,9}) requests", re.IGNORECASE)


def refused_in_parallel(text: str) -> int | None:
    """Return the number that a 420 for parallel requests names; None for any other text.

    >>> refused_in_parallel("Hit rate limit of 4 parallel requests for businessId 12345")
    4
    """
    match = _PARALLEL_REFUSAL.search(text)
    return int(match[1]) if match else None


def refused_over_time(text: str) -> int | None:
    """Return the number that a 420 for a resource names; None for any other text.

    >>> refused_over_time("Hit rate limit of 1000 requests per HOUR for resource chats")
    1000
    """
    match = _RESOURCE_REFUSAL.search(text)
    return int(match[1]) if match else None


def requests_remain(headers: Mapping[str, str]) -> bool:
    """Whether the headers say that requests of the method's limit are left."""
    return (number_of(headers.get(REMAINING_HEADER)) or 0) > 0


def seconds_until(headers: Mapping[str, str]) -> float | None:
    """Return how long the restriction lasts: Until minus Date. The local clock does not matter."""
    seconds = seconds_to(headers.get(UNTIL_HEADER), headers)
    # Both are whole seconds. The extra second makes up for the fractions that were cut off.
    return None if seconds is None else seconds + 1
