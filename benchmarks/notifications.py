"""A receiver of notifications under load, and under a flood from foreign addresses."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from .notified import GENUINE, exchange
from .processes import ROOT, python, started
from .report import Figures, Report, Step, Table

RATE = 200
"""Notifications a second."""

PING_EVERY = 0.2
PING_WITHIN = 1.0
SLOWEST = 4.0
"""Seconds that a handler takes at most: it plays a slow database."""

TITLE = "Notifications"
ABOUT = f"""
A receiver in a process of its own, on one core, gets {RATE} notifications a second, each over a new
connection, and a PING every {PING_EVERY} s. Its handlers take up to {SLOWEST:g} s, as with a slow
database, so about {RATE * SLOWEST / 2:.0f} of them run at any time. The Market waits for the answer
to a PING for {PING_WITHIN:g} s.

*And a flood*: meanwhile, another process sends requests with large bodies from foreign addresses,
as fast as it can. *A flood alone* shows what such a request costs the receiver. Its client shares
the other core with nobody, and opens a connection for each request.
"""
SERVERS = {"aiohttp": "aiohttp", "uvicorn": "uvicorn, ASGI"}


@dataclass
class Size:
    """How long is measured, in seconds."""

    load: float
    flood: float
    slowest: float = SLOWEST
    servers: int = len(SERVERS)


SIZES = {"full": Size(60, 20), "quick": Size(10, 5), "tiny": Size(0.3, 0.2, 0.1, servers=1)}


def _servers(size: Size) -> list[str]:
    return [name for name in SERVERS if importlib.util.find_spec(name)][: size.servers]


def steps(size: Size) -> int:
    return 3 * len(_servers(size))


def run(size: Size, step: Step) -> Figures:
    rows = []
    for name in _servers(size):
        with started(python("-m", "benchmarks.notified", "serve", name, size.slowest)) as process:
            server = _Server(process)
            row: dict[str, Any] = {"server": SERVERS[name]}
            row["load"] = asyncio.run(_loaded(server, size.load))
            step(f"{name}: load")
            with _flood(server.port, size.flood) as flood:
                row["both"] = asyncio.run(_loaded(server, size.flood))
                row["both"]["flood"] = _answers(flood)
            step(f"{name}: load and a flood")
            before = server.figures()
            with _flood(server.port, size.flood) as flood:
                answers = _answers(flood)
            after = server.figures()
            requests = max(sum(answers.values()), 1)
            row["alone"] = {
                **answers,
                "a_second": requests / size.flood,
                "us": (after["cpu"] - before["cpu"]) / requests * 1e6,
            }
            row["strangers"] = after["strangers"]
            step(f"{name}: a flood alone")
        rows.append(row)
    return {"rows": rows}


class _Server:
    """A process that runs a receiver."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self.port = int(self._stdout.readline())

    def figures(self) -> dict[str, float]:
        print(file=self._stdin, flush=True)
        figures: dict[str, float] = json.loads(self._stdout.readline())
        return figures


def _flood(port: int, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        python("-m", "benchmarks.notified", "flood", port, seconds),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def _answers(flood: subprocess.Popen[str]) -> dict[str, int]:
    answers: dict[str, int] = json.loads(flood.communicate()[0])
    return answers


async def _loaded(server: _Server, seconds: float) -> Figures:
    """Send notifications and PINGs for some seconds, and wait for all answers."""
    before = server.figures()
    began = time.monotonic()
    messages, pings = await asyncio.gather(
        _sent(server.port, seconds, 1 / RATE, _messages()),
        _sent(server.port, seconds, PING_EVERY, itertools.repeat(b'{"notificationType":"PING"}')),
    )
    took = time.monotonic() - began
    after = server.figures()
    times = sorted(seconds for _, seconds in pings)
    return {
        "sent": len(messages),
        "accepted": sum(status == 200 for status, _ in messages),
        "handled": after["handled"] - before["handled"],
        "slowest_s": max(seconds for _, seconds in messages),
        "pings": len(pings),
        "pongs": sum(status == 200 and seconds < PING_WITHIN for status, seconds in pings),
        "ping_ms": statistics.median(times) * 1e3,
        "slowest_ping_ms": times[-1] * 1e3,
        "cpu_share": (after["cpu"] - before["cpu"]) / took,
        "us": (after["cpu"] - before["cpu"]) / (len(messages) + len(pings)) * 1e6,
    }


def _messages() -> Iterable[bytes]:
    for number in itertools.count(1):
        yield msgspec.json.encode(
            {
                "notificationType": "CHAT_MESSAGE_SENT",
                "businessId": 12345,
                "chatId": number % 600 + 1,
                "messageId": str(number),
                "sentAt": "2026-11-27T11:00:00+03:00",
            }
        )


async def _sent(
    port: int, seconds: float, every: float, bodies: Iterable[bytes]
) -> list[tuple[int, float]]:
    """Send at fixed times, whether or not the answers come."""
    began = time.monotonic()
    tasks = []
    for number, body in zip(range(max(int(seconds / every), 1)), bodies, strict=False):
        await asyncio.sleep(began + number * every - time.monotonic())
        tasks.append(asyncio.create_task(exchange(port, GENUINE, body)))
    return await asyncio.gather(*tasks)


def report(figures: Figures) -> Report:
    loads = []
    floods = []
    for row in figures["rows"]:
        for name, title in (("load", ""), ("both", " and a flood")):
            load = row[name]
            loads.append(
                [
                    f"{row['server']}{title}",
                    f"{load['accepted']:,} of {load['sent']:,}",
                    f"{load['pongs']:,} of {load['pings']:,}",
                    f"{load['ping_ms']:.1f}",
                    f"{load['slowest_ping_ms']:.0f}",
                    f"{load['cpu_share']:.0%}",
                ]
            )
        alone = row["alone"]
        floods.append(
            [
                row["server"],
                f"{alone['a_second']:,.0f}",
                f"{alone['us']:,.0f}",
                f"{row['load']['us']:,.0f}",
                f"{row['both']['flood']['let_in'] + alone['let_in'] + row['strangers']:,}",
            ]
        )
    return Report(
        [
            Table(
                "Load",
                ["receiver", "answered 200", "PINGs within 1 s", "PING, ms", "slowest", "CPU"],
                loads,
            ),
            Table(
                "A flood alone",
                ["receiver", "a second", "CPU µs a request", "a notification", "let in"],
                floods,
            ),
        ],
        remarks=list(_remarks(figures["rows"])),
    )


def _remarks(rows: list[Figures]) -> Iterable[str]:
    loads = [load for row in rows for load in (row["load"], row["both"])]
    lost = sum(load["sent"] - load["accepted"] for load in loads)
    late = sum(load["pings"] - load["pongs"] for load in loads)
    yield (
        f"{sum(load['sent'] for load in loads):,} notifications: {lost} not answered 200."
        f" {sum(load['pings'] for load in loads):,} PINGs: {late} not answered within 1 s."
    )
    yield (
        "A request from a foreign address is refused before its body is read. It costs"
        " the opening of the connection and the parsing of the head."
    )
