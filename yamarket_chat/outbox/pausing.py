"""Which errors pause a business: they are about it or its key, and not about one message."""

from __future__ import annotations

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
