"""The sandbox's faults: what the client gets, and whether the sandbox executed the request."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
import pytest

from tests.sandbox_client import Answer, Seller, seller_of
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.sandbox import (
    EVERY_FAULT,
    Fault,
    Refusals,
    RequestInfo,
    Sandbox,
    numbered_faults,
    random_faults,
)

BEFORE_AND_AFTER = pytest.mark.parametrize("when", ["before", "after"])


def failing(fault: Fault, **keywords: Any) -> Sandbox:
    """Return a sandbox whose first request fails."""
    return Sandbox(latency=0.5, faults={1: fault}, **keywords)


def stored(market: Sandbox) -> list[str | None]:
    return [message.text for message in market.messages(7)]


def expected(when: str) -> list[str]:
    return ["hi"] if when == "after" else []


async def attempt(seller: Seller) -> Answer | BaseException:
    try:
        return await seller.send(7, "hi")
    except (aiohttp.ClientError, TimeoutError) as error:
        return error


@BEFORE_AND_AFTER
async def test_reset_fault_closes_the_connection(when: Any) -> None:
    async with failing(Fault("reset", when=when)) as market, seller_of(market) as seller:
        with pytest.raises(aiohttp.ClientOSError, match="Connection reset by peer"):
            await seller.send(7, "hi")
        assert stored(market) == expected(when)
        assert market.arrivals[0].status is None
        assert (await seller.send(7, "next")).status == 200


@BEFORE_AND_AFTER
async def test_no_answer_fault_holds_the_parallel_slot_until_the_cut_off(when: Any) -> None:
    async with (
        failing(Fault("no_answer", when=when), parallel=1) as market,
        seller_of(market) as seller,
    ):
        silent = asyncio.create_task(attempt(seller))
        await asyncio.sleep(9.9)
        assert stored(market) == expected(when)
        assert (await seller.send(8, "too early")).status == 420
        await asyncio.sleep(0.2)
        assert (await seller.send(8, "in time")).status == 200
        assert isinstance(await silent, TimeoutError)
        assert stored(market) == expected(when)
        assert market.arrivals[0].status is None
        # The task that serves this connection has ended.
        await asyncio.sleep(1)
        assert not [t for t in asyncio.all_tasks() if "_handle_request" in repr(t)]


async def test_client_that_gives_up_does_not_free_the_parallel_slot() -> None:
    async with failing(Fault("no_answer"), parallel=1) as market, seller_of(market) as seller:
        silent = asyncio.create_task(attempt(seller))
        await asyncio.sleep(2)
        silent.cancel()
        await asyncio.sleep(7.9)
        assert (await seller.send(8, "too early")).status == 420
        await asyncio.sleep(0.2)
        assert (await seller.send(8, "in time")).status == 200


@BEFORE_AND_AFTER
@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize("status", [200, 404, 500, 502, 503, 504])
async def test_status_fault_answers_any_status(when: Any, html: bool, status: int) -> None:
    fault = Fault("status", when=when, status=status, html=html)
    async with failing(fault) as market, seller_of(market) as seller:
        answer = await seller.send(7, "hi")
        assert answer.status == status
        assert stored(market) == expected(when)
        if html:
            assert answer.body.startswith(b"<html>")
            assert answer.headers["Content-Type"].startswith("text/html")
            assert "X-RateLimit-Resource-Limit" not in answer.headers
        else:
            assert answer.error[0] == status
            assert answer.headers["X-RateLimit-Resource-Remaining"] == "999"
        assert "Date" in answer.headers
        assert market.arrivals[0].status == status


@BEFORE_AND_AFTER
async def test_status_fault_can_redirect(when: Any) -> None:
    fault = Fault("status", when=when, status=302)
    async with failing(fault) as market, seller_of(market) as seller:
        answer = await seller.send(7, "hi")
        assert (answer.status, "Location" in answer.headers) == (302, True)
        assert stored(market) == expected(when)


@BEFORE_AND_AFTER
async def test_half_body_fault_breaks_off_the_body(when: Any) -> None:
    async with failing(Fault("half_body", when=when)) as market, seller_of(market) as seller:
        with pytest.raises(aiohttp.ClientPayloadError):
            await seller.send(7, "hi")
        assert stored(market) == expected(when)


@pytest.mark.parametrize("delay", [4.0, 9.9])
async def test_a_message_is_stored_long_after_its_connection_broke(delay: float) -> None:
    loop = asyncio.get_running_loop()
    fault = Fault("reset", when="later", delay=delay)
    async with failing(fault, parallel=1) as market, seller_of(market) as seller:
        start = loop.time()
        with pytest.raises(aiohttp.ClientOSError):
            await seller.send(7, "hi")
        assert loop.time() - start == pytest.approx(0.5, abs=0.01)
        await asyncio.sleep(min(delay, 9.5) - 0.1)
        assert stored(market) == []
        assert (await seller.send(7, "refused")).status == 420, "it still holds its place"
        await asyncio.sleep(0.6)
        assert stored(market) == ["hi"]
        assert market.messages(7)[0].stored_at - start == pytest.approx(0.5 + delay, abs=0.01)
        assert (await seller.send(7, "next")).status == 200


async def test_parallel_slot_is_free_after_the_cut_off() -> None:
    fault = Fault("reset", when="later", delay=30)
    async with failing(fault, parallel=1) as market, seller_of(market) as seller:
        await attempt(seller)
        await asyncio.sleep(9.4)
        assert (await seller.send(8, "too early")).status == 420
        await asyncio.sleep(0.2)
        assert (await seller.send(8, "in time")).status == 200
        await asyncio.sleep(20)
        assert stored(market) == ["hi"]


async def test_later_fault_is_not_carried_out_after_the_sandbox_ended() -> None:
    fault = Fault("status", status=502, when="later", delay=5)
    async with failing(fault) as market, seller_of(market) as seller:
        assert (await seller.send(7, "hi")).status == 502
    await asyncio.sleep(10)
    assert stored(market) == []


async def test_slow_fault_delays_the_answer() -> None:
    loop = asyncio.get_running_loop()
    async with failing(Fault("slow", delay=5)) as market, seller_of(market) as seller:
        start = loop.time()
        assert (await seller.send(7, "hi")).status == 200
        assert loop.time() - start == pytest.approx(5.5, abs=0.01)
        assert stored(market) == ["hi"]


async def test_slow_fault_beyond_the_cut_off_is_cut_off() -> None:
    async with failing(Fault("slow", delay=9.6)) as market, seller_of(market) as seller:
        assert (await seller.send(7, "hi")).status == 504
        assert stored(market) == []


async def test_rate_limit_and_parallel_limit_faults_answer_420() -> None:
    faults = {1: Fault("rate_limit", delay=30), 2: Fault("parallel_limit")}
    async with Sandbox(faults=faults) as market, seller_of(market) as seller:
        rate, parallel = await seller.send(7, "hi"), await seller.send(7, "hi")
        assert rate.error[1] == (
            "Hit rate limit of 1000 requests per 1 hour for resource sendMessageToChat"
        )
        assert rate.headers["X-RateLimit-Resource-Remaining"] == "0"
        assert rate.reason == "Enhance Your Calm"
        assert parallel.error[1] == "Hit rate limit of 4 parallel requests for businessId 12345"
        assert stored(market) == []
        assert market.refusals == Refusals(fault=2)
        assert market.refused == 2


async def test_a_file_fails_like_a_message() -> None:
    async with failing(Fault("reset", when="after")) as market, seller_of(market) as seller:
        with pytest.raises(aiohttp.ClientOSError):
            await seller.send_file(7, b"content")
        assert market.messages(7)[0].payload[0].size == 7


# Which requests fail


async def test_faults_number_only_admitted_requests() -> None:
    seen: list[RequestInfo] = []

    def plan(request: RequestInfo) -> None:
        seen.append(request)

    async with Sandbox(faults=plan, parallel=1, latency=0.1) as market, seller_of(market) as seller:
        await asyncio.gather(seller.send(7, "hi"), seller.send(8, "refused"))
        await seller.texts(7)
        await seller.send(7, "ho")
        await seller.send(7, "nobody", headers={"Api-Key": "ACMA:other"})
    first = seen[0].chat_id
    assert [(i.number, i.operation_number, i.operation, i.chat_id) for i in seen] == [
        (1, 1, "send_message", first),
        (2, 1, "history", 7),
        (3, 2, "send_message", 7),
    ]
    assert seen[0].time < seen[1].time < seen[2].time


async def test_faults_by_the_number_within_an_operation() -> None:
    plan = numbered_faults({2: Fault("status", status=500)}, operation="send_message")
    async with Sandbox(faults=plan) as market, seller_of(market) as seller:
        statuses = []
        for _ in range(3):
            statuses.append((await seller.send(7, "hi")).status)
            await seller.texts(7)
        assert statuses == [200, 500, 200]


async def test_faults_can_be_set_while_the_sandbox_runs() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        await seller.send(7, "hi")
        market.faults = lambda _: Fault("status", status=503)
        assert (await seller.send(7, "hi")).status == 503
        market.faults = None
        assert (await seller.send(7, "hi")).status == 200


async def test_random_faults_are_the_same_for_the_same_seed() -> None:
    async def failures(seed: int) -> list[int]:
        plan = random_faults(0.3, seed, kinds=[Fault("status", status=500)])
        async with Sandbox(faults=plan) as market, seller_of(market) as seller:
            return [n for n in range(200) if (await seller.send(7, "hi")).status == 500]

    first = await failures(seed=1)
    assert first == await failures(seed=1) != await failures(seed=2)
    assert 30 <= len(first) <= 90


async def test_random_faults_may_spare_operations() -> None:
    plan = random_faults(1.0, seed=1, kinds=[Fault("reset")], operations={"send_message"})
    async with Sandbox(faults=plan) as market, seller_of(market) as seller:
        assert await seller.texts(7) == []
        with pytest.raises(aiohttp.ClientOSError):
            await seller.send(7, "hi")


async def test_sandbox_state_is_consistent_after_many_random_faults() -> None:
    plan = random_faults(0.7, seed=3)
    chosen: Counter[Fault | None] = Counter()

    def counted(request: RequestInfo) -> Fault | None:
        fault = plan(request)
        chosen[fault] += 1
        return fault

    async with Sandbox(faults=counted, latency=0.1) as market, seller_of(market) as seller:

        async def one_after_the_other() -> None:
            for _ in range(200):
                await attempt(seller)

        await asyncio.gather(*(one_after_the_other() for _ in range(4)))
        await asyncio.sleep(30)
        assert set(EVERY_FAULT) < set(chosen), "every kind of fault was met"
        carried_out = sum(
            number
            for fault, number in chosen.items()
            if fault is None or fault.when in ("after", "later") or fault.kind == "slow"
        )
        assert len(market.messages(7)) == carried_out
        market.faults = None
        answers = await asyncio.gather(*(seller.send(n, "hi") for n in range(1, 5)))
        assert [answer.status for answer in answers] == [200] * 4, "every place is free again"


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "explosion"},
        {"kind": "reset", "when": "never"},
        {"kind": "reset", "when": "later", "delay": -1},
        {"kind": "reset", "delay": float("inf")},
        {"kind": "status", "status": 99},
        {"kind": "rate_limit", "when": "after"},
        {"kind": "parallel_limit", "when": "later"},
    ],
)
def test_invalid_faults_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Fault(**wrong)


def test_invalid_random_faults_are_refused() -> None:
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidArgumentError):
            random_faults(probability, seed=1)
    with pytest.raises(InvalidArgumentError):
        random_faults(0.5, seed=1, kinds=[])


def test_faults_of_an_unknown_operation_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="send_message"):
        numbered_faults({1: Fault("reset")}, operation="sendMessage")
    with pytest.raises(InvalidArgumentError, match="send_message"):
        random_faults(0.5, seed=1, operations={"sendMessage"})


@pytest.mark.parametrize(("chat_id", "text"), [("5", "hi"), (0, "hi"), (5, ""), (5, 17)])
async def test_invalid_texts_of_a_buyer_are_refused(chat_id: Any, text: Any) -> None:
    async with Sandbox() as market:
        with pytest.raises(InvalidArgumentError):
            market.buyer_says(chat_id, text)
        assert market.chat_ids == []
