"""Delivering from the outbox: order, limits, times, errors, pauses, and what survives a restart."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, create_engine, select, update

from tests import shops
from tests.helpers import departures, now, texts
from tests.shops import BUSINESS, Shop, message
from yamarket_chat import (
    DeliveryUnknownError,
    ForbiddenError,
    InvalidArgumentError,
    Limits,
    NotFoundError,
    Pending,
    Rate,
)
from yamarket_chat.outbox import (
    MessageExpiredError,
    Outbox,
    OutboxDatabaseError,
    OutboxEntry,
    OutboxFile,
    OutboxMessage,
    feed,
)
from yamarket_chat.outbox.database import Database
from yamarket_chat.outbox.hand import Hand
from yamarket_chat.outbox.schema import messages
from yamarket_chat.sandbox import Fault, Sandbox
from yamarket_chat.system import wall_time

fewer_looks = shops.fewer_looks
shop = shops.shop
small = shops.small


def market_time(seconds: float) -> datetime:
    """The Market's clock in so many seconds: the sandbox begins with the wall clock."""
    wall = datetime.fromtimestamp(wall_time(asyncio.get_running_loop()), UTC)
    return wall + timedelta(seconds=seconds)


async def test_messages_arrive_once_in_the_order_of_their_numbers(shop: Shop) -> None:
    long = "Ваш заказ собран." * 200
    numbers = await shop.outbox.put_many(
        message(text, chat) for text in ("да", "да", long, "нет") for chat in (17, 18, 19)
    )
    async with shop.delivering():
        receipts = [await shop.outbox.result(number, timeout=60) for number in numbers]
        later = await shop.put(message("потом"))
        await shop.outbox.result(later, timeout=60)
    for chat in (17, 18, 19):
        assert texts(shop.market, chat)[:4] == ["да", "да", long, "нет"]
    assert texts(shop.market, 17)[4:] == ["потом"]
    assert {receipt.confirmed_by for receipt in receipts} == {"answer"}
    entry = await shop.got(numbers[0])
    assert (entry.state, entry.requests, entry.receipt) == ("delivered", 1, receipts[0])


async def test_file_goes_out_with_its_name_and_content(shop: Shop) -> None:
    content = bytes(range(256)) * 1000
    number = await shop.put(OutboxFile(BUSINESS, 17, content, filename="накладная.pdf"))
    async with shop.delivering():
        await shop.outbox.result(number, timeout=60)
    (stored,) = shop.market.messages(17)
    assert [(file.name, file.size) for file in stored.payload] == [("накладная.pdf", len(content))]


async def test_what_fails_for_now_is_tried_again_and_its_chat_waits(small: Shop) -> None:
    down = True
    small.market.faults = lambda request: (
        Fault("status", status=503) if down and request.chat_id == 17 else None
    )
    first, second = await small.put(message("раз")), await small.put(message("два"))
    other = await small.put(message("другой", 18))
    async with small.delivering():
        await small.outbox.result(other, timeout=60)
        await asyncio.sleep(100)
        assert {(await small.got(n)).ended_at for n in (first, second)} == {None}
        down = False
        await small.outbox.result(second, timeout=200)
    assert texts(small.market, 17) == ["раз", "два"]


async def test_refusal_for_good_does_not_block_its_chat(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=404) if request.operation_number == 1 else None
    )
    first, second = await shop.put(message("раз")), await shop.put(message("два"))
    async with shop.delivering():
        await shop.outbox.result(second, timeout=60)
        with pytest.raises(NotFoundError):
            await shop.outbox.result(first)
    assert (await shop.got(first)).state == "refused"
    assert texts(shop.market, 17) == ["два"]


async def test_lost_answer_is_settled_by_the_history(shop: Shop) -> None:
    faults = {2: Fault("reset", when="after"), 4: Fault("reset", when="before")}
    shop.market.faults = lambda request: (
        faults.get(request.operation_number) if request.operation == "send_message" else None
    )
    numbers = [await shop.put(message(text)) for text in ("да", "да", "нет", "нет")]
    async with shop.delivering():
        receipts = [await shop.outbox.result(number, timeout=200) for number in numbers]
    assert [receipt.confirmed_by for receipt in receipts] == [
        "answer", "history", "answer", "answer"
    ]  # fmt: skip
    assert [(await shop.got(number)).requests for number in numbers] == [1, 1, 1, 2]
    assert texts(shop.market, 17) == ["да", "да", "нет", "нет"]


