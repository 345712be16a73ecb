"""What all sessions of one business on one event loop share.

It outlives them until the last place that they took is free, so that a web handler which makes a
session for each request keeps the limits, and the order of the chats, all the same.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping

import msgspec

from .attempt import NEVER
from .clock import NO_READINGS, Clock, Reading
from .errors import InvalidArgumentError
from .models import Content, Stored
from .quota import Limits
from .scheduler import Scheduler
from .settling import content_of_text

REMEMBERED = 75.0
"""Seconds for which a delivered message is remembered, so that equal texts can be told apart: more
than a minute. `Business.attempts_take` adds an attempt, which may begin a minute after it."""

CLOCK_HOLDS = 60.0
"""Seconds for which a quick answer's Date is kept though slower ones come."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message that was delivered, or may have been: when, on the loop's clock."""

    chat_id: int
    content: str | Content
    began: float
    ended: float
    surely: bool = True

    def on(self, clock: Clock) -> Stored:
        """The same on the Market's clock."""
        content = self.content
        if isinstance(content, str):
            content = content_of_text(content)
        return Stored(content, self.began + clock.least, self.ended + clock.most, self.surely)


class Business:
    """The scheduler of a business, and what was lately delivered to its chats."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduler = Scheduler(limits, loop)
        self.sessions = 0
        self.warn_from = NEVER  # when a failing attempt is worth a warning again
        self._remembered = REMEMBERED
        self._loop = loop
        self._deliveries: deque[Delivery] = deque()
        self.readings = NO_READINGS

    def attempts_take(self, seconds: float) -> None:
        """Attempts take so long at most; sessions may differ."""
        self._remembered = max(self._remembered, REMEMBERED + seconds)

    def remember(self, delivery: Delivery, now: float) -> None:
        """Keep what telling equal texts apart needs, and drop what is too old for that."""
        deliveries = self._deliveries
        deliveries.append(delivery)
        oldest = now - self._remembered
        while deliveries and deliveries[0].ended < oldest:
            deliveries.popleft()

    def delivered_to(self, chat_id: int) -> list[Delivery]:
        """What was lately delivered to a chat, or may have been, in order."""
        return [delivery for delivery in self._deliveries if delivery.chat_id == chat_id]

    def saw(self, headers: Mapping[str, str], asked: float, answered: float) -> None:
        """Keep the headers of an answer of the API: their Date is the Market's clock."""
        latest = Reading(headers, asked, answered)
        quickest = self.readings[0]
        if (
            quickest is None
            or answered - asked <= quickest.answered - quickest.asked
            or answered - quickest.answered > CLOCK_HOLDS
        ):
            quickest = latest
        self.readings = (quickest, latest)

    def idle(self) -> bool:
        """Whether nothing is left that a later session would have to respect."""
        if self.sessions or not self.scheduler.idle():
            return False
        oldest = self._loop.time() - self._remembered
        return all(delivery.ended < oldest for delivery in self._deliveries)


_Key = tuple[asyncio.AbstractEventLoop, str, int | None]
_businesses: dict[_Key, Business] = {}


def attach(origin: str, business_id: int | None, limits: Limits) -> Business:
    """What the sessions of a business share on the running loop.

    Raises InvalidArgumentError where they name other limits.
    """
    loop = asyncio.get_running_loop()
    for key in list(itertools.islice(_businesses, 2)):
        # The two that were looked at longest ago: opening a session stays cheap with thousands.
        business = _businesses.pop(key)
        if not (key[0].is_closed() or (key[0] is loop and business.idle())):
            _businesses[key] = business
    key = (loop, origin, business_id)
    if key not in _businesses:
        _businesses[key] = Business(limits, loop)
    business = _businesses[key]
    if business.scheduler.quota.limits != limits:
        if not business.idle():
            raise InvalidArgumentError(
                "other limits are in force for this business on this event loop: its sessions"
                " share them, until the last place that one of them took is free. Pass the same"
                " Limits to all"
            )
        business = _businesses[key] = Business(limits, loop)
    business.sessions += 1
    return business
