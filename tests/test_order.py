"""Order: one by one in each chat, first come first served, single calls before send_many."""
# ruff: noqa: SIM117 - one thing a line reads more easily here

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import virtual
from tests.helpers import (
    HOUR,
    RAISE_UNKNOWN,
    busiest_window,
    departures,
    now,
    outcome_of,
    outcomes_of,
    send_all,
    session_of,
    stored,
    texts,
)
from yamarket_chat import (
    BadRequestError,
    ChatSession,
    Limits,
    MaxWaitExceededError,
    OutgoingMessage,
    Rate,
    SessionClosedError,
)
from yamarket_chat.sandbox import Fault, Sandbox


def limits(requests: int, per: float, parallel: int = 4) -> Limits:
    return Limits(parallel=parallel, send_message=Rate(requests, per=per))


def arrived(market: Sandbox) -> list[int | None]:
    """The chats in the order in which their messages arrived."""
    return [a.chat_id for a in market.arrivals if a.operation == "send_message"]


# Within a chat


async def test_messages_of_a_chat_are_sent_one_by_one_in_call_order() -> None:
    latency = itertools.cycle([3.0, 0.0, 1.0])
    async with Sandbox(latency=lambda: next(latency)) as market, session_of(market) as session:
        await send_all(session, [(7, str(i)) for i in range(20)])
        assert texts(market, 7) == [str(i) for i in range(20)]
        assert market.busiest == 1


async def test_messages_to_different_chats_are_sent_in_parallel() -> None:
    async with Sandbox(latency=1.0) as market, session_of(market) as session:
        began = now()
        await send_all(session, [(chat_id, "a") for chat_id in (1, 2, 3, 4)])
        assert now() - began < 1.5
        assert market.busiest == 4


async def test_message_gets_its_position_when_its_coroutine_starts() -> None:
    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        calls = [session.send_message(7, str(i)) for i in range(5)]
        await asyncio.gather(*reversed(calls))
        assert texts(market, 7) == ["4", "3", "2", "1", "0"]


async def test_the_order_holds_through_gather_send_many_awaits_and_several_sessions() -> None:
    async with Sandbox(latency=0.2) as market:
        async with session_of(market) as a, session_of(market) as b:
            first = asyncio.gather(*(a.send_message(7, f"a{i}") for i in range(3)))
            await asyncio.sleep(0)
            many = asyncio.ensure_future(
                outcomes_of(b.send_many([OutgoingMessage(7, f"b{i}") for i in range(3)]))
            )
            await asyncio.sleep(0.1)
            await a.send_message(7, "c")
            assert texts(market, 7) == ["a0", "a1", "a2", "b0", "b1", "b2", "c"]
            await asyncio.gather(first, many)


async def test_retried_message_stays_before_the_next_of_its_chat() -> None:
    plan = {
        1: Fault("status", status=503),
        2: Fault("parallel_limit"),
        3: Fault("rate_limit", delay=5.0),
        4: Fault("status", status=503),
    }
    async with Sandbox(faults=plan) as market, session_of(market) as session:
        a, b = await send_all(session, [(7, "a"), (7, "b")])
        assert texts(market, 7) == ["a", "b"]
        assert (a.requests, b.requests) == (5, 1)


async def test_a_refused_message_lets_the_next_of_its_chat_go() -> None:
    plan = {1: Fault("status", status=400), 2: Fault("status", status=404, html=True)}
    async with Sandbox(faults=plan) as market, session_of(market) as session:
        began = now()
        calls = [asyncio.ensure_future(session.send_message(7, text)) for text in "abc"]
        results = [await outcome_of(call) for call in calls]
        assert [type(result).__name__ for result in results] == [
            "BadRequestError",
            "NotFoundError",
            "Receipt",
        ]
        assert texts(market, 7) == ["c"]
        assert now() - began < 1


