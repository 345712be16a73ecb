"""What is special about sending: order within a chat, an unknown outcome, many messages."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterable, AsyncIterator, Iterable

import msgspec

from . import operations
from .calls import Calls, Effort, Retry, Verdict
from .errors import (
    ChatError,
    DeliveryUnknownError,
    InvalidArgumentError,
    SessionClosedError,
    UnauthorizedError,
)
from .exchange import Answer, NoAnswer
from .models import Outcome, OutgoingMessage, Pending, Receipt
from .quota import CUT_OFF
from .scheduler import Owner, Scheduler

READ_AHEAD = 256
"""How many messages `send_many` has in hand at most: read, and their outcome not yet taken."""

LONGEST_TEXT = 4096
"""Characters of a message at most, as documented."""

REST = CUT_OFF + 5.0
"""Seconds for which a chat rests after an attempt of unknown outcome, so that the message is not
stored behind the next one: the Market carries nothing out after the cut-off plus five seconds."""

_encode = msgspec.json.Encoder().encode


def check_id(name: str, value: object) -> int:
    """An id as the API documents them: int64, at least 1."""
    if type(value) is not int or not 1 <= value < 2**63:
        raise InvalidArgumentError(f"{name} is a whole number of at least 1, not {value!r:.80}")
    return value


def check_text(text: object) -> str:
    """A text that the Market takes."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"the text is a str, not {type(text).__name__}")
    if len(text) > LONGEST_TEXT:
        raise InvalidArgumentError(
            f"the text has {len(text)} characters; the Market takes up to {LONGEST_TEXT}:"
            " send it as several messages"
        )
    if not text or text.isspace():
        raise InvalidArgumentError("the text is empty: the Market takes at least one character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                "the text has half of a surrogate pair, which no encoding can send"
            ) from None
    return text


class Sending:
    """Sends the messages of one session."""

    def __init__(self, calls: Calls, scheduler: Scheduler, business_id: int, retry: Retry) -> None:
        self._calls = calls
        self._scheduler = scheduler
        self._business_id = business_id
        self._retry = retry
        self._path = operations.SEND_MESSAGE.path.format(business_id=business_id) + "?chatId="
        self.owner = Owner()
        self._batches: set[_Batch] = set()

    async def send_message(self, chat_id: int, text: str, max_wait: float | None) -> Receipt:
        """Send one text; see `ChatSession.send_message`."""
        return await self.send(self.owner, check_id("chat_id", chat_id), check_text(text), max_wait)

    async def send(
        self,
        owner: Owner,
        chat_id: int,
        text: str,
        max_wait: float | None = None,
        reserve: int | None = None,
    ) -> Receipt:
        operation = operations.SEND_MESSAGE
        ticket = self._scheduler.hand_over(operation.name, owner, line=chat_id, reserve=reserve)
        effort = Effort(self._retry)
        rest = 0.0
        try:
            verdict, seen = await self._calls.call(
                ticket,
                operation,
                f"{self._path}{chat_id}",
                _encode({"message": text}),
                effort,
                max_wait,
            )
            if verdict is Verdict.UNKNOWN:
                rest = REST
                raise self._unknown(chat_id, text, effort, seen)
        except asyncio.CancelledError:
            rest = REST if ticket.unanswered else 0.0
            if not (ticket.cut_short and _uncancel()):
                raise
            closed = NoAnswer("the session was closed", left=True)
            if ticket.unanswered:
                raise self._unknown(chat_id, text, effort, closed) from None
            raise closed_error() from None
        finally:
            self._scheduler.leave(ticket, rest)
        return Receipt(chat_id, effort.requests, "answer", seen.trace_id)

    def _unknown(
        self, chat_id: int, text: str, effort: Effort, seen: Answer | NoAnswer
    ) -> DeliveryUnknownError:
        reason = str(self._calls.error(operations.SEND_MESSAGE, seen))
        return DeliveryUnknownError(
            f"chat {chat_id}: nothing tells whether the message {text[:60]!r} arrived ({reason})."
            " Look it up in the chat's history before sending it again",
            pending=Pending(
                chat_id=chat_id, text=text, since=None, attempts=effort.requests, seen=reason
            ),
        )

    def send_many(
        self, messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage], reserve: int
    ) -> AsyncIterator[Outcome]:
        """Send many texts; see `ChatSession.send_many`."""
        limit = self._scheduler.quota.limits.send_message.requests
        if type(reserve) is not int or not 0 <= reserve < limit:
            raise InvalidArgumentError(
                f"reserve is a whole number from 0 to {limit - 1}: a part of the limit of {limit}"
            )
        if not isinstance(messages, (Iterable, AsyncIterable)):
            raise InvalidArgumentError("messages is an iterable of OutgoingMessage")
        return self._many(messages, reserve)

    async def _many(
        self, messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage], reserve: int
    ) -> AsyncIterator[Outcome]:
        if self.owner.closed_by is not None:
            raise copy.copy(self.owner.closed_by)
        batch = _Batch(self, self._scheduler, messages, reserve)
        self._batches.add(batch)
        try:
            while (outcome := await batch.next_outcome()) is not None:
                yield outcome
        finally:
            await batch.stop()
            self._batches.discard(batch)

    async def close(self, grace: float) -> None:
        """End all calls: those that wait at once, those under way when the grace is over."""
        owners = [self.owner, *(batch.owner for batch in self._batches)]
        for owner in owners:
            self._scheduler.end_waiting(owner, closed_error())
        await asyncio.gather(*(self._scheduler.end_under_way(owner, grace) for owner in owners))
        await asyncio.gather(*(batch.stop() for batch in self._batches))
        while self.owner.waiting:  # noqa: ASYNC110 - told above, each needs one pass
            await asyncio.sleep(0)


