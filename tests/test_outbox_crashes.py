"""Processes that are killed, or paused, at each named point of a send: nothing is lost or doubled.

The processes work on the real clock. The test is the Market for all of them, and takes over in
virtual time: it waits neither for leases nor for the Market's cut-off.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import outbox_process
from tests.helpers import texts
from yamarket_chat.outbox import Outbox, OutboxMessage, points
from yamarket_chat.sandbox import Sandbox

POINTS = [name for name in points.NAMES if name != "handing over"]
LEASE = 1.2
CHATS = (17, 18)
LONG = "Ваш заказ собран и ждёт отправки. " * 40


@pytest.fixture(scope="module")
def spawn() -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.outbox_process"])
    running = []

    def start(*arguments: Any) -> Any:
        process = context.Process(target=outbox_process.main, args=arguments, daemon=True)
        process.start()
        running.append(process)
        return process

    yield start
    for process in running:
        if process.is_alive():
            process.kill()
        process.join()


def messages(business_id: int) -> list[OutboxMessage]:
    """Equal texts in pairs, singles behind bulk, short texts and long ones."""
    return [
        OutboxMessage(
            business_id,
            chat,
            f"{'Привет' if n < 4 else LONG} {n // 2}",
            key=f"{chat}-{n}",
            bulk=n % 3 == 0,
        )
        for n in range(6)
        for chat in CHATS
    ]


def expected(business_id: int, chat: int) -> list[str]:
    return [one.text for one in messages(business_id) if one.chat_id == chat]


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Wait for something that happens on the real clock."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
async def test_process_that_ends_at_any_point_loses_and_doubles_nothing(
    database_url: Any, spawn: Any, with_signal: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        markets, outboxes, children = {}, {}, {}
        for number, point in enumerate(POINTS, 1):
            # SQLite has one writer at a time, so each process has a file of its own.
            url = str(database_url) + (str(number) if "sqlite" in str(database_url) else "")
            url = database_url if url == str(database_url) else url
            outbox = outboxes[point] = await stack.enter_async_context(Outbox(url))
            await outbox.create()
            market = await stack.enter_async_context(Sandbox(business_id=number, parallel=8))
            markets[point] = market
            await outbox.put_many(messages(number))
            options = {"base_url": market.url, "lease": LEASE}
            keys = {number: market.api_key}
            children[point] = spawn(url, keys, options, point, 3, with_signal)
        for point, child in children.items():
            if with_signal is signal.SIGKILL:
                await in_thread(child.join)
                assert child.exitcode == -signal.SIGKILL, point
            else:
                await in_thread(wait_until_stopped, child.pid)
        for point, market in markets.items():
            keys = {market.business_id: market.api_key}
            await stack.enter_async_context(
                outboxes[point].delivering(keys, base_url=market.url, lease=LEASE)
            )
        for point, market in markets.items():
            business = market.business_id
            for _ in range(120):
                status = await outboxes[point].status(business)
                if not status.waiting and not status.leaving:
                    break
                await asyncio.sleep(1)
            else:
                entries = [await outboxes[point].get(one) for one in range(1, 97)]
                left = [entry for entry in entries if entry and not entry.ended_at]
                raise AssertionError((point, status, left))
        if with_signal is signal.SIGSTOP:
            for child in children.values():
                os.kill(child.pid, signal.SIGCONT)
            await in_thread(time.sleep, 0.5)
        for point, market in markets.items():
            for chat in CHATS:
                assert texts(market, chat) == expected(market.business_id, chat), (point, chat)
                for number in range(1, 7):
                    entry = await outboxes[point].get(
                        business_id=market.business_id, key=f"{chat}-{number - 1}"
                    )
                    assert entry is not None
                    assert entry.state == "delivered", (point, entry)


def wait_until_stopped(pid: int) -> None:
    while True:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "T":
            return
        time.sleep(0.01)
