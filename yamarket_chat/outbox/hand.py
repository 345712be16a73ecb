"""The messages of a business that its courier has in hand, and which of them may be sent next."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any

import msgspec

SINGLES = 128
BULK = 128
"""How many messages of a business are in hand at most, without those of chats that are held up."""

OF_CHAT = 32
"""How many of them are of one chat: it may be that none of them can be sent for minutes."""

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
    counts: bool = False  # among the messages that are in hand at most


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
        self.ending: dict[int, asyncio.Future[None]] = {}  # by number: what is being written
        # Of singles and of others: whether there may be more although nothing has changed.
        self.more: list[bool] = [True, True]
        self._counts = [0, 0]  # how many singles and others of `rows` count
        self._settling: dict[int, int] = {}  # by chat: how many marked rows are to be settled
        self._resting: dict[int, float] = {}  # by chat: until when, because its head failed for now
        self._full: set[int] = set()  # the chats that have more than there is room for
        self._chats: dict[int, list[Row]] = {}  # by chat, and in it by number: what may be sent
        # Heaps of the first number of a chat, and the chat. An entry that does not hold any more
        # is dropped when it comes first; a chat is added anew whenever it may be sent to again.
        self._ready: dict[Kind, list[tuple[int, int]]] = {}
        self._gone: dict[int, int] = {}  # by number: during which look it left
        self._looks = 0
        self._looking: set[int] = set()

    def wants(self) -> tuple[int, int]:
        """Return how many singles and how many others there is room for."""
        singles, bulk = self._counts
        return (
            SINGLES - singles if singles <= SINGLES // 2 else 0,
            BULK - bulk if bulk <= BULK // 2 else 0,
        )

    def left_out(self) -> set[int]:
        """Return the chats of which no more messages are wanted now.

        Those of a chat that has many, or to which nothing can be sent, would take the room of all
        other chats.
        """
        return self._full.union(self._settling, self._resting)

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

    def end_look(self, look: int, found: Iterable[Any], *, heads: bool = False) -> list[Any]:
        """Return what a look has found, without what is in hand, or left it since.

        There is always room for the heads of a chat.
        """
        self._looking.discard(look)
        new = []
        of_chat = Counter({chat_id: len(rows) for chat_id, rows in self._chats.items()})
        for read in found:
            if read.number in self.rows or self._gone.get(read.number, 0) >= look:
                continue
            chat_id = read.chat_id
            if not heads and chat_id is not None and read.state == "waiting":
                if of_chat[chat_id] >= OF_CHAT:
                    self._full.add(chat_id)
                if chat_id in self._full:
                    continue
                of_chat[chat_id] += 1
            new.append(read)
        oldest = min(self._looking, default=self._looks + 1)
        for number in [number for number, at in self._gone.items() if at < oldest]:
            del self._gone[number]
        return new

    def put(self, row: Row) -> Row | None:
        """Take a row that may be sent. Returns the submitted one of its chat, if this goes first.

        A row of a bulk that waits makes way as well if a single waits behind it: its chat counts as
        single then.
        """
        chat_id = row.chat_id
        assert chat_id is not None  # noqa: S101 - it stands in a chat
        self.keep(row)
        waiting = self._chats.setdefault(chat_id, [])
        waiting.append(row)
        waiting.sort(key=_number)
        self._offer(chat_id)
        busy = self.busy.get(chat_id)
        if busy is not None and (row.number < busy.number or (busy.bulk and not row.bulk)):
            return busy
        return None

    def keep(self, row: Row) -> None:
        """Have a row in hand that is not to be sent, or not yet."""
        self.rows[row.number] = row
        self.count(row, counts=not self._is_held_up(row.chat_id))

    def count(self, row: Row, *, counts: bool) -> None:
        """Let a row count among those that are in hand at most, or not any more."""
        if counts is not row.counts:
            row.counts = counts
            self._counts[row.bulk] += 1 if counts else -1

    def _hold_up(self, chat_id: int) -> None:
        """Note that nothing is sent to a chat for now."""
        for row in self._chats.get(chat_id, ()):
            self.count(row, counts=False)

    def _go_on(self, chat_id: int) -> None:
        """Note that a chat may not be held up any more."""
        if not self._is_held_up(chat_id):
            for row in self._chats.get(chat_id, ()):
                self.count(row, counts=True)
            self.more[:] = True, True  # the looks have left it out
            self._offer(chat_id)

    def drop(self, row: Row) -> None:
        """Let a row go. If it has not ended, it is read anew."""
        if row.number not in self.ending:
            self._forget(row.number)
            self.more[row.bulk] = True
        chat_id = row.chat_id or 0
        waiting = self._chats.get(chat_id)
        if waiting is not None and row in waiting:
            waiting.remove(row)
            if len(waiting) <= OF_CHAT // 2 and chat_id in self._full:
                self._full.remove(chat_id)
                self.more[:] = True, True
            if not waiting:
                del self._chats[chat_id]
            self._offer(chat_id)

    def free(self, chat_id: int) -> None:
        """Let the next row of a chat be sent: what was submitted has ended, or made way."""
        self.busy.pop(chat_id, None)
        self._offer(chat_id)

    def settle(self, row: Row, chat_id: int) -> None:
        """Send nothing to a chat until a marked row of it is settled."""
        self._settling[chat_id] = self._settling.get(chat_id, 0) + 1
        self._hold_up(chat_id)
        self.keep(row)

    def settled(self, chat_id: int) -> None:
        """Note that a row of a chat is settled."""
        self._settling[chat_id] -= 1
        if not self._settling[chat_id]:
            del self._settling[chat_id]
            self._go_on(chat_id)

    def rest(self, chat_id: int, until: float) -> None:
        """Send nothing to a chat until a moment."""
        self._resting[chat_id] = until
        self._hold_up(chat_id)

    def wake(self, chat_id: int | None = None) -> None:
        """Let a chat rest no longer, or all of them."""
        for one in list(self._resting) if chat_id is None else [chat_id]:
            if self._resting.pop(one, None) is not None:
                self._go_on(one)

    def end(self, row: Row, ending: asyncio.Future[None]) -> None:
        """Keep a row until its end is written."""
        self.ending[row.number] = ending

    def ended(self, number: int) -> None:
        """Let a row go whose end is written."""
        del self.ending[number]
        self._forget(number)

    def _forget(self, number: int) -> None:
        row = self.rows.pop(number, None)
        if row is not None:
            self.count(row, counts=False)
        self._gone[number] = self._looks

    def next(self, now: float, in_front: Container[Kind]) -> tuple[dict[Kind, Row], float]:
        """Return the first row of each kind that none is in front of, and when to ask again."""
        later = math.inf
        for chat_id, until in list(self._resting.items()):
            if until > now:
                later = min(later, until)
            else:
                self.wake(chat_id)
        best: dict[Kind, Row] = {}
        for kind, ready in self._ready.items():
            if kind not in in_front:
                while ready and not self._holds(kind, *ready[0]):
                    heapq.heappop(ready)
                if ready:
                    best[kind] = self._chats[ready[0][1]][0]
        return best, later

    def _offer(self, chat_id: int) -> None:
        """Note that a chat may be sent to, if it may."""
        waiting = self._chats.get(chat_id)
        if waiting is not None and self._is_free(chat_id):
            heapq.heappush(self._ready.setdefault(_kind(waiting), []), (waiting[0].number, chat_id))

    def _holds(self, kind: Kind, number: int, chat_id: int) -> bool:
        waiting = self._chats.get(chat_id)
        return (
            waiting is not None
            and waiting[0].number == number
            and self._is_free(chat_id)
            and _kind(waiting) == kind
        )

    def _is_free(self, chat_id: int) -> bool:
        return not (chat_id in self.busy or self._is_held_up(chat_id))

    def _is_held_up(self, chat_id: int | None) -> bool:
        return chat_id in self._settling or chat_id in self._resting


def _kind(waiting: Sequence[Row]) -> Kind:
    """Return the kind of a chat. A single makes it single; its first message is the next."""
    first = waiting[0]
    return first.bulk and all(row.bulk for row in waiting), first.operation


def _number(row: Row) -> int:
    return row.number
