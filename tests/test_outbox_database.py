"""The outbox's database: making it, and what is said if it cannot be used."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, create_engine, event, make_url, select

from tests.postgres import address
from tests.virtual import run
from yamarket_chat import InvalidArgumentError
from yamarket_chat.outbox import Outbox, OutboxDatabaseError, OutboxMessage, schema, troubles
from yamarket_chat.outbox import database as database_room

TEXT = OutboxMessage(12345, 17, "Заказ собран")


@pytest.fixture
async def outbox(database_url: Any) -> AsyncIterator[Outbox]:
    async with Outbox(database_url) as made:
        await made.create()
        yield made


def execute(url: Any, *statements: str) -> list[Any]:
    """Execute statements as another program would; return the rows of the last one."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        rows = list(result) if result.returns_rows else []
    engine.dispose()
    return rows


async def error_of(calling: Any) -> OutboxDatabaseError:
    with pytest.raises(OutboxDatabaseError) as caught:
        await calling
    return caught.value


# The address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("outbox.db", "the address of the outbox is one such as sqlite:///outbox.db"),
        ("", "the address of the outbox is one such as"),
        (5, "the address of the outbox is one such as"),
        ("oracle+magic://scott:tiger@host/db", "the outbox does not work with|is one such as"),
        ("mysql://scott:tiger@host/db", "is one such as|does not work with 'mysql'"),
        ("postgresql+asyncpg://scott:tiger@host/db", "does not work with 'postgresql\\+asyncpg'"),
        ("sqlite+aiosqlite:///outbox.db", "does not work with 'sqlite\\+aiosqlite'"),
        ("postgresql://scott:tiger@host:port/db", "is one such as"),
        ("sqlite://", "does not survive the process"),
        ("sqlite:///:memory:", "does not survive the process"),
        ("sqlite:///file:outbox.db?uri=true", "does not survive the process"),
        ("sqlite:///outbox.db?timeout=5", "has no parameters"),
        ("sqlite://outbox.db", "three slashes"),
        ("sqlite://scott:tiger@host/db", "three slashes"),
        ("sqlite:///out\0box.db", "NUL character"),
        ("sqlite:///out\udcffbox.db", "bytes that could not be decoded"),
    ],
)
def test_unknown_address_is_refused_without_showing_a_password(url: Any, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        Outbox(url)
    assert "tiger" not in str(caught.value)


def test_no_text_shows_the_password() -> None:
    outbox = Outbox("postgres://scott:tiger@127.0.0.1:1/db")
    assert "tiger" not in repr(outbox) + repr(outbox._database)
    error = run(error_of(outbox.create()))
    assert "tiger" not in str(error)
    assert "postgresql+psycopg://scott:***@127.0.0.1:1/db" in str(error)


def test_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'yamarket-chat\[postgres\]'"):
        Outbox("postgresql+psycopg://host/db")
    Outbox("sqlite:///outbox.db")


def test_missing_sqlalchemy_names_the_extra() -> None:
    program = "import sys; sys.modules['sqlalchemy'] = None; import yamarket_chat.outbox"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)  # noqa: S603
    assert "pip install 'yamarket-chat[outbox]'" in done.stderr


