"""The commands as they are typed: names, arguments, options, and exit statuses."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Annotated

import typer

from yamarket_chat import __version__
from yamarket_chat.calls import Retry
from yamarket_chat.errors import ChatError, InvalidArgumentError
from yamarket_chat.operations import Rate
from yamarket_chat.quota import Limits
from yamarket_chat.session import BASE_URL, ChatSession

from . import console, options

NAME = "yamarket-chat"

NOT_DONE = 1
WRONG_USE = 2

DOCUMENTED = Limits()

app = typer.Typer(
    help="Talk to the buyers of Yandex.Market: in order, and within the Market's limits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def run() -> int:
    """Run the command; whatever a user can get wrong is one line, never a traceback."""
    try:
        status = app(prog_name=NAME, standalone_mode=False)
    except typer.TyperException as error:
        if text := error.format_message():
            context = getattr(error, "ctx", None)
            path = NAME if context is None else context.command_path
            console.failure(f"{text.rstrip('.')}; see {path} --help")
        return error.exit_code
    except InvalidArgumentError as error:
        console.failure(console.describe(error))
        return WRONG_USE
    except ChatError as error:
        console.failure(console.describe(error))
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


@app.command()
def demo() -> None:
    """Send a few hundred messages through a sandbox on this machine, in some seconds.

    Nothing leaves this machine. What is shown at the end is what the sandbox saw.

    Example: yamarket-chat demo
    """
    from .demo import PLAN, play

    if not asyncio.run(play(PLAN)):
        raise typer.Exit(NOT_DONE)


@app.command()
def send(
    chat_id: options.ChatId,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The message: 1 to 4,096 characters.")
    ],
    *,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = 30.0,
) -> None:
    """Send a message to a buyer, and wait until it has arrived.

    Exit status: 0 delivered, 1 not delivered or not known to be, 2 wrong use,
    130 interrupted.

    Example: yamarket-chat send 17 "Your order is on its way"
    """
    from .send import deliver

    console.show_log(logging.INFO)  # someone waits for this one message: say why
    session = ChatSession(
        api_key,
        business_id,
        base_url=base_url,
        retry=Retry(give_up_after=give_up_after),
        insecure_http=insecure_http,
    )
    raise typer.Exit(asyncio.run(deliver(session, chat_id, text)))


@app.command()
def sandbox(
    *,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 0,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long each request takes.")
    ] = 0.1,
    requests: Annotated[
        int, typer.Option(min=1, help="How many messages may be sent in --per seconds.")
    ] = DOCUMENTED.send_message.requests,
    per: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="The time for which --requests counts."),
    ] = DOCUMENTED.send_message.per,
    parallel: Annotated[
        int, typer.Option(min=1, help="How many requests may be under way at once.")
    ] = DOCUMENTED.parallel,
) -> None:
    """Run a sandbox on this machine that answers as the Market does, until Ctrl-C.

    It takes any chat number. Paste the lines that it prints into another terminal
    to talk to it.

    Example: yamarket-chat sandbox --port 8080 --requests 100 --per 60
    """
    from yamarket_chat.sandbox import Sandbox

    from .sandbox import serve

    market = Sandbox(
        host=host,
        port=port,
        latency=latency,
        limits={"send_message": Rate(requests, per=per)},
        parallel=parallel,
    )
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(market))
    except OSError as error:
        console.failure(f"cannot listen on {host}, port {port}: {error.strerror or error}")
        raise typer.Exit(NOT_DONE) from None
