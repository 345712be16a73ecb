"""A warning for calls that wait long."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger("yamarket_chat")

LONG_WAIT = 60.0
"""Seconds of waiting after which a warning is logged."""


class LongWaits:
    """Warns once while calls of an operation wait for more than a minute.

    Calls that have a `max_wait` are left out. A used-up limit is known at once. How long a call
    waits for a place, or for an earlier message of its chat, is not known. So a timer looks once a
    minute whether a call of the minute before still waits.
    """

    def __init__(self, operation: str, loop: asyncio.AbstractEventLoop) -> None:
        self._operation = operation
        self._loop = loop
        self._waiting = 0
        self._warned = False  # since calls began to wait
        self._timer: asyncio.TimerHandle | None = None
        self._newest_number = 0
        # The calls that have waited since the timer was set, and the number of the last of them:
        self._watched = 0
        self._watched_up_to = 0

    def begin(self, number: int, least: float) -> None:
        """Note that the call of this number begins to wait, for `least` seconds by its limit."""
        self._waiting += 1
        self._newest_number = number
        if self._warned:
            return
        if least > LONG_WAIT:
            self._warn("the rate limit is used up, calls wait %.0f s or more", least)
        elif self._timer is None:
            self._watch()

    def end(self, number: int) -> None:
        """Note that the call of this number waits no more."""
        self._waiting -= 1
        if number <= self._watched_up_to:
            self._watched -= 1
        if not self._waiting:
            self._warned = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _watch(self) -> None:
        self._watched, self._watched_up_to = self._waiting, self._newest_number
        self._timer = self._loop.call_later(LONG_WAIT, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._warned:
            return
        if self._watched <= 0:
            self._watch()
            return
        self._warn(
            "calls have waited for more than %.0f s, for a parallel place or for earlier messages"
            " of their chats",
            LONG_WAIT,
        )

    def _warn(self, text: str, seconds: float) -> None:
        self._warned = True
        text = f"%s: {text}; pass max_wait to be refused instead"
        logger.warning(text, self._operation, seconds)
