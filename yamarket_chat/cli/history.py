"""The command `history`: show the messages of a chat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.listing import Page
from yamarket_chat.models import Message

from . import console, options, waiting
from .conversation import show


def history(
    chat_id: options.ChatId,
    *,
    limit: Annotated[
        int, typer.Option(min=1, help="The maximum number of messages; the newest are shown.")
    ] = 100,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Show the messages of a chat, the newest last.

    Example: yamarket-chat history 17
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)

    async def print_history(timer: waiting.ResponseTimer) -> None:
        messages = await _newest(timer.pages(session.history(chat_id)), limit)
        if not messages:
            console.note("No messages yet")
        for message in messages:
            if json:
                console.data(message)
            else:
                show(message)

    waiting.read(session, give_up_after, print_history)


async def _newest(pages: AsyncIterator[Page[Message]], limit: int) -> list[Message]:
    """Return the newest messages, oldest first.

    The Market does not document the order of a history, so both orders are handled.
    """
    found: list[Message] = []
    async for page in pages:
        found += page.items
        descending = len(found) > 1 and found[0].created_at > found[-1].created_at
        if descending and len(found) >= limit:
            break
    found.sort(key=lambda message: (message.created_at, message.message_id))
    return found[-limit:]
