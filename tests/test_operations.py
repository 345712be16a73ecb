"""The behaviour of each operation, as a program that uses the session sees it."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import math
import os
import pickle
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tests.helpers import KEY, error_of, http_server, now, outcome_of, session_of, texts
from yamarket_chat import (
    ApiError,
    BadRequestError,
    ChatError,
    ChatSession,
    ChatStatus,
    ChatType,
    ConnectionFailedError,
    ContextType,
    ErrorDetail,
    File,
    ForbiddenError,
    InvalidArgumentError,
    LimitExceededError,
    Limits,
    LockedError,
    MaxWaitExceededError,
    NotFoundError,
    Rate,
    Receipt,
    Retry,
    Scope,
    Sender,
    ServerError,
    SessionClosedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from yamarket_chat._http import download
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults

MIB = 2**20
LARGEST = 5 * MIB
ONCE = Retry(attempts=1)
BUSINESS = 12345


async def listed(items: Any) -> list[Any]:
    return [item async for item in items]


async def until_error(items: AsyncIterator[Any]) -> tuple[list[Any], ChatError | None]:
    """Return the items before the error of a list, and the error."""
    seen = []
    try:
        async for item in items:
            seen.append(item)  # noqa: PERF401 - it ends with an error
    except ChatError as error:
        return seen, error
    return seen, None


# A Market of one's own, for what the sandbox does not say


class Asked:
    """One request that came."""

    def __init__(self, request: web.BaseRequest, body: bytes) -> None:
        self.method = request.method
        self.target = request.raw_path
        self.path = request.path
        self.query = dict(request.query)
        self.headers = dict(request.headers)
        self.body = body
        self.at = now()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Reply = Callable[[Asked], web.StreamResponse | Awaitable[web.StreamResponse]]


def says(body: Any, status: int = 200, **headers: str) -> web.Response:
    return web.json_response(
        body, status=status, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


class Market:
    """A server that records its requests, and answers with the result of a function."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.asked: list[Asked] = []
        self.url = ""
        self.busy = self.busiest = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = Asked(request, await request.content.read())
        self.asked.append(asked)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            reply = self._reply(asked)
            return reply if isinstance(reply, web.StreamResponse) else await reply
        finally:
            self.busy -= 1


@asynccontextmanager
async def market_that(reply: Reply) -> AsyncIterator[Market]:
    market = Market(reply)
    async with http_server(market.handle) as market.url:
        yield market


def session_at(url: str, **settings: Any) -> ChatSession:
    settings.setdefault("retry", ONCE)
    return ChatSession(KEY, settings.pop("business_id", BUSINESS), base_url=url, **settings)


def page(items: str, rows: list[Any], token: str | None, **more: Any) -> web.Response:
    return says(
        {"status": "OK", "result": {items: rows, "paging": {"nextPageToken": token}, **more}}
    )


CHAT = {
    "chatId": 17,
    "context": {"type": "ORDER", "orderId": 55},
    "type": "CHAT",
    "status": "NEW",
    "createdAt": "2026-01-31T10:00:00+03:00",
    "updatedAt": "2026-01-31T10:00:00+03:00",
}


# create_chat, get_chat, get_message


async def test_create_chat_returns_the_same_chat_for_an_order_or_return() -> None:
    async with Sandbox() as market, session_of(market) as session:
        order = await session.create_chat(order_id=55)
        returned = await session.create_chat(return_id=55)
        assert len({order, returned}) == 2
        assert await session.create_chat(order_id=55) == order
        assert market.chat_ids == [order, returned]
        chat = await session.get_chat(order)
        assert (chat.chat_id, chat.type, chat.status) == (order, "CHAT", ChatStatus.NEW)
        assert chat.context.type is ContextType.ORDER
        assert (chat.context.order_id, chat.context.return_id) == (55, None)
        assert (await session.get_chat(returned)).context.return_id == 55
        assert chat.created_at.tzinfo is not None


async def test_create_chat_is_retried_and_creates_one_chat() -> None:
    faults = numbered_faults({1: Fault("reset", when="after"), 2: Fault("status", status=502)})
    async with Sandbox(faults=faults) as market, session_of(market) as session:
        chat_id = await session.create_chat(order_id=55)
        assert market.chat_ids == [chat_id]
        assert market.requests("create_chat") == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.create_chat(),
        lambda session: session.create_chat(order_id=1, return_id=1),
        lambda session: session.create_chat(order_id=0),
        lambda session: session.create_chat(order_id=2**63),
        lambda session: session.create_chat(return_id="R5"),
        lambda session: session.create_chat(order_id=True),
        lambda session: session.get_chat(0),
        lambda session: session.get_chat(None),
        lambda session: session.get_message(17, -1),
        lambda session: session.get_message("17.0", 1),
        lambda session: listed(session.history(0)),
        lambda session: listed(session.history(17, message_id_from=0)),
        lambda session: listed(session.chats(statuses=[])),
        lambda session: listed(session.chats(types=())),
        lambda session: listed(session.chats(context_types=iter(()))),
        lambda session: listed(session.chats(order_ids=set())),
        lambda session: listed(session.chats(return_ids=[])),
        lambda session: listed(session.chats(order_ids=[], return_ids=[])),
        lambda session: listed(session.chats(statuses=["NEW"], types=[])),
        lambda session: listed(session.chats(statuses="NEW")),
        lambda session: listed(session.chats(statuses=ChatStatus.NEW)),
        lambda session: listed(session.chats(order_ids=55)),
        lambda session: listed(session.chats(order_ids=[0])),
        lambda session: listed(session.chats(return_ids=["fifty"])),
        lambda session: session.token(max_wait=-1),
        lambda session: session.get_chat(17, max_wait="soon"),
    ],
)
async def test_invalid_argument_raises_before_anything_is_sent(
    call: Callable[[ChatSession], Awaitable[object]],
) -> None:
    async def attempt(session: ChatSession) -> None:
        await call(session)

    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(attempt(session))
        assert isinstance(error, InvalidArgumentError)
        assert isinstance(error, ValueError)
        assert error.sent is False
        assert market.arrivals == []


async def test_get_message_returns_the_message() -> None:
    async with Sandbox() as market, session_of(market) as session:
        said = market.buyer_says(17, "Где мой заказ? null")
        message = await session.get_message(17, said.message_id)
        assert message.message == "Где мой заказ? null"
        assert (message.message_id, message.sender) == (said.message_id, Sender.CUSTOMER)
        assert message.created_at == said.created_at
        assert message.payload is None
        await session.send_file(17, b"%PDF", filename="накладная.pdf")
        sent = market.messages(17)[-1]
        message = await session.get_message(17, sent.message_id)
        assert (message.sender, message.message) == (Sender.PARTNER, None)
        [file] = message.payload or ()
        assert (file.name, file.size) == ("накладная.pdf", 4)
        error = await error_of(session.get_message(17, 999))
        assert isinstance(error, NotFoundError)


# chats


async def test_all_chats_come_in_the_largest_pages() -> None:
    async with Sandbox() as market, session_of(market) as session:
        made = [market.add_chat(order_id=number) for number in range(1, 46)]
        assert [chat.chat_id async for chat in session.chats()] == made
        assert market.requests("chats") == 3


async def test_empty_list_of_chats_is_no_error() -> None:
    async with Sandbox() as market, session_of(market) as session:
        assert await listed(session.chats()) == []
        [only] = await listed(session.chats().pages())
        assert (only.items, only.next_page_token, only.context) == ((), None, None)


async def test_pages_are_fetched_only_when_needed() -> None:
    async with Sandbox() as market, session_of(market) as session:
        for number in range(1, 46):
            market.add_chat(order_id=number)
        chats = session.chats()
        await asyncio.sleep(10)
        assert market.requests("chats") == 0
        seen = 0
        async for _ in chats:
            seen += 1
            assert market.requests("chats") == (seen + 19) // 20
            if seen == 21:
                break
        await asyncio.sleep(10)
        assert market.requests("chats") == 2
        assert len(await listed(chats)) == 45  # once more from the start
        assert market.requests("chats") == 5


