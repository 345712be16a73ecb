"""What `watch` finds, on the virtual clock. The command itself runs in test_cli_reading.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.helpers import now, session_of
from yamarket_chat.cli.waiting import response_timeout
from yamarket_chat.cli.watcher import Watcher
from yamarket_chat.limits import Limits
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox

FIFTH = Limits().chats.requests / 5


@asynccontextmanager
async def watching(market: Sandbox, every: float) -> AsyncIterator[list[tuple[int, str | None]]]:
    """Watch, and return what was shown."""
    shown: list[tuple[int, str | None]] = []
    async with session_of(market) as session, response_timeout(session, 900) as timer:
        watcher = Watcher(session, timer, lambda chat, row: shown.append((chat, row.message)))
        task = asyncio.create_task(watcher.run(every))
        await asyncio.sleep(3)
        yield shown
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.wait({task})


async def test_watch_finds_a_message_that_was_answered_before_the_next_look() -> None:
    async with Sandbox() as market:
        market.buyer_says(7, "answered before the start")
        market.shop_says(7, "yes")
        market.buyer_says(8, "waits since before the start")
        async with watching(market, every=15) as shown:
            market.buyer_says(7, "new")
            market.shop_says(7, "answered at once")
            market.buyer_says(9, "in a chat that is new")
            market.shop_says(9, "answered at once")
            await asyncio.sleep(60)
            assert sorted(shown) == [(7, "new"), (9, "in a chat that is new")]


async def test_watch_of_many_chats_shows_no_old_messages_and_keeps_to_a_fifth_of_the_limit() -> (
    None
):
    async with Sandbox() as market:
        for chat_id in range(1, 101):
            market.buyer_says(chat_id, "old")
            if chat_id > 30:
                market.shop_says(chat_id, "answer")
            await asyncio.sleep(5)
        requests, began = market.requests("chats"), now()
        async with watching(market, every=1) as shown:
            await asyncio.sleep(180)
            assert shown == []
            market.buyer_says(90, "new")
            market.shop_says(90, "answer")
            await asyncio.sleep(180)
            assert shown == [(90, "new")]
        at_start = 2
        used = market.requests("chats") - requests - at_start
        assert FIFTH * 0.8 < used / (now() - began) * 3600 <= FIFTH


async def test_watch_goes_on_if_the_list_of_all_chats_breaks_off() -> None:
    def faults(request: RequestInfo) -> Fault | None:
        return Fault("status", status=400) if request.number == 4 else None  # its third page

    async with Sandbox(faults=faults) as market:
        for chat_id in range(1, 61):
            market.buyer_says(chat_id, "old")
            market.shop_says(chat_id, "answer")
        async with watching(market, every=15) as shown:
            await asyncio.sleep(60)
            market.buyer_says(59, "new")
            market.shop_says(59, "answer")
            await asyncio.sleep(120)
            assert shown == [(59, "new")]
