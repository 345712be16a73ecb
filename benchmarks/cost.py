"""Cost per message: time, processor time and instructions, over bare aiohttp."""

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
Limits lifted, a server on loopback in a process of its own, messages to 1,000 chats in turn. Bare
aiohttp posts the same bytes with the same headers and reads the answer without looking at it; *by
hand* is aiohttp with AsyncLimiter, a semaphore and retries; ya-market-api has neither limits nor
retries. `send_many` has at most 256 messages in hand, whatever may be under way at once.

Each client has several processes, one after the other, and takes its turn several times in each.
glibc's allocator is set alike for all (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`): by
itself it decides by chance whether each read costs three system calls, up to a quarter of a
request, for any client. And the server never sleeps while times are taken: on loopback a client
pays for waking it, up to an eighth of a request by how deep it sleeps, and over a network it does
not.

Instructions say nothing of the caches, which a client has to share with aiohttp.
"""
TARGET = 1.05


@dataclass
class Size:
    """How much is measured."""

    at_once: tuple[int, ...]
    messages: int
    """In each turn, at least: short turns, and many, or a neighbour's burst hits one client."""
    turns: int
    rounds: int
    """Of fresh processes: what chance gave one of them, up to a tenth, stays for as long as it
    lives."""
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
    # Eight for each place, or getting all of them busy would be most of it.
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
    # Counting does not mind company: valgrind runs one thread at a time.
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
        title = f"Instructions a message, {at_once} at once"
        tables.append(Table(title, ["client", "over bare aiohttp", "instructions"], rows))
    times = figures["times"]
    header = ["client", "CPU over bare aiohttp", "time over it", "CPU µs", "time µs"]
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
        tables.append(Table(f"Time a message, {at_once} at once", header, rows))
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in times:
        if row["client"] in rivals.SLOW:
            continue  # beside them nobody else could be told apart
        lines.setdefault(row["client"], []).append((row["at_once"], row["cpu_ratio"]["median"]))
    plot = Plot(
        "cost",
        "CPU a message over bare aiohttp (httpx: see the table)",
        "messages at once",
        "ratio",
        lines,
        from_zero=False,
    )
    remarks = [
        *_verdicts(counts, lambda row: float(row["ratio"]), "instructions", margin=0.0),
        *_verdicts(times, lambda row: float(row["cpu_ratio"]["median"]), "CPU", margin=0.01),
    ]
    return Report(tables, [plot], remarks)


def _verdicts(
    rows: list[Figures], ratio: Callable[[Figures], float], what: str, margin: float
) -> Iterable[str]:
    """Of each of ours, whether it keeps to the target, and who costs less by more than a margin."""
    for ours in rows:
        if ours["client"] not in rivals.OURS:
            continue
        where = f"{ours['client']}, {ours['at_once']} at once"
        kept = "within" if ratio(ours) <= TARGET else "**over**"
        yield (
            f"{where}: {ratio(ours):.3f} of bare aiohttp in {what}, {kept} the {TARGET} that we"
            " aim at."
        )
        cheaper = [
            f"{row['client']} ({ratio(row):.3f})"
            for row in rows
            if row["at_once"] == ours["at_once"]
            and row["client"] not in (*rivals.OURS, YARDSTICK)
            and ratio(row) < ratio(ours) - margin
        ]
        if cheaper:
            yield f"{where}, costs more {what} than {', '.join(cheaper)}."
