"""One call of an operation: leave from the scheduler, the exchange, repetition.

What an attempt came to is decided in one place, `judge`, from what was seen and nothing else.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from threading import get_ident
from typing import Any, Literal, Protocol

import msgspec

from . import quota
from .arguments import Unknown, check_unknown
from .attempt import Attempt
from .business import Business
from .errors import (
    NOT_THE_API,
    ChatError,
    ConnectionFailedError,
    ErrorDetail,
    InvalidArgumentError,
    SessionClosedError,
    UnexpectedAnswerError,
    api_error,
)
from .exchange import Answer, Body, Exchange, Leaving, NoAnswer, decode_envelope, decoder
from .operations import OPERATIONS, Operation
from .quota import CUT_OFF
from .scheduler import Owner, Ticket

logger = logging.getLogger("yamarket_chat")

# Growing pauses between attempts, in seconds; each is shortened by chance to no less than half.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

MIGRATION = 3600.0
"""Seconds after which a business that is being migrated is worth another try: a guess."""

WARN_EVERY = 60.0
"""Seconds between two warnings that attempts fail."""

EXCERPT = 200
"""Characters of an answer that an error shows."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long a call is tried.

    At most `attempts` attempts and at most `give_up_after` seconds in attempts and the pauses
    between them; waits for the quota and the Market's 420s count in neither. `unknown` says what
    is done about a message of which nothing tells whether it arrived: "settle" looks it up in the
    chat's history, `settle_after` seconds after its attempt ended, and sends it again where it is
    not there; "raise" raises DeliveryUnknownError at once.

        Retry(attempts=5, give_up_after=60)

    Raises InvalidArgumentError where a number makes no sense.
    """

    attempts: int = 12
    give_up_after: float = 900.0
    settle_after: float = 15.0
    unknown: Unknown = "settle"

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise InvalidArgumentError("Retry.attempts is a whole number of at least 1")
        if not _is_number(self.give_up_after) or not self.give_up_after >= 0:
            raise InvalidArgumentError("Retry.give_up_after is a number of seconds, 0 or more")
        if not _is_number(self.settle_after) or not self.settle_after >= CUT_OFF:
            raise InvalidArgumentError(
                f"Retry.settle_after is a number of seconds, {CUT_OFF:g} or more: until then the"
                " Market may yet carry the request out"
            )
        check_unknown(self.unknown)


class Verdict(enum.Enum):
    """What an attempt came to."""

    DONE = "carried out"
    REFUSED = "refused for good"
    NOT_CARRIED_OUT = "refused for now, surely not carried out"
    UNKNOWN = "nothing tells whether it was carried out"


def judge(seen: Answer | NoAnswer) -> Verdict:
    """What an attempt of which this was seen came to.

    ==============================================  ======================
    seen                                            verdict
    ==============================================  ======================
    200 in the API's form, status OK                DONE
    420; 503 in the API's form                      NOT_CARRIED_OUT
    any other 4xx, whatever its body                REFUSED
    no connection was made                          NOT_CARRIED_OUT
    a certificate that does not hold; a file that
    cannot be read to its end                       REFUSED
    anything else                                   UNKNOWN
    ==============================================  ======================
    """
    if isinstance(seen, NoAnswer):
        if seen.final:
            return Verdict.REFUSED
        return Verdict.UNKNOWN if seen.left else Verdict.NOT_CARRIED_OUT
    if seen.status == 200:
        return Verdict.DONE if is_done(seen) else Verdict.UNKNOWN
    if seen.status == 420 or (seen.status == 503 and seen.form is not None):
        return Verdict.NOT_CARRIED_OUT
    return Verdict.REFUSED if 400 <= seen.status < 500 else Verdict.UNKNOWN


class Unclear(msgspec.Struct, frozen=True):
    """What a call came to of which nothing tells whether it was carried out."""

    seen: Answer | NoAnswer


def is_done(answer: Answer) -> bool:
    """Whether `judge` says so. A member of an Enum is slow to come by: 1 % of a send."""
    form = answer.form
    if answer.status != 200 or form is None:
        return False
    if isinstance(form, msgspec.Struct):
        return form.status == "OK"  # type: ignore[attr-defined, no-any-return]
    # Methods other than those of the chats are not decoded into a form of ours.
    return not isinstance(form, dict) or form.get("status", "OK") == "OK"


_decoders = {name: decoder(operation.answer) for name, operation in OPERATIONS.items()}
_decoders["request"] = decoder(Any)

_NO_HEADERS: dict[str, str] = {}


def running_task(loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Task[Any]:
    """The task that this coroutine runs in; naming the running loop saves a system call."""
    task = asyncio.current_task(loop)
    assert task is not None  # noqa: S101 - a coroutine of asyncio's runs in one
    return task


class Effort(msgspec.Struct, eq=False):
    """What a call has cost until now, against the bounds of its `Retry`."""

    retry: Retry
    requests: int = 0  # that left
    attempts: int = 0  # of those, the ones that count: without 420s
    spent: float = 0.0  # seconds in these and in the pauses after them

    def next_pause(self) -> float | None:
        """Seconds to wait before the next attempt; None where there is none."""
        # 2 to the power of thousands of attempts is no float.
        longest = min(FIRST_PAUSE * 2.0 ** min(self.attempts - 1, 30), LONGEST_PAUSE)
        pause = longest * random.uniform(0.5, 1.0)
        if self.attempts >= self.retry.attempts or self.spent + pause > self.retry.give_up_after:
            return None
        self.spent += pause
        return pause


class Request(Protocol):
    """What a call asks for."""

    @property
    def operation(self) -> Operation:
        """The operation."""

    @property
    def path(self) -> str:
        """The path, escaped."""

    def query(self) -> str:
        """The query, escaped."""

    def body(self) -> Leaving:
        """A body for one attempt; it knows whether it has left."""


class Question(msgspec.Struct, frozen=True, gc=False):
    """A request that sends nothing to a chat."""

    operation: Operation
    path: str
    parameters: str = ""
    content: bytes = b""  # JSON

    def query(self) -> str:
        """The query, escaped."""
        return self.parameters

    def body(self) -> Leaving:
        """A body for one attempt."""
        return Body(self.content)


class Calls:
    """Carries out the calls of one session."""

    def __init__(self, exchange: Exchange, business: Business, api_key: str, retry: Retry) -> None:
        self._exchange = exchange
        self._business = business
        self._scheduler = business.scheduler
        self._api_key = api_key
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self.owner = Owner()

    def check_loop(self) -> None:
        """Raise InvalidArgumentError on another event loop, before anything leaves."""
        # A thread runs one loop at a time. To ask for the running one costs 1 % of a send, since
        # CPython 3.11 asks the system for the process id.
        if get_ident() == self._thread and self._loop.is_running():
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            # Its connections would carry a message out, and the answer would reach nobody.
            raise InvalidArgumentError(
                "this session belongs to another event loop: make one inside each asyncio.run(),"
                " or keep one loop running and hand calls to it by run_coroutine_threadsafe"
            )
        self._thread = get_ident()  # the loop was handed to another thread

    async def close(self, grace: float) -> None:
        """End all calls: those that wait at once, those under way when the grace is over."""
        self._scheduler.end_waiting(self.owner, closed_error())
        await self._scheduler.end_under_way(self.owner, grace)
        while self.owner.waiting:  # noqa: ASYNC110 - told above, each needs one pass
            await asyncio.sleep(0)

    async def ask(
        self,
        request: Question,
        max_wait: float | None = None,
        owner: Owner | None = None,
        effort: Effort | None = None,
    ) -> Any:
        """Carry out a call that sends nothing to a chat, and return its result, decoded.

        Raises the ChatError that it ended with.
        """
        self.check_loop()
        name = request.operation.name
        ticket = self._scheduler.hand_over(name, owner or self.owner)
        answer: Answer | Unclear | None = None
        try:
            answer = await self.call(ticket, request, effort or Effort(self._retry), max_wait)
        except ChatError as failed:
            if ticket.in_doubt:
                failed.sent = None
            raise
        except asyncio.CancelledError:
            if not cut_short(ticket):
                raise
        if answer is None:  # raised here, so that it does not carry aiohttp's frames, and the key
            raise SessionClosedError(
                f"{name}: the session was closed before its answer came; ask again in a new one",
                sent=None,
            )
        if isinstance(answer, Unclear):
            raise self.error(request.operation, answer.seen)
        result = answer.form if request.operation.answer is Any else answer.form.result
        if result is None:
            error = self.error(request.operation, answer)
            error.sent = None  # the Market said that it was done
            raise error
        return result

    async def call(
        self, ticket: Ticket, request: Request, effort: Effort, max_wait: float | None
    ) -> Answer | Unclear:
        """Try until the call is done or, where it may not be repeated, its outcome is unknown.

        Raises the ChatError of an attempt that was refused for good, and that of the last one
        where a bound of `effort` is reached.
        """
        operation = request.operation
        while True:
            attempt = self._scheduler.try_admit(ticket) or await self._scheduler.admit(
                ticket, None if ticket.attempt is not None else max_wait
            )
            attempt.readings = self._business.readings
            effort.requests += 1
            body = request.body()
            try:
                seen = await self._exchange.send(
                    attempt,
                    operation.method,
                    request.path,
                    request.query(),
                    body,
                    _decoders[operation.name],
                )
            except BaseException:
                self._unanswered(ticket, attempt, body.left)
                raise
            del body  # or it would be kept while the call pauses
            if isinstance(seen, NoAnswer):
                self._unanswered(ticket, attempt, seen.left)
            else:
                if seen.form is not None:  # a balancer in front may have a clock of its own
                    self._business.saw(seen.headers, attempt.began, attempt.ended)
                if seen.status != 420:
                    headers = seen.headers if operation.limit else _NO_HEADERS
                    self._scheduler.answered(ticket, attempt, headers)
                if is_done(seen):
                    return seen
            verdict = judge(seen)
            if isinstance(seen, Answer) and seen.status == 420:
                await self._refused(ticket, attempt, operation, seen)
                continue
            effort.attempts += 1
            effort.spent += attempt.ended - attempt.began
            if verdict is Verdict.UNKNOWN:
                if not operation.repeatable:
                    return Unclear(seen)
                ticket.in_doubt = True
            error = self.error(operation, seen)
            final = verdict is Verdict.REFUSED or _is_of_another_type(seen)
            pause = None if final else effort.next_pause()
            if pause is None:
                raise error
            self.log_failure(error, effort, pause)
            await self._scheduler.pause(ticket, pause)

    def log_failure(self, error: ChatError, effort: Effort, pause: float) -> None:
        """Tell of an attempt that failed and is repeated; as a warning where trouble lasts."""
        level = logging.INFO
        now = self._loop.time()
        # Once a minute for all calls of the business: there may be thousands.
        if effort.attempts > 1 and now >= self._business.warn_from:
            self._business.warn_from = now + WARN_EVERY
            level = logging.WARNING
        logger.log(level, "%s; again in %.1f s", error, pause)

    def _unanswered(self, ticket: Ticket, attempt: Attempt, left: bool) -> None:
        if left:
            self._scheduler.unanswered(ticket, attempt)
        else:
            self._scheduler.unsent(ticket)

    async def _refused(
        self, ticket: Ticket, attempt: Attempt, operation: Operation, answer: Answer
    ) -> None:
        text = answer.body.decode("utf-8", "replace")
        parallel = quota.refused_in_parallel(text)
        if parallel is not None:
            pause = self._scheduler.refused_in_parallel(ticket, attempt, answer.headers, parallel)
            logger.info("%s: too many requests at once, others send too", operation.name)
            await self._scheduler.pause(ticket, pause)
            return
        if operation.limit is None:
            # The limit of that method alone, which the caller knows.
            self._scheduler.answered(ticket, attempt, _NO_HEADERS)
            error = self.error(operation, answer)
            error.retry_after = quota.seconds_until(answer.headers)
            raise error
        closed_for = self._scheduler.refused_over_time(
            ticket, attempt, answer.headers, quota.refused_over_time(text)
        )
        logger.warning(
            "%s: the Market's limit is used up, by other programs too; nothing more goes out for"
            " %.0f s",
            operation.name,
            closed_for,
        )

    def error(
        self,
        operation: Operation,
        seen: Answer | NoAnswer,
        *,
        arrived: Literal[False] | None = None,
    ) -> ChatError:
        """The error that tells of an attempt that was not done.

        `arrived` is False where the history has told that an unknown one was not.
        """
        sent = arrived if judge(seen) is Verdict.UNKNOWN else False
        if isinstance(seen, NoAnswer):
            advice = "" if seen.final else ": check the network; the Market may be down"
            return ConnectionFailedError(
                f"{operation.name}: {seen.reason}{advice}",
                sent=sent,
                retry_after=None if seen.final else LONGEST_PAUSE,
            )
        errors = [self._redacted(error) for error in getattr(seen.form, "errors", None) or ()]
        if 400 <= seen.status < 600:
            if seen.form is None and (excerpt := self._excerpt(seen)):
                errors = [ErrorDetail(NOT_THE_API, excerpt)]
            error = api_error(
                seen.status,
                errors,
                operation=operation.name,
                trace_id=seen.trace_id,
                sent=sent,
            )
            if seen.status >= 500:
                error.retry_after = LONGEST_PAUSE
            elif seen.status == 423:
                error.retry_after = MIGRATION
            return error
        said = seen.fault or self._excerpt(seen) or "an empty body"
        unexpected = UnexpectedAnswerError(
            f"{operation.name}: HTTP {seen.status} with an answer that the API does not document"
            f" ({said}); if it lasts, ask the Market's support",
            status=seen.status,
            excerpt=self._excerpt(seen),
            operation=operation.name,
            trace_id=seen.trace_id,
            sent=sent,
        )
        if not _is_of_another_type(seen):
            unexpected.retry_after = LONGEST_PAUSE
        return unexpected

    def _redacted(self, detail: ErrorDetail) -> ErrorDetail:
        return ErrorDetail(
            self._clean(detail.code),
            None if detail.message is None else self._clean(detail.message),
        )

    def _excerpt(self, answer: Answer) -> str:
        body = answer.body.replace(self._api_key.encode(), b"***")[: 4 * EXCERPT]
        return self._clean(body.decode("utf-8", "replace"))[:EXCERPT]

    def _clean(self, text: str) -> str:
        """Fit for a log: in one line, without control characters, and without the key."""
        text = text.replace(self._api_key, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def closed_error() -> SessionClosedError:
    """The error of calls that wait, or come, when the session closes."""
    return SessionClosedError(
        "the session was closed before this call could leave: await all calls before you close it"
    )


def _is_of_another_type(seen: Answer | NoAnswer) -> bool:
    """Whether the Market said OK to a read in a form that is not known: it will say so again."""
    if not isinstance(seen, Answer) or seen.status != 200 or seen.form or seen.fault:
        return False
    form = decode_envelope(seen.body)
    return form is not None and form.status == "OK"


def cut_short(ticket: Ticket) -> bool:
    """Whether a CancelledError is nobody's but the closing session's; takes it back if so."""
    attempt = ticket.attempt
    return (
        ticket.cut_short and attempt is not None and attempt.task.uncancel() <= attempt.cancelling
    )
