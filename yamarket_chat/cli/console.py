"""What the command writes: results on standard output, all else on standard error."""

from __future__ import annotations

import logging
import re

from rich.console import Console
from rich.text import Text

from yamarket_chat.errors import ChatError, DeliveryUnknownError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

logger = logging.getLogger("yamarket_chat")

_ARGUMENT = re.compile(r"\b(api_key|business_id|base_url|insecure_http)\b(=True)?")


def result(text: str) -> None:
    """One line on standard output, however long; never broken, so that programs can read it."""
    out.print(Text(_printable(text)), soft_wrap=True)


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
    err.print(head + Text(_printable(text)), soft_wrap=not err.is_terminal)


def describe(error: ChatError) -> str:
    """What happened and what to do, with the options of the command for the SDK's arguments."""
    if isinstance(error, DeliveryUnknownError):
        seen = f" ({error.pending.seen})" if error.pending.seen else ""
        return (
            f"the message to chat {error.pending.chat_id} may have arrived: nothing tells{seen}."
            " Look at the chat before you send it again"
        )
    return _ARGUMENT.sub(lambda match: "--" + match[1].replace("_", "-"), str(error))


def show_log(level: int) -> None:
    """Show what the SDK logs from this level on, as plain lines."""
    logger.setLevel(level)
    logger.handlers = [_Lines(level)]
    logger.propagate = False


class _Lines(logging.Handler):
    """Log records as lines of the console, which knows how to write beside a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        show = note if record.levelno < logging.WARNING else warning
        show(record.getMessage())


def _printable(text: str) -> str:
    # Texts of the Market and of users end up here: no line breaks, no control codes.
    return "".join(c if c.isprintable() else " " for c in text)
