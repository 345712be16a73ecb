"""Awaits functions that the program has passed, whatever they do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

LINGERS = 30.0
"""Seconds that a cancelled function may take to end. Then its caller goes on without it."""


class NotAsyncError(TypeError):
    """A function has returned what cannot be awaited. It has done its work."""


async def call(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Await a function in a task of its own, and return its result.

    It may raise CancelledError though nobody has cancelled it: if it awaits a task that somebody
    else has cancelled. That must not end its caller, so this raises RuntimeError then. If the
    caller is cancelled, the function is cancelled as well.
    """
    task = asyncio.ensure_future(awaited(function, *arguments))
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(_silence)
        await asyncio.wait({task}, timeout=LINGERS)
        raise
    if task.cancelled():
        raise RuntimeError("it was cancelled, or awaited a task that was cancelled")
    return task.result()


async def awaited(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Await a function. Raises NotAsyncError if it is a plain one."""
    running: Any = function(*arguments)
    if not inspect.isawaitable(running):
        raise NotAsyncError("it is no async function: write `async def`")
    result: T = await running
    return result


def _silence(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # its error says nothing new: it was cancelled
