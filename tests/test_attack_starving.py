"""What fails for now in one chat holds up that chat alone, however much waits in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.helpers import texts
from tests.shops import BUSINESS, Shop, message
from yamarket_chat.outbox import OutboxMessage
from yamarket_chat.outbox.hand import SINGLES
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
async def test_order_whose_chat_does_not_open_holds_up_no_other_chat(
    shop: Shop, many: int
) -> None:
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
