"""The session: checks, waits, errors, closing, and that the key stays secret."""
# ruff: noqa: SIM117, PERF401, PT012 - one thing a line reads more easily here

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tests.helpers import (
    HOUR,
    KEY,
    RAISE_UNKNOWN,
    departures,
    error_of,
    http_server,
    now,
    outcome_of,
    outcomes_of,
    raw_server,
    send_all,
    session_of,
    stored,
    texts,
)
from yamarket_chat import (
    ApiError,
    BadRequestError,
    ChatError,
    ChatSession,
    ConnectionFailedError,
    Delivered,
    DeliveryUnknownError,
    ErrorDetail,
    File,
    ForbiddenError,
    InvalidArgumentError,
    LimitExceededError,
    Limits,
    LockedError,
    MaxWaitExceededError,
    NotFoundError,
    OutgoingMessage,
    Pending,
    Rate,
    Retry,
    ServerError,
    SessionClosedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox

NOBODY = "http://127.0.0.1:9"


def limits(requests: int, per: float, parallel: int = 4) -> Limits:
    return Limits(parallel=parallel, send_message=Rate(requests, per=per))


# What is checked before anything is sent or used up


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t \u00a0\u2003", "x" * 4097, "half \ud83d of a pair", None, 5, b"bytes"]
)
async def test_text_that_the_market_would_refuse_is_not_sent(text: Any) -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_message(1, text))
        assert isinstance(error, InvalidArgumentError)
        assert isinstance(error, ValueError)
        assert error.sent is False
        assert market.arrivals == []
        assert session.quota_status("send_message").remaining == 1000


@pytest.mark.parametrize("text", ["x", "x" * 4096, "Ы" * 4096, "😀" * 2000, " spaces ", '"\\\n\0'])
async def test_valid_text_arrives_unchanged(text: str) -> None:
    async with Sandbox(strip_spaces=False) as market, session_of(market) as session:
        await session.send_message(1, text)
        assert texts(market, 1) == [text]


@pytest.mark.parametrize(
    "chat_id",
    [0, -1, True, 1.0, None, 2**63, "0", "-1", "1.0", " 1", "１", "x", "", str(2**63), "1" * 5000],
)
async def test_invalid_id_is_not_sent(chat_id: Any) -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_message(chat_id, "hello"))
        assert isinstance(error, InvalidArgumentError)
        [outcome] = await outcomes_of(session.send_many([OutgoingMessage(chat_id, "hello")]))
        assert outcome.status == "refused"
        assert type(outcome.error) is InvalidArgumentError
        assert market.arrivals == []
        assert await session.send_message(2**63 - 1, "the largest id")


async def test_ids_may_be_decimal_strings_as_notifications_carry_them() -> None:
    async with Sandbox() as market:
        business_id = str(market.business_id)
        async with ChatSession(market.api_key, business_id, base_url=market.url) as session:
            receipt = await session.send_message(str(2**63 - 1), "hello")
            assert receipt.chat_id == 2**63 - 1
            assert (await session.send_file("17", b"x", filename="x.txt")).chat_id == 17
            [outcome] = await outcomes_of(session.send_many([OutgoingMessage("17", "hello")]))
            assert outcome.status == "delivered"
            chat_id = await session.create_chat(order_id="55")
            assert await session.create_chat(order_id=55) == chat_id
            [message, _] = [message async for message in session.history("17")]
            assert await session.get_message("17", str(message.message_id)) == message
            again = session.history("17", message_id_from=str(message.message_id))
            assert message in [message async for message in again]
            assert (await session.get_chat(str(chat_id))).chat_id == chat_id
            [chat] = [chat async for chat in session.chats(order_ids=["55"])]
            assert chat.chat_id == chat_id


async def test_error_of_a_wrong_type_names_the_type_but_not_the_value() -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_message(KEY, 17))  # type: ignore[arg-type]
        assert str(error) == "chat_id is an int or a decimal string, not another string"


async def test_base_url_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Sandbox() as market:
        monkeypatch.setenv("YAMARKET_API_KEY", market.api_key)
        monkeypatch.setenv("YAMARKET_BUSINESS_ID", str(market.business_id))
        monkeypatch.setenv("YAMARKET_BASE_URL", market.url)
        async with ChatSession() as session:
            await session.send_message(1, "from the environment")
        assert texts(market, 1) == ["from the environment"]
        monkeypatch.setenv("YAMARKET_BASE_URL", "http://market.example")
        with pytest.raises(InvalidArgumentError, match="https"):
            ChatSession()
        async with ChatSession(base_url=market.url) as session:  # what is passed comes first
            await session.send_message(1, "passed")
        assert texts(market, 1)[1:] == ["passed"]


@pytest.mark.real_time
@pytest.mark.every_loop
async def test_a_session_of_another_event_loop_sends_nothing() -> None:
    async with Sandbox() as market:
        async with session_of(market) as session:
            await session.send_message(1, "first")  # its connection is kept

            history, bulk = session.history(1), session.send_many([OutgoingMessage(1, "second")])

            async def on_another_loop() -> None:
                for call in (
                    session.send_message(1, "second"),
                    outcome_of(anext(aiter(history))),
                    outcome_of(anext(bulk)),
                    session.close(),
                ):
                    with pytest.raises(InvalidArgumentError, match="event loop"):
                        if isinstance(outcome := await call, Exception):
                            raise outcome

            await asyncio.to_thread(asyncio.run, on_another_loop())
            await session.send_message(1, "third")
        assert texts(market, 1) == ["first", "third"]


