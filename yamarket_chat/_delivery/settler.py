"""Finds out from a chat's history whether a message of unknown outcome arrived.

The caller passes the function that reads the history, so this module does not depend on the sender.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from .._limits.clock import MarketClock
from ..errors import ChatError, DeliveryUnknownError
from ..pending import Content, Pending, Stored
from .calls import Doubt
from .deliveries import REMEMBERED, SAME, Deliveries, Delivery
from .failures import unknown_error
from .histories import SHOWS_WITHIN, ReadHistory, read_history
from .settling import KNOWN_FOR, SKEW, Found, Offset, content_of_text, last_equal, rows_of_shop
from .skew import LEARNT_FOR, Skew

APART = 3.0
"""Seconds for which a chat rests after the last moment at which an attempt of unknown outcome can
have been carried out. Rows and Dates have whole seconds, and the next message must have a later
second."""


class Suspect(msgspec.Struct, frozen=True):
    """A message of unknown outcome in this process. Times are on the loop's clock."""

    chat_id: int
    content: str | Content
    doubt: Doubt
    why: str  # why the outcome is unknown
    until: float  # the last moment at which it can have been stored
    before: Sequence[Delivery]  # what was sent to its chat shortly before

    def delivery(self, *, surely: bool, row_id: int | None = None) -> Delivery:
        """Return the message as a delivery."""
        began = self.doubt.attempt.began
        return Delivery(self.chat_id, self.content, began, self.until, surely, row_id)

    def rest(self, now: float) -> float:
        """Return the seconds for which its chat rests, so that nothing is stored before it."""
        return max(self.until + APART - now, 0.0)

    def on(self, clock: MarketClock) -> tuple[Stored | None, tuple[Stored, ...]]:
        """Return it on the Market's clock, if that is known, and the messages sent before it."""
        before = (item.on(clock) for item in self.before)
        return (
            self.delivery(surely=True).on(clock),
            tuple(stored for stored in before if stored is not None),
        )

    def before_since(self, clock: MarketClock) -> float | None:
        """Return since when `before` is complete, on the Market's clock, if that is known."""
        began = self.doubt.attempt.began - REMEMBERED
        then = clock.at(began)
        return None if then is None else began + then.most

    def pending(
        self, business_id: int, requests: int, clock: MarketClock, offset: Offset
    ) -> Pending:
        """Return the message in a form that can be stored."""
        wanted, before = self.on(clock)
        before_since = self.before_since(clock)
        content = self.content
        if isinstance(content, str):
            content = Content(text=content)
        return Pending(
            business_id=business_id,
            chat_id=self.chat_id,
            text=content.text,
            file_name=content.file_name,
            file_size=content.file_size,
            since=_time(None if wanted is None else wanted.earliest),
            until=_time(None if wanted is None else wanted.latest),
            before=before,
            before_since=_time(before_since),
            skew=None if offset == Offset() else (offset.least, offset.most),
            requests=requests,
            seen=self.why,
        )


