"""Messages that ask before each request whether it may leave, for the outbox.

A `Checkpoint` of the outbox commits what it has to know of a request before the request is sent.
Another process finds out from it what became of the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from functools import cached_property, partial
from typing import Any, Protocol

from .._http import operations
from .._http.answers import NoAnswer
from .._http.attempt import Attempt
from .._http.bodies import RequestBody
from .._http.departures import MarkedForm, MarkedJson
from .._http.uploads import Upload
from .._limits.tickets import CallGroup
from ..connections import GIVEN_UP_AFTER
from ..errors import ChatError, DeliveryUnknownError
from ..pending import Pending, Stored
from ..receipts import Receipt
from .calls import Doubt, Query
from .deliveries import Delivery
from .engine import Engine
from .sending import Sending, Turn, encode
from .settler import APART, Suspect

KERNEL = GIVEN_UP_AFTER + 1.0
"""Seconds after which the kernel of a process that was paused delivers nothing more."""

_SEEN = NoAnswer("the process ended while its request was under way", sent=True)


class Checkpoint(Protocol):
    """What is asked before a request leaves. It returns None, or the reason against it."""

    async def mark(self, pending: Pending) -> str | None:
        """Commit that a request is about to be sent, which can be found by `pending`."""

    def look(self, *, again: bool) -> str | None:
        """Look whether it may be sent now, or its last byte `again`."""

    def written(self) -> None:
        """Note that its last byte was written."""


class Remembered(Delivery, frozen=True, kw_only=True):
    """A delivery of another process, with its times on the Market's clock."""

    stored: Stored

    def on(self, clock: object) -> Stored:
        """Return what the other process knew."""
        return self.stored


class _Gate:
    """One request of a marked message."""

    def __init__(self, turn: MarkedTurn, attempt: Attempt) -> None:
        self._turn = turn
        self._attempt = attempt
        self.look = turn.checkpoint.look
        self.written = turn.checkpoint.written

    async def mark(self) -> str | None:
        turn = self._turn
        return await turn.checkpoint.mark(turn.sending.pending(turn, self._attempt))


class MarkedTurn(Turn, kw_only=True, eq=False):
    """The turn of a message that asks before each of its requests leaves."""

    sending: Departing
    checkpoint: Checkpoint

    def body(self) -> RequestBody:
        """Return a body for one attempt."""
        attempt = self.ticket.attempt
        assert attempt is not None  # noqa: S101 - it was just admitted
        gate = _Gate(self, attempt)
        carries = self.carries
        if isinstance(carries, str):
            return MarkedJson(encode({"message": carries}), gate)
        return carries.body(lambda subtype, boundary: MarkedForm(subtype, boundary, gate))


class Departing(Sending):
    """Sends messages that ask before they leave."""

    timeout: float

    def depart(
        self,
        chat_id: int,
        carries: str | Upload,
        checkpoint: Checkpoint,
        group: CallGroup,
        reserve: int | None,
    ) -> Coroutine[Any, Any, Receipt]:
        """Send a text or a file, each request of which asks the checkpoint."""
        kind = partial(MarkedTurn, checkpoint=checkpoint)
        return self.send(chat_id, carries, None, "settle", group=group, reserve=reserve, kind=kind)

    async def find(self, pending: Pending) -> Receipt | None:
        """Find a message of unknown outcome; None if it did not arrive.

        Raises DeliveryUnknownError if the history does not tell, and the error of the reading if it
        cannot be read.
        """
        failures: list[ChatError] = []

        async def ask(request: Query, **options: Any) -> Any:
            try:
                return await self._calls.ask(request, **options)
            except ChatError as error:
                failures.append(error)
                raise

        ticket = self.scheduler.ticket(operations.HISTORY.name, self._calls.group)
        wait = partial(self.scheduler.pause, ticket)
        read = partial(self._history, pending.chat_id, ask)
        under_way = partial(self.under_way, pending.chat_id)
        try:
            found = await self._settler.settle(pending, read, wait, under_way)
        except DeliveryUnknownError:
            if failures:
                raise failures[-1] from None
            raise
        if not found:
            return None
        return Receipt(pending.chat_id, pending.requests, "history", None)

    def pending(self, turn: Turn, attempt: Attempt) -> Pending:
        """Return how to find a message whose request is about to be sent."""
        most = max(self.timeout, KERNEL) + self._retry.settle_after
        suspect = Suspect(
            turn.chat_id,
            turn.content(),
            Doubt(_SEEN, attempt),
            _SEEN.reason,
            self._loop.time() + most,
            self._deliveries.to_chat(turn.chat_id, attempt.began),
        )
        return self._settler.pending(suspect, self._business_id, turn.requests)


class DepartingEngine(Engine):
    """An engine whose messages ask before they leave, and that is told what others have sent."""

    def __init__(self, *args: Any, timeout: float, **options: Any) -> None:
        self.timeout = timeout
        super().__init__(*args, timeout=timeout, **options)

    @cached_property
    def sending(self) -> Departing:
        """The sender of messages."""
        self._calls_to_close = sending = Departing(
            self._calls, self._shared, self._failures, self._business(), self._retry
        )
        sending.timeout = self.timeout
        return sending

    def last_delivery(self, chat_id: int) -> Stored | None:
        """Return when the last message to a chat was stored, on the Market's clock."""
        last = self._shared.deliveries.last(chat_id)
        return None if last is None else last.on(self._shared.clock)

    def others(self, operation: str) -> int | None:
        """Return how many requests of others count at least; None if nobody knows just now."""
        return self._shared.scheduler.others(operation)

    def remember(self, chat_id: int, stored: Stored) -> None:
        """Note what another process has sent, or may have sent."""
        shared = self._shared
        clock = shared.clock.now()
        assert clock is not None  # noqa: S101 - it was read before
        now = asyncio.get_running_loop().time()
        delivery = Remembered(
            chat_id,
            stored.content,
            stored.earliest - clock.most,
            min(stored.latest - clock.least, now),
            stored.surely,
            stored.row_id,
            stored=stored,
        )
        shared.deliveries.remember(delivery)
        if not stored.surely:
            # No equal message follows until the two can be told apart, as in `Settler.apart`.
            until = stored.latest - clock.least + APART + shared.skew.offset(now).error()
            shared.deliveries.keep_apart(delivery, until)

    def rest(self, chat_id: int, until: float) -> None:
        """Let a chat rest after a moment until which a message to it may be stored."""
        self._shared.scheduler.rest(chat_id, until + APART)

    def count(self, operation: str, leave_at: Iterable[float], *, held: bool = False) -> None:
        """Count requests of other processes until these moments; `held` in parallel slots."""
        self._shared.scheduler.count(operation, leave_at, held=held)
