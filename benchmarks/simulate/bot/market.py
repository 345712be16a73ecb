"""The Market of a story of a bot: rows that appear late or vanish, and notifications."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from yamarket_chat.sandbox import Fault, RequestInfo, StoredMessage

from ..market import Market
from .story import Changes, Writes

FIRST_OTHER = 500_001
"""The first chat in which nobody writes."""

Told = Callable[[str, int, datetime, int | None], None]


class BuyersMarket(Market):
    """A sandbox whose history need not show what is there."""

    now: Callable[[], float]
    told: Told
    spoke: Callable[[int], None]
    """Is called as the shop says something in a chat, by whomever."""
    listed: Callable[[], None]
    """Is called as the chats are listed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shown: dict[int, float] = {}
        self._deleted: dict[int, float] = {}
        self.written: Callable[[StoredMessage], None] | None = None

    def open(self, others: int) -> None:
        """Add chats, and listen to what the Market tells."""
        if others:
            self.box.step_clock(-7200.0)
            for number in range(others):
                self.box.add_chat(FIRST_OTHER + number)
                self.box.set_chat(FIRST_OTHER + number, status="WAITING_FOR_CUSTOMER")
            self.box.step_clock(7200.0)
        state = self.box._state
        state._tell = self._tells
        for name in ("history", "message"):
            setattr(state, name, self._hiding(getattr(state, name)))

    def _fault(self, request: RequestInfo) -> Fault | None:
        if request.operation == "chats":
            self.listed()
        return super()._fault(request)

    def writes(self, step: Writes, written: Callable[[StoredMessage], None]) -> None:
        """Store a message of a buyer. `written` is called before the Market tells of it."""
        self.written = written
        match step.kind:
            case "file":
                self.box.buyer_sends_file(step.chat, step.text, b"photo")
            case "sticker":
                row = self.box.buyer_sends_sticker(step.chat)
                self._written(row)
            case _:
                self.box.buyer_says(step.chat, step.text)

    def hide(self, message_id: int, shown: float, deleted: float | None) -> None:
        """Show a row from one moment on, and up to another."""
        if shown > self.now():
            self._shown[message_id] = shown
        if deleted is not None:
            self._deleted[message_id] = deleted

    def changes(self, event: Changes) -> None:
        """Change the status or the type of a chat."""
        self.box.set_chat(event.chat, status=event.status, chat_type=event.type)

    def _written(self, row: StoredMessage) -> None:
        if self.written is not None:
            written, self.written = self.written, None
            written(row)

    def _tells(self, kind: str, chat_id: int, time: datetime, message_id: int | None) -> None:
        if kind == "CHAT_MESSAGE_SENT" and self.written is not None:
            chat: Any = self.box._state.existing_chat(chat_id)
            self._written(chat.messages[-1])
        if kind == "CHAT_MESSAGE_SENT":
            record: Any = self.box._state.existing_chat(chat_id)
            if record.messages[-1].sender == "PARTNER":
                self.spoke(chat_id)
        self.told(kind, chat_id, time, message_id)

    def _hiding(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def shown(chat: Any, *arguments: Any, **others: Any) -> Any:
            if not self._shown and not self._deleted:
                return method(chat, *arguments, **others)
            rows, now = chat.messages, self.now()
            chat.messages = [
                row
                for row in rows
                if self._shown.get(row.message_id, now) <= now
                and now < self._deleted.get(row.message_id, now + 1.0)
            ]
            try:
                return method(chat, *arguments, **others)
            finally:
                chat.messages = rows

        return shown
