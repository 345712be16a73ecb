"""A warning for calls that wait long."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger("yamarket_chat")

LONG_WAIT = 60.0
"""Seconds of waiting after which a warning is logged."""


class LongWaits:
    """Warns once while calls of an operation wait for more than a minute.

    Calls that have a `max_wait` do not count. If the limit is used up, the wait is known at once.
    How long a call waits for a parallel slot, or for an earlier message of its chat, is not known.
    So a timer checks once a minute whether a call of the minute before still waits.
    """

    def __init__(self, operation: str, loop: asyncio.AbstractEventLoop) -> None:
        self._operation = operation
        self._loop = loop
        self._waiting = 0
        self._warned = False  # since calls began to wait
        self._timer: asyncio.TimerHandle | None = None
        self._waits = 0  # number of waits that have begun
        # The waits that have gone on since the timer was set, and the number of the last of them:
        self._watched = 0
        self._watched_up_to = 0

    def begin(self, least: float) -> int:
        """Note that a call begins to wait, for at least `least` seconds. Returns its number."""
        self._waiting += 1
        self._waits += 1
        if self._warned:
            pass
        elif least > LONG_WAIT:
            try:
                self._warn("the rate limit is used up, calls wait %.0f s or more", least)
            except BaseException:  # a log handler of the caller's
                self.end(self._waits)
                raise
        elif self._timer is None:
            self._watch()
        return self._waits

    def end(self, number: int) -> None:
        """Note that the wait of this number has ended."""
        self._waiting -= 1
        if number <= self._watched_up_to:
            self._watched -= 1
        if not self._waiting:
            self._warned = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _watch(self) -> None:
        self._watched, self._watched_up_to = self._waiting, self._waits
        self._timer = self._loop.call_later(LONG_WAIT, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._warned:
            return
        if self._watched <= 0:
            self._watch()
            return
        self._warn(
            "calls have waited for more than %.0f s, for a parallel slot or for earlier messages"
            " of their chats",
            LONG_WAIT,
        )

    def _warn(self, text: str, seconds: float) -> None:
        self._warned = True
        logger.warning("%s: %s", self._operation, text % seconds)
