"""What only a bot raises, or passes to `Bot.error`."""

from __future__ import annotations

from ..errors import ChatError


class BotConflictError(ChatError):
    """A business has the bot of another name already. The text says which process runs it."""


class HandlerTimeoutError(ChatError, TimeoutError):
    """The handler took longer than `handler_timeout`, and was cancelled."""


class HandlerDiedError(ChatError):
    """The handler was called five times, and its process died, or another one has its errors."""


class MessageTooOldError(ChatError):
    """The message is older than `max_age`. Its handler is not called, or not again."""
