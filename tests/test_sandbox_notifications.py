"""The sandbox notifies as the Market does: what of, how often, and when again."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.helpers import http_server, now, session_of
from tests.test_notifications import Handler
from yamarket_chat import InvalidArgumentError
from yamarket_chat.notifications import (
    ChatArbitrageFinished,
    ChatArbitrageStarted,
    ChatCreated,
    ChatMessageSent,
    Event,
    Receiver,
)
from yamarket_chat.sandbox import (
    NotificationInfo,
    NotificationPlan,
    Sandbox,
    VirtualLoop,
    World,
    control,
    random_notifications,
)

LOOPBACK = ["127.0.0.0/8"]
DAY = 86_400


@asynccontextmanager
async def receiving(handler: Handler) -> AsyncIterator[str]:
    receiver = Receiver(handler, name="my-shop", version="1.0", networks=LOOPBACK)
    async with http_server(receiver.aiohttp) as url:
        yield url


@asynccontextmanager
async def answering(*statuses: int) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver that answers with these statuses, and then always with the last one."""
    received: list[dict[str, Any]] = []
    left = list(statuses)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        content = json.loads(await request.read())
        received.append(content | {"at": now()})
        status = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, headers={"Location": "/"})

    async with http_server(answer) as url:
        yield url, received


async def test_everything_that_the_market_tells_of_is_sent() -> None:
    handler = Handler()
    async with receiving(handler) as url, Sandbox(chats=[7]) as market:
        market.notify(url)
        await asyncio.sleep(1)
        order = market.add_chat(order_id=55)
        said = market.buyer_says(order, "Где мой заказ?")
        async with session_of(market) as session:
            await session.send_message(order, "В пути")
        market.set_chat(order, chat_type="ARBITRAGE", status="WAITING_FOR_ARBITER")
        market.set_chat(order, status="FINISHED")
        market.set_chat(order, chat_type="CHAT")
        market.set_chat(7, chat_type="ARBITRAGE")  # a chat of its own: the Market does not tell
        assert market.buyer_sends_sticker(7).payload
        await asyncio.sleep(1)
    types = [type(event) for event in handler.events]
    assert Counter(types) == {
        ChatCreated: 1,
        ChatMessageSent: 2,
        ChatArbitrageStarted: 1,
        ChatArbitrageFinished: 1,
    }
    first = handler.events[types.index(ChatMessageSent)]
    assert first == ChatMessageSent(
        business_id=market.business_id,
        chat_id=order,
        message_id=said.message_id,
        sent_at=said.created_at,
    )
    sent = market.notifications
    assert [one.number for one in sent] == [0, 1, 2, 3, 4, 5]
    assert {(one.status, one.problem) for one in sent} == {(200, None)}
    assert (sent[0].type, sent[0].chat_id) == ("PING", None)
    assert (sent[2].type, sent[2].chat_id, sent[2].message_id) == (
        *("CHAT_MESSAGE_SENT", order),
        said.message_id,
    )


async def test_notification_has_the_documented_form() -> None:
    async with answering(200) as (url, received), Sandbox() as market:
        market.notify(url)
        market.buyer_says(7, "Где мой заказ?")
        await asyncio.sleep(1)
        assert market.notifications[0].problem == (
            "the answer is not in the documented form: Input data was truncated"
        )
        market.notify(None)
        market.buyer_says(7, "Ау?")
        await asyncio.sleep(1)
    ping, created, message = received
    assert set(ping) == {"notificationType", "time", "at"}
    assert set(created) == {"notificationType", "businessId", "chatId", "createdAt", "at"}
    assert message["messageId"] == "1"
    for time in (ping["time"], created["createdAt"], message["sentAt"]):
        assert datetime.fromisoformat(time).tzinfo is not None


async def test_notification_is_repeated_with_the_documented_pauses_for_14_days() -> None:
    async with answering(200, 500) as (url, received), Sandbox(chats=[7]) as market:
        market.notify(url)
        await asyncio.sleep(1)
        market.buyer_says(7, "Где мой заказ?")
        await asyncio.sleep(15 * DAY)
        times = [one["at"] - received[1]["at"] for one in received[1:]]
        pauses = Counter(round(b - a) for a, b in itertools.pairwise(times))
        assert pauses == {60: 60, 900: 92, 3600: 13 * 24}
        assert times[-1] == pytest.approx(14 * DAY, abs=60)
        # It is switched off.
        market.buyer_says(7, "Ау?")
        await asyncio.sleep(DAY)
        assert len(received) == 2 + sum(pauses.values())


