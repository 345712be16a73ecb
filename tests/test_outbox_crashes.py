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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import outbox_process
from tests.helpers import texts
from yamarket_chat.outbox import Outbox, OutboxMessage, points
from yamarket_chat.outbox.delivering import Delivering
from yamarket_chat.outbox.turns import Session
from yamarket_chat.sandbox import Sandbox

POINTS = [name for name in points.NAMES if name != "handing over"]
LEASE = 3.0
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


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something of the real world. Meanwhile the virtual clock goes with the real one."""
    loop: Any = asyncio.get_running_loop()
    while not condition():
        began = time.monotonic()
        await loop.run_in_executor(None, time.sleep, 0.01)
        loop.block(time.monotonic() - began)


class Markets:
    """A Market for each business, and one outbox for all of them."""

    def __init__(self, outbox: Outbox, markets: dict[int, Sandbox]) -> None:
        self.outbox = outbox
        self.of = markets
        self.keys = {business_id: market.api_key for business_id, market in markets.items()}

    def delivering(self) -> AbstractAsyncContextManager[None]:
        return self.outbox.delivering(self.keys, lease=LEASE)

    async def session(self, business_id: int) -> Session:
        market = self.of[business_id]
        return Session(market.api_key, business_id, base_url=market.url)

    async def delivered(self) -> None:
        """Wait until nothing waits, at most two minutes."""
        for _ in range(120):
            status = await self.outbox.status()
            if not status.waiting and not status.leaving:
                return
            await asyncio.sleep(1)
        entries = [await self.outbox.get(number) for number in range(1, 12 * len(self.of) + 1)]
        raise AssertionError([entry for entry in entries if entry and not entry.ended_at])

    async def check(self) -> None:
        """All is in the chats, once and in order, and the outbox knows it."""
        for business_id, market in self.of.items():
            for chat in CHATS:
                assert texts(market, chat) == expected(business_id, chat), (business_id, chat)
        entries = [await self.outbox.get(number) for number in range(1, 12 * len(self.of) + 1)]
        wrong = [entry for entry in entries if entry and entry.state != "delivered"]
        assert not wrong


@pytest.fixture
async def markets(database_url: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Markets]:
    async with AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(Outbox(database_url))
        await outbox.create()
        of = {}
        for number in range(1, len(POINTS) + 1):
            of[number] = await stack.enter_async_context(Sandbox(business_id=number))
            await outbox.put_many(messages(number))
        made = Markets(outbox, of)
        monkeypatch.setattr(Delivering, "_session", lambda _, number: made.session(number))
        yield made


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
async def test_process_that_ends_at_any_point_loses_and_doubles_nothing(
    markets: Markets, database_url: Any, spawn: Any, with_signal: signal.Signals
) -> None:
    children = []
    for (number, market), point in zip(markets.of.items(), POINTS, strict=True):
        options = {"base_url": market.url, "lease": LEASE}
        keys = {number: market.api_key}
        children.append(spawn(database_url, keys, options, point, 3, with_signal))
    if with_signal is signal.SIGKILL:
        await until(lambda: all(child.exitcode == -signal.SIGKILL for child in children))
    else:
        await until(lambda: all(is_stopped(child.pid) for child in children))
    stopped_at = time.monotonic()
    async with markets.delivering():
        await markets.delivered()
        if with_signal is signal.SIGSTOP:
            await until(lambda: time.monotonic() > stopped_at + LEASE)
            for child in children:
                os.kill(child.pid, signal.SIGCONT)
            awake_at = time.monotonic()
            await until(lambda: time.monotonic() > awake_at + 0.5)
    await markets.check()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
