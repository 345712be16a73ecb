# ruff: noqa: S608 - names and numbers of ours
"""The statements of the outbox use indexes, however many rows wait or have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, event, text

from yamarket_chat.outbox import (
    Outbox,
    OutboxMessage,
    claims,
    deciding,
    feed,
    marks,
    pruning,
    rows,
    store,
    telling,
)
from yamarket_chat.outbox.deaths import Beat

ROWS = 100_000
BUSINESSES = 100
ENDED = 90  # of a hundred

LARGE = {f"yamarket_outbox_{name}" for name in ("messages", "leases", "counts", "chats", "files")}
"""The tables that may have many rows. There are as many workers as processes."""

MARK = marks.Mark(
    ROWS, 1 + ROWS % BUSINESSES, 0, "me", 1, "{}", 15.0, 10.0, 3, 17.0, "send_message", 1
)
END = marks.End(ROWS, "leaving", 1, "delivered", "{}", "{}")


def wish(known: Iterable[int]) -> marks.Wish:
    """All that a look may leave out."""
    return marks.Wish(64, 64, known=list(known), chats=[17, 18], contexts=[7, -7])


def _told(connection: Connection) -> None:
    one = store.get(connection, 7)
    assert one is not None
    telling.told(connection, one)


# What is done for each message, at each look, each second, or each beat.
OFTEN: dict[str, Callable[[Connection], Any]] = {
    "mark": lambda connection: marks.mark(connection, [MARK]),
    "end": lambda connection: marks.end(connection, [END]),
    "due": lambda connection: marks.due(connection, 5, wish([1, 2, 3])),
    "due, all known": lambda connection: marks.due(connection, 5, wish(range(128))),
    "head of a chat": lambda connection: marks.head(connection, 5, 17, 20),
    "leaving": lambda connection: marks.leaving(connection, 5),
    "before": lambda connection: marks.before(connection, 5, ROWS, 0, [ROWS - 1, ROWS]),
    "content": lambda connection: marks.content(connection, 7),
    "chat of an order": lambda connection: marks.chat_of(connection, 5, "order", 7),
    "opened": lambda connection: marks.opened(connection, 5, "order", 7, 8),
    "pause": lambda connection: marks.pause(connection, 5, "why"),
    "make due": lambda connection: marks.make_due(connection, 5, 10),
    "expire": lambda connection: marks.expire(connection, 5, 10),
    "businesses": feed.businesses,
    "later": lambda connection: feed._first(connection, "due_at"),
    "expiring": lambda connection: feed._first(connection, "not_after"),
    "beat": lambda connection: claims.beat(connection, "me", 0, 0),
    "beats": claims.beats,
    "put": lambda connection: store.put(connection, [rows.prepare(OutboxMessage(5, 17, "Да"))]),
    "put again": lambda connection: store.put(
        connection, [rows.prepare(OutboxMessage(1, 17, "Да", key="again"))] * 2
    ),
    "get": lambda connection: store.get(connection, 7),
    "get by key": lambda connection: store.get_by_key(connection, 5, "k7"),
    "ended": lambda connection: store.ended(connection, [1, 2, ROWS]),
    "cancel": lambda connection: deciding.cancel(connection, ROWS - 1),
    "next to prune": lambda connection: pruning.next_business(connection, 5),
    "prune": lambda connection: pruning.remove_ended(connection, 5, 10, 5),
    "last ended": lambda connection: pruning.last_ended(connection, 5),
    "next to tell": lambda connection: telling._next_business(connection, 5),
    "untold": lambda connection: telling._next_untold(connection, 5, 7),
    "told": _told,
    "forget texts": lambda connection: pruning.forget_texts(connection, 5, 10, (0, 0)),
}

# These count or move leases, a few times in a minute: they read all leases, and no messages.
LEASES: dict[str, Callable[[Connection], Any]] = {
    "survey": lambda connection: claims.survey(connection, "me"),
    "held": lambda connection: claims.held(connection, "me"),
    "new businesses": claims.new_businesses,
    "claim": lambda connection: claims.claim(connection, "me", [None], [5, 6]),
    "take over": lambda connection: claims.take_over(
        connection, "me", Beat("dead", 0, 30.0, None), False, lambda _: True
    ),
}


# Another index would be possible, and would read all of a business.
INDEXES = {
    "mark": "chat",
    "due": "due",
    "due, all known": "due",
    "head of a chat": "chat",
    "leaving": "due",
    "before": "ended",
    "make due": "not_due",
    "expire": "expiring",
    "businesses": "due",
    "later": "not_due",
    "expiring": "expiring",
    "get by key": "key",
    "next to prune": "ended",
    "prune": "ended",
    "forget texts": "ended",
    "last ended": "ended",
    "next to tell": "untold",
    "untold": "untold",
}


async def test_statements_use_indexes(database_url: Any) -> None:
    async with Outbox(database_url) as outbox:
        await outbox.create()
        await outbox._database.write(_fill)
        await outbox._database.call(_analyze, outbox)
        plans = await outbox._database.write(_plans)
    scans = {name: plan.scans for name, plan in plans.items()}
    assert {name: tables for name, tables in scans.items() if tables} == {
        name: {"yamarket_outbox_leases"} for name in LEASES if scans[name]
    }
    used = {name: f"yamarket_outbox_{index}" for name, index in INDEXES.items()}
    others = {name: plans[name].indexes for name in used if used[name] not in plans[name].indexes}
    assert others == {}
    # What `leaving` has read, all that waits, is not read a second time.
    assert "yamarket_outbox_due" not in plans["before"].indexes


async def test_looks_read_no_ended_rows_if_analyze_was_called_before_any_had_ended(
    tmp_path: Any,
) -> None:
    """The index of the keys seemed as good then, and it has the rows that have ended as well."""
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        await outbox.put_many(OutboxMessage(1 + n % 8, 17, "Заказ собран") for n in range(400))
        await outbox._database.call(_analyze, outbox)
        plans = await outbox._database.write(_plans, {"businesses": feed.businesses})
    used = plans["businesses"].indexes
    assert "yamarket_outbox_due" in used
    assert "yamarket_outbox_key" not in used


def _fill(connection: Connection) -> None:

    if connection.dialect.name == "postgresql":
        each, blob = f"SELECT n FROM generate_series(1, {ROWS}) AS each(n)", "'\\x00'::bytea"
        yes, no = "true", "false"
    else:
        steps = f"SELECT 1 UNION ALL SELECT n + 1 FROM each WHERE n < {ROWS}"
        each, blob = f"WITH RECURSIVE each(n) AS ({steps}) SELECT n FROM each", "zeroblob(32)"
        yes, no = "1", "0"
    ended = f"n <= {ROWS * ENDED // 100}"
    values = {
        "business_id": f"1 + n % {BUSINESSES}",
        "chat_id": "CASE WHEN n % 10 > 0 THEN n % 1000 END",
        "context": "CASE WHEN n % 10 = 0 THEN 'order' END",
        "context_id": "CASE WHEN n % 10 = 0 THEN n END",
        "key": "'k' || n",
        "digest": blob,
        "text": "'Заказ собран'",
        "bulk": f"CASE WHEN n % 3 = 0 THEN {yes} ELSE {no} END",
        "due_at": "CASE WHEN n % 5 = 0 THEN n + 1000 END",
        "not_after": "CASE WHEN n % 7 = 0 THEN n + 1000 END",
        "state": f"CASE WHEN {ended} THEN 'delivered' ELSE 'waiting' END",
        "pending": f"CASE WHEN {ended} THEN '{{}}' END",
        "ended_at": f"CASE WHEN {ended} THEN n END",
        "created_at": "n",
    }
    filled = ", ".join(values.values())
    table = f"yamarket_outbox_messages ({', '.join(values)})"
    connection.execute(text(f"INSERT INTO {table} SELECT {filled} FROM ({each}) AS made"))
    few = f"FROM ({each}) AS made WHERE n <= 5000"
    for statement in (
        "INSERT INTO yamarket_outbox_leases (business_id, worker, epoch)"
        f" SELECT n, CASE WHEN n % 2 = 0 THEN 'me' ELSE 'dead' END, 1 {few}",
        f"INSERT INTO yamarket_outbox_counts SELECT n, 'send_message', 1, 1 {few}",
        f"INSERT INTO yamarket_outbox_chats SELECT n, 'order', n, n, 1 {few}",
        f"INSERT INTO yamarket_outbox_files SELECT n, {blob} {few}",
    ):
        connection.execute(text(statement))
    for token in ("me", "dead"):
        claims.join(connection, token, 30.0, None, "")


def _analyze(outbox: Outbox) -> None:
    # Outside of a transaction, as autovacuum does it.
    engine = outbox._database._open()
    driver = engine.raw_connection()
    driver.cursor().execute("ANALYZE" if outbox._database.dialect == "sqlite" else "VACUUM ANALYZE")
    driver.close()


class Plan:
    """The tables that are read as a whole, and the indexes that are used."""

    def __init__(self) -> None:
        self.scans: set[str] = set()
        self.indexes: set[str] = set()

    def add(self, connection: Connection, statement: str, parameters: Any) -> None:
        """Add the plan of a statement."""
        if connection.dialect.name == "postgresql":
            # What is done for each row of a recursion is planned when it is.
            how = f"FORMAT JSON, ANALYZE {'RECURSIVE' in statement}"
            found = connection.exec_driver_sql(f"EXPLAIN ({how}) {statement}", parameters)
            self._add_nodes(found.scalar())
            return
        for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
            # An index that is read from end to end is a scan as well.
            if row[3].startswith("SCAN"):
                self.scans |= {table for table in LARGE if table in row[3]}
            self.indexes |= {word for word in row[3].split() if word.startswith("yamarket_outbox_")}

    def _add_nodes(self, node: Any) -> None:
        if isinstance(node, dict):
            if node.get("Node Type") == "Seq Scan":
                self.scans |= LARGE & {node["Relation Name"]}
            self.indexes.add(node.get("Index Name", ""))
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                self._add_nodes(item)


def _plans(
    connection: Connection, functions: Mapping[str, Callable[[Connection], Any]] = OFTEN | LEASES
) -> dict[str, Plan]:
    seen: list[tuple[str, Any]] = []

    def executed(_: Any, cursor: Any, statement: str, given: Any, context: Any, many: bool) -> None:
        seen.append((statement, (given[0] if isinstance(given, list) else given) or None))

    plans = {}
    for name, function in functions.items():
        seen.clear()
        with connection.begin_nested() as changes:
            event.listen(connection, "before_cursor_execute", executed)
            function(connection)
            event.remove(connection, "before_cursor_execute", executed)
            changes.rollback()
        statements = [one for one in seen if "yamarket_outbox" in one[0]]
        assert statements, name
        plans[name] = Plan()
        for statement, parameters in statements:
            plans[name].add(connection, statement, parameters)
    return plans
