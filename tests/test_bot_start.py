"""Where a bot begins with `start="waiting"`: behind the shop's last message, if the chat waited."""

from __future__ import annotations

import asyncio

from tests import bots
from tests.bots import Shop, told_of
from yamarket_chat.sandbox import Fault, RequestInfo

fewer_looks, shop, small = bots.fewer_looks, bots.shop, bots.small

SWEEP = 60.0
"""Seconds after which all chats were listed."""


async def _thanks(shop: Shop, *chat_ids: int) -> None:
    """A buyer has written the last message, and nobody is to answer it."""
    for chat_id in chat_ids:
        shop.market.shop_says(chat_id, "Заказ отправлен")
    await asyncio.sleep(60)
    for chat_id in chat_ids:
        shop.says("Спасибо!", chat_id)
        shop.market.set_chat(chat_id, status="FINISHED")


async def test_old_messages_of_a_chat_that_did_not_wait_are_not_answered_when_it_changes(
    small: Shop,
) -> None:
    await _thanks(small, 17, 18, 19)
    await asyncio.sleep(600)
    bot = small.bot(start="waiting")
    async with bot.running():
        await asyncio.sleep(SWEEP)
        small.says("Где чек?")
        small.market.shop_says(18, "Оцените нас")
        await bot.hear(told_of(small.says("Где он?", 19), 19))
        await asyncio.sleep(SWEEP)
    assert sorted(small.seen) == ["Где он?", "Где чек?"]


async def test_chat_that_waited_is_answered_from_there_though_it_has_changed_before_a_look(
    shop: Shop,
) -> None:
    """The first process lists all chats and can read none, and the buyer loses patience."""
    shop.says("Где заказ?")
    await asyncio.sleep(600)
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.operation == "history" else None
    )
    async with shop.running(start="waiting"):
        await asyncio.sleep(SWEEP)
    (status,) = await shop.bot().status()
    assert status.chats == 1
    shop.says("Алло?")
    shop.market.faults = None
    async with shop.running(start="waiting"):
        await shop.answered("Где заказ?", "Алло?")


async def test_chat_that_waited_is_answered_from_there_if_the_market_tells_of_it_first(
    small: Shop,
) -> None:
    def no_chats(request: RequestInfo) -> Fault | None:
        return Fault("status", status=503) if request.operation == "chats" else None

    await _thanks(small, 18)
    small.says("Где заказ?")
    await asyncio.sleep(600)
    small.market.faults = no_chats
    bot = small.bot(start="waiting")
    async with bot.running():
        await asyncio.sleep(1)
        await bot.hear(told_of(small.says("Алло?")))
        await bot.hear(told_of(small.market.shop_says(18, "Оцените нас").message_id, 18))
        await small.answered("Где заказ?", "Алло?", within=60)
        await asyncio.sleep(SWEEP)
    assert small.answers(18) == ["Заказ отправлен", "Оцените нас"]


async def test_message_in_the_second_of_the_shops_last_one_is_answered(small: Shop) -> None:
    small.market.shop_says(17, "Заказ отправлен")
    small.says("Когда он будет?")
    await asyncio.sleep(600)
    async with small.running(start="waiting"):
        await small.until(lambda: small.seen)
    first, second = small.market.messages(17)[:2]
    assert first.created_at == second.created_at
    assert small.seen == ["Когда он будет?"]
