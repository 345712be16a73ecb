"""What an outbox is given: what makes no sense is refused, and secrets are shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine

from tests import shops
from tests.shops import BUSINESS, Shop, message
from yamarket_chat import InvalidArgumentError
from yamarket_chat.outbox import Outbox, OutboxDatabaseError

fewer_looks = shops.fewer_looks
shop = shops.shop


async def test_connection_of_an_engine_that_commits_by_itself_is_refused(shop: Shop) -> None:
    """The same as a connection with this option, which is refused already."""
    engine = create_engine(shop.outbox._database.url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            with pytest.raises(InvalidArgumentError):
                await shop.outbox.put(message("раз"), connection=connection)
            connection.rollback()
    finally:
        engine.dispose()
    assert (await shop.outbox.status()).waiting == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/outbox?user=shop&password=hidden",  # as libpq allows
        "postgresql://shop@host/outbox?sslpassword=hidden",
        "postgresql://shop:p@hidden@host/outbox",  # an @ of the password that is not written %40
    ],
)
def test_password_is_shown_nowhere(url: str) -> None:
    shown = ""
    try:
        shown = repr(Outbox(url))
    except InvalidArgumentError as error:
        shown = str(error)
    assert "hidden" not in shown


async def test_prefix_that_cannot_be_stored_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidArgumentError):
        async for _ in shop.outbox.entries(key_prefix="\ud800"):
            pass


async def test_wrong_id_that_is_added_to_keys_later_holds_up_no_other(shop: Shop) -> None:
    keys: dict[int, str] = {}
    number = await shop.put(message("раз"))
    async with shop.delivering(keys=keys, lease=6.0):
        keys[2**70] = "x"
        keys[BUSINESS] = shop.market.api_key
        await shop.outbox.result(number, timeout=100)


async def test_lease_within_which_no_worker_can_beat_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidArgumentError, match=r"at least 0\.1 s"):
        await shop.outbox.deliver({BUSINESS: "key"}, lease=0.01)


async def test_put_into_a_file_that_was_replaced_is_not_lost(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/outbox.db"
    async with Outbox(url) as web, Outbox(url) as other:
        await web.create()
        await web.put(message("раз"))
        for path in tmp_path.iterdir():  # as by `mv backup.db outbox.db`
            path.unlink()
        await other.create()
        try:
            number = await web.put(message("два"))
        except OutboxDatabaseError:
            return
        entry = await other.get(number)
        assert entry is not None, "accepted, and in no file that anybody can open"
        assert entry.text == "два"
