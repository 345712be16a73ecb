"""The timeout of requests."""

from __future__ import annotations

import asyncio
from collections import deque

from .attempt import NEVER, Attempt


class Deadlines:
    """One timer for all requests. They all have the same timeout, so they are due in order.

    A timer of aiohttp's for each request costs 5 % of a send.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._attempts: deque[Attempt] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, attempt: Attempt) -> None:
        """Cancel the attempt's task if the attempt has not ended in time."""
        attempts = self._attempts
        while attempts and attempts[0].ended != NEVER:
            attempts.popleft()
        attempts.append(attempt)
        if self._timer is None:
            self._timer = self._loop.call_at(attempt.began + self._seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        attempts = self._attempts
        while attempts:
            first = attempts[0]
            if first.is_under_way():
                at = first.began + self._seconds
                if at > now:
                    self._timer = self._loop.call_at(at, self._due)
                    return
                first.cancel("timeout")
            attempts.popleft()

    def close(self) -> None:
        """Stop the timer, unless a request is still in progress because closing was cancelled."""
        if self._timer is not None and not any(map(Attempt.is_under_way, self._attempts)):
            self._timer.cancel()
            self._timer = None
