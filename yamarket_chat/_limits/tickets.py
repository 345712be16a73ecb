"""A call that waits or is in progress, and the groups of calls that are closed together."""

from __future__ import annotations

import asyncio
import copy

import msgspec

from .._http.attempt import Attempt
from .._http.uploads import Upload
from ..errors import ChatError


class CallGroup:
    """The calls of one session, or of one `send_many`."""

    def __init__(self) -> None:
        self.closed_by: ChatError | None = None  # what its calls raise from then on
        # Dicts keep an order that does not depend on addresses, so a run can be repeated.
        self.waiting: dict[Ticket, None] = {}
        self.under_way: dict[Attempt, None] = {}  # also those that are being settled
        self._nothing_under_way: asyncio.Future[None] | None = None

    def check_open(self) -> None:
        """Raise the error that the group was closed by, if it was."""
        if self.closed_by is not None:
            raise copy.copy(self.closed_by)

    def fail_waiting(self, error: ChatError) -> None:
        """Fail the calls that wait, now and from now on."""
        self.closed_by = error
        for ticket in self.waiting:
            if ticket.future is not None and not ticket.future.done():
                ticket.future.set_exception(copy.copy(error))

    def attempt_ended(self, attempt: Attempt) -> None:
        """Note that an attempt, or its settling, has ended."""
        self.under_way.pop(attempt, None)
        if self._nothing_under_way is not None and not self.under_way:
            wake(self._nothing_under_way)

    async def end_under_way(self, grace: float) -> None:
        """Wait until nothing is under way. After `grace` seconds cancel what still is."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(grace, self.cut_short)
        try:
            # In a loop, because an attempt that ended may be settled next.
            while self.under_way:
                self._nothing_under_way = loop.create_future()
                await self._nothing_under_way
        except asyncio.CancelledError:
            self.cut_short()  # before the connections close, which would be blamed
            raise
        finally:
            timer.cancel()
            self._nothing_under_way = None

    def cut_short(self) -> None:
        """Cancel what is under way: its grace is over."""
        for attempt in self.under_way:
            attempt.cancel("closing")

    def make_way(self) -> None:
        """Note that one of its calls was sent, or waits for something other than a slot."""

    def slot_freed(self) -> None:
        """Note that another call may have freed a slot."""


class Ticket(msgspec.Struct, eq=False):
    """A call, from the moment that it was made until it is over."""

    number: int  # ascending: first come, first served
    operation: str
    group: CallGroup
    line: int | None  # the chat whose calls go one after another
    reserve: int | None  # requests of the window that are left to singles; None for a single
    carries: str | Upload | None = None  # what a message says: it is told from equal ones
    before: Ticket | None = None  # neighbours in the line
    after: Ticket | None = None
    future: asyncio.Future[None] | None = None  # while it waits
    wait: object = None  # while it waits for the limits: what the scheduler knows of its wait
    attempt: Attempt | None = None  # its last attempt, until its result is known
    ready: bool = False  # is in its queue
    granted: bool = False  # may be sent, and is not yet

    def __lt__(self, other: Ticket) -> bool:
        return self.number < other.number

    def goes_before(self, other: Ticket) -> bool:
        """Whether this call goes first if both could be sent."""
        return (self.reserve is not None, self.number) < (other.reserve is not None, other.number)


def wake(future: asyncio.Future[None]) -> None:
    """Resolve a future, unless it is resolved already."""
    if not future.done():
        future.set_result(None)
