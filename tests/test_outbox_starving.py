"""What fails for now in one chat holds up that chat alone, however much waits in it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, update

from tests import shops
from tests.helpers import texts
from tests.shops import BUSINESS, Shop, message
from yamarket_chat import Pending, Retry
from yamarket_chat.outbox import OutboxMessage, earlier
from yamarket_chat.outbox.hand import SINGLES
from yamarket_chat.outbox.schema import messages
from yamarket_chat.sandbox import Fault

fewer_looks = shops.fewer_looks
shop = shops.small


async def test_chat_that_fails_for_now_holds_up_no_other_chat(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.chat_id == 17 else None
    )
    await shop.outbox.put_many(message(f"раз {number}") for number in range(SINGLES))
    other = await shop.put(message("другой", 18))
    async with shop.delivering():
        await shop.outbox.result(other, timeout=200)
    assert texts(shop.market, 18) == ["другой"]


async def test_chats_that_fail_for_now_hold_up_no_other_chat(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        None if request.chat_id == 18 else Fault("status", status=503)
    )
    await shop.outbox.put_many(message("раз", 100 + number) for number in range(SINGLES))
    other = await shop.put(message("другой", 18))
    async with shop.delivering(retry=Retry(attempts=1)):
        await shop.outbox.result(other, timeout=200)
    assert texts(shop.market, 18) == ["другой"]


async def test_orders_whose_chats_do_not_open_hold_up_no_other_chat(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.operation == "create_chat" else None
    )
    await shop.outbox.put_many(
        OutboxMessage.to_order(BUSINESS, 1 + number, "раз") for number in range(SINGLES)
    )
    other = await shop.put(message("другой", 18))
    async with shop.delivering(retry=Retry(attempts=1)):
        await shop.outbox.result(other, timeout=200)
    assert texts(shop.market, 18) == ["другой"]


async def test_all_messages_of_a_chat_with_many_are_sent_in_order(shop: Shop) -> None:
    """Also those for which there was no room at first, and an order's."""
    said = [f"раз {number}" for number in range(SINGLES + 40)]
    await shop.outbox.put_many(message(text) for text in said)
    await shop.outbox.put_many(OutboxMessage.to_order(BUSINESS, 5, text) for text in said)
    async with shop.delivering():
        while (await shop.outbox.status()).waiting:
            await asyncio.sleep(60)
    assert texts(shop.market, 17) == said
    order = await shop.got(2 * len(said))
    assert order.chat_id is not None
    assert texts(shop.market, order.chat_id) == said


async def test_order_whose_chat_does_not_open_holds_up_no_other_chat(shop: Shop) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.operation == "create_chat" else None
    )
    await shop.outbox.put_many(
        OutboxMessage.to_order(BUSINESS, 5, f"раз {number}") for number in range(SINGLES)
    )
    other = await shop.put(message("другой", 18))
    async with shop.delivering():
        await shop.outbox.result(other, timeout=200)
    assert texts(shop.market, 18) == ["другой"]


async def test_chat_whose_marked_message_is_settled_holds_up_no_other_chat(
    shop: Shop,
) -> None:
    """After a death: "the chat's history decides. Other chats do not wait"."""
    numbers = await shop.outbox.put_many(message(f"раз {number}") for number in range(SINGLES))
    other = await shop.put(message("другой", 18))
    since = datetime.fromtimestamp(time.time(), UTC)
    pending = Pending(
        business_id=BUSINESS,
        chat_id=17,
        since=since,
        until=since + timedelta(seconds=15),
        requests=1,
        seen="",
    )

    def mark(connection: Connection) -> None:
        values = {
            "state": "leaving",
            "request": 1,
            "epoch": 0,
            "pending": earlier.encode_pending(pending),
            "timeout": 15.0,
            "settle_after": 15.0,
        }
        connection.execute(update(messages).where(messages.c.number == numbers[0]).values(values))

    await shop.outbox._database.write(mark)
    async with shop.delivering():
        await shop.outbox.result(other, timeout=15)
    assert texts(shop.market, 18) == ["другой"]
