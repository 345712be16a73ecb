"""The statements about workers and leases. Each function works within its connection's transaction.

No statement waits for a row that somebody else has locked: it leaves such a row for the next round.
The epoch of a lease is raised whenever its holder changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from .deaths import Beat
from .rows import now
from .schema import leases, messages, workers

PIECE = 500
"""How many businesses one statement names at most."""

_JOINING = 0x79616D61626F74
"""Held in PostgreSQL while a worker with a bot joins: two may do so at the same moment."""

_worker, _lease, _row = workers.c, leases.c, messages.c
Held = tuple[int, int]  # the business and the epoch


class Survey(NamedTuple):
    """Who holds how many leases."""

    tokens: list[str]  # of all workers
    bots: dict[str, str]  # the names of their bots
    counts: dict[str | None, int]  # by the holder; None: nobody
    epochs: int  # the sum of one's own epochs: it changes with each change of one's leases
    asked: dict[tuple[str | None, str], int]  # by the holder, and who asks for them

    @property
    def free(self) -> list[str | None]:
        """The holders whose leases anybody may claim."""
        return [token for token in self.counts if token not in self.tokens]


def join(
    connection: Connection,
    token: str,
    lease: float,
    lock: str | None,
    about: str,
    bot: str | None = None,
) -> None:
    """Add a worker."""
    values = {
        "token": token, "lease": lease, "lock": lock, "about": about, "bot": bot,
        "started_at": now(),
    }  # fmt: skip
    connection.execute(insert(workers).values(values))


def beat(connection: Connection, token: str, low: int, high: int) -> int | None:
    """Count a worker's beat up; return it, or None if its row is gone or has another beat.

    Args:
        connection: The connection.
        token: The worker.
        low: Its last beat whose commit was learnt.
        high: The same, if all commits succeeded whose success was not learnt.
    """
    condition = _worker.token == token, _worker.beat.between(low, high)
    changed = connection.execute(update(workers).where(*condition).values(beat=_worker.beat + 1))
    if not changed.rowcount:
        return None
    if low == high:
        return low + 1
    return connection.scalar(select(_worker.beat).where(_worker.token == token))


def beats(connection: Connection) -> list[Beat]:
    """Return the beats of all workers."""
    columns = _worker.token, _worker.beat, _worker.lease, _worker.lock
    return [Beat(*row) for row in connection.execute(select(*columns))]


def survey(connection: Connection, me: str) -> Survey:
    """Count all leases."""
    found = connection.execute(
        select(_lease.worker, _lease.wanted, func.count(), func.sum(_lease.epoch)).group_by(
            _lease.worker, _lease.wanted
        )
    ).all()
    # Read after the leases: a holder that is not there now is gone, and its token never returns.
    living = connection.execute(select(_worker.token, _worker.bot)).all()
    counts: dict[str | None, int] = {}
    asked: dict[tuple[str | None, str], int] = {}
    epochs = 0
    for holder, wanted, count, total in found:
        counts[holder] = counts.get(holder, 0) + count
        if holder == me:
            epochs += int(total)
        if wanted is not None:
            asked[holder, wanted] = count
    bots = {token: bot for token, bot in living if bot is not None}
    return Survey([token for token, _ in living], bots, counts, epochs, asked)


class OtherBot(NamedTuple):
    """A worker with a bot of another name, and one of its businesses."""

    business_id: int
    token: str
    beat: int
    lease: float
    bot: str
    about: str


def other_bots(connection: Connection, bot: str) -> list[OtherBot]:
    """Return the businesses that workers with bots of other names hold, or ask for."""
    columns = _worker.token, _worker.beat, _worker.lease, _worker.bot, _worker.about
    found = connection.execute(
        select(_lease.business_id, *columns)
        .join(workers, or_(_worker.token == _lease.worker, _worker.token == _lease.wanted))
        .where(_worker.bot.is_not(None), _worker.bot != bot)
    )
    return [OtherBot(*row) for row in found]


def join_with_bot(
    connection: Connection,
    token: str,
    lease: float,
    lock: str | None,
    about: str,
    bot: str,
    businesses: Collection[int] | None,
    dead: Collection[tuple[str, int]],
) -> list[OtherBot]:
    """Add a worker with a bot, unless the bot of another name has one of its businesses.

    This also takes its businesses, or asks for them. So of two that begin at the same moment, the
    second one sees what the first one has.

    Args:
        connection: The connection.
        token: The worker; what follows is as for `join`.
        lease: Its lease.
        lock: Its lock.
        about: What is said of it.
        bot: The name of its bot.
        businesses: The businesses that it serves; None serves all.
        dead: The tokens and beats of workers that are dead.

    Returns:
        The other bots. Then nothing is changed.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_JOINING})")

    def serves(business_id: int) -> bool:
        return businesses is None or business_id in businesses

    others = [
        other
        for other in other_bots(connection, bot)
        if serves(other.business_id) and (other.token, other.beat) not in dead
    ]
    if others:
        return others
    join(connection, token, lease, lock, about, bot)
    add(connection, new_businesses(connection) if businesses is None else businesses)
    holder = exists().where(_worker.token == _lease.worker)
    free = list(filter(serves, connection.scalars(select(_lease.business_id).where(~holder))))
    for piece in _pieces(free):
        _move(connection, ~holder & _lease.business_id.in_(piece), token)
    strange = holder.where(_worker.bot.is_distinct_from(bot))
    theirs = list(filter(serves, connection.scalars(select(_lease.business_id).where(strange))))
    for piece in _pieces(theirs):
        _change(connection, strange & _lease.business_id.in_(piece), wanted=token)
    return []


