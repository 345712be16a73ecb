"""One request of a call, from the moment that it is sent until it has ended."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

import msgspec

NEVER = -math.inf  # before any moment of the loop's clock


class Attempt(msgspec.Struct, eq=False):
    """A request in progress. All times are on the loop's clock.

    The rate limit creates it, and the other modules store here what they need later: one object for
    each module would cost 2 % of a send.
    """

    task: asyncio.Task[Any]  # that carries it
    cancelling: int  # how often that task had been cancelled before
    began: float
    # What the window knew when the request was sent:
    number: int  # of the requests of its operation
    taken: int  # requests that the window counted, this one included
    overlapping: int  # other requests that had been sent and were not answered yet
    probe: bool  # sent alone to ask for the limit after the moment that the headers named
    # Set later:
    ended: float = NEVER
    cancels: tuple[Literal["timeout", "closing"], ...] = ()

    def is_under_way(self) -> bool:
        """Whether the request is still in progress."""
        return self.ended == NEVER

    def cancel(self, reason: Literal["timeout", "closing"]) -> None:
        """Cancel its task, because its timeout or the grace of the closing session is over."""
        self.cancels = (*self.cancels, reason)
        self.task.cancel()

    def is_cancelled(self, *, surely: bool) -> bool:
        """Whether somebody has cancelled its task. Code below may also raise a CancelledError.

        A cancellation just before the attempt began counts as well, unless `surely` is set.
        """
        return self.task.cancelling() > (self.cancelling if surely else 0)

    def take_back_cancels(self) -> Literal["timeout", "closing", "caller"]:
        """Take our cancellations of the task back. Return who caused its CancelledError.

        "caller" means that somebody else cancelled the task: the CancelledError is to be raised.
        """
        ours, self.cancels = self.cancels, ()
        for _ in ours:
            self.task.uncancel()
        if not ours or self.task.cancelling() > self.cancelling:
            return "caller"
        return "closing" if "closing" in ours else "timeout"


def unlimited_attempt(task: asyncio.Task[Any], began: float) -> Attempt:
    """Return the attempt of a request without a rate limit."""
    return Attempt(task, task.cancelling(), began, number=0, taken=0, overlapping=0, probe=False)


def running_task(loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Task[Any]:
    """Return the task that this coroutine runs in. Naming the running loop saves a system call."""
    task = asyncio.current_task(loop)
    assert task is not None  # noqa: S101 - a coroutine of asyncio's runs in one
    return task