@pytest.mark.parametrize("delay", [1.0, 9.9])
async def test_message_after_an_unknown_one_is_never_stored_before_it(delay: float) -> None:
    plan = {1: Fault("reset", when="later", delay=delay)}
    async with Sandbox(faults=plan) as market:
        async with session_of(market, retry=RAISE_UNKNOWN) as session:
            calls = [asyncio.ensure_future(session.send_message(7, text)) for text in "ab"]
            other = asyncio.ensure_future(session.send_message(8, "c"))
            await asyncio.wait([*calls, other])
            assert texts(market, 7) == ["a", "b"]
            # Nobody else waits for it.
            assert market.messages(8)[0].stored_at - market.arrivals[0].time < 1


async def test_message_cancelled_in_progress_is_stored_before_the_next_or_never() -> None:
    async with Sandbox(latency=8.0) as market, session_of(market) as session:
        first = asyncio.ensure_future(session.send_message(7, "a"))
        second = asyncio.ensure_future(session.send_message(7, "b"))
        await asyncio.sleep(1)
        first.cancel()
        await second
        assert first.cancelled()
        assert texts(market, 7) == ["a", "b"]


# Cancelling and giving up while others stand in line


@pytest.mark.parametrize("cancelled", [{0}, {1}, {2}, {4}, {1, 2}, {0, 1, 2, 3}, {1, 3}])
async def test_cancelled_messages_do_not_block_the_queue_of_their_chat(cancelled: set[int]) -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(1, per=30)) as session:
            await session.send_message(8, "uses the window up")
            calls = [asyncio.ensure_future(session.send_message(7, str(i))) for i in range(5)]
            await asyncio.sleep(1)
            for i in cancelled:
                calls[i].cancel()
            await asyncio.wait(calls)
            assert texts(market, 7) == [str(i) for i in range(5) if i not in cancelled]


async def test_cancelling_the_next_message_in_any_loop_pass_affects_no_other() -> None:
    """Includes the pass in which the message before it ends, or in which it is granted itself."""
    for chats in ((7, 7, 7), (7, 8, 9)):
        for passes in range(60):
            async with Sandbox() as market:
                async with session_of(market, limits=limits(1000, HOUR, 1)) as session:
                    calls = [
                        asyncio.ensure_future(session.send_message(chat_id, f"{i}"))
                        for i, chat_id in enumerate(chats)
                    ]
                    for _ in range(passes):
                        await asyncio.sleep(0)
                    calls[1].cancel()
                    results = [await outcome_of(call) for call in calls]
                    names = [type(result).__name__ for result in results]
                    assert names[0] == names[2] == "Receipt", (chats, passes, results)
                    assert names[1] in ("Receipt", "CancelledError"), (chats, passes, results)


async def test_waiting_message_cancelled_in_the_pass_that_reads_an_answer() -> None:
    """A hook of the caller's aiohttp session cancels it in the pass that reads the answer."""
    waiting: list[asyncio.Future[Any]] = []

    async def answer_comes(_: Any, __: SimpleNamespace, ___: Any) -> None:
        if waiting:
            waiting.pop().cancel()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answer_comes)
    async with (
        Sandbox(latency=0.1) as market,
        aiohttp.ClientSession(trace_configs=[trace]) as http,
        session_of(market, http=http, limits=limits(1000, HOUR, 1)) as session,
    ):
        for chat_id in (1, 2):  # behind it in its chat, or only in time
            first = asyncio.ensure_future(session.send_message(1, "a"))
            second = asyncio.ensure_future(session.send_message(chat_id, "b"))
            third = asyncio.ensure_future(session.send_message(chat_id, "c"))
            await asyncio.sleep(0.05)
            waiting.append(second)
            assert (await first).confirmed_by == "answer"
            assert (await third).confirmed_by == "answer"
            with pytest.raises(asyncio.CancelledError):
                await second


