"""What the tests of the bot share: a shop with a bot, on the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from tests import shops
from tests.shops import BUSINESS as BUSINESS
from yamarket_chat import Limits, Rate
from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.notifications import ChatMessageSent
from yamarket_chat.outbox import Outbox, database, feed, lease, telling
from yamarket_chat.outbox.schema import bot_chats, bot_hints
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Sandbox


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look seldom: each look takes real time. What comes on the same loop is heard at once."""
    for dialect in LOOKS:
        monkeypatch.setitem(LOOKS, dialect, 5.0)
    monkeypatch.setattr(database, "PATIENCE", 60.0)  # real seconds: a busy disk may take some
    monkeypatch.setattr(feed, "TIMES", 60.0)
    monkeypatch.setattr(telling, "LOOK", 60.0)
    monkeypatch.setattr(lease, "LOOK", 20.0)
    monkeypatch.setattr(lease, "UNSETTLED", 60.0)


@pytest.fixture
async def shop(database_url: Any) -> AsyncIterator[Shop]:
    async with Shop.open(database_url) as shop:
        yield shop


@pytest.fixture
async def small(tmp_path: Any) -> AsyncIterator[Shop]:
    """The same on SQLite alone: for what does not depend on the database."""
    async with Shop.open(f"sqlite:///{tmp_path}/outbox.db") as shop:
        yield shop


class Shop(shops.Shop):
    """A shop, and what a bot's handler was called with."""

    def __init__(self, outbox: Outbox, market: Sandbox) -> None:
        super().__init__(outbox, market)
        self.seen: list[str] = []
        self.told: list[tuple[str, Exception]] = []

    def bot(self, **options: Any) -> Bot:
        """A bot that answers each message with "re: " and its text, and notes what it saw."""
        options.setdefault("keys", {BUSINESS: self.market.api_key})
        options.setdefault("lease", 240.0)
        options.setdefault("limits", Limits(chats=Rate(1500, per=3600)))  # a short sweep costs less
        bot = Bot(self.outbox, base_url=self.market.url, **options)

        @bot.message
        async def answer(message: BuyerMessage) -> None:
            self.seen.append(message.text)
            await message.reply(f"re: {message.text}")

        @bot.error
        async def failed(message: BuyerMessage, error: Exception) -> None:
            self.told.append((message.text, error))

        return bot

    def running(self, **options: Any) -> AbstractAsyncContextManager[None]:
        return self.bot(**options).running()

    def says(self, text: str, chat_id: int = 17) -> int:
        return self.market.buyer_says(chat_id, text).message_id

    def answers(self, chat_id: int = 17) -> list[str | None]:
        """What the shop has said in a chat."""
        return [row.text for row in self.market.messages(chat_id) if row.sender == "PARTNER"]

    async def until(self, condition: Callable[[], object], within: float = 600.0) -> None:
        """Let virtual time pass until something is so."""
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(1)

    async def answered(self, *texts: str, chat_id: int = 17, within: float = 600.0) -> None:
        """Wait for these answers, and see that nothing else comes."""
        expected = [f"re: {text}" for text in texts]
        await self.until(lambda: len(self.answers(chat_id)) >= len(expected), within)
        assert self.answers(chat_id) == expected

    async def cursor(self, chat_id: int = 17) -> Any:
        """The row of a chat."""

        def read(connection: Connection) -> Any:
            found = select(bot_chats).where(bot_chats.c.chat_id == chat_id)
            return connection.execute(found).first()

        return await self.outbox._database.read(read)

    async def hints(self) -> int:
        """How many notifications wait to be followed."""

        def read(connection: Connection) -> Any:
            return connection.scalar(select(func.count()).select_from(bot_hints))

        return int(await self.outbox._database.read(read))


def told_of(message_id: int, chat_id: int = 17, business_id: int = BUSINESS) -> ChatMessageSent:
    """What the Market's notification of a message becomes."""
    return ChatMessageSent(
        business_id=business_id,
        chat_id=chat_id,
        message_id=message_id,
        sent_at=datetime(2026, 11, 27, tzinfo=UTC),
    )
