"""`yamarket-chat outbox deliver`: processes that deliver, are stopped, killed, and stand still."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.command import MAIN, Command, environment, fork
from tests.test_cli import (
    Finished,
    _interruptible,  # noqa: F401
    end,
    run,
    texts,
    until,
    variables_of,
)
from yamarket_chat import Rate
from yamarket_chat.cli.outbox_progress import DeliveryProgress
from yamarket_chat.outbox import Outbox, OutboxMessage
from yamarket_chat.outbox.overview import Business, Overview, Worker
from yamarket_chat.sandbox import Fault, Sandbox

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

BUSINESS = 12345

# What may be under way after a death is settled sooner, so that no test waits for it.
SOONER = """
from functools import partialmethod
from yamarket_chat import Retry, retry
retry.CUT_OFF = 0.1
from yamarket_chat.outbox import Outbox
Outbox.deliver = partialmethod(Outbox.deliver, retry=Retry(settle_after=0.4), timeout=1.0)
"""

# A process that stands still between its last look and the bytes.
STANDS_STILL = """
import os, signal, time
from yamarket_chat.outbox.checkpoint import Passage
look = Passage.look

def look_and_stand_still(self, *, again):
    refused = look(self, again=again)
    print("looked", flush=True)
    {stand_still}
    return refused