def held(connection: Connection, token: str) -> list[Held]:
    """Return the leases of a worker."""
    found = connection.execute(select(_lease.business_id, _lease.epoch).where(_is(token)))
    return [(row.business_id, row.epoch) for row in found]


def wanted(connection: Connection, token: str) -> list[tuple[int, str]]:
    """Return which businesses of a worker others ask for."""
    found = connection.execute(
        select(_lease.business_id, _lease.wanted)
        .where(_is(token), _lease.wanted.is_not(None))
        .order_by(_lease.business_id)
    )
    return [(row.business_id, row.wanted) for row in found]


def listed(connection: Connection, holders: Sequence[str | None], free: bool = True) -> list[int]:
    """Return the businesses of some holders. Without `free`, only those that nobody asks for."""
    condition = _of(holders) if free else _of(holders) & _lease.wanted.is_(None)
    return list(connection.scalars(select(_lease.business_id).where(condition)))


def new_businesses(connection: Connection) -> list[int]:
    """Return the businesses that have open messages, and no lease yet."""
    # From one business to the next in the index. DISTINCT would read all that waits.
    first = select(func.min(_row.business_id).label("id")).where(_row.ended_at.is_(None))
    each = first.cte("each", recursive=True)
    following = (
        select(func.min(_row.business_id))
        .where(_row.ended_at.is_(None), _row.business_id > each.c.id)
        .scalar_subquery()
    )
    each = each.union_all(select(following).where(each.c.id.is_not(None)))
    known = exists().where(_lease.business_id == each.c.id)
    return list(connection.scalars(select(each.c.id).where(each.c.id.is_not(None), ~known)))


def add(connection: Connection, businesses: Iterable[int]) -> None:
    """Add leases, which nobody holds, for businesses that have none yet."""
    make: Callable[..., Any] = (
        postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    )
    rows = [{"business_id": business_id} for business_id in sorted(businesses)]
    if rows:
        connection.execute(make(leases).on_conflict_do_nothing(), rows)


def bears(business_id: int, token: str, epoch: int) -> ColumnElement[bool]:
    """Return the condition that a lease is still the one that was granted.

    The token alone would not do: a business may go to another worker, and come back.
    """
    return exists().where(
        _lease.business_id == business_id, _lease.worker == token, _lease.epoch == epoch
    )


