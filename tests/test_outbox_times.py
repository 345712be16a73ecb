"""Messages whose time is over, and which clock an outbox goes by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, select

from tests.helpers import now
from yamarket_chat.outbox import Outbox, OutboxEntry, OutboxMessage, marks, rows
from yamarket_chat.outbox.schema import leases
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault, Sandbox
from yamarket_chat.system import wall_time

BUSINESS = 12345


def market_time(seconds: float) -> datetime:
    """The Market's clock in so many seconds: the sandbox begins with the wall clock."""
    wall = datetime.fromtimestamp(wall_time(asyncio.get_running_loop()), UTC)
    return wall + timedelta(seconds=seconds)


@pytest.fixture
async def market() -> AsyncIterator[Sandbox]:
    async with Sandbox(business_id=BUSINESS) as market:
        yield market


async def test_each_message_whose_time_is_over_is_logged_and_told_at_once(
    database_url: Any,
    market: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for dialect in LOOKS:
        monkeypatch.setitem(LOOKS, dialect, 1.0)
    monkeypatch.setattr(marks, "PIECE", 2)  # more than that are not ended in one transaction
    told: list[tuple[int, float]] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append((entry.number, now() - began))

    caplog.set_level(logging.WARNING, "yamarket_chat")
    async with Outbox(database_url) as outbox:
        await outbox.create()
        keys = {BUSINESS: market.api_key}
        async with outbox.delivering(keys, base_url=market.url, on_failure=failed):
            await asyncio.sleep(6)
            began = now()
            numbers = await outbox.put_many(
                OutboxMessage(
                    BUSINESS, 17, "Позвоните нам", not_before=market_time(0.5), not_after=at
                )
                for at in [market_time(0.6)] * 5
            )
            await asyncio.sleep(4)
    assert sorted(number for number, _ in told) == list(numbers)
    assert all(at < 3.5 for _, at in told)
    for number in numbers:
        assert caplog.messages.count(f"business {BUSINESS}: message {number} is expired") == 1


async def test_ended_at_is_the_markets_time_of_all_that_a_delivery_has_ended(
    tmp_path: Any, market: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = int(market_time(-3600).timestamp() * 1e9)
    monkeypatch.setattr(rows, "time", SimpleNamespace(time_ns=lambda: behind))
    market.faults = lambda request: (
        Fault("status", status=404) if request.operation_number == 1 else None
    )
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        for text, at in (("раз", None), ("два", None), ("три", market_time(-5)), ("четыре", None)):
            await outbox.put(OutboxMessage(BUSINESS, 17, text, not_after=at))
        assert await outbox.cancel(4)
        async with outbox.delivering({BUSINESS: market.api_key}, base_url=market.url):
            await asyncio.sleep(10)
        ended = {
            entry.state: round((market_time(0) - entry.ended_at).total_seconds(), -2)
            async for entry in outbox.entries()
            if entry.ended_at is not None
        }
    assert ended == {"refused": 0, "delivered": 0, "expired": 0, "cancelled": 3600}


async def test_business_is_paused_since_the_first_refusal(tmp_path: Any, market: Sandbox) -> None:
    """It is tried each minute whether the key is still wrong."""
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        since = set()
        async with outbox.delivering({BUSINESS: market.api_key}, base_url=market.url):
            await outbox.result(await outbox.put(OutboxMessage(BUSINESS, 17, "раз")), timeout=60)
            market.api_key = "ACMA:new:key"
            await outbox.put(OutboxMessage(BUSINESS, 17, "два"))
            await asyncio.sleep(10)
            for _ in range(3):
                await asyncio.sleep(60)
                since.update(await outbox._database.read(_paused_at))
    assert len(since) == 1
    assert None not in since


def _paused_at(connection: Connection) -> list[int | None]:
    return list(connection.scalars(select(leases.c.paused_at)))
