"""The command `sandbox`: run the sandbox for other programs."""

from __future__ import annotations

import asyncio
import random
import shlex
from contextlib import suppress
from typing import Annotated

import typer

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Limits, Rate
from yamarket_chat.sandbox import (
    NotificationPlan,
    Sandbox,
    random_faults,
    random_notifications,
)

from . import console, options, signals
from .say import say

DOCUMENTED = Limits()


sandbox: typer.Typer = typer.Typer(rich_markup_mode="markdown", add_completion=False)
sandbox.command()(say)


@sandbox.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    *,
    host: options.Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free port.")
    ] = 0,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="The time that each request takes.")
    ] = 0.1,
    requests: Annotated[
        int, typer.Option(min=1, help="The limit of messages in --per seconds.")
    ] = DOCUMENTED.send_message.requests,
    per: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="The length of the window of --requests."),
    ] = DOCUMENTED.send_message.per,
    parallel: Annotated[
        int, typer.Option(min=1, help="The limit of parallel requests.")
    ] = DOCUMENTED.parallel,
    faults: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="The share of requests that fail, from 0 to 1. The faults are random: a reset, no"
            " response, 5xx, half a response or 420, before or after the request was executed.",
        ),
    ] = 0.0,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The address of a receiver, to which the sandbox sends notifications as the Market"
            " does.",
            show_default=False,
        ),
    ] = None,
    notify_faults: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="The share of notifications that are dropped, sent more than once or sent late,"
            " from 0 to 1.",
        ),
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="The seed of the faults. Default: a random one.")
    ] = None,
) -> None:
    """Run a local server that behaves like the Market, until Ctrl-C.

    Every chat id exists. Paste the lines that the command prints into another terminal to
    connect to the sandbox. There, the command `sandbox say` lets a buyer speak.

    Example: yamarket-chat sandbox --port 8080 --requests 100 --per 60
    """
    if context.invoked_subcommand is not None:
        return
    if notify_faults and notify is None:
        raise InvalidArgumentError("--notify-faults needs the address of a receiver: pass --notify")
    seed = random.randrange(1_000_000) if seed is None else seed
    market = Sandbox(
        host=host,
        port=port,
        latency=latency,
        limits={"send_message": Rate(requests, per=per)},
        parallel=parallel,
        faults=random_faults(faults, seed) if faults else None,
    )
    if faults:
        console.note(f"{faults:.0%} of the requests fail; --seed {seed} repeats the same faults")
    if notify_faults:
        console.note(
            f"{notify_faults:.0%} of the notifications are dropped, sent more than once or sent"
            f" late; --seed {seed} repeats the same faults"
        )
    try:
        with suppress(signals.Stopped):
            signals.run(_serve(market, notify, random_notifications(notify_faults, seed)))
    except OSError as error:
        console.failure(f"cannot listen on {host}, port {port}: {error.strerror or error}")
        raise typer.Exit(1) from None


async def _serve(market: Sandbox, notify: str | None, plan: NotificationPlan) -> None:
    """Run the sandbox until this task is cancelled. Raises OSError if it cannot listen."""
    async with market:
        if notify is not None:
            market.notify(notify, plan)
        console.note("The sandbox runs until Ctrl-C. Run this in another terminal:")
        for name, value in (
            ("YAMARKET_BASE_URL", market.url),
            ("YAMARKET_API_KEY", market.api_key),
            ("YAMARKET_BUSINESS_ID", str(market.business_id)),
        ):
            console.result(f"export {name}={shlex.quote(value)}")
        console.note('yamarket-chat send 7 "Your order is on its way"')
        console.note('yamarket-chat sandbox say 7 "Where is my order?"')
        try:
            await asyncio.Event().wait()
        finally:
            console.note(
                f"Stopped: messages {market.messages_stored}, chats {len(market.chat_ids)},"
                f" refused requests {market.refused}"
            )
