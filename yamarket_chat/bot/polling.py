"""Which chats may have something new: those that wait for the shop, and a sweep over all.

Both together use a fifth of the limit of `chats`. Other programs need the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable

from ..errors import ApiError, UnexpectedAnswerError
from ..limits import Rate
from ..listing import Page
from ..models import Chat, ChatStatus
from ..session import ChatSession

logger: logging.Logger = logging.getLogger("yamarket_chat")

WAITING = (ChatStatus.NEW, ChatStatus.WAITING_FOR_PARTNER, ChatStatus.WAITING_FOR_ARBITER)
"""The statuses of chats in which the buyer wrote the last message."""

SHARE = 0.2
"""The part of the limit of `chats` that is used."""

SWEPT = 4
"""Of so many pages, one at least is of the sweep, however many chats wait."""


class Polling:
    """Lists the chats of a business, again and again.

    Args:
        session: Its session.
        limit: The limit of `chats`.
        every: Seconds between two looks at the chats that wait. If these are many, it takes longer.
        found: Called with the chats of each page.
        swept: Called when all chats were listed: how many, and in how many seconds.
        looked: Called after each look: in how many seconds after its begin the next one follows.
        sleep: What waits until the next page is due.
    """

    def __init__(
        self,
        session: ChatSession,
        limit: Rate,
        every: float,
        found: Callable[[list[Chat]], Awaitable[None]],
        swept: Callable[[int, float], Awaitable[None]],
        looked: Callable[[float], Awaitable[None]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._every = every
        self._found = found
        self._swept = swept
        self._looked = looked
        self._sleep = sleep
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
            least = pages + math.ceil(pages / (SWEPT - 1))
            length = max(self._every, least * self._spacing)
            if self._looked is not None:
                await self._looked(length)
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
        except (ApiError, UnexpectedAnswerError) as error:
            self._sweep = None  # its page token may have expired: it begins anew
            if self._chats == 0:
                raise
            logger.warning("listing all chats begins anew: %s", error)
        else:
            self._chats += len(page.items)
            await self._found(list(page.items))

    async def _sleep_until(self, moment: float) -> None:
        await self._sleep(max(0.0, moment - self._loop.time()))
