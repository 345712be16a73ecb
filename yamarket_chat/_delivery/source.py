"""The source of the messages of `send_many`: an iterable or an async iterable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from typing import Any

from .._http.attempt import running_task
from ..receipts import OutgoingMessage

Messages = Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage]

END = object()
"""Marks the end of the messages."""


class Source:
    """The messages of an iterable."""

    def __init__(self, messages: Iterable[OutgoingMessage]) -> None:
        self._iterator = iter(messages)
        self.failure: BaseException | None = None  # the error that ended it early

    def take(self) -> Any:
        """Return the next item of the iterable, unchecked, or `END`."""
        try:
            return next(self._iterator, END)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised after the messages before it have ended
            self.failure = _failure(error)
            return END

    def close(self) -> None:
        """Read nothing more."""

    async def closed(self) -> None:
        """Wait until nothing is read any more."""


class AsyncSource:
    """The messages of an async iterable.

    One task runs it, because it may open something in one step (a timeout, a context variable) and
    close it in another.
    """

    def __init__(
        self,
        messages: AsyncIterable[OutgoingMessage],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.failure: BaseException | None = None
        self._wanted = asyncio.Event()
        self._read: asyncio.Queue[Any] = asyncio.Queue()
        self._is_closed = False
        self._reader = start(self._run(messages))

    async def next(self) -> Any:
        """Return the next item of the iterable, unchecked, or `END`. For one task at a time."""
        self._wanted.set()
        return await self._read.get()

    def close(self) -> None:
        """As of `Source`."""
        self._is_closed = True
        self._read.put_nowait(END)
        if self._reader is not asyncio.current_task():  # the iterable may close its session
            self._reader.cancel()

    async def closed(self) -> None:
        """As of `Source`."""
        if self._reader is not asyncio.current_task():
            await asyncio.wait({self._reader})

    async def _run(self, messages: AsyncIterable[OutgoingMessage]) -> None:
        iterator: object = None
        try:
            await self._wanted.wait()
            iterator = aiter(messages)
            async for message in iterator:
                if self._is_closed:
                    break
                self._wanted.clear()
                self._read.put_nowait(message)
                await self._wanted.wait()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.failure = _failure(error)
            if isinstance(error, asyncio.CancelledError) and running_task().cancelling():
                raise
        finally:
            self._read.put_nowait(END)
            if isinstance(iterator, AsyncGenerator):
                # Otherwise the loop closes it, in another task, when nothing refers to it any more.
                await iterator.aclose()


def _failure(error: BaseException) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        # Otherwise the consumer of the outcomes would seem to be cancelled.
        return RuntimeError("the reading of the messages was cancelled")
    return error
