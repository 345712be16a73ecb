"""Sending one message or one file, and telling what became of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from yamarket_chat.errors import ChatError, InvalidArgumentError, SessionClosedError
from yamarket_chat.models import Receipt
from yamarket_chat.session import BASE_URL, ChatSession

from . import console, options, waiting


def send(
    chat_id: options.ChatId,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="The message: 1 to 4,096 characters; - reads standard input."
        ),
    ],
    *,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Send a message to a buyer, and wait until it has arrived.

    Exit status: 0 delivered, 1 not delivered or not known to be, 2 wrong use,
    130 interrupted.

    Example: yamarket-chat send 17 "Your order is on its way"
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    said = _standard_input() if text == "-" else text
    _deliver(
        session, "send_message", give_up_after, lambda: session.send_message(chat_id, said), json
    )


def send_file(
    chat_id: options.ChatId,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The file: at most 5 MiB.", show_default=False)
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="What the buyer sees; by default the name of the file.")
    ] = None,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Send a file to a buyer, and wait until it has arrived.

    Exit status: as that of send.

    Example: yamarket-chat send-file 17 label.pdf
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    _deliver(
        session,
        "send_file",
        give_up_after,
        lambda: session.send_file(chat_id, path, filename=name),
        json,
    )


def _standard_input() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgumentError("standard input is no text in UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _deliver(
    session: ChatSession,
    operation: str,
    give_up_after: float,
    send: Callable[[], Coroutine[Any, Any, Receipt]],
    json: bool,
) -> None:
    console.show_log(logging.INFO)  # someone waits for this one message: say why
    raise typer.Exit(asyncio.run(_delivered(session, operation, give_up_after, send, json)))


async def _delivered(
    session: ChatSession,
    operation: str,
    give_up_after: float,
    send: Callable[[], Coroutine[Any, Any, Receipt]],
    json: bool,
) -> int:
    """Send, print one line on success, and return the exit status.

    An interruption (the cancellation of this task) ends the wait for the quota and between
    attempts; a message under way is waited for, because it may arrive all the same.
    """
    interrupted = False
    async with session:
        sending = asyncio.create_task(send())
        try:
            async with waiting.told(session, operation, give_up_after):
                with console.err.status("Sending"):
                    await asyncio.wait({sending})
        except asyncio.CancelledError:
            interrupted = True
            console.note(
                "Interrupted: finding out whether it arrived; Ctrl-C again leaves without knowing"
            )
            await session.close()
        try:
            receipt = await sending
        except SessionClosedError:
            console.failure("interrupted; nothing was sent")
        except ChatError as error:
            if not interrupted:
                raise
            console.failure(console.describe(error))
        else:
            _tell(receipt, json)
    return console.INTERRUPTED if interrupted else 0


def _tell(receipt: Receipt, json: bool) -> None:
    if json:
        console.data(receipt)
        return
    attempts = console.number(receipt.attempts, "attempt")
    proof = (
        f"trace id {receipt.trace_id or 'not given'}"
        if receipt.confirmed_by == "answer"
        else "found in the chat's history"
    )
    console.result(f"Delivered to chat {receipt.chat_id}, {attempts}, {proof}")
