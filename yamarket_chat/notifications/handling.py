"""What becomes of a notification, and the documented forms of the answers."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..system import wall_time
from .events import Event, Ping, WrongNotificationError, parse
from .gate import Gate, Header

MAX_BODY = 64 * 1024
"""The largest body in bytes. The Market's notifications have some hundreds."""

READ_WITHIN = 5.0
"""Seconds from the head of a request within which its body must have arrived."""

ANSWER_WITHIN = 9.0
"""Seconds from the head of a request until its answer. The Market waits for 10 s."""

CLOSE_WITHIN = 10.0
"""Seconds that `close` waits for handlers at most; it then cancels them."""

REPORT_EVERY = 60.0
"""Seconds between two lines of the log about the same trouble with requests."""

OnEvent = Callable[[Event], Awaitable[None]]

logger: logging.Logger = logging.getLogger("yamarket_chat")


class Reply(msgspec.Struct, frozen=True):
    """What the Market is answered: JSON, with the Content-Type application/json.

    Attributes:
        status: The HTTP status: 200, 400, 403, 413, 500 or 503.
        body: The body.

    Example:
        reply = await receiver.reply(b'{"notificationType": "PING"}', "5.45.207.1")
        assert reply.status == 200
    """

    status: int
    body: bytes


class _Accepted(msgspec.Struct, frozen=True):
    version: str
    name: str
    time: str


class _Error(msgspec.Struct, frozen=True):
    type: str
    message: str


class _Failed(msgspec.Struct, frozen=True):
    error: _Error


def failure(status: int, message: str, kind: str = "UNKNOWN") -> Reply:
    """Make the answer to what was not accepted, in the documented form."""
    return Reply(status, msgspec.json.encode(_Failed(_Error(kind, message))))


def wrong(message: str) -> Reply:
    """Make the answer after which the Market does not repeat the request."""
    return failure(400, message, "WRONG_EVENT_FORMAT")


NOT_ADMITTED = failure(403, "The request does not come from the Market")
TOO_LARGE = failure(413, f"The body has more than {MAX_BODY} bytes")
CLOSING = failure(503, "The receiver is shutting down")
TOO_SLOW = failure(503, f"The body did not arrive within {READ_WITHIN:g} s")
NOT_POSTED = wrong("Notifications are POSTed")
UNREADABLE = wrong("The body cannot be read")
_FAILED = failure(500, "The event was not processed")
_TOO_LATE = failure(500, "The event was not processed in time")


class _Line:
    """A line of the log, written once in a while only: a flood must not fill the log."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._count = 0
        self._written_at = -REPORT_EVERY

    def write(self, detail: str) -> None:
        """Count a request, and write the line if that was not done lately."""
        self._count += 1
        now = asyncio.get_running_loop().time()
        if now - self._written_at >= REPORT_EVERY:
            logger.warning(self._text, self._count, detail)
            self._count, self._written_at = 0, now


class Handling:
    """Lets requests in, has their events handled, and answers."""

    def __init__(self, on_event: OnEvent, name: str, version: str, gate: Gate) -> None:
        self._on_event = on_event
        self._name = name
        self._version = version
        self._gate = gate
        self._running: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._not_admitted = _Line("%d request(s) answered 403, the last from %s")
        self._not_posted = _Line(
            "%d request(s) answered 400, the last with the method %s: notifications are POSTed; a"
            " redirect on the way may have made a GET of a POST"
        )
        self._unreadable = _Line(
            "%d request(s) answered 400, the body of the last cannot be read: %s"
        )

    def admits(self, remote: str | None, header: Header) -> bool:
        """Return True if a request is let in."""
        return not self._is_closing and self._gate.stranger(remote, header) is None

    def refuses(self, remote: str | None, header: Header) -> Reply | None:
        """Return the answer to a request that is not let in. Its body need not be read."""
        stranger = self._gate.stranger(remote, header)
        if stranger is not None:
            self._not_admitted.write(stranger)
            return NOT_ADMITTED
        return CLOSING if self._is_closing else None

    def not_posted(self, method: str) -> Reply:
        """Return the answer to a request that was let in and is no POST."""
        self._not_posted.write(method)
        return NOT_POSTED

    def unreadable(self, error: Exception) -> Reply:
        """Return the answer to a request whose body cannot be read."""
        self._unreadable.write(type(error).__name__)
        return UNREADABLE

    async def answer(self, body: bytes, deadline: float) -> Reply:
        """Answer a request that was let in. `deadline` is a time of the event loop."""
        if len(body) > MAX_BODY:
            return TOO_LARGE
        try:
            event = parse(body)
        except WrongNotificationError as error:
            logger.warning("a notification was answered 400: %s", error)
            return wrong(str(error))
        if isinstance(event, Ping):
            logger.info("the Market has sent a PING")
        elif failed := await self._handle(event, deadline):
            return failed
        return self._accepted()

    async def _handle(self, event: Event, deadline: float) -> Reply | None:
        """Wait for the handler, and return the answer if it has failed."""
        # A task of its own: one that goes on although it is cancelled must not delay the answer.
        task = asyncio.create_task(self._call(event), name="handler of a notification")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait(
                {task}, timeout=max(deadline - asyncio.get_running_loop().time(), 0.0)
            )
        except asyncio.CancelledError:  # the request was given up, so the Market sends it again
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            logger.error("on_event took too long and was cancelled; the Market was answered 500")
            return _TOO_LATE
        if task.cancelled():
            logger.error("on_event was cancelled; the Market was answered 500")
            return _FAILED
        if (error := task.exception()) is not None:
            logger.error("on_event failed; the Market was answered 500", exc_info=error)
            return _FAILED
        return None

    async def _call(self, event: Event) -> None:
        running: Any = self._on_event(event)
        if inspect.isawaitable(running):
            await running
        else:  # it has done its work: after a 500 the Market would have it done again for 14 days
            logger.error(
                "on_event is no async function: write `async def`. It has returned, so the Market"
                " was answered 200"
            )

    def _accepted(self) -> Reply:
        now = datetime.fromtimestamp(wall_time(asyncio.get_running_loop()), UTC)
        time = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Reply(200, msgspec.json.encode(_Accepted(self._version, self._name, time)))

    def open(self) -> None:
        """Answer again after `close`."""
        self._is_closing = False

    async def close(self) -> None:
        """Answer 503 from now on, and wait for the handlers that have begun."""
        self._is_closing = True
        running = {task for task in self._running if task is not asyncio.current_task()}
        if running:
            _, late = await asyncio.wait(running, timeout=CLOSE_WITHIN)
            for task in late:
                task.cancel()
