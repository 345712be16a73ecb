"""The command `quota`: show how much of the rate limits is left."""

from __future__ import annotations

import msgspec

from yamarket_chat._http.operations import OPERATIONS
from yamarket_chat.arguments import BASE_URL
from yamarket_chat.session import ChatSession

from . import console, options, waiting

CHAT_READS = {"get_chat", "history", "get_message"}
"""Operations that read a chat, so that they need one."""


class _Row(msgspec.Struct):
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
    """Show how much of the Market's rate limits is left.

    The Market reports what is left of an operation's limit only in responses to that operation,
    so this command calls each operation that reads. What is left for sending cannot be found out
    without sending: only the documented limit is shown. send-many shows what is left as it sends.

    Example: yamarket-chat quota
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    waiting.read(session, give_up_after, lambda timer: _show(session, timer, json))


async def _show(session: ChatSession, timer: waiting.ResponseTimer, json: bool) -> None:
    called = await _call_reads(session, timer)
    rows = []
    for name in OPERATIONS:
        status = session.quota_status(name)
        if name in called:
            rows.append(_Row(name, status.limit, status.remaining, status.resets_in))
        else:
            rows.append(_Row(name, status.limit, None, None))
    if json:
        for row in rows:
            console.data(row)
        return
    table = console.new_table("Operation", "Limit per hour", "Left")
    for row in rows:
        left = (
            _why_unknown(row.operation, called) if row.remaining is None else f"{row.remaining:,}"
        )
        if row.resets_in:
            left += f", the next one in {console.duration(row.resets_in)}"
        table.add_row(row.operation, f"{row.limit:,}", left)
    console.table(table)


def _why_unknown(operation: str, called: set[str]) -> str:
    """Explain why it is unknown what is left of an operation's limit."""
    if operation not in CHAT_READS:
        return "unknown before a request is sent"
    return "unknown, no message to read" if "get_chat" in called else "unknown, no chat to read"


async def _call_reads(session: ChatSession, timer: waiting.ResponseTimer) -> set[str]:
    """Call each operation that reads, if possible, and return the names of those called."""
    called = {"chats", "campaigns", "token"}
    async for page in timer.pages(session.chats()):
        for chat in page.items[:1]:
            await session.get_chat(chat.chat_id)
            timer.response_received()
            messages = (await anext(timer.pages(session.history(chat.chat_id)))).items
            called |= {"get_chat", "history"}
            for message in messages[:1]:
                await session.get_message(chat.chat_id, message.message_id)
                timer.response_received()
                called.add("get_message")
        break
    await anext(timer.pages(session.campaigns()))
    await session.token()
    return called
