"""The limits: requests over time, parallel requests, and the rate limit headers of answers."""
# ruff: noqa: SIM117 - one thing a line reads more easily here

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from email.utils import formatdate
from typing import Literal

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import virtual
from tests.helpers import (
    HOUR,
    KEY,
    RAISE_UNKNOWN,
    busiest_window,
    departures,
    http_server,
    now,
    outcome_of,
    outcomes_of,
    send_all,
    session_of,
    stored,
    texts,
)
from yamarket_chat import (
    ChatSession,
    InvalidArgumentError,
    Limits,
    MaxWaitExceededError,
    OutgoingMessage,
    Rate,
    SessionClosedError,
)
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults


def least_time(messages: int, latency: float, rate: Rate, parallel: int) -> float:
    """Seconds until the last of the messages can be stored: no client can be faster.

    Request n may arrive when request n - `parallel` has been answered, and when the Market has
    forgotten request n - `requests`.
    """
    arrivals: list[float] = []
    for i in range(messages):
        place = arrivals[i - parallel] + latency if i >= parallel else 0.0
        window = arrivals[i - rate.requests] + rate.per if i >= rate.requests else 0.0
        arrivals.append(max(place, window))
    return arrivals[-1] + latency


def limits(requests: int, per: float, burst: int | None = None, parallel: int = 4) -> Limits:
    return Limits(parallel=parallel, send_message=Rate(requests, per=per, burst=burst))


def to_chats(messages: int, chats: int) -> list[tuple[int, str]]:
    return [(i % chats + 1, f"{i // chats}") for i in range(messages)]


def assert_each_once_in_order(market: Sandbox, messages: list[tuple[int, str]]) -> None:
    handed_over: dict[int, list[str]] = {}
    for chat_id, text in messages:
        handed_over.setdefault(chat_id, []).append(text)
    assert stored(market) == handed_over


# Never above the limit, and hardly below it


