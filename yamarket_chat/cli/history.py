"""What was said in a chat."""

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
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest.")] = 100,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Show the messages of a chat as a conversation, the newest last.

    Example: yamarket-chat history 17
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)

    async def tell(silence: waiting.Silence) -> None:
        messages = await _newest(silence.pages(session.history(chat_id)), limit)
        if not messages:
            console.note("No messages yet")
        for message in messages:
            if json:
                console.data(message)
            else:
                show(message)

    waiting.read(session, give_up_after, tell)


async def _newest(pages: AsyncIterator[Page[Message]], limit: int) -> list[Message]:
    """The newest messages, oldest first; the Market does not document in which order it lists."""
    found: list[Message] = []
    async for page in pages:
        found += page.items
        descending = len(found) > 1 and found[0].created_at > found[-1].created_at
        if descending and len(found) >= limit:
            break
    found.sort(key=lambda message: (message.created_at, message.message_id))
    return found[-limit:]
