"""The statements about messages. Each function works within the transaction of its connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..errors import InvalidArgumentError
from .errors import KeyConflictError, OutboxDatabaseError
from .messages import OutboxEntry, OutboxStatus
from .rows import GIVEN, Row, entry, moment
from .schema import DIALECTS, files, leases, messages

PIECE = 500
"""How many rows one statement names or removes at most, so that no transaction is long."""

FILES = 20
"""How many contents of files one statement removes: they may have 5 MB each."""

TRIES = 3

_row = messages.c
_GIVEN = [_row[name] for name in GIVEN]
_OPEN = _row.ended_at.is_(None)
_Named = tuple[int, str]  # the business, and the key


def _insert(dialect: str) -> postgresql.Insert | sqlite.Insert:
    values = {column.name: bindparam(column.name, type_=column.type) for column in _GIVEN}
    if dialect == "postgresql":
        return postgresql.insert(messages).values(values)
    return sqlite.insert(messages).values(values)


_BY_KEY = [_row.business_id, _row.key]
_INSERTS = {name: _insert(name).on_conflict_do_nothing(index_elements=_BY_KEY) for name in DIALECTS}
_RETURNING = {
    name: statement.returning(_row.number, _row.business_id, _row.key)
    for name, statement in _INSERTS.items()
}


def put(connection: Connection, rows: Sequence[Row]) -> tuple[list[int], KeyConflictError | None]:
    """Insert rows, and return their numbers. A row whose key is there already is not inserted.

    If a key belongs to other content, its row and those behind it are not inserted. The error is
    returned and not raised, because the rows before are to be committed.
    """
    numbers: dict[_Named, int] = {}
    inserted: set[_Named] = set()
    digests: dict[_Named, bytes] = {}
    for row in rows:
        digests.setdefault(_named(row), row.values["digest"])
    missing = rows
    for _ in range(TRIES):
        new = _insert_rows(connection, missing)
        numbers |= new
        inserted |= new.keys()
        missing = [row for row in missing if _named(row) not in numbers]
        for number, named, digest in _by_keys(connection, [_named(row) for row in missing]):
            numbers[named], digests[named] = number, digest
        missing = [row for row in missing if _named(row) not in numbers]
        if not missing:
            break
        # Between the two statements, the row with the key was pruned: insert again.
    else:
        raise OutboxDatabaseError(
            f"the key {missing[0].values['key']!r} is taken by a row that this transaction does not"
            " see: put in a transaction of isolation level READ COMMITTED",
            retry_after=1.0,
        )
    conflict: KeyConflictError | None = None
    for index, row in enumerate(rows):
        named = _named(row)
        if digests[named] != row.values["digest"]:
            rows = rows[:index]
            kept = {numbers[_named(row)] for row in rows}
            _remove(connection, {numbers[name] for name in inserted} - kept)
            conflict = KeyConflictError(
                f"the key {named[1]!r} belongs to message {numbers[named]}, which has other content"
                " or goes elsewhere: use another key for another message",
                key=named[1],
                number=numbers[named],
            )
            break
    for row in rows:
        if row.content is not None and (named := _named(row)) in inserted:
            inserted.discard(named)  # an equal row may follow
            connection.execute(files.insert(), {"number": numbers[named], "content": row.content})
    return [numbers[_named(row)] for row in rows], conflict


def put_each(connection: Connection, rows: Sequence[Row]) -> list[int | KeyConflictError]:
    """Insert rows that have nothing to do with each other: a conflict concerns its row alone."""
    results: list[int | KeyConflictError] = []
    while len(results) < len(rows):
        numbers, conflict = put(connection, rows[len(results) :])
        results += numbers
        if conflict is not None:
            results.append(conflict)
    return results


def _insert_rows(connection: Connection, rows: Sequence[Row]) -> dict[_Named, int]:
    dialect = connection.dialect
    values = [row.values for row in rows]
    if dialect.insert_returning:
        returned = connection.execute(
            _RETURNING[dialect.name], values if len(values) > 1 else values[0]
        )
        return {(business_id, key): number for number, business_id, key in returned}
    # SQLite before 3.35. Numbers ascend and are never used twice, so what was inserted now has a
    # higher one: nobody else writes during this transaction.
    before = connection.execute(select(func.max(_row.number))).scalar() or 0
    connection.execute(_INSERTS[dialect.name], values)
    found = connection.execute(
        select(_row.number, _row.business_id, _row.key).where(_row.number > before)
    )
    return {(business_id, key): number for number, business_id, key in found}


def _by_keys(
    connection: Connection, named: Sequence[_Named]
) -> Iterable[tuple[int, _Named, bytes]]:
    for start in range(0, len(named), PIECE):
        found = connection.execute(
            select(_row.number, _row.business_id, _row.key, _row.digest).where(
                tuple_(_row.business_id, _row.key).in_(named[start : start + PIECE])
            )
        )
        for number, business_id, key, digest in found:
            yield number, (business_id, key), bytes(digest)


def _remove(connection: Connection, numbers: Iterable[int]) -> None:
    listed = sorted(numbers)
    for start in range(0, len(listed), PIECE):
        connection.execute(delete(messages).where(_row.number.in_(listed[start : start + PIECE])))


def sql(row: Row, dialect: str, paramstyle: str) -> tuple[str, Any]:
    """Return one statement that puts a row, and its parameters.

    It returns the number. It returns no row if the key belongs to other content.
    """
    insert = _insert(dialect)
    insert = insert.on_conflict_do_update(
        index_elements=_BY_KEY,
        set_={"key": insert.excluded.key},
        where=_row.digest == insert.excluded.digest,
    )
    values = dict(row.values)
    statement: Any = insert.returning(_row.number)
    if row.content is not None:
        if dialect == "sqlite":
            raise InvalidArgumentError(
                "in SQLite one statement cannot put a file: use put(message, connection=…)"
            )
        put_row = statement.cte("put_row")
        content = cast(bindparam("content", type_=LargeBinary), LargeBinary)
        put_content = (
            postgresql.insert(files)
            .from_select(["number", "content"], select(put_row.c.number, content))
            .on_conflict_do_nothing()
            .cte("put_content")
        )
        statement = select(put_row.c.number).add_cte(put_content)
        values["content"] = row.content
    compiled = statement.compile(dialect=DIALECTS[dialect](paramstyle=paramstyle))
    parameters = compiled.construct_params(values)
    if compiled.positiontup is not None:
        return str(compiled), [parameters[name] for name in compiled.positiontup]
    return str(compiled), parameters


def get(connection: Connection, number: int) -> OutboxEntry | None:
    """Return a message."""
    return _entry(connection, select(messages).where(_row.number == number))


def get_by_key(connection: Connection, business_id: int, key: str) -> OutboxEntry | None:
    """Return the message that has a key."""
    named = and_(_row.business_id == business_id, _row.key == key)
    return _entry(connection, select(messages).where(named))


def _entry(connection: Connection, query: Select[Any]) -> OutboxEntry | None:
    row = connection.execute(query).first()
    return None if row is None else entry(row)


def ended(connection: Connection, numbers: Sequence[int]) -> list[int]:
    """Return which of these messages have ended, or are gone."""
    waiting: set[int] = set()
    for start in range(0, len(numbers), PIECE):
        some = numbers[start : start + PIECE]
        waiting.update(connection.scalars(select(_row.number).where(_row.number.in_(some), _OPEN)))
    return [number for number in numbers if number not in waiting]


def status(connection: Connection, business_id: int | None) -> OutboxStatus:
    """Count what waits."""

    def about(column: ColumnElement[int], *conditions: ColumnElement[bool]) -> Any:
        return and_(*conditions, *([] if business_id is None else [column == business_id]))

    counted = connection.execute(
        select(
            func.count(),
            func.count(case((_row.state == "leaving", 1))),
            func.min(_row.created_at),
        ).where(about(_row.business_id, _OPEN))
    ).one()
    business, reason, others_at = leases.c.business_id, leases.c.paused, leases.c.others_at
    noted = connection.execute(
        select(business, reason, others_at).where(
            about(business, or_(reason.is_not(None), others_at.is_not(None)))
        )
    ).all()
    return OutboxStatus(
        waiting=counted[0] - counted[1],
        leaving=counted[1],
        oldest=moment(counted[2]),
        paused={row.business_id: row.paused for row in noted if row.paused is not None},
        others={row.business_id: at for row in noted if (at := moment(row.others_at)) is not None},
    )


def _named(row: Row) -> _Named:
    return row.values["business_id"], row.values["key"]
