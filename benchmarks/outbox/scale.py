# ruff: noqa: S608 - names and numbers of ours
"""Thousands of businesses on one PostgreSQL: what it does for a message, a row and a look."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from yamarket_chat.outbox import Outbox, OutboxMessage, claims, feed
from yamarket_chat.outbox.database import Database as OutboxDatabase

from ..processes import server_process
from ..report import Figures, Report, Step, Table
from ..rivals import TEXT
from . import play

TITLE = "Outbox, thousands of businesses"
ABOUT = """
Several processes deliver for thousands of businesses from one PostgreSQL (`fsync` on), while
another process puts messages at an even rate, each for a random business, in transactions of a
tenth of a second. Each business has sent a message before, so it has a courier. *CPU* is the time
of all processes that deliver, and of all processes of the server, which also carries out the puts.
*Idle*: the same, and nothing is put. *Bytes*: a text of 56 letters without a key of its own, after
VACUUM. *Looks*: the time of one statement while one message waits for each business, with the
connection and the client.
"""
QUEUE = "outbox, PostgreSQL"
MESSAGES = "yamarket_outbox_messages"
TURN = 0.1
"""Seconds between two transactions that put."""


@dataclass
class Size:
    """How much is measured."""

    loads: tuple[tuple[int, int, int], ...]
    """Businesses, workers, messages a second."""
    seconds: float
    rows: int
    looks: tuple[int, ...]


SIZES = {
    "full": Size(
        ((64, 2, 300), (5000, 2, 300), (5000, 4, 300)),
        seconds=30.0,
        rows=30_000,
        looks=(100, 1000, 10_000, 100_000),
    ),
    "quick": Size(
        ((64, 2, 100), (1000, 2, 100)), seconds=10.0, rows=20_000, looks=(100, 1000, 10_000)
    ),
    "tiny": Size(((4, 1, 20),), seconds=0.4, rows=50, looks=(10,)),
}


def steps(size: Size) -> int:
    return len(size.loads) + len(size.looks) + 1


def run(size: Size, step: Step) -> Figures:
    loads = []
    with play.Databases({"postgresql"}) as databases:
        for businesses, workers, rate in size.loads:
            with databases.new("postgresql") as database:
                loads.append(_load(databases, database, businesses, workers, rate, size.seconds))
                ended = _bytes(database)
            step(f"scale: {businesses:,} businesses")
        with databases.new("postgresql") as database:
            rows = {**_rows(databases, database, size.rows), "ended": ended}
        step("scale: rows")
        looks = []
        for businesses in size.looks:
            with databases.new("postgresql") as database:
                looks.append({"businesses": businesses, **_looks(database, businesses)})
            step("scale: looks")
    return {"loads": loads, "rows": rows, "looks": looks}


class _Watch:
    """What some workers and the server have used since it was made."""

    def __init__(
        self, databases: play.Databases, database: play.Database, workers: list[play.Process]
    ) -> None:
        self._databases, self._database, self._workers = databases, database, workers
        self._began = self._now()

    def _now(self) -> dict[str, float]:
        statements, transactions = self._database.counts()
        return {
            "seconds": time.perf_counter(),
            "workers": sum(one.cpu() for one in self._workers),
            "server": self._databases.cpu(),
            "statements": statements,
            "transactions": transactions,
            "wal": float(self._database.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")),
        }

    def used(self) -> dict[str, float]:
        now = self._now()
        return {name: now[name] - began for name, began in self._began.items()}


def _load(
    databases: play.Databases,
    database: play.Database,
    businesses: int,
    count: int,
    rate: int,
    seconds: float,
) -> dict[str, Any]:
    play.create(QUEUE, database)
    with ExitStack() as stack:
        market, served = stack.enter_context(server_process())
        answered = play.Process(served)
        workers = [
            stack.enter_context(play.worker(QUEUE, database, "deliver", market, businesses))
            for _ in range(count)
        ]
        for one in workers:
            one.line()
        _until(lambda: _evenly(database, businesses, count))
        play.fill(QUEUE, database, businesses, businesses)  # now each has a courier
        _until(lambda: _open(database) == 0)
        for one in workers:
            one.ask("freeze")
        time.sleep(min(seconds, 16))  # until the workers look less often at each other
        idle = _Watch(databases, database, workers)
        time.sleep(seconds / 2)
        resting = idle.used()
        with _putting(database.url, businesses, rate):
            time.sleep(seconds / 4)
            done = int(answered.ask(""))
            load = _Watch(databases, database, workers)
            time.sleep(seconds)
            used, done = load.used(), int(answered.ask("")) - done
            waiting = _open(database)
            connections = database.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres'"
            )
        _until(lambda: _open(database) == 0)
        updates = database.execute(
            f"SELECT n_tup_hot_upd::float / nullif(n_tup_upd, 0) FROM pg_stat_user_tables"
            f" WHERE relid = '{MESSAGES}'::regclass"
        )
        done = max(done, 1)
        return {
            "businesses": businesses,
            "workers": count,
            "rate": rate,
            "sent": done / used["seconds"],
            "worker_us": used["workers"] / done * 1e6,
            "server_us": used["server"] / done * 1e6,
            "statements": used["statements"] / done,
            "transactions": used["transactions"] / done,
            "wal": used["wal"] / done,
            "waiting": waiting,
            "hot": updates or 0.0,
            "connections": connections - 1,
            "megabytes": sum(one.memory() for one in workers) / count,
            "idle_worker": resting["workers"] / resting["seconds"] / count,
            "idle_server": resting["server"] / resting["seconds"],
            "idle_statements": resting["statements"] / resting["seconds"] / count,
        }


def _evenly(database: play.Database, businesses: int, workers: int) -> bool:
    held = "SELECT count(*) FROM yamarket_outbox_leases WHERE worker IS NOT NULL"
    holders = "SELECT count(DISTINCT worker) FROM yamarket_outbox_leases"
    return bool(database.execute(held) == businesses and database.execute(holders) == workers)


def _open(database: play.Database) -> int:
    return int(database.execute(f"SELECT count(*) FROM {MESSAGES} WHERE ended_at IS NULL"))


def _until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.2)


class _Feeder:
    """Puts messages from a thread."""

    def __init__(self, url: str, businesses: int, rate: int) -> None:
        self._url, self._businesses, self._rate = url, businesses, rate
        self.stopped = threading.Event()

    def run(self) -> None:
        asyncio.run(self._put())

    async def _put(self) -> None:
        began, put = time.perf_counter(), 0
        async with Outbox(self._url) as outbox:
            while not self.stopped.is_set():
                await asyncio.sleep(max(0.0, began + put / self._rate - time.perf_counter()))
                piece = max(1, round(self._rate * TURN))
                await outbox.put_many(
                    OutboxMessage(random.randint(1, self._businesses), 1 + (put + n) % 1000, TEXT)
                    for n in range(piece)
                )
                put += piece


@contextmanager
def _putting(url: str, businesses: int, rate: int) -> Iterator[None]:
    feeder = _Feeder(url, businesses, rate)
    thread = threading.Thread(target=feeder.run)
    thread.start()
    try:
        yield
    finally:
        feeder.stopped.set()
        thread.join()


def _rows(databases: play.Databases, database: play.Database, count: int) -> dict[str, Any]:
    """Measure rows as `put_many` makes them, and what it costs the server."""
    play.create(QUEUE, database)
    watch = _Watch(databases, database, [])
    play.fill(QUEUE, database, count, 64)
    used = watch.used()
    return {
        "waiting": _bytes(database),
        "put_server_us": used["server"] / count * 1e6,
        "put_wal": used["wal"] / count,
    }


def _bytes(database: play.Database) -> list[float]:
    """Return the bytes of a message in the table, and in its indexes."""
    database.execute(f"VACUUM FULL {MESSAGES}")
    return [
        database.execute(f"SELECT {kind}('{MESSAGES}')::float / count(*) FROM {MESSAGES}")
        for kind in ("pg_relation_size", "pg_indexes_size")
    ]


LOOKS = {"due": "what is due", "new": "new businesses", "survey": "who holds what"}


def _looks(database: play.Database, businesses: int) -> dict[str, float]:
    """Return the milliseconds of the statements that name or count all businesses."""
    play.create(QUEUE, database)
    play.many_wait(database, businesses, businesses)
    database.execute(
        "INSERT INTO yamarket_outbox_leases (business_id, worker)"
        f" SELECT n, 'w' || n % 8 FROM generate_series(1, {businesses}) n",
        "VACUUM ANALYZE",
    )
    works: dict[str, Callable[[Connection], Any]] = {
        "due": feed.businesses,
        "new": claims.new_businesses,
        "survey": lambda connection: claims.survey(connection, "w1"),
    }

    async def measure() -> dict[str, float]:
        opened, took = OutboxDatabase(database.url), dict[str, float]()
        for name, work in works.items():
            times = []
            for _ in range(4):
                began = time.perf_counter()
                await opened.read(work)
                times.append(time.perf_counter() - began)
            took[f"{name}_ms"] = sorted(times[1:])[1] * 1e3
        await opened.close()
        return took

    return asyncio.run(measure())


def report(figures: Figures) -> Report:
    loads = figures["loads"]

    def name(row: Any) -> str:
        return f"{row['businesses']:,} businesses, {row['workers']} workers, {row['rate']}/s"

    cost = Table(
        "A message",
        ["load", "CPU µs, workers", "CPU µs, server", "statements", "transactions", "WAL bytes",
         "% of updates HOT"],
        [
            [
                name(row),
                f"{row['worker_us']:,.0f}",
                f"{row['server_us']:,.0f}",
                f"{row['statements']:.2f}",
                f"{row['transactions']:.2f}",
                f"{row['wal']:,.0f}",
                f"{row['hot']:.0%}",
            ]
            for row in loads
        ],
    )  # fmt: skip
    kept = Table(
        "The run",
        ["load", "sent a second", "waiting at the end", "MB a worker", "connections"],
        [
            [
                name(row),
                f"{row['sent']:,.0f}",
                f"{row['waiting']:,}",
                f"{row['megabytes']:.0f}",
                f"{row['connections']}",
            ]
            for row in loads
        ],
    )
    idle = Table(
        "Idle",
        ["businesses, workers", "% of a core, a worker", "% of a core, server",
         "statements a second, a worker"],
        [
            [
                f"{row['businesses']:,}, {row['workers']}",
                f"{row['idle_worker'] * 100:.1f}",
                f"{row['idle_server'] * 100:.1f}",
                f"{row['idle_statements']:.0f}",
            ]
            for row in loads
        ],
    )  # fmt: skip
    rows = figures["rows"]
    size = Table(
        "Bytes of a message",
        ["message", "table", "indexes"],
        [[what, *(f"{bytes_:,.0f}" for bytes_ in rows[what])] for what in ("waiting", "ended")],
    )
    looks = Table(
        "A look, ms",
        ["businesses with messages", *LOOKS.values()],
        [
            [f"{row['businesses']:,}", *(f"{row[f'{one}_ms']:.1f}" for one in LOOKS)]
            for row in figures["looks"]
        ],
    )
    remarks = [
        f"`put_many` costs the server {rows['put_server_us']:.0f} µs of CPU and"
        f" {rows['put_wal']:,.0f} bytes of WAL a message."
    ]
    return Report([cost, kept, idle, size, looks], remarks=remarks)
