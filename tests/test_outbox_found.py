"""What `python -m benchmarks crash` has found, as small as it gets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, update

from tests.helpers import texts
from yamarket_chat import Pending
from yamarket_chat.outbox import Outbox, OutboxMessage, lease
from yamarket_chat.outbox.courier import Courier
from yamarket_chat.outbox.locks import Lock
from yamarket_chat.outbox.schema import messages
from yamarket_chat.sandbox import Sandbox


async def test_message_that_makes_way_before_its_task_began_is_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled before its first step runs nothing, and cannot tidy up."""
    submit = Courier._submit
    gave_way: list[int] = []

    def submit_and_make_way(self: Courier, row: Any, kind: Any) -> None:
        submit(self, row, kind)
        if not gave_way:
            gave_way.append(row.number)
            row.preempted = True
            row.task.cancel()

    monkeypatch.setattr(Courier, "_submit", submit_and_make_way)
    async with Sandbox() as market, Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        number = await outbox.put(OutboxMessage(market.business_id, 17, "Привет", bulk=True))
        keys = {market.business_id: market.api_key}
        async with outbox.delivering(keys, base_url=market.url):
            await outbox.result(number, timeout=60)
    assert gave_way == [number]


def marked(business_id: int, numbers: Sequence[int]) -> Callable[[Connection], None]:
    """Return what writes the marks of a dead process, of one message each to the chats from 1."""

    def mark(connection: Connection) -> None:
        pending = Pending(business_id=business_id, chat_id=1, requests=1, seen="")
        values: dict[str, Any] = {
            "state": "leaving",
            "due_at": None,
            "request": 1,
            "epoch": 0,
            "timeout": 5.0,
            "settle_after": 10.0,
        }
        for chat, number in enumerate(numbers, 1):
            values["pending"] = msgspec.json.encode(
                msgspec.structs.replace(pending, chat_id=chat)
            ).decode()
            row = messages.c.number == number
            connection.execute(update(messages).where(row).values(values))

    return mark


async def test_first_request_of_a_courier_counts_what_is_under_way_of_the_one_before(
    tmp_path: Path,
) -> None:
    """It reads the Market's clock first, while four requests of a dead process go on."""
    async with Sandbox() as market, Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        business_id = market.business_id
        numbers = await outbox.put_many(
            OutboxMessage(business_id, chat, "Привет") for chat in range(1, 5)
        )
        await outbox._database.write(marked(business_id, numbers))
        keys = {business_id: market.api_key}
        with market.other_programs_hold(4):
            delivering = outbox.delivering(keys, base_url=market.url)
            await delivering.__aenter__()
            await asyncio.sleep(10)
        for number in numbers:
            await outbox.result(number, timeout=120)
        await delivering.__aexit__(None, None, None)
        assert market.refused == 0
        assert [texts(market, chat) for chat in range(1, 5)] == [["Привет"]] * 4


async def test_marks_of_the_courier_before_that_are_committed_late_count_as_well(
    tmp_path: Path,
) -> None:
    async with Sandbox() as market, Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        business_id = market.business_id
        not_yet = datetime.now(UTC) + timedelta(days=1)
        numbers = await outbox.put_many(
            OutboxMessage(business_id, chat, "Привет", not_before=not_yet) for chat in range(1, 5)
        )
        async with outbox.delivering({business_id: market.api_key}, base_url=market.url):
            await outbox.result(
                await outbox.put(OutboxMessage(business_id, 5, "Раньше")), timeout=10
            )
            await outbox._database.write(marked(business_id, numbers))
            await asyncio.sleep(1)
            with market.other_programs_hold(4):
                await outbox.put(OutboxMessage(business_id, 6, "Потом"))
                await asyncio.sleep(5)
            for number in numbers:
                await outbox.result(number, timeout=120)
        assert market.refused == 0
        assert [texts(market, chat) for chat in range(1, 5)] == [["Привет"]] * 4


async def test_delivery_that_is_cancelled_twice_ends_all_the_same(tmp_path: Path) -> None:
    """Found by the simulation: its worker beat for ever, and kept its businesses from others."""
    async with Sandbox() as market, Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        before = asyncio.all_tasks()
        keys = {market.business_id: market.api_key}
        delivery = asyncio.create_task(outbox.deliver(keys, base_url=market.url))
        await asyncio.sleep(1)
        while not delivery.done():
            delivery.cancel()
            await asyncio.sleep(0)
        await asyncio.sleep(1)
        assert asyncio.all_tasks() <= before
        number = await outbox.put(OutboxMessage(market.business_id, 17, "Привет"))
        async with outbox.delivering(keys, base_url=market.url):
            await outbox.result(number, timeout=10)


async def test_start_that_is_cancelled_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    class Slow(Lock):
        def __init__(self, database: str) -> None:
            begun.set()
            time.sleep(0.05)
            super().__init__(database)

    monkeypatch.setattr(lease, "Lock", Slow)
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        delivery = asyncio.create_task(outbox.deliver({12345: "key"}))
        while not begun.is_set():
            await asyncio.sleep(0)
        delivery.cancel()
        await asyncio.wait({delivery})
    await asyncio.sleep(1)  # the thread has ended
    assert not list(tmp_path.glob("*-worker-*"))
