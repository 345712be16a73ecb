"""The lines, one for each chat: its calls go one after another, in the order of the calls."""

from __future__ import annotations

import asyncio
import heapq

from .._http.attempt import NEVER
from .tickets import Ticket


class Lines:
    """The calls of each chat in order, and the chats that are blocked for a while.

    A line is blocked while its first call pauses or is settled, and after a message of unknown
    outcome: the next message must not arrive before it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._last: dict[int | None, Ticket] = {}
        self._blocked_until: dict[int | None, float] = {}
        self._purge_at = 64  # number of lines: twice as many as the last purge left
        self._waiting: list[tuple[float, Ticket]] = []  # a heap: first calls of blocked lines

    def join(self, ticket: Ticket) -> None:
        """Put a call at the end of its line."""
        before = self._last.get(ticket.line)
        self._last[ticket.line] = ticket
        if before is not None:
            ticket.before, before.after = before, ticket

    def leave(self, ticket: Ticket) -> Ticket | None:
        """Remove a call from its line. Returns the call that is now first, if it waits."""
        before, after = ticket.before, ticket.after
        if after is not None:
            after.before = before
        elif before is not None:
            self._last[ticket.line] = before
        else:
            del self._last[ticket.line]
        if before is not None:
            before.after = after
        ticket.before = ticket.after = None  # or a kept traceback would keep all of them
        return after if before is None and after is not None and after.future is not None else None

    def first(self, line: int) -> Ticket | None:
        """Return the first call of a line."""
        first = self._last.get(line)
        while first is not None and first.before is not None:
            first = first.before
        return first

    def block(self, line: int | None, until: float) -> None:
        """Let no call of a line go before a moment. A call that has no line is never blocked."""
        if line is None:
            return
        blocked = self._blocked_until
        blocked[line] = max(until, blocked.get(line, NEVER))
        if len(blocked) > self._purge_at:
            now = self._loop.time()
            for other in [other for other, end in blocked.items() if end <= now]:
                del blocked[other]
            self._purge_at = 2 * len(blocked) + 64

    def unblock(self, line: int | None, until: float) -> None:
        """Undo `block`, unless the line is blocked for longer."""
        if self._blocked_until.get(line, NEVER) <= until:
            self._blocked_until.pop(line, None)

    def is_blocked(self, line: int | None) -> bool:
        """Whether a line may be blocked: `blocked_for` says for how long."""
        return line in self._blocked_until

    def blocked_for(self, line: int | None) -> float:
        """Return for how many seconds a line is blocked."""
        return max(self._blocked_until.get(line, NEVER) - self._loop.time(), 0.0)

    def keep_blocked(self, ticket: Ticket) -> bool:
        """Return True if this first call now waits until its line is unblocked."""
        until = self._blocked_until.get(ticket.line)
        if until is None:
            return False
        if until <= self._loop.time():
            del self._blocked_until[ticket.line]
            return False
        heapq.heappush(self._waiting, (until, ticket))
        return True

    def unblocked(self) -> list[Ticket]:
        """Return the first calls of the lines whose blocking time is over, each once."""
        tickets = []
        while self._waiting and self._waiting[0][0] <= self._loop.time():
            ticket = heapq.heappop(self._waiting)[1]
            if (
                ticket.future is not None
                and not ticket.ready
                and ticket.before is None
                and not self.keep_blocked(ticket)
            ):
                tickets.append(ticket)
        return tickets

    def next_unblocked(self) -> float | None:
        """Return the moment at which the next line with a waiting call is unblocked."""
        return self._waiting[0][0] if self._waiting else None

    def idle(self) -> bool:
        """Whether no line has a call, and none is blocked."""
        now = self._loop.time()
        return not self._last and all(until <= now for until in self._blocked_until.values())
