"""Troubles of a bot: handlers that fail, hang and die, and a database that is away."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text, update

from tests import bots
from tests.bots import BUSINESS, Shop, told_of
from yamarket_chat import Limits, NotFoundError, Rate
from yamarket_chat.bot import (
    BotConflictError,
    BuyerMessage,
    HandlerDiedError,
    HandlerTimeoutError,
    MessageTooOldError,
    cursor,
)
from yamarket_chat.bot.slots import Slots
from yamarket_chat.bot.steps import TRIES
from yamarket_chat.outbox import OutboxDatabaseError, OutboxEntry, OutboxMessage
from yamarket_chat.outbox.schema import bot_chats
from yamarket_chat.sandbox import Fault

fewer_looks, shop, small = bots.fewer_looks, bots.shop, bots.small


# Handlers that fail


async def test_a_handler_that_fails_is_called_five_times_and_the_chat_goes_on(shop: Shop) -> None:
    bot, calls = shop.bot(), []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        calls.append((message.text, asyncio.get_running_loop().time()))
        if message.text == "schlecht":
            raise ValueError(f"try {len(calls)}")
        await message.reply(f"re: {message.text}")

    async with bot.running():
        shop.says("schlecht")
        shop.says("gut")
        shop.says("anderer", 18)
        await shop.answered("anderer", chat_id=18)
        await shop.answered("gut", within=1000)
    assert [text_ for text_, _ in calls if text_ != "anderer"] == ["schlecht"] * 5 + ["gut"]
    times = [time for text_, time in calls if text_ == "schlecht"]
    pauses = [round(b - a) for a, b in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (2, 10, 60, 300), strict=True))
    ((said, error),) = shop.told
    assert (said, str(error)) == ("schlecht", "try 6")


async def test_bot_error_may_reply(shop: Shop) -> None:
    bot = shop.bot(max_age=1.0)

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        await message.reply("Одну минуту", now=True)
        await message.reply(f"Ответит сотрудник: {type(error).__name__}")

    async with bot.running():
        await asyncio.sleep(10)
        shop.says("да")
        await shop.until(lambda: len(shop.answers()) == 2)
    assert shop.seen == []
    assert shop.answers() == ["Одну минуту", f"Ответит сотрудник: {MessageTooOldError.__name__}"]


async def test_an_error_handler_that_fails_does_not_stop_the_chat(small: Shop) -> None:
    bot = small.bot(max_age=100.0)

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        await message.reply("nie")
        raise ValueError("again")

    small.says("alt")
    await asyncio.sleep(3)
    async with bot.running():
        await asyncio.sleep(10)
        small.market.step_clock(200)
        await small.until(lambda: small.market.requests("history"))
        small.says("neu")
        await small.until(lambda: "re: neu" in small.answers())
    assert "nie" not in small.answers()


async def test_a_handler_that_hangs_is_ended(small: Shop) -> None:
    bot, runs = small.bot(handler_timeout=20.0), []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        runs.append(message)
        if len(runs) == 1:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(10_000)
            await asyncio.sleep(1000)  # swallows its cancellation, and goes on
        await message.reply(f"{len(runs)}")

    async with bot.running():
        small.says("да")
        small.says("другой", 18)
        await small.until(lambda: small.answers(18))
        await small.until(lambda: small.answers(17), within=200)
    assert small.answers(17) in (["2"], ["3"])
    with pytest.raises(Exception, match="has ended"):
        await runs[0].reply("поздно")


async def test_timeout_is_told(small: Shop) -> None:
    bot = small.bot(handler_timeout=5.0)

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        await asyncio.sleep(1000)

    async with bot.running():
        small.says("да")
        await small.until(lambda: small.told, within=1000)
    assert isinstance(small.told[0][1], HandlerTimeoutError)


async def test_a_function_that_is_not_async_is_called_once_and_told(small: Shop) -> None:
    bot = small.bot()

    @bot.message  # type: ignore[arg-type]
    def answer(message: BuyerMessage) -> None:
        small.seen.append(message.text)

    async with bot.running():
        small.says("да")
        await small.until(lambda: small.told, within=60)
        await asyncio.sleep(400)
    assert small.seen == ["да"]
    assert "write `async def`" in str(small.told[0][1])


class _Outcome(BaseException):
    """As those of pytest's `fail` and `skip`."""


