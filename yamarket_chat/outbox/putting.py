"""Puts messages: several in a transaction, in one of the caller's, and again after a broken one."""

from __future__ import annotations

import asyncio
import inspect
import os
import weakref
from array import array
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, select

from ..errors import InvalidArgumentError
from . import store
from .database import Database
from .errors import KeyConflictError, OutboxDatabaseError
from .messages import OutboxFile, OutboxMessage
from .numbers import Numbers
from .rows import Row, prepare
from .together import Together

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    CallersConnection = Connection | AsyncConnection | Session | AsyncSession

Put = OutboxMessage | OutboxFile
Stored = tuple[list[int], KeyConflictError | None]

BATCH = 1_000
"""The most messages of a transaction of `put_many`."""

BATCH_BYTES = 32 * 2**20
"""The most bytes of files in one, unless a single file is larger."""

PAUSES = (0.0, 0.1, 0.4, 1.0, 2.0)
"""Seconds before `put` repeats a transaction whose connection broke."""


class Putting:
    """What puts into a database, on any event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # By event loop. A loop that is gone takes its own with it.
        self._together: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Together] = (
            weakref.WeakKeyDictionary()
        )

    async def put(self, message: Put, connection: CallersConnection | None) -> int:
        """Put a message, and return its number once it is committed."""
        row = await self._prepared(message)
        if connection is None and self._database.dialect == "sqlite":
            loop = asyncio.get_running_loop()
            return await self._together.setdefault(loop, Together(self._database)).put(row)
        (number,) = await self._put([row], connection)
        return number

    async def put_many(
        self, messages: Iterable[Put] | AsyncIterable[Put], connection: CallersConnection | None
    ) -> Sequence[int]:
        """Put messages. An error has the numbers of those before the one that failed."""
        done = array("q")
        batch: list[Row] = []
        size = 0
        source = aiter(messages) if isinstance(messages, AsyncIterable) else _slowly(messages)
        try:
            try:
                async for message in source:
                    row = await self._prepared(message)
                    batch.append(row)
                    size += len(row.content or b"")
                    if len(batch) >= BATCH or size >= BATCH_BYTES:
                        full, batch, size = batch, [], 0
                        done.extend(await self._put(full, connection))
            except Exception:
                # Of the iterable, or a message that makes no sense: what came before is put.
                if batch:
                    done.extend(await self._put(batch, connection))
                raise
            if batch:
                done.extend(await self._put(batch, connection))
        except Exception as error:
            if isinstance(error, KeyConflictError):
                done.extend(error.numbers)
            with suppress(AttributeError):  # a class of the caller's may have no place for it
                error.numbers = Numbers(done)  # type: ignore[attr-defined]
            raise
        return Numbers(done)

    async def _prepared(self, message: Put) -> Row:
        if isinstance(message, OutboxFile):
            return await self._database.call(prepare, message)  # it reads a disk
        return prepare(message)

    async def _put(self, rows: list[Row], connection: CallersConnection | None) -> list[int]:
        if connection is None:
            numbers, conflict = await self._put_surely(rows)
        else:
            numbers, conflict = await self._put_with(rows, connection)
        if conflict is not None:
            conflict.numbers = numbers
            raise conflict
        return numbers

    async def _put_surely(self, rows: list[Row]) -> Stored:
        uncertain = False
        for pause in (*PAUSES, None):
            try:
                return await self._database.write(store.put, rows)
            except OutboxDatabaseError as error:
                uncertain |= error.sent is None
                if pause is None or not uncertain:
                    if uncertain:
                        error.sent = None
                    raise
            await asyncio.sleep(pause)
        raise AssertionError

    async def _put_with(self, rows: list[Row], connection: CallersConnection) -> Stored:
        def work(given: Connection | Session) -> Stored:
            target = given if isinstance(given, Connection) else given.connection()
            _check_leads_to(self._database.url, target)
            self._database.usable(target)
            if _commits_by_itself(target):
                raise InvalidArgumentError(
                    "connection commits each statement by itself: pass one in a transaction"
                )
            return store.put(target, rows)

        run_sync: Callable[..., Any] | None = getattr(connection, "run_sync", None)
        if run_sync is not None and inspect.iscoroutinefunction(run_sync):
            stored: Stored = await run_sync(work)
            return stored
        if isinstance(connection, Connection) or hasattr(connection, "get_bind"):
            return work(connection)  # type: ignore[arg-type]
        raise InvalidArgumentError(
            "connection is a Connection or a Session of SQLAlchemy's, or an async one, and not"
            f" {type(connection).__module__}.{type(connection).__qualname__}: with another library,"
            " execute the statement that Outbox.sql returns"
        )


def _check_leads_to(url: URL, connection: Connection) -> None:
    """Check that a connection is one to the outbox's database, as far as that can be seen."""
    dialect = url.get_backend_name()
    if connection.dialect.name != dialect:
        raise InvalidArgumentError(
            f"connection is one to {connection.dialect.name}, and the outbox is in {dialect}"
        )
    if dialect == "sqlite":
        attached = connection.exec_driver_sql("PRAGMA database_list")
        if not any(_are_one_file(row[2], url.database or "") for row in attached.all()):
            raise InvalidArgumentError("connection is one to another file than the outbox's")


def _are_one_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _commits_by_itself(connection: Connection) -> bool:
    """Whether each statement is a transaction of its own."""
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite":
        by_hand = getattr(driver, "isolation_level", "") is None
    else:
        by_hand = getattr(driver, "autocommit", False) is True
    if not by_hand:
        return False
    # Of an engine with this option; or the program begins its transactions by an event.
    connection.execute(select(1))
    if connection.dialect.name == "sqlite":
        return not driver.in_transaction
    info = getattr(driver, "info", None)
    return info is None or info.transaction_status == 0


async def _slowly(messages: Iterable[Put]) -> AsyncIterable[Put]:
    for message in messages:
        yield message
