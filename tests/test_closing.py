"""Cancellation and closing: all requests end, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import virtual
from tests.helpers import HOUR, now, outcome_of, outcomes_of, session_of, texts
from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    Limits,
    Outcome,
    OutgoingMessage,
    Rate,
    Receipt,
    SessionClosedError,
)
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox

CHAT, OTHER_CHAT = 7, 8
BEFORE, AFTER = Fault("reset"), Fault("reset", when="after")
CLOSED, UNKNOWN = SessionClosedError, DeliveryUnknownError


@pytest.fixture(autouse=True, scope="module")
def _the_same_every_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "yamarket_chat.sandbox.clock.wall_time", lambda loop: 1_790_000_000.25 + loop.time()
        )
        random.seed(4)
        yield


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check that a test leaves no task, timer or loop error, and ends within a virtual day."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    tasks = asyncio.all_tasks()
    try:
        async with asyncio.timeout(86_400):
            yield
    finally:
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        for _ in range(5):  # in which sources that nobody closed are finalized
            await asyncio.sleep(0)
        loop.set_exception_handler(None)
    assert complaints == []
    assert asyncio.all_tasks() == tasks
    timers = loop._scheduled  # type: ignore[attr-defined]  # asyncio shows them nowhere else
    assert [timer for timer in timers if not timer.cancelled()] == []


@asynccontextmanager
async def a_market(
    *faults: Fault | None, history: Fault | None = None, **keywords: Any
) -> AsyncIterator[Sandbox]:
    """A sandbox whose messages fail in this order, and whose history fails always or never."""
    coming = iter(faults)

    def plan(request: RequestInfo) -> Fault | None:
        if request.operation in ("send_message", "send_file"):
            return next(coming, None)
        return history if request.operation == "history" else None

    keywords.setdefault("latency", 1.0)
    async with nothing_left_behind(), Sandbox(faults=plan, **keywords) as market:
        yield market


async def sent_by(
    session: ChatSession, *messages: tuple[int, str]
) -> list[asyncio.Task[Receipt | BaseException]]:
    tasks = [asyncio.create_task(outcome_of(session.send_message(*m))) for m in messages]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


# Cancelling


STAGES = {
    # The fault of the first message, the time of its cancellation, whether it is stored.
    "waiting for the way to be free": (None, 0.0, False),
    "under way": (None, 0.5, True),
    "silent": (Fault("no_answer", when="after"), 12.0, True),
    "waiting to be looked up": (AFTER, 8.0, True),
    "waiting to be looked up, not stored": (BEFORE, 8.0, False),
    "looked up": (AFTER, 16.5, True),
    "looked up, not stored": (BEFORE, 16.5, False),
    "between two attempts": (Fault("status", status=503), 1.2, False),
    "refused over time": (Fault("rate_limit", delay=100.0), 10.0, False),
    "refused in parallel": (Fault("parallel_limit"), 1.05, False),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_call_can_be_cancelled_at_every_stage(stage: str) -> None:
    fault, at, arrives = STAGES[stage]
    async with a_market(fault) as market, session_of(market) as session:
        sending = asyncio.create_task(session.send_message(CHAT, "hi"))
        following = asyncio.create_task(session.send_message(CHAT, "hi"))
        if at:
            await asyncio.sleep(at)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await following
        stored = [text for text in texts(market, CHAT) if text == "hi"]
        assert stored == ["hi"] * (1 + arrives)
        assert session.quota_status("send_message").waiting == 0


async def test_next_message_waits_until_a_cancelled_one_can_no_longer_be_stored() -> None:
    """The first message is cancelled in progress, and the Market stores it seconds later."""
    fault = Fault("slow", delay=9.0)
    async with a_market(fault, latency=0.5) as market, session_of(market) as session:
        sending = asyncio.create_task(session.send_message(CHAT, "first"))
        await asyncio.sleep(0.1)
        sending.cancel()
        await session.send_message(CHAT, "second")
        assert texts(market, CHAT) == ["first", "second"]
        assert 15.0 < now() < 20.0


@pytest.mark.parametrize("fault", [AFTER, BEFORE])
@pytest.mark.parametrize("cancelled", [AFTER, BEFORE])
@pytest.mark.parametrize("known", [True, False])
async def test_equal_text_after_a_cancelled_message_is_not_mistaken_for_it(
    fault: Fault, cancelled: Fault, known: bool
) -> None:
    """If the two clocks of the Market may differ, the outcome may be unclear, but never wrong."""
    async with a_market(None, cancelled, fault) as market, session_of(market) as session:
        # A text in this chat shows both clocks, a text in another chat only the answers' clock.
        await session.send_message(CHAT if known else OTHER_CHAT, "tells the time")
        sending = asyncio.create_task(session.send_message(CHAT, "hi"))
        await asyncio.sleep(0.5)
        sending.cancel()
        outcome = await outcome_of(session.send_message(CHAT, "hi"))
        stored = texts(market, CHAT).count("hi") - (cancelled is AFTER)
        if isinstance(outcome, Receipt):
            assert outcome.confirmed_by == ("history" if fault is AFTER else "answer")
            assert stored == 1
        else:
            assert isinstance(outcome, DeliveryUnknownError)
            assert stored == (fault is AFTER)
            # With one row, it may be that of either message, a few seconds apart.
            assert not known or cancelled is not fault


async def says_goodbye(session: ChatSession) -> Receipt:
    """A bot that sends a last message when it is cancelled."""
    try:
        await asyncio.sleep(3600.0)
    except asyncio.CancelledError:
        return await session.send_message(CHAT, "goodbye")
    raise AssertionError


async def test_send_in_an_already_cancelled_task_is_delivered() -> None:
    """The session does not mistake the timeout of the first attempt for a second cancellation."""
    async with a_market(Fault("no_answer")) as market, session_of(market) as session:
        task = asyncio.create_task(says_goodbye(session))
        await asyncio.sleep(1.0)
        task.cancel()
        assert (await task).requests == 2
        assert texts(market, CHAT) == ["goodbye"]


async def test_closing_ends_a_send_in_an_already_cancelled_task() -> None:
    async with a_market(Fault("no_answer")) as market:
        session = session_of(market)
        task = asyncio.create_task(says_goodbye(session))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.sleep(1.0)
        await session.close(grace=1.0)
        with pytest.raises(UNKNOWN):
            await task


@pytest.mark.parametrize("passes", range(12))
async def test_cancelling_a_call_while_another_is_answered_does_not_affect_the_other(
    passes: int,
) -> None:
    """Both events happen in one loop pass, in either order."""
    async with a_market() as market, session_of(market, limits=Limits(parallel=1)) as session:
        [answered] = await sent_by(session, (1, "1"))
        cancelled = asyncio.create_task(session.send_message(2, "2"))
        [waiting] = await sent_by(session, (3, "3"))
        await asyncio.sleep(0.9999)
        while market.arrivals[0].status is None:
            await asyncio.sleep(0)
        for _ in range(passes):
            await asyncio.sleep(0)
        cancelled.cancel()
        assert isinstance(await answered, Receipt)
        assert isinstance(await waiting, Receipt)
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_asyncio_timeout_around_a_call_cancels_the_call() -> None:
    async with a_market(Fault("no_answer")) as market, session_of(market) as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await session.send_message(CHAT, "hi")
        assert now() == pytest.approx(5.0, abs=0.01)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    cancels=st.lists(st.tuples(st.integers(0, 11), st.floats(0.0, 40.0)), max_size=8),
    faults=st.lists(
        st.sampled_from([None, BEFORE, AFTER, Fault("no_answer"), Fault("parallel_limit")]),
        max_size=12,
    ),
)
def test_cancelling_any_calls_at_any_time_keeps_order_and_loses_nothing(
    cancels: list[tuple[int, float]], faults: list[Fault | None]
) -> None:
    async def main() -> None:
        async with a_market(*faults) as market, session_of(market) as session:
            messages = [(i % 3 + 1, f"{i}") for i in range(12)]
            tasks = [asyncio.create_task(session.send_message(*m)) for m in messages]
            loop = asyncio.get_running_loop()
            timers = [loop.call_later(at, tasks[number].cancel) for number, at in cancels]
            await asyncio.wait(tasks)
            for timer in timers:
                timer.cancel()
            for chat in (1, 2, 3):
                sent = [i for i in range(12) if i % 3 + 1 == chat]
                arrived = [int(text or "") for text in texts(market, chat)]
                assert arrived == sorted(set(arrived))
                assert set(arrived) >= {i for i in sent if not tasks[i].cancelled()}
            for task in tasks:
                assert task.cancelled() or task.result()

    virtual.run(main())


# Closing


async def test_closing_fails_waiting_calls_at_once_and_lets_requests_finish() -> None:
    async with a_market() as market:
        session = session_of(market)
        tasks = await sent_by(session, *((i % 8 + 1, f"{i}") for i in range(16)))
        await session.close()
        assert now() == pytest.approx(1.0, abs=0.01)
        ended = [await task for task in tasks]
        assert [type(outcome) for outcome in ended] == [Receipt] * 4 + [CLOSED] * 12
        assert all(error.sent is False for error in ended if isinstance(error, ChatError))
        assert market.messages_stored == 4


@pytest.mark.parametrize(
    ("fault", "grace", "error", "ends_after"),
    [
        (None, 0.0, UNKNOWN, 0.1),
        (None, 0.5, UNKNOWN, 0.6),
        (Fault("no_answer"), 10.0, UNKNOWN, 10.1),
        (AFTER, 5.0, UNKNOWN, 5.1),
        (AFTER, 30.0, None, 17.0),
        (BEFORE, 30.0, CLOSED, 17.0),
        (Fault("status", status=503), 30.0, CLOSED, 1.0),
        (Fault("rate_limit", delay=50.0), 30.0, CLOSED, 1.0),
        (Fault("parallel_limit"), 30.0, CLOSED, 1.0),
    ],
)
async def test_grace_period_includes_settling(
    fault: Fault | None, grace: float, error: type[ChatError] | None, ends_after: float
) -> None:
    async with a_market(fault) as market:
        session = session_of(market)
        [task] = await sent_by(session, (CHAT, "hi"))
        await asyncio.sleep(0.1)
        await session.close(grace)
        assert now() == pytest.approx(ends_after, abs=0.01)
        outcome = await task
        assert type(outcome) is (error or Receipt)
        if isinstance(outcome, UNKNOWN):
            assert outcome.pending.chat_id == CHAT
        elif isinstance(outcome, CLOSED):
            assert outcome.sent is False
            assert texts(market, CHAT) == []


@pytest.mark.parametrize("at", [0.0, 0.5, 8.0, 16.5, 20.0])
@pytest.mark.parametrize("grace", [0.0, 0.7, 30.0])
@pytest.mark.parametrize("fault", [None, BEFORE, AFTER, Fault("no_answer", when="after")])
async def test_closing_works_at_every_stage_of_a_call(
    fault: Fault | None, grace: float, at: float
) -> None:
    async with a_market(fault) as market:
        session = session_of(market)
        tasks = await sent_by(session, (CHAT, "hi"), (CHAT, "next"), (OTHER_CHAT, "elsewhere"))
        await asyncio.sleep(at)
        start = now()
        await session.close(grace)
        assert now() - start <= grace + 0.01
        outcomes = [await task for task in tasks]
        if not market.messages(CHAT):
            await asyncio.sleep(10.0)  # the Market may still carry out what was cut short
        # The other chat's message is sent first if the first two are to the same chat.
        left = [
            text
            for text, outcome in zip(["hi", "next"], outcomes, strict=False)
            if isinstance(outcome, (Receipt, UNKNOWN))
        ]
        stored = texts(market, CHAT)
        assert stored == [text for text in left if text in stored]
        for text, outcome in zip(["hi", "next"], outcomes, strict=False):
            if isinstance(outcome, Receipt):
                assert text in stored
            elif isinstance(outcome, ChatError) and outcome.sent is False:
                assert text not in stored
            else:
                assert isinstance(outcome, UNKNOWN)


@pytest.mark.parametrize("history", [None, Fault("no_answer"), Fault("status", status=500)])
async def test_history_request_gets_the_grace_period_and_no_more(history: Fault | None) -> None:
    async with a_market(AFTER, history=history) as market:
        session = session_of(market)
        [task] = await sent_by(session, (CHAT, "hi"))
        await asyncio.sleep(16.5)  # it is being looked up
        await session.close(grace=5.0)
        outcome = await task
        if history is None:
            assert isinstance(outcome, Receipt)
            assert now() == pytest.approx(17.0, abs=0.01)
        else:
            assert isinstance(outcome, UNKNOWN)
            assert now() <= 21.6


async def test_settle_gets_the_grace_period() -> None:
    async with a_market(None, AFTER) as market:
        session = session_of(market)
        await session.send_message(OTHER_CHAT, "tells the time")
        outcome = await outcome_of(session.send_message(CHAT, "hi", on_unknown="raise"))
        assert isinstance(outcome, UNKNOWN)
        await asyncio.sleep(60.0)
        settling = asyncio.create_task(session.settle(outcome.pending))
        await asyncio.sleep(0.5)
        await session.close(grace=30.0)
        assert await settling == Receipt(CHAT, 1, "history")


@pytest.mark.parametrize("grace", [0.0, 30.0])
async def test_waiting_settle_ends_when_the_session_closes(grace: float) -> None:
    async with a_market(None, AFTER) as market:
        session = session_of(market)
        await session.send_message(OTHER_CHAT, "tells the time")
        outcome = await outcome_of(session.send_message(CHAT, "hi", on_unknown="raise"))
        assert isinstance(outcome, UNKNOWN)
        settling = asyncio.create_task(outcome_of(session.settle(outcome.pending)))
        await asyncio.sleep(5.0)  # the Market may still carry it out
        start = now()
        await session.close(grace)
        assert now() - start < 0.1
        assert isinstance(await settling, ChatError)


async def test_call_on_a_closed_session_is_refused() -> None:
    async with a_market() as market:
        session = session_of(market)
        many = session.send_many([OutgoingMessage(CHAT, "hi")])
        history = session.history(CHAT)
        await session.get_chat(CHAT)
        await session.close()
        await session.close()
        for late in (
            session.send_message(CHAT, "hi"),
            session.get_chat(CHAT),
            outcomes_of(many),
            history.pages().__anext__(),
        ):
            outcome = await outcome_of(late)
            assert isinstance(outcome, CLOSED)
            assert outcome.sent is False
        assert len(market.arrivals) == 1


async def test_other_session_sends_after_a_message_cut_short_by_closing() -> None:
    async with a_market(Fault("slow", delay=8.0)) as market, session_of(market) as other:
        session = session_of(market)
        [cut_short] = await sent_by(session, (CHAT, "first"))
        following = asyncio.create_task(other.send_message(CHAT, "second"))
        await asyncio.sleep(0.5)
        await session.close(grace=0.0)
        assert isinstance(await cut_short, UNKNOWN)
        await following
        assert texts(market, CHAT) == ["first", "second"]


async def test_cancelled_call_stays_cancelled_when_the_session_closes() -> None:
    async with a_market(Fault("no_answer")) as market:
        session = session_of(market)
        task = asyncio.create_task(session.send_message(CHAT, "hi"))
        await asyncio.sleep(0.5)
        closing = asyncio.create_task(session.close(grace=2.0))
        asyncio.get_running_loop().call_later(2.0, task.cancel)
        await closing
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, (asyncio.CancelledError, UNKNOWN))


async def test_cancelled_close_leaves_nothing_behind() -> None:
    async with a_market(Fault("no_answer")) as market:
        session = session_of(market)
        tasks = await sent_by(session, (CHAT, "hi"), (CHAT, "next"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await session.close()
        outcomes = [await task for task in tasks]
        assert [type(outcome) for outcome in outcomes] == [UNKNOWN, CLOSED]


async def test_exception_in_the_async_with_block_closes_the_session() -> None:
    async with a_market(AFTER) as market:
        tasks: list[asyncio.Task[Receipt | BaseException]] = []

        async def fail() -> None:
            async with session_of(market) as session:
                tasks.extend(await sent_by(session, (CHAT, "hi"), (CHAT, "next")))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert [type(await task) for task in tasks] == [Receipt, CLOSED]


# send_many


async def endless(pause: float = 0.0) -> AsyncIterator[OutgoingMessage]:
    number = 0
    while True:
        yield OutgoingMessage(number % 5 + 1, f"{number}")
        number += 1
        await asyncio.sleep(pause)


@pytest.mark.parametrize("fault", [None, AFTER, BEFORE, Fault("no_answer", when="after")])
@pytest.mark.parametrize("pause", [0.01, 0.3, 100.0])
async def test_send_many_raises_session_closed_after_the_outcomes(
    pause: float, fault: Fault | None
) -> None:
    async with a_market(fault) as market:
        session = session_of(market)
        outcomes: list[Outcome] = []

        async def take() -> None:
            async for outcome in session.send_many(endless(pause)):
                outcomes.append(outcome)  # noqa: PERF401 - those before the error count

        taking = asyncio.create_task(take())
        await asyncio.sleep(5.5)
        await session.close()
        # The loop must not end as if all messages had been sent.
        with pytest.raises(CLOSED):
            await taking
        delivered = {o.message.text for o in outcomes if o.status == "delivered"}
        assert {m.text for c in market.chat_ids for m in market.messages(c)} == delivered


async def test_closing_stops_reading_the_source_of_send_many() -> None:
    """Otherwise the session would read a whole large source only to refuse all messages."""
    read = 0

    def source() -> Iterator[OutgoingMessage]:
        nonlocal read
        for read in range(5000):
            yield OutgoingMessage(read % 5 + 1, f"{read}")

    async with a_market() as market:
        session = session_of(market)
        taking = asyncio.create_task(outcome_of(outcomes_of(session.send_many(source()))))
        await asyncio.sleep(5.5)
        before = read
        await session.close()
        assert isinstance(await taking, CLOSED)
        assert read <= before + 1


async def test_session_can_be_closed_inside_the_send_many_loop() -> None:
    async with a_market() as market:
        session = session_of(market)
        outcomes = []
        messages = [OutgoingMessage(i % 5 + 1, f"{i}") for i in range(20)]
        try:
            async for outcome in session.send_many(messages):
                outcomes.append(outcome)
                if len(outcomes) == 3:
                    await session.close()
        except CLOSED:
            pass
        delivered = [outcome.message.text for outcome in outcomes if outcome.status == "delivered"]
        stored = {m.text for c in market.chat_ids for m in market.messages(c)}
        assert len(delivered) == len(set(delivered))
        assert set(delivered) == stored


@pytest.mark.parametrize("fault", [None, BEFORE, AFTER, Fault("no_answer", when="after")])
async def test_send_many_closed_early_sends_nothing_more_and_finishes_requests(
    fault: Fault | None,
) -> None:
    async with a_market(None, fault) as market, session_of(market) as session:
        async with aclosing(session.send_many(endless())) as outcomes:
            async for _ in outcomes:
                break
        # One was answered; the three beside it have ended, settling included.
        arrivals = len(market.arrivals)
        stored = market.messages_stored
        await asyncio.sleep(100.0)
        assert (len(market.arrivals), market.messages_stored) == (arrivals, stored)
        assert market.requests("send_message") <= 8
        assert session.quota_status("send_message").waiting == 0


@pytest.mark.parametrize("twice", [False, True])
async def test_send_many_can_be_cancelled_while_a_message_is_settled(twice: bool) -> None:
    async with a_market(AFTER, BEFORE) as market:
        async with session_of(market) as session:
            taking = asyncio.create_task(outcomes_of(session.send_many(endless())))
            await asyncio.sleep(5.0)
            taking.cancel()
            if twice:
                await asyncio.sleep(1.0)
                taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
        stored = market.messages_stored
        await asyncio.sleep(30.0)
        assert market.messages_stored == stored


def messages_of(kind: str) -> Any:
    return endless() if kind == "async" else (OutgoingMessage(CHAT, "hi") for _ in range(10**6))


# At 0.0 the first worker has been made, and has not begun.
@pytest.mark.parametrize("at", [0.0, 0.05, 5.0])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_send_many_raises_if_all_other_tasks_were_cancelled(at: float, kind: str) -> None:
    async with a_market(AFTER, BEFORE) as market, session_of(market) as session:
        taking = asyncio.create_task(outcomes_of(session.send_many(messages_of(kind))))
        await asyncio.sleep(at)
        for task in asyncio.all_tasks() - {asyncio.current_task(), taking}:
            task.cancel()
        async with asyncio.timeout(60):
            with pytest.raises((CLOSED, RuntimeError)):
                await taking


async def test_send_many_raises_if_its_new_worker_was_cancelled_before_it_started() -> None:
    async with a_market(latency=0.0) as market, session_of(market) as session:
        outcomes = session.send_many(messages_of("sync"))
        await anext(outcomes)
        await asyncio.sleep(10.0)  # as many in hand as allowed, because nobody reads
        taking = asyncio.create_task(outcomes_of(outcomes))
        await asyncio.sleep(0)  # it has taken some, and so made a worker
        for task in asyncio.all_tasks() - {asyncio.current_task(), taking}:
            task.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(CLOSED):
                await taking


@pytest.mark.parametrize("end", ["session", "loop"])
async def test_waiting_async_source_is_closed_with_send_many(end: str) -> None:
    async def source() -> AsyncIterator[OutgoingMessage]:
        yield OutgoingMessage(CHAT, "a")
        await session.get_chat(CHAT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1.0)
            cleaned_up.append(now())

    cleaned_up: list[float] = []
    async with a_market() as market:
        session = session_of(market)
        outcomes = session.send_many(source())
        await anext(outcomes)
        await asyncio.sleep(5.0)
        await (session.close() if end == "session" else outcomes.aclose())
        assert len(cleaned_up) == 1
        await session.close()
        await outcomes.aclose()


async def test_source_of_send_many_can_close_the_session() -> None:
    async def source() -> AsyncIterator[OutgoingMessage]:
        yield OutgoingMessage(CHAT, "a")
        await asyncio.sleep(5.0)
        await session.close()
        yield OutgoingMessage(CHAT, "b")

    async with a_market() as market:
        session = session_of(market)
        with pytest.raises(CLOSED):
            await outcomes_of(session.send_many(source()))
        assert texts(market, CHAT) == ["a"]


async def test_send_many_that_is_never_iterated_holds_nothing() -> None:
    async with a_market() as market, session_of(market) as session:
        session.send_many(endless())
        await asyncio.sleep(1.0)
        assert market.arrivals == []


async def test_abandoned_send_many_is_closed_with_the_session() -> None:
    async with a_market(None, AFTER) as market, session_of(market) as session:
        outcomes = session.send_many(endless())
        await anext(outcomes)
        del outcomes


async def test_send_many_outcomes_are_true_if_the_key_is_revoked_meanwhile() -> None:
    async with a_market(BEFORE, AFTER) as market, session_of(market) as session:
        messages = [OutgoingMessage(i % 4 + 1, f"{i}") for i in range(12)]
        loop = asyncio.get_running_loop()
        loop.call_later(2.5, setattr, market, "revoked", True)
        outcomes = await outcomes_of(session.send_many(messages))
        assert len(outcomes) == 12
        stored = {m.text for c in market.chat_ids for m in market.messages(c)}
        for outcome in outcomes:
            if outcome.status == "delivered":
                assert outcome.message.text in stored
            elif outcome.status == "refused":
                assert outcome.message.text not in stored


# Files


@pytest.mark.parametrize("at", [0.0, 0.001, 0.5, 8.0, 16.5])
async def test_send_file_can_be_cancelled_at_every_stage(at: float, tmp_path: Any) -> None:
    path = tmp_path / "label.pdf"
    path.write_bytes(b"x" * 500_000)
    async with a_market(AFTER) as market, session_of(market) as session:
        sending = asyncio.create_task(session.send_file(CHAT, path))
        await asyncio.sleep(at)
        sending.cancel()
        await asyncio.wait([sending])
        await session.send_message(CHAT, "next")
        assert market.messages(CHAT)[-1].text == "next"
        assert len(market.messages(CHAT)) <= 2


async def test_used_up_rate_limit_does_not_delay_closing() -> None:
    limits = Limits(send_message=Rate(2, per=3600.0))
    async with a_market(limits={"send_message": Rate(2, per=3600.0)}) as market:
        session = session_of(market, limits=limits)
        tasks = await sent_by(session, *((i, "hi") for i in range(1, 6)))
        await asyncio.sleep(10.0)
        await session.close()
        assert now() < 11.0
        assert [type(await task) for task in tasks] == [Receipt] * 2 + [CLOSED] * 3


Awaiting = Callable[[ChatSession], Any]


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.get_chat(CHAT),
        lambda session: session.history(CHAT).pages().__anext__(),
        lambda session: session.token(),
    ],
)
async def test_closing_ends_reading_calls_after_the_grace_period(call: Awaiting) -> None:
    async with a_market(latency=8.0) as market:
        session = session_of(market)
        reading = asyncio.create_task(outcome_of(call(session)))
        await asyncio.sleep(0.5)
        await session.close(grace=1.0)
        assert now() < 1.6
        assert isinstance(await reading, CLOSED)


def modules_held_by(error: BaseException | None) -> set[str]:
    """Return the modules of the frames that an error keeps alive."""
    held = set()
    while error is not None:
        held |= {
            str(frame.f_globals["__name__"]).partition(".")[0]
            for frame, _ in traceback.walk_tb(error.__traceback__)
        }
        error = error.__cause__ or error.__context__
    return held


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda session: session.send_message(CHAT, "hi"), UNKNOWN),
        (lambda session: session.get_chat(CHAT), CLOSED),
    ],
)
async def test_session_closed_error_holds_no_request_with_the_key(
    call: Awaiting, kind: type[Exception]
) -> None:
    async with a_market(latency=8.0) as market:
        session = session_of(market)
        calling = asyncio.create_task(outcome_of(call(session)))
        await asyncio.sleep(0.5)
        await session.close(grace=1.0)
        error = await calling
        assert isinstance(error, kind)
        assert "yamarket_chat" in modules_held_by(error)
        assert "aiohttp" not in modules_held_by(error)


async def test_request_ends_in_time_after_a_cancelled_close() -> None:
    async with (
        asyncio.timeout(HOUR),
        Sandbox(faults={1: Fault("no_answer")}) as market,
        aiohttp.ClientSession() as http,
    ):
        session = session_of(market, http=http)
        sending = asyncio.create_task(outcome_of(session.send_message(CHAT, "hi")))
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await session.close()
        assert isinstance(await sending, UNKNOWN)
        async with session_of(market) as another:
            await another.send_message(CHAT, "its place and its chat are free")
        assert texts(market, CHAT) == ["its place and its chat are free"]


async def test_send_many_started_while_the_session_closes_sends_nothing() -> None:
    async with a_market() as market:
        session = session_of(market)
        bulk = session.send_many([OutgoingMessage(CHAT, "hi")])
        closing = asyncio.create_task(session.close(grace=1))
        assert isinstance(await outcome_of(outcomes_of(bulk)), CLOSED)
        await closing
        assert market.arrivals == []


async def test_send_many_in_a_task_cancelled_twice_gets_the_grace_period() -> None:
    async with nothing_left_behind(), Sandbox(latency=8.0) as market:
        session = session_of(market)
        taking = asyncio.create_task(outcomes_of(session.send_many(endless())))
        await asyncio.sleep(1)
        for _ in range(2):
            taking.cancel()
            await asyncio.sleep(0.5)
        await session.close(grace=30)
        assert market.messages_stored == len(market.arrivals) > 0


@pytest.mark.parametrize("wrapped", [False, True])
async def test_async_source_is_closed_in_the_task_that_ran_it(wrapped: bool) -> None:
    tasks = set()

    async def source() -> AsyncIterator[OutgoingMessage]:
        tasks.add(asyncio.current_task())
        try:
            async with asyncio.timeout(HOUR):
                while True:
                    yield OutgoingMessage(CHAT, "hi")
        finally:
            await asyncio.sleep(1)
            tasks.add(asyncio.current_task())
            finished.set()

    class Iterable:  # no async generator itself, as a list of chats is none
        def __aiter__(self) -> AsyncIterator[OutgoingMessage]:
            return source()

    finished = asyncio.Event()
    async with a_market() as market, session_of(market) as session:
        async with aclosing(session.send_many(Iterable() if wrapped else source())) as outcomes:
            await anext(outcomes)
        assert finished.is_set()
        assert len(tasks) == 1


async def test_second_close_waits_for_the_first() -> None:
    async with nothing_left_behind(), Sandbox(latency=5.0) as market:
        session = session_of(market)
        sending = asyncio.create_task(session.send_message(CHAT, "hi"))
        await asyncio.sleep(1)
        first = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        await session.close()
        assert sending.done()
        assert (await sending).confirmed_by == "answer"
        await first


@pytest.mark.parametrize("graces", [(30.0, 1.0), (1.0, 30.0), (30.0, 0.0)])
async def test_of_two_closings_the_shorter_grace_counts(graces: tuple[float, float]) -> None:
    """Users press Ctrl-C twice."""
    first_grace, second_grace = graces
    faults = {CHAT: Fault("no_answer"), CHAT + 1: AFTER}  # in which order they arrive is open
    async with a_market() as market:
        market.faults = lambda request: faults.get(request.chat_id or 0)
        session = session_of(market)
        tasks = await sent_by(session, (CHAT, "hi"), (CHAT + 1, "is settled"))
        outcomes = session.send_many([OutgoingMessage(CHAT + 2, "of a bulk")])
        bulk = asyncio.create_task(outcome_of(outcomes_of(outcomes)))
        await asyncio.sleep(0.5)
        start = now()
        first = asyncio.create_task(session.close(first_grace))
        await asyncio.sleep(0)
        await session.close(second_grace)
        assert now() - start == pytest.approx(min(graces), abs=0.1)
        assert [type(await task) for task in tasks] == [UNKNOWN, UNKNOWN]
        assert isinstance(await bulk, CLOSED)
        await first


async def test_a_closing_that_is_cancelled_blames_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yamarket_chat")
    async with a_market(Fault("no_answer")) as market:
        session = session_of(market)
        (sending,) = await sent_by(session, (CHAT, "hi"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await session.close()
        error = await sending
        assert isinstance(error, UNKNOWN)
        assert "aiohttp" not in f"{error} {caplog.text}"
        assert "the call was ended" in str(error)
