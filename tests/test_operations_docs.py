"""What docs/operations.md says: its programs and its SQL run."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, select, update

from tests.helpers import stored
from yamarket_chat import ChatSession
from yamarket_chat.outbox import Outbox, OutboxDatabaseError, OutboxFile, OutboxMessage
from yamarket_chat.outbox.locks import Lock
from yamarket_chat.outbox.schema import chats, counts, files, leases, messages, workers
from yamarket_chat.sandbox import Sandbox

DOCS = Path(__file__).parents[1] / "docs"
MOVE = DOCS / "operations/to_postgresql.py"
KEPT = (messages, files, chats, counts)


def page() -> str:
    return (DOCS / "operations.md").read_text(encoding="utf-8")


def engine(url: Any) -> Engine:
    return create_engine(url, poolclass=NullPool)


def rows(url: Any) -> dict[str, list[Any]]:
    with engine(url).connect() as connection:
        return {
            table.name: sorted(
                tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))
            )
            for table in KEPT
        }


async def move(path: Path, url: Any) -> str:
    """Run the program; return what it says as it ends."""
    main = runpy.run_path(str(MOVE))["main"]
    try:
        await asyncio.to_thread(main, path, url.render_as_string(hide_password=False))
    except SystemExit as end:
        return str(end)
    return ""


def test_the_page_shows_the_programs_that_the_tests_run() -> None:
    shown = dict(re.findall(r"<!-- operations/(\w+.py) -->\n```python\n(.*?)```", page(), re.S))
    folder = MOVE.parent
    assert shown == {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}


async def test_the_sql_of_the_page_runs(postgres_url: Any) -> None:
    statements = re.findall(r"<!-- runs in the tests -->\n```sql\n(.*?);\n```", page(), re.S)
    assert len(statements) >= 5
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        await outbox.put(OutboxMessage(1, 17, "waits"))
    with engine(postgres_url).connect() as connection:
        found = [connection.exec_driver_sql(one).mappings().all() for one in statements]
    (waiting,) = (rows[0] for rows in found if rows and "singles" in rows[0])
    assert (waiting["waiting"], waiting["singles"]) == (1, 1)
    assert 0 <= waiting["age"] < 60


@pytest.mark.real_time
async def test_an_outbox_moves_from_sqlite_to_postgresql(tmp_path: Path, postgres_url: Any) -> None:
    path = tmp_path / "outbox.db"
    old, new = Outbox(f"sqlite:///{path}"), Outbox(postgres_url)
    async with Sandbox() as market, old, new:
        business = market.business_id
        await old.create()
        async with old.delivering({business: market.api_key}, base_url=market.url):
            sent = await old.put(OutboxMessage(business, 17, "one", key="a"))
            receipt = await old.result(sent, timeout=20)
        waits = await old.put(OutboxMessage(business, 17, "two", key="b"))
        file = await old.put(OutboxFile(business, 18, b"\x00PDF", filename="a.pdf"))
        marked = await old.put(OutboxMessage(business + 1, 19, "three"))
        cancelled = await old.put(OutboxMessage(business, 17, "four"))
        await old.cancel(cancelled)
        gone = await old.put(OutboxMessage(business, 17, "five"))
        with engine(f"sqlite:///{path}").begin() as connection:
            mark = {"state": "leaving", "request": 1, "epoch": 1, "pending": "{}", "timeout": 30.0}
            connection.execute(update(messages).where(messages.c.number == marked).values(mark))
            connection.execute(messages.delete().where(messages.c.number == gone))
        before = rows(f"sqlite:///{path}")
        (epoch,) = _leases(f"sqlite:///{path}")

        assert await move(path, postgres_url) == ""
        assert rows(postgres_url) == before
        assert _leases(postgres_url) == [epoch]
        assert (await new.result(sent)).trace_id == receipt.trace_id

        # The old file takes nothing more, and a second run does no harm.
        with pytest.raises(OutboxDatabaseError):
            await old.put(OutboxMessage(business, 17, "lost?"))
        assert "nothing was copied" in await move(path, postgres_url)

        # Numbers go on, keys are known, and the rest arrives once.
        assert await new.put(OutboxMessage(business, 17, "two", key="b")) == waits
        six = await new.put(OutboxMessage(business, 17, "six"))
        assert six > gone
        async with new.delivering({business: market.api_key}, base_url=market.url):
            for number in (waits, file, six):
                await new.result(number, timeout=20)
        assert stored(market)[17] == ["one", "two", "six"]
        assert len(stored(market)[18]) == 1


def _leases(url: Any) -> list[Any]:
    with engine(url).connect() as connection:
        return [
            tuple(row) for row in connection.execute(select(leases.c.business_id, leases.c.epoch))
        ]


@pytest.mark.real_time
async def test_an_outbox_with_a_living_worker_does_not_move(
    tmp_path: Path, postgres_url: Any
) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(f"sqlite:///{path}")
    await outbox.create()
    lock = Lock(str(path))
    with engine(f"sqlite:///{path}").begin() as connection:
        worker = {
            "token": "t",
            "lease": 30.0,
            "lock": lock.name,
            "about": "process 7",
            "started_at": 1,
        }
        connection.execute(workers.insert(), worker)
    assert "process 7): stop it first" in await move(path, postgres_url)
    lock.free()
    await outbox.put(OutboxMessage(1, 17, "still taken"))
    await outbox.close()


@pytest.mark.real_time
async def test_an_interrupted_move_goes_on(tmp_path: Path, postgres_url: Any) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(f"sqlite:///{path}")
    await outbox.create()
    await outbox.put(OutboxMessage(1, 17, "one"))
    await outbox.close()
    with engine(f"sqlite:///{path}").begin() as connection:  # and then it was killed
        rename = f"ALTER TABLE {messages.name} RENAME TO {messages.name}_moved"
        connection.exec_driver_sql(rename)
    assert await move(path, postgres_url) == ""
    assert len(rows(postgres_url)[messages.name]) == 1


HOLD = {
    name: re.compile(rf"<!-- {name}: hold what was open -->\n```sql\n(.*?)```", re.S)
    for name in ("postgresql", "sqlite")
}


async def test_a_restored_outbox_repeats_nothing_if_what_was_open_is_held(
    database_url: Any,
) -> None:
    after_restore = runpy.run_path(str(MOVE.with_name("after_restore.py")))
    async with Sandbox() as market, Outbox(database_url) as outbox:
        business = market.business_id
        await outbox.create()
        put = [
            await outbox.put(OutboxMessage(business, chat_id, text))
            for chat_id, text in ((17, "equal"), (17, "equal"), (18, "only after"), (19, "file"))
        ]
        put.append(await outbox.put(OutboxFile(business, 19, b"%PDF", filename="a.pdf")))
        put.append(await outbox.put(OutboxMessage.to_order(business, 55, "packed")))
        late = await outbox.put(OutboxMessage(business, 18, "not sent", bulk=True))
        order = await outbox.put(OutboxMessage.to_order(business, 56, "packed"))
        # The backup is of this moment. Afterwards all but the last two messages are sent.
        dialect = engine(database_url).dialect.name
        (hold,) = HOLD[dialect].findall(page())
        async with ChatSession(market.api_key, business, base_url=market.url) as session:
            for chat_id, text in ((17, "equal"), (18, "only after"), (19, "file")):
                await session.send_message(chat_id, text)
            await session.send_file(19, b"%PDF", filename="a.pdf")
            chat_id = await session.create_chat(order_id=55)
            await session.send_message(chat_id, "packed")
        with engine(database_url).begin() as connection:
            assert connection.exec_driver_sql(hold).rowcount == len(put) + 2
        async with ChatSession(market.api_key, business, base_url=market.url) as session:
            await after_restore["decide"](outbox, session, business)
        states = [(await outbox.get(number)).state for number in (*put, late, order)]  # type: ignore[union-attr]
        assert states == ["delivered", "waiting", *["delivered"] * 4, "waiting", "waiting"]
        async with outbox.delivering({business: market.api_key}, base_url=market.url):
            await outbox.result(late)
            await outbox.result(put[1])
            told = await outbox.result(order)
        assert stored(market)[17] == ["equal", "equal"]
        assert stored(market)[18] == ["only after", "not sent"]
        assert len(stored(market)[19]) == 2
        assert stored(market)[chat_id] == stored(market)[told.chat_id] == ["packed"]
