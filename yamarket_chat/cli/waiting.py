"""Telling a person why nothing happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from yamarket_chat.session import ChatSession

from . import console

PATIENCE = 1.5
"""Seconds after which a person is told that no answer has come."""


@asynccontextmanager
async def told(session: ChatSession, operation: str, give_up_after: float) -> AsyncIterator[None]:
    """Say so where what is done here takes long, unless the quota is what it waits for."""

    def tell() -> None:
        if not session.quota_status(operation).waiting:
            console.note(
                "No answer from the Market yet: waiting, and trying again where that is safe, for"
                f" {give_up_after:g} s in all (--give-up-after)"
            )

    timer = asyncio.get_running_loop().call_later(PATIENCE, tell)
    try:
        yield
    finally:
        timer.cancel()


def read(
    session: ChatSession, operation: str, give_up_after: float, work: Coroutine[Any, Any, None]
) -> None:
    """Run a command that only reads, in its session, until it ends or Ctrl-C."""

    async def within() -> None:
        async with session:
            try:
                async with told(session, operation, give_up_after):
                    await work
            except asyncio.CancelledError:
                await session.close(grace=0)  # nothing is lost by not waiting for an answer
                raise

    console.show_log(logging.INFO)  # someone waits: say why
    asyncio.run(within())
