"""Exactly once, in order: every way to fail, each alone and all of them mixed."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.helpers import KEY, error_of, http_server, now, outcomes_of, session_of, texts
from yamarket_chat import (
    ChatSession,
    ConnectionFailedError,
    LimitExceededError,
    Limits,
    OutgoingMessage,
    Rate,
    Receipt,
    Retry,
    ServerError,
)
from yamarket_chat.sandbox import EVERY_FAULT, Fault, RequestInfo, Sandbox, random_faults

CHAT, OTHER_CHAT = 7, 8
WRITES = ("send_message", "send_file")


@pytest.fixture(autouse=True)
def _the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(4)
    monkeypatch.setattr(
        "yamarket_chat.sandbox.clock.wall_time", lambda loop: 1_790_000_000.25 + loop.time()
    )


def assert_no_limit_was_broken(market: Sandbox) -> None:
    """Check that only faults caused a 420, and that no window exceeded its limit."""
    assert (market.refusals.rate, market.refusals.parallel) == (0, 0)
    assert market.busiest <= market.parallel
    for operation, rate in [("send_message", Rate(1000, per=3600)), *market.limits.items()]:
        assert market.busiest_window(operation, rate.per) <= rate.requests


def first_write_fails(fault: Fault) -> Callable[[RequestInfo], Fault | None]:
    """Make the first message or file to `CHAT` fail."""
    faults = iter([fault])

    def plan(request: RequestInfo) -> Fault | None:
        meant = request.operation in WRITES and request.chat_id == CHAT
        return next(faults, None) if meant else None

    return plan


# Each alone


Expected = Literal["looked up and sent again", "found in the history", "sent again", "answered"]


def _cases() -> Iterator[tuple[Fault, Expected]]:
    for when in ("before", "after"):
        expected: Expected = (
            "looked up and sent again" if when == "before" else "found in the history"
        )
        for kind in ("reset", "no_answer", "half_body"):
            yield Fault(kind, when=when), expected
        for status in (200, 500, 502, 504, 599):
            for html in (False, True):
                yield Fault("status", when=when, status=status, html=html), expected
        yield Fault("status", when=when, status=503, html=True), expected
        for status in (204, 301, 302, 307):
            yield Fault("status", when=when, status=status), expected
        yield Fault("status", when=when, status=302, html=True), expected
    for delay in (4.0, 9.9):
        yield Fault("reset", when="later", delay=delay), "found in the history"
    yield Fault("status", status=503), "sent again"
    yield Fault("rate_limit", delay=30.0), "sent again"
    yield Fault("parallel_limit"), "sent again"
    yield Fault("slow", delay=9.0), "answered"
    yield Fault("slow", delay=30.0), "looked up and sent again"  # cut off by the Market: 504


def _name(value: object) -> str | None:
    if not isinstance(value, Fault):
        return str(value).replace(" ", "-")
    body = "-html" if value.html else ""
    status = f"-{value.status}" if value.kind == "status" else ""
    delay = f"-{value.delay:g}s" if value.delay else ""
    return f"{value.kind}{status}{body}-{value.when}{delay}"


async def send_text(session: ChatSession) -> Receipt:
    return await session.send_message(CHAT, "first")


async def send_file(session: ChatSession) -> Receipt:
    return await session.send_file(CHAT, b"%PDF" * 5000, filename="накладная.pdf")


@pytest.mark.parametrize("send", [send_text, send_file])
@pytest.mark.parametrize(("fault", "expected"), list(_cases()), ids=_name)
async def test_a_failure_neither_loses_nor_doubles_the_message(
    fault: Fault, expected: Expected, send: Callable[[ChatSession], Coroutine[Any, Any, Receipt]]
) -> None:
    async with (
        Sandbox(latency=0.1, faults=first_write_fails(fault)) as market,
        session_of(market) as session,
    ):
        await session.get_chat(CHAT)  # what follows goes out on a kept connection
        start = now()
        first = asyncio.create_task(send(session))
        await asyncio.sleep(0)
        second = asyncio.create_task(session.send_message(CHAT, "second"))
        if fault.kind != "rate_limit":
            await session.send_message(OTHER_CHAT, "elsewhere")
            assert now() - start == pytest.approx(0.1, abs=0.01), "another chat waited"
        receipt = await first
        await second

        [stored_first, stored_second] = market.messages(CHAT)
        if send is send_text:
            assert stored_first.text == "first"
        else:
            [file] = stored_first.payload
            assert (file.name, file.size) == ("накладная.pdf", 20_000)
        assert stored_second.text == "second"

        resent = expected in ("looked up and sent again", "sent again")
        looked_up = expected in ("looked up and sent again", "found in the history")
        assert receipt.chat_id == CHAT
        assert receipt.requests == 1 + resent
        assert receipt.confirmed_by == (
            "history" if expected == "found in the history" else "answer"
        )
        assert (receipt.trace_id is None) is (receipt.confirmed_by == "history")
        assert market.requests("history") == looked_up
        assert_no_limit_was_broken(market)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 407, 415, 423])
@pytest.mark.parametrize("html", [False, True])
async def test_documented_4xx_is_neither_settled_nor_retried(status: int, html: bool) -> None:
    fault = Fault("status", status=status, html=html)
    async with (
        Sandbox(faults=first_write_fails(fault)) as market,
        session_of(market) as session,
    ):
        refused = asyncio.create_task(error_of(session.send_message(CHAT, "refused")))
        await asyncio.sleep(0)
        await session.send_message(CHAT, "next")
        assert (await refused).sent is False
        assert texts(market, CHAT) == ["next"]
        assert (market.requests("send_message"), market.requests("history")) == (2, 0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("status", "html"),
    [(408, False), (408, True), (499, False), (499, True), (402, True), (409, True), (413, True)],
)
async def test_ambiguous_4xx_is_settled(
    status: int, html: bool, when: Literal["before", "after"]
) -> None:
    """The status reports a broken connection, or its sender is not known."""
    fault = Fault("status", when, status=status, html=html)
    async with (
        Sandbox(faults=first_write_fails(fault)) as market,
        session_of(market) as session,
    ):
        receipt = await session.send_message(CHAT, "hi")
        assert receipt.confirmed_by == ("history" if when == "after" else "answer")
        assert texts(market, CHAT) == ["hi"]


async def test_an_undocumented_4xx_in_the_form_of_the_api_is_a_refusal() -> None:
    async with (
        Sandbox(faults=first_write_fails(Fault("status", status=409))) as market,
        session_of(market) as session,
    ):
        error = await error_of(session.send_message(CHAT, "hi"))
        assert error.sent is False
        assert market.requests("history") == 0


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
async def test_retry_after_of_a_balancer_429_is_respected(form: str) -> None:
    times: list[float] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        times.append(now())
        if len(times) > 1:
            return web.json_response({"status": "OK"})
        headers = {"Date": formatdate(1_790_000_000, usegmt=True)}
        if form == "seconds":
            headers["Retry-After"] = "70"
        elif form == "date":
            headers["Retry-After"] = formatdate(1_790_000_070, usegmt=True)
        return web.Response(status=429, text="<html>slow down</html>", headers=headers)

    async with http_server(handle) as url, ChatSession(KEY, 1, base_url=url) as session:
        receipt = await session.send_message(CHAT, "hi")
        assert (receipt.requests, receipt.confirmed_by) == (2, "answer")
        waited = times[1] - times[0]
        assert waited == pytest.approx(70, abs=0.1) if form != "none" else 0.5 <= waited <= 1.1


async def test_retry_after_beyond_the_retry_budget_raises() -> None:
    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "7200"})

    async with http_server(handle) as url, ChatSession(KEY, 1, base_url=url) as session:
        error = await error_of(session.send_message(CHAT, "hi"))
        assert type(error) is LimitExceededError
        assert (error.sent, error.retry_after) == (False, 7200)


async def test_history_is_read_15_s_after_the_attempt() -> None:
    fault = Fault("reset", when="later", delay=9.9)
    async with (
        Sandbox(faults=first_write_fails(fault)) as market,
        session_of(market) as session,
    ):
        await session.send_message(CHAT, "hi")
        [sent, looked_up] = market.arrivals
        assert looked_up.time - sent.time == pytest.approx(15.0, abs=0.01)


# Bounds


@pytest.mark.parametrize(
    ("fault", "error_type"),
    [
        (Fault("status", status=500), ServerError),
        (Fault("status", status=503), ServerError),
        (Fault("reset"), ConnectionFailedError),
    ],
    ids=_name,
)
async def test_last_error_says_not_sent_when_attempts_are_used_up(
    fault: Fault, error_type: type[Exception]
) -> None:
    def always(request: RequestInfo) -> Fault | None:
        return fault if request.operation == "send_message" else None

    async with (
        Sandbox(faults=always) as market,
        session_of(market, retry=Retry(attempts=3)) as session,
    ):
        error = await error_of(session.send_message(CHAT, "hi"))
        assert type(error) is error_type
        assert error.sent is False
        assert market.requests("send_message") == 3
        assert texts(market, CHAT) == []


async def test_give_up_after_bounds_attempts_and_pauses() -> None:
    def always(request: RequestInfo) -> Fault | None:
        return Fault("status", status=500) if request.operation == "send_message" else None

    retry = Retry(attempts=1000, give_up_after=100.0)
    async with Sandbox(faults=always) as market, session_of(market, retry=retry) as session:
        start = now()
        error = await error_of(session.send_message(CHAT, "hi"))
        assert error.sent is False
        assert 50 < now() - start <= 100 + retry.settle_after


async def test_420_counts_neither_as_attempt_nor_as_retry_time() -> None:
    refusals = iter([Fault("rate_limit", delay=500.0), *[Fault("parallel_limit")] * 20])

    def plan(request: RequestInfo) -> Fault | None:
        return next(refusals, None)

    retry = Retry(attempts=1, give_up_after=0.0)
    async with Sandbox(faults=plan) as market, session_of(market, retry=retry) as session:
        assert (await session.send_message(CHAT, "hi")).requests == 22
        assert market.refusals.fault == 21


async def test_unreachable_market_for_days_ends_in_a_chat_error() -> None:
    retry = Retry(attempts=10**6, give_up_after=50 * 3600.0)
    async with Sandbox() as market, session_of(market, retry=retry) as session:
        await market.go_down()
        sending = asyncio.create_task(session.send_message(CHAT, "hi"))
        await asyncio.sleep(18 * 3600)
        assert not sending.done()
        await market.come_back()
        await sending
        assert texts(market, CHAT) == ["hi"]


# The way to the Market


class Resolver(AbstractResolver):
    """Resolves every name to this machine, after a delay or only sometimes, as configured."""

    def __init__(self, *delays: float | None) -> None:
        self.delays = list(delays)  # of the next ones; None fails

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        delay = self.delays.pop(0) if self.delays else 0.0
        if delay is None:
            raise OSError(None, "Temporary failure in name resolution")
        await asyncio.sleep(delay)
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def session_by_name(market: Sandbox, resolver: Resolver) -> AsyncIterator[ChatSession]:
    """A session that has to resolve the Market's name for each request."""
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        session_of(
            market,
            base_url=f"http://market.example:{market.port}",
            insecure_http=True,
            http=http,
        ) as session,
    ):
        yield session


