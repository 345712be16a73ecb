"""What the tests of the outbox and of the bot share: an outbox and a Market.

A test file takes the fixtures by their names: `shop = shops.shop`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from yamarket_chat.outbox import Outbox, OutboxEntry, OutboxMessage
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Sandbox

BUSINESS = 12345


def message(text: str, chat_id: int = 17, **options: Any) -> OutboxMessage:
    return OutboxMessage(BUSINESS, chat_id, text, **options)


class Shop:
    """An outbox and a Market."""

    def __init__(self, outbox: Outbox, market: Sandbox) -> None:
        self.outbox = outbox
        self.market = market
        self.put = outbox.put

    @classmethod
    @asynccontextmanager
    async def open(cls, url: Any) -> AsyncIterator[Self]:
        """A shop on this database."""
        async with Sandbox(business_id=BUSINESS) as market, Outbox(url) as outbox:
            await outbox.create()
            yield cls(outbox, market)

    def delivering(self, **options: Any) -> AbstractAsyncContextManager[None]:
        keys = options.pop("keys", {BUSINESS: self.market.api_key})
        return self.outbox.delivering(keys, base_url=self.market.url, **options)

    async def got(self, number: int) -> OutboxEntry:
        entry = await self.outbox.get(number)
        assert entry is not None
        return entry


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    for dialect in LOOKS:
        monkeypatch.setitem(LOOKS, dialect, 1.0)


@pytest.fixture
async def shop(database_url: Any) -> AsyncIterator[Shop]:
    """A shop on each of the databases."""
    async with Shop.open(database_url) as shop:
        yield shop


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Shop]:
    """The same on SQLite alone: for what does not depend on the database."""
    async with Shop.open(f"sqlite:///{tmp_path}/outbox.db") as shop:
        yield shop
