"""Removes what ended long ago, and leaves what tells the next messages from those before."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Select, delete, func, or_, select, tuple_, update

from . import marks
from .database import Database
from .rows import now
from .schema import files, messages

PIECE = 500
"""How many rows one statement removes at most, so that no transaction is long."""

FILES = 20
"""How many contents of files one statement removes: they may have 5 MB each."""

FORGET_AFTER = 3_600_000_000
"""Microseconds after which a message cannot be needed any more to tell equal ones apart."""

FORGET_SURELY = 24 * FORGET_AFTER
"""Microseconds for which the last texts of a business are kept, if it has sent nothing since."""

UNTOLD_FOR = 30 * FORGET_SURELY
"""Microseconds for which a failure is kept that `on_failure` was not told of. There may be none."""

_row = messages.c


async def prune(database: Database, keep: float, *, forget_text: bool) -> int:
    """Remove the messages that ended more than `keep` seconds ago, and return how many."""
    read, write, removed, business = database.read, database.write, 0, 0
    wall = now()
    while (found := await read(next_business, business)) is not None:
        business = found
        # This machine's clock may be wrong, and who sends next needs the last ones.
        last = await read(last_ended, business)
        needed = wall if last is None else last - FORGET_AFTER
        before = min(wall - round(min(keep * 1e6, wall)), max(needed, 0))
        while (count := await write(remove_ended, business, before, wall - UNTOLD_FOR)) > 0:
            removed += count
        if forget_text:
            before = min(wall - FORGET_AFTER, max(needed, wall - FORGET_SURELY))
            after: tuple[int, int] | None = (0, 0)
            while after is not None:
                after = await write(forget_texts, business, before, after)
    while await write(drop_contents) > 0:
        pass
    await write(marks.forget_counts)
    return removed


def next_business(connection: Connection, after: int) -> int | None:
    """Return the next business that has messages which have ended."""
    condition = _row.business_id > after, _row.ended_at.is_not(None)
    found: int | None = connection.scalar(select(func.min(_row.business_id)).where(*condition))
    return found


def last_ended(connection: Connection, business_id: int) -> int | None:
    """Return when the last message of a business ended that arrived or may have, by the Market."""
    found: int | None = connection.scalar(
        select(_row.ended_at)
        .where(_row.business_id == business_id, _row.pending.is_not(None))
        .where(_row.ended_at.is_not(None))  # so that SQLite uses the index
        .order_by(_row.ended_at.desc())
        .limit(1)
    )
    return found


def remove_ended(connection: Connection, business_id: int, before: int, untold_before: int) -> int:
    """Remove a piece of the messages of a business that ended before a time; return how many.

    A failure that nobody was told of must have ended before another time as well.
    """
    is_done = or_(_row.untold.is_(False), _row.ended_at < untold_before)
    piece = _ended_before(business_id, before, is_done)
    return connection.execute(delete(messages).where(_row.number.in_(piece))).rowcount


def forget_texts(
    connection: Connection, business_id: int, before: int, after: tuple[int, int]
) -> tuple[int, int] | None:
    """Forget a piece of the texts of messages that ended before a time.

    Args:
        connection: The connection.
        business_id: The business.
        before: The time.
        after: When the last message of the piece before ended, and its number.

    Returns:
        The same of this piece; None if this was the last one.
    """
    place = tuple_(_row.ended_at, _row.number)
    piece = connection.execute(
        _ended_before(business_id, before, place > after).add_columns(_row.ended_at)
    ).all()
    if not piece:
        return None
    listed = [number for number, _ in piece]
    connection.execute(
        update(messages).where(_row.number.in_(listed), _row.text.is_not(None)).values(text=None)
    )
    number, ended_at = piece[-1]
    return ended_at, number


def drop_contents(connection: Connection) -> int:
    """Remove the contents of some files that were delivered; return how many."""
    piece = (
        select(files.c.number)
        .join(messages, _row.number == files.c.number)
        .where(_row.state == "delivered")
        .limit(FILES)
    )
    return connection.execute(delete(files).where(files.c.number.in_(piece))).rowcount


def _ended_before(
    business_id: int, before: int, *conditions: ColumnElement[bool]
) -> Select[tuple[int]]:
    return (
        select(_row.number)
        .where(_row.business_id == business_id, _row.ended_at < before, *conditions)
        .where(_row.ended_at.is_not(None))  # so that SQLite uses the index
        .order_by(_row.ended_at, _row.number)
        .limit(PIECE)
        .with_for_update(skip_locked=True)
    )
