"""What can go wrong around a delivery: each trouble is said, and loses and doubles nothing."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import URL, create_engine

from tests.helpers import now, texts
from tests.test_outbox_courier import forget_what_this_loop_knows
from tests.test_outbox_database import losing_commits
from yamarket_chat.outbox import (
    Outbox,
    OutboxDatabaseError,
    OutboxEntry,
    OutboxFile,
    OutboxMessage,
    feed,
    lease,
)
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault, Sandbox

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
    """Look less often in virtual time: a look takes real time."""
    monkeypatch.setitem(LOOKS, "sqlite", 5.0)
    monkeypatch.setitem(LOOKS, "postgresql", 5.0)
    monkeypatch.setattr(lease, "LOOK", 5.0)
    monkeypatch.setattr(feed, "TIMES", 5.0)


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


# Somebody else who sends for the business


async def old_program_says(market: Sandbox, text: str) -> None:
    """Send as a program that shares nothing with the outbox."""
    url = f"{market.url}/v2/businesses/{BUSINESS}/chats/message?chatId=99"
    headers = {"Api-Key": market.api_key}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(url, json={"message": text}) as response,
    ):
        assert response.status == 200


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records]
    return [one for one in said if "somebody else sends" in one]


async def minutes(shop: Shop, count: int) -> None:
    """Deliver a message a minute."""
    for minute in range(count):
        number = await shop.outbox.put(message(str(minute)))
        await shop.outbox.result(number, timeout=600)
        await asyncio.sleep(60)


async def test_somebody_else_who_sends_is_warned_of_once_an_hour(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    began = datetime.now(UTC)
    async with shop.delivering():
        await minutes(shop, 3)
        assert warnings_of(caplog) == []
        await old_program_says(shop.market, "чужой")
        await minutes(shop, 4)
        (warning,) = warnings_of(caplog)
        assert f"business {BUSINESS}: somebody else sends" in warning
        assert "at least 1 messages" in warning
        others = (await shop.outbox.status()).others
        assert began < others[BUSINESS]
        assert (await shop.outbox.status(BUSINESS + 1)).others == {}
        await minutes(shop, 3)
        assert len(warnings_of(caplog)) == 1
        shop.execute("UPDATE yamarket_outbox_leases SET others_at = others_at - 3600000000")
        await minutes(shop, 2)
        assert len(warnings_of(caplog)) == 2
    assert (await shop.outbox.status()).others[BUSINESS] > others[BUSINESS]


@pytest.mark.parametrize("counted", [True, False])
async def test_what_an_earlier_worker_sent_is_nobody_elses(
    shop: Shop, caplog: pytest.LogCaptureFixture, counted: bool
) -> None:
    """Those that it gave up as well, and what either of them reads. Not so if it is not counted."""
    market = shop.market
    market.faults = lambda request: (
        Fault("no_answer", when="after") if request.operation_number % 3 == 1 else None
    )
    for chat in range(1, 8):
        await shop.outbox.put(message("Привет", chat))
        await shop.outbox.put(OutboxMessage.to_order(BUSINESS, chat, "Ваш заказ"))
        await shop.outbox.put(OutboxFile(BUSINESS, chat, b"%PDF-", filename="a.pdf"))
    async with shop.delivering():
        await asyncio.sleep(40)
    forget_what_this_loop_knows()
    if not counted:
        shop.execute("DELETE FROM yamarket_outbox_counts")
    async with shop.delivering():
        await minutes(shop, 6)
        assert not (await shop.outbox.status()).waiting
        assert bool((await shop.outbox.status()).others) is not counted
    assert len(warnings_of(caplog)) == (0 if counted else 1)
    assert market.requests("history") > 5