@pytest.fixture
async def filled() -> AsyncIterator[tuple[Sandbox, ChatSession, dict[str, int]]]:
    async with Sandbox() as market, session_of(market) as session:
        ids = {
            "order": market.add_chat(order_id=55),
            "return": market.add_chat(return_id=66),
            "direct": market.add_chat(),
            "waiting": market.add_chat(order_id=77),
            "dispute": market.add_chat(order_id=88),
        }
        market.buyer_says(ids["waiting"], "Где заказ?")
        market.set_chat(ids["dispute"], chat_type="ARBITRAGE", status="WAITING_FOR_ARBITER")
        yield market, session, ids


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, "order return direct waiting dispute"),
        ({"statuses": [ChatStatus.WAITING_FOR_PARTNER]}, "waiting"),
        ({"statuses": ["WAITING_FOR_PARTNER", "WAITING_FOR_ARBITER"]}, "waiting dispute"),
        ({"statuses": [ChatStatus.NEW, "NEW"]}, "order return direct"),
        ({"types": [ChatType.ARBITRAGE]}, "dispute"),
        ({"types": ["CHAT"]}, "order return direct waiting"),
        ({"context_types": {ContextType.RETURN, ContextType.DIRECT}}, "return direct"),
        ({"order_ids": [55, 77, 55]}, "order waiting"),
        ({"order_ids": iter([66])}, ""),
        ({"return_ids": [66]}, "return"),
        ({"order_ids": (88,), "return_ids": [66]}, "return dispute"),
        ({"order_ids": [55, 77], "statuses": [ChatStatus.NEW]}, "order"),
        ({"types": ["CHAT"], "context_types": ["ORDER"], "statuses": ["NEW"]}, "order"),
    ],
)
async def test_chats_are_filtered(
    filters: Any, wanted: str, filled: tuple[Sandbox, ChatSession, dict[str, int]]
) -> None:
    _, session, ids = filled
    chats = await listed(session.chats(**filters))
    assert [chat.chat_id for chat in chats] == [ids[name] for name in wanted.split()]


async def test_unknown_filter_value_is_sent_to_the_market() -> None:
    async with (
        market_that(lambda asked: page("chats", [], None)) as market,
        session_at(market.url) as session,
    ):
        await listed(session.chats(statuses=[ChatStatus("PAUSED"), "PAUSED", "ЖДЁТ"]))
    assert market.asked[0].json == {"statuses": ["PAUSED", "ЖДЁТ"]}


async def test_filters_are_sent_with_every_page() -> None:
    async with Sandbox() as market, session_of(market) as session:
        for number in range(1, 60):
            chat_id = market.add_chat(order_id=number)
            if number % 2:
                market.buyer_says(chat_id, "Где заказ?")
        waiting = await listed(session.chats(statuses=[ChatStatus.WAITING_FOR_PARTNER]))
        assert [chat.context.order_id for chat in waiting] == list(range(1, 60, 2))
        assert {chat.status for chat in waiting} == {ChatStatus.WAITING_FOR_PARTNER}


# history


@pytest.mark.parametrize("order", ["ascending", "descending"])
async def test_a_whole_history_comes_in_the_largest_pages(order: Any) -> None:
    async with Sandbox(history_order=order) as market, session_of(market) as session:
        said = [market.buyer_says(17, f"{number}").message_id for number in range(250)]
        if order == "descending":
            said.reverse()
        assert [row.message_id async for row in session.history(17)] == said
        assert market.requests("history") == 3


@pytest.mark.parametrize("included", [True, False])
async def test_history_can_start_at_a_message(included: bool) -> None:
    async with Sandbox(history_includes_from=included) as market, session_of(market) as session:
        said = [market.buyer_says(17, f"{number}").message_id for number in range(150)]
        rows = await listed(session.history(17, message_id_from=said[20]))
        assert [row.message_id for row in rows] == said[20 if included else 21 :]


async def test_history_pages_have_the_context_of_the_chat() -> None:
    async with Sandbox() as market, session_of(market) as session:
        chat_id = market.add_chat(return_id=66)
        for number in range(101):
            market.buyer_says(chat_id, f"{number}")
        first, second = await listed(session.history(chat_id).pages())
        assert (len(first.items), len(second.items)) == (100, 1)
        assert first.context == second.context == (await session.get_chat(chat_id)).context
        assert first.context.return_id == 66
        assert list(first) == list(first.items)
        assert first.next_page_token
        assert second.next_page_token is None


async def test_list_can_continue_in_another_session() -> None:
    async with Sandbox(campaigns=101) as market:
        for number in range(1, 46):
            market.add_chat(order_id=number)
        for number in range(150):
            market.buyer_says(17, f"{number}")
        async with session_of(market) as session:
            chats = await anext(session.chats(context_types=["ORDER"]).pages())
            history = await anext(session.history(17).pages())
            shops = await anext(session.campaigns().pages())
        async with session_of(market) as session:
            rest = session.chats(context_types=["ORDER"], page_token=chats.next_page_token)
            assert [chat.context.order_id async for chat in rest] == list(range(21, 46))
            later = session.history(17, page_token=history.next_page_token)
            assert [row.message async for row in later] == [f"{n}" for n in range(100, 150)]
            assert len(await listed(session.campaigns(page_token=shops.next_page_token))) == 1


@pytest.mark.parametrize("method", ["chats", "history", "campaigns"])
@pytest.mark.parametrize(
    ("tokens", "start", "pages"),
    [
        ("AA", None, 2),
        ("ABA", None, 3),
        ("ABCB", None, 4),
        ("A", "A", 1),
        ("BA", "A", 2),
    ],
)
async def test_repeated_page_token_raises(
    method: str, tokens: str, start: str | None, pages: int
) -> None:
    def reply(asked: Asked) -> web.Response:
        token = tokens[len(market.asked) - 1]  # an IndexError where it is asked once too often
        if method == "campaigns":
            return says({"campaigns": [{"id": 1}], "paging": {"nextPageToken": token}})
        if method == "history":
            return page("messages", [], token, context={"type": "DIRECT"})
        return page("chats", [CHAT], token)

    async with market_that(reply) as market, session_at(market.url) as session:
        settings = {} if start is None else {"page_token": start}
        arguments = (17,) if method == "history" else ()
        seen, error = await until_error(getattr(session, method)(*arguments, **settings).pages())
        asked = [row.query.get("pageToken") for row in market.asked]
    assert len(seen) == pages == len(asked)
    assert asked == [start, *tokens[:-1]]
    assert isinstance(error, UnexpectedAnswerError)
    assert "page token twice" in str(error)
    assert error.operation == method
    assert error.sent is False


async def test_page_token_is_sent_back_unchanged() -> None:
    token = "a b+c/d=&?#%25 é ж"

    def reply(asked: Asked) -> web.Response:
        return page("chats", [], None if "pageToken" in asked.query else token)

    async with market_that(reply) as market, session_at(market.url) as session:
        await listed(session.chats())
    assert [row.query for row in market.asked] == [
        {"limit": "20"},
        {"limit": "20", "pageToken": token},
    ]


async def test_error_on_a_later_page_is_raised_at_that_page() -> None:
    def reply(asked: Asked) -> web.Response:
        if "pageToken" in asked.query:
            return says({"status": "ERROR", "errors": [{"code": "GONE"}]}, 404)
        return page("chats", [CHAT, CHAT], "A")

    async with market_that(reply) as market, session_at(market.url) as session:
        seen, error = await until_error(aiter(session.chats()))
        assert len(seen) == 2
        assert isinstance(error, NotFoundError)


async def test_list_of_a_closed_session_raises() -> None:
    async with Sandbox() as market:
        session = session_of(market)
        before = session.chats()
        await session.close()
        assert isinstance(await error_of(listed(before)), SessionClosedError)
        with pytest.raises(SessionClosedError):
            session.history(17)
        assert market.arrivals == []


# campaigns and token


async def test_campaigns_and_token_need_no_business_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YAMARKET_BUSINESS_ID", raising=False)
    async with (
        Sandbox(campaigns=230, scopes=["COMMUNICATION", "PRICING"]) as market,
        ChatSession(market.api_key, base_url=market.url) as session,
    ):
        shops = await listed(session.campaigns())
        assert len({shop.id for shop in shops}) == 230
        assert {shop.business and shop.business.id for shop in shops} == {market.business_id}
        assert market.requests("campaigns") == 3
        token = await session.token()
        assert token.name == "Sandbox"
        assert token.auth_scopes == (Scope.COMMUNICATION, Scope.PRICING)
        assert market.requests("token") == 1
        before = len(market.arrivals)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: session.send_message(17, "hi"),
            lambda: session.send_file(17, b"x", filename="x"),
            lambda: session.create_chat(order_id=5),
            lambda: session.get_chat(17),
            lambda: session.get_message(17, 3),
        ]
        for call in calls:
            error = await error_of(call())
            assert isinstance(error, InvalidArgumentError)
            assert "business_id" in str(error)
        for listing in (lambda: session.chats(), lambda: session.history(17)):
            with pytest.raises(InvalidArgumentError, match="business_id"):
                listing()
        assert len(market.arrivals) == before


