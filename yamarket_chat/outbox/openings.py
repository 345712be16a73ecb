"""Opens the chats of orders and returns, each once."""

from __future__ import annotations

import asyncio

from .._delivery.failures import closed_error
from ..errors import ChatError, ForbiddenError, SessionClosedError
from . import marks
from .database import Database
from .errors import OutboxDatabaseError
from .hand import OF_CHAT, Row
from .parts import Context, Whole
from .pausing import AGAIN


class Openings:
    """The messages of a business to orders and returns whose chats are not known yet."""

    def __init__(self, courier: Whole, database: Database) -> None:
        self._courier = courier
        self._database = database
        self._waiting: dict[Context, list[Row]] = {}
        self._full: set[Context] = set()  # those that have more messages than there is room for
        self._failing: set[Context] = set()  # those that could not be opened yet
        self._one = asyncio.Lock()  # while it is tried whether the business is still paused

    def begin(self, row: Row, context: Context) -> None:
        """Let a row wait for its chat, which is found or opened."""
        hand = self._courier.hand
        if len(self._waiting.get(context, ())) >= OF_CHAT:
            self._full.add(context)
            return
        hand.keep(row)
        if context in self._failing:
            hand.count(row, counts=False)
        if context in self._waiting:
            self._waiting[context].append(row)
        else:
            self._waiting[context] = [row]
            self._courier.in_background(self._open(context))

    def left_out(self) -> list[int]:
        """Return the orders of which no more messages are wanted now, and the returns: below zero.

        As in `Hand.left_out`.
        """
        return [
            -number if kind == "return" else number for kind, number in self._full | self._failing
        ]

    async def _open(self, context: Context) -> None:
        courier = self._courier
        refused: ChatError | None = None
        while True:
            try:
                await courier.goes_on.wait()
                if courier.trying:
                    async with self._one:
                        await courier.goes_on.wait()
                        try:
                            await self._find(context)
                        except ForbiddenError as error:  # the others wait for what it means
                            await courier.ask_what_is_forbidden(context, str(error))
                            raise
                else:
                    await self._find(context)
            except ChatError as error:
                if courier.stopping:
                    return
                passes = isinstance(error, (OutboxDatabaseError, SessionClosedError))
                if passes or not courier.is_for_good(error, context):
                    self._failing.add(context)
                    for row in self._waiting[context]:
                        courier.hand.count(row, counts=False)
                    await asyncio.sleep(error.retry_after or AGAIN)
                    continue
                refused = error
            break
        self._failing.discard(context)
        if context in self._full:
            self._full.remove(context)
            courier.hand.more[:] = True, True
        for row in self._waiting.pop(context):
            if refused is not None:
                courier.end(row, "refused", refused)
            else:
                courier.hand.drop(row)

    async def _find(self, context: Context) -> None:
        """Find or open a chat. The rows learn it, and are read anew."""
        about = self._courier.business_id, *context
        if await self._database.write(marks.chat_of, *about) is None:
            session = self._courier.session
            if session is None:
                raise closed_error()
            chat_id = await session.create_chat(**{f"{context[0]}_id": context[1]})
            await self._database.write(marks.opened, *about, chat_id)