async def test_max_wait_that_ends_with_an_answer_affects_no_other_call() -> None:
    for chats in ((7, 7), (7, 8)):
        for step in range(-5, 80):
            async with Sandbox(latency=0.1) as market:
                async with session_of(market, limits=limits(1000, HOUR, 1)) as session:
                    first = asyncio.ensure_future(session.send_message(chats[0], "a"))
                    second = asyncio.ensure_future(
                        session.send_message(chats[1], "b", max_wait=0.1 + step * virtual.PASS)
                    )
                    result, other = await outcome_of(first), await outcome_of(second)
                    assert type(result).__name__ == "Receipt", (chats, step, result)
                    if not isinstance(other, MaxWaitExceededError):
                        assert type(other).__name__ == "Receipt", (chats, step, other)
                        assert stored(market) == (
                            {7: ["a", "b"]} if chats == (7, 7) else {7: ["a"], 8: ["b"]}
                        )


async def test_closing_fails_all_pausing_messages_with_the_same_error() -> None:
    async with Sandbox(faults=lambda _: Fault("status", status=503)) as market:
        for _ in range(8):
            session = session_of(market)
            calls = [asyncio.ensure_future(session.send_message(7, f"{i}")) for i in range(4)]
            await asyncio.sleep(0.2)
            await session.close()
            results = [await outcome_of(call) for call in calls]
            assert [type(r) for r in results] == [SessionClosedError] * 4


async def test_closing_one_session_does_not_affect_another() -> None:
    async with Sandbox(latency=1.0) as market:
        a, b = session_of(market), session_of(market)
        calls = [
            asyncio.ensure_future((a if i % 2 == 0 else b).send_message(7, str(i)))
            for i in range(6)
        ]
        await asyncio.sleep(1.5)  # the first is there, the second under way
        await a.close()
        results = [await outcome_of(call) for call in calls]
        assert texts(market, 7) == ["0", "1", "3", "5"]
        assert [isinstance(r, SessionClosedError) for r in results] == [
            False,
            False,
            True,
            False,
            True,
            False,
        ]
        await b.close()


# First come, first served


async def test_first_come_first_served_among_chats_that_are_free() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(1000, HOUR, 1)) as session:
            await send_all(session, [(chat_id, "a") for chat_id in (5, 3, 9, 1, 7)])
        assert arrived(market) == [5, 3, 9, 1, 7]


async def test_message_waiting_for_its_chat_blocks_no_other_and_keeps_its_turn() -> None:
    latency = iter([5.0, *[0.1] * 100])
    async with Sandbox(latency=lambda: next(latency)) as market:
        async with session_of(market, limits=limits(1000, HOUR, 2)) as session:
            handed_over = [(1, "a"), (1, "b"), *((chat, "c") for chat in range(2, 90))]
            await send_all(session, handed_over)
        order = arrived(market)
        # Chat 1 was busy for 5 s, in which about 50 others went; then it was its turn.
        assert 40 < order.index(1, 1) < 60


async def test_new_call_does_not_overtake_waiting_calls() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(2, per=100)) as session:
            calls = [asyncio.ensure_future(session.send_message(i, "a")) for i in range(1, 5)]
            await asyncio.sleep(99.95)
            for i in range(60):  # new calls all the time, also when the places become free
                calls.append(asyncio.ensure_future(session.send_message(100 + i, "b")))
                await asyncio.sleep(0.01)
            first = arrived(market)[:4]  # two that leave together may arrive in either order
            assert [set(first[:2]), set(first[2:])] == [{1, 2}, {3, 4}]
            for call in calls[4:]:
                call.cancel()
            await asyncio.wait(calls)


# Single calls and bulks


