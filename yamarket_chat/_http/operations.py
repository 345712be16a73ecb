"""The documented operations of the chat API, one row each. Nothing here acts.

Source: the Market's documentation of its API for sellers, and its OpenAPI description.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..models import Campaign, Chat, Message
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
    path: str  # with a placeholder for the business id
    answer: Any  # the form of its answer
    repeatable: bool = True  # carrying it out twice has no further effect
    limited: bool = True  # `Limits` has its rate limit
    item: Any = None  # the form of one item, if it answers a list


_BUSINESS = "/v2/businesses/{business_id}"
_CHATS = f"{_BUSINESS}/chats"

SEND_MESSAGE = Operation(
    "send_message", "sendMessageToChat", "POST", f"{_CHATS}/message", Envelope, repeatable=False
)
SEND_FILE = Operation(
    "send_file", "sendFileToChat", "POST", f"{_CHATS}/file/send", Envelope, repeatable=False
)
# Repeatable, because the Market returns the id of an existing chat.
CREATE_CHAT = Operation("create_chat", "createChat", "POST", f"{_CHATS}/new", Answered[CreatedChat])
GET_CHAT = Operation("get_chat", "getChat", "GET", f"{_BUSINESS}/chat", Answered[Chat])
CHATS = Operation("chats", "getChats", "POST", _CHATS, Answered[ChatList], item=Chat)
HISTORY = Operation(
    "history", "getChatHistory", "POST", f"{_CHATS}/history", Answered[MessageList], item=Message
)
GET_MESSAGE = Operation(
    "get_message", "getChatMessage", "GET", f"{_CHATS}/message", Answered[Message]
)
CAMPAIGNS = Operation(
    "campaigns", "getCampaigns", "GET", "/v2/campaigns", CampaignList, item=Campaign
)
TOKEN = Operation("token", "getAuthTokenInfo", "POST", "/v2/auth/token", Answered[TokenInfo])

_ALL = (
    *(SEND_MESSAGE, SEND_FILE, CREATE_CHAT, GET_CHAT, CHATS),
    *(HISTORY, GET_MESSAGE, CAMPAIGNS, TOKEN),
)
OPERATIONS = {operation.name: operation for operation in _ALL}


def other(method: str, *, repeatable: bool) -> Operation:
    """Return any other method of the Market's API, whose rate limit is not known here."""
    return Operation("request", "", method, "", Any, repeatable, limited=False)
