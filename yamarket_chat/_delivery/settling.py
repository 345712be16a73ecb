"""Decides from a chat's history whether a message arrived.

All functions here are pure. Times are seconds since 1970. The messages of a chat are sent one after
another, so the shop's rows since an attempt must be the messages delivered shortly before it, and
then the message itself or nothing. If there is any other row, the verdict is UNCLEAR.

Two clocks are compared: a row has the time of the Market's storage (`createdAt`), and the time of
sending is known on the clock of its answers (`Date`). The two may differ. So a verdict stands only
if the opposite is impossible under every offset that the clocks may have.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from ..models import Message, Sender
from ..pending import Content, Stored

KNOWN_FOR = 60.0
"""Seconds before an attempt in which each row must be explained by a known message. Messages are
remembered for longer, because clocks differ and an answer takes a while."""

SKEW = 30.0
"""Seconds by which the storage's clock may be ahead of the answers' clock or behind it, as long as
nothing more is known: a guess, larger than in real systems."""

BEHIND, AHEAD = 1.5, 0.5
"""Seconds by which a row may say less or more than its message, at an offset of whole seconds: the
row may have whole seconds as well, and the offset is up to half a second from the true one."""

SPACES = "".join(map(chr, range(33))) + (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""All that `str.isspace` calls a space, and the control characters."""


def content_of_text(text: str) -> Content:
    """Return the content of a text, in the same form for sent and stored texts.

    Some systems of the Market strip spaces at both ends of a string, as it documents.
    """
    return Content(text=text.strip(SPACES))


def content_of_row(row: Message) -> Content:
    """Return the content of a row of a history."""
    if row.payload and len(row.payload) == 1 and not row.message:
        return Content(file_name=row.payload[0].name, file_size=row.payload[0].size)
    return content_of_text(row.message or "")


class Offset(msgspec.Struct, frozen=True):
    """How many seconds the storage's clock is ahead of the answers' clock, at least and at most."""

    least: float = -SKEW
    most: float = SKEW

    def likely(self) -> range:
        """Return the likely offsets, in steps of a second.

        As long as nothing is learnt, the clocks are taken to be the same.
        """
        return range(1) if self == Offset() else self.all()

    def all(self) -> range:
        """Return the possible offsets, in steps of a second."""
        return range(math.floor(self.least), math.ceil(self.most) + 1)

    def error(self) -> int:
        """Return by how many seconds a likely offset may be wrong, at most."""
        likely, possible = self.likely(), self.all()
        return max(possible[-1] - likely[0], likely[-1] - possible[0])


class Found(enum.Enum):
    """Whether a message stands in the history."""

    YES = "it stands there"
    NO = "it does not stand there"
    UNCLEAR = (
        "the chat has messages of the shop that this session did not send, or equal ones that"
        " cannot be told apart"
    )


class Row(msgspec.Struct, frozen=True):
    """A row of the shop, in the form that is compared."""

    at: float
    id: int
    content: Content


_HasContent = TypeVar("_HasContent", Row, Stored)


def rows_of_shop(rows: Iterable[Message]) -> list[Row]:
    """Return the rows of the shop in the order of their times."""
    shop = [
        Row(row.created_at.timestamp(), row.message_id, content_of_row(row))
        for row in rows
        if row.sender == Sender.PARTNER
    ]
    return sorted(shop, key=lambda row: (row.at, row.id))


def find(
    rows: Iterable[Message],
    wanted: Stored,
    before: Sequence[Stored],
    offset: Offset = Offset(),  # noqa: B008 - frozen
    complete_since: float = -math.inf,
    after: Sequence[Stored] = (),
    before_since: float = -math.inf,
) -> Found:
    """Look for `wanted` in the rows of a history.

    `before` are the messages sent to the chat since `before_since`, in order. That is `KNOWN_FOR`
    seconds before `wanted` or longer, unless a clock was set meanwhile. `complete_since` is the
    storage's time since which the rows are complete. `after` are the messages known to have been
    sent later.
    """
    shop = rows_of_shop(rows)
    # A message that an earlier search found is known by the id of its row, whatever the clocks say.
    known = {item.row_id for item in (*before, *after) if item.row_id is not None}
    shop = [row for row in shop if row.id not in known]
    before = [item for item in before if item.row_id is None]
    later = [item for item in after if item.row_id is None]  # may explain a row, if not surely
    verdicts = {_at_offset(shop, wanted, before, o) for o in offset.likely()}
    must = [item for item in before if item.surely and item.earliest - SKEW > complete_since]
    must_by_content = _by_content([*must, wanted, *(item for item in later if item.surely)])
    rows_by_content = _by_content(shop)
    equal = rows_by_content.get(wanted.content, [])
    items = [item for item in (*before, *later) if item.content == wanted.content]
    equal_must = [item for item in must_by_content[wanted.content] if item is not wanted]
    if not _arrived_fits(rows_by_content, {wanted.content: equal_must}, offset):
        return Found.UNCLEAR  # the equal ones are not where they must be, so a clock was set
    forgotten = any(  # the row of an equal message that nobody remembers
        wanted.earliest - KNOWN_FOR + offset.least <= row.at < before_since + offset.most
        for row in equal
    )
    if Found.YES in verdicts and not forgotten:
        until = wanted.latest + offset.most
        if _fit_together(equal, [*equal_must, wanted], offset) and not any(
            _missing_fits(equal, items, wanted, until, o) for o in offset.all()
        ):
            return Found.YES
    if (
        Found.NO in verdicts
        and not _arrived_fits(rows_by_content, must_by_content, offset)
        and _are_explained(equal, items, wanted)
    ):
        return Found.NO
    return Found.UNCLEAR