@pytest.mark.parametrize(
    ("number", "latency"), [(3000, 0.1), (1000, 0.1), (1001, 9.0), (10, 0.5), (2001, 0.0)]
)
async def test_messages_submitted_at_once_use_the_documented_limits_fully(
    number: int, latency: float
) -> None:
    messages = to_chats(number, 60)
    async with Sandbox(latency=latency) as market, session_of(market) as session:
        began = now()
        await send_all(session, messages)
        last = max(m.stored_at for chat in market.chat_ids for m in market.messages(chat))
        assert_each_once_in_order(market, messages)
        arrivals = departures(market)
        assert len(arrivals) == number
        assert busiest_window(arrivals, HOUR) <= 1000
        assert market.busiest <= 4
        assert market.refused == 0
        # Passes of the loop cost time too, on the virtual clock: a few ms for a thousand messages.
        slack = 0.05 if latency == 0 else 0.0
        assert last - began <= 1.01 * least_time(number, latency, Rate(1000, HOUR), 4) + slack


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    requests=st.integers(1, 8),
    per=st.sampled_from([0.5, 3.0, 10.0, 60.0]),
    burst=st.none() | st.integers(1, 8),
    parallel=st.integers(1, 4),
    latencies=st.lists(st.floats(0, 9), min_size=1, max_size=6),
    timeout=st.sampled_from([15.0, 15.0, 4.0]),
    plan=st.lists(
        st.tuples(
            st.integers(1, 4),  # chat
            st.integers(0, 2),  # session
            st.sampled_from([0.0, 0.0, 0.0, 0.3, 7.0]),  # pause before it is handed over
            st.none() | st.none() | st.floats(0, 25),  # cancelled after
        ),
        min_size=1,
        max_size=16,
    ),
    bulk=st.integers(0, 6),
)
def test_the_limits_and_the_order_hold_for_any_rates_latencies_and_cancellations(
    requests: int,
    per: float,
    burst: int | None,
    parallel: int,
    latencies: list[float],
    timeout: float,
    plan: list[tuple[int, int, float, float | None]],
    bulk: int,
) -> None:
    rate = Rate(requests, per=per, burst=burst and min(burst, requests))
    latency = itertools.cycle(latencies)
    handed_over: dict[int, list[str]] = {}
    kept: set[str] = set()

    async def main() -> None:
        async with Sandbox(
            limits={"send_message": Rate(requests, per=per)},
            parallel=parallel,
            latency=lambda: next(latency),
        ) as market:
            sessions = [
                session_of(
                    market,
                    limits=Limits(parallel=parallel, send_message=rate),
                    retry=RAISE_UNKNOWN,
                    timeout=timeout,
                )
                for _ in range(3)
            ]

            async def one(index: int, chat_id: int, cancel_after: float | None) -> None:
                text = f"{index}"
                handed_over.setdefault(chat_id, []).append(text)
                if cancel_after is None:
                    if not isinstance(
                        await outcome_of(sessions[index % 3].send_message(chat_id, text)),
                        BaseException,
                    ):
                        kept.add(text)
                    return
                task = asyncio.ensure_future(sessions[index % 3].send_message(chat_id, text))
                await asyncio.sleep(cancel_after)
                task.cancel()
                await outcome_of(task)

            def many() -> Iterator[OutgoingMessage]:
                for i in range(bulk):
                    handed_over.setdefault(i % 2 + 1, []).append(f"bulk {i}")
                    yield OutgoingMessage(i % 2 + 1, f"bulk {i}")

            async with sessions[0], sessions[1], sessions[2], asyncio.TaskGroup() as group:
                mass = group.create_task(outcomes_of(sessions[1].send_many(many())))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                for index, (chat_id, session, pause, cancel_after) in enumerate(plan):
                    await asyncio.sleep(pause)
                    group.create_task(one(3 * index + session, chat_id, cancel_after))
            for outcome in mass.result():
                if outcome.status == "delivered":
                    kept.add(outcome.message.text)
            await asyncio.sleep(20)  # a message that was cancelled in progress may still be stored

            assert market.refused == 0
            assert market.busiest <= parallel
            assert busiest_window(departures(market), per) <= requests
            arrived = stored(market)
            for chat_id, texts_ in arrived.items():
                assert texts_ == [text for text in handed_over[chat_id] if text in texts_]
            everything = [text for texts_ in arrived.values() for text in texts_]
            assert kept <= set(everything)
            if timeout == 15.0:  # longer than any latency: only what was cancelled may be missing
                cancelled = {f"{3 * i + p[1]}" for i, p in enumerate(plan) if p[3] is not None}
                assert kept >= {t for ts in handed_over.values() for t in ts} - cancelled

    async def bounded() -> None:
        async with asyncio.timeout(100 * HOUR):
            await main()

    virtual.run(bounded())


@pytest.mark.parametrize("latency", [0.0, 0.5, 9.0])
async def test_a_burst_of_one_spreads_the_messages_evenly(latency: float) -> None:
    async with Sandbox(latency=latency) as market:
        async with session_of(market, limits=limits(5, per=10, burst=1)) as session:
            async with asyncio.timeout(HOUR):
                await send_all(session, to_chats(20, 20))
        arrivals = departures(market)
        gaps = [after - before for before, after in itertools.pairwise(arrivals)]
        assert min(gaps) >= 2.0 - 1e-3  # the way to the Market takes a moment more or less
        assert busiest_window(arrivals, 10) <= 5


async def test_rate_of_one_request_works() -> None:
    async with Sandbox(latency=0.1) as market:
        async with session_of(market, limits=limits(1, per=10)) as session:
            async with asyncio.timeout(HOUR):
                await send_all(session, to_chats(5, 5))
        first, *_, last = departures(market)
        assert 40.0 <= last - first <= 41.0


async def test_rate_below_the_limit_of_the_market_is_kept() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(10, per=100)) as session:
            await send_all(session, to_chats(35, 35))
            assert session.quota_status("send_message").limit == 10
        assert busiest_window(departures(market), 100) <= 10
        assert departures(market)[-1] <= 302


async def test_request_counts_in_the_window_until_per_seconds_after_the_answer() -> None:
    async with Sandbox(latency=8.0) as market:
        async with session_of(market, limits=limits(1, per=20, parallel=1)) as session:
            async with asyncio.timeout(HOUR):
                await send_all(session, [(1, "a"), (2, "b")])
        first, second = departures(market)
        assert second - first >= 28.0


