"""A function of the program's that raises CancelledError, or works on while its message moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.shops import Shop, message
from yamarket_chat.outbox import OutboxEntry
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)
    monkeypatch.setitem(LOOKS, "postgresql", 1.0)


@pytest.fixture
async def shop(tmp_path: Any) -> AsyncIterator[Shop]:
    async with Shop.open(f"sqlite:///{tmp_path}/outbox.db") as shop:
        yield shop


def _refuses(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )


async def test_keys_that_raises_cancelled_error_is_asked_again(shop: Shop) -> None:
    """As it does if it awaits a task of the program's that somebody has cancelled."""
    calls = 0

    async def keys(business_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return shop.market.api_key

    number = await shop.put(message("раз"))
    async with shop.delivering(keys=keys):
        await shop.outbox.result(number, timeout=300)


async def test_on_failure_that_raises_cancelled_error_is_called_again(shop: Shop) -> None:
    _refuses(shop)
    told: list[int] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)
        if len(told) == 1:
            raise asyncio.CancelledError

    first = await shop.put(message("раз"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(200)
    assert told == [first, first]


async def test_failure_that_comes_while_on_failure_is_at_work_is_told_as_well(shop: Shop) -> None:
    """It sends the message again, and does something else: the second refusal comes meanwhile."""
    _refuses(shop)
    told: list[int] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)
        if len(told) == 1:
            assert await shop.outbox.retry(entry.number)
            await asyncio.sleep(30)

    first = await shop.put(message("раз"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(200)
    assert (await shop.got(first)).state == "refused"
    assert told == [first, first]


async def test_failures_are_told_after_a_defect(shop: Shop) -> None:
    """Here the outbox was being closed as the handler returned. All else goes on after that."""
    _refuses(shop)
    told: list[int] = []
    closing: list[asyncio.Task[None]] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)
        if len(told) == 1:
            closing.append(asyncio.create_task(shop.outbox.close()))
            await asyncio.sleep(0)

    first = await shop.put(message("раз"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(100)
        second = await shop.put(message("два", 18))
        await asyncio.sleep(200)
    assert set(told) == {first, second}


async def test_keys_that_never_returns_is_said(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOOKS, "sqlite", 5.0)

    async def keys(business_id: int) -> str:
        return str(await asyncio.get_running_loop().create_future())

    await shop.put(message("раз"))
    async with shop.delivering(keys=keys):
        await asyncio.sleep(600)
        assert (await shop.outbox.status()).paused or caplog.text
