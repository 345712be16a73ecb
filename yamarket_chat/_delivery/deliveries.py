"""The recent deliveries to each chat, which are needed to tell equal texts in a history apart."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from .._http.attempt import NEVER
from .._http.headers import parse_date
from .._limits.clock import MarketClock
from ..limits import CUT_OFF
from ..pending import Content, Stored
from .settling import KNOWN_FOR, SKEW, content_of_text

REMEMBERED = KNOWN_FOR + SKEW + 15.0
"""Seconds for which a delivered message is remembered, besides the longest time of an attempt."""


SAME = 3.0
"""Seconds by which the start times of a delivery and of its stored Pending may differ: less than
the time between two messages of unknown outcome."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message that was or may have been delivered, with times on the loop's clock."""

    chat_id: int
    content: str | Content
    began: float
    ended: float
    surely: bool = True
    row_id: int | None = None  # of its row in the history, if it was found there
    date: str | None = None  # the Date header of the response that confirmed it

    def on(self, clock: MarketClock) -> Stored | None:
        """Return the delivery on the Market's clock; None if that clock is not known."""
        content = content_of(self.content)
        date = parse_date(self.date)
        if date is not None:
            # Nothing is as exact, and a clock that was set before or after does not matter.
            took = self.ended - self.began
            least = date - took - min(clock.stood_still_since(self.began), CUT_OFF)
            return Stored(content, least, date + 1 + took, self.surely, self.row_id)
        began, ended = clock.at(self.began), clock.at(self.ended)
        if began is None or ended is None:
            return None
        # If the Market's clock was set meanwhile, nobody knows on which side of that it was.
        earliest = self.began + min(began.least, ended.least)
        latest = self.ended + max(began.most, ended.most)
        return Stored(content, earliest, latest, self.surely, self.row_id)


class Deliveries:
    """The recent deliveries, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._remembered = REMEMBERED
        self._deliveries: deque[Delivery] = deque()
        # The same by chat, once somebody asks for a chat: most programs never do.
        self._chats: dict[int, list[Delivery]] | None = None
        self._settlings: list[float] = []  # when those in progress began
        self.apart: dict[Delivery, float] = {}
        """Until when no message follows that is equal to one of unknown outcome."""

    def note_timeout(self, seconds: float) -> None:
        """Note the timeout of a session: an attempt takes at most this many seconds."""
        self._remembered = max(self._remembered, REMEMBERED + seconds)

    def remember(self, delivery: Delivery) -> None:
        """Keep a delivery, and drop those that are too old."""
        deliveries, chats = self._deliveries, self._chats
        deliveries.append(delivery)
        if chats is not None:
            chats.setdefault(delivery.chat_id, []).append(delivery)
        # From its beginning and not from now: if the process was stopped meanwhile, the requests
        # that were in progress beside it still need what was delivered before them.
        since = min(delivery.began, self._settlings[0]) if self._settlings else delivery.began
        oldest = since - self._remembered
        while deliveries and deliveries[0].ended < oldest:
            first = deliveries.popleft()
            if chats is not None:
                self._drop_of_chat(first)

    def drop(self, delivery: Delivery) -> None:
        """Forget a delivery, because its outcome is known now."""
        if delivery in self._deliveries:
            self._deliveries.remove(delivery)
            if self._chats is not None:
                self._drop_of_chat(delivery)

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Keep all deliveries meanwhile: to read a long history may take minutes."""
        began = self._loop.time()
        self._settlings.append(began)
        try:
            yield
        finally:
            self._settlings.remove(began)

    def keep_apart(self, delivery: Delivery, until: float) -> None:
        """Note that no equal message is sent to the chat before a moment."""
        now = self._loop.time()
        self.apart = {other: end for other, end in self.apart.items() if end > now}
        self.apart[delivery] = until

    def apart_until(self, chat_id: int, content: str | Content) -> float:
        """Return the moment from which a message may be sent to the chat."""
        content = content_of(content)
        return max(
            (
                until
                for delivery, until in self.apart.items()
                if delivery.chat_id == chat_id and content_of(delivery.content) == content
            ),
            default=NEVER,
        )

    def to_chat(self, chat_id: int, before: float | None = None) -> list[Delivery]:
        """Return the messages that were or may have been delivered to a chat recently, in order.

        `before` is the moment of the loop from which "recently" counts back; by default now.
        """
        oldest = (self._loop.time() if before is None else before) - self._remembered
        return [delivery for delivery in self._of_chat(chat_id) if delivery.ended >= oldest]

    def last(self, chat_id: int) -> Delivery | None:
        """Return the last message that was or may have been delivered to a chat recently."""
        deliveries = self._of_chat(chat_id)
        return deliveries[-1] if deliveries else None

    def _of_chat(self, chat_id: int) -> Sequence[Delivery]:
        if self._chats is None:
            self._chats = {}
            for delivery in self._deliveries:
                self._chats.setdefault(delivery.chat_id, []).append(delivery)
        return self._chats.get(chat_id, ())

    def _drop_of_chat(self, delivery: Delivery) -> None:
        assert self._chats is not None  # noqa: S101 - the caller has looked
        deliveries = self._chats[delivery.chat_id]
        deliveries.remove(delivery)
        if not deliveries:
            del self._chats[delivery.chat_id]

    def in_doubt(self, chat_id: int, wanted: Stored, clock: MarketClock) -> list[Delivery]:
        """Return the deliveries of unknown outcome that are a stored one."""
        return [
            delivery
            for delivery in self.to_chat(chat_id)
            if not delivery.surely
            and (stored := delivery.on(clock)) is not None
            and stored.content == wanted.content
            and abs(stored.earliest - wanted.earliest) < SAME
        ]

    def settled(self, chat_id: int, settled: Stored, clock: MarketClock, *, arrived: bool) -> None:
        """Note what settling found of a delivery of unknown outcome."""
        for delivery in self.in_doubt(chat_id, settled, clock):
            self.apart.pop(delivery, None)
            if not arrived:
                self.drop(delivery)

    def idle(self) -> bool:
        """Whether all deliveries are too old to matter."""
        now = self._loop.time()
        oldest = now - self._remembered
        return all(delivery.ended < oldest for delivery in self._deliveries) and all(
            end <= now for end in self.apart.values()
        )


def content_of(content: str | Content) -> Content:
    """Return the content of a message, in the form that is compared."""
    return content_of_text(content) if isinstance(content, str) else content
