"""Sending one message or one file, and telling what became of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.errors import ChatError, InvalidArgumentError, SessionClosedError
from yamarket_chat.receipts import Receipt
from yamarket_chat.session import ChatSession

from . import console, options, waiting

TIMEOUT = 11.0
"""Seconds for one attempt with a text: the Market ends it after 10 s. With the default of the SDK
no time would be left to look up an unknown outcome before the default of --give-up-after."""

LAST_GRACE = 0.3
"""Seconds for which what is under way may still end when it is given up."""

NOTED = 0.1
"""Seconds in which a call that only waits has learnt that its session is closed."""


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
    session = options.connect(
        api_key, business_id, base_url, insecure_http, give_up_after, timeout=TIMEOUT
    )
    said = _standard_input() if text == "-" else text
    _deliver(session, give_up_after, lambda: session.send_message(chat_id, said), json)


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
        give_up_after,
        lambda: session.send_file(chat_id, path, filename=name),
        json,
    )


def _standard_input() -> str:
    try:
        text = options.standard_input().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgumentError("standard input is no text in UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _deliver(
    session: ChatSession,
    give_up_after: float,
    send: Callable[[], Coroutine[Any, Any, Receipt]],
    json: bool,
) -> None:
    console.show_log(logging.INFO)  # someone waits for this one message: say why
    raise typer.Exit(asyncio.run(_delivered(session, give_up_after, send, json)))


async def _delivered(
    session: ChatSession,
    give_up_after: float,
    send: Callable[[], Coroutine[Any, Any, Receipt]],
    json: bool,
) -> int:
    """Send, print one line on success, and return the exit status.

    An interruption (the cancellation of this task) ends the wait for the quota and between
    attempts; a message under way is waited for, because it may arrive all the same. Where the
    Market is silent for too long, nothing is waited for, and the outcome may stay unknown.
    """
    interrupted = False
    status = 0
    why = "interrupted"
    async with session:
        sending = asyncio.create_task(send())
        try:
            async with waiting.bounded(session, give_up_after):
                with console.err.status("Sending"):
                    await asyncio.wait({sending})
        except TimeoutError:
            why = waiting.no_answer(give_up_after)
            await session.close(grace=LAST_GRACE)
        except asyncio.CancelledError:
            interrupted = True
            closing = asyncio.create_task(session.close())
            await asyncio.wait({sending}, timeout=NOTED)
            if not sending.done():
                console.note(
                    "Interrupted: finding out whether it arrived; Ctrl-C again leaves without"
                    " knowing"
                )
            await closing
        try:
            receipt = await sending
        except SessionClosedError:
            console.failure(f"{why}; nothing was sent")
            status = 1
        except ChatError as error:
            if not interrupted:
                raise
            console.failure(console.describe(error))
        else:
            _tell(receipt, json)
    return console.INTERRUPTED if interrupted else status


def _tell(receipt: Receipt, json: bool) -> None:
    if json:
        console.data(receipt)
        return
    attempts = console.number(receipt.requests, "attempt")
    proof = (
        f"trace id {receipt.trace_id or 'not given'}"
        if receipt.confirmed_by == "answer"
        else "found in the chat's history"
    )
    console.result(f"Delivered to chat {receipt.chat_id}, {attempts}, {proof}")
