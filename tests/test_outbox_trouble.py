"""What can go wrong around a delivery: each trouble is said, and loses and doubles nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import URL, Connection, create_engine, event

from tests import shops
from tests.helpers import now, texts
from tests.shops import BUSINESS, message
from tests.test_outbox_courier import forget_what_this_loop_knows
from tests.test_outbox_database import losing_commits
from yamarket_chat import connector
from yamarket_chat.limits import CUT_OFF
from yamarket_chat.outbox import (
    MessageExpiredError,
    Outbox,
    OutboxDatabaseError,
    OutboxFile,
    OutboxMessage,
    feed,
    lease,
)
from yamarket_chat.outbox import database as database_room
from yamarket_chat.outbox.database import Database
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Fault, Sandbox
from yamarket_chat.system import wall_time


class Shop(shops.Shop):
    """An outbox and a Market, and another program that uses the same database."""

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
    async with Shop.open(database_url) as shop:
        yield shop


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


async def test_delivery_that_begins_while_a_program_locks_sqlite_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database_room, "PATIENCE", 0.02)  # of the real clock
    async with (
        Sandbox(business_id=BUSINESS) as market,
        Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox,
    ):
        await outbox.create()
        number = await outbox.put(message("раз"))
        other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(20, other.close)
        async with Shop(outbox, market).delivering():
            await outbox.result(number, timeout=60)
        assert "the delivery begins later" in caplog.text
        assert "another program holds it locked for long" in caplog.text
        assert len(list(tmp_path.glob("*-worker-*"))) == 0


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
        aiohttp.ClientSession(headers=headers, connector=connector()) as http,
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
    began = datetime.fromtimestamp(wall_time(asyncio.get_running_loop()), UTC)
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


# A database that fails on the way


@contextmanager
def full_disk(shop: Shop) -> Iterator[None]:
    """Let nothing be written that needs more space."""
    if shop.outbox._database.dialect == "sqlite":
        engine = shop.outbox._database._open()
        pages = [1]  # as many as there are

        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages[-1]}")

        event.listen(engine, "begin", begin)
        yield
        pages.append(1_000_000)
    else:
        shop.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$",
            "CREATE TRIGGER full_disk BEFORE UPDATE ON yamarket_outbox_messages"
            " EXECUTE FUNCTION full_disk()",
        )
        yield
        shop.execute("DROP TRIGGER full_disk ON yamarket_outbox_messages")


async def test_full_disk_stops_the_delivery_until_there_is_room(shop: Shop) -> None:
    expected = [f"{number} {'Заказ собран. ' * 10}".strip() for number in range(10)]
    await shop.outbox.put_many(message(text, chat) for text in expected for chat in (17, 18, 19))
    shop.market.latency = 2.0
    async with shop.delivering():
        await asyncio.sleep(10)  # some are under way, and their ends find no room
        with full_disk(shop):
            await asyncio.sleep(60)
            assert (await shop.outbox.status()).waiting > 0
        while (status := await shop.outbox.status()).waiting or status.leaving:
            await asyncio.sleep(10)
    assert [texts(shop.market, chat) for chat in (17, 18, 19)] == [expected] * 3
    entries = [await shop.got(number) for number in range(1, 31)]
    assert {entry.state for entry in entries} == {"delivered"}


async def test_delivery_to_a_read_only_database_says_so(
    database_url: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Outbox(database_url) as outbox:
        await outbox.create()
    if outbox._database.dialect == "sqlite":
        monkeypatch.setattr(database_room.Database._connect_sqlite, "__defaults__", ("ro",))
        with pytest.raises(OutboxDatabaseError, match="let this user write the file"):
            await outbox.deliver({BUSINESS: "key"})
    else:  # a standby, which may become the primary
        options = f"{database_url.query['options']} -c default_transaction_read_only=on"
        async with Outbox(database_url.update_query_dict({"options": options})) as standby:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(30):
                    await standby.deliver({BUSINESS: "key"})
        assert "it is read-only: connect to the primary server" in caplog.text


async def test_program_that_locks_sqlite_for_a_minute_holds_up_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_room, "PATIENCE", 0.02)  # of the real clock
    monkeypatch.setattr(lease, "Database", lambda url, patience: Database(url, patience=0.02))
    async with (
        Sandbox(business_id=BUSINESS, latency=2.0) as market,
        Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox,
    ):
        await outbox.create()
        shop = Shop(outbox, market)
        await outbox.put_many(message(str(number)) for number in range(5))
        async with shop.delivering():
            while not market.requests("send_message"):
                await asyncio.sleep(0.1)
            other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(60)
            assert texts(market, 17) == ["0"]
            other.close()
            receipts = [await outbox.result(number, timeout=100) for number in range(1, 6)]
        assert [receipt.requests for receipt in receipts] == [1] * 5
        assert texts(market, 17) == ["0", "1", "2", "3", "4"]


async def test_rows_that_a_program_locks_for_a_minute_hold_up_their_chat_only(
    postgres_url: URL,
) -> None:
    engine = create_engine(postgres_url)
    async with Sandbox(business_id=BUSINESS) as market, Outbox(postgres_url) as outbox:
        await outbox.create()
        shop = Shop(outbox, market)
        numbers = [await outbox.put(message(text)) for text in ("раз", "два")]
        other = await outbox.put(message("другой", 18))
        lock = "SELECT 1 FROM yamarket_outbox_messages WHERE chat_id = 17 FOR UPDATE"
        with engine.begin() as connection:
            connection.exec_driver_sql(lock)
            async with shop.delivering():
                await outbox.result(other, timeout=60)
                await asyncio.sleep(60)
                assert texts(market, 17) == []
                connection.commit()
                for number in numbers:
                    await outbox.result(number, timeout=60)
        assert texts(market, 17) == ["раз", "два"]
    engine.dispose()


# Two versions at work, and two processes


async def test_older_program_delivers_from_tables_with_new_columns(shop: Shop) -> None:
    """As during a rolling deploy: the newer program has changed the tables already."""
    tables = "messages", "files", "chats", "workers", "leases", "counts"
    shop.execute(
        "UPDATE yamarket_outbox_schema SET version = 2",
        *(
            f"ALTER TABLE yamarket_outbox_{table} ADD COLUMN colour TEXT DEFAULT 'red' NOT NULL"
            for table in tables
        ),
    )
    numbers = await shop.outbox.put_many(
        [
            message("раз"),
            OutboxFile(BUSINESS, 18, b"%PDF-", filename="a.pdf"),
            OutboxMessage.to_order(BUSINESS, 55, "Ваш заказ"),
            message("позже", not_after=datetime(2020, 1, 1, tzinfo=UTC)),
        ]
    )
    async with shop.delivering():
        for number in numbers[:3]:
            await shop.outbox.result(number, timeout=60)
        with pytest.raises(MessageExpiredError):
            await shop.outbox.result(numbers[3], timeout=60)


@pytest.mark.parametrize("oldest", [1, 2])
async def test_worker_stops_when_the_tables_become_too_new_for_it(
    shop: Shop, caplog: pytest.LogCaptureFixture, oldest: int
) -> None:
    """A newer program has changed them while this one delivers."""
    async with shop.delivering():
        await shop.outbox.result(await shop.outbox.put(message("раз")), timeout=60)
        newer = "UPDATE yamarket_outbox_schema SET version = 3, oldest_reader = "
        shop.execute(newer + str(oldest))
        await asyncio.sleep(30)
        number = await shop.outbox.put(message("два"))
        await asyncio.sleep(60)
        assert (await shop.got(number)).state == ("delivered" if oldest == 1 else "waiting")
    assert ("update yamarket-chat" in caplog.text) is (oldest > 1)
    assert texts(shop.market, 17) == ["раз", "два"][: 3 - oldest]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_process_that_delivers_may_be_forked(shop: Shop) -> None:
    """The child puts, and delivers as a worker of its own. What the parent holds stays its own."""

    async def in_child() -> None:
        await shop.outbox.put(message("из ребёнка"))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await shop.outbox.deliver({BUSINESS: "a wrong key"}, lease=0.2)

    async with shop.delivering():
        first = await shop.outbox.put(message("раз"))
        await shop.outbox.result(first, timeout=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
            child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.events._set_running_loop(None)
                asyncio.new_event_loop().run_until_complete(in_child())
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        await shop.outbox.result(first + 1, timeout=60)
        await shop.outbox.result(await shop.outbox.put(message("два")), timeout=60)
    assert texts(shop.market, 17) == ["раз", "из ребёнка", "два"]
    assert (await shop.outbox.status()).paused == {}


async def test_reads_of_a_dead_process_may_cause_420s_and_nothing_else(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has noted them, and the Market is still at them when another process takes over."""
    numbers = []
    for chat in range(1, 5):
        for text in ("раз", "два"):
            numbers.append(await shop.outbox.put(message(text, chat)))
            numbers.append(await shop.outbox.put(OutboxMessage.to_order(BUSINESS, chat, text)))
    reads = shop.market.other_programs_hold(3)
    reads.__enter__()
    asyncio.get_running_loop().call_later(CUT_OFF, reads.__exit__, None, None, None)
    shop.market.latency = 0.5
    async with shop.delivering():
        receipts = [await shop.outbox.result(number, timeout=100) for number in numbers]
        assert (await shop.outbox.status()).paused == {}
    assert shop.market.refused > 0
    assert {receipt.confirmed_by for receipt in receipts} == {"answer"}
    chats = [texts(shop.market, chat) for chat in shop.market.chat_ids]
    assert chats == [["раз", "два"]] * 8
    assert warnings_of(caplog) == []


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
