"""What can go wrong around a delivery: each trouble is said, and loses and doubles nothing."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, event

from tests.helpers import now, texts
from tests.test_outbox_database import losing_commits
from yamarket_chat.outbox import (
    Outbox,
    OutboxDatabaseError,
    OutboxEntry,
    OutboxFile,
    OutboxMessage,
    lease,
    schema,
)
from yamarket_chat.outbox import database as database_room
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Sandbox

BUSINESS = 12345


def message(text: str, chat_id: int = 17, **options: Any) -> OutboxMessage:
    return OutboxMessage(BUSINESS, chat_id, text, **options)


class Shop:
    """An outbox and a Market."""

    def __init__(self, outbox: Outbox, market: Sandbox) -> None:
        self.outbox = outbox
        self.market = market

    def delivering(self, **options: Any) -> AbstractAsyncContextManager[None]:
        keys = {BUSINESS: self.market.api_key}
        return self.outbox.delivering(keys, base_url=self.market.url, **options)

    async def got(self, number: int) -> OutboxEntry:
        entry = await self.outbox.get(number)
        assert entry is not None
        return entry

    def execute(self, *statements: str) -> None:
        """Execute statements as another program would."""
        engine = create_engine(self.outbox._database.url)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()


@pytest.fixture(autouse=True)
def fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once in a virtual second: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 1.0)
    monkeypatch.setitem(LOOKS, "postgresql", 1.0)


@pytest.fixture
async def shop(database_url: Any) -> AsyncIterator[Shop]:
    async with Sandbox(business_id=BUSINESS) as market, Outbox(database_url) as outbox:
        await outbox.create()
        yield Shop(outbox, market)


# A database that is away as the delivery begins


async def test_delivery_that_begins_before_its_database_waits_for_it(
    postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        number = await outbox.put(message("раз"))
    with (
        losing_commits(postgres_url, lambda _: False) as up,
        tempfile.TemporaryDirectory(prefix="late-") as folder,
    ):
        where = ".s.PGSQL.5432"
        late = up.update_query_dict({"host": folder})
        async with Sandbox(business_id=BUSINESS) as market, Outbox(late) as outbox:
            delivery = asyncio.create_task(
                outbox.deliver({BUSINESS: market.api_key}, base_url=market.url)
            )
            await asyncio.sleep(120)
            assert not delivery.done()
            Path(folder, where).symlink_to(Path(str(up.query["host"]), where))
            while (await outbox.status()).waiting:
                await asyncio.sleep(1)
            await outbox.result(number, timeout=60)
            assert texts(market, 17) == ["раз"]
            delivery.cancel()
            await asyncio.wait({delivery})
    said = [record.getMessage() for record in caplog.records if "waits" in record.getMessage()]
    assert 5 < len(said) < 15  # 1, 2, 4, 8 s, and then each 15 s
    assert "it cannot be reached: check the address" in said[0]


async def test_delivery_that_waits_for_its_database_can_be_stopped(postgres_url: URL) -> None:
    async with Outbox(postgres_url.update_query_dict({"host": "/no/such/folder"})) as outbox:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60), outbox.delivering({BUSINESS: "key"}):
                raise AssertionError


@contextmanager
def refusing(code: str, text: str) -> Iterator[str]:
    """A server that refuses each connection as PostgreSQL does. After a password, for class 28."""
    with (
        tempfile.TemporaryDirectory(prefix="refusing-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{folder}/.s.PGSQL.5432")
        listener.listen()

        def packet(kind: bytes, content: bytes) -> bytes:
            return kind + (len(content) + 4).to_bytes(4, "big") + content

        def serve() -> None:
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(10_000)
                    if code.startswith("28"):
                        client.sendall(packet(b"R", (3).to_bytes(4, "big")))
                        client.recv(10_000)
                    fields = f"SFATAL\0C{code}\0M{text}\0\0"
                    client.sendall(packet(b"E", fields.encode()))

        def quietly() -> None:
            with suppress(OSError):
                serve()

        thread = threading.Thread(target=quietly)
        thread.start()
        try:
            yield folder
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("code", "text", "passes"),
    [
        ("57P03", "the database system is starting up", True),
        ("57P03", "система баз данных запускается", True),
        ("57P03", "the database system is not yet accepting connections", True),
        ("53300", "sorry, too many clients already", True),
        ("XX000", "etwas Unbekanntes", True),
        ("28P01", 'password authentication failed for user "scott"', False),
        ("28P01", "Passwort-Authentifizierung fehlgeschlagen", False),
        ("3D000", 'database "shop" does not exist', False),
        ("42000", 'no pg_hba.conf entry for host "10.0.0.1"', False),
    ],
)
async def test_server_that_refuses_connections_is_waited_for_if_that_may_pass(
    code: str, text: str, passes: bool
) -> None:
    pytest.importorskip("psycopg")
    with refusing(code, text) as folder:
        url = f"postgresql://scott:tiger@/shop?host={folder}&sslmode=disable&gssencmode=disable"
        if code == "42000":
            url = url.replace(":tiger", "")
        outbox = Outbox(url)
        with pytest.raises(TimeoutError if passes else OutboxDatabaseError) as caught:
            async with asyncio.timeout(30):
                await outbox.deliver({BUSINESS: "key"})
        await outbox.close()
    if not passes:
        assert text in str(caught.value)
        assert "check the address, the user, the password" in str(caught.value)
        assert "tiger" not in str(caught.value)


async def test_delivery_from_tables_that_are_missing_or_too_new_fails_at_once(
    database_url: Any,
) -> None:
    async def failure() -> str:
        began = now()
        async with Outbox(database_url) as outbox:
            with pytest.raises(OutboxDatabaseError) as caught:
                await outbox.deliver({BUSINESS: "key"})
        assert now() < began + 0.5
        return str(caught.value)

    assert "`await outbox.create()`" in await failure()
    async with Outbox(database_url) as outbox:
        await outbox.create()
    newer = "UPDATE yamarket_outbox_schema SET version = 3, oldest_reader = 2"
    async with Outbox(database_url) as outbox, Sandbox() as market:
        Shop(outbox, market).execute(newer)
    assert "update yamarket-chat" in await failure()
