"""Putting and delivering: the outbox beside procrastinate and a table by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ..processes import spread
from ..report import Figures, Report, Step, Table, shown
from . import play
from .clients import MOST_TASKS, PARALLEL, QUEUES, available

TITLE = "Outbox"
ABOUT = f"""
Each queue puts messages into a database and delivers them by `send_message` or what is below it,
from a process of its own, to a server on loopback that answers at once. The limits are lifted,
except {PARALLEL} parallel requests for each business. The queues take turns, each time with a new
database. PostgreSQL is a server beside it, with `fsync` on.

*procrastinate* has a lock for each chat, which keeps the order. *SKIP LOCKED by hand* is a table
from which {PARALLEL} tasks for each business (at most {MOST_TASKS}) take a row each, send it and
mark it as done, in one transaction; it keeps no order. Both send again what a dead process was
sending, so a message may be doubled. The outbox asks the chat's history first.

*CPU* is the time of the delivering process in all its threads, user and system
(CLOCK_PROCESS_CPUTIME_ID). That of the database server and of the Market's stand-in is not in it.
Statements and transactions are counted in another run: by pg_stat_statements, and for SQLite in the
process. A BEGIN with its two settings counts as three statements.

*Latency* is the time from the commit in one process to the request of another process that was
idle. By hand, tasks look five times a second, as the outbox does on PostgreSQL; procrastinate is
notified by the server.
"""

DATABASES: list[str] = ["sqlite", "postgresql"]
"""Those that are measured."""
SLOW = ("procrastinate",)
"""Queues that deliver a fourth of the messages, because they would take most of the time."""
WAYS = {"single": "one after another", "at-once": "8 at once", "many": "put_many"}
CPU_GOALS = {1: 1000.0, 64: 500.0}
LATENCY_GOALS = {"sqlite": 50.0, "postgresql": 130.0}


@dataclass
class Size:
    """How much is measured."""

    businesses: tuple[int, ...]
    messages: int
    rounds: int
    puts: int
    put_many: int
    put_rounds: int
    latencies: int


SIZES = {
    "full": Size((1, 64), 1600, rounds=3, puts=200, put_many=10_000, put_rounds=2, latencies=50),
    "quick": Size((1, 64), 1000, rounds=2, puts=100, put_many=2000, put_rounds=1, latencies=10),
    "tiny": Size((2,), 60, rounds=1, puts=8, put_many=20, put_rounds=1, latencies=1),
}


def steps(size: Size) -> int:
    rounds = len(size.businesses) * (size.rounds + 1) + size.put_rounds + 1
    return rounds * len(available(DATABASES))


def run(size: Size, step: Step) -> Figures:
    names = available(DATABASES)
    values: dict[Any, list[float]] = defaultdict(list)
    late: dict[str, list[float]] = {}
    with play.Databases(set(DATABASES)) as databases:
        for name in [each for _ in range(size.put_rounds) for each in names]:
            with databases.new(QUEUES[name][0]) as database:
                play.create(name, database)
                counts = {"single": size.puts, "at-once": size.puts, "many": size.put_many}
                for way, took in play.put(name, database, counts).items():
                    for kind, seconds in took.items():
                        values["put", name, way, kind].append(seconds * 1e6)
            step(f"outbox: put, {name}")
        for name in names:
            with databases.new(QUEUES[name][0]) as database:
                play.create(name, database)
                late[name] = play.latencies(name, database, size.latencies)
            step(f"outbox: latency, {name}")
        for businesses in size.businesses:
            for number in range(size.rounds + 1):
                for name in names if number % 2 else reversed(names):
                    counting = number == size.rounds
                    with databases.new(QUEUES[name][0]) as database:
                        play.create(name, database)
                        count = size.messages // 4 if name in SLOW else size.messages
                        play.fill(name, database, count, businesses)
                        took = play.deliver(name, database, count, businesses, counting=counting)
                    for kind, value in took.items():
                        one = value if counting else value * 1e6
                        values["deliver", name, businesses, kind].append(one)
                    step(f"outbox: {businesses} businesses, {name}")
    return {
        "put": [
            {
                "client": name,
                "way": way,
                "wall_us": spread(values["put", name, way, "wall"]),
                "cpu_us": spread(values["put", name, way, "cpu"]),
            }
            for name in names
            for way in WAYS
        ],
        "deliver": [
            {
                "client": name,
                "businesses": businesses,
                "wall_us": spread(values["deliver", name, businesses, "wall"]),
                "cpu_us": spread(values["deliver", name, businesses, "cpu"]),
                "statements": values["deliver", name, businesses, "statements"][0],
                "transactions": values["deliver", name, businesses, "transactions"][0],
            }
            for businesses in size.businesses
            for name in names
        ],
        "latency": [
            {"client": name, "p50_ms": _part(took, 0.5) * 1e3, "p90_ms": _part(took, 0.9) * 1e3}
            for name, took in late.items()
        ],
    }


def report(figures: Figures) -> Report:
    tables = []
    for businesses in sorted({row["businesses"] for row in figures["deliver"]}):
        rows = [
            [
                row["client"],
                shown(row["cpu_us"], 0),
                f"{1e6 / row['wall_us']['median']:,.0f}",
                f"{row['statements']:.2f}",
                f"{row['transactions']:.2f}" if row["transactions"] else "–",
            ]
            for row in figures["deliver"]
            if row["businesses"] == businesses
        ]
        header = ["queue", "CPU µs a message", "messages a second", "statements", "transactions"]
        title = f"Delivery, {_businesses(businesses)}"
        tables.append(Table(title, header, rows))
    rows = [
        [row["client"], f"{row['p50_ms']:.0f}", f"{row['p90_ms']:.0f}"]
        for row in figures["latency"]
    ]
    tables.append(Table("From the commit to the request", ["queue", "p50, ms", "p90, ms"], rows))
    for way, title in WAYS.items():
        rows = [
            [
                row["client"],
                f"{1e6 / row['wall_us']['median']:,.0f}",
                shown(row["wall_us"], 0),
                shown(row["cpu_us"], 0),
            ]
            for row in figures["put"]
            if row["way"] == way
        ]
        header = ["queue", "messages a second", "µs a message", "CPU µs a message"]
        tables.append(Table(f"Put, {title}", header, rows))
    return Report(tables, remarks=list(_remarks(figures)))


def _remarks(figures: Figures) -> list[str]:
    remarks = []
    for row in figures["deliver"]:
        goal = CPU_GOALS.get(row["businesses"])
        if row["client"].startswith("outbox") and goal is not None:
            cpu = row["cpu_us"]["median"]
            kept = "within" if cpu <= goal else "**over**"
            remarks.append(
                f"{row['client']}, {_businesses(row['businesses'])}: {cpu:,.0f} µs of CPU a"
                f" message, {kept} the goal of {goal:,.0f}."
            )
    for row in figures["latency"]:
        if row["client"].startswith("outbox"):
            goal = LATENCY_GOALS[QUEUES[row["client"]][0]]
            kept = "within" if row["p50_ms"] <= goal else "**over**"
            remarks.append(
                f"{row['client']}: {row['p50_ms']:.0f} ms from commit to request (p50), {kept} the"
                f" goal of {goal:.0f}."
            )
    return remarks


def _part(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def _businesses(count: int) -> str:
    return "1 business" if count == 1 else f"{count} businesses"
