"""The bodies of requests and responses, as the Market's OpenAPI description defines them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

MAX_INT64 = 2**63 - 1
MAX_INT32 = 2**31 - 1

Int64 = Annotated[int, msgspec.Meta(ge=-MAX_INT64 - 1, le=MAX_INT64)]
Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT64)]

ContextType = Literal["ORDER", "RETURN", "DIRECT"]
ChatType = Literal["CHAT", "ARBITRAGE"]
ChatStatus = Literal[
    "NEW",
    "WAITING_FOR_CUSTOMER",
    "WAITING_FOR_PARTNER",
    "WAITING_FOR_ARBITER",
    "WAITING_FOR_MARKET",
    "FINISHED",
]
Sender = Literal["PARTNER", "CUSTOMER", "MARKET", "SUPPORT"]
Scope = Literal[
    "ALL_METHODS",
    "ALL_METHODS_READ_ONLY",
    "INVENTORY_AND_ORDER_PROCESSING",
    "INVENTORY_AND_ORDER_PROCESSING_READ_ONLY",
    "PRICING",
    "PRICING_READ_ONLY",
    "OFFERS_AND_CARDS_MANAGEMENT",
    "OFFERS_AND_CARDS_MANAGEMENT_READ_ONLY",
    "PROMOTION",
    "PROMOTION_READ_ONLY",
    "FINANCE_AND_ACCOUNTING",
    "COMMUNICATION",
    "SETTINGS_MANAGEMENT",
    "SUPPLIES_MANAGEMENT_READ_ONLY",
]


class Request(msgspec.Struct, rename="camel"):
    pass


class SendMessageRequest(Request):
    message: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class OrderOrReturn(Request):
    type: Literal["ORDER", "RETURN"]
    id: Id


class CreateChatRequest(Request):
    context: OrderOrReturn | msgspec.UnsetType = msgspec.UNSET
    order_id: Int64 | msgspec.UnsetType = msgspec.UNSET


class GetHistoryRequest(Request):
    message_id_from: Id | msgspec.UnsetType = msgspec.UNSET


class GetChatsRequest(Request):
    order_ids: Annotated[list[Int64], msgspec.Meta(min_length=1)] | None = None
    contexts: Annotated[list[OrderOrReturn], msgspec.Meta(min_length=1)] | None = None
    context_types: Annotated[list[ContextType], msgspec.Meta(min_length=1)] | None = None
    types: Annotated[list[ChatType], msgspec.Meta(min_length=1)] | None = None
    statuses: Annotated[list[ChatStatus], msgspec.Meta(min_length=1)] | None = None


class Response(msgspec.Struct, rename="camel", omit_defaults=True):
    pass


class Ok(Response, omit_defaults=False):
    result: Any
    status: Literal["OK"] = "OK"


class ErrorDetail(Response):
    code: str
    message: str


class Errors(Response, omit_defaults=False):
    errors: list[ErrorDetail]
    status: Literal["ERROR"] = "ERROR"


class Paging(Response):
    next_page_token: str | None = None


class Customer(Response):
    name: str
    public_id: str


class Context(Response):
    type: ContextType
    customer: Customer
    campaign_id: int
    order_id: int | None = None
    return_id: int | None = None


class Chat(Response):
    chat_id: int
    context: Context
    type: str  # not ChatType: tests also set values that the Market does not document yet
    status: str
    created_at: datetime
    updated_at: datetime
    order_id: int | None = None


class Payload(Response):
    name: str
    url: str
    size: int


class Message(Response):
    message_id: int
    created_at: datetime
    sender: Sender
    message: str | None = None
    payload: list[Payload] | None = None


class CreatedChat(Response):
    chat_id: int


class ChatPage(Response):
    chats: list[Chat]
    paging: Paging


class MessagePage(Response):
    context: Context
    messages: list[Message]
    paging: Paging
    order_id: int | None = None


class Business(Response):
    id: int
    name: str


class Campaign(Response):
    id: int
    domain: str
    client_id: int
    business: Business
    placement_type: Literal["FBS"]
    api_availability: Literal["AVAILABLE", "MANUALLY_DISABLED"]


class Pager(Response):
    total: int
    from_: int = msgspec.field(name="from")
    to: int
    current_page: int
    pages_count: int
    page_size: int


class CampaignPage(Response):
    campaigns: list[Campaign]
    pager: Pager
    paging: Paging


class ApiKey(Response):
    name: str
    auth_scopes: list[str]


class Token(Response):
    api_key: ApiKey


class Notification(Response):
    """What the Market POSTs to the seller. `message_id` is a string there."""

    notification_type: str
    business_id: int | None = None
    chat_id: int | None = None
    message_id: str | None = None
    created_at: datetime | None = None
    sent_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    time: datetime | None = None


encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