async def test_each_operation_has_its_own_limit_and_all_share_the_parallel_slots() -> None:
    two = Rate(2, per=60)
    limits = Limits(get_chat=two, history=two, chats=two)
    async with Sandbox(latency=0.5) as market, session_of(market, limits=limits) as session:
        market.add_chat(17)
        calls: list[Awaitable[Any]] = []
        for _ in range(4):
            calls += [session.get_chat(17), listed(session.history(17)), listed(session.chats())]
        calls += [session.token() for _ in range(4)]
        started = now()
        tokens = asyncio.gather(*calls[-4:])
        rest = asyncio.gather(*calls[:-4])
        await tokens
        assert now() - started < 5  # not blocked by the windows of other operations
        await rest
        assert 60 <= now() - started < 65
        assert market.busiest == 4
        assert market.refused == 0


# Files on their way out


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def opened(path: Path, content: bytes, mode: str = "rb", **settings: Any) -> Any:
    return open(written(path, content), mode, **settings)


def stored_files(market: Sandbox, chat_id: int = 17) -> list[tuple[str, int]]:
    return [
        (file.name, file.size) for message in market.messages(chat_id) for file in message.payload
    ]


async def content_of(session: ChatSession, market: Sandbox, number: int = -1) -> bytes:
    message = await session.get_message(17, market.messages(17)[number].message_id)
    [file] = message.payload or ()
    return await session.download(file)


CONTENT = b"%PDF\r\n--boundary\x00\xff" * 20_000


async def test_send_file_accepts_paths_bytes_and_open_files(tmp_path: Path) -> None:
    path = written(tmp_path / "накладная.pdf", CONTENT)
    with (
        open(path, "rb") as file,
        open(path, "rb", buffering=0) as unbuffered,
        open(path, "r+b") as writable,
    ):
        sources: list[tuple[Any, str | None]] = [
            (path, None),
            (str(path), None),
            (CONTENT, "накладная.pdf"),
            (bytearray(CONTENT), "накладная.pdf"),
            (memoryview(CONTENT), "накладная.pdf"),
            (memoryview(CONTENT[::-1])[::-1], "накладная.pdf"),
            (file, None),
            (unbuffered, None),
            (writable, None),
            (io.BytesIO(CONTENT), "накладная.pdf"),
        ]
        async with Sandbox() as market, session_of(market) as session:
            for source, name in sources:
                receipt = await session.send_file(17, source, filename=name)
                assert (receipt.chat_id, receipt.requests) == (17, 1)
                assert receipt.confirmed_by == "answer"
                assert await content_of(session, market) == CONTENT
            assert set(stored_files(market)) == {("накладная.pdf", len(CONTENT))}
        assert not file.closed


async def test_filename_can_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tmp", b"x")
    async with Sandbox() as market, session_of(market) as session:
        await session.send_file(17, path, filename="чек.txt")
        with open(path, "rb") as file:
            await session.send_file(17, file, filename="чек 2.txt")
        assert stored_files(market) == [("чек.txt", 1), ("чек 2.txt", 1)]


@pytest.mark.parametrize(
    "name",
    [
        "label.pdf",
        "Накладная № 5 «возврат».pdf",
        "два  пробела .txt",
        'кавычки " и ; точка.txt',
        "100%25.txt",
        "it's.txt",
        "фото 📦.jpg",
        "семья 👨‍👩‍👧.jpg",
        "Снимок экрана 2026-01-31 в 5.00.00\u202fPM.png",
        "неразрывный\u00a0пробел.pdf",
        "й й.txt",
        ".env",
        "ж" * 255,
    ],
)
async def test_filename_arrives_unchanged(name: str) -> None:
    async with Sandbox() as market, session_of(market) as session:
        await session.send_file(17, b"x", filename=name)
        assert stored_files(market) == [(name, 1)]


@pytest.mark.parametrize(
    "name", ["", "a/b.txt", "a\\b.txt", "a\r\nX: y", "a\x00b", "a\ud800", "ж" * 256, 5, b"x"]
)
async def test_invalid_filename_is_refused(name: Any) -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_file(17, b"x", filename=name))
        assert isinstance(error, InvalidArgumentError)
        assert "filename" in str(error)
        assert market.arrivals == []


async def test_open_file_is_sent_from_its_current_position(tmp_path: Path) -> None:
    with opened(tmp_path / "x.bin", b"head" + CONTENT) as file:
        file.seek(4)
        async with Sandbox() as market, session_of(market) as session:
            await session.send_file(17, file)
            assert await content_of(session, market) == CONTENT


class Pipe(io.RawIOBase):
    """Bytes that come once, a few at a time, as from a socket."""

    def __init__(self, content: bytes) -> None:
        self._left = memoryview(content)
        self.delivered = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self._left), 1000)
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self.delivered += count
        return count


async def test_unseekable_stream_is_sent_whole_and_can_be_retried() -> None:
    faults = numbered_faults({1: Fault("reset")}, operation="send_file")
    async with Sandbox(faults=faults) as market, session_of(market) as session:
        market.buyer_says(17, "hi")
        await session.get_chat(17)
        receipt = await session.send_file(
            17, cast(BinaryIO, io.BufferedReader(Pipe(CONTENT))), filename="x.bin"
        )
        assert receipt.requests == 2
        assert await content_of(session, market) == CONTENT


async def test_stream_with_short_reads_is_sent_whole() -> None:
    # As pipes and sockets do without a buffer: one read is not all there is.
    async with Sandbox() as market, session_of(market) as session:
        await session.send_file(17, cast(BinaryIO, Pipe(CONTENT)), filename="x.bin")
        assert stored_files(market) == [("x.bin", len(CONTENT))]
        assert await content_of(session, market) == CONTENT


async def test_pipe_written_during_the_call_is_sent_whole() -> None:
    readable, writable = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), open(writable, "wb", buffering=0) as out:
            for start in range(0, len(CONTENT), 50_000):
                out.write(CONTENT[start : start + 50_000])

    writer = threading.Thread(target=write)
    writer.start()
    async with Sandbox() as market, session_of(market) as session:
        with open(readable, "rb", buffering=0) as pipe:
            await session.send_file(17, cast(BinaryIO, pipe), filename="x.bin")
        writer.join()
        assert stored_files(market) == [("x.bin", len(CONTENT))]


async def test_endless_stream_is_refused() -> None:
    endless = Pipe(bytes(50 * MIB))
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_file(17, cast(BinaryIO, endless), filename="x"))
        assert isinstance(error, InvalidArgumentError)
        assert market.arrivals == []
    assert endless.delivered <= LARGEST + 2**17


async def test_largest_file_is_sent_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.bin", bytes(LARGEST + 1))
    async with Sandbox() as market, session_of(market) as session:
        with open(path, "rb") as file:
            for source in (path, bytes(LARGEST + 1), file, io.BytesIO(bytes(LARGEST + 1))):
                error = await error_of(session.send_file(17, source, filename="x.bin"))
                assert isinstance(error, InvalidArgumentError)
                assert "x.bin" in str(error)
                assert str(LARGEST) in str(error)
            assert market.arrivals == []
            file.seek(1)
            await session.send_file(17, file)
        os.truncate(path, LARGEST)
        await session.send_file(17, path)
        await session.send_file(17, bytes(LARGEST), filename="x.bin")
        assert stored_files(market) == [("x.bin", LARGEST)] * 3


def odd_files() -> list[Any]:
    """Objects that are almost files or paths."""

    class Odd:
        def read(self, size: int) -> bytes:
            raise RuntimeError("broken")

    class WithoutSize(Odd):
        def read(self) -> bytes:  # type: ignore[override]  # that is the point
            return b"x"

    class WithoutTell(Odd):
        def seekable(self) -> bool:
            return True

    class NumberAsPath:
        def __fspath__(self) -> int:
            return 5

    return [Odd(), WithoutSize(), WithoutTell(), NumberAsPath()]


async def test_invalid_file_argument_raises_before_anything_is_sent(tmp_path: Path) -> None:
    empty = written(tmp_path / "empty.txt", b"")
    at_its_end = opened(tmp_path / "read.txt", b"x")
    at_its_end.seek(1)
    text = opened(tmp_path / "text.txt", b"x", "r", encoding="utf-8")
    closed = opened(tmp_path / "closed.txt", b"x")
    closed.close()
    released = memoryview(b"x")
    released.release()
    wrong: list[Any] = [
        tmp_path / "missing.txt",
        str(tmp_path / "missing.txt"),
        tmp_path,
        empty,
        b"",
        io.BytesIO(),
        Pipe(b""),
        at_its_end,
        closed,
        text,
        io.StringIO("x"),
        "a\0b",
        None,
        5,
        object(),
        released,
        io.BytesIO,
        *odd_files(),
    ]
    async with Sandbox() as market, session_of(market) as session:
        for source in wrong:
            name = None if isinstance(source, (str, Path)) else "x.txt"
            error = await error_of(session.send_file(17, source, filename=name))
            assert isinstance(error, InvalidArgumentError), source
            assert error.sent is False
        for nameless in (b"x", io.BytesIO(b"x")):
            error = await error_of(session.send_file(17, nameless))
            assert isinstance(error, InvalidArgumentError)
            assert "filename" in str(error)
        for odd in (*odd_files(), io.BytesIO):
            error = await error_of(session.send_file(17, odd, filename="x.txt"))
            assert "open(path, 'rb')" in str(error)  # says what to do
        assert market.arrivals == []
    assert "'rb'" in str(await text_error(text))
    at_its_end.close()
    text.close()