async def outcome_counts(session: ChatSession, messages: Any, reserve: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    async for outcome in session.send_many(messages, reserve=reserve):
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return counts


async def test_single_message_is_sent_within_5_s_during_a_mailing_of_3000() -> None:
    """Every other chat has a waiting message of the mailing: such a call uses two requests."""
    read: list[int] = []

    def bulk() -> Iterator[OutgoingMessage]:
        for i in range(3000):
            read.append(i % 300 + 1)
            yield OutgoingMessage(read[-1], f"bulk {i // 300}")

    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        waits = []
        many = asyncio.ensure_future(outcome_counts(session, bulk(), reserve=100))
        for minute in itertools.count():
            await asyncio.sleep(60)
            if many.done():
                break
            chat_id = 1000
            if minute % 2:
                sent = sum(a.chat_id != 1000 for a in market.arrivals)
                chat_id = read[min(sent + 20, len(read) - 1)]
            began = now()
            await session.send_message(chat_id, f"single {minute}")
            waits.append(market.messages(chat_id)[-1].stored_at - began)
        assert many.result() == {"delivered": 3000}
        assert len(waits) > 170
        assert max(waits) <= 5
        assert market.refused == 0
        assert busiest_window(departures(market), HOUR) <= 1000
        for chat_id in range(1, 301):
            in_bulk = [t for t in texts(market, chat_id) if t and t.startswith("bulk")]
            assert in_bulk == [f"bulk {i}" for i in range(10)]
        # The bulk loses what the reserve and the single calls take, and no more.
        assert now() < 3000 / 900 * HOUR * 1.1


async def test_single_calls_go_before_waiting_send_many_messages() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(1000, HOUR, 1)) as session:
            bulk = [OutgoingMessage(i, "bulk") for i in range(1, 31)]
            many = asyncio.ensure_future(outcome_counts(session, bulk, reserve=0))
            await asyncio.sleep(0.55)
            await session.send_message(99, "single")
            assert arrived(market).index(99) <= 7
            await many


async def test_reserve_is_kept_for_single_calls() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(10, per=100)) as session:
            bulk = [OutgoingMessage(i, "bulk") for i in range(1, 31)]
            many = asyncio.ensure_future(outcome_counts(session, bulk, reserve=4))
            await asyncio.sleep(50)
            assert len(arrived(market)) == 6
            await send_all(session, [(90 + i, "single") for i in range(4)])
            assert len(arrived(market)) == 10
            assert now() < 52
            assert await many == {"delivered": 30}
        assert busiest_window(departures(market), 100) <= 10


async def test_send_many_message_before_a_single_one_counts_as_single() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(10, per=100)) as session:
            bulk = [OutgoingMessage(7, f"{i}") for i in range(6)]
            bulk += [OutgoingMessage(i, "bulk") for i in range(10, 20)]
            many = asyncio.ensure_future(outcome_counts(session, bulk, reserve=6))
            await asyncio.sleep(10)
            assert len(arrived(market)) == 4
            before = texts(market, 7)
            assert len(before) < 4
            await session.send_message(7, "single")  # behind the rest of the six
            assert texts(market, 7) == ["0", "1", "2", "3", "4", "5", "single"]
            assert now() < 11
            assert len(arrived(market)) == 4 + (6 - len(before)) + 1
            assert await many == {"delivered": 16}


async def test_promoted_messages_go_before_other_send_many_messages_in_order() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(2, per=100)) as session:
            bulk = [OutgoingMessage(chat_id, "bulk") for chat_id in (4, 6, 4, 6, 4, 6, 1, 2, 3)]
            many = asyncio.ensure_future(outcome_counts(session, bulk, reserve=0))
            await asyncio.sleep(10)
            singles = [asyncio.ensure_future(session.send_message(i, "single")) for i in (6, 4)]
            await asyncio.gather(*singles, many)
        # Two that leave together may arrive in either order.
        pairs = [set(pair) for pair in zip(*[iter(arrived(market))] * 2, strict=False)]
        assert pairs == [{4, 6}, {4, 6}, {4, 6}, {6, 4}, {1, 2}]


