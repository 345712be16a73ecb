"""Many messages: read as fast as they can be sent, told as they end.

A worker takes a message, sends it, and goes on with the next. At most one of them is in front: it
takes, or waits for a place. When its message has left, or waits for something else (its chat, a
pause, an unknown outcome), somebody else steps in front, if one more message could leave. A worker
whose message has ended steps in front itself, or goes home if somebody is there. So there are as
many workers as there is work for, and where each finds a place free when it comes back with one, a
message costs neither a task of its own nor a turn among those that wait: 5 % of a send instead of
31 %.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine
from typing import Any

from .calls import closed_error, running_task
from .errors import ChatError, InvalidArgumentError, UnauthorizedError
from .models import Outcome, OutgoingMessage, Receipt
from .scheduler import Owner, Scheduler
from .source import END, AsyncSource, Messages, Source

READ_AHEAD = 256
"""How many messages `send_many` has in hand at most: read, and their outcome not yet taken. Enough
to keep all parallel places busy while some chats wait for their turn or for an unknown outcome."""


class Batch(Owner):
    """The messages of one `send_many`, each sent by `send` on its behalf."""

    def __init__(
        self,
        scheduler: Scheduler,
        send: Callable[[Owner, OutgoingMessage], Coroutine[Any, Any, Receipt]],
        messages: Messages,
    ) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._source = (
            AsyncSource(messages, self._start)
            if isinstance(messages, AsyncIterable)
            else Source(messages)
        )
        self._in_hand = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._front: asyncio.Task[None] | None = None
        self._coming: asyncio.Task[None] | None = None  # a worker that has not begun yet
        self._all_read = False
        self._stopped = False
        # What `take` returns or raises. asyncio.Queue would cost 1.5 % of a send.
        self._ended: deque[Outcome | BaseException | None] = deque()
        self._told: asyncio.Future[None] | None = None
        scheduler.bulks.add(self)
        self.place_freed()

    def has_ended(self) -> bool:
        """Whether there is something to take."""
        return bool(self._ended)

    async def wait(self) -> None:
        """Return when there is something to take."""
        while not self._ended:
            self._told = self._loop.create_future()
            await self._told

    def take(self) -> Outcome | None:
        """What became of the message that ended next; None behind the last one."""
        ended = self._ended.popleft()
        if isinstance(ended, BaseException):
            raise ended
        self._in_hand -= 1
        if self._in_hand == READ_AHEAD - 1:
            self.place_freed()
        return ended

    def _tell(self, ended: Outcome | BaseException | None) -> None:
        self._ended.append(ended)
        if self._told is not None and not self._told.done():
            self._told.set_result(None)

    def end_waiting(self) -> None:
        """Read and send nothing more."""
        if not self._stopped:
            self._stopped = True
            self._scheduler.bulks.discard(self)
            self._scheduler.end_waiting(self, closed_error())
            self._source.close()

    async def stop(self) -> None:
        """Read and send nothing more, and let end what is under way."""
        self.end_waiting()
        if self._workers:
            await asyncio.wait(self._workers)
        await self._source.closed()
        # Whoever still takes outcomes must not take this for the end of the messages.
        self._tell(closed_error())

    def make_way(self) -> None:
        """One of its messages left, or waits for something else than a place."""
        if self._front is not None and asyncio.current_task(self._loop) is self._front:
            self._front = None
        self.place_freed()

    def place_freed(self) -> None:
        """See to it that somebody is in front, where one more message could leave."""
        # With all places taken, one of them by us, its worker steps in front when it comes back.
        if (
            self._front is None
            and self._coming is None
            and not self._scheduler.is_waiting_for_answer(self)
            and self._has_more()
        ):
            self._coming = self._start(self._work())
            self._coming.add_done_callback(self._went_home)
            self._workers.add(self._coming)

    def _has_more(self) -> bool:
        return not (self._all_read or self._stopped) and self._in_hand < READ_AHEAD

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In the context of whoever sends, not of whoever freed a place; and never eagerly.
        return asyncio.Task(work, loop=self._loop, context=self._context)

    async def _work(self) -> None:
        worker = running_task(self._loop)
        self._coming = None
        try:
            while self._front in (None, worker) and self._has_more():
                self._front = worker
                self._in_hand += 1
                source = self._source
                message = source.take() if isinstance(source, Source) else await source.next()
                if message is END:
                    self._all_read = True
                    break
                try:
                    outcome = Outcome(message, receipt=await self._send(self, _checked(message)))
                except ChatError as error:
                    if isinstance(error, UnauthorizedError):
                        # The key is wrong for all of them.
                        self._scheduler.end_waiting(self, error)
                    outcome = Outcome(message, error=error)
                except Exception as error:  # noqa: BLE001 - a defect: or the message would be lost
                    self._tell(error)
                    continue
                self._tell(outcome)
        finally:
            if self._front is worker:
                self._front = None

    def _went_home(self, worker: asyncio.Task[None]) -> None:
        # Not a part of `_work`: of a worker that is cancelled before it begins, nothing runs.
        self._workers.discard(worker)
        if self._stopped:
            return
        if worker.cancelled():
            # All tasks are ended: whoever takes outcomes must not wait for this one for ever.
            self._tell(closed_error())
        elif self._all_read and not self._workers:
            self._tell(self._source.failure)


def _checked(message: object) -> OutgoingMessage:
    if not isinstance(message, OutgoingMessage):
        raise InvalidArgumentError(f"send_many takes OutgoingMessage, not {message!r:.80}")
    return message
