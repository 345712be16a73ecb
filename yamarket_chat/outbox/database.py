"""The connections to the database, and the threads that work with them.

SQLAlchemy works in threads of its own, so the event loop never waits for a disk. Its drivers begin
no transactions by themselves here: one statement begins each, with the settings that it needs. In
PostgreSQL these are settings of the transaction alone, so PgBouncer may share the connections.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ..arguments import check_encodable
from ..errors import InvalidArgumentError
from . import schema
from .errors import OutboxDatabaseError
from .troubles import BrokenConnectionError, refuse_network, translated

P = ParamSpec("P")
T = TypeVar("T")

_File = tuple[int, int] | None
"""A file that has a path; None if there is none."""

THREADS = {"sqlite": 1, "postgresql": 4}
"""SQLite has one writer at a time, so more threads would only wait for each other."""

PATIENCE = 10.0
"""Seconds to wait for somebody else's lock, for a connection, and for a peer that is silent."""

_of_parents: list[object] = []
"""What a fork left of the parent's connections to PostgreSQL."""

_of_sqlite: weakref.WeakSet[Database] = weakref.WeakSet()
"""The databases of this process whose connections are closed before a fork."""

_opening = threading.Lock()
"""Held while connections are opened or given up, and while a process forks."""

_ending: dict[Callable[[], Any], threading.Lock] = {}
"""What closes connections that were given up, until that is done. A fork waits for it."""

_URLS = "sqlite:///outbox.db, or postgresql+psycopg://user:password@host/database"


WAL_ATTEMPTS = 100
"""How often a connection tries to switch a file to the write-ahead log, every 10 ms."""


class _Mine(threading.local):
    """What a thread works with. The database may be closed, and opened anew, meanwhile."""

    engine: Engine
    watching: list[sqlite3.Connection]
    opened: int


_mine = _Mine()