async def test_cancelled_single_call_loses_no_send_many_message_before_it() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(3, per=100)) as session:
            bulk = [OutgoingMessage(i // 3 + 1, f"{i}") for i in range(9)]
            many = asyncio.ensure_future(outcome_counts(session, bulk, reserve=1))
            await asyncio.sleep(1)
            single = asyncio.ensure_future(session.send_message(1, "single"))
            await asyncio.sleep(0)
            single.cancel()
            async with asyncio.timeout(HOUR):
                assert await many == {"delivered": 9}
        assert stored(market) == {1: ["0", "1", "2"], 2: ["3", "4", "5"], 3: ["6", "7", "8"]}


async def test_reserve_above_the_limit_of_the_market_does_not_stop_send_many() -> None:
    async with Sandbox(limits={"send_message": Rate(50, per=HOUR)}) as market:
        async with session_of(market) as session:
            bulk = [OutgoingMessage(i, "bulk") for i in range(1, 121)]
            async with asyncio.timeout(200 * HOUR):
                assert await outcome_counts(session, bulk, reserve=100) == {"delivered": 120}


async def test_two_parallel_send_many_both_progress() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(10, per=100)) as session:
            first, second = (
                [OutgoingMessage(base + i, "bulk") for i in range(20)] for base in (1, 101)
            )
            async with asyncio.timeout(HOUR):
                await asyncio.gather(
                    outcome_counts(session, first, reserve=3),
                    outcome_counts(session, second, reserve=6),
                )
        assert market.messages_stored == 40
        assert busiest_window(departures(market), 100) <= 10


async def test_send_many_with_a_reserve_does_not_block_one_without() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(10, per=100)) as session:
            first, second = (
                [OutgoingMessage(base + i, "bulk") for i in range(20)] for base in (1, 101)
            )
            started = now()
            careful = asyncio.ensure_future(outcome_counts(session, first, reserve=6))
            await asyncio.sleep(1)
            await outcome_counts(session, second, reserve=0)
            assert now() - started < 210  # all ten places each time, not four
            await careful


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    requests=st.integers(2, 6),
    reserve=st.integers(0, 5),
    bulk=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    singles=st.lists(
        st.tuples(st.integers(1, 4), st.floats(0.01, 40), st.none() | st.floats(0, 30)), max_size=8
    ),
    faults=st.dictionaries(
        st.integers(1, 20),
        st.sampled_from(
            [
                Fault("status", status=503),
                Fault("rate_limit", delay=20.0),
                Fault("parallel_limit"),
                Fault("status", status=400),
            ]
        ),
        max_size=6,
    ),
)
def test_nothing_is_lost_doubled_or_overtaken_whatever_is_refused_and_cancelled(
    requests: int,
    reserve: int,
    bulk: list[int],
    singles: list[tuple[int, float, float | None]],
    faults: dict[int, Fault],
) -> None:
    async def main() -> None:
        handed_over: dict[int, list[str]] = {}
        ended: dict[str, str] = {}
        async with Sandbox(faults=faults, latency=0.5) as market:
            async with session_of(market, limits=limits(requests, per=30)) as session:

                def messages() -> Iterator[OutgoingMessage]:
                    for i, chat_id in enumerate(bulk):
                        handed_over.setdefault(chat_id, []).append(f"b{i}")
                        yield OutgoingMessage(chat_id, f"b{i}")

                async def many() -> None:
                    async for outcome in session.send_many(
                        messages(), reserve=min(reserve, requests - 1)
                    ):
                        ended[outcome.message.text] = outcome.status

                async def single(i: int) -> None:
                    chat_id, pause, cancel_after = singles[i]
                    await asyncio.sleep(pause)
                    handed_over.setdefault(chat_id, []).append(f"s{i}")
                    try:
                        async with asyncio.timeout(cancel_after):
                            await session.send_message(chat_id, f"s{i}")
                        ended[f"s{i}"] = "delivered"
                    except TimeoutError:
                        ended[f"s{i}"] = "cancelled"
                    except BadRequestError:
                        ended[f"s{i}"] = "refused"

                async with asyncio.timeout(100 * HOUR):
                    await asyncio.gather(many(), *(single(i) for i in range(len(singles))))
            await asyncio.sleep(20)
            assert len(ended) == len(bulk) + len(singles)
            assert busiest_window(departures(market), 30) <= requests
            assert market.busiest <= 4
            for chat_id, handed in handed_over.items():
                there = texts(market, chat_id)
                assert there == [text for text in handed if text in there]
                assert {t for t in handed if ended[t] == "delivered"} <= set(there)
                assert {t for t in handed if ended[t] == "refused"}.isdisjoint(there)

    virtual.run(main())
