"""The entry point: all commands, their errors and their exit statuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from yamarket_chat import __version__
from yamarket_chat.errors import ChatError, InvalidArgumentError

from . import console, environment, signals
from .chats import chats
from .demo import demo
from .history import history
from .new_chat import new_chat
from .notifications import notifications
from .outbox import outbox
from .quota import quota
from .sandbox import sandbox
from .send import send, send_file
from .send_many import send_many
from .watch import watch
from .whoami import whoami

NAME = "yamarket-chat"

EXIT_FAILURE = 1
EXIT_USAGE = 2

TAKES_TEXT = (f"{NAME} send", f"{NAME} sandbox say", f"{NAME} outbox put")
DASH_HINT = ": put -- before a text that begins with a dash"

app: typer.Typer = typer.Typer(
    help="Chat with the buyers of Yandex.Market, in order and within the Market's rate limits.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # wraps paragraphs at the width of the terminal
    pretty_exceptions_enable=False,
)
for _command in (
    demo,
    whoami,
    chats,
    history,
    watch,
    send,
    send_file,
    send_many,
    new_chat,
    quota,
):
    app.command()(_command)
app.add_typer(outbox, name="outbox")
app.add_typer(sandbox, name="sandbox")
app.add_typer(notifications, name="notifications")


def run() -> int:
    """Run the command. Each expected error is one line on standard error, without a traceback."""
    console.replace_unencodable_characters()
    try:
        # Also covers output that does not go through the helpers, such as the help.
        with console.writing():
            status = app(prog_name=NAME, standalone_mode=False)
    except typer.TyperException as error:
        if text := error.format_message():
            context = getattr(error, "ctx", None)
            path = NAME if context is None else context.command_path
            hint = DASH_HINT if text.startswith("No such option") and path in TAKES_TEXT else ""
            console.failure(f"{text.rstrip('.')}{hint}; see {path} --help")
        return error.exit_code
    except InvalidArgumentError as error:
        console.failure(console.describe(error))
        return EXIT_USAGE
    except ChatError as error:
        console.failure(console.describe(error))
        return EXIT_FAILURE
    except console.OutputError as error:
        if not error.closed:  # the reader has closed the pipe on purpose, such as `head`
            console.failure(str(error))
        return signals.exit_status(EXIT_FAILURE)  # SIGHUP: the terminal is closed
    return status if isinstance(status, int) else 0


def _show_version(value: bool) -> None:
    if value:
        console.result(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    console.show_log(logging.WARNING)
    environment.load(Path(".env"))
