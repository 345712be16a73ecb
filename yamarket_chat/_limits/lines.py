"""The lines: the calls of one chat go one after another, in the order in which they were made."""

from __future__ import annotations

import asyncio
import heapq

from .._http.attempt import NEVER
from .tickets import Ticket


class Lines:
    """The calls of each chat in order, and the chats that are closed for a while.

    A line is closed while its first call pauses or is settled, and after a message of unknown
    outcome: the next message must not arrive before it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._last: dict[int, Ticket] = {}
        self._closed_until: dict[int, float] = {}
        self._reopening: list[tuple[float, Ticket]] = []  # a heap: the first calls of closed lines

    def join(self, ticket: Ticket, line: int) -> None:
        """Put a call at the end of its line."""
        before = self._last.get(line)
        self._last[line] = ticket
        if before is not None:
            ticket.before, before.after = before, ticket

    def leave(self, ticket: Ticket, line: int) -> Ticket | None:
        """Take a call out of its line. Returns the call that is first now and waits, if any."""
        before, after = ticket.before, ticket.after
        if before is None and after is None:
            del self._last[line]
            return None
        if after is not None:
            after.before = before
        elif before is not None:
            self._last[line] = before
        if before is not None:
            before.after = after
        ticket.before = ticket.after = None  # or a kept traceback would keep all of them
        return after if before is None and after is not None and after.future is not None else None

    def close(self, line: int, until: float) -> None:
        """Let no call of a line go before a moment."""
        now = self._loop.time()
        for other in [other for other, end in self._closed_until.items() if end <= now]:
            del self._closed_until[other]
        self._closed_until[line] = max(until, self._closed_until.get(line, NEVER))

    def reopen(self, line: int) -> None:
        """Undo `close`."""
        self._closed_until.pop(line, None)

    def is_closed(self, line: int | None) -> bool:
        """Whether a line may be closed: `closed_for` says for how long."""
        return line in self._closed_until

    def closed_for(self, line: int | None) -> float:
        """Return for how many seconds a line is closed."""
        if line is None or not self._closed_until:
            return 0.0
        return max(self._closed_until.get(line, NEVER) - self._loop.time(), 0.0)

    def await_reopening(self, ticket: Ticket) -> bool:
        """If the line of this first call is closed, keep the call until then. Returns whether."""
        line = ticket.line
        if line is None or line not in self._closed_until:
            return False
        until = self._closed_until[line]
        if until <= self._loop.time():
            del self._closed_until[line]
            return False
        heapq.heappush(self._reopening, (until, ticket))
        return True

    def reopened(self) -> list[Ticket]:
        """Return the first calls of the lines that have reopened, each once."""
        tickets = []
        while self._reopening and self._reopening[0][0] <= self._loop.time():
            ticket = heapq.heappop(self._reopening)[1]
            if ticket.future is not None and not ticket.ready and ticket.before is None:
                self._closed_until.pop(ticket.line or 0, None)
                tickets.append(ticket)
        return tickets

    def next_reopening(self) -> float | None:
        """Return the moment at which the next line reopens for a call that waits."""
        return self._reopening[0][0] if self._reopening else None

    def idle(self) -> bool:
        """Whether no line has a call, and none is closed."""
        now = self._loop.time()
        return not self._last and all(until <= now for until in self._closed_until.values())
