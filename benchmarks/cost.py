"""Cost of a message over bare aiohttp: wall time, CPU time and instructions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import rivals
from .processes import has_callgrind, instructions_a_message, server, spread, taking_turns
from .report import Figures, Plot, Report, Step, Table, shown
from .rivals import YARDSTICK

TITLE = "What a message costs"
ABOUT = """
The limits are lifted. A server on loopback runs in its own process, and each client sends messages
to 1,000 chats in turn.

*Bare aiohttp* is the reference: one ClientSession with the default headers, connector settings,
cookie jar and timeout of a ChatSession's own session, which sends the same bytes, names no headers
in a request and reads the response without looking at it. yamarket_chat saves two things that such
a client pays for: aiohttp's timer for each request (5 to 6 % of the instructions at 4 in parallel)
and parsing each address (3 %).

*aiohttp by hand* adds AsyncLimiter, a semaphore and retries. *ya-market-api* has neither limits nor
retries. `send_many` holds at most 256 messages at a time, however many requests may run in
parallel.

Each client runs in several processes, one after another, and takes several turns in each process.
All processes have the same settings for glibc's allocator (`MALLOC_MMAP_THRESHOLD_`,
`MALLOC_TRIM_THRESHOLD_`). With the default settings, chance decides whether each read costs three
system calls, which is up to a quarter of a request, for any client. The server never sleeps while
times are measured. On loopback a client pays for waking a sleeping server, up to an eighth of a
request; over a network it does not.

Instruction counts do not include cache misses. A client shares the CPU caches with aiohttp.
"""
TARGET = 1.05


@dataclass
class Size:
    """How much is measured."""

    at_once: tuple[int, ...]
    messages: int
    """Least number in each turn. Turns are short and many, so that a burst of load from other
    programs does not hit one client alone."""
    turns: int
    rounds: int
    """Number of fresh processes for each client. A process may be up to a tenth slower or faster by
    chance, and stays so for its whole life."""
    counted_at: tuple[int, ...]
    lengths: tuple[int, int] = (200, 1200)


SIZES = {
    "full": Size((1, 4, 64, 512), messages=1024, turns=4, rounds=9, counted_at=(1, 64)),
    "quick": Size((1, 4, 64, 512), messages=256, turns=3, rounds=2, counted_at=(1,)),
    "tiny": Size((4,), messages=8, turns=1, rounds=1, counted_at=()),
}


def steps(size: Size) -> int:
    counted = len(size.counted_at) * len(rivals.available()) if has_callgrind() else 0
    return len(size.at_once) * size.rounds * size.turns + counted


def run(size: Size, step: Step) -> Figures:
    names = rivals.available()
    with server(awake=True) as url:
        times = [row for at_once in size.at_once for row in _times(names, url, at_once, size, step)]
    with server() as url:
        counts = list(_counts(names, url, size, step)) if has_callgrind() else []
    return {"times": times, "instructions": counts}


def _times(
    names: list[str], url: str, at_once: int, size: Size, step: Step
) -> Iterable[dict[str, object]]:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    # Eight for each parallel request, or the start would be most of the measurement.
    usual = max(size.messages, 8 * at_once)
    messages = {name: usual // 8 if name in rivals.SLOW else usual for name in names}
    for _ in range(size.rounds):
        for turn in taking_turns(messages, url, at_once, size.turns):
            for name, took in turn.items():
                for clock, seconds in took.items():
                    values[name, f"{clock}_us"].append(seconds * 1e6)
                    values[name, f"{clock}_ratio"].append(seconds / turn[YARDSTICK][clock])
            step(f"cost: {at_once} at once")
    kinds = ("cpu_ratio", "wall_ratio", "cpu_us", "wall_us")
    for name in names:
        yield {
            "at_once": at_once,
            "client": name,
            **{kind: spread(values[name, kind]) for kind in kinds},
        }


def _counts(names: list[str], url: str, size: Size, step: Step) -> Iterable[dict[str, object]]:
    # Two at a time do not disturb the count: valgrind runs one thread at a time.
    with ThreadPoolExecutor(2) as pool:
        for at_once in size.counted_at:

            def count(name: str, at_once: int = at_once) -> float:
                short, long = size.lengths
                if name in rivals.SLOW:
                    short, long = short // 8, long // 8
                counted = instructions_a_message(name, url, at_once, (short, long))
                step(f"cost: instructions of {name}")
                return counted

            counts = dict(zip(names, pool.map(count, names), strict=True))
            for name, counted in counts.items():
                ratio = counted / counts[YARDSTICK]
                yield {"at_once": at_once, "client": name, "count": counted, "ratio": ratio}


def report(figures: Figures) -> Report:
    tables = []
    counts = figures["instructions"]
    for at_once in sorted({row["at_once"] for row in counts}):
        rows = [
            [row["client"], f"{row['ratio']:.3f}", f"{row['count']:,.0f}"]
            for row in counts
            if row["at_once"] == at_once
        ]
        title = f"Instructions a message, {at_once} in parallel"
        tables.append(Table(title, ["client", "over bare aiohttp", "instructions"], rows))
    times = figures["times"]
    header = ["client", "CPU over bare aiohttp", "time over bare aiohttp", "CPU µs", "time µs"]
    for at_once in sorted({row["at_once"] for row in times}):
        rows = [
            [
                row["client"],
                shown(row["cpu_ratio"]),
                shown(row["wall_ratio"]),
                shown(row["cpu_us"], 0),
                shown(row["wall_us"], 0),
            ]
            for row in times
            if row["at_once"] == at_once
        ]
        tables.append(Table(f"Time a message, {at_once} in parallel", header, rows))
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in times:
        if row["client"] in rivals.SLOW:
            continue  # the other lines would all lie on top of each other
        lines.setdefault(row["client"], []).append((row["at_once"], row["cpu_ratio"]["median"]))
    plot = Plot(
        "cost",
        "CPU time a message over bare aiohttp (httpx: see the table)",
        "parallel requests",
        "ratio",
        lines,
        from_zero=False,
    )
    remarks = [
        *_verdicts(counts, lambda row: float(row["ratio"]), "instructions", margin=0.0),
        *_verdicts(times, lambda row: float(row["cpu_ratio"]["median"]), "CPU time", margin=0.01),
    ]
    return Report(tables, [plot], remarks)


def _verdicts(
    rows: list[Figures], ratio: Callable[[Figures], float], what: str, margin: float
) -> Iterable[str]:
    """Say for each of our clients if it meets the target, and which clients cost less.

    A client counts as cheaper if the difference is more than `margin`.
    """
    for ours in rows:
        if ours["client"] not in rivals.OURS:
            continue
        where = f"{ours['client']}, {ours['at_once']} in parallel"
        kept = "within" if ratio(ours) <= TARGET else "**over**"
        yield (
            f"{where}: {ratio(ours):.3f} times the {what} of bare aiohttp, {kept} the target of"
            f" {TARGET}."
        )
        cheaper = [
            f"{row['client']} ({ratio(row):.3f})"
            for row in rows
            if row["at_once"] == ours["at_once"]
            and row["client"] not in (*rivals.OURS, YARDSTICK)
            and ratio(row) < ratio(ours) - margin
        ]
        if cheaper:
            yield f"{where}: costs more {what} than {', '.join(cheaper)}."
