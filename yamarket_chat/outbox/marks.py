"""The statements around a send: marks, ends, and what is read before the first one.

Each function works within the transaction of its connection. A mark says that a request is about to
be sent: it is written only if nobody else has touched the row and the lease is still ours. An end
is written only while the row is as the mark has left it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Double,
    Text,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from .rows import now
from .schema import DIALECTS, chats, counts, files, leases, messages

_row = messages.c
_OPEN = _row.ended_at.is_(None)

_encode = msgspec.json.Encoder().encode

PIECE = 500
"""How many rows one transaction lets expire at most."""

COUNTED_FOR = 120
"""Minutes for which departures are counted."""


class Mark(msgspec.Struct, eq=False, frozen=True):
    """A request that is about to be sent."""

    number: int
    business_id: int
    request: int  # what is known of the row: the number of its last request
    token: str
    epoch: int
    pending: str
    timeout: float
    settle_after: float
    beat: int  # of the worker
    arrives_within: float  # seconds after it
    operation: str
    minute: int


class End(msgspec.Struct, eq=False, frozen=True):
    """What became of a message. `state` is "waiting" if surely nothing did."""

    number: int
    was: str  # the state and the last request that it must still have
    request: int
    state: str
    outcome: str | None = None
    pending: str | None = None  # of one that was delivered: when
    ended_at: int | None = None  # by the Market's clock; None: not known, so that of this machine

    @property
    def untold(self) -> bool:
        """Whether `on_failure` is to be told."""
        return self.state in ("refused", "unknown", "expired")


_before = messages.alias()
_EARLIER = exists().where(
    _before.c.business_id == _row.business_id,
    _before.c.chat_id == _row.chat_id,
    _before.c.ended_at.is_(None),
    _before.c.due_at.is_(None),
    _before.c.number < _row.number,
)


def _one_of(
    dialect: str, name: str, what: ColumnElement[int] = messages.c.number
) -> ColumnElement[bool]:
    """Return the condition that the number is one of many, which are one parameter.

    With a parameter for each of them, each length would be another statement.
    """
    if dialect == "postgresql":
        return what == any_(bindparam(name, type_=postgresql.ARRAY(BigInteger)))
    numbers = func.json_each(bindparam(name, type_=JSON)).table_valued("value")
    return what.in_(select(numbers.c.value))


# Rows that somebody holds locked are left out: they are read anew later.
_CANDIDATES = {
    dialect: select(
        _row.number,
        _row.state,
        _row.request,
        _row.epoch,
        leases.c.worker,
        leases.c.epoch.label("lease_epoch"),
        _EARLIER.label("earlier"),
    )
    .join(leases, leases.c.business_id == _row.business_id)
    .where(_one_of(dialect, "numbers"), _OPEN)
    .with_for_update(of=messages, skip_locked=True)
    for dialect in DIALECTS
}
_MARKED: dict[str, Any] = {
    "request": BigInteger,
    "epoch": BigInteger,
    "pending": Text,
    "timeout": Double,
    "settle_after": Double,
    "worker": Text,
    "beat": BigInteger,
    "arrives_within": Double,
}
_ENDED: dict[str, Any] = {
    "state": Text,
    "ended_at": BigInteger,
    "outcome": Text,
    "pending": Text,
    "untold": Boolean,
}
_COUNTED: dict[str, Any] = {
    "business_id": BigInteger,
    "operation": Text,
    "minute": BigInteger,
    "requests": BigInteger,
}


def _rows_of(parameter: str, columns: Mapping[str, Any]) -> Any:
    """Return the rows of one parameter, as a table of PostgreSQL.

    Each execution is a request to the server, so what is done to many rows is one execution. For
    SQLite, a statement that is executed for each row costs least.
    """
    rows = func.json_to_recordset(cast(bindparam(parameter, type_=Text), postgresql.JSON))
    table = rows.table_valued(*(column(f"b_{name}", kind) for name, kind in columns.items()))
    return table.render_derived(name=parameter, with_types=True)


def _given(columns: Mapping[str, Any], rows: Any = None) -> dict[str, Any]:
    """Return the values of columns: parameters, or those of given rows."""
    return {
        name: bindparam(f"b_{name}") if rows is None else rows.c[f"b_{name}"] for name in columns
    }


def _adding(statement: Any) -> Any:
    return statement.on_conflict_do_update(
        index_elements=list(counts.primary_key.columns),
        set_={"requests": counts.c.requests + statement.excluded.requests},
    )


_MARK = (
    update(messages)
    .where(_row.number == bindparam("b_number"))
    .values(state="leaving", **_given(_MARKED))
)
_COUNT = _adding(sqlite.insert(counts).values(_given(_COUNTED)))
_marks = _rows_of("marks", {"number": BigInteger, **_MARKED})
_counted = _rows_of("counted", _COUNTED)
_MARK_ALL = (
    update(messages)
    .where(_row.number == _marks.c.b_number)
    .values(state="leaving", **_given(_MARKED, _marks))
    .add_cte(
        _adding(postgresql.insert(counts).from_select(list(_COUNTED), select(*_counted.c))).cte(
            "counting"
        )
    )
)
_END = (
    update(messages)
    .where(
        _row.number == bindparam("b_number"),
        _row.state == bindparam("b_was"),
        _row.request == bindparam("b_last"),
    )
    .values(_given(_ENDED))
)
_ends = _rows_of("ends", {"number": BigInteger, "was": Text, "last": BigInteger, **_ENDED})
_free = (
    select(_row.number)
    .where(_one_of("postgresql", "numbers"))
    .with_for_update(key_share=True, skip_locked=True)
    .cte("free")
)
# It returns which rows nobody holds locked.
_END_ALL = select(_free.c.number).add_cte(
    update(messages)
    .where(
        _row.number == _free.c.number,
        _row.number == _ends.c.b_number,
        _row.state == _ends.c.b_was,
        _row.request == _ends.c.b_last,
    )
    .values(_given(_ENDED, _ends))
    .cte("ending")
)

_EXPIRE = {
    dialect: update(messages)
    .where(_one_of(dialect, "numbers"))
    .values(state="expired", ended_at=bindparam("at", type_=BigInteger), untold=True)
    for dialect in DIALECTS
}

GONE = "its row has changed"
NOT_OURS = "the lease of its business is another worker's"
EARLIER = "an earlier message of its chat has to go first"


def mark(connection: Connection, marks: Sequence[Mark]) -> list[str | None]:
    """Mark rows. Returns for each None, or why it may not be sent."""
    dialect = connection.dialect.name
    found = {
        row.number: row
        for row in connection.execute(
            _CANDIDATES[dialect], {"numbers": [one.number for one in marks]}
        )
    }
    refusals = [_refusal(one, found.get(one.number)) for one in marks]
    marked = [one for one, refusal in zip(marks, refusals, strict=True) if refusal is None]
    if marked:
        _write_marks(connection, marked)
    return refusals


def _write_marks(connection: Connection, marked: Sequence[Mark]) -> None:
    rows = [
        {
            "b_number": one.number,
            "b_request": one.request + 1,
            "b_epoch": one.epoch,
            "b_pending": one.pending,
            "b_timeout": one.timeout,
            "b_settle_after": one.settle_after,
            "b_worker": one.token,
            "b_beat": one.beat,
            "b_arrives_within": one.arrives_within,
        }
        for one in marked
    ]
    many = Counter((one.business_id, one.operation, one.minute) for one in marked)
    counted = [
        {"b_business_id": business, "b_operation": name, "b_minute": minute, "b_requests": requests}
        for (business, name, minute), requests in sorted(many.items())
    ]
    if connection.dialect.name == "postgresql":
        connection.execute(_MARK_ALL, {"marks": _json(rows), "counted": _json(counted)})
    else:
        connection.execute(_MARK, rows)
        connection.execute(_COUNT, counted)


def _refusal(one: Mark, row: Any) -> str | None:
    if row is None or row.request != one.request:
        return GONE
    if (row.worker, row.lease_epoch) != (one.token, one.epoch):
        return NOT_OURS
    if row.state != "waiting" and (row.state != "leaving" or row.epoch != one.epoch):
        return GONE
    return EARLIER if row.earlier else None


def end(connection: Connection, ends: Sequence[End]) -> set[int]:
    """Write ends. One whose row has changed since is left out.

    Returns the numbers of rows that somebody holds locked: they are to be written later.
    """
    rows = [
        {
            "b_number": one.number,
            "b_was": one.was,
            "b_last": one.request,
            "b_state": one.state,
            "b_ended_at": None if one.state == "waiting" else one.ended_at or now(),
            "b_outcome": one.outcome,
            "b_pending": one.pending,
            "b_untold": one.untold,
        }
        for one in ends
    ]
    if connection.dialect.name == "postgresql":
        numbers = [one.number for one in ends]
        written = connection.scalars(_END_ALL, {"numbers": numbers, "ends": _json(rows)})
        return set(numbers).difference(written)
    connection.execute(_END, rows)
    return set()


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return _encode(rows).decode()


_FED = [
    _row[name]
    for name in (
        "number", "business_id", "chat_id", "context", "context_id", "text", "file_name",
        "file_size", "bulk", "not_after", "state", "request", "epoch", "pending", "timeout",
        "settle_after", "worker", "beat", "arrives_within",
    )
]  # fmt: skip
# An order's id, or that of a return below zero.
_SIGNED = case((_row.context == "return", -_row.context_id), else_=_row.context_id)
_DUE = {
    dialect: select(*_FED)
    .where(
        _OPEN,
        _row.due_at.is_(None),
        _row.business_id == bindparam("business_id"),
        _row.bulk == bindparam("bulk"),
        ~_one_of(dialect, "known"),
        or_(_row.chat_id.is_(None), ~_one_of(dialect, "chats", _row.chat_id)),
        or_(_row.chat_id.is_not(None), ~_one_of(dialect, "contexts", _SIGNED)),
    )
    .order_by(_row.number)
    .limit(bindparam("most"))
    for dialect in DIALECTS
}
_HEAD = (
    select(*_FED)
    .where(
        _OPEN,
        _row.due_at.is_(None),
        _row.business_id == bindparam("business_id"),
        _row.chat_id == bindparam("chat_id"),
    )
    .order_by(_row.number)
    .limit(bindparam("most"))
)


class Wish(msgspec.Struct, frozen=True):
    """What is wanted for a business.

    Attributes:
        singles: How many singles, at most.
        bulk: How many others, at most.
        known: The numbers in hand.
        chats: Those of which nothing is wanted.
        contexts: The orders of which nothing is wanted, and the returns: their ids below zero.
    """

    singles: int
    bulk: int
    known: Sequence[int]
    chats: Sequence[int]
    contexts: Sequence[int]


def due(connection: Connection, business_id: int, wish: Wish) -> list[Any]:
    """Read what is next for a business."""
    rows: list[Any] = []
    for is_bulk, most in ((False, wish.singles), (True, wish.bulk)):
        if most > 0:
            rows += connection.execute(
                _DUE[connection.dialect.name],
                {
                    "business_id": business_id,
                    "bulk": is_bulk,
                    "known": wish.known,
                    "chats": wish.chats,
                    "contexts": wish.contexts,
                    "most": most,
                },
            )
    return rows


def head(connection: Connection, business_id: int, chat_id: int, most: int) -> list[Any]:
    """Read what is next for a chat."""
    about = {"business_id": business_id, "chat_id": chat_id, "most": most}
    return list(connection.execute(_HEAD, about))


class Before(msgspec.Struct, frozen=True):
    """What a courier has to know before it sends the first message of a business."""

    leaving: list[Any]
    ended: list[Any]
    counted: list[Any]
    paused: str | None


_MARKED_ROWS = select(*_FED).where(_OPEN, _row.due_at.is_(None), _row.state == "leaving")
# In this order, so that SQLite uses the index of what is due.
_LEAVING = _MARKED_ROWS.where(_row.business_id == bindparam("business_id")).order_by(
    _row.bulk, _row.number
)
_STILL_LEAVING = {
    dialect: _MARKED_ROWS.where(_one_of(dialect, "numbers")).order_by(_row.number)
    for dialect in DIALECTS
}


def leaving(connection: Connection, business_id: int) -> list[Any]:
    """Read the rows of a business that are marked. It reads all rows that are due."""
    return list(connection.execute(_LEAVING, {"business_id": business_id}))


def before(
    connection: Connection, business_id: int, since: int, minute: int, marked: Sequence[int]
) -> Before:
    """Read what earlier couriers of a business have sent since a time and a minute.

    Args:
        connection: The connection.
        business_id: The business.
        since: The time.
        minute: The minute.
        marked: The numbers of the rows that were marked when `leaving` read them.
    """
    about = _row.business_id == business_id, _row.pending.is_not(None)
    columns = (
        _row.number, _row.chat_id, _row.text, _row.file_name, _row.file_size, _row.state,
        _row.request, _row.pending,
    )  # fmt: skip
    # Those that were delivered or are unknown, and those of which somebody has decided.
    ended = connection.execute(
        select(*columns).where(*about, _row.ended_at.is_not(None), _row.ended_at >= since)
    ).all()
    # Those that are to be sent again, once they surely cannot arrive any more.
    again = connection.execute(
        select(*columns).where(*about, _OPEN, _row.due_at.is_not(None))
    ).all()
    mine = counts.c.business_id == business_id
    counted = connection.execute(
        select(counts.c.operation, counts.c.minute, counts.c.requests).where(
            mine, counts.c.minute >= minute
        )
    ).all()
    paused = connection.scalar(select(leases.c.paused).where(leases.c.business_id == business_id))
    still = (
        connection.execute(_STILL_LEAVING[connection.dialect.name], {"numbers": list(marked)}).all()
        if marked
        else []
    )
    return Before(list(still), [*ended, *again], list(counted), paused)


def forget_counts(connection: Connection) -> None:
    """Remove the counts that are too old to matter: by the newest one, which the Market dates."""
    newest = select(func.max(counts.c.minute)).scalar_subquery()
    connection.execute(delete(counts).where(counts.c.minute < newest - 2 * COUNTED_FOR))


def make_due(connection: Connection, business_id: int, moment: int) -> None:
    """Let rows be due whose time has come, by the Market's clock."""
    connection.execute(
        update(messages)
        .where(
            _row.business_id == business_id,
            _OPEN,
            _row.due_at.is_not(None),
            _row.due_at <= moment,
        )
        .values(due_at=None)
    )


