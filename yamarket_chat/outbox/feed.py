"""Looks for messages that are due, for all businesses of a process in one transaction.

Whoever puts a message on the same event loop wakes it. Others are found by looking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from . import marks
from .courier import Courier
from .database import Database
from .errors import OutboxDatabaseError
from .schema import messages
from .watching import LOOKS

logger = logging.getLogger("yamarket_chat.outbox")

AWAY = 1.0
"""Seconds until the next look if the database cannot be used."""

TIMES = 1.0
"""Seconds between two looks for what has become due, or has expired."""

Wish = tuple[int, Sequence[int], int, int]
"""A business, the numbers in hand, and how many singles and others are wanted."""


class Feed:
    """Feeds the couriers of one event loop."""

    def __init__(self, database: Database, couriers: Mapping[int, Courier]) -> None:
        self._database = database
        self._couriers = couriers
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._version: int | None = None
        self._times_at = 0.0
        self._away = False

    def wake(self) -> None:
        """Look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Look again and again."""
        pause = LOOKS[self._database.dialect]
        while True:
            try:
                await self._look()
                self._away = False
                wait = pause
            except OutboxDatabaseError as error:
                if not self._away:
                    logger.warning("the outbox cannot be read: %s", error)
                self._away, wait = True, AWAY
            except Exception:
                logger.exception("the outbox cannot be read")
                wait = AWAY
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                continue
            if self._away:
                await asyncio.sleep(wait)

    async def _look(self) -> None:
        woken = self._woken.is_set()
        self._woken.clear()
        now = self._loop.time()
        if now >= self._times_at:
            self._times_at = now + TIMES
            times = {
                one.business_id: moment
                for one in self._couriers.values()
                if (moment := one.times()) is not None
            }
            if times:
                await self._database.write(_pass_time, times)
        version = await self._database.data_version()
        changed = woken or version is None or version != self._version
        asking = [one for one in self._couriers.values() if changed or one.hungry]
        wishes = {
            one: (one.business_id, list(one.in_hand), *wants)
            for one in asking
            if any(wants := one.wants())
        }
        if not wishes:
            # What is not read now is read when there is room again.
            for one in asking:
                one.hungry = True
            self._version = version
            return
        looks = {one: one.begin_look() for one in wishes}
        for one in wishes:
            one.hungry = False
        found: Mapping[int, Sequence[Any]] = {}
        try:
            found = await self._database.read(_due, list(wishes.values()))
            self._version = version
        except BaseException:
            for one in wishes:
                one.hungry = True
            raise
        finally:
            for one, look in looks.items():
                rows = found.get(one.business_id, ())
                _, _, singles, bulk = wishes[one]
                count = sum(row.bulk for row in rows)
                more = 0 < singles <= len(rows) - count or 0 < bulk <= count
                one.take(rows, look, more=more or not (singles and bulk))


def _due(connection: Connection, wishes: Iterable[Wish]) -> dict[int, list[Any]]:
    """Read what is next for each business that has something."""
    some = set(businesses(connection, "due_at IS NULL"))
    return {
        business_id: marks.due(connection, business_id, known, singles, bulk)
        for business_id, known, singles, bulk in wishes
        if business_id in some
    }


def _pass_time(connection: Connection, times: Mapping[int, tuple[int, int]]) -> None:
    for business_id in businesses(connection, "due_at IS NOT NULL"):
        if business_id in times:
            marks.make_due(connection, business_id, times[business_id][0])
    for business_id in businesses(connection, "not_after IS NOT NULL"):
        if business_id in times:
            marks.expire(connection, business_id, times[business_id][1])


def businesses(connection: Connection, condition: str) -> Iterable[int]:
    """Return the businesses that have open rows of a kind: from row to row of its index."""
    which = f"ended_at IS NULL AND {condition}"
    table = messages.name
    return connection.scalars(
        text(
            "WITH RECURSIVE step(id) AS ("  # noqa: S608 - names of ours
            f"SELECT min(business_id) FROM {table} WHERE {which} UNION ALL"
            f" SELECT (SELECT min(business_id) FROM {table} WHERE {which} AND business_id > id)"
            " FROM step WHERE step.id IS NOT NULL) SELECT id FROM step WHERE id IS NOT NULL"
        )
    ).all()
