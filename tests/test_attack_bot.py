"""A bot whose commit can never succeed, and one whose keys function raises CancelledError."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text

from tests.bots import Shop, fewer_looks, shop, small, told_of  # noqa: F401 - fixtures
from yamarket_chat.bot import BuyerMessage
from yamarket_chat.sandbox import Fault

CHILD = text("INSERT INTO children (id) VALUES (1)")
"""It fails when the transaction is committed, and not before."""


def _tables(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE parents (id BIGINT PRIMARY KEY)"))
    connection.execute(
        text(
            "CREATE TABLE children (id BIGINT REFERENCES parents (id)"
            " DEFERRABLE INITIALLY DEFERRED)"
        )
    )


async def test_statement_that_fails_at_the_commit_is_a_failure_of_the_handler(
    shop: Shop,  # noqa: F811
) -> None:
    """`also`: "If it fails, nothing is put, and the handler counts as failed"."""
    await shop.outbox._database.write(_tables)
    bot, runs = shop.bot(), 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            message.also(CHILD)
        await message.reply(f"re: {message.text}")

    async with bot.running():
        shop.says("да")
        await shop.answered("да", within=200)


async def test_bot_error_whose_statement_fails_at_the_commit_is_not_told_for_ever(
    small: Shop,  # noqa: F811
) -> None:
    """A statement that fails at once ends as told, with a line in the log."""
    await small.outbox._database.write(_tables)
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    bot, told = small.bot(), 0

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        nonlocal told
        told += 1
        message.also(CHILD)

    async with bot.running():
        small.says("да")
        await asyncio.sleep(1200)
    assert told <= 5


async def test_keys_that_raises_cancelled_error_is_asked_again(small: Shop) -> None:  # noqa: F811
    calls = 0

    async def keys(business_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return small.market.api_key

    bot = small.bot(keys=keys)
    async with bot.running():
        await bot.hear(told_of(small.says("да")))
        await small.answered("да", within=300)


async def test_reply_that_the_database_cannot_store_is_a_failure_of_the_handler(
    postgres: Any,
) -> None:
    """A database of another encoding than UTF8. `create` may as well refuse it."""
    if isinstance(postgres, str):
        pytest.skip(postgres)
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE attacked ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )
    try:
        async with Shop.open(postgres.set(database="attacked")) as shop:
            bot, runs = shop.bot(), 0

            @bot.message
            async def answer(message: BuyerMessage) -> None:
                nonlocal runs
                runs += 1
                await message.reply("😀" if runs == 1 else "да")

            async with bot.running():
                shop.says("да")
                await shop.until(shop.answers, within=200)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE attacked WITH (FORCE)")
        admin.dispose()
