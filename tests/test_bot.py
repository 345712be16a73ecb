"""A bot: each message of a buyer is handled once, and answered once, however it is found."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests import bots
from tests.bots import BUSINESS, Shop, told_of
from yamarket_chat import InvalidArgumentError, Limits, Rate
from yamarket_chat.bot import Bot, BuyerMessage, cursor, inbox
from yamarket_chat.bot.business import Business
from yamarket_chat.bot.slots import Slots
from yamarket_chat.outbox import Outbox
from yamarket_chat.outbox.schema import bot_handled
from yamarket_chat.sandbox import Fault, Sandbox

fewer_looks, shop, small = bots.fewer_looks, bots.shop, bots.small


def shorter_hour(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Messages appear late within an hour, which is long."""
    monkeypatch.setattr(inbox, "HOUR", seconds * 1_000_000)
    monkeypatch.setattr(cursor, "HOUR", seconds * 1_000_000)


# What is found, and how


async def test_each_message_is_answered_once_in_order(shop: Shop) -> None:
    async with shop.running():
        for text_ in ("да", "да", "нет"):
            shop.says(text_)
        shop.says("другой", 18)
        await shop.answered("да", "да", "нет")
        await shop.answered("другой", chat_id=18)
        shop.says("ещё")
        await shop.answered("да", "да", "нет", "ещё")
        await asyncio.sleep(300)
    await shop.answered("да", "да", "нет", "ещё")
    assert shop.seen.count("да") == 2
    assert (await shop.cursor()).message_id is None


async def test_notification_is_answered_long_before_the_next_look(shop: Shop) -> None:
    bot = shop.bot(every=3600.0)
    async with bot.running():
        await asyncio.sleep(60)
        number = shop.says("Где заказ?")
        for _ in range(3):
            await bot.hear(told_of(number))
        await shop.answered("Где заказ?", within=5)
        await asyncio.sleep(60)
        await bot.hear(told_of(number))
        await asyncio.sleep(60)
        assert await shop.hints() == 0
    await shop.answered("Где заказ?")


