"""Writes marks and ends: those that come while a transaction is written share the next one.

The order is kept, so the mark of a chat's next message is committed with the end of the one before,
or after it. A mark fails if it cannot be written at once, because nothing may wait with its request
in hand. An end is written until it is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import Connection

from . import marks
from .database import Database
from .errors import OutboxDatabaseError
from .marks import End, Mark

logger: logging.Logger = logging.getLogger("yamarket_chat")

MOST = 500
"""The most marks and ends of a transaction."""

GATHER = 0.001
"""Seconds to wait for more: it halves the transactions, and each one waits for the disk."""

AGAIN = 0.25
LONGEST = 5.0
"""Seconds until an end that could not be written is tried again: at first, and at most."""


class Writer:
    """The marks and ends of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._marks: list[tuple[Mark, asyncio.Future[str | None]]] = []
        self._ends: list[tuple[End, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._closed = False
        # By business, operation and minute: what this process has marked itself.
        self.counted: Counter[tuple[int, str, int]] = Counter()
        self._forget_at = 1_000

    async def mark(self, one: Mark) -> str | None:
        """Write a mark. Returns why it was not written; None once it is committed.

        Raises OutboxDatabaseError if the database cannot be used. The mark may be there then.
        """
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._marks.append((one, future))
        self._begin()
        return await future

    def end(self, one: End) -> asyncio.Future[None]:
        """Write an end. The result is there once it is committed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends.append((one, future))
        self._begin()
        return future

    async def close(self, grace: float) -> None:
        """Write what is left, for some seconds at most."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=grace)
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> None:
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        pause = AGAIN
        try:
            while self._marks or self._ends:
                await asyncio.sleep(GATHER)
                # All ends that are there: the marks behind them rely on them.
                ends, self._ends = self._ends, []
                group, self._marks = self._marks[:MOST], self._marks[MOST:]
                if await self._write(ends, group):
                    pause = AGAIN
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._arrived.wait()
                    pause = min(pause * 2, LONGEST)
                self._arrived.clear()
        finally:
            self._task = None
            if self._closed:
                for _, marking in self._marks:
                    marking.cancel()
                for _, ending in self._ends:
                    ending.cancel()

    async def _write(
        self,
        ends: list[tuple[End, asyncio.Future[None]]],
        group: list[tuple[Mark, asyncio.Future[str | None]]],
    ) -> bool:
        """Write a transaction. Returns whether all ends are there."""
        try:
            locked, refusals = await self._database.write(
                _write, [one for one, _ in ends], [one for one, _ in group]
            )
        except (Exception, asyncio.CancelledError) as error:
            known = error if isinstance(error, OutboxDatabaseError) else None
            for _, future in group:
                if not future.done():
                    future.set_exception(
                        known or OutboxDatabaseError(type(error).__name__, sent=None)
                    )
            self._ends = ends + self._ends
            if isinstance(error, asyncio.CancelledError):
                raise
            if ends or known is None:
                logger.warning(
                    "%d ends cannot be written yet: %s",
                    len(self._ends),
                    error,
                    exc_info=error if known is None else None,
                )
            return False
        for end, ending in ends:
            if end.number not in locked and not ending.done():
                ending.set_result(None)
        for (one, marking), refusal in zip(group, refusals, strict=True):
            if refusal is None:
                self._count(one)
            if not marking.done():
                marking.set_result(refusal)
        self._ends = [waiting for waiting in ends if waiting[0].number in locked] + self._ends
        return not locked

    def _count(self, one: Mark) -> None:
        counted = one.business_id, one.operation, one.minute
        self.counted[counted] += 1
        if len(self.counted) > self._forget_at:
            oldest = one.minute - marks.COUNTED_FOR
            for old in [other for other in self.counted if other[2] < oldest]:
                del self.counted[old]
            self._forget_at = 2 * len(self.counted) + 1_000


def _write(
    connection: Connection, ends: Sequence[End], group: Sequence[Mark]
) -> tuple[set[int], list[str | None]]:
    locked = marks.end(connection, ends) if ends else set()
    return locked, marks.mark(connection, group) if group else []
