"""A session whose messages ask before they leave, and the calls that a courier makes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from .._delivery.departing import DepartingEngine
from .._limits.tickets import CallGroup
from ..limits import Limits
from ..session import ChatSession
from .hand import Kind


class Session(ChatSession):
    """A session whose messages ask before they leave."""

    def departing(self) -> DepartingEngine:
        """Return its engine."""
        self._engine_kind = DepartingEngine
        engine = self._open()
        assert isinstance(engine, DepartingEngine)  # noqa: S101 - it was not open before
        return engine

    @property
    def limits(self) -> Limits:
        """Its limits."""
        return self._limits

    @property
    def times(self) -> tuple[float, float]:
        """Its timeout, and its `settle_after`."""
        return self._timeout, self._retry.settle_after


class Turns(CallGroup):
    """The calls of a courier. It learns when another one may be submitted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, more: Callable[[], None]) -> None:
        super().__init__()
        self._loop = loop
        self._more = more
        self.in_front: dict[Kind, asyncio.Task[Any]] = {}  # they wait for the limits

    def make_way(self) -> None:
        """One of the calls was sent, or waits for something other than a slot."""
        self.left(asyncio.current_task(self._loop))
        self._more()

    def stop_settling(self) -> None:
        """Cancel what got no answer, and is looked for in its history."""
        for attempt in self.under_way:
            if not attempt.is_under_way():
                attempt.cancel("closing")

    def waits(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task is in front."""
        return task in self.in_front.values()

    def left(self, task: asyncio.Task[Any] | None) -> None:
        """Note that a task is no longer in front."""
        for kind, front in self.in_front.items():
            if front is task:
                del self.in_front[kind]
                break