@pytest.mark.parametrize("looks", range(0, 60, 2))
def test_single_call_is_sent_if_the_window_opens_during_the_check(looks: int) -> None:
    async def main() -> None:
        async with Sandbox() as market:
            async with session_of(market, limits=limits(1, per=5.0)) as session:
                await session.send_message(1, "a")
                answered = now()
                await asyncio.sleep(5.0 - looks * virtual.CreepingLoop.LOOK)
                await session.send_message(2, "b", max_wait=1)
                assert now() - answered < 5.5

    with asyncio.Runner(loop_factory=virtual.CreepingLoop) as runner:
        runner.run(main())


async def test_unanswered_request_holds_its_parallel_slot_until_the_cut_off() -> None:
    plan = {1: Fault("no_answer")}
    async with Sandbox(faults=plan) as market:
        async with session_of(
            market, limits=limits(1000, HOUR, parallel=1), timeout=1.0, retry=RAISE_UNKNOWN
        ) as session:
            await asyncio.gather(
                outcome_of(session.send_message(1, "a")), session.send_message(2, "b")
            )
        first, second = departures(market)
        assert 10.0 < second - first < 12.0


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=502, html=True, when="later", delay=9.0),
        Fault("status", status=200, html=True, when="later", delay=9.0),
        Fault("status", status=302, when="later", delay=9.0),
        Fault("half_body", when="later", delay=9.0),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_request_that_a_proxy_answers_holds_its_parallel_slot_until_the_cut_off(
    fault: Fault,
) -> None:
    async with Sandbox(faults={1: fault}, parallel=1) as market:
        async with session_of(
            market, limits=limits(1000, HOUR, parallel=1), retry=RAISE_UNKNOWN
        ) as session:
            await asyncio.gather(
                outcome_of(session.send_message(1, "a")), session.send_message(2, "b")
            )
        first, second = departures(market)
        assert 10.0 <= second - first < 11.0
        assert market.refusals.parallel == 0


async def test_request_that_a_proxy_answers_counts_in_the_window_until_the_cut_off() -> None:
    async with Sandbox(faults={1: Fault("status", status=502, html=True)}) as market:
        async with session_of(market, limits=limits(1, per=60), retry=RAISE_UNKNOWN) as session:
            await asyncio.gather(
                outcome_of(session.send_message(1, "a")), session.send_message(2, "b")
            )
        first, second = departures(market)
        assert 70.0 <= second - first < 71.0


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),  # the Market's own error
        Fault("status", status=429, html=True),  # surely not passed on to the Market
    ],
    ids=lambda fault: str(fault.status),
)
async def test_request_that_surely_has_ended_frees_its_parallel_slot_at_once(fault: Fault) -> None:
    async with Sandbox(faults={1: fault}, parallel=1) as market:
        async with session_of(
            market, limits=limits(1000, HOUR, parallel=1), retry=RAISE_UNKNOWN
        ) as session:
            await asyncio.gather(
                outcome_of(session.send_message(1, "a")), session.send_message(2, "b")
            )
        first, second, *_ = departures(market)
        assert second - first < 0.5


async def test_unanswered_request_counts_in_the_window() -> None:
    async with Sandbox(faults={1: Fault("no_answer")}) as market:
        async with session_of(
            market, limits=limits(2, per=60), timeout=1.0, retry=RAISE_UNKNOWN
        ) as session:
            await asyncio.gather(
                outcome_of(session.send_message(1, "a")),
                *(session.send_message(2 + i, "b") for i in range(2)),
            )
        first, second, third = departures(market)
        assert second - first < 1
        # The second request leaves the window first; the first one only after its cut-off.
        assert 60.0 <= third - first < 61.0


async def test_failed_connection_uses_no_request_of_the_limit() -> None:
    async with Sandbox() as market:
        await market.go_down()
        async with session_of(market, limits=limits(3, per=HOUR)) as session:
            sending = asyncio.ensure_future(session.send_message(1, "a"))
            await asyncio.sleep(20)
            assert session.quota_status("send_message").remaining == 3
            await market.come_back()
            receipt = await sending
            assert receipt.requests > 1
            assert session.quota_status("send_message").remaining == 2


