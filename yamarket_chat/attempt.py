"""One request of a call. The quota makes it; each room notes on it what it needs later."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec

from .clock import NO_READINGS, Readings

NEVER = -math.inf  # before any moment of the loop's clock


class Attempt(msgspec.Struct, eq=False):
    """A request, from the moment that it leaves until it has ended, on the loop's clock.

    One value for all rooms: one of its own in each of them would cost 2 % of a send.
    """

    task: asyncio.Task[Any]  # that carries it
    cancelling: int  # how often that task had been cancelled before
    began: float
    # What the quota knew when it left:
    number: int  # of the requests of its operation
    taken: int  # places of those that had left and could count, this one included
    overlapping: int  # others that had left and were not yet answered
    probe: bool  # left to ask what holds after the moment that the headers named
    # And what came later:
    ended: float = NEVER
    overdue: bool = False  # its time was over, and so the task was cancelled
    readings: Readings = NO_READINGS  # of the Market's clock, when it began

    def is_under_way(self) -> bool:
        """Whether it has not ended."""
        return self.ended == NEVER

    def ran_out_of_time(self) -> bool:
        """Whether the CancelledError of the task is its deadline's alone; takes it back if so."""
        return self.overdue and self.task.uncancel() <= self.cancelling
