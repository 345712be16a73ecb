"""What a person looks at and decides: lists of messages, and what becomes of those that ended.

A message whose outcome is unknown may still arrive for a while: until its request can no longer be
carried out. Its row says until when, by the Market's clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, get_args

import msgspec
from sqlalchemy import ColumnElement, Connection, func, select, update

from .._delivery.departing import KERNEL
from .._delivery.failures import unknown_error
from .._delivery.settling import KNOWN_FOR, SKEW
from ..arguments import check_id
from ..errors import ChatError, InvalidArgumentError
from ..pending import Pending
from ..receipts import Receipt
from . import earlier
from .database import Database
from .messages import OutboxEntry, OutboxState
from .outcomes import encode_outcome
from .rows import LONGEST_KEY, RANDOM, entry, is_storable, now
from .schema import messages

PAGE = 500
"""The most messages that one transaction returns."""

SCAN = 5_000
"""The most rows that one transaction looks at: a filter may match none of them."""

APART = KNOWN_FOR + 2 * SKEW
"""Seconds after the last moment at which a message can have been stored. If it is sent again later
than that, nobody takes the row of the first one in the history for the second one's, whatever the
clocks say."""

STATES: tuple[str, ...] = get_args(OutboxState)

AGAIN = ("unknown", "refused", "expired")
"""The states from which a message may be sent again."""

_row = messages.c


class Wish(msgspec.Struct, frozen=True):
    """Which messages are listed; None stands for all."""

    business_id: int | None
    state: str | None
    chat_id: int | None
    key_prefix: str | None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return them for the database."""
        found: list[ColumnElement[bool]] = []
        if self.business_id is not None:
            found.append(_row.business_id == self.business_id)
        if self.state is not None:
            found.append(_row.state == self.state)
        if self.chat_id is not None:
            found.append(_row.chat_id == self.chat_id)
        if self.key_prefix is not None:
            # Not LIKE: in SQLite that takes "A" for "a".
            found.append(func.substr(_row.key, 1, len(self.key_prefix)) == self.key_prefix)
        return found


def check_wish(business_id: object, state: object, chat_id: object, key_prefix: object) -> Wish:
    """Check which messages are to be listed."""
    if state is not None and state not in STATES:
        raise InvalidArgumentError(f"state is one of {', '.join(STATES)}")
    if key_prefix is not None and (
        not isinstance(key_prefix, str)
        or not 1 <= len(key_prefix) <= LONGEST_KEY
        or key_prefix.startswith(RANDOM)
        or not is_storable(key_prefix)
    ):
        raise InvalidArgumentError(
            f"key_prefix is a str of 1 to {LONGEST_KEY} characters, the beginning of a key of yours"
        )
    return Wish(
        None if business_id is None else check_id("business_id", business_id),
        state,
        None if chat_id is None else check_id("chat_id", chat_id),
        key_prefix,
    )


async def entries(
    database: Database, wish: Wish, after: int, limit: int | None
) -> AsyncIterator[OutboxEntry]:
    """Yield messages by number."""
    following: int | None = after
    while following is not None and (limit is None or limit > 0):
        most = PAGE if limit is None else min(PAGE, limit)
        found, following = await database.read(page, wish, following, most)
        for one in found:
            yield one
        if limit is not None:
            limit -= len(found)


def page(
    connection: Connection, wish: Wish, after: int, most: int
) -> tuple[list[OutboxEntry], int | None]:
    """Return the next messages, and the number after which to go on; None if that is all."""
    last = connection.scalar(
        select(_row.number)
        .where(_row.number > after)
        .order_by(_row.number)
        .offset(SCAN - 1)
        .limit(1)
    )
    conditions = [_row.number > after, *wish.conditions()]
    if last is not None:
        conditions.append(_row.number <= last)
    rows = connection.execute(
        select(messages).where(*conditions).order_by(_row.number).limit(most)
    ).all()
    return [entry(row) for row in rows], rows[-1].number if len(rows) == most else last


