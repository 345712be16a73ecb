"""Creates the errors of failed attempts. No error text shows the key."""

from __future__ import annotations

from typing import Literal

from .._http.answers import Answer, NoAnswer
from ..errors import (
    NOT_THE_API,
    ChatError,
    ConnectionFailedError,
    DeliveryUnknownError,
    ErrorDetail,
    SessionClosedError,
    UnexpectedAnswerError,
    api_error,
)
from ..pending import Pending
from ..retry import LONGEST_PAUSE
from ..secret import Secret
from .verdict import Verdict, is_unknown_form_of_ok, judge

EXCERPT = 200
"""The characters of a response that an error shows."""


class Failures:
    """Creates the errors of one session, and keeps the session's key out of them."""

    def __init__(self, api_key: Secret) -> None:
        self._api_key = api_key

    def error(
        self, operation: str, seen: Answer | NoAnswer, *, arrived: Literal[False] | None = None
    ) -> ChatError:
        """Return the error of an attempt that was not done.

        `arrived` is False if the chat's history has shown that the message did not arrive.
        """
        if isinstance(seen, NoAnswer) and seen.cut_short:
            return SessionClosedError(
                f"{operation}: the session was closed before its answer came: repeat the call in a"
                " new one",
                sent=None,
            )
        sent = arrived if judge(seen) is Verdict.UNKNOWN else False
        if isinstance(seen, NoAnswer) and seen.garbled:
            return UnexpectedAnswerError(
                f"{operation}: {seen.reason}. If it lasts, ask the Market's support",
                status=0,
                operation=operation,
                sent=sent,
                retry_after=LONGEST_PAUSE,
            )
        if isinstance(seen, NoAnswer):
            advice = "" if seen.final else ": check the network; the Market may be down"
            return ConnectionFailedError(
                f"{operation}: {seen.reason}{advice}",
                sent=sent,
                retry_after=None if seen.final else LONGEST_PAUSE,
            )
        excerpt = self._excerpt(seen)
        errors = [
            ErrorDetail(self._clean(error.code), error.message and self._clean(error.message))
            for error in getattr(seen.decoded, "errors", None) or ()
        ]
        if 400 <= seen.status < 600:
            if seen.decoded is None and excerpt:
                errors = [ErrorDetail(NOT_THE_API, excerpt)]
            return api_error(
                seen.status, errors, operation=operation, trace_id=seen.trace_id, sent=sent
            )
        said = seen.fault or excerpt or "an empty body"
        return UnexpectedAnswerError(
            f"{operation}: HTTP {seen.status} with an answer that the API does not document"
            f" ({said}). If it lasts, ask the Market's support",
            status=seen.status,
            excerpt=excerpt,
            operation=operation,
            trace_id=seen.trace_id,
            sent=sent,
            retry_after=None if is_unknown_form_of_ok(seen) else LONGEST_PAUSE,
        )

    def reason(self, operation: str, seen: Answer | NoAnswer) -> str:
        """Say why it is unknown whether an attempt was carried out."""
        if isinstance(seen, NoAnswer) and (seen.cut_short or seen.cancelled is not None):
            return seen.reason
        return str(self.error(operation, seen))

    def _excerpt(self, answer: Answer) -> str:
        body = answer.body.replace(self._api_key.reveal().encode(), b"***")[: 4 * EXCERPT]
        return self._clean(body.decode("utf-8", "replace"))[:EXCERPT]

    def _clean(self, text: str) -> str:
        """Return a text fit for a log: one line, no control characters, and without the key."""
        text = text.replace(self._api_key.reveal(), "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def closed_error() -> SessionClosedError:
    """Return the error of calls that wait, or are made, when the session closes."""
    return SessionClosedError(
        "the session was closed before this call was done: await all calls before you close it"
    )


def unknown_error(pending: Pending, why: str) -> DeliveryUnknownError:
    """Return the error of a message of unknown outcome."""
    what = f"the file {pending.file_name!r}" if pending.text is None else repr(pending.text[:60])
    when = f" of {pending.since:%Y-%m-%d %H:%M:%S} UTC" if pending.since else ""
    return DeliveryUnknownError(
        f"chat {pending.chat_id}: nothing tells whether {what}{when} arrived ({why}). Before you"
        " send it again, call session.settle(error.pending) or look at the chat",
        pending=pending,
    )
