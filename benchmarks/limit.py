"""Throughput under the limit of 1,000 messages an hour."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from tests import virtual
from yamarket_chat.sandbox import Sandbox

from .report import Figures, Plot, Report, Step, Table
from .rivals import API_KEY, BUSINESS_ID, TEXT, GaveUp, Send, aiohttp_by_hand, ours

TITLE = "Throughput under the limit"
ABOUT = """
The figures are hours over the least time that the limit allows, on a virtual clock. The server
enforces the documented limits strictly: 1,000 messages in any hour and 4 parallel requests. A
response takes 0.1 s. All messages are submitted at the same time, each to its own chat. All clients
have at most 4 requests under way. *AsyncLimiter* never retries, so a refused message is lost.
*Retry on 420* has no limiter: each of four tasks retries with growing pauses of up to a minute
until its message is accepted.
"""

LATENCY = 0.1
REQUESTS, PER, PARALLEL = 1000, 3600.0, 4

Open = Callable[[str], AbstractAsyncContextManager[Send]]


@dataclass
class Client:
    """How to open a client, and how many tasks send with it (None: one for each message)."""

    open: Open
    tasks: int | None = None


CLIENTS = {
    "yamarket_chat": Client(partial(ours, requests=REQUESTS)),
    "AsyncLimiter(1000, 3600)": Client(
        partial(aiohttp_by_hand, requests=REQUESTS, per=PER, attempts=1)
    ),
    "AsyncLimiter(1, 3.6)": Client(
        partial(aiohttp_by_hand, requests=1, per=PER / REQUESTS, attempts=1)
    ),
    "retry on 420": Client(
        partial(aiohttp_by_hand, requests=None, attempts=1_000_000), tasks=PARALLEL
    ),
}


@dataclass
class Size:
    """How many messages are sent."""

    messages: tuple[int, ...]


SIZES = {
    "full": Size((500, 1000, 1500, 2000, 5000, 10_000, 20_000)),
    "quick": Size((500, 1000, 2000, 5000)),
    "tiny": Size((20,)),
}


def least(messages: int) -> float:
    """Return the least number of seconds in which so many messages can be answered."""
    hours = (messages - 1) // REQUESTS
    return hours * PER + math.ceil((messages - hours * REQUESTS) / PARALLEL) * LATENCY


def steps(size: Size) -> int:
    return len(size.messages) * len(CLIENTS)


def run(size: Size, step: Step) -> Figures:
    rows = []
    for messages in size.messages:
        for name, client in CLIENTS.items():
            rows.append({"client": name, **virtual.run(_sent(client, messages))})
            step(f"limit: {messages} messages with {name}")
    return {"rows": rows}


async def _sent(client: Client, messages: int) -> Figures:
    loop = asyncio.get_running_loop()
    lost = 0

    async def from_one_task(send: Send, chats: Iterator[int]) -> None:
        nonlocal lost
        for chat_id in chats:
            try:
                await send(chat_id, TEXT)
            except GaveUp:
                lost += 1

    market = Sandbox(api_key=API_KEY, business_id=BUSINESS_ID, latency=LATENCY)
    async with market, client.open(market.url) as send:
        began = loop.time()
        chats = iter(range(1, messages + 1))
        async with asyncio.TaskGroup() as group:
            for _ in range(client.tasks or messages):
                todo = chats if client.tasks else iter([next(chats)])
                group.create_task(from_one_task(send, todo))
        took = loop.time() - began
        # All requests count. The server keeps the accepted ones within the limit by itself.
        arrivals = [arrival.time for arrival in market.arrivals]
        return {
            "messages": messages,
            "hours": took / 3600,
            "over_least": took / least(messages),
            "refused": market.refused,
            "lost": lost,
            "worst_hour": _worst(arrivals),
        }


def _worst(times: list[float]) -> int:
    most = first = 0
    for last, time in enumerate(times):
        while times[first] + PER <= time:
            first += 1
        most = max(most, last - first + 1)
    return most


def report(figures: Figures) -> Report:
    tables = []
    rows = figures["rows"]
    header = ["client", "over the least time", "hours", "refused", "lost", "most in an hour"]
    for messages in sorted({row["messages"] for row in rows}):
        shown = [
            [
                row["client"],
                "–" if row["lost"] else f"{row['over_least']:.4f}",
                f"{row['hours']:.3f}",
                f"{row['refused']:,}",
                f"{row['lost']:,}",
                f"{row['worst_hour']:,}",
            ]
            for row in rows
            if row["messages"] == messages
        ]
        title = f"{messages:,} messages, which take at least {least(messages) / 3600:.3f} hours"
        tables.append(Table(title, header, shown))
    times: dict[str, list[tuple[float, float]]] = {}
    worst_hours: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        worst_hours.setdefault(row["client"], []).append((row["messages"], row["worst_hour"]))
        if not row["lost"]:  # a client that loses messages has no comparable time
            times.setdefault(row["client"], []).append((row["messages"], row["over_least"]))
    title = "Time over the least possible time, for clients that lost nothing"
    plots = [
        Plot("limit-time", title, "messages", "ratio", times, log_y=True),
        Plot("limit-hour", "Most requests in an hour", "messages", "requests", worst_hours),
    ]
    own = [row for row in rows if row["client"] == "yamarket_chat"]
    worst = max(row["over_least"] for row in own)
    remarks = [
        f"yamarket_chat takes at most {worst:.4f} times the least time. The server refused"
        f" {sum(row['refused'] for row in own)} of its requests."
    ]
    for row in rows:
        mine = next(one for one in own if one["messages"] == row["messages"])
        if row["over_least"] < mine["over_least"] - 0.001 and not row["lost"]:
            remarks.append(
                f"{row['messages']:,} messages: {row['client']} is faster than yamarket_chat,"
                f" {row['over_least']:.4f} against {mine['over_least']:.4f}, with"
                f" {row['refused']:,} requests refused."
            )
    return Report(tables, plots, remarks)
