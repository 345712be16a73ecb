"""For web handlers: sends each message in a task of its own, and keeps in a file what is left open.

A handler that is cancelled or stops waiting breaks off no message. What could not be sent, or has
an unknown outcome, is tried again every minute and by the next start. One process per file.
"""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    Pending,
    Receipt,
    SessionClosedError,
)

log = logging.getLogger(__name__)


class Left(msgspec.Struct):
    """A message that is neither delivered nor refused for good."""

    number: int  # in the order of the calls
    chat_id: int
    text: str
    pending: Pending | None = None  # None: it surely did not arrive
    unclear: bool = False  # a person has to look at the chat


class Outgoing:
    def __init__(self, session: ChatSession, path: Path) -> None:
        self._session = session
        self._path = path
        self._left = (
            msgspec.json.decode(path.read_bytes(), type=list[Left]) if path.exists() else []
        )
        self._number = max((left.number for left in self._left), default=0)
        self._running: set[asyncio.Task[Receipt]] = set()
        self._closing = asyncio.Event()
        self._again = asyncio.create_task(self._try_again())

    async def send(self, chat_id: int, text: str, wait: float = 5.0) -> Receipt | None:
        """Return the receipt, or None if the message is still on its way after `wait` seconds.

        Raises a ChatError if the message was refused. After None, it goes on by itself.
        """
        self._number += 1
        left = Left(self._number, chat_id, text)
        sending = asyncio.create_task(self._session.send_message(chat_id, text))
        self._running.add(sending)  # asyncio may drop a task without a reference
        sending.add_done_callback(self._running.discard)
        try:
            done, _ = await asyncio.wait({sending}, timeout=wait)
        except asyncio.CancelledError:
            sending.add_done_callback(lambda sending: self._ended_alone(sending, left))
            raise
        if not done:
            sending.add_done_callback(lambda sending: self._ended_alone(sending, left))
            return None
        try:
            return sending.result()
        except DeliveryUnknownError as error:
            self._keep(left, error)
            raise

    async def close(self, grace: float) -> None:
        """Close after at most `grace` seconds. The next start handles the open messages."""
        self._closing.set()
        await self._session.close(grace)
        await asyncio.wait({*self._running, self._again})

    def _ended_alone(self, sending: asyncio.Task[Receipt], left: Left) -> None:
        """No handler is left to report what became of the message."""
        if not sending.cancelled() and isinstance(error := sending.exception(), ChatError):
            self._keep(left, error)

    def _keep(self, left: Left, error: ChatError) -> None:
        if isinstance(error, DeliveryUnknownError):
            left.pending = error.pending
        elif not isinstance(error, SessionClosedError) and error.retry_after is None:
            log.error("chat %s: refused for good; tell a person: %s", left.chat_id, error)
            return
        self._left.append(left)
        self._write()

    async def _try_again(self) -> None:
        while not self._closing.is_set():
            for left in sorted(self._left, key=lambda left: left.number):
                if not (left.unclear or self._closing.is_set()):
                    await self._end(left)
            with suppress(TimeoutError):
                async with asyncio.timeout(60):
                    await self._closing.wait()

    async def _end(self, left: Left) -> None:
        try:
            arrived = left.pending and await self._session.settle(left.pending, max_wait=None)
        except SessionClosedError:
            return
        except ChatError as error:
            log.error("chat %s: unclear; ask a person to look: %s", left.chat_id, error)
            left.unclear = True
            self._write()
            return
        # Removed from the file before it is sent: a kill between these lines loses the message. In
        # the other order, the next start would send it twice.
        self._left.remove(left)
        self._write()
        if not arrived:
            left.pending = None
            try:
                await self._session.send_message(left.chat_id, left.text, max_wait=None)
            except ChatError as error:
                self._keep(left, error)

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(self._left))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
