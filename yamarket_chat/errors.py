"""All exceptions of the package.

Each is a `ChatError` and answers two questions: may the call be repeated (`sent`), and when
(`retry_after`). All of them can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .pending import Pending


class ErrorDetail(msgspec.Struct, frozen=True):
    """One entry of the Market's list of errors.

    Attributes:
        code: The Market's code, such as BAD_REQUEST.
        message: The Market's text, if there is one.
    """

    code: str
    message: str | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


class ChatError(Exception):
    """The base class of all errors of this package.

    Attributes:
        sent: False if surely nothing was carried out; None if that is unknown.
        retry_after: Seconds after which the same call may work, if the cause passes by itself;
            otherwise None.

    Example:
        try:
            await session.send_message(chat_id, "Ваш заказ в пути")
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
        # By default, pickle calls the class with the text alone, but our classes take more.
        return _unpickle, (type(self), self.args, self.__dict__)


def _unpickle(cls: type[ChatError], args: tuple[Any, ...], state: dict[str, Any]) -> ChatError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class InvalidArgumentError(ChatError, ValueError):
    """An argument makes no sense. The text names it and says what it should be."""


class MaxWaitExceededError(ChatError):
    """The call would have had to wait longer than its `max_wait`. Nothing was sent or used up.

    The rate limit, a busy chat or busy parallel requests made it wait.

    Attributes:
        retry_after: The least number of seconds that the call would have had to wait.
    """


class SessionClosedError(ChatError):
    """The session was closed before the call was made, was sent, or was answered.

    Attributes:
        sent: None if the request was sent and not answered; otherwise False.
    """


class ConnectionFailedError(ChatError):
    """The Market could not be reached, or the connection ended without an answer.

    Attributes:
        sent: False if no connection was made; None if the request may have reached the Market.
    """


class DeliveryUnknownError(ChatError):
    """A message was sent, and nothing tells whether it arrived.

    Do not send the message again before you have settled it: it might arrive twice.

    Attributes:
        pending: All that is needed to find the message later.

    Example:
        try:
            await session.send_message(chat_id, "Ваш заказ в пути")
        except DeliveryUnknownError as error:
            stored = msgspec.json.encode(error.pending)
    """

    def __init__(self, text: str, *, pending: Pending) -> None:
        super().__init__(text, sent=None)
        self.pending = pending


class UnexpectedAnswerError(ChatError):
    """The Market answered in a way that the API does not document.

    The body was no JSON, of another type, cut off or far too large.

    Attributes:
        status: The HTTP status; 0 if the answer is no HTTP.
        excerpt: The beginning of the body.
        operation: The method of the session.
        trace_id: The id by which the Market's support finds the request, if there was one.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        operation: str,
        excerpt: str = "",
        trace_id: str | None = None,
        sent: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text, sent=sent, retry_after=retry_after)
        self.status = status
        self.excerpt = excerpt
        self.operation = operation
        self.trace_id = trace_id


class ApiError(ChatError):
    """The Market answered with an error.

    Attributes:
        status: The HTTP status.
        errors: What the Market said: a tuple of ErrorDetail.
        operation: The method of the session.
        trace_id: The id by which the seller and the Market's support find the request, if there
            was one.
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
        self.errors: tuple[ErrorDetail, ...] = tuple(errors)
        self.operation = operation
        self.trace_id = trace_id


class BadRequestError(ApiError):
    """400: the Market rejects the data of the request."""


class UnauthorizedError(ApiError):
    """401: the key is missing, wrong or revoked."""


class ForbiddenError(ApiError):
    """403: the key has no right to do this, or the business is inactive."""


class NotFoundError(ApiError):
    """404: there is no such chat, order, return or message."""


class LimitExceededError(ApiError):
    """420: a rate limit of the Market was exceeded. 429: one of a server in front of it."""


class LockedError(ApiError):
    """423: the business is being migrated."""


class ServerError(ApiError):
    """5xx: the Market failed."""


NOT_THE_API = "NOT_THE_API"
"""The code of an ErrorDetail that holds an excerpt of a body that is not in the API's form."""

SERVER_TROUBLE = 60.0
MIGRATION = 3600.0

# By status: the class, what the caller can do, and after how many seconds the problem may have
# passed by itself (guesses, because the Market does not say). The causes are the documented ones.
_STATUSES: dict[int, tuple[type[ApiError], str, float | None]] = {
    400: (BadRequestError, "check what was passed: ids, text, filters", None),
    401: (
        UnauthorizedError,
        "check the Api-Key: it may be mistyped or revoked; the seller's cabinet makes a new one",
        None,
    ),
    403: (
        ForbiddenError,
        "the key needs the scope communication or all-methods, the business id must be the key's"
        " own, and the business active",
        None,
    ),
    404: (
        NotFoundError,
        "check the id: this business has nothing of that number. Or check the path of request()"
        " or of base_url",
        None,
    ),
    420: (LimitExceededError, "wait until the rate limit allows more", None),
    408: (ApiError, "the connection broke: check the network", SERVER_TROUBLE),
    423: (LockedError, "the business is being migrated: try again in some hours", MIGRATION),
    429: (
        LimitExceededError,
        "a server before the API limits requests: send fewer",
        SERVER_TROUBLE,
    ),
    499: (ApiError, "the connection broke: check the network", SERVER_TROUBLE),
}
_OTHER_4XX = (ApiError, "the Market refuses it: change what it names before you retry", None)
_5XX = (ServerError, "the Market failed; try again later", SERVER_TROUBLE)


def api_error(
    status: int,
    errors: Sequence[ErrorDetail],
    *,
    operation: str,
    trace_id: str | None = None,
    sent: bool | None = False,
    advice: str | None = None,
) -> ApiError:
    """Return the error for a status, with a text that says what to do next."""
    cls, usual, retry_after = _STATUSES.get(status, _5XX if status >= 500 else _OTHER_4XX)
    advice = advice or usual
    if status < 500 and status != 401 and errors and errors[0].code == NOT_THE_API:
        advice = "this is no answer of the API: check base_url, and the proxy if there is one"
    said = "; ".join(str(error) for error in errors) or "no explanation given"
    trace = f" (trace id {trace_id})" if trace_id else ""
    return cls(
        f"{operation}: HTTP {status}, {said}: {advice}{trace}",
        status=status,
        errors=errors,
        operation=operation,
        trace_id=trace_id,
        sent=sent,
        retry_after=retry_after,
    )