async def test_unclear_outcome_ends_as_unknown_and_can_be_read_anywhere(small: Shop) -> None:
    def strange(request: Any) -> Fault | None:
        if request.operation != "send_message":
            return None
        small.market.shop_says(17, "да")  # a person says the same at that moment
        return Fault("reset", when="after")

    small.market.faults = strange
    number = await small.put(message("да"))
    async with small.delivering():
        with pytest.raises(DeliveryUnknownError) as unknown:
            await small.outbox.result(number, timeout=600)
    assert unknown.value.pending.text == "да"
    assert (await small.got(number)).state == "unknown"


async def test_single_goes_before_bulk_and_takes_its_chat_with_it(small: Shop) -> None:
    limits = Limits(parallel=1)
    await small.outbox.put_many(message(f"всем {chat}", chat, bulk=True) for chat in range(1, 9))
    await small.put(message("вам", 8))
    async with small.delivering(limits=limits):
        while (await small.outbox.status()).waiting:
            await asyncio.sleep(1)
    sent = [arrival.chat_id for arrival in small.market.arrivals if arrival.chat_id]
    # One of the bulk may have waited for the slot already.
    assert sent[0] == 8
    assert sent.index(8, 1) <= 2
    assert texts(small.market, 8) == ["всем 8", "вам"]


async def test_message_that_is_cancelled_while_it_waits_for_the_limit_is_not_sent(
    small: Shop,
) -> None:
    await small.put(message("раньше всех", 1))
    async with small.delivering(limits=Limits(send_message=Rate(1, per=60))):
        await asyncio.sleep(5)
        numbers = [await small.put(message(text)) for text in ("первый", "второй")]
        await asyncio.sleep(5)  # the first waits for the limit now
        assert await small.outbox.cancel(numbers[0])
        await small.outbox.result(numbers[1], timeout=200)
    assert texts(small.market, 17) == ["второй"]


async def test_lower_number_that_is_committed_late_goes_first(postgres_url: Any) -> None:
    engine = create_engine(postgres_url)
    async with Sandbox(business_id=BUSINESS) as market, Outbox(postgres_url) as outbox:
        await outbox.create()
        shop = Shop(outbox, market)
        await shop.put(message("раньше всех", 1))
        async with shop.delivering(limits=Limits(send_message=Rate(1, per=60))):
            await asyncio.sleep(5)
            with engine.begin() as connection:
                await shop.put(message("первый"), connection=connection)
                second = await shop.put(message("второй"))
                await asyncio.sleep(5)  # it waits for the limit now
            await outbox.result(second, timeout=200)
    engine.dispose()
    assert texts(market, 17) == ["первый", "второй"]


async def test_bulk_before_a_single_of_its_chat_no_longer_waits_behind_singles(
    small: Shop,
) -> None:
    await small.put(message("раньше всех", 1))
    async with small.delivering(limits=Limits(send_message=Rate(1, per=60))):
        await asyncio.sleep(5)
        for text, chat, bulk in (
            ("всем", 16, True), ("всем", 17, True), ("вам", 17, False), ("вам", 18, False)
        ):  # fmt: skip
            await small.put(message(text, chat, bulk=bulk))
            await asyncio.sleep(2)
        while (await small.outbox.status()).waiting:
            await asyncio.sleep(5)
    sent = [one.chat_id for one in small.market.arrivals if one.operation == "send_message"]
    assert sent == [1, 17, 18, 17, 16]
    assert texts(small.market, 17) == ["всем", "вам"]


