"""The sandbox's limits: parallel requests, requests per window, and the headers about them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sandbox_client import Answer, Seller, seller_of
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Rate
from yamarket_chat.sandbox import Refusals, Sandbox
from yamarket_chat.sandbox.limits import FixedWindow, RollingWindow


def limit_of(answer: Answer) -> tuple[int, int]:
    headers = answer.headers
    return (
        int(headers["X-RateLimit-Resource-Limit"]),
        int(headers["X-RateLimit-Resource-Remaining"]),
    )


def seconds_until(answer: Answer) -> float:
    until = parsedate_to_datetime(answer.headers["X-RateLimit-Resource-Until"])
    return (until - parsedate_to_datetime(answer.headers["Date"])).total_seconds()


async def send_many(seller: Seller, number: int) -> list[int]:
    return [(await seller.send(7, "hi")).status for _ in range(number)]


def three_per_minute(**keywords: Any) -> Sandbox:
    return Sandbox(limits={"send_message": Rate(3, 60)}, **keywords)


# Parallel requests


async def test_more_than_four_parallel_requests_are_refused() -> None:
    async with Sandbox(latency=1.0) as market, seller_of(market) as seller:
        answers = await asyncio.gather(
            *(seller.send(chat_id, "hi") for chat_id in range(1, 5)),
            seller.call("GET", "/chat?chatId=1"),
        )
        assert [answer.status for answer in answers].count(200) == 4
        [refused] = [answer for answer in answers if answer.status == 420]
        assert refused.error[1] == "Hit rate limit of 4 parallel requests for businessId 12345"
        assert refused.reason == "Enhance Your Calm"
        assert market.refusals == Refusals(parallel=1)
        assert (market.refused, market.busiest) == (1, 5)


async def test_parallel_slot_is_free_after_the_answer() -> None:
    async with Sandbox(latency=0.5, parallel=2) as market, seller_of(market) as seller:

        async def one_after_the_other(chat_id: int) -> None:
            for _ in range(20):
                assert (await seller.send(chat_id, "hi")).status == 200

        await asyncio.gather(one_after_the_other(1), one_after_the_other(2))
        assert (market.refused, market.busiest) == (0, 2)


async def test_parallel_limit_can_be_changed_while_the_sandbox_runs() -> None:
    async with Sandbox(latency=1.0) as market, seller_of(market) as seller:
        market.parallel = 1
        answers = await asyncio.gather(seller.send(1, "hi"), seller.send(2, "hi"))
        texts = [answer.error[1] for answer in answers if answer.status == 420]
        assert texts == ["Hit rate limit of 1 parallel requests for businessId 12345"]


async def test_other_programs_can_hold_parallel_slots() -> None:
    async with Sandbox(latency=1.0) as market, seller_of(market) as seller:
        with market.other_programs_hold(3):
            first = asyncio.create_task(seller.send(1, "hi"))
            await asyncio.sleep(0.5)
            assert (await seller.send(2, "hi")).status == 420
            assert (await first).status == 200
        answers = await asyncio.gather(*(seller.send(n, "hi") for n in range(1, 5)))
        assert [answer.status for answer in answers] == [200] * 4
        assert market.busiest == 4, "only our own requests are in the books"


async def test_parallel_420_counts_like_every_4xx() -> None:
    async with three_per_minute(latency=1.0, parallel=1) as market, seller_of(market) as seller:
        await asyncio.gather(seller.send(1, "hi"), seller.send(2, "hi"))
        assert limit_of(await seller.send(1, "hi")) == (3, 0)


# Requests per window


async def test_every_operation_sends_its_documented_limit() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        message = market.buyer_says(7, "hi")
        answers = {
            1000: [
                await seller.send(7, "hi"),
                await seller.send_file(7, b"x"),
                await seller.call(
                    "POST", "/chats/new", json={"context": {"type": "ORDER", "id": 1}}
                ),
                await seller.call("GET", "/chat?chatId=7"),
                await seller.call("GET", f"/chats/message?chatId=7&messageId={message.message_id}"),
                await seller.call("GET", "/v2/campaigns"),
            ],
            5000: [await seller.call("POST", "/chats", json={})],
            10_000: [await seller.call("POST", "/chats/history?chatId=7", json={})],
            100: [await seller.call("POST", "/v2/auth/token")],
        }
        for limit, group in answers.items():
            for answer in group:
                assert (answer.status, limit_of(answer)) == (200, (limit, limit - 1))
                assert 3599 <= seconds_until(answer) <= 3601


async def test_a_full_window_refuses_until_its_oldest_request_leaves_it() -> None:
    async with three_per_minute() as market, seller_of(market) as seller:
        assert await send_many(seller, 1) == [200]
        await asyncio.sleep(20)
        assert await send_many(seller, 3) == [200, 200, 420]
        refused = await seller.send(7, "hi")
        assert refused.error[1] == (
            "Hit rate limit of 3 requests per 1 minute for resource sendMessageToChat"
        )
        assert limit_of(refused) == (3, 0)
        assert 39 <= seconds_until(refused) <= 41
        await asyncio.sleep(39.9)
        assert await send_many(seller, 1) == [420]
        await asyncio.sleep(0.1)
        assert await send_many(seller, 2) == [200, 420]
        assert market.refusals == Refusals(rate=4)
        assert [message.text for message in market.messages(7)] == ["hi"] * 4


async def test_refused_requests_do_not_keep_the_window_full() -> None:
    async with three_per_minute() as market, seller_of(market) as seller:
        await send_many(seller, 3)
        for _ in range(59):
            await asyncio.sleep(1)
            assert await send_many(seller, 1) == [420]
        await asyncio.sleep(1)
        assert await send_many(seller, 3) == [200] * 3


async def test_fixed_window_starts_again_at_its_end() -> None:
    async with (
        three_per_minute(window="fixed", window_phase=45) as market,
        seller_of(market) as seller,
    ):
        first = await seller.send(7, "hi")
        assert limit_of(first) == (3, 2)
        assert 14 <= seconds_until(first) <= 16
        assert await send_many(seller, 3) == [200, 200, 420]
        await asyncio.sleep(15)
        assert await send_many(seller, 4) == [200, 200, 200, 420]
        assert market.busiest_window("send_message") == 6, "two windows in 15 s"
        assert 59 <= seconds_until(await seller.send(7, "hi")) <= 61


async def test_4xx_answers_count_except_for_unknown_keys() -> None:
    async with three_per_minute() as market, seller_of(market) as seller:
        for stranger in (
            await seller.send(7, "hi", headers={"Api-Key": "ACMA:other"}),
            await seller.send(7, "hi", business_id=1),
        ):
            assert "X-RateLimit-Resource-Limit" not in stranger.headers
        assert limit_of(await seller.send(7, "")) == (3, 2)
        market.locked = True
        assert limit_of(await seller.send(7, "hi")) == (3, 1)


async def test_a_request_is_counted_when_it_arrives() -> None:
    async with three_per_minute(latency=5.0) as market, seller_of(market) as seller:
        await asyncio.gather(*(seller.send(chat_id, "hi") for chat_id in (1, 2, 3)))
        await asyncio.sleep(54.9)
        assert await send_many(seller, 1) == [420]
        await asyncio.sleep(0.2)
        assert await send_many(seller, 1) == [200]
        assert market.refusals == Refusals(rate=1)


async def test_each_operation_has_a_window_of_its_own() -> None:
    async with three_per_minute() as market, seller_of(market) as seller:
        await send_many(seller, 4)
        assert len(await seller.texts(7)) == 3
        assert market.refused == 1


async def test_other_programs_use_up_what_is_left() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        market.other_programs_use("send_message", 300)
        assert limit_of(await seller.send(7, "hi")) == (1000, 699)
        market.other_programs_use("send_message", 10_000)
        assert (await seller.send(7, "hi")).status == 420
        await asyncio.sleep(3600)
        assert limit_of(await seller.send(7, "hi")) == (1000, 999)
        with pytest.raises(InvalidArgumentError):
            market.other_programs_use("sendMessageToChat", 1)


async def test_rate_limit_can_be_changed_while_the_sandbox_runs() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        await send_many(seller, 5)
        market.set_limit("send_message", Rate(3, 3600))
        refused = await seller.send(7, "hi")
        assert (refused.status, limit_of(refused)) == (420, (3, 0))
        market.set_limit("send_message", Rate(7, 3600))
        assert limit_of(await seller.send(7, "hi")) == (7, 1)


async def test_the_headers_can_be_left_out() -> None:
    async with three_per_minute(rate_limit_headers=False) as market, seller_of(market) as seller:
        for _ in range(4):
            answer = await seller.send(7, "hi")
            assert not [name for name in answer.headers if name.startswith("X-RateLimit")]
        assert answer.status == 420


@pytest.mark.parametrize(
    ("per", "period"),
    [
        (3600, "1 hour"),
        (7200, "2 hours"),
        (60, "1 minute"),
        (90, "90 seconds"),
        (1, "1 second"),
        (0.5, "0.5 seconds"),
    ],
)
async def test_text_of_a_420_names_the_period(per: float, period: str) -> None:
    async with (
        Sandbox(limits={"send_message": Rate(1, per)}) as market,
        seller_of(market) as seller,
    ):
        await seller.send(7, "hi")
        assert (await seller.send(7, "hi")).error[1] == (
            f"Hit rate limit of 1 requests per {period} for resource sendMessageToChat"
        )


async def test_busiest_window_returns_the_largest_count() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        for pause in (0, 5, 4, 2, 20):
            await asyncio.sleep(pause)
            await seller.send(7, "hi")
        assert market.busiest_window("send_message") == 5
        assert market.busiest_window("send_message", per=10.5) == 3
        assert market.busiest_window("send_message", per=1) == 1
        assert market.busiest_window("history") == 0


# The window classes, without a server

knocks = st.lists(st.floats(0, 3, allow_nan=False), max_size=200)
rates: st.SearchStrategy[Rate] = st.builds(Rate, st.integers(1, 5), st.sampled_from([1.0, 2.5]))


def let_in(window: RollingWindow | FixedWindow, pauses: list[float]) -> list[float]:
    now, taken = 100.0, []
    for pause in pauses:
        now += pause
        if window.take(now):
            taken.append(now)
    return taken


@given(rates, knocks)
def test_rolling_window_admits_the_limit_in_any_period(rate: Rate, pauses: list[float]) -> None:
    taken = let_in(RollingWindow(rate), pauses)
    for later in range(rate.requests, len(taken)):
        assert taken[later - rate.requests] + rate.per <= taken[later]


@given(rates, knocks)
def test_request_at_until_is_admitted(rate: Rate, pauses: list[float]) -> None:
    for window in (RollingWindow(rate), FixedWindow(rate, start=7.0)):
        let_in(window, pauses)
        now = 100.0 + sum(pauses)
        while window.take(now):
            pass
        until = window.until(now)
        assert now < until <= now + rate.per + 1e-9
        assert window.take(until) == 1


@given(rates, knocks)
def test_fixed_window_admits_the_limit_in_each_period(rate: Rate, pauses: list[float]) -> None:
    counts: Mapping[float, int] = {}
    window = FixedWindow(rate, start=7.0)
    now = 100.0
    for pause in pauses:
        now += pause
        end = window.until(now)
        assert now < end
        if window.take(now):
            counts = {**counts, end: counts.get(end, 0) + 1}
    assert all(count <= rate.requests for count in counts.values())
