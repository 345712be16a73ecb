"""From a message to its row, checked before any transaction, and back."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec

from .._http.uploads import Upload
from ..arguments import check_id, check_text, check_type, exact
from ..errors import InvalidArgumentError
from .messages import OutboxEntry, OutboxFile, OutboxMessage, OutboxState
from .outcomes import decode_outcome

LONGEST_KEY = 200

RANDOM = "~"
"""How the key of a row begins that got none from its caller."""

RESERVED = ("bot:", RANDOM)

GIVEN = (
    "business_id", "chat_id", "context", "context_id", "key", "digest", "text", "file_name",
    "file_size", "bulk", "not_before", "not_after", "due_at", "created_at",
)  # fmt: skip
"""The columns of a new row; all others have defaults."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Put = OutboxMessage | OutboxFile


class Row(msgspec.Struct, frozen=True):
    """A message, checked: the values of its columns, and the content of a file."""

    values: dict[str, Any]
    content: bytes | None = None


def now() -> int:
    """Return the wall time in microseconds. People read it, and pruning goes by it."""
    return time.time_ns() // 1000


def prepare(message: object, own_key: str | None = None) -> Row:
    """Check a message and return its row. A file is read: call this in a thread then.

    `own_key` is a key of the package's own. Raises InvalidArgumentError if a value makes no sense.
    """
    if not isinstance(message, (OutboxMessage, OutboxFile)):
        raise InvalidArgumentError(
            f"an outbox takes OutboxMessage and OutboxFile, not {type(message).__name__}"
        )
    text = name = size = content = None
    business_id = check_id("business_id", message.business_id)
    chat_id, context, context_id = _address(message)
    if isinstance(message, OutboxMessage):
        text = check_text(message.text)
        if "\0" in text:
            raise InvalidArgumentError("the text has a NUL character, which cannot be stored")
        said = text.encode()
    else:
        name, content = _read(Upload(message.file, message.filename))
        size = len(content)
        said = name.encode() + b"\0" + content
    key = own_key or (_random_key() if message.key is None else check_key(message.key))
    not_before = _moment("not_before", message.not_before)
    not_after = _moment("not_after", message.not_after)
    if not_before is not None and not_after is not None and not_after <= not_before:
        raise InvalidArgumentError(
            "not_after is not after not_before: the message could never leave"
        )
    to = f"{context or 'chat'}:{context_id or chat_id}:{'text' if content is None else 'file'}:"
    return Row(
        {
            "business_id": business_id,
            "chat_id": chat_id,
            "context": context,
            "context_id": context_id,
            "key": key,
            "digest": hashlib.blake2b(to.encode() + said, digest_size=16).digest(),
            "text": text,
            "file_name": name,
            "file_size": size,
            "bulk": check_type("bulk", message.bulk, bool),
            "not_before": not_before,
            "not_after": not_after,
            "due_at": not_before,
            "created_at": now(),
        },
        content,
    )


def check_key(key: object) -> str:
    """Check the key of a message."""
    if not isinstance(key, str):
        raise InvalidArgumentError(f"key is a str, not {type(key).__name__}")
    if not 1 <= len(key) <= LONGEST_KEY:
        raise InvalidArgumentError(f"key has 1 to {LONGEST_KEY} characters, not {len(key)}")
    if key.startswith(RESERVED):
        raise InvalidArgumentError(
            f"key begins with {' or '.join(map(repr, RESERVED))}, which the package keeps for"
            " itself: choose another beginning"
        )
    if not is_storable(key):
        raise InvalidArgumentError(
            "key has a NUL character or half of a surrogate pair, which cannot be stored"
        )
    return exact(key)


def is_storable(text: str) -> bool:
    """Whether a database can store a text."""
    return "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def entry(row: Any) -> OutboxEntry:
    """Return what the row of a message tells."""
    receipt, error = decode_outcome(row.outcome)
    return OutboxEntry(
        number=row.number,
        state=cast(OutboxState, row.state),
        requests=row.request,
        receipt=receipt,
        error=error,
        business_id=row.business_id,
        chat_id=row.chat_id,
        order_id=row.context_id if row.context == "order" else None,
        return_id=row.context_id if row.context == "return" else None,
        text=row.text,
        filename=row.file_name,
        file_size=row.file_size,
        key=None if row.key.startswith(RANDOM) else row.key,
        bulk=row.bulk,
        not_before=moment(row.not_before),
        not_after=moment(row.not_after),
        created_at=EPOCH + row.created_at * MICROSECOND,
        ended_at=moment(row.ended_at),
    )


def moment(microseconds: int | None) -> datetime | None:
    """Return a stored time as a datetime."""
    return None if microseconds is None else EPOCH + microseconds * MICROSECOND


def _address(message: Put) -> tuple[int | None, str | None, int | None]:
    given: Sequence[object] = (message.chat_id, message.order_id, message.return_id)
    if sum(value is not None for value in given) != 1:
        raise InvalidArgumentError(
            "a message is to a chat, an order or a return: pass one of chat_id, order_id and"
            " return_id"
        )
    if message.order_id is not None:
        return None, "order", check_id("order_id", message.order_id)
    if message.return_id is not None:
        return None, "return", check_id("return_id", message.return_id)
    return check_id("chat_id", message.chat_id), None, None


def _moment(name: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidArgumentError(f"{name} is a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidArgumentError(
            f"{name} has no time zone: pass an aware datetime, such as datetime.now(UTC)"
        )
    try:
        return (value.astimezone(UTC) - EPOCH) // MICROSECOND
    except OverflowError:
        raise InvalidArgumentError(f"{name} is out of range: pass None for no limit") from None


def _read(upload: Upload) -> tuple[str, bytes]:
    try:
        file = upload.open()
        try:
            content = upload.read(file, 0, upload.size)
        finally:
            upload.done(file)
    except Exception as error:  # noqa: BLE001 - a file of the caller may raise anything
        raise InvalidArgumentError(f"the file cannot be read: {error}") from None
    if not isinstance(content, bytes) or len(content) != upload.size:
        raise InvalidArgumentError("the file changed while it was read: put it again")
    return upload.name, content


def _random_key() -> str:
    return RANDOM + base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
