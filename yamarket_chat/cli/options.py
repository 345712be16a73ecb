"""Arguments and options that the commands share, and the session that they configure."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.retry import Retry
from yamarket_chat.session import ChatSession

from . import console, environment


def _check_key(context: typer.Context, value: str | None) -> str | None:
    source = context.get_parameter_source("api_key")
    if source is not None and source.name == "COMMANDLINE":
        console.warning(
            "--api-key is visible in the list of processes; set YAMARKET_API_KEY instead"
        )
        # typer reads options on the command line first, so it has not read the URL variable yet.
        environment.ignore_url_from_file()
    if value and (value[0] in "'\"" or value[-1] in "'\""):
        raise typer.BadParameter(
            "the key begins or ends with a quote; remove the quotes (docker --env-file keeps them)"
        )
    if value and len(value.split()) > 1:
        raise typer.BadParameter(
            "the key contains a space; remove what does not belong to it, such as a comment"
        )
    return value


def _check_host(value: str) -> str:
    try:
        value.encode("idna")  # as the resolver does
    except UnicodeError:
        raise typer.BadParameter(f"{value!r:.60} is no name or address of a machine") from None
    return value


def _check_name(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise typer.BadParameter("the name is empty; leave --name out for the file's own name")
    return value


ChatId = Annotated[int, typer.Argument(metavar="CHAT_ID", min=1, help="The id of the chat.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="YAMARKET_API_KEY",
        help="The seller's Api-Key.",
        show_default=False,
        callback=_check_key,
    ),
]
BusinessId = Annotated[
    int | None,
    typer.Option(
        envvar="YAMARKET_BUSINESS_ID",
        min=1,
        help="The id of the seller's business. The command whoami shows it.",
        show_default=False,
    ),
]
BaseUrl = Annotated[
    str,
    typer.Option(
        envvar="YAMARKET_BASE_URL",
        help="The base URL of the API, for example of a sandbox. Default: the Market's.",
        show_default=False,
    ),
]
InsecureHttp = Annotated[
    bool,
    typer.Option(
        "--insecure-http", help="Allow plain http to other machines, not only to this one."
    ),
]
Host = Annotated[str, typer.Option(help="The address to listen on.", callback=_check_host)]
GiveUpAfter = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="How long to retry if the Market does not respond."
    ),
]
FileName = Annotated[
    str | None,
    typer.Option(
        help="The name of the file that the buyer sees. Default: its own name.",
        callback=_check_name,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for programs.")]

GIVE_UP_AFTER = 30.0
"""Seconds for commands whose result a person waits for."""
UNATTENDED_GIVE_UP_AFTER = Retry().give_up_after
"""Seconds for commands that run unattended: the default of the SDK."""


def standard_input() -> bytes:
    """Read all of standard input. Raises InvalidArgumentError if it is closed."""
    if sys.stdin is None:
        raise InvalidArgumentError(
            "standard input is closed; pipe data into the command or pass it as an argument"
        )
    return sys.stdin.buffer.read()


def text_argument(text: str) -> str:
    """Return a text of the command line, or standard input for "-"."""
    if text == "-":
        return _standard_text()
    if any("\udc80" <= c <= "\udcff" for c in text):  # so Python marks bytes that it cannot decode
        raise InvalidArgumentError(
            f"the text is not in the encoding of this locale ({sys.getfilesystemencoding()}); set"
            " LC_ALL=C.UTF-8, or pipe the text into the command and pass - as the text"
        )
    return text


def _standard_text() -> str:
    """Read a text from standard input, without the line break at its end."""
    try:
        text = standard_input().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgumentError(
            "standard input is not text in UTF-8; convert it to UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def retry(give_up_after: float) -> Retry:
    """Return how long calls are retried."""
    return Retry(give_up_after=give_up_after)


def connect(
    api_key: str | None,
    business_id: int | None,
    base_url: str,
    insecure_http: bool,
    give_up_after: float,
    **settings: Any,
) -> ChatSession:
    """Create a session from these options. Raises InvalidArgumentError."""
    return ChatSession(
        api_key,
        business_id,
        base_url=base_url,
        retry=retry(give_up_after),
        insecure_http=insecure_http,
        **settings,
    )
