"""A short `keep`, or a wrong clock, removes nothing that is needed for the next messages."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests import shops
from tests.helpers import texts
from tests.shops import BUSINESS, Shop, message
from yamarket_chat import Limits, Rate
from yamarket_chat._delivery import shared
from yamarket_chat.outbox import Outbox, pruning
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault, Sandbox

fewer_looks = shops.fewer_looks


@pytest.mark.parametrize(
    ("options", "ahead"),
    [
        ({}, 0.0),
        ({"keep": 1.0}, 0.0),
        ({"keep": 3600.0}, 3600.0),
        ({"forget_text": True}, 3 * 3600.0),
        ({}, 8 * 24 * 3600.0),
    ],
)
async def test_equal_text_is_not_lost_after_a_pruning(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, options: Any, ahead: float
) -> None:
    """A worker hands over to another one, whose request for an equal text never arrives.

    The storage's clock is 5 s ahead, so the first message may be taken for the second one.
    """
    url = f"sqlite:///{tmp_path}/outbox.db"
    async with (
        Sandbox(business_id=BUSINESS, storage_offset=5.0) as market,
        Outbox(url, **options) as outbox,
    ):
        shop = Shop(outbox, market)
        await outbox.create()
        first = await shop.put(message("да"))
        async with shop.delivering():
            await outbox.result(first, timeout=60)
        await asyncio.sleep(4)
        monkeypatch.setattr(
            pruning,
            "now",
            # Virtual seconds have passed that the real clock does not know of.
            lambda: round((time.time() + ahead + 30) * 1e6),
        )
        await outbox.prune()
        shared._of_loops.clear()  # as in another process
        sends = 0

        def lost(request: Any) -> Fault | None:
            nonlocal sends
            if request.operation != "send_message":
                return None
            sends += 1
            return Fault("reset", when="before") if sends == 1 else None

        market.faults = lost
        second = await shop.put(message("да"))
        async with shop.delivering():
            await outbox.result(second, timeout=600)
        assert texts(market, 17) == ["да", "да"]


@pytest.mark.parametrize("ahead", [0.0, 5 * 3600.0])
async def test_pruning_by_a_clock_that_is_hours_ahead_breaks_no_limit(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)
    limits = Limits(send_message=Rate(3, per=3600))
    async with Shop.open(f"sqlite:///{tmp_path}/outbox.db") as shop:
        shop.market.rate_limit_headers = False  # so that nobody but the outbox knows
        async with shop.delivering(limits=limits):
            for text in "абв":
                await shop.outbox.result(await shop.put(message(text)), timeout=60)
        monkeypatch.setattr(pruning, "now", lambda: round((time.time() + ahead) * 1e6))
        await shop.outbox.prune()
        shared._of_loops.clear()  # as in another process
        fourth = await shop.put(message("г"))
        async with shop.delivering(limits=limits):
            with pytest.raises(TimeoutError):
                await shop.outbox.result(fourth, timeout=600)
        assert texts(shop.market, 17) == ["а", "б", "в"]
