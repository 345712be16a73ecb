"""Who goes next: calls wait here until everything that they need is free at once.

A call hands itself over as a `Ticket`, which is numbered: first come, first served. A ticket may
name a line (a chat). Of one line only the first is ready, and the next one not before the first
has left the line. What a ready ticket needs, its operation's window and pace and one of the
parallel places, is granted together or not at all: nobody holds one while waiting for another, and
a full window of one operation never holds up another.

Single calls go before those of a bulk. A single call that comes to stand behind calls of a bulk in
its line makes singles of them, or it would wait as long as they do.

One scheduler serves all sessions of a business on one event loop. It has no task of its own:
whoever changes something lets the next ones go, and one timer does so where only time has to pass.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import logging
from collections.abc import Mapping

import msgspec

from .attempt import NEVER, Attempt
from .errors import ChatError, QuotaExceededError
from .models import QuotaStatus
from .quota import SHORTEST_WAIT, Limits, Quota, Window

logger = logging.getLogger("yamarket_chat")

SOON = 1.0
"""Seconds after which a call is worth another try where nothing tells how long it has to wait."""

LONG_WAIT = 60.0
"""Seconds of waiting from which on a warning is logged."""


class Owner:
    """The calls of one session, or of one `send_many`, so that they can be ended together."""

    def __init__(self) -> None:
        self.closed_by: ChatError | None = None  # what its calls are told from then on
        self.waiting: set[Ticket] = set()
        self.under_way: set[Ticket] = set()
        self.nothing_under_way: asyncio.Future[None] | None = None

    def make_way(self) -> None:
        """One of its calls left, or waits for something else than a place."""

    def place_freed(self) -> None:
        """Somebody else may have freed a place."""


class Ticket(msgspec.Struct, eq=False):
    """A call, from the moment that it was handed over until it is over."""

    number: int
    queue: _Queue
    owner: Owner
    line: int | None
    reserve: int | None  # places of the window left to singles; None for a single
    before: Ticket | None = None  # neighbours in the line
    after: Ticket | None = None
    future: asyncio.Future[None] | None = None  # while it waits
    ready: bool = False  # stands in its queue
    granted: bool = False  # may leave, but has not left yet
    attempt: Attempt | None = None  # the latest one
    in_doubt: bool = False  # an attempt may have been carried out, and nothing has told
    cut_short: bool = False  # its task was cancelled because the session's grace is over

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number

    def goes_before(self, other: Ticket) -> bool:
        """Whether it comes first where both could go."""
        return (self.reserve is not None, self.number) < (other.reserve is not None, other.number)


class _Heap:
    """Ready tickets by number, all of one reserve.

    One that is withdrawn stays in until it comes up or is cleared.
    """

    def __init__(self, reserve: int | None) -> None:
        self._reserve = reserve
        self._tickets: list[Ticket] = []
        self.ready = 0

    def push(self, ticket: Ticket) -> None:
        self.ready += 1
        heapq.heappush(self._tickets, ticket)

    def head(self) -> Ticket | None:
        tickets = self._tickets
        while tickets and not self._is_in(tickets[0]):
            heapq.heappop(tickets)
        return tickets[0] if tickets else None

    def removed(self) -> None:
        """One of the tickets is ready no longer."""
        self.ready -= 1
        if len(self._tickets) > 2 * self.ready + 64:
            self._tickets = [ticket for ticket in self._tickets if self._is_in(ticket)]
            heapq.heapify(self._tickets)

    def _is_in(self, ticket: Ticket) -> bool:
        return ticket.ready and ticket.reserve == self._reserve


class _Queue:
    """The ready tickets of one operation."""

    def __init__(self, operation: str, window: Window) -> None:
        self.operation = operation
        self.window = window
        self.waiting = 0  # calls that wait, ready or not
        self.warned = False  # that they wait for long
        self.watch: asyncio.TimerHandle | None = None  # while calls wait that name no max_wait
        self.watched = 0  # how many of these have waited since it was set,
        self.newest_watched = 0  # and the number of the last one
        self.patient = 0  # how many of these wait
        self._heaps: dict[int | None, _Heap] = {}  # by reserve: one may go where another may not

    def push(self, ticket: Ticket) -> None:
        ticket.ready = True
        if ticket.reserve not in self._heaps:
            self._heaps[ticket.reserve] = _Heap(ticket.reserve)
        self._heaps[ticket.reserve].push(ticket)

    def remove(self, ticket: Ticket) -> None:
        ticket.ready = False
        heap = self._heaps[ticket.reserve]
        heap.removed()
        if not heap.ready:
            del self._heaps[ticket.reserve]

    def make_single(self, ticket: Ticket) -> None:
        if not ticket.ready:
            ticket.reserve = None
            return
        self.remove(ticket)
        ticket.reserve = None
        self.push(ticket)

    def heads(self) -> list[Ticket]:
        """The first ready ticket of each reserve."""
        heads = (heap.head() for heap in self._heaps.values())
        return [head for head in heads if head is not None]

    def ahead_of(self, ticket: Ticket) -> int:
        """How many go before a ticket that joins now."""
        return sum(
            heap.ready
            for reserve, heap in self._heaps.items()
            if reserve is None or (ticket.reserve is not None and reserve <= ticket.reserve)
        )


class Scheduler:
    """Lets the calls of one business go, on one event loop."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.quota = Quota(limits, loop)
        self._loop = loop
        self._places = self.quota.places
        self._queues = {name: _Queue(name, window) for name, window in self.quota.windows.items()}
        self._numbers = 0
        self._waiting = 0
        self._last_in_line: dict[int, Ticket] = {}
        self._resting: dict[int, float] = {}  # lines that nobody may go on in before that time
        self._held: dict[int, float] = {}  # lines whose first pauses or is settled until then
        self._rests_end: list[tuple[float, Ticket]] = []  # firsts of such lines, a heap
        self._timer: asyncio.TimerHandle | None = None
        self.bulks: set[Owner] = set()  # that may have one more call when a place is free

    # Handing over, waiting, leaving

    def hand_over(
        self, operation: str, owner: Owner, *, line: int | None = None, reserve: int | None = None
    ) -> Ticket:
        """Take a number, and stand in line."""
        self._numbers += 1
        ticket = Ticket(self._numbers, self._queues[operation], owner, line, reserve)
        if line is not None:
            before = self._last_in_line.get(line)
            self._last_in_line[line] = ticket
            if before is not None:
                ticket.before, before.after = before, ticket
                if reserve is None:
                    self._make_singles(before)
        return ticket

    def _make_singles(self, ticket: Ticket | None) -> None:
        while ticket is not None and ticket.reserve is not None:
            ticket.queue.make_single(ticket)
            if ticket.ready:
                self._let_go()
            ticket = ticket.before

    async def admit(self, ticket: Ticket, max_wait: float | None = None) -> Attempt:
        """Return the next attempt of the call when it may leave: it leaves now.

        Raises QuotaExceededError where that takes longer than `max_wait` seconds, and what
        `end_waiting` is told where its owner closes before.
        """
        if ticket.owner.closed_by is not None:
            raise copy.copy(ticket.owner.closed_by)
        # All in one coroutine: a hundred thousand may wait here, and each frame counts.
        timer = self._begin_to_wait(ticket, max_wait)
        try:
            while True:
                await ticket.future  # type: ignore[misc]
                if ticket.owner.closed_by is not None:
                    raise copy.copy(ticket.owner.closed_by)
                if not ticket.queue.window.is_closed():
                    break
                self._wait_again(ticket)
                if timer is not None and timer.when() <= self._loop.time():
                    self._waited_enough(ticket, max_wait or 0.0)
        except BaseException:
            self._end_to_wait(ticket, timer)
            if ticket.granted:
                self._ungrant(ticket)
            elif ticket.ready:
                ticket.queue.remove(ticket)
            self._let_go()
            raise
        self._end_to_wait(ticket, timer)
        self._ungrant(ticket)
        return self._depart(ticket, self._loop.time())

    def try_admit(self, ticket: Ticket) -> Attempt | None:
        """The next attempt of the call, where nobody waits and all is free: it leaves now."""
        now = self._loop.time()
        if (
            self._waiting
            or ticket.before is not None
            or ticket.owner.closed_by is not None
            or (self._resting and ticket.line in self._resting)
            or not self._places.free(now)
            or not ticket.queue.window.admits(now, ticket.reserve or 0)
        ):
            return None
        return self._depart(ticket, now)

    def _depart(self, ticket: Ticket, now: float) -> Attempt:
        # Naming the running loop saves a system call.
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - a coroutine of asyncio's runs in one
        self._places.take()
        attempt = ticket.attempt = ticket.queue.window.depart(task, now)
        owner = ticket.owner
        owner.under_way.add(ticket)
        owner.make_way()
        return attempt

    def _begin_to_wait(self, ticket: Ticket, max_wait: float | None) -> asyncio.TimerHandle | None:
        queue = ticket.queue
        least = self._least_wait(ticket, 0 if max_wait is None else _before_in_line(ticket))
        if max_wait is not None and least > max_wait:
            raise _quota_exceeded(queue.operation, max_wait, least)
        if max_wait is None and not queue.warned and self._window_wait(ticket) > LONG_WAIT:
            queue.warned = True
            logger.warning(
                "%s: the limit is used up, calls wait %.0f s or more%s",
                queue.operation,
                least,
                "" if ticket.attempt is not None else "; pass max_wait to be refused instead",
            )
        ticket.future = self._loop.create_future()
        ticket.owner.waiting.add(ticket)
        queue.waiting += 1
        self._waiting += 1
        if max_wait is None:
            queue.patient += 1
            if queue.watch is None and not queue.warned:
                self._watch(queue)
        if ticket.before is None:
            self._first_in_line(ticket)
        if not (ticket.ready or ticket.granted):
            ticket.owner.make_way()
        if max_wait is None:
            return None
        return self._loop.call_later(max_wait, self._waited_enough, ticket, max_wait)

    def _wait_again(self, ticket: Ticket) -> None:
        """Back in line: a 420 closed the window in the very pass in which the call could leave."""
        self._ungrant(ticket)
        ticket.future = self._loop.create_future()
        self._first_in_line(ticket)
        self._let_go()  # the timer may be that of a moment in which more was granted

    def _end_to_wait(self, ticket: Ticket, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        ticket.future = None
        ticket.owner.waiting.discard(ticket)
        self._waiting -= 1
        ticket.queue.waiting -= 1
        queue = ticket.queue
        if timer is None:
            queue.patient -= 1
            if ticket.number <= queue.newest_watched:
                queue.watched -= 1
        if not queue.patient:
            queue.warned = False
            if queue.watch is not None:
                queue.watch.cancel()
                queue.watch = None

    def _watch(self, queue: _Queue) -> None:
        """Look in a minute whether somebody of those that wait now still does.

        That the limit is used up is known at once; not so how long a place is waited for, or the
        chat's earlier messages.
        """
        queue.watched, queue.newest_watched = queue.patient, self._numbers
        queue.watch = self._loop.call_later(LONG_WAIT, self._watched_for_long, queue)

    def _watched_for_long(self, queue: _Queue) -> None:
        queue.watch = None
        if queue.warned:
            return
        if queue.watched <= 0:
            self._watch(queue)
            return
        queue.warned = True
        logger.warning(
            "%s: calls have waited for more than %.0f s, for a place or for earlier messages of"
            " their chats; pass max_wait to be refused instead",
            queue.operation,
            LONG_WAIT,
        )

    def _least_wait(self, ticket: Ticket, before_in_line: int) -> float:
        return max(
            self._window_wait(ticket, before_in_line),
            self._places.wait() or 0.0,
            self._rest_of(ticket),
        )

    def _window_wait(self, ticket: Ticket, before_in_line: int = 0) -> float:
        queue = ticket.queue
        ahead = queue.ahead_of(ticket) + before_in_line
        return queue.window.wait(ahead, ticket.reserve or 0)

    def _rest_of(self, ticket: Ticket) -> float:
        line = ticket.line
        if line is None or not (self._resting or self._held):
            return 0.0
        until = max(self._resting.get(line, NEVER), self._held.get(line, NEVER))
        return max(until - self._loop.time(), 0.0)

    def _waited_enough(self, ticket: Ticket, max_wait: float) -> None:
        future = ticket.future
        if future is not None and not future.done():
            # How many stand before it is not looked up: the least is asked for.
            least = max(
                ticket.queue.window.wait(), self._places.wait() or 0.0, self._rest_of(ticket)
            )
            future.set_exception(_quota_exceeded(ticket.queue.operation, max_wait, least))

    async def pause(self, ticket: Ticket, seconds: float) -> None:
        """Wait before the next attempt. Raises what `end_waiting` is told."""
        if ticket.owner.closed_by is not None:
            raise copy.copy(ticket.owner.closed_by)
        future = ticket.future = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, future)
        self._hold_line(ticket, self._loop.time() + seconds)
        ticket.owner.waiting.add(ticket)
        ticket.owner.make_way()
        try:
            await future
        finally:
            timer.cancel()
            self._held.pop(ticket.line or 0, None)
            ticket.future = None
            ticket.owner.waiting.discard(ticket)

    def leave(self, ticket: Ticket, rest: float = 0.0) -> None:
        """The call is over; its line goes on, `rest` seconds from now."""
        line = ticket.line
        if line is None:
            return
        before, after = ticket.before, ticket.after
        if rest:
            self._rest(line, self._loop.time() + rest)
        if after is not None:
            after.before = before
        elif before is not None:
            self._last_in_line[line] = before
        else:
            del self._last_in_line[line]
        if before is not None:
            before.after = after
        elif after is not None and after.future is not None:
            self._first_in_line(after)
        if before is not None or after is not None:
            ticket.before = ticket.after = None  # a kept error's traceback would keep all of them

    def _rest(self, line: int, until: float) -> None:
        now = self._loop.time()
        for other in [other for other, end in self._resting.items() if end <= now]:
            del self._resting[other]
        self._resting[line] = max(until, self._resting.get(line, 0.0))

    # Letting go

    def _first_in_line(self, ticket: Ticket) -> None:
        if ticket.line is not None and ticket.line in self._resting:
            until = self._resting[ticket.line]
            if until > self._loop.time():
                heapq.heappush(self._rests_end, (until, ticket))
                self._arm()
                return
            del self._resting[ticket.line]
        ticket.queue.push(ticket)
        if ticket in ticket.queue.heads():
            self._let_go()

    def _grant(self, ticket: Ticket) -> None:
        ticket.granted = True
        ticket.queue.window.grant()
        self._places.take()

    def _ungrant(self, ticket: Ticket) -> None:
        """Undo `_grant`: the ticket leaves in this very step, or not now."""
        ticket.granted = False
        ticket.queue.window.give_back()
        self._places.give_back()

    def _let_go(self, ended: Ticket | None = None) -> None:
        """Grant whatever can be granted now; `ended` is the call whose attempt has just ended."""
        if self._waiting:
            self._grant_all()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for bulk in self.bulks:
            if ended is None or ended.owner is not bulk:  # that one comes back by itself
                bulk.place_freed()

    def _grant_all(self) -> None:
        while self._rests_end and self._rests_end[0][0] <= self._loop.time():
            ticket = heapq.heappop(self._rests_end)[1]
            if ticket.future is not None and not ticket.ready and ticket.before is None:
                self._resting.pop(ticket.line or 0, None)
                ticket.queue.push(ticket)
        now = self._loop.time()
        while self._places.free(now):
            best: Ticket | None = None
            for queue in self._queues.values():
                for head in queue.heads():
                    if (best is None or head.goes_before(best)) and queue.window.admits(
                        now, head.reserve or 0
                    ):
                        best = head
            if best is None:
                break
            best.queue.remove(best)
            assert best.future is not None  # noqa: S101 - who is ready waits
            if best.future.done():
                continue  # it was ended in this very pass, and its task will see that
            self._grant(best)
            best.future.set_result(None)
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the next moment at which time alone lets somebody go."""
        now = self._loop.time()
        # Time does not stand still while one looks: what was refused a moment ago may be due.
        waits = [max(self._rests_end[0][0] - now, SHORTEST_WAIT)] if self._rests_end else []
        place = self._places.wait()
        if place is not None and place > 0:
            waits.append(place)
        elif place is not None:
            for queue in self._queues.values():
                for head in queue.heads():
                    reserve = head.reserve or 0
                    wait = queue.window.wait(0, reserve)
                    if wait <= 0 and queue.window.admits(self._loop.time(), reserve):
                        wait = SHORTEST_WAIT
                    waits.append(wait)
        # A wait of 0 that was not granted ends with an answer, not with time.
        waits = [wait for wait in waits if wait > 0]
        if not waits:
            return
        at = now + min(waits)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._time_came)

    def _time_came(self) -> None:
        self._timer = None
        self._let_go()

    # What became of an attempt

    def _not_under_way(self, ticket: Ticket) -> None:
        owner = ticket.owner
        owner.under_way.discard(ticket)
        if owner.nothing_under_way is not None and not owner.under_way:
            _wake(owner.nothing_under_way)

    def answered(self, ticket: Ticket, attempt: Attempt, headers: Mapping[str, str]) -> None:
        """An answer came that is no refusal over a limit."""
        self._not_under_way(ticket)
        ticket.queue.window.answered(attempt, headers)
        self._places.answered()
        self._let_go(ticket)

    def refused_in_parallel(
        self, ticket: Ticket, attempt: Attempt, headers: Mapping[str, str], named: int | None
    ) -> float:
        """A 420 for parallel requests came; `named` is the number that it names.

        Returns for how many seconds the call itself should pause.
        """
        self._not_under_way(ticket)
        ticket.queue.window.answered(attempt, headers)
        pause = self._places.refused(attempt, named)
        self._let_go(ticket)
        return pause

    def refused_over_time(
        self, ticket: Ticket, attempt: Attempt, headers: Mapping[str, str], named: int | None
    ) -> float:
        """A 420 for the resource came. Returns for how many seconds its window is closed."""
        self._not_under_way(ticket)
        closed_for = ticket.queue.window.refused(attempt, headers, named)
        self._places.answered()
        self._let_go(ticket)
        return closed_for

    def unanswered(self, ticket: Ticket, attempt: Attempt) -> None:
        """No answer came, and the request may have reached the Market."""
        self._not_under_way(ticket)
        ticket.in_doubt = True
        ticket.queue.window.unanswered(attempt)
        self._places.unanswered(attempt)
        self._let_go(ticket)

    def unsent(self, ticket: Ticket) -> None:
        """The request surely never reached the Market."""
        self._not_under_way(ticket)
        ticket.queue.window.unsent()
        self._places.give_back()
        self._let_go(ticket)

    # Around

    def status(self, operation: str) -> QuotaStatus:
        """How much of an operation's limit is left."""
        queue = self._queues[operation]
        remaining = queue.window.remaining()
        return QuotaStatus(
            limit=queue.window.limit,
            remaining=remaining,
            resets_in=0.0 if remaining else max(queue.window.wait(), 0.0),
            waiting=queue.waiting,
        )

    def is_waiting_for_answer(self, owner: Owner) -> bool:
        """Whether no place becomes free without an answer, and one to this owner is awaited."""
        if self._places.wait() is not None:
            return False
        for ticket in owner.under_way:
            if ticket.attempt is not None and ticket.attempt.is_under_way():
                return True
        return False

    def idle(self) -> bool:
        """Whether nothing is remembered that a later session would have to respect."""
        now = self._loop.time()
        return (
            not self._last_in_line
            and all(until <= now for until in self._resting.values())
            and self.quota.idle()
        )

    def end_waiting(self, owner: Owner, error: ChatError) -> None:
        """Fail the calls of an owner that wait, now and from now on."""
        owner.closed_by = error
        for ticket in owner.waiting:
            if ticket.future is not None and not ticket.future.done():
                ticket.future.set_exception(copy.copy(error))

    def hold(self, ticket: Ticket, until: float) -> None:
        """Count the call as under way though no attempt is: its outcome is being settled.

        Its line surely does not go on before `until`.
        """
        self._hold_line(ticket, until)
        ticket.owner.under_way.add(ticket)
        ticket.owner.make_way()

    def _hold_line(self, ticket: Ticket, until: float) -> None:
        if ticket.line is not None:
            self._held[ticket.line] = until

    def let_go_of(self, ticket: Ticket) -> None:
        """End what `hold` began."""
        self._held.pop(ticket.line or 0, None)
        self._not_under_way(ticket)

    async def end_under_way(self, owner: Owner, grace: float) -> None:
        """Wait until the calls that are under way have ended; cancel them after the grace."""
        timer = self._loop.call_later(grace, self._cut_short, owner)
        try:
            # Once more each time: an attempt that ended may go over into being settled.
            while owner.under_way:
                owner.nothing_under_way = self._loop.create_future()
                await owner.nothing_under_way
        finally:
            timer.cancel()
            owner.nothing_under_way = None

    def _cut_short(self, owner: Owner) -> None:
        for ticket in owner.under_way:
            if ticket.attempt is not None:
                ticket.cut_short = True
                ticket.attempt.task.cancel()


def _before_in_line(ticket: Ticket) -> int:
    """How many of its line take a place before it, and are not ready to."""
    count, before = 0, ticket.before
    while before is not None:
        count += before.queue is ticket.queue and not (
            before.ready or before.granted or before.attempt is not None
        )
        before = before.before
    return count


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _quota_exceeded(operation: str, max_wait: float, least: float) -> QuotaExceededError:
    why = ""
    if least <= SHORTEST_WAIT:
        least, why = SOON, " (its chat or the parallel places were busy)"
    return QuotaExceededError(
        f"{operation} could not leave within max_wait={max_wait:g} s{why}; nothing was sent. Try"
        f" again in {least:.1f} s, or allow a longer wait",
        retry_after=least,
    )
