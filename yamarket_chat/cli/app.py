"""The commands as they are typed: names and exit statuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from yamarket_chat import __version__
from yamarket_chat.errors import ChatError, InvalidArgumentError

from . import console, environment
from .chats import chats
from .demo import demo
from .history import history
from .new_chat import new_chat
from .quota import quota
from .sandbox import sandbox
from .send import send, send_file
from .send_many import send_many
from .watch import watch
from .whoami import whoami

NAME = "yamarket-chat"

NOT_DONE = 1
WRONG_USE = 2

DASH = ": put -- before a text that begins with a dash"

app = typer.Typer(
    help="Talk to the buyers of Yandex.Market: in order, and within the Market's limits.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # paragraphs as wide as the terminal
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
    sandbox,
):
    app.command()(_command)


def run() -> int:
    """Run the command; whatever a user can get wrong is one line, never a traceback."""
    console.replace_what_cannot_be_written()
    try:
        # The help, and what is written past the helpers.
        with console.writing():
            status = app(prog_name=NAME, standalone_mode=False)
    except typer.TyperException as error:
        if text := error.format_message():
            context = getattr(error, "ctx", None)
            path = NAME if context is None else context.command_path
            hint = DASH if text.startswith("No such option") and path == f"{NAME} send" else ""
            console.failure(f"{text.rstrip('.')}{hint}; see {path} --help")
        return error.exit_code
    except InvalidArgumentError as error:
        console.failure(console.describe(error))
        return WRONG_USE
    except ChatError as error:
        console.failure(console.describe(error))
        return NOT_DONE
    except console.OutputError as error:
        if not error.closed:  # whoever closed it wants no more
            console.failure(str(error))
        return NOT_DONE
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
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    console.show_log(logging.WARNING)
    environment.load(Path(".env"))
