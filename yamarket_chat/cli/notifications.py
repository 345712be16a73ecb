"""The commands `notifications listen` and `notifications send`: try notifications out."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer
from aiohttp import web

from yamarket_chat.notifications import (
    MARKET_NETWORKS,
    ChatEvent,
    ChatMessageSent,
    Event,
    OtherNotification,
    Receiver,
)
from yamarket_chat.sandbox import notifier, wire
from yamarket_chat.version import __version__

from . import console, options, signals

LOOPBACK = ("127.0.0.0/8", "::1")

notifications: typer.Typer = typer.Typer(
    help="Try out the notifications that the Market sends to your program.\n\n"
    "Example: yamarket-chat notifications listen --port 8080",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)


class Kind(StrEnum):
    """The kinds that `send` knows."""

    PING = "PING"
    CHAT_CREATED = "CHAT_CREATED"
    CHAT_MESSAGE_SENT = "CHAT_MESSAGE_SENT"
    CHAT_ARBITRAGE_STARTED = "CHAT_ARBITRAGE_STARTED"
    CHAT_ARBITRAGE_FINISHED = "CHAT_ARBITRAGE_FINISHED"


@notifications.command()
def listen(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free port.")
    ] = 8080,
    host: options.Host = "127.0.0.1",
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK",
            help="A network to let in instead of the Market's, such as 10.0.0.0/8. May be repeated."
            " This machine is always let in.",
            show_default=False,
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK",
            help="The network of a proxy whose X-Forwarded-For or Forwarded names the client. May"
            " be repeated.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print the notifications that come in, until Ctrl-C.

    Use this while you set notifications up in the seller's cabinet. The Market needs an HTTPS
    address, so put a proxy with a certificate in front. Every path is answered.

    Example: yamarket-chat notifications listen --port 8080
    """
    console.show_log(logging.INFO)
    try:
        with suppress(signals.Stopped):
            signals.run(
                _listen(host, port, network or MARKET_NETWORKS, trusted_proxy or (), json=json)
            )
    except OSError as error:
        console.failure(f"cannot listen on {host}, port {port}: {error.strerror or error}")
        raise typer.Exit(1) from None


async def _listen(host: str, port: int, networks: Any, proxies: Any, *, json: bool) -> None:
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_event(event: Event) -> None:
        try:
            _show(event, json=json)
        except console.OutputError as error:  # such as `head` that has had enough
            if not failed.done():
                failed.set_exception(error)
            raise

    receiver = Receiver(
        on_event,
        name="yamarket-chat",
        version=__version__,
        networks=[*networks, *LOOPBACK],
        trusted_proxies=proxies,
    )
    runner = web.ServerRunner(web.Server(receiver.aiohttp, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        console.note(f"Listening on http://{shown}:{bound}/ until Ctrl-C")
        await failed
    finally:
        await receiver.close()
        await runner.cleanup()


def _show(event: Event, *, json: bool) -> None:
    if isinstance(event, OtherNotification):
        if json:
            console.data(event.content)
        else:
            console.result(f"{event.type} {msgspec.json.encode(event.content).decode()}")
    elif json:
        console.data(event)
    elif isinstance(event, ChatEvent):
        content = msgspec.to_builtins(event)
        message = f", message {event.message_id}" if isinstance(event, ChatMessageSent) else ""
        console.result(
            f"{content['notificationType']} business {event.business_id}, chat {event.chat_id}"
            f"{message}"
        )


class _Result(msgspec.Struct):
    type: str
    status: int | None
    seconds: float
    problem: str | None


@notifications.command()
def send(
    url: Annotated[str, typer.Argument(metavar="URL", help="The address of your receiver.")],
    *,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(help="What to send. May be repeated. Default: all.", show_default=False),
    ] = None,
    chat: Annotated[int, typer.Option(min=1, metavar="CHAT_ID", help="The chat.")] = 17,
    message: Annotated[int, typer.Option(min=1, metavar="MESSAGE_ID", help="The message.")] = 1,
    json: options.Json = False,
    business_id: Annotated[
        int, typer.Option(envvar="YAMARKET_BUSINESS_ID", min=1, help="The id of the business.")
    ] = 12345,
) -> None:
    """Send notifications to your own receiver as the Market does, and check the answers.

    The exit status is 1 if an answer is not 200, is not in the documented form, or comes too late:
    after 1 s for a PING, and after 10 s for all others. The receiver must let this machine in.

    Example: yamarket-chat notifications send http://127.0.0.1:8080/notification
    """
    notifier.check_url(url)
    now = datetime.now(UTC).replace(microsecond=0)
    sent = [
        notifier.notification_of(one, business_id, chat, message, now) for one in kind or list(Kind)
    ]
    results = signals.run(_send(url, sent, json=json))
    if any(result.status == 403 for result in results):
        console.note(
            "403 means that the receiver does not let this machine in. For the test, add its"
            " address to networks"
        )
    if any(result.status != 200 or result.problem for result in results):
        raise typer.Exit(1)


async def _send(url: str, sent: list[wire.Notification], *, json: bool) -> list[_Result]:
    results = []
    async with notifier.connected() as session:
        for notification in sent:
            kind = notification.notification_type
            within = notifier.PING_WITHIN if kind == Kind.PING else notifier.ANSWER_WITHIN
            answer = await notifier.post(session, url, wire.encode(notification), within)
            result = _Result(kind, answer.status, round(answer.seconds, 3), answer.problem)
            results.append(result)
            if json:
                console.data(result)
            else:
                status = "" if answer.status is None else f"{answer.status}, "
                said = answer.problem or answer.name
                console.result(f"{kind}: {status}{answer.seconds:.3f} s, {said}")
    return results
