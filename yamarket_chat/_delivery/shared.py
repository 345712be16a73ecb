"""What all sessions of one business on one event loop share.

It outlives the sessions until nothing that it remembers matters any more. So the limits and the
order of the chats hold even if a web handler opens a session for each request.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import ClassVar

from .._http.attempt import NEVER
from .._limits.clock import MarketClock
from .._limits.scheduler import Scheduler
from ..errors import InvalidArgumentError
from ..limits import Limits
from .deliveries import Deliveries
from .skew import Skew


class Shared:
    """The scheduler of a business, the Market's clocks, and the recent deliveries."""

    forks: ClassVar[int] = 0  # from the first process to this one

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduler = Scheduler(limits, loop)
        self.clock = MarketClock(loop)
        self.skew = Skew()
        self.deliveries = Deliveries(loop)
        self.sessions = 0
        self.warn_from = NEVER  # the earliest time of the next warning of failing attempts

    def idle(self) -> bool:
        """Whether there is nothing left that a later session has to respect."""
        return not self.sessions and self.scheduler.idle() and self.deliveries.idle()


_Businesses = dict[tuple[str, int | None], Shared]
_of_loops: dict[asyncio.AbstractEventLoop, _Businesses] = {}
_lock = threading.Lock()  # loops in several threads may open sessions


def _forget_parent() -> None:
    """Note in a forked child process that all sessions until now belong to its parent."""
    global _lock
    Shared.forks += 1
    _lock = threading.Lock()
    _of_loops.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_parent)


def _businesses(loop: asyncio.AbstractEventLoop) -> _Businesses:
    """Return what is shared on a loop, by business. Only the thread of the loop touches it."""
    with _lock:
        for other in list(itertools.islice(_of_loops, 2)):
            # Only the two that were checked longest ago, so that opening a session stays cheap.
            businesses = _of_loops.pop(other)
            if not other.is_closed():
                _of_loops[other] = businesses
        return _of_loops.setdefault(loop, {})


def shared_by(origin: str, business_id: int | None, limits: Limits) -> Shared:
    """Return what the sessions of a business share on the running loop.

    Raises InvalidArgumentError if they have other limits. A session that is open counts itself.
    """
    loop = asyncio.get_running_loop()
    businesses = _businesses(loop)
    for key in list(itertools.islice(businesses, 2)):  # as above
        shared = businesses.pop(key)
        if not shared.idle():
            businesses[key] = shared
    key = (origin, business_id)
    if key not in businesses:
        businesses[key] = Shared(limits, loop)
    shared = businesses[key]
    if shared.scheduler.limits != limits:
        if not shared.idle():
            raise InvalidArgumentError(
                "the sessions of a business on one event loop share their limits, and other limits"
                " are in force while one of them is open or its requests still count: pass the same"
                " Limits to all sessions"
            )
        shared = businesses[key] = Shared(limits, loop)
    return shared
