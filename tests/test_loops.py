"""A session behaves the same on every event loop: asyncio's, uvloop's, and with eager tasks.

`pytest --loop uvloop` and `pytest --loop eager` run all other tests there as well.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator
from typing import Literal

import pytest

from tests.helpers import HOUR, error_of, now, send_all, session_of, stored, texts
from yamarket_chat import (
    Delivered,
    DeliveryUnknownError,
    Limits,
    MaxWaitExceededError,
    OutgoingMessage,
    Rate,
    SessionClosedError,
)
from yamarket_chat.sandbox import Fault, FaultPlan, Sandbox, numbered_faults, random_faults

pytestmark = pytest.mark.every_loop


def second_fails(fault: Fault) -> FaultPlan:
    return numbered_faults({2: fault}, operation="send_message")


async def test_messages_keep_the_order_of_their_chats_through_every_fault() -> None:
    messages = [(1 + i % 8, f"text {i}") for i in range(160)]
    async with (
        Sandbox(faults=random_faults(0.1, seed=3), latency=0.2) as market,
        session_of(market) as session,
    ):
        await send_all(session, messages)
        assert stored(market) == {
            chat: [text for to, text in messages if to == chat] for chat in range(1, 9)
        }


@pytest.mark.parametrize("requests", [5, 7])
async def test_calls_wait_for_a_used_up_limit_up_to_max_wait(
    requests: int,
) -> None:
    """Tests the timers of waiting calls: for a very short delay, uvloop returns a handle without
    `when`."""
    limits = {"send_message": Rate(requests, per=HOUR)}
    async with Sandbox(limits=limits) as market, session_of(market) as session:
        start = now()
        calls = [
            asyncio.ensure_future(session.send_message(1, f"{i}")) for i in range(requests + 2)
        ]
        for max_wait in (0.0, 0.0001, 0.0004, 0.01, 1.0):
            await asyncio.sleep(0.3)
            error = await error_of(session.send_message(2, "late", max_wait=max_wait))
            assert isinstance(error, MaxWaitExceededError)
        await asyncio.gather(*calls)
        assert HOUR <= now() - start < HOUR + 60
        assert market.refused == 0
        assert texts(market, 1) == [f"{i}" for i in range(requests + 2)]


async def test_send_many_reports_each_message() -> None:
    async def messages() -> AsyncIterator[OutgoingMessage]:
        for i in range(300):
            await asyncio.sleep(0)
            yield OutgoingMessage(1 + i % 30, f"text {i}", ref=i)

    async with Sandbox(latency=0.05) as market, session_of(market) as session:
        outcomes = [outcome async for outcome in session.send_many(messages())]
        assert all(isinstance(outcome, Delivered) for outcome in outcomes)
        assert sorted(outcome.message.ref for outcome in outcomes) == list(range(300))
        assert market.busiest == 4


@pytest.mark.parametrize("after", [0.0, 0.05, 1.0, 16.0])
async def test_cancelled_call_releases_what_it_held(after: float) -> None:
    fault = second_fails(Fault("no_answer", "before"))
    async with Sandbox(faults=fault, latency=0.1) as market, session_of(market) as session:
        await session.send_message(1, "first")
        calls = [asyncio.ensure_future(session.send_message(i, "cancelled")) for i in range(1, 7)]
        await asyncio.sleep(after)
        for call in calls:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) or after for end in ended)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await send_all(session, [(i, "again") for i in range(1, 7)])
        assert all(texts(market, i)[-1] == "again" for i in range(1, 7))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_answer_is_settled(when: Literal["before", "after"]) -> None:
    fault = second_fails(Fault("reset", when))
    async with Sandbox(faults=fault) as market, session_of(market) as session:
        await session.send_message(1, "first")
        receipt = await session.send_message(1, "second")
        assert receipt.confirmed_by == ("answer" if when == "before" else "history")
        assert texts(market, 1) == ["first", "second"]


async def test_a_pending_message_is_settled_later() -> None:
    fault = second_fails(Fault("reset", "after"))
    async with Sandbox(faults=fault) as market, session_of(market) as session:
        await session.send_message(1, "first")
        error = await error_of(session.send_message(1, "second", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        assert await session.settle(error.pending) is not None


async def test_closing_ends_waiting_and_hanging_calls_and_leaves_nothing() -> None:
    fault = second_fails(Fault("no_answer", "after"))
    async with Sandbox(faults=fault) as market:
        tasks = asyncio.all_tasks()
        session = session_of(market)
        await session.send_message(1, "first")
        hangs, waits = (asyncio.ensure_future(session.send_message(1, text)) for text in "ab")
        await asyncio.sleep(1)
        start = now()
        await session.close(grace=2)
        assert 1.9 < now() - start < 3
        assert isinstance(await error_of(hangs), DeliveryUnknownError)
        assert isinstance(await error_of(waits), SessionClosedError)
        gc.collect()
        await asyncio.sleep(60)
        assert asyncio.all_tasks() - tasks == set()


async def test_timeout_around_a_call_ends_only_that_call() -> None:
    async with Sandbox(latency=5.0) as market, session_of(market) as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await session.send_message(1, "too slow")
        market.latency = 0
        await session.send_message(2, "in time")
        assert texts(market, 2) == ["in time"]


async def test_files_are_sent_and_downloaded() -> None:
    async with Sandbox() as market, session_of(market) as session:
        await session.send_file(1, b"%PDF" * 200_000, filename="a.pdf")
        (message,) = [message async for message in session.history(1)]
        assert message.payload is not None
        assert await session.download(message.payload[0]) == b"%PDF" * 200_000


@pytest.mark.real_time
async def test_calls_wait_for_a_short_limit_on_the_real_clock() -> None:
    """Tests the timers of the loop itself, which the virtual clock replaces."""
    limits = Limits(send_message=Rate(20, per=0.2))
    async with Sandbox() as market, session_of(market, limits=limits) as session:
        calls = [
            asyncio.ensure_future(session.send_message(i % 5 + 1, f"{i}", max_wait=5))
            for i in range(30)
        ]
        await asyncio.sleep(0.05)
        error = await error_of(session.send_message(6, "late", max_wait=0.0001))
        assert isinstance(error, MaxWaitExceededError)
        await asyncio.gather(*calls)
        assert sum(len(rows) for rows in stored(market).values()) == 30


@pytest.mark.real_time
async def test_signal_handler_closes_the_session_during_send_many() -> None:
    """As docs/delivery.md shows it."""
    async with Sandbox(latency=0.02) as market, session_of(market) as session:
        loop, closing = asyncio.get_running_loop(), []
        loop.add_signal_handler(
            signal.SIGTERM, lambda: closing.append(loop.create_task(session.close()))
        )
        messages = (OutgoingMessage(i, "hi") for i in range(1, 10_000))
        told = 0
        try:
            with pytest.raises(SessionClosedError):  # noqa: PT012
                async for _ in session.send_many(messages):
                    told += 1
                    if told == 8:
                        os.kill(os.getpid(), signal.SIGTERM)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
        assert told == market.messages_stored
        assert told < 300


@pytest.mark.real_time
async def test_a_wait_below_a_millisecond_ends() -> None:
    """For such a delay, uvloop returns no timer, but a handle without `when`."""
    limits = Limits(send_message=Rate(4000, per=1, burst=1), parallel=50)
    async with (
        Sandbox(parallel=50, limits={"send_message": Rate(100_000, per=HOUR)}) as market,
        session_of(market, limits=limits) as session,
    ):
        await send_all(session, [(i % 100 + 1, f"{i}") for i in range(100)])
        assert market.messages_stored == 100
