"""What was lately delivered to each chat: needed to tell equal texts of a history apart."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from .._limits.clock import Clock
from ..pending import Content, Stored
from .settling import content_of_text

REMEMBERED = 75.0
"""Seconds for which a delivered message is remembered: more than a minute. `attempts_take` adds
the time of an attempt, which may begin a minute after it."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message that was delivered, or may have been: when, on the loop's clock."""

    chat_id: int
    content: str | Content
    began: float
    ended: float
    surely: bool = True

    def on(self, clock: Clock) -> Stored:
        """Return the same on the Market's clock."""
        content = self.content
        if isinstance(content, str):
            content = content_of_text(content)
        return Stored(content, self.began + clock.least, self.ended + clock.most, self.surely)


class Deliveries:
    """The deliveries of the last minute, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._remembered = REMEMBERED
        self._deliveries: deque[Delivery] = deque()

    def attempts_take(self, seconds: float) -> None:
        """Note how long an attempt takes at most. Sessions may differ."""
        self._remembered = max(self._remembered, REMEMBERED + seconds)

    def remember(self, delivery: Delivery, now: float) -> None:
        """Keep a delivery, and drop those that are too old."""
        deliveries = self._deliveries
        deliveries.append(delivery)
        oldest = now - self._remembered
        while deliveries and deliveries[0].ended < oldest:
            deliveries.popleft()

    def to_chat(self, chat_id: int) -> list[Delivery]:
        """Return what was lately delivered to a chat, or may have been, in order."""
        return [delivery for delivery in self._deliveries if delivery.chat_id == chat_id]

    def idle(self) -> bool:
        """Whether all deliveries are too old to matter."""
        oldest = self._loop.time() - self._remembered
        return all(delivery.ended < oldest for delivery in self._deliveries)