async def test_notification_of_an_old_message_that_is_told_again_costs_one_look(
    small: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shorter_hour(monkeypatch, 20)
    bot = small.bot(every=3600.0, limits=Limits(chats=Rate(10, per=3600)))
    async with bot.running():
        await asyncio.sleep(60)
        old = small.says("раз")
        for text_ in ("два", "три"):
            await asyncio.sleep(60)
            await bot.hear(told_of(small.says(text_)))
            await small.until(lambda: small.seen[-1:] == [text_])  # noqa: B023
        await asyncio.sleep(60)
        before = small.market.requests("history")
        await bot.hear(told_of(old))
        await asyncio.sleep(700)
        assert small.market.requests("history") - before == 1
        assert await small.hints() == 0
    assert "does not show" not in caplog.text


async def test_notification_is_followed_by_another_process(shop: Shop) -> None:
    web = shop.bot(every=3600.0)  # it only hears
    async with shop.running(every=3600.0):
        await asyncio.sleep(60)
        await web.hear(told_of(shop.says("Где заказ?")))
        await shop.answered("Где заказ?", within=10)


async def test_a_row_that_shows_late_is_looked_for_without_haste(small: Shop) -> None:
    small.market._state._history_delay = 60
    bot = small.bot(every=3600.0)
    async with bot.running():
        await asyncio.sleep(60)
        before = small.market.requests("history")
        await bot.hear(told_of(small.says("Где заказ?")))
        await small.answered("Где заказ?", within=140)
        assert small.market.requests("history") - before < 25


async def test_a_row_that_shows_after_a_later_one_is_found(small: Shop) -> None:
    """The Market tells of both messages; the history shows the first one a minute late."""
    bot = small.bot(every=3600.0)
    async with bot.running():
        await asyncio.sleep(60)
        first, second = small.says("раз"), small.says("два")
        chat = small.market._state.existing_chat(17)
        assert chat is not None
        late = chat.messages.pop(0)
        await bot.hear(told_of(second))
        await bot.hear(told_of(first))
        await small.answered("два", within=60)
        await asyncio.sleep(60)
        chat.messages.insert(0, late)
        await small.until(lambda: len(small.answers()) == 2)
    assert small.answers() == ["re: два", "re: раз"]


async def test_message_that_shows_late_is_found_when_the_next_one_comes(small: Shop) -> None:
    """Nobody tells of it, and the chat does not change any more."""
    assert await _late_row(small) == ["re: два", "re: раз", "re: три"]


async def test_without_the_overlap_a_late_message_is_lost(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter_hour(monkeypatch, 0)
    assert await _late_row(small) == ["re: два", "re: три"]


async def _late_row(small: Shop) -> list[str | None]:
    async with small.running():
        await asyncio.sleep(60)
        small.says("раз")
        chat = small.market._state.existing_chat(17)
        assert chat is not None
        late = chat.messages.pop(0)
        await asyncio.sleep(3)
        small.says("два")
        await small.until(lambda: small.answers() == ["re: два"])
        await asyncio.sleep(300)
        chat.messages.insert(0, late)
        await asyncio.sleep(100)
        small.says("три")
        await small.until(lambda: "re: три" in small.answers())
        await asyncio.sleep(60)
    return small.answers()


@pytest.mark.parametrize(("order", "includes"), [("descending", False), ("shuffled", True)])
async def test_any_order_of_the_history_will_do(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, order: Any, includes: bool
) -> None:
    shorter_hour(monkeypatch, 20)
    path = f"sqlite:///{tmp_path}/outbox.db"
    async with (
        Sandbox(
            business_id=BUSINESS, history_order=order, history_includes_from=includes
        ) as market,
        Outbox(path) as outbox,
    ):
        await outbox.create()
        shop, said = Shop(outbox, market), []
        async with shop.running():
            for hour in range(3):
                await asyncio.sleep(30)
                said += [f"{hour} {n}" for n in range(3)]
                for text_ in said[-3:]:
                    shop.says(text_)
                await shop.answered(*said)


async def test_history_is_read_from_the_start_if_the_market_refuses_to_go_on(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter_hour(monkeypatch, 20)
    refuse = False
    asked: list[bytes] = []

    def faults(request: Any) -> Fault | None:
        if refuse and request.operation == "history":
            asked.append(b"")
            return Fault("status", status=400) if len(asked) % 2 else None
        return None

    small.market.faults = faults
    async with small.running():
        for hour in range(3):
            small.says(str(hour))
            await asyncio.sleep(60)
        assert (await small.cursor()).anchor is not None
        refuse = True
        small.says("3")
        await small.answered("0", "1", "2", "3")


async def test_a_message_that_a_person_has_answered_is_found_by_the_sweep(small: Shop) -> None:
    later: list[list[str | None]] = []
    bot = small.bot(every=1000.0)

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        later.append([row.message for row in message.later])

    async with bot.running():
        await asyncio.sleep(100)
        small.says("Где заказ?")
        small.market.shop_says(17, "В пути")
        await small.until(lambda: later, within=100)
        await asyncio.sleep(300)
    assert later == [["В пути"]]
    assert small.answers() == ["В пути"]
    (status,) = await bot.status()
    assert status.chats == 1
    assert status.found_within is not None


async def test_what_comes_while_a_handler_runs_is_found_soon(small: Shop) -> None:
    """It stands before the reply, so the chat does not wait for the shop."""
    bot = small.bot(every=3600.0, limits=Limits(chats=Rate(10, per=3600)))

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        await asyncio.sleep(10)
        await message.reply(f"re: {message.text}")

    async with bot.running():
        await asyncio.sleep(60)
        await bot.hear(told_of(small.says("раз")))
        await asyncio.sleep(5)
        small.says("два")
        await small.answered("раз", "два", within=60)


async def test_what_others_write_is_no_message(small: Shop) -> None:
    async with small.running():
        await asyncio.sleep(60)
        small.market.market_says(17, "Заказ передан в доставку")
        small.market.support_says(17, "Чем помочь?")
        small.market.shop_says(17, "Спасибо")
        await asyncio.sleep(600)
    assert small.seen == []


async def test_stickers_and_files_are_messages_that_may_have_no_text(small: Shop) -> None:
    bot, files = small.bot(), []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        files.append([await message.download(file) for file in message.files])
        await message.reply(f"{message.text!r} {len(message.files)}")

    async with bot.running():
        small.market.buyer_sends_sticker(17)
        small.market.buyer_says(17, b"photo")
        small.market.buyer_says(17, "чек", file=b"scan")
        await small.until(lambda: len(small.answers()) == 3)
    assert small.answers() == ["'' 1", "'' 1", "'чек' 1"]
    assert files[1:] == [[b"photo"], [b"scan"]]


async def test_arbitrage_and_finished_chats_are_answered_as_well(small: Shop) -> None:
    async with small.running():
        await asyncio.sleep(60)
        small.says("раз")
        small.market.set_chat(17, chat_type="ARBITRAGE", status="WAITING_FOR_ARBITER")
        small.says("два", 18)
        small.market.set_chat(18, status="FINISHED")
        await small.answered("раз")
        await small.answered("два", chat_id=18)


async def test_a_deleted_chat_is_no_trouble(small: Shop) -> None:
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.chat_id == 18 else None
    )
    bot = small.bot()
    async with bot.running():
        await bot.hear(told_of(small.says("weg", 18), 18))
        await asyncio.sleep(300)
        assert await small.hints() == 0
        small.says("да")
        await small.answered("да")


# Where it begins


@pytest.mark.parametrize("start", ["now", "waiting"])
async def test_where_a_bot_begins(shop: Shop, start: Any) -> None:
    shop.says("раньше")
    shop.market.shop_says(17, "Ответ")
    shop.says("ждёт", 18)
    shop.says("ждёт ещё", 18)
    await asyncio.sleep(600)
    async with shop.running(start=start):
        await asyncio.sleep(300)
        waited = ["ждёт", "ждёт ещё"] if start == "waiting" else []
        await shop.answered(*waited, chat_id=18)
        assert shop.answers(17) == ["Ответ"]
        shop.says("теперь", 18)
        await shop.answered(*waited, "теперь", chat_id=18)


async def test_now_is_when_it_was_first_run_also_if_it_died_before_its_first_look(
    shop: Shop,
) -> None:
    shop.says("раньше")
    await asyncio.sleep(600)
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.operation == "chats" else None
    )
    async with shop.running():
        await asyncio.sleep(30)
    assert len(await shop.bot().status()) == 1
    shop.market.faults = None
    shop.says("dazwischen", 18)
    await asyncio.sleep(7200)
    async with shop.running():
        await shop.answered("dazwischen", chat_id=18)
        await asyncio.sleep(300)
    assert shop.seen == ["dazwischen"]


async def test_bots_of_other_names_begin_anew(small: Shop) -> None:
    async with small.running(name="one"):
        small.says("да")
        await small.answered("да")
    await asyncio.sleep(100)
    async with small.running(name="two"):
        await asyncio.sleep(100)
        small.says("нет")
        await small.answered("да", "нет")


# The limits of reading


async def test_idle_bot_costs_a_request_a_look_and_the_sweep(small: Shop) -> None:
    for chat_id in range(1, 101):
        small.market.shop_says(chat_id, "Спасибо за заказ")
    await asyncio.sleep(600)
    async with small.running(limits=Limits()):
        await asyncio.sleep(300)
        before = len(small.market.arrivals)
        await asyncio.sleep(900)
        arrivals = [one.operation for one in small.market.arrivals[before:]]
        assert set(arrivals) == {"chats"}
        assert len(arrivals) <= 30 + 250
    (status,) = await small.bot().status()
    assert status.chats == 100
    assert status.found_within is not None
    assert status.found_within < 60


async def test_a_part_of_the_histories_is_left_to_settling(small: Shop) -> None:
    limits = Limits(history=Rate(20, per=600), chats=Rate(1500, per=3600))
    async with small.running(limits=limits):
        for chat_id in range(1, 41):
            small.says("да", chat_id)
        await asyncio.sleep(500)
        assert small.market.requests("history") == 16
        await asyncio.sleep(300)
        assert small.market.requests("history") == 32


async def test_a_broken_page_is_listed_again_in_a_while(small: Shop) -> None:
    down = True
    small.market.faults = lambda request: (
        Fault("status", status=500) if down and request.operation == "chats" else None
    )
    async with small.running():
        await asyncio.sleep(900)
        asked = small.market.requests("chats")
        assert asked < 150
        down = False
        small.says("да")
        await small.answered("да", within=120)


@pytest.mark.parametrize("trouble", ["revoked", "inactive", "locked"])
async def test_a_refused_key_is_asked_anew_each_minute(small: Shop, trouble: str) -> None:
    setattr(small.market, trouble, True)
    asked = []

    async def keys(business_id: int) -> str:
        asked.append(business_id)
        return small.market.api_key

    bot = small.bot(keys=keys)
    async with bot.running():
        await bot.hear(told_of(1))
        await asyncio.sleep(600)
        assert 5 <= len(asked) <= 15
        setattr(small.market, trouble, False)
        small.says("да")
        await small.answered("да", within=120)


async def test_a_chat_that_is_forbidden_does_not_hurry(small: Shop) -> None:
    small.market.faults = lambda request: (
        Fault("status", status=403) if request.chat_id == 18 else None
    )
    async with small.running():
        await asyncio.sleep(10)
        small.says("nein", 18)
        small.says("да")
        await small.answered("да")
        before = small.market.requests("history")
        await asyncio.sleep(1800)
        assert small.market.requests("history") - before < 15


# Businesses, names, arguments


async def test_function_of_keys_serves_what_the_market_tells_of(shop: Shop) -> None:
    async def keys(business_id: int) -> str | None:
        return shop.market.api_key if business_id == BUSINESS else None

    bot = shop.bot(keys=keys)
    async with bot.running():
        await asyncio.sleep(60)
        await bot.hear(told_of(shop.says("да")))
        await shop.answered("да", within=60)


async def test_a_mapping_ignores_other_businesses(small: Shop) -> None:
    bot = small.bot()
    await bot.hear(told_of(1, business_id=999))
    assert await small.hints() == 0


async def test_a_bot_that_runs_again_answers_the_market_again(small: Shop) -> None:
    """A test suite starts the same web application in each test."""
    bot = small.bot(networks=["127.0.0.0/8"])
    for _ in range(2):
        async with bot.running():
            body = b'{"notificationType": "PING"}'
            assert (await bot.receiver.reply(body, "127.0.0.1")).status == 200
            await bot.receiver.close()
            assert (await bot.receiver.reply(body, "127.0.0.1")).status == 503


async def test_arguments_are_checked(small: Shop) -> None:
    for wrong in (
        {"name": "мой бот"},
        {"name": "a:b"},
        {"every": 0.5},
        {"start": "later"},
        {"concurrency": 0},
        {"handler_timeout": 0},
        {"max_age": -1},
        {"networks": None},
        {"trusted_proxies": None},
        {"keys": 5},
        {"max_wait": 5},
    ):
        with pytest.raises(InvalidArgumentError):
            small.bot(**wrong)
    for decorator in (small.bot().message, small.bot().error):
        with pytest.raises(InvalidArgumentError, match="async def"):
            decorator("handler")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no handler"):
        await Bot(small.outbox, {1: "key"}).run()


# Replies


async def test_replies_keep_their_order(shop: Shop) -> None:
    bot = shop.bot()

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        await message.reply("раз")
        file = asyncio.ensure_future(message.reply_file(b"%PDF-" * 100_000, filename="два.pdf"))
        await asyncio.sleep(0)
        await message.reply("три")
        await message.reply("сначала", now=True)
        await file

    async with bot.running():
        shop.says("да")
        await shop.until(lambda: len(shop.answers()) == 4)
    said = [row for row in shop.market.messages(17) if row.sender == "PARTNER"]
    assert [row.text or row.payload[0].name for row in said] == ["сначала", "раз", "два.pdf", "три"]


async def test_first_text_of_a_reply_at_once_stays(shop: Shop) -> None:
    bot, runs = shop.bot(), 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        await message.reply(f"Проверяю {runs}", now=True)
        await message.reply(f"Ответ {runs}")
        if runs < 3:
            raise ValueError("again")

    async with bot.running():
        shop.says("да")
        await shop.until(lambda: len(shop.answers()) == 2)
        await asyncio.sleep(60)
    assert shop.answers() == ["Проверяю 1", "Ответ 3"]


async def test_own_statements_are_executed_once_with_the_replies(shop: Shop) -> None:
    await shop.outbox._database.write(lambda c: c.execute(text("CREATE TABLE seen (id BIGINT)")))
    bot, runs = shop.bot(), 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        message.also(text("INSERT INTO seen (id) VALUES (:id)"), {"id": message.message_id})
        await message.reply(f"Ответ {runs}")
        if runs == 1:
            message.also(text("INSERT INTO nowhere (id) VALUES (1)"))
        if runs == 2:
            raise ValueError("again")

    def count(connection: Connection) -> Any:
        return connection.scalar(text("SELECT count(*) FROM seen"))

    async with bot.running():
        shop.says("да")
        await shop.until(lambda: len(shop.answers()) == 1)
    assert shop.answers() == ["Ответ 3"]
    assert await shop.outbox._database.read(count) == 1


async def test_a_reply_after_the_end_is_refused(small: Shop) -> None:
    bot = small.bot()
    kept: list[BuyerMessage] = []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        kept.append(message)

    async with bot.running():
        small.says("да")
        await small.until(lambda: kept)
        await asyncio.sleep(5)
        with pytest.raises(InvalidArgumentError, match="has ended"):
            await kept[0].reply("поздно")
        with pytest.raises(InvalidArgumentError, match="has ended"):
            await kept[0].reply("поздно", now=True)
        with pytest.raises(InvalidArgumentError, match="has ended"):
            kept[0].also(text("SELECT 1"))


async def test_replies_of_a_cut_off_run_leave_nothing(small: Shop) -> None:
    assert await _cut_off(small) == ["Ответ 2"]


async def test_without_the_held_replies_a_cut_off_run_answers_as_well(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = BuyerMessage.reply

    async def at_once(self: BuyerMessage, text: str, *, now: bool = False) -> None:
        self._keys += f"{text}:"  # a model answers differently each time
        await reply(self, text, now=True)

    monkeypatch.setattr(BuyerMessage, "reply", at_once)
    assert await _cut_off(small) == ["Ответ 1", "Ответ 2"]


async def _cut_off(small: Shop) -> list[str | None]:
    runs = 0
    hang = asyncio.Event()

    async def answer(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        await message.reply(f"Ответ {runs}")
        if runs == 1:
            hang.set()
            await asyncio.sleep(1000)

    for _ in range(2):
        bot = small.bot()
        bot.message(answer)
        async with bot.running():
            if runs == 0:
                small.says("да")
                await hang.wait()
            else:
                await small.until(lambda: runs == 2)
            await asyncio.sleep(20)
    return small.answers()


# Two runs of one message: compare and set


async def test_of_two_runs_only_one_replies(shop: Shop) -> None:
    assert len(await _two_runs(shop)) == 1


async def test_without_compare_and_set_both_reply(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(
        connection: Connection, key: Any, was: Any, values: Any, done: Any, replies: Any, _: Any
    ) -> bool:
        row = {**key._asdict(), "message_id": done[0], "created_at": done[1]}
        added = cursor._insert(connection, bot_handled).values(row)
        connection.execute(added.on_conflict_do_nothing())
        cursor.put(connection, replies, ())
        return cursor.change(connection, key, cursor.read(connection, key), values)

    monkeypatch.setattr(cursor, "handled", unchecked)
    assert len(await _two_runs(shop)) == 2


async def _two_runs(shop: Shop) -> list[str | None]:
    """A worker is taken for dead, and its handler ends beside that of the next one."""
    first, second = asyncio.Event(), asyncio.Event()
    runs = 0
    bot, other = shop.bot(handler_timeout=600.0), shop.bot()

    @bot.message
    async def slow(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        first.set()
        await second.wait()
        await message.reply("vom ersten")
        await message.reply("und noch eines")

    @other.message
    async def quick(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        await message.reply("vom zweiten")

    async with bot.running():
        shop.says("да")
        await first.wait()
        runner = bot._runner
        assert runner is not None
        business = runner._businesses[BUSINESS]
        rival = Business(
            _settings(other), shop.outbox, business.grant, business._open_session, Slots(1)
        )
        await shop.until(lambda: runs == 2, within=120)
        await shop.until(lambda: shop.answers(), within=60)
        second.set()
        await asyncio.sleep(60)
        await rival.stop(1.0)
    return shop.answers()


def _settings(bot: Bot) -> Any:
    from yamarket_chat.bot.settings import Settings

    assert bot._message is not None
    return Settings("bot", 30.0, False, 60.0, None, bot._message, bot._error)