# Cancelled waits


async def test_a_cancelled_wait_gives_everything_back() -> None:
    async with Sandbox(latency=1.0) as market:
        async with session_of(market, limits=limits(3, per=100, parallel=1)) as session:
            first, *others = [
                asyncio.ensure_future(session.send_message(i, "a")) for i in range(1, 60)
            ]
            await asyncio.sleep(0.5)
            assert session.quota_status("send_message").waiting == 58
            for other in others:
                other.cancel()
            await asyncio.wait(others)
            assert session.quota_status("send_message").waiting == 0
            assert session.quota_status("send_message").remaining == 2
            await first
            began = now()
            await send_all(session, [(7, "b"), (8, "b")])
            assert now() - began < 2.5
        assert len(departures(market)) == 3


@pytest.mark.parametrize("parallel", [1, 2])
async def test_cancelled_calls_free_their_slots_in_every_loop_pass(
    parallel: int,
) -> None:
    """A call may be cancelled after it was granted and before its request is sent."""
    async with Sandbox() as market:
        async with session_of(market, limits=limits(1000, HOUR, parallel=parallel)) as session:
            for passes in range(60):
                first = asyncio.ensure_future(session.send_message(1, "a"))
                second = asyncio.ensure_future(session.send_message(2, "b"))
                third = asyncio.ensure_future(session.send_message(3, "c"))
                for _ in range(passes):
                    await asyncio.sleep(0)
                second.cancel()
                async with asyncio.timeout(60):
                    results = [await outcome_of(call) for call in (first, second, third)]
                assert [type(result).__name__ for result in results] in (
                    ["Receipt", "CancelledError", "Receipt"],
                    ["Receipt", "Receipt", "Receipt"],
                )
                await asyncio.sleep(30)  # until a cancelled request must have been cut off
            assert session.quota_status("send_message").remaining == 1000 - len(market.arrivals)
            market.latency = 1.0
            began = now()
            await send_all(session, [(chat_id, "d") for chat_id in range(1, 2 * parallel + 1)])
            assert now() - began < 2.1
        assert market.busiest == parallel


# One state for all sessions of a business


async def test_a_session_for_each_web_request_keeps_the_limits() -> None:
    rate = limits(5, per=100)
    async with Sandbox(latency=0.1) as market:

        async def handle(i: int) -> None:
            async with session_of(market, limits=rate) as session:
                await session.send_message(i, "hello")

        for i in range(1, 13):
            await handle(i)
        assert busiest_window(departures(market), 100) == 5
        assert 200 <= departures(market)[-1] < 203


async def test_sessions_side_by_side_share_both_limits() -> None:
    rate = limits(10, per=100, parallel=2)
    async with Sandbox(latency=1.0) as market:
        async with session_of(market, limits=rate) as a, session_of(market, limits=rate) as b:
            await asyncio.gather(
                *((a if i % 2 else b).send_message(i, "hello") for i in range(1, 31))
            )
            assert a.quota_status("send_message") == b.quota_status("send_message")
        assert busiest_window(departures(market), 100) <= 10
        assert market.busiest == 2


async def test_other_limits_for_a_business_are_refused_until_its_window_is_empty() -> None:
    async with Sandbox() as market:
        async with session_of(market, limits=limits(5, per=100)) as session:
            with pytest.raises(InvalidArgumentError):
                async with session_of(market, limits=limits(6, per=100)):
                    pass
            await session.send_message(1, "a")
        with pytest.raises(InvalidArgumentError):
            async with session_of(market, limits=limits(6, per=100)):
                pass
        await asyncio.sleep(125)  # what was delivered is remembered for two minutes
        async with session_of(market, limits=limits(6, per=100)) as session:
            assert session.quota_status("send_message").limit == 6


async def test_businesses_do_not_share_their_limits() -> None:
    async with Sandbox(business_id=1) as one, Sandbox(business_id=2) as two:
        async with session_of(one, limits=limits(1, per=HOUR)) as a:
            async with session_of(two, limits=limits(2, per=HOUR), base_url=two.url) as b:
                async with asyncio.timeout(60):
                    await asyncio.gather(
                        a.send_message(1, "a"), b.send_message(1, "b"), b.send_message(2, "b")
                    )


