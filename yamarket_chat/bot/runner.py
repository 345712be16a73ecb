"""The bot of one process: which businesses it works for, and of which chats the Market told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

from ..errors import ChatError
from ..outbox import Outbox, OutboxDatabaseError, inside
from ..outbox.claims import OtherBot, other_bots
from ..outbox.grant import Grant
from ..outbox.lease import BEATS
from ..outbox.pausing import Reminder
from ..outbox.rows import now
from ..outbox.turns import Session
from ..outbox.watching import LOOKS
from . import cursor
from .business import Business
from .cursor import HINT_KEPT, HINTS
from .errors import BotConflictError
from .settings import Settings
from .slots import Slots

logger: logging.Logger = logging.getLogger("yamarket_chat")

AWAY = 1.0
"""Seconds until the database is asked again after it could not be used."""

HAND_OVER = 30.0
"""Seconds that handlers at work get before a business is given to another worker."""

DROP_EVERY = 3600.0
"""Seconds between two removals of hints that nobody follows."""


class Runner:
    """Works under the leases of an outbox's worker, which tells it what it may do."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        concurrency: int,
        lease: float,
        serves: Callable[[int], bool],
    ) -> None:
        self.name: str = settings.name
        self._settings = settings
        self._outbox = outbox
        self._database = inside.database(outbox)
        self._lease = lease
        self._serves = serves
        self._slots = Slots(concurrency)
        self._businesses: dict[int, Business] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._reminder = Reminder()
        self._is_ending = False
        self._task: asyncio.Task[None] | None = None
        self._open_session: Callable[[int], Awaitable[Session]] | None = None

    async def begin(self, open_session: Callable[[int], Awaitable[Session]]) -> None:
        """Be ready."""
        # It may begin again. Grants of a start that failed are lost, and the worker names none.
        self.over([business.grant for business in self._businesses.values()])
        self._open_session = open_session
        if self._task is None:  # it may begin again, if the database was away
            self._task = asyncio.create_task(self._follow_hints())

    def business(self, business_id: int) -> Business | None:
        """Return the work for a business; None if another process does it."""
        return self._businesses.get(business_id)

    def wake(self) -> None:
        """Look for hints at once."""
        self._woken.set()

    # What the worker tells

    def granted(self, grant: Grant) -> None:
        """Begin with a business."""
        if self._is_ending:
            return  # the worker leaves only when all has ended, and nobody would end this
        assert self._open_session is not None  # noqa: S101
        self._businesses[grant.business_id] = Business(
            self._settings, self._outbox, grant, self._open_session, self._slots
        )
        self.wake()

    async def release(self, grant: Grant) -> None:
        """Begin nothing new for a business; return when no handler of it is at work.

        A handler that takes longer than `HAND_OVER` is cancelled, and runs again at who goes on:
        meanwhile nobody begins anything for this business.
        """
        business = self._businesses.pop(grant.business_id, None)
        if business is not None:
            await business.stop(HAND_OVER)

    def over(self, grants: Sequence[Grant]) -> None:
        """Stop at once: these are lost."""
        for grant in grants:
            business = self._businesses.get(grant.business_id)
            if business is not None and business.grant is grant:
                del self._businesses[grant.business_id]
                business.over()
                ending = asyncio.create_task(business.stop(0.0))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    async def end(self, grace: float) -> None:
        """Begin nothing new, and wait for the handlers at work."""
        self._is_ending = True
        if self._task is not None:
            self._task.cancel()
        businesses, self._businesses = list(self._businesses.values()), {}
        await asyncio.gather(*(business.stop(grace) for business in businesses), *self._ending)

    # Hints

    async def _follow_hints(self) -> None:
        database, loop = self._database, asyncio.get_running_loop()
        version: tuple[int, int] | None = None
        drop_at, others_at = loop.time(), loop.time() + self._lease
        while True:
            wait = LOOKS[database.dialect]
            woken = self._woken.is_set()
            self._woken.clear()
            try:
                newest = await database.data_version()
                if woken or newest is None or newest != version:
                    await self._look()
                version = newest
                if loop.time() >= drop_at:
                    await database.write(cursor.drop_hints, now() - HINT_KEPT)
                    drop_at = loop.time() + DROP_EVERY
                if loop.time() >= others_at:
                    await self._look_at_others()
                    others_at = loop.time() + self._lease
            except OutboxDatabaseError as error:
                logger.info("bot %s waits for the outbox's database: %s", self.name, error)
                wait, version = AWAY, None
            except Exception:
                logger.exception("bot %s: notifications are not followed", self.name)
                wait, version = AWAY, None
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._woken.wait()

    async def _look(self) -> None:
        after = 0, 0, 0
        while True:
            found = await self._database.read(cursor.hints, after)
            for hint in found:
                business = self._businesses.get(hint.business_id)
                if business is not None:
                    business.hinted(hint)
            if len(found) < HINTS:
                return
            after = found[-1][:3]

    # Other bots

    async def outlive(self, others: Sequence[OtherBot]) -> Collection[tuple[str, int]]:
        """Wait until workers with bots of other names are dead: they do not beat for their lease.

        Returns their tokens and beats. Raises BotConflictError if one of them lives.
        """
        loop = asyncio.get_running_loop()
        seen: dict[str, tuple[int, float]] = {}
        while others:
            now = loop.time()
            for other in others:
                beat, _ = seen.setdefault(other.token, (other.beat, now))
                if other.beat > beat:
                    raise _conflict(other, self.name)
            if all(now - seen[other.token][1] >= max(self._lease, other.lease) for other in others):
                break
            await asyncio.sleep(self._lease / BEATS / 2)
            others = await self._others()
        return {(other.token, other.beat) for other in others}

    async def _others(self) -> list[OtherBot]:
        found = await self._database.read(other_bots, self.name)
        return [other for other in found if self._serves(other.business_id)]

    async def _look_at_others(self) -> None:
        """Say it if another bot has begun while this process was taken for dead."""
        for other in await self._others():
            if self._reminder.is_due(asyncio.get_running_loop().time()):
                logger.error("this bot waits: %s", _conflict(other, self.name))
            return
        self._reminder.end()


def _conflict(other: OtherBot, name: str) -> ChatError:
    return BotConflictError(
        f"business {other.business_id} has the bot {other.bot!r} ({other.about}), and a business"
        f" has one bot at a time: stop that one, or call this one {other.bot!r} instead of {name!r}"
        " if it is the same program"
    )