@pytest.mark.parametrize(("status", "times"), [(200, 1), (400, 1), (204, 60), (307, 60), (403, 60)])
async def test_only_200_and_400_end_the_repeats(status: int, times: int) -> None:
    async with answering(status) as (url, received), Sandbox() as market:
        market.notify(url)
        await asyncio.sleep(3590)
        assert len(received) == times


async def test_answer_that_comes_too_late_does_not_count() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        ping = "PING" in await request.text()
        await asyncio.sleep(1.5 if ping else 10.5)
        return web.Response()

    async with http_server(answer) as url, Sandbox(chats=[7]) as market:
        market.notify(url)
        market.buyer_says(7, "Где мой заказ?")
        await asyncio.sleep(65)
        assert [(one.type, one.status, one.problem) for one in market.notifications] == [
            ("PING", None, "no answer within 1 s"),
            ("CHAT_MESSAGE_SENT", None, "no answer within 10 s"),
            ("PING", None, "no answer within 1 s"),
        ]


async def test_receiver_that_cannot_be_reached_is_told_later() -> None:
    handler = Handler()
    async with Sandbox(chats=[7]) as market:
        async with receiving(handler) as url:
            pass
        market.notify(url)
        market.buyer_says(7, "Где мой заказ?")
        await asyncio.sleep(5)
        assert [one.status for one in market.notifications] == [None, None]
        port = int(url.rpartition(":")[2])
        receiver = Receiver(handler, name="my-shop", version="1.0", networks=LOOPBACK)
        server = web.Server(receiver.aiohttp)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port)
        await asyncio.sleep(120)
        assert [one.status for one in market.notifications] == [None, None, 200, 200]
        listening.close()
        await server.shutdown(0.1)
    assert len(handler.events) == 1


async def test_notifications_are_dropped_doubled_delayed_and_swapped() -> None:
    handler = Handler()
    async with receiving(handler) as url, Sandbox(chats=[7]) as market:
        market.notify(url, {1: [], 2: [0, 0, 5], 3: [30], 4: [2], 5: [1]})
        began = now()
        for number in range(1, 7):
            market.buyer_says(7, f"сообщение {number}")
        await asyncio.sleep(60)
        times = [(round(one.time - began), one.number) for one in market.notifications]
    assert sorted(times) == [(0, 0), (0, 2), (0, 2), (0, 6), (1, 5), (2, 4), (5, 2), (30, 3)]
    heard = [event.message_id for event in handler.events if isinstance(event, ChatMessageSent)]
    assert sorted(heard[:3]) == [2, 2, 6]
    assert heard[3:] == [5, 4, 2, 3]


def test_random_notifications_depend_on_the_seed_only() -> None:
    def delays(plan: NotificationPlan) -> list[tuple[float, ...]]:
        return [
            tuple(plan(NotificationInfo(number, "CHAT_MESSAGE_SENT", 7, 0.0)))
            for number in range(1, 1000)
        ]

    first = delays(random_notifications(0.3, seed=7))
    assert first == delays(random_notifications(0.3, seed=7))
    assert first != delays(random_notifications(0.3, seed=8))
    assert 650 < first.count((0.0,)) < 750
    assert {len(times) for times in first} == {0, 1, 2, 3}
    assert max(max(times, default=0) for times in first) <= 60
    assert set(delays(random_notifications(0, seed=7))) == {(0.0,)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ftp://127.0.0.1/",), "pass http"),
        (("127.0.0.1:8080",), "pass http"),
        (("http://",), "pass http"),
        (("http://[::1",), "pass http"),
        (("http://127.0.0.1:99999/",), "Port out of range"),
        ((5,), "pass http"),
        (("http://127.0.0.1:8080/", 3), "plan must be"),
    ],
)
async def test_wrong_address_or_plan_is_refused(arguments: tuple[Any, ...], told: str) -> None:
    async with Sandbox() as market:
        with pytest.raises(InvalidArgumentError, match=told):
            market.notify(*arguments)
    with pytest.raises(InvalidArgumentError, match="probability"):
        random_notifications(2, seed=1)


