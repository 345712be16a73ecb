"""Output: results go to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from yamarket_chat.errors import ChatError, DeliveryUnknownError

MAX_FILE_WIDTH = 1000
"""Maximum width in columns of a table that is not written to a terminal."""

LEAST_WIDTH = 10
"""Width in columns below which no column of a table is wrapped."""

REPEAT_AFTER = 60.0
"""Seconds after which a warning is printed again that was the last one."""

_OUTPUT_ERRNOS = {
    *(errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF),
    errno.EINVAL,  # a closed pipe on Windows
}


class OutputError(Exception):
    """Standard output cannot be written to. `closed`: its reader has closed it, such as `head`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror or error}")
        self.closed: bool = isinstance(error, BrokenPipeError)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would raise SystemExit, which stops a running event loop.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


out: Console = _Console(highlight=False)
err: Console = _Console(stderr=True, highlight=False)
_file: Console = _Console(highlight=False, width=MAX_FILE_WIDTH)

logger: logging.Logger = logging.getLogger("yamarket_chat")

_SDK_PHRASES = {
    "campaigns() lists it": "yamarket-chat whoami shows it",
    "call `await outbox.create()` once": "run `yamarket-chat outbox create` once",
}
_SDK_ARGUMENT = re.compile(r"\b(api_key|business_id|base_url|insecure_http)\b(=True)?")


def result(text: str) -> None:
    """Print one line on standard output. It is never wrapped, so that programs can read it."""
    with writing():
        out.print(Text(printable(text)), soft_wrap=True)


def sentence(text: str) -> None:
    """Print a text on standard output: wrapped between words on a terminal, one line in a file."""
    with writing():
        out.print(Text(printable(text)), soft_wrap=not out.is_terminal)


def data(value: Any) -> None:
    """Print one line of JSON on standard output, always in UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")
    with writing():
        out.out(msgspec.json.encode(value).decode(), highlight=False)


@contextmanager
def writing() -> Iterator[None]:
    """Raise OutputError if standard output cannot be written to, and discard later output."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OUTPUT_ERRNOS:
            raise
        out.quiet = True
        discard_output()
        raise OutputError(error) from None


def discard_output() -> None:
    """Discard the buffered output, because Python would fail to flush it at exit."""
    with suppress(OSError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def replace_unencodable_characters() -> None:
    """Write "?" for each character that the encoding of standard output does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def note(text: str) -> None:
    """Print one line on standard error."""
    _print_message(Text(), text)


def warning(text: str) -> None:
    """Print one line on standard error about a problem that does not stop the command."""
    _print_message(Text("Warning: ", style="yellow"), text)


def failure(text: str) -> None:
    """Print one line on standard error about the error that made the command fail."""
    _print_message(Text("Error: ", style="bold red"), text)


def _print_message(prefix: Text, text: str) -> None:
    # Wrapped between words on a terminal, one line in a file.
    try:
        err.print(Text.assemble(prefix, printable(text)), soft_wrap=not err.is_terminal)
    except OSError:
        err.quiet = True  # standard error is closed; this must not stop the command


def describe(error: ChatError) -> str:
    """Describe an error, with the options of the command instead of the SDK's arguments."""
    if isinstance(error, DeliveryUnknownError):
        seen = f" ({error.pending.seen})" if error.pending.seen else ""
        return (
            f"it is unknown whether the message to chat {error.pending.chat_id} was"
            f" delivered{seen}. Check the chat before you send it again"
        )
    return _for_users(str(error))


def _for_users(text: str) -> str:
    for phrase, replacement in _SDK_PHRASES.items():
        text = text.replace(phrase, replacement)
    return _SDK_ARGUMENT.sub(lambda match: "--" + match[1].replace("_", "-"), text)


def new_table(*columns: str) -> Table:
    """Create a table with these columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def cells(*values: object) -> list[Text]:
    """Convert values to the cells of a row. None becomes an empty cell."""
    return [Text("" if value is None else printable(str(value))) for value in values]


def table(content: Table) -> None:
    """Print a table on standard output, at most as wide as the terminal if it is one."""
    with writing():
        if out.is_terminal and content.show_header and _needs(content) > out.width:
            _print_rows(content)
        elif out.is_terminal:
            out.print(content, crop=False, soft_wrap=False)
        elif not out.quiet:
            content.box = None
            content.padding = (0, 2, 0, 0)
            # `out` would never print more columns than it takes a terminal to have.
            _file.print(content, crop=False, soft_wrap=False)


def _needs(content: Table) -> int:
    """Return how many columns of the terminal a table needs, so that its ids stay whole."""
    _, right, _, left = content.padding
    needed = 0
    for column in content.columns:
        widest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        needed += widest if column.no_wrap else min(widest, LEAST_WIDTH)
    return needed + len(content.columns) * (left + 1 + right)


def _print_rows(content: Table) -> None:
    """Print each row of a table as a block: rich would cut what does not fit, even ids."""
    for number, cells in enumerate(zip(*(column.cells for column in content.columns), strict=True)):
        if number:
            out.print()
        for column, cell in zip(content.columns, cells, strict=True):
            if str(cell):
                out.print(Text(f"{column.header}: {cell}"), overflow="fold", soft_wrap=False)


def moment(time: datetime) -> str:
    """Format a time in the time zone of this machine."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def number(count: int, name: str) -> str:
    """Format a number of things.

    >>> number(1000, "chat")
    '1,000 chats'
    """
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds, such as 0:01:30."""
    return str(timedelta(seconds=round(seconds)))


def show_log(level: int, at_most_every: float = 0.0) -> None:
    """Print the SDK's log records of at least this level as lines on standard error.

    Records below WARNING are printed at most once in `at_most_every` seconds, and the same warning
    once a minute.
    """
    logger.setLevel(level)
    logger.handlers = [_LogHandler(level, at_most_every)]
    logger.propagate = False


def hide_from_log(hidden: Callable[[logging.LogRecord], bool]) -> None:
    """Print no record of which the function returns True."""
    for handler in logger.handlers:
        handler.addFilter(lambda record: not hidden(record))


class _LogHandler(logging.Handler):
    """Prints log records through the console, which does not disturb a progress bar."""

    def __init__(self, level: int, at_most_every: float) -> None:
        super().__init__(level)
        self._interval = at_most_every
        self._last_shown = -math.inf
        self._last_warning = ("", -math.inf)

    def emit(self, record: logging.LogRecord) -> None:
        text = _for_users(record.getMessage())
        if record.levelno >= logging.WARNING:
            said, at = self._last_warning
            if text != said or record.created >= at + REPEAT_AFTER:
                self._last_warning = text, record.created
                warning(text)
        elif record.created >= self._last_shown + self._interval:
            self._last_shown = record.created
            note(text)


def printable(text: str) -> str:
    """Replace line breaks and control codes, which texts of the Market and of users may contain."""
    return "".join(c if c.isprintable() else " " for c in text)
