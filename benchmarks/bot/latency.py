"""How long it takes from a notification of the Market's to the reply at the Market."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import quantiles

from benchmarks.crash.servers import postgres
from yamarket_chat.outbox import Outbox
from yamarket_chat.sandbox import Sandbox

from ..processes import forked
from ..report import Figures, Report, Step, Table
from .worker import BotPlan
from .worker import run as work

TITLE = "Bot"
ABOUT = """
A buyer writes, the sandbox tells of it, and a bot whose handler answers at once replies: the time
from the message to the reply as the sandbox stores them. Buyers write every 250 ms, each in a chat
that is new to the bot. The Market's stand-in answers at once. Notifications are heard by the
process of the bot, or by another one, as that of a web service. Then the bot finds them in the
database: it looks five times a second on PostgreSQL, and twenty times on SQLite.
"""

HEARD = {"bot": False, "another process": True}
DATABASES = ("sqlite", "postgresql")


@dataclass
class Size:
    """How much is measured."""

    messages: int
    databases: Sequence[str] = DATABASES
    settle: float = 5.0  # seconds after the first look


SIZES = {"full": Size(200), "quick": Size(50), "tiny": Size(3, ("sqlite",), 0.0)}

PAUSE = 0.25
"""Seconds between two messages of buyers, each in a chat of its own."""

PATIENCE = 120.0


def steps(size: Size) -> int:
    return len(size.databases) * len(HEARD)


def run(size: Size, step: Step) -> Figures:
    rows = []
    for database in size.databases:
        with tempfile.TemporaryDirectory(prefix="yamarket-bot-") as name:
            folder = Path(name)
            with _database(database, folder) as url:
                for number, (heard, beside) in enumerate(HEARD.items()):
                    chats = range(number * size.messages + 1, (number + 1) * size.messages + 1)
                    took = sorted(asyncio.run(_measure(url, folder, chats, beside, size.settle)))
                    cuts = quantiles(took, n=10)
                    rows.append(
                        {
                            "database": database,
                            "heard": heard,
                            "replies": len(took),
                            "p50_ms": cuts[4] * 1000,
                            "p90_ms": cuts[8] * 1000,
                            "longest_ms": took[-1] * 1000,
                        }
                    )
                    step(f"reply: {database}, heard by {heard}")
    return {"latency": rows}


def report(figures: Figures) -> Report:
    rows = [
        [
            f"{row['database']}, heard by the {row['heard']}".replace("the another", "another"),
            *(f"{row[name]:.0f} ms" for name in ("p50_ms", "p90_ms", "longest_ms")),
        ]
        for row in figures["latency"]
    ]
    return Report([Table("From a message to its reply", ["", "p50", "p90", "longest"], rows)])


@contextmanager
def _database(name: str, folder: Path) -> Iterator[str]:
    if name == "sqlite":
        yield f"sqlite:///{folder}/outbox.db"
    else:
        with postgres(own_network=False, settings={"fsync": "on"}) as server:
            yield server.url.render_as_string(hide_password=False)


async def _measure(
    url: str, folder: Path, chats: Sequence[int], beside: bool, settle: float
) -> list[float]:
    async with Outbox(url) as outbox, Sandbox(business_id=1) as box:
        await outbox.create()
        return await _round(url, folder, box, chats, beside, settle)


async def _round(
    url: str, folder: Path, box: Sandbox, chats: Sequence[int], beside: bool, settle: float
) -> list[float]:
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        processes = [_start(url, folder, box, 0 if beside else port, True)]
        if beside:
            processes.append(_start(url, folder, box, port, False))
        loop = asyncio.get_running_loop()
        try:
            await _until(lambda: box.requests("chats"))
            await _until(lambda: _listens(port))
            await asyncio.sleep(settle)
            box.notify(f"http://127.0.0.1:{port}/notification")
            before = len(box.notifications)
            began = {}
            for chat in chats:
                began[chat] = loop.time()
                box.buyer_says(chat, "Где мой заказ?")
                await asyncio.sleep(PAUSE)
            await _until(lambda: all(len(box.messages(chat)) >= 2 for chat in chats))
            assert all(one.status == 200 for one in box.notifications[before:])
        finally:
            for process in processes:
                process.terminate()
            await asyncio.gather(*(asyncio.to_thread(one.join) for one in processes))
    return [box.messages(chat)[-1].stored_at - began[chat] for chat in chats]


def _start(url: str, folder: Path, box: Sandbox, port: int, bot: bool) -> BaseProcess:
    plan = BotPlan(
        name="bot" if bot else "web",
        database=url,
        markets={box.business_id: box.url},
        api_key=box.api_key,
        lease=30.0,
        timeout=10.0,
        settle_after=10.0,
        log=str(folder / "workers.log"),
        port=port,
        bot=bot,
        every=30.0,
        quick=True,
    )
    return forked(work, plan, plan.name)


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("see workers.log")
        await asyncio.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