def test_process_that_only_sends_imports_nothing_of_it() -> None:
    program = """
        import asyncio, sys
        from yamarket_chat import ChatSession
        from yamarket_chat.sandbox import Sandbox
        async def main():
            async with Sandbox() as market, ChatSession(
                market.api_key, market.business_id, base_url=market.url
            ) as session:
                await session.send_message(17, "x")
        asyncio.run(main())
        assert "sqlalchemy" not in sys.modules and "yamarket_chat.outbox" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)  # noqa: S603


@pytest.mark.parametrize(
    "arguments", [{"keep": 0}, {"keep": "a week"}, {"forget_text": 1}], ids=str
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        Outbox("sqlite:///outbox.db", **arguments)


def test_relative_path_stays_the_same_file_when_the_program_changes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with Outbox("sqlite:///# 50 % outbox.db") as outbox:
            await outbox.create()
            monkeypatch.chdir("/")
            await outbox.close()
            assert await outbox.put(TEXT) == 1

    monkeypatch.chdir(tmp_path)
    run(check())
    assert (tmp_path / "# 50 % outbox.db").exists()


# The tables


async def test_create_changes_nothing_if_the_tables_are_there(outbox: Outbox) -> None:
    number = await outbox.put(TEXT)
    await outbox.create()
    assert await outbox.get(number) is not None


async def test_several_programs_may_create_at_the_same_time(database_url: Any) -> None:
    boxes = [Outbox(database_url) for _ in range(4)]
    await asyncio.gather(*(box.create() for box in boxes))
    assert await boxes[0].put(TEXT) == 1
    for box in boxes:
        await box.close()


@pytest.mark.parametrize("waits", [True, False])
async def test_new_file_that_another_program_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """SQLite itself fails at once here, whatever its timeout is."""
    if not waits:
        monkeypatch.setattr(database_room, "WAL_ATTEMPTS", 1)
    other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    committing = threading.Timer(0.05, other.commit)
    committing.start()
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        if waits:
            await outbox.create()
        else:
            assert "database is locked" in str(await error_of(outbox.create()))
    committing.join()
    other.close()


async def test_tables_that_need_a_newer_program_are_refused(database_url: Any) -> None:
    async with Outbox(database_url) as outbox:
        await outbox.create()
    execute(database_url, "UPDATE yamarket_outbox_schema SET version = 3, oldest_reader = 2")
    async with Outbox(database_url) as outbox:
        for calling in (outbox.create(), outbox.put(TEXT), outbox.get(1), outbox.status()):
            assert "update yamarket-chat" in str(await error_of(calling))


async def test_newer_tables_that_allow_an_older_program_are_used(database_url: Any) -> None:
    """Two versions of the package at work, as during a rolling deploy: a column was added."""
    async with Outbox(database_url) as outbox:
        await outbox.create()
    execute(
        database_url,
        "UPDATE yamarket_outbox_schema SET version = 2",
        "ALTER TABLE yamarket_outbox_messages ADD COLUMN colour TEXT DEFAULT 'red' NOT NULL",
    )
    async with Outbox(database_url) as outbox:
        await outbox.create()
        number = await outbox.put(TEXT)
        assert await outbox.get(number) is not None
        assert await outbox.cancel(number)


async def test_create_brings_older_tables_to_the_newest_version(
    database_url: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Outbox(database_url) as outbox:
        await outbox.create()
        number = await outbox.put(TEXT)
    added = "ALTER TABLE yamarket_outbox_messages ADD COLUMN colour TEXT"
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema, "MIGRATIONS", {2: dict.fromkeys(schema.DIALECTS, (added,))})
    async with Outbox(database_url) as outbox:
        assert "call `await outbox.create()`" in str(await error_of(outbox.put(TEXT)))
        await outbox.create()
        await outbox.create()
        assert await outbox.get(number) is not None
    assert execute(database_url, "SELECT colour FROM yamarket_outbox_messages") == [(None,)]
    assert execute(database_url, "SELECT version FROM yamarket_outbox_schema") == [(2,)]


async def test_interrupted_create_leaves_nothing(
    database_url: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = schema.statements
    monkeypatch.setattr(schema, "statements", lambda name: [*statements(name)[:-1], "broken"])
    async with Outbox(database_url) as outbox:
        await error_of(outbox.create())
        monkeypatch.setattr(schema, "statements", statements)
        await outbox.create()
        assert await outbox.put(TEXT) == 1


async def test_missing_tables_are_said(database_url: Any) -> None:
    backend = make_url(database_url).get_backend_name()
    async with Outbox(database_url) as outbox:
        error = await error_of(outbox.put(TEXT))
        assert "`await outbox.create()`" in str(error)
        if backend == "sqlite":
            path = Path(outbox._database.url.database or "")
            assert not path.exists()  # a wrong path makes no file
            sqlite3.connect(path).close()
            path.touch()
            assert "the tables are missing" in str(await error_of(outbox.put(TEXT)))


async def test_mark_of_a_row_touches_no_index(postgres_url: URL) -> None:
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        await outbox.put_many(OutboxMessage(12345, i, "Заказ собран") for i in range(1, 101))
    mark = "UPDATE yamarket_outbox_messages SET state = 'leaving', request = 1, pending = '{}'"
    count = "SELECT pg_stat_get_xact_tuples_hot_updated('yamarket_outbox_messages'::regclass)"
    ((in_place,),) = execute(postgres_url, mark, count)
    assert in_place > 25  # as many as find space on their pages: fillfactor 70
    options = "SELECT reloptions FROM pg_class WHERE relname = 'yamarket_outbox_messages'"
    ((storage,),) = execute(postgres_url, options)
    assert {"fillfactor=70", "autovacuum_vacuum_scale_factor=0"} <= set(storage)


# Settings


async def asked(outbox: Outbox, *questions: str) -> list[Any]:
    def ask(connection: Connection) -> list[Any]:
        return [connection.exec_driver_sql(question).scalar() for question in questions]

    return await outbox._database.write(ask)


async def test_sqlite_is_set_so_that_a_power_cut_loses_nothing(tmp_path: Path) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        settings = "journal_mode", "synchronous", "busy_timeout", "foreign_keys"
        found = await asked(outbox, *(f"PRAGMA {name}" for name in settings))
    assert found == ["wal", 2, 10_000, 1]


@pytest.mark.parametrize(("usual", "within"), [("off", "local"), ("on", "on")])
async def test_postgresql_is_set_so_that_a_crash_loses_nothing(
    postgres_url: URL, usual: str, within: str
) -> None:
    options = f"{postgres_url.query['options']} -c synchronous_commit={usual}"
    options += " -c default_transaction_isolation=serializable"
    async with Outbox(postgres_url.update_query_dict({"options": options})) as outbox:
        await outbox.create()
        settings = (
            "synchronous_commit",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "transaction_isolation",
        )
        found = await asked(outbox, *(f"SHOW {name}" for name in settings))
    assert found == [within, "10s", "10s", "read committed"]


async def test_nothing_is_left_on_a_connection_that_pgbouncer_shares(postgres_url: URL) -> None:
    async with Outbox(postgres_url) as outbox:
        await outbox.create()

        def ask(connection: Connection) -> Any:
            driver: Any = connection.connection.dbapi_connection
            with driver.cursor() as cursor:
                cursor.execute("COMMIT")
                cursor.execute("SHOW lock_timeout")
                timeout = cursor.fetchone()
                cursor.execute("SELECT count(*) FROM pg_prepared_statements")
                return timeout, cursor.fetchone()

        for index in range(10):  # psycopg would prepare what it executes for the sixth time
            await outbox.put(OutboxMessage(12345, 17, str(index)))
        assert await outbox._database.read(ask) == (("0",), (0,))


# Trouble


async def test_sqlite_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b" / "shop"
    folder.mkdir(parents=True)
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(troubles, "MOUNTS", str(mounts))
    outbox = Outbox(f"sqlite:///{folder}/outbox.db")
    escaped = str(folder).replace(" ", "\\040")
    root, local = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n", f"9 1 8:2 / {escaped} rw - xfs /dev/b rw"
    share = f"7 1 0:45 / {escaped} rw,relatime shared:3 master:1 - nfs4 server:/shop rw\n"
    mounts.write_text(root + share)
    error = await error_of(outbox.create())
    assert "network file system (nfs4)" in str(error)
    assert "PostgreSQL" in str(error)
    # A local disk is mounted over it, or only a folder beside it is on the network.
    for text in (root + share + local, root + share.replace("shop rw,", "sho rw,"), root, "?"):
        mounts.write_text(text)
        await outbox.create()
    monkeypatch.setattr(troubles, "MOUNTS", "/no/such/file")  # not Linux
    await outbox.create()
    await outbox.close()


async def test_full_disk_is_said(outbox: Outbox) -> None:
    if outbox._database.dialect == "sqlite":
        engine = outbox._database._open()
        event.listen(engine, "begin", lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1"))
    else:
        execute(
            outbox._database.url,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON yamarket_outbox_messages"
            " EXECUTE FUNCTION full_disk()",
        )
    error = await error_of(
        outbox.put_many(OutboxMessage(12345, 17, "x" * 4_000) for _ in range(100))
    )
    assert "disk is full: make room" in str(error)
    assert (error.sent, error.numbers) == (False, [])
    assert error.retry_after is not None
    assert (await outbox.status()).waiting == 0


async def test_read_only_database_is_said(
    database_url: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Outbox(database_url) as outbox:
        await outbox.create()
    if outbox._database.dialect == "sqlite":
        defaults = ("ro",)  # whoever runs the tests may be root, who may write every file
        monkeypatch.setattr(database_room.Database._connect_sqlite, "__defaults__", defaults)
    else:
        options = f"{database_url.query['options']} -c default_transaction_read_only=on"
        database_url = database_url.update_query_dict({"options": options})
    async with Outbox(database_url) as outbox:
        assert "it is read-only" in str(await error_of(outbox.put(TEXT)))
        assert (await outbox.status()).waiting == 0


async def test_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Не база данных, а список покупок: молоко, хлеб. " * 50)
    async with Outbox(f"sqlite:///{tmp_path}/notes.txt") as outbox:
        assert "this is no SQLite file" in str(await error_of(outbox.create()))
    async with Outbox(f"sqlite:///{tmp_path}/no/such/folder/outbox.db") as outbox:
        assert "check its path and its permissions" in str(await error_of(outbox.create()))


async def test_database_that_is_locked_for_long_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_room, "PATIENCE", 0.05)
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        error = await error_of(outbox.put(TEXT))
        assert "holds it locked for long" in str(error)
        assert (error.sent, error.retry_after) == (False, 1.0)
        assert (await outbox.status()).waiting == 0  # reading goes on
        other.close()
        await outbox.put(TEXT)


async def test_row_that_is_locked_for_long_is_said(
    postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_room, "PATIENCE", 2)
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        number = await outbox.put(TEXT)
        outbox._database._begin = outbox._database._begin.replace("'2000ms'", "'20ms'")
        await outbox.close()
        engine = create_engine(postgres_url)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 FROM yamarket_outbox_messages FOR UPDATE")
            error = await error_of(outbox.cancel(number))
        engine.dispose()
        assert "another transaction holds the row for long" in str(error)
        assert await outbox.cancel(number)


async def test_server_that_is_away_is_said(postgres_url: URL, tmp_path: Path) -> None:
    for url, said in (
        (postgres_url.update_query_dict({"host": str(tmp_path)}), "it cannot be reached"),
        (make_url("postgresql://scott@127.0.0.1:1/db"), "it cannot be reached"),
        (postgres_url.set(database="nothing"), 'database "nothing" does not exist'),
    ):
        async with Outbox(url) as outbox:
            error = await error_of(outbox.put(TEXT))
            assert said in str(error)
            assert error.sent is False


async def test_restart_of_the_server_between_two_calls_is_not_noticed(postgres_url: URL) -> None:
    name = str(postgres_url.query["options"])[-10:]
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    end += f" WHERE application_name = '{name}'"
    async with Outbox(postgres_url.update_query_dict({"application_name": name})) as outbox:
        await outbox.create()
        first = await outbox.put(TEXT)
        execute(postgres_url, end)
        assert await outbox.get(first) is not None
        execute(postgres_url, end)
        await outbox.put(TEXT)
        assert (await outbox.status()).waiting == 2


@contextmanager
def losing_commits(url: URL, lost: Callable[[bytes], bool]) -> Iterator[URL]:
    """A proxy of PostgreSQL: it may close a connection before the answer to a COMMIT comes."""
    upstream = address(url)
    folder = tempfile.mkdtemp(prefix="proxy-")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/.s.PGSQL.5432")
    listener.listen()
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(work: Callable[..., None], *args: socket.socket) -> None:
        def quietly() -> None:
            with suppress(OSError):  # an end was closed
                work(*args)

        threads.append(threading.Thread(target=quietly))
        threads[-1].start()

    def serve(client: socket.socket) -> None:
        if upstream["host"].startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            ends.append(server)
            server.connect(f"{upstream['host']}/.s.PGSQL.{upstream['port']}")
        else:
            server = socket.create_connection((upstream["host"], upstream["port"]))
            ends.append(server)
        start(answers, server, client)
        while data := client.recv(65_536):
            if losing := b"COMMIT" in data and lost(data):
                client.shutdown(socket.SHUT_RDWR)
            server.sendall(data)
            if losing:
                break
        server.shutdown(socket.SHUT_WR)

    def answers(server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(65_536):
            client.sendall(data)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            ends.append(client)
            start(serve, client)

    start(accept)
    try:
        yield url.set(host="", port=5432).update_query_dict({"host": folder})
    finally:
        for end in (listener, *ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in (listener, *ends):
            end.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("commits", [1, 3])
async def test_commit_whose_success_is_not_learnt_is_repeated_and_put_once(
    postgres_url: URL, commits: int
) -> None:
    losses = [True] * commits
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
    with losing_commits(postgres_url, lambda _: bool(losses) and losses.pop()) as proxied:
        async with Outbox(proxied) as outbox:
            number = await outbox.put(TEXT)
            assert losses == []
            assert (await outbox.status()).waiting == 1
            assert await outbox.get(number) is not None
            losses += [True]
            numbers = await outbox.put_many(OutboxMessage(1, 17, str(i)) for i in range(50))
            assert (losses, len(numbers)) == ([], 50)
            assert (await outbox.status(1)).waiting == 50


async def test_put_says_if_it_cannot_learn_whether_it_was_committed(postgres_url: URL) -> None:
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
    with losing_commits(postgres_url, lambda _: True) as proxied:
        async with Outbox(proxied) as outbox:
            error = await error_of(outbox.put(OutboxMessage(12345, 17, "x", key="k")))
    assert error.sent is None
    async with Outbox(postgres_url) as outbox:  # the same key finds out
        await outbox.put(OutboxMessage(12345, 17, "x", key="k"))
        assert (await outbox.status()).waiting == 1


# Threads and processes


def test_outbox_works_on_one_event_loop_after_another(database_url: Any) -> None:
    outbox = Outbox(database_url)
    run(outbox.create())
    numbers = [asyncio.run(outbox.put(TEXT)), run(outbox.put(TEXT))]
    assert numbers == [1, 2]
    run(outbox.close())


def test_outbox_works_after_a_fork(postgres_url: Any) -> None:
    program = """
        import asyncio, os, sys, warnings
        from yamarket_chat.outbox import Outbox, OutboxMessage
        warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks
        text = OutboxMessage(12345, 17, "x")
        outbox = Outbox(sys.argv[1])
        asyncio.run(outbox.create())
        asyncio.run(outbox.put(text))
        if os.fork() == 0:
            asyncio.run(asyncio.wait_for(outbox.put(text), 20))
            sys.exit()
        assert os.wait()[1] == 0
        asyncio.run(outbox.put(text))  # the child has not closed the parent's connection
        assert asyncio.run(outbox.status()).waiting == 3
    """
    url = make_url(postgres_url).render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), url], check=True)  # noqa: S603


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_loses_nothing_when_its_parent_is_gone(tmp_path: Path) -> None:
    """SQLite keeps its locks in the memory of a process: a child would trust in its parent's."""
    program = """
        import asyncio, os, sqlite3, sys
        from yamarket_chat.outbox import Outbox, OutboxMessage
        text = OutboxMessage(12345, 17, "x")
        outbox = Outbox("sqlite:///" + sys.argv[1])
        asyncio.run(outbox.create())
        asyncio.run(outbox.put(text))
        parent, child = os.pipe(), os.pipe()
        if os.fork() == 0:
            other = Outbox("sqlite:///" + sys.argv[1])
            for each in outbox, other:
                asyncio.run(each.put(text))
            os.write(child[1], b"x")
            os.read(parent[0], 1)
            for each in outbox, other:
                asyncio.run(each.put(text))
            os._exit(0)
        os.read(child[0], 1)
        asyncio.run(outbox.close())  # as at its end
        # The last one that closes a file removes its log.
        shop = sqlite3.connect(sys.argv[1])
        assert shop.execute("SELECT count(*) FROM yamarket_outbox_messages").fetchone() == (3,)
        shop.close()
        os.write(parent[1], b"x")
        assert os.wait()[1] == 0
        assert asyncio.run(outbox.status()).waiting == 5
    """
    path = str(tmp_path / "outbox.db")
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), path], check=True)  # noqa: S603


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
async def test_fork_waits_for_connections_that_are_just_being_closed(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    async with Outbox(f"sqlite:///{path}") as outbox:
        await outbox.create()
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        putting = asyncio.create_task(outbox.put(TEXT))
        for _ in range(5):
            await asyncio.sleep(0)
        closing = asyncio.create_task(outbox.close())
        await asyncio.sleep(0)
        threading.Timer(0.1, other.execute, ["COMMIT"]).start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
            child = os.fork()
        if child == 0:
            files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            os._exit(sum(os.path.realpath(file) == f"{path}-wal" for file in files))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1  # that of `other`
        await asyncio.gather(putting, closing)
        other.close()


async def test_put_beside_a_fork_of_another_thread_puts(outbox: Outbox) -> None:
    """The connections to SQLite are closed then. Who needs one opens it again."""

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
            child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    async def forks() -> None:
        for _ in range(20):
            await asyncio.to_thread(fork)

    async def puts() -> None:
        for _ in range(50):
            await outbox.put(TEXT)

    await asyncio.gather(forks(), puts(), puts())
    assert (await outbox.status()).waiting == 100


async def test_log_that_was_removed_beside_a_process_takes_no_more_puts(tmp_path: Path) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        await outbox.put(TEXT)
        await outbox.put(TEXT)
        (tmp_path / "outbox.db-wal").unlink()
        error = await error_of(outbox.put(TEXT))
        assert "restart the process" in str(error)


def test_process_that_is_killed_loses_nothing_that_was_put(database_url: Any) -> None:
    program = """
        import asyncio, os, signal, sys
        from yamarket_chat.outbox import Outbox, OutboxMessage
        async def main():
            outbox = Outbox(sys.argv[1])
            await outbox.create()
            await outbox.put(OutboxMessage(12345, 17, "x"))
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """
    url = make_url(database_url).render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), url])  # noqa: S603
    assert done.returncode == -9

    async def check() -> int:
        async with Outbox(database_url) as outbox:
            return (await outbox.status()).waiting

    assert run(check()) == 1


