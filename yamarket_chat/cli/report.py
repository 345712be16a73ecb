"""The report of `send-many`: a line for each message whose outcome is known.

The outbox knows all of it. So each run writes the report anew, with what earlier runs have sent,
and nothing is missing after a run that was killed, or whose disk was full.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import msgspec

from yamarket_chat.errors import DeliveryUnknownError
from yamarket_chat.pending import Pending

from . import console

if TYPE_CHECKING:  # SQLAlchemy takes a while to import
    from yamarket_chat.outbox import OutboxEntry

Status = Literal["delivered", "refused", "unknown"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one message.

    `number` is the number of the message in the file, from 1. `line` is the line in which the
    message begins. `pending` says how a message of unknown outcome can be found.
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


def line_of(number: int, line: int, entry: OutboxEntry) -> Line:
    """Create the line for a message that has ended."""
    receipt, error = entry.receipt, entry.error
    return Line(
        number=number,
        line=line,
        chat_id=entry.chat_id or 0,
        text_sha256=digest(entry.text or ""),
        status=cast(Status, entry.state),
        attempts=entry.requests,
        confirmed_by=receipt.confirmed_by if receipt else None,
        trace_id=receipt.trace_id if receipt else getattr(error, "trace_id", None),
        error=console.describe(error) if error else None,
        pending=error.pending if isinstance(error, DeliveryUnknownError) else None,
    )


def digest(text: str) -> str:
    """Hash a text for the report."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(path: Path, others: Iterable[Path]) -> Path:
    """Return the file of a report itself, to which links lead.

    Args:
        path: Its path.
        others: Files of the run that it must not be.

    Raises:
        ValueError: It cannot be a report.
        OSError: It cannot be looked at.
    """
    found = path.stat() if path.exists() else None
    if found is not None and (not stat.S_ISREG(found.st_mode) or _is_output(found)):
        raise ValueError("must be a regular file; --json prints the outcomes to standard output")
    real = Path(os.path.realpath(path))
    for other in others:
        same = found is not None and other.exists() and os.path.samestat(found, other.stat())
        if same or real == Path(os.path.realpath(other)):
            raise ValueError(f"must be a file of its own, and not {other}")
    return real


def _is_output(found: os.stat_result) -> bool:
    """Whether a file is where standard output or standard error go."""
    for file in (1, 2):
        with suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(file)):
                return True
    return False


def first_line(path: Path) -> Line | None:
    """Return the first line of a report; None if there is none yet.

    Raises ValueError if the file is not a report, and OSError.
    """
    try:
        with path.open("rb") as file:
            first = file.readline()
    except FileNotFoundError:
        return None
    if (not first.endswith(b"\n") and first.startswith(b'{"number":')) or not first:
        return None  # the run before was killed as it wrote the line
    try:
        return msgspec.json.decode(first, type=Line)
    except msgspec.MsgspecError as error:  # it is no ValueError in old versions
        raise ValueError(str(error)) from None


class Report:
    """A report that this run writes.

    It is a new file until all that is known is in it. Then it takes the place of the one before.
    """

    def __init__(self, path: Path) -> None:
        """Begin the new file. Raises OSError."""
        self.path = path
        self._mode = _mode(path)
        number, new = tempfile.mkstemp(".new", "report-", path.parent)
        self._new = Path(new)
        self._file: BinaryIO = os.fdopen(number, "wb")
        self._placed = False

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of a full disk, which was told before
            self._file.close()
        if not self._placed:
            self._new.unlink(missing_ok=True)

    def add(self, line: Line) -> None:
        """Append a line."""
        self._file.write(msgspec.json.encode(line) + b"\n")
        if self._placed:
            self._file.flush()

    def place(self) -> None:
        """Let the new file take the place of the old one."""
        self._file.close()  # Windows renames no open file
        self._new.replace(self.path)
        self._file, self._placed = self.path.open("ab"), True
        with suppress(OSError):  # not every file system has modes
            self.path.chmod(self._mode)


def _mode(path: Path) -> int:
    """Return the mode of a report: that of the one before, or that of any new file."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0o077)
        os.umask(mask)
        return 0o666 & ~mask
