"""What happens to machines, clocks and the network of a story."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, assert_never

from .story import (
    Access,
    AnyEvent,
    Block,
    Cut,
    Down,
    MarketClock,
    OthersHold,
    OthersUse,
    Outage,
    Says,
    Sleep,
    Stall,
    Stop,
    Stray,
    WallClock,
)

if TYPE_CHECKING:
    from .play import _Play
