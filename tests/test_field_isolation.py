"""A failure in one call does not affect others: slots, the key, event loops and processes."""

from __future__ import annotations

import ast
import asyncio
import io
import linecache
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from re._constants import MAXREPEAT  # type: ignore[import-not-found]  # what `re` itself parses with
from re._parser import SubPattern, parse  # type: ignore[import-not-found]
from types import FrameType
from typing import Any

import msgspec
import pytest
from aiohttp import web

import yamarket_chat
from tests import virtual
from tests.helpers import KEY, error_of, http_server, outcome_of, outcomes_of, session_of, texts
from yamarket_chat import (
    ChatSession,
    ConnectionFailedError,
    Delivered,
    DeliveryUnknownError,
    File,
    InvalidArgumentError,
    LimitExceededError,
    Limits,
    OutgoingMessage,
    Pending,
    Rate,
    Receipt,
    Retry,
)
from yamarket_chat._delivery.calls import Calls
from yamarket_chat._delivery.sending import Sending
from yamarket_chat._delivery.settling import SPACES, content_of_text
from yamarket_chat._http import uploads
from yamarket_chat._http.exchange import Exchange
from yamarket_chat._limits.scheduler import Scheduler
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults
from yamarket_chat.secret import Secret

# Whatever fails during a send, the call releases what it holds.

THE_WAY = {
    function.__code__: function.__qualname__
    for function in (
        Sending._send,
        Sending._arrived,
        Calls.call,
        Calls.pause,
        Scheduler.try_admit,
        Scheduler.admit,
        Scheduler.pause,
        Exchange.send,
    )
}


class Boom(Exception):
    """An unforeseen failure."""


class Lines:
    """Counts the executed lines of a send, and raises Boom instead of one of them."""

    def __init__(self, fail_at: int | None) -> None:
        self.fail_at = fail_at
        self.ran: list[str] = []

    def trace(self, frame: FrameType, _: str, __: object) -> Any:
        return self._line if frame.f_code in THE_WAY else None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and not leaves_with(frame):
            self.ran.append(f"{THE_WAY[frame.f_code]}:{frame.f_lineno}")
            if len(self.ran) - 1 == self.fail_at:
                raise Boom(self.ran[-1])
        return self._line


def leaves_with(frame: FrameType) -> bool:
    """A block of `with` is left on the line that began it. Only its `__exit__` runs there."""
    line = frame.f_lineno
    if not linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("with "):
        return False
    return frame.f_lasti > min(start for start, _, at in frame.f_code.co_lines() if at == line)