async def test_command_say_notifies_as_well() -> None:
    handler = Handler()
    async with receiving(handler) as url, Sandbox() as market, aiohttp.ClientSession() as client:
        market.notify(url)
        path = f"{market.url}{control.PATH}?chatId=7"
        async with client.post(
            path, data=b"hello", headers={control.HEADER: control.VALUE}
        ) as said:
            assert said.status == 200
        await asyncio.sleep(1)
    assert [type(event) for event in handler.events] == [ChatCreated, ChatMessageSent]


async def test_sandbox_that_ends_leaves_no_notification_behind() -> None:
    async with answering(500) as (url, received):
        async with Sandbox() as market:
            market.notify(url)
            market.buyer_says(7, "Где мой заказ?")
            await asyncio.sleep(1)
        await asyncio.sleep(600)
        assert len(received) == 3
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "_deliver" in repr(task)]


# What buyers say


async def test_buyer_says_a_text_or_sends_a_file(tmp_path: Path) -> None:
    photo = tmp_path / "чек.jpg"
    photo.write_bytes(b"photo")
    async with Sandbox() as market, session_of(market) as session:
        market.buyer_says(7, "Где мой заказ?")
        market.buyer_says(7, photo)
        market.buyer_says(7, b"content")
        market.buyer_says(7, "Вот", file=b"content", filename="накладная.pdf")
        market.buyer_says(7, file=photo)
        for wrong in ((), ("",), (b"x",)):
            with pytest.raises(InvalidArgumentError):
                market.buyer_says(7, *wrong, file=b"y" if wrong == (b"x",) else None)
        history = [message async for message in session.history(7)]
        assert [(m.message, [f.name for f in m.payload or ()]) for m in history] == [
            ("Где мой заказ?", []),
            (None, ["чек.jpg"]),
            (None, ["file"]),
            ("Вот", ["накладная.pdf"]),
            (None, ["чек.jpg"]),
        ]
        assert history[1].payload is not None
        assert await session.download(history[1].payload[0]) == b"photo"


# On several machines of one world


def play(seed: int) -> tuple[list[Event], list[tuple[int, float, int | None]], list[str]]:
    """A shop hears of its buyers over a network in memory, while all of it is troubled."""
    lines: list[str] = []
    world = World(seed=seed, trace=lines.append)
    market, shop = world.loop("market"), world.loop("shop")
    box = market.run_until_complete(Sandbox(chats=[7]).__aenter__())
    handler = Handler(takes=0.1)

    async def serve(loop: VirtualLoop) -> tuple[asyncio.AbstractServer, web.Server]:
        receiver = Receiver(handler, name="my-shop", version="1.0", networks=LOOPBACK)

        async def hear(request: web.BaseRequest) -> web.StreamResponse:
            response = await receiver.aiohttp(request)
            # By default aiohttp's server tells the real time, which differs from run to run.
            response.headers["Date"] = "Thu, 01 Jan 2026 00:00:00 GMT"
            return response

        server = web.Server(hear, access_log=None)
        return await loop.create_server(server, "127.0.0.1", 8080), server

    listening, server = shop.run_until_complete(serve(shop))
    world.network.latency = (0.01, 0.2)
    box.notify("http://127.0.0.1:8080/", random_notifications(0.3, seed, longest=20))
    chance = world.randomness("buyers")
    for number in range(20):
        # Outside of all loops.
        world.call_at(chance.uniform(1, 60), box.buyer_says, 7, f"сообщение {number}")
    world.call_at(30.0, world.network.fail, 15.0)
    shop.run_until_complete(asyncio.sleep(300))
    listening.close()
    shop.run_until_complete(server.shutdown(0.1))
    market.run_until_complete(box.__aexit__(None, None, None))
    world.close()
    sent = [(one.number, one.time, one.status) for one in box.notifications]
    return handler.events, sent, lines


def test_notifications_run_in_a_world_and_repeat_with_the_seed() -> None:
    events, sent, lines = play(7)
    assert (events, sent, lines) == play(7)
    assert sent != play(8)[1]
    heard = Counter(event.message_id for event in events if isinstance(event, ChatMessageSent))
    assert set(heard) < set(range(1, 21))  # some were dropped
    assert max(heard.values()) > 1  # some came more than once
    assert None in {status for _, _, status in sent}  # the network was away
