"""Which messages of a chat's history are new. Pure: it reads nothing and asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from ..models import Message, Sender
from .cursor import HOUR, Cursor

EARLIER = 30_000_000
"""Microseconds by which clocks may differ. A chat begins this much before the bot began."""

WHOLE = 2_000_000
"""Microseconds. The Market's times may be whole seconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Start(msgspec.Struct, frozen=True):
    """When a bot began with a business, and whether with the chats that waited then."""

    at: int
    waiting: bool
    all_listed: bool  # all chats once, since then

    def begins_at(self, rows: Sequence[Message], waited: bool) -> int:
        """Return from when on the messages of a chat with this history are the bot's.

        Args:
            rows: The rows of the history, ordered.
            waited: Whether the chat may have waited for the shop then.
        """
        begins_at = self.at - EARLIER
        if not waited or not rows:  # an empty one does not tell what the shop has answered
            return begins_at
        answered, behind = -1, 0
        for number, row in enumerate(rows, 1):
            if row.sender == Sender.PARTNER and (at := micros(row.created_at)) < begins_at:
                answered, behind = at, number
        same = any(
            row.sender == Sender.CUSTOMER and micros(row.created_at) == answered
            for row in rows[behind:]
        )
        return min(begins_at, answered if same else answered + 1)


class Found(msgspec.Struct, frozen=True):
    """A new message, and what stands behind it."""

    message: Message
    later: tuple[Message, ...]


def micros(moment: datetime) -> int:
    """Return the microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def ordered(rows: Iterable[Message]) -> list[Message]:
    """Return the rows of a history by their times. A row that came twice is there once."""
    unique = {row.message_id: row for row in rows}
    return sorted(unique.values(), key=lambda row: (row.created_at, row.message_id))


def new_messages(rows: Sequence[Message], cursor: Cursor, begins_at: int) -> list[Found]:
    """Return the buyer's messages that are not handled yet, in their order.

    Args:
        rows: The rows of the history, ordered.
        cursor: How far the chat is handled.
        begins_at: Earlier messages are not the bot's.
    """
    since = begins_at if cursor.cursor_at is None else max(begins_at, cursor.cursor_at - HOUR)
    return [
        Found(row, tuple(rows[number + 1 :]))
        for number, row in enumerate(rows)
        if row.sender == Sender.CUSTOMER
        and row.message_id not in cursor.handled
        and micros(row.created_at) >= since
    ]


def is_shown(rows: Sequence[Message], changed_at: int, now: int) -> bool:
    """Whether a history has a message that is as late as a change of its chat.

    A message whose time is ahead of `now` says nothing of the change.
    """
    latest = max(now, changed_at) + EARLIER
    return any(changed_at - WHOLE <= micros(row.created_at) <= latest for row in rows)


def anchor(rows: Sequence[Message], cursor_at: int) -> int | None:
    """Return the message from which a later look must read: all that may appear is behind it."""
    before = [row for row in rows if micros(row.created_at) < cursor_at - HOUR]
    if not before:
        return None
    behind = (row.message_id for row in rows if micros(row.created_at) >= cursor_at - HOUR)
    return min([before[-1].message_id, *behind])
