"""An outbox that is closed while the same program delivers: `close` says a later call opens it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.shops import Shop, message
from yamarket_chat.outbox.watching import LOOKS


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)
    monkeypatch.setitem(LOOKS, "postgresql", 1.0)


@pytest.fixture
async def shop(database_url: Any) -> AsyncIterator[Shop]:
    async with Shop.open(database_url) as shop:
        yield shop


async def test_put_beside_a_close_puts(shop: Shop) -> None:
    closing = asyncio.create_task(shop.outbox.close())
    await asyncio.sleep(0)
    number = await shop.put(message("раз"))
    await closing
    assert (await shop.got(number)).text == "раз"


async def test_close_leaves_no_business_without_a_courier(shop: Shop) -> None:
    async with shop.delivering():
        numbers = [await shop.put(message("раз"))]
        async with shop.outbox:  # as a handler of a web server may do
            numbers.append(await shop.put(message("два")))
        numbers.append(await shop.put(message("три", 18)))
        for number in numbers:
            await shop.outbox.result(number, timeout=300)