async def test_quota_status_shows_remaining_requests_and_waiting_calls() -> None:
    async with Sandbox(latency=1.0) as market:
        async with session_of(market, limits=limits(3, per=100)) as session:
            status = session.quota_status("send_message")
            assert (status.limit, status.remaining, status.resets_in, status.waiting) == (
                3,
                3,
                0.0,
                0,
            )
            calls = [asyncio.ensure_future(session.send_message(i, "a")) for i in range(1, 6)]
            await asyncio.sleep(11)
            status = session.quota_status("send_message")
            assert (status.limit, status.remaining, status.waiting) == (3, 0, 2)
            # The three were answered after a second, so the next request is allowed 101 s after the
            # start.
            assert status.resets_in == pytest.approx(90, abs=0.1)
            await asyncio.gather(*calls)
            assert session.quota_status("send_message").waiting == 0


# The Market's answers correct the session's own count

# The Market's window, how far it has run at the start, and whether answers have headers.
HOURS = pytest.mark.parametrize(
    ("window", "phase"),
    [("rolling", 0.0), ("fixed", 0.0), ("fixed", 3500.0)],
)
HEADERS = pytest.mark.parametrize("headers", [True, False], ids=["headers", "no headers"])


@HOURS
@pytest.mark.parametrize(("headers", "clock"), [(True, 600.0), (True, -600.0), (False, 600.0)])
async def test_session_notices_300_requests_of_another_program(
    window: Literal["rolling", "fixed"], phase: float, headers: bool, clock: float
) -> None:
    messages = to_chats(800, 40)
    async with Sandbox(
        window=window,
        window_phase=phase,
        rate_limit_headers=headers,
        clock_offset=clock,
        latency=0.1,
    ) as market:
        market.other_programs_use("send_message", 300)
        async with session_of(market) as session:
            await send_all(session, messages)
        assert_each_once_in_order(market, messages)
        assert market.refused <= (0 if headers else 8)
        rest_of_the_hour = HOUR - phase if window == "fixed" else HOUR
        # Without headers, the session finds the end of the hour by trying, less and less often.
        assert departures(market)[-1] <= (rest_of_the_hour + 60 if headers else 2.1 * HOUR)


@HOURS
@HEADERS
async def test_session_adapts_when_another_program_uses_300_requests_meanwhile(
    window: Literal["rolling", "fixed"], phase: float, headers: bool
) -> None:
    messages = to_chats(1100, 40)
    async with Sandbox(
        window=window,
        window_phase=phase,
        rate_limit_headers=headers,
        latency=lambda: random.uniform(0.05, 2.0),
    ) as market:
        async with session_of(market) as session:
            sending = asyncio.ensure_future(send_all(session, messages))
            for _ in range(30):
                await asyncio.sleep(5)
                market.other_programs_use("send_message", 10)
            await sending
        assert_each_once_in_order(market, messages)
        assert market.refused <= 8
        assert busiest_window(departures(market), HOUR) <= 1000


@HOURS
@HEADERS
async def test_restarted_process_learns_used_requests_from_the_headers(
    window: Literal["rolling", "fixed"], phase: float, headers: bool
) -> None:
    """The second session uses another base URL of the same sandbox, so it shares no state."""
    before, after = to_chats(600, 30), to_chats(900, 30)
    async with Sandbox(
        window=window,
        window_phase=phase,
        rate_limit_headers=headers,
        latency=0.1,
    ) as market:
        async with session_of(market) as session:
            await send_all(session, before)
        await asyncio.sleep(600)
        elsewhere = market.url.replace("127.0.0.1", "localhost")
        async with session_of(market, base_url=elsewhere) as session:
            assert session.quota_status("send_message").remaining == 1000
            await send_all(session, after)
        assert sorted(text or "" for texts_ in stored(market).values() for text in texts_) == (
            sorted(text for _, text in before + after)
        )
        for chat_id in range(1, 31):
            assert texts(market, chat_id) == [
                text for chat, text in before + after if chat == chat_id
            ]
        assert market.refused <= 8


