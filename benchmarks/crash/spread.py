"""Many businesses: how fast they spread over the workers, and what an idle worker costs."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text

from yamarket_chat.outbox import Outbox, OutboxDatabaseError, OutboxMessage
from yamarket_chat.outbox.schema import leases

from ..processes import forked
from .worker import Plan, run

WORKERS = 4
LEASE = 30.0
_REQUEST = re.compile(rb"([A-Z]+) (?:\S+/businesses/(\d+)/)?\S*")
_INTEGRATION = re.compile(rb"X-Market-Integration: *(\S+)", re.IGNORECASE)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ANSWER = b'{"status":"OK","campaigns":[],"paging":{}}'


class Market:
    """Accepts everything, for all businesses, and remembers who sent."""

    def __init__(self) -> None:
        self.senders: dict[int, str] = {}
        self.before: dict[int, set[str]] = {}
        self.returns = 0  # a business was sent for by a worker that had it before another one
        self.messages = 0
        self.url = ""

    async def open(self) -> asyncio.Server:
        """Listen."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if length := _LENGTH.search(head):
                    await reader.readexactly(int(length[1]))
                self._note(head)
                date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (date, len(_ANSWER), _ANSWER)
                )
        except (OSError, EOFError):
            writer.transport.abort()

    def _note(self, head: bytes) -> None:
        request, integration = _REQUEST.match(head), _INTEGRATION.search(head)
        if request is None or integration is None or request[2] is None:
            return
        self.messages += request[1] == b"POST"
        business_id, worker = int(request[2]), integration[1].decode()
        last = self.senders.get(business_id)
        if worker != last:
            before = self.before.setdefault(business_id, set())
            self.returns += worker in before
            if last is not None:
                before.add(last)
            self.senders[business_id] = worker


async def spread(url: str, folder: Path, businesses: int, say: Callable[[str], None]) -> bool:
    """Start workers, kill one, start it again; say how long each took. Return whether all is well.

    The goals: even within a minute, moved within 40 s after a death, nothing sent by two.
    """
    market, fine = Market(), True
    async with Outbox(url) as outbox, await market.open():
        await outbox.create()
        names = iter(range(1, 1000))

        def start() -> BaseProcess:
            plan = Plan(
                name=f"worker-{next(names)}",
                database=url,
                markets=dict.fromkeys(range(1, businesses + 1), market.url),
                api_key="ACMA:spread:key",
                lease=LEASE,
                timeout=10.0,
                settle_after=10.0,
                log=str(folder / "workers.log"),
            )
            return forked(run, plan, plan.name)

        async def until(what: str, goal: float, dead: str | None, even: bool = True) -> None:
            nonlocal fine
            began, now, held = time.monotonic(), {}, []
            while time.monotonic() - began < 3 * goal:
                now = await outbox._database.read(_shares)
                held = sorted(count for worker, count in now.items() if worker is not None)
                alive = len([one for one in workers if one.is_alive()])
                spread_out = len(held) == alive and held[-1] - held[0] <= 1
                if sum(held) == businesses and dead not in now and (spread_out or not even):
                    break
                await asyncio.sleep(0.2)
            took = time.monotonic() - began
            fine &= took <= goal
            say(f"{what}: {took:.1f} s (goal: {goal:g} s), {held}")

        workers = [start() for _ in range(WORKERS)]
        putting = asyncio.create_task(_put(outbox, businesses))
        try:
            await until("even", 60, None)
            await asyncio.sleep(10)
            dead = await _token_of(outbox, workers[0])
            workers[0].kill()
            await until("moved after a death", 40, dead, even=False)
            await until("even again", 20, dead)
            workers[0] = start()
            await until("even after it returned", 60, None)
            workers[1].terminate()
            await asyncio.sleep(0)
            await until("moved after a clean stop", 60, await _token_of(outbox, workers[1]))
            putting.cancel()
            await asyncio.sleep(20)
            say(
                f"{market.messages} messages; businesses that went back and forth: {market.returns}"
            )
            await _idle(outbox, [one for one in workers if one.is_alive()], say)
        finally:
            putting.cancel()
            for process in workers:
                process.kill()
    return fine


async def _put(outbox: Outbox, businesses: int) -> None:
    """Put some messages a second, each for another business."""
    while True:
        some = random.sample(range(1, businesses + 1), min(businesses, 10))
        with suppress(OutboxDatabaseError):
            await outbox.put_many(OutboxMessage(one, 17, "Заказ собран") for one in some)
        await asyncio.sleep(0.5)


async def _idle(outbox: Outbox, workers: list[BaseProcess], say: Callable[[str], None]) -> None:
    seconds = 30.0
    before = [_cpu(one) for one in workers]
    statements = await outbox._database.read(_transactions)
    await asyncio.sleep(seconds)
    transactions = await outbox._database.read(_transactions) - statements
    used = [(_cpu(one) - was) / seconds for one, was in zip(workers, before, strict=True)]
    memory = [_memory(one) for one in workers]
    say(
        f"idle: {', '.join(f'{share:.1%}' for share in used)} of a core each,"
        f" {', '.join(f'{size:.0f}' for size in memory)} MB each,"
        f" {transactions / seconds / len(workers):.1f} transactions a second each"
    )


def _shares(connection: Connection) -> dict[str | None, int]:
    counted = select(leases.c.worker, func.count()).group_by(leases.c.worker)
    return {row[0]: row[1] for row in connection.execute(counted)}


async def _token_of(outbox: Outbox, process: BaseProcess) -> str | None:
    def find(connection: Connection) -> Any:
        return connection.execute(
            text("SELECT token FROM yamarket_outbox_workers WHERE about LIKE :about"),
            {"about": f"process {process.pid} on %"},
        ).scalar()

    token: str | None = await outbox._database.read(find)
    return token


def _transactions(connection: Connection) -> int:
    if connection.dialect.name != "postgresql":
        return 0
    connection.execute(text("SELECT pg_stat_clear_snapshot()"))
    count = connection.execute(
        text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'")
    ).scalar()
    return int(count or 0)


def _cpu(process: BaseProcess) -> float:
    fields = (
        Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(process: BaseProcess) -> float:
    """Return the megabytes that this process alone has."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
    return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+)", text)) / 1024
