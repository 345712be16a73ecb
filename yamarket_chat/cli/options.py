"""Arguments and options that the commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from . import console


def _warn_of_key(context: typer.Context, value: str | None) -> str | None:
    source = context.get_parameter_source("api_key")
    if source is not None and source.name == "COMMANDLINE":
        console.warning("--api-key shows in the list of processes: better set YAMARKET_API_KEY")
    return value


ChatId = Annotated[int, typer.Argument(metavar="CHAT_ID", min=1, help="The number of the chat.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="YAMARKET_API_KEY",
        help="The seller's Api-Key.",
        show_default=False,
        callback=_warn_of_key,
    ),
]
BusinessId = Annotated[
    int | None,
    typer.Option(
        envvar="YAMARKET_BUSINESS_ID",
        min=1,
        help="The number of the seller's business.",
        show_default=False,
    ),
]
BaseUrl = Annotated[
    str,
    typer.Option(
        envvar="YAMARKET_BASE_URL",
        help="Where the API is, if not at the Market's own address.",
        show_default=False,
    ),
]
InsecureHttp = Annotated[
    bool,
    typer.Option("--insecure-http", help="Allow plain http to another host than this one."),
]
GiveUpAfter = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="How long to try again where the Market does not answer."
    ),
]
