"""The rate limits: the documented numbers, and how to set lower ones.

Source of the numbers: the Market's documentation of its API for sellers and its OpenAPI
description of July 2026.
"""

from __future__ import annotations

import msgspec

from .arguments import check_seconds
from .errors import InvalidArgumentError

CUT_OFF = 10.0
"""Seconds after which the Market ends a request, as it documents."""

HOUR = 3600.0

MOST_REQUESTS = 10**9
"""The most requests of a Rate. Beside ten times as many, a float has no room for the parts of a
request that `Pace` reckons with."""


class Rate(msgspec.Struct, frozen=True):
    """How many requests may be sent in a period.

    Attributes:
        requests: How many requests may be sent in any `per` seconds, from 1 to a billion.
        per: The period in seconds, above 0.
        burst: How many of them may be sent at once; all of them by default. A small burst
            spreads the load evenly, as the Market's page of best practices asks.

    Raises:
        InvalidArgumentError: A number makes no sense.

    Example:
        Rate(1000, per=3600, burst=10)
    """

    requests: int
    per: float
    burst: int | None = None

    def __post_init__(self) -> None:
        if type(self.requests) is not int or not 1 <= self.requests <= MOST_REQUESTS:
            raise InvalidArgumentError(f"Rate.requests is a whole number from 1 to {MOST_REQUESTS}")
        check_seconds("Rate.per", self.per)
        if self.burst is not None and (
            type(self.burst) is not int or not 1 <= self.burst <= self.requests
        ):
            raise InvalidArgumentError("Rate.burst is a whole number from 1 to Rate.requests")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The rate limit of each method of the session, and the number of parallel requests.

    The defaults are the documented limits: 4 requests in parallel for a business, over all
    operations, and a number of requests an hour for each operation. A lower limit that the
    Market's headers name replaces the one that is set here; a higher one does not.

    Attributes:
        parallel: How many requests of the business may be under way at once.
        send_message: The limit of `ChatSession.send_message`: 1,000 an hour.
        send_file: The limit of `ChatSession.send_file`: 1,000 an hour.
        create_chat: The limit of `ChatSession.create_chat`: 1,000 an hour.
        get_chat: The limit of `ChatSession.get_chat`: 1,000 an hour.
        chats: The limit of `ChatSession.chats`: 5,000 pages an hour.
        history: The limit of `ChatSession.history`: 10,000 pages an hour.
        get_message: The limit of `ChatSession.get_message`: 1,000 an hour.
        campaigns: The limit of `ChatSession.campaigns`: 1,000 pages an hour.
        token: The limit of `ChatSession.token`: 100 an hour.

    Raises:
        InvalidArgumentError: A value is of the wrong type or below 1.

    Example:
        Limits(send_message=Rate(500, per=3600))  # leave half of the limit to another program
    """

    parallel: int = 4
    send_message: Rate = Rate(1_000, HOUR)
    send_file: Rate = Rate(1_000, HOUR)
    create_chat: Rate = Rate(1_000, HOUR)
    get_chat: Rate = Rate(1_000, HOUR)
    chats: Rate = Rate(5_000, HOUR)
    history: Rate = Rate(10_000, HOUR)
    get_message: Rate = Rate(1_000, HOUR)
    campaigns: Rate = Rate(1_000, HOUR)
    token: Rate = Rate(100, HOUR)

    def __post_init__(self) -> None:
        if type(self.parallel) is not int or self.parallel < 1:
            raise InvalidArgumentError("Limits.parallel is a whole number of at least 1")
        for name, rate in self.rates().items():
            if not isinstance(rate, Rate):
                raise InvalidArgumentError(f"Limits.{name} is a Rate, such as Rate(1000, per=3600)")

    def rates(self) -> dict[str, Rate]:
        """Return the limit of each method by its name."""
        names = self.__struct_fields__
        return {name: getattr(self, name) for name in names if name != "parallel"}


class QuotaStatus(msgspec.Struct, frozen=True):
    """How much of a method's rate limit is left.

    Attributes:
        limit: How many requests are allowed in the period.
        remaining: How many of them are left. A small `Rate.burst` may delay the next one all
            the same.
        resets_in: Seconds until another request is allowed; 0 if one is allowed now.
        waiting: How many calls wait.
    """

    limit: int
    remaining: int
    resets_in: float
    waiting: int
