"""An asyncio SDK for the buyer chats of Yandex.Market: in order, and within the limits."""

from .calls import Retry
from .errors import (
    ApiError,
    BadRequestError,
    ChatError,
    ConnectionFailedError,
    DeliveryUnknownError,
    ErrorDetail,
    ForbiddenError,
    InvalidArgumentError,
    LimitExceededError,
    LockedError,
    NotFoundError,
    QuotaExceededError,
    ServerError,
    SessionClosedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from .models import Outcome, OutgoingMessage, Pending, QuotaStatus, Receipt
from .operations import Rate
from .quota import Limits
from .session import ChatSession
from .version import __version__

__all__ = [
    "ApiError",
    "BadRequestError",
    "ChatError",
    "ChatSession",
    "ConnectionFailedError",
    "DeliveryUnknownError",
    "ErrorDetail",
    "ForbiddenError",
    "InvalidArgumentError",
    "LimitExceededError",
    "Limits",
    "LockedError",
    "NotFoundError",
    "Outcome",
    "OutgoingMessage",
    "Pending",
    "QuotaExceededError",
    "QuotaStatus",
    "Rate",
    "Receipt",
    "Retry",
    "ServerError",
    "SessionClosedError",
    "UnauthorizedError",
    "UnexpectedAnswerError",
    "__version__",
]
