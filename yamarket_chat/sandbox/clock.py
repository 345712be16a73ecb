"""The sandbox's clock. It derives the wall time from the time of the event loop.

The clock therefore also works on an event loop whose time is virtual.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from functools import lru_cache

from yamarket_chat.system import wall_time

_MOSCOW = timezone(timedelta(hours=3))


class Clock:
    """The loop's time (`now`), and the wall time in responses, which is ahead by `offset` seconds.

    The storage has a clock of its own, for createdAt. It is ahead of the other one by
    `storage_offset` seconds, and shows whole seconds or milliseconds. The wall time is read once,
    when the clock is made, because the time of a loop may be virtual and that of the system is not.
    If the loop has a wall clock of its own, it is followed: it may be set, and drift.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        offset: float,
        storage_offset: float = 0.0,
        milliseconds: bool = False,
    ) -> None:
        self._loop = loop
        self._offset = offset
        self._follows = hasattr(loop, "wall_time")
        self._wall_time_at_loop_zero = wall_time(loop) - loop.time()
        self._storage_offset = storage_offset
        self._milliseconds = milliseconds

    def step(self, seconds: float) -> None:
        self._offset += seconds

    def now(self) -> float:
        return self._loop.time()

    def http_date(self, loop_time: float) -> str:
        """Format a time of the loop for a Date header: whole seconds, rounded down."""
        return _http_date(self._wall_second(loop_time))

    def timestamp(self, loop_time: float) -> datetime:
        """Convert a time of the loop for a createdAt field: rounded down, Moscow's offset."""
        seconds = self._ahead() + loop_time + self._storage_offset
        return _timestamp(int(seconds * 1000) / 1000 if self._milliseconds else int(seconds))

    def _wall_second(self, loop_time: float) -> int:
        return int(self._ahead() + loop_time)

    def _ahead(self) -> float:
        """Return the seconds by which the wall time is ahead of the loop's."""
        if self._follows:
            self._wall_time_at_loop_zero = wall_time(self._loop) - self._loop.time()
        return self._wall_time_at_loop_zero + self._offset


@lru_cache(maxsize=1024)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


@lru_cache(maxsize=1024)
def _timestamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, _MOSCOW)
