"""OutboxMessage, OutboxFile and OutboxEntry: what goes in, and what is known of it later."""

from __future__ import annotations

import os
from datetime import datetime
from typing import BinaryIO, Literal, Self, TypedDict, Unpack

import msgspec

from ..errors import ChatError
from ..receipts import Receipt

OutboxState = Literal[
    "waiting", "leaving", "delivered", "refused", "unknown", "cancelled", "expired"
]
"""The state of a message. The last five are final."""


class Options(TypedDict, total=False):
    """What `to_order` and `to_return` take besides the message."""

    key: str | None
    bulk: bool
    not_before: datetime | None
    not_after: datetime | None


class FileOptions(Options, total=False):
    """The same for a file."""

    filename: str | None


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    key: str | None = None
    bulk: bool = False
    not_before: datetime | None = None
    not_after: datetime | None = None
    order_id: int | str | None = None
    return_id: int | str | None = None


class OutboxMessage(_Options, frozen=True):
    """A text for a chat, to be put into an outbox.

    `Outbox.put` checks the values.

    Attributes:
        business_id: The business, at least 1. A decimal string is accepted as well.
        chat_id: The chat, likewise. None if the message is to an order or a return.
        text: The text, of 1 to 4,096 characters.
        key: A name of yours, unique within the business. A message that is put again under its
            key is not put twice. 1 to 200 characters, not beginning with "bot:" or "~".
        bulk: True sends the message after all that are not bulk.
        not_before: The earliest time to send it, an aware datetime, by the Market's clock.
        not_after: The latest time to send it, likewise. After that it expires.
        order_id: The order to whose chat it goes; see `to_order`.
        return_id: The return to whose chat it goes; see `to_return`.

    Example:
        OutboxMessage(business_id, chat_id, "Заказ собран", key="packed-55")
    """

    business_id: int | str
    chat_id: int | str | None
    text: str

    @classmethod
    def to_order(
        cls, business_id: int | str, order_id: int | str, text: str, **options: Unpack[Options]
    ) -> Self:
        """Make a message to the chat of an order. The courier opens the chat.

        Args:
            business_id: The business.
            order_id: The order.
            text: The text.
            **options: `key`, `bulk`, `not_before` and `not_after`.

        Example:
            OutboxMessage.to_order(business_id, 55, "Заказ собран")
        """
        return cls(business_id, None, text, order_id=order_id, **options)

    @classmethod
    def to_return(
        cls, business_id: int | str, return_id: int | str, text: str, **options: Unpack[Options]
    ) -> Self:
        """Make a message to the chat of a return. The courier opens the chat.

        Args:
            business_id: The business.
            return_id: The return.
            text: The text.
            **options: `key`, `bulk`, `not_before` and `not_after`.

        Example:
            OutboxMessage.to_return(business_id, 7, "Возврат принят")
        """
        return cls(business_id, None, text, return_id=return_id, **options)


class _FileOptions(_Options, frozen=True, kw_only=True):
    filename: str | None = None


class OutboxFile(_FileOptions, frozen=True):
    """A file for a chat, to be put into an outbox. The outbox stores its content.

    `Outbox.put` checks the values.

    Attributes:
        business_id: The business, at least 1. A decimal string is accepted as well.
        chat_id: The chat, likewise. None if the file is to an order or a return.
        file: A path, bytes, or a file opened for bytes, of at most 5 MB.
        filename: The name that the buyer sees. Default: the name of the file.
        key: As for `OutboxMessage`.
        bulk: As for `OutboxMessage`.
        not_before: As for `OutboxMessage`.
        not_after: As for `OutboxMessage`.
        order_id: The order to whose chat it goes; see `to_order`.
        return_id: The return to whose chat it goes; see `to_return`.

    Example:
        OutboxFile(business_id, chat_id, b"...", filename="накладная.pdf")
    """

    business_id: int | str
    chat_id: int | str | None
    file: str | os.PathLike[str] | bytes | BinaryIO

    @classmethod
    def to_order(
        cls,
        business_id: int | str,
        order_id: int | str,
        file: str | os.PathLike[str] | bytes | BinaryIO,
        **options: Unpack[FileOptions],
    ) -> Self:
        """Make a file to the chat of an order. The courier opens the chat.

        Args:
            business_id: The business.
            order_id: The order.
            file: The file.
            **options: `filename`, `key`, `bulk`, `not_before` and `not_after`.

        Example:
            OutboxFile.to_order(business_id, 55, b"...", filename="накладная.pdf")
        """
        return cls(business_id, None, file, order_id=order_id, **options)

    @classmethod
    def to_return(
        cls,
        business_id: int | str,
        return_id: int | str,
        file: str | os.PathLike[str] | bytes | BinaryIO,
        **options: Unpack[FileOptions],
    ) -> Self:
        """Make a file to the chat of a return. The courier opens the chat.

        Args:
            business_id: The business.
            return_id: The return.
            file: The file.
            **options: `filename`, `key`, `bulk`, `not_before` and `not_after`.

        Example:
            OutboxFile.to_return(business_id, 7, b"...", filename="этикетка.pdf")
        """
        return cls(business_id, None, file, return_id=return_id, **options)


class OutboxEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the outbox, as it is now.

    Attributes:
        number: Its number. A number is never used twice.
        state: "waiting", "leaving", "delivered", "refused", "unknown", "cancelled" or "expired".
        requests: How many requests were marked for it, refused ones included.
        receipt: The proof, if it was delivered.
        error: Why it was refused, or what is unknown.
        business_id: The business.
        chat_id: The chat. None as long as the chat of its order or return is not open.
        order_id: The order that it is to, if it is to one.
        return_id: The return that it is to, if it is to one.
        text: The text; None for a file, and after the text was forgotten.
        filename: The name of the file, if it is one.
        file_size: The size of the file in bytes.
        key: Your key, if it has one.
        bulk: Whether it goes after all that are not bulk.
        not_before: The earliest time to send it.
        not_after: The latest time to send it.
        created_at: When it was put, by the clock of the machine that put it.
        ended_at: When its state became final: by the Market's clock, or if it was cancelled, by the
            clock of the machine that cancelled it.

    Example:
        number = await outbox.put(OutboxMessage(business_id, 17, "Заказ собран"))
        entry = await outbox.get(number)
    """

    number: int
    state: OutboxState
    requests: int
    receipt: Receipt | None
    error: ChatError | None
    business_id: int
    chat_id: int | None
    order_id: int | None
    return_id: int | None
    text: str | None
    filename: str | None
    file_size: int | None
    key: str | None
    bulk: bool
    not_before: datetime | None
    not_after: datetime | None
    created_at: datetime
    ended_at: datetime | None


class OutboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in the outbox.

    Attributes:
        waiting: How many messages wait, those included that are not due yet.
        leaving: For how many messages a request may be under way.
        oldest: When the oldest of these messages was put; None if there is none.
        paused: By business: why its messages wait until somebody mends it.
        others: By business: when a worker last warned that somebody else sends for it as well, an
            old program or another outbox.

    Example:
        status = await outbox.status()
        print(status.waiting, status.oldest)
    """

    waiting: int
    leaving: int
    oldest: datetime | None
    paused: dict[int, str]
    others: dict[int, datetime]