async def text_error(text: Any) -> ChatError:
    async with Sandbox() as market, session_of(market) as session:
        return await error_of(session.send_file(17, text))


async def test_file_position_is_restored_after_a_call_that_sent_nothing(
    tmp_path: Path,
) -> None:
    limits = Limits(send_file=Rate(1, per=60))
    with opened(tmp_path / "x.bin", b"head" + CONTENT) as file:
        file.seek(4)
        async with Sandbox() as market, session_of(market, limits=limits) as session:
            await session.send_file(18, b"x", filename="x")
            error = await error_of(session.send_file(17, file, max_wait=1))
            assert isinstance(error, MaxWaitExceededError)
            assert isinstance(await error_of(session.send_file(0, file)), InvalidArgumentError)
            await session.send_file(17, file)
            assert await content_of(session, market) == CONTENT


class Counted(io.BytesIO):
    """Counts the bytes that are read, and the most of them at once."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.delivered = 0
        self.largest = 0

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self.delivered += len(piece)
        self.largest = max(self.largest, len(piece))
        return piece


async def test_file_is_read_in_chunks_and_once_per_attempt() -> None:
    content = os.urandom(MIB + 1)
    faults = numbered_faults({2: Fault("reset")}, operation="send_file")
    async with Sandbox(faults=faults) as market, session_of(market) as session:
        market.buyer_says(17, "hi")
        for attempts in (1, 2):
            file = Counted(content)
            receipt = await session.send_file(17, file, filename="x.bin")
            assert receipt.requests == attempts
            assert file.delivered == attempts * len(content)
            assert file.largest <= 2**17
            assert await content_of(session, market) == content
        assert len(stored_files(market)) == 2


@pytest.mark.parametrize("source", ["path", "bytes", "file", "BytesIO"])
async def test_file_is_never_loaded_into_memory_whole(source: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(LARGEST))
    received = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal received
        async for piece in request.content.iter_any():
            received += len(piece)
        return says({"status": "OK"})

    async with http_server(handle) as url, session_at(url) as session:
        await session.send_file(17, b"x", filename="warm.up")
        received = 0
        with open(path, "rb") as file:
            contents: dict[str, Callable[[], Any]] = {
                "path": lambda: path,
                "bytes": lambda: bytes(LARGEST),
                "file": lambda: file,
                "BytesIO": lambda: io.BytesIO(bytes(LARGEST)),
            }
            content = contents[source]()
            gc.collect()
            tracemalloc.start()
            try:
                await session.send_file(17, content, filename="x.bin")
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert received > LARGEST
    assert peak < LARGEST * 0.8  # with what the server of this test holds


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_file_of_unknown_outcome_arrives_once(when: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "накладная.pdf", CONTENT)
    faults = numbered_faults({1: Fault("reset", when=when)}, operation="send_file")
    async with Sandbox(faults=faults) as market, session_of(market) as session:
        await session.get_chat(17)
        receipt = await session.send_file(17, path)
        assert stored_files(market) == [("накладная.pdf", len(CONTENT))]
        assert await content_of(session, market) == CONTENT
        assert receipt.confirmed_by == ("history" if when == "after" else "answer")
        assert receipt.requests == (1 if when == "after" else 2)


async def test_files_and_texts_of_a_chat_keep_their_order() -> None:
    async with Sandbox(latency=0.2) as market, session_of(market) as session:
        await asyncio.gather(
            session.send_message(17, "1"),
            session.send_file(17, CONTENT, filename="2"),
            session.send_message(17, "3"),
            session.send_file(17, b"x", filename="4"),
        )
        told = [row.text or row.payload[0].name for row in market.messages(17)]
        assert told == ["1", "2", "3", "4"]


@pytest.mark.parametrize("how", ["deleted", "shortened", "closed"])
async def test_file_unreadable_when_it_is_sent_raises(how: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.bin", CONTENT)
    with open(path, "rb") as file:
        async with Sandbox(latency=1) as market, session_of(market) as session:
            await session.get_chat(17)
            source = file if how == "closed" else path
            first = asyncio.create_task(session.send_message(17, "1"))
            second = asyncio.create_task(outcome_of(session.send_file(17, source)))
            third = asyncio.create_task(session.send_message(17, "3"))
            await asyncio.sleep(0.5)
            match how:
                case "deleted":
                    path.unlink()
                case "shortened":
                    os.truncate(path, 5)
                case "closed":
                    file.close()
            await first
            error = await second
            assert isinstance(error, ChatError)
            assert error.sent is False
            assert "file" in str(error)
            assert "network" not in str(error)
            await third
            assert texts(market, 17) == ["1", "3"]
            assert now() < 100


class Breaking(io.BytesIO):
    """Cannot be read to its end."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 2 * MIB:
            raise OSError("the disk is broken")
        return super().read(size)


async def test_file_read_error_during_sending_counts_as_a_request() -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_file(17, Breaking(bytes(4 * MIB)), filename="x"))
        assert "the disk is broken" in str(error)
        assert error.sent is False
        # It left in part, so the Market has counted it.
        assert market.requests("send_file") == 1
        assert session.quota_status("send_file").remaining == 999
        assert market.messages(17) == []


