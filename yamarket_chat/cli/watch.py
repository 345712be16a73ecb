"""New messages of buyers, as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.limits import Limits
from yamarket_chat.models import Chat, ChatStatus, Message, Sender
from yamarket_chat.session import ChatSession

from . import console, options, waiting
from .conversation import show

WAITING = (ChatStatus.NEW, ChatStatus.WAITING_FOR_PARTNER, ChatStatus.WAITING_FOR_ARBITER)
"""What a chat is in which a buyer has written last."""

SHARE = 0.2
"""How much of the limit of `chats` watching may take; the rest is for the seller's programs."""


class _Said(msgspec.Struct):
    chat_id: int
    message: Message


def watch(
    *,
    every: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How often to look, at most.")
    ] = 15.0,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GO_ON_FOR,
) -> None:
    """Show new messages of buyers as they come, until Ctrl-C.

    It looks at the chats that wait for the shop, and takes at most a fifth of the limit of that:
    where there are many, it looks less often than --every says.

    Example: yamarket-chat watch
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    waiting.read(session, give_up_after, lambda silence: _watch(session, silence, every, json))


async def _watch(session: ChatSession, silence: waiting.Silence, every: float, json: bool) -> None:
    watching = Watching(session, silence)
    await watching.begin()
    while True:
        pause = watching.pause(every)
        if watching.rounds == 1:
            console.note(f"Watching every {pause:.0f} s, until Ctrl-C")
        await silence.sleep(pause)
        async for chat_id, message in watching.look():
            if json:
                console.data(_Said(chat_id, message))
            else:
                show(message, chat_id)


class Watching:
    """What has been seen of the chats until now.

    Whatever is said after the beginning bears a time of the Market's that is not before `since`,
    the latest that the chats had then. Times may be whole seconds, so a chat that has changed is
    looked at once more in the next round, and what has been shown is known by its number.
    """

    def __init__(self, session: ChatSession, silence: waiting.Silence) -> None:
        self._session = session
        self._silence = silence
        self._since: datetime | None = None
        self._changed: dict[int, datetime] = {}
        self._once_more: set[int] = set()
        self._seen: dict[int, int] = {}  # the last message of a chat
        self._pages = 0
        self.rounds = 0

    async def begin(self) -> None:
        """Learn what is there, and show none of it."""
        chats = [chat async for chat in self._chats()]
        self._since = max((chat.updated_at for chat in chats), default=None)
        for chat in chats:
            self._changed[chat.chat_id] = chat.updated_at
            if chat.updated_at == self._since:
                self._once_more.add(chat.chat_id)
                async for _ in self._new_messages(chat.chat_id):
                    pass

    def pause(self, every: float) -> float:
        """Seconds until the next round: more pages, longer pauses."""
        limit = Limits().chats
        return max(every, self._pages * limit.per / (limit.requests * SHARE))

    async def look(self) -> AsyncIterator[tuple[int, Message]]:
        """What buyers have said since the round before."""
        once_more, self._once_more = self._once_more, set()
        async for chat in self._chats():
            changed = self._changed.get(chat.chat_id) != chat.updated_at
            self._changed[chat.chat_id] = chat.updated_at
            if changed:
                self._once_more.add(chat.chat_id)
            if changed or chat.chat_id in once_more:
                async for message in self._new_messages(chat.chat_id):
                    yield chat.chat_id, message

    async def _chats(self) -> AsyncIterator[Chat]:
        self._pages = 0
        self.rounds += 1
        async for page in self._silence.pages(self._session.chats(statuses=WAITING)):
            self._pages += 1
            for chat in page.items:
                yield chat

    async def _new_messages(self, chat_id: int) -> AsyncIterator[Message]:
        last = self._seen.get(chat_id, 0)
        listing = self._session.history(chat_id, message_id_from=last or None)
        found = [
            message
            async for message in self._silence.items(listing)
            if message.message_id > last and (not self._since or message.created_at >= self._since)
        ]
        found.sort(key=lambda message: message.message_id)
        for message in found:
            self._seen[chat_id] = message.message_id
            if message.sender == Sender.CUSTOMER:
                yield message