async def test_not_before_and_not_after_go_by_the_markets_clock(shop: Shop) -> None:
    late = await shop.put(message("поздно", 18, not_before=market_time(30)))
    after = await shop.put(message("после", 18))
    old = await shop.put(message("старое", 19, not_after=market_time(-5)))
    began = now()
    async with shop.delivering():
        await shop.outbox.result(after, timeout=60)
        with pytest.raises(MessageExpiredError):
            await shop.outbox.result(old, timeout=60)
        assert texts(shop.market, 18) == ["после"]
        await shop.outbox.result(late, timeout=600)
        assert 25 < now() - began < 40
    assert texts(shop.market, 18) == ["после", "поздно"]


async def test_not_before_comes_although_the_clock_of_the_machine_is_an_hour_behind(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "IDLE", 5.0)
    behind = market_time(-3600).timestamp() - now()
    monkeypatch.setattr(feed, "wall_time", lambda loop: behind + loop.time())
    async with small.delivering():
        await small.outbox.result(await small.put(message("раз")), timeout=60)
        late = await small.put(message("поздно", not_before=market_time(200)))
        await asyncio.sleep(100)  # the courier of the business has ended meanwhile
        await small.outbox.result(late, timeout=130)


async def test_message_whose_time_is_over_while_it_waits_for_the_limit_expires(
    small: Shop,
) -> None:
    limits = Limits(send_message=Rate(1, per=60))
    await small.put(message("раз", 1))
    async with small.delivering(limits=limits):
        await asyncio.sleep(5)
        number = await small.put(message("два", not_after=market_time(30)))
        with pytest.raises(MessageExpiredError):
            await small.outbox.result(number, timeout=100)
    assert texts(small.market, 17) == []


async def test_chat_of_an_order_is_opened_once(shop: Shop) -> None:
    numbers = [
        await shop.put(OutboxMessage.to_order(BUSINESS, 55, text)) for text in ("раз", "два")
    ]
    async with shop.delivering():
        receipts = [await shop.outbox.result(number, timeout=60) for number in numbers]
        third = await shop.put(OutboxMessage.to_order(BUSINESS, 55, "три"))
        receipts.append(await shop.outbox.result(third, timeout=60))
    (chat,) = {receipt.chat_id for receipt in receipts}
    assert texts(shop.market, chat) == ["раз", "два", "три"]
    opened = [one for one in shop.market.arrivals if one.operation == "create_chat"]
    assert len(opened) == 1
    assert (await shop.got(third)).chat_id == chat


async def test_refused_key_pauses_the_business_until_keys_gives_another(small: Shop) -> None:
    began = now()

    async def key(business_id: int) -> str:
        return "ACMA:old:key" if now() < began + 20 else small.market.api_key

    number = await small.put(message("раз"))
    async with small.delivering(keys=key):
        await asyncio.sleep(10)
        status = await small.outbox.status()
        assert "401" in status.paused[BUSINESS]
        await small.outbox.result(number, timeout=300)
        await asyncio.sleep(1)
        assert (await small.outbox.status()).paused == {}
    assert texts(small.market, 17) == ["раз"]


async def test_key_that_is_revoked_on_the_way_pauses_and_loses_nothing(small: Shop) -> None:
    async with small.delivering():
        await small.outbox.result(await small.put(message("раз")), timeout=60)
        small.market.revoked = True
        number = await small.put(message("два"))
        await asyncio.sleep(30)
        assert (await small.got(number)).state == "waiting"
        assert "401" in (await small.outbox.status()).paused[BUSINESS]
        small.market.revoked = False
        await small.outbox.result(number, timeout=120)
        await asyncio.sleep(1)
        assert (await small.outbox.status()).paused == {}
    assert texts(small.market, 17) == ["раз", "два"]


async def test_403_of_one_chat_refuses_and_403_of_the_business_pauses(small: Shop) -> None:
    small.market.faults = lambda request: (
        Fault("status", status=403)
        if request.operation == "send_message" and request.chat_id == 17
        else None
    )
    refused, fine = await small.put(message("раз")), await small.put(message("два", 18))
    async with small.delivering():
        with pytest.raises(ForbiddenError):
            await small.outbox.result(refused, timeout=100)
        await small.outbox.result(fine, timeout=10)
        assert (await small.outbox.status()).paused == {}
        small.market.inactive = True
        later = await small.put(message("три", 18))
        await asyncio.sleep(10)
        assert "403" in (await small.outbox.status()).paused[BUSINESS]
        assert (await small.got(later)).state == "waiting"
        small.market.inactive = False
        await small.outbox.result(later, timeout=100)
    assert (texts(small.market, 17), texts(small.market, 18)) == ([], ["два", "три"])


