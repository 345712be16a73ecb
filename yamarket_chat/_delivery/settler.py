"""Finds out from a chat's history what became of a message of unknown outcome.

The history is read by a function that is passed in, so this room does not know who sends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec

from .._limits.clock import Clock, MarketClock
from ..errors import ChatError, DeliveryUnknownError
from ..listing import Page
from ..models import Message, Sender
from ..pending import Content, Pending, Stored
from .calls import Doubt
from .deliveries import Deliveries, Delivery
from .failures import unknown_error
from .settling import KNOWN_FOR, Found, content_of_row, content_of_text, find, last_of_shop

APART = 3.0
"""Seconds for which a chat rests after the last moment at which an attempt of unknown outcome can
have been carried out. Rows and Dates have whole seconds, and what follows must be told apart."""

ReadHistory = Callable[[], AsyncIterator[Page[Message]]]
"""Reads the pages of the chat's history."""


class Suspect(msgspec.Struct, frozen=True):
    """A message of unknown outcome in this process. Times are the loop's."""

    chat_id: int
    content: str | Content
    doubt: Doubt
    why: str  # it is unknown
    until: float  # the last moment at which it can have been stored
    before: Sequence[Delivery]  # what was sent to its chat shortly before

    def delivery(self, *, surely: bool) -> Delivery:
        """Return it as a delivery."""
        return Delivery(
            self.chat_id, self.content, self.doubt.attempt.began, self.until, surely=surely
        )

    def rest(self, now: float) -> float:
        """Return for how many seconds its chat rests, so that nothing gets before it."""
        return max(self.until + APART - now, 0.0)

    def on(self, clock: Clock) -> tuple[Stored, tuple[Stored, ...]]:
        """Return what is looked for on the Market's clock, and what was sent before it."""
        # Both clocks have run on since the attempt began, but one may have been set, or the machine
        # may have slept. So both the clock of now and the clock of then are taken into account.
        clock = clock.or_else(self.doubt.readings.clock() or clock)
        return self.delivery(surely=True).on(clock), tuple(item.on(clock) for item in self.before)

    def pending(self, business_id: int, requests: int, clock: Clock | None) -> Pending:
        """Return the same in a form that can be stored."""
        wanted, before = (None, ()) if clock is None else self.on(clock)
        content = self.content
        if isinstance(content, str):
            content = Content(text=content)
        return Pending(
            business_id=business_id,
            chat_id=self.chat_id,
            text=content.text,
            file_name=content.file_name,
            file_size=content.file_size,
            since=None if wanted is None else datetime.fromtimestamp(wanted.earliest, UTC),
            until=None if wanted is None else datetime.fromtimestamp(wanted.latest, UTC),
            before=before,
            requests=requests,
            seen=self.why,
        )


class Settler:
    """Decides whether messages of unknown outcome arrived."""

    def __init__(self, clock: MarketClock, deliveries: Deliveries, settle_after: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._deliveries = deliveries
        self._settle_after = settle_after

    def suspect(self, chat_id: int, content: str | Content, doubt: Doubt, why: str) -> Suspect:
        """Return a message as one of unknown outcome."""
        return Suspect(
            chat_id,
            content,
            doubt,
            why,
            doubt.attempt.ended + self._settle_after,
            # Taken now: settling may take longer than deliveries are remembered.
            self._deliveries.to_chat(chat_id),
        )

    def unknown(self, suspect: Suspect, business_id: int, requests: int) -> DeliveryUnknownError:
        """Return the error of a message that is not settled."""
        pending = suspect.pending(business_id, requests, self._clock.now())
        return unknown_error(pending, suspect.why)

    async def look_up(self, suspect: Suspect, read: ReadHistory) -> tuple[Found, str]:
        """Look for a message in its chat's history, at `suspect.until` at the earliest.

        Returns whether it is there, and why that is unclear.
        """

        def oldest_needed() -> float:
            clock = self._clock.now()
            return -math.inf if clock is None else suspect.on(clock)[0].earliest - KNOWN_FOR

        try:
            rows = await _rows(read, oldest_needed)
        except ChatError as error:
            return Found.UNCLEAR, f"its chat's history cannot be read: {error}"
        clock = self._clock.now()
        if clock is None:
            return Found.UNCLEAR, "the Market's answers have no Date to find it by"
        wanted, before = suspect.on(clock)
        found = find(rows, wanted, before)
        if found is Found.YES:
            # The second in which it was stored is known now: what follows is told apart by that.
            stored = last_of_shop(rows, wanted.latest)
            began, ended = stored - clock.most, stored + 1 - clock.least
            self._deliveries.remember(
                Delivery(suspect.chat_id, suspect.content, began, ended), self._loop.time()
            )
        return found, Found.UNCLEAR.value

    async def settle(
        self, pending: Pending, read: ReadHistory, wait: Callable[[float], Awaitable[None]]
    ) -> bool:
        """Whether a message arrived that was stored as unknown, by this process or another.

        If the Market may still carry it out, this waits by `wait(seconds)` and reads once more.
        Raises DeliveryUnknownError if the history cannot be read or does not tell.
        """
        since = -math.inf if pending.since is None else pending.since.timestamp()
        until = math.inf if pending.until is None else pending.until.timestamp()
        try:
            asked = self._loop.time()
            rows = await _rows(read, lambda: since - KNOWN_FOR)
            clock = self._clock.now()
            early = (
                self._settle_after
                if clock is None or until == math.inf
                else until - (asked + clock.least)
            )
            if early > 0:
                await wait(early)
                rows = await _rows(read, lambda: since - KNOWN_FOR)
        except ChatError as error:
            why = f"its chat's history cannot be read: {error}"
            raise unknown_error(pending, why) from None
        found = _find_pending(rows, pending, since, until)
        if found is Found.UNCLEAR:
            raise unknown_error(pending, Found.UNCLEAR.value)
        return found is Found.YES


async def _rows(read: ReadHistory, oldest_needed: Callable[[], float]) -> list[Message]:
    """Read the rows of a chat, back to a moment of the Market's if their order allows it."""
    rows: dict[int, Message] = {}
    async for page in read():
        rows.update((row.message_id, row) for row in page)
        items = page.items
        descending = len(items) > 1 and items[0].created_at > items[-1].created_at
        if descending and items[-1].created_at.timestamp() < oldest_needed():
            break
    return list(rows.values())


def _find_pending(rows: list[Message], pending: Pending, since: float, until: float) -> Found:
    if pending.text is not None:
        content = content_of_text(pending.text)
    else:
        content = Content(file_name=pending.file_name, file_size=pending.file_size)
    if pending.since is not None:
        return find(rows, Stored(content, since, until), pending.before)
    # Nobody knows since when: any row that says the same may be an older message.
    says_the_same = any(
        row.sender == Sender.PARTNER and content_of_row(row) == content for row in rows
    )
    return Found.UNCLEAR if says_the_same else Found.NO
