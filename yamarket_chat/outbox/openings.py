"""Opens the chats of orders and returns, each once."""

from __future__ import annotations

import asyncio

from .._delivery.failures import closed_error
from ..errors import ChatError, SessionClosedError
from . import marks
from .database import Database
from .errors import OutboxDatabaseError
from .hand import Row
from .parts import Whole
from .pausing import AGAIN

Context = tuple[str, int]
"""An order or a return."""


class Openings:
    """The messages of a business to orders and returns whose chats are not known yet."""

    def __init__(self, courier: Whole, database: Database) -> None:
        self._courier = courier
        self._database = database
        self._waiting: dict[Context, list[Row]] = {}

    def begin(self, row: Row, context: Context) -> None:
        """Let a row wait for its chat, which is found or opened."""
        self._courier.hand.keep(row)
        if context in self._waiting:
            self._waiting[context].append(row)
        else:
            self._waiting[context] = [row]
            self._courier.in_background(self._open(context))

    async def _open(self, context: Context) -> None:
        courier = self._courier
        about = courier.business_id, *context
        refused: ChatError | None = None
        while True:
            try:
                # The rows learn it, and are read anew.
                if await self._database.write(marks.chat_of, *about) is None:
                    if courier.session is None:
                        raise closed_error()
                    chat_id = await courier.session.create_chat(**{f"{context[0]}_id": context[1]})
                    await self._database.write(marks.opened, *about, chat_id)
            except ChatError as error:
                if courier.stopping:
                    return
                passes = isinstance(error, (OutboxDatabaseError, SessionClosedError))
                if passes or not courier.is_for_good(error, None):
                    await asyncio.sleep(error.retry_after or AGAIN)
                    continue
                refused = error
            break
        for row in self._waiting.pop(context):
            if refused is not None:
                courier.end(row, "refused", refused)
            else:
                courier.hand.drop(row)
