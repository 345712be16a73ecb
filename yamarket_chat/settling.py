"""Telling from a chat's history whether a message arrived.

Everything here is a pure function of what was seen, in seconds on the Market's clock. Messages of
one chat go out one after the other, so the shop's rows since an attempt must be what was delivered
shortly before it, and then the message itself or nothing. Whatever else stands there is not for us
to guess.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Sequence

from .models import Content, Message, Sender, Stored

KNOWN_FOR = 40.0
"""Seconds before an attempt for which all messages to its chat are known. Less than the time
for which they are remembered, by what the two clocks may be off and an answer may take."""

_OUTER_SPACES = re.compile(r"\A[\s\x00-\x20]+|[\s\x00-\x20]+\Z")


def content_of_text(text: str) -> Content:
    """What a text says, as it is sent or stored.

    Some systems of the Market strip spaces at both ends of a string, as it documents.
    """
    return Content(text=_OUTER_SPACES.sub("", text))


def content_of_row(row: Message) -> Content:
    """What a row of a history says."""
    if row.payload and len(row.payload) == 1 and not row.message:
        return Content(file_name=row.payload[0].name, file_size=row.payload[0].size)
    return content_of_text(row.message or "")


class Found(enum.Enum):
    """Whether a message stands in the history."""

    YES = "it stands there"
    NO = "it does not stand there"
    UNCLEAR = "something stands there that nobody here has sent, or it cannot be told apart"


def find(rows: Iterable[Message], wanted: Stored, before: Sequence[Stored]) -> Found:
    """Look for `wanted` among the rows of a history.

    `before` is what was sent to the chat in the `KNOWN_FOR` seconds before it, in order. Rows may
    tell whole seconds, so those of the message before may seem to be as late as the attempt. Where
    that one says the same, more of the chat is looked at until the count tells.
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
    """When the last of the rows of the shop until a moment was stored."""
    return max(
        at
        for row in rows
        if row.sender == Sender.PARTNER and (at := row.created_at.timestamp()) <= until
    )


def _explains(
    items: Sequence[Stored], stored: Sequence[tuple[float, Content]], since: float
) -> bool:
    """Whether the rows since a moment are messages of these, in order, and all that must be."""
    explained = {0}  # how many of the rows the messages up to here can account for
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
