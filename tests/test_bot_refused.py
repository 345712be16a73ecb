"""What a handler wants to put, and the database refuses only when it commits."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection, text

from tests.bots import Shop, fewer_looks, shop, small  # noqa: F401 - fixtures
from yamarket_chat.bot import BuyerMessage
from yamarket_chat.sandbox import Fault

CHILD = text("INSERT INTO children (id) VALUES (1)")
"""It fails when the transaction is committed, and not before."""

TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger AS 'BEGIN RAISE EXCEPTION ''no''; END' LANGUAGE plpgsql;
CREATE CONSTRAINT TRIGGER refusing AFTER INSERT ON guarded
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def _tables(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE parents (id BIGINT PRIMARY KEY)"))
    connection.execute(
        text(
            "CREATE TABLE children (id BIGINT REFERENCES parents (id)"
            " DEFERRABLE INITIALLY DEFERRED)"
        )
    )


def _trigger(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE guarded (id BIGINT)"))
    for statement in TRIGGER.strip().split("\n", 1):
        connection.execute(text(statement))


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
    assert runs == 2


async def test_deferred_trigger_that_refuses_is_a_failure_of_the_handler(
    shop: Shop,  # noqa: F811
) -> None:
    if shop.outbox._database.dialect != "postgresql":
        pytest.skip("SQLite has no deferred triggers")
    await shop.outbox._database.write(_trigger)
    bot, runs = shop.bot(), 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            message.also(text("INSERT INTO guarded (id) VALUES (1)"))
        await message.reply(f"re: {message.text}")

    async with bot.running():
        shop.says("да")
        await shop.answered("да", within=200)


async def test_bot_error_whose_statement_fails_at_the_commit_is_told_of_a_reply_once(
    small: Shop,  # noqa: F811
) -> None:
    """A statement that fails at once ends as told as well, with a line in the log."""
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
        await asyncio.sleep(300)
    assert told == 1


async def test_chat_goes_on_after_a_bot_error_whose_statement_fails_at_the_commit(
    small: Shop,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    await small.outbox._database.write(_tables)
    bot, told = small.bot(max_age=3600.0), 0

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        if message.text == "нет":
            raise ValueError("нет")
        await message.reply(f"re: {message.text}")

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        nonlocal told
        told += 1
        message.also(CHILD)

    async with bot.running():
        small.says("нет")
        small.says("да")
        await small.answered("да", within=900)
    assert told == 1
    assert "a reply or a statement of Bot.error failed" in caplog.text
