"""What a bot was told by its program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from .message import BuyerMessage

Handler = Callable[[BuyerMessage], Awaitable[None]]
ErrorHandler = Callable[[BuyerMessage, Exception], Awaitable[None]]


class Settings(msgspec.Struct, frozen=True):
    """What a bot was told by its program."""

    name: str
    every: float
    waiting: bool
    handler_timeout: float
    max_age: float | None
    message: Handler
    error: ErrorHandler | None
