"""What the product takes from the system besides the time of the event loop.

A loop with a time of its own (`yamarket_chat.sandbox.VirtualLoop`) has methods of these names, and
decides all of it. On every other loop the system does.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import Any, Protocol


class Randomness(Protocol):
    """What is used of `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between the two."""

    def getrandbits(self, k: int, /) -> int:
        """Return a number of so many bits."""


def stood_still(loop: asyncio.AbstractEventLoop) -> float:
    """Return for how many seconds the time of the loop has stood still, counted from any moment.

    Linux has a clock that goes on while the machine sleeps. Elsewhere it is the wall clock, which
    people may set: too large a difference makes an outcome unclear, and never wrong.
    """
    own = getattr(loop, "stood_still", None)
    if own is not None:
        return float(own())
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return time.time() - time.monotonic()


def wall_time(loop: asyncio.AbstractEventLoop) -> float:
    """Return the seconds since 1970 by the clock of the machine."""
    own = getattr(loop, "wall_time", None)
    return time.time() if own is None else float(own())


def thread_time() -> float:
    """Return the seconds of a clock that all threads share, counted from any moment."""
    loop = asyncio._get_running_loop()
    # `VirtualLoop` has no threads: what it gives to one runs in the loop.
    return time.monotonic() if loop is None or not hasattr(loop, "make_socket") else loop.time()


def randomness(purpose: str) -> Randomness:
    """Return the random numbers for a purpose.

    Each purpose has a stream of its own where they can be repeated: one draw more for one purpose
    does not change what all others get.
    """
    own = getattr(asyncio._get_running_loop(), "randomness", None)
    return random if own is None else own(purpose)


def make_socket(*kind: Any) -> socket.socket:
    """Make a socket of a family, a type and a protocol, for the running loop if there is one."""
    own = getattr(asyncio._get_running_loop(), "make_socket", None)
    return socket.socket(*kind) if own is None else own(*kind)
