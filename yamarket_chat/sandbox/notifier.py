"""The Market's notifications: POSTed to a seller's address, and repeated as documented."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Annotated, Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from yamarket_chat.errors import InvalidArgumentError

from . import wire

PING_WITHIN = 1.0
"""Seconds within which a PING must be answered (since 2026-04-03)."""

ANSWER_WITHIN = 10.0
"""Seconds within which all other notifications must be answered."""

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
MAX_ANSWER = 64 * 1024

_TIMES = {
    "CHAT_CREATED": "created_at",
    "CHAT_MESSAGE_SENT": "sent_at",
    "CHAT_ARBITRAGE_STARTED": "started_at",
    "CHAT_ARBITRAGE_FINISHED": "finished_at",
}
"""The field of each kind that has its time."""


class NotificationInfo(msgspec.Struct, frozen=True):
    """A notification, as a plan sees it before it is sent.

    Attributes:
        number: The number of the notification, from 1. A PING has none, and asks no plan.
        type: The kind, such as "CHAT_MESSAGE_SENT".
        chat_id: The chat.
        time: The event loop's time, in seconds.

    Example:
        def plan(notification: NotificationInfo) -> list[float]:
            return [] if notification.type == "CHAT_CREATED" else [0.0]

        market.notify("http://127.0.0.1:8080/notification", plan)
    """

    number: int
    type: str
    chat_id: int
    time: float


NotificationPlan = Callable[[NotificationInfo], Sequence[float]]
"""Returns the seconds after which a notification is sent: one for each time that it is sent."""


class SentNotification(msgspec.Struct, frozen=True):
    """One POST of a notification, and what came of it.

    Attributes:
        number: The number of the notification, from 1; 0 is a PING. Those that are sent more than
            once keep their number.
        type: The kind, such as "CHAT_MESSAGE_SENT".
        chat_id: The chat; None for a PING.
        message_id: The message, if the notification is about one.
        time: The event loop's time at which it was sent, in seconds.
        status: The HTTP status of the answer; None if none came in time.
        problem: What is wrong with the answer; None if it is as documented.

    Example:
        market.notify("http://127.0.0.1:1/notification")
        await asyncio.sleep(5)
        assert [sent.type for sent in market.notifications] == ["PING"]
        assert market.notifications[0].status is None
    """

    number: int
    type: str
    chat_id: int | None
    message_id: int | None
    time: float
    status: int | None
    problem: str | None


def random_notifications(
    probability: float, seed: int, *, longest: float = 60.0
) -> NotificationPlan:
    """Make notifications get lost, come more than once, and come late with some probability.

    Those that come late are overtaken by others.

    Args:
        probability: The probability that a notification is not sent once and at once, from 0 to 1.
        seed: The seed of the random generator. The same seed makes the same choices for the same
            sequence of notifications.
        longest: The longest delay in seconds.

    Returns:
        A plan for `Sandbox.notify`.

    Raises:
        InvalidArgumentError: The probability is out of range.

    Example:
        market.notify("http://127.0.0.1:8080/", random_notifications(0.3, seed=7))
    """
    if not 0 <= probability <= 1:
        raise InvalidArgumentError("probability must be from 0 to 1")
    rng = random.Random(seed)

    def plan(notification: NotificationInfo) -> Sequence[float]:
        if rng.random() >= probability:
            return (0.0,)
        late = [rng.uniform(0.0, longest) for _ in range(2)]
        return rng.choice([(), (0.0, 0.0), (0.0, late[0], late[1]), late[:1], late])

    return plan


def pause_after(failing: float) -> float | None:
    """Return the pause before the next attempt of a notification that has failed for some seconds.

    None means that the Market switches the notifications off.
    """
    if failing < HOUR:
        return MINUTE
    if failing < DAY:
        return 15 * MINUTE
    return HOUR if failing < 14 * DAY else None


def notification_of(
    kind: str, business_id: int, chat_id: int, message_id: int | None, time: datetime
) -> wire.Notification:
    """Return a notification of a kind, with the fields that it has."""
    if kind == "PING":
        return wire.Notification(kind, time=time)
    notification = wire.Notification(kind, business_id, chat_id)
    if kind == "CHAT_MESSAGE_SENT":
        notification.message_id = str(message_id)
    setattr(notification, _TIMES[kind], time)
    return notification


class Answer(msgspec.Struct, frozen=True):
    """What came back from the seller's address."""

    status: int | None
    seconds: float
    problem: str | None = None
    name: str = ""


Text = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class _Accepted(msgspec.Struct):
    name: Text
    version: Text
    time: Annotated[datetime, msgspec.Meta(tz=True)]


class _Error(msgspec.Struct):
    type: str
    message: str = ""


class _Failed(msgspec.Struct):
    error: _Error