async def test_questions_of_a_courier_use_their_indexes(outbox: Outbox) -> None:
    """However many messages wait or have ended: the table is never read as a whole."""
    business, row = schema.messages.c.business_id == 12345, schema.messages.c
    is_open = row.ended_at.is_(None)
    questions = {
        "due": select(row.number)
        .where(business, is_open, row.due_at.is_(None))
        .order_by(row.bulk, row.number),
        "not_due": select(row.number).where(
            business, is_open, row.due_at.is_not(None), row.due_at < 5
        ),
        "expiring": select(row.number).where(
            business, is_open, row.not_after.is_not(None), row.not_after < 5
        ),
        "chat": select(row.number).where(business, is_open, row.chat_id == 17),
        "context": select(row.number).where(
            business, is_open, row.context.is_not(None), row.context_id == 55
        ),
        "ended": select(row.number).where(business, row.ended_at.is_not(None), row.ended_at < 5),
        "untold": select(row.number).where(business, schema.UNTOLD),
        "key": select(row.number).where(business, row.key == "k"),
    }

    def plans(connection: Connection) -> dict[str, str]:
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        found = {}
        for name, question in questions.items():
            query = question.compile(connection, compile_kwargs={"literal_binds": True})
            lines = connection.exec_driver_sql(explain + str(query).replace("%", "%%")).all()
            found[name] = " ".join(str(line) for line in lines)
        return found

    for name, plan in (await outbox._database.write(plans)).items():
        assert f"yamarket_outbox_{name}" in plan, (name, plan)
