"""One call of an operation: wait for the limits, send, retry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from threading import get_ident
from typing import Any, Protocol

import msgspec

from .._http.answers import Answer, NoAnswer, decoder, list_decoder
from .._http.attempt import Attempt
from .._http.bodies import JsonBody, RequestBody
from .._http.exchange import Exchange
from .._http.headers import retry_after
from .._http.operations import OPERATIONS, Operation
from .._limits.headers import (
    refused_in_parallel,
    refused_over_time,
    requests_remain,
    seconds_until,
)
from .._limits.tickets import CallGroup, Ticket
from ..errors import ChatError, InvalidArgumentError
from ..retry import Budget, Retry
from .failures import Failures, closed_error
from .shared import Shared
from .verdict import Verdict, is_done, is_unknown_form_of_ok, judge

logger = logging.getLogger("yamarket_chat")

WARN_EVERY = 60.0
"""Seconds between two warnings that attempts fail."""

_decoders = {
    name: decoder(operation.answer)
    if operation.item is None
    else list_decoder(operation.answer, operation.item)
    for name, operation in OPERATIONS.items()
}
_decoders["request"] = decoder(Any)

_NO_HEADERS: dict[str, str] = {}


class Doubt(msgspec.Struct, frozen=True):
    """The result of a call if it is unknown whether its last attempt was carried out."""

    seen: Answer | NoAnswer
    attempt: Attempt


class Request(Protocol):
    """What a call sends. Query and body are created for each attempt, not while the call waits."""

    operation: Operation
    path: str  # escaped

    def query(self) -> str:
        """Return the query, escaped."""

    def body(self) -> RequestBody:
        """Return a body for one attempt."""


class Query(msgspec.Struct, gc=False):
    """A request that sends nothing to a chat."""

    operation: Operation
    path: str
    parameters: str = ""
    content: bytes = b""  # JSON

    def query(self) -> str:
        """Return the query, escaped."""
        return self.parameters

    def body(self) -> RequestBody:
        """Return a body for one attempt."""
        return JsonBody(self.content)


class Calls:
    """Carries out the calls of one session."""

    def __init__(
        self, exchange: Exchange, shared: Shared, failures: Failures, retry: Retry
    ) -> None:
        self._exchange = exchange
        self._shared = shared
        self._scheduler = shared.scheduler
        self._failures = failures
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._forks = Shared.forks
        self.group = CallGroup()

    def check_loop(self) -> None:
        """Raise InvalidArgumentError on another event loop or in a child process.

        Nothing was sent then.
        """
        if self._forks != Shared.forks:
            raise InvalidArgumentError(
                "this session belongs to the process from which this one was forked: make one in"
                " this process"
            )
        # A thread runs one loop at a time. Comparing threads is cheaper: getting the running loop
        # costs 1 % of a send, because CPython 3.11 asks the system for the process id.
        if get_ident() == self._thread and self._loop.is_running():
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            # The connections would still send a message, but nobody would get the answer.
            raise InvalidArgumentError(
                "this session belongs to another event loop: make one inside each asyncio.run(),"
                " or keep one loop running and pass calls to it by run_coroutine_threadsafe"
            )
        self._thread = get_ident()  # the loop runs in another thread now

    async def close(self, grace: float) -> None:
        """End all calls: those that wait at once, those in progress after `grace` seconds."""
        self.group.fail_waiting(closed_error())
        await self.group.end_under_way(grace)
        while self.group.waiting:  # noqa: ASYNC110 - closed above, each needs one pass
            await asyncio.sleep(0)

    def cut_short(self) -> None:
        """End the grace of a closing that is under way."""
        self.group.cut_short()

    async def ask(
        self,
        request: Query,
        *,
        max_wait: float | None = None,
        group: CallGroup | None = None,
        budget: Budget | None = None,
    ) -> Any:
        """Carry out a call that sends nothing to a chat, and return its decoded result.

        Raises the ChatError that the call ended with.
        """
        self.check_loop()
        operation = request.operation
        ticket = self._scheduler.ticket(operation.name, group or self.group)
        answer = await self.call(ticket, request, budget or Budget(self._retry), max_wait)
        if isinstance(answer, Doubt):
            if isinstance(answer.seen, NoAnswer) and answer.seen.cancelled is not None:
                raise answer.seen.cancelled
            raise self._failures.error(operation.name, answer.seen)
        return answer.decoded if operation.answer is Any else answer.decoded.result

    async def call(
        self, ticket: Ticket, request: Request, budget: Budget, max_wait: float | None
    ) -> Answer | Doubt:
        """Try until the call is done, or until its outcome is unknown and it may not be repeated.

        Raises the ChatError of an attempt that was refused for good, or the error of the last
        attempt if the budget is used up.
        """
        operation, clock = request.operation, self._shared.clock
        doubtful = False  # an earlier attempt may have been carried out
        body: RequestBody | None = None
        try:
            while True:
                attempt = self._scheduler.try_admit(ticket) or await self._scheduler.admit(
                    ticket, max_wait
                )
                max_wait = None  # it bounds the wait before the first request
                budget.requests += 1
                if attempt.began > clock.look_from:
                    # Or a sleep before the request could not be told from one after it.
                    clock.look_at_system()
                body = request.body()
                seen = await self._exchange.send(
                    attempt,
                    operation.method,
                    request.path,
                    request.query(),
                    body,
                    _decoders[operation.name],
                )
                if isinstance(seen, NoAnswer):
                    self._scheduler.unanswered(ticket, attempt, sent=seen.sent)
                    if seen.cut_short or seen.cancelled is not None:
                        if seen.sent:
                            return Doubt(seen, attempt)
                        raise seen.cancelled or closed_error()
                else:
                    # Otherwise somebody on the way answered, whose clock may be another one.
                    markets = seen.decoded is not None
                    if markets:
                        clock.read(seen.headers, seen.began, seen.ended)
                    else:
                        # The Market's own answer may follow. No other request must take it.
                        body.give_up()
                    if seen.status == 420:
                        pause = self._refused(ticket, attempt, operation, seen)
                        body = None  # or it would be kept while the call pauses
                        if pause is not None:
                            await self._scheduler.pause(ticket, pause)
                        continue
                    if markets or judge(seen) is not Verdict.UNKNOWN:
                        self._scheduler.answered(
                            ticket, attempt, seen.headers if operation.limited else _NO_HEADERS
                        )
                    else:
                        self._scheduler.unanswered(ticket, attempt, sent=True)
                    if is_done(seen):
                        return seen
                    if judge(seen) is Verdict.UNKNOWN:
                        body.give_up()  # as above
                body = None
                budget.attempts += 1
                budget.spent += attempt.ended - attempt.began
                if judge(seen) is Verdict.UNKNOWN:
                    if not operation.repeatable:
                        return Doubt(seen, attempt)
                    doubtful = True
                ticket.attempt = None
                error = self._failures.error(operation.name, seen)
                if judge(seen) is Verdict.REFUSED or is_unknown_form_of_ok(seen):
                    raise error
                at_least = retry_after(seen.headers) if isinstance(seen, Answer) else None
                await self.pause(ticket, budget, error, at_least or 0.0)
        except BaseException as error:
            # Whatever failed, and at whichever line: only this code gives back what the call holds.
            self._scheduler.drop(ticket, sent=body is not None and body.sent)
            if doubtful and isinstance(error, ChatError):
                error.sent = None
            raise

    async def pause(
        self, ticket: Ticket, budget: Budget, error: ChatError, at_least: float = 0.0
    ) -> None:
        """Wait before the next attempt. Raises `error` if the budget is used up."""
        if at_least:
            error.retry_after = at_least
        pause = budget.next_pause(at_least)
        if pause is None:
            raise error
        level = logging.INFO
        now = self._loop.time()
        # A warning only if the failures last, and at most one a minute for all calls of the
        # business, because there may be thousands.
        if budget.attempts > 1 and now >= self._shared.warn_from:
            self._shared.warn_from = now + WARN_EVERY
            level = logging.WARNING
        logger.log(level, "%s; retry in %.1f s", error, pause)
        await self._scheduler.pause(ticket, pause)

    def _refused(
        self, ticket: Ticket, attempt: Attempt, operation: Operation, answer: Answer
    ) -> float | None:
        """Note a 420. Returns the seconds for which the call itself pauses, or None."""
        in_parallel = refused_in_parallel(_text(answer))
        over_time = refused_over_time(_text(answer))
        # It has no text if the connection broke before that.
        cut_off = answer.fault is not None
        if in_parallel is not None or (cut_off and requests_remain(answer.headers)):
            pause = self._scheduler.refused_in_parallel(
                ticket, attempt, _limit_headers(operation, answer), in_parallel
            )
            logger.info(
                "%s: too many parallel requests, other programs send as well", operation.name
            )
            return pause
        if not operation.limited:
            # The 420 is about the limit of that method alone, which only the caller knows.
            self._scheduler.answered(ticket, attempt, _NO_HEADERS)
            error = self._failures.error(operation.name, answer)
            error.retry_after = seconds_until(answer.headers)
            raise error
        closed_for = self._scheduler.refused_over_time(ticket, attempt, answer.headers, over_time)
        logger.warning(
            "%s: the Market's rate limit is used up, by other programs as well; nothing more is"
            " sent for %.0f s",
            operation.name,
            closed_for,
        )
        return None


# An answer may echo the key, and tracebacks show variables. So no caller stores these.


def _limit_headers(operation: Operation, answer: Answer) -> Mapping[str, str]:
    """Return the headers that also limit other calls. Those of an unknown method do not."""
    return answer.headers if operation.limited else _NO_HEADERS


def _text(answer: Answer) -> str:
    return answer.body.decode("utf-8", "replace")
