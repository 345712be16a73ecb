"""The documented operations of the chat API, one row each. Nothing here acts.

Source: the Market's documentation of its API for sellers, and its OpenAPI description.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..models import Chat, Message
from .answers import (
    Answered,
    CampaignList,
    ChatList,
    CreatedChat,
    Envelope,
    MessageList,
    TokenInfo,
)


class Operation(msgspec.Struct, frozen=True):
    """One documented operation."""

    name: str  # the method of the session, and the field of `Limits`
    operation_id: str  # the Market's name
    method: str
    path: str  # with a place for the business id
    repeatable: bool  # carrying it out twice does no more than carrying it out once
    answer: Any  # the form of its answer
    limited: bool = True  # `Limits` has its rate limit


_CHATS = "/v2/businesses/{business_id}/chats"

SEND_MESSAGE = Operation(
    "send_message",
    "sendMessageToChat",
    "POST",
    f"{_CHATS}/message",
    repeatable=False,
    answer=Envelope,
)
SEND_FILE = Operation(
    "send_file",
    "sendFileToChat",
    "POST",
    f"{_CHATS}/file/send",
    repeatable=False,
    answer=Envelope,
)
# Repeatable: if the chat exists already, the Market answers its id.
CREATE_CHAT = Operation(
    "create_chat",
    "createChat",
    "POST",
    f"{_CHATS}/new",
    repeatable=True,
    answer=Answered[CreatedChat],
)
GET_CHAT = Operation(
    "get_chat",
    "getChat",
    "GET",
    "/v2/businesses/{business_id}/chat",
    repeatable=True,
    answer=Answered[Chat],
)
CHATS = Operation(
    "chats",
    "getChats",
    "POST",
    _CHATS,
    repeatable=True,
    answer=Answered[ChatList],
)
HISTORY = Operation(
    "history",
    "getChatHistory",
    "POST",
    f"{_CHATS}/history",
    repeatable=True,
    answer=Answered[MessageList],
)
GET_MESSAGE = Operation(
    "get_message",
    "getChatMessage",
    "GET",
    f"{_CHATS}/message",
    repeatable=True,
    answer=Answered[Message],
)
CAMPAIGNS = Operation(
    "campaigns",
    "getCampaigns",
    "GET",
    "/v2/campaigns",
    repeatable=True,
    answer=CampaignList,
)
TOKEN = Operation(
    "token",
    "getAuthTokenInfo",
    "POST",
    "/v2/auth/token",
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
    """Return any other method of the Market's API, whose rate limit is not known here."""
    return Operation("request", "", method, "", repeatable, answer=Any, limited=False)
