"""How much may go out now: requests over time, requests at once, what the Market's headers say.

Nothing here waits or sends; the scheduler asks, and tells what became of each request.

Requests over time
------------------
A token bucket alone does not keep "1,000 in an hour": it lets a burst of 1,000 and the refill of
the same hour through. So there are two gates. aiolimiter paces. The window caps: a request takes
a place when it leaves, and the place becomes free `per` seconds after its *answer* came. The
Market counted the request before it answered, so by then it has forgotten it, however long the
way there or back took. A request without an answer counts as answered when the Market must have
cut it off.

The pace's token is drawn when a request leaves, not when a place is granted: aiolimiter cannot
take a token back, so a call that is cancelled while it waits costs none. Where all may go at once,
some are drawn ahead, since the window bounds the burst, and that of a request that never reached
the Market is kept for the next.

What the Market says
--------------------
The headers of an answer count all programs of the seller. How many places *others* hold cannot be
read off exactly, since it is not known which of the requests that overlapped with this one were
counted before it. But two bounds can: at least as many as are missing if all that left until now
were counted, at most as many as are missing if none of those that overlapped was. While others
surely hold some (the lower bound is above 0), they narrow the window until the moment that the
headers name. Between the two bounds requests leave one at a time, and the answer to a request
that was alone is exact.

A 420 for the resource closes the window until that moment: others hold everything. Then one
request goes out alone, and its answer opens the rest.

Requests at once
----------------
A request holds one of the parallel places until its answer came, or, without an answer, until the
Market must have cut it off. When the Market says that there were too many all the same, other
programs hold some: the places go down, and grow back as answers come without refusals.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from multidict import istr

from . import operations
from .attempt import NEVER, Attempt
from .clock import parse_date
from .errors import InvalidArgumentError
from .operations import Operation, Rate

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

CUT_OFF = 10.0
"""Seconds after which the Market cuts a request off, as it documents."""

TOKENS_AT_A_TIME = 16

# Sums of floats may be short of a whole token by less than any pause worth making, in seconds.
SHORTEST_WAIT = 1e-6

# Pauses after a 420 that does not say how long (or a Remaining without a readable Until): long
# and fast-growing, since the documented limits are hours and each try uses up a place.
FIRST_BLIND_PAUSE = 30.0
BLIND_PAUSE_GROWTH = 3.0

# Answers without a refusal after which one more parallel place is tried. Doubled by each refusal,
# up to the second number, so that a Market that allows fewer for good is not asked for ever.
GROW_AFTER = 100
GROW_AFTER_AT_MOST = 10_000

# The pause of a parallel place after a 420 for it, in seconds: at first, and at most where one
# follows another, each shortened by chance. Each of them takes a place in the window, too.
FIRST_PARALLEL_PAUSE = 0.5
LONGEST_PARALLEL_PAUSE = 30.0


def _documented(operation: Operation) -> Rate:
    assert operation.limit is not None  # noqa: S101 - all rows of the table have one
    return operation.limit


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may go out: requests at once, and a `Rate` for each method of the session.

    The defaults are the documented limits: 4 requests in parallel for a business over all
    operations, and requests an hour for each operation. What the Market's headers say comes on
    top; a rate set below the Market's stays as set.

        Limits(send_message=Rate(500, per=3600))  # leave half of it to another program
    """

    parallel: int = 4
    send_message: Rate = _documented(operations.SEND_MESSAGE)
    send_file: Rate = _documented(operations.SEND_FILE)
    create_chat: Rate = _documented(operations.CREATE_CHAT)
    get_chat: Rate = _documented(operations.GET_CHAT)
    chats: Rate = _documented(operations.CHATS)
    history: Rate = _documented(operations.HISTORY)
    get_message: Rate = _documented(operations.GET_MESSAGE)
    campaigns: Rate = _documented(operations.CAMPAIGNS)
    token: Rate = _documented(operations.TOKEN)

    def __post_init__(self) -> None:
        if type(self.parallel) is not int or self.parallel < 1:
            raise InvalidArgumentError("Limits.parallel is a whole number of at least 1")
        for name in self.__struct_fields__:
            if name != "parallel" and not isinstance(getattr(self, name), Rate):
                raise InvalidArgumentError(f"Limits.{name} is a Rate, such as Rate(1000, per=3600)")


UNLIMITED = Rate(1_000_000_000, per=1e-3)
"""For methods whose limits are not known here."""


class _Others(msgspec.Struct):
    """What the headers say of the seller's other programs (and of ours before a restart)."""

    least: float  # places of the Market's window that they surely hold
    most: float  # and that they may hold
    market_limit: int
    until: float  # on the loop's clock: then one request alone asks what holds now
    as_of: int  # number of the departure whose answer said so