def expire(connection: Connection, business_id: int, moment: int) -> list[int]:
    """End some rows that wait and whose `not_after` is over, by the Market's clock.

    Returns their numbers: at most `PIECE`. Rows that somebody holds locked are left out.
    """
    over = (
        select(_row.number)
        .where(
            _row.business_id == business_id,
            _OPEN,
            _row.not_after.is_not(None),
            _row.not_after < moment,
            _row.state == "waiting",
        )
        .order_by(_row.not_after)
        .limit(PIECE)
        .with_for_update(skip_locked=True)
    )
    numbers = list(connection.scalars(over))
    if numbers:
        connection.execute(_EXPIRE[connection.dialect.name], {"numbers": numbers, "at": moment})
    return numbers


def content(connection: Connection, number: int) -> bytes | None:
    """Return the content of a file."""
    found: bytes | None = connection.scalar(select(files.c.content).where(files.c.number == number))
    return found


def chat_of(connection: Connection, business_id: int, context: str, context_id: int) -> int | None:
    """Return the chat of an order or a return, if it was opened before; its rows learn it."""
    found: int | None = connection.scalar(
        select(chats.c.chat_id).where(
            chats.c.business_id == business_id,
            chats.c.context == context,
            chats.c.context_id == context_id,
        )
    )
    if found is not None:
        _address(connection, business_id, context, context_id, found)
    return found


