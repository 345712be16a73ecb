"""How long it takes from a notification of the Market's to the reply at the Market."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import quantiles

from yamarket_chat.outbox import Outbox
from yamarket_chat.sandbox import Sandbox

from .worker import BotPlan, run

PAUSE = 0.25
"""Seconds between two messages of buyers, each in a chat of its own."""

PATIENCE = 120.0


async def measure(url: str, folder: Path, messages: int) -> list[str]:
    """Let buyers write; return a line for each place where notifications are heard."""
    lines = []
    async with Outbox(url) as outbox, Sandbox(chats="any") as box:
        await outbox.create()
        for number, (name, beside) in enumerate((("the bot's", False), ("another", True))):
            first = number * messages + 1
            took = sorted(await _round(url, folder, box, range(first, first + messages), beside))
            cuts = quantiles(took, n=10)
            lines.append(
                f"{url.partition(':')[0]}, heard by {name} process: {len(took)} replies,"
                f" p50 {cuts[4] * 1000:.0f} ms, p90 {cuts[8] * 1000:.0f} ms,"
                f" longest {took[-1] * 1000:.0f} ms"
            )
    return lines


async def _round(
    url: str, folder: Path, box: Sandbox, chats: Sequence[int], beside: bool
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
            await asyncio.sleep(5)
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
    process = get_context("forkserver").Process(target=run, args=(plan,), daemon=True)
    process.start()
    return process


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("see workers.log")
        await asyncio.sleep(0.1)
