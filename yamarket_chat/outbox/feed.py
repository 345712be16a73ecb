"""Looks for messages that are due, for all businesses of a process in one transaction.

Whoever puts a message on the same event loop wakes it. Others are found by looking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, TextClause, text

from ..system import wall_time
from . import marks
from .courier import Courier
from .database import Database
from .errors import OutboxDatabaseError
from .grant import Grant
from .schema import messages
from .strangers import Strangers
from .watching import LOOKS

logger: logging.Logger = logging.getLogger("yamarket_chat")

AWAY = 1.0
"""Seconds until the next look if the database cannot be used."""

SOON = 60.0
"""Seconds before a message is due, or expires, at which its business gets a courier: it has to read
the Market's clock first."""

IDLE = 600.0
"""Seconds after which a courier ends that has nothing to send. Its session costs memory."""

REST = 2.0
"""How many times as long as a look the pause after it is at least: a database with many businesses
is not to be busy with looks alone."""

TIMES = 1.0
"""Seconds between two looks for what has become due, or has expired."""


class Feed:
    """Feeds the couriers of one event loop.

    Args:
        database: The outbox's.
        grants: What may be sent for, by business.
        couriers: Of them those that have a courier.
        begin: Makes the courier of a business that has messages.
        rest: Ends the courier of one that has had none for long.
        failed: Wakes who tells the program of messages that have expired.
    """

    def __init__(
        self,
        database: Database,
        grants: Mapping[int, Grant],
        couriers: dict[int, Courier],
        begin: Callable[[int], None],
        rest: Callable[[int], None],
        failed: Callable[[], None],
    ) -> None:
        self._database = database
        self._grants = grants
        self._couriers = couriers
        self._begin = begin
        self._rest = rest
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._version: tuple[int, int] | None = None
        self._read_for: set[int] = set()  # the grants at the last look
        self._named: set[int] = set()  # the businesses that had something then
        self._served: frozenset[int] = frozenset()  # the grants whose couriers have begun, if any
        self._looked = asyncio.Event()  # set when that has changed
        self._times_at = 0.0
        self._ahead = 0.0  # how many seconds the Market's clock was ahead of this machine's
        self._strangers = Strangers(database)
        self._away = False

    def wake(self) -> None:
        """Look at once."""
        self._woken.set()

    async def serves(self, business_id: int) -> None:
        """Wait until a look has begun the courier of a business, if it has something."""
        while business_id not in self._served:
            await self._looked.wait()

    async def run(self) -> None:
        """Look again and again."""
        pause = LOOKS[self._database.dialect]
        while True:
            began = self._loop.time()
            try:
                await self._look()
                self._away = False
                # The more businesses have something, the longer a look takes.
                wait = max(pause, REST * (self._loop.time() - began))
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
        if self._loop.time() >= self._times_at:
            self._times_at = self._loop.time() + TIMES
            await self._pass_time()
        version = await self._database.data_version()
        changed = woken or version is None or version != self._version
        changed = changed or self._read_for != self._grants.keys()
        asking: dict[Courier, tuple[int, int]] = {}
        for business_id, one in self._couriers.items():
            more = one.hand.more
            # Thousands may have nothing to send, and are not asked: that cost more than all else.
            if changed and (business_id in self._named or one.hand.rows):
                more[:] = True, True
            if not any(more):
                continue
            room = one.wants()
            wants = room[0] if more[0] else 0, room[1] if more[1] else 0
            if any(wants):
                asking[one] = wants
                # What it has no room for now is read when it has.
                more[:] = more[0] and not wants[0], more[1] and not wants[1]
        if not asking and not changed:
            return
        looks = {one: one.hand.begin_look() for one in asking}
        wishes = {one.business_id: one.wish(*wants) for one, wants in asking.items()}
        self._read_for = set(self._grants)
        some: Sequence[int] = ()
        read = False
        found: Mapping[int, Sequence[Any]] = {}
        try:
            some, found = await self._database.read(_due, wishes)
            self._version, read = version, True
        finally:
            for one, (singles, others) in asking.items():
                rows = found.get(one.business_id, ())
                bulk = sum(row.bulk for row in rows)
                # It was not read, or not to its end.
                one.hand.more[0] |= not read or 0 < singles <= len(rows) - bulk
                one.hand.more[1] |= not read or 0 < others <= bulk
                one.take(rows, looks[one])
        before, self._named = self._named, set(some)
        for business_id in some:
            courier = self._couriers.get(business_id)
            if courier is None:
                if business_id in self._grants:
                    self._begin(business_id)
            elif business_id not in before and courier not in asking:
                self.wake()  # it was not asked
        self._served = frozenset(self._read_for)
        self._looked.set()
        self._looked = asyncio.Event()

    async def _pass_time(self) -> None:
        """Let messages be due, or expire, by the Market's clock, and idle couriers end."""
        idle = [
            business_id
            for business_id, courier in self._couriers.items()
            if courier.idle_for() > IDLE
        ]
        for business_id in idle:
            self._rest(business_id)
        await self._strangers.look([(one, each.engine) for one, each in self._couriers.items()])
        later, expiring = await self._database.read(_timed)
        wall = wall_time(self._loop)
        for one in reversed(self._couriers.values()):
            if times := one.times():
                self._ahead = times[1] / 1e6 - wall
                break
        soon = (wall + self._ahead + SOON) * 1e6
        due, expired = {}, {}
        for business_id, moment in later.items():
            courier = self._couriers.get(business_id)
            if courier is not None and (times := courier.times()) and moment <= times[0]:
                due[business_id] = times[0]
            elif courier is None and business_id in self._grants and moment <= soon:
                self._begin(business_id)
        for business_id, moment in expiring.items():
            courier = self._couriers.get(business_id)
            if courier is not None and (times := courier.times()) and moment < times[1]:
                expired[business_id] = times[1]
            elif courier is None and business_id in self._grants and moment <= soon:
                self._begin(business_id)
        while due or expired:
            ended = await self._database.write(_pass_time, due, expired)
            for business_id, numbers in ended.items():
                for number in numbers:  # as a courier does
                    logger.warning("business %d: message %d is expired", business_id, number)
            if any(ended.values()):
                self._failed()
            due = {}
            expired = {
                one: moment for one, moment in expired.items() if len(ended[one]) == marks.PIECE
            }