def opened(
    connection: Connection, business_id: int, context: str, context_id: int, chat_id: int
) -> None:
    """Note the chat of an order or a return; its rows learn it."""
    values = {
        "business_id": business_id,
        "context": context,
        "context_id": context_id,
        "chat_id": chat_id,
        "opened_at": now(),
    }
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(kind.insert(chats).values(values).on_conflict_do_nothing())
    _address(connection, business_id, context, context_id, chat_id)


def _address(
    connection: Connection, business_id: int, context: str, context_id: int, chat_id: int
) -> None:
    connection.execute(
        update(messages)
        .where(
            _row.business_id == business_id,
            _OPEN,
            _row.context.is_not(None),
            _row.context == context,
            _row.context_id == context_id,
            _row.chat_id.is_(None),
        )
        .values(chat_id=chat_id)
    )


def pause(connection: Connection, business_id: int, reason: str | None) -> None:
    """Note why a business is paused; None if it is not any more."""
    connection.execute(
        update(leases)
        .where(leases.c.business_id == business_id)
        .values(
            # PostgreSQL stores no NUL, and the Market's text may have one.
            paused=None if reason is None else reason.replace("\0", "\ufffd"),
            # It is noted anew each minute, and was paused before.
            paused_at=None if reason is None else func.coalesce(leases.c.paused_at, now()),
        )
    )
