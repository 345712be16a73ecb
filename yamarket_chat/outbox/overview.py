"""What an outbox does just now, for people: what waits, who delivers, and what was sent lately."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, case, func, or_, select

from .hand import FILE, TEXT
from .rows import moment, now
from .schema import counts, leases, messages, workers

_row, _lease, _worker = messages.c, leases.c, workers.c
_OPEN = _row.ended_at.is_(None)
_LATER = and_(_row.due_at.is_not(None), _row.state == "waiting")

HOUR = 60
"""Minutes."""


class Business(msgspec.Struct, kw_only=True):
    """What is to be said of a business."""

    business_id: int
    waiting: int = 0  # and due
    not_due: int = 0
    leaving: int = 0
    oldest: datetime | None = None  # of what is due
    messages_in_the_hour: int = 0
    files_in_the_hour: int = 0
    worker: str | None = None
    paused: str | None = None
    paused_at: datetime | None = None
    others_at: datetime | None = None


class Worker(msgspec.Struct, kw_only=True):
    """A process that delivers, or that was killed and is not missed yet."""

    token: str
    about: str
    beat: int
    lease: float
    started_at: datetime
    businesses: int


class Overview(msgspec.Struct, kw_only=True):
    """An outbox just now."""

    waiting: int = 0
    not_due: int = 0
    leaving: int = 0
    oldest: datetime | None = None
    requests_counted: int = 0  # for messages and files, in two hours or more
    workers: list[Worker]
    businesses: list[Business]  # those that have open messages, or of which there is more to say


def overview(connection: Connection, business_id: int | None = None) -> Overview:
    """Read it: all that waits is counted."""
    found: dict[int, Business] = {}

    def about(read: Any) -> Business:
        return found.setdefault(read.business_id, Business(business_id=read.business_id))

    living = _workers(connection)
    names = {worker.token: worker.about for worker in living}
    for read in connection.execute(_of_business(_open_rows(), _row.business_id, business_id)):
        one = about(read)
        one.leaving, one.not_due = read.leaving, read.later
        one.waiting = read.all - read.leaving - read.later
        one.oldest = moment(read.oldest)
    noted = or_(_lease.paused.is_not(None), _lease.others_at.is_not(None))
    condition = noted if business_id is None else _lease.business_id == business_id
    for read in connection.execute(select(leases).where(condition)):
        one = about(read)
        one.paused, one.paused_at = read.paused, moment(read.paused_at)
        one.others_at = moment(read.others_at)
    total = 0
    for read in connection.execute(_of_business(_counted(), counts.c.business_id, business_id)):
        total += read.all
        if read.lately:
            one = about(read)
            if read.operation == TEXT:
                one.messages_in_the_hour = read.lately
            elif read.operation == FILE:
                one.files_in_the_hour = read.lately
    for read in _holders(connection, list(found)):
        about(read).worker = names.get(read.worker)
    businesses = sorted(found.values(), key=lambda one: one.business_id)
    return Overview(
        waiting=sum(one.waiting for one in businesses),
        not_due=sum(one.not_due for one in businesses),
        leaving=sum(one.leaving for one in businesses),
        oldest=min((one.oldest for one in businesses if one.oldest is not None), default=None),
        requests_counted=total,
        workers=living,
        businesses=businesses,
    )


def workers_of(connection: Connection) -> list[Worker]:
    """Read who delivers."""
    return _workers(connection, counted=False)


def _workers(connection: Connection, *, counted: bool = True) -> list[Worker]:
    held: dict[str | None, int] = {}
    if counted:
        many = select(_lease.worker, func.count().label("many")).group_by(_lease.worker)
        held = {read.worker: read.many for read in connection.execute(many)}
    return [
        Worker(
            token=read.token,
            about=read.about or "",
            beat=read.beat,
            lease=read.lease,
            started_at=moment(read.started_at) or datetime.min,
            businesses=held.get(read.token, 0),
        )
        for read in connection.execute(select(workers).order_by(_worker.started_at))
    ]


def _open_rows() -> Any:
    due_at = case((_LATER, None), else_=_row.created_at)
    return (
        select(
            _row.business_id,
            func.count().label("all"),
            func.count(case((_row.state == "leaving", 1))).label("leaving"),
            func.count(case((_LATER, 1))).label("later"),
            func.min(due_at).label("oldest"),
        )
        .where(_OPEN)
        .group_by(_row.business_id)
    )


def _counted() -> Any:
    since = now() // 60_000_000 - HOUR
    lately = case((counts.c.minute > since, counts.c.requests), else_=0)
    return (
        select(
            counts.c.business_id,
            counts.c.operation,
            func.sum(counts.c.requests).label("all"),
            func.sum(lately).label("lately"),
        )
        .where(counts.c.operation.in_((TEXT, FILE)))
        .group_by(counts.c.business_id, counts.c.operation)
    )


def _of_business(query: Any, column: Any, business_id: int | None) -> Any:
    return query if business_id is None else query.where(column == business_id)


def _holders(connection: Connection, businesses: list[int]) -> list[Any]:
    piece = 500
    return [
        read
        for start in range(0, len(businesses), piece)
        for read in connection.execute(
            select(_lease.business_id, _lease.worker).where(
                _lease.business_id.in_(businesses[start : start + piece]),
                _lease.worker.is_not(None),
            )
        )
    ]