Passage.look = look_and_stand_still
"""
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"
BLOCKED = "time.sleep(0.5)"
NO_FUSE = """
from yamarket_chat.outbox import fuse
fuse._fuse.__class__.light = fuse.light = lambda *_: None
"""


class Shop:
    """An outbox in a file, and a Market."""

    def __init__(self, outbox: Outbox, market: Sandbox, folder: Path) -> None:
        self.outbox = outbox
        self.market = market
        self.folder = folder
        self.variables = variables_of(market, YAMARKET_OUTBOX=str(folder / "outbox.db"))

    async def put(self, many: int, chats: int = 4) -> None:
        await self.outbox.put_many(
            OutboxMessage(BUSINESS, 1 + n % chats, f"{n}") for n in range(many)
        )

    async def deliver(self, *arguments: str, before: str = "") -> Command:
        return await fork(
            before + MAIN, "outbox", "deliver", *arguments, env=environment(**self.variables)
        )

    async def states(self) -> list[str]:
        return [entry.state async for entry in self.outbox.entries()]

    async def all_ended(self) -> None:
        async with asyncio.timeout(20):
            while {"waiting", "leaving"} & set(await self.states()):
                await asyncio.sleep(0.05)

    def sent(self) -> dict[int, list[str | None]]:
        found = {chat: texts(self.market, chat) for chat in self.market.chat_ids}
        return {chat: sent for chat, sent in found.items() if sent}

    def workers(self) -> int:
        with closing(sqlite3.connect(self.folder / "outbox.db")) as connection:
            query = "SELECT count(*) FROM yamarket_outbox_workers"
            return int(connection.execute(query).fetchone()[0])


def expected(many: int, chats: int = 4) -> dict[int, list[str | None]]:
    return {1 + chat: [f"{n}" for n in range(chat, many, chats)] for chat in range(chats)}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with (
        Sandbox(latency=0.05, chats=range(1, 9)) as market,
        Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox,
    ):
        await outbox.create()
        yield Shop(outbox, market, tmp_path)


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_it_in_order_and_another_goes_on(
    shop: Shop, number: signal.Signals
) -> None:
    await shop.put(40)
    process = await shop.deliver()
    await until(lambda: shop.market.messages_stored >= 4)
    process.send_signal(number)
    stopped = await end(process)
    assert stopped.status == 0
    assert stopped.out == ""
    assert stopped.err.startswith(f"Delivering for 1 business as process {process.pid} on ")
    assert "nothing new is sent, waiting for the requests in progress" in stopped.err
    assert stopped.err.endswith("\nStopped\n")
    states = await shop.states()
    assert states.count("delivered") == shop.market.messages_stored < 40
    assert states.count("waiting") == 40 - states.count("delivered")
    assert shop.workers() == 0
    process = await shop.deliver()
    await shop.all_ended()
    process.send_signal(signal.SIGTERM)
    assert (await end(process)).status == 0
    assert shop.sent() == expected(40)


async def test_killed_and_started_again_it_loses_and_doubles_nothing(shop: Shop) -> None:
    await shop.put(40)
    for stored in (4, 12):
        process = await shop.deliver(before=SOONER)
        await until(lambda: shop.market.messages_stored >= stored)  # noqa: B023 - waited for here
        process.kill()
        assert (await end(process)).status == -signal.SIGKILL
    process = await shop.deliver(before=SOONER)
    await shop.all_ended()
    process.send_signal(signal.SIGTERM)
    assert (await end(process)).status == 0
    assert set(await shop.states()) == {"delivered"}
    assert shop.sent() == expected(40)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_it_at_once(shop: Shop, second: signal.Signals) -> None:
    process = await hangs(shop)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while b"Send a second signal" not in await process.stderr.readline():
        pass
    process.send_signal(second)
    async with asyncio.timeout(6):  # the request in progress ends after 8 s
        assert (await end(process)).status == 128 + second
    assert await shop.states() == ["delivered", "leaving"]


async def hangs(shop: Shop, *arguments: str) -> Command:
    """Return a process whose request is in progress for long."""
    await shop.put(1)
    process = await shop.deliver(*arguments)
    await until(lambda: shop.market.messages_stored)
    shop.market.latency = 8.0
    await shop.put(1)
    async with asyncio.timeout(10):
        while (await shop.states())[1] != "leaving":
            await asyncio.sleep(0.02)
    return process


async def test_grace_ends_although_a_request_is_in_progress(shop: Shop) -> None:
    process = await hangs(shop, "--grace", "0.2")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(6):
        stopped = await end(process)
    assert stopped.status == 0
    assert "Warning: some requests are still in progress after 0.2 s" in stopped.err
    assert await shop.states() == ["delivered", "leaving"]
    assert shop.workers() == 0


# The fuse


@pytest.mark.parametrize("stand_still", [STOPPED, BLOCKED], ids=["stopped", "blocked"])
@pytest.mark.parametrize("fuse", [True, False], ids=["", "without a fuse"])
async def test_process_that_stands_still_before_the_bytes_dies_by_its_fuse(
    shop: Shop, stand_still: str, fuse: bool
) -> None:
    await shop.put(1)
    code = STANDS_STILL.format(stand_still=stand_still) + ("" if fuse else NO_FUSE)
    process = await shop.deliver("--lease", "1", before=code)
    assert await process.stdout.readline() == b"looked\n"
    if stand_still == STOPPED:
        await asyncio.sleep(0.4)  # the fuse burns for a sixth of the lease
        process.send_signal(signal.SIGCONT)
    if fuse:
        assert await process.wait() == -signal.SIGALRM
        assert shop.market.messages_stored == 0
        assert await shop.states() == ["leaving"]  # whoever takes over settles it
    else:
        await until(lambda: shop.market.messages_stored)
        process.kill()
        await process.wait()


async def test_fuse_does_not_end_a_process_that_works(shop: Shop) -> None:
    """Nor one that finds a stray answer after its look, and so writes nothing."""
    shop.market.faults = lambda request: (
        Fault("unsolicited", delay=0.01) if request.operation_number % 5 == 1 else None
    )
    await shop.put(20)
    await shop.outbox.put(OutboxMessage(BUSINESS, 5, "длинный" * 500))
    process = await shop.deliver("--lease", "1", before=SOONER)
    await shop.all_ended()
    await asyncio.sleep(0.2)
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    assert (await end(process)).status == 0


# What it says


async def test_it_says_what_is_paused_and_what_was_refused(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    await shop.put(1)
    process = await shop.deliver("--json")
    await shop.all_ended()
    shop.market.faults = None
    process.send_signal(signal.SIGTERM)
    stopped = await end(process)
    report = json.loads(stopped.out.splitlines()[0])
    assert (report["limit"], report["paused"], report["workers"] <= 1) == (1000, {}, True)
    assert f"Warning: business {BUSINESS}: message 1 is refused: send_message: HTTP 404" in (
        stopped.err
    )
    await shop.put(1)
    shop.variables["YAMARKET_API_KEY"] = "ACMA:wrong"
    process = await shop.deliver()
    paused: str | None = None
    async with asyncio.timeout(10):
        while paused is None:
            paused = (await shop.outbox.status()).paused.get(BUSINESS)
            await asyncio.sleep(0.05)
    status = await run("outbox", "status", **shop.variables)
    assert f"Paused: business {BUSINESS} is paused since 20" in status.out
    assert "401" in status.out
    process.send_signal(signal.SIGTERM)
    stopped = await end(process)
    assert stopped.status == 0
    assert f"Warning: business {BUSINESS} is paused: " in stopped.err
    assert "401" in stopped.err
    assert "ACMA:wrong" not in stopped.err


async def test_worker_that_beats_is_healthy_and_one_that_stands_still_is_not(shop: Shop) -> None:
    process = await shop.deliver("--lease", "1.5")
    await until(shop.workers)

    async def health() -> Finished:
        return await run("outbox", "status", "--healthy", **shop.variables)

    healthy = await health()
    assert healthy.status == 0
    assert healthy.out.startswith(f"healthy: process {process.pid} on {socket.gethostname()}")
    process.send_signal(signal.SIGSTOP)
    stands_still = await health()
    assert stands_still.status == 1
    assert "Error: not healthy: no beat within 1 s of process" in stands_still.err
    process.send_signal(signal.SIGCONT)
    process.kill()
    await process.wait()


async def test_it_waits_for_a_database_that_is_away_but_not_for_tables(shop: Shop) -> None:
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        url = f"postgresql://u:tiger@127.0.0.1:{bound.getsockname()[1]}/d"
        shop.variables["YAMARKET_OUTBOX"] = url
        process = await shop.deliver()
        assert process.stderr is not None
        while b"the delivery begins later" not in (line := await process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGTERM)
        assert (await end(process)).status == 0
    shop.variables["YAMARKET_OUTBOX"] = str(shop.folder / "nothing.db")
    failed = await end(await shop.deliver())
    assert failed.status == 1
    assert "run `yamarket-chat outbox create` once" in failed.err.splitlines()[-1]
    assert not (shop.folder / "nothing.db").exists()


async def test_keys_of_a_file_are_used(shop: Shop) -> None:
    keys = shop.folder / "keys"
    keys.write_text(f"{BUSINESS}={shop.market.api_key}\n77=ACMA:other\n")
    keys.chmod(0o600)
    await shop.put(2)
    del shop.variables["YAMARKET_API_KEY"], shop.variables["YAMARKET_BUSINESS_ID"]
    process = await shop.deliver("--keys", str(keys))
    await shop.all_ended()
    process.send_signal(signal.SIGTERM)
    stopped = await end(process)
    assert stopped.status == 0
    assert stopped.err.startswith("Delivering for 2 businesses as process")
    assert shop.sent() == expected(2, 2)


# The lines


def seen(**values: Any) -> Overview:
    about = {"about": "process 7 on here", "beat": 1, "lease": 30.0, "businesses": 1}
    worker = Worker(token="a", started_at=datetime.now(UTC), **about)  # type: ignore[arg-type]
    return Overview(**{"workers": [worker], "businesses": []} | values)


def lines(
    capsys: pytest.CaptureFixture[str],
    *looks: Overview,
    only: int | None = BUSINESS,
    per: int = 3600,
) -> list[str]:
    progress = DeliveryProgress("sqlite:///no.db", Rate(1000, per=per), json=False, only=only)
    for second, look in enumerate(looks):
        progress._print(look, progress._measure(second * 10.0, look))
    return capsys.readouterr().err.splitlines()


def test_lines_tell_depth_rate_use_and_age(capsys: pytest.CaptureFixture[str]) -> None:
    old = datetime.now(UTC) - timedelta(seconds=3600)
    busy = Business(business_id=BUSINESS, messages_in_the_hour=412)
    first = seen(waiting=1234, requests_counted=400, oldest=old, businesses=[busy])
    second = seen(waiting=1200, leaving=4, not_due=3, requests_counted=434, businesses=[busy])
    assert lines(capsys, first, second) == [
        "1,234 waiting, 0.0/s, 412 of 1,000 in 1 h, the oldest was put 1:00:00 ago",
        "1,200 waiting, 3 not due yet, 4 being sent, 3.4/s, 412 of 1,000 in 1 h",
    ]
    paused = Business(business_id=77, messages_in_the_hour=413, paused="401")
    several = seen(waiting=1, workers=[*first.workers, *first.workers], businesses=[busy, paused])
    assert lines(capsys, several, only=None, per=60) == [
        "1 waiting, 0.0/s, 413 in 1 h (business 77), 2 workers; business 77 is paused"
    ]


def test_lines_are_not_repeated_while_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    idle, busy = seen(requests_counted=5), seen(waiting=1, requests_counted=5)
    assert len(lines(capsys, idle, idle, busy, busy, idle, seen(requests_counted=6))) == 5


def test_rate_survives_that_old_counts_are_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    looks = [seen(waiting=1, requests_counted=count) for count in (500, 600, 20, 40)]
    assert [line.split(", ")[1] for line in lines(capsys, *looks)] == [
        "0.0/s", "10.0/s", "0.0/s", "2.0/s"
    ]  # fmt: skip
