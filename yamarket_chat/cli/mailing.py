"""A mailing of `send-many`: the messages of a file, in an outbox of their own.

The key of a message in the outbox is a hash of its chat and text, and how often these two stood in
the file before. So a run knows the messages again, wherever in the file they stand now, and equal
messages are sent as often as they are there. What was not sent yet follows the file. What was sent
stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from yamarket_chat.errors import ChatError
from yamarket_chat.outbox import Outbox, OutboxEntry, OutboxMessage, deciding, inside
from yamarket_chat.outbox.outcomes import encode_outcome

from . import console
from .encodings import BadFile
from .records import Messages, Record
from .report import Line, digest

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PREFIX = "send-many:"
"""How the keys of these messages begin."""

FOREVER = 100 * 365 * 24 * 3600.0
"""Seconds for which messages are kept: what was forgotten would be sent again."""

ENDED = ("delivered", "unknown", "cancelled")
"""What is not sent any more. A message that was refused is sent again."""

WITHDRAWN = encode_outcome(
    ChatError("its line was removed, moved or changed in the file", sent=False)
)
"""The outcome of a message that a run has cancelled. One that a person has cancelled has none."""

MAX_SHOWN = 10
"""The number of changes of each kind that are listed one by one."""


class BadOutbox(BadFile):
    """An outbox that cannot be used for a file."""


class AnotherRunError(Exception):
    """Another run sends the messages of this outbox."""


@contextmanager
def locked(outbox: Path) -> Iterator[None]:
    """Keep other runs away from an outbox. Raises AnotherRunError, and OSError.

    The operating system frees the lock of a killed run.
    """
    path = outbox.with_name(outbox.name + "-lock")
    file = _lock(path)
    while not _is(file, path):  # the run before has just removed it
        os.close(file)
        file = _lock(path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        os.close(file)


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise AnotherRunError from None
    except BaseException:
        os.close(file)
        raise
    return file


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


class Mailing:
    """What is to be done with each message of a file.

    Attributes:
        numbers: By message, the number in the outbox; 0 as long as it is not put.
        lines: By message, the line of the file.
        ended: By message of which an earlier run knows the outcome, its state; by message that a
            person has cancelled as well.
        again: Numbers of messages that were refused, and are sent again.
        dropped: Numbers of messages that are not sent any more. Some are put anew, behind others.
        known: Whether the outbox has any messages.
        known_until: The index of the last message that the outbox has.
        reported: Whether the report is of these messages, if there is one.
        under_way: How many messages were under way when the run before ended.
        changes: What was changed in the file since the last run, a line each.
    """

    def __init__(self) -> None:
        self.numbers: array[int] = array("q")
        self.lines: array[int] = array("q")
        self.ended: dict[int, str] = {}
        self.again: list[int] = []
        self.dropped: list[int] = []
        self.under_way = 0
        self.known = False
        self.known_until = -1
        self.reported = True
        self.changes: list[str] = []
        self._copies: array[int] = array("q")  # by message: how many equal ones came before

    @property
    def left(self) -> int:
        """How many messages are to be sent."""
        return len(self.numbers) - len(self.ended)

    def cancelled(self) -> list[int]:
        """Return the lines of the messages that a person has cancelled."""
        return [self.lines[index] for index, state in self.ended.items() if state == "cancelled"]

    async def put(self, outbox: Outbox, business_id: int, messages: Messages) -> None:
        """Bring the outbox to what the file says. Raises BadFile."""
        for number in self.dropped:
            # Nothing is put before: its message would be there twice.
            if not await inside.database(outbox).write(deciding.withdraw, number, WITHDRAWN):
                raise BadOutbox(["another program sends its messages; end that program first"])
        for number in self.again:
            await outbox.retry(number)

        def missing() -> Iterator[OutboxMessage]:
            for index, record in enumerate(messages):
                if not self.numbers[index]:
                    key = f"{PREFIX}{_content(record).hex()}:{self._copies[index]}"
                    yield OutboxMessage(business_id, record.chat_id, record.text, key=key)

        numbers = iter(await outbox.put_many(missing()))
        for index, number in enumerate(self.numbers):
            if not number:
                self.numbers[index] = next(numbers)


class _Known(msgspec.Struct, gc=False):
    """A message of the outbox."""

    number: int
    state: str
    chat_id: int

    @property
    def may_be_sent(self) -> bool:
        return self.state in ("leaving", "delivered", "unknown")


class _Stored:
    """The messages of an outbox, without those that a run has cancelled."""

    def __init__(self) -> None:
        self.known: dict[bytes, list[_Known]] = {}  # by content, those with the same one in order
        self.copies: Counter[bytes] = Counter()  # by content: how often it was ever put
        self.sent = 0

    def add(self, entry: OutboxEntry) -> None:
        key = entry.key or ""
        hexadecimal, _, copy = key.removeprefix(PREFIX).partition(":")
        if not key.startswith(PREFIX) or entry.chat_id is None:
            raise BadOutbox(["it belongs to another program; pass another --outbox"])
        content = bytes.fromhex(hexadecimal)
        self.copies[content] = max(self.copies[content], int(copy) + 1)
        if entry.state != "cancelled" or entry.error is None:
            known = _Known(entry.number, entry.state, entry.chat_id)
            self.known.setdefault(content, []).append(known)
            self.sent += known.may_be_sent

    def take(self, content: bytes) -> _Known | None:
        """Take the first message with a content, rather one that is not cancelled."""
        known = self.known.get(content)
        if known is None:
            return None
        first = next((one for one in known if not _is_cancelled(one)), known[0])
        known.remove(first)
        if not known:
            del self.known[content]
        return first

    def rest(self) -> list[_Known]:
        """Return what was not taken and is not cancelled."""
        rest = (one for some in self.known.values() for one in some)
        return sorted((one for one in rest if not _is_cancelled(one)), key=_number)


async def compare(
    outbox: Outbox | None, messages: Messages, business_id: int | None, reported: Line | None
) -> Mailing:
    """Compare a file with its outbox; None if there is none yet.

    Args:
        outbox: The outbox.
        messages: The messages of the file.
        business_id: The business that they are sent for, if it is known.
        reported: The first line of the report that is to be replaced.

    Raises:
        BadFile: They do not belong together, or a message was changed after it was sent.
    """
    stored, fits = _Stored(), reported is None
    if outbox is not None:
        async for entry in outbox.entries():
            if business_id not in (None, entry.business_id):
                raise BadOutbox(
                    [
                        f"its messages are of business {entry.business_id}, not {business_id};"
                        " pass another --outbox"
                    ]
                )
            stored.add(entry)
            if reported is not None and not fits and entry.chat_id == reported.chat_id:
                fits = digest(entry.text or "") == reported.text_sha256
    is_known = bool(stored.copies)
    mailing, new = _match(messages, stored)
    mailing.known, mailing.reported = is_known, fits
    gone = stored.rest()
    mailing.dropped += [one.number for one in gone if one.state == "waiting"]
    mailing.under_way += sum(one.state == "leaving" for one in gone)
    if gone or new:
        assert outbox is not None  # noqa: S101 - or there would be neither
        await _explain(mailing, gone, new, outbox)
    # A file without messages was cut off, rather than emptied to cancel all of them.
    if gone and len(messages) == len(new) and (stored.sent or not messages):
        raise BadOutbox(
            [
                "it has other messages, and none of this file; pass another --outbox, or delete it"
                " if they are not needed any more"
            ]
        )
    return mailing


class _New(msgspec.Struct, gc=False):
    """A line that is not in the outbox."""

    index: int
    line: int
    chat_id: int


def _match(messages: Messages, stored: _Stored) -> tuple[Mailing, list[_New]]:
    """Look up each message of a file; return also which of them are new, if any are not."""
    mailing, new = Mailing(), list[_New]()
    fresh = not stored.known
    last: dict[int, int] = {}  # by chat: the highest number so far
    behind: set[int] = set()  # chats in which a message comes before some that are known
    for index, record in enumerate(messages):
        content, chat_id = _content(record), record.chat_id
        known = stored.take(content)
        if known is not None:
            mailing.known_until = index
        mailing.lines.append(record.line)
        if known is None:
            if not fresh:
                new.append(_New(index, record.line, chat_id))
                behind.add(chat_id)
        elif known.state in ("waiting", "refused") and (
            chat_id in behind or known.number < last.get(chat_id, 0)
        ):
            # A chat's messages are sent in the order of their numbers: it needs a higher one.
            mailing.dropped.append(known.number)
            if chat_id not in behind:
                behind.add(chat_id)
                mailing.changes.append(f"line {record.line}, chat {chat_id}: moved")
            known = None
        if known is None:
            mailing.numbers.append(0)
            mailing._copies.append(stored.copies[content])
            stored.copies[content] += 1
            continue
        mailing.numbers.append(known.number)
        mailing._copies.append(0)
        if known.state not in ENDED:
            last[chat_id] = known.number
        if known.state == "refused":
            mailing.again.append(known.number)
        elif known.state == "leaving":
            mailing.under_way += 1
        elif known.state in ENDED:
            mailing.ended[index] = known.state
    return mailing, new


async def _explain(
    mailing: Mailing, gone: Sequence[_Known], new: Sequence[_New], outbox: Outbox
) -> None:
    """Say what was changed in the file. Raises BadFile if messages were changed that were sent."""
    by_chat: defaultdict[int, list[_New]] = defaultdict(list)
    for one in new:
        by_chat[one.chat_id].append(one)
    changed: set[int] = set()
    problems: list[str] = []
    for known in gone:
        was = await _was(outbox, known)
        if by_chat[known.chat_id]:
            line = by_chat[known.chat_id].pop(0)
            changed.add(line.index)
            where = f"line {line.line}, chat {known.chat_id}"
            if known.may_be_sent:
                problems.append(f"{where}: the text was changed after the message {was}")
            else:
                mailing.changes.append(f"{where}: changed; the message before {was}")
        else:
            mailing.changes.append(f"chat {known.chat_id}: removed; the message {was}")
    if problems:
        raise BadFile(
            problems,
            [
                "Put the old texts back to send the others. To send a corrected text as well, add a"
                " line for it. To send the whole file as another mailing, pass another --outbox"
            ],
        )
    inserted = [one for one in new if one.index < mailing.known_until and one.index not in changed]
    mailing.changes += (f"line {one.line}, chat {one.chat_id}: new" for one in inserted)
    added = len(new) - len(inserted) - len(changed)
    if added:
        mailing.changes.append(f"{console.number(added, 'message')} at the end of the file: new")


async def _was(outbox: Outbox, known: _Known) -> str:
    """Say which message it was, and what became of it."""
    entry = await outbox.get(known.number)
    text = f"{console.printable(entry.text or '')!r:.40}" if entry else ""
    match known.state:
        case "waiting":
            became = "was not sent"
        case "delivered":
            became = "was delivered"
        case "refused":
            became = "was refused"
        case _:
            became = "may have been sent"
    return f"{text} {became}"


def _content(record: Record) -> bytes:
    said = f"{record.chat_id}:{record.text}".encode()
    return hashlib.blake2b(said, digest_size=16).digest()


def _number(known: _Known) -> int:
    return known.number


def _is_cancelled(known: _Known) -> bool:
    return known.state == "cancelled"
