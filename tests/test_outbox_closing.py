"""An outbox that is closed while the same program uses it: a later call opens it again."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import shops
from tests.shops import BUSINESS, Shop, message
from yamarket_chat.outbox import Outbox, OutboxEntry
from yamarket_chat.outbox import outbox as outboxes
from yamarket_chat.outbox.database import Database
from yamarket_chat.sandbox import Fault

fewer_looks = shops.fewer_looks
shop = shops.shop
small = shops.small


async def test_put_beside_a_close_puts(shop: Shop) -> None:
    closing = asyncio.create_task(shop.outbox.close())
    await asyncio.sleep(0)
    number = await shop.put(message("раз"))
    await closing
    assert (await shop.got(number)).text == "раз"


async def test_puts_before_a_close_are_put(shop: Shop) -> None:
    putting = [asyncio.create_task(shop.put(message(f"{one}"))) for one in range(8)]
    await asyncio.sleep(0)
    await asyncio.gather(shop.outbox.close(), shop.outbox.close())
    for number in await asyncio.gather(*putting):
        await shop.got(number)


async def test_call_that_waited_for_a_thread_opens_nothing_after_a_close(small: Shop) -> None:
    database, held = small.outbox._database, threading.Event()
    calls = [
        asyncio.create_task(database.call(held.wait)),
        asyncio.create_task(small.outbox.status()),
    ]
    await asyncio.sleep(0)
    closing = asyncio.create_task(small.outbox.close())
    await asyncio.sleep(0)
    held.set()
    await asyncio.gather(*calls, closing)
    assert database._engine is None


async def test_close_leaves_no_business_without_a_courier(shop: Shop) -> None:
    async with shop.delivering():
        numbers = [await shop.put(message("раз"))]
        async with shop.outbox:  # as a handler of a web server may do
            numbers.append(await shop.put(message("два")))
        numbers.append(await shop.put(message("три", 18)))
        for number in numbers:
            await shop.outbox.result(number, timeout=300)


# A defect ends nothing for good


async def test_failures_are_told_after_a_close_beside_on_failure(small: Shop) -> None:
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    told: list[int] = []
    closing: list[asyncio.Task[None]] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)
        if len(told) == 1:
            closing.append(asyncio.create_task(small.outbox.close()))
            await asyncio.sleep(0)

    first = await small.put(message("раз"))
    async with small.delivering(on_failure=failed):
        await asyncio.sleep(20)
        second = await small.put(message("два", 18))
        await asyncio.sleep(20)
    assert set(told) == {first, second}


def _broken_once(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Let reading by this function raise what nobody expects, once."""
    read, broken = Database.read, False

    async def sometimes(self: Database, work: Any, *args: Any) -> Any:
        nonlocal broken
        if work.__name__ == function and not broken:
            broken = True
            raise RuntimeError("a defect")
        return await read(self, work, *args)

    monkeypatch.setattr(Database, "read", sometimes)


async def test_failures_are_told_after_a_defect(
    small: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    told: list[int] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)

    _broken_once(monkeypatch, "_next_untold")
    first = await small.put(message("раз"))
    async with small.delivering(on_failure=failed):
        await asyncio.sleep(20)
    assert told == [first]
    assert "on_failure could not be called" in caplog.text


async def test_business_is_sent_for_after_a_defect(
    small: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _broken_once(monkeypatch, "leaving")
    number = await small.put(message("раз"))
    async with small.delivering():
        await small.outbox.result(number, timeout=300)
    assert f"business {BUSINESS}: a defect" in caplog.text


async def test_outbox_is_pruned_after_a_defect(
    small: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outboxes, "PRUNE_EVERY", 10.0)
    prunings = 0

    async def prune(self: Outbox) -> int:
        nonlocal prunings
        prunings += 1
        raise RuntimeError("a defect")

    monkeypatch.setattr(Outbox, "prune", prune)
    async with small.delivering():
        await asyncio.sleep(60)
    assert prunings > 1
    assert "the outbox could not be pruned" in caplog.text


# Eager tasks


@pytest.mark.real_time
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of 3.12")
async def test_put_that_fails_at_once_does_not_let_the_next_one_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of a group ends before `create_task` returns."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop and Python 3.13.0 do not agree about eager tasks")
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        with monkeypatch.context() as patched:
            patched.setattr(Database, "_open", _fails)
            with pytest.raises(RuntimeError, match="no thread"):
                await outbox.put(message("раз"))
        async with asyncio.timeout(2):
            await outbox.put(message("два"))


def _fails(_: Database) -> None:
    raise RuntimeError("can't start new thread: no thread")
