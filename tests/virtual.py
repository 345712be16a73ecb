"""An event loop whose clock jumps to the next timer when nobody has anything to do.

Hours pass in seconds, with real loopback sockets: client and server live in one process and on
one loop, so a selector that has nothing to report means that everybody waits for a timer.

The public loop, `yamarket_chat.sandbox.VirtualLoop`, has a network in memory instead, where every
run is the same. `--loop memory` runs the tests on it. This one stays, because what the real kernel,
uvloop's C code, TLS and threads do can only be seen with them.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from yamarket_chat.sandbox import aiohttp_clock

T = TypeVar("T")
Args = TypeVarTuple("Args")

# What one pass of the loop costs on the virtual clock. Above 0, or a timer that was rounded to
# "now" would spin for ever.
PASS = 3e-6
# Before a jump of this length the selector is asked once more for real: the kernel may still be
# carrying a packet from one socket to the other, and a long jump would make a timeout of it.
LONG_JUMP = 0.3
REAL_PATIENCE = 0.001


aiohttp_clock.install()  # or no idle connection would ever expire


class _VirtualSelector(selectors.DefaultSelector):
    """A selector that tells the loop how long it would have slept instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.busy_threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += PASS
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.busy_threads or timeout is None:
            # A thread works (its time is real), or no timer is armed: wait for the wake-up.
            return super().select(timeout if timeout is None else REAL_PATIENCE)
        os.sched_yield()
        ready = super().select(REAL_PATIENCE if timeout > LONG_JUMP else 0)
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        self.slept = 0.0
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def stood_still(self) -> float:
        """For how many seconds the machine has slept: `yamarket_chat` asks for it."""
        return self.slept

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._virtual.busy_threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # It waits for a thread that joins the others: its time is real, too.
        self._virtual.busy_threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._virtual.busy_threads -= 1

    def _thread_ended(self, _: asyncio.Future[Any]) -> None:
        self._virtual.busy_threads -= 1


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run() on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class CreepingLoop(VirtualLoop):
    """Time passes with each look at the clock, as it does for real, only more of it."""

    LOOK = 1e-4

    def time(self) -> float:
        self._virtual.now += self.LOOK
        return self._virtual.now
