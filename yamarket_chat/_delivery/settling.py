"""Decides from a chat's history whether a message arrived.

All functions here are pure. Times are seconds on the Market's clock. The messages of a chat are
sent one after another, so the shop's rows since an attempt must be what was delivered shortly
before it, and then the message itself or nothing. If anything else stands there, nobody guesses.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence

from ..models import Message, Sender
from ..pending import Content, Stored

KNOWN_FOR = 40.0
"""Seconds before an attempt for which all messages to its chat are known. This is shorter than the
time for which they are remembered, because clocks differ and an answer takes a while."""

SPACES = "".join(map(chr, range(33))) + (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""All that `str.isspace` calls a space, and the control characters."""


def content_of_text(text: str) -> Content:
    """Return what a text says, whether it was sent or stored.

    Some systems of the Market strip spaces at both ends of a string, as it documents.
    """
    return Content(text=text.strip(SPACES))


def content_of_row(row: Message) -> Content:
    """Return what a row of a history says."""
    if row.payload and len(row.payload) == 1 and not row.message:
        return Content(file_name=row.payload[0].name, file_size=row.payload[0].size)
    return content_of_text(row.message or "")


class Found(enum.Enum):
    """Whether a message stands in the history."""

    YES = "it stands there"
    NO = "it does not stand there"
    UNCLEAR = "something stands there that nobody here has sent, or it cannot be told apart"


def find(rows: Iterable[Message], wanted: Stored, before: Sequence[Stored]) -> Found:
    """Look for `wanted` in the rows of a history.

    `before` is what was sent to the chat in the `KNOWN_FOR` seconds before it, in order. Rows may
    have whole seconds, so the row of the message before may seem to be as late as the attempt. If
    that message says the same, earlier rows are looked at until their number decides.
    """
    by_shop = [row for row in rows if row.sender == Sender.PARTNER]
    by_shop.sort(key=lambda row: (row.created_at, row.message_id))
    shop = [(row.created_at.timestamp(), content_of_row(row)) for row in by_shop]
    items = [*before, wanted]
    for since in sorted({math.floor(item.earliest) for item in items}, reverse=True):
        if since < wanted.earliest - KNOWN_FOR:
            break
        stored = [(at, content) for at, content in shop if since <= at <= wanted.latest]
        arrived = _explains(items, stored, since)
        missing = _explains(items[:-1], stored, since)
        if arrived is not missing:
            return Found.YES if arrived else Found.NO
        if not arrived:
            break
    return Found.UNCLEAR


def last_of_shop(rows: Iterable[Message], until: float) -> float:
    """Return when the shop's last row until a moment was stored."""
    return max(
        at
        for row in rows
        if row.sender == Sender.PARTNER and (at := row.created_at.timestamp()) <= until
    )


def _explains(
    items: Sequence[Stored], stored: Sequence[tuple[float, Content]], since: float
) -> bool:
    """Whether the rows since a moment are some of these messages in order, and all that must be."""
    explained = {0}  # the numbers of rows that the messages up to here can account for
    for item in items:
        if item.latest < since:
            continue
        following = set()
        for count in explained:
            if not item.surely or item.earliest < since:
                following.add(count)
            if count < len(stored):
                at, content = stored[count]
                if content == item.content and math.floor(item.earliest) <= at <= item.latest:
                    following.add(count + 1)
        explained = following
    return len(stored) in explained
