"""The command `sandbox say`: let the buyer of a running sandbox speak."""

from __future__ import annotations

import http.client
import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import msgspec
import typer

from yamarket_chat.arguments import check_encodable, check_text
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.sandbox import control

from . import console, options

TIMEOUT = 10.0
START_HINT = "start `yamarket-chat sandbox` and set YAMARKET_BASE_URL as it says"


def say(
    chat_id: options.ChatId,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="What the buyer says. - reads standard input.", show_default=False
        ),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A file that the buyer sends instead of a text."),
    ] = None,
    json: options.Json = False,
    base_url: Annotated[
        str,
        typer.Option(
            envvar="YAMARKET_BASE_URL", help="The URL of the running sandbox.", show_default=False
        ),
    ] = "",
) -> None:
    """Let the buyer of a chat say something, in a sandbox that runs on this machine.

    This needs no key, and does not count against the sandbox's limits.

    Example: yamarket-chat sandbox say 7 "Where is my order?"
    """
    if (text is None) is (file is None):
        raise InvalidArgumentError("pass either a text or --file")
    query = {"chatId": str(chat_id)}
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InvalidArgumentError(f"the file cannot be read: {error}") from None
        if len(content) > control.MAX_FILE:
            raise InvalidArgumentError(f"the file has more than {control.MAX_FILE:,} bytes")
        check_encodable("the name of the file", file.name)
        query["file"] = file.name
    else:
        content = check_text(options.text_argument(text or "")).encode()
    said = _post(base_url, query, content)
    if json:
        console.data(said)
    else:
        console.result(f"The buyer of chat {said.chat_id} has sent message {said.message_id}")


def _post(base_url: str, query: dict[str, str], content: bytes) -> control.Said:
    host, port = _address(base_url)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request(
            "POST",
            f"{control.PATH}?{urlencode(query)}",
            content,
            {control.HEADER: control.VALUE, "Content-Type": "application/octet-stream"},
        )
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        console.failure(f"no sandbox answers at {base_url} ({error}); {START_HINT}")
        raise typer.Exit(1) from None
    finally:
        connection.close()
    if response.headers.get(control.HEADER) != control.VALUE:
        console.failure(f"{base_url} is not a sandbox of this version; {START_HINT}")
        raise typer.Exit(1)
    if response.status != 200:
        console.failure(msgspec.json.decode(body, type=control.Refused).problem)
        raise typer.Exit(1)
    return msgspec.json.decode(body, type=control.Said)


def _address(base_url: str) -> tuple[str, int]:
    """Return host and port of the sandbox. It must run on this machine: the Market has no buyers
    that one could let speak.
    """
    if not base_url:
        raise InvalidArgumentError(f"the URL of the sandbox is missing; {START_HINT}")
    try:
        url = urlsplit(base_url)
        host, port = url.hostname or "", url.port or 80
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local or url.scheme != "http":
        raise InvalidArgumentError(
            f"{base_url} is not the URL of a sandbox on this machine; {START_HINT}"
        )
    return host, port
