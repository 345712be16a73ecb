"""What all sessions of one business on one event loop share.

It outlives them until nothing that it remembers matters any more. So a web handler that makes a
session for each request keeps the limits, and the order of the chats, all the same.
"""

from __future__ import annotations

import asyncio
import itertools

from .._http.attempt import NEVER
from .._limits.clock import MarketClock
from .._limits.scheduler import Scheduler
from ..errors import InvalidArgumentError
from ..limits import Limits
from .deliveries import Deliveries
from .skew import Skew


class Shared:
    """The scheduler of a business, the Market's clocks, and what was lately delivered."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduler = Scheduler(limits, loop)
        self.clock = MarketClock(loop)
        self.skew = Skew()
        self.deliveries = Deliveries(loop)
        self.sessions = 0
        self.warn_from = NEVER  # when a failing attempt is to be warned of again

    def idle(self) -> bool:
        """Whether nothing is left that a later session has to respect."""
        return not self.sessions and self.scheduler.idle() and self.deliveries.idle()


_Key = tuple[asyncio.AbstractEventLoop, str, int | None]
_shared: dict[_Key, Shared] = {}


def attach(origin: str, business_id: int | None, limits: Limits) -> Shared:
    """Return what the sessions of a business share on the running loop.

    Raises InvalidArgumentError if they have other limits.
    """
    loop = asyncio.get_running_loop()
    for key in list(itertools.islice(_shared, 2)):
        # The two that were looked at longest ago: opening a session stays cheap with thousands.
        shared = _shared.pop(key)
        if not (key[0].is_closed() or (key[0] is loop and shared.idle())):
            _shared[key] = shared
    key = (loop, origin, business_id)
    if key not in _shared:
        _shared[key] = Shared(limits, loop)
    shared = _shared[key]
    if shared.scheduler.limits != limits:
        if not shared.idle():
            raise InvalidArgumentError(
                "the sessions of a business on one event loop share their limits, and other limits"
                " are in force while one of them is open or its requests still count: pass the same"
                " Limits to all sessions"
            )
        shared = _shared[key] = Shared(limits, loop)
    shared.sessions += 1
    return shared
