"""What is special about sending: order within a chat, and an outcome that is unknown."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from . import operations
from .arguments import Unknown, check_id, check_text
from .attempt import Attempt
from .batch import Batch
from .business import Business, Delivery
from .calls import Calls, Effort, Retry, closed_error, cut_short
from .clock import clock_of
from .errors import ChatError, DeliveryUnknownError, InvalidArgumentError
from .exchange import Answer, Body, Leaving
from .files import Upload
from .models import Content, Message, Outcome, OutgoingMessage, Pending, Receipt, Sender, Stored
from .operations import Operation
from .reading import history
from .scheduler import Owner, Ticket
from .settling import KNOWN_FOR, Found, content_of_row, content_of_text, find, last_of_shop
from .source import Messages

logger = logging.getLogger("yamarket_chat")

APART = 3.0
"""Seconds for which a chat rests after the last moment at which an attempt of unknown outcome can
have been carried out: rows and Dates tell whole seconds, and what follows must be told apart."""


_encode = msgspec.json.Encoder().encode


class _Message(Effort, kw_only=True, eq=False):
    """A message on its way, as a `Request`, and what it has cost."""

    operation: Operation
    path: str
    chat_id: int
    carries: str | Upload
    # While it is unknown whether it arrived
    doubt: str | None = None  # why it may have
    attempt: Attempt | None = None  # in which it may have
    before: Sequence[Delivery] = ()  # what was sent to its chat not long before
    anchor: int | None = None  # a message of the chat from before the first attempt

    def query(self) -> str:
        """The query, escaped."""
        return f"chatId={self.chat_id}"

    def body(self) -> Leaving:
        """A body for one attempt."""
        carries = self.carries
        if isinstance(carries, str):
            return Body(_encode({"message": carries}))
        return carries.body()

    def content(self) -> str | Content:
        """What it says, as it is remembered."""
        carries = self.carries
        if isinstance(carries, str):
            return carries
        return Content(file_name=carries.name, file_size=carries.size)


class Sending:
    """Sends the messages of one session."""

    def __init__(self, calls: Calls, business: Business, business_id: int, retry: Retry) -> None:
        self._calls = calls
        self._business = business
        self._business_id = business_id
        self._scheduler = business.scheduler
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._message_path = operations.SEND_MESSAGE.path.format(business_id=business_id)
        self._file_path = operations.SEND_FILE.path.format(business_id=business_id)
        # Of the look-ups: a closing session ends calls that wait, but not what is being settled.
        self._settling = Owner()
        self._batches: set[Batch] = set()

    def send_text(
        self,
        chat_id: int,
        text: str,
        max_wait: float | None = None,
        unknown: Unknown | None = None,
        *,
        owner: Owner | None = None,
        reserve: int | None = None,
    ) -> Coroutine[Any, Any, Receipt]:
        """Send a text; see `ChatSession.send_message`."""
        check_id("chat_id", chat_id)
        message = _Message(
            self._retry,
            operation=operations.SEND_MESSAGE,
            path=self._message_path,
            chat_id=chat_id,
            carries=check_text(text),
        )
        return self._send(message, owner or self._calls.owner, max_wait, unknown, reserve)

    async def send_file(
        self, chat_id: int, upload: Upload, max_wait: float | None, unknown: Unknown | None
    ) -> Receipt:
        """Send a file; see `ChatSession.send_file`."""
        check_id("chat_id", chat_id)
        message = _Message(
            self._retry,
            operation=operations.SEND_FILE,
            path=self._file_path,
            chat_id=chat_id,
            carries=upload,
        )
        return await self._send(message, self._calls.owner, max_wait, unknown)

    async def _send(
        self,
        message: _Message,
        owner: Owner,
        max_wait: float | None,
        unknown: Unknown | None,
        reserve: int | None = None,
    ) -> Receipt:
        chat_id = message.chat_id
        scheduler = self._scheduler
        ticket = scheduler.hand_over(message.operation.name, owner, line=chat_id, reserve=reserve)
        try:
            while True:
                answer = await self._calls.call(ticket, message, message, max_wait)
                if isinstance(answer, Answer):
                    attempt = ticket.attempt
                    assert attempt is not None  # noqa: S101 - it was answered
                    self._business.remember(
                        Delivery(chat_id, message.content(), attempt.began, attempt.ended),
                        attempt.ended,
                    )
                    return Receipt(chat_id, message.requests, "answer", answer.trace_id)
                seen = answer.seen
                self._doubt(message, ticket, str(self._calls.error(message.operation, seen)))
                if (unknown or self._retry.unknown) == "raise":
                    raise self._unknown(message)
                if await self._arrived(message, ticket):
                    return Receipt(chat_id, message.requests, "history", None)
                error = self._calls.error(message.operation, seen, arrived=False)
                pause = message.next_pause()
                if pause is None:
                    raise error
                self._calls.log_failure(error, message, pause)
                await scheduler.pause(ticket, pause)
        except asyncio.CancelledError:
            if message.doubt is None and ticket.in_doubt:
                self._doubt(message, ticket, "the call was ended while its request was under way")
            if not cut_short(ticket):
                raise
            ended = closed_error() if message.doubt is None else self._unknown(message)
        finally:
            if message.doubt is None:
                scheduler.leave(ticket)
            else:
                self._leave_in_doubt(message, ticket)
        raise ended  # here, so that it does not carry aiohttp's frames, and the key

    def _doubt(self, message: _Message, ticket: Ticket, why: str) -> None:
        message.doubt, message.attempt = why, ticket.attempt
        # Now: settling may take longer than it is remembered.
        message.before = self._business.delivered_to(message.chat_id)

    def _delivery(self, message: _Message, *, surely: bool) -> Delivery:
        """What may have been delivered, until the last moment at which it can have been stored."""
        attempt = message.attempt
        assert attempt is not None  # noqa: S101 - there is doubt about one
        until = attempt.ended + self._retry.settle_after
        return Delivery(message.chat_id, message.content(), attempt.began, until, surely)

    def _leave_in_doubt(self, message: _Message, ticket: Ticket) -> None:
        """Let the chat rest until the message cannot be stored behind the next one any more."""
        delivery, now = self._delivery(message, surely=False), self._loop.time()
        self._business.remember(delivery, now)
        self._scheduler.leave(ticket, max(delivery.ended + APART - now, 0.0))

    async def _arrived(self, message: _Message, ticket: Ticket) -> bool:
        """Settle an unknown outcome from the chat's history.

        Raises DeliveryUnknownError where the history cannot tell.
        """
        until = self._delivery(message, surely=False).ended
        logger.info(
            "chat %d: %s; its history will tell in %.0f s whether the message arrived",
            message.chat_id,
            message.doubt,
            self._retry.settle_after,
        )
        self._scheduler.hold(ticket, until)
        try:
            await asyncio.sleep(until - self._loop.time())
            message.spent += self._retry.settle_after
            found, why = await self._look_up(message)
        finally:
            self._scheduler.let_go_of(ticket)
        if found is Found.UNCLEAR:
            message.doubt = f"{message.doubt}; {why}"
            raise self._unknown(message)
        message.doubt = None
        ticket.in_doubt = False
        return found is Found.YES

    async def _look_up(self, message: _Message) -> tuple[Found, str]:
        reading = Effort(self._retry)
        reading.spent = message.spent

        def oldest_needed() -> float:
            wanted = self._stored(message)[0]
            return -math.inf if wanted is None else wanted.earliest - KNOWN_FOR

        try:
            rows = await self._read(
                message.chat_id, oldest_needed, self._settling, reading, message.anchor
            )
        except ChatError as error:
            return Found.UNCLEAR, f"its chat's history cannot be read: {error}"
        finally:
            message.spent = reading.spent
        wanted, before = self._stored(message)
        if wanted is None:
            return Found.UNCLEAR, "the Market's answers have no Date to find it by"
        older = (row.message_id for row in rows if row.created_at.timestamp() < oldest_needed())
        message.anchor = max(older, default=message.anchor)
        found = find(rows, wanted, before)
        if found is Found.YES:
            self._remember_row(message, last_of_shop(rows, wanted.latest))
        return found, Found.UNCLEAR.value

    def _remember_row(self, message: _Message, moment: float) -> None:
        # When it was stored is known to the second now: what follows is told apart by that.
        clock = clock_of(self._business.readings)
        assert clock is not None  # noqa: S101 - or it could not have been looked up
        began, ended = moment - clock.most, moment + 1 - clock.least
        self._business.remember(
            Delivery(message.chat_id, message.content(), began, ended), self._loop.time()
        )

    async def _read(
        self,
        chat_id: int,
        oldest_needed: Callable[[], float],
        owner: Owner,
        effort: Effort | None = None,
        message_id_from: int | None = None,
        max_wait: float | None = None,
    ) -> list[Message]:
        """The rows of a chat, back to a moment of the Market's where their order allows it."""
        rows: dict[int, Message] = {}
        pages = history(
            self._calls,
            self._business_id,
            chat_id,
            message_id_from=message_id_from,
            max_wait=max_wait,
            owner=owner,
            effort=effort,
        ).pages()
        async for page in pages:
            rows.update((row.message_id, row) for row in page)
            descending = (
                len(page.items) > 1 and page.items[0].created_at > page.items[-1].created_at
            )
            if descending and page.items[-1].created_at.timestamp() < oldest_needed():
                break
        return list(rows.values())

    def _stored(self, message: _Message) -> tuple[Stored | None, tuple[Stored, ...]]:
        """The message as it would be stored, and what was sent to its chat shortly before."""
        clock = clock_of(self._business.readings)
        if clock is None:
            return None, ()
        # Both clocks have run on since the attempt began, but one may have been set, or the machine
        # have slept: looked for is whatever either of then and now would make of it.
        assert message.attempt is not None  # noqa: S101 - there is doubt about one
        clock = clock.or_else(clock_of(message.attempt.readings) or clock)
        wanted = self._delivery(message, surely=True).on(clock)
        return wanted, tuple(delivery.on(clock) for delivery in message.before)

    def _unknown(self, message: _Message) -> DeliveryUnknownError:
        wanted, before = self._stored(message)
        content = message.content()
        if isinstance(content, str):
            content = Content(text=content)
        pending = Pending(
            business_id=self._business_id,
            chat_id=message.chat_id,
            text=content.text,
            file_name=content.file_name,
            file_size=content.file_size,
            since=None if wanted is None else _moment(wanted.earliest),
            until=None if wanted is None else _moment(wanted.latest),
            before=before,
            attempts=message.requests,
            seen=message.doubt or "",
        )
        return _unknown_error(pending, pending.seen)

    async def settle(self, pending: Pending, max_wait: float | None) -> Receipt | None:
        """Find a message of unknown outcome; see `ChatSession.settle`."""
        if pending.business_id != self._business_id:
            raise InvalidArgumentError(
                f"the message was sent for business {pending.business_id}, and this session is"
                f" that of {self._business_id}"
            )
        if pending.text is not None:
            content = content_of_text(pending.text)
        else:
            content = Content(file_name=pending.file_name, file_size=pending.file_size)
        since = -math.inf if pending.since is None else pending.since.timestamp()
        until = math.inf if pending.until is None else pending.until.timestamp()
        try:
            asked = self._loop.time()
            rows = await self._read(
                pending.chat_id, lambda: since - KNOWN_FOR, self._calls.owner, max_wait=max_wait
            )
            clock = clock_of(self._business.readings)
            early = (
                self._retry.settle_after
                if clock is None or until == math.inf
                else (until - (asked + clock.least))
            )
            if early > 0:
                # It may yet be carried out: ask once more when the Market must have ended it.
                ticket = self._scheduler.hand_over(operations.HISTORY.name, self._calls.owner)
                await self._scheduler.pause(ticket, early)
                rows = await self._read(
                    pending.chat_id, lambda: since - KNOWN_FOR, self._calls.owner, max_wait=max_wait
                )
        except ChatError as error:
            why = f"its chat's history cannot be read: {error}"
            raise _unknown_error(pending, why) from None
        found = _find_pending(rows, Stored(content, since, until), pending)
        if found is Found.UNCLEAR:
            raise _unknown_error(pending, Found.UNCLEAR.value)
        if found is Found.NO:
            return None
        return Receipt(pending.chat_id, pending.attempts, "history", None)

    def send_many(self, messages: Messages, reserve: int) -> AsyncGenerator[Outcome, None]:
        """Send many texts; see `ChatSession.send_many`."""
        limit = self._scheduler.quota.limits.send_message.requests
        if type(reserve) is not int or not 0 <= reserve < limit:
            raise InvalidArgumentError(
                f"reserve is a whole number from 0 to {limit - 1}: a part of the limit of {limit}"
            )
        if not isinstance(messages, (Iterable, AsyncIterable)):
            raise InvalidArgumentError("messages is an iterable of OutgoingMessage")
        return self._many(messages, reserve)

    async def _many(self, messages: Messages, reserve: int) -> AsyncGenerator[Outcome, None]:
        self._calls.check_loop()
        if self._calls.owner.closed_by is not None:
            raise copy.copy(self._calls.owner.closed_by)

        def send(owner: Owner, message: OutgoingMessage) -> Coroutine[Any, Any, Receipt]:
            return self.send_text(message.chat_id, message.text, owner=owner, reserve=reserve)

        batch = Batch(self._scheduler, send, messages)
        self._batches.add(batch)
        try:
            while True:
                if not batch.has_ended():  # a coroutine less, where many end at once
                    await batch.wait()
                outcome = batch.take()
                if outcome is None:
                    break
                yield outcome
        finally:
            # Where this is cancelled, too, closing the session sees to what is under way.
            await batch.stop()
            self._batches.discard(batch)

    async def close(self, grace: float) -> None:
        """End all calls: those that wait at once, those under way when the grace is over."""
        # At once: `gather` begins a pass later, and until then another batch could begin.
        self._scheduler.end_waiting(self._calls.owner, closed_error())
        for batch in self._batches:
            batch.end_waiting()
        await asyncio.gather(
            self._calls.close(grace),
            *(self._scheduler.end_under_way(batch, grace) for batch in self._batches),
        )
        self._scheduler.end_waiting(self._settling, closed_error())
        await self._scheduler.end_under_way(self._settling, 0.0)
        for batch in list(self._batches):
            await batch.stop()


def _find_pending(rows: list[Message], wanted: Stored, pending: Pending) -> Found:
    if pending.since is not None:
        return find(rows, wanted, pending.before)
    # Nobody knows since when: any row that says the same may be an older message.
    says_the_same = any(
        row.sender == Sender.PARTNER and content_of_row(row) == wanted.content for row in rows
    )
    return Found.UNCLEAR if says_the_same else Found.NO


def _unknown_error(pending: Pending, why: str) -> DeliveryUnknownError:
    what = f"the file {pending.file_name!r}" if pending.text is None else repr(pending.text[:60])
    when = f" of {pending.since:%Y-%m-%d %H:%M:%S} UTC" if pending.since else ""
    return DeliveryUnknownError(
        f"chat {pending.chat_id}: nothing tells whether {what}{when} arrived ({why}). Do not send"
        " it again before session.settle(error.pending), or a look at the chat, has told",
        pending=pending,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