async def test_open_file_can_be_sent_to_two_chats_in_parallel(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    with opened(tmp_path / "x.bin", content) as file:
        async with Sandbox() as market, session_of(market) as session:
            outcomes = await asyncio.gather(
                *(outcome_of(session.send_file(chat_id, file)) for chat_id in (17, 18, 19, 20))
            )
            for chat_id, outcome in zip((17, 18, 19, 20), outcomes, strict=True):
                if isinstance(outcome, InvalidArgumentError):
                    continue  # told at once that it cannot be
                assert isinstance(outcome, Receipt)
                [message] = market.messages(chat_id)
                [stored] = message.payload
                fetched = File(name=stored.name, url=stored.url, size=stored.size)
                assert await session.download(fetched) == content, chat_id


class Watched(io.BytesIO):
    """Stops once in the middle of its first read, where its position is another one."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reading = threading.Event()
        self.goes_on = threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self.reading.set()
        self.goes_on.wait(20)
        return piece


@pytest.mark.real_time
async def test_open_file_that_is_being_read_is_sent_whole_to_the_next_chats() -> None:
    content = os.urandom(MIB)
    file = Watched(b"head" + content)
    file.seek(4)
    async with Sandbox() as market, session_of(market) as session:
        first = asyncio.create_task(session.send_file(17, file, filename="x.bin"))
        while not file.reading.is_set():
            await asyncio.sleep(0.001)
        others = [
            asyncio.create_task(session.send_file(chat_id, file, filename="x.bin"))
            for chat_id in (18, 19)
        ]
        await asyncio.sleep(0.01)
        file.goes_on.set()
        await asyncio.gather(first, *others)
        assert file.tell() == 4
        await session.send_file(20, file, filename="x.bin")
        for chat_id in (17, 18, 19, 20):
            [message] = market.messages(chat_id)
            [stored] = message.payload
            fetched = File(name=stored.name, url=stored.url, size=stored.size)
            assert await session.download(fetched) == content, chat_id


# Files on their way in


FILE_BYTES = os.urandom(300_000)


async def a_buyers_file(market: Sandbox, session: ChatSession, content: bytes) -> File:
    said = market.buyer_sends_file(17, "чек.jpg", content)
    message = await session.get_message(17, said.message_id)
    [file] = message.payload or ()
    return file


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_download_returns_the_file_of_a_buyer(tmp_path: Path) -> None:
    async with Sandbox() as market, session_of(market) as session:
        file = await a_buyers_file(market, session, FILE_BYTES)
        assert await session.download(file) == FILE_BYTES
        assert await session.download(file, tmp_path / "a.jpg") == tmp_path / "a.jpg"
        assert await session.download(file, str(tmp_path / "b.jpg")) == tmp_path / "b.jpg"
        (tmp_path / "b.jpg").write_bytes(b"an older one" * 100_000)
        await session.download(file, tmp_path / "b.jpg")
        assert (tmp_path / "a.jpg").read_bytes() == FILE_BYTES
        assert (tmp_path / "b.jpg").read_bytes() == FILE_BYTES
        assert left_in(tmp_path) == ["a.jpg", "b.jpg"]


async def test_download_of_an_empty_file_works(tmp_path: Path) -> None:
    async with Sandbox() as market, session_of(market) as session:
        file = await a_buyers_file(market, session, b"")
        assert await session.download(file) == b""
        assert (await session.download(file, tmp_path / "a")).read_bytes() == b""


def serves(content: bytes) -> Reply:
    return lambda asked: web.Response(body=content)


async def test_download_sends_the_key_to_no_other_host() -> None:
    async with (
        market_that(serves(b"x")) as market,
        market_that(serves(b"y")) as elsewhere,
        session_at(market.url, integration="shop/1.0") as session,
    ):
        assert await session.download(File(name="x", url=f"{market.url}/f", size=1)) == b"x"
        assert await session.download(File(name="y", url=f"{elsewhere.url}/f", size=1)) == b"y"
        other_name = market.url.replace("127.0.0.1", "localhost") + "/f"
        assert await session.download(File(name="z", url=other_name, size=1)) == b"x"
    assert market.asked[0].headers["Api-Key"] == KEY
    for asked in (*elsewhere.asked, market.asked[1]):
        assert "shop/1.0" not in asked.headers.get("X-Market-Integration", "")
        assert KEY not in str(asked.headers)
        assert KEY not in asked.target


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("what", ["download", "request", "get_chat", "send_message"])
async def test_download_does_not_follow_redirects(what: str, status: int, tmp_path: Path) -> None:
    async with market_that(serves(b"secret")) as elsewhere:
        target = f"{elsewhere.url}/x"

        def reply(asked: Asked) -> web.Response:
            if asked.path.endswith("/history"):
                return page("messages", [], None, context={"type": "DIRECT"})
            return web.Response(status=status, headers={"Location": target})

        async with market_that(reply) as market, session_at(market.url) as session:
            file = File(name="x", url=f"{market.url}/f", size=1)
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "download": lambda: session.download(file, tmp_path / "x"),
                "request": lambda: session.request("GET", "/v2/x"),
                "get_chat": lambda: session.get_chat(17),
                "send_message": lambda: session.send_message(17, "hi"),
            }
            error = await error_of(calls[what]())
        assert isinstance(error, UnexpectedAnswerError)
        assert error.status == status
        assert elsewhere.asked == []
        assert left_in(tmp_path) == []


async def test_download_refuses_a_too_large_file(tmp_path: Path) -> None:
    async with market_that(serves(FILE_BYTES)) as market, session_at(market.url) as session:
        file = File(name="x.bin", url=f"{market.url}/f", size=len(FILE_BYTES))
        for target in (None, tmp_path / "x"):
            arguments = () if target is None else (target,)
            error = await error_of(
                session.download(file, *arguments, max_bytes=len(FILE_BYTES) - 1)
            )
            assert isinstance(error, InvalidArgumentError)
            assert "max_bytes" in str(error)
        assert market.asked == []
        assert left_in(tmp_path) == []
        assert await session.download(file, max_bytes=len(FILE_BYTES)) == FILE_BYTES


@pytest.mark.parametrize("announced", ["length", "chunked", "gzip"])
async def test_download_stops_if_a_file_is_larger_than_announced(
    announced: str, tmp_path: Path
) -> None:
    sent = requests = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent, requests
        requests += 1
        response = web.StreamResponse()
        if announced == "length":
            response.content_length = 60 * MIB
        elif announced == "gzip":
            response.enable_compression(web.ContentCoding.gzip)
        await response.prepare(request)
        for _ in range(60):
            await response.write(bytes(MIB))
            sent += 1
        return response

    async with http_server(handle) as url, session_at(url, retry=Retry()) as session:
        file = File(name="x.bin", url=f"{url}/f", size=10)
        existing = written(tmp_path / "x", b"an older one")
        for target in ((), (existing,)):
            [outcome] = await asyncio.gather(
                session.download(file, *target, max_bytes=MIB), return_exceptions=True
            )
            fetched = len(outcome) if isinstance(outcome, bytes) else 0
            assert not fetched
            assert isinstance(outcome, ChatError)
            assert not isinstance(outcome, ConnectionFailedError)
            assert "1048576" in str(outcome)
            assert outcome.sent is False
        assert existing.read_bytes() == b"an older one"
        assert left_in(tmp_path) == ["x"]
    assert requests == 2  # it would be as large again
    # What is compressed to next to nothing is in the sockets' buffers before anyone reads it.
    assert announced == "gzip" or sent < 60


async def test_a_download_is_streamed(tmp_path: Path) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(30):
            await response.write(piece)
        return response

    piece = bytes(MIB)
    async with http_server(handle) as url, session_at(url) as session:
        file = File(name="x.bin", url=f"{url}/f", size=30 * MIB)
        tracemalloc.start()
        try:
            await session.download(file, tmp_path / "x")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (tmp_path / "x").stat().st_size == 30 * MIB
    assert peak < 10 * MIB


class Faulty:
    """Fails a number of times in some way, and then serves the file."""

    def __init__(self, how: str, times: int) -> None:
        self._how = how
        self._times = times
        self.requests = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        if self.requests > self._times:
            return web.Response(body=FILE_BYTES)
        assert request.transport is not None
        match self._how:
            case "reset":
                request.transport.abort()
            case "half":
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(FILE_BYTES) + 1000}\r\n\r\n"
                request.transport.write(head.encode() + FILE_BYTES[::-1])
                request.transport.close()
            case "silent":
                await asyncio.sleep(1000)
            case "stalls":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"x" * 1000)
                await asyncio.sleep(1000)
            case status:
                return web.Response(status=int(status), text="no")
        return web.Response()


@pytest.mark.parametrize(
    "how",
    ["reset", "half", "silent", "stalls", "500", "502", "503", "408", "420", "429", "499"],
)
@pytest.mark.parametrize("to_path", [False, True])
async def test_failed_download_is_retried(how: str, to_path: bool, tmp_path: Path) -> None:
    server = Faulty(how, 2)
    async with http_server(server.handle) as url, session_at(url, retry=Retry()) as session:
        file = File(name="x.bin", url=f"{url}/f", size=len(FILE_BYTES))
        if to_path:
            assert (await session.download(file, tmp_path / "x")).read_bytes() == FILE_BYTES
            assert left_in(tmp_path) == ["x"]
        else:
            assert await session.download(file) == FILE_BYTES
        assert server.requests == 3


@pytest.mark.parametrize("status", [420, 429, 503])
async def test_download_respects_retry_after(status: int) -> None:
    def reply(asked: Asked) -> web.Response:
        if len(market.asked) > 1:
            return web.Response(body=b"x")
        return web.Response(status=status, headers={"Retry-After": after})

    for after in ("70", "7200"):
        async with market_that(reply) as market, session_at(market.url, retry=Retry()) as session:
            outcome = await outcome_of(
                session.download(File(name="x", url=f"{market.url}/f", size=1))
            )
            if after == "70":
                assert outcome == b"x"
                assert market.asked[1].at - market.asked[0].at == pytest.approx(70, abs=0.1)
            else:  # beyond the retry budget
                assert isinstance(outcome, ServerError if status == 503 else LimitExceededError)
                assert (outcome.sent, outcome.retry_after) == (False, 7200)
                assert len(market.asked) == 1


@pytest.mark.parametrize("how", ["reset", "half", "silent", "stalls", "500", "420"])
async def test_failed_download_leaves_no_file(how: str, tmp_path: Path) -> None:
    server = Faulty(how, 100)
    retry = Retry(attempts=3)
    async with http_server(server.handle) as url, session_at(url, retry=retry) as session:
        file = File(name="x.bin", url=f"{url}/f", size=len(FILE_BYTES))
        error = await error_of(session.download(file, tmp_path / "x"))
        kinds: dict[str, type[ChatError]] = {"500": ServerError, "420": LimitExceededError}
        assert isinstance(error, kinds.get(how, ConnectionFailedError))
        assert "x.bin" in str(error)
        assert error.retry_after is not None  # as of every call that may work later
        # aiohttp may ask once more by itself where a connection is reset.
        assert server.requests == 3 or (how == "reset" and server.requests == 6)
        assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, UnauthorizedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (410, ApiError),
    ],
)
async def test_refused_download_is_not_retried(
    status: int, kind: type[ApiError], tmp_path: Path
) -> None:
    server = Faulty(f"{status}", 100)
    async with http_server(server.handle) as url, session_at(url, retry=Retry()) as session:
        file = File(name="x.bin", url=f"{url}/f", size=1)
        error = await error_of(session.download(file, tmp_path / "x"))
        assert type(error) is kind
        assert error.status == status
        assert server.requests == 1
        assert left_in(tmp_path) == []


async def test_cancelled_download_leaves_no_file(tmp_path: Path) -> None:
    server = Faulty("stalls", 100)
    async with http_server(server.handle) as url, session_at(url) as session:
        file = File(name="x.bin", url=f"{url}/f", size=1)
        task = asyncio.create_task(session.download(file, tmp_path / "x"))
        await asyncio.sleep(1)
        assert len(left_in(tmp_path)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left_in(tmp_path) == []


async def test_download_in_progress_ends_when_the_session_closes(tmp_path: Path) -> None:
    server = Faulty("stalls", 100)
    async with http_server(server.handle) as url:
        session = session_at(url, retry=Retry())
        file = File(name="x.bin", url=f"{url}/f", size=1)
        task = asyncio.create_task(session.download(file, tmp_path / "x"))
        await asyncio.sleep(1)
        await session.close(grace=0)
        error = await error_of(task)
        assert isinstance(error, SessionClosedError | ConnectionFailedError)
        assert left_in(tmp_path) == []
        error = await error_of(session.download(file))
        assert isinstance(error, SessionClosedError)


async def test_closed_aiohttp_session_of_the_caller_raises_connection_failed(
    tmp_path: Path,
) -> None:
    async with market_that(serves(b"x")) as market:
        http = aiohttp.ClientSession()
        await http.close()
        async with session_at(market.url, http=http) as session:
            file = File(name="x.bin", url=f"{market.url}/f", size=1)
            for call in (
                lambda: session.get_chat(17),
                lambda: session.download(file),
                lambda: session.download(file, tmp_path / "x"),
            ):
                assert isinstance(await error_of(call()), ConnectionFailedError)
        assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://files.example/x",
        "ftp://files.example/x",
        "file:///etc/passwd",
        "/files/x",
        "//files.example/x",
        "https://",
        "https://user:word@files.example/x",
        "https://[",
        "nonsense",
        "https://a..b/x",
        f"https://{'a' * 70}.ru/x",
        f"https://{'ж' * 60}.рф/x",
        "https://xn--/x",
        "https://\ud800/x",
    ],
)
async def test_download_refuses_an_invalid_url(url: str) -> None:
    async with session_at("http://127.0.0.1:9") as session:
        error = await error_of(session.download(File(name="x", url=url, size=1)))
        assert isinstance(error, InvalidArgumentError)
        assert "the file's address" in str(error)


async def test_download_that_cannot_be_requested_raises_at_once() -> None:
    async def broken(*_: Any) -> Any:
        raise LookupError(KEY)

    async with (
        market_that(serves(b"x")) as market,
        aiohttp.ClientSession(middlewares=[broken]) as http,
        session_at(market.url, http=http, retry=Retry()) as session,
    ):
        error = await error_of(session.download(File(name="x", url=f"{market.url}/f", size=1)))
        assert isinstance(error, ConnectionFailedError)
        assert "cannot be made (LookupError)" in str(error)
        assert error.retry_after is None
        assert now() < 0.5


async def test_download_to_an_unwritable_path_raises_os_error(tmp_path: Path) -> None:
    async with market_that(serves(b"x")) as market, session_at(market.url) as session:
        file = File(name="x", url=f"{market.url}/f", size=1)
        with pytest.raises(OSError, match="missing"):
            await session.download(file, tmp_path / "missing" / "x")
        (tmp_path / "folder").mkdir()
        with pytest.raises(OSError, match="folder"):
            await session.download(file, tmp_path / "folder")
        assert left_in(tmp_path) == ["folder"]


async def test_download_refuses_what_is_no_path_of_a_file() -> None:
    class Odd:
        def __init__(self, path: Any) -> None:
            self._path = path

        def __fspath__(self) -> Any:
            return self._path

    wrong: list[Any] = ["", ".", "..", "/", "a/..", "a\0b", "\ud800", b"x", 5]
    wrong += [Odd(b"x"), Odd(5), Odd(""), Path("/")]
    async with market_that(serves(b"x")) as market, session_at(market.url) as session:
        file = File(name="x", url=f"{market.url}/f", size=1)
        for to in wrong:
            error = await error_of(session.download(file, to))
            assert isinstance(error, InvalidArgumentError), to
            assert str(error).startswith("to is "), to
        assert market.asked == []


async def test_downloads_to_one_path_at_once_do_not_mix(tmp_path: Path) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(5):
            await response.write(request.path[-1:].encode() * 10)
            await asyncio.sleep(1 if request.path == "/a" else 1.5)
        return response

    written(tmp_path / "x.part", b"of the caller")
    async with http_server(handle) as url, session_at(url) as session:
        files = [File(name="x", url=f"{url}/{name}", size=50) for name in "ab"]
        await asyncio.gather(*(session.download(file, tmp_path / "x") for file in files))
    assert (tmp_path / "x").read_bytes() == b"b" * 50  # it ended last
    assert (tmp_path / "x.part").read_bytes() == b"of the caller"
    assert left_in(tmp_path) == ["x", "x.part"]


async def test_downloaded_file_may_have_a_long_name_and_has_the_usual_rights(
    tmp_path: Path,
) -> None:
    usual = written(tmp_path / "usual", b"x")
    async with market_that(serves(b"x")) as market, session_at(market.url) as session:
        file = File(name="x", url=f"{market.url}/f", size=1)
        loaded = await session.download(file, tmp_path / ("x" * 255))
    assert loaded.read_bytes() == b"x"
    assert loaded.stat().st_mode == usual.stat().st_mode


@pytest.mark.real_time
async def test_download_cancelled_while_its_file_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends at once: making the file may hang."""
    makes, goes_on, made = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        makes.set()
        goes_on.wait(20)
        try:
            return open(*arguments)
        finally:
            made.set()

    monkeypatch.setattr(download, "open", slow, raising=False)
    async with market_that(serves(b"x")) as market, session_at(market.url) as session:
        file = File(name="x", url=f"{market.url}/f", size=1)
        task = asyncio.create_task(session.download(file, tmp_path / "x"))
        while not makes.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        goes_on.set()
        while not made.is_set() or left_in(tmp_path):
            await asyncio.sleep(0.001)
        assert market.asked == []


# Any other method


async def test_request_calls_any_other_method() -> None:
    async with (
        market_that(lambda asked: says({"status": "OK", "order": {"id": 55}})) as market,
        session_at(market.url, integration="shop/1.0") as session,
    ):
        answer = await session.request(
            "put",
            "/v2/campaigns/7/orders/55/заказ",
            params={"text": "да & нет", "limit": 5},
            json={"name": "Коробка", "ids": [2**63 - 1]},
        )
        assert answer == {"status": "OK", "order": {"id": 55}}
        await session.request("GET", "/v2/x?a=1", params={"b": "2"})
        await session.request("POST", "/v2/x", json=None)
        await session.request("DELETE", "/v2/x")
    put, get, null, delete = market.asked
    assert (put.method, put.path) == ("PUT", "/v2/campaigns/7/orders/55/заказ")
    assert put.query == {"text": "да & нет", "limit": "5"}
    assert put.json == {"name": "Коробка", "ids": [2**63 - 1]}
    assert put.headers["Content-Type"] == "application/json"
    assert put.headers["Api-Key"] == KEY
    assert put.headers["X-Market-Integration"] == "shop/1.0"
    assert (get.method, get.query, get.body) == ("GET", {"a": "1", "b": "2"}, b"")
    assert null.body == b"null"
    assert (delete.method, delete.body) == ("DELETE", b"")


async def test_request_shares_the_parallel_slots_with_all_operations() -> None:
    async def reply(asked: Asked) -> web.StreamResponse:
        await asyncio.sleep(1)
        if asked.path.endswith("/chat"):
            return says({"status": "OK", "result": CHAT})
        return says({"status": "OK"})

    async with market_that(reply) as market, session_at(market.url) as session:
        started = now()
        await asyncio.gather(
            *(session.request("GET", f"/v2/orders/{number}") for number in range(8)),
            *(session.get_chat(number) for number in range(1, 5)),
            *(session.send_message(number, "hi") for number in range(1, 5)),
        )
        assert len(market.asked) == 16
        assert market.busiest == 4
        assert 4 <= now() - started < 4.5
        # And so do sessions of the same business, whatever they are used for.
        async with session_at(market.url) as another:
            market.busiest = 0
            await asyncio.gather(
                *(session.request("GET", "/v2/x") for _ in range(6)),
                *(another.request("GET", "/v2/x") for _ in range(6)),
            )
            assert market.busiest == 4


async def test_request_raises_a_420_and_does_not_block_other_calls() -> None:
    until = {"Date": "Sat, 31 Jan 2026 10:00:00 GMT"}
    until["X-RateLimit-Resource-Until"] = "Sat, 31 Jan 2026 10:10:00 GMT"

    def reply(asked: Asked) -> web.StreamResponse:
        if asked.path == "/v2/x":
            text = "Hit rate limit of 10 requests per hour for resource x"
            body = {"status": "ERROR", "errors": [{"code": "LIMIT_EXCEEDED", "message": text}]}
            return web.json_response(body, status=420, headers=until)
        if asked.path == "/v2/unclear":
            left = {"X-RateLimit-Resource-Remaining": "5"}
            return web.json_response({"status": "ERROR"}, status=420, headers=left)
        return says({"status": "OK", "result": CHAT})

    async with market_that(reply) as market, session_at(market.url, retry=Retry()) as session:
        error = await error_of(session.request("GET", "/v2/x"))
        assert isinstance(error, LimitExceededError)
        assert error.retry_after == pytest.approx(600, abs=2)
        assert error.sent is False
        assert error.errors[0].code == "LIMIT_EXCEEDED"
        assert error.operation == "request"
        assert cast(LimitExceededError, pickle.loads(pickle.dumps(error))).retry_after == (  # noqa: S301
            error.retry_after
        )
        error = await error_of(session.request("GET", "/v2/unclear"))
        assert isinstance(error, LimitExceededError)
        assert error.retry_after is None
        await session.get_chat(17)
        await session.request("GET", "/v2/y")
        assert now() < 1
        assert len(market.asked) == 4


async def test_request_is_retried_after_a_parallel_420() -> None:
    def reply(asked: Asked) -> web.StreamResponse:
        if len(market.asked) == 1:
            text = "Hit rate limit of 4 parallel requests for businessId 12345"
            return says({"status": "ERROR", "errors": [{"code": "X", "message": text}]}, 420)
        return says([1])

    async with market_that(reply) as market, session_at(market.url) as session:
        assert await session.request("POST", "/v2/x", json={}) == [1]
        assert len(market.asked) == 2


@pytest.mark.parametrize("fault", ["500", "reset"])
@pytest.mark.parametrize(
    ("method", "repeatable", "again"),
    [
        ("GET", None, True),
        ("POST", None, False),
        ("PUT", None, False),
        ("DELETE", None, False),
        ("POST", True, True),
        ("GET", False, False),
    ],
)
async def test_repeatable_request_is_retried(
    method: str, repeatable: bool | None, again: bool, fault: str
) -> None:
    requests = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        await request.content.read()
        if requests == 1:
            if fault == "500":
                return says({"status": "ERROR", "errors": [{"code": "INTERNAL"}]}, 500)
            assert request.transport is not None
            request.transport.abort()
        return says({"requests": requests})

    async with http_server(handle) as url, session_at(url, retry=Retry()) as session:
        body: dict[str, Any] = {} if method == "GET" else {"json": {"id": 5}}
        call = session.request(method, "/v2/x", repeatable=repeatable, **body)
        if again:
            assert await call == {"requests": 2}
        else:
            error = await error_of(call)
            assert isinstance(error, ServerError if fault == "500" else ConnectionFailedError)
            assert error.sent is None
            assert requests == 1


async def test_request_that_was_surely_not_carried_out_is_retried() -> None:
    async with Sandbox() as market, session_of(market, retry=Retry(attempts=3)) as session:
        await market.go_down()
        asyncio.get_running_loop().call_later(0.3, lambda: back.append(market.come_back()))
        back: list[Awaitable[None]] = []
        call = asyncio.create_task(session.request("POST", "/v2/auth/token"))
        while not back:
            await asyncio.sleep(0.05)
        await back[0]
        assert (await call)["status"] == "OK"
        assert market.requests("token") == 1
        await market.go_down()
        error = await error_of(session.request("POST", "/v2/auth/token"))
        assert isinstance(error, ConnectionFailedError)
        assert error.sent is False
        await market.come_back()


class Price(msgspec.Struct):
    price: float


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "GET X", "path": "/v2/x"},
        {"method": "", "path": "/v2/x"},
        {"method": "ПОЛУЧИТЬ", "path": "/v2/x"},
        {"method": 5, "path": "/v2/x"},
        {"path": "v2/x"},
        {"path": ""},
        {"path": 5},
        {"path": "https://elsewhere.example/x"},
        {"path": "//elsewhere.example/x"},
        {"path": "//[/x"},
        {"path": "@elsewhere.example/x"},
        {"path": "/v2/x", "json": object()},
        {"path": "/v2/x", "json": {"text": "\ud800"}},
        {"path": "/v2/x", "json": "x" * 524_287},
        {"path": "/v2/x", "json": CYCLE},
        {"path": "/v2/x", "json": {"price": math.nan}},
        {"path": "/v2/x", "json": [Price(math.inf), msgspec.Raw(b"1")]},
        {"path": "/v2/x", "json": {1: {"price": -math.inf}}},
        {"path": "/v2/x", "params": {"a": None}},
        {"path": "/v2/x", "params": {"a": True}},
        {"path": "/v2/x", "max_wait": -1},
    ],
)
async def test_invalid_request_argument_raises(arguments: Any) -> None:
    async with market_that(lambda asked: says({})) as market, session_at(market.url) as session:
        error = await error_of(session.request(arguments.pop("method", "GET"), **arguments))
        assert isinstance(error, InvalidArgumentError)
        assert market.asked == []


