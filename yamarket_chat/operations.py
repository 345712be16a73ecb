"""The documented operations of the chat API, one row each; nothing here acts.

Source: the Market's documentation of its API for sellers and its OpenAPI description. The limits
are requests an hour, as documented for each resource.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from .errors import InvalidArgumentError
from .models import (
    Answered,
    CampaignList,
    Chat,
    ChatList,
    CreatedChat,
    Envelope,
    Message,
    MessageList,
    TokenInfo,
)


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
    more than carrying it out once; `answer` is the form of its answer. `limit` is None where it is
    not known here.
    """

    name: str
    operation_id: str
    method: str
    path: str
    limit: Rate | None
    repeatable: bool
    answer: Any


def _an_hour(requests: int) -> Rate:
    return Rate(requests, per=3600)


_CHATS = "/v2/businesses/{business_id}/chats"

SEND_MESSAGE = Operation(
    "send_message",
    "sendMessageToChat",
    "POST",
    f"{_CHATS}/message",
    _an_hour(1000),
    repeatable=False,
    answer=Envelope,
)
SEND_FILE = Operation(
    "send_file",
    "sendFileToChat",
    "POST",
    f"{_CHATS}/file/send",
    _an_hour(1000),
    repeatable=False,
    answer=Envelope,
)
# Repeatable: where a chat exists already, the Market answers that one.
CREATE_CHAT = Operation(
    "create_chat",
    "createChat",
    "POST",
    f"{_CHATS}/new",
    _an_hour(1000),
    repeatable=True,
    answer=Answered[CreatedChat],
)
GET_CHAT = Operation(
    "get_chat",
    "getChat",
    "GET",
    "/v2/businesses/{business_id}/chat",
    _an_hour(1000),
    repeatable=True,
    answer=Answered[Chat],
)
CHATS = Operation(
    "chats",
    "getChats",
    "POST",
    _CHATS,
    _an_hour(5000),
    repeatable=True,
    answer=Answered[ChatList],
)
HISTORY = Operation(
    "history",
    "getChatHistory",
    "POST",
    f"{_CHATS}/history",
    _an_hour(10_000),
    repeatable=True,
    answer=Answered[MessageList],
)
GET_MESSAGE = Operation(
    "get_message",
    "getChatMessage",
    "GET",
    f"{_CHATS}/message",
    _an_hour(1000),
    repeatable=True,
    answer=Answered[Message],
)
CAMPAIGNS = Operation(
    "campaigns",
    "getCampaigns",
    "GET",
    "/v2/campaigns",
    _an_hour(1000),
    repeatable=True,
    answer=CampaignList,
)
TOKEN = Operation(
    "token",
    "getAuthTokenInfo",
    "POST",
    "/v2/auth/token",
    _an_hour(100),
    repeatable=True,
    answer=Answered[TokenInfo],
)

OPERATIONS = {
    operation.name: operation
    for operation in (
        SEND_MESSAGE,
        SEND_FILE,
        CREATE_CHAT,
        GET_CHAT,
        CHATS,
        HISTORY,
        GET_MESSAGE,
        CAMPAIGNS,
        TOKEN,
    )
}


def other(method: str, *, repeatable: bool) -> Operation:
    """Any other method of the Market's API. It has a limit of its own, which is not known here."""
    return Operation("request", "", method, "", None, repeatable=repeatable, answer=Any)
