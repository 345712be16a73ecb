"""A process that delivers, for the tests that stop, pause and kill it at named points."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from yamarket_chat.outbox import Outbox, points


def at(point: str, times: int, with_signal: signal.Signals) -> None:
    """Send this process a signal when it reaches a point for the so-manieth time."""
    reached = 0

    def hook(name: str) -> None:
        nonlocal reached
        if name == point:
            reached += 1
            if reached == times:
                os.kill(os.getpid(), with_signal)

    points.hook = hook


def main(
    url: str,
    keys: dict[int, str],
    options: dict[str, Any],
    point: str,
    times: int,
    with_signal: signal.Signals,
) -> None:
    """Deliver until somebody ends this process."""
    at(point, times, with_signal)

    async def deliver() -> None:
        async with Outbox(url) as outbox:
            await outbox.deliver(keys, **options)

    asyncio.run(deliver())