async def test_null_and_finite_numbers_of_a_request_body_are_sent() -> None:
    async with market_that(lambda asked: says({})) as market, session_at(market.url) as session:
        await session.request("POST", "/v2/x", json=[None, 1.5, msgspec.Raw(b"null"), {1: "null"}])
        assert market.asked[0].body == b'[null,1.5,null,{"1":"null"}]'


async def test_largest_request_body_is_sent() -> None:
    async with market_that(lambda asked: says({})) as market, session_at(market.url) as session:
        await session.request("POST", "/v2/x", json="x" * 524_286)
        assert len(market.asked[0].body) == 512 * 1024


async def test_status_error_in_a_200_raises() -> None:
    body = {"status": "ERROR", "errors": [{"code": "BAD_REQUEST", "message": "no such order"}]}
    async with market_that(lambda asked: says(body)) as market, session_at(market.url) as session:
        error = await error_of(session.request("POST", "/v2/x", json={}))
        assert "no such order" in str(error)
        assert error.sent is None


# Errors

READS = ("chats", "history", "get_chat", "get_message", "campaigns", "token")
CALLS: dict[str, Callable[[ChatSession], Awaitable[object]]] = {
    "send_message": lambda session: session.send_message(17, "Здравствуйте"),
    "send_file": lambda session: session.send_file(17, b"x", filename="x.txt"),
    "create_chat": lambda session: session.create_chat(order_id=55),
    "get_chat": lambda session: session.get_chat(17),
    "chats": lambda session: listed(session.chats()),
    "history": lambda session: listed(session.history(17)),
    "get_message": lambda session: session.get_message(17, 3),
    "campaigns": lambda session: listed(session.campaigns()),
    "token": lambda session: session.token(),
    "request": lambda session: session.request("POST", "/v2/x", json={}),
}
KINDS: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    405: ApiError,
    415: ApiError,
    423: LockedError,
    500: ServerError,
    503: ServerError,
}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("status", KINDS)
@pytest.mark.parametrize("operation", CALLS)
async def test_documented_error_has_its_fields(operation: str, status: int) -> None:
    def reply(asked: Asked) -> web.Response:
        if operation.startswith("send") and asked.path.endswith("/history"):
            return page("messages", [], None, context={"type": "DIRECT"})
        body = {
            "status": "ERROR",
            "errors": [
                {"code": "FIRST", "message": f"Отказано, ключ {KEY}"},
                {"code": f"SECOND_{KEY}"},
                {"code": "THIRD", "message": None, "detail": 5},
            ],
        }
        return says(body, status, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")

    async with market_that(reply) as market, session_at(market.url) as session:
        error = await error_of(CALLS[operation](session))
    assert type(error) is KINDS[status]
    assert isinstance(error, ApiError)
    assert error.status == status
    assert error.operation == operation
    assert error.trace_id == TRACE
    assert error.errors[0].code == "FIRST"
    assert error.errors[0].message is not None
    assert error.errors[0].message.startswith("Отказано, ключ ")
    assert error.errors[1].code.startswith("SECOND_")
    assert error.errors[2] == ErrorDetail("THIRD", None)
    for said in (str(status), operation, TRACE, "FIRST", "Отказано", "THIRD"):
        assert said in str(error)
    # A 500 leaves open whether it was carried out; of a message the history has told.
    unknown = status == 500 and not operation.startswith("send")
    assert error.sent is (None if unknown else False)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    for told in (str(error), repr(error), repr(vars(error)), repr(again.args)):
        assert KEY not in told


@pytest.mark.parametrize("errors", [None, "missing", []])
@pytest.mark.parametrize("status", ["OK", "ERROR"])
async def test_error_answer_without_details_is_accepted(errors: Any, status: str) -> None:
    body: dict[str, Any] = {"status": status}
    if errors != "missing":
        body["errors"] = errors
    async with (
        market_that(lambda asked: says(body, 403)) as market,
        session_at(market.url) as session,
    ):
        error = await error_of(session.send_message(17, "hi"))
    assert isinstance(error, ForbiddenError)
    assert (error.errors, error.trace_id, error.sent) == ((), None, False)
    assert "scope" in str(error)


@pytest.mark.parametrize("operation", [name for name in CALLS if name != "request"])
async def test_reading_call_waits_after_a_420(operation: str) -> None:
    faults = {1: Fault("rate_limit", delay=600.0)}
    async with Sandbox(faults=faults) as market, session_of(market, retry=ONCE) as session:
        for _ in range(3):
            market.buyer_says(17, "hi")
        await CALLS[operation](session)
        [first, second] = market.arrivals
        assert (first.status, second.status) == (420, 200)
        assert 600 <= second.time - first.time < 620
        assert session.quota_status(operation).waiting == 0


@pytest.mark.parametrize("operation", READS)
async def test_reading_call_is_retried_after_faults(operation: str) -> None:
    faults = {
        1: Fault("reset", when="after"),
        2: Fault("status", status=500),
        3: Fault("status", status=503, html=True),
        4: Fault("half_body"),
        5: Fault("no_answer"),
        6: Fault("status", status=200, html=True),
    }
    async with Sandbox(faults=faults) as market, session_of(market) as session:
        for _ in range(3):
            market.buyer_says(17, "hi")
        await CALLS[operation](session)
        assert market.requests(operation) == 7
        assert now() > 15 + 1


@pytest.mark.parametrize("operation", READS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 415, 423])
async def test_refused_reading_call_is_not_retried(operation: str, status: int) -> None:
    def faults(_: object) -> Fault:
        return Fault("status", status=status)

    async with Sandbox(faults=faults) as market, session_of(market) as session:
        await error_of(CALLS[operation](session))
        assert market.requests(operation) == 1


