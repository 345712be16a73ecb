"""The sandbox's clock: wall time that is carried on by the time of the event loop.

So it stands, runs and jumps with the loop, on a loop with a virtual clock as well.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from functools import lru_cache

_MOSCOW = timezone(timedelta(hours=3))


class Clock:
    """Tells the loop's time (`now`) and the wall time of answers, which is `offset` seconds off."""

    def __init__(self, loop: asyncio.AbstractEventLoop, offset: float) -> None:
        self._loop = loop
        self._wall_at_zero = time.time() - loop.time() + offset

    def now(self) -> float:
        return self._loop.time()

    def http_date(self, moment: float) -> str:
        """The Date header of a moment of the loop; whole seconds, rounded down."""
        return _http_date(self._wall_second(moment))

    def timestamp(self, moment: float) -> datetime:
        """The createdAt of a moment of the loop: whole seconds with Moscow's offset."""
        return _timestamp(self._wall_second(moment))

    def _wall_second(self, moment: float) -> int:
        return int(self._wall_at_zero + moment)


@lru_cache(maxsize=1024)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


@lru_cache(maxsize=1024)
def _timestamp(second: int) -> datetime:
    return datetime.fromtimestamp(second, _MOSCOW)