async def test_temporary_dns_failure_is_retried_without_reading_the_history() -> None:
    async with Sandbox() as market, session_by_name(market, Resolver(*[None] * 5)) as session:
        receipt = await session.send_message(CHAT, "hi")
        assert (receipt.requests, receipt.confirmed_by) == (6, "answer")
        assert (texts(market, CHAT), market.requests("history")) == (["hi"], 0)


async def test_permanent_dns_failure_ends_as_not_sent() -> None:
    async with Sandbox() as market, session_by_name(market, Resolver(*[None] * 99)) as session:
        error = await error_of(session.send_message(CHAT, "hi"))
        assert isinstance(error, ConnectionFailedError)
        assert error.sent is False
        assert error.retry_after is not None
        assert market.arrivals == []


async def test_connect_timeout_ends_as_not_sent() -> None:
    async with Sandbox() as market, session_by_name(market, Resolver(100.0, 100.0)) as session:
        receipt = await session.send_message(CHAT, "hi")
        assert (receipt.requests, receipt.confirmed_by) == (3, "answer")
        assert (texts(market, CHAT), market.requests("history")) == (["hi"], 0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", when="later", delay=9.9),
        Fault("no_answer", when="after"),
        Fault("no_answer"),
        Fault("reset"),
    ],
    ids=_name,
)
async def test_message_stored_after_a_slow_connect_is_found(fault: Fault) -> None:
    """The message is stored seconds after its attempt ended, and is found all the same."""
    faults = first_write_fails(fault)
    async with (
        Sandbox(faults=faults) as market,
        session_by_name(market, Resolver(0.0, 14.5)) as session,
    ):
        await session.get_chat(CHAT)
        await asyncio.gather(*(session.send_message(CHAT, "hi") for _ in range(2)))
        assert texts(market, CHAT) == ["hi", "hi"]
        assert_no_limit_was_broken(market)


