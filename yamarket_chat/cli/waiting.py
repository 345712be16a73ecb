"""Waiting for the Market: saying so where it takes long, and giving up in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from yamarket_chat._http.operations import OPERATIONS
from yamarket_chat.errors import ConnectionFailedError
from yamarket_chat.listing import Item, Listing, Page
from yamarket_chat.session import ChatSession

from . import console

PATIENCE = 1.2
"""Seconds after which a person is told that no answer has come."""
PATIENCE_WITH_A_SLOW_ONE = 5.0
"""The same where that was told before, and an answer came all the same."""
ATTEMPT = 15.0
"""Seconds that are waited where nothing is to be tried again."""

TICK = 0.1


def tell_of_silence(how_long: str) -> None:
    """Tell a person that no answer has come, and for how long it is tried."""
    console.note(
        "No answer from the Market yet: waiting, and trying again where that is safe, for"
        f" {how_long} (--give-up-after)"
    )


class Silence:
    """How long the Market has owed an answer; waiting for the quota does not count."""

    def __init__(self, session: ChatSession, give_up_after: float) -> None:
        self._session = session
        self._longest = give_up_after or ATTEMPT
        self._seconds = 0.0
        self._asking = True
        self._told = False
        self._patience = PATIENCE

    def heard(self) -> None:
        """An answer came; from now on the next one is waited for."""
        if self._told:
            self._patience = PATIENCE_WITH_A_SLOW_ONE
        self._seconds, self._told = 0.0, False

    async def pages(self, listing: Listing[Item]) -> AsyncIterator[Page[Item]]:
        """The pages of a listing, each of which is an answer."""
        async for page in listing.pages():
            self.heard()
            yield page

    async def items(self, listing: Listing[Item]) -> AsyncIterator[Item]:
        """The items of a listing."""
        async for page in self.pages(listing):
            for item in page.items:
                yield item

    async def sleep(self, seconds: float) -> None:
        """Pause while the Market is not asked for anything."""
        self._asking = False
        await asyncio.sleep(seconds)
        self._asking = True

    async def too_long(self) -> None:
        """Tell when it takes long, and return when it is to be given up."""
        while self._seconds < self._longest:
            await asyncio.sleep(TICK)
            if not self._asking or self._waits_for_quota():
                continue
            self._seconds += TICK
            if self._seconds >= self._patience and not self._told:
                self._told = True
                tell_of_silence(f"{self._longest:g} s in all")

    def _waits_for_quota(self) -> bool:
        return any(self._session.quota_status(name).waiting for name in OPERATIONS)


@asynccontextmanager
async def bounded(session: ChatSession, give_up_after: float) -> AsyncIterator[Silence]:
    """Cancel what is done here when the Market is silent for too long; TimeoutError then."""

    async def give_up() -> None:
        await silence.too_long()
        deadline.reschedule(asyncio.get_running_loop().time())

    silence = Silence(session, give_up_after)
    async with asyncio.timeout(None) as deadline:
        listening = asyncio.create_task(give_up())
        try:
            yield silence
        finally:
            listening.cancel()


def no_answer(give_up_after: float) -> str:
    """What happened where the Market was silent for too long."""
    return f"no answer from the Market in {give_up_after or ATTEMPT:g} s"


def read(
    session: ChatSession,
    give_up_after: float,
    work: Callable[[Silence], Coroutine[Any, Any, None]],
) -> None:
    """Run a command that sends no message, in its session, until it ends or Ctrl-C."""

    async def within() -> None:
        async with session:
            try:
                async with bounded(session, give_up_after) as silence:
                    await work(silence)
            except TimeoutError:
                await session.close(grace=0)
                raise ConnectionFailedError(
                    f"{no_answer(give_up_after)}: check the network; the Market may be down."
                    " --give-up-after waits longer",
                    sent=None,
                ) from None
            except asyncio.CancelledError:
                await session.close(grace=0)  # nothing is lost by not waiting for an answer
                raise

    console.show_log(logging.INFO)  # someone waits: say why
    asyncio.run(within())
