"""Several processes with a bot: what one gives to another, and bots that may not be."""

from __future__ import annotations

import asyncio

from tests import bots
from tests.bots import BUSINESS, Shop
from yamarket_chat.bot import BuyerMessage

fewer_looks, shop, small = bots.fewer_looks, bots.shop, bots.small


async def test_a_slow_handler_does_not_hold_up_a_hand_over(small: Shop) -> None:
    """It gets 30 s, and runs again at the worker that goes on. Its try is given back."""
    keys = {BUSINESS: small.market.api_key}
    bot, began = small.bot(handler_timeout=900.0, keys=keys, lease=60.0), asyncio.Event()

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        began.set()
        await asyncio.sleep(800)
        await message.reply("zu spät")

    async with bot.running():
        small.says("раз")
        await began.wait()
        async with small.running(lease=60.0):
            keys.clear()  # this process serves it no longer
            await asyncio.sleep(20)
            assert small.seen == []
            small.says("два", 18)
            await small.answered("раз", within=60)
            await small.answered("два", chat_id=18, within=30)
            assert (await small.cursor()).tries == 0
            await asyncio.sleep(900)
    assert small.answers() == ["re: раз"]
    assert sorted(small.seen) == ["два", "раз"]