def claim(
    connection: Connection, me: str, holders: Sequence[str | None], businesses: Collection[int]
) -> list[Held]:
    """Take leases whose holder is nobody, or gone; return all of one's own."""
    for piece in _pieces(businesses):
        _move(connection, _of(holders) & _lease.business_id.in_(piece), me)
    return held(connection, me)


def take_over(
    connection: Connection, me: str, dead: Beat, proven: bool, serves: Callable[[int], bool]
) -> list[Held] | None:
    """Remove a dead worker, and take those of its leases that one serves.

    Args:
        connection: The connection.
        me: The worker that takes over.
        dead: The other one, and its beat, which must still be the same.
        proven: Whether an operating system's lock has proven the death: then no beat counts.
        serves: Whether the worker serves a business. The others are free then.

    Returns:
        All leases of the worker that takes over; None if the other one is not dead, or gone.
    """
    condition = _worker.token == dead.token
    if not proven:
        condition &= _worker.beat == dead.beat
    row = select(_worker.token).where(condition).with_for_update(skip_locked=True)
    if not connection.execute(delete(workers).where(_worker.token.in_(row))).rowcount:
        return None
    businesses = filter(
        serves, connection.scalars(select(_lease.business_id).where(_is(dead.token)))
    )
    for piece in _pieces(list(businesses)):
        _move(connection, _is(dead.token) & _lease.business_id.in_(piece), me)
    return held(connection, me)


def ask(connection: Connection, me: str, holder: str, businesses: Collection[int]) -> None:
    """Ask the holder of leases for them."""
    for piece in _pieces(businesses):
        free = _is(holder) & _lease.wanted.is_(None)
        _change(connection, free & _lease.business_id.in_(piece), wanted=me)


def keep(connection: Connection, me: str, businesses: Collection[int]) -> None:
    """Refuse leases that others ask for."""
    for piece in _pieces(businesses):
        _change(connection, _is(me) & _lease.business_id.in_(piece), wanted=None)


def give(connection: Connection, me: str, businesses: Collection[int]) -> list[Held]:
    """Give leases to those who ask for them, or to nobody. Return all that one still has.

    One of them may be asked for by a worker that is gone. It is kept.
    """
    living = exists().where(_worker.token == _lease.wanted)
    for piece in _pieces(businesses):
        these = _is(me) & _lease.business_id.in_(piece)
        _change(connection, these & _lease.wanted.is_not(None) & ~living, wanted=None)
        _move(connection, these & _lease.wanted.is_not(None), _lease.wanted)
    return held(connection, me)


def drop(connection: Connection, me: str, businesses: Collection[int]) -> list[Held]:
    """Free leases of businesses that the worker does not serve any more."""
    for piece in _pieces(businesses):
        _move(connection, _is(me) & _lease.business_id.in_(piece), None)
    return held(connection, me)


def leave(connection: Connection, me: str) -> None:
    """Free all leases of a worker, and remove it."""
    _move(connection, _is(me), None)
    connection.execute(delete(workers).where(_worker.token == me))


def _is(token: str) -> ColumnElement[bool]:
    return _lease.worker == token


def _of(holders: Sequence[str | None]) -> ColumnElement[bool]:
    named = _lease.worker.in_([token for token in holders if token is not None])
    return or_(named, _lease.worker.is_(None)) if None in holders else named


def _move(connection: Connection, condition: ColumnElement[bool], to: Any) -> None:
    _change(connection, condition, worker=to, epoch=_lease.epoch + literal(1), wanted=None)


def _change(connection: Connection, condition: ColumnElement[bool], **values: Any) -> None:
    unlocked = select(_lease.business_id).where(condition).with_for_update(skip_locked=True)
    connection.execute(update(leases).where(_lease.business_id.in_(unlocked)).values(**values))


def _pieces(businesses: Collection[int]) -> Iterator[list[int]]:
    # Sorted: two workers that change the same rows do it in the same order.
    ordered = sorted(businesses)
    for start in range(0, len(ordered), PIECE):
        yield ordered[start : start + PIECE]