@pytest.mark.parametrize(
    ("cause", "kind", "advice"),
    [
        ("revoked", UnauthorizedError, ["Api-Key token is revoked", "cabinet"]),
        ("scopes", ForbiddenError, ["scopes", "communication", "all-methods"]),
        ("inactive", ForbiddenError, ["disabled partners", "active"]),
        ("locked", LockedError, ["migrat", "hours"]),
    ],
)
async def test_error_of_a_documented_cause_says_what_to_do(
    cause: str, kind: type[ApiError], advice: list[str]
) -> None:
    async with Sandbox() as market, session_of(market) as session:
        setattr(market, cause, ("PRICING",) if cause == "scopes" else True)
        error = await error_of(session.send_message(17, "hi"))
        assert type(error) is kind
        assert not [words for words in advice if words not in str(error)]


async def test_business_id_of_another_seller_is_forbidden() -> None:
    async with (
        Sandbox() as market,
        ChatSession(market.api_key, 999, base_url=market.url) as session,
    ):
        error = await error_of(session.get_chat(17))
    assert isinstance(error, ForbiddenError)
    assert "business id" in str(error)


@pytest.mark.parametrize("status", [200, 404, 502, 503, 504])
async def test_html_page_is_shortened_in_the_error(status: int) -> None:
    title = "Are you a robot?"
    body = f"<html>\n\t<title>{title}</title>\x00\x1b[31m{KEY}<p>{'x' * 100_000}</html>"

    def reply(asked: Asked) -> web.Response:
        return web.Response(status=status, text=body, content_type="text/html")

    async with market_that(reply) as market, session_at(market.url) as session:
        error = await error_of(session.get_chat(17))
    if status == 200:
        assert isinstance(error, UnexpectedAnswerError)
        assert title in error.excerpt
        assert len(error.excerpt) <= 300
    else:
        assert isinstance(error, ApiError)
        assert title in str(error.errors[0])
    assert cast(Any, error).status == status
    # What a balancer says does not tell what the Market did.
    assert error.sent is (False if status == 404 else None)
    assert cast(Any, error).retry_after == (None if status == 404 else 60.0)
    assert title in str(error)
    assert len(str(error)) < 1000
    assert str(error).isprintable()
    assert KEY not in str(error)


