"""Finds new messages of buyers, by the polling of the bot, and without its database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from yamarket_chat.bot.polling import WAITING, Polling
from yamarket_chat.limits import Limits
from yamarket_chat.models import Chat, Message, Sender
from yamarket_chat.session import ChatSession

from . import console, waiting

CLOCKS = timedelta(seconds=30)
"""By so much the times of chats and messages may be behind the Market's clock."""


class Watcher:
    """Shows new messages of buyers in the chats that the bot's polling lists.

    A message in a chat that waits is new if its time is not before the latest one that any chat had
    at the start. The Market's times may be whole seconds: a chat can change twice in one second. So
    the history of a chat that has changed is read once more when the chat is listed again. The id
    of the last message that was seen in a chat prevents that a message is shown twice.

    What was answered before the start is told apart by the Market's clock alone.
    """

    def __init__(
        self,
        session: ChatSession,
        timer: waiting.ResponseTimer,
        show: Callable[[int, Message], None],
    ) -> None:
        self._session = session
        self._timer = timer
        self._show = show
        self._at_start: list[Chat] | None = []  # None when it has begun
        self._since = self._answered_since = datetime.min.replace(tzinfo=UTC)
        self._updated_at: dict[int, datetime] = {}
        self._read_again: set[int] = set()
        self._last_seen: dict[int, int] = {}  # message id by chat

    async def run(self, every: float) -> None:
        """Show what comes from now on, until the task is cancelled."""
        polling = Polling(
            self._session,
            Limits().chats,
            every,
            self._found,
            self._swept,
            self._looked,
            self._timer.sleep,
        )
        await polling.run()

    async def _looked(self, pause: float) -> None:
        """Begin after the first look: what was there is not new."""
        if self._at_start is None:
            return
        chats, self._at_start = self._at_start, None
        clock = self._session._open().market_clock()
        if clock is not None:
            now = asyncio.get_running_loop().time() + clock.most
            self._answered_since = datetime.fromtimestamp(now, UTC)
            self._since = self._answered_since - CLOCKS
        self._since = max([self._since, *(chat.updated_at for chat in chats)])
        for chat in chats:
            if chat.updated_at >= self._since:
                self._has_changed(chat)
                await self._new_messages(chat.chat_id, self._since)
        console.note(f"Watching every {pause:.0f} s, until Ctrl-C")

    async def _found(self, chats: list[Chat]) -> None:
        self._timer.response_received()
        if self._at_start is not None:
            self._at_start += chats
            return
        for chat in chats:
            since = self._since if chat.status in WAITING else self._answered_since
            again = chat.chat_id in self._read_again
            self._read_again.discard(chat.chat_id)
            if chat.updated_at >= since and (self._has_changed(chat) or again):
                for message in await self._new_messages(chat.chat_id, since):
                    self._show(chat.chat_id, message)

    async def _swept(self, chats: int, seconds: float) -> None:
        """Nobody asks how long it took."""

    def _has_changed(self, chat: Chat) -> bool:
        if self._updated_at.get(chat.chat_id) == chat.updated_at:
            return False
        self._updated_at[chat.chat_id] = chat.updated_at
        self._read_again.add(chat.chat_id)
        return True

    async def _new_messages(self, chat_id: int, since: datetime) -> list[Message]:
        """Return what a buyer has written in a chat since it was read."""
        last = self._last_seen.get(chat_id, 0)
        listing = self._session.history(chat_id, message_id_from=last or None)
        found = [
            message
            async for message in self._timer.items(listing)
            if message.message_id > last and message.created_at >= since
        ]
        found.sort(key=lambda message: message.message_id)
        if found:
            self._last_seen[chat_id] = found[-1].message_id
        return [message for message in found if message.sender == Sender.CUSTOMER]
