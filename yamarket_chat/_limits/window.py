"""How many requests of one operation may be sent in a period.

A token bucket alone does not keep "1,000 in an hour": it lets a burst of 1,000 through, and then
the refill of the same hour. So the pace (aiolimiter's bucket) says how fast requests may follow one
another, and the window says how many there may be. A request enters the window when it is sent, and
leaves it `per` seconds after its *answer* arrived. The Market counted the request before it
answered. So the Market has forgotten the request by then, whatever the latency was. A request
without an answer counts as answered at the moment when the Market must have ended it.

The headers of an answer count all programs of the seller. The number of requests of *other*
programs cannot be computed exactly, because some of our requests overlapped with the answered one,
and nobody knows which of them the Market counted before it. But that number has two bounds. The
lower bound assumes that the Market had counted all of our overlapping requests, the upper bound
that it had counted none of them. While the lower bound is above 0, the requests of other programs
narrow the window, until the moment that the headers name. Between the two bounds, requests are sent
one at a time: the answer to a request that was alone is exact.

A 420 for the resource closes the window until the moment that its headers name, because other
programs have used up the limit. Then one request is sent alone, and its answer opens the window
again.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from .._http.attempt import Attempt
from .._http.headers import number_of
from ..limits import CUT_OFF, Rate
from .headers import LIMIT_HEADER, REMAINING_HEADER, seconds_until
from .pace import Pace

# Pauses in seconds after a 420 that does not say how long (or a Remaining without a readable
# Until): long and fast-growing, because the documented periods are hours and each try counts.
FIRST_BLIND_PAUSE = 30.0
BLIND_PAUSE_GROWTH = 3.0


class _Others(msgspec.Struct):
    """What the headers say of the seller's other programs (and of this one before a restart)."""

    least: float  # requests of theirs that surely count in the Market's window
    most: float  # requests of theirs that may count
    market_limit: int
    until: float  # on the loop's clock: then one request is sent alone to ask for the current state
    as_of: int  # the number of the request whose answer said so


