"""What fails in one call stays there: its places, its key, its loop and its process."""

from __future__ import annotations

import asyncio
import io
import linecache
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from tests import virtual
from tests.helpers import KEY, error_of, outcome_of, session_of, texts
from yamarket_chat import (
    ChatSession,
    ConnectionFailedError,
    DeliveryUnknownError,
    Limits,
    Rate,
    Receipt,
)
from yamarket_chat._delivery.calls import Calls
from yamarket_chat._delivery.sending import Sending
from yamarket_chat._http.exchange import Exchange
from yamarket_chat._limits.scheduler import Scheduler
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults

# B17: whatever fails on the way of a message gives back what it took.

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
    """A failure that nobody has thought of."""


class Lines:
    """Counts the lines of the way that run, and raises Boom in place of one of them."""

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
    """Send three messages, of which one fails at a line, and then look whether all is as before."""
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
def test_whatever_line_fails_all_other_messages_go_and_none_twice(way: str) -> None:
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


async def equal_text_after_a_failure(line: int | None) -> list[str]:
    """Send a text of which the answer comes, and the same again, which is lost on its way."""
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


def test_what_follows_a_failure_does_not_take_its_row_for_its_own() -> None:
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
async def test_a_log_handler_that_fails_holds_up_nobody_else(fault: Fault) -> None:
    faults = numbered_faults(dict.fromkeys(range(1, 7), fault), operation="send_message")
    async with Sandbox(faults=faults) as market:
        session = session_of(market)
        for number in range(6):  # more than there are parallel places
            outcome = await outcome_of(session.send_message(number + 1, "one"))
            assert isinstance(outcome, Boom)
        async with asyncio.timeout(300):
            await asyncio.gather(*(session.send_message(n + 1, "after") for n in range(6)))
            await session.close()
        assert [texts(market, n + 1)[-1] for n in range(6)] == ["after"] * 6


@pytest.mark.usefixtures("refusing_log")
async def test_a_log_handler_that_fails_leaves_no_wait_behind() -> None:
    """The warning of a long wait is logged in the midst of beginning to wait."""
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
async def test_a_file_that_breaks_is_refused_and_holds_up_nobody(kind: type[io.BytesIO]) -> None:
    async with Sandbox() as market, session_of(market) as session:
        for _ in range(6):
            error = await error_of(session.send_file(1, kind(b"12345"), filename="a.txt"))
            assert type(error) is ConnectionFailedError
            assert error.sent is False
        async with asyncio.timeout(5):
            await session.send_message(1, "after")
        assert texts(market, 1) == ["after"]


# B12: each thread has its loop, and each process its sessions.


@pytest.mark.real_time
def test_threads_with_a_loop_each_open_sessions_side_by_side() -> None:
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
def test_a_child_that_was_forked_sends_nothing_by_its_parents_session() -> None:
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "['parent', 'parent again'] 2\n", done.stderr
