"""The memory and steps of waiting calls, send_many, chats and imports: counts, no seconds."""
# ruff: noqa: SIM117 - one thing a line reads more easily here

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import yamarket_chat
from tests import virtual
from tests.helpers import HOUR, RAISE_UNKNOWN, outcome_of, session_of
from yamarket_chat import (
    ChatError,
    ChatSession,
    Limits,
    OutgoingMessage,
    Rate,
    SessionClosedError,
)
from yamarket_chat._limits.tickets import Ticket
from yamarket_chat.sandbox import Fault, Sandbox

NOBODY = "http://127.0.0.1:9"


def memory() -> int:
    """Bytes that Python has allocated and that something still needs."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def start(session: ChatSession, number: int, chats: int) -> list[asyncio.Task[Any]]:
    calls = [
        asyncio.create_task(session.send_message(i % chats + 1, "Ваш заказ в пути"))
        for i in range(number)
    ]
    await asyncio.sleep(0)  # all of them run until they wait
    return calls


async def end(session: ChatSession, calls: list[asyncio.Task[Any]]) -> None:
    await session.close(grace=0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    waited = [result for result in results if isinstance(result, SessionClosedError)]
    assert len(waited) >= len(calls) - 4


async def test_50000_waiting_calls_take_at_most_two_and_a_half_kilobytes_each() -> None:
    """Includes the task and the coroutine of each call.

    The bytes of the first 5,000 are counted, and of all 50,000 the blocks, which is quicker.
    """
    few, number = 5_000, 50_000
    async with ChatSession("key", 1, base_url=NOBODY) as session:
        calls = await start(session, 10, 10)
        gc.disable()  # it would look through all of them again and again
        tracemalloc.start()
        blocks = sys.getallocatedblocks()
        try:
            calls += await start(session, few, few)
            bytes_each = tracemalloc.get_traced_memory()[0] / few
        finally:
            tracemalloc.stop()
        blocks_each = (sys.getallocatedblocks() - blocks) / few
        calls += await start(session, number - few, number)
        try:
            assert session.quota_status("send_message").waiting >= number
            assert sys.getallocatedblocks() - blocks <= 1.02 * blocks_each * number
        finally:
            gc.enable()
        await end(session, calls)
    assert 500 < bytes_each <= 2500


def steps_of_starting(number: int, chats: int) -> int:
    """How many functions, Python's and C's, are called until so many calls wait and are closed."""
    steps = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal steps
        if event in ("call", "c_call"):
            steps += 1

    async def main() -> None:
        session = ChatSession("key", 1, base_url=NOBODY)
        async with session:
            sys.setprofile(count)
            calls = await start(session, number, chats)
            await end(session, calls)
            sys.setprofile(None)

    gc.collect()
    gc.disable()  # what it calls is not ours
    try:
        virtual.run(main())
    finally:
        sys.setprofile(None)
        gc.enable()
    return steps


@pytest.mark.parametrize("chats", [1, 50, 10**9])
def test_calls_start_and_end_in_time_that_grows_linearly(chats: int) -> None:
    """With a full window, twice as many additional calls take twice as many additional steps."""
    steps = [steps_of_starting(number, chats) for number in (1200, 2400, 4800)]
    assert steps[2] - steps[1] <= 2 * 1.1 * (steps[1] - steps[0])


async def test_send_many_of_a_million_takes_no_more_memory_than_a_small_one(traced: None) -> None:
    """The test sends thousands of messages from a generator, and then leaves the loop."""
    read = 0

    def messages() -> Iterator[OutgoingMessage]:
        nonlocal read
        for i in range(1_000_000):
            read += 1
            yield OutgoingMessage(i % 300 + 1, f"Ваш заказ {i} в пути", ref=i)

    # What is remembered for a minute or two is some 200 messages, so that it hardly counts when a
    # busy machine lets them through at a somewhat other pace.
    rate = Rate(2, per=1)
    async with Sandbox(limits={"send_message": rate}, keep_books=False) as market:
        async with session_of(market, limits=Limits(send_message=rate)) as session:
            outcomes = session.send_many(messages())
            marks = []
            for taken in range(1, 2001):
                assert (await anext(outcomes)).status == "delivered"
                if taken % 1000 == 0:
                    marks.append(ours())
            assert read <= taken + 257
            await outcomes.aclose()
            await asyncio.sleep(100)
            assert market.messages_stored <= taken + 257
    assert marks[-1] - marks[0] < 1000 * 16  # the smallest object that could be kept of a message


def ours() -> int:
    """Bytes that the package has allocated, without its sandbox."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces(
        [
            tracemalloc.Filter(True, f"{Path(yamarket_chat.__file__).parent}/*"),
            tracemalloc.Filter(False, "*/sandbox/*"),
        ]
    )
    return sum(statistic.size for statistic in snapshot.statistics("filename"))


