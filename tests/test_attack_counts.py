"""The counts for the limits are of the Market's clock; this machine's removes them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.helpers import texts
from tests.shops import Shop, message
from yamarket_chat import Limits, Rate
from yamarket_chat._delivery import shared
from yamarket_chat.outbox import outbox as outbox_module
from yamarket_chat.outbox.watching import LOOKS


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
        monkeypatch.setattr(outbox_module, "now", lambda: round((time.time() + ahead) * 1e6))
        await shop.outbox.prune()
        shared._of_loops.clear()  # as in another process
        fourth = await shop.put(message("г"))
        async with shop.delivering(limits=limits):
            with pytest.raises(TimeoutError):
                await shop.outbox.result(fourth, timeout=600)
        assert texts(shop.market, 17) == ["а", "б", "в"]
