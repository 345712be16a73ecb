"""A process that delivers, for the tests that stop, pause and kill it at named points."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sqlalchemy import make_url

from yamarket_chat import Pending
from yamarket_chat.outbox import Outbox, points
from yamarket_chat.outbox.checkpoint import Passage
from yamarket_chat.outbox.database import Database
from yamarket_chat.outbox.deaths import Moment


def at(point: str, times: int, with_signal: signal.Signals, url: Any) -> None:
    """Send this process a signal when it reaches a point for the so-manieth time."""
    reached = 0
    no_transaction = gate() if make_url(url).get_backend_name() == "sqlite" else nullcontext()

    def hook(name: str) -> None:
        nonlocal reached
        if name == point:
            reached += 1
            if reached == times:
                with no_transaction:
                    os.kill(os.getpid(), with_signal)

    points.hook = hook


def gate() -> AbstractContextManager[Any]:
    """Return a lock that is held by each transaction of this process.

    A process that is stopped within a transaction holds SQLite's lock, and so stops all others.
    """
    lock = threading.Lock()
    transact = Database._transact

    def gated(*args: Any) -> Any:
        with lock:
            return transact(*args)

    Database._transact = gated  # type: ignore[method-assign,assignment]
    return lock


def take_away(guard: str) -> None:
    """Take one of the guards away."""
    mark, look = Passage.mark, Passage.look

    async def unmarked(self: Passage, pending: Pending) -> None:
        self._marking = Moment.now()

    def unlooked(self: Passage, *, again: bool) -> str | None:
        refused = look(self, again=again)
        return None if again is (guard == "second look") else refused

    if guard == "mark":
        Passage.mark = unmarked  # type: ignore[method-assign]
    else:
        Passage.look = unlooked  # type: ignore[method-assign]
    assert mark is not Passage.mark or look is not Passage.look


def main(
    url: Any,
    keys: dict[int, str],
    options: dict[str, Any],
    point: str,
    times: int,
    with_signal: signal.Signals,
    without: str = "",
) -> None:
    """Deliver until somebody ends this process, without one of the guards."""
    if without:
        take_away(without)
    at(point, times, with_signal, url)

    async def deliver() -> None:
        async with Outbox(url) as outbox:
            await outbox.deliver(keys, **options)

    asyncio.run(deliver())
