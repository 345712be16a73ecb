"""What is sent and received, as msgspec structs under the API's own terms."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from .errors import ChatError, ErrorDetail


class OutgoingMessage(msgspec.Struct, frozen=True):
    """A text for a chat, for `send_many`; `ref` is anything of the caller's, handed back as it is.

    OutgoingMessage(chat_id=17, text="Ваш заказ в пути", ref=order)
    """

    chat_id: int
    text: str
    ref: Any = None


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A message of unknown outcome: all that is needed to find it later, in another process too.

    `since` is the earliest moment, on the Market's clock, at which it can have been stored; None
    where the Market had not answered anything before. `attempts` is how many requests it took
    until now, `seen` what became of the last one.

        stored = msgspec.json.encode(error.pending)
        pending = msgspec.json.decode(stored, type=Pending)
    """

    chat_id: int
    text: str
    since: datetime | None
    attempts: int
    seen: str


class Receipt(msgspec.Struct, frozen=True):
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

    `limit` requests are allowed in its period, `remaining` of them may go now, `resets_in` is
    the number of seconds until a place becomes free (0 when one is), `waiting` how many calls
    wait for one.
    """

    limit: int
    remaining: int
    resets_in: float
    waiting: int


class Envelope(msgspec.Struct):
    """What every answer in the API's form has: a status, and errors where there are any."""

    status: str
    errors: list[ErrorDetail] | None = None
