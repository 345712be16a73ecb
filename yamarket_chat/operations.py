"""The documented operations of the chat API, one row each; nothing here acts.

Source: the Market's documentation of its API for sellers and its OpenAPI description. The limits
are requests an hour, as documented for each resource.
"""

from __future__ import annotations

import math

import msgspec

from .errors import InvalidArgumentError


class Rate(msgspec.Struct, frozen=True):
    """How many requests may go out in how much time.

    `requests` in any `per` seconds; `burst` is how many of them may go at once, by default all.
    A small burst spreads the load evenly, as the Market's page of best practices asks.

        Rate(1000, per=3600, burst=10)

    Raises InvalidArgumentError where a number makes no sense.
    """

    requests: int
    per: float
    burst: int | None = None

    def __post_init__(self) -> None:
        if type(self.requests) is not int or self.requests < 1:
            raise InvalidArgumentError("Rate.requests is a whole number of at least 1")
        if (
            isinstance(self.per, bool)
            or not isinstance(self.per, (int, float))
            or not 0 < self.per < math.inf
        ):
            raise InvalidArgumentError("Rate.per is a number of seconds above 0")
        if self.burst is not None and (
            type(self.burst) is not int or not 1 <= self.burst <= self.requests
        ):
            raise InvalidArgumentError("Rate.burst is a whole number from 1 to Rate.requests")


class Operation(msgspec.Struct, frozen=True):
    """One documented operation.

    `name` is the session's method and the field of `Limits`, `operation_id` the Market's name;
    `path` has a place for the business id; `repeatable` says that carrying it out twice does no
    more than carrying it out once.
    """

    name: str
    operation_id: str
    method: str
    path: str
    limit: Rate
    repeatable: bool


def _an_hour(requests: int) -> Rate:
    return Rate(requests, per=3600)


_BUSINESS = "/v2/businesses/{business_id}"

SEND_MESSAGE = Operation(
    "send_message",
    "sendMessageToChat",
    "POST",
    f"{_BUSINESS}/chats/message",
    _an_hour(1000),
    repeatable=False,
)
