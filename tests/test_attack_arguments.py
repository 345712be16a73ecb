"""What is passed, and must be refused, or must not be shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import create_engine

from tests.shops import BUSINESS, Shop, message
from yamarket_chat import InvalidArgumentError
from yamarket_chat.outbox import Outbox
from yamarket_chat.outbox.watching import LOOKS


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)
    monkeypatch.setitem(LOOKS, "postgresql", 1.0)


@pytest.fixture
async def shop(database_url: Any) -> AsyncIterator[Shop]:
    async with Shop.open(database_url) as shop:
        yield shop


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
