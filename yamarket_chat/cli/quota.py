"""How much of the limits is left."""

from __future__ import annotations

import msgspec

from yamarket_chat._http.operations import OPERATIONS
from yamarket_chat.arguments import BASE_URL
from yamarket_chat.session import ChatSession

from . import console, options, waiting

READING = {"get_chat", "history", "get_message"}
"""What can be asked where there is a chat."""


class _Left(msgspec.Struct):
    operation: str
    limit: int
    remaining: int | None
    resets_in: float | None


def quota(
    *,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Tell how much of the Market's limits is left, as far as reading can find out.

    The Market tells what is left of an operation's limit only in answers to that operation, so
    this reads a page of each list. For sending it has no harmless question: there, the documented
    limit is all that can be told, and send-many shows what is left as it goes.

    Example: yamarket-chat quota
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    waiting.read(session, give_up_after, lambda silence: _tell(session, silence, json))


async def _tell(session: ChatSession, silence: waiting.Silence, json: bool) -> None:
    asked = await _ask(session, silence)
    rows = []
    for name in OPERATIONS:
        status = session.quota_status(name)
        if name in asked:
            rows.append(_Left(name, status.limit, status.remaining, status.resets_in))
        else:
            rows.append(_Left(name, status.limit, None, None))
    if json:
        for row in rows:
            console.data(row)
        return
    table = console.new_table("Operation", "Requests an hour", "Left")
    for row in rows:
        left = _why_not(row.operation, asked) if row.remaining is None else f"{row.remaining:,}"
        if row.resets_in:
            left += f", the next one in {console.duration(row.resets_in)}"
        table.add_row(row.operation, f"{row.limit:,}", left)
    console.table(table)


def _why_not(operation: str, asked: set[str]) -> str:
    """Why nothing is known of what is left of an operation."""
    if operation not in READING:
        return "not told without sending"
    return "no message to ask about" if "get_chat" in asked else "no chat to ask about"


async def _ask(session: ChatSession, silence: waiting.Silence) -> set[str]:
    """Read a little of everything; the operations that answered."""
    asked = {"chats", "campaigns", "token"}
    async for page in silence.pages(session.chats()):
        for chat in page.items[:1]:
            await session.get_chat(chat.chat_id)
            silence.heard()
            messages = (await anext(silence.pages(session.history(chat.chat_id)))).items
            asked |= {"get_chat", "history"}
            for message in messages[:1]:
                await session.get_message(chat.chat_id, message.message_id)
                silence.heard()
                asked.add("get_message")
        break
    await anext(silence.pages(session.campaigns()))
    await session.token()
    return asked
