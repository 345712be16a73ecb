"""The commands `send` and `send-file`: send one message and show the outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.errors import ChatError, SessionClosedError
from yamarket_chat.receipts import Receipt
from yamarket_chat.session import ChatSession

from . import console, options, signals, waiting

TIMEOUT = 11.0
"""Timeout in seconds of one request with a text.

The Market aborts a request after 10 s. With the SDK's longer default no time would be left to look
up an unknown outcome within the default of --give-up-after.
"""

CLOSE_GRACE = 0.3
"""Seconds for which a request in progress may still finish when the command gives up."""

CANCEL_DELAY = 0.1
"""Seconds until a call that waits for its turn has noticed that its session is closed."""


def send(
    chat_id: options.ChatId,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="The text, 1 to 4,096 characters. - reads standard input."
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
    """Send a message to a buyer and wait until it is delivered.

    Exit status: 0 delivered, 1 not delivered or unknown, 2 wrong usage, 130 interrupted
    (143 by SIGTERM, 129 by SIGHUP).

    Example: yamarket-chat send 17 "Your order is on its way"
    """
    session = options.connect(
        api_key, business_id, base_url, insecure_http, give_up_after, timeout=TIMEOUT
    )
    message = options.text_argument(text)
    _deliver(session, give_up_after, lambda: session.send_message(chat_id, message), json)


def send_file(
    chat_id: options.ChatId,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The file, at most 5 MiB.", show_default=False)
    ],
    *,
    name: options.FileName = None,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Send a file to a buyer and wait until it is delivered.

    Exit status: 0 delivered, 1 not delivered or unknown, 2 wrong usage, 130 interrupted
    (143 by SIGTERM, 129 by SIGHUP).

    Example: yamarket-chat send-file 17 label.pdf
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    _deliver(
        session,
        give_up_after,
        lambda: session.send_file(chat_id, path, filename=name),
        json,
    )


def _deliver(
    session: ChatSession,
    give_up_after: float,
    send: Callable[[], Coroutine[Any, Any, Receipt]],
    json: bool,
) -> None:
    console.show_log(logging.INFO)  # shows why the command waits
    work = _send_and_report(session, give_up_after, send, json)
    raise typer.Exit(
        signals.run(work, resolve_within=give_up_after or waiting.SINGLE_REQUEST_TIMEOUT)
    )


async def _send_and_report(
    session: ChatSession,
    give_up_after: float,
    send: Callable[[], Coroutine[Any, Any, Receipt]],
    json: bool,
) -> int:
    """Send, print one line on success, and return the exit status.

    A signal cancels this task. A message that still waits for a rate limit or for a retry is then
    not sent. If a request is in progress, the function waits for its outcome, because the message
    may be delivered anyway. If the Market does not respond in time, the function stops waiting, and
    the outcome may stay unknown.
    """
    interrupted = False
    status = 0
    reason = ""
    async with session:
        sending = asyncio.create_task(send())
        # If the user quits without knowing, nobody awaits it, and asyncio would log its error.
        sending.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with waiting.response_timeout(session, give_up_after):
                with console.err.status("Sending"):
                    await asyncio.wait({sending})
        except TimeoutError:
            reason = waiting.no_response(give_up_after)
            await session.close(grace=CLOSE_GRACE)
        except asyncio.CancelledError:
            interrupted = True
            reason = signals.interrupted().replace("I", "i", 1)
            closing = asyncio.create_task(waiting.close_after_interrupt(session))
            await asyncio.wait({sending}, timeout=CANCEL_DELAY)
            if not sending.done():
                console.note(
                    f"{signals.interrupted()}; finding out whether the message was delivered."
                    f" {signals.again()} to quit without knowing"
                )
            await closing
        try:
            receipt = await sending
        except SessionClosedError:
            console.failure(f"{reason}; nothing was sent")
            status = 1
        except ChatError as error:
            if not interrupted:
                raise
            console.failure(console.describe(error))
        else:
            _print_receipt(receipt, json)
    return signals.exit_status() if interrupted else status


def _print_receipt(receipt: Receipt, json: bool) -> None:
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
