"""What a courier learns of those before it: what they have sent, and what may be under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from .._delivery.departing import DepartingEngine
from .._delivery.settling import content_of_text
from ..limits import Limits
from ..pending import Content, Pending, Stored
from .grant import Grant
from .marks import Before

LONGEST_REST = 60.0
"""Seconds for which a chat rests at most because of what somebody else has sent to it."""

_encode = msgspec.json.Encoder().encode
decode_pending: Callable[[str], Pending] = msgspec.json.Decoder(Pending).decode
_decode_stored = msgspec.json.Decoder(Stored).decode

_NOTHING = Content()

Counted = Mapping[tuple[int, str, int], int]
"""By business, operation and minute: how many requests this process has marked itself."""


def pending_of(read: Any) -> Pending:
    """Return how to find the message of a marked row. Its text stands in the row."""
    return msgspec.structs.replace(
        decode_pending(read.pending), text=read.text, requests=read.request
    )


def encode_pending(pending: Pending) -> str:
    """Return the form that is stored: the text stands in the row."""
    return _encode(msgspec.structs.replace(pending, text=None)).decode()


def encode_known(known: Stored | Pending | None) -> tuple[str | None, int | None]:
    """Return what is stored of a message that has or may have arrived, and when it ended.

    The time is that of the Market's clock, in microseconds: who takes over reads what ended lately
    by that clock. The clocks of the workers may differ.
    """
    if known is None:
        return None, None
    if isinstance(known, Stored):
        return (
            _encode(msgspec.structs.replace(known, content=_NOTHING)).decode(),
            round(known.latest * 1e6),
        )
    until = None if known.until is None else round(known.until.timestamp() * 1e6)
    return encode_pending(known), until


def stored_by(pending: Pending, latest: float) -> Pending:
    """Return how to find a message that was stored by a time of the Market's clock, or never."""
    since, until = pending.since, pending.until
    if since is None or until is None or not since.timestamp() < latest < until.timestamp():
        return pending
    return msgspec.structs.replace(pending, until=datetime.fromtimestamp(latest, UTC))


def remember(engine: DepartingEngine, pending: Pending, *, surely: bool) -> Stored | None:
    """Remember a message that was settled. Returns when it can have been stored."""
    stored = may_be_stored(pending, surely=surely)
    if stored is not None:
        engine.remember(pending.chat_id, stored)
    return stored


def may_be_stored(pending: Pending, *, surely: bool = False) -> Stored | None:
    """Return what a message says, and when it can have been stored; None if nobody knows when."""
    if pending.since is None or pending.until is None:
        return None
    content = (
        content_of_text(pending.text)
        if pending.text is not None
        else Content(file_name=pending.file_name, file_size=pending.file_size)
    )
    return Stored(content, pending.since.timestamp(), pending.until.timestamp(), surely)


def hold_for_reads(engine: DepartingEngine, grant: Grant, parallel: int, held: int) -> None:
    """Hold all parallel slots but one while the Market may be at what a dead holder was reading.

    No mark tells what that is.

    Args:
        engine: That of the business.
        grant: Under which the business was taken over.
        parallel: The number of slots.
        held: How many hold what the holder before has marked.
    """
    until = grant.reads_until
    if not grant.reads_held and until > asyncio.get_running_loop().time():
        grant.reads_held = True
        engine.count("send_message", [until] * (parallel - 1 - held), held=True)


def learn(
    engine: DepartingEngine,
    known: Before,
    business_id: int,
    limits: Limits,
    timeout: float,
    counted: Counted,
) -> None:
    """Learn what was delivered lately, which chats rest, and what counts for the limits."""
    clock = engine.market_clock()
    assert clock is not None  # noqa: S101 - it was read before
    now = asyncio.get_running_loop().time()
    sent = [(read, stored) for read in known.ended if (stored := _stored(read)) is not None]
    for read, stored in sorted(sent, key=_in_order_of_sending):
        engine.remember(read.chat_id, stored)
        if not stored.surely:
            until = stored.latest - clock.least
            engine.rest(read.chat_id, min(until, now + LONGEST_REST))
    rates = limits.rates()
    for read in known.counted:
        mine = counted.get((business_id, read.operation, read.minute), 0)
        # Of its minute the end, and its answer may have come as late as its timeout allowed.
        until = (read.minute + 1) * 60 - clock.least + timeout + rates[read.operation].per
        if until > now:
            engine.count(read.operation, [until] * max(read.requests - mine, 0))


def _stored(read: Any) -> Stored | None:
    """Return what an ended row says, and when it can have been stored; None if nobody knows."""
    if read.state != "delivered":
        return may_be_stored(pending_of(read))
    content = (
        Content(file_name=read.file_name, file_size=read.file_size)
        if read.file_name is not None
        else content_of_text(read.text or "")
    )
    return msgspec.structs.replace(_decode_stored(read.pending), content=content)


def _in_order_of_sending(sent: tuple[Any, Stored]) -> tuple[float, int]:
    """Return the key by which the messages of a chat are in the order in which they were sent.

    The time of an answer has whole seconds. Within one, the numbers tell.
    """
    read, stored = sent
    return round((stored.earliest + stored.latest) / 2, 1), read.number
