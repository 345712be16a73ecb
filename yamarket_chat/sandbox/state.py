"""Chats, messages and files, without any input or output."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from datetime import datetime
from itertools import count, islice
from typing import Literal

import msgspec

from .clock import Clock
from .wire import ContextType, Sender

HistoryOrder = Literal["ascending", "descending"]


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a message: its name, its size in bytes, and where it can be fetched."""

    name: str
    url: str
    size: int


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as it stands in a chat.

    `created_at` is what the history shows: whole seconds of the sandbox's clock. `stored_at` is the
    exact moment by the time of the event loop. `sender` is PARTNER, CUSTOMER, MARKET or SUPPORT.
    """

    message_id: int
    created_at: datetime
    sender: Sender
    text: str | None
    payload: tuple[StoredFile, ...]
    stored_at: float


class ChatRecord:
    """One chat and its messages, ordered by id."""

    __slots__ = (
        "chat_id",
        "created_at",
        "messages",
        "order_id",
        "return_id",
        "status",
        "type",
        "updated_at",
    )

    def __init__(
        self,
        chat_id: int,
        created_at: datetime,
        *,
        order_id: int | None = None,
        return_id: int | None = None,
    ) -> None:
        self.chat_id = chat_id
        self.order_id = order_id
        self.return_id = return_id
        self.type: str = "CHAT"
        self.status: str = "NEW"
        self.created_at = created_at
        self.updated_at = created_at
        self.messages: list[StoredMessage] = []

    @property
    def context_type(self) -> ContextType:
        if self.return_id is not None:
            return "RETURN"
        return "DIRECT" if self.order_id is None else "ORDER"

    @property
    def identifier(self) -> int | None:
        """The id of what the chat is about."""
        return self.order_id if self.return_id is None else self.return_id


class HistoryPage(msgspec.Struct, frozen=True):
    """Messages of a page, and the id of the last one where more follow."""

    messages: list[StoredMessage]
    last_id: int | None


class State:
    """All that the Market stores for one seller.

    `chats` are the ids that exist from the start; None means that any id exists and its chat is
    made when it is first named, as one that the buyer started (DIRECT).
    """

    def __init__(
        self,
        clock: Clock,
        *,
        chats: Iterable[int] | None,
        keep_messages: bool,
        history_delay: float,
        history_order: HistoryOrder,
        history_includes_from: bool,
    ) -> None:
        self._clock = clock
        self._any_chat = chats is None
        self._keep_messages = keep_messages
        self._history_delay = history_delay
        self._history_order = history_order
        self._history_includes_from = history_includes_from
        self._chats: dict[int, ChatRecord] = {}
        self._in_order_of_creation: list[ChatRecord] = []
        self._by_context: dict[tuple[ContextType, int], ChatRecord] = {}
        self._chat_ids = count(1_000_001)
        self._message_ids = count(1)
        self._files: dict[int, tuple[str, bytes]] = {}
        self._file_ids = count(1)
        self.files_url = ""
        self.messages_stored = 0
        for chat_id in chats or ():
            if chat_id not in self._chats:
                self.add_chat(chat_id)

    # Chats

    def chat(self, chat_id: int) -> ChatRecord | None:
        chat = self._chats.get(chat_id)
        if chat is None and self._any_chat:
            chat = self.add_chat(chat_id)
        return chat

    def chat_about(self, context_type: Literal["ORDER", "RETURN"], identifier: int) -> ChatRecord:
        """The chat about this order or return, made where there is none yet."""
        chat = self._by_context.get((context_type, identifier))
        if chat is None:
            name = "order_id" if context_type == "ORDER" else "return_id"
            chat = self.add_chat(None, **{name: identifier})
        return chat

    def add_chat(
        self, chat_id: int | None, *, order_id: int | None = None, return_id: int | None = None
    ) -> ChatRecord:
        """A new chat about a return, an order or nothing. Raises ValueError where there is one."""
        if chat_id is None:
            chat_id = next(i for i in self._chat_ids if i not in self._chats)
        elif chat_id in self._chats:
            raise ValueError(f"chat {chat_id} exists")
        chat = ChatRecord(
            chat_id,
            self._clock.timestamp(self._clock.now()),
            order_id=order_id,
            return_id=return_id,
        )
        if chat.identifier is not None:
            key = (chat.context_type, chat.identifier)
            if key in self._by_context:
                raise ValueError(f"{chat.context_type.lower()} {chat.identifier} has a chat")
            self._by_context[key] = chat
        self._chats[chat_id] = chat
        self._in_order_of_creation.append(chat)
        return chat

    def known_chat(self, chat_id: int) -> ChatRecord | None:
        """The chat, without making one."""
        return self._chats.get(chat_id)

    def chats_from(self, position: int) -> Iterable[tuple[int, ChatRecord]]:
        """Each chat behind a position, in the order of creation, and the position behind it."""
        return enumerate(islice(self._in_order_of_creation, position, None), position + 1)

    # Messages and files

    def store(
        self,
        chat: ChatRecord,
        sender: Sender,
        text: str | None,
        files: Iterable[tuple[str, bytes]] = (),
    ) -> StoredMessage:
        now = self._clock.now()
        message = StoredMessage(
            next(self._message_ids),
            self._clock.timestamp(now),
            sender,
            text,
            tuple(self._store_file(name, content) for name, content in files),
            now,
        )
        chat.updated_at = message.created_at
        if chat.type == "ARBITRAGE":
            if sender in ("PARTNER", "CUSTOMER"):
                chat.status = "WAITING_FOR_ARBITER"
        elif sender == "PARTNER":
            chat.status = "WAITING_FOR_CUSTOMER"
        elif sender == "CUSTOMER":
            chat.status = "WAITING_FOR_PARTNER"
        self.messages_stored += 1
        if self._keep_messages:
            chat.messages.append(message)
        return message

    def _store_file(self, name: str, content: bytes) -> StoredFile:
        file_id = next(self._file_ids)
        if self._keep_messages:
            self._files[file_id] = (name, content)
        return StoredFile(name, f"{self.files_url}{file_id}", len(content))

    def file(self, file_id: int) -> tuple[str, bytes] | None:
        return self._files.get(file_id)

    def history(
        self, chat: ChatRecord, *, from_id: int | None, after_id: int | None, limit: int
    ) -> HistoryPage:
        """A page from the message `from_id` on, behind `after_id`, the last of the page before."""
        rows = chat.messages
        start, end = 0, self._visible(chat)
        if from_id is not None:
            first = from_id if self._history_includes_from else from_id + 1
            start = bisect_left(rows, first, key=_message_id)
        if self._history_order == "ascending":
            if after_id is not None:
                start = max(start, bisect_right(rows, after_id, key=_message_id))
            page = rows[start : min(start + limit, end)]
            more = start + limit < end
        else:
            if after_id is not None:
                end = min(end, bisect_left(rows, after_id, key=_message_id))
            page = rows[max(start, end - limit) : end][::-1]
            more = end - limit > start
        return HistoryPage(page, page[-1].message_id if more else None)

    def message(self, chat: ChatRecord, message_id: int) -> StoredMessage | None:
        rows = chat.messages
        index = bisect_left(rows, message_id, key=_message_id)
        if index < self._visible(chat) and rows[index].message_id == message_id:
            return rows[index]
        return None

    def _visible(self, chat: ChatRecord) -> int:
        rows = chat.messages
        if not self._history_delay:
            return len(rows)
        return bisect_right(rows, self._clock.now() - self._history_delay, key=_stored_at)


def _message_id(message: StoredMessage) -> int:
    return message.message_id


def _stored_at(message: StoredMessage) -> float:
    return message.stored_at