@contextmanager
def failing_at(line: int | None) -> Iterator[Lines]:
    lines = Lines(line)
    before = sys.gettrace()
    sys.settrace(lines.trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


LATER = Fault("reset", when="later", delay=9.9)
WAYS: dict[str, dict[int, Fault]] = {
    "answered": {},
    "refused over time": {1: Fault("rate_limit", delay=30)},
    "refused in parallel": {1: Fault("parallel_limit")},
    "refused for now": {1: Fault("status", status=503)},
    "refused for good": {1: Fault("status", status=400)},
    "lost before": {1: Fault("reset")},
    "lost after": {1: Fault("reset", when="after")},
    "lost and stored later": {1: LATER},
}
SENT = [(1, "one"), (2, "two"), (1, "three")]


async def send_with_a_failure(way: str, line: int | None) -> list[str]:
    """Send three messages, of which one fails at a line. Then check that nothing is left behind."""
    faults = numbered_faults(WAYS[way], operation="send_message")
    limits = Limits(parallel=1)
    async with Sandbox(faults=faults, latency=0.1) as market:
        session = session_of(market, limits=limits)
        with failing_at(line) as lines:
            calls = [asyncio.create_task(session.send_message(*each)) for each in SENT]
            await asyncio.sleep(1)
            cancelled = asyncio.create_task(session.send_message(2, "cancelled"))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            async with asyncio.timeout(300):
                outcomes = await asyncio.gather(*map(outcome_of, calls))
                await outcome_of(cancelled)
        for chat_id in (1, 2, 3):
            async with asyncio.timeout(300):
                await session.send_message(chat_id, "after")
        async with asyncio.timeout(60):
            await session.close()
        failed = [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
        assert len(failed) <= (line is not None) + (way == "refused for good")
        await asyncio.sleep(30)
        for (chat_id, text), outcome in zip(SENT, outcomes, strict=True):
            count = texts(market, chat_id).count(text)
            assert count == 1 if isinstance(outcome, Receipt) else count <= 1
        for chat_id in (1, 2, 3):
            assert texts(market, chat_id)[-1] == "after"
            assert texts(market, chat_id).count("after") == 1
        return lines.ran


@pytest.mark.parametrize("way", WAYS)
def test_failure_at_any_line_neither_stops_nor_doubles_other_messages(way: str) -> None:
    usual = [] if way == "answered" else virtual.run(send_with_a_failure("answered", None))
    ran = virtual.run(send_with_a_failure(way, None))
    at = {name: line for line, name in reversed(list(enumerate(ran))) if name not in usual}
    assert len(at) > (60 if way == "answered" else 4)
    wrong = {}
    for name, line in at.items():
        try:
            virtual.run(send_with_a_failure(way, line))
        except Exception as error:  # noqa: BLE001 - all of them are told
            wrong[name] = repr(error)
    assert wrong == {}


async def send_many_with_a_failure(line: int | None) -> list[str]:
    """Send many messages, of which one fails at a line. It is raised, and the session goes on."""
    messages = [OutgoingMessage(1 + number % 3, str(number)) for number in range(9)]
    async with Sandbox(latency=0.1) as market:
        session = session_of(market)
        with failing_at(line) as lines:
            async with asyncio.timeout(300):
                outcome = await outcome_of(outcomes_of(session.send_many(messages)))
        assert isinstance(outcome, list if line is None else (list, Boom))
        async with asyncio.timeout(300):
            outcomes = await outcomes_of(
                session.send_many(OutgoingMessage(n + 1, "after") for n in range(3))
            )
            assert [type(each) for each in outcomes] == [Delivered] * 3
            await session.close()
        await asyncio.sleep(30)
        for chat_id in (1, 2, 3):
            told = texts(market, chat_id)
            assert told[-1] == "after"
            assert len(told) == len(set(told))
        return lines.ran


def test_a_failure_in_send_many_is_raised_and_the_session_goes_on() -> None:
    ran = virtual.run(send_many_with_a_failure(None))
    at = {name: line for line, name in reversed(list(enumerate(ran)))}
    for line in at.values():
        virtual.run(send_many_with_a_failure(line))


async def equal_text_after_a_failure(line: int | None) -> list[str]:
    """Send a text that is answered, and the same text again, which gets lost."""
    async with Sandbox() as market, session_of(market) as session:
        with failing_at(line) as lines:
            await outcome_of(session.send_message(1, "same"))
        await asyncio.sleep(0.1)
        before = len(texts(market, 1))
        number = market.requests("send_message") + 1
        market.faults = numbered_faults({number: Fault("reset")}, operation="send_message")
        second = await outcome_of(session.send_message(1, "same"))
        if not isinstance(second, DeliveryUnknownError):
            assert isinstance(second, Receipt)
            assert len(texts(market, 1)) == before + 1
        return lines.ran


def test_message_after_a_failed_one_does_not_claim_its_history_row() -> None:
    ran = virtual.run(equal_text_after_a_failure(None))
    for line in range(len(ran)):
        virtual.run(equal_text_after_a_failure(line))


class Refusing(logging.Handler):
    """A log handler of the caller's that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        raise Boom(record.getMessage())


@pytest.fixture
def refusing_log() -> Iterator[None]:
    logger, handler = logging.getLogger("yamarket_chat"), Refusing()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.usefixtures("refusing_log")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("rate_limit", delay=30),
        Fault("parallel_limit"),
        Fault("status", status=503),
        Fault("reset"),
        Fault("reset", when="after"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.when}",
)
async def test_failing_log_handler_does_not_block_other_calls(fault: Fault) -> None:
    faults = numbered_faults(dict.fromkeys(range(1, 7), fault), operation="send_message")
    async with Sandbox(faults=faults) as market:
        session = session_of(market)
        for number in range(6):  # more than there are parallel slots
            outcome = await outcome_of(session.send_message(number + 1, "one"))
            assert isinstance(outcome, Boom)
        async with asyncio.timeout(300):
            await asyncio.gather(*(session.send_message(n + 1, "after") for n in range(6)))
            await session.close()
        assert [texts(market, n + 1)[-1] for n in range(6)] == ["after"] * 6


@pytest.mark.usefixtures("refusing_log")
async def test_failing_log_handler_leaves_no_waiting_call_behind() -> None:
    """The session logs the warning of a long wait while the call begins to wait."""
    limits = Limits(send_message=Rate(1, per=3600))
    async with Sandbox() as market:
        session = session_of(market, limits=limits)
        await session.send_message(1, "one")
        with pytest.raises(Boom):
            await session.send_message(1, "two")
        assert session.quota_status("send_message").waiting == 0
        async with asyncio.timeout(1):
            await session.close()
        assert texts(market, 1) == ["one"]


class Breaking(io.BytesIO):
    """A file of the caller's that fails when it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise Boom("broken")


class Odd(io.BytesIO):
    """A file of the caller's that has no bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        return "text"  # type: ignore[return-value]  # that is the point


@pytest.mark.parametrize("kind", [Breaking, Odd])
async def test_file_read_error_fails_one_message_and_blocks_no_other(
    kind: type[io.BytesIO],
) -> None:
    async with Sandbox() as market, session_of(market) as session:
        for _ in range(6):
            error = await error_of(session.send_file(1, kind(b"12345"), filename="a.txt"))
            assert type(error) is ConnectionFailedError
            assert error.sent is False
        async with asyncio.timeout(5):
            await session.send_message(1, "after")
        assert texts(market, 1) == ["after"]


# Each thread has its own event loop, and each process its own sessions.


class Hanging(io.BytesIO):
    """A file on a network drive that does not answer."""

    def __init__(self) -> None:
        super().__init__(b"never")
        self.calls = 0
        self.answers = threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.calls += 1
        self.answers.wait(20)
        return super().read(size)


@pytest.mark.real_time
async def test_a_file_whose_reading_hangs_holds_up_no_other_and_no_thread_but_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "HANGS", 0.2)
    retry = Retry()
    msgspec.structs.force_setattr(retry, "settle_after", 0.1)  # on the real clock
    file = Hanging()
    async with Sandbox() as market, session_of(market, timeout=0.5, retry=retry) as session:
        hangs = asyncio.ensure_future(error_of(session.send_file(1, file, filename="a")))
        try:
            while not file.calls:
                await asyncio.sleep(0.01)
            receipt = await session.send_file(2, b"whole", filename="b")
            assert (receipt.confirmed_by, receipt.requests) == ("answer", 1)
            error = await hangs
        finally:
            file.answers.set()
        assert error.sent is False
        assert "cannot be read" in str(error)
        assert file.calls == 1


@pytest.mark.real_time
async def test_an_open_file_that_hangs_fails_its_own_calls_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "HANGS", 0.1)
    file = Hanging()
    once = Retry(attempts=1, on_unknown="raise")
    async with Sandbox() as market, session_of(market, timeout=0.4, retry=once) as session:
        first = asyncio.ensure_future(error_of(session.send_file(1, file, filename="a")))
        try:
            while not file.calls:
                await asyncio.sleep(0.01)
            second = asyncio.ensure_future(error_of(session.send_file(2, file, filename="a")))
            receipt = await session.send_file(3, io.BytesIO(b"whole"), filename="b")
            assert (receipt.confirmed_by, receipt.requests) == ("answer", 1)
            waited = await second
            requests = market.requests("send_file")
            third = await error_of(session.send_file(4, file, filename="a"))  # at once
            assert isinstance(third, InvalidArgumentError)
            assert market.requests("send_file") == requests
            for error in (waited, third):
                assert error.sent is False
                assert "hangs" in str(error)
            await first
            assert file.calls == 1  # so one thread hangs
        finally:
            file.answers.set()
        while isinstance(
            outcome := await outcome_of(session.send_file(4, file, filename="a")),
            InvalidArgumentError,
        ):
            await asyncio.sleep(0.01)
        assert isinstance(outcome, Receipt)  # the mount is back


@pytest.mark.real_time
def test_sessions_in_several_threads_work_in_parallel() -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    async def open_sessions() -> None:
        for _ in range(20):  # several at a time are open in each thread
            sessions = [ChatSession(KEY, n + 1, base_url="http://127.0.0.1:9") for n in range(25)]
            for session in sessions:
                assert session.quota_status("send_message").remaining == 1000
            for session in sessions:
                await session.close()

    def work() -> None:
        try:
            start.wait()
            asyncio.run(open_sessions())
        except BaseException as error:  # noqa: BLE001 - all of them are told
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


FORKED = """
import asyncio, os, sys, threading, traceback
from yamarket_chat import ChatError, ChatSession, InvalidArgumentError
from yamarket_chat.secret import Secret
from yamarket_chat.sandbox import Sandbox

CALLS = [
    lambda session: session.send_message(1, "child"),
    lambda session: session.get_chat(1),
    lambda session: anext(aiter(session.history(1))),
    lambda session: anext(aiter(session.send_many([]))),
    lambda session: session.close(),
]

async def child(session):
    for call in CALLS:
        try:
            await call(session)
        except InvalidArgumentError as error:
            assert "forked" in str(error), error
        else:
            return 1
    async with ChatSession("own", 1, base_url="http://127.0.0.1:9") as own:
        assert own.quota_status("send_message").remaining == 1000
    return 0

def in_thread(session):
    # With the same thread, and with one that may have got the number of the parent's.
    codes = []
    thread = threading.Thread(target=lambda: codes.append(asyncio.run(child(session))))
    thread.start()
    thread.join()
    return codes[0]

async def main():
    async with Sandbox() as market:
        session = ChatSession(market.api_key, market.business_id, base_url=market.url)
        await session.send_message(1, "parent")
        for run in (lambda: asyncio.run(child(session)), lambda: in_thread(session)):
            pid = os.fork()
            if not pid:
                code = 2
                try:
                    code = run()
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    break
                await asyncio.sleep(0.01)
            assert status == 0, status
        await session.send_message(1, "parent again")
        await session.close()
        print([message.text for message in market.messages(1)], len(market.arrivals))

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_cannot_send_with_the_session_of_its_parent() -> None:
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "['parent', 'parent again'] 2\n", done.stderr


COLLECTING = """
import asyncio, gc, os
from yamarket_chat import ChatSession
from yamarket_chat.sandbox import Sandbox

async def main():
    async with Sandbox() as market:
        sessions = [ChatSession(market.api_key, 12345, base_url=market.url, timeout=1)]
        await sessions[0].send_message(1, "one")
        pid = os.fork()
        if not pid:
            sessions.clear()
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        receipt = await sessions[0].send_message(1, "two", on_unknown="raise")
        print(receipt.confirmed_by, receipt.requests)
        await sessions[0].close()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_collects_its_parents_session_leaves_the_parents_connections() -> None:
    """Parent and child share one epoll: closed there, a connection would be silent here."""
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-W", "ignore", "-c", COLLECTING],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "answer 1\n", done.stderr


async def test_a_session_that_cannot_open_holds_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was counted as open, and sessions with other limits were refused for ever."""

    def fails(**_: object) -> None:
        raise OSError("no certificates")

    async with Sandbox() as market:
        with monkeypatch.context() as patched:
            patched.setattr("yamarket_chat._http.exchange.connector", fails)
            with pytest.raises(OSError, match="no certificates"):
                await session_of(market).send_message(1, "hi")
        async with session_of(market, limits=Limits(parallel=1)) as session:
            await session.send_message(1, "hi")


# No frame of an error's traceback shows the key.

HERE = str(Path(__file__).parent)


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and all its causes."""
    found, ahead = [], [error]
    while ahead:
        error = ahead.pop()
        if error not in found:
            found.append(error)
            ahead += filter(None, [error.__cause__, error.__context__])
    return found


def frames_with_the_key(error: BaseException, key: str = KEY) -> list[str]:
    """The variables that show the key, in all frames but those of the tests."""
    found = []
    for each in chain(error):
        assert key not in repr(each) + str(each) + repr(vars(each))
        for frame, line in traceback.walk_tb(each.__traceback__):
            if not frame.f_code.co_filename.startswith(HERE):
                place = f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}"
                found += [
                    f"{place}: {name}"
                    for name, value in frame.f_locals.items()
                    if key in repr(value) or (isinstance(value, str) and key in value)
                ]
    return found


SETTINGS: list[Callable[[], object]] = [
    lambda: ChatSession(f"{KEY} ", 1),
    lambda: ChatSession(f"Bearer {KEY}", 1),
    lambda: ChatSession(f"{KEY}\n", 1),
    lambda: ChatSession(KEY, 0),
    lambda: ChatSession(KEY, "cabinet"),
    lambda: ChatSession(KEY, 1, base_url="nonsense"),
    lambda: ChatSession(KEY, 1, base_url="https://[1"),
    lambda: ChatSession(KEY, 1, base_url="https://xn--"),
    lambda: ChatSession(KEY, 1, base_url="https://[]@"),
    lambda: ChatSession("12345", 1, proxy=f"http://user:{KEY}@xn--:1"),
    lambda: ChatSession(KEY, 1, base_url=f"https://user:{KEY}@localhost"),
    lambda: ChatSession(KEY, 1, base_url="http://example.com"),
    lambda: ChatSession(KEY, 1, base_url=KEY),
    lambda: ChatSession(KEY, 1, integration=""),
    lambda: ChatSession(KEY, 1, integration=KEY * 9),
    lambda: ChatSession(KEY, 1, timeout=-1),
    lambda: ChatSession(KEY, 1, max_wait=-1),
    lambda: ChatSession(KEY, 1, limits=7),  # type: ignore[arg-type]  # on purpose, as below
    lambda: ChatSession(KEY, 1, http=7),  # type: ignore[arg-type]
    lambda: ChatSession("12345", KEY),
    lambda: ChatSession(KEY.encode(), 1),  # type: ignore[arg-type]
    lambda: ChatSession([KEY], 1),  # type: ignore[arg-type]
    lambda: ChatSession(KEY, [KEY]),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", SETTINGS)
def test_no_frame_shows_the_key_when_a_setting_is_invalid(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        make()
    assert frames_with_the_key(caught.value) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"YAMARKET_API_KEY": f"{KEY} "},
        {"YAMARKET_API_KEY": KEY, "YAMARKET_BUSINESS_ID": "x"},
        {"YAMARKET_API_KEY": KEY, "YAMARKET_BUSINESS_ID": KEY},
        {"YAMARKET_API_KEY": KEY, "YAMARKET_BASE_URL": KEY},
        {"YAMARKET_API_KEY": KEY, "YAMARKET_BASE_URL": "ftp://localhost"},
    ],
)
def test_no_frame_shows_the_key_of_the_environment(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidArgumentError) as caught:
        ChatSession()
    assert frames_with_the_key(caught.value) == []


@pytest.mark.parametrize(
    "proxy", ["socks5://user:pass-word@proxy:1080", "http://a:pass-word@xn--:1"]
)
async def test_no_frame_shows_the_password_of_the_environments_proxy(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    error = await error_of(ChatSession(KEY, 1, base_url="https://a.test").get_chat(1))
    assert isinstance(error, InvalidArgumentError)
    assert frames_with_the_key(error, "pass-word") == frames_with_the_key(error) == []


async def test_no_frame_shows_the_password_of_a_proxy_if_the_limits_are_others() -> None:
    proxy = "http://user:pass-word@proxy:1"
    async with ChatSession(KEY, 1, base_url="https://a.test"):
        other = ChatSession(
            KEY, 1, base_url="https://a.test", proxy=proxy, limits=Limits(parallel=3)
        )
        error = await error_of(other.get_chat(1))
        assert isinstance(error, InvalidArgumentError)
        assert frames_with_the_key(error, "pass-word") == []


PENDING = Pending(business_id=12345, chat_id=1, text="x", requests=1, seen="")
Call = Callable[[ChatSession], Awaitable[object]]


async def first_page(session: ChatSession) -> object:
    return await anext(aiter(session.history(1)))


CALLS: dict[str, Call] = {
    "a message": lambda session: session.send_message(1, "hello"),
    "a file": lambda session: session.send_file(1, b"12345", filename="a.txt"),
    "a read": lambda session: session.get_chat(1),
    "a page": first_page,
    "another method": lambda session: session.request("POST", "/v2/x", json={}),
    "settling": lambda session: session.settle(PENDING),
}


async def echoing(request: web.BaseRequest, status: int) -> web.StreamResponse:
    """A server, or a proxy in front of it, that echoes the request in its answer."""
    key = request.headers.get("Api-Key", "")
    headers = {"X-Echo": key, "X-RateLimit-Resource-Limit": "1000"}
    text = f"{key}: Hit rate limit of 5 requests"
    errors = [{"code": key, "message": text}]
    return web.json_response({"status": "ERROR", "errors": errors}, status=status, headers=headers)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_no_frame_shows_the_key_when_the_market_refuses(call: Call) -> None:
    answers = iter((200, 302, 400, 401, 403, 404, 418, 423, 500, 503))
    status = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await echoing(request, status)

    retry = Retry(attempts=2, on_unknown="raise")
    async with (
        http_server(handle) as url,
        ChatSession(KEY, 12345, base_url=url, retry=retry) as session,
    ):
        for status in answers:  # noqa: B007 - the server reads it
            assert frames_with_the_key(await error_of(call(session))) == []
        status = 420
        error = await outcome_of(asyncio.wait_for(call(session), timeout=5))
        assert isinstance(error, (TimeoutError, LimitExceededError, DeliveryUnknownError))
        assert frames_with_the_key(error) == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("fault", [Fault("reset"), Fault("half_body"), Fault("no_answer"), None])
async def test_no_frame_shows_the_key_when_there_is_no_answer(
    call: Call, fault: Fault | None
) -> None:
    retry = Retry(attempts=2, on_unknown="raise")
    async with Sandbox(api_key=KEY, faults=lambda _: fault) as market:
        url = "http://127.0.0.1:9" if fault is None else market.url
        async with ChatSession(KEY, 12345, base_url=url, retry=retry) as session:
            assert frames_with_the_key(await error_of(call(session))) == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("end", ["cancel", "timeout", "close", "closed"])
async def test_no_frame_shows_the_key_when_a_call_is_cancelled_or_closed(
    call: Call, end: str
) -> None:
    async with Sandbox(api_key=KEY, latency=8) as market:
        session = session_of(market)
        if end == "closed":
            await session.close()
        wait = 1.0 if end == "timeout" else None
        calling = asyncio.ensure_future(outcome_of(asyncio.wait_for(call(session), wait)))
        await asyncio.sleep(0.5)
        if end == "cancel":
            calling.cancel()
        if end == "close":
            await session.close(grace=0)
        error = await calling
        assert isinstance(error, BaseException)
        assert frames_with_the_key(error) == []
        await session.close()


@pytest.mark.parametrize("end", ["cancel", "timeout", "close", "refused", "unreachable", "large"])
async def test_no_frame_shows_the_key_when_a_download_fails(end: str) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if end == "refused":
            return await echoing(request, 404)
        response = web.StreamResponse(headers={"X-Echo": request.headers["Api-Key"]})
        await response.prepare(request)
        await response.write(b"x" * 2000)
        await asyncio.sleep(8)
        return response

    async with http_server(handle) as url:
        address = "http://127.0.0.1:9" if end == "unreachable" else url
        retry = Retry(attempts=1)
        session = ChatSession(KEY, 12345, base_url=address, retry=retry, timeout=30)
        file = File(name="a.txt", url=f"{address}/a.txt", size=10)
        loading = session.download(file, max_bytes=1000 if end == "large" else 10_000)
        wait = 1.0 if end == "timeout" else None
        calling = asyncio.ensure_future(outcome_of(asyncio.wait_for(loading, wait)))
        await asyncio.sleep(0.5)
        if end == "cancel":
            calling.cancel()
        if end == "close":
            await session.close(grace=0)
        error = await calling
        assert isinstance(error, BaseException)
        assert frames_with_the_key(error) == []
        await session.close()


async def test_no_frame_shows_the_key_when_the_limits_differ() -> None:
    async with Sandbox(api_key=KEY) as market, session_of(market) as session:
        await session.send_message(1, "hello")
        other = session_of(market, limits=Limits(parallel=1))
        error = await error_of(other.get_chat(1))
        assert type(error) is InvalidArgumentError
        assert frames_with_the_key(error) == []


def test_secret_shows_its_value_only_by_reveal() -> None:
    secret = Secret(KEY)
    shown = f"{secret} {secret!r} {[secret]} {vars(Secret)}"
    assert KEY not in shown
    assert secret.reveal() == KEY


# Input from outside is scanned in linear time.


def patterns() -> dict[str, str]:
    """Return all regular expressions of the package. Inserted values become a semicolon."""
    found = {}
    for path in Path(yamarket_chat.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
            ):
                pattern = node.args[0]
                parts = pattern.values if isinstance(pattern, ast.JoinedStr) else [pattern]
                texts = [part.value if isinstance(part, ast.Constant) else ";" for part in parts]
                found[f"{path.name}:{node.lineno}"] = "".join(
                    text.decode("latin-1") if isinstance(text, bytes) else str(text)
                    for text in texts
                )
    return found


def goes_back(parsed: Any) -> bool:
    """Whether a pattern has an unbounded repetition that may backtrack."""
    for operation, argument in parsed:
        if str(operation) in ("MAX_REPEAT", "MIN_REPEAT") and argument[1] == MAXREPEAT:
            return True
        inner = argument if isinstance(argument, (tuple, list)) else [argument]
        for part in inner:
            branches = part if isinstance(part, list) else [part]
            if any(isinstance(branch, SubPattern) and goes_back(branch) for branch in branches):
                return True
    return False


def test_regular_expressions_run_in_linear_time() -> None:
    found = patterns()
    assert len(found) >= 5
    assert {place: text for place, text in found.items() if goes_back(parse(text))} == {}


@pytest.mark.parametrize("pattern", ["a+", "(?:a|b*)c", "(?=x.*?)", "(a{3,})", '"(?:[^"]|"")*"'])
def test_check_finds_a_backtracking_regular_expression(pattern: str) -> None:
    assert goes_back(parse(pattern))


def test_outer_spaces_of_every_kind_are_ignored_when_texts_are_compared() -> None:
    """All that Python calls a space, and the control characters, which Java's trim also removes."""
    everything = map(chr, range(sys.maxunicode + 1))
    spaces = {c for c in everything if c.isspace() or c <= " "}
    assert set(SPACES) == spaces
    assert content_of_text(f"{SPACES}a {SPACES} b{SPACES}").text == f"a {SPACES} b"
