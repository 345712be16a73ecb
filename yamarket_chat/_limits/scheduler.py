"""Which call goes next: a call waits here until everything that it needs is free.

Each call gets a `Ticket` with a number: first come, first served. A ticket may name a line, the
queue of one chat. Only the first call of a line can be sent. The next call follows when the first
has left the line. A call needs three things: room in its operation's window, a token of its pace,
and a parallel slot. It gets all of them together or none. So no call holds one of them while it
waits for another, and a full window of one operation never blocks another operation.

Single calls go before those of a bulk (`send_many`). If a single call stands behind calls of a bulk
in its line, these calls become singles as well: otherwise the single call would wait as long as
they do.

One scheduler serves all sessions of a business on one event loop. It has no task of its own. Every
change grants what can be granted next, and one timer does so when only time has to pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import msgspec

from .._http.attempt import NEVER, Attempt
from .._http.uploads import Upload
from ..errors import MaxWaitExceededError
from ..limits import Limits, QuotaStatus, Rate
from .lines import Lines
from .pace import SHORTEST_WAIT
from .queues import Queue
from .slots import Slots
from .tickets import CallGroup, Ticket, wake

UNLIMITED = Rate(1_000_000_000, per=1e-3)
"""For methods whose rate limit is not known here: they need only a parallel slot."""

SOON = 1.0
"""Seconds after which to retry a call if nothing tells how long it has to wait."""


class _Deadline(msgspec.Struct, frozen=True):
    """The moment at which a call with a `max_wait` stops waiting."""

    at: float
    max_wait: float
    timer: asyncio.TimerHandle


class Scheduler:
    """Decides when each call of a business is sent, on one event loop."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self._loop = loop
        self._slots = Slots(limits.parallel, loop)
        rates = {**limits.rates(), "request": UNLIMITED}
        self._queues = {name: Queue(name, rate, loop) for name, rate in rates.items()}
        self._lines = Lines(loop)
        self._numbers = 0
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self.bulks: dict[CallGroup, None] = {}  # that may have one more call when a slot is free

    # Waiting, and being sent

    def ticket(
        self,
        operation: str,
        group: CallGroup,
        *,
        line: int | None = None,
        reserve: int | None = None,
        carries: str | Upload | None = None,
    ) -> Ticket:
        """Return a new ticket. If it has a line, the caller must call `join` in the same step."""
        self._numbers += 1
        return Ticket(self._numbers, operation, group, line, reserve, carries)

    def join(self, ticket: Ticket) -> None:
        """Put a call at the end of its line, which it leaves by `leave`."""
        self._lines.join(ticket)
        before = ticket.before if ticket.reserve is None else None
        while before is not None and before.reserve is not None:
            self._queues[before.operation].make_single(before)
            if before.ready:
                self._dispatch()
            before = before.before

    async def admit(self, ticket: Ticket, max_wait: float | None = None) -> Attempt:
        """Wait until the call may be sent, and return its next attempt, which is sent now.

        Raises MaxWaitExceededError if that takes longer than `max_wait` seconds, and what its group
        is closed by. If this fails or is cancelled, `drop` gives back what the call holds.
        """
        ticket.group.check_open()
        # All in one coroutine: a hundred thousand calls may wait here, and each frame counts.
        self._begin_to_wait(ticket, max_wait)
        while True:
            await ticket.future  # type: ignore[misc]
            ticket.group.check_open()
            if not self._queues[ticket.operation].window.is_closed():
                break
            self._wait_again(ticket)
            wait = ticket.wait
            if isinstance(wait, _Deadline) and wait.at <= self._loop.time():
                self._waited_enough(ticket, wait.max_wait)
        self._end_to_wait(ticket)
        self._ungrant(ticket)
        return self._send(ticket, self._loop.time())

    def drop(self, ticket: Ticket, *, sent: bool) -> None:
        """Give back whatever the call still holds: it failed, or was cancelled, at any line.

        `sent` says whether its last request may have reached the Market.
        """
        waited = ticket.wait is not None or ticket.granted
        ticket.group.waiting.pop(ticket, None)
        if ticket.wait is not None:
            self._end_to_wait(ticket)
        if ticket.granted:
            self._ungrant(ticket)
        elif ticket.ready:
            self._queues[ticket.operation].remove(ticket)
        attempt = ticket.attempt
        if attempt is not None and attempt in ticket.group.under_way:
            attempt.take_back_cancels()
            if attempt.is_under_way():
                attempt.ended = self._loop.time()
            self.unanswered(ticket, attempt, sent=sent)
        elif waited:
            self._dispatch()

    def try_admit(self, ticket: Ticket) -> Attempt | None:
        """Return the next attempt of the call if it may be sent now and no call waits."""
        now = self._loop.time()
        if (
            self._waiting
            or ticket.before is not None
            or ticket.group.closed_by is not None
            or self._lines.is_blocked(ticket.line)
            or not self._slots.free(now)
            or not self._queues[ticket.operation].window.admits(now, ticket.reserve or 0)
        ):
            return None
        return self._send(ticket, now)

    def _send(self, ticket: Ticket, now: float) -> Attempt:
        # Naming the running loop saves a system call.
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - a coroutine of asyncio's runs in one
        attempt = self._queues[ticket.operation].window.send(task, now)
        self._slots.take()
        ticket.attempt = attempt
        group = ticket.group
        group.under_way[attempt] = None
        group.make_way()
        return attempt

    def _begin_to_wait(self, ticket: Ticket, max_wait: float | None) -> None:
        """Set the deadline of the wait. Without one, enter the wait among the long waits."""
        queue = self._queues[ticket.operation]
        ahead, reserve = queue.ahead_of(ticket), ticket.reserve or 0
        if max_wait is None:
            ticket.wait = queue.long_waits.begin(queue.window.wait(ahead, reserve))
        else:
            least = self._least_wait(ticket, ahead + _before_in_line(ticket), reserve)
            if least > max_wait:
                raise _max_wait_exceeded(ticket, max_wait, least)
            timer = self._loop.call_later(max_wait, self._waited_enough, ticket, max_wait)
            ticket.wait = _Deadline(self._loop.time() + max_wait, max_wait, timer)
        ticket.future = self._loop.create_future()
        ticket.group.waiting[ticket] = None
        queue.waiting += 1
        self._waiting += 1
        if ticket.before is None:
            self._first_in_line(ticket)
        if not (ticket.ready or ticket.granted):
            ticket.group.make_way()

    def _wait_again(self, ticket: Ticket) -> None:
        """Wait again: a 420 closed the window in the loop pass in which the call was granted."""
        self._ungrant(ticket)
        ticket.future = self._loop.create_future()
        self._first_in_line(ticket)
        self._dispatch()  # the timer may be set to a moment that assumed one grant more

    def _end_to_wait(self, ticket: Ticket) -> None:
        wait = ticket.wait
        ticket.wait = ticket.future = None
        ticket.group.waiting.pop(ticket, None)
        self._waiting -= 1
        queue = self._queues[ticket.operation]
        queue.waiting -= 1
        if isinstance(wait, _Deadline):
            wait.timer.cancel()
        elif isinstance(wait, int):
            queue.long_waits.end(wait)

    def _least_wait(self, ticket: Ticket, ahead: int, reserve: int) -> float:
        return max(
            self._queues[ticket.operation].window.wait(ahead, reserve),
            self._slots.wait() or 0.0,
            self._lines.blocked_for(ticket.line),
        )

    def _waited_enough(self, ticket: Ticket, max_wait: float) -> None:
        future = ticket.future
        if future is not None and not future.done():
            # The least wait is enough to decide, so nobody counts the calls before this one.
            least = self._least_wait(ticket, 0, 0)
            future.set_exception(_max_wait_exceeded(ticket, max_wait, least))

    async def pause(self, ticket: Ticket, seconds: float) -> None:
        """Wait before the next attempt. Raises what its group is closed by."""
        group, line = ticket.group, ticket.line
        group.check_open()
        timer: asyncio.TimerHandle | None = None
        until = NEVER
        try:
            future = ticket.future = self._loop.create_future()
            timer = self._loop.call_later(seconds, wake, future)
            until = self._loop.time() + seconds
            self._lines.block(line, until)
            group.waiting[ticket] = None
            group.make_way()
            await future
        finally:
            group.waiting.pop(ticket, None)
            ticket.future = None
            self._lines.unblock(line, until)
            if timer is not None:
                timer.cancel()

    def rest(self, line: int, until: float) -> None:
        """Let no call of a line that still waits go before a moment."""
        self._lines.block(line, until)

    def leave(self, ticket: Ticket, rest: float = 0.0) -> None:
        """End a call that has joined its line. The next one may go in `rest` seconds."""
        if rest:
            self._lines.block(ticket.line, self._loop.time() + rest)
        following = self._lines.leave(ticket)
        if following is not None:
            self._first_in_line(following)

    # Granting

    def _first_in_line(self, ticket: Ticket) -> None:
        if self._lines.keep_blocked(ticket):
            self._set_timer()
            return
        queue = self._queues[ticket.operation]
        queue.push(ticket)
        if ticket in queue.heads():
            self._dispatch()

    def _grant(self, ticket: Ticket) -> None:
        ticket.granted = True
        self._queues[ticket.operation].window.grant()
        self._slots.take()

    def _ungrant(self, ticket: Ticket) -> None:
        """Undo `_grant`: the call is sent in this step, or not now."""
        ticket.granted = False
        self._queues[ticket.operation].window.give_back()
        self._slots.give_back()

    def _dispatch(self, ended: CallGroup | None = None) -> None:
        """Grant all calls that can go now. `ended` is the group whose attempt has just ended."""
        if self._waiting:
            self._grant_all()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for bulk in self.bulks:
            if bulk is not ended:  # that group looks for its next call by itself
                bulk.slot_freed()

    def _grant_all(self) -> None:
        for ticket in self._lines.unblocked():
            self._queues[ticket.operation].push(ticket)
        now = self._loop.time()
        while self._slots.free(now):
            best: Ticket | None = None
            for queue in self._queues.values():
                for head in queue.heads():
                    if (best is None or head.goes_before(best)) and queue.window.admits(
                        now, head.reserve or 0
                    ):
                        best = head
            if best is None:
                break
            self._queues[best.operation].remove(best)
            assert best.future is not None  # noqa: S101 - a ready call waits
            if best.future.done():
                continue  # it was ended in this loop pass, and its task will notice
            self._grant(best)
            best.future.set_result(None)
        self._set_timer()

    def _set_timer(self) -> None:
        """Set the timer to the next moment at which time alone lets a call go."""
        now = self._loop.time()
        # Time passes during this check: a call that was refused a moment ago may be due now.
        unblocked = self._lines.next_unblocked()
        waits = [] if unblocked is None else [max(unblocked - now, SHORTEST_WAIT)]
        slot_wait = self._slots.wait()
        if slot_wait is not None and slot_wait > 0:
            waits.append(slot_wait)
        elif slot_wait is not None:
            for queue in self._queues.values():
                for head in queue.heads():
                    reserve = head.reserve or 0
                    wait = queue.window.wait(0, reserve)
                    if wait <= 0 and queue.window.admits(self._loop.time(), reserve):
                        wait = SHORTEST_WAIT
                    waits.append(wait)
        # If the wait is 0 and the call was not granted, an answer ends the wait, not time.
        waits = [wait for wait in waits if wait > 0]
        if not waits:
            return
        at = now + min(waits)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        # Stored, because uvloop's timer cannot always say when it is due.
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    # What became of an attempt

    def answered(self, ticket: Ticket, attempt: Attempt, headers: Mapping[str, str]) -> None:
        """Note an answer that is no refusal over a limit."""
        ticket.group.attempt_ended(attempt)
        self._slots.answered()
        self._queues[ticket.operation].window.answered(attempt, headers)
        if self._waiting or self._timer is not None or self.bulks:
            self._dispatch(ticket.group)

    def refused_in_parallel(
        self, ticket: Ticket, attempt: Attempt, headers: Mapping[str, str], named: int | None
    ) -> float:
        """Note a 420 for parallel requests; `named` is the number that it names.

        Returns for how many seconds the call itself should pause.
        """
        ticket.group.attempt_ended(attempt)
        ticket.attempt = None
        pause = self._slots.refused(attempt, named)
        self._queues[ticket.operation].window.answered(attempt, headers)
        self._dispatch(ticket.group)
        return pause

    def refused_over_time(
        self, ticket: Ticket, attempt: Attempt, headers: Mapping[str, str], named: int | None
    ) -> float:
        """Note a 420 for the resource. Returns for how many seconds its window is closed."""
        ticket.group.attempt_ended(attempt)
        ticket.attempt = None
        self._slots.answered()
        closed_for = self._queues[ticket.operation].window.refused(attempt, headers, named)
        self._dispatch(ticket.group)
        return closed_for

    def unanswered(self, ticket: Ticket, attempt: Attempt, *, sent: bool) -> None:
        """Note that no answer of the Market's came: nothing, or what a proxy says.

        `sent` says whether the request may have reached the Market, which may still be at it then.
        """
        ticket.group.attempt_ended(attempt)
        window = self._queues[ticket.operation].window
        if sent:
            window.unanswered(attempt)
            self._slots.unanswered(attempt)
        else:
            ticket.attempt = None
            window.unsent()
            self._slots.give_back()
        self._dispatch(ticket.group)

    def hold(self, ticket: Ticket, attempt: Attempt, until: float) -> None:
        """Count an ended attempt as still in progress, because its outcome is being settled.

        Its line does not continue before `until`.
        """
        self._lines.block(ticket.line, until)
        ticket.group.under_way[attempt] = None
        ticket.group.make_way()

    def release(self, ticket: Ticket, attempt: Attempt, until: float) -> None:
        """Undo `hold`."""
        self._lines.unblock(ticket.line, until)
        ticket.group.attempt_ended(attempt)

    # What other processes have sent

    def count(self, operation: str, leave_at: Iterable[float], *, held: bool) -> None:
        """Count requests of others until these moments, `held` in parallel slots instead."""
        for at in leave_at:
            if held:
                self._slots.hold_until(at)
            else:
                self._queues[operation].window.count_until(at)

    # Looking at it

    def status(self, operation: str) -> QuotaStatus:
        """Return how much is left of an operation's limit."""
        queue = self._queues[operation]
        remaining = queue.window.remaining()
        return QuotaStatus(
            limit=queue.window.limit,
            remaining=remaining,
            resets_in=0.0 if remaining else queue.window.wait(),
            waiting=queue.waiting,
        )

    def others(self, operation: str) -> int | None:
        """Return how many requests of other programs count at least; None if nobody knows."""
        return self._queues[operation].window.others()

    def under_way(self, line: int) -> Ticket | None:
        """Return the call of a line whose attempt is in progress, if there is one."""
        first = self._lines.first(line)
        return None if first is None or first.attempt is None else first

    def is_waiting_for_answer(self, group: CallGroup) -> bool:
        """Whether only an answer frees a slot, and this group waits for an answer."""
        if self._slots.wait() is not None:
            return False
        return any(map(Attempt.is_under_way, group.under_way))

    def idle(self) -> bool:
        """Whether nothing is remembered that a later session has to respect."""
        return (
            self._lines.idle()
            and self._slots.idle()
            and all(queue.window.idle() for queue in self._queues.values())
        )


def _before_in_line(ticket: Ticket) -> int:
    """Return how many calls before it in its line are not ready yet."""
    count, before = 0, ticket.before
    while before is not None:
        waits = before.future is not None and not (before.ready or before.granted)
        count += waits and before.operation == ticket.operation
        before = before.before
    return count


def _max_wait_exceeded(ticket: Ticket, max_wait: float, least: float) -> MaxWaitExceededError:
    why = ""
    if least <= SHORTEST_WAIT:
        least, why = SOON, " (its chat or the parallel slots were busy)"
    return MaxWaitExceededError(
        f"{ticket.operation} could not be sent within max_wait={max_wait:g} s{why}. Nothing was"
        f" sent. Retry in {least:.1f} s, or allow a longer wait",
        retry_after=least,
    )
