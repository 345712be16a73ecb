"""The data of the API, as msgspec structs under the API's own terms."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

import msgspec


class OpenEnum(StrEnum):
    """Strings to which the Market adds new values without notice.

    A value that this version does not know is kept as a member that equals its string:
    `ChatStatus("PAUSED") == "PAUSED"`.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member

    def __reduce_ex__(self, proto: object) -> tuple[type[Self], tuple[str]]:
        # Python 3.11.2 (Debian 12) copies an enum member by its name, and a new member has no name.
        return self.__class__, (self.value,)


class ChatType(OpenEnum):
    """Whether only the buyer takes part, or the Market's arbiter as well."""

    CHAT = "CHAT"
    ARBITRAGE = "ARBITRAGE"


class ChatStatus(OpenEnum):
    """Who is expected to write next."""

    NEW = "NEW"
    """A new chat."""
    WAITING_FOR_CUSTOMER = "WAITING_FOR_CUSTOMER"
    """The buyer is expected to answer."""
    WAITING_FOR_PARTNER = "WAITING_FOR_PARTNER"
    """The shop is expected to answer."""
    WAITING_FOR_ARBITER = "WAITING_FOR_ARBITER"
    """The arbiter is expected to answer."""
    WAITING_FOR_MARKET = "WAITING_FOR_MARKET"
    """The Market is expected to answer."""
    FINISHED = "FINISHED"
    """The chat is over."""


class ContextType(OpenEnum):
    """What a chat is about."""

    ORDER = "ORDER"
    RETURN = "RETURN"
    DIRECT = "DIRECT"
    """The buyer started the chat, and it is not about an order."""


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
    """What a key may do. Chats need COMMUNICATION or ALL_METHODS."""

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
"""An aware datetime: the Market's description gives each time its offset."""


class Received(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An object of the API. Its names are camelCase there, and unknown fields are skipped."""


class Customer(Received, frozen=True, kw_only=True):
    """A buyer."""

    name: str | None = None
    """The name that the buyer shows."""
    public_id: str | None = None
    """An id of the buyer, which is used in chats only."""


class ChatContext(Received, frozen=True, kw_only=True):
    """What a chat is about."""

    type: ContextType
    customer: Customer | None = None
    """The buyer."""
    campaign_id: int | None = None
    """The shop."""
    order_id: int | None = None
    """The order, if the chat is about one or about its return."""
    return_id: int | None = None
    """The return, if the chat is about one."""


class Chat(Received, frozen=True, kw_only=True):
    """A chat with a buyer."""

    chat_id: int
    context: ChatContext
    type: ChatType
    status: ChatStatus
    created_at: Time
    updated_at: Time
    """When the chat last changed."""


class File(Received, frozen=True, kw_only=True):
    """A file in a message (`payload` in the API); `ChatSession.download` fetches it."""

    name: str
    url: str
    """The address from which it can be downloaded."""
    size: int
    """In bytes."""


class Message(Received, frozen=True, kw_only=True):
    """A message in a chat."""

    message_id: int
    created_at: Time
    sender: Sender
    message: str | None = None
    """The text; None if the message has only files."""
    payload: tuple[File, ...] | None = None
    """The files; None if there are none."""


class Business(Received, frozen=True, kw_only=True):
    """A seller's cabinet. Its `id` is the business id of a `ChatSession`."""

    id: int | None = None
    name: str | None = None


class Campaign(Received, frozen=True, kw_only=True):
    """A shop of the seller."""

    id: int | None = None
    domain: str | None = None
    """The shop's name."""
    business: Business | None = None
    """The cabinet that the shop belongs to."""
    placement_type: PlacementType | None = None
    api_availability: ApiAvailability | None = None


class Token(Received, frozen=True, kw_only=True):
    """An Api-Key: its name in the seller's cabinet, and what it may do."""

    name: str
    auth_scopes: tuple[Scope, ...]
