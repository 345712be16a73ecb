"""uvloop with a virtual clock, as `VirtualLoop` is asyncio's loop with one.

uvloop lets nobody see when it is about to sleep. So a callback of ours runs in every pass of the
loop, and when nothing else has happened for some passes, it moves the clock to the next timer. The
oddities of uvloop's timers are kept: the clock counts whole milliseconds, a delay of less than half
of one is `call_soon`, and what that returns cannot say `when()` it is due.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import select
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

import uvloop

from .virtual import LONG_JUMP, PASS, REAL_PATIENCE

T = TypeVar("T")
Args = TypeVarTuple("Args")

QUIET_PASSES = 5
"""So many passes without a callback mean that everybody waits for a timer."""


class _Timer:
    """What uvloop's TimerHandle can do."""

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Any
    ) -> None:
        self._when = when
        self._cancelled = False
        self.call: tuple[Callable[..., object], tuple[Any, ...], Any] | None = (
            callback,
            args,
            context,
        )

    def cancel(self) -> None:
        self._cancelled = True
        self.call = None

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when


class VirtualUvloop(uvloop.Loop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._quiet = 0
        self._busy_threads = 0
        self._next_pass: asyncio.Handle | None = None

    def time(self) -> float:
        return int(self._now * 1000) / 1000

    def stood_still(self) -> float:
        """As `VirtualLoop` has it."""
        return 0.0

    # typeshed has a TypeVarTuple there, which says the same.
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._quiet = 0
        return super().call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Any:
        self._quiet = 0
        milliseconds = round(max(delay, 0) * 1000)
        if milliseconds == 0:
            return self.call_soon(callback, *args, context=context)
        timer = _Timer(self.time() + milliseconds / 1000, callback, args, context)
        heapq.heappush(self._timers, (timer.when(), next(self._numbers), timer))
        return timer

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def run_forever(self) -> None:
        self._next_pass = super().call_soon(self._pass)
        try:
            super().run_forever()
        finally:
            self._next_pass.cancel()

    @property
    def _scheduled(self) -> list[_Timer]:
        """As asyncio's loop has it, for tests that look for timers that were left."""
        return [timer for _, _, timer in self._timers]

    def _pass(self) -> None:
        self._now += PASS
        self._quiet += 1
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if self._quiet > QUIET_PASSES:
            self._nothing_happens()
        while self._timers and self._timers[0][0] <= self._now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                callback, args, context = timer.call
                self.call_soon(callback, *args, context=context)
        self._next_pass = super().call_soon(self._pass)

    def _nothing_happens(self) -> None:
        if self._busy_threads or not self._timers:  # a thread works, or a signal is to come
            self._is_busy(REAL_PATIENCE)
            return
        when = self._timers[0][0]
        os.sched_yield()
        if not self._is_busy(REAL_PATIENCE if when - self._now > LONG_JUMP else 0):
            self._now = max(self._now, when + PASS)

    def _is_busy(self, patience: float) -> bool:
        """Whether the kernel has something for the loop, at the latest after this time."""
        return bool(select.select([self._get_backend_id()], [], [], patience)[0])  # type: ignore[attr-defined]

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args
    ) -> asyncio.Future[T]:
        future: Any = super().run_in_executor(executor, func, *args)
        self._busy_threads += 1
        future.add_done_callback(self._thread_ended)
        result: asyncio.Future[T] = future
        return result

    async def getaddrinfo(self, *args: Any, **keywords: Any) -> Any:
        self._busy_threads += 1  # libuv's; also for a number, whenever a socket connects
        try:
            return await super().getaddrinfo(*args, **keywords)
        finally:
            self._busy_threads -= 1

    async def create_server(self, *args: Any, **keywords: Any) -> Any:
        self._busy_threads += 1  # it asks for the address, not by the method above
        try:
            return await super().create_server(*args, **keywords)
        finally:
            self._busy_threads -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        self._busy_threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._busy_threads -= 1

    def _thread_ended(self, _: asyncio.Future[Any]) -> None:
        self._busy_threads -= 1