@HOURS
@HEADERS
async def test_session_follows_a_lower_limit_of_the_market(
    window: Literal["rolling", "fixed"], phase: float, headers: bool
) -> None:
    messages = to_chats(1200, 40)
    async with Sandbox(
        window=window,
        window_phase=phase,
        rate_limit_headers=headers,
        limits={"send_message": Rate(500, per=HOUR)},
        latency=0.1,
    ) as market:
        async with session_of(market) as session:
            await send_all(session, messages)
            limit = session.quota_status("send_message").limit
        assert_each_once_in_order(market, messages)
        assert market.refused <= (0 if headers else 8)
        assert limit == 500  # without headers, the text of the 420 says it


async def test_lower_limit_holds_until_an_answer_raises_it() -> None:
    async with Sandbox(limits={"send_message": Rate(5, per=100)}) as market:
        async with session_of(market, limits=limits(10, per=100)) as session:
            await session.send_message(1, "a")
            assert session.quota_status("send_message").limit == 5
            market.set_limit("send_message", Rate(2000, per=100))
            await session.send_message(1, "b")
            assert session.quota_status("send_message").limit == 10


async def test_session_adapts_when_the_market_allows_2_parallel_requests() -> None:
    messages = to_chats(1500, 40)
    async with Sandbox(parallel=2, latency=0.1) as market:
        async with session_of(market) as session:
            await send_all(session, messages)
        assert_each_once_in_order(market, messages)
        assert market.refused <= 8
        # Both places are used: 1,000 messages two by two.
        assert departures(market)[900] < 900 / 2 * 0.1 * 1.1


async def test_parallel_slots_grow_back_after_other_programs_stop() -> None:
    messages = to_chats(1000, 40)
    async with Sandbox(latency=0.1) as market:
        async with session_of(market) as session:
            with market.other_programs_hold(2):
                sending = asyncio.ensure_future(send_all(session, messages))
                await asyncio.sleep(5)
            await sending
        assert_each_once_in_order(market, messages)
        assert market.refused <= 8
        assert [a.in_progress for a in market.arrivals[-100:]].count(4) > 20


async def test_other_programs_holding_all_parallel_slots_cause_few_refusals() -> None:
    messages = to_chats(300, 300)
    async with Sandbox(latency=0.1) as market:
        async with session_of(market) as session:
            with market.other_programs_hold(4):
                sending = asyncio.ensure_future(send_all(session, messages))
                await asyncio.sleep(10)
            refused = market.refused
            await sending
        assert_each_once_in_order(market, messages)
        # Each refusal counts in the hour: all 1,000 requests would soon be used up.
        assert refused <= 100
        assert departures(market)[-1] < 60


async def test_parallel_slots_grow_back_after_minutes_without_any() -> None:
    messages = to_chats(900, 40)
    async with Sandbox(latency=3.0) as market, session_of(market) as session:
        with market.other_programs_hold(4):
            sending = asyncio.ensure_future(send_all(session, messages))
            await asyncio.sleep(300)
        await sending
        assert_each_once_in_order(market, messages)
        # With one place 900 such messages take 45 minutes, with all four 11.
        assert max(a.in_progress for a in market.arrivals[-100:]) == 4


async def test_pauses_after_a_parallel_420_are_random() -> None:
    async with Sandbox(faults=lambda _: Fault("parallel_limit")) as market:
        async with session_of(market) as session:
            sending = asyncio.ensure_future(session.send_message(1, "a"))
            await asyncio.sleep(30)
            market.faults = None
            assert (await sending).requests == len(departures(market))
        gaps = [round(b - a, 3) for a, b in itertools.pairwise(departures(market))]
        assert len(set(gaps)) > len(gaps) / 2 > 1
        assert min(gaps) > 0.05


@HEADERS
async def test_window_filled_by_another_program_refuses_at_most_once_per_request(
    headers: bool,
) -> None:
    messages = to_chats(60, 60)
    async with Sandbox(latency=0.1, rate_limit_headers=headers) as market:
        for _ in range(1000):
            market.other_programs_use("send_message", 1)
            await asyncio.sleep(3.6)
        async with session_of(market) as session:
            began = now()
            async with asyncio.timeout(20 * HOUR):
                await send_all(session, messages)
        assert_each_once_in_order(market, messages)
        # A request becomes free every 3.6 s: this many were free until the last message was sent.
        assert market.refused <= (departures(market)[-1] - began) / 3.6 + 4
        if headers:
            assert market.refused <= 60
            assert departures(market)[-1] - began <= 60 * 5.7


