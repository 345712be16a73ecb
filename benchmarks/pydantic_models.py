"""The same models in pydantic at its best, with plain datetimes."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from yamarket_chat import ChatStatus, ChatType, ContextType, Sender


class _Received(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class Customer(_Received):
    name: str | None = None
    public_id: str | None = None


class Context(_Received):
    type: ContextType
    customer: Customer | None = None
    campaign_id: int | None = None
    order_id: int | None = None
    return_id: int | None = None


class Chat(_Received):
    chat_id: int
    context: Context
    type: ChatType
    status: ChatStatus
    created_at: datetime
    updated_at: datetime


class File(_Received):
    name: str
    url: str
    size: int


class Message(_Received):
    message_id: int
    created_at: datetime
    sender: Sender
    message: str | None = None
    payload: list[File] | None = None


class Paging(_Received):
    next_page_token: str | None = None


class Messages(_Received):
    context: Context
    messages: list[Message]
    paging: Paging | None = None


class Chats(_Received):
    chats: list[Chat]
    paging: Paging | None = None


class MessagesAnswer(_Received):
    status: str
    result: Messages


class ChatsAnswer(_Received):
    status: str
    result: Chats


ANSWERS: dict[str, type[BaseModel]] = {"100 messages": MessagesAnswer, "20 chats": ChatsAnswer}
