"""Smaller faults: each is one sentence of the documentation that does not hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text

from tests.shops import Shop, message
from yamarket_chat.outbox import Outbox, OutboxDatabaseError
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)


@pytest.fixture
async def small(tmp_path: Any) -> AsyncIterator[Shop]:
    async with Shop.open(f"sqlite:///{tmp_path}/outbox.db") as shop:
        yield shop


async def test_cancelled_message_has_surely_not_left(small: Shop) -> None:
    """`cancel`: "True if the message has not left and never will"."""
    faults = {"send_message": Fault("reset", when="after"), "history": Fault("status", status=404)}
    small.market.faults = lambda request: faults.get(request.operation)
    number = await small.put(message("раз"))
    async with small.delivering():
        await asyncio.sleep(200)
    assert (await small.got(number)).state == "unknown"
    assert len(small.market.messages(17)) == 1  # the buyer has it
    assert await small.outbox.retry(number)
    assert not await small.outbox.cancel(number)


async def test_commit_is_durable_though_the_server_was_told_otherwise_meanwhile(
    postgres: Any, postgres_url: Any
) -> None:
    """ "whatever the server's or the role's setting is": it is read as a connection begins."""
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        admin = create_engine(postgres, isolation_level="AUTOCOMMIT")

        def seen(connection: Connection) -> Any:
            return connection.scalar(text("SHOW synchronous_commit"))

        try:
            with admin.connect() as connection:
                connection.exec_driver_sql("ALTER SYSTEM SET synchronous_commit = off")
                connection.exec_driver_sql("SELECT pg_reload_conf()")
                while connection.scalar(text("SHOW synchronous_commit")) != "off":
                    time.sleep(0.02)
            time.sleep(0.1)
            assert await outbox._database.write(seen) != "off"
        finally:
            with admin.connect() as connection:
                connection.exec_driver_sql("ALTER SYSTEM RESET synchronous_commit")
                connection.exec_driver_sql("SELECT pg_reload_conf()")
            admin.dispose()


async def test_statement_that_took_too_long_may_work_later(postgres_url: Any) -> None:
    """With `statement_timeout` of a role: else a busy server ends `deliver` and `result`."""
    async with Outbox(postgres_url) as outbox:
        await outbox.create()

        def slow(connection: Connection) -> None:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 10")
            connection.exec_driver_sql("SELECT pg_sleep(5)")

        with pytest.raises(OutboxDatabaseError) as caught:
            await outbox._database.read(slow)
        assert caught.value.retry_after is not None