async def test_refused_connection_is_retried_without_reading_the_history() -> None:
    async with Sandbox() as market, session_of(market) as session:
        await market.go_down()
        sending = [asyncio.create_task(session.send_message(CHAT, text)) for text in "ab"]
        await asyncio.sleep(150)
        assert not any(task.done() for task in sending)
        await market.come_back()
        receipts = await asyncio.gather(*sending)
        assert [receipt.confirmed_by for receipt in receipts] == ["answer", "answer"]
        assert (texts(market, CHAT), market.requests("history")) == (["a", "b"], 0)


@pytest.mark.parametrize("order", ["ascending", "descending"])
async def test_messages_arrive_after_an_outage_of_minutes(order: Any) -> None:
    messages = [(chat, f"{chat}: {i}") for i in range(20) for chat in range(1, 11)]
    async with (
        Sandbox(latency=1.0, history_order=order) as market,
        session_of(market) as session,
    ):
        sending = [asyncio.create_task(session.send_message(*message)) for message in messages]
        for pause, outage in [(5.5, 60), (70.0, 150), (67.3, 5)]:
            await asyncio.sleep(pause)
            await market.go_down()
            await asyncio.sleep(outage)
            await market.come_back()
        await asyncio.gather(*sending)
        assert market.messages_stored == len(messages)
        for chat in range(1, 11):
            assert texts(market, chat) == [f"{chat}: {i}" for i in range(20)]
        assert_no_limit_was_broken(market)


