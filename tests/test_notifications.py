"""What a receiver answers to the Market, and whom it lets in."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from tests.helpers import now
from yamarket_chat import InvalidArgumentError
from yamarket_chat.notifications import (
    ChatArbitrageFinished,
    ChatArbitrageStarted,
    ChatCreated,
    ChatMessageSent,
    Event,
    OtherNotification,
    Ping,
    Receiver,
    Reply,
    WrongNotificationError,
    parse,
)

MARKET = "5.45.207.1"
FOREIGN = "192.0.2.1"
PING = b'{"notificationType": "PING", "time": "2026-11-27T08:00:00Z"}'
MOMENT = datetime(2026, 11, 27, 11, 0, tzinfo=timezone(timedelta(hours=3)))


def body_of(kind: str = "CHAT_MESSAGE_SENT", **fields: Any) -> bytes:
    content = {"businessId": 12345, "chatId": 17, "messageId": "1764230400000000"}
    times = {
        "CHAT_CREATED": "createdAt",
        "CHAT_MESSAGE_SENT": "sentAt",
        "CHAT_ARBITRAGE_STARTED": "startedAt",
        "CHAT_ARBITRAGE_FINISHED": "finishedAt",
    }
    if kind in times:
        content[times[kind]] = "2026-11-27T11:00:00+03:00"
    merged = {"notificationType": kind} | content | fields
    return msgspec.json.encode({name: value for name, value in merged.items() if value is not None})


MESSAGE = body_of()


class Handler:
    """What a user does with the events."""

    def __init__(self, takes: float = 0.0, error: BaseException | None = None) -> None:
        self.events: list[Event] = []
        self.ended: list[Event] = []
        self.takes = takes
        self.error = error

    async def __call__(self, event: Event) -> None:
        self.events.append(event)
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        self.ended.append(event)


def receiver_of(handler: Handler | None = None, **settings: Any) -> Receiver:
    return Receiver(handler or Handler(), name="my-shop", version="1.0", **settings)


def error_of(reply: Reply) -> dict[str, str]:
    content = json.loads(reply.body)
    assert list(content) == ["error"]
    error: dict[str, str] = content["error"]
    assert list(error) == ["type", "message"]
    assert error["type"] in ("WRONG_EVENT_FORMAT", "DUPLICATED_EVENT", "UNKNOWN")
    return error


# Events


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("CHAT_CREATED", ChatCreated(business_id=12345, chat_id=17, created_at=MOMENT)),
        (
            "CHAT_MESSAGE_SENT",
            ChatMessageSent(
                business_id=12345, chat_id=17, message_id=1764230400000000, sent_at=MOMENT
            ),
        ),
        (
            "CHAT_ARBITRAGE_STARTED",
            ChatArbitrageStarted(business_id=12345, chat_id=17, started_at=MOMENT),
        ),
        (
            "CHAT_ARBITRAGE_FINISHED",
            ChatArbitrageFinished(business_id=12345, chat_id=17, finished_at=MOMENT),
        ),
    ],
)
def test_event_of_a_chat_is_parsed(kind: str, event: Event) -> None:
    assert parse(body_of(kind)) == event
    assert parse(body_of(kind, newField={"a": 1})) == event
    # Ids may be texts or numbers.
    as_text = body_of(kind, businessId="12345", chatId="17", messageId=1764230400000000)
    assert parse(as_text) == event
    assert parse(body_of(kind).replace(b":17,", b":17.0,")) == event


def test_ping_is_parsed_whatever_its_time_looks_like() -> None:
    assert parse(PING) == Ping(time=datetime(2026, 11, 27, 8, tzinfo=UTC))
    for body in (b'{"notificationType":"PING"}', b'{"notificationType":"PING","time":17}'):
        assert parse(body) == Ping()


def test_notification_of_another_kind_comes_whole() -> None:
    body = b'{"notificationType":"ORDER_CREATED","orderId":55,"items":[{"count":1}]}'
    assert parse(body) == OtherNotification("ORDER_CREATED", json.loads(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"PING"',
        b"\xff\xfe",
        b"{}",
        b'{"notificationType": 1}',
        b'{"notificationType": ""}',
        b'{"notificationType": "PING"} {}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        body_of(chatId=None),
        body_of(chatId=0),
        body_of(chatId=-1),
        body_of(chatId=2**63),
        body_of(chatId="9" * 5000),
        body_of(chatId="17a"),
        body_of(chatId="١٧"),
        body_of(chatId=1.5),
        body_of(chatId=1e18),
        body_of(chatId=True),
        body_of(chatId=[17]),
        body_of(messageId=None),
        body_of(messageId=""),
        body_of(sentAt=None),
        body_of(sentAt="yesterday"),
        body_of(sentAt=1764230400),
        body_of("CHAT_CREATED", businessId=None),
    ],
)
async def test_body_that_is_no_notification_is_answered_400(body: bytes) -> None:
    with pytest.raises(WrongNotificationError):
        parse(body)
    handler = Handler()
    reply = await receiver_of(handler).reply(body, MARKET)
    assert reply.status == 400
    assert error_of(reply)["type"] == "WRONG_EVENT_FORMAT"
    assert handler.events == []


# Answers


async def test_event_is_answered_200_after_on_event_has_returned() -> None:
    handler = Handler(takes=5)
    reply = await receiver_of(handler).reply(MESSAGE, MARKET)
    assert handler.ended == [parse(MESSAGE)]
    assert reply.status == 200
    content = json.loads(reply.body)
    assert (content["name"], content["version"]) == ("my-shop", "1.0")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content["time"])
    assert now() == pytest.approx(5, abs=0.1)


async def test_same_event_twice_is_passed_on_twice() -> None:
    handler = Handler()
    receiver = receiver_of(handler)
    assert [(await receiver.reply(MESSAGE, MARKET)).status for _ in range(2)] == [200, 200]
    assert handler.events == [parse(MESSAGE)] * 2


async def test_ping_does_not_wait_for_handlers() -> None:
    handler = Handler(takes=8)
    receiver = receiver_of(handler)
    busy = [asyncio.create_task(receiver.reply(MESSAGE, MARKET)) for _ in range(1000)]
    await asyncio.sleep(1)
    began = now()
    assert (await receiver.reply(PING, MARKET)).status == 200
    assert now() - began < 0.1
    assert {reply.status for reply in await asyncio.gather(*busy)} == {200}
    assert all(isinstance(event, ChatMessageSent) for event in handler.events)


@pytest.mark.parametrize("error", [RuntimeError("secret"), asyncio.CancelledError()])
async def test_handler_that_fails_is_answered_500(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    reply = await receiver_of(Handler(error=error)).reply(MESSAGE, MARKET)
    assert reply.status == 500
    assert error_of(reply) == {"type": "UNKNOWN", "message": "The event was not processed"}
    assert "on_event" in caplog.text


async def test_handler_that_is_no_async_function_has_done_its_work_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a 500 the Market sends the event again, and the function would run again."""
    events: list[Event] = []
    receiver = Receiver(events.append, name="x", version="1")  # type: ignore[arg-type]
    assert (await receiver.reply(MESSAGE, MARKET)).status == 200
    assert events == [parse(MESSAGE)]
    [line] = caplog.records
    assert line.levelno == logging.ERROR
    assert "write `async def`" in line.getMessage()