def last_equal(rows: Iterable[Message], wanted: Stored, offset: Offset) -> int:
    """Return the id of the last row that can be the found message."""
    until = wanted.latest + offset.most
    equal = (row for row in rows_of_shop(rows) if row.content == wanted.content)
    return [row.id for row in equal if row.at <= until][-1]


def _at_offset(shop: Sequence[Row], wanted: Stored, before: Sequence[Stored], offset: int) -> Found:
    """Return the verdict if the clocks differ by this offset.

    Rows may have whole seconds, so the row of the message before may seem to be as late as the
    attempt. If that message has the same text, earlier rows count until their number
    decides.
    """
    items = [*before, wanted]
    for since in sorted({math.floor(item.earliest) for item in items}, reverse=True):
        if since < wanted.earliest - KNOWN_FOR:
            break
        stored = [
            (row.at - offset, row.content)
            for row in shop
            if since <= row.at - offset <= wanted.latest
        ]
        arrived = _explains(items, stored, since)
        missing = _explains(items[:-1], stored, since)
        if arrived is not missing:
            return Found.YES if arrived else Found.NO
        if not arrived:
            break
    return Found.UNCLEAR


def _explains(
    items: Sequence[Stored], stored: Sequence[tuple[float, Content]], since: float
) -> bool:
    """Whether the rows since a moment are these messages in order, with all that must be there."""
    explained = {0}  # possible numbers of rows that the messages up to here explain
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


def _paired(rows: Sequence[Row], items: Iterable[Stored], least: float, most: float) -> int:
    """Return how many messages and rows can be paired, each with one of its own.

    Each row has an offset from `least` to `most`. The order of the rows proves nothing here: a
    clock that steps back reverses it.
    """
    by_earliest = sorted(items, key=lambda item: item.earliest, reverse=True)
    possible: list[float] = []  # until when each message that has no row yet can be stored
    pairs = 0
    for row in rows:
        while by_earliest and by_earliest[-1].earliest + least - BEHIND <= row.at:
            heapq.heappush(possible, by_earliest.pop().latest + most + AHEAD)
        while possible and possible[0] < row.at:
            heapq.heappop(possible)
        if possible:
            heapq.heappop(possible)
            pairs += 1
    return pairs


def _arrived_fits(
    rows: Mapping[Content, Sequence[Row]],
    must: Mapping[Content, Sequence[Stored]],
    offset: Offset,
) -> bool:
    """Whether all that must be in the history can be there. Other rows may be anybody's.

    A clock may have been set between any two rows, so each may have an offset of its own.
    """
    offsets = offset.all()
    return all(
        _paired(rows.get(content, ()), items, offsets[0], offsets[-1]) == len(items)
        for content, items in must.items()
    )


def _fit_together(equal: Sequence[Row], items: Sequence[Stored], offset: Offset) -> bool:
    """Whether all these messages can be in the history under one likely offset.

    If each had an offset of its own, the row of an earlier process could pass for the first of two
    messages, and the row of the first one for the second.
    """
    return any(_paired(equal, items, o, o) == len(items) for o in offset.likely())


def _missing_fits(
    equal: Sequence[Row], items: Sequence[Stored], wanted: Stored, until: float, offset: int
) -> bool:
    """Whether all rows with the same text, since all is known, can be earlier messages."""
    since = wanted.earliest - KNOWN_FOR
    near = [row for row in equal if since <= row.at <= until]
    must = [
        item
        for item in items
        # Its row may be older than these, or later than all is known.
        if item.surely
        and near
        and item.earliest - BEHIND + offset >= since
        and item.latest + offset >= near[0].at
        and item.latest + AHEAD + offset <= until
    ]
    # If some pairing has all the rows, and some has all of these messages, then one has both.
    return _paired(near, items, offset, offset) == len(near) and _paired(
        near, must, offset, offset
    ) == len(must)


def _are_explained(equal: Sequence[Row], items: Sequence[Stored], wanted: Stored) -> bool:
    """Whether all rows that say the same, since all is known, can be other messages.

    If one cannot, it may be the message, and a clock was set meanwhile.
    """
    until = wanted.latest + SKEW + AHEAD
    rows = [row for row in equal if wanted.earliest - KNOWN_FOR < row.at <= until]
    near = [row for row in rows if row.at > wanted.earliest - SKEW - BEHIND]
    return _paired(rows, items, -SKEW, SKEW) == len(rows) and (
        not near or any(_missing_fits(near, items, wanted, until, o) for o in Offset().all())
    )


def _by_content(things: Iterable[_HasContent]) -> dict[Content, list[_HasContent]]:
    grouped: dict[Content, list[_HasContent]] = {}
    for thing in things:
        grouped.setdefault(thing.content, []).append(thing)
    return grouped