async def test_a_handler_that_raises_what_is_no_exception_is_called_again(small: Shop) -> None:
    bot = small.bot()

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        small.seen.append(message.text)
        raise _Outcome("odd")

    async with bot.running():
        small.says("да")
        await asyncio.sleep(60)
        assert len(small.seen) == 3
        await small.until(lambda: small.told, within=1000)
    ((_, error),) = small.told
    assert isinstance(error.__cause__, _Outcome)


async def test_error_of_a_handler_is_told_if_its_message_gets_too_old(small: Shop) -> None:
    bot = small.bot(max_age=30.0)

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        raise ValueError("the model is away")

    async with bot.running():
        small.says("да")
        await small.until(lambda: small.told)
    ((_, error),) = small.told
    assert str(error) == "the model is away"


async def test_a_message_that_got_too_old_was_tried_or_not(small: Shop) -> None:
    async with small.running():
        small.says("да")
        await small.answered("да")
    await _dead(small, small.says("раз"), tries=1)
    small.says("два", 18)
    await asyncio.sleep(60)
    async with small.running(max_age=30.0):
        await small.until(lambda: len(small.told) == 2)
    said = {text: str(error) for text, error in small.told}
    assert said["раз"].endswith("is not called again")
    assert said["два"].endswith("is not called")


async def test_chats_are_worked_in_side_by_side(small: Shop) -> None:
    bot, inside, most = small.bot(concurrency=3), 0, 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(10)
        inside -= 1
        small.seen.append(f"{message.chat.chat_id} {message.text}")

    async with bot.running():
        for chat_id in range(1, 7):
            small.says("1", chat_id)
            small.says("2", chat_id)
        await small.until(lambda: len(small.seen) == 12)
    assert most == 3
    for chat_id in range(1, 7):
        assert [one for one in small.seen if one.startswith(f"{chat_id} ")] == [
            f"{chat_id} 1",
            f"{chat_id} 2",
        ]


# Tries


async def test_a_shutdown_gives_the_try_back(shop: Shop) -> None:
    for stop in range(7):  # more than there are tries
        bot, began = shop.bot(), asyncio.Event()

        async def hang(message: BuyerMessage, began: asyncio.Event = began) -> None:
            began.set()
            await asyncio.sleep(1000)

        bot.message(hang)
        async with bot.running():
            if stop == 0:
                shop.says("да")
            await began.wait()
        row = await shop.cursor()
        assert (row.tries, row.running) == (0, False)
    async with shop.running():
        await shop.answered("да")
    assert shop.told == []


async def test_a_lost_lease_ends_the_handler_and_gives_the_try_back(shop: Shop) -> None:
    bot, runs = shop.bot(), 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        await message.reply(f"{runs}")
        if runs == 1:
            await shop.outbox._database.write(_forget_workers)
            await asyncio.sleep(1000)

    async with bot.running():
        shop.says("да")
        await shop.until(lambda: shop.answers())
        await asyncio.sleep(100)
    assert shop.answers() == ["2"]


def _forget_workers(connection: Any) -> None:
    connection.execute(text("DELETE FROM yamarket_outbox_workers"))