async def test_handler_that_takes_too_long_is_cancelled_and_answered_500_before_10_s() -> None:
    handler = Handler(takes=60)
    reply = await receiver_of(handler).reply(MESSAGE, MARKET)
    assert reply.status == 500
    assert error_of(reply)["type"] == "UNKNOWN"
    assert 8 < now() < 9.5
    await asyncio.sleep(100)
    assert handler.ended == []


async def test_handler_that_ignores_its_cancellation_delays_no_answer() -> None:
    ended: list[Event] = []

    async def on_event(event: Event) -> None:
        while not ended:
            try:
                await asyncio.sleep(30)
                ended.append(event)
            except asyncio.CancelledError:
                pass

    receiver = Receiver(on_event, name="x", version="1")
    assert (await receiver.reply(MESSAGE, MARKET)).status == 500
    assert now() < 9.5
    await asyncio.sleep(60)
    assert len(ended) == 1


async def test_body_of_more_than_64_kb_is_answered_413() -> None:
    handler = Handler()
    receiver = receiver_of(handler)
    largest = body_of(more="x" * 60_000)
    largest += b" " * (65_536 - len(largest))
    assert (await receiver.reply(largest, MARKET)).status == 200
    reply = await receiver.reply(largest + b" ", MARKET)
    assert reply.status == 413
    error_of(reply)
    assert len(handler.events) == 1


