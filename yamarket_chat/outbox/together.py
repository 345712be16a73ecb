"""Puts into SQLite share a commit if they come while another one is being committed.

SQLite has one writer at a time, and each commit waits for the disk. PostgreSQL needs none of this:
its connections commit side by side.
"""

from __future__ import annotations

import asyncio
import copy

from . import store
from .database import Database
from .errors import KeyConflictError
from .rows import Row

Waiting = tuple[Row, asyncio.Future[int]]

MOST = 1_000
"""The most rows of one commit."""


class Together:
    """The single puts of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, row: Row) -> int:
        """Put a row, and return its number once it is committed."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, future))
        # An eager task that fails at once has ended before it is kept here.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._commit(group)
        finally:
            self._task = None

    async def _commit(self, group: list[Waiting]) -> None:
        results: list[int | KeyConflictError] | list[Exception]
        try:
            results = await self._database.write(store.put_each, [row for row, _ in group])
        except asyncio.CancelledError:  # the event loop ends
            for _, future in group + self._waiting:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits must learn it
            results = [_copied(error) for _ in group]
        for (_, future), result in zip(group, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, int):
                future.set_result(result)
            else:
                future.set_exception(result)


def _copied(error: Exception) -> Exception:
    """Return an error like another one. Each waiter adds its traceback to an error of its own."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
