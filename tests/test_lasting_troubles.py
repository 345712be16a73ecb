"""A trouble that lasts, as a wrong key does, is named by the status, and does not flood the log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from tests import bots
from tests.bots import BUSINESS, Shop
from yamarket_chat.outbox import OutboxMessage, pausing

fewer_looks, shop, small = bots.fewer_looks, bots.shop, bots.small


@pytest.mark.parametrize(
    ("trouble", "words"), [("revoked", "401"), ("inactive", "403"), ("locked", "423")]
)
async def test_status_of_a_bot_names_a_paused_business(
    small: Shop, trouble: str, words: str
) -> None:
    bot = small.bot()
    setattr(small.market, trouble, True)
    before = datetime.now(UTC)
    async with bot.running():
        await asyncio.sleep(30)
        (first,) = await bot.status()
        assert first.business_id == BUSINESS
        assert words in str(first.paused)
        assert first.began_at is None
        assert first.paused_at is not None
        assert first.paused_at >= before
        await asyncio.sleep(300)
        (later,) = await bot.status()
        assert (later.paused_at, later.began_at) == (first.paused_at, None)
        setattr(small.market, trouble, False)
        small.says("да")
        await small.answered("да", within=120)
        (mended,) = await bot.status()
        assert (mended.paused, mended.paused_at) == (None, None)
        assert mended.began_at is not None


async def test_status_of_a_bot_names_a_business_that_is_paused_later(shop: Shop) -> None:
    keys: dict[int, str] = {BUSINESS: shop.market.api_key}

    async def key_of(business_id: int) -> str | None:
        return keys.get(business_id)

    bot = shop.bot(keys=key_of)
    await shop.outbox.put(OutboxMessage(BUSINESS, 18, "Заказ собран"))
    async with bot.running():
        shop.says("раз")
        await shop.answered("раз")
        assert (await bot.status())[0].paused is None
        shop.market.revoked = True
        keys.clear()
        await asyncio.sleep(200)
        (status,) = await bot.status()
        assert "no key" in str(status.paused)
        assert status.began_at is not None
    (kept,) = await bot.status()
    assert kept.paused is not None  # also while no bot runs
    shop.market.revoked = False
    async with shop.running():
        await asyncio.sleep(20)
        assert (await bot.status())[0].paused is None


async def test_a_wrong_key_is_logged_once_an_hour(
    small: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "yamarket_chat")
    assert pausing.REMIND_EVERY == 3600
    hour = 300.0
    monkeypatch.setattr(pausing, "REMIND_EVERY", hour)  # a shorter one costs less
    hours = 2

    def said(*words: str) -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        return [text for text in texts if all(word in text for word in words)]

    bot = small.bot()
    small.market.revoked = True
    async with bot.running():
        await small.outbox.put(OutboxMessage(BUSINESS, 17, "раз"))
        await asyncio.sleep(hours * hour - 100)
        assert len(said("401", "bot")) == hours
        assert len(said("401")) == 2 * hours  # and the courier's
        small.market.revoked = False
        await small.until(lambda: small.answers())
        await asyncio.sleep(60)
        assert len(said("no longer paused", "bot")) == 1
        assert len(said("no longer paused")) == 2
        caplog.clear()

        # The same again, now that both have begun.
        small.market.revoked = True
        await small.outbox.put(OutboxMessage(BUSINESS, 17, "два"))
        await asyncio.sleep(hours * hour - 100)
        assert len(said("401", "bot")) == hours
        assert len(said("401")) == 2 * hours
        small.market.revoked = False
        await small.until(lambda: len(small.answers()) == 2)
        await asyncio.sleep(60)
        assert len(said("no longer paused")) == 2
