"""One call of an operation: leave from the scheduler, the exchange, repetition.

What an attempt came to is decided in one place, `judge`, from what was seen and nothing else.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from typing import Literal

import msgspec

from . import quota
from .errors import (
    ChatError,
    ConnectionFailedError,
    ErrorDetail,
    InvalidArgumentError,
    UnexpectedAnswerError,
    api_error,
)
from .exchange import Answer, Body, Exchange, NoAnswer
from .models import Envelope
from .operations import Operation
from .scheduler import Scheduler, Ticket

logger = logging.getLogger("yamarket_chat")

# Growing pauses between attempts, in seconds; each is shortened by chance to no less than half.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
# The pause after a 420 for parallel requests: long enough for one of the others to end.
PARALLEL_PAUSE = (0.1, 1.0)

EXCERPT = 200
"""Characters of an answer that an error shows."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long a call is tried.

    At most `attempts` attempts and at most `give_up_after` seconds in attempts and the pauses
    between them; waits for the quota and the Market's 420s count in neither.

        Retry(attempts=5, give_up_after=60)

    Raises InvalidArgumentError where a number makes no sense.
    """

    attempts: int = 12
    give_up_after: float = 900.0

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise InvalidArgumentError("Retry.attempts is a whole number of at least 1")
        if not isinstance(self.give_up_after, (int, float)) or not self.give_up_after >= 0:
            raise InvalidArgumentError("Retry.give_up_after is a number of seconds, 0 or more")


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
    a certificate that does not hold                REFUSED
    anything else                                   UNKNOWN
    ==============================================  ======================
    """
    if isinstance(seen, NoAnswer):
        if seen.left:
            return Verdict.UNKNOWN
        return Verdict.REFUSED if seen.final else Verdict.NOT_CARRIED_OUT
    if seen.status == 200:
        form = envelope(seen)
        return Verdict.DONE if form is not None and form.status == "OK" else Verdict.UNKNOWN
    if seen.status == 420:
        return Verdict.NOT_CARRIED_OUT
    if seen.status == 503 and envelope(seen) is not None:
        return Verdict.NOT_CARRIED_OUT
    return Verdict.REFUSED if 400 <= seen.status < 500 else Verdict.UNKNOWN


_decode_envelope = msgspec.json.Decoder(Envelope).decode


