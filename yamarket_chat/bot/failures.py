"""Tells `Bot.error` of replies that were refused, are unknown or have expired."""

from __future__ import annotations

import asyncio
import logging

from ..errors import NotFoundError
from ..models import Chat, Message
from ..outbox import OutboxDatabaseError, OutboxEntry
from ..outbox.database import Database
from . import cursor
from .business import Business
from .cursor import StatementError
from .handlers import LINGERS
from .steps import TRIES

logger: logging.Logger = logging.getLogger("yamarket_chat")


class Failures:
    """Tells of the failed replies: of each at least once.

    It may be told again, if the database is away as this is to be noted. That it is told is counted
    before the handler is called: so one that kills its process is not called for ever.
    """

    def __init__(self, name: str, database: Database) -> None:
        self._name = name
        self._database = database
        self._begun: dict[int, int] = {}  # what this process has counted: it did not die

    async def tell(
        self,
        business: Business,
        entry: OutboxEntry,
        chat_id: int,
        message_id: int,
        error: Exception,
    ) -> None:
        """Tell of a reply, and put what is answered.

        Raises ChatError if it could not be told now.
        """
        number = entry.number
        dead = await self._database.read(cursor.tellings, number)
        if number in self._begun:
            dead = min(dead, self._begun[number] - 1)
        if dead >= TRIES:
            logger.error(
                "bot %s, chat %d, message %d: Bot.error is not told again that the reply %d failed,"
                " because the process died each of %d times: %s",
                self._name, chat_id, message_id, number, dead, error,
            )  # fmt: skip
            await self._database.write(cursor.told, entry, (), ())
            return
        try:
            message = await business.session().get_message(chat_id, message_id)
            chat = await business.chat(chat_id)
        except NotFoundError:
            return  # the chat or the message is gone
        self._begun[number] = dead + 1
        told_again = False
        try:
            await business.alone(
                chat_id,
                lambda: self._tell(business, entry, dead, chat, message, error),
                suspect=dead > 0,
            )
        except OutboxDatabaseError:
            told_again = True
            raise
        finally:
            if not told_again:
                del self._begun[number]

    async def _tell(
        self,
        business: Business,
        entry: OutboxEntry,
        dead: int,
        chat: Chat,
        message: Message,
        error: Exception,
    ) -> None:
        number = entry.number
        held = business.message(chat, message, (), f"error:{number}:", None)
        counting = asyncio.ensure_future(self._database.write(cursor.telling, number, dead + 1))
        try:
            await asyncio.shield(counting)
            await business.tell(held, error)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(number, dead, counting))
            raise
        finally:
            replies, statements = held.end()
        try:
            await self._database.write(cursor.told, entry, replies, statements)
        except (StatementError, OutboxDatabaseError) as failure:
            if isinstance(failure, OutboxDatabaseError) and not (
                (replies or statements) and cursor.is_refused(failure)
            ):
                raise
            logger.error(
                "bot %s: a reply or a statement of Bot.error failed",
                self._name,
                exc_info=failure.__cause__,
            )
            await self._database.write(cursor.told, entry, (), ())

    async def _give_back(self, number: int, dead: int, counting: asyncio.Future[None]) -> None:
        """It was cancelled, and did not die."""
        await asyncio.wait({counting}, timeout=LINGERS)  # its thread goes on
        if counting.done():
            counting.exception()
        try:
            await self._database.write(cursor.telling, number, dead)
        except OutboxDatabaseError as error:
            logger.warning("bot %s: the end of a handler is not noted: %s", self._name, error)