async def test_403_of_one_order_refuses_and_pauses_nothing(small: Shop) -> None:
    """It is an order of somebody else, perhaps."""
    small.market.faults = lambda request: (
        Fault("status", status=403) if request.operation == "create_chat" else None
    )
    refused = await small.put(OutboxMessage.to_order(BUSINESS, 55, "раз"))
    paused: list[object] = []
    async with small.delivering():
        for chat in range(1, 20):
            fine = await small.put(message("два", chat))
            await small.outbox.result(fine, timeout=10)
            paused += (await small.outbox.status()).paused
            await asyncio.sleep(5)
        with pytest.raises(ForbiddenError):
            await small.outbox.result(refused, timeout=1)
    assert paused == []


@pytest.mark.parametrize("refuses", ["revoked", "inactive"])
async def test_paused_business_tries_one_order_a_minute(small: Shop, refuses: str) -> None:
    """Else they would use up the limit of createChat with a key that is refused."""
    async with small.delivering():
        await small.outbox.result(await small.put(message("раз")), timeout=10)
        setattr(small.market, refuses, True)
        numbers = [
            await small.put(OutboxMessage.to_order(BUSINESS, order, "два"))
            for order in range(1, 13)
        ]
        await asyncio.sleep(30)
        assert (await small.outbox.status()).paused
        small.market.arrivals.clear()
        await asyncio.sleep(240)
        opened = [one for one in small.market.arrivals if one.operation == "create_chat"]
        assert 3 <= len(opened) <= 5
        setattr(small.market, refuses, False)
        for number in numbers:
            await small.outbox.result(number, timeout=100)
        assert (await small.outbox.status()).paused == {}


async def test_requests_of_the_process_before_count_for_the_limit(shop: Shop) -> None:
    shop.market.rate_limit_headers = False  # so that nobody but the outbox knows
    limits = Limits(send_message=Rate(3, per=60))
    for text in ("раз", "два", "три", "четыре", "пять"):
        await shop.put(message(text))
    async with shop.delivering(limits=limits):
        await asyncio.sleep(5)
    forget_what_this_loop_knows()
    began = now()
    async with shop.delivering(limits=limits):
        while (await shop.outbox.status()).waiting:
            await asyncio.sleep(10)
    assert len(departures(shop.market)) == 5
    assert departures(shop.market)[3] > began + 50
    assert texts(shop.market, 17) == ["раз", "два", "три", "четыре", "пять"]


def forget_what_this_loop_knows() -> None:
    """Forget what the sessions of this event loop share, as another process does."""
    from yamarket_chat._delivery import shared

    shared._of_loops.clear()


async def test_stopping_waits_for_what_is_under_way_and_writes_its_end(shop: Shop) -> None:
    shop.market.latency = 5.0
    number = await shop.put(message("раз"))
    async with shop.delivering():
        while (await shop.got(number)).state == "waiting":
            await asyncio.sleep(0.1)
    entry = await shop.got(number)
    assert entry.state == "delivered"


async def test_on_failure_is_told_of_each_failure_until_it_returns(shop: Shop) -> None:
    told: list[tuple[str, str | None]] = []

    async def failed(entry: OutboxEntry) -> None:
        told.append((entry.state, entry.text))
        if len(told) == 1:
            raise RuntimeError("my database is away")

    shop.market.faults = lambda request: (
        Fault("status", status=404) if request.operation_number == 1 else None
    )
    await shop.put(message("раз"))
    await shop.put(message("два"))
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(3)
        await shop.put(message("три", not_after=market_time(-60)))
        await asyncio.sleep(10)
    async with shop.delivering(on_failure=failed):
        await asyncio.sleep(10)
    assert told == [("refused", "раз"), ("refused", "раз"), ("expired", "три")]


