"""A message of unknown outcome, in a form that can be stored and settled later."""

from __future__ import annotations

import msgspec

from .models import Time


class Content(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a message says, in a form that can be compared with a row of a chat's history.

    Attributes:
        text: The text without spaces at its ends; None for a file.
        file_name: The name of the file.
        file_size: The size of the file in bytes.
    """

    text: str | None = None
    file_name: str | None = None
    file_size: int | None = None


class Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message of the shop, and the time within which the Market stored it.

    Attributes:
        content: What the message says.
        earliest: The earliest moment, in seconds since 1970 on the Market's clock.
        latest: The latest moment, likewise.
        surely: False if the message may not have been stored at all.
        row_id: The id of its row in the history, if it was found there.
    """

    content: Content
    earliest: float
    latest: float
    surely: bool = True
    row_id: int | None = None


class Pending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is needed to find a message of unknown outcome later, also in another process.

    `DeliveryUnknownError.pending` holds one. Store it, and pass it to `ChatSession.settle`. If you
    store its fields one by one, store the times with their time zone.

    Attributes:
        business_id: The business that sent the message.
        chat_id: The chat.
        text: The text; None for a file.
        file_name: The name of the file, if it was one.
        file_size: The size of the file in bytes, if it was one.
        since: The earliest moment, on the Market's clock, at which the message can have been
            stored. None if the Market had not answered anything before.
        until: The latest such moment.
        before: What was sent to the chat shortly before.
        before_since: The moment, on the Market's clock, since which `before` is complete. None if
            that is not known: then an equal message in the history proves nothing.
        skew: How many seconds the clock of the histories was ahead of the Market's clock, at least
            and at most. None if that was not known.
        requests: How many requests were sent for the message until now.
        seen: What became of the last request.

    Example:
        stored = msgspec.json.encode(pending)
        pending = msgspec.json.decode(stored, type=Pending)
        receipt = await session.settle(pending)  # None if the message never arrived
    """

    business_id: int
    chat_id: int
    text: str | None = None
    file_name: str | None = None
    file_size: int | None = None
    since: Time | None = None
    until: Time | None = None
    before: tuple[Stored, ...] = ()
    before_since: Time | None = None
    skew: tuple[float, float] | None = None
    requests: int
    seen: str
