"""What the command writes: results on standard output, all else on standard error."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from yamarket_chat.errors import ChatError, DeliveryUnknownError

INTERRUPTED = 130
"""The exit status after Ctrl-C."""

WIDEST = 1000
"""Columns of a table in a file."""

_UNWRITABLE = {
    *(errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF),
    errno.EINVAL,  # a closed pipe on Windows
}


class OutputError(Exception):
    """Standard output takes nothing more; `closed` where its reader is gone, such as `head`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror or error}")
        self.closed = isinstance(error, BrokenPipeError)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Not rich's SystemExit, which ends an event loop in the middle of its work.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)

logger = logging.getLogger("yamarket_chat")

_FOR_PROGRAMS = {
    "campaigns() tells it": "yamarket-chat whoami tells it",
    "; pass max_wait to be refused instead": "",
}
_ARGUMENT = re.compile(r"\b(api_key|business_id|base_url|insecure_http)\b(=True)?")


def result(text: str) -> None:
    """One line on standard output, however long; never broken, so that programs can read it."""
    with writing():
        out.print(Text(printable(text)), soft_wrap=True)


def data(value: Any) -> None:
    """One line of JSON on standard output, in UTF-8 whatever the terminal has."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")
    with writing():
        out.out(msgspec.json.encode(value).decode(), highlight=False)


@contextmanager
def writing() -> Iterator[None]:
    """Raise OutputError where standard output takes nothing more, and write no more to it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        out.quiet = True
        discard_output()
        raise OutputError(error) from None


def discard_output() -> None:
    """Let what is left in the buffer go nowhere, or Python complains of it at its end."""
    with suppress(OSError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def replace_what_cannot_be_written() -> None:
    """Write a question mark for what the encoding of standard output does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def note(text: str) -> None:
    """One line on standard error."""
    _tell(Text(), text)


def warning(text: str) -> None:
    """One line on standard error about something that does not stop the command."""
    _tell(Text("Warning: ", style="yellow"), text)


def failure(text: str) -> None:
    """One line on standard error about what made the command fail."""
    _tell(Text("Error: ", style="bold red"), text)


def _tell(head: Text, text: str) -> None:
    # A terminal gets it broken between words, a file as the one line that it is.
    try:
        err.print(Text.assemble(head, printable(text)), soft_wrap=not err.is_terminal)
    except OSError:
        err.quiet = True  # nobody reads it: no reason to stop


def describe(error: ChatError) -> str:
    """What happened and what to do, with the options of the command for the SDK's arguments."""
    if isinstance(error, DeliveryUnknownError):
        seen = f" ({error.pending.seen})" if error.pending.seen else ""
        return (
            f"the message to chat {error.pending.chat_id} may have arrived: nothing tells{seen}."
            " Look at the chat before you send it again"
        )
    return _for_people(str(error))


def _for_people(text: str) -> str:
    for said, instead in _FOR_PROGRAMS.items():
        text = text.replace(said, instead)
    return _ARGUMENT.sub(lambda match: "--" + match[1].replace("_", "-"), text)


def new_table(*columns: str) -> Table:
    """A table with these columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def cells(*values: object) -> list[Text]:
    """A row of a table; what is not known stays empty."""
    return [Text("" if value is None else printable(str(value))) for value in values]


def table(content: Table) -> None:
    """A table on standard output: as wide as the terminal, or as a file's longest row."""
    if not out.is_terminal:
        content.box = None
        content.padding = (0, 2, 0, 0)
    with writing():
        out.print(content, width=None if out.is_terminal else WIDEST, crop=False, soft_wrap=False)


def moment(time: datetime) -> str:
    """A time of the Market's, in the time zone of this machine."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def number(count: int, name: str) -> str:
    """
    >>> number(1000, "chat")
    '1,000 chats'
    """
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def show_log(level: int, at_most_every: float = 0.0) -> None:
    """Show what the SDK logs from this level on, as plain lines.

    Of what is less than a warning, one line in `at_most_every` seconds.
    """
    logger.setLevel(level)
    logger.handlers = [_Lines(level, at_most_every)]
    logger.propagate = False


class _Lines(logging.Handler):
    """Log records as lines of the console, which knows how to write beside a progress bar."""

    def __init__(self, level: int, at_most_every: float) -> None:
        super().__init__(level)
        self._pause = at_most_every
        self._shown = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        text = _for_people(record.getMessage())
        if record.levelno >= logging.WARNING:
            warning(text)
        elif record.created >= self._shown + self._pause:
            self._shown = record.created
            note(text)


def printable(text: str) -> str:
    """Fit for one line of a terminal."""
    # Texts of the Market and of users end up here: no line breaks, no control codes.
    return "".join(c if c.isprintable() else " " for c in text)