@pytest.mark.real_time
def test_session_works_when_its_loop_moves_to_another_thread() -> None:
    loop = asyncio.new_event_loop()
    market = loop.run_until_complete(Sandbox().__aenter__())
    session = loop.run_until_complete(session_of(market).__aenter__())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        for call in (
            session.send_message(1, "hi"),
            session.close(),
            market.__aexit__(None, None, None),
        ):
            asyncio.run_coroutine_threadsafe(call, loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert texts(market, 1) == ["hi"]


@pytest.mark.parametrize(
    "settings",
    [
        {"business_id": 0},
        {"business_id": True},
        {"business_id": "12345x"},
        {"business_id": ""},
        {"api_key": "with space"},
        {"api_key": "line\r\nbreak"},
        {"api_key": "ключ"},
        {"api_key": 5},
        {"api_key": ""},
        {"base_url": "https://xn--"},
        {"base_url": "https://[]@"},
        {"base_url": "https://[::1 ]/"},
        {"proxy": "http://xn--:1"},
        {"proxy": "http://[]@:1"},
        {"base_url": "http://market.example"},
        {"base_url": "http://localhost.market.example"},
        {"base_url": "http://127.0.0.1.example"},
        {"base_url": "ftp://market.example"},
        {"base_url": "market.example"},
        {"base_url": "https://"},
        {"base_url": "https://market.example/?a=b"},
        {"base_url": "https://user:password@market.example"},
        {"base_url": 5},
        {"base_url": ""},
        {"limits": 5},
        {"retry": 5},
        {"max_wait": -1},
        {"max_wait": float("nan")},
        {"max_wait": float("inf")},
        {"max_wait": True},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": 3601},
        {"timeout": "15"},
        {"http": 5},
        {"integration": ""},
        {"integration": "x" * 101},
        {"integration": "имя/1"},
        {"integration": "a\r\nb"},
    ],
)
def test_invalid_settings_are_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YAMARKET_API_KEY", raising=False)
    defaults: dict[str, Any] = {"api_key": KEY, "business_id": 1}
    with pytest.raises(InvalidArgumentError):
        ChatSession(**defaults | settings)


@pytest.mark.parametrize("quoted", [f'"{KEY}"', f"'{KEY}'", f'{KEY}"', f"'{KEY}"])
def test_a_key_in_quotes_is_refused(quoted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker --env-file keeps them."""
    monkeypatch.setenv("YAMARKET_API_KEY", quoted)
    for key in (quoted, None):
        with pytest.raises(InvalidArgumentError, match="remove the quotes") as caught:
            ChatSession(key, 1)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize("quoted", ['"12345"', "'12345'", '12345"'])
def test_a_business_id_in_quotes_is_refused(quoted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAMARKET_BUSINESS_ID", quoted)
    with pytest.raises(InvalidArgumentError, match=r"YAMARKET_BUSINESS_ID .* remove the quotes"):
        ChatSession(KEY)
    with pytest.raises(InvalidArgumentError, match=r"business_id .* remove the quotes"):
        ChatSession(KEY, quoted)


async def test_a_text_that_the_locale_could_not_decode_is_named_so() -> None:
    """LC_ALL=C without UTF-8 mode."""
    text = "Привет".encode().decode("ascii", "surrogateescape")
    async with ChatSession(KEY, 1, base_url="http://127.0.0.1:1") as session:
        for call in (session.send_message(1, text), session.send_file(1, b"1", filename=text)):
            with pytest.raises(InvalidArgumentError, match="LC_ALL"):
                await call


@pytest.mark.parametrize(
    "url",
    ["https://market.example", "http://localhost:1", "http://127.9.9.9:1", "http://[::1]:1"],
)
def test_https_and_loopback_need_no_permission(url: str) -> None:
    ChatSession(KEY, 1, base_url=url)
    ChatSession(KEY, 1, base_url="http://market.example", insecure_http=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rate(0, per=1),
        lambda: Rate(True, per=1),
        lambda: Rate(1.5, per=1),  # type: ignore[arg-type]  # on purpose
        lambda: Rate(1, per=0),
        lambda: Rate(10**9 + 1, per=1),
        lambda: Rate(10**400, per=1),
        lambda: Rate(1, per=float("nan")),
        lambda: Rate(1, per=float("inf")),
        lambda: Rate(5, per=1, burst=0),
        lambda: Rate(5, per=1, burst=6),
        lambda: Limits(parallel=0),
        lambda: Limits(parallel=True),
        lambda: Limits(send_message=1000),  # type: ignore[arg-type]  # on purpose
        lambda: Retry(attempts=0),
        lambda: Retry(give_up_after=-1),
        lambda: Retry(give_up_after=float("nan")),
        lambda: Retry(settle_after=3601),
        lambda: Retry(settle_after=float("inf")),
        lambda: Retry(settle_after=10**400),
    ],
)
def test_invalid_limits_and_retries_are_refused(make: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        make()


async def test_the_largest_settings_work() -> None:
    retry = Retry(settle_after=3600, on_unknown="raise")
    limits = Limits(send_message=Rate(10**9, per=1))
    async with Sandbox(faults={3: Fault("reset")}) as market:
        async with session_of(market, retry=retry, timeout=3600, limits=limits) as session:
            await session.send_message(1, "a")
            await session.send_message(1, "b")
            error = await error_of(session.send_message(1, "c"))
            assert isinstance(error, DeliveryUnknownError)
            assert await session.settle(error.pending) is None


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_key_is_not_replaced_by_that_of_the_environment(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another shop's."""
    monkeypatch.setenv("YAMARKET_API_KEY", KEY)
    with pytest.raises(InvalidArgumentError, match="api_key is empty"):
        ChatSession(empty, 1)
    ChatSession(None, 1)


@pytest.mark.parametrize("operation", ["request", "", None, [], {}])
async def test_quota_status_of_no_method_raises(operation: Any) -> None:
    async with ChatSession(KEY, 1) as session:
        with pytest.raises(InvalidArgumentError, match="operation is one of"):
            session.quota_status(operation)


async def test_key_and_business_are_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Sandbox() as market:
        monkeypatch.setenv("YAMARKET_API_KEY", market.api_key)
        monkeypatch.setenv("YAMARKET_BUSINESS_ID", str(market.business_id))
        async with ChatSession(base_url=market.url) as session:
            await session.send_message(1, "hello")
        monkeypatch.setenv("YAMARKET_BUSINESS_ID", "none")
        with pytest.raises(InvalidArgumentError):
            ChatSession(base_url=market.url)


async def test_missing_business_id_raises_only_in_methods_that_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("YAMARKET_BUSINESS_ID", raising=False)
    async with Sandbox() as market:
        async with ChatSession(market.api_key, base_url=market.url) as session:
            error = await error_of(session.send_message(1, "hello"))
            assert isinstance(error, InvalidArgumentError)
            assert "business_id" in str(error)
        assert market.arrivals == []


# The key


async def test_middleware_of_the_callers_aiohttp_session_can_read_a_message() -> None:
    seen: list[Any] = []

    async def look(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        body = request.body
        assert isinstance(body, aiohttp.Payload)
        shown = {name: getattr(body, name) for name in vars(aiohttp.BytesPayload(b""))}
        seen.append((await body.as_bytes(), body.decode(), body.size, body.content_type, shown))
        return await handler(request)

    async with Sandbox() as market, aiohttp.ClientSession(middlewares=[look]) as http:
        async with session_of(market, http=http) as session:
            await session.send_message(1, "hello")
        assert texts(market, 1) == ["hello"]
    text = '{"message":"hello"}'
    assert seen[0][:4] == (text.encode(), text, len(text), "application/json")


async def secret_places(error: BaseException) -> str:
    """Return everything that a log, a traceback or an error tracker would show."""
    shown = []
    seen: BaseException | None = error
    while seen is not None:
        shown += [str(seen), repr(seen), repr(seen.args), repr(vars(seen))]
        seen = seen.__cause__ or seen.__context__
    return " ".join(shown)


ECHOES = [
    b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(KEY) + KEY.encode(),
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(KEY) + KEY.encode(),
    b'HTTP/1.1 400 Bad\r\nContent-Length: 200\r\n\r\n{"status":"ERROR","errors":[{"code":"'
    + (KEY.encode() + b'","message":"' + KEY.encode() + b'"}]}').ljust(163),
    b"HTTP/1.1 " + KEY.encode() + b" OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nEcho\x01: " + KEY.encode() + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + KEY.encode() + b"\r\n",
    b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\ntraceparent: 00-"
    + KEY.encode().ljust(32, b"x")
    + b"-1-1\r\n\r\n",
]


@pytest.mark.parametrize("echo", ECHOES)
async def test_the_key_is_in_no_error_and_no_log_line_even_where_a_server_echoes_it(
    echo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "yamarket_chat")
    async with raw_server(echo) as url:
        session = ChatSession(KEY, 1, base_url=url, retry=Retry(attempts=2, on_unknown="raise"))
        async with session:
            error = await error_of(session.send_message(1, "hello"))
            assert KEY not in await secret_places(error)
            assert KEY not in repr(session) + str(session)
            assert KEY.encode() not in pickle.dumps(error)
    assert KEY not in caplog.text


@pytest.mark.parametrize("reach", ["refused", "wrong key", "unknown", "closed"])
async def test_the_key_is_in_no_error_and_no_log_line(
    reach: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    faults = {1: Fault("no_answer"), 2: Fault("status", status=503)}
    async with Sandbox(api_key=KEY, faults=faults) as market:
        url = NOBODY if reach == "refused" else market.url
        market.revoked = reach == "wrong key"
        http = aiohttp.ClientSession() if reach == "closed" else None
        if http is not None:
            await http.close()
        retry = Retry(attempts=2, on_unknown="raise")
        async with ChatSession(KEY, 12345, base_url=url, retry=retry, http=http) as session:
            assert KEY not in await secret_places(await error_of(session.send_message(1, "a")))
    assert KEY not in caplog.text


def test_key_passed_as_another_argument_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, the two environment variables were swapped."""
    monkeypatch.setenv("YAMARKET_API_KEY", "12345")
    monkeypatch.setenv("YAMARKET_BUSINESS_ID", KEY)
    makes: list[Callable[[], object]] = [
        ChatSession,
        lambda: ChatSession("12345", KEY),
        lambda: ChatSession(12345, KEY),  # type: ignore[arg-type]  # on purpose
        lambda: ChatSession(f"{KEY}\n", 1),
        lambda: ChatSession(f"Bearer {KEY}", 1),
    ]
    for make in makes:
        with pytest.raises(InvalidArgumentError) as caught:
            make()
        assert KEY not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed_and_the_key_goes_to_no_other_host(status: int) -> None:
    elsewhere = []

    async def other_host(request: web.BaseRequest) -> web.StreamResponse:
        elsewhere.append(request)
        return web.Response(body=b'{"status":"OK"}')

    async with http_server(other_host) as other:

        async def redirect(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": f"{other}/"})

        async with http_server(redirect) as url:
            async with ChatSession(KEY, 1, base_url=url, retry=RAISE_UNKNOWN) as session:
                error = await error_of(session.send_message(1, "hello"))
    assert isinstance(error, DeliveryUnknownError)
    assert elsewhere == []


async def test_every_request_has_the_key_and_names_the_program() -> None:
    seen: list[Any] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append((request.headers, request.rel_url, await request.json()))
        return web.Response(body=b'{"status":"OK"}')

    async with http_server(answer) as url:
        async with ChatSession(KEY, 7, base_url=f"{url}/", integration="shop/1.2") as session:
            receipt = await session.send_message(5, "Ваш заказ в пути")
    [(headers, address, body)] = seen
    assert headers["Api-Key"] == KEY
    assert headers["X-Market-Integration"] == "shop/1.2"
    assert headers["Content-Type"].startswith("application/json")
    assert str(address) == "/v2/businesses/7/chats/message?chatId=5"
    assert body == {"message": "Ваш заказ в пути"}
    assert (receipt.chat_id, receipt.requests, receipt.confirmed_by) == (5, 1, "answer")
    assert receipt.trace_id is None


async def test_a_receipt_has_the_trace_id_of_the_answer() -> None:
    async with Sandbox() as market, session_of(market) as session:
        receipt = await session.send_message(5, "hello")
        assert receipt.trace_id == market.arrivals[0].trace_id


# An aiohttp session of the caller's


async def test_settings_of_the_callers_aiohttp_session_change_nothing() -> None:
    async with (
        Sandbox(latency=5.0, faults={2: Fault("status", status=400)}) as market,
        aiohttp.ClientSession(
            headers={"Api-Key": "another", "Content-Type": "text/plain", "Accept": "text/html"},
            timeout=aiohttp.ClientTimeout(total=0.001),
            raise_for_status=True,
        ) as http,
    ):
        async with session_of(market, http=http) as session:
            await session.send_message(1, "hello")
            assert isinstance(await error_of(session.send_message(1, "a")), BadRequestError)
        assert not http.closed
        async with session_of(market, http=http) as session:
            await session.send_message(1, "again")
        assert texts(market, 1) == ["hello", "again"]


async def test_a_pool_of_one_connection_neither_loses_nor_doubles_a_message() -> None:
    async with (
        Sandbox(latency=1.0) as market,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http,
        session_of(market, http=http) as session,
    ):
        await send_all(session, [(i, "a") for i in range(1, 31)])
        assert stored(market) == {i: ["a"] for i in range(1, 31)}


async def test_connections_that_the_market_closes_neither_lose_nor_double_a_message() -> None:
    for keep_alive in (False, 30.0):
        async with Sandbox(keep_alive=keep_alive) as market, session_of(market) as session:
            for i in range(20):
                await session.send_message(1, f"{i}")
                await asyncio.sleep(29.99 + i / 1000)  # also just when it closes them
            assert texts(market, 1) == [f"{i}" for i in range(20)]


@pytest.mark.real_time
async def test_an_aiohttp_session_of_another_event_loop_is_named_so() -> None:
    async def made() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    other = asyncio.new_event_loop()
    http = await asyncio.to_thread(other.run_until_complete, made())
    async with Sandbox() as market, session_of(market, http=http) as session:
        error = await error_of(session.send_message(1, "hello"))
        assert "must belong to this event loop" in str(error)
        assert (error.sent, market.arrivals) == (False, [])
    await asyncio.to_thread(other.run_until_complete, http.close())
    other.close()


# What an attempt came to


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, UnauthorizedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (405, ApiError),
        (407, ApiError),
        (415, ApiError),
        (423, LockedError),
    ],
)
@pytest.mark.parametrize("html", [False, True])
async def test_a_4xx_is_refused_for_good_whatever_its_body(
    status: int, kind: type[ApiError], html: bool
) -> None:
    plan = {1: Fault("status", status=status, html=html)}
    async with Sandbox(faults=plan) as market, session_of(market) as session:
        error = await error_of(session.send_message(1, "hello"))
        assert type(error) is kind
        assert isinstance(error, ApiError)
        assert (error.status, error.operation, error.sent) == (status, "send_message", False)
        assert error.trace_id == (None if html else market.arrivals[0].trace_id)
        assert error.errors
        assert error.errors[0].code in str(error)
        assert len(market.arrivals) == 1


UNKNOWN = [
    Fault("reset"),
    Fault("no_answer"),
    Fault("half_body"),
    Fault("status", status=200),
    Fault("status", status=200, html=True),
    Fault("status", status=204),
    Fault("status", status=302),
    Fault("status", status=500),
    Fault("status", status=502, html=True),
    Fault("status", status=503, html=True),
    Fault("status", status=504),
    Fault("status", status=599),
]


@pytest.mark.parametrize("fault", UNKNOWN, ids=lambda f: f"{f.kind}-{f.status}-{f.html}")
async def test_an_unknown_outcome_is_never_sent_again_and_can_be_stored(fault: Fault) -> None:
    async with Sandbox(faults={2: fault}) as market:
        async with session_of(market, retry=RAISE_UNKNOWN) as session:
            await session.send_message(2, "before")
            error = await error_of(session.send_message(1, "hello"))
        assert isinstance(error, DeliveryUnknownError)
        assert error.sent is None
        assert len(market.arrivals) == 2
        pending = msgspec.json.decode(msgspec.json.encode(error.pending), type=Pending)
        assert pending == error.pending
        assert (pending.chat_id, pending.text, pending.requests) == (1, "hello", 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"OK"',
        b"{}",
        b'{"status":5}',
        b'{"status":"ERROR"}',
        b'{"status":"OK"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"status":"OK"}' + b" " * (17 * 2**20),
    ],
    ids=lambda body: f"{len(body)} {body[:10]!r}",
)
async def test_undocumented_200_leaves_the_outcome_unknown(body: bytes) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body)

    async with http_server(answer) as url:
        async with ChatSession(KEY, 1, base_url=url, retry=RAISE_UNKNOWN) as session:
            assert isinstance(await error_of(session.send_message(1, "a")), DeliveryUnknownError)


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":"OK"}',
        b'{"status":"OK","errors":null,"result":{"new":[1]}}',
        b' {"new":{"a":1},"status":"OK","errors":[]}\n',
    ],
)
async def test_new_fields_in_an_answer_are_ignored(body: bytes) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body)

    async with http_server(answer) as url, ChatSession(KEY, 1, base_url=url) as session:
        assert (await session.send_message(1, "a")).confirmed_by == "answer"


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":"ERROR","errors":[{"code":"OVERLOAD"}]}',
        b'{"status":"ERROR","errors":null}',
        b'{"status":"ERROR"}',
        b'{"status":"OK","errors":[{"code":"A","message":null}]}',
    ],
)
async def test_503_in_the_format_of_the_api_is_retried(body: bytes) -> None:
    arrivals = []

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        arrivals.append(now())
        if len(arrivals) < 4:
            return web.Response(status=503, body=body)
        return web.Response(body=b'{"status":"OK"}')

    async with http_server(answer) as url, ChatSession(KEY, 1, base_url=url) as session:
        assert (await session.send_message(1, "a")).requests == 4
    pauses = [b - a for a, b in itertools.pairwise(arrivals)]
    assert pauses == sorted(pauses)  # they double, and chance takes at most half of it
    assert pauses[0] > 0.4


async def test_lasting_503_is_raised_when_the_attempts_are_used_up() -> None:
    async with Sandbox(faults=lambda _: Fault("status", status=503)) as market:
        async with session_of(market, retry=Retry(attempts=3)) as session:
            error = await error_of(session.send_message(1, "a"))
        assert isinstance(error, ServerError)
        assert (error.status, error.sent) == (503, False)
        assert error.retry_after is not None  # it passes by itself
        assert len(market.arrivals) == 3


async def test_lasting_503_is_given_up_after_give_up_after() -> None:
    async with Sandbox(faults=lambda _: Fault("status", status=503)) as market:
        async with session_of(market, retry=Retry(attempts=1000, give_up_after=100)) as session:
            began = now()
            await error_of(session.send_message(1, "a"))
            assert 40 < now() - began <= 101


async def test_failed_connection_is_retried_with_growing_pauses() -> None:
    async with Sandbox() as market, session_of(market) as session:
        await market.go_down()
        sending = asyncio.ensure_future(session.send_message(1, "a"))
        await asyncio.sleep(200)
        await market.come_back()
        receipt = await sending
        assert 6 <= receipt.requests <= 12
        assert texts(market, 1) == ["a"]


async def test_unreachable_market_error_has_retry_after() -> None:
    async with ChatSession(KEY, 1, base_url=NOBODY, retry=Retry(attempts=2)) as session:
        error = await error_of(session.send_message(1, "a"))
    assert isinstance(error, ConnectionFailedError)
    assert error.sent is False
    assert error.retry_after is not None


async def test_session_can_retry_for_days() -> None:
    async with Sandbox() as market:
        await market.go_down()
        retry = Retry(attempts=10_000, give_up_after=90 * 24 * HOUR)
        async with session_of(market, retry=retry) as session:
            sending = asyncio.ensure_future(session.send_message(1, "a"))
            await asyncio.sleep(16 * HOUR)
            await market.come_back()
            assert (await sending).requests > 1024


# Of nobody, and trusted by nobody.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgmGQk+EoOYTQcOyK7
/b8bNBJJAiSn+iqsbOXJoIfB/MyhRANCAARrN64LQVqfgOq/bdtJfpL60RmU/1TU
vFpZOGx3LIKSWdIjSJOzw1d34475gekZuusOf2yY5yvQF5CunHpCad4s
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmjCCAUCgAwIBAgIUetdjwRY4WnWK5BaNiWqlTdJd+k8wCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwObWFya2V0LmludmFsaWQwIBcNMjYxMTIyMTkwMzEyWhgPMjEy
NjEwMjkxOTAzMTJaMBkxFzAVBgNVBAMMDm1hcmtldC5pbnZhbGlkMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEazeuC0Fan4Dqv23bSX6S+tEZlP9U1LxaWThsdyyC
klnSI0iTs8NXd+OO+YHpGbrrDn9smOcr0BeQrpx6QmneLKNkMGIwHQYDVR0OBBYE
FIHvpHM9jBodyHdbtT4VZ00++roEMB8GA1UdIwQYMBaAFIHvpHM9jBodyHdbtT4V
Z00++roEMA8GA1UdEwEB/wQFMAMBAf8wDwYDVR0RBAgwBocEfwAAATAKBggqhkjO
PQQDAgNIADBFAiEAjtMW85KrWp2jbxdWDtWDE7wL2mpevK4f+fQ3ETLO/GsCIFPg
tUxC1U/thdmkk96vUNcTzFUCmWlZBRxE0PMiCUai
-----END CERTIFICATE-----
"""


@pytest.mark.parametrize("what", ["message", "file of a chat"])
async def test_invalid_certificate_is_raised_at_once(what: str, tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_text(CERTIFICATE)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "both.pem")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # of the server, whose handshake fails
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    began = now()
    async with ChatSession(KEY, 1, base_url=url) as session:
        if what == "message":
            error = await error_of(session.send_message(1, "a"))
        else:
            error = await error_of(session.download(File(name="x", url=f"{url}/x", size=1)))
    server.close()
    assert isinstance(error, ConnectionFailedError)
    assert error.sent is False
    assert error.retry_after is None  # it does not pass by itself
    assert "certificate" in str(error)
    assert now() - began < 0.4  # not even one pause


async def test_error_contains_the_message_of_the_market() -> None:
    async with Sandbox() as market, session_of(market) as session:
        market.revoked = True
        error = await error_of(session.send_message(1, "a"))
        assert isinstance(error, UnauthorizedError)
        assert error.errors == (ErrorDetail("UNAUTHORIZED", "Api-Key token is revoked"),)
        assert "Api-Key token is revoked" in str(error)
        assert market.arrivals[0].trace_id in str(error)


@pytest.mark.parametrize(
    "error",
    [
        ChatError("text", sent=None, retry_after=5.0),
        InvalidArgumentError("text"),
        MaxWaitExceededError("text", retry_after=7.5),
        ConnectionFailedError("text", sent=None, retry_after=60.0),
        SessionClosedError("text"),
        UnexpectedAnswerError(
            "text", status=200, excerpt="x", operation="send_message", trace_id="t"
        ),
        *(
            kind(
                "text",
                status=status,
                errors=[ErrorDetail("CODE", "message"), ErrorDetail("OTHER")],
                operation="send_message",
                trace_id=None,
                sent=False,
                retry_after=1.0,
            )
            for kind, status in [
                (ApiError, 405),
                (BadRequestError, 400),
                (UnauthorizedError, 401),
                (ForbiddenError, 403),
                (NotFoundError, 404),
                (LimitExceededError, 420),
                (LockedError, 423),
                (ServerError, 500),
            ]
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: ChatError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


async def test_errors_that_were_raised_can_be_pickled() -> None:
    plan = {1: Fault("reset"), 2: Fault("status", status=400)}
    async with Sandbox(faults=plan) as market:
        async with session_of(market, retry=RAISE_UNKNOWN) as session:
            for chat_id in (1, 2):
                error = await error_of(session.send_message(chat_id, "a"))
                again = pickle.loads(pickle.dumps(error))  # noqa: S301
                assert type(again) is type(error)
                assert vars(again) == vars(error)


# max_wait


async def test_max_wait_raises_at_once_if_the_wait_surely_exceeds_it() -> None:
    async with Sandbox() as market, session_of(market, limits=limits(2, per=100)) as session:
        await send_all(session, [(1, "a"), (2, "a")])
        await asyncio.sleep(30)
        before, began = session.quota_status("send_message"), now()
        error = await error_of(session.send_message(3, "b", max_wait=69))
        assert now() - began < 0.1
        assert isinstance(error, MaxWaitExceededError)
        assert error.sent is False
        assert error.retry_after is not None
        assert error.retry_after == pytest.approx(70, abs=0.1)
        after = session.quota_status("send_message")
        assert (after.remaining, after.waiting) == (before.remaining, 0)
        # The time it names is true.
        await asyncio.sleep(error.retry_after)
        await session.send_message(3, "b", max_wait=0.1)
        assert len(departures(market)) == 3


async def test_max_wait_allows_a_shorter_wait() -> None:
    async with Sandbox() as market, session_of(market, limits=limits(1, per=100)) as session:
        await session.send_message(1, "a")
        await session.send_message(1, "b", max_wait=101)
        assert texts(market, 1) == ["a", "b"]


async def test_max_wait_counts_the_calls_that_wait_before() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(2, per=100)) as session:
            calls = [asyncio.ensure_future(session.send_message(i, "a")) for i in range(1, 6)]
            await asyncio.sleep(1)
            error = await error_of(session.send_message(9, "b", max_wait=150))
            assert isinstance(error, MaxWaitExceededError)
            assert 190 < (error.retry_after or 0) < 201
            await asyncio.gather(*calls, session.send_message(9, "b", max_wait=210))


async def test_max_wait_bounds_the_wait_for_the_messages_before_it_in_its_chat() -> None:
    async with Sandbox(latency=8.0) as market, session_of(market, max_wait=5) as session:
        first = asyncio.ensure_future(session.send_message(1, "a"))
        await asyncio.sleep(0)
        began = now()
        error = await error_of(session.send_message(1, "b"))
        assert isinstance(error, MaxWaitExceededError)
        assert error.retry_after is not None
        assert now() - began == pytest.approx(5, abs=0.01)
        await first
        await session.send_message(1, "c", max_wait=None)
        assert texts(market, 1) == ["a", "c"]


async def test_max_wait_raises_at_once_while_the_message_before_is_settled() -> None:
    async with Sandbox(faults={1: Fault("reset", "after")}) as market:
        async with session_of(market) as session:
            first = asyncio.ensure_future(session.send_message(1, "a"))
            await asyncio.sleep(5)
            began = now()
            error = await error_of(session.send_message(1, "b", max_wait=3))
            assert now() - began < 0.1
            assert isinstance(error, MaxWaitExceededError)
            assert error.retry_after is not None
            assert error.retry_after == pytest.approx(10, abs=0.5)  # settled after 15 s
            await session.send_message(2, "another chat", max_wait=0)
            await session.send_message(1, "b", max_wait=error.retry_after + 1)
            assert (await first).confirmed_by == "history"
            assert texts(market, 1) == ["a", "b"]


async def test_max_wait_raises_at_once_while_the_message_before_pauses() -> None:
    async with Sandbox(faults=lambda r: Fault("status", status=503) if r.number < 7 else None) as m:
        async with session_of(m) as session:
            first = asyncio.ensure_future(session.send_message(1, "a"))
            while len(m.arrivals) < 6:
                await asyncio.sleep(0.5)
            began = now()
            error = await error_of(
                session.send_message(1, "b", max_wait=5)
            )  # it pauses 16 s or more
            assert now() - began < 0.1
            assert isinstance(error, MaxWaitExceededError)
            assert (error.retry_after or 0) > 5
            await first


async def test_max_wait_counts_the_calls_that_wait_before_in_its_chat() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(3, per=100)) as session:
            calls = [asyncio.ensure_future(session.send_message(1, f"{i}")) for i in range(5)]
            await asyncio.sleep(1)
            began = now()
            error = await error_of(session.send_message(1, "b", max_wait=2))
            assert now() - began < 0.1
            assert isinstance(error, MaxWaitExceededError)
            await asyncio.gather(*calls)


async def test_max_wait_waits_for_an_answer_that_may_open_the_limit() -> None:
    """After a 420 one request is sent alone: the others wait for its answer, not for the hour."""

    def plan(request: RequestInfo) -> Fault | None:
        faults = {1: Fault("rate_limit", delay=10), 2: Fault("slow", delay=2)}
        return faults.get(request.number)

    async with Sandbox(faults=plan) as market, session_of(market) as session:
        first = asyncio.ensure_future(session.send_message(1, "a"))
        while len(market.arrivals) < 2:
            await asyncio.sleep(0.1)
        assert session.quota_status("send_message").resets_in < 5
        await session.send_message(2, "b", max_wait=5)
        await first


async def test_max_wait_bounds_the_wait_for_a_parallel_slot() -> None:
    async with Sandbox(latency=8.0) as market:
        async with session_of(market, limits=limits(1000, HOUR, parallel=1)) as session:
            first = asyncio.ensure_future(session.send_message(1, "a"))
            await asyncio.sleep(0)
            error = await error_of(session.send_message(2, "b", max_wait=7))
            assert isinstance(error, MaxWaitExceededError)
            assert error.retry_after  # nothing tells how long, but not at once
            await asyncio.gather(first, session.send_message(2, "b", max_wait=9))


@pytest.mark.parametrize("chats", [1, 60])
@pytest.mark.parametrize(("max_wait", "warned"), [(None, True), (1000, False)])
async def test_long_wait_for_a_parallel_slot_or_a_chat_logs_one_warning(
    chats: int, max_wait: float | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Sandbox(latency=9.0) as market, session_of(market, max_wait=max_wait) as session:
        await send_all(session, [(1 + number % chats, f"{number}") for number in range(60)])
        await asyncio.sleep(HOUR)
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == warned


async def test_many_short_waits_log_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Sandbox(latency=9.0) as market, session_of(market) as session:

        async def one_after_the_other(chat_id: int) -> None:
            for number in range(30):
                await session.send_message(chat_id, f"{number}")

        await asyncio.gather(*(one_after_the_other(chat_id) for chat_id in range(1, 7)))
        assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


@pytest.mark.parametrize("status", [500, 503])  # of unknown outcome, and surely not carried out
async def test_failing_attempts_log_one_warning_a_minute(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(request: RequestInfo) -> Fault | None:
        return Fault("status", status=status) if request.operation == "send_message" else None

    async with Sandbox(faults=plan) as market:
        async with session_of(market, retry=Retry(attempts=4)) as session:
            errors = await asyncio.gather(
                *(error_of(session.send_message(chat_id, "hi")) for chat_id in range(1, 5))
            )
        assert {type(error) for error in errors} == {ServerError}
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "retry in" in warnings[0].getMessage()


async def test_settle_beyond_max_wait_leaves_the_outcome_unknown() -> None:
    few = Limits(history=Rate(1, per=100))
    async with Sandbox(faults={2: Fault("reset", "after")}) as market:
        async with session_of(market, limits=few, retry=RAISE_UNKNOWN) as session:
            await session.get_chat(1)  # whose Date is the Market's clock
            error = await error_of(session.send_message(1, "hi"))
            assert isinstance(error, DeliveryUnknownError)
            await asyncio.sleep(20)
            assert [message async for message in session.history(1)]  # uses the limit up
            began = now()
            again = await error_of(session.settle(error.pending, max_wait=5))
            assert now() - began < 0.1
            assert isinstance(again, DeliveryUnknownError)
            assert again.sent is None
            receipt = await session.settle(again.pending)
            assert receipt is not None
            assert receipt.confirmed_by == "history"


async def test_max_wait_of_0_sends_if_no_wait_is_needed() -> None:
    async with Sandbox() as market, session_of(market, max_wait=0) as session:
        for i in range(10):
            await session.send_message(1, f"{i}")
        assert len(texts(market, 1)) == 10


async def test_max_wait_error_is_never_raised_after_the_first_request() -> None:
    plan = {1: Fault("status", status=503), 2: Fault("rate_limit", delay=500.0)}
    async with Sandbox(faults=plan) as market, session_of(market, max_wait=1) as session:
        began = now()
        assert (await session.send_message(1, "a")).requests == 3
        assert now() - began > 500


@pytest.mark.parametrize("max_wait", [-1, float("nan"), float("inf"), "5", True])
async def test_invalid_max_wait_is_refused(max_wait: Any) -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_message(1, "a", max_wait=max_wait))
        assert isinstance(error, InvalidArgumentError)
        assert market.arrivals == []


async def test_a_wait_of_more_than_a_minute_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Sandbox() as market, session_of(market, limits=limits(1, per=61)) as session:
        await send_all(session, [(1, "a"), (2, "b")])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert caplog.records[0].name == "yamarket_chat"
        caplog.clear()
    async with Sandbox() as market, session_of(market, limits=limits(1, per=50)) as session:
        await send_all(session, [(1, "a"), (2, "b")])
        assert not caplog.records


# Closing


async def test_closing_fails_waiting_calls_and_lets_requests_finish() -> None:
    async with Sandbox(latency=5.0) as market:
        session = session_of(market, limits=limits(1000, HOUR, parallel=2))
        calls = [asyncio.ensure_future(session.send_message(i % 5 + 1, "a")) for i in range(8)]
        await asyncio.sleep(1)
        await session.close()
        assert now() < 5.5
        results = [await outcome_of(call) for call in calls]
        assert [type(r).__name__ for r in results] == ["Receipt"] * 2 + ["SessionClosedError"] * 6
        assert all(r.sent is False for r in results if isinstance(r, SessionClosedError))
        assert market.messages_stored == 2


async def test_message_that_outlasts_the_grace_period_is_unknown() -> None:
    async with Sandbox(latency=8.0) as market:
        session = session_of(market)
        call = asyncio.ensure_future(session.send_message(1, "a"))
        await asyncio.sleep(1)
        await session.close(grace=2)
        assert now() == pytest.approx(3, abs=0.1)
        result = await outcome_of(call)
        assert isinstance(result, DeliveryUnknownError)
        assert (result.pending.chat_id, result.pending.text) == (1, "a")
        assert asyncio.all_tasks() - market_tasks() == set()


def market_tasks() -> set[asyncio.Task[Any]]:
    """The test's own task, and those of the sandbox's connections."""
    return {
        task
        for task in asyncio.all_tasks()
        if task is asyncio.current_task() or "RequestHandler" in repr(task.get_coro())
    }


async def test_grace_period_includes_settling() -> None:
    plan = {1: Fault("reset", when="after")}
    async with Sandbox(latency=5.0, faults=plan) as market:
        session = session_of(market)
        call = asyncio.ensure_future(session.send_message(1, "a"))
        await asyncio.sleep(1)
        await session.close(grace=60)
        result = await outcome_of(call)
        assert getattr(result, "confirmed_by", result) == "history"
        assert now() < 60


async def test_closing_ends_pauses_between_attempts_at_once() -> None:
    async with Sandbox() as market:
        await market.go_down()
        session = session_of(market)
        call = asyncio.ensure_future(session.send_message(1, "a"))
        await asyncio.sleep(40)
        began = now()
        await session.close()
        assert now() - began < 0.1
        result = await outcome_of(call)
        assert isinstance(result, SessionClosedError)
        assert result.sent is False


async def test_closed_session_leaves_nothing_and_sends_nothing() -> None:
    async with Sandbox() as market:
        async with session_of(market) as session:
            await send_all(session, [(i, "a") for i in range(1, 9)])
        await session.close()  # twice is no error
        for use in (
            session.send_message(1, "b"),
            outcomes_of_late(session),
        ):
            assert isinstance(await error_of(use), SessionClosedError)
        with pytest.raises(SessionClosedError):
            session.quota_status("send_message")
        await asyncio.sleep(1)
        assert asyncio.all_tasks() - market_tasks() == set()


async def outcomes_of_late(session: ChatSession) -> None:
    await outcomes_of(session.send_many([OutgoingMessage(1, "b")]))


async def test_a_cancelled_close_leaves_nothing_open() -> None:
    async with Sandbox(latency=9.0) as market:
        session = session_of(market)
        call = asyncio.ensure_future(session.send_message(1, "a"))
        await asyncio.sleep(1)
        closing = asyncio.ensure_future(session.close())
        await asyncio.sleep(1)
        closing.cancel()
        await asyncio.wait([closing])
        assert isinstance(await outcome_of(call), (DeliveryUnknownError, SessionClosedError))


async def test_a_call_cancelled_by_its_caller_stays_cancelled_when_the_session_closes() -> None:
    async with Sandbox(latency=9.0) as market:
        session = session_of(market)

        async def impatient() -> None:
            async with asyncio.timeout(2):
                await session.send_message(1, "a")

        call = asyncio.ensure_future(impatient())
        await asyncio.sleep(1)
        await asyncio.gather(session.close(grace=1), asyncio.sleep(0))
        result = await outcome_of(call)
        assert isinstance(result, (TimeoutError, DeliveryUnknownError))


# send_many


def numbered(number: int, chats: int = 7) -> Iterator[OutgoingMessage]:
    return (OutgoingMessage(i % chats + 1, f"{i}", ref=i) for i in range(number))


async def asynchronous(messages: Iterator[OutgoingMessage]) -> AsyncIterator[OutgoingMessage]:
    for message in messages:
        await asyncio.sleep(0.01)
        yield message


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_send_many_reports_each_message_once(kind: str) -> None:
    messages: Any = numbered(600)
    if kind == "list":
        messages = list(messages)
    elif kind == "async generator":
        messages = asynchronous(messages)
    async with Sandbox(latency=0.01) as market, session_of(market) as session:
        outcomes = await outcomes_of(session.send_many(messages))
        assert sorted(outcome.message.ref for outcome in outcomes) == list(range(600))
        assert {outcome.status for outcome in outcomes} == {"delivered"}
        assert all(type(outcome) is Delivered for outcome in outcomes)
        assert stored(market) == {c: [f"{i}" for i in range(c - 1, 600, 7)] for c in range(1, 8)}


async def test_send_many_of_nothing_ends_at_once() -> None:
    async with Sandbox() as market, session_of(market) as session:
        assert await outcomes_of(session.send_many([])) == []
        assert await outcomes_of(session.send_many(asynchronous(iter([])))) == []


async def test_send_many_yields_outcomes_as_messages_end() -> None:
    latency = iter([5.0, 0.1])
    async with Sandbox(latency=lambda: next(latency)) as market, session_of(market) as session:
        outcomes = await outcomes_of(session.send_many(numbered(2)))
        assert [outcome.message.ref for outcome in outcomes] == [1, 0]


async def test_failed_message_of_send_many_is_an_outcome() -> None:
    plan = {2: Fault("status", status=404), 3: Fault("reset")}
    messages = [
        OutgoingMessage(1, "good"),
        OutgoingMessage(2, "refused"),
        OutgoingMessage(3, "unknown"),
        OutgoingMessage(0, "wrong id"),
        OutgoingMessage(5, ""),
        "no message",
        None,
        OutgoingMessage(7, "good"),
    ]
    async with Sandbox(faults=plan) as market:
        async with session_of(market, retry=RAISE_UNKNOWN) as session:
            outcomes = await outcomes_of(session.send_many(messages))  # type: ignore[arg-type]  # on purpose
        found = {
            getattr(outcome.message, "chat_id", 6): (
                outcome.status,
                None if outcome.status == "delivered" else type(outcome.error).__name__,
            )
            for outcome in outcomes
        }
        assert len(outcomes) == len(messages)
        assert found == {
            1: ("delivered", None),
            2: ("refused", "NotFoundError"),
            3: ("unknown", "DeliveryUnknownError"),
            0: ("refused", "InvalidArgumentError"),
            5: ("refused", "InvalidArgumentError"),
            6: ("refused", "InvalidArgumentError"),
            7: ("delivered", None),
        }


async def test_error_of_the_iterable_is_raised_after_the_outcomes_before_it() -> None:
    def broken() -> Iterator[OutgoingMessage]:
        yield from numbered(300)
        raise RuntimeError("the file ends here")

    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        outcomes = []
        with pytest.raises(RuntimeError, match="the file ends here"):
            async for outcome in session.send_many(broken()):
                outcomes.append(outcome)
        assert len(outcomes) == 300
        assert market.messages_stored == 300


async def test_cancellation_inside_the_iterable_ends_send_many() -> None:
    async def cancelled() -> AsyncIterator[OutgoingMessage]:
        yield OutgoingMessage(1, "a")
        task = asyncio.ensure_future(asyncio.sleep(HOUR))
        task.cancel()
        await task

    async with Sandbox() as market, session_of(market) as session:
        outcomes = []
        try:
            async with asyncio.timeout(HOUR):
                async for outcome in session.send_many(cancelled()):
                    outcomes.append(outcome)
        except TimeoutError:
            pytest.fail("the loop waits for ever")
        except (ChatError, RuntimeError, asyncio.CancelledError):
            pass
        assert [outcome.status for outcome in outcomes] == ["delivered"]


async def test_settling_does_not_delay_messages_to_other_chats() -> None:
    plan = {number: Fault("status", status=502) for number in range(1, 41)}
    async with Sandbox(faults=plan, latency=0.1) as market, session_of(market) as session:
        others = 0
        async for outcome in session.send_many(numbered(200, chats=200)):
            assert outcome.status == "delivered"
            others += now() < 15  # until then nobody has looked up the first of the 40
        assert others == 160


async def test_retry_pauses_do_not_delay_messages_to_other_chats() -> None:
    def overloaded(request: RequestInfo) -> Fault | None:
        return Fault("status", status=503) if request.chat_id == 1 and now() < end else None

    end = now() + 100
    one = Limits(parallel=1)
    async with Sandbox(faults=overloaded) as market, session_of(market, limits=one) as session:
        outcomes = session.send_many(numbered(50, chats=50))
        others = [(await anext(outcomes)).message.ref for _ in range(49)]
        assert others == [*range(1, 50)]
        assert now() < end - 90
        assert (await anext(outcomes)).status == "delivered"


async def test_send_many_uses_the_parallel_slots_freed_by_single_calls() -> None:
    """The only request of send_many hangs, so an answer to a single call must start the next."""
    latency = iter([1.0, 1.0, 1.0, 9.0])
    async with Sandbox(latency=lambda: next(latency, 0.1)) as market:
        async with session_of(market) as session:
            singles = [
                asyncio.ensure_future(session.send_message(i, "single")) for i in (11, 12, 13)
            ]
            await asyncio.sleep(0.5)
            started = now()
            ended = [now() - started async for _ in session.send_many(numbered(7))]
            await asyncio.gather(*singles)
            assert 0.5 < ended[0] < ended[-2] < 1
            assert 9 <= ended[-1] < 10


async def test_slow_source_does_not_delay_outcomes() -> None:
    async def trickle() -> AsyncIterator[OutgoingMessage]:
        for message in numbered(20):
            await asyncio.sleep(3)
            yield message

    async with Sandbox(latency=8.0) as market, session_of(market) as session:
        started = now()
        ended = [now() - started async for _ in session.send_many(trickle())]
        assert ended == pytest.approx([3 * i + 8 for i in range(1, 21)], abs=0.1)


async def test_parallel_slot_of_a_cancelled_call_is_reused() -> None:
    latency = iter([1.0, 9.0])
    two = Limits(parallel=2)
    async with Sandbox(latency=lambda: next(latency, 0.1)) as market:
        async with session_of(market, limits=two) as session:

            async def first() -> None:
                await session.send_message(100, "single")
                second.cancel()  # in the pass in which it was let go

            started = now()
            single = asyncio.ensure_future(first())
            bulk = asyncio.ensure_future(outcomes_of(session.send_many(numbered(20, chats=20))))
            await asyncio.sleep(0.1)
            second = asyncio.ensure_future(session.send_message(101, "single"))
            await asyncio.gather(single, bulk)
            times = [arrival.time - started for arrival in market.arrivals]
            assert times[-1] < 4


async def test_async_source_can_use_the_session() -> None:
    async def asking() -> AsyncIterator[OutgoingMessage]:
        for message in numbered(100):
            yield message
            await session.get_chat(1)
            await session.send_message(message.chat_id, f"behind {message.text}")

    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        outcomes = await outcomes_of(session.send_many(asking()))
        assert sorted(outcome.message.ref for outcome in outcomes) == [*range(100)]
        for chat_id in market.chat_ids:
            sent = texts(market, chat_id)
            assert sent[1::2] == [f"behind {text}" for text in sent[::2]]


async def test_source_runs_in_the_context_of_the_caller() -> None:
    async def reading() -> AsyncIterator[OutgoingMessage]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR):  # of one task: entered and left in the same
                for message in numbered(50):
                    seen.add(who.get())
                    yield message
                await asyncio.sleep(2 * HOUR)

    def generator() -> Iterator[OutgoingMessage]:
        for message in numbered(50):
            seen.add(who.get())
            yield message

    async def somebody_else() -> None:
        who.set("somebody else")
        for i in range(100):
            await session.send_message(50 + i, "single")

    who: ContextVar[str] = ContextVar("who", default="nobody")
    seen: set[str] = set()
    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        others = [asyncio.ensure_future(somebody_else()) for _ in range(3)]
        who.set("me")
        for source in (reading(), generator()):
            assert len(await outcomes_of(session.send_many(source))) == 50
        await asyncio.gather(*others)
    assert seen == {"me"}


@pytest.mark.parametrize("kind", ["iterable", "async iterable"])
async def test_any_exception_of_the_iterable_ends_send_many(kind: str) -> None:
    class OutOfOrder(BaseException):
        pass

    def broken() -> Iterator[OutgoingMessage]:
        yield OutgoingMessage(1, "a")
        raise OutOfOrder

    async def broken_too() -> AsyncIterator[OutgoingMessage]:
        for message in broken():
            yield message

    messages = broken() if kind == "iterable" else broken_too()
    async with Sandbox() as market, session_of(market) as session:
        outcomes = []
        with pytest.raises(OutOfOrder):
            async for outcome in session.send_many(messages):
                outcomes.append(outcome.status)
        assert outcomes == ["delivered"]


async def test_leaving_the_loop_finishes_requests_and_sends_nothing_more() -> None:
    read = []

    def messages() -> Iterator[OutgoingMessage]:
        for message in numbered(100_000, chats=1000):
            read.append(message)
            yield message

    async with Sandbox(latency=1.0) as market, session_of(market) as session:
        outcomes = session.send_many(messages())
        async for _ in outcomes:
            break
        await outcomes.aclose()
        arrived = len(market.arrivals)
        assert arrived <= 8
        assert market.messages_stored == arrived
        await asyncio.sleep(10)
        assert len(market.arrivals) == arrived
        assert len(read) <= 257
        await session.send_message(1, "the session goes on")


async def test_send_many_stops_reading_while_outcomes_are_not_taken() -> None:
    read = []

    def messages() -> Iterator[OutgoingMessage]:
        for message in numbered(100_000, chats=1000):
            read.append(message)
            yield message

    async with Sandbox() as market, session_of(market) as session:
        outcomes = session.send_many(messages())
        assert read == []
        await anext(outcomes)
        await asyncio.sleep(HOUR)
        assert len(read) <= 258
        for _ in range(50):
            await anext(outcomes)
        await asyncio.sleep(HOUR)
        assert len(read) <= 308
        await outcomes.aclose()
        assert market.messages_stored <= 308


async def test_send_many_refuses_the_rest_after_a_401() -> None:
    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        statuses: list[str] = []
        async for outcome in session.send_many(numbered(1000, chats=500)):
            statuses.append(outcome.status)
            market.revoked = len(statuses) >= 100
            if outcome.status == "refused":
                assert isinstance(outcome.error, UnauthorizedError)
                assert outcome.error.sent is False
        assert len(statuses) == 1000
        assert sum(a.status == 401 for a in market.arrivals) <= 4
        assert market.messages_stored == statuses.count("delivered") <= 110
        market.revoked = False
        await session.send_message(1, "single calls are not refused unseen")


@pytest.mark.parametrize("reserve", [-1, 1000, True, 1.5, None])
async def test_invalid_reserve_is_refused(reserve: Any) -> None:
    async with Sandbox() as market, session_of(market) as session:
        with pytest.raises(InvalidArgumentError):
            session.send_many([], reserve=reserve)
        with pytest.raises(InvalidArgumentError):
            session.send_many(5)  # type: ignore[arg-type]  # on purpose


async def test_closing_the_session_ends_send_many_in_another_task() -> None:
    async with Sandbox(latency=0.1) as market:
        session = session_of(market)
        outcomes = []

        async def many() -> None:
            endless = (OutgoingMessage(i % 50 + 1, "a") for i in itertools.count())
            async for outcome in session.send_many(endless):
                outcomes.append(outcome)

        sending = asyncio.ensure_future(many())
        await asyncio.sleep(5)
        await session.close()
        async with asyncio.timeout(HOUR):
            try:
                await asyncio.shield(sending)
            except SessionClosedError:
                pass
            except TimeoutError:
                pytest.fail("the loop waits for ever")
        delivered = sum(outcome.status == "delivered" for outcome in outcomes)
        assert delivered == market.messages_stored > 150
        assert {o.status for o in outcomes} <= {"delivered", "refused"}


async def test_closing_inside_the_send_many_loop_ends_it() -> None:
    async with Sandbox(latency=0.1) as market:
        session = session_of(market)
        outcomes = []
        with pytest.raises((SessionClosedError, StopAsyncIteration)):
            async with asyncio.timeout(HOUR):
                many = session.send_many(numbered(10**9, chats=1000))
                while True:
                    outcomes.append(await anext(many))
                    if len(outcomes) == 10:
                        await session.close()
        assert market.messages_stored == sum(o.status == "delivered" for o in outcomes)