# Kept connections


@pytest.mark.parametrize("keep_alive", [False, 5.0])
async def test_connections_closed_by_the_market_cost_no_extra_request(
    keep_alive: bool | float,
) -> None:
    async with Sandbox(keep_alive=keep_alive) as market, session_of(market) as session:
        for pause in (0.0, 0.1, 4.9, 5.1, 14.9, 100.0):
            receipt = await session.send_message(CHAT, f"after {pause:g}")
            assert (receipt.requests, receipt.confirmed_by) == (1, "answer")
            receipt = await session.send_file(CHAT, b"x", filename=f"after {pause:g}")
            assert (receipt.requests, receipt.confirmed_by) == (1, "answer")
            await asyncio.sleep(pause)
        assert market.requests("history") == 0


async def test_a_connection_idle_for_long_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Market closes the connection after 20 s, and the session gives it up earlier."""
    # The connector uses the real clock, not that of the loop.
    monkeypatch.setattr("aiohttp.connector.monotonic", now)
    async with Sandbox(keep_alive=20.0) as market, session_of(market) as session:
        for i in range(-5, 6):
            receipt = await session.send_message(CHAT, "hi")
            assert (receipt.requests, receipt.confirmed_by) == (1, "answer")
            await asyncio.sleep(20.0 + i * 2e-6)  # just as the Market closes it
        assert market.requests("history") == 0


@pytest.mark.parametrize("send", [send_text, send_file])
async def test_connection_closed_before_the_first_byte_is_replaced(
    send: Callable[[ChatSession], Coroutine[Any, Any, Receipt]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection closes after it was chosen and before the first byte was sent."""
    chosen = aiohttp.TCPConnector.connect
    closed: list[object] = []

    async def connect(self: Any, *args: Any, **keywords: Any) -> Any:
        connection = await chosen(self, *args, **keywords)
        if not closed:
            closed.append(connection)
            assert connection.transport is not None
            connection.transport.close()
        return connection

    async with Sandbox() as market, session_of(market) as session:
        await session.get_chat(CHAT)
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
        receipt = await send(session)
        assert closed
        assert (receipt.requests, receipt.confirmed_by) == (2, "answer")
        assert (len(market.messages(CHAT)), market.requests("history")) == (1, 0)


async def test_broken_read_is_repeated_only_by_the_session() -> None:
    """If a kept connection breaks, a GET is sent again after a pause, and counts as a request."""
    fault = Fault("reset", when="later", delay=9.0)
    async with Sandbox(latency=0.1, faults={2: fault}) as market, session_of(market) as session:
        await session.get_chat(CHAT)
        await session.get_chat(CHAT)
        [_, failed, again] = market.arrivals
        assert again.time - failed.time >= 0.5
        assert session.quota_status("get_chat").remaining == 1000 - 3


