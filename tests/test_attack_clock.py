"""One message of a buyer whose time is wrong by hours must not hide those that follow."""

from __future__ import annotations

import pytest

from tests.bots import Shop, fewer_looks, small  # noqa: F401 - fixtures


@pytest.mark.parametrize("ahead", [0.0, 1800.0, 2 * 3600.0])
async def test_a_message_of_the_future_hides_no_later_one(
    small: Shop,  # noqa: F811
    ahead: float,
) -> None:
    async with small.running():
        small.market._clock._storage_offset = ahead
        small.says("из будущего")
        await small.answered("из будущего", within=300)
        small.market._clock._storage_offset = 0.0
        small.says("да")
        await small.until(lambda: "re: да" in small.answers(), within=1200)
