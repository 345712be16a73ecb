"""The queues under comparison. Each puts messages, and delivers them until its context ends."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import make_url

from tests.postgres import address
from yamarket_chat import ChatSession, Limits, Rate
from yamarket_chat.outbox import Outbox, OutboxMessage

from ..rivals import API_KEY, LIFTED, TEXT

PARALLEL = 4
"""Parallel requests of a business, as the Market allows."""
MOST_TASKS = 32
"""Tasks of a queue that holds a task and perhaps a connection for each request."""
LOOK = 0.2
"""Seconds between two looks of the table by hand, as of the outbox on PostgreSQL."""

Message = tuple[int, int, str]
"""The business, the chat and the text."""


def limits() -> Limits:
    """Return limits that bound nothing but the parallel requests."""
    return Limits(parallel=PARALLEL, send_message=Rate(LIFTED, per=3600))


def messages(count: int, businesses: int) -> Iterable[Message]:
    """Return messages to the chats of some businesses in turn, 1,000 chats each."""
    for number in range(count):
        yield 1 + number % businesses, 1 + number // businesses % 1000, TEXT


class Queue(Protocol):
    """A queue of messages in a database."""

    async def create(self) -> None:
        """Make the tables."""

    async def put(self, message: Message) -> None:
        """Put one message and commit."""

    async def put_many(self, many: Sequence[Message]) -> None:
        """Put many messages."""

    async def close(self) -> None:
        """Close the connections."""

    def delivering(self, market: str, businesses: int) -> Any:
        """Deliver until the context ends."""


class Ours:
    """The outbox."""

    def __init__(self, url: str) -> None:
        self.outbox = Outbox(url)

    async def create(self) -> None:
        await self.outbox.create()

    async def put(self, message: Message) -> None:
        await self.outbox.put(OutboxMessage(*message))

    async def put_many(self, many: Sequence[Message]) -> None:
        await self.outbox.put_many(OutboxMessage(*one) for one in many)

    async def close(self) -> None:
        await self.outbox.close()

    @asynccontextmanager
    async def delivering(self, market: str, businesses: int) -> AsyncIterator[None]:
        keys = dict.fromkeys(range(1, businesses + 1), API_KEY)
        async with self.outbox.delivering(keys, base_url=market, limits=limits()):
            yield


@asynccontextmanager
async def _sessions(market: str, businesses: int) -> AsyncIterator[dict[int, ChatSession]]:
    async with AsyncExitStack() as stack:
        sessions = {}
        for one in range(1, businesses + 1):
            session = ChatSession(API_KEY, one, base_url=market, limits=limits())
            sessions[one] = await stack.enter_async_context(session)
        yield sessions


def _conninfo(url: str) -> str:
    from psycopg.conninfo import make_conninfo

    parsed = make_url(url)
    known = address(parsed)
    return make_conninfo(
        host=known["host"], user=known["user"], dbname=known["database"],
        options=str(parsed.query["options"]),
    )  # fmt: skip


class Procrastinate:
    """procrastinate, whose task calls `send_message`. A lock for each chat keeps the order."""

    def __init__(self, url: str) -> None:
        import procrastinate

        self._app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=_conninfo(url))
        )
        self._sessions: dict[int, ChatSession] = {}
        self._opened = False

        @self._app.task(name="send")
        async def send(business_id: int, chat_id: int, text: str) -> None:
            await self._sessions[business_id].send_message(chat_id, text)

        self._task: Any = send

    async def _open(self) -> None:
        if not self._opened:
            self._opened = True
            await self._app.open_async()

    async def create(self) -> None:
        await self._open()
        await self._app.schema_manager.apply_schema_async()

    def _job(self, message: Message) -> Any:
        lock = f"{message[0]}-{message[1]}"
        return self._task.configure(lock=lock), _named(message)

    async def put(self, message: Message) -> None:
        await self._open()
        job, values = self._job(message)
        await job.defer_async(**values)

    async def put_many(self, many: Sequence[Message]) -> None:
        await self._open()
        # One lock for a batch, so there is a batch for each chat; all in pieces of some hundreds.
        jobs = [self._job(one) for one in many]
        deferrers = [job.job.evolve(task_kwargs=values) for job, values in jobs]
        for start in range(0, len(deferrers), 1000):
            await self._app.job_manager.batch_defer_jobs_async(deferrers[start : start + 1000])

    async def close(self) -> None:
        if self._opened:
            await self._app.close_async()

    @asynccontextmanager
    async def delivering(self, market: str, businesses: int) -> AsyncIterator[None]:
        await self._open()
        async with _sessions(market, businesses) as self._sessions:
            worker = asyncio.create_task(
                self._app.run_worker_async(
                    concurrency=min(PARALLEL * businesses, MOST_TASKS),
                    install_signal_handlers=False,
                )
            )
            yield
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker


class ByHand:
    """A table from which each task takes a row with FOR UPDATE SKIP LOCKED, and sends it.

    The transaction is open during the request, so a row of a process that dies is sent again: some
    messages are doubled then. It keeps no order within a chat.
    """

    TABLE = (
        "CREATE TABLE jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " business_id bigint NOT NULL, chat_id bigint NOT NULL, text text NOT NULL,"
        " done_at timestamptz)",
        "CREATE INDEX ON jobs (id) WHERE done_at IS NULL",
    )
    PUT = "INSERT INTO jobs (business_id, chat_id, text) VALUES (%s, %s, %s)"
    TAKE = (
        "SELECT id, business_id, chat_id, text FROM jobs WHERE done_at IS NULL"
        " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
    )
    DONE = "UPDATE jobs SET done_at = now() WHERE id = %s"

    def __init__(self, url: str) -> None:
        self._conninfo = _conninfo(url)
        self._pool: Any = None

    async def _open(self) -> Any:
        if self._pool is None:
            from psycopg_pool import AsyncConnectionPool

            self._pool = AsyncConnectionPool(
                self._conninfo, min_size=1, max_size=MOST_TASKS, open=False
            )
            await self._pool.open()
        return self._pool

    async def create(self) -> None:
        async with (await self._open()).connection() as connection:
            for statement in self.TABLE:
                await connection.execute(statement)

    async def put(self, message: Message) -> None:
        async with (await self._open()).connection() as connection:
            await connection.execute(self.PUT, message)

    async def put_many(self, many: Sequence[Message]) -> None:
        async with (await self._open()).connection() as connection, connection.cursor() as cursor:
            await cursor.executemany(self.PUT, many)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    @asynccontextmanager
    async def delivering(self, market: str, businesses: int) -> AsyncIterator[None]:
        pool = await self._open()
        async with _sessions(market, businesses) as sessions:

            async def work() -> None:
                while True:
                    async with pool.connection() as connection:
                        cursor = await connection.execute(self.TAKE)
                        row = await cursor.fetchone()
                        if row is not None:
                            number, business_id, chat_id, text = row
                            await sessions[business_id].send_message(chat_id, text)
                            await connection.execute(self.DONE, (number,))
                    if row is None:
                        await asyncio.sleep(LOOK)

            count = min(PARALLEL * businesses, MOST_TASKS)
            tasks = [asyncio.create_task(work()) for _ in range(count)]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _named(message: Message) -> dict[str, Any]:
    return dict(zip(("business_id", "chat_id", "text"), message, strict=True))


QUEUES: dict[str, tuple[str, Callable[[str], Queue]]] = {
    "outbox, SQLite": ("sqlite", Ours),
    "outbox, PostgreSQL": ("postgresql", Ours),
    "procrastinate": ("postgresql", Procrastinate),
    "SKIP LOCKED by hand": ("postgresql", ByHand),
}
"""By name: the database, and the queue."""


def available(databases: Iterable[str]) -> list[str]:
    """Return the names of the queues whose packages are installed."""
    there = importlib.util.find_spec("procrastinate") is not None
    return [
        name
        for name, (database, queue) in QUEUES.items()
        if database in databases and (there or queue is not Procrastinate)
    ]