async def test_a_try_whose_commit_is_cut_off_does_not_count_twice(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is lost just after each change, so nobody learns of it."""
    write, cut = small.outbox._database.write, 0

    async def lossy(function: Any, *args: Any) -> Any:
        nonlocal cut
        result = await write(function, *args)
        if function in (cursor.change, cursor.handled):
            cut += 1
            if cut % 2:
                raise OutboxDatabaseError("gone", retry_after=1.0)
        return result

    monkeypatch.setattr(small.outbox._database, "write", lossy)
    async with small.running():
        for n in range(6):
            small.says(str(n))
        await small.answered(*"012345")
    assert small.seen == list("012345")
    assert cut > 6


async def _dead(shop: Shop, message_id: int, tries: int, chat_id: int = 17) -> None:
    """A process died while it handled a message."""

    def die(connection: Any) -> None:
        connection.execute(
            update(bot_chats)
            .where(bot_chats.c.chat_id == chat_id)
            .values(
                message_id=message_id,
                tries=tries,
                running=True,
                version=bot_chats.c.version + 1,
            )
        )

    await shop.outbox._database.write(die)


async def test_a_message_whose_process_died_each_time_is_given_up(shop: Shop) -> None:
    async with shop.running():
        shop.says("раз")
        await shop.answered("раз")
        await asyncio.sleep(60)
    await _dead(shop, shop.says("tödlich"), TRIES)
    shop.says("два")
    async with shop.running():
        await shop.answered("раз", "два")
    ((said, error),) = shop.told
    assert said == "tödlich"
    assert isinstance(error, HandlerDiedError)


async def test_an_error_handler_that_dies_each_time_is_given_up_as_well(small: Shop) -> None:
    async with small.running():
        small.says("раз")
        await small.answered("раз")
        await asyncio.sleep(60)
    await _dead(small, small.says("tödlich"), 2 * TRIES)
    small.says("два")
    async with small.running():
        await small.answered("раз", "два")
    assert small.told == []


async def test_after_a_death_the_suspects_run_alone(small: Shop) -> None:
    bot, inside, beside = small.bot(), set(), []

    async with small.running():
        for chat_id in range(1, 7):
            small.says("раз", chat_id)
        await small.until(lambda: all(small.answers(chat_id) for chat_id in range(1, 7)))
        await asyncio.sleep(60)
    for chat_id in (1, 2):
        await _dead(small, small.says("два", chat_id), 1, chat_id)
    for chat_id in range(3, 7):
        small.says("два", chat_id)

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        inside.add(message.chat.chat_id)
        await asyncio.sleep(5)
        beside.append((message.chat.chat_id, len(inside)))
        inside.discard(message.chat.chat_id)

    async with bot.running():
        await small.until(lambda: len(beside) == 6)
    alone = dict(beside)
    assert alone[1] == alone[2] == 1
    assert max(alone.values()) > 1


async def test_slots_survive_cancellations() -> None:
    slots, inside = Slots(2), 0

    async def work(alone: bool) -> None:
        nonlocal inside
        async with slots.slot(alone=alone):
            inside += 1
            assert inside <= (1 if alone else 2)
            await asyncio.sleep(1)
            inside -= 1

    async def cut(task: asyncio.Task[None]) -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    tasks = [asyncio.create_task(work(n % 5 == 0)) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[2::3]:
        if not task.done():
            await cut(task)
    rest = [task for task in tasks if not task.cancelled()]
    async with asyncio.timeout(60):
        await asyncio.gather(*rest)
        await asyncio.gather(work(True), work(False), work(False))


# Replies that fail


async def test_a_reply_that_is_refused_is_told_and_may_be_answered(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=404)
        if request.operation == "send_message" and request.operation_number == 1
        else None
    )
    bot = shop.bot()

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        shop.told.append((message.text, error))
        await message.reply("Ответит сотрудник")

    async with bot.running():
        shop.says("да")
        await shop.until(lambda: shop.answers())
        await asyncio.sleep(200)
    ((said, error),) = shop.told
    assert said == "да"
    assert isinstance(error, NotFoundError)
    assert shop.answers() == ["Ответит сотрудник"]


async def test_failures_of_other_messages_go_to_on_failure(small: Shop) -> None:
    failed: list[str | None] = []

    async def on_failure(entry: OutboxEntry) -> None:
        failed.append(entry.text)

    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    async with small.bot(on_failure=on_failure, name="error").running():
        await small.outbox.put(OutboxMessage(BUSINESS, 18, "Заказ собран"))
        await small.until(lambda: failed)
        small.says("да")
        await small.until(lambda: small.told)
    assert failed == ["Заказ собран"]
    assert small.told[0][0] == "да"


async def test_error_of_a_reply_does_not_run_beside_a_handler_of_its_chat(small: Shop) -> None:
    bot, inside, seen = small.bot(), 0, []

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal inside
        inside += 1
        if message.text == "два":
            await asyncio.sleep(50)
        seen.append(inside)
        inside -= 1
        await message.reply(f"re: {message.text}")

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        nonlocal inside
        inside += 1
        seen.append(inside)
        inside -= 1

    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    async with bot.running():
        small.says("раз")
        small.says("два")
        await small.until(lambda: len(seen) == 4, within=1200)
    assert set(seen) == {1}


async def test_a_stop_while_an_error_is_told_tells_it_again(small: Shop) -> None:
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    told = 0
    for stop in range(2):
        bot = small.bot()

        @bot.error
        async def failed(message: BuyerMessage, error: Exception) -> None:
            nonlocal told
            told += 1
            if told == 1:
                await asyncio.sleep(1000)

        async with bot.running():
            if stop == 0:
                small.says("да")
            await small.until(lambda: told > stop)  # noqa: B023
            await asyncio.sleep(1)
    assert told == 2


# Starting, stopping, several workers


async def test_a_stop_begins_no_new_handler(small: Shop) -> None:
    bot = small.bot(concurrency=1)

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        small.seen.append(message.text)
        await asyncio.sleep(10)

    async with bot.running():
        for chat_id in range(1, 6):
            small.says("да", chat_id)
            small.says("нет", chat_id)
        await small.until(lambda: small.seen)
        before = asyncio.get_running_loop().time()
    assert len(small.seen) == 1
    assert asyncio.get_running_loop().time() - before < 12
    async with small.running():
        await small.until(lambda: len(small.seen) == 10)


async def test_another_name_is_refused(shop: Shop) -> None:
    async with shop.running(name="one", lease=60.0):
        await asyncio.sleep(60)
        with pytest.raises(BotConflictError, match="'one'"):
            await shop.bot(name="two", lease=60.0).run()
        async with shop.bot(name="two", keys={999: "key"}).running():
            pass


async def test_a_dead_bot_of_another_name_is_no_obstacle(small: Shop) -> None:
    await small.outbox._database.write(_add_dead)
    async with small.running(lease=60.0):
        await asyncio.sleep(100)
        small.says("да")
        await small.answered("да")


def _add_dead(connection: Any) -> None:
    connection.execute(
        text(
            "INSERT INTO yamarket_outbox_workers (token, beat, lease, bot, about, started_at)"
            " VALUES ('dead', 7, 60, 'other', 'process 1', 0)"
        )
    )
    connection.execute(
        text(
            "INSERT INTO yamarket_outbox_leases (business_id, worker, epoch)"
            " VALUES (12345, 'dead', 1)"
        )
    )


async def test_workers_with_a_bot_come_first(shop: Shop) -> None:
    async with (
        shop.outbox.delivering(
            {BUSINESS: shop.market.api_key}, base_url=shop.market.url, lease=60.0
        ),
        shop.running(lease=60.0),
    ):
        await asyncio.sleep(300)
        shop.says("да")
        await shop.answered("да")


async def test_two_workers_share_a_bot(shop: Shop) -> None:
    async with shop.running(lease=60.0):
        async with shop.running(lease=60.0):
            shop.says("раз")
            await shop.answered("раз")
        shop.says("два")
        await shop.answered("раз", "два")
    assert shop.seen == ["раз", "два"]


async def test_it_runs_once_at_a_time(small: Shop) -> None:
    bot = small.bot()
    async with bot.running():
        with pytest.raises(Exception, match="runs already"):
            await bot.run()


# The database


async def test_a_bot_goes_through_a_database_that_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact, away = shop.outbox._database._transact, False

    def sometimes(*args: Any, **options: Any) -> Any:
        if away:
            raise OutboxDatabaseError("away", retry_after=1.0)
        return transact(*args, **options)

    monkeypatch.setattr(shop.outbox._database, "_transact", sometimes)
    bot = shop.bot()

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal away
        away = message.text == "два"
        await message.reply(f"re: {message.text}")

    async with bot.running():
        shop.says("раз")
        await shop.answered("раз")
        shop.says("два")
        await shop.until(lambda: away)
        await asyncio.sleep(100)
        shop.says("три")
        with pytest.raises(OutboxDatabaseError):
            await bot.hear(told_of(1))
        away = False
        await shop.answered("раз", "два", "три")


async def test_a_bot_may_begin_before_its_database(tmp_path: Any, small: Shop) -> None:
    path = tmp_path / "outbox.db"
    hidden = tmp_path / "hidden.db"
    os.rename(path, hidden)
    await small.outbox.close()
    running = asyncio.ensure_future(_run_for(small, 200))
    await asyncio.sleep(1)
    assert running.done()  # a missing file passes by nobody's doing
    assert isinstance(running.exception(), OutboxDatabaseError)
    os.rename(hidden, path)
    small.says("да")
    await _run_for(small, 200)
    await small.answered("да")


async def _run_for(small: Shop, seconds: float) -> None:
    async with small.running():
        await asyncio.sleep(seconds)


async def test_of_many_chats_little_stays_in_memory(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yamarket_chat.bot.business.KNOWN", 5)
    bot = small.bot(every=3600.0, limits=Limits(chats=Rate(1000, per=3600)))
    async with bot.running():
        await asyncio.sleep(10)
        for chat_id in range(1, 31):
            await bot.hear(told_of(small.says("да", chat_id), chat_id))
        await small.until(lambda: len(small.seen) == 30)
        await asyncio.sleep(120)
        runner = bot._runner
        assert runner is not None
        business = runner._businesses[BUSINESS]
        assert len(business._chats) <= 5
        agenda = business._agenda
        kept: list[Any] = [
            business._errors, business._suspects, business._handling, agenda._todo,
            agenda._at_work, agenda._timers, agenda._not_before,
        ]  # fmt: skip
        assert not any(kept)
