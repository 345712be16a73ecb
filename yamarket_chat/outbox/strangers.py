"""Notices that somebody else sends for a business: an old program, or another outbox.

The headers of the Market's answers count the requests of all programs. Those of this business's
workers are known: each is counted in the database before it is sent. The rest is somebody else's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from sqlalchemy import Connection, or_, update

from .._delivery.departing import DepartingEngine
from ..system import wall_time
from .database import Database
from .hand import FILE, TEXT
from .schema import leases

logger: logging.Logger = logging.getLogger("yamarket_chat")

LOOK = 10.0
"""Seconds between two looks at what the last answers have said."""

LASTS = 60.0
"""Seconds for which the headers must say so. As a request leaves the hour's window, our count may
be a moment ahead of the Market's."""

EVERY = 3600.0
"""Seconds until it is said again, by whichever worker."""


class Strangers:
    """Who else sends for the businesses of a process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._look_at = 0.0
        self._say_at: dict[int, float] = {}  # by business: when to say it, unless they go away

    async def look(self, engines: Iterable[tuple[int, DepartingEngine | None]]) -> None:
        """Compare what the last answers of some businesses say with what was sent."""
        now = self._loop.time()
        if now < self._look_at:
            return
        self._look_at = now + LOOK
        for business_id, engine in engines:
            if engine is not None and (many := self._others(business_id, engine, now)):
                self._say_at[business_id] = now + LASTS
                await self._say(business_id, many)

    def _others(self, business_id: int, engine: DepartingEngine, now: float) -> int:
        """Return how many requests are somebody else's, if it is time to say so."""
        texts, files = engine.others(TEXT), engine.others(FILE)
        if texts is None or files is None:
            return 0
        if not (many := texts + files):
            self._say_at.pop(business_id, None)
            return 0
        return many if now >= self._say_at.setdefault(business_id, now + LASTS) else 0

    async def _say(self, business_id: int, many: int) -> None:
        moment = round(wall_time(self._loop) * 1e6)
        if await self._database.write(_note, business_id, moment):
            logger.warning(
                "business %d: somebody else sends for it as well. The Market counts at least %d"
                " messages and files that no worker of this outbox has sent. Let one outbox send"
                " all messages of a business: otherwise their order is not kept, the rate limit is"
                " shared, and equal texts may be impossible to tell apart",
                business_id,
                many,
            )


def _note(connection: Connection, business_id: int, moment: int) -> bool:
    """Note that somebody else sends. Returns whether that was not said lately."""
    lately = moment - round(EVERY * 1e6)
    at = leases.c.others_at
    noted = connection.execute(
        update(leases)
        .where(leases.c.business_id == business_id, or_(at.is_(None), at <= lately))
        .values(others_at=moment)
    )
    return noted.rowcount > 0
