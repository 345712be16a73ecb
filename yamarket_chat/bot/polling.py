"""Which chats may have something new: those that wait for the shop, and a sweep over all.

Both together use a fifth of the limit of `chats`. Other programs need the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from ..errors import ApiError, UnexpectedAnswerError
from ..limits import Rate
from ..listing import Page
from ..models import Chat, ChatStatus
from ..outbox.pausing import Reminder
from ..session import ChatSession
from .inbox import EARLIER, Start, micros

logger: logging.Logger = logging.getLogger("yamarket_chat")

WAITING = (ChatStatus.NEW, ChatStatus.WAITING_FOR_PARTNER, ChatStatus.WAITING_FOR_ARBITER)
"""The statuses of chats in which the buyer wrote the last message."""

SHARE = 0.2
"""The part of the limit of `chats` that is used."""

SWEPT = 4
"""Of so many pages, one at least is of the sweep, however many chats wait."""


NAMED = 10
"""The most ids of chats that a line of the log has."""


def may_have_news(chat: Chat, start: Start) -> bool:
    """Whether a chat of which nothing is known is to be looked at."""
    is_waiting = start.waiting and chat.status in WAITING
    return is_waiting or micros(chat.updated_at) >= start.at - EARLIER


def has_waited(chat: Chat, start: Start) -> bool:
    """Whether a chat of which nothing is known waited for the shop as the bot began.

    One that waits and has changed since may have waited, until all chats were listed once.
    """
    if not start.waiting or chat.status not in WAITING:
        return False
    return not start.all_listed or micros(chat.updated_at) < start.at


class _Unreadable:
    """The chats of a listing that came in a form that the Market does not document."""

    def __init__(self, listing: str) -> None:
        self._listing = listing
        self._reminder = Reminder()
        self.begin()

    def begin(self) -> None:
        """Count them anew."""
        self._count = 0
        self._ids: list[int] = []

    def add(self, page: Page[Chat]) -> None:
        """Count those of a page."""
        self._count += len(page.unreadable)
        self._ids += [one.id for one in page.unreadable if one.id is not None]

    def end(self, now: float) -> None:
        """All were listed: say how many there are."""
        if not self._count:
            self._reminder.end()
        elif self._reminder.is_due(now):
            logger.warning(
                "listing %s: the Market sent %d in a form that it does not document; they are left"
                " out, with what buyers write there. Ids: %s%s",
                self._listing,
                self._count,
                ", ".join(map(str, self._ids[:NAMED])) or "unknown",
                " and others" if self._count > min(len(self._ids), NAMED) else "",
            )


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
        self._token: str | None = None  # of the next page of the sweep; None begins with the first
        self._tokens: set[str] = set()  # of the pages of this sweep
        self._complete = False
        self._began_at = 0.0
        self._chats = 0
        self._waiting = _Unreadable("the chats that wait")
        self._all = _Unreadable("all chats")

    async def run(self) -> None:
        """List the chats that wait, each `every` seconds, and all others in between.

        After an error, call it again: the sweep goes on at its page.
        """
        while True:
            began_at = self._loop.time()
            pages = 0
            self._waiting.begin()
            async for page in self._session.chats(statuses=WAITING).pages():
                pages += 1
                self._waiting.add(page)
                await self._found(list(page.items))
            self._waiting.end(self._loop.time())
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

    async def _sweep_page(self) -> None:
        """List the next page of all chats. After an error, it is the next one again."""
        if self._token is None:
            if self._complete:
                await self._swept(self._chats, self._loop.time() - self._began_at)
            self._complete = False
            self._began_at, self._chats, self._tokens = self._loop.time(), 0, set()
            self._all.begin()
        pages = self._session.chats(page_token=self._token).pages()
        try:
            page = await anext(pages)
        except (ApiError, UnexpectedAnswerError) as error:
            if self._token is None:
                raise
            self._begin_anew(error)  # its page token may have expired
            return
        finally:
            await pages.aclose()
        await self._found(list(page.items))
        self._all.add(page)
        self._chats += len(page.items) + len(page.unreadable)
        self._token = page.next_page_token or None
        if self._token is None:
            self._complete = True
            self._all.end(self._loop.time())
        elif self._token in self._tokens:
            self._begin_anew("the Market gave the same page token twice")
        else:
            self._tokens.add(self._token)

    def _begin_anew(self, cause: object) -> None:
        logger.warning("listing all chats begins anew: %s", cause)
        self._token = None

    async def _sleep_until(self, moment: float) -> None:
        await self._sleep(max(0.0, moment - self._loop.time()))