@pytest.mark.parametrize("raised", [True, False])
async def test_late_mark_of_the_holder_before_is_settled_by_its_epoch(
    small: Shop, raised: bool
) -> None:
    """Its commit came after the new holder had read. Without the epoch it would be doubled."""
    await small.put(message("раз", 1))
    number = await small.put(message("два", bulk=True))
    async with small.delivering(limits=Limits(send_message=Rate(1, per=60))):
        await asyncio.sleep(10)
        pending = Pending(
            business_id=BUSINESS,
            chat_id=17,
            since=market_time(-1),
            until=market_time(20),
            before_since=market_time(-200),
            requests=1,
            seen="",
        )
        (delivery,) = small.outbox._deliveries[asyncio.get_running_loop()]
        epoch = delivery._grants[BUSINESS].epoch - raised

        def mark(connection: Connection) -> None:
            values = {
                "state": "leaving",
                "request": 1,
                "epoch": epoch,
                "pending": msgspec.json.encode(pending).decode(),
                "timeout": 15.0,
                "settle_after": 15.0,
            }
            connection.execute(update(messages).where(messages.c.number == number).values(values))

        await small.outbox._database.write(mark)
        small.market.shop_says(17, "два")
        await small.outbox.result(number, timeout=200)
    assert texts(small.market, 17) == ["два"] * (1 if raised else 2)


async def test_lost_business_is_not_read_from_any_more(small: Shop) -> None:
    """Found by the crash test: a read beside the new holder's requests was one too many."""
    asked: list[str] = []

    def note(request: Any) -> Fault | None:
        asked.append(request.operation)
        return Fault("no_answer") if request.operation == "send_message" else None

    small.market.faults = note
    await small.put(message("раз"))
    async with small.delivering(timeout=5.0):
        while "send_message" not in asked:
            await asyncio.sleep(0.1)
        await asyncio.sleep(17)  # its history would be read after 20 s
        (delivery,) = small.outbox._deliveries[asyncio.get_running_loop()]
        asked.clear()
        delivery.over(list(delivery._grants.values()))
        await asyncio.sleep(60)
        assert asked == []


