"""The messages of a business that its courier has in hand, and which of them may be sent next."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Container, Iterable
from typing import Any

import msgspec

SINGLES = 128
BULK = 128
"""How many messages of a business are in hand at most."""

TEXT, FILE = "send_message", "send_file"

Kind = tuple[bool, str]
"""Whether a message is of a bulk, and its operation: each kind has a limit of its own."""


class Row(msgspec.Struct, eq=False):
    """A message in hand."""

    number: int
    chat_id: int | None
    bulk: bool
    text: str | None
    file_name: str | None
    file_size: int | None
    not_after: int | None
    request: int
    leaving: bool  # its last request was marked
    operation: str
    task: asyncio.Task[Any] | None = None  # that sends it
    preempted: bool = False  # another row goes first


def operation(read: Any) -> str:
    """Return the operation that sends a row of the database."""
    return TEXT if read.file_name is None else FILE


def taken(read: Any) -> Row:
    """Return a row of the database as one in hand."""
    return Row(
        read.number,
        read.chat_id,
        read.bulk,
        read.text,
        read.file_name,
        read.file_size,
        read.not_after,
        read.request,
        read.state == "leaving",
        operation(read),
    )


class Hand:
    """The messages in hand.

    A look at the database may be older than what happened while it ran. So it is numbered, and a
    message that left the hand since it began is not taken from it.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}  # by number: all, those included whose end is being written
        self.busy: dict[int, Row] = {}  # by chat: what is submitted
        self.settling: dict[int, int] = {}  # by chat: how many marked rows are to be settled
        self.resting: dict[int, float] = {}  # by chat: until when, because its head failed for now
        self.ending: dict[int, asyncio.Future[None]] = {}  # by number: what is being written
        # Of singles and of others: whether there may be more although nothing has changed.
        self.more: list[bool] = [True, True]
        self._chats: dict[int, list[Row]] = {}  # by chat, and in it by number: what may be sent
        self._gone: dict[int, int] = {}  # by number: during which look it left
        self._looks = 0
        self._looking: set[int] = set()

    def wants(self) -> tuple[int, int]:
        """Return how many singles and how many others there is room for."""
        bulk = sum(row.bulk for row in self.rows.values())
        singles = len(self.rows) - bulk
        return (
            SINGLES - singles if singles <= SINGLES // 2 else 0,
            BULK - bulk if bulk <= BULK // 2 else 0,
        )

    def is_hungry(self) -> bool:
        """Whether there may be more, and room for it."""
        if not any(self.more):
            return False
        return any(more and room for more, room in zip(self.more, self.wants(), strict=True))

    def begin_look(self) -> int:
        """Return the number of a look that begins."""
        self._looks += 1
        self._looking.add(self._looks)
        return self._looks

    def end_look(self, look: int, found: Iterable[Any]) -> list[Any]:
        """Return what a look has found, without what is in hand, or left it since."""
        self._looking.discard(look)
        new = [
            read
            for read in found
            if read.number not in self.rows and self._gone.get(read.number, 0) < look
        ]
        oldest = min(self._looking, default=self._looks + 1)
        for number in [number for number, at in self._gone.items() if at < oldest]:
            del self._gone[number]
        return new

    def put(self, row: Row) -> Row | None:
        """Take a row that may be sent. Returns the submitted one of its chat, if this goes first.

        A row of a bulk that waits makes way as well if a single waits behind it: its chat counts as
        single then.
        """
        assert row.chat_id is not None  # noqa: S101 - it stands in a chat
        self.rows[row.number] = row
        waiting = self._chats.setdefault(row.chat_id, [])
        waiting.append(row)
        waiting.sort(key=_number)
        busy = self.busy.get(row.chat_id)
        if busy is not None and (row.number < busy.number or (busy.bulk and not row.bulk)):
            return busy
        return None

    def drop(self, row: Row) -> None:
        """Let a row go. If it has not ended, it is read anew."""
        if row.number not in self.ending:
            self._forget(row.number)
            self.more[row.bulk] = True
        waiting = self._chats.get(row.chat_id or 0)
        if waiting is not None and row in waiting:
            waiting.remove(row)
            if not waiting:
                del self._chats[row.chat_id or 0]

    def end(self, row: Row, ending: asyncio.Future[None]) -> None:
        """Keep a row until its end is written."""
        self.ending[row.number] = ending

    def ended(self, number: int) -> None:
        """Let a row go whose end is written."""
        del self.ending[number]
        self._forget(number)

    def _forget(self, number: int) -> None:
        self.rows.pop(number, None)
        self._gone[number] = self._looks

    def next(self, now: float, in_front: Container[Kind]) -> tuple[dict[Kind, Row], float]:
        """Return the first row of each kind that none is in front of, and when to ask again."""
        best: dict[Kind, Row] = {}
        later = math.inf
        for chat_id, waiting in self._chats.items():
            if chat_id in self.busy or chat_id in self.settling:
                continue
            rests = self.resting.get(chat_id)
            if rests is not None:
                if rests > now:
                    later = min(later, rests)
                    continue
                del self.resting[chat_id]
            head = waiting[0]
            kind = all(row.bulk for row in waiting), head.operation
            if kind not in in_front and (kind not in best or head.number < best[kind].number):
                best[kind] = head
        return best, later


def _number(row: Row) -> int:
    return row.number