def check_url(url: object) -> None:
    """Check the address of a receiver."""
    why = ""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:  # as for a port that is out of range
        is_url, why = False, f" ({error})"
    if not is_url:
        raise InvalidArgumentError(
            f"{url!r} is no URL of a receiver{why}; pass http://HOST:PORT/PATH"
        )


def connected() -> aiohttp.ClientSession:
    """Return a session that opens a connection for each notification: none is kept for later."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
    )


async def post(session: aiohttp.ClientSession, url: str, body: bytes, within: float) -> Answer:
    """POST a notification, and check the answer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    status = None
    try:
        async with (
            asyncio.timeout(within),
            session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response,
        ):
            content = await response.content.read(MAX_ANSWER)
            while chunk := await response.content.read(MAX_ANSWER):
                content = (content + chunk)[:MAX_ANSWER]
            status = response.status
    except TimeoutError:
        problem: str | None = f"no answer within {within:g} s"
        name = ""
    except (aiohttp.ClientError, OSError, ValueError) as error:
        problem, name = f"no answer: {error}", ""
    else:
        problem, name = _checked(status, content)
    return Answer(status, loop.time() - began, problem, name)


def _checked(status: int, content: bytes) -> tuple[str | None, str]:
    """Return the problem of an answer, and the name and the version of the seller's program."""
    try:
        if status == 200:
            accepted = msgspec.json.decode(content, type=_Accepted)
            return None, f"{accepted.name} {accepted.version}"
        error = msgspec.json.decode(content, type=_Failed).error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as wrong:
        return f"the answer is not in the documented form: {wrong}", ""
    return f"{error.type}: {error.message}", ""


class _Notice(msgspec.Struct, frozen=True):
    number: int
    type: str
    chat_id: int | None
    message_id: int | None
    body: bytes


class Notifier:
    """Sends what happens in the chats to the seller's address."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, business_id: int, *, keep_books: bool
    ) -> None:
        self._loop = loop
        self._business_id = business_id
        self._keep_books = keep_books
        self._url: str | None = None
        self._plan: NotificationPlan | None = None
        self._numbers = count(1)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._session: aiohttp.ClientSession | None = None
        self.sent: list[SentNotification] = []

    def set(
        self,
        url: str | None,
        plan: NotificationPlan | Mapping[int, Sequence[float]] | None,
        now: datetime,
    ) -> None:
        """Send to this address from now on. What is unsent for another one is dropped."""
        if url is not None:
            check_url(url)
        if isinstance(plan, Mapping):
            plan = _numbered(plan)
        elif plan is not None and not callable(plan):
            raise InvalidArgumentError("plan must be a function, a mapping of numbers, or None")
        self._drop()
        self._url, self._plan = url, plan
        if url is not None:
            body = wire.encode(notification_of("PING", 0, 0, 0, now))
            self._start(self._deliver(url, _Notice(0, "PING", None, None, body), 0.0))

    def tell(self, kind: str, chat_id: int, time: datetime, message_id: int | None) -> None:
        """Send a notification about a chat, as often and as late as the plan says."""
        url = self._url
        if url is None:
            return
        notification = notification_of(kind, self._business_id, chat_id, message_id, time)
        notice = _Notice(next(self._numbers), kind, chat_id, message_id, wire.encode(notification))
        delays: Sequence[float] = (0.0,)
        if self._plan is not None:
            delays = self._plan(NotificationInfo(notice.number, kind, chat_id, self._loop.time()))
        for delay in delays:
            self._start(self._deliver(url, notice, delay))

    def _start(self, delivery: Coroutine[Any, Any, None]) -> None:
        # Not by asyncio.create_task: buyers also speak while no loop runs.
        task = self._loop.create_task(delivery)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def _deliver(self, url: str, notice: _Notice, delay: float) -> None:
        await asyncio.sleep(delay)
        if self._session is None:
            self._session = connected()
        within = PING_WITHIN if notice.type == "PING" else ANSWER_WITHIN
        began = self._loop.time()
        while True:
            now = self._loop.time()
            answer = await post(self._session, url, notice.body, within)
            if self._keep_books:
                self.sent.append(
                    SentNotification(
                        notice.number,
                        notice.type,
                        notice.chat_id,
                        notice.message_id,
                        now,
                        answer.status,
                        answer.problem,
                    )
                )
            if answer.status in (200, 400):
                return
            pause = pause_after(self._loop.time() - began)
            if pause is None:
                self._url = None
                self._drop()
                return
            await asyncio.sleep(pause)

    def _drop(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        self._url = None
        self._drop()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._session is not None:
            await self._session.close()


def _numbered(delays: Mapping[int, Sequence[float]]) -> NotificationPlan:
    chosen = dict(delays)
    return lambda notification: chosen.get(notification.number, (0.0,))