async def test_closing_lets_handlers_end_and_refuses_new_requests_with_503() -> None:
    handler = Handler(takes=5)
    receiver = receiver_of(handler)
    begun = asyncio.create_task(receiver.reply(MESSAGE, MARKET))
    await asyncio.sleep(1)
    closing = asyncio.create_task(receiver.close())
    await asyncio.sleep(1)
    for body in (MESSAGE, PING):
        reply = await receiver.reply(body, MARKET)
        assert reply.status == 503
        assert error_of(reply)["type"] == "UNKNOWN"
    assert (await receiver.reply(MESSAGE, FOREIGN)).status == 403
    assert not closing.done()
    await closing
    assert now() == pytest.approx(5, abs=0.1)
    assert (await begun).status == 200
    assert len(handler.ended) == 1
    await receiver.close()  # nothing left to do
    receiver.open()
    assert (await receiver.reply(MESSAGE, MARKET)).status == 200


async def test_closing_does_not_wait_for_ever() -> None:
    async def on_event(event: Event) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    receiver = Receiver(on_event, name="x", version="1")
    assert (await receiver.reply(MESSAGE, MARKET)).status == 500
    began = now()
    await receiver.close()
    assert now() - began == pytest.approx(10, abs=0.1)
    assert len(asyncio.all_tasks()) == 2
    await asyncio.sleep(1)
    assert len(asyncio.all_tasks()) == 1


async def test_request_that_is_given_up_cancels_its_handler() -> None:
    handler = Handler(takes=5)
    request = asyncio.create_task(receiver_of(handler).reply(MESSAGE, MARKET))
    await asyncio.sleep(1)
    request.cancel()
    await asyncio.wait([request])
    assert request.cancelled()
    await asyncio.sleep(10)
    assert handler.ended == []


# Who is let in


@pytest.mark.parametrize(
    ("remote", "admitted"),
    [
        ("5.45.207.0", True),
        ("5.45.207.127", True),
        ("5.45.207.128", False),
        ("5.45.206.255", False),
        ("141.8.142.64", True),
        ("141.8.142.200", False),
        ("5.255.253.1", True),
        ("5.255.253.129", False),
        ("::ffff:5.45.207.1", True),
        ("::ffff:5.45.207.200", False),
        ("::ffff:5.45.207.1%eth0", True),
        ("::5.45.207.1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("", False),
        (None, False),
        ("testclient", False),
        ("5.45.207.1, 192.0.2.1", False),
        ("05.45.207.1", False),
    ],
)
async def test_only_the_networks_of_the_market_are_let_in(
    remote: str | None, admitted: bool
) -> None:
    handler = Handler()
    receiver = receiver_of(handler)
    assert receiver.admits(remote) is admitted
    reply = await receiver.reply(MESSAGE, remote)
    assert reply.status == (200 if admitted else 403)
    assert len(handler.events) == admitted


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": MARKET},
        {"Forwarded": f"for={MARKET}"},
        {"X-Real-IP": MARKET},
        {"X-Forwarded-For": MARKET, "Forwarded": f"for={MARKET}"},
    ],
)
def test_header_from_an_untrusted_address_changes_nothing(headers: dict[str, str]) -> None:
    for receiver in (receiver_of(), receiver_of(trusted_proxies=["10.0.0.0/8", "unix:"])):
        assert not receiver.admits(FOREIGN, headers)
        assert receiver.admits(
            MARKET, {name: text.replace(MARKET, FOREIGN) for name, text in headers.items()}
        )
        # The Market itself is no proxy.
        assert not receiver.admits(FOREIGN, dict.fromkeys(headers, "10.0.0.1"))


PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ([("X-Forwarded-For", MARKET)], True),
        ([("x-forwarded-for", f" {MARKET} ")], True),
        ([("X-Forwarded-For", f"{MARKET}:443")], True),
        ([("X-Forwarded-For", f"[::ffff:{MARKET}]:443")], True),
        ([("X-Forwarded-For", f"::ffff:{MARKET}")], True),
        ([("X-Forwarded-For", f"{FOREIGN}, {MARKET}")], True),
        ([("X-Forwarded-For", f"{MARKET}, 10.9.9.9, 10.0.0.7")], True),
        ([("X-Forwarded-For", FOREIGN), ("X-Forwarded-For", MARKET)], True),
        # What a client has written stands on the left.
        ([("X-Forwarded-For", f"{MARKET}, {FOREIGN}")], False),
        ([("X-Forwarded-For", MARKET), ("X-Forwarded-For", FOREIGN)], False),
        ([("X-Forwarded-For", f"{MARKET}, {FOREIGN}, 10.0.0.7")], False),
        ([("X-Forwarded-For", f"{MARKET}, unknown")], False),
        ([("X-Forwarded-For", f"{MARKET}, ")], False),
        ([("X-Forwarded-For", f"{MARKET}, {PROXY}, x, {PROXY}")], False),
        ([("X-Forwarded-For", "")], False),
        ([("X-Forwarded-For", "10.0.0.2")], False),
        ([("X-Forwarded-For", f"[{MARKET}")], False),
        ([("X-Forwarded-For", f"{MARKET}:x y")], False),
        ([], False),
        ([("Forwarded", f"for={MARKET}")], True),
        ([("Forwarded", f'For="{MARKET}:8080";proto=https;by=10.0.0.2')], True),
        ([("Forwarded", f'for={FOREIGN}, proto=https; for="[::ffff:{MARKET}]"')], True),
        ([("Forwarded", f"for={MARKET}, for=10.3.3.3")], True),
        ([("Forwarded", f"for={MARKET}"), ("Forwarded", f"for={FOREIGN}")], False),
        ([("Forwarded", f"for={MARKET}, for={FOREIGN}")], False),
        ([("Forwarded", f"for={MARKET};for={FOREIGN}")], False),
        ([("Forwarded", f"for={FOREIGN};for={MARKET}")], False),
        ([("Forwarded", f"for={MARKET}, for=unknown")], False),
        ([("Forwarded", f"for={MARKET}, for=_hidden")], False),
        ([("Forwarded", f"for={MARKET}, by=10.0.0.2")], False),
        ([("Forwarded", "")], False),
        ([("Forwarded", MARKET)], False),
        # A quote that the client has opened must not hide what a proxy has added.
        ([("Forwarded", f'for={MARKET};x="'), ("Forwarded", f"for={FOREIGN}")], False),
        ([("Forwarded", f'for={MARKET};x="'), ("Forwarded", f'for="{FOREIGN}"')], False),
        ([("Forwarded", f'for={MARKET};x="\\"'), ("Forwarded", f'for="{FOREIGN}"')], False),
        # A proxy sets one of the headers, and passes the other one on as the client has sent it.
        ([("Forwarded", f"for={MARKET}"), ("X-Forwarded-For", FOREIGN)], False),
        ([("Forwarded", f"for={FOREIGN}"), ("X-Forwarded-For", MARKET)], False),
        ([("Forwarded", f"for={MARKET}"), ("X-Forwarded-For", MARKET)], True),
    ],
)
def test_trusted_proxy_names_the_client(headers: list[tuple[str, str]], admitted: bool) -> None:
    receiver = receiver_of(trusted_proxies=["10.0.0.0/8", "unix:"])
    assert receiver.admits(PROXY, headers) is admitted
    assert receiver.admits(f"::ffff:{PROXY}", headers) is admitted
    assert receiver.admits(None, headers) is admitted  # a Unix socket
    assert receiver_of(trusted_proxies=["10.0.0.0/8"]).admits(None, headers) is False
    assert receiver_of().admits(PROXY, headers) is False


