"""Several processes with a bot: what one gives to another, and bots that may not be."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection, text

from tests import bots
from tests.bots import BUSINESS, Shop
from yamarket_chat import SessionClosedError
from yamarket_chat.bot import Bot, BotConflictError, BuyerMessage, runner

fewer_looks, shop, small = bots.fewer_looks, bots.shop, bots.small


async def test_a_slow_handler_does_not_hold_up_a_hand_over(small: Shop) -> None:
    """It gets 30 s, and runs again at the worker that goes on. Its try is given back."""
    keys = {BUSINESS: small.market.api_key}
    bot, began = small.bot(handler_timeout=900.0, keys=keys, lease=60.0), asyncio.Event()

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        began.set()
        await asyncio.sleep(90)
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
            await asyncio.sleep(100)
    assert small.answers() == ["re: раз"]
    assert sorted(small.seen) == ["два", "раз"]


async def _conflicts(*starting: Bot) -> list[str]:
    """Run bots that start in the same moment; return what those were told that are refused."""
    running = [asyncio.ensure_future(bot.run()) for bot in starting]
    await asyncio.sleep(45)
    refused = [one.exception() for one in running if one.done()]
    for one in running:
        one.cancel()
    await asyncio.wait(running)
    assert all(isinstance(error, BotConflictError) for error in refused)
    return [str(error) for error in refused]


async def test_of_two_bots_that_start_at_once_one_is_refused(shop: Shop) -> None:
    (said,) = await _conflicts(*(shop.bot(name=name, lease=30.0) for name in ("one", "two")))
    assert "has the bot 'one'" in said or "has the bot 'two'" in said


async def test_of_two_bots_with_some_common_businesses_one_is_refused(small: Shop) -> None:
    keys = ({BUSINESS: "key", 2: "key"}, {3: "key", 2: "key"}, {4: "key"})
    starting = [
        small.bot(name=f"bot-{number}", keys=some, lease=30.0) for number, some in enumerate(keys)
    ]
    (said,) = await _conflicts(*starting)
    assert "business 2 has the bot" in said


async def test_one_is_refused_also_if_a_worker_without_a_bot_holds_the_business(
    shop: Shop,
) -> None:
    url, key = shop.market.url, shop.market.api_key
    async with shop.outbox.delivering({BUSINESS: key}, base_url=url, lease=30.0):
        await asyncio.sleep(30)
        starting = [shop.bot(name=name, lease=30.0) for name in ("one", "two")]
        assert len(await _conflicts(*starting)) == 1


async def test_bots_of_one_name_that_start_at_once_share_the_businesses(small: Shop) -> None:
    keys = dict.fromkeys(range(BUSINESS, BUSINESS + 10), small.market.api_key)
    starting = [small.bot(keys=keys, lease=30.0) for _ in range(2)]
    async with starting[0].running(), starting[1].running():
        await asyncio.sleep(60)
        runners = [bot._runner for bot in starting]
        assert [len(one._businesses) for one in runners if one is not None] == [5, 5]


async def test_a_bot_that_stops_begins_with_no_other_business(small: Shop) -> None:
    """It may get one just then: that of a worker which has left."""
    bot = small.bot()
    async with bot.running():
        await small.until(lambda: bot._runner and bot._runner.business(BUSINESS))
        runner = bot._runner
        assert runner is not None
        grant = runner._businesses[BUSINESS].grant
        await runner.end(0.0)
        runner.granted(grant)
        small.says("да")
        await asyncio.sleep(60)
        assert small.seen == []


async def test_a_bot_that_came_back_too_late_says_so(
    small: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """It was taken for dead, and meanwhile another bot has begun with its business."""
    async with small.running(name="one", lease=30.0):
        await asyncio.sleep(30)

        def take(connection: Connection) -> None:
            for statement in (
                "UPDATE yamarket_outbox_workers SET token = 'other', bot = 'two'",
                "UPDATE yamarket_outbox_leases SET worker = 'other', epoch = epoch + 1",
            ):
                connection.execute(text(statement))

        def beat(connection: Connection) -> None:
            where = "WHERE bot = 'two'"
            connection.execute(text(f"UPDATE yamarket_outbox_workers SET beat = beat + 1 {where}"))  # noqa: S608

        await small.outbox._database.write(take)
        for _ in range(20):
            await small.outbox._database.write(beat)
            await asyncio.sleep(5)
    said = [one for one in caplog.records if "has the bot 'two'" in one.getMessage()]
    assert [one.levelname for one in said] == ["ERROR"]


async def test_a_hand_over_that_is_broken_off_leaves_no_connections(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is taken for dead while it waits for a handler that goes on for a moment."""
    monkeypatch.setattr(runner, "HAND_OVER", 1.0)
    bot, began = small.bot(), asyncio.Event()

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        began.set()
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(4)

    async with bot.running():
        small.says("да")
        await began.wait()
        assert bot._runner is not None
        business = bot._runner._businesses[BUSINESS]
        session = business.session()
        releasing = asyncio.create_task(bot._runner.release(business.grant))
        await asyncio.sleep(3)
        releasing.cancel()
        await asyncio.wait({releasing})
        with pytest.raises(SessionClosedError):
            await session.get_chat(17)


async def test_keys_that_awaits_a_cancelled_task_is_asked_again(small: Shop) -> None:
    calls = 0

    async def keys(business_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return small.market.api_key

    bot = small.bot(keys=keys)
    async with bot.running():
        await bot.hear(bots.told_of(small.says("да")))
        await small.answered("да", within=300)