class Window:
    """How many requests of one operation may leave now."""

    def __init__(self, rate: Rate, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rate = rate
        burst = rate.burst or rate.requests
        # Imported late: it is a quarter of what `import yamarket_chat` would cost.
        from aiolimiter import AsyncLimiter

        self._pace = AsyncLimiter(burst, burst * rate.per / rate.requests)
        # Where all may go at once the window alone bounds a burst, and drawing some tokens ahead
        # lets nothing more through; it makes a send 3 % cheaper.
        self._all_at_once = burst == rate.requests
        self._at_a_time = min(TOKENS_AT_A_TIME, rate.requests) if self._all_at_once else 1
        self._drawn = 0  # tokens drawn ahead
        self._interval = rate.per / rate.requests  # seconds in which the pace gains a token
        self._limit_text: str | int | None = None  # as the Market's header says it
        self._market_limit = rate.requests
        self.limit = rate.requests  # in force: as configured, or the Market's where that is lower
        self._free_at: list[float] = []  # ascending: when the places of ended requests become free
        self._granted = 0  # may leave, but have not left yet
        self._under_way = 0  # have left, and have not ended yet
        self._departures = 0
        self._others: _Others | None = None
        self._blind_pause = FIRST_BLIND_PAUSE

    def admits(self, now: float, reserve: int = 0) -> bool:
        """Whether a request may leave now and `reserve` places of the window stay free."""
        if reserve >= self.limit:  # as large as what the Market allows: it would stop for ever
            reserve = self.limit - 1
        taken = self._taken(now)
        return (
            self.limit - taken > reserve
            and (self._others is None or self._leave_place(self._others, now, taken, reserve))
            and (
                self._drawn > self._granted
                or self._pace.has_capacity(self._granted + 1 - self._drawn)
            )
        )

    def _leave_place(self, others: _Others, now: float, taken: int, reserve: int) -> bool:
        if others.market_limit - others.most - taken > reserve:
            return True
        # One at a time from here on: the answer to a request that was alone is exact.
        if self._granted or self._under_way:
            return False
        return _may_have_place(others, now, taken, reserve)

    def is_closed(self) -> bool:
        """Whether a 420 has closed the window, and its time has not come yet."""
        others = self._others
        return others is not None and others.least == math.inf and self._loop.time() < others.until

    def _taken(self, now: float) -> int:
        """How many places are in use by our own requests."""
        free_at = self._free_at
        if free_at and free_at[0] <= now:
            del free_at[: bisect.bisect_right(free_at, now)]
        return self._granted + self._under_way + len(free_at)

    def remaining(self) -> int:
        """How many requests may leave now, as far as is known."""
        now = self._loop.time()
        taken = self._taken(now)
        free = self.limit - taken
        others = self._others
        if others is not None:
            surely = int(max(others.market_limit - others.most - taken, 0))
            free = min(free, surely or int(self._leave_place(others, now, taken, 0)))
        return max(free, 0)

    def wait(self, ahead: int = 0, reserve: int = 0) -> float:
        """The least number of seconds until a request may leave that has `ahead` before it.

        Ends nobody's wait too late; too early where an answer may yet tell more.
        """
        now = self._loop.time()
        reserve = min(reserve, self.limit - 1)
        taken = self._taken(now)
        wait = self._wait_for_place(now, taken, ahead + reserve)
        others = self._others
        if others is not None and not _may_have_place(others, now, taken, reserve):
            # With a place of our own, one more of the Market's becomes free.
            moments = [at for at in (others.until, *self._free_at[:1]) if at > now]
            wait = max(wait, min(moments, default=now) - now)
        tokens = self._granted + ahead + 1 - self._drawn
        if tokens > 0 and not self._pace.has_capacity(tokens):
            wait = max(wait, (tokens - self._tokens()) * self._interval, SHORTEST_WAIT)
        return wait

    def _wait_for_place(self, now: float, taken: int, ahead: int) -> float:
        position = ahead - (self.limit - taken)
        if position < 0:
            return 0.0
        # Places become free in the order of `_free_at`, those under way `per` seconds from now at
        # the earliest; and each once more `per` seconds after that.
        rounds, place = divmod(position, max(taken, self.limit))
        free_at = now + self._rate.per
        if place < len(self._free_at):
            free_at = min(free_at, self._free_at[place])
        return free_at - now + rounds * self._rate.per

    def _tokens(self) -> float:
        """How many tokens the pace has. aiolimiter answers only yes or no, so ask by halves."""
        low, high = 0.0, float(self._pace.max_rate)
        if self._pace.has_capacity(high):
            return high
        while high - low > 1e-6:
            middle = (low + high) / 2
            if self._pace.has_capacity(middle):
                low = middle
            else:
                high = middle
        return low

    def idle(self) -> bool:
        """Whether nothing is remembered that a later request would have to respect."""
        now = self._loop.time()
        return not self._taken(now) and (self._others is None or self._others.until <= now)

    def grant(self) -> None:
        """Set a place aside for a request that is about to leave."""
        self._granted += 1

    def give_back(self) -> None:
        """The request did not leave after all."""
        self._granted -= 1

    def depart(self, task: asyncio.Task[Any], now: float) -> Attempt:
        """A request leaves, carried by this task."""
        if not self._drawn:
            self._drawn = _draw(self._pace, self._at_a_time)
        self._drawn -= 1
        overlapping = self._under_way
        self._under_way += 1
        self._departures += 1
        return Attempt(
            task,
            task.cancelling(),
            now,
            self._departures,
            self._under_way + len(self._free_at),
            overlapping,
            self._others is not None and now >= self._others.until,
        )

    def unsent(self) -> None:
        """The request never reached the Market: its place is free at once, and its token, too."""
        self._under_way -= 1
        if self._all_at_once:  # with a smaller burst, a token kept would make it larger
            self._drawn += 1

    def unanswered(self, attempt: Attempt) -> None:
        """No answer came: the Market may have counted the request until it cut it off."""
        self._under_way -= 1
        bisect.insort(self._free_at, attempt.ended + CUT_OFF + self._rate.per)

    def answered(self, attempt: Attempt, headers: Mapping[str, str]) -> None:
        """An answer came that is no refusal of this window."""
        self._ended(attempt, headers.get(LIMIT_HEADER))
        others = self._others
        if others is not None:
            if attempt.number < others.as_of:
                return  # the answer to a newer request has told more already
            if attempt.probe:
                others = self._others = None
                self._blind_pause = FIRST_BLIND_PAUSE
        remaining = _number(headers.get(REMAINING_HEADER))
        if remaining is None:
            return
        market_limit = self._market_limit
        missing = market_limit - remaining - attempt.taken
        least: float = missing - (self._departures - attempt.number)
        if others is None and least <= 0:
            return  # all that is missing can be our own
        most: float = missing + attempt.overlapping
        if others is not None and others.until > self._loop.time():
            # What was known still holds: keep the tighter bound where the two agree.
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
        """A 420 for this window came; `named` is the limit that its text names.

        Returns the number of seconds for which nothing goes out.
        """
        self._ended(attempt, headers.get(LIMIT_HEADER, named))
        now = self._loop.time()
        others = self._others
        if others is not None and others.least == math.inf and attempt.number < others.as_of:
            return max(others.until - now, 0.0)  # left before the window was closed: no news
        until = self._until(headers, growing=True)
        # Only a request that leaves from now on can tell that the window is open again.
        self._others = _Others(math.inf, math.inf, self.limit, until, self._departures + 1)
        return until - now

    def _ended(self, attempt: Attempt, market_limit: str | int | None) -> None:
        self._under_way -= 1
        free_at = self._free_at
        at = attempt.ended + self._rate.per
        if not free_at or free_at[-1] <= at:
            free_at.append(at)
        else:
            bisect.insort(free_at, at)
        if market_limit is not None and market_limit != self._limit_text:  # it hardly changes
            self._limit_text = market_limit
            number = _number(market_limit)
            # At least 1: with 0 no request would ever go out again to hear otherwise.
            self._market_limit = self._rate.requests if number is None else max(number, 1)
            self.limit = min(self._rate.requests, self._market_limit)

    def _until(self, headers: Mapping[str, str], *, growing: bool = False) -> float:
        pause = seconds_until(headers)
        if pause is None:
            pause = self._blind_pause
            if growing:
                self._blind_pause *= BLIND_PAUSE_GROWTH
        return self._loop.time() + min(pause, self._rate.per)


class Places:
    """How many requests may be under way at once, over all operations of a business."""

    def __init__(self, parallel: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parallel = parallel
        self._allowed = parallel
        self._held = 0
        self._free_at: list[float] = []  # ascending: of requests that ended without an answer
        self._shrunk_at = NEVER
        self._clean = 0  # answers in a row without a refusal
        self._in_a_row = 0  # refusals without an answer between them
        self._grow_after = GROW_AFTER

    def free(self, now: float) -> bool:
        """Whether one more request may be under way."""
        free_at = self._free_at
        if free_at and free_at[0] <= now:
            del free_at[: bisect.bisect_right(free_at, now)]
        return self._held + len(free_at) < self._allowed

    def wait(self) -> float | None:
        """Seconds until a place becomes free without an answer; None where only that helps."""
        excess = self._held + len(self._free_at) - self._allowed
        if excess < 0:
            return 0.0
        if excess < len(self._free_at):
            return self._free_at[excess] - self._loop.time()
        return None

    def idle(self) -> bool:
        """Whether no place is held."""
        self.free(self._loop.time())
        return not (self._held or self._free_at)

    def take(self) -> None:
        """A request leaves, or is about to."""
        self._held += 1

    def give_back(self) -> None:
        """The request did not leave after all, or never reached the Market."""
        self._held -= 1

    def unanswered(self, attempt: Attempt) -> None:
        """No answer came: the Market may be at it until it cuts the request off."""
        self._held -= 1
        bisect.insort(self._free_at, attempt.ended + CUT_OFF)

    def answered(self) -> None:
        """An answer came that is no refusal of the places."""
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
        """A 420 for parallel requests came; `named` is the number that its text names.

        Returns for how many seconds its place pauses: the next call would only be refused in its
        turn.
        """
        self._held -= 1
        self._clean = 0
        if named is not None and named < self._allowed:
            self._allowed = max(named, 1)
        elif attempt.began > self._shrunk_at:
            self._allowed = max(self._allowed - 1, 1)
        if attempt.began > self._shrunk_at:
            # Refusals of requests that left before this one came are the same event.
            self._shrunk_at = attempt.ended
            if not self._in_a_row:  # those in a row tell of one shortage
                self._grow_after = min(self._grow_after * 2, GROW_AFTER_AT_MOST)
            self._in_a_row += 1
        longest = min(FIRST_PARALLEL_PAUSE * 2.0 ** min(self._in_a_row, 30), LONGEST_PARALLEL_PAUSE)
        pause = longest * random.uniform(0.5, 1.0)
        bisect.insort(self._free_at, self._loop.time() + pause)
        return pause


class Quota:
    """The windows and the places of one business."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.places = Places(limits.parallel, loop)
        self.windows = {
            name: Window(getattr(limits, name), loop)
            for name in limits.__struct_fields__
            if name != "parallel"
        }
        # Methods that are not those of the chats share the places alone.
        self.windows["request"] = Window(UNLIMITED, loop)

    def idle(self) -> bool:
        """Whether nothing is remembered that a later request would have to respect."""
        return self.places.idle() and all(window.idle() for window in self.windows.values())


# istr: what an answer's headers can be looked up by without folding the name each time.
LIMIT_HEADER = istr("X-RateLimit-Resource-Limit")
REMAINING_HEADER = istr("X-RateLimit-Resource-Remaining")
UNTIL_HEADER = istr("X-RateLimit-Resource-Until")

_PARALLEL_REFUSAL = re.compile(r"rate limit of ([0-9]{1,9}) parallel requests", re.IGNORECASE)
_RESOURCE_REFUSAL = re.compile(r"rate limit of ([0-9]{1,9}) requests", re.IGNORECASE)


def refused_in_parallel(text: str) -> int | None:
    """The number that a 420 for parallel requests names; None for any other text.

    >>> refused_in_parallel("Hit rate limit of 4 parallel requests for businessId 12345")
    4
    """
    match = _PARALLEL_REFUSAL.search(text)
    return int(match[1]) if match else None


def refused_over_time(text: str) -> int | None:
    """The number that a 420 for a resource names; None for any other text."""
    match = _RESOURCE_REFUSAL.search(text)
    return int(match[1]) if match else None


def _may_have_place(others: _Others, now: float, taken: int, reserve: int) -> bool:
    """Whether a request that is alone may ask what others hold."""
    return others.market_limit - others.least - taken > reserve or now >= others.until


def _draw(pace: AsyncLimiter, at_a_time: int) -> int:
    """Draw some tokens without waiting, or else one, which the pace was seen to have."""
    tokens = at_a_time if pace.has_capacity(at_a_time) else 1
    drawing = pace.acquire(tokens)
    try:
        drawing.send(None)
    except StopIteration:
        return tokens
    # Rounding showed a token that is not quite there. It will be within a moment.
    drawing.close()
    return 1


def _number(text: str | int | None) -> int | None:
    try:
        number = int(text or "")
    except ValueError:
        return None
    return number if 0 <= number < 2**31 else None


def seconds_until(headers: Mapping[str, str]) -> float | None:
    """Until as a length of time: the local clock has no part in it."""
    until, date = parse_date(headers.get(UNTIL_HEADER)), parse_date(headers.get("Date"))
    if until is None or date is None:
        return None
    # Both are whole seconds; the second more makes up for what was cut off.
    return max(until - date, 0) + 1
