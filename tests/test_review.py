"""Bugs that reviewers found: each of these tests failed before its fix."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web

from tests.helpers import KEY, error_of, http_server, now, outcome_of, session_of, texts
from yamarket_chat import (
    ChatSession,
    ChatStatus,
    Delivered,
    DeliveryUnknownError,
    File,
    InvalidArgumentError,
    Limits,
    OutgoingMessage,
    Pending,
    Rate,
    SessionClosedError,
    UnauthorizedError,
)
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults


class Safe(str):
    """A subclass of str, as in template engines and arrays."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not what is meant"


async def test_str_subclasses_are_sent_and_release_their_parallel_slots() -> None:
    async with Sandbox() as market, session_of(market) as session:
        for number in range(6):  # more than there are parallel slots
            await session.send_message(1, Safe(f"hello {number}"))
        [outcome] = [o async for o in session.send_many([OutgoingMessage(2, Safe("many"))])]
        assert type(outcome) is Delivered
        chats = [chat async for chat in session.chats(statuses=[Safe("NEW"), ChatStatus.NEW])]
        assert len(chats) <= 2
        assert texts(market, 1) == [f"hello {number}" for number in range(6)]
        assert texts(market, 2) == ["many"]


async def test_failure_to_build_a_body_releases_the_parallel_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Sandbox() as market, session_of(market) as session:
        await session.send_message(1, "before")
        with monkeypatch.context() as patch:
            patch.setattr("yamarket_chat._delivery.sending.encode", lambda _: 1 / 0)
            for _ in range(6):
                with pytest.raises(ZeroDivisionError):
                    await session.send_message(1, "never")
        async with asyncio.timeout(5):
            await session.send_message(1, "after")
        assert texts(market, 1) == ["before", "after"]
        assert session.quota_status("send_message").remaining == 998


async def test_retried_call_causes_no_warning_of_a_long_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A retried call waits again. The session does not count this as one long wait."""
    caplog.set_level(logging.WARNING)
    faults = numbered_faults({2: Fault("status", status=503)}, operation="send_message")
    limits = Limits(send_message=Rate(1_000, per=3600), parallel=1)
    async with Sandbox(latency=2.0, faults=faults) as market:
        async with session_of(market, limits=limits) as session:
            began = now()
            sending: list[asyncio.Task[object]] = []
            number = 0
            while now() - began < 180:
                number += 1
                sending.append(asyncio.create_task(session.send_message(number, "x")))
                await asyncio.sleep(2.1)
            await asyncio.gather(*sending)
        assert [record.getMessage() for record in caplog.records if "waited" in record.msg] == []


def slow(seconds: float) -> object:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 10)
        await asyncio.sleep(seconds)
        await response.write(b"y")
        return response

    return handle


async def test_download_gets_the_grace_period(tmp_path: object) -> None:
    async with Sandbox() as market, http_server(slow(8)) as url:  # type: ignore[arg-type]  # of object
        file = File(name="a.txt", url=url, size=11)
        session = session_of(market)
        loading = asyncio.create_task(session.download(file))
        await asyncio.sleep(1)
        await session.close(grace=30)
        assert await loading == b"x" * 10 + b"y"
        session = session_of(market)
        loading = asyncio.create_task(session.download(file))
        await asyncio.sleep(1)
        began = now()
        await session.close(grace=2)
        assert now() - began == pytest.approx(2, abs=0.1)
        assert type(await outcome_of(loading)) is SessionClosedError
        assert loading.cancelling() == 0


async def test_download_cancelled_by_its_caller_stays_cancelled_while_closing() -> None:
    async with Sandbox() as market, http_server(slow(60)) as url:  # type: ignore[arg-type]  # of object
        session = session_of(market, timeout=100)

        async def load() -> None:
            async with asyncio.timeout(3):
                await session.download(File(name="a.txt", url=url, size=11))

        loading = asyncio.create_task(load())
        await asyncio.sleep(1)
        closing = asyncio.create_task(session.close(grace=30))
        with pytest.raises(TimeoutError):
            await loading
        await closing


async def test_the_limit_of_one_method_does_not_slow_the_others() -> None:
    """A parallel 420 of a method of session.request, with the headers of that method."""
    requests = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        if requests == 1:
            text = "Hit rate limit of 4 parallel requests for businessId 1"
            return web.json_response(
                {"status": "ERROR", "errors": [{"code": "X", "message": text}]},
                status=420,
                headers={"X-RateLimit-Resource-Limit": "1"},
            )
        await asyncio.sleep(1)
        return web.json_response({"status": "OK"})

    async with http_server(handle) as url, ChatSession(KEY, 1, base_url=url) as session:
        await session.request("GET", "/v2/a")
        await asyncio.sleep(7200)
        began = now()
        await asyncio.gather(*(session.request("GET", "/v2/b") for _ in range(8)))
        assert now() - began < 4


async def test_send_many_cancelled_twice_leaves_nothing_behind() -> None:
    async with Sandbox(latency=2) as market, session_of(market) as session:

        async def use() -> None:
            async for _ in session.send_many(OutgoingMessage(i, "x") for i in range(1, 10)):
                pass

        for _ in range(3):
            using = asyncio.create_task(use())
            await asyncio.sleep(1)
            using.cancel()
            await asyncio.sleep(0.1)
            using.cancel()
            await outcome_of(using)
            await asyncio.sleep(10)
        [_] = [o async for o in session.send_many([OutgoingMessage(99, "x")])]
        assert session._engine is not None
        assert len(session._engine.sending._batches) == 0


async def test_max_wait_too_large_for_a_float_is_refused() -> None:
    async with Sandbox() as market, session_of(market) as session:
        error = await error_of(session.send_message(1, "x", max_wait=10**400))
        assert type(error) is InvalidArgumentError


async def test_settle_error_has_retry_after() -> None:
    async with Sandbox() as market:
        pending = Pending(business_id=market.business_id, chat_id=1, text="x", requests=1, seen="")
        limits = Limits(history=Rate(1, per=3600))
        async with session_of(market, limits=limits) as session:
            async for _ in session.history(1):
                pass
            error = await error_of(session.settle(pending, max_wait=1))
            assert type(error) is DeliveryUnknownError
            assert error.retry_after == pytest.approx(3600, abs=5)


async def test_expired_file_link_is_not_reported_as_a_wrong_key() -> None:
    async def gone(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=403)

    async with Sandbox() as market, http_server(gone) as url, session_of(market) as session:
        error = await error_of(session.download(File(name="a.txt", url=url, size=1)))
        assert not isinstance(error, UnauthorizedError)
        assert "link may have expired" in str(error)
