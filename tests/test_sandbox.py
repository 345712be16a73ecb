"""The sandbox: messages, history, authorization, checks of requests, records, start and stop."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from tests.sandbox_client import seller_of
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Rate
from yamarket_chat.sandbox import Sandbox


async def test_a_message_is_answered_stored_and_in_the_history() -> None:
    async with Sandbox(latency=0.1) as market, seller_of(market) as seller:
        answer = await seller.send(7, "On its way")
        assert (answer.status, answer.json) == (200, {"status": "OK"})
        [message] = market.messages(7)
        assert (message.sender, message.text, message.payload) == ("PARTNER", "On its way", ())
        [row] = (await seller.history(7))["messages"]
        assert row == {
            "messageId": message.message_id,
            "createdAt": message.created_at.isoformat(),
            "sender": "PARTNER",
            "message": "On its way",
        }


async def test_messages_of_all_senders_are_in_one_order() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        market.buyer_says(7, "Where is it?")
        await seller.send(7, "On its way")
        market.market_says(7, "The order was handed over")
        market.support_says(7, "Can we help?")
        market.shop_says(7, "No, thank you")
        await seller.send(8, "Another chat")
        rows = (await seller.history(7))["messages"]
        assert [(row["sender"], row["message"]) for row in rows] == [
            ("CUSTOMER", "Where is it?"),
            ("PARTNER", "On its way"),
            ("MARKET", "The order was handed over"),
            ("SUPPORT", "Can we help?"),
            ("PARTNER", "No, thank you"),
        ]
        ids = [message.message_id for message in market.messages(7)]
        assert ids == sorted(set(ids))
        assert market.chat_ids == [7, 8]
        assert market.messages_stored == 6


async def test_a_message_is_stored_at_the_end_of_the_latency() -> None:
    loop = asyncio.get_running_loop()
    async with Sandbox(latency=2.0) as market, seller_of(market) as seller:
        start = loop.time()
        sending = asyncio.create_task(seller.send(7, "hi"))
        await asyncio.sleep(1.9)
        assert market.messages(7) == []
        await sending
        assert loop.time() - start == pytest.approx(2.0, abs=0.01)
        assert market.messages(7)[0].stored_at - start == pytest.approx(2.0, abs=0.01)


async def test_latency_can_be_a_function() -> None:
    loop = asyncio.get_running_loop()
    latencies = iter([3.0, 1.0])
    async with Sandbox(latency=lambda: next(latencies)) as market, seller_of(market) as seller:
        start = loop.time()
        await asyncio.gather(seller.send(1, "slow"), seller.send(2, "fast"))
        assert loop.time() - start == pytest.approx(3.0, abs=0.01)
        assert {m.stored_at - start < 2 for m in market.messages(2)} == {True}


async def test_request_is_cut_off_after_ten_seconds_and_not_carried_out() -> None:
    loop = asyncio.get_running_loop()
    async with Sandbox(latency=12.0) as market, seller_of(market) as seller:
        start = loop.time()
        assert (await seller.send(7, "hi")).status == 504
        assert loop.time() - start == pytest.approx(10.0, abs=0.01)
        await asyncio.sleep(10)
        assert market.messages(7) == []


async def test_message_is_stored_although_its_client_disconnected() -> None:
    async with Sandbox(latency=2.0, parallel=1) as market, seller_of(market) as seller:
        sending = asyncio.create_task(seller.send(7, "hi"))
        await asyncio.sleep(0.5)
        sending.cancel()
        await asyncio.sleep(0.5)
        assert (await seller.send(7, "too early")).status == 420, "its place is still held"
        await asyncio.sleep(1.1)
        assert [message.text for message in market.messages(7)] == ["hi"]
        assert (await seller.send(7, "in time")).status == 200


@pytest.mark.parametrize(("strip", "stored"), [(True, "a  b"), (False, " \n a  b\t ")])
async def test_sandbox_can_strip_outer_spaces(strip: bool, stored: str) -> None:
    async with Sandbox(strip_spaces=strip) as market, seller_of(market) as seller:
        await seller.send(7, " \n a  b\t ")
        assert market.messages(7)[0].text == stored


# The history


async def test_the_history_is_read_page_by_page() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        for number in range(7):
            market.buyer_says(7, str(number))
        pages, query = [], "&limit=3"
        for parameter in ("pageToken", "page_token", None):
            page = await seller.history(7, query)
            pages.append([row["message"] for row in page["messages"]])
            query = f"&limit=3&{parameter}={page['paging'].get('nextPageToken')}"
        assert pages == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
        assert "nextPageToken" not in page["paging"]
        assert len((await seller.history(7))["messages"]) == 7


@pytest.mark.parametrize("order", ["ascending", "descending"])
async def test_a_full_last_page_is_the_last(order: Any) -> None:
    async with Sandbox(history_order=order) as market, seller_of(market) as seller:
        for number in range(6):
            market.buyer_says(7, str(number))
        first = await seller.history(7, "&limit=3")
        token = first["paging"]["nextPageToken"]
        assert (await seller.history(7, f"&limit=3&pageToken={token}"))["paging"] == {}


async def test_a_page_has_fifty_messages_unless_told_otherwise() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        for number in range(101):
            market.buyer_says(7, str(number))
        assert len((await seller.history(7))["messages"]) == 50
        assert len((await seller.history(7, "&limit=100"))["messages"]) == 100


@pytest.mark.parametrize(
    ("order", "includes", "expected"),
    [
        ("ascending", True, ["2", "3", "4"]),
        ("ascending", False, ["3", "4"]),
        ("descending", True, ["4", "3", "2"]),
        ("descending", False, ["4", "3"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_undocumented_behaviour_can_be_configured(
    order: Any, includes: bool, expected: list[str], limit: int
) -> None:
    async with (
        Sandbox(history_order=order, history_includes_from=includes) as market,
        seller_of(market) as seller,
    ):
        for number in range(5):
            market.buyer_says(7, str(number))
            market.buyer_says(8, "elsewhere")
        from_id = market.messages(7)[2].message_id
        texts, query = [], f"&limit={limit}"
        while True:
            page = await seller.history(7, query, messageIdFrom=from_id)
            texts += [row["message"] for row in page["messages"]]
            if not (token := page["paging"].get("nextPageToken")):
                break
            query = f"&limit={limit}&pageToken={token}"
        assert texts == expected


async def test_history_can_lag_behind() -> None:
    async with Sandbox(history_delay=5.0) as market, seller_of(market) as seller:
        message = market.buyer_says(7, "hello")
        path = f"/chats/message?chatId=7&messageId={message.message_id}"
        await asyncio.sleep(4.9)
        assert await seller.texts(7) == []
        assert (await seller.call("GET", path)).status == 404
        await asyncio.sleep(0.2)
        assert await seller.texts(7) == ["hello"]
        assert (await seller.call("GET", path)).json["result"]["message"] == "hello"


# Authorization: which keys and businesses the sandbox serves


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, "Api-Key token is not specified"),
        ("ACMA:wrong:key", "Api-Key token is invalid"),
        ("Bearer ACMA:sandbox:key", "Api-Key token prefix invalid"),
    ],
)
async def test_a_wrong_key_is_refused(key: str | None, text: str) -> None:
    async with Sandbox() as market, aiohttp.ClientSession() as http:
        url = f"{market.url}/v2/businesses/{market.business_id}/chats/message?chatId=7"
        headers = {} if key is None else {"Api-Key": key}
        async with http.post(url, json={"message": "hi"}, headers=headers) as answer:
            assert answer.status == 401
            assert await answer.json() == {
                "status": "ERROR",
                "errors": [{"code": "UNAUTHORIZED", "message": text}],
            }
        assert market.messages(7) == []


async def test_a_key_can_be_revoked() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        market.revoked = True
        assert (await seller.send(7, "hi")).error == (401, "Api-Key token is revoked")


async def test_another_business_is_refused() -> None:
    async with Sandbox(business_id=1) as market, seller_of(market) as seller:
        assert (await seller.send(7, "hi", business_id=2)).error == (403, "Access denied")
        assert (await seller.send(7, "hi", business_id="x")).status == 400
        assert (await seller.send(7, "hi", business_id=2**63)).status == 400
        assert market.messages(7) == []


@pytest.mark.parametrize(
    ("scope", "may_read", "may_write"),
    [
        ("COMMUNICATION", True, True),
        ("ALL_METHODS", True, True),
        ("ALL_METHODS_READ_ONLY", True, False),
        ("PRICING", False, False),
    ],
)
async def test_scopes_of_the_key_limit_reading_and_writing(
    scope: Any, may_read: bool, may_write: bool
) -> None:
    async with Sandbox(scopes=[scope]) as market, seller_of(market) as seller:
        writing = await seller.send(7, "hi")
        reading = await seller.call("GET", "/chat?chatId=7")
        assert (writing.status == 200, reading.status == 200) == (may_write, may_read)
        if not may_write:
            assert writing.error == (
                403,
                "Token does not have any of the scopes to access the API method",
            )
        token = (await seller.call("POST", "/v2/auth/token")).json["result"]["apiKey"]
        assert token == {"name": "Sandbox", "authScopes": [scope]}


async def test_inactive_and_migrating_business_are_refused() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        market.locked = True
        assert (await seller.send(7, "hi")).error == (423, "Business is in migration")
        market.inactive = True
        status, text = (await seller.send(7, "hi")).error
        assert status == 403
        assert "API for business 12345 disabled" in text


# Checks of requests


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/businesses/12345/nowhere", 404),
        ("POST", "/v2/businesses/12345/chats/", 404),
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/businesses/12345/chats", 405),
        ("PUT", "/v2/businesses/12345/chats/message", 405),
        ("POST", "/v2/campaigns", 405),
    ],
)
async def test_unknown_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        answer = await seller.call(method, path)
        assert answer.error[0] == status
        assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("chat_id", ["", "0", "-1", "x", "1.0", "+1", str(2**63), "1" * 5000, "²"])
async def test_ids_are_int64_of_at_least_one(chat_id: str) -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        assert (await seller.send(chat_id, "hi")).error[0] == 400
        assert market.messages_stored == 0


async def test_largest_int64_is_a_valid_id() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        assert (await seller.send(2**63 - 1, "hi")).status == 200
        assert market.messages(2**63 - 1)[0].text == "hi"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hi",
        b"[]",
        b"{}",
        b'{"message":null}',
        b'{"message":1}',
        b'{"message":""}',
        b'{"message":"   "}',
        b'{"message":"\\ud800"}',
        b'{"message":"\xff"}',
        b'{"message":"hi"',
        b'{"message":"' + b"x" * 4097 + b'"}',
    ],
)
async def test_wrong_bodies_are_refused(body: bytes) -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        answer = await seller.call(
            "POST",
            "/chats/message?chatId=7",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        assert answer.error[0] == 400
        assert market.messages_stored == 0


async def test_a_text_may_have_4096_characters_of_any_size() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        text = "😀" * 4096
        assert (await seller.send(7, text)).status == 200
        assert market.messages(7)[0].text == text


async def test_other_content_types_are_refused() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        answer = await seller.call("POST", "/chats/message?chatId=7", data={"message": "hi"})
        assert answer.error == (
            415,
            "Content type 'application/x-www-form-urlencoded' not supported",
        )
        assert (await seller.send(7, "hi", headers={"Content-Type": "text/plain"})).status == 415
        nothing = await seller.call(
            "POST", "/chats/message?chatId=7", skip_auto_headers=["Content-Type"]
        )
        assert nothing.error == (400, "Required request body is missing")


async def test_a_body_has_at_most_512_kilobytes() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        padding = "x" * (512 * 1024)
        answer = await seller.call(
            "POST", "/chats/message?chatId=7", json={"message": "hi", "padding": padding}
        )
        assert answer.error[0] == 400
        assert market.messages_stored == 0


async def test_only_listed_chats_exist_if_chats_is_set() -> None:
    async with Sandbox(chats=[7]) as market, seller_of(market) as seller:
        assert (await seller.send(7, "hi")).status == 200
        assert (await seller.send(8, "hi")).error == (404, "Can't find chat by id: 8")
        assert market.messages(8) == []
        with pytest.raises(InvalidArgumentError, match="no chat 8"):
            market.buyer_says(8, "hi")
        market.add_chat(8)
        assert (await seller.send(8, "hi")).status == 200


# Headers of responses, and connections


async def test_answers_carry_the_date_and_the_trace_of_the_sandbox() -> None:
    async with Sandbox(clock_offset=600) as market, seller_of(market) as seller:
        first, second = await seller.send(7, "hi"), await seller.send(7, "")
        for answer, arrival in zip((first, second), market.arrivals, strict=True):
            pattern = rf"00-{arrival.trace_id}-[0-9a-f]{{16}}-01"
            assert re.fullmatch(pattern, answer.headers["traceparent"])
            assert len(arrival.trace_id) == 32
        assert market.arrivals[0].trace_id != market.arrivals[1].trace_id
        ahead = parsedate_to_datetime(first.headers["Date"]) - datetime.now(UTC)
        assert timedelta(seconds=570) < ahead < timedelta(seconds=630)


async def test_date_and_created_at_come_from_one_clock_that_runs_with_the_loop() -> None:
    async with Sandbox(clock_offset=-600) as market, seller_of(market) as seller:
        before = parsedate_to_datetime((await seller.send(7, "hi")).headers["Date"])
        await asyncio.sleep(7200)
        after = parsedate_to_datetime((await seller.send(7, "ho")).headers["Date"])
        assert timedelta(seconds=7199) <= after - before <= timedelta(seconds=7201)
        created = [message.created_at for message in market.messages(7)]
        assert created == [before, after]
        rows = (await seller.history(7))["messages"]
        assert [datetime.fromisoformat(row["createdAt"]) for row in rows] == created


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_connections_may_be_closed_after_each_answer(keep_alive: bool) -> None:
    async with Sandbox(keep_alive=keep_alive) as market, seller_of(market) as seller:
        answer = await seller.send(7, "hi")
        assert (answer.headers.get("Connection") == "close") is not keep_alive


async def test_an_idle_connection_is_closed_after_a_set_time() -> None:
    async with Sandbox(keep_alive=5.0) as market:
        reader, writer = await asyncio.open_connection("127.0.0.1", market.port)
        writer.write(b"GET /v2/campaigns HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        start = asyncio.get_running_loop().time()
        await reader.read()
        assert asyncio.get_running_loop().time() - start == pytest.approx(5.0, abs=0.1)
        writer.close()
        await writer.wait_closed()


# Records: what the sandbox keeps about requests and messages


async def test_arrivals_record_each_request_with_time_and_status() -> None:
    loop = asyncio.get_running_loop()
    async with Sandbox(latency=1.0) as market, seller_of(market) as seller:
        start = loop.time()
        await asyncio.gather(*(seller.send(chat_id, "hi") for chat_id in range(1, 6)))
        await seller.call("GET", "/chat?chatId=x")
        await seller.call("GET", "/v2/campaigns", headers={"Api-Key": "ACMA:wrong"})
        assert [(a.operation, a.in_progress, a.counted) for a in market.arrivals] == [
            ("send_message", 1, True),
            ("send_message", 2, True),
            ("send_message", 3, True),
            ("send_message", 4, True),
            ("send_message", 5, True),
            ("get_chat", 1, True),
            ("campaigns", 1, False),
        ]
        assert [a.time - start for a in market.arrivals] == pytest.approx(
            [0, 0, 0, 0, 0, 1, 2], abs=0.01
        )
        assert sorted(a.chat_id or 0 for a in market.arrivals) == [0, 0, 1, 2, 3, 4, 5]
        assert [a.status for a in market.arrivals] == [200, 200, 200, 200, 420, 400, 401]
        assert market.busiest == 5
        assert market.requests("send_message") == 5
        assert market.requests("history") == 0


async def test_keep_books_false_keeps_only_counters() -> None:
    async with Sandbox(keep_books=False) as market, seller_of(market) as seller:
        for number in range(10):
            await seller.send(7, str(number))
        await seller.send_file(7, b"content")
        market.buyer_says(7, "hi")
        assert (market.arrivals, market.messages(7)) == ([], [])
        assert (market.messages_stored, market.requests("send_message")) == (12, 10)
        assert market.busiest == 1
        with pytest.raises(RuntimeError, match="keep_books"):
            market.busiest_window("send_message")


# Start and stop


async def test_stopping_leaves_nothing_behind_while_requests_are_in_progress() -> None:
    async with Sandbox(latency=9.0) as market, seller_of(market) as seller:
        port = market.port
        await seller.call("GET", "/v2/campaigns", headers={"Api-Key": "x"})
        abandoned = asyncio.create_task(seller.send(1, "gone"))
        await asyncio.sleep(1)
        abandoned.cancel()
        waiting = asyncio.create_task(seller.send(2, "hi"))
        await asyncio.sleep(1)
        start = asyncio.get_running_loop().time()
        await market.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() - start < 0.1
        with pytest.raises(aiohttp.ClientError):
            await waiting
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set()
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(("127.0.0.1", port))
    assert market.messages_stored == 0


async def test_sandbox_keeps_its_state_after_go_down_and_come_back() -> None:
    async with Sandbox(latency=1.0) as market, seller_of(market) as seller:
        await seller.send(7, "before")
        url = market.url
        under_way = asyncio.create_task(seller.send(7, "during"))
        await asyncio.sleep(0.5)
        await market.go_down()
        with pytest.raises(aiohttp.ClientOSError):
            await under_way
        with pytest.raises(aiohttp.ClientConnectorError):
            await seller.send(7, "refused")
        await asyncio.sleep(60)
        await market.come_back()
        assert market.url == url
        await seller.send(7, "after")
        assert await seller.texts(7) == ["before", "during", "after"]


async def test_stopped_sandbox_raises_a_clear_error() -> None:
    market = Sandbox()
    with pytest.raises(RuntimeError, match="not running"):
        _ = market.url
    with pytest.raises(RuntimeError, match="not running"):
        market.messages(7)
    with pytest.raises(RuntimeError, match="not running"):
        market.buyer_says(7, "hi")


async def test_arrivals_and_messages_can_be_read_after_the_end() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        await seller.send(7, "hi")
    assert [message.text for message in market.messages(7)] == ["hi"]
    assert len(market.arrivals) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": ""},
        {"api_key": 1},
        {"business_id": 0},
        {"business_id": True},
        {"business_id": "12345"},
        {"port": 65536},
        {"parallel": 0},
        {"campaigns": -1},
        {"limits": {"sendMessageToChat": Rate(1, 1)}},
        {"limits": {"send_message": 1000}},
        {"window": "sliding"},
        {"window_phase": -1},
        {"latency": -0.1},
        {"latency": "0.1"},
        {"latency": float("nan")},
        {"clock_offset": float("inf")},
        {"keep_alive": -1},
        {"faults": 3},
        {"scopes": "COMMUNICATION"},
        {"scopes": ["communication"]},
        {"chats": "all"},
        {"chats": [0]},
        {"history_order": "sorted"},
        {"history_delay": None},
    ],
)
def test_wrong_keywords_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Sandbox(**wrong)
    name = next(iter(wrong))
    assert name.removesuffix("s") in str(caught.value) or "no operation" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.real_time
@pytest.mark.every_loop
async def test_sandbox_works_on_an_ordinary_event_loop() -> None:
    async with Sandbox() as market, seller_of(market) as seller:
        assert (await seller.send(7, "hi")).status == 200
        date = parsedate_to_datetime((await seller.send(7, "ho")).headers["Date"])
        assert abs(date - datetime.now(UTC)) < timedelta(seconds=5)


def test_sandbox_import_does_not_import_the_cli() -> None:
    code = (
        "import sys, yamarket_chat.sandbox;"
        "sys.exit(bool({'typer', 'rich', 'click'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False)  # noqa: S603
    assert run.returncode == 0