def settle(connection: Connection, number: int, delivered: bool) -> bool:
    """Decide what became of a message of unknown outcome. Return whether it was unknown."""
    row = _locked(connection, number)
    if row.state != "unknown":
        return False
    outcome: Receipt | ChatError = (
        # A message that was held after a restore may go to an order whose chat nobody knows.
        Receipt(row.chat_id or 0, row.request, "person")
        if delivered
        else ChatError("somebody has looked, and it was not delivered", sent=False)
    )
    values: dict[str, Any] = {"outcome": encode_outcome(outcome)}
    if delivered:
        # A person may be wrong, so for the messages that follow it still only may be there.
        values |= {"state": "delivered", "pending": _stored(row.pending), "untold": False}
    else:
        values |= {"state": "refused"}
    connection.execute(update(messages).where(_row.number == number).values(values))
    return True


def cancel(connection: Connection, number: int) -> bool:
    """Cancel a message that waits. Return whether it has not left and never will."""
    waits = update(messages).where(_row.number == number, _row.state == "waiting")
    done = connection.execute(
        waits.where(_row.pending.is_(None)).values(state="cancelled", ended_at=now())
    )
    if done.rowcount:
        return True
    # It was to be sent again, and what became of the request before is as unknown as it was.
    stored = connection.scalar(
        select(_row.pending).where(_row.number == number, _row.state == "waiting").with_for_update()
    )
    if stored is not None:
        error = unknown_error(earlier.decode_pending(stored), "its repetition was cancelled")
        connection.execute(
            waits.values(state="unknown", ended_at=now(), outcome=encode_outcome(error))
        )
        return False
    state = connection.scalar(select(_row.state).where(_row.number == number))
    if state is None:
        raise InvalidArgumentError(f"there is no message {number}: it was never put, or is pruned")
    return state in ("cancelled", "expired")


def withdraw(connection: Connection, number: int, outcome: str) -> bool:
    """Cancel a message that waits or was refused. Return whether it is never sent.

    The outcome says why: a message that a person has cancelled has none.
    """
    row = update(messages).where(_row.number == number).values(outcome=outcome)
    # What is known of its request stays in the row, for an equal message that is put anew.
    refused = row.where(_row.state == "refused").values(state="cancelled", untold=False)
    if connection.execute(refused).rowcount:
        return True
    if not cancel(connection, number):
        return False
    connection.execute(row)
    return True


def retry(connection: Connection, number: int) -> bool:
    """Let a message wait again. Return whether it does."""
    row = _locked(connection, number)
    if row.state not in AGAIN:
        return False
    if row.text is None and row.file_name is None:
        raise InvalidArgumentError(
            f"the text of message {number} is forgotten, as `forget_text` says: put the message"
            " again, under another key"
        )
    connection.execute(
        update(messages)
        .where(_row.number == number)
        .values(
            state="waiting",
            due_at=_due_at(row),
            not_after=None,
            ended_at=None,
            outcome=None,
            untold=False,
        )
    )
    return True


def _due_at(row: Any) -> int | None:
    """Return from when on a message may be sent again, by the Market's clock.

    `pending` stays in the row: until then, whoever sends to its chat knows that it may be there.
    """
    pending = _pending(row.pending)
    if pending is None:
        return None  # surely no request of it was carried out
    until = row.ended_at
    if pending.until is not None:
        until = round(pending.until.timestamp() * 1e6)
    else:
        until += round((max(row.timeout or 0.0, KERNEL) + (row.settle_after or 0.0)) * 1e6)
    return int(until + round(APART * 1e6))


def _pending(stored: str | None) -> Pending | None:
    return None if stored is None else earlier.decode_pending(stored)


def _stored(stored: str | None) -> str | None:
    pending = _pending(stored)
    if pending is None or (known := earlier.may_be_stored(pending)) is None:
        return None
    return earlier.encode_known(known)[0]


def _locked(connection: Connection, number: int) -> Any:
    row = connection.execute(
        select(messages).where(_row.number == number).with_for_update()
    ).first()
    if row is None:
        raise InvalidArgumentError(f"there is no message {number}: it was never put, or is pruned")
    return row
