"""The steps of a try: it is counted, and then given back or committed with the replies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from ..models import Message
from ..outbox import OutboxDatabaseError
from ..outbox.database import Database
from ..outbox.pausing import AGAIN
from ..outbox.points import reach
from . import cursor
from .cursor import Cursor, Key, StatementError
from .handlers import LINGERS
from .inbox import anchor, micros
from .message import BuyerMessage

logger: logging.Logger = logging.getLogger("yamarket_chat")

TRIES = 5
"""How often a handler is called for a message, before `Bot.error` is told; and how often that is
tried, if it kills its process."""

FIRST_PAUSE = 1.0
"""Seconds until a step is tried again if the database was away. They double."""


class Steps:
    """Changes the cursors of chats, again until it is known whether that is done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(self, key: Key, was: Cursor, values: Mapping[str, Any]) -> Cursor | None:
        """Change a cursor, again until it is known whether that is done.

        Returns the cursor after it; None if somebody else has changed it.
        """
        after, pause, unknown = _changed(was, values), FIRST_PAUSE, False
        while True:
            try:
                if await self._database.write(cursor.change, key, was, values):
                    return after
                if not unknown:
                    return None
                now = await self._database.read(cursor.read, key)
            except OutboxDatabaseError as error:
                logger.warning("bot %s, chat %d: %s", key.bot, key.chat_id, error)
            else:
                # If the same was done by somebody else, one of the two will not commit.
                now = msgspec.structs.replace(now, handled=after.handled)
                return after if now == after else None
            unknown = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN)

    async def give_back(self, key: Key, counting: asyncio.Future[Cursor | None]) -> None:
        """Give a try back: its handler was cancelled, because this business is left."""
        # Its thread goes on, so it may still be counted.
        await asyncio.wait({counting}, timeout=LINGERS)
        counting.cancel()
        if not counting.done() or counting.exception() or (was := counting.result()) is None:
            return
        reach("giving back")
        tries = was.tries - 1
        values = {
            "message_id": was.message_id if tries else None,
            "tries": tries,
            "running": False,
        }
        try:
            await self._database.write(cursor.change, key, was, values)
        except OutboxDatabaseError as error:
            logger.warning(
                "bot %s, chat %d: a try is not given back: %s", key.bot, key.chat_id, error
            )

    async def commit(
        self,
        key: Key,
        was: Cursor,
        begins_at: int,
        rows: list[Message],
        message: Message,
        held: BuyerMessage,
        now: int,
    ) -> Cursor | None:
        """Commit that a message is handled, with its replies; again until it is known.

        Returns the cursor after it; None if somebody else has handled the message.
        Raises StatementError if the database refuses what the handler wants to put.
        """
        replies, statements = held.end()
        done = message.message_id, micros(message.created_at)
        # A message may have a time ahead of the Market's clock. The later ones come before it.
        cursor_at = max(was.cursor_at or 0, min(done[1], now))
        values = {
            "message_id": None,
            "tries": 0,
            "running": False,
            "begins_at": begins_at,
            "cursor_at": cursor_at,
            "anchor": anchor(rows, cursor_at) or was.anchor,
        }
        pause = FIRST_PAUSE
        reach("before the replies")
        while True:
            try:
                if await self._database.write(
                    cursor.handled, key, was, values, done, replies, statements
                ):
                    handled = was.handled | {done[0]}
                    after = msgspec.structs.replace(_changed(was, values), handled=handled)
                else:
                    after = await self._database.read(cursor.read, key)
            except OutboxDatabaseError as error:
                if (replies or statements) and cursor.is_refused(error):
                    raise StatementError from error.__cause__
                # It may be committed all the same: then the version is another one now.
                logger.warning("bot %s, chat %d: %s", key.bot, key.chat_id, error)
            else:
                reach("replies put")
                return after if done[0] in after.handled else None
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN)


def _changed(was: Cursor, values: Mapping[str, Any]) -> Cursor:
    return msgspec.structs.replace(was, version=was.version + 1, **values)
