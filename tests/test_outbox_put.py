"""Putting messages into the outbox: keys, many at once, transactions of the caller's, plain SQL."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.postgres import address
from tests.virtual import run
from yamarket_chat import InvalidArgumentError
from yamarket_chat.outbox import (
    KeyConflictError,
    Outbox,
    OutboxDatabaseError,
    OutboxEntry,
    OutboxFile,
    OutboxMessage,
)

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def message(text: str = "Заказ собран", chat_id: int = 17, **options: Any) -> OutboxMessage:
    return OutboxMessage(12345, chat_id, text, **options)


@pytest.fixture
async def outbox(database_url: Any) -> AsyncIterator[Outbox]:
    async with Outbox(database_url) as made:
        await made.create()
        yield made


async def got(outbox: Outbox, number: int) -> OutboxEntry:
    entry = await outbox.get(number)
    assert entry is not None
    return entry


async def remove(outbox: Outbox, numbers: list[int]) -> None:
    for number in numbers:
        await outbox.cancel(number)
    outbox._keep = -60.0
    await outbox.prune()


async def waiting(outbox: Outbox) -> int:
    return (await outbox.status()).waiting


# What is put


async def test_message_waits_after_it_was_put(outbox: Outbox) -> None:
    number = await outbox.put(message("Привет", key="a", bulk=True, not_after=NOON))
    entry = await got(outbox, number)
    assert (entry.number, entry.state, entry.requests) == (number, "waiting", 0)
    assert (entry.business_id, entry.chat_id, entry.text) == (12345, 17, "Привет")
    assert (entry.key, entry.bulk, entry.not_before, entry.not_after) == ("a", True, None, NOON)
    assert abs(entry.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (entry.receipt, entry.error, entry.ended_at) == (None, None, None)


async def test_message_to_an_order_or_a_return_has_no_chat_yet(outbox: Outbox) -> None:
    order = await got(outbox, await outbox.put(OutboxMessage.to_order(12345, 55, "Собран")))
    back = await got(outbox, await outbox.put(OutboxMessage.to_return(12345, "7", "Принят")))
    assert (order.chat_id, order.order_id, order.return_id) == (None, 55, None)
    assert (back.chat_id, back.order_id, back.return_id) == (None, None, 7)


async def test_file_is_stored_with_its_name_and_size(outbox: Outbox, tmp_path: Path) -> None:
    path = tmp_path / "чек.pdf"
    path.write_bytes(b"paper")
    entry = await got(outbox, await outbox.put(OutboxFile(12345, 17, path)))
    assert (entry.filename, entry.file_size, entry.text) == ("чек.pdf", 5, None)
    with path.open("rb") as file:
        file.read(2)
        entry = await got(outbox, await outbox.put(OutboxFile.to_order(12345, 55, file)))
    assert (entry.filename, entry.file_size, entry.order_id) == ("чек.pdf", 3, 55)
    assert contents(outbox) == [b"paper", b"per"]


def contents(outbox: Outbox) -> list[bytes]:
    engine = create_engine(outbox._database.url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT content FROM yamarket_outbox_files ORDER BY number"
        ).all()
    engine.dispose()
    return [bytes(row[0]) for row in rows]


async def test_file_of_5_mb_is_stored(outbox: Outbox) -> None:
    largest = bytes(range(256)) * (5 * 2**12)
    await outbox.put(OutboxFile(12345, 17, largest, filename="scan.tiff"))
    assert contents(outbox) == [largest]


WRONG: list[tuple[Any, str]] = [
    ("Привет", "an outbox takes OutboxMessage and OutboxFile"),
    (OutboxMessage(0, 17, "x"), "business_id is a whole number"),
    (OutboxMessage(12345, "seventeen", "x"), "chat_id is an int or a decimal string"),
    (OutboxMessage(12345, None, "x"), "pass one of chat_id, order_id and return_id"),
    (OutboxMessage(12345, 17, "x", order_id=5), "pass one of chat_id, order_id and return_id"),
    (OutboxMessage.to_order(12345, -1, "x"), "order_id is a whole number"),
    (message(" "), "the text is empty"),
    (message("x" * 4097), "split it into several messages"),
    (message("\ud800"), "half of a surrogate pair"),
    (message("a\0b"), "NUL character"),
    (message(key=""), "key has 1 to 200 characters"),
    (message(key="x" * 201), "key has 1 to 200 characters"),
    (message(key=5), "key is a str"),
    (message(key="bot:x"), "choose another beginning"),
    (message(key="~x"), "choose another beginning"),
    (message(key="a\0"), "NUL character"),
    (message(key="\udfff"), "half of a surrogate pair"),
    (message(bulk=1), "bulk is of type bool"),
    (message(not_before=datetime(2026, 1, 1)), "pass an aware datetime"),
    (message(not_after=datetime(2026, 1, 1)), "pass an aware datetime"),
    (message(not_after="2026-01-01"), "not_after is a datetime"),
    (message(not_before=NOON, not_after=NOON - timedelta(1)), "could never leave"),
    (message(not_before=NOON, not_after=NOON), "is not after not_before"),
    (
        message(not_after=datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))),
        "pass None for no limit",
    ),
    (OutboxFile(12345, 17, b""), "filename is missing"),
    (OutboxFile(12345, 17, b"", filename="empty.txt"), "the Market accepts 1 to 5242880"),
    (OutboxFile(12345, 17, b"x" * (5 * 2**20 + 1), filename="x"), "the Market accepts 1 to"),
    (OutboxFile(12345, 17, "/no/such/file"), "the file cannot be read"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG, ids=[said for _, said in WRONG])
async def test_what_the_core_refuses_is_refused_before_any_transaction(
    wrong: Any, said: str, tmp_path: Path
) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/never-made.db") as outbox:
        with pytest.raises(InvalidArgumentError, match=said):
            await outbox.put(wrong)
        with pytest.raises(InvalidArgumentError, match=said):
            outbox.sql(wrong, "postgresql")


# Keys


async def test_repeated_key_gives_the_number_of_the_first(outbox: Outbox) -> None:
    first = await outbox.put(message(key="packed-55"))
    assert await outbox.put(message(key="packed-55")) == first
    # When it is to be sent is no content: a handler that runs again computes another time.
    assert await outbox.put(message(key="packed-55", bulk=True, not_before=NOON)) == first
    entry = await outbox.get(business_id="12345", key="packed-55")
    assert entry is not None
    assert (entry.number, entry.bulk, entry.not_before) == (first, False, None)
    assert await waiting(outbox) == 1


@pytest.mark.parametrize(
    "other",
    [
        message("Другое", key="k"),
        message(chat_id=18, key="k"),
        OutboxMessage.to_order(12345, 17, "Заказ собран", key="k"),
        OutboxMessage.to_return(12345, 17, "Заказ собран", key="k"),
        OutboxFile(12345, 17, "Заказ собран".encode(), filename="x", key="k"),
    ],
)
async def test_key_of_other_content_is_a_conflict(
    outbox: Outbox, other: OutboxMessage | OutboxFile
) -> None:
    first = await outbox.put(message(key="k"))
    with pytest.raises(KeyConflictError, match=f"belongs to message {first}") as caught:
        await outbox.put(other)
    assert (caught.value.key, caught.value.number, caught.value.sent) == ("k", first, False)
    assert await waiting(outbox) == 1


async def test_file_of_other_content_or_name_is_a_conflict(outbox: Outbox) -> None:
    def file(content: bytes, name: str) -> OutboxFile:
        return OutboxFile(12345, 17, content, filename=name, key="k")

    first = await outbox.put(file(b"paper", "a.pdf"))
    assert await outbox.put(file(b"paper", "a.pdf")) == first
    for other in (file(b"other", "a.pdf"), file(b"paper", "b.pdf")):
        with pytest.raises(KeyConflictError):
            await outbox.put(other)
    assert contents(outbox) == [b"paper"]


async def test_each_business_has_keys_of_its_own(outbox: Outbox) -> None:
    numbers = [await outbox.put(OutboxMessage(b, 17, f"to {b}", key="k")) for b in (1, 2)]
    assert len(set(numbers)) == 2


async def test_key_put_by_many_at_once_is_put_once(outbox: Outbox, database_url: Any) -> None:
    async with Outbox(database_url) as another:  # as another process would
        puts = [box.put(message(key="k")) for box in (outbox, another) * 10]
        assert len(set(await asyncio.gather(*puts))) == 1
    assert await waiting(outbox) == 1


async def test_puts_at_once_get_their_own_results(outbox: Outbox) -> None:
    """Puts that share a commit have nothing else in common."""
    taken = await outbox.put(message(key="taken"))
    puts = [message("1"), message("2", key="taken"), message("3", key="k"), message("3", key="k")]
    puts += [message("4", key="taken"), message("5")]
    results = await asyncio.gather(*map(outbox.put, puts), return_exceptions=True)
    numbers = [result for result in results if isinstance(result, int)]
    assert [(await got(outbox, number)).text for number in numbers] == ["1", "3", "3", "5"]
    conflicts = [result for result in results if isinstance(result, KeyConflictError)]
    assert [(error.key, error.number) for error in conflicts] == [
        ("taken", taken),
        ("taken", taken),
    ]
    assert await waiting(outbox) == 4


async def test_put_that_is_cancelled_does_not_disturb_others(outbox: Outbox) -> None:
    puts = [asyncio.ensure_future(outbox.put(message(str(index)))) for index in range(8)]
    await asyncio.sleep(0)
    for put in puts[::2]:
        put.cancel()
    numbers = await asyncio.gather(*puts[1::2])
    assert [(await got(outbox, number)).text for number in numbers] == ["1", "3", "5", "7"]


async def test_error_of_the_database_reaches_each_put(tmp_path: Path) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        puts = (outbox.put(message()) for _ in range(3))
        errors = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(error) for error in errors] == [OutboxDatabaseError] * 3
        assert len(set(map(id, errors))) == 3
        await outbox.create()
        assert await outbox.put(message()) == 1


async def test_sqlite_without_returning_works_too(tmp_path: Path) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        outbox._database._open().dialect.insert_returning = False  # SQLite before 3.35
        first = await outbox.put(message(key="k"))
        numbers = await outbox.put_many([message("1"), message(key="k"), message("2")])
        assert numbers[1] == first
        assert [(await got(outbox, n)).text for n in (numbers[0], numbers[2])] == ["1", "2"]
        with pytest.raises(KeyConflictError):
            await outbox.put(message("3", key="k"))
        assert await waiting(outbox) == 3


async def test_messages_without_a_key_are_all_put(outbox: Outbox) -> None:
    numbers = await asyncio.gather(*(outbox.put(message()) for _ in range(10)))
    assert len(set(numbers)) == 10
    assert (await got(outbox, numbers[0])).key is None


async def test_number_of_a_pruned_message_does_not_come_back(outbox: Outbox) -> None:
    first = await outbox.put(message())
    await remove(outbox, [first])
    assert await outbox.get(first) is None
    assert await outbox.put(message()) > first


# Many


async def test_put_many_takes_any_iterable(outbox: Outbox) -> None:
    async def later() -> AsyncIterator[OutboxMessage]:
        for chat_id in range(1, 4):
            await asyncio.sleep(1)
            yield message(chat_id=chat_id)

    for source in (
        [message(chat_id=chat_id) for chat_id in range(1, 4)],
        (message(chat_id=chat_id) for chat_id in range(1, 4)),
        later(),
    ):
        numbers = await outbox.put_many(source)
        assert [(await got(outbox, number)).chat_id for number in numbers] == [1, 2, 3]
    assert await outbox.put_many([]) == []


async def test_put_many_commits_each_thousand(outbox: Outbox) -> None:
    seen: list[int] = []

    async def source() -> AsyncIterator[OutboxMessage]:
        for index in range(2_100):
            if index % 1_000 == 0:
                seen.append(await waiting(outbox))
            yield message(str(index))

    numbers = await outbox.put_many(source())
    assert seen == [0, 1_000, 2_000]
    assert (len(numbers), len(set(numbers)), numbers[-1]) == (2_100, 2_100, max(numbers))
    assert numbers == sorted(numbers)
    assert [(await got(outbox, numbers[index])).text for index in (0, 999, 2_099)] == [
        "0",
        "999",
        "2099",
    ]


async def test_put_many_commits_before_files_fill_the_memory(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yamarket_chat.outbox.putting.BATCH_BYTES", 100)
    seen: list[int] = []

    async def source() -> AsyncIterator[OutboxFile]:
        for index in range(4):
            seen.append(await waiting(outbox))
            yield OutboxFile(12345, 17, bytes(60), filename=str(index))

    await outbox.put_many(source())
    assert seen == [0, 0, 2, 2]


class OfTheCaller(Exception):
    """What an iterable raises."""


async def test_equal_messages_of_one_key_in_put_many_are_put_once(outbox: Outbox) -> None:
    file = OutboxFile(12345, 17, b"paper", filename="a.pdf", key="file")
    numbers = await outbox.put_many([file, message(key="k"), file, message(key="k"), message()])
    assert (numbers[0], numbers[1]) == (numbers[2], numbers[3])
    assert await waiting(outbox) == 3
    assert contents(outbox) == [b"paper"]


async def test_error_of_put_many_carries_what_is_in(outbox: Outbox) -> None:
    def broken(error: Exception | None = None, bad: OutboxMessage | None = None) -> Iterator[Any]:
        for index in range(1_005):
            yield message(f"{error} {bad} {index}")
        if error is not None:
            raise error
        yield bad
        yield message("never put")

    taken = await outbox.put(message(key="taken"))
    for source, kind in (
        (broken(OfTheCaller()), OfTheCaller),
        (broken(bad=message("")), InvalidArgumentError),
        (broken(bad=message("Другое", key="taken")), KeyConflictError),
    ):
        before = await waiting(outbox)
        with pytest.raises(kind) as caught:
            await outbox.put_many(source)
        numbers = caught.value.numbers  # type: ignore[attr-defined]
        assert len(numbers) == 1_005
        assert await waiting(outbox) == before + 1_005
        assert str((await got(outbox, numbers[-1])).text).endswith(" 1004")
    assert taken not in numbers


async def test_numbers_of_put_many_behave_as_a_list(outbox: Outbox) -> None:
    numbers = await outbox.put_many(message(str(index)) for index in range(6))
    listed = list(numbers)
    assert numbers == listed
    assert list(numbers) == listed
    assert numbers != listed[:5]
    assert numbers[1:3] == listed[1:3]
    assert numbers[-1] == listed[-1]
    assert listed[2] in numbers
    assert repr(numbers) == f"<6 numbers: {', '.join(map(str, listed[:5]))}, …>"


# The caller's own transaction


def engine_of(outbox: Outbox) -> Any:
    return create_engine(outbox._database.url)


async def test_message_is_committed_with_the_callers_transaction_or_not_at_all(
    outbox: Outbox,
) -> None:
    engine = engine_of(outbox)
    with engine.connect() as connection:
        with connection.begin() as transaction:
            gone = await outbox.put(message(key="k"), connection=connection)
            transaction.rollback()
        assert await outbox.get(gone) is None
        with connection.begin():
            numbers = await outbox.put_many(
                [message(key="k"), OutboxFile(12345, 17, b"paper", filename="a.pdf")],
                connection=connection,
            )
    engine.dispose()
    assert [(await got(outbox, number)).text for number in numbers] == ["Заказ собран", None]
    assert contents(outbox) == [b"paper"]


async def test_callers_transaction_stays_usable_after_a_key_conflict(outbox: Outbox) -> None:
    await outbox.put(message(key="k"))
    engine = engine_of(outbox)
    with engine.begin() as connection:
        first = await outbox.put(message("vorher"), connection=connection)
        with pytest.raises(KeyConflictError):
            await outbox.put(message("Другое", key="k"), connection=connection)
        with pytest.raises(KeyConflictError) as caught:
            await outbox.put_many(
                [message("1"), message("2", key="k"), message("3")], connection=connection
            )
        last = await outbox.put(message("nachher"), connection=connection)
    engine.dispose()
    (between,) = caught.value.numbers
    texts = [(await got(outbox, number)).text for number in (first, between, last)]
    assert texts == ["vorher", "1", "nachher"]
    assert await waiting(outbox) == 4


async def test_session_of_the_orm_is_a_connection_too(outbox: Outbox) -> None:
    engine = engine_of(outbox)
    with Session(engine) as session, session.begin():
        number = await outbox.put(message(), connection=session)
    engine.dispose()
    assert (await got(outbox, number)).state == "waiting"


@pytest.mark.real_time
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_message_is_put_within_an_async_transaction(driver: str, postgres_url: URL) -> None:
    url = postgres_url.set(drivername=f"postgresql+{driver}")
    if driver == "asyncpg":
        (name,) = [part.partition("=")[2] for part in [str(url.query["options"])]]
        url = url.difference_update_query(["options"])
        arguments: dict[str, Any] = {"server_settings": {"search_path": name}}
    else:
        arguments = {}
    engine = create_async_engine(url, connect_args=arguments)
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        async with engine.begin() as connection:
            number = await outbox.put(message(key="k"), connection=connection)
            file = OutboxFile(12345, 17, b"paper", filename="a.pdf")
            numbers = await outbox.put_many([message(), file], connection=connection)
            assert await outbox.put(message(key="k"), connection=connection) == number
            with pytest.raises(KeyConflictError):
                await outbox.put(message("Другое", key="k"), connection=connection)
            assert await outbox.get(number) is None
        async with AsyncSession(engine) as session, session.begin():
            numbers = [*numbers, await outbox.put(message("ORM"), connection=session)]
        assert [(await got(outbox, n)).text for n in (number, *numbers)] == [
            "Заказ собран",
            "Заказ собран",
            None,
            "ORM",
        ]
    await engine.dispose()


async def test_connection_without_a_transaction_is_refused(outbox: Outbox) -> None:
    engine = engine_of(outbox).execution_options(isolation_level="AUTOCOMMIT")
    with (
        engine.connect() as connection,
        pytest.raises(InvalidArgumentError, match="pass one in a transaction"),
    ):
        await outbox.put(message(), connection=connection)
    engine.dispose()
    with pytest.raises(InvalidArgumentError, match="Connection or a Session of SQLAlchemy's"):
        await outbox.put(message(), connection=sqlite3)  # type: ignore[arg-type]


async def test_connection_to_another_database_is_refused(outbox: Outbox, tmp_path: Path) -> None:
    """The message would stand where no worker looks for it."""
    async with Outbox(f"sqlite:///{tmp_path}/another.db") as another:
        await another.create()
        engine = engine_of(another)
        with engine.begin() as connection, pytest.raises(InvalidArgumentError, match="is one to"):
            await outbox.put(message(), connection=connection)
        engine.dispose()
        assert (await another.status()).waiting == 0


@pytest.mark.real_time
async def test_another_transaction_that_holds_the_key_is_waited_for(postgres_url: URL) -> None:
    """The caller has put the key and not committed yet: a second put must not put it twice."""
    engine = create_engine(postgres_url)
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        with engine.connect() as connection, connection.begin() as transaction:
            first = await outbox.put(message(key="k"), connection=connection)
            second = asyncio.ensure_future(outbox.put(message(key="k")))
            await asyncio.sleep(0.05)
            transaction.commit()
        assert await second == first
    engine.dispose()


async def test_transaction_that_cannot_see_the_key_fails_and_puts_nothing(
    postgres_url: URL,
) -> None:
    engine = create_engine(postgres_url, isolation_level="REPEATABLE READ")
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM yamarket_outbox_messages")
            await outbox.put(message(key="k"))
            with pytest.raises((SQLAlchemyError, OutboxDatabaseError)):
                await outbox.put(message(key="k"), connection=connection)
        assert await waiting(outbox) == 1
    engine.dispose()


# Plain SQL, with the libraries that it is for


async def test_sql_works_with_psycopg(postgres_url: URL) -> None:
    file = OutboxFile(12345, 17, b"paper", filename="чек.pdf", key="file")
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        libpq = postgres_url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(libpq) as connection:
            for style in ("format", "pyformat"):
                numbers = [
                    connection.execute(*outbox.sql(one, "postgresql", paramstyle=style)).fetchone()
                    for one in (message(key=style), message(key=style), file)
                ]
                assert numbers[0] == numbers[1]
                conflict = outbox.sql(message("Другое", key=style), "postgresql", paramstyle=style)
                assert connection.execute(*conflict).fetchone() is None
            connection.commit()
        assert await waiting(outbox) == 3
        entry = await outbox.get(business_id=12345, key="file")
        assert entry is not None
        assert (entry.filename, entry.number) == ("чек.pdf", numbers[2][0])  # type: ignore[index]
        assert contents(outbox) == [b"paper"]


@pytest.mark.real_time
async def test_sql_works_with_asyncpg(postgres_url: URL) -> None:
    import asyncpg

    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        connection = await asyncpg.connect(
            **address(postgres_url),
            server_settings={"search_path": str(postgres_url.query["options"]).partition("=")[2]},
        )
        file = OutboxFile(12345, 17, b"paper", filename="чек.pdf", not_before=NOON)
        async with connection.transaction():
            numbers = []
            for one in (message(key="k"), message(key="k"), file, message("Другое", key="k")):
                statement, parameters = outbox.sql(one, "postgresql", paramstyle="numeric_dollar")
                numbers.append(await connection.fetchval(statement, *parameters))
        await connection.close()
        assert numbers[0] == numbers[1]
        assert numbers[3] is None
        assert (await got(outbox, numbers[2])).not_before == NOON
        assert contents(outbox) == [b"paper"]


@pytest.mark.parametrize("style", ["qmark", "named"])
async def test_sql_works_with_sqlite3(style: str, tmp_path: Path) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        connection = sqlite3.connect(tmp_path / "outbox.db")
        numbers = [
            connection.execute(*outbox.sql(one, "sqlite", paramstyle=style)).fetchone()
            for one in (message(key="k"), message(key="k"), message("Другое", key="k"))
        ]
        connection.commit()
        connection.close()
        assert numbers == [(1,), (1,), None]
        assert (await got(outbox, 1)).text == "Заказ собран"
        file = OutboxFile(12345, 17, b"paper", filename="чек.pdf")
        with pytest.raises(InvalidArgumentError, match="use put"):
            outbox.sql(file, "sqlite")


DJANGO = """
import asyncio, sys
from django.conf import settings
from yamarket_chat.outbox import Outbox, OutboxMessage
url = sys.argv[1]
outbox = Outbox(url)
asyncio.run(outbox.create())
parsed = outbox._database.url
if parsed.get_backend_name() == "sqlite":
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": parsed.database}
else:
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parsed.database,
        "USER": parsed.username,
        "PASSWORD": parsed.password,
        "HOST": parsed.host or parsed.query["host"],
        "PORT": parsed.port or 5432,
        "OPTIONS": {"options": parsed.query["options"]},
    }
