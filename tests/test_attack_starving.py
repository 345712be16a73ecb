"""What fails for now in one chat holds up that chat alone, however much waits in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, update

from tests.helpers import texts
from tests.shops import BUSINESS, Shop, message
from yamarket_chat import Pending
from yamarket_chat.outbox import OutboxMessage, earlier
from yamarket_chat.outbox.hand import SINGLES
from yamarket_chat.outbox.schema import messages
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)


@pytest.fixture
async def shop(tmp_path: Any) -> AsyncIterator[Shop]:
    async with Shop.open(f"sqlite:///{tmp_path}/outbox.db") as shop:
        yield shop


@pytest.mark.parametrize("many", [SINGLES // 2, SINGLES])
async def test_chat_that_fails_for_now_holds_up_no_other_chat(shop: Shop, many: int) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.chat_id == 17 else None
    )
    await shop.outbox.put_many(message(f"раз {number}") for number in range(many))
    other = await shop.put(message("другой", 18))
    async with shop.delivering():
        await shop.outbox.result(other, timeout=200)
    assert texts(shop.market, 18) == ["другой"]


@pytest.mark.parametrize("many", [SINGLES // 2, SINGLES])
async def test_order_whose_chat_does_not_open_holds_up_no_other_chat(shop: Shop, many: int) -> None:
    shop.market.faults = lambda request: (
        Fault("status", status=503) if request.operation == "create_chat" else None
    )
    await shop.outbox.put_many(
        OutboxMessage.to_order(BUSINESS, 5, f"раз {number}") for number in range(many)
    )
    other = await shop.put(message("другой", 18))
    async with shop.delivering():
        await shop.outbox.result(other, timeout=200)
    assert texts(shop.market, 18) == ["другой"]


@pytest.mark.parametrize("many", [SINGLES // 2, SINGLES])
async def test_chat_whose_marked_message_is_settled_holds_up_no_other_chat(
    shop: Shop, many: int
) -> None:
    """After a death: "the chat's history decides. Other chats do not wait"."""
    numbers = await shop.outbox.put_many(message(f"раз {number}") for number in range(many))
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
