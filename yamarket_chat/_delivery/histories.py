"""Reads as much of a chat's history as is needed, and says how reliable that part is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime

import msgspec

from ..listing import Page, Unreadable
from ..models import Message, Sender
from ..pending import Stored
from .settling import Found, Offset, find, rows_of_shop

PROVEN = 12
"""A history descends if its time falls this often from row to row and never rises, and ascends if
it rises this often and never falls. A few rows may stand in order by chance."""

READINGS = 4
"""How often a history in no order is read at most."""

SHOWS_WITHIN = 5.0
"""Seconds within which a stored message stands in its chat's history, on every host that answers.
What was delivered later than so long before the history was read may be missing there."""

UNREADABLE = "a row of its chat's history cannot be read"

ReadHistory = Callable[[], AsyncIterator[Page[Message]]]
"""Reads the pages of the chat's history."""


class History(msgspec.Struct, frozen=True):
    """The rows of a chat that were read."""

    rows: Sequence[Message]
    unreadable: Sequence[Unreadable] = ()
    complete_since: float = -math.inf  # all rows after this moment of the storage's clock are here
    in_order: bool = True  # no row can have moved from page to page during the reading
    changed: bool = False  # it was different at each reading

    def find(
        self,
        wanted: Stored,
        before: Sequence[Stored],
        offset: Offset,
        after: Sequence[Stored] = (),
        before_since: float = -math.inf,
    ) -> tuple[Found, str]:
        """Look for a message. Returns whether it is there, and if that is unclear, why."""
        if self.changed:
            return Found.UNCLEAR, "its chat's history was different each time that it was read"
        since, until = wanted.earliest + offset.least - 1, wanted.latest + offset.most + 1
        if any(may_be_of_shop(row, since, until) for row in self.unreadable):
            return Found.UNCLEAR, UNREADABLE
        found = find(self.rows, wanted, before, offset, self.complete_since, after, before_since)
        return found, Found.UNCLEAR.value

    def find_ever(self, wanted: Stored) -> tuple[Found, str]:
        """Look for a message whose time of sending is not known."""
        if any(row.content == wanted.content for row in rows_of_shop(self.rows)):
            return Found.UNCLEAR, "an equal message stands there, which may be an older one"
        if any(may_be_of_shop(row, -math.inf, math.inf) for row in self.unreadable):
            return Found.UNCLEAR, UNREADABLE
        return Found.NO, ""


def may_be_of_shop(row: Unreadable, since: float, until: float) -> bool:
    """Whether an unreadable row may be a message of the shop between two moments."""
    try:
        fields = msgspec.json.decode(row.raw)
        if fields["sender"] in {Sender.CUSTOMER, Sender.MARKET, Sender.SUPPORT}:
            return False
        at = msgspec.convert(fields["createdAt"], datetime)
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError, RecursionError):
        return True
    return at.tzinfo is None or since <= at.timestamp() <= until


async def read_history(
    read: ReadHistory,
    oldest_needed: Callable[[], float],
    wait: Callable[[float], Awaitable[None]],
) -> History:
    """Read the rows of a chat back to a moment of the storage's clock, if their order allows it.

    If the order is not reliable, a row may move from page to page during the reading because
    another one was added, and so be missed. Then the history is read until two readings have the
    same rows. Hosts that lag behind would spoil two readings in the same way, so this awaits
    `wait(seconds)` between them.
    """
    history = await _read(read, oldest_needed)
    if history.in_order:
        return history
    for _ in range(READINGS - 1):
        await wait(SHOWS_WITHIN)
        before, history = history, await _read(read, oldest_needed)
        if {row.message_id for row in before.rows} == {row.message_id for row in history.rows}:
            return history
    return msgspec.structs.replace(history, changed=True)


async def _read(read: ReadHistory, oldest_needed: Callable[[], float]) -> History:
    rows: dict[int, Message] = {}
    unreadable: list[Unreadable] = []
    distinct, descending = True, False
    latest: datetime | None = None
    pages = rises = falls = 0
    async for page in read():
        pages += 1
        unreadable += page.unreadable
        for row in page:
            if latest is not None:
                rises += row.created_at > latest
                falls += row.created_at < latest
            latest = row.created_at
            distinct = distinct and row.message_id not in rows
            rows[row.message_id] = row
        descending = distinct and falls >= PROVEN and not rises
        if descending and latest is not None and latest.timestamp() < oldest_needed():
            return History(list(rows.values()), unreadable, latest.timestamp())
    ascending = distinct and rises >= PROVEN and not falls
    in_order = pages <= 1 or descending or ascending
    return History(list(rows.values()), unreadable, in_order=in_order)