settings.configure(DATABASES={"default": database})
from django.db import connection, transaction
with transaction.atomic(), connection.cursor() as cursor:
    numbers = []
    for text in ("100 % собран", "100 % собран", "Другое"):
        message = OutboxMessage(12345, 17, text, key="k")
        cursor.execute(*outbox.sql(message, connection.vendor, paramstyle="format"))
        numbers.append(cursor.fetchone())
assert numbers == [(1,), (1,), None], numbers
assert asyncio.run(outbox.get(1)).text == "100 % собран"
"""


def test_sql_works_with_django(database_url: Any) -> None:
    url = make_url(database_url).render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", textwrap.dedent(DJANGO), url], check=True)  # noqa: S603


def test_sql_names_what_it_knows(tmp_path: Path) -> None:
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.db")
    with pytest.raises(InvalidArgumentError, match="dialect is one of sqlite, postgresql"):
        outbox.sql(message(), "mysql")
    with pytest.raises(InvalidArgumentError, match="paramstyle is one of format"):
        outbox.sql(message(), "sqlite", paramstyle="%s")


# For any input

ids = st.integers(1, 2**63 - 1)
storable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
moments = st.none() | st.datetimes(
    datetime(1900, 1, 1),
    datetime(2200, 1, 1),
    timezones=st.timezones(),
)
any_message = st.builds(
    OutboxMessage,
    business_id=ids,
    chat_id=ids,
    text=storable.filter(lambda text: not text.isspace()),
    key=st.none() | storable.map(lambda key: f"k{key}"[:200]),
    bulk=st.booleans(),
    not_before=moments,
)
examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@examples
@given(original=any_message)
def test_any_message_comes_back_as_it_was_put(original: OutboxMessage, database_url: Any) -> None:
    async def check() -> None:
        async with Outbox(database_url) as outbox:
            await outbox.create()
            entry = await got(outbox, await outbox.put(original))
            for name in ("business_id", "chat_id", "text", "key", "bulk"):
                assert getattr(entry, name) == getattr(original, name)
            # To Python, an hour that clocks show twice equals no moment of another time zone.
            moment = original.not_before and original.not_before.astimezone(UTC)
            assert entry.not_before == moment
            if original.key is not None:
                again = await outbox.get(business_id=entry.business_id, key=original.key)
                assert again == entry
            await remove(outbox, [entry.number])  # the next example may have the same key

    run(check())


@examples
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from("xyz"))),
        max_size=4,
    ),
    business_id=ids,
)
def test_put_many_puts_what_puts_one_after_another_would(
    batches: list[list[tuple[str | None, str]]], business_id: int, database_url: Any
) -> None:
    async def check() -> None:
        async with Outbox(database_url) as outbox:
            await outbox.create()
            known: dict[str, tuple[int, str]] = {}
            put: list[int] = []
            for batch in batches:
                conflict = None
                try:
                    numbers = await outbox.put_many(
                        OutboxMessage(business_id, 17, text, key=key) for key, text in batch
                    )
                except KeyConflictError as error:
                    numbers, conflict = error.numbers, error.key
                for number, (key, text) in zip(numbers, batch, strict=False):
                    if key is None or key not in known:
                        assert not put or number > put[-1]
                        put.append(number)
                    if key is not None:
                        assert known.setdefault(key, (number, text)) == (number, text)
                if conflict is None:
                    assert len(numbers) == len(batch)
                else:
                    key, text = batch[len(numbers)]
                    assert key == conflict
                    assert known[key][1] != text
            assert (await outbox.status(business_id)).waiting == len(put)
            await remove(outbox, put)  # the next example may have the same business

    run(check())


def test_program_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "outbox.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- runs in the tests -->\n```python\n")
    program, _, _ = rest.partition("```")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/outbox.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert capsys.readouterr().out == "message 1 has this key\nwaiting\n"