async def test_nothing_leaves_while_the_database_is_away_and_ends_are_written_later(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.market.latency = 2.0
    database, write = small.outbox._database, small.outbox._database.write
    first = await small.put(message("раз"))
    second = await small.put(message("два"))
    third = await small.put(message("три", 18))

    async def away(*_: Any) -> Any:
        raise OutboxDatabaseError("it is away", sent=None, retry_after=1.0)

    async with small.delivering(limits=Limits(parallel=1)):
        while (await small.got(first)).state == "waiting":
            await asyncio.sleep(0.1)
        monkeypatch.setattr(database, "write", away)
        await asyncio.sleep(60)
        assert [texts(small.market, chat) for chat in small.market.chat_ids] == [["раз"]]
        assert (await small.got(first)).state == "leaving"
        monkeypatch.setattr(database, "write", write)
        receipts = [await small.outbox.result(one, timeout=60) for one in (first, second, third)]
    assert {receipt.confirmed_by for receipt in receipts} == {"answer"}
    assert texts(small.market, 17) == ["раз", "два"]


async def test_commit_of_a_mark_that_is_not_learnt_sends_nothing_and_is_found_out(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, write = small.outbox._database, small.outbox._database.write
    number = await small.put(message("раз"))
    broken = 0

    async def breaks(function: Any, *arguments: Any) -> Any:
        nonlocal broken
        result = await write(function, *arguments)
        if function.__name__ == "_write" and arguments[1] and broken < 2:
            broken += 1
            assert texts(small.market, 17) == []
            raise OutboxDatabaseError("the connection broke", sent=None, retry_after=1.0)
        return result

    monkeypatch.setattr(database, "write", breaks)
    async with small.delivering():
        receipt = await small.outbox.result(number, timeout=60)
    assert (broken, receipt.requests) == (2, 3)
    assert texts(small.market, 17) == ["раз"]


async def test_courier_of_a_business_without_messages_costs_nothing(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "IDLE", 30.0)
    keys = dict.fromkeys(range(1, 500), "ACMA:any:key")
    async with small.delivering(keys=keys | {BUSINESS: small.market.api_key}):
        await small.outbox.result(await small.put(message("раз")), timeout=60)
        (delivery,) = small.outbox._deliveries[asyncio.get_running_loop()]
        assert list(delivery._couriers) == [BUSINESS]
        await asyncio.sleep(40)
        assert list(delivery._couriers) == []
        await small.outbox.result(await small.put(message("два")), timeout=60)
    assert texts(small.market, 17) == ["раз", "два"]
    assert len(small.market.arrivals) == 4  # the clock was read twice


async def test_business_that_has_sent_and_has_nothing_now_is_not_asked_at_each_look(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of them cost more than all else: each was asked and woken five times a second."""
    asked: list[Hand] = []
    begin_look = Hand.begin_look

    def noted(self: Hand) -> int:
        asked.append(self)
        return begin_look(self)

    monkeypatch.setattr(Hand, "begin_look", noted)
    async with shop.delivering(), Outbox(shop.outbox._database.url) as other:
        await shop.outbox.result(await shop.put(message("раз")), timeout=60)
        await asyncio.sleep(5)
        asked.clear()
        for _ in range(5):
            await other.put(OutboxMessage(BUSINESS + 1, 17, "another business, which changes much"))
            await asyncio.sleep(2)
        assert asked == []
        await other.put(message("два"))
        await asyncio.sleep(5)
    assert texts(shop.market, 17) == ["раз", "два"]


async def test_looks_that_take_long_are_made_less_often(
    postgres_url: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, read = 0, Database.read

    async def slowly(self: Database, function: Any, *args: Any) -> Any:
        nonlocal looks
        if function is feed._due:
            looks += 1
            await asyncio.sleep(3)
        return await read(self, function, *args)

    monkeypatch.setattr(Database, "read", slowly)
    async with Sandbox(business_id=BUSINESS) as market, Outbox(postgres_url) as outbox:
        await outbox.create()
        async with Shop(outbox, market).delivering():
            await asyncio.sleep(90)
    assert 9 <= looks <= 12  # a third of the time, and not three fourths


async def test_row_that_somebody_holds_locked_holds_up_nobody_else(
    postgres_url: Any,
) -> None:
    engine = create_engine(postgres_url)
    async with Sandbox(business_id=BUSINESS) as market, Outbox(postgres_url) as outbox:
        await outbox.create()
        shop = Shop(outbox, market)
        locked, later = await shop.put(message("раз")), await shop.put(message("два"))
        other = await shop.put(message("другой", 18))
        row = select(messages.c.number).where(messages.c.number == locked).with_for_update()
        market.latency = 5.0
        async with shop.delivering():
            while (await shop.got(locked)).state == "waiting":
                await asyncio.sleep(0.1)
            with engine.begin() as connection:
                connection.execute(row)
                third = await shop.put(message("третий", 19))
                for number in (other, third):
                    await outbox.result(number, timeout=60)
                assert texts(market, 17) == ["раз"]
            receipts = [await outbox.result(number, timeout=60) for number in (locked, later)]
        assert [receipt.requests for receipt in receipts] == [1, 1]
        assert texts(market, 17) == ["раз", "два"]
    engine.dispose()


async def test_bad_options_are_refused_at_once(small: Shop) -> None:
    refused: list[tuple[Any, Any]] = [
        ({BUSINESS: "key"}, {"lease": 0}),
        ({BUSINESS: "key"}, {"timeout": -1}),
        ({BUSINESS: "key"}, {"max_wait": 5.0}),
        ({BUSINESS: "key"}, {"reserve": 1000}),
        ([BUSINESS], {}),
        ({"x": "key"}, {}),
    ]
    for keys, options in refused:
        with pytest.raises(InvalidArgumentError):
            async with small.outbox.delivering(keys, **options):
                raise AssertionError
