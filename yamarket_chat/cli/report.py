"""The report of a mailing: what became of each message, and where the next run goes on.

While a run writes a report, an empty file of the same name with `.running` behind it stands beside
it. Where it still does when the next one begins, the run was killed, and what it had in hand may
have arrived without a line in the report.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Self

import msgspec

from yamarket_chat.errors import (
    ChatError,
    DeliveryUnknownError,
    InvalidArgumentError,
    MaxWaitExceededError,
    SessionClosedError,
)
from yamarket_chat.pending import Pending
from yamarket_chat.receipts import Outcome

from . import console
from .records import BadFile, Record

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Status = Literal["delivered", "refused", "unknown"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one message; of several lines for a `number`, the last one counts.

    `number` is the message's place in the file, from 1, and `line` the line that it begins in.
    `pending` is what it takes to find a message of unknown outcome later.
    """

    number: int
    line: int
    chat_id: int
    text_sha256: str
    status: Status
    attempts: int | None = None
    confirmed_by: str | None = None
    trace_id: str | None = None
    error: str | None = None
    pending: Pending | None = None


def line_of(record: Record, outcome: Outcome) -> Line:
    """The line that tells how a message ended."""
    receipt = outcome.receipt if outcome.status == "delivered" else None
    error = None if outcome.status == "delivered" else outcome.error
    pending = error.pending if isinstance(error, DeliveryUnknownError) else None
    return Line(
        number=record.number,
        line=record.line,
        chat_id=record.chat_id,
        text_sha256=digest(record.text),
        status=outcome.status,
        attempts=receipt.requests if receipt else _attempts(error),
        confirmed_by=receipt.confirmed_by if receipt else None,
        trace_id=receipt.trace_id if receipt else getattr(error, "trace_id", None),
        error=console.describe(error) if error else None,
        pending=pending,
    )


def _attempts(error: ChatError | None) -> int | None:
    if isinstance(error, DeliveryUnknownError):
        return error.pending.requests
    if isinstance(error, InvalidArgumentError | MaxWaitExceededError | SessionClosedError):
        return 0
    return None  # the others do not tell


def digest(text: str) -> str:
    """By which a text is known again."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Busy(Exception):
    """Another run is writing the report."""


class Report:
    """A report that is written; each line is in the file when `add` returns.

    The file is locked as long as it is open, and the system unlocks that of a killed run.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Raises Busy."""
        self.path = path
        self._file = file
        self._running = _running(path)
        try:
            _lock(file)
        except Busy:
            file.close()
            raise

    @classmethod
    def begin(cls, path: Path) -> Self:
        """A new report. Raises Busy, FileExistsError and other OSErrors."""
        return cls(path, path.open("xb"))

    @classmethod
    def go_on(cls, path: Path, records: Sequence[Record]) -> tuple[Self, Earlier]:
        """Write behind what a report has, and tell what that is.

        Raises Busy, and what `earlier` raises.
        """
        report = cls(path, path.open("r+b"))
        file = report._file
        try:
            before = earlier(path, records)
        except BaseException:
            file.close()
            raise
        # What a killed run had begun to write is no line.
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        return report, before

    def __enter__(self) -> Self:
        self._running.touch()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._running.unlink(missing_ok=True)

    def add(self, line: Line) -> None:
        """Write a line."""
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


class Earlier(msgspec.Struct, frozen=True):
    """What a report tells: the last line for each number, and whether its run was killed."""

    lines: Mapping[int, Line]
    killed: bool

    def status(self, record: Record) -> Status | None:
        """What became of a message, None where it has no line."""
        line = self.lines.get(record.number)
        return line.status if line else None


def earlier(path: Path, records: Sequence[Record]) -> Earlier:
    """Read a report. Raises BadFile where it is none, or that of another file; OSError."""
    lines: dict[int, Line] = {}
    decode = msgspec.json.Decoder(Line).decode
    for number, row in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = decode(row)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BadFile([f"{path}, line {number}: this is no report ({error})"]) from None
        record = records[line.number - 1] if 0 < line.number <= len(records) else None
        if record is None or (record.chat_id, digest(record.text)) != (
            line.chat_id,
            line.text_sha256,
        ):
            raise BadFile(
                [
                    f"{path}, line {number}: message {line.number} is another one in the file:"
                    " go on with the file that the report is about, unchanged"
                ]
            )
        lines[line.number] = line
    return Earlier(lines, _running(path).exists())


FAR_OFF = 1 << 30
"""The byte that is locked on Windows, where nobody can read what is locked."""


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        file.seek(FAR_OFF)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise Busy from None
        finally:
            file.seek(0)
    else:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        except OSError:
            pass  # a file system without locks


def _running(path: Path) -> Path:
    return path.with_name(path.name + ".running")
