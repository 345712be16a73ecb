"""What the Market tells of, as structs, and how a body becomes one of them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..errors import ChatError
from ..models import Received, Time

Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""The Market documents the same id as a number in one place and as a string in another."""


class WrongNotificationError(ChatError, ValueError):
    """A body is no notification of the Market's: a receiver answers 400. The text says why."""


class Ping(Received, frozen=True, kw_only=True, tag_field="notificationType", tag="PING"):
    """The Market tries out whether the address answers.

    Attributes:
        time: When it did; None if that is missing or unreadable.
    """

    time: Time | None = None


class ChatEvent(Received, frozen=True, kw_only=True):
    """What all events of a chat have. None of them says what was written: read the history.

    Attributes:
        business_id: The seller's business.
        chat_id: The chat.
    """

    business_id: Id
    chat_id: Id


class ChatCreated(
    ChatEvent, frozen=True, kw_only=True, tag_field="notificationType", tag="CHAT_CREATED"
):
    """A chat is new. The shop or the buyer has created it.

    Attributes:
        created_at: When it was created.
    """

    created_at: Time


class ChatMessageSent(
    ChatEvent, frozen=True, kw_only=True, tag_field="notificationType", tag="CHAT_MESSAGE_SENT"
):
    """Somebody has written in a chat: the buyer, the shop itself, or the Market.

    The Market does not tell of stickers.

    Attributes:
        message_id: The message.
        sent_at: When it was sent.

    Example:
        event = parse(
            b'{"notificationType": "CHAT_MESSAGE_SENT", "businessId": 12345, "chatId": 17,'
            b' "messageId": "1764230400000000", "sentAt": "2026-11-27T11:00:00+03:00"}'
        )
        assert isinstance(event, ChatMessageSent)
        assert (event.chat_id, event.message_id) == (17, 1764230400000000)
    """

    message_id: Id
    sent_at: Time


class ChatArbitrageStarted(
    ChatEvent, frozen=True, kw_only=True, tag_field="notificationType", tag="CHAT_ARBITRAGE_STARTED"
):
    """The Market's arbiter takes part in a chat from now on.

    Attributes:
        started_at: When the dispute began.
    """

    started_at: Time


class ChatArbitrageFinished(
    ChatEvent,
    frozen=True,
    kw_only=True,
    tag_field="notificationType",
    tag="CHAT_ARBITRAGE_FINISHED",
):
    """The dispute in a chat is over.

    Attributes:
        finished_at: When it ended.
    """

    finished_at: Time


class OtherNotification(msgspec.Struct, frozen=True):
    """A notification of a kind that has nothing to do with chats, or that is newer than this.

    Attributes:
        type: The kind, such as ORDER_CREATED.
        content: The whole object, as the Market has sent it.
    """

    type: str
    content: dict[str, Any]


Event = (
    Ping
    | ChatCreated
    | ChatMessageSent
    | ChatArbitrageStarted
    | ChatArbitrageFinished
    | OtherNotification
)

_CHAT_EVENTS: dict[
    str, type[ChatCreated | ChatMessageSent | ChatArbitrageStarted | ChatArbitrageFinished]
] = {
    "CHAT_CREATED": ChatCreated,
    "CHAT_MESSAGE_SENT": ChatMessageSent,
    "CHAT_ARBITRAGE_STARTED": ChatArbitrageStarted,
    "CHAT_ARBITRAGE_FINISHED": ChatArbitrageFinished,
}
_IDS = ("businessId", "chatId", "messageId")
_MAX_DIGITS = 19
_decoder = msgspec.json.Decoder(dict[str, Any])


def parse(body: bytes) -> Event:
    """Return the event that the body of a notification tells of. Unknown fields are skipped.

    Args:
        body: What the Market has POSTed: JSON in UTF-8.

    Returns:
        The event. A kind that this version does not know is an `OtherNotification`.

    Raises:
        WrongNotificationError: The body is no JSON object, names no kind, or a documented field of
            its kind is missing or wrong.

    Example:
        match parse(b'{"notificationType": "PING", "time": "2026-11-27T08:00:00Z"}'):
            case Ping():
                print("the Market tries out the address")
    """
    try:
        content = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WrongNotificationError(f"the body is no JSON object: {error}") from None
    kind = content.get("notificationType")
    if not isinstance(kind, str) or not kind:
        raise WrongNotificationError("notificationType is missing")
    if kind == "PING":
        return _ping(content)
    event = _CHAT_EVENTS.get(kind)
    if event is None:
        return OtherNotification(kind, content)
    for name in _IDS:
        if name in content:
            content[name] = _number(content[name])
    try:
        return msgspec.convert(content, event)
    except msgspec.ValidationError as error:
        raise WrongNotificationError(f"{kind}: {error}") from None


def _number(value: Any) -> Any:
    """Return the number that an id means, or the value as it is."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[: _MAX_DIGITS + 1])  # a longer one is out of range anyway
    if isinstance(value, float) and value.is_integer() and value < 2**53:  # JSON has one kind
        return int(value)
    return value


def _ping(content: dict[str, Any]) -> Ping:
    # The Market tries the address out when the seller enters it: a time in another form must not
    # be the reason for which it is refused.
    try:
        return msgspec.convert(content, Ping)
    except msgspec.ValidationError:
        return Ping()