# All of them mixed


LIMITS: dict[str, Any] = {"send_message": Rate(150, per=600), "history": Rate(400, per=600)}


def mixed(market: Sandbox, seed: int) -> list[OutgoingMessage]:
    rng = random.Random(seed)
    chats = range(1, 31)
    numbers = dict.fromkeys(chats, 0)
    messages = []
    for _ in range(300):
        chat = rng.choice(chats)
        numbers[chat] += 1
        # Every second text is one that was sent before.
        text = f"{numbers[chat]}" if rng.random() < 0.5 else rng.choice(["yes", " yes ", "no"])
        messages.append(OutgoingMessage(chat, text))
    return messages


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_lost_or_doubled_when_everything_fails(seed: int) -> None:
    rng = random.Random(seed)
    probability = rng.choice([0.1, 0.3, 0.6])
    writes = random_faults(probability, seed, operations=WRITES)
    reads = random_faults(0.2, seed, operations={"history"})
    tight = seed % 2 == 1
    keywords: dict[str, Any] = {"limits": LIMITS} if tight else {}
    async with Sandbox(
        latency=lambda: rng.choice([0.05, 0.2, 3.0]),
        faults=lambda request: writes(request) or reads(request),
        history_order=rng.choice(["ascending", "descending"]),
        history_includes_from=rng.random() < 0.5,
        history_delay=rng.choice([0.0, 3.0]),
        clock_offset=rng.choice([0.0, -307.6, 1234.5]),
        keep_alive=rng.choice([True, False, 2.0]),
        window=rng.choice(["rolling", "fixed"]),
        **keywords,
    ) as market:
        messages = mixed(market, seed)
        limits = Limits(**LIMITS) if tight else Limits()
        retry = Retry(attempts=100, give_up_after=100_000.0)
        async with session_of(market, limits=limits, retry=retry) as session:
            outages = asyncio.create_task(_outages(market, seed))
            outcomes = await outcomes_of(session.send_many(messages))
            outages.cancel()
        assert [outcome for outcome in outcomes if outcome.status != "delivered"] == []
        assert len(outcomes) == len(messages)
        expected: dict[int, list[str]] = {}
        for message in messages:
            expected.setdefault(int(message.chat_id), []).append(message.text.strip())
        assert {chat: texts(market, chat) for chat in market.chat_ids} == expected
        assert_no_limit_was_broken(market)
        assert market.requests("send_message") > len(messages) * (1 + probability / 4)


async def _outages(market: Sandbox, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.uniform(50, 300))
        await market.go_down()
        await asyncio.sleep(rng.uniform(1, 120))
        await market.come_back()


async def test_fault_mix_contains_every_promised_kind() -> None:
    """A guard for the tests above: their mix contains all kinds."""
    alone = {fault for fault, _ in _cases()}
    assert {fault for fault in EVERY_FAULT if fault.kind not in ("slow", "rate_limit")} <= alone


# Equal texts are distinguished, however long an attempt or its settling takes


async def test_long_settling_in_one_chat_keeps_what_is_known_of_another() -> None:
    def plan(request: RequestInfo) -> Fault | None:
        return {2: Fault("reset"), 3: Fault("reset")}.get(request.operation_number)

    async with Sandbox(faults=plan, latency=0.01) as market:
        async with session_of(market, retry=Retry(settle_after=120)) as session:
            await session.send_message(CHAT, "hi")
            await error_of(session.send_message(OTHER_CHAT, "x", on_unknown="raise"))
            receipt = await session.send_message(CHAT, "hi")
        assert receipt.requests == 2
        assert texts(market, CHAT) == ["hi", "hi"]


async def test_delivered_message_is_remembered_for_the_length_of_an_attempt() -> None:
    def plan(request: RequestInfo) -> Fault | None:
        return Fault("no_answer") if request.operation_number == 2 else None

    async with Sandbox(faults=plan, latency=0.01) as market:
        async with session_of(market, timeout=120) as session:
            await session.send_message(CHAT, "hi")
            second = asyncio.create_task(session.send_message(CHAT, "hi"))
            for number in range(120):  # only new deliveries make it forget old ones
                await asyncio.sleep(1)
                await session.send_message(OTHER_CHAT, f"{number}")
            assert (await second).requests == 2
        assert texts(market, CHAT) == ["hi", "hi"]