class _Batch:
    """The messages of one `send_many`: at most `READ_AHEAD` of them in hand."""

    def __init__(
        self,
        sending: Sending,
        scheduler: Scheduler,
        messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage],
        reserve: int,
    ) -> None:
        self.owner = Owner()
        self._sending = sending
        self._scheduler = scheduler
        self._reserve = reserve
        self._room = asyncio.Semaphore(READ_AHEAD)
        self._tasks: set[asyncio.Task[None]] = set()
        # An exception is the iterable's own; None is the end.
        self._ended: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(messages))

    async def next_outcome(self) -> Outcome | None:
        """What became of the message that ended next; None behind the last one."""
        ended = await self._ended.get()
        if isinstance(ended, Exception):
            raise ended
        self._room.release()
        return ended

    async def stop(self) -> None:
        """Send nothing more, and let end what is under way."""
        self._scheduler.end_waiting(self.owner, closed_error())
        self._reader.cancel()
        await asyncio.wait({self._reader, *self._tasks})

    async def _read(
        self, messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage]
    ) -> None:
        failure = None
        try:
            await self._room.acquire()
            if isinstance(messages, AsyncIterable):
                async for message in messages:
                    await self._start(message)
            else:
                for message in messages:
                    await self._start(message)
        except Exception as error:  # noqa: BLE001 - raised once the messages before it have ended
            failure = error
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._ended.put_nowait(failure)

    async def _start(self, message: OutgoingMessage) -> None:
        task = asyncio.create_task(self._send(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._room.acquire()

    async def _send(self, message: OutgoingMessage) -> None:
        try:
            self._ended.put_nowait(Outcome(message, receipt=await self._try(message)))
        except ChatError as error:
            if isinstance(error, UnauthorizedError):
                # The key is wrong for all of them.
                self._scheduler.end_waiting(self.owner, error)
            self._ended.put_nowait(Outcome(message, error=error))
        except Exception as error:  # noqa: BLE001 - a defect is told, or the message would be lost
            self._ended.put_nowait(error)

    async def _try(self, message: OutgoingMessage) -> Receipt:
        if not isinstance(message, OutgoingMessage):
            raise InvalidArgumentError(f"send_many takes OutgoingMessage, not {message!r:.80}")
        return await self._sending.send(
            self.owner,
            check_id("chat_id", message.chat_id),
            check_text(message.text),
            reserve=self._reserve,
        )


def closed_error() -> SessionClosedError:
    """The error of calls that wait, or come, when the session closes."""
    return SessionClosedError("the session was closed before this call could leave")


def _uncancel() -> bool:
    """Take our own cancellation of the running task back; whether it was the only one."""
    task = asyncio.current_task()
    return task is not None and task.uncancel() == 0
