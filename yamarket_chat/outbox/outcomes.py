"""The end of a message as text: a receipt, or an error that another process can raise."""

from __future__ import annotations

from typing import Any

import msgspec

from .. import errors
from ..errors import ApiError, ChatError, DeliveryUnknownError, UnexpectedAnswerError
from ..pending import Pending
from ..receipts import Receipt


class _Error(msgspec.Struct, omit_defaults=True):
    kind: str
    text: str
    sent: bool | None = False
    retry_after: float | None = None
    status: int = 0
    errors: tuple[errors.ErrorDetail, ...] = ()
    operation: str = ""
    trace_id: str | None = None
    excerpt: str = ""
    pending: Pending | None = None


class _Outcome(msgspec.Struct, omit_defaults=True):
    receipt: Receipt | None = None
    error: _Error | None = None


def encode_outcome(outcome: Receipt | ChatError) -> str:
    """Return the text that is stored of an outcome."""
    if isinstance(outcome, Receipt):
        return _text(_Outcome(receipt=outcome))
    known: dict[str, Any] = {
        name: getattr(outcome, name)
        for name in ("status", "errors", "operation", "trace_id", "excerpt", "pending")
        if hasattr(outcome, name)
    }
    stored = _Error(
        type(outcome).__name__, str(outcome), outcome.sent, outcome.retry_after, **known
    )
    return _text(_Outcome(error=stored))


def decode_outcome(text: str | None) -> tuple[Receipt | None, ChatError | None]:
    """Return the receipt or the error that was stored."""
    if text is None:
        return None, None
    outcome = msgspec.json.decode(text, type=_Outcome)
    return outcome.receipt, None if outcome.error is None else _error(outcome.error)


def _error(stored: _Error) -> ChatError:
    if stored.pending is not None:
        return DeliveryUnknownError(stored.text, pending=stored.pending)
    # A newer version may have stored a class that this one does not have.
    kind = getattr(errors, stored.kind, ChatError)
    told: dict[str, Any] = {
        "sent": stored.sent,
        "operation": stored.operation,
        "trace_id": stored.trace_id,
    }
    if kind is UnexpectedAnswerError:
        error: ChatError = UnexpectedAnswerError(
            stored.text, status=stored.status, excerpt=stored.excerpt, **told
        )
        error.retry_after = stored.retry_after
        return error
    if isinstance(kind, type) and issubclass(kind, ApiError):
        return kind(
            stored.text,
            status=stored.status,
            errors=stored.errors,
            retry_after=stored.retry_after,
            **told,
        )
    if not (isinstance(kind, type) and issubclass(kind, ChatError)) or stored.status:
        kind = ChatError
    return kind(stored.text, sent=stored.sent, retry_after=stored.retry_after)


def _text(outcome: _Outcome) -> str:
    return msgspec.json.encode(outcome).decode()
