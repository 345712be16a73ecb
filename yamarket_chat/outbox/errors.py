"""What only the outbox raises."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ChatError


class KeyConflictError(ChatError):
    """The key belongs to another message: other content, or another chat.

    Nothing was put. A transaction of the caller's stays usable.

    Attributes:
        key: The key.
        number: The message that has the key.
        numbers: What `put_many` had put before.

    Example:
        try:
            await outbox.put(OutboxMessage(business_id, 17, "Заказ собран", key="packed-55"))
        except KeyConflictError as error:
            first = await outbox.get(error.number)
    """

    def __init__(self, text: str, *, key: str, number: int) -> None:
        super().__init__(text)
        self.key = key
        self.number = number
        self.numbers: Sequence[int] = ()


class OutboxDatabaseError(ChatError):
    """The database cannot be used. The text says why, and what to do.

    Attributes:
        sent: None if a transaction may have been committed although its success was not learnt;
            otherwise False. A `put` with the same key finds out.
        retry_after: Seconds after which the same call may work, if the cause passes by itself.
        numbers: What `put_many` had put before.

    Example:
        try:
            await outbox.put(OutboxMessage(business_id, 17, "Заказ собран", key="packed-55"))
        except OutboxDatabaseError as error:
            print(error)
    """

    def __init__(
        self, text: str, *, sent: bool | None = False, retry_after: float | None = None
    ) -> None:
        super().__init__(text, sent=sent, retry_after=retry_after)
        self.numbers: Sequence[int] = ()


class MessageCancelledError(ChatError):
    """The message was cancelled before it was sent, and will never be sent."""


class MessageExpiredError(ChatError):
    """The message was not sent before its `not_after`, and will never be sent."""
