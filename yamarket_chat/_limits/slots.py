"""How many requests may be in progress in parallel."""

from __future__ import annotations

import asyncio
import bisect

from .._http.attempt import NEVER, Attempt
from ..limits import CUT_OFF
from ..system import randomness

# After GROW_AFTER answers without a refusal, one more parallel request is tried. Each refusal
# doubles that number, up to GROW_AFTER_AT_MOST, for Markets that allow fewer for good.
GROW_AFTER = 100
GROW_AFTER_AT_MOST = 10_000

# The pause of a slot after a 420 for parallel requests, in seconds: the first one, and the longest
# after several refusals in a row. Each is shortened at random. Each refusal uses up the rate limit,
# too.
FIRST_PARALLEL_PAUSE = 0.5
LONGEST_PARALLEL_PAUSE = 30.0


class Slots:
    """The parallel slots of a business, shared by all its operations.

    A request holds a slot until the Market's answer has arrived. Without it, the request holds the
    slot until the Market must have ended it. If the Market still refuses a request, other programs
    of the seller hold slots. The number of slots then shrinks, and grows again while nothing is
    refused.
    """

    def __init__(self, parallel: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parallel = parallel
        self._allowed = parallel
        self._held = 0
        self._free_at: list[float] = []  # ascending: slots of requests that ended without an answer
        self._shrunk_at = NEVER
        self._clean = 0  # answers in a row without a refusal
        self._in_a_row = 0  # refusals without an answer between them
        self._grow_after = GROW_AFTER

    def free(self, now: float) -> bool:
        """Whether one more request may be sent."""
        free_at = self._free_at
        if free_at and free_at[0] <= now:
            del free_at[: bisect.bisect_right(free_at, now)]
        return self._held + len(free_at) < self._allowed

    def wait(self) -> float | None:
        """Return the seconds until time alone frees a slot; None if only an answer frees one."""
        excess = self._held + len(self._free_at) - self._allowed
        if excess < 0:
            return 0.0
        if excess < len(self._free_at):
            return self._free_at[excess] - self._loop.time()
        return None

    def idle(self) -> bool:
        """Whether no slot is held."""
        now = self._loop.time()
        return not self._held and all(at <= now for at in self._free_at)

    def take(self) -> None:
        """Hold a slot for a request that is sent, or will be."""
        self._held += 1

    def give_back(self) -> None:
        """Free the slot of a request that was not sent."""
        self._held -= 1

    def unanswered(self, attempt: Attempt) -> None:
        """Keep the slot of a request without an answer until the Market must have ended it."""
        self._held -= 1
        bisect.insort(self._free_at, attempt.ended + CUT_OFF)

    def hold_until(self, moment: float) -> None:
        """Hold a slot for a request of another process."""
        bisect.insort(self._free_at, moment)

    def answered(self) -> None:
        """Note an answer that is no refusal of parallel requests."""
        self._held -= 1
        self._in_a_row = 0
        self._clean += 1
        if self._clean < self._grow_after:
            return
        self._clean = 0
        if self._allowed < self._parallel:
            self._allowed += 1
        else:
            self._grow_after = GROW_AFTER

    def refused(self, attempt: Attempt, named: int | None) -> float:
        """Note a 420 for parallel requests; `named` is the number that its text names.

        Returns the seconds for which the slot pauses, because the next request would be refused as
        well.
        """
        self._held -= 1
        self._clean = 0
        if named is not None and named < self._allowed:
            self._allowed = max(named, 1)
        elif attempt.began > self._shrunk_at:
            self._allowed = max(self._allowed - 1, 1)
        if attempt.began > self._shrunk_at:
            # Refusals of requests that were sent before this one was refused are the same event.
            self._shrunk_at = attempt.ended
            if not self._in_a_row:  # refusals in a row have one cause
                self._grow_after = min(self._grow_after * 2, GROW_AFTER_AT_MOST)
            self._in_a_row += 1
        longest = min(FIRST_PARALLEL_PAUSE * 2.0 ** min(self._in_a_row, 30), LONGEST_PARALLEL_PAUSE)
        pause = longest * randomness("parallel pauses").uniform(0.5, 1.0)
        bisect.insort(self._free_at, self._loop.time() + pause)
        return pause
