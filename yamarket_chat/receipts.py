"""The messages and outcomes of `send_many`, and the receipt of a message."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from .errors import ChatError, DeliveryUnknownError


class OutgoingMessage(msgspec.Struct, frozen=True):
    """A text for a chat, to be sent by `send_many`.

    Attributes:
        chat_id: The chat, at least 1. A decimal string is accepted as well.
        text: The text, of 1 to 4,096 characters.
        ref: Any object of yours. The outcome carries it back.

    Example:
        OutgoingMessage(chat_id=17, text="Ваш заказ в пути", ref="row 5")
    """

    chat_id: int | str
    text: str
    ref: Any = None


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The proof that a message arrived.

    Attributes:
        chat_id: The chat. 0 if a person said so (`Outbox.settle`) of a message to an order or a
            return whose chat the outbox does not know.
        requests: How many requests were sent for the message, refused ones included.
        confirmed_by: "answer" if the Market's response confirmed it, "history" if the message
            was found in the chat's history, "person" if somebody has looked and told an outbox so
            (`Outbox.settle`).
        trace_id: The id of the response, by which the Market's support finds the request. None
            if no response confirmed the message.
    """

    chat_id: int
    requests: int
    confirmed_by: Literal["answer", "history", "person"]
    trace_id: str | None = None


class Delivered(msgspec.Struct, frozen=True):
    """The message arrived.

    Attributes:
        message: The message, as it was passed to `send_many`.
        receipt: The proof.
        status: Always "delivered".
    """

    message: OutgoingMessage
    receipt: Receipt

    status: ClassVar[Literal["delivered"]] = "delivered"


class Refused(msgspec.Struct, frozen=True):
    """The message surely did not arrive, and may be sent again.

    Attributes:
        message: The message, as it was passed to `send_many`.
        error: Why it was not sent. `error.retry_after` is set if the cause passes by itself.
        status: Always "refused".
    """

    message: OutgoingMessage
    error: ChatError

    status: ClassVar[Literal["refused"]] = "refused"


class Unknown(msgspec.Struct, frozen=True):
    """Nothing tells whether the message arrived. Settle it before you send it again.

    Attributes:
        message: The message, as it was passed to `send_many`.
        error: What happened. `error.pending` can be stored and passed to `ChatSession.settle`.
        status: Always "unknown".
    """

    message: OutgoingMessage
    error: DeliveryUnknownError

    status: ClassVar[Literal["unknown"]] = "unknown"


Outcome = Delivered | Refused | Unknown
"""What became of one message of `send_many`. Tell the types apart by `match` or by `status`."""
