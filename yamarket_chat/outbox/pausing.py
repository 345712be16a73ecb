"""Which errors pause a business: they are about it or its key, and not about one message."""

from __future__ import annotations

import math

from ..errors import (
    NOT_THE_API,
    ApiError,
    ChatError,
    ConnectionFailedError,
    ForbiddenError,
    LockedError,
    UnauthorizedError,
)

AGAIN = 60.0
"""Seconds until what failed is tried again at the latest, and for which a business is paused until
one message is tried."""

REMIND_EVERY = 3600.0
"""Seconds between two log lines about a trouble that lasts."""


class Reminder:
    """Says when a lasting trouble is to be logged: as it begins, once an hour, and as it ends."""

    def __init__(self) -> None:
        self._due_at = -math.inf

    def is_due(self, now: float) -> bool:
        """Whether to log the trouble, at the loop's time `now`."""
        if now < self._due_at:
            return False
        self._due_at = now + REMIND_EVERY
        return True

    def end(self) -> bool:
        """Note that it ended. Returns whether there was one."""
        was, self._due_at = self._due_at, -math.inf
        return was > -math.inf


def pauses(error: ChatError) -> bool:
    """Whether an error is about the business or its key, and not about one message."""
    if isinstance(error, (UnauthorizedError, ForbiddenError, LockedError)):
        return True
    if isinstance(error, ConnectionFailedError):
        return error.retry_after is None  # a certificate, or a proxy that wants a password
    return (
        isinstance(error, ApiError)
        and 400 <= error.status < 500
        and bool(error.errors)
        and error.errors[0].code == NOT_THE_API
    )
