"""The clients under comparison. Each is a context manager that yields a function to send with.

A client imports its packages when it is opened, so that a worker has no others in memory.
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
"""Requests an hour, if the limit must not take effect."""
CHATS = 1000
"""Number of chats that get messages in turn. Usually a chat has received no message lately."""

Send = Callable[[int, str], Awaitable[object]]
"""Send a text to a chat and wait until it has arrived."""
Run = Callable[[int], Awaitable[None]]
"""Send so many messages, with the parallelism that the client was opened with."""


def path(chat_id: int) -> str:
    """Return the path and query for a message to a chat."""
    return f"/v2/businesses/{BUSINESS_ID}/chats/message?chatId={chat_id}"


@asynccontextmanager
async def ours(url: str, at_once: int = 4, *, requests: int = LIFTED) -> AsyncIterator[Send]:
    """Open `ChatSession` and send with `send_message`, with all its promises."""
    from yamarket_chat import ChatSession, Limits, Rate

    limits = Limits(parallel=at_once, send_message=Rate(requests, per=3600))
    async with ChatSession(
        API_KEY, BUSINESS_ID, base_url=url, limits=limits, integration=INTEGRATION
    ) as session:
        yield session.send_message


@asynccontextmanager
async def bare_aiohttp(url: str, at_once: int) -> AsyncIterator[Send]:
    """Open the reference: aiohttp alone, as a competent programmer uses it.

    Its session has what the own session of a `ChatSession` has: default headers, so that no request
    names any, a connector without a bound (the number of tasks is the bound), no cookies and the
    same timeout. The body is ready-made, and the response is read without looking at it.
    """
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(total=15),
    ) as http:

        async def send(chat_id: int, text: str) -> None:
            async with http.post(url + path(chat_id), data=BODY) as response:
                await response.read()

        yield send


@asynccontextmanager
async def ya_market_api(url: str, at_once: int) -> AsyncIterator[Send]:
    """Open the other client of this API: aiohttp and pydantic, no limits, no retries."""
    import aiohttp
    from ya_market_api.async_api import AsyncAPI
    from ya_market_api.base.async_config import AsyncConfig
    from ya_market_api.chat.dataclass import ChatMessageCreateTextRequest

    # The same as its AsyncAPI.build(), which however allows 100 connections.
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector, headers={"Api-Key": API_KEY}) as http:
        chat = AsyncAPI(AsyncConfig(http, url, business_id=BUSINESS_ID)).chat

        async def send(chat_id: int, text: str) -> None:
            request = ChatMessageCreateTextRequest(chat_id=chat_id, message=text)
            await chat.create_chat_message_text(request)

        yield send


@asynccontextmanager
async def httpx_by_hand(url: str, at_once: int) -> AsyncIterator[Send]:
    """Open httpx as its documentation shows it."""
    import httpx

    # aiohttp keeps idle connections for 15 s by default.
    limits = httpx.Limits(max_connections=at_once, keepalive_expiry=15)
    async with httpx.AsyncClient(
        base_url=url,
        headers=HEADERS,
        limits=limits,
        timeout=60,  # the default of 5 s is too short for 512 parallel connections
    ) as http:

        async def send(chat_id: int, text: str) -> None:
            response = await http.post(path(chat_id), json={"message": text})
            response.raise_for_status()
            assert response.json()["status"] == "OK"

        yield send


class GaveUp(Exception):
    """The client by hand gave up on a message."""


@asynccontextmanager
async def aiohttp_by_hand(
    url: str,
    at_once: int = 4,
    *,
    requests: int | None = LIFTED,
    per: float = 3600.0,
    attempts: int = 5,
) -> AsyncIterator[Send]:
    """Open what people write by hand: AsyncLimiter, a semaphore, retries with growing pauses.

    It retries after network errors, refusals and 5xx, like the usual recipes. If `requests` is
    None, there is no limiter.
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
"""Clients that send an eighth of the messages, because they would take most of the time."""
_NEEDS = {"ya-market-api": "ya_market_api", "httpx": "httpx"}


def available() -> list[str]:
    """Return the names of the clients whose packages are installed."""
    names = ["bare aiohttp", *OURS, "ya-market-api", "aiohttp by hand", "httpx"]
    return [name for name in names if importlib.util.find_spec(_NEEDS.get(name, "aiohttp"))]


@asynccontextmanager
async def opened(name: str, url: str, at_once: int) -> AsyncIterator[Run]:
    """Open the client of that name, ready to send `at_once` messages in parallel."""
    if name == "send_many":
        async with _send_many(url, at_once) as run:
            yield run
        return
    async with SENDERS[name](url, at_once) as send:
        yield _side_by_side(send, at_once)


def _side_by_side(send: Send, at_once: int) -> Run:
    """Return a function that sends from `at_once` tasks, each to its own chats."""

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
