# ruff: noqa: S608 - names and numbers of ours
"""One measurement: a database, a stand-in for the Market, and a process that delivers or puts."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, text

from tests.postgres import schema

from ..crash.servers import postgres
from ..processes import python, server, server_process, started
from ..server import Head, listen
from .clients import QUEUES, Queue, messages

SETTINGS = {
    "fsync": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": "10000",
    "max_wal_size": "4GB",
}
LOOK = 0.02


class Process:
    """A process that answers each line of its stdin."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        # Linux's clock of all threads of another process.
        self._clock = (~process.pid << 3) | 2

    def line(self) -> str:
        """Return what it prints next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the process has ended"
        return line

    def ask(self, line: str) -> str:
        """Send it a line, and return the answer."""
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self.line()

    def cpu(self) -> float:
        """Return the seconds of CPU that it used, user and system, in all its threads."""
        return time.clock_gettime(self._clock)

    def memory(self) -> float:
        """Return the megabytes that no other process has."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text(encoding="utf-8")
        return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+)", text)) / 1024


@dataclass
class Database:
    """An empty database."""

    url: str
    dialect: str

    def execute(self, *statements: str) -> Any:
        """Execute statements, each in a transaction of its own; return the first value."""
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        value = None
        with engine.connect() as connection:
            for statement in statements:
                result = connection.execute(text(statement))
                value = result.scalar() if result.returns_rows else None
        return value

    def counts(self) -> tuple[int, int]:
        """Return how many statements and transactions the server has executed."""
        if self.dialect == "sqlite":
            return 0, 0
        self.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public")
        statements = self.execute("SELECT sum(calls) FROM public.pg_stat_statements")
        # BEGIN comes with its settings in one request, so it stands there as well.
        transactions = self.execute(
            "SELECT sum(calls) FROM public.pg_stat_statements WHERE query ILIKE 'COMMIT%'"
        )
        return int(statements or 0), int(transactions or 0)


class Databases:
    """Makes databases of both kinds."""

    def __init__(self, dialects: set[str]) -> None:
        self._stack = ExitStack()
        self._postgres = None
        if "postgresql" in dialects:
            self._postgres = self._stack.enter_context(
                postgres(own_network=False, settings=SETTINGS)
            )

    def cpu(self) -> float:
        """Return the seconds of CPU that PostgreSQL has used."""
        assert self._postgres is not None
        return self._postgres.cpu()

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def new(self, dialect: str) -> Iterator[Database]:
        """Make an empty database."""
        if dialect == "sqlite":
            with tempfile.TemporaryDirectory(prefix="yamarket-bench-") as folder:
                yield Database(f"sqlite:///{folder}/outbox.db", dialect)
            return
        assert self._postgres is not None
        with schema(self._postgres.url) as url:
            yield Database(url.render_as_string(hide_password=False), dialect)


def create(name: str, database: Database) -> None:
    """Make the tables of a queue."""

    async def make(queue: Queue) -> None:
        await queue.create()
        await queue.close()

    asyncio.run(make(QUEUES[name][1](database.url)))


def fill(name: str, database: Database, count: int, businesses: int) -> None:
    """Put messages, and let the server know how many they are."""

    async def put(queue: Queue) -> None:
        await queue.put_many(list(messages(count, businesses)))
        await queue.close()

    asyncio.run(put(QUEUES[name][1](database.url)))
    if database.dialect == "postgresql":
        database.execute("VACUUM ANALYZE")


@contextmanager
def worker(name: str, database: Database, *arguments: object) -> Iterator[Process]:
    """Start a process of `benchmarks.outbox.worker`."""
    command = python("-m", "benchmarks.outbox.worker", name, database.url, *arguments)
    with started(command) as process:
        yield Process(process)


def deliver(
    name: str,
    database: Database,
    count: int,
    businesses: int,
    *,
    warm: int | None = None,
    counting: bool = False,
) -> dict[str, float]:
    """Deliver messages that wait, and measure after the first ones: `warm`, or a tenth.

    Returns the seconds and the CPU seconds a message, or with `counting` the statements and
    transactions.
    """
    warm = count // 10 if warm is None else warm
    with server_process() as (market, served):
        answered = Process(served)
        extra = ["count"] if counting and database.dialect == "sqlite" else []
        with worker(name, database, "deliver", market, businesses, *extra) as delivering:
            delivering.line()

            def until(messages: int) -> tuple[int, float, float]:
                while True:
                    done = int(answered.ask(""))
                    if done >= messages:
                        return done, time.perf_counter(), delivering.cpu()
                    time.sleep(LOOK)

            first = until(0)
            before = database.counts() if counting else (0, 0)
            until(warm)
            delivering.ask("freeze")
            if (warmed := until(0))[0] < count * 0.9:  # a tiny run may be over by now
                first, before = warmed, database.counts() if counting else (0, 0)
            last = until(int(count * 0.95))
            statements = int(delivering.ask("statements"))
            done = last[0] - first[0]
            if not counting:
                return {"wall": (last[1] - first[1]) / done, "cpu": (last[2] - first[2]) / done}
            after = database.counts()
            statements = statements or after[0] - before[0]
            return {
                "statements": statements / done,
                "transactions": (after[1] - before[1]) / done,
            }


