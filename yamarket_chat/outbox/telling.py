"""Tells the program of messages that were refused, are unknown, or have expired: at least once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from sqlalchemy import Connection, func, select, update

from ..errors import ChatError
from .calling import NotAsyncError, call
from .database import Database
from .errors import OutboxDatabaseError
from .messages import OutboxEntry
from .rows import EPOCH, MICROSECOND, entry
from .schema import UNTOLD, messages

logger: logging.Logger = logging.getLogger("yamarket_chat")

OnFailure = Callable[[OutboxEntry], Awaitable[None]]

LOOK = 5.0
"""Seconds between two looks for what other processes, or the time, have ended."""

AGAIN = 1.0
LONGEST = 60.0
"""Seconds until a message is told again after the handler has failed: at first, and at most."""

SLOW = 60.0
"""Seconds after which a handler that has not returned is logged: nobody else is told meanwhile."""

_row = messages.c


class NotNowError(ChatError):
    """The handler is one of ours and cannot tell now, through no fault of the user's program."""


class Telling:
    """Calls the handler, for the businesses of this process.

    A message counts as told when the handler has returned. If the process dies before that is
    written, the handler is called again.
    """

    def __init__(
        self, database: Database, businesses: Collection[int], on_failure: OnFailure
    ) -> None:
        self._database = database
        self._businesses = businesses
        self._on_failure = on_failure
        self._woken = asyncio.Event()
        self._pause = AGAIN

    def wake(self) -> None:
        """Look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Tell, again and again."""
        while True:
            self._woken.clear()
            wait = LOOK
            try:
                if await self._tell():
                    self._pause = AGAIN
                else:
                    wait, self._pause = self._pause, min(self._pause * 2, LONGEST)
            except OutboxDatabaseError as error:
                logger.info("on_failure waits for the outbox's database: %s", error)
            except Exception:
                logger.exception("on_failure could not be called")
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _tell(self) -> bool:
        """Tell all that is untold. Returns whether the handler did not fail."""
        fine, business_id = True, 0
        while (found := await self._database.read(_next_business, business_id)) is not None:
            business_id, after = found, 0
            # One after another is read: as the handler works, another message may be sent again.
            while business_id in self._businesses:
                one = await self._database.read(_next_untold, business_id, after)
                if one is None:
                    break
                after = one.number
                try:
                    await self._call(one)
                except NotNowError as error:
                    logger.warning("message %d is told again: %s", one.number, error)
                    fine = False
                except Exception:
                    logger.exception("on_failure failed for message %d", one.number)
                    fine = False
                else:
                    await self._database.write(told, one)
        return fine

    async def _call(self, one: OutboxEntry) -> None:
        slow = asyncio.get_running_loop().call_later(
            SLOW,
            logger.warning,
            "on_failure has not returned for %g s, for message %d: the next failures wait",
            SLOW,
            one.number,
        )
        try:
            await call(self._on_failure, one)
        except NotAsyncError as error:
            # It has done its work, and would do it again.
            logger.error("on_failure: message %d counts as told, but %s", one.number, error)
        finally:
            slow.cancel()


def _next_business(connection: Connection, after: int) -> int | None:
    found: int | None = connection.scalar(
        select(func.min(_row.business_id)).where(UNTOLD, _row.business_id > after)
    )
    return found


def _next_untold(connection: Connection, business_id: int, after: int) -> OutboxEntry | None:
    row = connection.execute(
        select(messages)
        .where(UNTOLD, _row.business_id == business_id, _row.number > after)
        .order_by(_row.business_id, _row.number)
        .limit(1)
    ).first()
    return None if row is None else entry(row)


def told(connection: Connection, one: OutboxEntry) -> bool:
    """Note that a message was told. Returns whether it was untold.

    It may have been sent again meanwhile, and have failed again: that is still to be told.
    """
    ended_at = None if one.ended_at is None else (one.ended_at - EPOCH) // MICROSECOND
    noted = update(messages).where(
        _row.number == one.number,
        _row.untold.is_(True),
        _row.request == one.requests,
        _row.ended_at == ended_at,
    )
    return connection.execute(noted.values(untold=False)).rowcount > 0
