"""Processes that are killed, or paused, at each named point of a send: nothing is lost or doubled.

The processes work on the real clock. The test is the Market for all of them, and takes over in
virtual time: it waits neither for leases nor for the Market's cut-off.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import sqlite3
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    suppress,
)
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from tests import outbox_process
from tests.helpers import texts
from yamarket_chat import Pending, connector
from yamarket_chat.outbox import Outbox, OutboxFile, OutboxMessage, earlier, points
from yamarket_chat.outbox.checkpoint import Passage
from yamarket_chat.outbox.delivering import Delivering
from yamarket_chat.outbox.grant import Grant
from yamarket_chat.outbox.turns import Session
from yamarket_chat.sandbox import Sandbox

POINTS = [name for name in points.NAMES if name != "handing over"]
# Killed at each, and paused where something may still leave.
ENDS = [(name, signal.SIGKILL) for name in POINTS] + [
    (name, signal.SIGSTOP) for name in POINTS[: POINTS.index("answered")]
]
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
        """Wait until nothing waits.

        A process that was paused within a transaction holds its rows until PostgreSQL ends that,
        after 10 seconds of the real clock.
        """
        began = time.monotonic()
        while time.monotonic() < began + 40:
            statuses = [await self.outbox.status(business_id) for business_id in self.of]
            if not any(status.waiting or status.leaving for status in statuses):
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


async def all_are_dead_or_stopped(children: Sequence[Any]) -> float:
    """Wait for that; return when it was."""
    await until(lambda: all(one.exitcode == -9 or is_stopped(one.pid) for one in children))
    return time.monotonic()


async def go_on(children: Sequence[Any], stopped_at: float) -> None:
    """Let those that are stopped go on, when their leases are over by their own clocks as well."""
    stopped = [child for child in children if child.exitcode is None]
    if stopped:
        await until(lambda: time.monotonic() > stopped_at + LEASE)
        for child in stopped:
            os.kill(child.pid, signal.SIGCONT)
        awake_at = time.monotonic()
        await until(lambda: time.monotonic() > awake_at + 0.5)


@pytest.fixture
async def markets(database_url: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Markets]:
    async with AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(Outbox(database_url))
        await outbox.create()
        of = {}
        for number in range(1, len(ENDS) + 1):
            market = Sandbox(business_id=number, keep_alive=3600)
            of[number] = await stack.enter_async_context(market)
            await outbox.put_many(messages(number))
        made = Markets(outbox, of)
        monkeypatch.setattr(Delivering, "_session", lambda _, number: made.session(number))
        yield made


async def test_process_that_ends_at_any_point_loses_and_doubles_nothing(
    markets: Markets, database_url: Any, spawn: Any
) -> None:
    children = []
    for (number, market), (point, with_signal) in zip(markets.of.items(), ENDS, strict=True):
        options = {"base_url": market.url, "lease": LEASE}
        keys = {number: market.api_key}
        children.append(spawn(database_url, keys, options, point, 3, with_signal))
    stopped_at = await all_are_dead_or_stopped(children)
    async with markets.delivering():
        await markets.delivered()
        await go_on(children, stopped_at)
    await markets.check()


# By the guard that is missing: where its process is killed or stopped.
MUTANTS = {
    "mark": ("written", signal.SIGKILL),
    "look": ("before the look", signal.SIGSTOP),
    "second look": ("half written", signal.SIGSTOP),
    "": ("written", signal.SIGKILL),  # who takes over does not wait before it settles
}


def let_settle_at_once(monkeypatch: pytest.MonkeyPatch, business_id: int) -> None:
    """Take the wait away, and the moment in `Pending` that would make the settler wait as well."""
    wait, pending_of = Grant.settle_wait, earlier.pending_of

    def settle_wait(grant: Grant, timeout: float, settle_after: float) -> float:
        return 0.0 if grant.business_id == business_id else wait(grant, timeout, settle_after)

    def pending(read: Any) -> Pending:
        found = pending_of(read)
        return replace(found, until=found.since) if read.business_id == business_id else found

    monkeypatch.setattr(Grant, "settle_wait", settle_wait)
    monkeypatch.setattr(earlier, "pending_of", pending)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_each_guard_is_needed(
    markets: Markets, database_url: Any, spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    markets.of = dict(list(markets.of.items())[: len(MUTANTS)])
    markets.keys = dict(list(markets.keys.items())[: len(MUTANTS)])
    # The clock is read at once; the message of the process that is killed takes a while.
    latencies = iter([0.0, 30.0, 30.0])
    markets.of[len(MUTANTS)].latency = lambda: next(latencies, 0.0)
    # A Market that counts its 10 s from the last byte of a request.
    monkeypatch.setattr("yamarket_chat.sandbox.server.PROCESSING_TIMEOUT", 3600.0)
    children = []
    for (number, market), (guard, (point, with_signal)) in zip(
        markets.of.items(), MUTANTS.items(), strict=True
    ):
        options = {"base_url": market.url, "lease": LEASE}
        keys = {number: market.api_key}
        children.append(spawn(database_url, keys, options, point, 1, with_signal, guard))
    stopped_at = await all_are_dead_or_stopped(children)
    let_settle_at_once(monkeypatch, len(MUTANTS))
    async with markets.delivering():
        await markets.delivered()
        await go_on(children, stopped_at)
        await asyncio.sleep(20)
    for guard, market in zip(MUTANTS, markets.of.values(), strict=True):
        stored = [text for chat in CHATS for text in texts(market, chat)]
        assert len(stored) > 12, f"without the {guard or 'wait'}, nothing is doubled"


@asynccontextmanager
async def over_tls(market: Sandbox, folder: Path) -> AsyncIterator[str]:
    """Yield the address of a TLS server before the Market."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -keyout key.pem -out cert.pem -subj /CN=market"
    subprocess.run(command.split(), check=True, capture_output=True, cwd=folder)  # noqa: S603
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    serving: list[asyncio.Task[Any]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, up = await asyncio.open_connection("127.0.0.1", market.port)
        writers.extend((writer, up))
        serving.extend(asyncio.create_task(pump(*way)) for way in ((reader, up), (answers, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        with suppress(AttributeError):  # asyncio has lost one that was closed twice
            writer.transport.abort()
    await asyncio.wait(serving)


@pytest.mark.parametrize("guarded", [True, False])
async def test_file_over_tls_is_not_finished_by_a_process_that_lost_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """It stood still when only the last bytes were missing. Without the second look they leave."""
    if not guarded:
        look = Passage.look
        monkeypatch.setattr(
            Passage, "look", lambda self, *, again: look(self, again=again) and None
        )
    loop: Any = asyncio.get_running_loop()
    reached: list[str] = []

    def stand_still(name: str) -> None:
        if name == "half written" and not reached:
            reached.append(name)
            loop.slept += 2 * LEASE
            with closing(sqlite3.connect(tmp_path / "outbox.db")) as connection, connection:
                taken = "UPDATE yamarket_outbox_leases SET worker = 'other', epoch = epoch + 1"
                connection.execute(taken)

    monkeypatch.setattr(points, "hook", stand_still)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with (
        Sandbox(business_id=12345) as market,
        over_tls(market, tmp_path) as url,
        aiohttp.ClientSession(connector=connector(ssl=trusting)) as http,
        Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox,
    ):
        await outbox.create()

        async def session(_: Delivering, business_id: int) -> Session:
            return Session(market.api_key, business_id, base_url=url, http=http)

        monkeypatch.setattr(Delivering, "_session", session)
        content = bytes(range(256)) * 4_000
        number = await outbox.put(OutboxFile(12345, 17, content, filename="a.pdf"))
        async with outbox.delivering({12345: market.api_key}, lease=LEASE):
            await asyncio.sleep(10)
            assert reached
            assert len(market.messages(17)) == (0 if guarded else 1)
            receipt = await outbox.result(number, timeout=100)
        (stored,) = market.messages(17)
        assert [file.size for file in stored.payload] == [len(content)]
        assert receipt.requests == (2 if guarded else 1)


def is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # it has died meanwhile
    return state.rpartition(")")[2].split()[0] == "T"
