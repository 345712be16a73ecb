"""Calls a handler, and ends it if it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..outbox.calling import awaited
from .errors import HandlerTimeoutError

LINGERS = 5.0
"""Seconds that a cancelled handler may take to end. Then the bot goes on without it."""


async def call(
    function: Callable[..., Awaitable[None]], *arguments: Any, within: float
) -> Exception | None:
    """Call a handler in a task of its own; return its error.

    That is a NotAsyncError if the handler is a plain function: it has done its work. If this is
    cancelled, the handler is cancelled as well.
    """
    task = asyncio.ensure_future(awaited(function, *arguments))
    try:
        done, _ = await asyncio.wait({task}, timeout=within)
    except asyncio.CancelledError:
        await _end(task)
        raise
    if not done:
        await _end(task)
        return HandlerTimeoutError(
            f"the handler took longer than {within:g} s, and was cancelled: make it quicker, or"
            " pass a larger handler_timeout"
        )
    if task.cancelled():
        return RuntimeError("the handler cancelled itself")
    error = task.exception()
    if error is None or isinstance(error, Exception):
        return error
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    failure = RuntimeError(f"the handler raised {type(error).__name__}, which is no Exception")
    failure.__cause__ = error
    return failure


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    task.add_done_callback(_silence)
    await asyncio.wait({task}, timeout=LINGERS)


def _silence(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()  # its error says nothing new: it was cancelled
