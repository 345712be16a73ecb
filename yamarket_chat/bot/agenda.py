"""Which chats are to be looked at, and when. One look at a chat goes on at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import msgspec

from ..errors import SessionClosedError
from ..models import Chat
from .cursor import Hint

logger: logging.Logger = logging.getLogger("yamarket_chat")


FIRST_PAUSE = 1.0
"""Seconds until something is tried again that failed for now. They double."""


class Todo(msgspec.Struct):
    """Why a chat is looked at. Times are the loop's."""

    chat: Chat | None = None  # as it was listed, if it was
    listed_at: float = 0.0
    hints: dict[int, tuple[Hint, float]] = {}
    looks: int = 0  # that did not find what they should
    once_more: tuple[float, ...] = ()  # when to look again in any case
    has_turn: bool = False  # its handler may be at work; otherwise the look waits to begin

    def pause(self, most: float) -> float:
        """Return in how many seconds to look again. They double."""
        return min(FIRST_PAUSE * 2.0 ** min(self.looks, 10), most)

    def knows(self, hint: Hint) -> bool:
        """Whether this look is for a hint as well."""
        known = self.hints.get(hint.message_id)
        return known is not None and known[0].hinted_at == hint.hinted_at

    def is_listed_as(self, chat: Chat | None) -> bool:
        """Whether this look is for the same change of the chat."""
        both = self.chat is not None and chat is not None
        return both and self.chat.updated_at == chat.updated_at  # type: ignore[union-attr]


class Agenda:
    """The chats of a business that are to be looked at.

    Args:
        look: Looks at a chat. Returns in how many seconds to look again, or None.
    """

    def __init__(self, look: Callable[[int, Todo], Awaitable[float | None]]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._todo: dict[int, Todo] = {}
        self._at_work: dict[int, tuple[asyncio.Task[None], Todo]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._not_before: dict[int, float] = {}
        self._alone: list[int] = []  # chats at which nobody looks until something else is done
        self.stopping: bool = False

    def look_at(self, chat_id: int, *, chat: Chat | None = None, hint: Hint | None = None) -> None:
        """Look at a chat as soon as there is room."""
        if hint is not None and self._knows(chat_id, hint):
            return
        todo = self._todo.get(chat_id)
        if todo is None:
            todo = self._todo[chat_id] = Todo()
        now = self._loop.time()
        if hint is None and chat_id in self._timers and todo.is_listed_as(chat):
            return  # it is known when to look at this change again
        if chat is not None and not todo.is_listed_as(chat):
            todo.chat, todo.listed_at = chat, now
        if hint is not None:
            todo.hints[hint.message_id] = hint, now
            todo.looks = 0
        self._begin_soon(chat_id, 0.0)

    def rest(self, chat_id: int, seconds: float) -> None:
        """Look at a chat only after some seconds, whatever comes meanwhile."""
        self._not_before[chat_id] = self._loop.time() + seconds

    async def alone(self, chat_id: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something else for a chat while nobody looks at it.

        A look that has not got its turn yet may wait for an hour: it is begun again afterwards.

        Raises SessionClosedError if it was stopped.
        """
        self._alone.append(chat_id)
        try:
            while (looking := self._at_work.get(chat_id)) is not None:
                looks, todo = looking
                if not todo.has_turn and not looks.done():
                    self._put_back(chat_id, todo)
                    looks.cancel()
                await asyncio.wait({looks})
                await asyncio.sleep(0)  # it is no longer at work one pass after it is done
            if self.stopping:
                raise SessionClosedError("another process works for this business now")
            task = self._loop.create_task(work())
            self._keep(chat_id, task, Todo(has_turn=True))
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
        finally:
            self._alone.remove(chat_id)
            self._go_on(chat_id)
        if task.cancelled():
            raise SessionClosedError("another process works for this business now")
        task.result()

    def stop(self, handling: Collection[int]) -> None:
        """Begin nothing new; cancel all looks but those whose handler is at work."""
        self.stopping = True
        for timer in self._timers.values():
            timer.cancel()
        for chat_id, (task, _) in self._at_work.items():
            if chat_id not in handling:
                task.cancel()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the looks that go on."""
        return [task for task, _ in self._at_work.values()]

    def _knows(self, chat_id: int, hint: Hint) -> bool:
        looking, todo = self._at_work.get(chat_id), self._todo.get(chat_id)
        return (looking is not None and looking[1].knows(hint)) or (
            todo is not None and todo.knows(hint)
        )

    def _begin_soon(self, chat_id: int, after: float) -> None:
        if self._must_wait(chat_id):
            return  # or it is begun again when that has ended
        timer = self._timers.pop(chat_id, None)
        if timer is not None:
            timer.cancel()
        now = self._loop.time()
        at = max(self._not_before.get(chat_id, 0.0), now + after)
        if at > now:
            self._timers[chat_id] = self._loop.call_at(at, self._begin, chat_id)
        else:
            self._begin(chat_id)

    def _begin(self, chat_id: int) -> None:
        self._timers.pop(chat_id, None)
        self._not_before.pop(chat_id, None)
        if self._must_wait(chat_id):
            return  # the same
        todo = self._todo.pop(chat_id, None)
        if todo is None:
            return
        todo.has_turn = False
        self._keep(chat_id, self._loop.create_task(self._work(chat_id, todo)), todo)

    def _keep(self, chat_id: int, task: asyncio.Task[None], todo: Todo) -> None:
        self._at_work[chat_id] = task, todo

        def ended(task: asyncio.Task[None]) -> None:
            del self._at_work[chat_id]
            self._go_on(chat_id)

        task.add_done_callback(ended)

    def _must_wait(self, chat_id: int) -> bool:
        return self.stopping or chat_id in self._at_work or chat_id in self._alone

    def _go_on(self, chat_id: int) -> None:
        if chat_id in self._todo and chat_id not in self._timers:
            self._begin_soon(chat_id, 0.0)

    async def _work(self, chat_id: int, todo: Todo) -> None:
        pause = await self._look(chat_id, todo)
        if pause is None or self.stopping:
            return
        if self._put_back(chat_id, todo):  # what came meanwhile is looked at at once
            at = self._loop.time() + pause
            self._timers[chat_id] = self._loop.call_at(at, self._again, chat_id)

    def _put_back(self, chat_id: int, todo: Todo) -> bool:
        """Note that a look is to be made again. Returns whether there is no newer reason for it."""
        newer = self._todo.setdefault(chat_id, todo)
        if newer is not todo:
            if newer.chat is None or newer.is_listed_as(todo.chat):
                newer.chat, newer.listed_at = todo.chat, todo.listed_at
            newer.hints = {**todo.hints, **newer.hints}
            newer.once_more = newer.once_more or todo.once_more
        return newer is todo

    def _again(self, chat_id: int) -> None:
        self._timers.pop(chat_id, None)
        self._begin_soon(chat_id, 0.0)