async def test_other_program_taking_every_free_request_causes_few_refusals() -> None:
    async with Sandbox(latency=0.1) as market:
        for _ in range(100):
            market.other_programs_use("send_message", 10)
            await asyncio.sleep(36)
        async with session_of(market) as session:
            sending = asyncio.ensure_future(send_all(session, to_chats(40, 40)))
            for _ in range(6000):  # ten minutes: 17 times, ten requests become free
                market.other_programs_use("send_message", 10)
                await asyncio.sleep(0.1)
            assert market.refused <= 17 + 4
            await sending
        assert_each_once_in_order(market, to_chats(40, 40))


@pytest.mark.parametrize("clock", [0.0, 600.0, -600.0])
async def test_after_a_420_one_request_goes_alone_at_until(clock: float) -> None:
    plan = {5: Fault("rate_limit", delay=30.0)}
    async with Sandbox(faults=plan, latency=1.0, clock_offset=clock) as market:
        async with session_of(market) as session:
            await send_all(session, to_chats(20, 20))
        assert [a.status for a in market.arrivals].count(420) == 1
        refused = market.arrivals[4]
        after = [t for t in departures(market) if t > refused.time + 1.5]
        probe, *rest = after
        assert 30.0 <= probe - (refused.time + 1.0) <= 32.0
        assert min(rest) >= probe + 1.0  # its answer opens the rest
        assert rest[2] < probe + 1.5


async def test_420_counts_in_the_window() -> None:
    plan = {1: Fault("rate_limit", delay=0.0), 2: Fault("parallel_limit")}
    async with Sandbox(faults=plan) as market:
        async with session_of(market, limits=limits(3, per=100)) as session:
            await send_all(session, [(1, "a"), (1, "b"), (1, "c")])
        assert [a.status for a in market.arrivals] == [420, 420, 200, 200, 200]
        assert busiest_window(departures(market), 100) <= 3


async def test_420_counts_in_no_bound_of_the_retries() -> None:
    from yamarket_chat import Retry

    plan = {i: Fault("rate_limit") for i in range(1, 41)}
    plan |= {i: Fault("parallel_limit") for i in range(20, 41)}
    async with Sandbox(faults=plan) as market:
        async with session_of(market, retry=Retry(attempts=1, give_up_after=0)) as session:
            receipt = await session.send_message(1, "a")
        assert receipt.requests == 41
        assert texts(market, 1) == ["a"]


def date(seconds: float) -> str:
    return formatdate(1_800_000_000 + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Date": date(0), "X-RateLimit-Resource-Until": date(100)}, 100, 102),
        ({"Date": date(0), "X-RateLimit-Resource-Until": date(-100)}, 0.5, 2),
        ({"Date": date(0), "X-RateLimit-Resource-Until": date(10**7)}, 500, 601),
        ({"Date": date(0), "X-RateLimit-Resource-Until": "soon"}, 10, 601),
        ({"Date": date(0), "X-RateLimit-Resource-Until": ""}, 10, 601),
        ({"Date": date(0), "X-RateLimit-Resource-Until": "Fri, 99 Foo 99999 99:99:99"}, 10, 601),
        ({"Date": "never", "X-RateLimit-Resource-Until": date(100)}, 10, 601),
        ({"Date": date(0)}, 10, 601),
        ({"X-RateLimit-Resource-Remaining": "-5", "X-RateLimit-Resource-Limit": "x"}, 10, 601),
        ({"X-RateLimit-Resource-Remaining": "0", "X-RateLimit-Resource-Limit": "0"}, 10, 601),
        ({"X-RateLimit-Resource-Limit": "9" * 5000}, 10, 601),
    ],
)
async def test_until_is_used_as_a_duration_of_at_most_per(
    headers: dict[str, str], least: float, most: float
) -> None:
    """The second attempt is sent when the first answer says, at most `per` seconds later."""
    arrivals = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        arrivals.append(now())
        body = b'{"status":"ERROR","errors":[{"code":"LIMIT_EXCEEDED"}]}'
        if len(arrivals) == 1:
            return web.Response(status=420, body=body, headers=headers)
        return web.Response(body=b'{"status":"OK"}')

    async with http_server(answer) as url:
        async with ChatSession(KEY, 1, base_url=url, limits=limits(5, per=600)) as session:
            async with asyncio.timeout(HOUR):
                receipt = await session.send_message(1, "a")
    assert receipt.requests == 2
    first, second = arrivals
    assert least <= second - first <= most


