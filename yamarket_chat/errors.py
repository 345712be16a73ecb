"""Everything that can be raised.

Every error is a `ChatError` and answers two questions: may it be repeated (`sent`), and when
(`retry_after`). All of them can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .models import Pending


class ErrorDetail(msgspec.Struct, frozen=True):
    """One entry of the Market's list of errors: its code, and its text where there is one."""

    code: str
    message: str | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


class ChatError(Exception):
    """The base of all errors of this package.

    `sent` is False where surely nothing was carried out, None where that is unknown.
    `retry_after` is a number of seconds where the trouble passes by itself, else None.

        try:
            await session.send_message(chat_id, "On its way")
        except ChatError as error:
            if error.sent is False and error.retry_after is not None:
                ...  # nothing was sent, and the same call may work later
    """

    def __init__(
        self, text: str, *, sent: bool | None = False, retry_after: float | None = None
    ) -> None:
        super().__init__(text)
        self.sent = sent
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with the text alone; ours have more to say.
        return _unpickle, (type(self), self.args, self.__dict__)


def _unpickle(cls: type[ChatError], args: tuple[Any, ...], state: dict[str, Any]) -> ChatError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class InvalidArgumentError(ChatError, ValueError):
    """An argument makes no sense; the text says which one and what it should be."""


class QuotaExceededError(ChatError):
    """The call could not leave within its `max_wait`; nothing was sent, nothing used up.

    `retry_after` is the least number of seconds that it would have had to wait.
    """


class SessionClosedError(ChatError):
    """The session was closed before this call, before it could leave, or before its answer came.

    `sent` is False in the first two cases, None in the last.
    """


class ConnectionFailedError(ChatError):
    """The Market could not be reached, or broke the connection off without an answer.

    `sent` is False where no connection was made, None where the request may have left.
    """


class DeliveryUnknownError(ChatError):
    """A message left, and nothing tells whether it arrived.

    `pending` holds all that is needed to find it later. Do not send the message again before
    that: it would arrive twice if it did arrive.

        except DeliveryUnknownError as error:
            stored = msgspec.json.encode(error.pending)
    """

    def __init__(self, text: str, *, pending: Pending) -> None:
        super().__init__(text, sent=None)
        self.pending = pending


class UnexpectedAnswerError(ChatError):
    """An answer that the API does not document: no JSON, cut off, another type, far too large.

    `status` is its HTTP status, `excerpt` a short piece of it, `operation` the call and
    `trace_id` the id by which the Market's support finds the request, where it had one.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        excerpt: str,
        operation: str,
        trace_id: str | None,
        sent: bool | None = None,
    ) -> None:
        super().__init__(text, sent=sent)
        self.status = status
        self.excerpt = excerpt
        self.operation = operation
        self.trace_id = trace_id


class ApiError(ChatError):
    """The Market answered with an error.

    `status` is the HTTP status, `errors` what the Market said (code and text each), `operation`
    the call, `trace_id` the id by which the seller and the Market's support find the request.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        errors: Sequence[ErrorDetail],
        operation: str,
        trace_id: str | None,
        sent: bool | None = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text, sent=sent, retry_after=retry_after)
        self.status = status
        self.errors = tuple(errors)
        self.operation = operation
        self.trace_id = trace_id


class BadRequestError(ApiError):
    """400: the Market finds the data of the request wrong."""


class UnauthorizedError(ApiError):
    """401: no key, or one that is wrong or revoked."""


class ForbiddenError(ApiError):
    """403: the key may not do this, or the business is inactive."""


class NotFoundError(ApiError):
    """404: there is no such chat, order, return or message."""


class LimitExceededError(ApiError):
    """420: a limit of the Market was exceeded."""


class LockedError(ApiError):
    """423: the business is being migrated."""


class ServerError(ApiError):
    """5xx: the Market failed."""


NOT_THE_API = "NOT_THE_API"
"""The code under which an excerpt stands of an answer that is not in the API's form."""

# What the seller can do, by status. Causes as the Market documents them.
_ADVICE: dict[int, tuple[type[ApiError], str]] = {
    400: (BadRequestError, "check what was passed: ids, text, filters"),
    401: (
        UnauthorizedError,
        "check the Api-Key: it may be mistyped or revoked; the seller's cabinet makes a new one",
    ),
    403: (
        ForbiddenError,
        "the key needs the scope communication or all-methods, the business id must be the key's"
        " own, and the business active",
    ),
    404: (
        NotFoundError,
        "check the id: there is nothing of that number in this business; or the path, of a"
        " request() or of base_url",
    ),
    420: (LimitExceededError, "wait until the limit allows more"),
    423: (LockedError, "the business is being migrated: try again in some hours"),
}


def api_error(
    status: int,
    errors: Sequence[ErrorDetail],
    *,
    operation: str,
    trace_id: str | None,
    sent: bool | None = False,
) -> ApiError:
    """The error of the class that belongs to a status, with a text that says what to do next."""
    cls: type[ApiError]
    if status >= 500:
        cls, advice = ServerError, "the Market failed; try again later"
    else:
        cls, advice = _ADVICE.get(
            status, (ApiError, "the Market refuses it: change what it names before you try again")
        )
        if status != 401 and errors and errors[0].code == NOT_THE_API:
            advice = "not an answer of the API: check base_url, and the proxy if there is one"
    said = "; ".join(str(error) for error in errors) or "no explanation given"
    trace = f" (trace id {trace_id})" if trace_id else ""
    return cls(
        f"{operation}: HTTP {status}, {said}: {advice}{trace}",
        status=status,
        errors=errors,
        operation=operation,
        trace_id=trace_id,
        sent=sent,
    )
