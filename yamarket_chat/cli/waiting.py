"""Waiting for the Market's responses: a notice if one takes long, and a timeout."""

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

from . import console, signals

NOTICE_AFTER = 1.2
"""Seconds without a response after which a notice is printed."""
LATER_NOTICE_AFTER = 5.0
"""The same for later responses, after a notice was printed and the response came."""
SINGLE_REQUEST_TIMEOUT = 15.0
"""Seconds to wait for a response if requests are not retried (--give-up-after 0)."""

POLL_INTERVAL = 0.1
"""Seconds between two checks of the timer."""


def note_no_response(how_long: str) -> None:
    """Print a notice that no response has come, and for how long the command keeps trying."""
    console.note(
        "No response from the Market yet; waiting, and retrying if that is safe, for up to"
        f" {how_long} (--give-up-after)"
    )


class ResponseTimer:
    """Measures how long the command has waited for a response.

    Time that the session waits for a rate limit does not count.
    """

    def __init__(self, session: ChatSession, give_up_after: float) -> None:
        self._session = session
        self._timeout = give_up_after or SINGLE_REQUEST_TIMEOUT
        self._waited = 0.0
        self._running = True
        self._notice_shown = False
        self._notice_after = NOTICE_AFTER

    def response_received(self) -> None:
        """Restart the timer for the next response."""
        if self._notice_shown:
            self._notice_after = LATER_NOTICE_AFTER
        self._waited, self._notice_shown = 0.0, False

    async def pages(self, listing: Listing[Item]) -> AsyncIterator[Page[Item]]:
        """Yield the pages of a listing. Each page is a response and restarts the timer."""
        async for page in listing.pages():
            self.response_received()
            yield page

    async def items(self, listing: Listing[Item]) -> AsyncIterator[Item]:
        """Yield the items of a listing."""
        async for page in self.pages(listing):
            for item in page.items:
                yield item

    async def sleep(self, seconds: float) -> None:
        """Sleep, with the timer stopped."""
        self._running = False
        await asyncio.sleep(seconds)
        self._running = True

    async def wait_for_timeout(self) -> None:
        """Print the notice when a response takes long, and return after the timeout."""
        while self._waited < self._timeout:
            await asyncio.sleep(POLL_INTERVAL)
            if not self._running or self._waits_for_limit():
                continue
            self._waited += POLL_INTERVAL
            if self._waited >= self._notice_after and not self._notice_shown:
                self._notice_shown = True
                note_no_response(f"{self._timeout:g} s in total")

    def _waits_for_limit(self) -> bool:
        return any(self._session.quota_status(name).waiting for name in OPERATIONS)


@asynccontextmanager
async def response_timeout(
    session: ChatSession, give_up_after: float
) -> AsyncIterator[ResponseTimer]:
    """Raise TimeoutError in the block if the Market does not respond in time."""

    async def give_up() -> None:
        await timer.wait_for_timeout()
        deadline.reschedule(asyncio.get_running_loop().time())

    timer = ResponseTimer(session, give_up_after)
    async with asyncio.timeout(None) as deadline:
        watchdog = asyncio.create_task(give_up())
        try:
            yield timer
        finally:
            watchdog.cancel()


async def close_after_interrupt(session: ChatSession) -> None:
    """Close the session and wait for the requests in progress, unless a second signal comes."""
    closing = asyncio.create_task(session.close())
    try:
        await asyncio.wait({closing})
    except asyncio.CancelledError:
        console.show_log(logging.CRITICAL)  # the requests that are cut off now have nothing to say
        closing.cancel()
        await asyncio.wait({closing})
        raise
    await closing


def no_response(give_up_after: float) -> str:
    """Describe the timeout."""
    return f"no response from the Market within {give_up_after or SINGLE_REQUEST_TIMEOUT:g} s"


def read(
    session: ChatSession,
    give_up_after: float,
    work: Callable[[ResponseTimer], Coroutine[Any, Any, None]],
) -> None:
    """Run `work` in the session until it ends or a signal. It must not send messages."""

    async def run() -> None:
        async with session:
            try:
                async with response_timeout(session, give_up_after) as timer:
                    await work(timer)
            except TimeoutError:
                await session.close(grace=0)
                raise ConnectionFailedError(
                    f"{no_response(give_up_after)}; check the network, the Market may also be down."
                    " Use --give-up-after to wait longer",
                    sent=None,
                ) from None
            except asyncio.CancelledError:
                await session.close(grace=0)  # no message was sent, so no outcome is lost
                raise

    console.show_log(logging.INFO)  # shows why the command waits
    signals.run(run(), resolve_within=give_up_after or SINGLE_REQUEST_TIMEOUT)