def test_networks_can_be_replaced() -> None:
    receiver = receiver_of(networks=["127.0.0.0/8", "::1", "::ffff:192.0.2.0/121"])
    assert receiver.admits("127.0.0.1")
    assert receiver.admits("::1")
    assert receiver.admits("192.0.2.1")
    assert not receiver.admits("192.0.2.200")
    assert not receiver.admits(MARKET)
    # A proxy of one's own may be let in itself.
    receiver = receiver_of(networks=["10.0.0.1/32"], trusted_proxies=["10.0.0.0/8"])
    assert receiver.admits("10.0.0.1")
    assert not receiver.admits("10.0.0.2")


async def test_flood_from_foreign_addresses_writes_one_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = receiver_of()
    for _ in range(1000):
        await receiver.reply(MESSAGE, FOREIGN)
    await asyncio.sleep(61)
    await receiver.reply(MESSAGE, FOREIGN)
    lines = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert len(lines) == 2
    assert "trusted_proxies" in lines[0]
    assert lines[1].startswith("1000 request(s) answered 403, the last from 192.0.2.1")


@pytest.mark.parametrize(
    ("remote", "headers", "told"),
    [
        (FOREIGN, {"X-Forwarded-For": MARKET}, f"{FOREIGN}: not from the Market's networks; if"),
        ("testclient", {}, "'testclient', which is no address"),
        (
            PROXY,
            {"X-Forwarded-For": f"{MARKET}, {FOREIGN}, 10.0.0.7"},
            f"{FOREIGN}, as the trusted proxy {PROXY} says in X-Forwarded-For: not from the",
        ),
        (PROXY, {}, f"the trusted proxy {PROXY}, which has sent neither X-Forwarded-For nor Forw"),
        (
            PROXY,
            {"X-Forwarded-For": f"{MARKET}, unknown"},
            f"the trusted proxy {PROXY}, whose X-Forwarded-For has 'unknown' instead of an address",
        ),
        (PROXY, {"Forwarded": MARKET}, f"the trusted proxy {PROXY}, whose Forwarded has '' instea"),
        (
            None,
            {"Forwarded": f"for={FOREIGN}"},
            f"{FOREIGN}, as a trusted proxy without an address says in Forwarded: not from the",
        ),
    ],
)
async def test_log_names_the_address_that_was_not_let_in(
    remote: str | None, headers: dict[str, str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = receiver_of(trusted_proxies=["10.0.0.0/8", "unix:"])
    assert (await receiver.reply(MESSAGE, remote, headers)).status == 403
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"1 request(s) answered 403, the last from {told}")
    # What is a trusted proxy already is not to be passed in trusted_proxies.
    assert ("trusted_proxies" in line) is (remote == FOREIGN)


async def test_log_says_how_a_unix_socket_is_trusted(caplog: pytest.LogCaptureFixture) -> None:
    assert (await receiver_of().reply(MESSAGE, None)).status == 403
    assert "pass 'unix:' in trusted_proxies" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": ""}, "name must be a text of 1 to 100 characters"),
        ({"version": "1" * 101}, "version must be"),
        ({"name": None}, "name must be"),
        ({"networks": "10.0.0.0/8"}, "networks is a text; pass a list"),
        ({"networks": ["10.0.0.1/8"]}, "networks: 10.0.0.1/8 has host bits set"),
        ({"networks": ["everybody"]}, "pass networks such as"),
        ({"networks": ["unix:"]}, "networks: "),
        ({"trusted_proxies": "unix:"}, "trusted_proxies is a text"),
        ({"trusted_proxies": ["proxy"]}, "trusted_proxies: "),
        ({"networks": None}, "networks is a list of networks"),
        ({"trusted_proxies": None}, "trusted_proxies is a list of networks"),
        ({"trusted_proxies": b"10.0.0.0/8"}, "trusted_proxies is a text"),
        ({"name": "\ud800"}, "name has half of a surrogate pair"),
    ],
)
def test_wrong_setting_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(told)):
        Receiver(Handler(), **{"name": "my-shop", "version": "1.0"} | settings)


async def _yields(event: Event) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("on_event", [None, _yields])
def test_on_event_must_be_callable_and_no_generator(on_event: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="on_event is an async function"):
        Receiver(on_event, name="my-shop", version="1.0")
