"""The command `watch`: show new messages of buyers as they come."""

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

WATCHED_STATUSES = (ChatStatus.NEW, ChatStatus.WAITING_FOR_PARTNER, ChatStatus.WAITING_FOR_ARBITER)
"""The statuses of chats in which the buyer wrote the last message."""

LIMIT_SHARE = 0.2
"""The part of the limit of `chats` that this command may use. Other programs need the rest."""


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

    The command polls the chats that are new, wait for the shop or wait for the arbiter. It uses
    at most a fifth of the rate limit for listing chats. If there are many such chats, it polls
    less often than --every says.

    Example: yamarket-chat watch
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)
    waiting.read(session, give_up_after, lambda timer: _watch(session, timer, every, json))


async def _watch(
    session: ChatSession, timer: waiting.ResponseTimer, every: float, json: bool
) -> None:
    watcher = Watcher(session, timer)
    await watcher.start()
    while True:
        pause = watcher.pause(every)
        if watcher.rounds == 1:
            console.note(f"Watching every {pause:.0f} s, until Ctrl-C")
        await timer.sleep(pause)
        async for chat_id, message in watcher.poll():
            if json:
                console.data(_NewMessage(chat_id, message))
            else:
                show(message, chat_id)


class Watcher:
    """Finds new messages by polling.

    A message is new if its time is not before `since`, the latest time that any chat had at the
    start. The Market's times may be whole seconds: a chat can change twice in one second. So the
    history of a chat that has changed is read once more in the next round. The id of the last
    message that was seen in a chat prevents that a message is shown twice.
    """

    def __init__(self, session: ChatSession, timer: waiting.ResponseTimer) -> None:
        self._session = session
        self._timer = timer
        self._since: datetime | None = None
        self._updated_at: dict[int, datetime] = {}
        self._read_again: set[int] = set()
        self._last_seen: dict[int, int] = {}  # message id by chat
        self._pages = 0
        self.rounds: int = 0

    async def start(self) -> None:
        """Record the messages that exist already."""
        chats = [chat async for chat in self._chats()]
        self._since = max((chat.updated_at for chat in chats), default=None)
        for chat in chats:
            self._updated_at[chat.chat_id] = chat.updated_at
            if chat.updated_at == self._since:
                self._read_again.add(chat.chat_id)
                async for _ in self._new_messages(chat.chat_id):
                    pass

    def pause(self, every: float) -> float:
        """Return the seconds until the next round. Each page of chats makes the pause longer."""
        limit = Limits().chats
        return max(every, self._pages * limit.per / (limit.requests * LIMIT_SHARE))

    async def poll(self) -> AsyncIterator[tuple[int, Message]]:
        """Yield the messages of buyers since the last round, each with its chat."""
        read_again, self._read_again = self._read_again, set()
        async for chat in self._chats():
            changed = self._updated_at.get(chat.chat_id) != chat.updated_at
            self._updated_at[chat.chat_id] = chat.updated_at
            if changed:
                self._read_again.add(chat.chat_id)
            if changed or chat.chat_id in read_again:
                async for message in self._new_messages(chat.chat_id):
                    yield chat.chat_id, message

    async def _chats(self) -> AsyncIterator[Chat]:
        self._pages = 0
        self.rounds += 1
        async for page in self._timer.pages(self._session.chats(statuses=WATCHED_STATUSES)):
            self._pages += 1
            for chat in page.items:
                yield chat

    async def _new_messages(self, chat_id: int) -> AsyncIterator[Message]:
        last = self._last_seen.get(chat_id, 0)
        listing = self._session.history(chat_id, message_id_from=last or None)
        found = [
            message
            async for message in self._timer.items(listing)
            if message.message_id > last and (not self._since or message.created_at >= self._since)
        ]
        found.sort(key=lambda message: message.message_id)
        for message in found:
            self._last_seen[chat_id] = message.message_id
            if message.sender == Sender.CUSTOMER:
                yield message
