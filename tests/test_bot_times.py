"""Messages whose time is not when they were written."""

from __future__ import annotations

import asyncio

import pytest

from tests.bots import Shop, fewer_looks, small  # noqa: F401 - fixtures
from yamarket_chat.outbox.watching import LOOKS


@pytest.mark.parametrize("ahead", [1800.0, 2 * 3600.0, 48 * 3600.0])
async def test_message_whose_time_is_ahead_hides_no_later_one(
    small: Shop,  # noqa: F811
    ahead: float,
) -> None:
    async with small.running():
        small.market._clock._storage_offset = ahead
        small.says("из будущего")
        await small.answered("из будущего", within=300)
        small.market._clock._storage_offset = 0.0
        small.says("да")
        await small.answered("из будущего", "да", within=1200)


async def test_message_whose_time_is_ahead_is_answered_once_when_that_time_has_come(
    small: Shop,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOOKS, "sqlite", 60.0)
    async with small.running(every=300.0, lease=300.0):
        small.market._clock._storage_offset = 3600.0
        small.says("из будущего")
        small.market._clock._storage_offset = 0.0
        await small.answered("из будущего", within=900)
        texts = ["из будущего"]
        for number in range(4):  # the last ones when it is more than an hour ago
            await asyncio.sleep(2400)
            small.says(f"{number}")
            texts.append(f"{number}")
            await small.answered(*texts, within=1200)


async def test_message_whose_time_is_ahead_does_not_stand_for_a_later_one_that_shows_late(
    small: Shop,  # noqa: F811
) -> None:
    async with small.running():
        small.market._clock._storage_offset = 2 * 3600.0
        small.says("из будущего")
        await small.answered("из будущего", within=300)
        small.market._clock._storage_offset = 0.0
        await asyncio.sleep(60)
        small.market._state._history_delay = 120.0
        small.says("да")
        await small.answered("из будущего", "да", within=600)
