"""The command `watch`: show new messages of buyers as they come."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.models import Message

from . import console, options, waiting
from .conversation import show


class _NewMessage(msgspec.Struct):
    chat_id: int
    message: Message


def watch(
    *,
    every: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="The time between two polls, at least.")
    ] = 15.0,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.UNATTENDED_GIVE_UP_AFTER,
) -> None:
    """Show new messages of buyers as they come, until Ctrl-C.

    The command polls the chats that are new, wait for the shop or wait for the arbiter, and between
    two polls some of all other chats. It uses at most a fifth of the rate limit for listing chats.
    If there are many chats that wait, it polls less often than --every says.

    Example: yamarket-chat watch
    """
    # It takes half a second to import, because the bot imports its database.
    from .watcher import Watcher

    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)

    def print_message(chat_id: int, message: Message) -> None:
        if json:
            console.data(_NewMessage(chat_id, message))
        else:
            show(message, chat_id)

    waiting.read(
        session, give_up_after, lambda timer: Watcher(session, timer, print_message).run(every)
    )
