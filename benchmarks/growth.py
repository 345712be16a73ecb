"""Growth of memory and time: waiting calls, long runs of send_many, many businesses.

Each measurement runs in its own process: `python -m benchmarks.growth KIND CLIENT NUMBER [URL]`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import answer, server
from .report import Figures, Plot, Report, Step, Table
from .rivals import API_KEY, BUSINESS_ID, TEXT, Send, aiohttp_by_hand, ours
from .server import listen

TITLE = "How it grows"
ABOUT = """
The figures are resident memory of fresh processes.

- *Waiting calls*: `send_message` is called many times while the limit is used up, each call in its
  own task. For comparison: the same calls with AsyncLimiter by hand, and tasks that only wait.
- *send_many*: many messages under the documented limit on a virtual clock. The table shows the
  peak, and how much it is above the peak of the first 1,000 messages.
- *Businesses*: many sessions in one process, with their own connections or with one shared aiohttp
  session. The sessions send messages in turn.
"""

MOST_PER_CALL = 2560
"""The largest number of bytes that a waiting call may take; the project promises it."""


@dataclass
class Size:
    """How much is measured."""

    waiting: tuple[int, ...]
    send_many: tuple[int, ...]
    businesses: tuple[int, ...]


SIZES = {
    "full": Size(
        (1000, 10_000, 50_000, 100_000, 200_000),
        (1000, 10_000, 100_000, 1_000_000),
        (1, 10, 100, 1000),
    ),
    "quick": Size((1000, 10_000, 100_000), (1000, 10_000, 50_000), (1, 10, 100)),
    "tiny": Size((50,), (50,), (2,)),
}


def steps(size: Size) -> int:
    return (
        len(size.waiting) * len(_WAITING)
        + len(size.send_many)
        + len(size.businesses) * len(_BUSINESSES)
    )


def run(size: Size, step: Step) -> Figures:
    figures: Figures = {"waiting": [], "send_many": [], "businesses": []}

    def measure(kind: str, client: str, number: int, *more: str) -> None:
        measured = answer("-m", "benchmarks.growth", kind, client, number, *more)
        figures[kind].append({"client": client, "number": number, **measured})
        step(f"growth: {kind}, {number:,}, {client}")

    for number in size.waiting:
        for client in _WAITING:
            measure("waiting", client, number)
    for number in size.send_many:
        measure("send_many", "yamarket_chat", number)
    with server() as url:
        for number in size.businesses:
            for client in _BUSINESSES:
                measure("businesses", client, number, url)
    return figures


# The work of the processes


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak() -> int:
    # Not ru_maxrss: a process inherits the value of its parent.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not report the peak of resident memory: run this on Linux")


async def _nothing_but_waiting(chat_id: int, text: str) -> None:
    await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def _no_client(url: str, *, requests: int) -> AsyncIterator[Send]:
    yield _nothing_but_waiting


_WAITING: dict[str, Callable[..., AbstractAsyncContextManager[Send]]] = {
    "yamarket_chat": ours,
    "AsyncLimiter by hand": aiohttp_by_hand,
    "a task that waits": _no_client,
}


async def _waiting(client: str, number: int) -> None:
    """Measure calls that wait because the limit of one request an hour is used up."""
    _, url = await listen()
    async with _WAITING[client](url, requests=1) as send:
        if client != "a task that waits":
            await send(1, TEXT)
        gc.collect()
        before, began = _resident(), time.perf_counter()
        tasks = [asyncio.ensure_future(send(chat_id, TEXT)) for chat_id in range(2, number + 2)]
        await asyncio.sleep(0)  # now every task has run once and waits
        seconds, after = time.perf_counter() - began, _resident()
        assert not any(task.done() for task in tasks)
        print(json.dumps({"bytes": after - before, "seconds": seconds}), flush=True)
        os._exit(0)  # the end of 200,000 waiting calls is not measured


def _send_many(number: int) -> Figures:
    """Measure send_many under the documented limit, on a virtual clock."""
    import aiohttp

    from tests import virtual
    from yamarket_chat import ChatSession, OutgoingMessage

    async def main() -> Figures:
        listening, url = await listen()
        # aiohttp measures idle connections by the real clock. With the usual 4 s it would wake up
        # 900 times in each virtual hour and never find an idle connection.
        connector = aiohttp.TCPConnector(keepalive_timeout=1e9)
        async with (
            listening,
            aiohttp.ClientSession(connector=connector) as http,
            ChatSession(API_KEY, BUSINESS_ID, base_url=url, http=http) as session,
        ):

            async def send(count: int) -> None:
                messages = (OutgoingMessage(1 + i % 1000, f"{TEXT} {i}") for i in range(count))
                async for outcome in session.send_many(messages):
                    assert outcome.status == "delivered"

            await send(min(number, 1000))
            before, began = _peak(), time.perf_counter()
            await send(number)
            seconds, peak = time.perf_counter() - began, _peak()
            return {"bytes": peak - before, "peak": peak, "seconds": seconds}

    return virtual.run(main())


_BUSINESSES = ("own connections", "one aiohttp session")


async def _businesses(client: str, number: int, url: str, messages: int = 2000) -> Figures:
    """Measure many sessions of different businesses that send messages in turn."""
    import aiohttp

    from yamarket_chat import ChatSession

    async with AsyncExitStack() as stack:
        shared: aiohttp.ClientSession | None = None
        if client == "one aiohttp session":
            shared = await stack.enter_async_context(aiohttp.ClientSession())
        async with ChatSession(API_KEY, BUSINESS_ID, base_url=url, http=shared) as session:
            await session.send_message(1, TEXT)
        gc.collect()
        before, began = _resident(), time.perf_counter()
        sessions = [
            await stack.enter_async_context(
                ChatSession(API_KEY, 1 + business, base_url=url, http=shared)
            )
            for business in range(number)
        ]
        seconds = time.perf_counter() - began
        for session in sessions:
            await session.send_message(1, TEXT)
        resident, cpu = _resident(), time.process_time()
        # At most 900 messages from each session stay within its limit.
        rounds = max(min(messages, 900 * number) // number, 1)
        for _ in range(rounds):
            for session in sessions:
                await session.send_message(1, TEXT)
        return {
            "bytes": resident - before,
            "seconds": seconds,
            "cpu_us": (time.process_time() - cpu) / (rounds * number) * 1e6,
        }


# The report


def report(figures: Figures) -> Report:
    waiting, many, businesses = (figures[kind] for kind in ("waiting", "send_many", "businesses"))
    tables = [
        Table(
            "Waiting calls",
            ["client, calls", "bytes a call", "MB in total", "µs to start a call"],
            [
                [
                    f"{row['client']}, {row['number']:,}",
                    f"{row['bytes'] / row['number']:,.0f}",
                    f"{row['bytes'] / 1e6:,.1f}",
                    f"{row['seconds'] / row['number'] * 1e6:,.1f}",
                ]
                for row in waiting
            ],
        ),
        Table(
            "send_many",
            ["messages", "peak MB", "MB above the first 1,000", "µs each, with the server"],
            [
                [
                    f"{row['number']:,}",
                    f"{row['peak'] / 1e6:,.1f}",
                    f"{row['bytes'] / 1e6:,.1f}",
                    f"{row['seconds'] / row['number'] * 1e6:,.0f}",
                ]
                for row in many
            ],
        ),
        Table(
            "Businesses in one process",
            ["sessions", "KB a session", "ms to open a session", "CPU µs a message"],
            [
                [
                    f"{row['number']:,}, {row['client']}",
                    f"{row['bytes'] / row['number'] / 1e3:,.0f}",
                    f"{row['seconds'] / row['number'] * 1e3:,.2f}",
                    f"{row['cpu_us']:,.0f}",
                ]
                for row in businesses
            ],
        ),
    ]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in waiting:
        lines.setdefault(row["client"], []).append((row["number"], row["bytes"] / row["number"]))
    plots = [
        Plot("growth-waiting", "Memory of a waiting call", "waiting calls", "bytes a call", lines),
        Plot(
            "growth-send-many",
            "Peak memory of a process that runs send_many",
            "messages",
            "MB",
            {"yamarket_chat": [(row["number"], row["peak"] / 1e6) for row in many]},
        ),
    ]
    return Report(tables, plots, list(_remarks(waiting)))


def _remarks(waiting: list[Figures]) -> Iterable[str]:
    by_hand = {row["number"]: row for row in _of("AsyncLimiter by hand", waiting)}
    for row in _of("yamarket_chat", waiting):
        each = row["bytes"] / row["number"]
        if row["number"] >= 10_000:
            kept = "within" if each <= MOST_PER_CALL else "**over**"
            yield (
                f"{row['number']:,} waiting calls take {each:,.0f} bytes each, {kept} the"
                f" {MOST_PER_CALL:,} that the project promises."
            )
        other = by_hand[row["number"]]
        if other["bytes"] < row["bytes"] or other["seconds"] < row["seconds"]:
            yield (
                f"{row['number']:,} calls that wait for AsyncLimiter by hand take"
                f" {other['bytes'] / row['number']:,.0f} bytes each (yamarket_chat: {each:,.0f})"
                f" and start in {other['seconds']:.2f} s (yamarket_chat: {row['seconds']:.2f} s)."
            )


def _of(client: str, rows: list[Figures]) -> Iterator[Figures]:
    return (row for row in rows if row["client"] == client)


def _main(kind: str, client: str, number: int, url: str = "") -> None:
    logging.disable()  # long waits are expected here
    if kind == "waiting":
        asyncio.run(_waiting(client, number))
    elif kind == "send_many":
        print(json.dumps(_send_many(number)))
    else:
        print(json.dumps(asyncio.run(_businesses(client, number, url))))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