class Settler:
    """Decides whether messages of unknown outcome arrived."""

    def __init__(
        self, clock: MarketClock, skew: Skew, deliveries: Deliveries, settle_after: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._skew = skew
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
            # Copied now, because settling may take longer than deliveries are remembered.
            self._deliveries.to_chat(chat_id, doubt.attempt.began),
        )

    def unknown(self, suspect: Suspect, business_id: int, requests: int) -> DeliveryUnknownError:
        """Return the error of a message that is not settled."""
        return unknown_error(self.pending(suspect, business_id, requests), suspect.why)

    def pending(self, suspect: Suspect, business_id: int, requests: int) -> Pending:
        """Return a message in a form that can be stored."""
        offset = self._skew.offset(self._loop.time())
        return suspect.pending(business_id, requests, self._clock, offset)

    def apart(self, suspect: Suspect) -> float:
        """Return the moment from which a message with the same content may be sent to its chat.

        Then whoever settles it, at any time and in any process, can tell the two apart.
        """
        until, wanted, clock = suspect.until, suspect.on(self._clock)[0], self._clock.now()
        if wanted is not None and clock is not None:
            # If a clock stood still or was set, its time is known less exactly than by the loop.
            until = max(until, wanted.latest - clock.most)
        return until + APART + self._skew.offset(self._loop.time()).error()

    async def look_up(self, suspect: Suspect, read: ReadHistory) -> tuple[Found, str]:
        """Look for a message in its chat's history, at `suspect.until` at the earliest.

        Returns whether it is there, and if that is unclear, why.
        """

        def oldest_needed() -> float:
            wanted = suspect.on(self._clock)[0]
            return -math.inf if wanted is None else _oldest_needed(wanted)

        try:
            history = await read_history(read, oldest_needed, asyncio.sleep)
        except ChatError as error:
            return Found.UNCLEAR, f"its chat's history cannot be read: {error}"
        wanted, before = suspect.on(self._clock)
        before_since = suspect.before_since(self._clock)
        if wanted is None or before_since is None:
            return Found.UNCLEAR, "the Market's answers have no Date to find it by"
        now = self._loop.time()
        self._skew.learn(rows_of_shop(history.rows), before, suspect.until)
        offset = self._skew.offset(now)
        found, unclear = history.find(wanted, before, offset, before_since=before_since)
        if found is Found.UNCLEAR:
            self._skew.forget(wanted.earliest)
        if found is Found.YES:
            row_id = last_equal(history.rows, wanted, offset)
            self._deliveries.remember(suspect.delivery(surely=True, row_id=row_id))
        return found, unclear

    async def settle(
        self,
        pending: Pending,
        read: ReadHistory,
        wait: Callable[[float], Awaitable[None]],
        under_way: Callable[[], Delivery | None],
    ) -> bool:
        """Return whether a stored message of unknown outcome, of this process or another, arrived.

        If the Market may still carry it out, this awaits `wait(seconds)` and reads once more.
        `under_way` returns the message to the chat whose request is in progress.
        Raises DeliveryUnknownError if the history cannot be read or is unclear.
        """
        wanted = _wanted(pending)
        with self._deliveries.settling():
            found, unclear = await self._settled(pending, wanted, read, wait, under_way)
        if found is Found.UNCLEAR:
            self._skew.forget(wanted.earliest)
            raise unknown_error(pending, unclear)
        return found is Found.YES

    async def _settled(
        self,
        pending: Pending,
        wanted: Stored,
        read: ReadHistory,
        wait: Callable[[float], Awaitable[None]],
        under_way: Callable[[], Delivery | None],
    ) -> tuple[Found, str]:
        def oldest_needed() -> float:
            return _oldest_needed(wanted)

        began = asked = self._loop.time()
        try:
            history = await read_history(read, oldest_needed, wait)
            clock = self._clock.now()
            early = (
                self._settle_after
                if clock is None or pending.until is None
                else wanted.latest - (asked + clock.least)
            )
            # The Market's clock may have been set since; of its own messages this process knows.
            for delivery in self._deliveries.in_doubt(pending.chat_id, wanted, self._clock):
                early = max(early, delivery.ended - asked)
            if early > 0:
                await wait(early)
                asked = self._loop.time()
                history = await read_history(read, oldest_needed, wait)
        except ChatError as error:
            unknown = unknown_error(pending, f"its chat's history cannot be read: {error}")
            unknown.retry_after = error.retry_after
            raise unknown from None
        if pending.since is None:
            # The time of sending is unknown, so any row with this text may be an older message.
            found, unclear = history.find_ever(wanted)
        else:
            now = self._loop.time()
            known = [
                item if item.ended < asked - SHOWS_WITHIN else replace(item, surely=False)
                for item in self._deliveries.to_chat(pending.chat_id, began)
            ]
            another = under_way()
            if another is not None:
                known.append(another)
            here = [stored for item in known if (stored := item.on(self._clock)) is not None]
            self._skew.learn(rows_of_shop(history.rows), here, asked)
            offset = self._offset_then(pending, now)
            # Its chat rested, so what begins later than this was sent after it. Comparing with the
            # end of its time would miss some, because clocks are known to within seconds. What came
            # long after it says nothing of the clocks of its time.
            near = wanted.latest + LEARNT_FOR
            after = [
                stored
                for stored in here
                if stored.earliest > wanted.earliest + SAME
                and (stored.earliest < near or stored.row_id is not None)
                and not any(_is_same(stored, item) for item in pending.before)
            ]
            before_since = pending.before_since
            found, unclear = history.find(
                wanted,
                pending.before,
                offset,
                after,
                # If nobody knows, any equal row may be a message that was sent before.
                math.inf if before_since is None else before_since.timestamp(),
            )
            if found is not Found.UNCLEAR:
                arrived = found is Found.YES
                self._deliveries.settled(pending.chat_id, wanted, self._clock, arrived=arrived)
        return found, unclear

    def _offset_then(self, pending: Pending, now: float) -> Offset:
        """Return the offset that the clocks can have had when a message was sent.

        They may have been set since, so what is learnt today says nothing of a message of old.
        """
        if pending.skew is not None:
            return Offset(*pending.skew)
        clock = self._clock.now()
        if clock is None or pending.until is None:
            return Offset()
        age = now + clock.most - pending.until.timestamp()
        return self._skew.offset(now) if age < LEARNT_FOR else Offset()


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _is_same(one: Stored, other: Stored) -> bool:
    return one.content == other.content and abs(one.earliest - other.earliest) < SAME


def _wanted(pending: Pending) -> Stored:
    if pending.text is not None:
        content = content_of_text(pending.text)
    else:
        content = Content(file_name=pending.file_name, file_size=pending.file_size)
    return Stored(
        content,
        -math.inf if pending.since is None else pending.since.timestamp(),
        math.inf if pending.until is None else pending.until.timestamp(),
    )


def _oldest_needed(wanted: Stored) -> float:
    return wanted.earliest - KNOWN_FOR - SKEW