@pytest.mark.parametrize("limit", ["0", "-1", "", "1.5", "9" * 40, "ten"])
@pytest.mark.parametrize("remaining", ["0", "-1", "", "9" * 40, "7"])
async def test_invalid_header_numbers_never_block_the_session(limit: str, remaining: str) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        headers = {
            "X-RateLimit-Resource-Limit": limit,
            "X-RateLimit-Resource-Remaining": remaining,
            "X-RateLimit-Resource-Until": date(60),
            "Date": date(0),
        }
        return web.Response(body=b'{"status":"OK"}', headers=headers)

    async with http_server(answer) as url:
        async with ChatSession(KEY, 1, base_url=url, limits=limits(10, per=60)) as session:
            async with asyncio.timeout(HOUR):
                await send_all(session, to_chats(12, 12))


async def test_remaining_below_the_own_count_caps_requests_until_until() -> None:
    async with Sandbox(latency=0.1) as market:
        market.other_programs_use("send_message", 995)
        async with session_of(market) as session:
            await session.send_message(1, "a")
            status = session.quota_status("send_message")
            assert status.remaining == 4
            await send_all(session, to_chats(4, 4))
            status = session.quota_status("send_message")
            assert status.remaining == 0
            assert status.resets_in == pytest.approx(HOUR, abs=5)
            with pytest.raises(MaxWaitExceededError) as caught:
                await session.send_message(1, "b", max_wait=60)
            assert 60 < (caught.value.retry_after or 0) <= HOUR
        assert market.refused == 0


async def test_calls_waiting_after_a_420_end_when_the_session_closes() -> None:
    async with Sandbox(faults={1: Fault("rate_limit", delay=3000.0)}) as market:
        session = session_of(market)
        calls = [asyncio.ensure_future(session.send_message(i, "a")) for i in range(1, 9)]
        await asyncio.sleep(60)
        began = now()
        await session.close()
        assert now() - began < 1
        errors = await asyncio.gather(*calls, return_exceptions=True)
        closed = [error for error in errors if isinstance(error, SessionClosedError)]
        # Those that left beside the refused one were delivered.
        assert len(closed) == 8 - sum(a.status == 200 for a in market.arrivals)
        assert all(error.sent is False for error in closed)


@pytest.mark.parametrize("number", [1, 3, 20, 41])
async def test_420_also_holds_back_calls_about_to_be_sent(number: int) -> None:
    """Some calls have been granted, but not sent, when the 420 arrives."""
    refusal = numbered_faults({number: Fault("rate_limit", delay=30)})
    async with Sandbox(latency=0.02, faults=refusal) as market, session_of(market) as session:
        await send_all(session, to_chats(60, 60))
    times = [arrival.time for arrival in market.arrivals]
    (closed,) = [a.time for a in market.arrivals if a.status == 420]
    later = [time for time in times if time > closed + 0.001]
    assert later[0] >= closed + 30
    assert later[1] >= later[0] + 0.02  # the first one's answer opens the rest


async def test_requests_that_never_reach_the_market_do_not_count() -> None:
    rate = Rate(100, per=HOUR)
    async with Sandbox(limits={"send_message": rate}) as market:
        async with session_of(market, limits=Limits(send_message=rate)) as session:
            await market.go_down()
            messages = [OutgoingMessage(i, "hi") for i in range(1, 41)]
            sending = asyncio.create_task(outcomes_of(session.send_many(messages)))
            await asyncio.sleep(200)  # many attempts, none of which makes a connection
            await market.come_back()
            came_back = now()
            await sending
            assert now() - came_back < 61  # the longest pause between two attempts
