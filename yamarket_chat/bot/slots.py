"""How many chats are worked in at the same time, and who works alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Lets so many in at the same time. A suspect is let in alone, and before all others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._alone = False
        self._suspects: dict[asyncio.Future[None], None] = {}
        self._others: dict[asyncio.Future[None], None] = {}

    @asynccontextmanager
    async def slot(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait until there is room."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._suspects if alone else self._others
        line[future] = None
        self._let_in()
        try:
            await future
            yield
        finally:
            if future in line:
                del line[future]
            else:
                self._inside -= 1
                self._alone = False
            self._let_in()

    def _let_in(self) -> None:
        if self._suspects:
            if self._inside == 0:
                self._inside, self._alone = 1, True
                _let(self._suspects)
            return
        while self._others and self._inside < self._most and not self._alone:
            self._inside += 1
            _let(self._others)


def _let(line: dict[asyncio.Future[None], None]) -> None:
    future = next(iter(line))
    del line[future]
    if not future.done():  # its task was cancelled in this moment
        future.set_result(None)