def envelope(answer: Answer) -> Envelope | None:
    """The answer in the API's form; None where it has another or is not whole."""
    if answer.fault is not None:
        return None
    try:
        return _decode_envelope(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Effort:
    """What a call has cost until now, against the bounds of its `Retry`."""

    __slots__ = ("attempts", "requests", "retry", "spent")

    def __init__(self, retry: Retry) -> None:
        self.retry = retry
        self.requests = 0  # that left
        self.attempts = 0  # of those, the ones that count: without 420s
        self.spent = 0.0  # seconds in these and in the pauses after them

    def next_pause(self) -> float | None:
        """Seconds to wait before the next attempt; None where there is none."""
        longest = min(FIRST_PAUSE * 2.0 ** (self.attempts - 1), LONGEST_PAUSE)
        pause = longest * random.uniform(0.5, 1.0)
        if self.attempts >= self.retry.attempts or self.spent + pause > self.retry.give_up_after:
            return None
        self.spent += pause
        return pause


class Calls:
    """Carries out the calls of one session."""

    def __init__(self, exchange: Exchange, scheduler: Scheduler, api_key: str) -> None:
        self._exchange = exchange
        self._scheduler = scheduler
        self._api_key = api_key
        self._loop = asyncio.get_running_loop()

    async def call(
        self,
        ticket: Ticket,
        operation: Operation,
        path: str,
        body: bytes | None,
        effort: Effort,
        max_wait: float | None,
    ) -> tuple[Verdict, Answer | NoAnswer]:
        """Try until the call is done or, where it may not be repeated, its outcome is unknown.

        Raises the ChatError of an attempt that was refused for good, and that of the last one
        where a bound of `effort` is reached.
        """
        while True:
            await self._scheduler.admit(ticket, None if ticket.left else max_wait)
            effort.requests += 1
            began = self._loop.time()
            seen = await self._attempt(ticket, operation, path, body)
            verdict = judge(seen)
            if verdict is Verdict.DONE:
                return verdict, seen
            if isinstance(seen, Answer) and seen.status == 420:
                continue
            effort.attempts += 1
            effort.spent += self._loop.time() - began
            if verdict is Verdict.UNKNOWN and not operation.repeatable:
                return verdict, seen
            error = self.error(operation, seen)
            pause = None if verdict is Verdict.REFUSED else effort.next_pause()
            if pause is None:
                raise error
            logger.info("%s; again in %.1f s", error, pause)
            await self._scheduler.pause(ticket, pause)

    async def _attempt(
        self, ticket: Ticket, operation: Operation, path: str, content: bytes | None
    ) -> Answer | NoAnswer:
        body = None if content is None else Body(content, content_type="application/json")
        try:
            seen = await self._exchange.send(operation.method, path, body)
        except BaseException:
            if body is None or body.left:
                self._scheduler.unanswered(ticket)
            else:
                self._scheduler.unsent(ticket)
            raise
        if isinstance(seen, Answer):
            if seen.status == 420:
                await self._refused(ticket, operation, seen)
            else:
                self._scheduler.answered(ticket, seen.headers)
        elif seen.left:
            self._scheduler.unanswered(ticket)
        else:
            self._scheduler.unsent(ticket)
        return seen

    async def _refused(self, ticket: Ticket, operation: Operation, answer: Answer) -> None:
        text = answer.body.decode("utf-8", "replace")
        parallel = quota.refused_in_parallel(text)
        if parallel is not None:
            self._scheduler.refused_in_parallel(ticket, answer.headers, parallel)
            logger.info(
                "%s: too many requests in parallel, other programs send too", operation.name
            )
            await self._scheduler.pause(ticket, random.uniform(*PARALLEL_PAUSE))
            return
        closed_for = self._scheduler.refused_over_time(
            ticket, answer.headers, quota.refused_over_time(text)
        )
        logger.warning(
            "%s: the Market's limit is used up, by other programs too; nothing more goes out for"
            " %.0f s",
            operation.name,
            closed_for,
        )

    def error(self, operation: Operation, seen: Answer | NoAnswer) -> ChatError:
        """The error that tells of an attempt that was not done."""
        verdict = judge(seen)
        sent: Literal[False] | None = None if verdict is Verdict.UNKNOWN else False
        if isinstance(seen, NoAnswer):
            if seen.final:
                advice = "check base_url, the certificate and the aiohttp session"
            else:
                advice = "check the network; the Market may be down"
            return ConnectionFailedError(
                f"{operation.name}: {seen.reason}: {advice}",
                sent=sent,
                retry_after=None if seen.final else LONGEST_PAUSE,
            )
        form = envelope(seen)
        if 400 <= seen.status < 600:
            errors = [] if form is None else [self._redacted(e) for e in form.errors or ()]
            if form is None and (excerpt := self._excerpt(seen)):
                errors = [ErrorDetail("NOT_THE_API", excerpt)]
            return api_error(
                seen.status,
                errors,
                operation=operation.name,
                trace_id=seen.trace_id,
                sent=sent,
            )
        said = seen.fault or self._excerpt(seen) or "an empty body"
        return UnexpectedAnswerError(
            f"{operation.name}: HTTP {seen.status} is no answer of the API ({said})",
            status=seen.status,
            excerpt=self._excerpt(seen),
            operation=operation.name,
            trace_id=seen.trace_id,
            sent=sent,
        )

    def _redacted(self, detail: ErrorDetail) -> ErrorDetail:
        message = detail.message and detail.message.replace(self._api_key, "***")
        return ErrorDetail(detail.code, message)

    def _excerpt(self, answer: Answer) -> str:
        text = answer.body[: 4 * EXCERPT].decode("utf-8", "replace").replace(self._api_key, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:EXCERPT]