async def test_idle_chats_leave_nothing_in_memory(traced: None) -> None:
    rate = Rate(1000, per=10)
    plan = {i: Fault("reset") for i in range(1, 3000, 40)}
    async with Sandbox(
        keep_books=False, faults=plan, limits={"send_message": rate, "history": rate}
    ) as market:
        limits = Limits(send_message=rate, history=rate)
        async with session_of(market, limits=limits, retry=RAISE_UNKNOWN) as session:

            async def send(chats: range) -> None:
                calls = [asyncio.ensure_future(session.send_message(i, "hello")) for i in chats]
                for call in calls[::3]:
                    call.cancel()
                await asyncio.sleep(0.001)
                for call in calls[1::3]:
                    call.cancel()
                ends = {type(await outcome_of(call)).__name__ for call in calls}
                assert ends == {"CancelledError", "DeliveryUnknownError", "Receipt"}
                await asyncio.sleep(HOUR)
                await session.send_message(1, "hello")
                await asyncio.sleep(HOUR)

            await send(range(1000, 2500))
            before = ours()
            await send(range(3000, 4500))
            # A table may have been made larger once; the smallest thing of a chat has 60 bytes.
            assert (ours() - before) / 1500 < 40


async def test_closed_sessions_of_many_businesses_leave_nothing_in_memory(traced: None) -> None:
    async def visit(businesses: range) -> None:
        for business_id in businesses:
            async with ChatSession("key", business_id, base_url=NOBODY) as session:
                assert session.quota_status("send_message").waiting == 0

    await visit(range(1, 50))
    before = memory()
    await visit(range(1000, 1400))
    assert (memory() - before) / 400 < 100


async def test_cancelled_calls_leave_nothing_behind_while_others_wait(traced: None) -> None:
    async with ChatSession("key", 1, base_url=NOBODY) as session:
        blocked = await start(session, 20, 20)

        async def start_and_cancel() -> None:
            for _ in range(20):
                calls = await start(session, 100, 10)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)

        await start_and_cancel()
        before = memory()
        await start_and_cancel()
        await start_and_cancel()
        assert (memory() - before) / 4000 < 10
        await end(session, blocked)


async def test_stored_error_keeps_no_other_call_alive() -> None:
    async with Sandbox(faults={1: Fault("status", status=400)}) as market:
        async with session_of(market) as session:
            calls = [
                asyncio.create_task(outcome_of(session.send_message(1, f"{i}"))) for i in range(50)
            ]
            error, *receipts = await asyncio.gather(*calls)
            assert isinstance(error, ChatError)
            assert len(receipts) == 49
            del calls, receipts
            gc.collect()
            kept = [thing for thing in gc.get_objects() if type(thing) is Ticket]
            assert len(kept) <= 1  # the error's own


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)  # noqa: S603
    return set(done.stdout.split())


def test_package_import_loads_neither_cli_nor_sandbox() -> None:
    modules = imported_by("import yamarket_chat")
    assert "yamarket_chat.session" in modules
    for name in ("typer", "click", "rich", "yamarket_chat.sandbox", "yamarket_chat.cli"):
        assert name not in modules
    ours = {module for module in modules if not module.startswith("yamarket_chat")}
    allowed = imported_by("import aiohttp, msgspec, aiolimiter")
    assert {module.partition(".")[0] for module in ours - allowed} <= set(sys.stdlib_module_names)
