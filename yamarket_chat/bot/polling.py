"""Which chats may have something new: those that wait for the shop, and a sweep over all.

Both together use a fifth of the limit of `chats`. Other programs need the rest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable

from ..errors import ApiError, UnexpectedAnswerError
from ..limits import Rate
from ..listing import Page
from ..models import Chat, ChatStatus
from ..session import ChatSession

WAITING = (ChatStatus.NEW, ChatStatus.WAITING_FOR_PARTNER, ChatStatus.WAITING_FOR_ARBITER)
"""The statuses of chats in which the buyer wrote the last message."""

SHARE = 0.2
"""The part of the limit of `chats` that is used."""

SWEPT = 4
"""Of so many pages, one at least is of the sweep, however many chats wait."""


class Polling:
    """Lists the chats of a business, again and again."""

    def __init__(
        self,
        session: ChatSession,
        limit: Rate,
        every: float,
        found: Callable[[list[Chat]], Awaitable[None]],
        swept: Callable[[int, float], Awaitable[None]],
    ) -> None:
        self._session = session
        self._every = every
        self._found = found
        self._swept = swept
        self._spacing = limit.per / (limit.requests * SHARE)
        self._loop = asyncio.get_running_loop()
        self._sweep: AsyncGenerator[Page[Chat], None] | None = None
        self._began_at = 0.0
        self._chats = 0

    async def run(self) -> None:
        """List the chats that wait, each `every` seconds, and all others in between."""
        while True:
            began_at = self._loop.time()
            pages = 0
            async for page in self._session.chats(statuses=WAITING).pages():
                pages += 1
                await self._found(list(page.items))
            length = max(self._every, pages * SWEPT / (SWEPT - 1) * self._spacing)
            others = max(1, math.floor(length / self._spacing) - pages)
            pause = length / (others + 1)
            for number in range(others):
                await self._sleep_until(began_at + (number + 1) * pause)
                await self._sweep_page()
            await self._sleep_until(began_at + length)

    async def close(self) -> None:
        """End the sweep."""
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            await sweep.aclose()

    async def _sweep_page(self) -> None:
        if self._sweep is None:
            self._sweep = self._session.chats().pages()
            self._began_at, self._chats = self._loop.time(), 0
        try:
            page = await anext(self._sweep)
        except StopAsyncIteration:
            self._sweep = None
            await self._swept(self._chats, self._loop.time() - self._began_at)
        except (ApiError, UnexpectedAnswerError):
            self._sweep = None  # its page token may have expired: it begins anew
            raise
        else:
            self._chats += len(page.items)
            await self._found(list(page.items))

    async def _sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self._loop.time()))
