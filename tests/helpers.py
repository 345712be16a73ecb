"""Shared by the tests of the session: a session for a sandbox, and servers that misbehave."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiohttp import web

from yamarket_chat import ChatError, ChatSession, Outcome, Receipt, Retry
from yamarket_chat.sandbox import Sandbox

T = TypeVar("T")

HOUR = 3600.0
KEY = "ACMA:kept-secret:0123456789"
RAISE_UNKNOWN = Retry(on_unknown="raise")


def now() -> float:
    return asyncio.get_running_loop().time()


def session_of(market: Sandbox, **settings: Any) -> ChatSession:
    settings.setdefault("base_url", market.url)
    return ChatSession(market.api_key, market.business_id, **settings)


async def send_all(session: ChatSession, messages: Iterable[tuple[int, str]]) -> list[Receipt]:
    """Submit all messages at once, in this order."""
    return list(await asyncio.gather(*(session.send_message(*message) for message in messages)))


async def outcome_of(sending: Awaitable[T]) -> T | BaseException:
    try:
        return await sending
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever became of it
        return error


async def outcomes_of(outcomes: AsyncIterator[Outcome]) -> list[Outcome]:
    return [outcome async for outcome in outcomes]


async def error_of(sending: Awaitable[object]) -> ChatError:
    """Return the error of a call that must fail within a virtual day."""
    try:
        async with asyncio.timeout(86_400):
            result = await sending
    except ChatError as error:
        return error
    raise AssertionError(f"no error, but {result!r}")


def texts(market: Sandbox, chat_id: int) -> list[str | None]:
    return [message.text for message in market.messages(chat_id)]


def stored(market: Sandbox) -> dict[int, list[str | None]]:
    return {chat_id: texts(market, chat_id) for chat_id in market.chat_ids}


def departures(market: Sandbox) -> list[float]:
    """Return the time at which each message arrived at the Market, refused ones included."""
    return [arrival.time for arrival in market.arrivals if arrival.operation == "send_message"]


def busiest_window(times: list[float], per: float) -> int:
    """The largest number of these moments (ascending) in any `per` seconds."""
    return max((bisect_left(times, time + per) - i for i, time in enumerate(times)), default=0)


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def http_server(handler: Handler) -> AsyncIterator[str]:
    """A server of our own, for answers that the sandbox does not give."""
    server = web.Server(handler, access_log=None)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await server.shutdown(timeout=0.1)


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[str]:
    """A server that answers every request with these bytes and closes the connection."""
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            await writer.wait_closed()
