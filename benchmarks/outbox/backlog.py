"""What a million waiting messages, and 10,000 businesses without any, cost the outbox."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..processes import spread
from ..report import Figures, Report, Step, Table, shown
from . import play
from .clients import QUEUES

TITLE = "Outbox, much waiting and much idle"
ABOUT = """
*Waiting*: bulk messages of 64 businesses are delivered while 30,000 of them wait, and while a
million wait. Both take turns, and what an earlier turn has sent is removed. The process has begun
with all businesses before the measurement, and has sent 250 messages of each: to begin, it reads
all waiting messages of a business once (about 10 µs each on PostgreSQL). *Idle*: a process that
delivers holds the leases of many businesses without messages. The memory is what no other process
shares.
"""
DATABASES: list[str] = ["sqlite", "postgresql"]
BUSINESSES = 64
GOAL = 1.10


@dataclass
class Size:
    """How much is measured."""

    waiting: int
    few: int
    warm: int
    """Messages that are sent before the measurement."""
    messages: int
    rounds: int
    idle: tuple[int, ...]
    seconds: float


SIZES = {
    "full": Size(1_000_000, 30_000, 16_000, 8000, rounds=3, idle=(1, 10_000), seconds=20.0),
    "quick": Size(100_000, 12_000, 4000, 1000, rounds=2, idle=(1, 1000), seconds=5.0),
    "tiny": Size(300, 120, 20, 60, rounds=1, idle=(3,), seconds=0.3),
}


def steps(size: Size) -> int:
    return len(DATABASES) * (2 * size.rounds + len(size.idle))


def run(size: Size, step: Step) -> Figures:
    names = [name for name in QUEUES if name.startswith("outbox") and QUEUES[name][0] in DATABASES]
    values: dict[Any, list[float]] = defaultdict(list)
    idle = []
    with play.Databases(set(DATABASES)) as databases:
        for name in names:
            dialect = QUEUES[name][0]
            with ExitStack() as stack:
                full = stack.enter_context(databases.new(dialect))
                play.create(name, full)
                play.many_wait(full, size.waiting, BUSINESSES)
                for number in range(size.rounds):
                    few = stack.enter_context(databases.new(dialect))
                    play.create(name, few)
                    play.many_wait(few, size.few, BUSINESSES)
                    turn = [("few", few), ("full", full)]
                    for what, database in turn if number % 2 else reversed(turn):
                        took = play.deliver(
                            name,
                            database,
                            size.warm + size.messages,
                            BUSINESSES,
                            warm=size.warm,
                        )
                        for kind, seconds in took.items():
                            values[name, what, kind].append(seconds)
                        play.forget_sent(database)
                        step(f"backlog: {name}")
            for businesses in size.idle:
                with databases.new(dialect) as database:
                    play.create(name, database)
                    figures = play.idle(database, businesses, size.seconds)
                    idle.append({"client": name, "businesses": businesses, **figures})
                step(f"idle: {name}")
    return {
        "waiting": [
            {
                "client": name,
                "waiting": size.waiting,
                "few": size.few,
                **{
                    f"{what}_{kind}_us": spread([one * 1e6 for one in values[name, what, kind]])
                    for what in ("few", "full")
                    for kind in ("cpu", "wall")
                },
                "cpu_ratio": _ratio(values, name, "cpu"),
                "wall_ratio": _ratio(values, name, "wall"),
            }
            for name in names
        ],
        "idle": idle,
    }


def _ratio(values: dict[Any, list[float]], name: str, kind: str) -> Any:
    pairs = zip(values[name, "few", kind], values[name, "full", kind], strict=True)
    return spread([full / few for few, full in pairs])


def report(figures: Figures) -> Report:
    rows = [
        [
            row["client"],
            shown(row["few_cpu_us"], 0),
            shown(row["full_cpu_us"], 0),
            shown(row["cpu_ratio"]),
            shown(row["wall_ratio"]),
        ]
        for row in figures["waiting"]
    ]
    many = f"{figures['waiting'][0]['waiting']:,}"
    few = f"{figures['waiting'][0]['few']:,}"
    header = ["queue", f"CPU µs, {few} wait", f"CPU µs, {many} wait", "ratio", "ratio of the time"]
    waiting = Table(f"Delivery while {many} messages wait", header, rows)
    rows = [
        [
            f"{row['client']}, {row['businesses']:,}",
            f"{row['cpu'] * 100:.2f}",
            f"{row['megabytes']:.0f}",
            f"{row['statements']:.1f}" if row["statements"] else "–",
        ]
        for row in figures["idle"]
    ]
    header = ["queue, businesses", "% of a core", "MB", "statements a second"]
    remarks = []
    for row in figures["waiting"]:
        ratio = row["wall_ratio"]["median"]
        kept = "within" if ratio <= GOAL else "**over**"
        remarks.append(
            f"{row['client']}: {ratio:.2f} times the time if {many} messages wait, {kept} the goal"
            f" of {GOAL:.2f}."
        )
    return Report([waiting, Table("Idle businesses", header, rows)], remarks=remarks)