class Database:
    """A database: runs functions in transactions, in threads.

    Args:
        url: Its address.
        idle: Seconds after which PostgreSQL ends a transaction that does nothing.
        patience: Seconds to wait for somebody else's lock, for a connection, and for a silent peer.
    """

    def __init__(
        self, url: str | URL, *, idle: float | None = None, patience: float | None = None
    ) -> None:
        self.url: URL = _checked(url)
        self.dialect: str = self.url.get_backend_name()
        # Parameters may have passwords as well.
        self.shown: str = self.url.set(query={}).render_as_string()
        """The address, in a form that may be shown."""
        self._patience = patience = PATIENCE if patience is None else patience
        idle = patience if idle is None else idle
        self._begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED;"
            f" SET LOCAL lock_timeout = '{patience * 1000:.0f}ms';"
            f" SET LOCAL idle_in_transaction_session_timeout = '{idle * 1000:.0f}ms'"
        )
        self._check_driver()
        self._checked = False
        self._pid = 0
        self._opened = 0  # how often
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._closing: Callable[[], Any] | None = None
        if self.dialect == "sqlite":
            with _opening:  # a fork goes through them
                _of_sqlite.add(self)

    def __repr__(self) -> str:
        return f"Database({self.shown!r})"

    async def call(self, function: Callable[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run a function in a thread."""
        with _opening:
            self._open()
            done = asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        return await done

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **_: P.kwargs
    ) -> T:
        """Run a function in a thread, in a transaction that is committed when it returns.

        Raises OutboxDatabaseError if the database cannot be used.
        """
        return await self.call(self._transact, False, function, args)

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **_: P.kwargs
    ) -> T:
        """Run a function that changes nothing, as `write` does."""
        return await self.call(self._transact, True, function, args)

    async def create(self) -> None:
        """Make the tables, or bring them to the newest version."""
        await self.call(self._create)

    def usable(self, connection: Connection) -> None:
        """Check the version of the tables, once. Works on a connection of the caller's as well."""
        if not self._checked:
            schema.check_usable(connection)
            self._checked = True

    def check_again(self) -> None:
        """Check the version of the tables at the next call: somebody may have changed them."""
        self._checked = False

    async def data_version(self) -> tuple[int, int] | None:
        """Return numbers that change when anybody commits; None if the database has none."""
        return await self.call(self._data_version) if self.dialect == "sqlite" else None

    async def close(self) -> None:
        """Close the connections. A later call opens them again."""
        with _opening:
            closing = self._give_up()
        if closing is not None:
            await asyncio.get_running_loop().run_in_executor(None, _end, closing)

    def _give_up(self) -> Callable[[], Any] | None:
        """Let the next call open other connections. Returns what closes these, for `_end`."""
        closing = self._closing
        self._closing = self._engine = self._threads = None
        if closing is not None:
            _ending[closing] = threading.Lock()
        return closing

    def _open(self) -> Engine:
        if self._engine is not None and self._pid == os.getpid():
            return self._engine
        if self._engine is not None:
            # After a fork neither the threads nor the connections are of this process. They must
            # not even be closed, because they are the parent's.
            _of_parents.append(self._engine)
        threads = THREADS[self.dialect]
        options: dict[str, Any] = {"poolclass": QueuePool, "pool_size": threads, "max_overflow": 0}
        if self.dialect == "sqlite":
            options["creator"] = self._connect_sqlite
        else:
            options["connect_args"] = {
                "prepare_threshold": None,  # PgBouncer
                "client_encoding": "utf8",
                "connect_timeout": max(2, round(self._patience)),  # libpq takes no less
                # A network that is gone shows neither an answer nor an end.
                "keepalives_idle": max(1, round(self._patience / 2)),
                "keepalives_interval": max(1, round(self._patience / 5)),
                "keepalives_count": 3,
                "tcp_user_timeout": round(self._patience * 1000),
            }
        engine = create_engine(self.url, hide_parameters=True, **options)
        event.listen(engine, "begin", self._on_begin)
        event.listen(engine, "connect", self._on_connect)
        self._opened += 1
        watching: list[sqlite3.Connection] = []
        use = engine, watching, self._opened
        executor = ThreadPoolExecutor(threads, "yamarket-outbox", _use, use)
        self._pid, self._engine, self._threads = os.getpid(), engine, executor
        self._closing = weakref.finalize(self, _close, engine, executor, watching, self._pid)
        return engine

    def _transact(
        self, reading: bool, function: Callable[..., T], args: Sequence[Any], create: bool = False
    ) -> T:
        for last in (False, True):
            began = False
            try:
                with _mine.engine.connect() as connection:
                    connection = connection.execution_options(outbox_reading=reading)
                    with connection.begin():
                        began = True
                        if not create:
                            self.usable(connection)
                        return function(connection, *args)
            except SQLAlchemyError as error:
                trouble = translated(error, self.shown)
                if last or began or not isinstance(trouble, BrokenConnectionError):
                    raise trouble from error
                # A kept connection: the server was restarted since. Nothing was sent on it.
        raise AssertionError

    def _data_version(self) -> tuple[int, int]:
        # A connection does not count its own commits, so this one makes none. The numbers of two
        # connections have nothing to do with each other.
        try:
            if not _mine.watching:
                _mine.watching.append(self._connect_sqlite())
            (version,) = _mine.watching[0].execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise translated(error, self.shown) from error
        return _mine.opened, int(version)

    def _create(self) -> None:
        if self.dialect == "sqlite":
            # All other connections want the file to be there: a wrong path must not make a new one.
            try:
                self._connect_sqlite("rwc").close()
            except sqlite3.Error as error:
                raise translated(error, self.shown) from error
            # SQLite has removed the journal of a new file, but a power cut could bring it back, and
            # then it would undo all that was ever put.
            _sync_folder(self.url.database or "")
        self._transact(False, schema.create, (), True)

    def _connect_sqlite(self, mode: str = "rw") -> sqlite3.Connection:
        path = self.url.database or ""
        refuse_network(path)
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode={mode}",
            uri=True,
            timeout=self._patience,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            journal = _write_ahead(connection)
            if journal != "wal":
                raise OutboxDatabaseError(
                    f"{path} cannot have a write-ahead log (its journal is {journal!r}): move it to"
                    " a local disk"
                )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _on_connect(self, driver: Any, record: Any) -> None:
        if self.dialect == "sqlite":
            record.info["files"] = self._files()
            return
        driver.autocommit = True  # `_on_begin` begins the transactions
        with driver.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            (durable,) = cursor.fetchone()
        # What was accepted must be on a disk, whatever the server's or the role's setting is.
        record.info["begin"] = self._begin + (
            "; SET LOCAL synchronous_commit = local" if durable == "off" else ""
        )

    def _on_begin(self, connection: Connection) -> None:
        if self.dialect == "postgresql":
            connection.exec_driver_sql(connection.info["begin"])
            return
        files, opened = self._files(), connection.info["files"]
        if files[0] != opened[0] or (opened[1] is not None and files[1] != opened[1]):
            # What is written to the open ones would be lost with them.
            raise OutboxDatabaseError(
                f"{self.url.database} or its -wal file was removed or replaced while this process"
                " had it open: restart the process"
            )
        connection.info["files"] = files  # the first transaction may have made the log
        if connection.get_execution_options().get("outbox_reading"):
            connection.exec_driver_sql("BEGIN")
        else:
            # A transaction that begins with reading could not write after somebody else wrote.
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _files(self) -> tuple[_File, _File]:
        """Return which files have the paths of the database and of its log now."""
        path = self.url.database or ""
        return _file(path), _file(f"{path}-wal")

    def _check_driver(self) -> None:
        if self.dialect == "postgresql":
            try:
                import psycopg  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    "PostgreSQL needs psycopg 3, which is not installed or cannot be loaded"
                    f" ({error}): pip install 'yamarket-chat[postgres]'"
                ) from error


def _checked(url: object) -> URL:
    try:
        made = make_url(url)  # type: ignore[arg-type]  # whatever the caller passed
        # The name that hosters give the address, and SQLAlchemy's for the default driver.
        if made.drivername in ("postgres", "postgresql"):
            made = made.set(drivername="postgresql+psycopg")
        driver = made.get_backend_name(), made.get_driver_name()
    except (ArgumentError, NoSuchModuleError, ValueError, AttributeError, ImportError):
        # The address may contain a password, so no text shows it.
        raise InvalidArgumentError(f"the address of the outbox is one such as {_URLS}") from None
    if "@" in (made.host or ""):
        raise InvalidArgumentError("an @ in the password or the user of an address is written %40")
    if driver == ("postgresql", "psycopg"):
        return made
    if driver != ("sqlite", "pysqlite"):
        raise InvalidArgumentError(
            f"the outbox does not work with {made.drivername!r}: pass {_URLS}"
        )
    if made.host or made.username or made.password or made.port:
        raise InvalidArgumentError(
            "the address of an SQLite file has three slashes, and names no server:"
            " sqlite:///outbox.db, or sqlite:////folder/outbox.db"
        )
    if not made.database or made.database == ":memory:" or made.database.startswith("file:"):
        raise InvalidArgumentError(
            "an outbox in memory does not survive the process: pass the path of a file, such as"
            " sqlite:///outbox.db"
        )
    if made.query:
        raise InvalidArgumentError("the address of an SQLite file has no parameters: remove them")
    check_encodable("the path of the outbox", made.database)
    if "\0" in made.database:
        raise InvalidArgumentError("the path of the outbox has a NUL character: remove it")
    # As it is now: the program may change its folder later.
    return made.set(database=os.path.abspath(made.database))


def _file(path: str) -> _File:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _write_ahead(connection: sqlite3.Connection) -> str:
    """Switch to the write-ahead log, and return which journal there is then.

    SQLite does not wait for a lock here if several programs switch a new file at the same time.
    """
    for attempt in range(WAL_ATTEMPTS):
        try:
            (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == WAL_ATTEMPTS - 1:
                raise
            time.sleep(0.01)
        else:
            return str(journal)
    raise AssertionError("the last attempt returns or raises")


def _sync_folder(path: str) -> None:
    """Make sure that the names in the folder of a file survive a power cut."""
    with suppress(OSError):  # Windows opens no folders
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _use(engine: Engine, watching: list[sqlite3.Connection], opened: int) -> None:
    """Begin a thread."""
    _mine.engine, _mine.watching, _mine.opened = engine, watching, opened


def _close(
    engine: Engine, threads: ThreadPoolExecutor, watching: list[sqlite3.Connection], pid: int
) -> None:
    if pid == os.getpid():
        threads.shutdown()
        engine.dispose()
        while watching:
            watching.pop().close()


def _end(closing: Callable[[], Any]) -> None:
    """Close connections that were given up, once; return when that is done."""
    lock = _ending.get(closing)
    if lock is not None:
        with lock:
            closing()
        _ending.pop(closing, None)


def _before_fork() -> None:
    """Close the connections to SQLite. Both processes open others when they need them.

    SQLite notes in the memory of a process which locks it has. A child would believe that it has
    its parent's. So others would take the file for unused, and remove the log into which the child
    writes.
    """
    _opening.acquire()
    for database in list(_of_sqlite):
        database._give_up()
    for closing in list(_ending):
        with suppress(RuntimeError):  # one of its own threads forks
            _end(closing)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork, after_in_parent=_opening.release, after_in_child=_opening.release
    )
