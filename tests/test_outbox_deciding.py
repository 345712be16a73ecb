"""What a person looks at and decides: lists, `settle` and `retry`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, update

from tests.helpers import texts
from tests.shops import BUSINESS, Shop, message
from tests.test_outbox_courier import market_time
from yamarket_chat import (
    ChatError,
    DeliveryUnknownError,
    InvalidArgumentError,
    NotFoundError,
    Pending,
)
from yamarket_chat.outbox import (
    MessageExpiredError,
    Outbox,
    OutboxFile,
    OutboxMessage,
    deciding,
    earlier,
    marks,
)
from yamarket_chat.outbox.outcomes import encode_outcome
from yamarket_chat.outbox.overview import overview
from yamarket_chat.outbox.schema import messages
from yamarket_chat.outbox.turns import Session
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault, Sandbox


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)
    monkeypatch.setitem(LOOKS, "postgresql", 1.0)


@pytest.fixture
async def outbox(database_url: Any) -> AsyncIterator[Outbox]:
    async with Outbox(database_url) as made:
        await made.create()
        yield made


@pytest.fixture
async def shop(outbox: Outbox) -> AsyncIterator[Shop]:
    async with Sandbox(business_id=BUSINESS) as market:
        yield Shop(outbox, market)


async def becomes(outbox: Outbox, number: int, state: str, **values: Any) -> None:
    """Let a message be in a state, as if a worker had left it so."""

    def change(connection: Connection) -> None:
        moment = round(datetime.now(UTC).timestamp() * 1e6)
        row = {"state": state, "ended_at": moment, **values}
        connection.execute(update(messages).where(messages.c.number == number).values(row))

    await outbox._database.write(change)


async def failures_told(outbox: Outbox) -> list[int]:
    """Return the messages of which `on_failure` is told."""
    told: list[int] = []

    async def tell(entry: Any) -> None:
        told.append(entry.number)

    async with outbox.delivering({BUSINESS: "key"}, on_failure=tell):
        await asyncio.sleep(20)
    return told


def lost(market: Sandbox, *, arrived: bool) -> None:
    """Let the outcome of the next message be unclear: somebody writes to its chat meanwhile."""

    def fault(request: Any) -> Fault | None:
        if request.operation != "send_message":
            return None
        market.faults = None
        # A person says something at that moment, so the history cannot be told.
        market.shop_says(17, "да" if arrived else "а")
        return Fault("reset", when="after" if arrived else "before")

    market.faults = fault


async def listed(outbox: Outbox, **wish: Any) -> list[str | None]:
    return [entry.text async for entry in outbox.entries(**wish)]


# Lists


async def test_entries_are_listed_by_number_and_filtered(outbox: Outbox) -> None:
    await outbox.put(message("раз", 17, key="a-1"))
    two = await outbox.put(message("два", 18, key="A-1"))
    await outbox.put(OutboxMessage(77, 17, "три", key="a%2"))
    four = await outbox.put(message("четыре", 17))
    await outbox.cancel(two)
    assert await listed(outbox) == ["раз", "два", "три", "четыре"]
    assert await listed(outbox, business_id=BUSINESS) == ["раз", "два", "четыре"]
    assert await listed(outbox, state="cancelled") == ["два"]
    assert await listed(outbox, chat_id="17", business_id=str(BUSINESS)) == ["раз", "четыре"]
    assert await listed(outbox, key_prefix="a") == ["раз", "три"]
    assert await listed(outbox, key_prefix="a%") == ["три"]
    assert await listed(outbox, after=two) == ["три", "четыре"]
    assert await listed(outbox, after=two, limit=1) == ["три"]
    assert await listed(outbox, after=four) == []


@pytest.mark.parametrize(("page", "scan"), [(1, 100), (3, 4), (100, 1), (2, 2)])
async def test_list_is_complete_however_it_is_read(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, page: int, scan: int
) -> None:
    monkeypatch.setattr(deciding, "PAGE", page)
    monkeypatch.setattr(deciding, "SCAN", scan)
    numbers = await outbox.put_many(message(str(n), 1 + n % 2) for n in range(9))
    await outbox.cancel(numbers[8])
    assert await listed(outbox) == [str(n) for n in range(9)]
    assert await listed(outbox, chat_id=2) == ["1", "3", "5", "7"]
    assert await listed(outbox, state="cancelled", limit=5) == ["8"]
    assert await listed(outbox, limit=4) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ({"state": "lost"}, "state is one of waiting, leaving"),
        ({"business_id": 0}, "business_id is a whole number"),
        ({"chat_id": "x"}, "chat_id is an int"),
        ({"after": -1}, "after is a whole number"),
        ({"limit": 0}, "limit is a whole number"),
        ({"key_prefix": ""}, "key_prefix is a str"),
        ({"key_prefix": "~"}, "key_prefix is a str"),
    ],
)
async def test_wrong_filter_is_refused_before_anything_is_read(
    wish: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        Outbox("sqlite:///nowhere.db").entries(**wish)


# Settling


async def test_person_settles_unknown_messages(shop: Shop) -> None:
    outbox = shop.outbox
    numbers = []
    for arrived in (True, False):
        lost(shop.market, arrived=arrived)
        numbers.append(await outbox.put(message("да")))
        async with shop.delivering():
            with pytest.raises(DeliveryUnknownError):
                await outbox.result(numbers[-1], timeout=600)
    assert await outbox.settle(numbers[0], delivered=True)
    assert await outbox.settle(numbers[1], delivered=False)
    receipt = await outbox.result(numbers[0])
    assert (receipt.chat_id, receipt.requests, receipt.confirmed_by) == (17, 1, "person")
    with pytest.raises(ChatError, match="somebody has looked") as refused:
        await outbox.result(numbers[1])
    assert refused.value.sent is False
    assert [(await shop.got(number)).state for number in numbers] == ["delivered", "refused"]
    assert not await outbox.settle(numbers[0], delivered=False)
    assert (await shop.got(numbers[0])).state == "delivered"
    # Both count as what the chat may have, for those that follow.
    sent = len(texts(shop.market, 17))
    async with shop.delivering():
        await outbox.result(await outbox.put(message("да")), timeout=600)
    assert len(texts(shop.market, 17)) == sent + 1


async def test_message_to_an_order_whose_chat_nobody_knows_is_settled(outbox: Outbox) -> None:
    # After a restore: it was waiting in the backup, and is held (docs/operations.md).
    number = await outbox.put(OutboxMessage.to_order(BUSINESS, 55, "да"))
    await becomes(outbox, number, "unknown")
    assert await outbox.settle(number, delivered=True)
    receipt = await outbox.result(number)
    assert (receipt.chat_id, receipt.confirmed_by) == (0, "person")
    (entry,) = [entry async for entry in outbox.entries()]
    assert (entry.state, entry.chat_id) == ("delivered", None)


async def test_only_what_is_unknown_is_settled(outbox: Outbox) -> None:
    number = await outbox.put(message("да"))
    assert not await outbox.settle(number, delivered=True)
    assert [entry.state async for entry in outbox.entries()] == ["waiting"]
    with pytest.raises(InvalidArgumentError, match="there is no message 99"):
        await outbox.settle(99, delivered=True)
    with pytest.raises(InvalidArgumentError, match="delivered is of type bool"):
        await outbox.settle(number, delivered="no")  # type: ignore[arg-type]


async def test_handler_is_not_told_of_what_was_settled_as_delivered(outbox: Outbox) -> None:
    number = await outbox.put(message("да"))
    await becomes(outbox, number, "unknown", untold=True, chat_id=17)
    await outbox.settle(number, delivered=True)
    assert await failures_told(outbox) == []


async def test_handler_is_not_told_of_what_was_sent_again_while_it_worked(outbox: Outbox) -> None:
    first, second = [await outbox.put(message(text)) for text in ("да", "нет")]
    for number in first, second:
        await becomes(outbox, number, "unknown", untold=True, chat_id=17)
    told: list[int] = []

    async def tell(entry: Any) -> None:
        told.append(entry.number)
        await outbox.settle(second, delivered=True)

    async with outbox.delivering({BUSINESS: "key"}, on_failure=tell):
        await asyncio.sleep(20)
    assert told == [first]


async def test_handler_is_not_told_of_what_was_withdrawn(outbox: Outbox) -> None:
    number = await outbox.put(message("да"))
    await becomes(outbox, number, "refused", untold=True)
    why = encode_outcome(ChatError("its line was removed", sent=False))
    assert await outbox._database.write(deciding.withdraw, number, why)
    assert await failures_told(outbox) == []


async def test_failure_that_nobody_was_told_of_is_kept_longer(outbox: Outbox) -> None:
    """The handler may have raised for a week."""
    numbers = [await outbox.put(message(text)) for text in ("да", "нет")]
    for number, days in zip(numbers, (29, 31), strict=True):
        ended = round((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1e6)
        await becomes(outbox, number, "refused", untold=True, ended_at=ended)
    assert await outbox.prune() == 1
    assert [entry.number async for entry in outbox.entries()] == numbers[:1]
    await becomes(outbox, numbers[0], "refused", untold=False, ended_at=ended)
    assert await outbox.prune() == 1


# Again


async def test_refused_and_expired_messages_are_sent_again_in_their_order(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=404)
        if request.operation == "send_message" and request.operation_number == 1
        else None
    )
    refused = await shop.put(message("раз"))
    expired = await shop.put(message("два", not_after=market_time(-5)))
    file = await shop.put(OutboxFile(BUSINESS, 17, b"%PDF", filename="три.pdf"))
    async with shop.delivering():
        with pytest.raises(NotFoundError):
            await shop.outbox.result(refused, timeout=60)
        with pytest.raises(MessageExpiredError):
            await shop.outbox.result(expired, timeout=60)
        await shop.outbox.result(file, timeout=60)
    later = await shop.put(message("четыре"))
    assert await shop.outbox.retry(expired)
    assert await shop.outbox.retry(refused)
    entry = await shop.got(expired)
    assert (entry.state, entry.not_after, entry.ended_at) == ("waiting", None, None)
    async with shop.delivering():
        receipts = [await shop.outbox.result(one, timeout=60) for one in (refused, expired, later)]
    assert [receipt.requests for receipt in receipts] == [2, 1, 1]
    assert texts(shop.market, 17) == [None, "раз", "два", "четыре"]


@pytest.mark.parametrize("careful", [True, False], ids=["", "without the wait"])
async def test_unknown_message_is_sent_again_when_the_first_cannot_arrive_any_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, careful: bool
) -> None:
    if not careful:
        monkeypatch.setattr(deciding, "_due_at", lambda row: None)
    lost(shop.market, arrived=False)
    number = await shop.put(message("да"))
    async with shop.delivering():
        with pytest.raises(DeliveryUnknownError) as unknown:
            await shop.outbox.result(number, timeout=600)
        assert await shop.outbox.retry(number)
        later = await shop.put(message("потом"))
        await shop.outbox.result(later, timeout=100)
        receipt = await shop.outbox.result(number, timeout=600)
    until = unknown.value.pending.until
    assert until is not None
    (again,) = (one for one in shop.market.messages(17) if one.text == "да")
    waited = again.created_at - until >= timedelta(seconds=deciding.APART)
    assert waited is careful
    assert receipt.requests == 2
    assert texts(shop.market, 17) == (["а", "потом", "да"] if careful else ["а", "да", "потом"])


@pytest.mark.parametrize(
    "decide",
    [
        lambda outbox, number: outbox.retry(number),
        lambda outbox, number: outbox.settle(number, delivered=True),
        lambda outbox, number: outbox.settle(number, delivered=False),
    ],
    ids=["again", "delivered", "not delivered"],
)
async def test_next_worker_learns_that_the_chat_may_have_a_message_of_which_somebody_decided(
    outbox: Outbox, decide: Any
) -> None:
    """The person may be wrong, and an equal text be in doubt soon."""
    number = await outbox.put(message("да"))
    until = datetime.now(UTC)
    since = until - timedelta(seconds=5)
    pending = Pending(
        business_id=BUSINESS, chat_id=17, since=since, until=until, requests=1, seen=""
    )
    await becomes(outbox, number, "unknown", pending=earlier.encode_pending(pending))
    assert await decide(outbox, number)
    moment = round(until.timestamp() * 1e6) - 60_000_000
    async with Sandbox(business_id=BUSINESS) as market:
        session = Session(market.api_key, BUSINESS, base_url=market.url)
        engine = session.departing()
        async with session:
            await session.request("GET", "/v2/campaigns", params={"limit": 1})
            known = await outbox._database.read(marks.before, BUSINESS, moment, 0, ())
            earlier.learn(engine, known, BUSINESS, session.limits, 10.0, {})
            last = engine.last_delivery(17)
    assert last is not None
    assert (last.content.text, last.surely) == ("да", False)
    assert last.latest == until.timestamp()


async def test_what_waits_or_was_delivered_is_not_sent_again(shop: Shop) -> None:
    number = await shop.put(message("да"))
    assert not await shop.outbox.retry(number)
    async with shop.delivering():
        await shop.outbox.result(number, timeout=60)
    assert not await shop.outbox.retry(number)
    with pytest.raises(InvalidArgumentError, match="there is no message 99"):
        await shop.outbox.retry(99)


async def test_message_whose_text_is_forgotten_is_not_sent_again(outbox: Outbox) -> None:
    number = await outbox.put(message("да"))
    await becomes(outbox, number, "refused", text=None)
    with pytest.raises(InvalidArgumentError, match=r"the text of message \d+ is forgotten"):
        await outbox.retry(number)
    assert [entry.state async for entry in outbox.entries()] == ["refused"]


async def test_message_that_is_sent_again_keeps_its_key(outbox: Outbox) -> None:
    number = await outbox.put(message("да", key="packed-55"))
    await becomes(outbox, number, "refused")
    assert await outbox.retry(number)
    assert await outbox.put(message("да", key="packed-55")) == number


# The overview


async def test_overview_tells_what_waits_who_delivers_and_what_was_sent(shop: Shop) -> None:
    outbox = shop.outbox
    read = outbox._database.read
    numbers = await outbox.put_many(message(str(n), 17 + n) for n in range(3))
    numbers = [*numbers, await outbox.put(OutboxFile(BUSINESS, 17, b"%PDF", filename="три.pdf"))]
    async with shop.delivering():
        for number in numbers:
            await outbox.result(number, timeout=60)
        later = market_time(3600)
        await outbox.put(message("потом", not_before=later))
        await outbox.put(OutboxMessage(77, 17, "без ключа"))
        await outbox.put(OutboxMessage(77, 18, "без ключа"))
        seen = await read(overview)
        (worker,) = seen.workers
        other, mine = seen.businesses
        assert (seen.waiting, seen.not_due, seen.leaving, seen.requests_counted) == (2, 1, 0, 4)
        assert (mine.waiting, mine.not_due, mine.oldest) == (0, 1, None)
        assert (mine.messages_in_the_hour, mine.files_in_the_hour) == (3, 1)
        assert mine.worker == worker.about
        assert (other.business_id, other.waiting, other.worker) == (77, 2, None)
        assert seen.oldest == other.oldest is not None
        assert (worker.businesses, worker.lease) == (1, 30.0)
        assert "yamarket-chat" in worker.about
        await outbox._database.write(marks.pause, BUSINESS, "401")
        only = await read(overview, BUSINESS)
        assert [(one.business_id, one.paused) for one in only.businesses] == [(BUSINESS, "401")]
        assert only.businesses[0].paused_at is not None
    assert (await read(overview)).workers == []


async def test_cancelling_a_repetition_makes_no_secret_of_the_request_before(shop: Shop) -> None:
    faults = {"send_message": Fault("reset", when="after"), "history": Fault("status", status=404)}
    shop.market.faults = lambda request: faults.get(request.operation)
    number = await shop.put(message("раз"))
    async with shop.delivering():
        await asyncio.sleep(200)
    assert (await shop.got(number)).state == "unknown"
    assert len(shop.market.messages(17)) == 1  # the buyer has it
    assert await shop.outbox.retry(number)
    assert not await shop.outbox.cancel(number)
    entry = await shop.got(number)
    assert entry.state == "unknown"
    assert isinstance(entry.error, DeliveryUnknownError)
