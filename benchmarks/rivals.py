"""The clients that are compared. Each is a context manager that gives a function to send with.

They import what they need when they are opened: a worker has nothing else in memory.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

API_KEY = "ACMA:benchmark:0123456789abcdef"
BUSINESS_ID = 12345
INTEGRATION = "benchmarks/1"
TEXT = "Ваш заказ уже в пути, курьер позвонит за час до приезда"
BODY = json.dumps({"message": TEXT}, ensure_ascii=False, separators=(",", ":")).encode()
HEADERS = {
    "Api-Key": API_KEY,
    "X-Market-Integration": INTEGRATION,
    "User-Agent": INTEGRATION,
    "Accept": "application/json",
    "Content-Type": "application/json",
}
LIFTED = 1_000_000_000
"""Requests an hour where no limit shall be in force."""
CHATS = 1000
"""Messages go to so many chats in turn: a chat that was not written to lately is the usual case."""

Send = Callable[[int, str], Awaitable[object]]
"""Send a text to a chat; return when it has arrived."""
Run = Callable[[int], Awaitable[None]]
"""Send so many messages, as many at once as the client was opened for."""


def path(chat_id: int) -> str:
    """The address of a chat's messages."""
    return f"/v2/businesses/{BUSINESS_ID}/chats/message?chatId={chat_id}"


@asynccontextmanager
async def ours(url: str, at_once: int = 4, *, requests: int = LIFTED) -> AsyncIterator[Send]:
    """`ChatSession.send_message`, with all its promises."""
    from yamarket_chat import ChatSession, Limits, Rate

    limits = Limits(parallel=at_once, send_message=Rate(requests, per=3600))
    async with ChatSession(
        API_KEY, BUSINESS_ID, base_url=url, limits=limits, integration=INTEGRATION
    ) as session:
        yield session.send_message


