"""What is sent and received, as msgspec structs under the API's own terms."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import msgspec

from .errors import ChatError, ErrorDetail


class OutgoingMessage(msgspec.Struct, frozen=True):
    """A text for a chat, for `send_many`; `ref` is anything of the caller's, handed back as it is.

    OutgoingMessage(chat_id=17, text="Ваш заказ в пути", ref=order)
    """

    chat_id: int
    text: str
    ref: Any = None


class Content(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a message says, as it can be found again: a text without outer spaces, or a file."""

    text: str | None = None
    file_name: str | None = None
    file_size: int | None = None


class Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message of ours: when the Market stored it, at the earliest and at the latest.

    Seconds since 1970 on the Market's clock; `surely` is False where it may not be stored at all.
    """

    content: Content
    earliest: float
    latest: float
    surely: bool = True


class Pending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of unknown outcome: all that is needed to find it later, in another process too.

    `since` and `until` are the earliest and the latest moment, on the Market's clock, at which it
    can have been stored; None where the Market had not answered anything before. `before` is what
    was sent to the chat shortly before it, `attempts` how many requests it took until now, `seen`
    what became of the last one.

        stored = msgspec.json.encode(error.pending)
        pending = msgspec.json.decode(stored, type=Pending)
        receipt = await session.settle(pending)  # None where it never arrived
    """

    business_id: int
    chat_id: int
    text: str | None = None
    file_name: str | None = None
    file_size: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: tuple[Stored, ...] = ()
    attempts: int
    seen: str


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The proof that a message arrived.

    `attempts` is how many requests it took, `confirmed_by` says whether the Market's answer or
    the chat's history told, `trace_id` is the answer's, for the Market's support.
    """

    chat_id: int
    attempts: int
    confirmed_by: Literal["answer", "history"]
    trace_id: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What became of one message of `send_many`: a receipt or an error."""

    message: OutgoingMessage
    receipt: Receipt | None = None
    error: ChatError | None = None

    @property
    def status(self) -> Literal["delivered", "refused", "unknown"]:
        """Whether it arrived, surely did not, or cannot be told (then the error says more)."""
        if self.receipt is not None:
            return "delivered"
        if self.error is not None and self.error.sent is False:
            return "refused"
        return "unknown"


class QuotaStatus(msgspec.Struct, frozen=True):
    """How much of an operation's limit is left.

    `limit` requests are allowed in its period, `remaining` of them are left (a smaller `burst` may
    hold the next one up all the same), `resets_in` is the number of seconds until a place becomes
    free (0 when one is), `waiting` how many calls wait for one.
    """

    limit: int
    remaining: int
    resets_in: float
    waiting: int


class OpenEnum(StrEnum):
    """Strings of which the Market adds new ones without notice.

    A value that this version does not know is kept as it came: a member of its own that equals
    its string, `ChatStatus("PAUSED") == "PAUSED"`.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member


class ChatType(OpenEnum):
    """With the buyer alone, or with the Market's arbiter."""

    CHAT = "CHAT"
    ARBITRAGE = "ARBITRAGE"


class ChatStatus(OpenEnum):
    """Whose turn it is."""

    NEW = "NEW"
    """A new chat."""
    WAITING_FOR_CUSTOMER = "WAITING_FOR_CUSTOMER"
    """The buyer is to answer."""
    WAITING_FOR_PARTNER = "WAITING_FOR_PARTNER"
    """The shop is to answer."""
    WAITING_FOR_ARBITER = "WAITING_FOR_ARBITER"
    """The arbiter is to answer."""
    WAITING_FOR_MARKET = "WAITING_FOR_MARKET"
    """The Market is to answer."""
    FINISHED = "FINISHED"
    """The chat is over."""


class ContextType(OpenEnum):
    """What a chat is about."""

    ORDER = "ORDER"
    RETURN = "RETURN"
    DIRECT = "DIRECT"
    """Started by the buyer, about no order."""


class Sender(OpenEnum):
    """Who wrote a message."""

    PARTNER = "PARTNER"
    """The shop."""
    CUSTOMER = "CUSTOMER"
    """The buyer."""
    MARKET = "MARKET"
    """The Market itself."""
    SUPPORT = "SUPPORT"
    """A person of the Market's support."""


class PlacementType(OpenEnum):
    """How a shop works with the Market."""

    FBS = "FBS"
    FBY = "FBY"
    DBS = "DBS"
    LAAS = "LAAS"


class ApiAvailability(OpenEnum):
    """Whether the API may be used for a shop."""

    AVAILABLE = "AVAILABLE"
    DISABLED_BY_INACTIVITY = "DISABLED_BY_INACTIVITY"
    DISABLED_BY_NO_ACTIVE_CONTRACT = "DISABLED_BY_NO_ACTIVE_CONTRACT"
    MANUALLY_DISABLED = "MANUALLY_DISABLED"
    DISABLED_BY_NO_PLACEMENT_TYPE = "DISABLED_BY_NO_PLACEMENT_TYPE"