class Window:
    """How many requests of one operation may be sent now."""

    def __init__(self, rate: Rate, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rate = rate
        self._pace = Pace(rate)
        self._limit_text: str | int | None = None  # as the Market's header has it
        self._market_limit = rate.requests
        self.limit = rate.requests  # in force: the configured one, or the Market's if that is lower
        self._free_at: list[float] = []  # ascending: when the ended requests leave the window
        self._granted = 0  # may be sent, and are not yet
        self._under_way = 0  # sent, and not ended yet
        self._sent = 0
        self._others: _Others | None = None
        self._blind_pause = FIRST_BLIND_PAUSE

    def admits(self, now: float, reserve: int = 0) -> bool:
        """Whether a request may be sent now and `reserve` requests are still left after it."""
        if reserve >= self.limit:  # the Market allows no more than that: nothing would ever go
            reserve = self.limit - 1
        taken = self._taken(now)
        return (
            self.limit - taken > reserve
            and (self._others is None or self._leave_place(self._others, now, taken, reserve))
            and self._pace.has(self._granted + 1)
        )

    def _leave_place(self, others: _Others, now: float, taken: int, reserve: int) -> bool:
        if others.market_limit - others.most - taken > reserve:
            return True
        # One at a time: the answer to a request that was alone is exact.
        if self._granted or self._under_way:
            return False
        return _may_have_place(others, now, taken, reserve)

    def is_closed(self) -> bool:
        """Whether a 420 has closed the window until a later moment."""
        others = self._others
        return others is not None and others.least == math.inf and self._loop.time() < others.until

    def _taken(self, now: float) -> int:
        """Return how many of our own requests count."""
        free_at = self._free_at
        if free_at and free_at[0] <= now:
            del free_at[: bisect.bisect_right(free_at, now)]
        return self._granted + self._under_way + len(free_at)

    def remaining(self) -> int:
        """Return how many requests may be sent now, as far as is known."""
        now = self._loop.time()
        taken = self._taken(now)
        free = self.limit - taken
        others = self._others
        if others is not None:
            surely = int(max(others.market_limit - others.most - taken, 0))
            free = min(free, surely or int(self._leave_place(others, now, taken, 0)))
        return max(free, 0)

    def others(self) -> int | None:
        """Return how many requests of others count at least; None if nobody knows just now."""
        others = self._others
        if others is None:
            return 0
        known = others.least < math.inf and self._loop.time() < others.until
        return int(others.least) if known else None

    def wait(self, ahead: int = 0, reserve: int = 0) -> float:
        """Return the least number of seconds until a request with `ahead` before it may be sent.

        Never too long; too short if an answer may tell more until then.
        """
        now = self._loop.time()
        reserve = min(reserve, self.limit - 1)
        taken = self._taken(now)
        wait = self._wait_for_place(now, taken, ahead + reserve)
        others = self._others
        if others is not None and not _may_have_place(others, now, taken, reserve):
            # When a request of ours leaves our window, it leaves the Market's as well.
            moments = [at for at in (others.until, *self._free_at[:1]) if at > now]
            wait = max(wait, min(moments, default=now) - now)
        return max(wait, self._pace.wait(self._granted + ahead + 1))

    def _wait_for_place(self, now: float, taken: int, ahead: int) -> float:
        position = ahead - (self.limit - taken)
        if position < 0:
            return 0.0
        # Requests leave the window in the order of `_free_at`, those in progress `per` seconds from
        # now at the earliest. The requests that follow leave it `per` seconds after that.
        rounds, place = divmod(position, max(taken, self.limit))
        free_at = now + self._rate.per
        if place < len(self._free_at):
            free_at = min(free_at, self._free_at[place])
        return free_at - now + rounds * self._rate.per

    def idle(self) -> bool:
        """Whether the window holds nothing that a later request has to respect."""
        now = self._loop.time()
        return not self._taken(now) and (self._others is None or self._others.until <= now)

    def grant(self) -> None:
        """Count a request that will be sent."""
        self._granted += 1

    def give_back(self) -> None:
        """Stop counting a granted request, which is sent in this step or not at all."""
        self._granted -= 1

    def send(self, task: asyncio.Task[Any], now: float) -> Attempt:
        """Note that a request is sent now, by this task."""
        self._pace.draw()
        overlapping = self._under_way
        self._under_way += 1
        self._sent += 1
        return Attempt(
            task,
            task.cancelling(),
            now,
            self._sent,
            self._under_way + len(self._free_at),
            overlapping,
            self._others is not None and now >= self._others.until,
        )

    def unsent(self) -> None:
        """Stop counting a request that never reached the Market, and keep its token."""
        self._under_way -= 1
        self._pace.give_back()

    def unanswered(self, attempt: Attempt) -> None:
        """Note that the Market did not answer: it may have counted the request until its end."""
        self._under_way -= 1
        bisect.insort(self._free_at, attempt.ended + CUT_OFF + self._rate.per)

    def count_until(self, moment: float) -> None:
        """Count a request of another process."""
        bisect.insort(self._free_at, moment)

    def answered(self, attempt: Attempt, headers: Mapping[str, str]) -> None:
        """Note an answer that is no refusal of this window."""
        self._ended(attempt, headers.get(LIMIT_HEADER))
        others = self._others
        if others is not None:
            if attempt.number < others.as_of:
                return  # the answer to a newer request has already said more
            if attempt.probe:
                others = self._others = None
                self._blind_pause = FIRST_BLIND_PAUSE
        remaining = number_of(headers.get(REMAINING_HEADER))
        if remaining is None:
            return
        market_limit = self._market_limit
        missing = market_limit - remaining - attempt.taken
        least: float = missing - (self._sent - attempt.number)
        if others is None and least <= 0:
            return  # our own requests explain all that is missing
        most: float = missing + attempt.overlapping
        if others is not None and others.until > self._loop.time():
            # The earlier bounds still hold: keep the tighter ones if the two agree.
            least = min(max(others.least, least), most)
            most = max(min(others.most, most), least)
        if most <= 0:
            self._others = None
            return
        self._others = _Others(
            max(least, 0), most, market_limit, self._until(headers), attempt.number
        )

    def refused(
        self, attempt: Attempt, headers: Mapping[str, str], named: int | None = None
    ) -> float:
        """Note a 420 for this window; `named` is the limit that its text names.

        Returns the seconds for which the window is closed.
        """
        self._ended(attempt, headers.get(LIMIT_HEADER, named))
        now = self._loop.time()
        others = self._others
        if others is not None and others.least == math.inf and attempt.number < others.as_of:
            return max(others.until - now, 0.0)  # sent before the window closed
        until = self._until(headers, growing=True)
        # Only a request that is sent from now on can tell that the window is open again.
        self._others = _Others(math.inf, math.inf, self.limit, until, self._sent + 1)
        return until - now

    def _ended(self, attempt: Attempt, market_limit: str | int | None) -> None:
        self._under_way -= 1
        free_at = self._free_at
        at = attempt.ended + self._rate.per
        if not free_at or free_at[-1] <= at:
            free_at.append(at)
        else:
            bisect.insort(free_at, at)
        if market_limit is not None and market_limit != self._limit_text:  # it hardly ever changes
            self._limit_text = market_limit
            number = number_of(market_limit)
            # At least 1: with 0, no request would ever be sent, so no answer could report a change.
            self._market_limit = self._rate.requests if number is None else max(number, 1)
            self.limit = min(self._rate.requests, self._market_limit)

    def _until(self, headers: Mapping[str, str], *, growing: bool = False) -> float:
        pause = seconds_until(headers)
        if pause is None:
            pause = self._blind_pause
            if growing:
                self._blind_pause *= BLIND_PAUSE_GROWTH
        return self._loop.time() + min(pause, self._rate.per)


def _may_have_place(others: _Others, now: float, taken: int, reserve: int) -> bool:
    """Whether one request may be sent alone to ask how many requests of others count."""
    return others.market_limit - others.least - taken > reserve or now >= others.until