@pytest.mark.parametrize("start", range(700, 830, 3))
async def test_excerpt_cut_inside_the_key_shows_no_part_of_it(start: int) -> None:
    for filling in (" ", "x"):
        body = filling * (start if filling == " " else start - 630) + KEY

        def reply(asked: Asked, body: str = body) -> web.Response:
            return web.Response(status=500, text=body)

        async with market_that(reply) as market, session_at(market.url) as session:
            error = await error_of(session.get_chat(17))
        assert KEY[:12] not in str(error)


HEX_KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "traceparent",
    [HEX_KEY, f"00-{HEX_KEY}-01", f"00-{TRACE[:-1]}g-b7ad6b7169203331-01", f"00-{TRACE}", "00--"],
)
async def test_invalid_trace_header_is_not_shown(traceparent: str) -> None:
    def reply(asked: Asked) -> web.Response:
        return says({"status": "ERROR"}, 400, traceparent=traceparent)

    async with (
        market_that(reply) as market,
        ChatSession(HEX_KEY, BUSINESS, base_url=market.url) as session,
    ):
        error = await error_of(session.send_message(17, "hi"))
    assert isinstance(error, ApiError)
    assert error.trace_id is None
    assert HEX_KEY[:8] not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX-Bad\x00: %s\r\n\r\n",
        b"ERR %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
        b"HTTP/1.1 200 %s\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\ntraceparent: 00-%s-b7ad6b7169203331-01\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("key", [KEY, "ACMA:" + "secret0" * 3 + "secret"])
async def test_a_broken_answer_that_echoes_the_key_does_not_show_it(
    answer: bytes, key: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer % key.encode())
        await writer.drain()
        writer.close()

    caplog.set_level("DEBUG", "yamarket_chat")
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    retry = Retry(attempts=2)
    async with ChatSession(key, BUSINESS, base_url=url, retry=retry) as session:
        file = File(name="x", url=f"{url}/f", size=1)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: session.get_chat(17),
            lambda: session.send_message(17, "hi", on_unknown="raise"),
            lambda: session.send_message(18, "hi"),
            lambda: session.request("GET", "/v2/x"),
            lambda: session.download(file, tmp_path / "x"),
        ]
        for call in calls:
            outcome = await outcome_of(call())
            if isinstance(outcome, Path):
                continue  # an odd reason phrase is accepted
            assert isinstance(outcome, ChatError)
            seen: BaseException | None = outcome
            while seen is not None:
                assert key not in f"{seen} {seen!r} {vars(seen)}"
                seen = seen.__cause__ or seen.__context__
            assert "\n" not in str(outcome)
    server.close()
    assert key not in caplog.text


async def test_temporary_errors_have_retry_after() -> None:
    def reply(asked: Asked) -> web.Response:
        return says({"status": "ERROR", "errors": None}, 503)

    async with market_that(reply) as market, session_at(market.url) as session:
        error = await error_of(session.get_chat(17))
    assert isinstance(error, ServerError)
    assert error.sent is False
    assert error.retry_after is not None
    async with session_at(market.url) as session:
        error = await error_of(session.get_chat(17))
    assert isinstance(error, ConnectionFailedError)
    assert error.retry_after is not None


def every_text(error: BaseException) -> Iterator[str]:
    yield from (str(error), repr(error), repr(vars(error)))


@pytest.mark.parametrize("operation", CALLS)
async def test_a_wrong_key_is_in_no_error(operation: str) -> None:
    async with (
        Sandbox(api_key="ACMA:right:one") as market,
        ChatSession(KEY, BUSINESS, base_url=market.url, retry=ONCE) as session,
    ):
        if operation == "request":
            error = await error_of(session.request("POST", "/v2/auth/token"))
        else:
            error = await error_of(CALLS[operation](session))
        assert isinstance(error, UnauthorizedError)
        assert not [text for text in every_text(error) if KEY in text]
        assert KEY not in repr(session)
        assert KEY not in repr(vars(session).get("_engine"))


@pytest.mark.parametrize("status", [409, 503])
async def test_error_after_an_unknown_attempt_still_has_sent_none(
    status: int,
) -> None:
    requests = 0

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal requests
        requests += 1
        await request.read()
        if requests == 1:  # carried out, and then the connection breaks
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"status": "ERROR"}, status=status)

    async with http_server(handle) as url:
        async with session_at(url, retry=Retry(attempts=2)) as session:
            error = await error_of(session.create_chat(order_id=55))
            assert (requests, error.sent) == (2, None)
            error = await error_of(session.create_chat(order_id=55))
            assert error.sent is False
        requests = 0
        async with session_at(url) as session:
            creating = asyncio.create_task(error_of(session.create_chat(order_id=55)))
            await asyncio.sleep(0.3)  # it pauses before the next attempt
        assert (requests, (await creating).sent) == (1, None)
