"""The chats, messages and files that the sandbox stores. No HTTP here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import count, islice
from typing import Literal

import msgspec

from .clock import Clock
from .wire import ContextType, Sender

HistoryOrder = Literal["ascending", "descending", "shuffled"]


class StoredFile(msgspec.Struct, frozen=True):
    """A file in a message.

    Attributes:
        name: The name of the file.
        url: The URL from which the file can be downloaded while the sandbox runs.
        size: The size in bytes.

    Example:
        message = market.buyer_sends_file(chat_id, "чек.jpg", b"photo")
        assert message.payload[0].size == 5
    """

    name: str
    url: str
    size: int


class StoredMessage(msgspec.Struct, frozen=True):
    """A message that is stored in a chat.

    Attributes:
        message_id: The id of the message. Ids grow in the order in which messages are stored.
        created_at: The time that the history shows: the sandbox's clock, in whole seconds.
        sender: "PARTNER" (the seller), "CUSTOMER" (the buyer), "MARKET" or "SUPPORT".
        text: The text, or None for a message that is a file.
        payload: The files.
        stored_at: The event loop's time at which the message was stored, in seconds.

    Example:
        await session.send_message(chat_id, "Ваш заказ в пути")
        message = market.messages(chat_id)[-1]
        assert (message.sender, message.text) == ("PARTNER", "Ваш заказ в пути")
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
        self.chat_id: int = chat_id
        self.order_id: int | None = order_id
        self.return_id: int | None = return_id
        self.type: str = "CHAT"
        self.status: str = "NEW"
        self.created_at: datetime = created_at
        self.updated_at: datetime = created_at
        self.messages: list[StoredMessage] = []

    @property
    def context_type(self) -> ContextType:
        if self.return_id is not None:
            return "RETURN"
        return "DIRECT" if self.order_id is None else "ORDER"

    @property
    def identifier(self) -> int | None:
        """The id of the order or the return that the chat is about."""
        return self.order_id if self.return_id is None else self.return_id

    @property
    def is_disputed(self) -> bool:
        return self.type == "ARBITRAGE" and self.status != "FINISHED"


class HistoryPage(msgspec.Struct, frozen=True):
    """The messages of a page. `last_id` is the id of the last one, or None if no page follows."""

    messages: list[StoredMessage]
    last_id: int | None


class State:
    """All that the Market stores for one seller.

    `chats` are the ids of the chats that exist from the start. None means that every id is valid:
    the chat is created when a request first names it, as a chat that the buyer started (DIRECT).
    `tell` is told of what the Market notifies sellers of: the kind, the chat, the time and the id
    of the message.
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
        tell: Callable[[str, int, datetime, int | None], object],
    ) -> None:
        self._clock = clock
        self._tell = tell
        self._create_unknown_chats = chats is None
        self._keep_messages = keep_messages
        self._history_delay = history_delay
        self._history_order = history_order
        self._history_includes_from = history_includes_from
        self._chats: dict[int, ChatRecord] = {}
        self._chats_by_creation: list[ChatRecord] = []
        self._by_context: dict[tuple[ContextType, int], ChatRecord] = {}
        self._chat_ids = count(1_000_001)
        self._message_ids = count(1)
        self._files: dict[int, tuple[str, bytes]] = {}
        self._file_ids = count(1)
        self.files_url = ""
        self.messages_stored: int = 0
        for chat_id in chats or ():
            if chat_id not in self._chats:
                self.add_chat(chat_id)

    # Chats

    def chat(self, chat_id: int) -> ChatRecord | None:
        """Return the chat, or None. If every id is valid, create the chat if it is missing."""
        chat = self._chats.get(chat_id)
        if chat is None and self._create_unknown_chats:
            chat = self.add_chat(chat_id)
        return chat

    def chat_for(self, context_type: Literal["ORDER", "RETURN"], identifier: int) -> ChatRecord:
        """Return the chat about this order or return. Create it if it is missing."""
        chat = self._by_context.get((context_type, identifier))
        if chat is None:
            name = "order_id" if context_type == "ORDER" else "return_id"
            chat = self.add_chat(None, **{name: identifier})
        return chat

    def add_chat(
        self, chat_id: int | None, *, order_id: int | None = None, return_id: int | None = None
    ) -> ChatRecord:
        """Create a chat about a return, an order or neither. ValueError if it already exists."""
        if chat_id is None:
            chat_id = next(i for i in self._chat_ids if i not in self._chats)
        elif chat_id in self._chats:
            raise ValueError(f"chat {chat_id} exists already; pass another id")
        chat = ChatRecord(
            chat_id,
            self._clock.timestamp(self._clock.now()),
            order_id=order_id,
            return_id=return_id,
        )
        if chat.identifier is not None:
            key = (chat.context_type, chat.identifier)
            if key in self._by_context:
                raise ValueError(
                    f"{chat.context_type.lower()} {chat.identifier} has a chat already"
                )
            self._by_context[key] = chat
        self._chats[chat_id] = chat
        self._chats_by_creation.append(chat)
        self._tell("CHAT_CREATED", chat_id, chat.created_at, None)
        return chat

    def set_chat(self, chat: ChatRecord, status: str | None, chat_type: str | None) -> None:
        was_disputed = chat.is_disputed
        chat.status = status or chat.status
        chat.type = chat_type or chat.type
        if chat.is_disputed is not was_disputed and chat.context_type != "DIRECT":
            kind = "CHAT_ARBITRAGE_FINISHED" if was_disputed else "CHAT_ARBITRAGE_STARTED"
            self._tell(kind, chat.chat_id, self._clock.timestamp(self._clock.now()), None)

    def existing_chat(self, chat_id: int) -> ChatRecord | None:
        """Return the chat if it exists. Never create it."""
        return self._chats.get(chat_id)

    def chats_from(self, position: int) -> Iterable[tuple[int, ChatRecord]]:
        """Yield the chats from `position` on, in order of creation, each with the next position."""
        return enumerate(islice(self._chats_by_creation, position, None), position + 1)

    # Messages and files

    def store(
        self,
        chat: ChatRecord,
        sender: Sender,
        text: str | None,
        files: Iterable[tuple[str, bytes]] = (),
        *,
        notifies: bool = True,
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
        if notifies:
            self._tell("CHAT_MESSAGE_SENT", chat.chat_id, message.created_at, message.message_id)
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
        """Return a page of messages from `from_id` on.

        `after_id` is the id of the last message of the page before, or None for the first page.
        """
        rows = chat.messages
        if self._history_order == "shuffled":
            return self._shuffled(rows[: self._visible(chat)], after_id or 0, limit)
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

    def _shuffled(self, rows: list[StoredMessage], position: int, limit: int) -> HistoryPage:
        # A new row may appear anywhere and push others to the next page.
        rows = sorted(rows, key=_shuffled_position)
        end = position + limit
        return HistoryPage(rows[position:end], end if end < len(rows) else None)

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


def _shuffled_position(message: StoredMessage) -> int:
    return message.message_id * 2_654_435_761 % 2**32


def _message_id(message: StoredMessage) -> int:
    return message.message_id


def _stored_at(message: StoredMessage) -> float:
    return message.stored_at