def put(name: str, database: Database, counts: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Put messages in each way; return the seconds and the CPU seconds a message."""
    took = {}
    with worker(name, database, "put") as putting:
        for way, count in counts.items():
            wall, cpu = json.loads(putting.ask(f"{way} {count}"))
            took[way] = {"wall": wall, "cpu": cpu}
    return took


class _Arrivals(Head):
    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self) -> bytes:
        self.at.append(time.perf_counter())
        return super().__call__()


def latencies(name: str, database: Database, count: int) -> list[float]:
    """Put single messages at random times, and return the seconds from commit to request.

    A worker looks again just after it has sent. The pauses are spread over whole periods of its
    looks (0.05 s, 0.2 s), so no part of a period is met more often than others.
    """

    async def measure(queue: Queue) -> list[float]:
        arrivals, found = _Arrivals(), []
        listening, url = await listen(head=arrivals)
        async with listening:
            with worker(name, database, "deliver", url, 1) as delivering:
                await asyncio.to_thread(delivering.line)
                warm = min(count, 5)
                for number, message in enumerate(messages(count + warm, 1)):
                    await asyncio.sleep(random.uniform(0.05, 0.45))
                    arrivals.at.clear()
                    await queue.put(message)
                    committed = time.perf_counter()
                    while not arrivals.at:  # noqa: ASYNC110 - another process sets it
                        await asyncio.sleep(0.001)
                    if number >= warm:
                        found.append(max(0.0, arrivals.at[-1] - committed))
        await queue.close()
        return found

    return asyncio.run(measure(QUEUES[name][1](database.url)))


def idle(database: Database, businesses: int, seconds: float) -> dict[str, float]:
    """Hold the leases of businesses that have no messages."""
    name = next(one for one in QUEUES if QUEUES[one][0] == database.dialect)
    with server() as market, worker(name, database, "deliver", market, businesses) as holding:
        holding.line()
        held = "SELECT count(*) FROM yamarket_outbox_leases WHERE worker IS NOT NULL"
        while database.execute(held) < businesses:
            time.sleep(0.2)
        time.sleep(min(seconds, 20))  # a worker that came looks more often at first
        holding.ask("freeze")
        cpu, before = holding.cpu(), database.counts()
        time.sleep(seconds)
        used, after = holding.cpu() - cpu, database.counts()
        return {
            "cpu": used / seconds,
            "megabytes": holding.memory(),
            "statements": (after[0] - before[0]) / seconds,
        }


def many_wait(database: Database, count: int, businesses: int) -> None:
    """Let many bulk messages wait: rows as `put` makes them, but made by the database itself."""
    columns = "business_id, chat_id, key, digest, text, bulk, created_at"
    values = (
        f"1 + n % {businesses}, 1 + n / {businesses} % 1000, 'fill-' || n, {{}},"
        " 'Ваш заказ уже в пути, курьер позвонит за час до приезда', {}, 1"
    )
    table = "yamarket_outbox_messages"
    if database.dialect == "sqlite":
        numbers = f"SELECT 0 UNION ALL SELECT n + 1 FROM each WHERE n < {count - 1}"
        values = values.format("zeroblob(32)", "1")
        select = f"WITH RECURSIVE each(n) AS ({numbers}) SELECT {values} FROM each"
        insert = f"INSERT INTO {table} ({columns}) {select}"
        # As for PostgreSQL: or the next commits write these rows into the database's file.
        database.execute(insert, "PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        values = values.format("'\\x00'::bytea", "true")
        select = f"SELECT {values} FROM generate_series(0, {count - 1}) n"
        # The checkpoint now, or the server writes these rows to the disk while it is measured.
        database.execute(
            f"INSERT INTO {table} ({columns}) {select}", "VACUUM ANALYZE", "CHECKPOINT"
        )


def forget_sent(database: Database) -> None:
    """Remove what has ended: a process that begins learns of all that was delivered lately."""
    removed = (
        "DELETE FROM yamarket_outbox_messages WHERE ended_at IS NOT NULL",
        "DELETE FROM yamarket_outbox_counts",
    )
    if database.dialect == "sqlite":
        database.execute(*removed, "PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        database.execute(*removed, "VACUUM ANALYZE", "CHECKPOINT")
