"""Arguments and options that the commands share, and the session that they make."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.retry import Retry
from yamarket_chat.session import ChatSession

from . import console, environment


def _warn_of_key(context: typer.Context, value: str | None) -> str | None:
    source = context.get_parameter_source("api_key")
    if source is not None and source.name == "COMMANDLINE":
        console.warning("--api-key shows in the list of processes: better set YAMARKET_API_KEY")
        # What is on the command line is looked at before the variables: that of the URL comes yet.
        environment.key_is_not_from_file()
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
        help="The number of the seller's business; whoami tells it.",
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
Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON object a line.")]

GIVE_UP_AFTER = 30.0
"""Seconds that a person waits for one answer."""
GO_ON_FOR = Retry().give_up_after
"""Seconds for which what runs by itself tries again: as long as the SDK does."""


def standard_input() -> bytes:
    """All of it. Raises InvalidArgumentError where it is closed."""
    if sys.stdin is None:
        raise InvalidArgumentError("standard input is closed: nothing can be read from it")
    return sys.stdin.buffer.read()


def connect(
    api_key: str | None,
    business_id: int | None,
    base_url: str,
    insecure_http: bool,
    give_up_after: float,
    **settings: Any,
) -> ChatSession:
    """The session that these options ask for. Raises InvalidArgumentError."""
    return ChatSession(
        api_key,
        business_id,
        base_url=base_url,
        retry=Retry(give_up_after=give_up_after),
        insecure_http=insecure_http,
        **settings,
    )
