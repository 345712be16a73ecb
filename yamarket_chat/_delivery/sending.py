"""Sends messages: one after another to each chat, and each exactly once.

Each message is one `Turn`, which holds all that is known about the message until it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
)
from functools import partial
from typing import Any, Self

import msgspec

from .._http import operations
from .._http.answers import DATE, Answer, NoAnswer
from .._http.bodies import JsonBody, RequestBody
from .._http.operations import Operation
from .._http.uploads import Upload
from .._limits.tickets import CallGroup, Ticket
from ..arguments import OnUnknown, check_id, check_text
from ..errors import DeliveryUnknownError, InvalidArgumentError
from ..listing import Page
from ..models import Message
from ..pending import Content, Pending
from ..receipts import Outcome, OutgoingMessage, Receipt
from ..retry import Budget, Retry
from .batch import Batch
from .calls import Calls, Doubt
from .deliveries import Delivery
from .failures import Failures, closed_error
from .reading import Ask, listing
from .settler import Settler, Suspect
from .settling import Found
from .shared import Shared
from .source import Messages

logger = logging.getLogger("yamarket_chat")

encode = msgspec.json.Encoder().encode

_LOST = NoAnswer("the call failed while its request was under way", sent=True)


class Turn(Budget, kw_only=True, eq=False):
    """A message and its turn in the chat. It is also the request and the budget of its calls.

    Leaving the context ends the turn: the next message of the chat may be sent. If this message may
    still arrive, the next one waits for a rest first.
    """

    sending: Sending
    operation: Operation
    path: str
    chat_id: int
    carries: str | Upload
    ticket: Ticket
    suspect: Suspect | None = None  # while it is unknown whether the message arrived

    def query(self) -> str:
        """Return the query, escaped."""
        return f"chatId={self.chat_id}"

    def body(self) -> RequestBody:
        """Return a body for one attempt."""
        carries = self.carries
        if isinstance(carries, str):
            return JsonBody(encode({"message": carries}))
        return carries.body()

    def content(self) -> str | Content:
        """Return the content of the message, in the form that is remembered."""
        return _content(self.carries)

    def __enter__(self) -> Self:
        self.sending.scheduler.join(self.ticket)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if kind is not None:
            self.sending.scheduler.drop(self.ticket, sent=True)  # unless the call itself did
        suspect, attempt = self.suspect, self.ticket.attempt
        if suspect is None:
            if attempt is not None:
                # It failed between its body and its verdict, so its outcome is unknown.
                suspect = self.sending.suspect(self, Doubt(_LOST, attempt))
                self.sending.leave_suspect(self.ticket, suspect, settled_later=False)
            else:
                self.sending.scheduler.leave(self.ticket)
            return False
        cancelled = kind is asyncio.CancelledError
        # A closing session cancels settling: then `send` raises the error.
        closing = cancelled and suspect.doubt.attempt.take_back_cancels() == "closing"
        self.sending.leave_suspect(self.ticket, suspect, settled_later=closing or not cancelled)
        return closing


class Sending:
    """Sends the messages of one session."""

    def __init__(
        self, calls: Calls, shared: Shared, failures: Failures, business_id: int, retry: Retry
    ) -> None:
        self._calls = calls
        self._failures = failures
        self._business_id = business_id
        self._deliveries = shared.deliveries
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._settler = Settler(shared.clock, shared.skew, shared.deliveries, retry.settle_after)
        self._message_path = operations.SEND_MESSAGE.path.format(business_id=business_id)
        self._file_path = operations.SEND_FILE.path.format(business_id=business_id)
        self._history_path = operations.HISTORY.path.format(business_id=business_id)
        # History requests have their own group: closing the session must not fail waiting ones.
        self._look_ups = CallGroup()
        self._batches: dict[Batch, None] = {}
        self.scheduler = shared.scheduler

    def send(
        self,
        chat_id: int,
        carries: str | Upload,
        max_wait: float | None = None,
        on_unknown: OnUnknown | None = None,
        *,
        group: CallGroup | None = None,
        reserve: int | None = None,
        kind: Callable[..., Turn] = Turn,
    ) -> Coroutine[Any, Any, Receipt]:
        """Send a text or a file; see `ChatSession.send_message`."""
        is_text = isinstance(carries, str)
        operation = operations.SEND_MESSAGE if is_text else operations.SEND_FILE
        group = group or self._calls.group
        turn = kind(
            self._retry,
            sending=self,
            operation=operation,
            path=self._message_path if is_text else self._file_path,
            chat_id=chat_id,
            carries=carries,
            ticket=self.scheduler.ticket(
                operation.name, group, line=chat_id, reserve=reserve, carries=carries
            ),
        )
        return self._send(turn, max_wait, on_unknown)

    # A hundred thousand of these may wait, so each has few variables.
    async def _send(
        self, turn: Turn, max_wait: float | None, on_unknown: OnUnknown | None
    ) -> Receipt:
        with turn:
            if self._deliveries.apart:
                self._keep_apart(turn)
            while True:
                answer = await self._calls.call(turn.ticket, turn, turn, max_wait)
                if isinstance(answer, Answer):
                    self._deliveries.remember(
                        Delivery(
                            turn.chat_id,
                            turn.content(),
                            answer.began,
                            answer.ended,
                            date=answer.headers.get(DATE),
                        )
                    )
                    turn.ticket.attempt = None
                    return Receipt(turn.chat_id, turn.requests, "answer", answer.trace_id)
                turn.suspect = self.suspect(turn, answer)
                turn.ticket.attempt = None
                self._raise_unless_settling(turn, answer, on_unknown or self._retry.on_unknown)
                if await self._arrived(turn, turn.suspect):
                    return Receipt(turn.chat_id, turn.requests, "history", None)
                error = self._failures.error(turn.operation.name, answer.seen, arrived=False)
                await self._calls.pause(turn.ticket, turn, error)
                max_wait = None  # it bounds the wait before the first request
        raise self._unknown(turn)  # the session was closed, and its grace was over

    def _keep_apart(self, turn: Turn) -> None:
        """Let the chat rest if the message is equal to one that may be settled later."""
        until = self._deliveries.apart_until(turn.chat_id, turn.content())
        if until > self._loop.time():
            self.scheduler.rest(turn.chat_id, until)

    def _raise_unless_settling(self, turn: Turn, doubt: Doubt, on_unknown: OnUnknown) -> None:
        """Raise if a message of unknown outcome is not to be settled now."""
        seen = doubt.seen
        if isinstance(seen, NoAnswer) and seen.cancelled is not None:
            raise seen.cancelled
        if on_unknown == "raise" or (isinstance(seen, NoAnswer) and seen.cut_short):
            raise self._unknown(turn)

    async def _arrived(self, turn: Turn, suspect: Suspect) -> bool:
        """Settle an unknown outcome. Raises DeliveryUnknownError if the history is unclear."""
        settle_after = self._retry.settle_after
        logger.info(
            "chat %d: %s; its history will be read in %.0f s to see whether the message arrived",
            turn.chat_id,
            suspect.why,
            settle_after,
        )
        attempt = suspect.doubt.attempt
        delivery = suspect.delivery(surely=False)
        self._deliveries.remember(delivery)  # others may be settled meanwhile
        self.scheduler.hold(turn.ticket, attempt, suspect.until)  # undone by `leave_suspect`
        await asyncio.sleep(suspect.until - self._loop.time())
        turn.spent += settle_after
        reading = Budget(self._retry, spent=turn.spent)
        ask = partial(self._calls.ask, group=self._look_ups, budget=reading)
        read = partial(self._history, turn.chat_id, ask)
        found, unclear = await self._settler.look_up(suspect, read)
        turn.spent = reading.spent
        self._deliveries.drop(delivery)
        self.scheduler.release(turn.ticket, attempt, suspect.until)
        if found is Found.UNCLEAR:
            turn.suspect = msgspec.structs.replace(suspect, why=f"{suspect.why}; {unclear}")
            raise self._unknown(turn)
        turn.suspect = None
        return found is Found.YES

    def suspect(self, turn: Turn, doubt: Doubt) -> Suspect:
        """Return a message as one of unknown outcome."""
        why = self._failures.reason(turn.operation.name, doubt.seen)
        return self._settler.suspect(turn.chat_id, turn.content(), doubt, why)

    def leave_suspect(self, ticket: Ticket, suspect: Suspect, *, settled_later: bool) -> None:
        """End the turn of a message that may still arrive. Its chat rests until it cannot.

        If the caller may settle it later, no equal message follows until the two can be told apart.
        """
        now = self._loop.time()
        delivery = suspect.delivery(surely=False)
        self._deliveries.drop(delivery)  # remembered already if its settling was cancelled
        self._deliveries.remember(delivery)
        self.scheduler.release(ticket, suspect.doubt.attempt, suspect.until)
        rest = suspect.rest(now)
        if settled_later:
            apart = self._settler.apart(suspect)
            self._deliveries.keep_apart(delivery, apart)
            if ticket.after is not None:
                rest = max(apart - now, rest)  # what those that wait say is not known here
        self.scheduler.leave(ticket, rest)

    def _unknown(self, turn: Turn) -> DeliveryUnknownError:
        assert turn.suspect is not None  # noqa: S101 - without it, the outcome would be known
        return self._settler.unknown(turn.suspect, self._business_id, turn.requests)

    async def settle(self, pending: Pending, max_wait: float | None) -> Receipt | None:
        """Find a message of unknown outcome; see `ChatSession.settle`."""
        if pending.business_id != self._business_id:
            raise InvalidArgumentError(
                f"the message was sent for business {pending.business_id}, and this session is for"
                f" business {self._business_id}: settle it by a session of that business"
            )
        # A pause and not a sleep, because closing the session ends a pause.
        ticket = self.scheduler.ticket(operations.HISTORY.name, self._calls.group)
        wait = partial(self.scheduler.pause, ticket)
        ask = partial(self._calls.ask, max_wait=max_wait)
        read = partial(self._history, pending.chat_id, ask)
        under_way = partial(self.under_way, pending.chat_id)
        if not await self._settler.settle(pending, read, wait, under_way):
            return None
        return Receipt(pending.chat_id, pending.requests, "history", None)

    def under_way(self, chat_id: int) -> Delivery | None:
        """Return the message to a chat whose request is in progress, as one that may arrive."""
        ticket = self.scheduler.under_way(chat_id)
        if ticket is None or ticket.attempt is None or ticket.carries is None:
            return None
        content, now = _content(ticket.carries), self._loop.time()
        return Delivery(chat_id, content, ticket.attempt.began, now, surely=False)

    def _history(self, chat_id: int, ask: Ask) -> AsyncIterator[Page[Message]]:
        query = {"chatId": chat_id}
        return listing(ask, operations.HISTORY, self._history_path, query=query, body={}).pages()

    def send_many(self, messages: Messages, reserve: int) -> AsyncGenerator[Outcome, None]:
        """Send many texts; see `ChatSession.send_many`."""
        limit = self.scheduler.limits.send_message.requests
        if type(reserve) is not int or not 0 <= reserve < limit:
            raise InvalidArgumentError(
                f"reserve is a whole number from 0 to {limit - 1}: a part of the limit of {limit}"
            )
        if not isinstance(messages, (Iterable, AsyncIterable)):
            raise InvalidArgumentError("messages is an iterable of OutgoingMessage")
        return self._many(messages, reserve)

    async def _many(self, messages: Messages, reserve: int) -> AsyncGenerator[Outcome, None]:
        self._calls.check_loop()
        self._calls.group.check_open()

        def send(group: CallGroup, message: OutgoingMessage) -> Coroutine[Any, Any, Receipt]:
            chat_id, text = check_id("chat_id", message.chat_id), check_text(message.text)
            return self.send(chat_id, text, group=group, reserve=reserve)

        for ended in [batch for batch in self._batches if batch.has_stopped()]:
            del self._batches[ended]  # its generator was cancelled while the batch stopped
        batch = Batch(self.scheduler, send, messages)
        self._batches[batch] = None
        try:
            while True:
                if not batch.outcomes:  # a coroutine less if many end at once
                    await batch.wait()
                outcome = batch.take()
                if outcome is None:
                    break
                yield outcome
        finally:
            # If this is cancelled as well, closing the session waits for the requests in progress.
            await batch.stop()
            self._batches.pop(batch, None)

    async def close(self, grace: float) -> None:
        """End all calls: those that wait at once, those under way after `grace` seconds."""
        # At once: `gather` starts a loop pass later, and another batch could start until then.
        self._calls.group.fail_waiting(closed_error())
        for batch in self._batches:
            batch.end_waiting()
        await asyncio.gather(
            self._calls.close(grace), *(batch.end_under_way(grace) for batch in self._batches)
        )
        for batch in list(self._batches):
            await batch.stop()

    def cut_short(self) -> None:
        """End the grace of a closing that is under way."""
        self._calls.cut_short()
        for batch in self._batches:
            batch.cut_short()


def _content(carries: str | Upload) -> str | Content:
    if isinstance(carries, str):
        return carries
    return Content(file_name=carries.name, file_size=carries.size)
