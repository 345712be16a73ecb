"""Running the sandbox for other programs."""

from __future__ import annotations

import asyncio
import random
import shlex
from contextlib import suppress
from typing import Annotated

import typer

from yamarket_chat.limits import Limits, Rate
from yamarket_chat.sandbox import Sandbox, random_faults

from . import console

DOCUMENTED = Limits()


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
    faults: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Which share of the requests fails, from 0 to 1, in every way that the Market"
            " can: resets, no answer, 5xx, half an answer, 420, each before or after the request"
            " was carried out.",
        ),
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="The same faults again; by default others each time.")
    ] = None,
) -> None:
    """Run a sandbox on this machine that answers as the Market does, until Ctrl-C.

    It takes any chat number. Paste the lines that it prints into another terminal
    to talk to it.

    Example: yamarket-chat sandbox --port 8080 --requests 100 --per 60
    """
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
        console.note(f"{faults:.0%} of the requests fail; the same again with --seed {seed}")
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(_serve(market))
    except OSError as error:
        console.failure(f"cannot listen on {host}, port {port}: {error.strerror or error}")
        raise typer.Exit(1) from None


async def _serve(market: Sandbox) -> None:
    """Run the sandbox until this task is cancelled. Raises OSError where it cannot listen."""
    async with market:
        console.note("The sandbox runs until Ctrl-C. In another terminal:")
        for name, value in (
            ("YAMARKET_BASE_URL", market.url),
            ("YAMARKET_API_KEY", market.api_key),
            ("YAMARKET_BUSINESS_ID", str(market.business_id)),
        ):
            console.result(f"export {name}={shlex.quote(value)}")
        console.note('yamarket-chat send 7 "Your order is on its way"')
        try:
            await asyncio.Event().wait()
        finally:
            console.note(
                f"Stopped: messages {market.messages_stored}, chats {len(market.chat_ids)},"
                f" refused requests {market.refused}"
            )
