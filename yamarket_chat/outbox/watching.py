"""Waiting for the end of messages, by looking: another process may end them."""

from __future__ import annotations

import asyncio

from . import store
from .database import Database
from .errors import OutboxDatabaseError

LOOKS = {"sqlite": 0.05, "postgresql": 0.2}
"""Seconds between two looks. A look at SQLite costs next to nothing if nobody has committed."""


class Watch:
    """Looks for the end of all messages that somebody on this event loop waits for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def end_of(self, number: int, timeout: float | None) -> None:  # noqa: ASYNC109
        """Wait until a message has ended, or is gone. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _give_up, future)
        self._waiting.setdefault(number, set()).add(future)
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            waiting = self._waiting.get(number, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(number, None)
            if not self._waiting and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _look(self) -> None:
        seen: set[int] = set()  # looked for at the version before, and not ended then
        version: tuple[int, int] | None = None
        while True:
            try:
                newest = await self._database.data_version()
                numbers = list(self._waiting)
                if newest is None or newest != version or not seen.issuperset(numbers):
                    ended = await self._database.read(store.ended, numbers)
                    version, seen = newest, set(numbers)
                    for number in ended:
                        self._settle(number, None)
            except OutboxDatabaseError as error:
                if error.retry_after is None:
                    for number in list(self._waiting):
                        self._settle(number, error)
            except Exception as error:  # noqa: BLE001 - whoever waits must learn it
                for number in list(self._waiting):
                    self._settle(number, error)
            await asyncio.sleep(LOOKS[self._database.dialect])

    def _settle(self, number: int, error: Exception | None) -> None:
        for future in self._waiting.pop(number, ()):
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("the message has not ended in time: it goes on"))
