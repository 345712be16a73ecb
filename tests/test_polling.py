"""The list of chats that a bot and `watch` go through, again and again."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any

import pytest

from tests.helpers import now, session_of
from yamarket_chat import ConnectionFailedError, Limits, Rate, Retry
from yamarket_chat.bot.polling import Polling
from yamarket_chat.models import Chat
from yamarket_chat.sandbox import Sandbox, api, wire


class Listener:
    def __init__(self) -> None:
        self.found: list[int] = []
        self.swept: list[tuple[int, float]] = []

    async def find(self, chats: list[Chat]) -> None:
        self.found += [chat.chat_id for chat in chats]

    async def sweep(self, chats: int, seconds: float) -> None:
        self.swept.append((chats, round(seconds)))


async def test_a_sweep_goes_on_where_an_outage_has_interrupted_it() -> None:
    async with Sandbox() as market:
        for chat_id in range(1, 101):
            market.shop_says(chat_id, "hello")
        session, listener = session_of(market, retry=Retry(give_up_after=5)), Listener()
        async with session:
            polling = Polling(session, Limits().chats, 36, listener.find, listener.sweep)
            with suppress(TimeoutError):
                async with asyncio.timeout(9):  # two pages
                    await polling.run()
            await market.go_down()
            try:
                await polling.run()
            except ConnectionFailedError:
                pass
            else:
                raise AssertionError("the Market was down")
            await market.come_back()
            with suppress(TimeoutError):
                async with asyncio.timeout(70):
                    await polling.run()
        assert listener.found[:100] == [*range(1, 101)]
        assert {chats for chats, _ in listener.swept} == {100}


async def test_a_sweep_reports_how_late_a_message_may_be_found() -> None:
    async with Sandbox() as market:
        for chat_id in range(1, 101):
            market.shop_says(chat_id, "hello")
        listener = Listener()
        async with session_of(market) as session:
            polling = Polling(session, Limits().chats, 3600, listener.find, listener.sweep)
            with suppress(TimeoutError):
                async with asyncio.timeout(120):
                    await polling.run()
        # A page each 3.6 s, and the first one again after the last.
        assert set(listener.swept) == {(100, 18)}


async def test_looks_and_sweep_together_use_a_fifth_of_the_limit() -> None:
    limit = Rate(5000, per=3600)
    for waiting, every in ((1, 1), (30, 1), (30, 60)):
        async with Sandbox() as market:
            for chat_id in range(1, 101):
                market.buyer_says(chat_id, "hello")
                if chat_id > waiting:
                    market.shop_says(chat_id, "hello")
            listener = Listener()
            async with session_of(market) as session:
                polling = Polling(session, limit, every, listener.find, listener.sweep)
                began = now()
                with suppress(TimeoutError):
                    async with asyncio.timeout(180):
                        await polling.run()
                took = now() - began
            at_once = -(-waiting // 20)
            assert market.requests("chats") - at_once <= took / 3.6
            assert market.requests("chats") > took / 3.6 * 0.85
            assert listener.swept


async def test_chats_in_an_undocumented_form_are_counted_and_named_once_an_hour(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    odd = True
    encoded = api._ok

    def answer(result: Any) -> bytes:
        body = encoded(result)
        if not odd or not isinstance(result, wire.ChatPage):
            return body
        page = json.loads(body)
        for chat in page["result"]["chats"]:
            if chat["chatId"] in (2, 3):
                chat["updatedAt"] = None
        return json.dumps(page).encode()

    monkeypatch.setattr(api, "_ok", answer)
    async with Sandbox() as market:
        for chat_id in (1, 2):
            market.buyer_says(chat_id, "hello")
        market.shop_says(3, "hello")
        listener = Listener()
        async with session_of(market) as session:
            polling = Polling(session, Rate(500, per=3600), 60, listener.find, listener.sweep)
            for seconds, is_odd, lines in ((3000, True, 2), (1500, True, 4), (300, False, 4)):
                odd = is_odd
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await polling.run()
                assert len(caplog.records) == lines
    assert set(listener.found) == {1, 2, 3}
    assert {chats for chats, _ in listener.swept} == {3}
    waiting, every = (record.getMessage() for record in caplog.records[:2])
    assert "the chats that wait: the Market sent 1 " in waiting
    assert waiting.endswith("Ids: 2")
    assert "all chats: the Market sent 2 " in every
    assert every.endswith("Ids: 2, 3")