@asynccontextmanager
async def bare_aiohttp(url: str, at_once: int) -> AsyncIterator[Send]:
    """aiohttp and nothing else: the body is ready made, the answer is read and not looked at."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as http:

        async def send(chat_id: int, text: str) -> None:
            async with http.post(url + path(chat_id), data=BODY) as response:
                await response.read()

        yield send


@asynccontextmanager
async def ya_market_api(url: str, at_once: int) -> AsyncIterator[Send]:
    """The other client of this API: aiohttp and pydantic; no limits, no retries."""
    import aiohttp
    from ya_market_api.async_api import AsyncAPI
    from ya_market_api.base.async_config import AsyncConfig
    from ya_market_api.chat.dataclass import ChatMessageCreateTextRequest

    # What its AsyncAPI.build() makes, but for the number of connections, which is 100 there.
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector, headers={"Api-Key": API_KEY}) as http:
        chat = AsyncAPI(AsyncConfig(http, url, business_id=BUSINESS_ID)).chat

        async def send(chat_id: int, text: str) -> None:
            request = ChatMessageCreateTextRequest(chat_id=chat_id, message=text)
            await chat.create_chat_message_text(request)

        yield send


@asynccontextmanager
async def httpx_by_hand(url: str, at_once: int) -> AsyncIterator[Send]:
    """httpx as its documentation shows it."""
    import httpx

    # Connections are kept as long as aiohttp keeps them.
    limits = httpx.Limits(max_connections=at_once, keepalive_expiry=15)
    async with httpx.AsyncClient(
        base_url=url,
        headers=HEADERS,
        limits=limits,
        timeout=60,  # its 5 s are too short to connect 512 times at once
    ) as http:

        async def send(chat_id: int, text: str) -> None:
            response = await http.post(path(chat_id), json={"message": text})
            response.raise_for_status()
            assert response.json()["status"] == "OK"

        yield send


class GaveUp(Exception):
    """The hand-written client gave up on a message."""


@asynccontextmanager
async def aiohttp_by_hand(
    url: str,
    at_once: int = 4,
    *,
    requests: int | None = LIFTED,
    per: float = 3600.0,
    attempts: int = 5,
) -> AsyncIterator[Send]:
    """What people write by hand: AsyncLimiter, a semaphore, retries with growing pauses.

    An attempt is repeated after network errors, refusals and 5xx, as the usual recipes do. There is
    no limiter where `requests` is None.
    """
    import aiohttp
    from aiolimiter import AsyncLimiter

    limiter = None if requests is None else AsyncLimiter(requests, per)
    places = asyncio.Semaphore(at_once)
    connector = aiohttp.TCPConnector(limit=at_once)
    timeout = aiohttp.ClientTimeout(total=15)

    async with aiohttp.ClientSession(connector=connector, headers=HEADERS, timeout=timeout) as http:

        async def attempt(chat_id: int, text: str) -> bool:
            if limiter is not None:
                await limiter.acquire()
            address = url + path(chat_id)
            async with places, http.post(address, json={"message": text}) as response:
                response.raise_for_status()
                answer: dict[str, str] = await response.json()
                return answer["status"] == "OK"

        async def send(chat_id: int, text: str) -> None:
            for pause in _pauses(attempts):
                try:
                    if await attempt(chat_id, text):
                        return
                except (aiohttp.ClientError, TimeoutError, ValueError):
                    pass
                await asyncio.sleep(pause)
            raise GaveUp

        yield send


def _pauses(attempts: int) -> Iterator[float]:
    longest = 1.0
    for number in range(1, attempts + 1):
        yield 0.0 if number == attempts else longest * random.uniform(0.5, 1.0)
        longest = min(2 * longest, 60.0)


SENDERS: dict[str, Callable[[str, int], AbstractAsyncContextManager[Send]]] = {
    "bare aiohttp": bare_aiohttp,
    "send_message": ours,
    "ya-market-api": ya_market_api,
    "aiohttp by hand": aiohttp_by_hand,
    "httpx": httpx_by_hand,
}
YARDSTICK = "bare aiohttp"
OURS = ("send_message", "send_many")
SLOW = ("httpx",)
"""Those that send an eighth as many, or most of the time would be theirs."""
_NEEDS = {"ya-market-api": "ya_market_api", "httpx": "httpx"}


def available() -> list[str]:
    """The clients whose packages are there."""
    names = ["bare aiohttp", *OURS, "ya-market-api", "aiohttp by hand", "httpx"]
    return [name for name in names if importlib.util.find_spec(_NEEDS.get(name, "aiohttp"))]


@asynccontextmanager
async def opened(name: str, url: str, at_once: int) -> AsyncIterator[Run]:
    """The client of that name, ready to send so many at once."""
    if name == "send_many":
        async with _send_many(url, at_once) as run:
            yield run
        return
    async with SENDERS[name](url, at_once) as send:
        yield _side_by_side(send, at_once)


def _side_by_side(send: Send, at_once: int) -> Run:
    """Send from so many tasks, each to chats of its own."""

    async def one_after_the_other(task: int, messages: int) -> None:
        span = -(-CHATS // at_once)
        for number in range(messages):
            await send(1 + task * span + number % span, TEXT)

    async def run(messages: int) -> None:
        if at_once == 1:
            await one_after_the_other(0, messages)
            return
        async with asyncio.TaskGroup() as group:
            for task in range(at_once):
                share = len(range(task, messages, at_once))
                group.create_task(one_after_the_other(task, share))

    return run


@asynccontextmanager
async def _send_many(url: str, at_once: int) -> AsyncIterator[Run]:
    from yamarket_chat import ChatSession, Limits, OutgoingMessage, Rate

    limits = Limits(parallel=at_once, send_message=Rate(LIFTED, per=3600))
    async with ChatSession(
        API_KEY, BUSINESS_ID, base_url=url, limits=limits, integration=INTEGRATION
    ) as session:

        async def run(messages: int) -> None:
            todo = (OutgoingMessage(1 + number % CHATS, TEXT) for number in range(messages))
            async for outcome in session.send_many(todo):
                assert outcome.status == "delivered", outcome.error

        yield run
