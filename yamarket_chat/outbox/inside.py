"""What a companion of an outbox, as a bot is, uses of it. Internal: programs have no use for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from .database import Database
from .delivering import Companion, Keys
from .messages import OutboxEntry
from .outbox import Outbox, SessionOptions


def database(outbox: Outbox) -> Database:
    """Return the database of an outbox."""
    return outbox._database


def wake(outbox: Outbox) -> None:
    """Let the deliveries of this event loop look for new messages at once."""
    outbox._wake()


def delivering(
    outbox: Outbox,
    keys: Keys,
    *,
    lease: float,
    reserve: int,
    on_failure: Callable[[OutboxEntry], Awaitable[None]] | None,
    options: SessionOptions,
    companion: Companion,
) -> AbstractAsyncContextManager[None]:
    """Deliver as `Outbox.delivering` does, with a companion that works under the same leases."""
    return outbox._delivering(keys, lease, reserve, on_failure, options, companion)