def _due(
    connection: Connection, wishes: Mapping[int, marks.Wish]
) -> tuple[list[int], dict[int, list[Any]]]:
    """Return which businesses have something, and read what is next for those who want it."""
    some = businesses(connection)
    return some, {
        business_id: marks.due(connection, business_id, wishes[business_id])
        for business_id in some
        if business_id in wishes
    }


def _timed(connection: Connection) -> tuple[dict[int, int], dict[int, int]]:
    return _first(connection, "due_at"), _first(connection, "not_after")


def _pass_time(
    connection: Connection, due: Mapping[int, int], expired: Mapping[int, int]
) -> dict[int, list[int]]:
    """Return by business which messages have expired."""
    for business_id, moment in due.items():
        marks.make_due(connection, business_id, moment)
    return {
        business_id: marks.expire(connection, business_id, moment)
        for business_id, moment in expired.items()
    }


_TABLE = messages.name


def _businesses(condition: str, order: str) -> str:
    """Return what names the businesses that have open rows of a kind: `step`, which begins with 0.

    It goes from one to the next in the index of these rows, so it does not read all of them. The
    order is that of this index: or SQLite may take another one, with the rows that have ended, if
    somebody has called ANALYZE before any had.
    """
    return (
        "WITH RECURSIVE step(id) AS (SELECT CAST(0 AS BIGINT) UNION ALL"  # noqa: S608 - names of ours
        f" SELECT (SELECT business_id FROM {_TABLE}"
        f" WHERE ended_at IS NULL AND {condition} AND business_id > id"
        f" ORDER BY business_id, {order} LIMIT 1) FROM step WHERE id IS NOT NULL) "
    )


_DUE = text(
    _businesses("due_at IS NULL", "bulk, number") + "SELECT id FROM step WHERE id > 0"  # noqa: S608 - ours
)


def businesses(connection: Connection) -> list[int]:
    """Return the businesses that have something to send."""
    return list(connection.scalars(_DUE))


def _of_time(column: str) -> TextClause:
    given = f"{column} IS NOT NULL"
    return text(
        _businesses(given, column) + f"SELECT id, (SELECT min({column}) FROM {_TABLE}"  # noqa: S608 - names of ours
        f" WHERE ended_at IS NULL AND {given} AND business_id = id) FROM step WHERE id > 0"
    )


_FIRSTS = {column: _of_time(column) for column in ("due_at", "not_after")}


def _first(connection: Connection, column: str) -> dict[int, int]:
    """Return by business the earliest moment of a column."""
    found = connection.execute(_FIRSTS[column])
    return {business_id: moment for business_id, moment in found if moment is not None}
