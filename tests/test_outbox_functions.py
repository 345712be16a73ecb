"""The functions that a program passes to a delivery, `keys` and `on_failure`, whatever they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests import shops
from tests.shops import BUSINESS, Shop, message
from yamarket_chat import InvalidArgumentError
from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import OutboxEntry
from yamarket_chat.sandbox import Fault

fewer_looks = shops.fewer_looks
shop = shops.small


def _refuses(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )


async def _awaits_what_somebody_cancelled() -> None:
    task = asyncio.create_task(asyncio.sleep(1))
    task.cancel()
    await task


# keys


async def test_keys_that_awaits_a_cancelled_task_is_asked_again(shop: Shop) -> None:
    calls = 0

    async def keys(business_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await _awaits_what_somebody_cancelled()
        return shop.market.api_key

    number = await shop.put(message("раз"))
    async with shop.delivering(keys=keys):
        await shop.outbox.result(number, timeout=300)


async def test_keys_of_a_paused_business_that_awaits_a_cancelled_task_is_asked_again(
    shop: Shop,
) -> None:
    calls, key = 0, shop.market.api_key

    async def keys(business_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            await _awaits_what_somebody_cancelled()
        return shop.market.api_key

    async with shop.delivering(keys=keys):
        await shop.outbox.result(await shop.put(message("раз")), timeout=300)
        shop.market.faults = lambda request: Fault("status", status=401) if calls < 3 else None
        await shop.outbox.result(await shop.put(message("два")), timeout=600)
    assert calls == 3
    assert shop.market.api_key == key


async def test_keys_that_never_returns_is_said_and_asked_again(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def keys(business_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.get_running_loop().create_future()
        return shop.market.api_key

    number = await shop.put(message("раз"))
    async with shop.delivering(keys=keys):
        await asyncio.sleep(60.5)
        paused = (await shop.outbox.status()).paused
        assert "keys() did not return within 60 s" in paused[BUSINESS]
        assert "keys() did not return within 60 s" in caplog.text
        await shop.outbox.result(number, timeout=300)
    assert calls == 2


async def test_timeout_within_keys_is_said_as_its_error(shop: Shop) -> None:
    async def keys(business_id: int) -> str:
        raise TimeoutError

    await shop.put(message("раз"))
    async with shop.delivering(keys=keys):
        await asyncio.sleep(20)
        assert "keys() raised TimeoutError" in (await shop.outbox.status()).paused[BUSINESS]


async def test_keys_that_is_not_async_is_said(shop: Shop) -> None:
    await shop.put(message("раз"))
    async with shop.delivering(keys=lambda business_id: shop.market.api_key):
        await asyncio.sleep(20)
        assert "write `async def`" in (await shop.outbox.status()).paused[BUSINESS]


async def test_delivery_ends_while_keys_hangs(shop: Shop) -> None:
    ended = asked = False

    async def keys(business_id: int) -> str:
        nonlocal ended, asked
        asked = True
        try:
            return str(await asyncio.get_running_loop().create_future())
        finally:
            ended = True

    await shop.put(message("раз"))
    async with shop.delivering(keys=keys):
        await asyncio.sleep(20)
        assert asked
        assert not ended
    assert ended


# on_failure


async def test_on_failure_that_awaits_a_cancelled_task_is_called_again(shop: Shop) -> None:
    _refuses(shop)
    told: list[int] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)
        if len(told) == 1:
            await _awaits_what_somebody_cancelled()

    first = await shop.put(message("раз"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(20)
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
        await asyncio.sleep(60)
    assert (await shop.got(first)).state == "refused"
    assert told == [first, first]


async def test_failure_is_told_once_if_on_failure_returns(shop: Shop) -> None:
    _refuses(shop)
    told: list[int] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append(entry.number)

    first = await shop.put(message("раз"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(20)
    assert told == [first]


async def test_on_failure_that_does_not_return_is_said(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    _refuses(shop)
    ended = False

    async def failed(entry: OutboxEntry) -> None:
        nonlocal ended
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended = True

    await shop.put(message("раз"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(65)
        assert not ended
    assert ended
    assert "on_failure has not returned for 60 s" in caplog.text


async def test_on_failure_that_is_not_async_is_called_once_and_said(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    _refuses(shop)
    told: list[OutboxEntry] = []
    await shop.put(message("раз"))
    async with shop.delivering(on_failure=told.append):
        await asyncio.sleep(20)
    assert len(told) == 1
    assert "write `async def`" in caplog.text


async def test_on_failure_of_a_bot_that_is_not_async_is_called_once(shop: Shop) -> None:
    _refuses(shop)
    told: list[OutboxEntry] = []
    keys = {BUSINESS: shop.market.api_key}
    bot = Bot(shop.outbox, keys, on_failure=told.append, base_url=shop.market.url)  # type: ignore[arg-type]

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        """Answer nothing."""

    await shop.put(message("раз"))
    async with bot.running():
        await asyncio.sleep(20)
    assert len(told) == 1


@pytest.mark.parametrize("name", ["keys", "on_failure"])
async def test_function_with_a_yield_is_refused(shop: Shop, name: str) -> None:
    async def function(_: Any) -> AsyncIterator[str]:
        yield "key"

    options: dict[str, Any] = {name: function}
    with pytest.raises(InvalidArgumentError, match=f"{name} is an async function"):
        async with shop.delivering(**options):
            pass


async def test_on_failure_that_is_no_function_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidArgumentError, match="on_failure is an async function"):
        async with shop.delivering(on_failure="failed"):
            pass
