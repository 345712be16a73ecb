"""Many messages: read as fast as they can be sent, told as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any

from .calls import closed_error
from .errors import ChatError, InvalidArgumentError, UnauthorizedError
from .models import Outcome, OutgoingMessage, Receipt
from .scheduler import Owner, Scheduler

READ_AHEAD = 256
"""How many messages `send_many` has in hand at most: read, and their outcome not yet taken. Enough
to keep all parallel places busy while some chats wait for their turn or for an unknown outcome."""

Messages = Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage]


class Batch:
    """The messages of one `send_many`: at most `READ_AHEAD` of them in hand.

    Each is sent by `send`, on behalf of the batch's own owner.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        send: Callable[[Owner, OutgoingMessage], Coroutine[Any, Any, Receipt]],
        messages: Messages,
    ) -> None:
        self.owner = Owner()
        self._scheduler = scheduler
        self._send = send
        self._room = asyncio.Semaphore(READ_AHEAD)
        self._tasks: set[asyncio.Task[None]] = set()
        # An exception is the iterable's own; None is the end.
        self._ended: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(messages))

    async def next_outcome(self) -> Outcome | None:
        """What became of the message that ended next; None behind the last one."""
        ended = await self._ended.get()
        if isinstance(ended, Exception):
            raise ended
        self._room.release()
        return ended

    def end_waiting(self) -> None:
        """Read and send nothing more."""
        self._scheduler.end_waiting(self.owner, closed_error())
        self._reader.cancel()

    async def stop(self) -> None:
        """Read and send nothing more, and let end what is under way."""
        self.end_waiting()
        await asyncio.wait({self._reader, *self._tasks})
        if self._reader.cancelled():
            # Whoever still takes outcomes must not take this for the end of the messages.
            self._ended.put_nowait(closed_error())

    async def _read(self, messages: Messages) -> None:
        failure: Exception | None = None
        try:
            await self._room.acquire()
            if isinstance(messages, AsyncIterable):
                async for message in messages:
                    await self._start(message)
            else:
                for message in messages:
                    await self._start(message)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            failure = RuntimeError("the iterable of the messages was cancelled from elsewhere")
        except Exception as error:  # noqa: BLE001 - raised once the messages before it have ended
            failure = error
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._ended.put_nowait(failure)

    async def _start(self, message: OutgoingMessage) -> None:
        task = asyncio.create_task(self._carry_out(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._room.acquire()

    async def _carry_out(self, message: OutgoingMessage) -> None:
        try:
            if not isinstance(message, OutgoingMessage):
                raise InvalidArgumentError(f"send_many takes OutgoingMessage, not {message!r:.80}")
            receipt = await self._send(self.owner, message)
        except ChatError as error:
            if isinstance(error, UnauthorizedError):
                # The key is wrong for all of them.
                self._scheduler.end_waiting(self.owner, error)
            self._ended.put_nowait(Outcome(message, error=error))
        except Exception as error:  # noqa: BLE001 - a defect is told, or the message would be lost
            self._ended.put_nowait(error)
        else:
            self._ended.put_nowait(Outcome(message, receipt=receipt))


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