class Scope(OpenEnum):
    """What a key may do. COMMUNICATION and ALL_METHODS may chat."""

    ALL_METHODS = "ALL_METHODS"
    ALL_METHODS_READ_ONLY = "ALL_METHODS_READ_ONLY"
    INVENTORY_AND_ORDER_PROCESSING = "INVENTORY_AND_ORDER_PROCESSING"
    INVENTORY_AND_ORDER_PROCESSING_READ_ONLY = "INVENTORY_AND_ORDER_PROCESSING_READ_ONLY"
    PRICING = "PRICING"
    PRICING_READ_ONLY = "PRICING_READ_ONLY"
    OFFERS_AND_CARDS_MANAGEMENT = "OFFERS_AND_CARDS_MANAGEMENT"
    OFFERS_AND_CARDS_MANAGEMENT_READ_ONLY = "OFFERS_AND_CARDS_MANAGEMENT_READ_ONLY"
    PROMOTION = "PROMOTION"
    PROMOTION_READ_ONLY = "PROMOTION_READ_ONLY"
    FINANCE_AND_ACCOUNTING = "FINANCE_AND_ACCOUNTING"
    COMMUNICATION = "COMMUNICATION"
    SETTINGS_MANAGEMENT = "SETTINGS_MANAGEMENT"
    SUPPLIES_MANAGEMENT_READ_ONLY = "SUPPLIES_MANAGEMENT_READ_ONLY"


Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""An aware datetime: the description gives each time its offset."""


class _Received(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Something of the API's: camelCase there, and fields that are not known here are skipped."""


class Customer(_Received, frozen=True, kw_only=True):
    """A buyer: the name that they show, and an id that means nothing outside the chats."""

    name: str | None = None
    public_id: str | None = None


class ChatContext(_Received, frozen=True, kw_only=True):
    """What a chat is about."""

    type: ContextType
    customer: Customer | None = None
    """The buyer."""
    campaign_id: int | None = None
    """The shop."""
    order_id: int | None = None
    """The order, where the chat is about one or about a return of it."""
    return_id: int | None = None
    """The return, where the chat is about one."""


class Chat(_Received, frozen=True, kw_only=True):
    """A chat with a buyer."""

    chat_id: int
    context: ChatContext
    type: ChatType
    status: ChatStatus
    created_at: Time
    updated_at: Time
    """When something last happened in it."""


class File(_Received, frozen=True, kw_only=True):
    """A file in a message (`payload` in the API); `ChatSession.download` fetches it."""

    name: str
    url: str
    """Where it can be fetched."""
    size: int
    """In bytes."""


class Message(_Received, frozen=True, kw_only=True):
    """A message in a chat."""

    message_id: int
    created_at: Time
    sender: Sender
    message: str | None = None
    """The text; None where there are only files."""
    payload: tuple[File, ...] | None = None
    """The files; None where there are none."""


class Business(_Received, frozen=True, kw_only=True):
    """A seller's cabinet; its `id` is the business id of a `ChatSession`."""

    id: int | None = None
    name: str | None = None


class Campaign(_Received, frozen=True, kw_only=True):
    """A shop of the seller's."""

    id: int | None = None
    domain: str | None = None
    """The shop's name."""
    business: Business | None = None
    """The cabinet that the shop belongs to."""
    placement_type: PlacementType | None = None
    api_availability: ApiAvailability | None = None


class Token(_Received, frozen=True, kw_only=True):
    """An Api-Key: its name in the seller's cabinet, and what it may do."""

    name: str
    auth_scopes: tuple[Scope, ...]


Item = TypeVar("Item", Chat, Message, Campaign)


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """One page of a list.

    `next_page_token` gets the page behind it, now or later, and is None on the last one; `context`
    is what the chat is about, on the pages of a history.
    """

    items: tuple[Item, ...]
    next_page_token: str | None = None
    context: ChatContext | None = None

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


# What the answers look like. `status` and `errors` are in all of them but that of campaigns.


class Envelope(msgspec.Struct):
    """What every answer in the API's form has: a status, and errors where there are any."""

    status: str
    errors: list[ErrorDetail] | None = None


class _Paging(_Received, frozen=True, kw_only=True):
    next_page_token: str | None = None


def _next(paging: _Paging | None) -> str | None:
    return (paging.next_page_token or None) if paging else None


class CreatedChat(_Received, frozen=True, kw_only=True):
    """The result of createChat."""

    chat_id: int


class ChatList(_Received, frozen=True, kw_only=True):
    """The result of getChats."""

    chats: tuple[Chat, ...]
    paging: _Paging | None = None

    def page(self) -> Page[Chat]:
        """The page that it is."""
        return Page(items=self.chats, next_page_token=_next(self.paging))


class MessageList(_Received, frozen=True, kw_only=True):
    """The result of getChatHistory."""

    context: ChatContext
    messages: tuple[Message, ...]
    paging: _Paging | None = None

    def page(self) -> Page[Message]:
        """The page that it is."""
        return Page(
            items=self.messages,
            next_page_token=_next(self.paging),
            context=self.context,
        )


class CampaignList(_Received, frozen=True, kw_only=True):
    """The answer of getCampaigns, the only one that has no status of its own."""

    campaigns: tuple[Campaign, ...]
    paging: _Paging | None = None
    status: str = "OK"

    @property
    def result(self) -> Self:
        """Itself: the list stands at the top of the answer."""
        return self

    def page(self) -> Page[Campaign]:
        """The page that it is."""
        return Page(items=self.campaigns, next_page_token=_next(self.paging))


class TokenInfo(_Received, frozen=True, kw_only=True):
    """The result of getAuthTokenInfo."""

    api_key: Token


Result = TypeVar("Result")


class Answered(Envelope, Generic[Result]):
    """An answer with a result; the description lets it be missing."""

    result: Result | None = None
