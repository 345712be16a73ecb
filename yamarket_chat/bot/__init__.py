"""A bot: each message of a buyer is handled once, and answered through the outbox."""

from .bot import Bot
from .errors import BotConflictError, HandlerDiedError, HandlerTimeoutError, MessageTooOldError
from .message import BuyerMessage
from .status import BotStatus

__all__ = [
    "Bot",
    "BotConflictError",
    "BotStatus",
    "BuyerMessage",
    "HandlerDiedError",
    "HandlerTimeoutError",
    "MessageTooOldError",
]
