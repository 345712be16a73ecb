"""The calls that could be sent as soon as the limits allow it."""

from __future__ import annotations

import asyncio
import heapq

from ..limits import Rate
from .long_waits import LongWaits
from .tickets import Ticket
from .window import Window


class Queue:
    """The ready calls of one operation, and its rate limit.

    There is a heap for each reserve: a call may go even if one with a larger reserve may not.
    """

    def __init__(self, operation: str, rate: Rate, loop: asyncio.AbstractEventLoop) -> None:
        self.window = Window(rate, loop)
        self.waiting = 0  # calls that wait, ready or not
        self.long_waits = LongWaits(operation, loop)
        self._heaps: dict[int | None, _Heap] = {}

    def push(self, ticket: Ticket) -> None:
        """Add a call that is ready."""
        ticket.ready = True
        if ticket.reserve not in self._heaps:
            self._heaps[ticket.reserve] = _Heap(ticket.reserve)
        self._heaps[ticket.reserve].push(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Remove a call."""
        ticket.ready = False
        heap = self._heaps[ticket.reserve]
        heap.removed()
        if not heap.ready:
            del self._heaps[ticket.reserve]

    def make_single(self, ticket: Ticket) -> None:
        """Make a call of a bulk a single call."""
        if not ticket.ready:
            ticket.reserve = None
            return
        self.remove(ticket)
        ticket.reserve = None
        self.push(ticket)

    def heads(self) -> list[Ticket]:
        """Return the first ready call of each reserve."""
        return [heap.head() for heap in self._heaps.values()]

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many ready calls go before a call that joins now."""
        return sum(
            heap.ready
            for reserve, heap in self._heaps.items()
            if reserve is None or (ticket.reserve is not None and reserve <= ticket.reserve)
        )


class _Heap:
    """Ready calls of one reserve, by number: at least one, or its queue drops it.

    A removed call stays in the list until it comes up or the list is cleared.
    """

    def __init__(self, reserve: int | None) -> None:
        self._reserve = reserve
        self._tickets: list[Ticket] = []
        self.ready = 0

    def push(self, ticket: Ticket) -> None:
        self.ready += 1
        heapq.heappush(self._tickets, ticket)

    def head(self) -> Ticket:
        tickets = self._tickets
        while not self._is_in(tickets[0]):
            heapq.heappop(tickets)
        return tickets[0]

    def removed(self) -> None:
        self.ready -= 1
        if len(self._tickets) > 2 * self.ready + 64:
            self._tickets = [ticket for ticket in self._tickets if self._is_in(ticket)]
            heapq.heapify(self._tickets)

    def _is_in(self, ticket: Ticket) -> bool:
        return ticket.ready and ticket.reserve == self._reserve
