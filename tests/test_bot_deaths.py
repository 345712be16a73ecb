"""An error handler that kills its process each time is given up, and nobody else pays for it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import bots
from tests.bots import Shop
from yamarket_chat.bot import BuyerMessage
from yamarket_chat.bot.steps import TRIES
from yamarket_chat.outbox import Outbox
from yamarket_chat.sandbox import Fault

fewer_looks, small = bots.fewer_looks, bots.small


class Deaths:
    """Bots one after another. Each begins with the database as it was when the last one died."""

    def __init__(self, small: Shop, folder: Path) -> None:
        self.small = small
        self.path = folder / "outbox.db"
        self.count = 0
        self.told: list[str] = []
        self.dead = asyncio.Event()
        self._faults: Any = None  # the Market's, as long as one is dead

    def die(self) -> None:
        """Copy the database: what `kill -9` would leave of it."""
        self.count += 1
        copy = self.path.with_name(f"after-{self.count}.db")
        with closing(sqlite3.connect(self.path)) as one, closing(sqlite3.connect(copy)) as other:
            one.backup(other)
            other.execute("DELETE FROM yamarket_outbox_workers")  # as if it were missed already
            other.commit()
        self.path = copy
        # What is left of it runs on until the loop ends it, and must not reach the Market.
        market = self.small.market
        self._faults, market.faults = market.faults, lambda _: Fault("reset", when="before")
        self.dead.set()

    async def life(self, within: float, **options: Any) -> bool:
        """Run a bot until it dies. Returns whether it did."""
        if self.dead.is_set():
            self.dead.clear()
            self.small.market.faults = self._faults
        self.small.outbox = Outbox(f"sqlite:///{self.path}")
        bot = self.small.bot(**options)

        @bot.error
        async def failed(message: BuyerMessage, error: Exception) -> None:
            self.told.append(message.text)
            if message.text == "tödlich":
                self.die()
                await asyncio.sleep(100_000)
            await message.reply(f"error: {message.text}")

        async with self.small.outbox, bot.running():
            try:
                async with asyncio.timeout(within):
                    await self.dead.wait()
            except TimeoutError:
                return False
            return True  # what becomes of its database now does not concern the next one


@pytest.fixture
def deaths(small: Shop, tmp_path: Path) -> Deaths:
    return Deaths(small, tmp_path)


async def test_it_is_not_told_of_a_failed_reply_for_ever(
    deaths: Deaths, caplog: pytest.LogCaptureFixture
) -> None:
    small = deaths.small
    small.market.faults = lambda request: (
        Fault("status", status=404)
        if request.operation == "send_message" and request.chat_id in (17, 18)
        else None
    )
    small.says("tödlich")
    small.says("anderer", 18)
    lives = 0
    while await deaths.life(within=400):
        lives += 1
        assert lives <= TRIES
        small.says(f"neu {lives}", 19)
    assert lives == deaths.told.count("tödlich") == TRIES
    assert "anderer" in deaths.told
    assert {f"re: neu {n}" for n in range(1, TRIES + 1)} == set(small.answers(19))
    (said,) = [one for one in caplog.records if "not told again" in one.getMessage()]
    assert said.levelname == "ERROR"
    assert "chat 17" in said.getMessage()
    assert not await deaths.life(within=400)
    assert deaths.told.count("tödlich") == TRIES


async def test_it_is_not_told_of_a_message_for_ever(
    deaths: Deaths, caplog: pytest.LogCaptureFixture
) -> None:
    small = deaths.small
    assert not await deaths.life(within=60)
    small.says("tödlich")
    await asyncio.sleep(100)
    lives = 0
    while await deaths.life(within=90, max_age=90):
        lives += 1
        assert lives <= TRIES
        small.says(f"anderer {lives}", 18)
    assert lives == deaths.told.count("tödlich") == TRIES
    assert {str(one).partition(": ")[2] for one in small.answers(18)} == {
        f"anderer {n}" for n in range(1, TRIES + 1)
    }
    (said,) = [one for one in caplog.records if "given up" in one.getMessage()]
    assert said.levelname == "ERROR"
    assert "chat 17" in said.getMessage()


def _chat(small: Shop) -> Any:
    """What the sandbox stores of a chat."""
    return small.market._state.chat(17)


@pytest.mark.parametrize("gone", ["message", "chat"])
async def test_a_message_that_is_deleted_after_a_try_is_forgotten(small: Shop, gone: str) -> None:
    bot = small.bot()
    calls: list[str] = []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        calls.append(message.text)
        if message.text == "weg":
            raise ValueError

    async with bot.running():
        small.says("bleibt")
        small.says("weg")
        await small.until(lambda: "weg" in calls)
        if gone == "message":
            _chat(small).messages.pop()
        else:
            small.market.faults = lambda request: (
                Fault("status", status=404) if request.chat_id == 17 else None
            )
        await asyncio.sleep(60)
        assert (await bot.status())[0].trying == 0
        assert calls.count("weg") == 1
        before = small.market.requests("history")
    # And no later start looks at the chat again.
    async with small.running(every=100.0):
        await asyncio.sleep(60)
        if gone == "message":  # the list still shows the chat, in this test
            assert small.market.requests("history") == before
        small.market.faults = None
        small.says("neu")
        await small.until(lambda: "re: neu" in small.answers(), within=700)


async def test_a_message_that_a_history_does_not_show_for_a_while_keeps_its_tries(
    small: Shop,
) -> None:
    bot = small.bot()
    calls: list[str] = []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        calls.append(message.text)
        if len(calls) < 3:
            raise ValueError
        await message.reply("endlich")

    async with bot.running():
        small.says("da")
        await small.until(lambda: len(calls) == 2)
        state: Any = small.market._state
        chat, show = _chat(small), state.message
        hidden = chat.messages.copy()
        chat.messages.clear()
        state.message = lambda _, number: hidden[0] if number == hidden[0].message_id else None
        await asyncio.sleep(60)
        row = await small.cursor()
        assert (row.message_id, row.tries) == (hidden[0].message_id, 2)
        state.message = show
        chat.messages[:0] = hidden
        await small.until(lambda: small.answers())
    assert small.answers() == ["endlich"]


async def test_a_stop_while_it_is_told_does_not_count(deaths: Deaths) -> None:
    """It is told at least once, however often the bot is stopped meanwhile."""
    small = deaths.small
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    small.says("langsam")
    told = 0
    for _ in range(TRIES + 2):
        bot = small.bot()

        @bot.error
        async def failed(message: BuyerMessage, error: Exception) -> None:
            nonlocal told
            told += 1
            await asyncio.sleep(100_000)

        before = told
        async with bot.running():
            await small.until(lambda: told > before)  # noqa: B023
    assert told == TRIES + 2
