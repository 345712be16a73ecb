"""The report of `send-many`: the outcome of each message, and where the next run continues.

While a run writes a report, an empty file with the additional suffix `.running` exists beside the
report. If that file exists when the next run starts, the run before was killed. Then messages may
have been delivered that the report does not list.
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
    """The outcome of one message. If several lines have the same `number`, the last one counts.

    `number` is the number of the message in the file, from 1. `line` is the line in which the
    message begins. With `pending`, the outcome can be looked up later if it is unknown.
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
    """Create the line for a message and its outcome."""
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
    return None  # other errors do not know the number


def digest(text: str) -> str:
    """Hash a text, so that a later run can check that the text has not changed."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ReportLockedError(Exception):
    """Another run is writing the report."""


class Report:
    """A report that this run writes.

    The file is locked while it is open. The operating system releases the lock of a killed run.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Lock the file. Raises ReportLockedError."""
        self.path = path
        self._file = file
        self._marker = _running_marker(path)
        try:
            _lock(file)
        except ReportLockedError:
            file.close()
            raise

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create a new report. Raises ReportLockedError, FileExistsError and other OSErrors."""
        return cls(path, path.open("xb"))

    @classmethod
    def resume(cls, path: Path, records: Sequence[Record]) -> tuple[Self, PreviousRun]:
        """Open a report to append to it, and return what it contains already.

        Raises ReportLockedError, and the errors of `read_report`.
        """
        report = cls(path, path.open("r+b"))
        file = report._file
        try:
            before = read_report(path, records)
        except BaseException:
            file.close()
            raise
        # A killed run may have left an incomplete last line.
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        return report, before

    def __enter__(self) -> Self:
        self._marker.touch()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._marker.unlink(missing_ok=True)

    def add(self, line: Line) -> None:
        """Append a line and flush it to the file."""
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


class PreviousRun(msgspec.Struct, frozen=True):
    """The content of a report: the last line for each number, and whether the run was killed."""

    lines: Mapping[int, Line]
    killed: bool

    def status(self, record: Record) -> Status | None:
        """Return the status of a message, or None if the report does not list it."""
        line = self.lines.get(record.number)
        return line.status if line else None


def read_report(path: Path, records: Sequence[Record]) -> PreviousRun:
    """Read a report.

    Raises BadFile if the file is not a report or belongs to other messages, and OSError.
    """
    lines: dict[int, Line] = {}
    decode = msgspec.json.Decoder(Line).decode
    for number, row in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = decode(row)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BadFile(
                [f"{path}, line {number}: this is not a line of a report ({error})"]
            ) from None
        record = records[line.number - 1] if 0 < line.number <= len(records) else None
        if record is None or (record.chat_id, digest(record.text)) != (
            line.chat_id,
            line.text_sha256,
        ):
            raise BadFile(
                [
                    f"{path}, line {number}: message {line.number} is different in the file of"
                    " messages; pass the file for which the report was written, unchanged"
                ]
            )
        lines[line.number] = line
    return PreviousRun(lines, _running_marker(path).exists())


LOCKED_BYTE = 1 << 30
"""The byte to lock on Windows, far behind the content, because a locked byte cannot be read."""


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        file.seek(LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise ReportLockedError from None
        finally:
            file.seek(0)
    else:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReportLockedError from None
        except OSError:
            pass  # the file system does not support locks


def _running_marker(path: Path) -> Path:
    return path.with_name(path.name + ".running")
