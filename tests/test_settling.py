"""Settling an unknown outcome: what the history proves, and what it cannot prove."""

from __future__ import annotations

import asyncio
import math
import pickle
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import virtual
from tests.helpers import HOUR, KEY, error_of, http_server, now, outcome_of, session_of, texts
from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    InvalidArgumentError,
    Message,
    OutgoingMessage,
    Pending,
    Receipt,
    Retry,
    Sender,
)
from yamarket_chat._delivery.settling import Found, content_of_row, content_of_text, find
from yamarket_chat.models import File
from yamarket_chat.pending import Content, Stored
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox, StoredMessage

CHAT, OTHER_CHAT = 7, 8
BEFORE, AFTER = Fault("reset"), Fault("reset", when="after")
T = 1_790_000_000.0


@pytest.fixture(autouse=True, scope="module")
def _the_same_every_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yamarket_chat.sandbox.clock.wall_time", lambda loop: T + 0.25 + loop.time())
        random.seed(4)
        yield


def sends_fail(*faults: Fault | None) -> Callable[[RequestInfo], Fault | None]:
    """Faults for the messages and files in the order of their arrival; the rest succeeds."""
    coming = iter(faults)

    def plan(request: RequestInfo) -> Fault | None:
        if request.operation not in ("send_message", "send_file"):
            return None
        return next(coming, None)

    return plan


async def unknown_of(session: ChatSession, text: str = "hi") -> Pending:
    await session.get_chat(OTHER_CHAT)  # so that the Market's time is known
    error = await error_of(session.send_message(CHAT, text, on_unknown="raise"))
    assert isinstance(error, DeliveryUnknownError)
    return error.pending


def said_by_shop(market: Sandbox, chat_id: int = CHAT) -> list[str | None]:
    return [row.text for row in market.messages(chat_id) if row.sender == "PARTNER"]


def by_hand(market: Sandbox) -> StoredMessage:
    return market.shop_says(CHAT, "written by hand")


# The function: no wrong conclusion from whatever stands in the history


class Row(NamedTuple):
    at: float
    text: str
    sender: Sender = Sender.PARTNER


def rows_of(stored: list[Row], *, whole_seconds: bool = True) -> list[Message]:
    stored = sorted(stored, key=lambda row: row.at)
    return [
        Message(
            message_id=number,
            created_at=datetime.fromtimestamp(math.floor(at) if whole_seconds else at, UTC),
            sender=sender,
            message=text,
        )
        for number, (at, text, sender) in enumerate(stored, 1)
    ]


class Sent(NamedTuple):
    """The messages sent to a chat, one by one. The last one is the message to find."""

    items: list[Stored]
    stored: list[Row]
    arrived: bool
    gaps: list[float]


@st.composite
def what_was_sent(draw: st.DrawFn, words: str = "ab", *, tight: bool = False) -> Sent:
    """Attempts that the scheduler allows, on a Market's clock that is known to a second."""
    error = draw(st.floats(0.0, 0.999))  # how far the clock is from its lower bound
    width = draw(st.floats(1.0, 1.2 if tight else 4.0))
    at = T + draw(st.floats(0.0, 1.0))
    items, stored, gaps = [], [], []
    arrived = False
    count = draw(st.integers(1, 7))
    for i in range(count):
        gap = draw(st.sampled_from([0.0, 0.01, 1.0, 15.0]) | st.floats(0.0, 5.0))
        gaps.append(gap)
        began = at + gap
        took = draw(st.sampled_from([0.0, 0.05, 15.0]) | st.floats(0.0, 10.0))
        text = draw(st.sampled_from(words))
        last = i == count - 1
        surely = not last and draw(st.booleans() if not tight else st.just(True))
        unknown = last or not surely
        moment = began + draw(st.floats(0.0, 1.0)) * (min(took + 9.9, 14.9) if unknown else took)
        arrived = surely or draw(st.booleans())
        if arrived:
            stored.append(Row(moment, text))
        # The scheduler lets a chat rest after an unknown outcome.
        ended = began + took + (15.0 if unknown else 0.0)
        at = ended + (3.0 if unknown and not last else 0.0)
        low, high = error * width, (1 - error) * width
        items.append(
            Stored(content_of_text(text), began - low, ended + high, surely=surely or last)
        )
    return Sent(items, stored, arrived, gaps)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    sent=what_was_sent(),
    old=st.lists(st.tuples(st.floats(5.0, 500.0), st.sampled_from("ab"))),
    others=st.lists(
        st.tuples(
            st.floats(-5.0, 60.0),
            st.sampled_from("ab"),
            st.sampled_from([Sender.CUSTOMER, Sender.MARKET, Sender.SUPPORT, Sender("BOT")]),
        )
    ),
    colleague=st.lists(st.tuples(st.floats(-5.0, 60.0), st.just("by hand"))),
    whole_seconds=st.booleans(),
    data=st.data(),
)
def test_find_is_never_wrong(
    sent: Sent,
    old: list[tuple[float, str]],
    others: list[tuple[float, str, Sender]],
    colleague: list[tuple[float, str]],
    whole_seconds: bool,
    data: st.DataObject,
) -> None:
    first = sent.items[0].earliest
    stored = [
        *sent.stored,
        *(Row(first - ago, text) for ago, text in old),
        *(Row(T + after, text, sender) for after, text, sender in others),
        *(Row(T + after, text) for after, text in colleague),
    ]
    rows = data.draw(st.permutations(rows_of(stored, whole_seconds=whole_seconds)))
    found = find(rows, sent.items[-1], sent.items[:-1])
    if found is not Found.UNCLEAR:
        assert found is (Found.YES if sent.arrived else Found.NO)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(sent=what_was_sent("abcdefghij", tight=True), data=st.data())
def test_find_is_clear_for_different_texts(sent: Sent, data: st.DataObject) -> None:
    contents = [item.content for item in sent.items]
    assume(len(set(contents)) == len(contents))
    rows = data.draw(st.permutations(rows_of(sent.stored)))
    assert find(rows, sent.items[-1], sent.items[:-1]) is (Found.YES if sent.arrived else Found.NO)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    number=st.integers(1, 12),
    arrived=st.booleans(),
    # Of a series that is older than what is known, each row may be the one before.
    pause=st.floats(2.5, 5.0) | st.floats(35.0, 60.0),
    fraction=st.floats(0.0, 0.999),
)
def test_find_is_clear_for_equal_texts_seconds_apart(
    number: int, arrived: bool, pause: float, fraction: float
) -> None:
    start = T + fraction
    moments = [start + i * pause for i in range(number)]
    before = [
        Stored(content_of_text("yes"), at - 0.5, at + 0.6 if i < number - 1 else at + 15.6)
        for i, at in enumerate(moments)
    ]
    rows = rows_of([Row(at, "yes") for at in (moments if arrived else moments[:-1])])
    assert find(rows, before[-1], before[:-1]) is (Found.YES if arrived else Found.NO)


@pytest.mark.parametrize("at", [-1.0, 0.0, 0.4, 3.0, 15.9, 17.0, 3600.0])
def test_unexplained_shop_row_makes_the_outcome_unclear(at: float) -> None:
    wanted = Stored(content_of_text("hi"), T + 0.5, T + 16.0)
    for stored in ([], [Row(T + 1, "hi")]):
        found = find(rows_of([*stored, Row(T + at, "by hand")]), wanted, [])
        since_the_attempt = 0 <= at <= 16
        told = Found.YES if stored else Found.NO
        assert found is (Found.UNCLEAR if since_the_attempt else told)


@pytest.mark.parametrize(
    ("at", "found"),
    [
        (-61.5, Found.NO),
        (-58.5, Found.UNCLEAR),
        (-0.6, Found.UNCLEAR),
        (0.0, Found.YES),
        (15.9, Found.YES),
    ],
)
def test_row_matches_from_the_start_of_the_attempt_to_the_cut_off(at: float, found: Found) -> None:
    wanted = Stored(content_of_text("hi"), T + 0.5, T + 16.0)
    assert find(rows_of([Row(T + at, "hi")]), wanted, []) is found


def test_find_is_fast_for_many_equal_texts() -> None:
    """`find` blocks the event loop, so it must be fast."""
    calls = 0

    class Counted(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal calls
            calls += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    before = [
        Stored(Content(text=Counted("yes")), T + i / 20 - 0.5, T + i / 20 + 0.6) for i in range(400)
    ]
    wanted = Stored(Content(text=Counted("yes")), T + 19.5, T + 36.0)
    find(rows_of([Row(T + i / 20, "yes") for i in range(400)]), wanted, before)
    assert calls < 1_000_000


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\x00", "\x1f"])
def test_outer_spaces_are_ignored_when_texts_are_compared(space: str) -> None:
    assert content_of_text(f"{space}a{space}b{space}") == Content(text=f"a{space}b")


def test_file_is_compared_by_name_and_size_and_differs_from_a_text() -> None:
    file = File(name="label.pdf", url="https://files.example/1", size=5)
    row = Message(message_id=1, created_at=datetime.now(UTC), sender=Sender.PARTNER)
    [as_file, with_text, two, empty] = [
        msgspec.structs.replace(row, payload=(file,)),
        msgspec.structs.replace(row, payload=(file,), message="label.pdf"),
        msgspec.structs.replace(row, payload=(file, file)),
        row,
    ]
    assert content_of_row(as_file) == Content(file_name="label.pdf", file_size=5)
    for other in (with_text, two, empty):
        assert content_of_row(other) != content_of_row(as_file)


# Whole runs


class Setting(NamedTuple):
    order: Any
    includes_from: bool
    strip_spaces: bool
    history_delay: float
    clock_offset: float
    latency: float
    old_rows: int
    history_fails: int


a_setting = st.builds(
    Setting,
    order=st.sampled_from(["ascending", "descending"]),
    includes_from=st.booleans(),
    strip_spaces=st.booleans(),
    history_delay=st.sampled_from([0.0, 2.0, 4.9]),
    clock_offset=st.sampled_from([0.0, -307.0, 421.0]).flatmap(
        lambda minutes: st.floats(0.0, 0.999).map(lambda second: minutes + second)
    ),
    latency=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    old_rows=st.sampled_from([0, 1, 250]),
    history_fails=st.sampled_from([0, 0, 1, 5]),
)

ALL_OF_THEM = (
    None,
    BEFORE,
    AFTER,
    Fault("no_answer"),
    Fault("no_answer", when="after"),
    Fault("status", status=502, html=True),
    Fault("status", status=504, when="after"),
    Fault("half_body", when="after"),
    Fault("reset", when="later", delay=4.0),
    Fault("reset", when="later", delay=9.9),
    Fault("status", status=503),
    Fault("rate_limit", delay=3.0),
    Fault("parallel_limit"),
)

a_message = st.tuples(
    st.sampled_from(["yes", "yes", " yes\n", "no"]),
    st.sampled_from(ALL_OF_THEM),
    st.sampled_from([0.0, 0.0, 0.3, 2.0, 16.0]),  # the pause before it is handed over
)


@settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    setting=a_setting,
    messages=st.lists(a_message, min_size=1, max_size=8),
    noise=st.lists(
        st.tuples(
            st.floats(0.0, 60.0),
            st.sampled_from(["buyer_says", "market_says", "support_says"]),
            st.sampled_from(["yes", "no"]),
        ),
        max_size=8,
    ),
)
def test_each_message_arrives_once_and_in_order(
    setting: Setting,
    messages: list[tuple[str, Fault | None, float]],
    noise: list[tuple[float, str, str]],
) -> None:
    async def main() -> None:
        history_fails = iter([Fault("status", status=502, html=True)] * setting.history_fails)
        sends = sends_fail(*(fault for _, fault, _ in messages))

        def plan(request: RequestInfo) -> Fault | None:
            if request.operation == "history":
                return next(history_fails, None)
            return sends(request)

        async with Sandbox(
            faults=plan,
            history_order=setting.order,
            history_includes_from=setting.includes_from,
            history_delay=setting.history_delay,
            strip_spaces=setting.strip_spaces,
            clock_offset=setting.clock_offset,
            latency=setting.latency,
        ) as market:
            for i in range(setting.old_rows):
                say = market.shop_says if i % 2 else market.buyer_says
                say(CHAT, "yes")
            old = len(said_by_shop(market))
            await asyncio.sleep(120.0)  # an equal row of the last half minute could be a later one
            loop = asyncio.get_running_loop()
            for at, says, text in noise:
                loop.call_later(at, getattr(market, says), CHAT, text)
            async with session_of(market) as session:
                sending = []
                for text, _, pause in messages:
                    await asyncio.sleep(pause)
                    sending.append(asyncio.create_task(session.send_message(CHAT, text)))
                receipts = await asyncio.gather(*sending)
            assert all(isinstance(receipt, Receipt) for receipt in receipts)
            sent = [text for text, _, _ in messages]
            if setting.strip_spaces:
                sent = [text.strip() for text in sent]
            assert said_by_shop(market)[old:] == sent
            assert (market.refusals.rate, market.refusals.parallel) == (0, 0)

    virtual.run(main())


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.74, 0.76, 0.99])
@pytest.mark.parametrize("fault", [AFTER, Fault("no_answer", when="after")])
async def test_many_equal_texts_with_unknown_outcomes_arrive_once_each(
    fault: Fault, fraction: float
) -> None:
    async with (
        Sandbox(faults=sends_fail(*[fault] * 8), clock_offset=fraction) as market,
        session_of(market) as session,
    ):
        receipts = await asyncio.gather(*(session.send_message(CHAT, "yes") for _ in range(8)))
        assert [receipt.confirmed_by for receipt in receipts] == ["history"] * 8
        assert texts(market, CHAT) == ["yes"] * 8


@pytest.mark.parametrize("latency", [0.1, 0.3])
async def test_last_of_a_minute_of_equal_texts_is_delivered_or_unknown(latency: float) -> None:
    number = int(60 / latency)
    faults = sends_fail(*[None] * (number - 1), AFTER)
    async with Sandbox(faults=faults, latency=latency) as market, session_of(market) as session:
        await asyncio.sleep(7.0)
        messages = [OutgoingMessage(CHAT, "yes")] * number
        outcomes = [outcome async for outcome in session.send_many(messages)]
        assert texts(market, CHAT) == ["yes"] * number
        # So dense a run may be more than can be told; but nothing may be wrong.
        assert sum(outcome.status == "delivered" for outcome in outcomes) >= number - 1


# Who else writes


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("says", ["buyer_says", "market_says", "support_says"])
async def test_messages_of_other_senders_do_not_affect_settling(says: str, arrives: bool) -> None:
    fault = AFTER if arrives else BEFORE
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        sending = asyncio.create_task(session.send_message(CHAT, "hi"))
        for _ in range(3):
            await asyncio.sleep(4.0)
            getattr(market, says)(CHAT, "hi")
        receipt = await sending
        assert receipt.confirmed_by == ("history" if arrives else "answer")
        assert said_by_shop(market) == ["hi"]


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_message_of_a_colleague_during_the_attempt_makes_the_outcome_unknown(
    fault: Fault,
) -> None:
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        await asyncio.sleep(3.0)
        sending = asyncio.create_task(error_of(session.send_message(CHAT, "where is it?")))
        await asyncio.sleep(0)
        following = asyncio.create_task(session.send_message(CHAT, "next"))
        await asyncio.sleep(5.0)
        by_hand(market)
        error = await sending
        assert isinstance(error, DeliveryUnknownError)
        assert error.sent is None
        # A person reads it: which chat, which text, when, what was seen.
        for part in (str(CHAT), "where is it?", "2026-09-21", "Connection reset"):
            assert part in str(error)
        assert await following
        sent = ["where is it?"] if fault is AFTER else []
        assert said_by_shop(market) == [*sent, "written by hand", "next"]
        assert market.requests("send_message") == 2


@pytest.mark.parametrize("when", [-3.0, 20.0])
async def test_message_of_a_colleague_before_or_long_after_does_not_matter(
    when: float,
) -> None:
    async with Sandbox(faults=sends_fail(BEFORE)) as market, session_of(market) as session:
        await asyncio.sleep(3.0)
        if when < 0:
            by_hand(market)
            await asyncio.sleep(-when)
        else:
            asyncio.get_running_loop().call_later(when, by_hand, market)
        assert (await session.send_message(CHAT, "hi")).requests == 2


async def test_message_of_a_colleague_after_delivery_does_not_affect_the_next() -> None:
    async with Sandbox(faults=sends_fail(None, AFTER)) as market, session_of(market) as session:
        await session.send_message(CHAT, "first")
        await asyncio.sleep(3.0)
        by_hand(market)
        await asyncio.sleep(3.0)
        assert (await session.send_message(CHAT, "second")).confirmed_by == "history"


# What the history answers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 423])
async def test_refused_history_makes_the_outcome_unknown_at_once(status: int) -> None:
    def plan(request: RequestInfo) -> Fault | None:
        if request.operation == "history":
            return Fault("status", status=status)
        return BEFORE if request.operation_number == 1 else None

    async with Sandbox(faults=plan) as market, session_of(market) as session:
        error = await error_of(session.send_message(CHAT, "hi"))
        assert isinstance(error, DeliveryUnknownError)
        assert f"HTTP {status}" in str(error)
        assert now() < 16.0
        assert (market.requests("send_message"), market.requests("history")) == (1, 1)


async def test_failing_history_makes_the_outcome_unknown_within_the_retry_bounds() -> None:
    def plan(request: RequestInfo) -> Fault | None:
        if request.operation == "history":
            return Fault("status", status=500)
        return AFTER

    retry = Retry(attempts=100, give_up_after=120.0)
    async with Sandbox(faults=plan) as market, session_of(market, retry=retry) as session:
        error = await error_of(session.send_message(CHAT, "hi"))
        assert isinstance(error, DeliveryUnknownError)
        assert "HTTP 500" in str(error)
        assert 60.0 < now() <= 136.0
        assert market.requests("history") > 3


async def test_endless_history_makes_the_outcome_unknown() -> None:
    """The Market returns the same page token again and again."""

    async def read(*_: Any, **__: Any) -> Any:
        raise ChatError("page token twice")

    async with Sandbox(faults=sends_fail(AFTER)) as market, session_of(market) as session:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("yamarket_chat._delivery.settler.read_history", read)
            error = await error_of(session.send_message(CHAT, "hi"))
        assert isinstance(error, DeliveryUnknownError)
        assert texts(market, CHAT) == ["hi"]


# It costs only those who need it


async def test_known_outcomes_cost_no_extra_request() -> None:
    async with Sandbox(latency=0.1) as market, session_of(market) as session:
        await asyncio.gather(*(session.send_message(i % 5 + 1, str(i)) for i in range(100)))
        assert len(market.arrivals) == 100


async def test_settling_delays_only_its_own_chat() -> None:
    async with (
        Sandbox(latency=0.1, faults=sends_fail(BEFORE)) as market,
        session_of(market) as session,
    ):
        unknown = asyncio.create_task(session.send_message(CHAT, "hi"))
        await asyncio.sleep(0)
        for i in range(100):
            await session.send_message(OTHER_CHAT, str(i))
        assert now() < 10.2
        assert not unknown.done()
        await unknown


async def test_settling_holds_no_parallel_slot_while_it_waits() -> None:
    faults = sends_fail(*[Fault("status", status=500)] * 4)
    async with Sandbox(latency=0.1, faults=faults) as market, session_of(market) as session:
        unknown = [asyncio.create_task(session.send_message(i, "hi")) for i in range(1, 5)]
        await asyncio.sleep(1.0)
        await session.send_message(9, "hi")
        assert now() == pytest.approx(1.1, abs=0.01)
        await asyncio.gather(*unknown)


LONG = 2500


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_long_history_is_read_no_further_back_than_needed(fault: Fault) -> None:
    async with (
        Sandbox(faults=sends_fail(fault), history_order="descending") as market,
        session_of(market) as session,
    ):
        for i in range(LONG):
            market.shop_says(CHAT, f"{i}")
            await asyncio.sleep(1.0)
        await asyncio.sleep(3.0)
        await session.send_message(CHAT, "hi")
        assert said_by_shop(market)[-1] == "hi"
        assert market.requests("history") == 1


async def test_long_ascending_history_is_read_to_its_end() -> None:
    async with (
        Sandbox(faults=sends_fail(*[BEFORE] * 3), history_includes_from=False) as market,
        session_of(market) as session,
    ):
        for i in range(LONG):
            market.shop_says(CHAT, f"{i}")
            await asyncio.sleep(0.1)
        await asyncio.sleep(120.0)
        await session.send_message(CHAT, "hi")
        assert said_by_shop(market)[LONG:] == ["hi"]
        assert market.requests("history") == 3 * (LONG // 100)


# on_unknown="raise", and settling later


@pytest.mark.parametrize("where", ["session", "call"])
async def test_on_unknown_raise_raises_at_once(where: str) -> None:
    retry = Retry(on_unknown="raise" if where == "session" else "settle")
    per_call: Any = {"on_unknown": "raise"} if where == "call" else {}
    async with (
        Sandbox(latency=0.1, faults=sends_fail(AFTER)) as market,
        session_of(market, retry=retry) as session,
    ):
        await session.get_chat(CHAT)
        error = await error_of(session.send_message(CHAT, "  hi ", **per_call))
        assert isinstance(error, DeliveryUnknownError)
        assert now() < 0.3
        assert market.requests("history") == 0
        pending = error.pending
        assert (pending.business_id, pending.chat_id) == (market.business_id, CHAT)
        assert (pending.text, pending.requests) == ("  hi ", 1)
        assert await session.settle(pending) == Receipt(CHAT, 1, "history")


async def test_on_unknown_of_a_call_overrides_the_session() -> None:
    async with (
        Sandbox(faults=sends_fail(AFTER)) as market,
        session_of(market, retry=Retry(on_unknown="raise")) as session,
    ):
        receipt = await session.send_message(CHAT, "hi", on_unknown="settle")
        assert receipt.confirmed_by == "history"
        with pytest.raises(InvalidArgumentError):
            await session.send_message(CHAT, "hi", on_unknown="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "settles", "waits"),
    [("yes", False, 15.0 + 3.0 + 30.0), ("no", False, 15.0 + 3.0), ("yes", True, 15.0 + 3.0)],
    ids=["equal", "other", "equal after settle"],
)
async def test_equal_message_waits_until_it_can_be_told_from_a_raised_one(
    text: str, settles: bool, waits: float
) -> None:
    async with Sandbox(faults=sends_fail(BEFORE)) as market, session_of(market) as session:
        await session.get_chat(CHAT)  # so that the Market's clock is known
        error = await error_of(session.send_message(CHAT, "yes", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        failed_at = now()
        if settles:
            assert await session.settle(error.pending) is None
        await session.send_message(CHAT, text)
        assert waits <= now() - failed_at < waits + 1.0


async def test_equal_message_that_waits_already_waits_as_long() -> None:
    async with Sandbox(faults=sends_fail(BEFORE)) as market, session_of(market) as session:
        first = asyncio.create_task(session.send_message(CHAT, "yes", on_unknown="raise"))
        await asyncio.gather(*(session.send_message(CHAT, text) for text in ("no", "yes")))
        assert isinstance(await error_of(first), DeliveryUnknownError)
        assert 48.0 <= now() < 49.0
        assert texts(market, CHAT) == ["no", "yes"]


async def test_next_message_waits_until_a_raised_one_can_no_longer_be_stored() -> None:
    fault = Fault("reset", when="later", delay=9.9)
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        await unknown_of(session)
        await session.send_message(CHAT, "next")
        assert texts(market, CHAT) == ["hi", "next"]


FAULTS = (BEFORE, AFTER, Fault("reset", when="later", delay=9.9), Fault("no_answer", when="after"))


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("asked_after", [0.0, 5.0, 86_400.0])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.when}")
def test_stored_pending_is_settled_in_another_process(
    fault: Fault, asked_after: float, file: bool
) -> None:
    """The pending message is read from JSON, on another loop with another clock."""

    async def send() -> tuple[bytes, float, list[StoredMessage]]:
        async with Sandbox(faults=sends_fail(None, fault)) as market:
            async with session_of(market, retry=Retry(on_unknown="raise")) as session:
                await session.send_message(CHAT, "hi")
                if file:
                    sending = session.send_file(CHAT, b"12345", filename="счёт.pdf")
                else:
                    sending = session.send_message(CHAT, " hi ")
                error = await error_of(sending)
            raised_at = now()
            assert isinstance(error, DeliveryUnknownError)
            error = pickle.loads(pickle.dumps(error))  # noqa: S301
            await asyncio.sleep(30.0)
            return msgspec.json.encode(error.pending), raised_at, market.messages(CHAT)

    async def settle(stored: bytes, raised_at: float, rows: list[StoredMessage]) -> Receipt | None:
        await asyncio.sleep(1234.5)  # the loop's time has nothing to do with the other's
        ahead = raised_at + asked_after - now()

        async def history(_: web.BaseRequest) -> web.Response:
            time = now() + ahead
            return history_answer(
                [row for row in rows if row.stored_at <= time], date=T + 0.25 + time
            )

        async with http_server(history) as url, ChatSession(KEY, 12345, base_url=url) as session:
            return await session.settle(msgspec.json.decode(stored, type=Pending))

    receipt = virtual.run(settle(*virtual.run(send())))
    assert receipt == (None if fault.when == "before" else Receipt(CHAT, 1, "history"))


async def in_another_process(market: Sandbox, pending: Pending) -> Receipt | None:
    """Settle it from JSON by a session that shares nothing with the one that sent."""
    pending = msgspec.json.decode(msgspec.json.encode(pending), type=Pending)
    elsewhere = market.url.replace("127.0.0.1", "localhost")
    async with session_of(market, base_url=elsewhere) as session:
        return await session.settle(pending)


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
@pytest.mark.parametrize("same_chat", [True, False])
async def test_what_was_learnt_of_the_clocks_is_stored_as_well(
    fault: Fault, same_chat: bool
) -> None:
    """Another process finds it beside an equal text of ten seconds ago.

    That it is missing stays unclear: the equal text may be it, if the storage's clock was set.
    """
    faults = [None, fault] if same_chat else [None, AFTER, fault]
    async with Sandbox(faults=sends_fail(*faults)) as market, session_of(market) as session:
        if not same_chat:
            for text in ("one", "two"):  # the history that is read for the second has the first
                await session.send_message(CHAT + 1, text)
        market.shop_says(CHAT, "hi")
        await asyncio.sleep(10.0)
        if same_chat:
            await session.send_message(CHAT, "one")
        pending = await unknown_of(session)
        await asyncio.sleep(60.0)
        found = await outcome_of(in_another_process(market, pending))
        if fault is AFTER:
            assert found == Receipt(CHAT, 1, "history")
        else:
            assert isinstance(found, DeliveryUnknownError)


def test_a_pending_that_was_stored_before_can_be_read() -> None:
    stored = b'{"business_id":1,"chat_id":2,"text":"hi","requests":1,"seen":"nothing","later":[1]}'
    assert msgspec.json.decode(stored, type=Pending).skew is None


def history_answer(rows: Sequence[StoredMessage | Message], *, date: float | None) -> web.Response:
    """An answer to getChatHistory with `date` as its Date header."""
    messages = [
        {
            "messageId": row.message_id,
            "createdAt": row.created_at.isoformat(),
            "sender": row.sender,
            "message": row.text if isinstance(row, StoredMessage) else row.message,
            "payload": [{"name": f.name, "url": f.url, "size": f.size} for f in row.payload or ()],
        }
        for row in rows
    ]
    result = {"context": {"type": "DIRECT"}, "messages": messages}
    answer = web.json_response({"status": "OK", "result": result})
    answer.headers["Date"] = "soon" if date is None else formatdate(date, usegmt=True)
    return answer


async def test_settling_waits_for_what_the_market_may_yet_carry_out() -> None:
    fault = Fault("reset", when="later", delay=9.9)
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        pending = await unknown_of(session)
        assert await session.settle(pending) == Receipt(CHAT, 1, "history")
        assert 15.0 <= now() < 18.0
        # Long afterwards there is nothing to wait for.
        await asyncio.sleep(3600.0)
        start = now()
        assert await session.settle(pending) == Receipt(CHAT, 1, "history")
        assert now() - start < 0.1


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_later_messages_do_not_affect_settle(fault: Fault) -> None:
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        pending = await unknown_of(session)
        await session.send_message(CHAT, "hi")
        await asyncio.sleep(20.0)
        by_hand(market)
        receipt = await session.settle(pending)
        assert receipt == (Receipt(CHAT, 1, "history") if fault is AFTER else None)


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_message_that_never_arrived_can_be_sent_again_after_settle(fault: Fault) -> None:
    async with Sandbox(faults=sends_fail(fault, AFTER)) as market, session_of(market) as session:
        receipt = await session.settle(await unknown_of(session))
        assert (receipt is None) is (fault is BEFORE)
        if receipt is None:
            await session.send_message(CHAT, "hi")
        assert texts(market, CHAT) == ["hi"]


async def test_settle_raises_if_the_history_is_unclear() -> None:
    async with Sandbox(faults=sends_fail(AFTER)) as market, session_of(market) as session:
        pending = await unknown_of(session)
        await asyncio.sleep(1.0)
        by_hand(market)
        error = await error_of(session.settle(pending))
        assert isinstance(error, DeliveryUnknownError)
        assert error.pending == pending

        market.revoked = True
        error = await error_of(session.settle(pending))
        assert isinstance(error, DeliveryUnknownError)
        assert error.pending == pending
        assert "revoked" in str(error)

        other = msgspec.structs.replace(pending, business_id=1)
        with pytest.raises(InvalidArgumentError):
            await session.settle(other)


@pytest.mark.parametrize("name", ["since", "until", "before_since"])
async def test_settle_refuses_times_that_have_lost_their_zone(name: str) -> None:
    """As from a database column. Taken as local time, they told that nothing had arrived."""
    async with Sandbox(faults=sends_fail(AFTER)) as market, session_of(market) as session:
        pending = await unknown_of(session)
        naive = msgspec.structs.replace(
            pending, **{name: getattr(pending, name).replace(tzinfo=None)}
        )
        with pytest.raises(InvalidArgumentError, match=f"pending.{name} has no time zone"):
            await session.settle(naive)
        with pytest.raises(msgspec.ValidationError, match="timezone"):
            msgspec.json.decode(msgspec.json.encode(naive), type=Pending)


class OwnDatetime(datetime):
    """As pendulum and freezegun have."""


@pytest.mark.parametrize(
    "changes",
    [
        {"text": 5},
        {"since": "2026-01-01"},
        {"until": 5.0},
        {"chat_id": "7"},
        {"chat_id": 0},
        {"business_id": "12345"},
        {"file_size": "5"},
        {"before": ("hi",)},
        {"before": (Stored(Content("hi"), T, None),)},  # type: ignore[arg-type]  # on purpose
        {"skew": (math.nan, 1.0)},
        {"skew": 5},
        {"requests": None},
    ],
)
async def test_settle_refuses_what_is_no_pending(changes: dict[str, Any]) -> None:
    async with Sandbox(faults=sends_fail(AFTER)) as market, session_of(market) as session:
        pending = await unknown_of(session)
        asked = len(market.arrivals)
        with pytest.raises(InvalidArgumentError, match="pending"):
            await session.settle(msgspec.structs.replace(pending, **changes))
        assert len(market.arrivals) == asked
        assert pending.since is not None
        own = OwnDatetime.fromtimestamp(pending.since.timestamp(), UTC)
        receipt = await session.settle(msgspec.structs.replace(pending, since=own))
        assert receipt == Receipt(CHAT, 1, "history")


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_nobody_knows_what_was_sent_before(fault: Fault) -> None:
    """Then an equal row may be an earlier message. If there is none, the message did not arrive."""
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        pending = msgspec.structs.replace(await unknown_of(session), before_since=None)
        if fault is BEFORE:
            assert await session.settle(pending) is None
        else:
            assert isinstance(await error_of(session.settle(pending)), DeliveryUnknownError)


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
@pytest.mark.parametrize("old", [False, True])
async def test_message_sent_before_the_first_date_header_is_not_guessed(
    fault: Fault, old: bool
) -> None:
    """If the history has the same text, it may be an older message."""
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        if old:
            market.shop_says(CHAT, "hi")
            await asyncio.sleep(100.0)
        error = await error_of(session.send_message(CHAT, "hi", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        pending = error.pending
        assert pending.since is None
        try:
            assert await session.settle(pending) is None
        except DeliveryUnknownError:
            assert old or fault is AFTER
        else:
            assert not old
            assert fault is BEFORE


# The Market's clock


class Market:
    """A fake Market with one chat, and a clock that the test sets.

    Each message fails in turn as told: "ok", "lost" (stored nowhere) or "stored" (no answer).
    """

    def __init__(self, *fates: str) -> None:
        self.fates = iter(fates)
        self.rows: list[Message] = []
        self.ahead = T
        self.behind = 0.0  # the clock of its storage
        self.dates = True
        self.latency = 0.0

    def time(self) -> float:
        return now() + self.ahead

    def step(self, seconds: float) -> None:
        self.ahead += seconds

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        asked = self.time()
        if self.latency:
            await asyncio.sleep(self.latency)
        if request.path.endswith("/history"):
            return history_answer(self.rows, date=asked if self.dates else None)
        fate = next(self.fates, "ok")
        if fate != "lost":
            stored_at = self.time() - self.behind
            row = rows_of([Row(stored_at, msgspec.json.decode(body)["message"])])[0]
            self.rows.append(msgspec.structs.replace(row, message_id=len(self.rows) + 1))
        if fate != "ok":
            await asyncio.sleep(self.latency)
            return web.Response(status=502, text="<html>")
        answer = web.json_response({"status": "OK"})
        answer.headers["Date"] = formatdate(asked, usegmt=True) if self.dates else "soon"
        return answer

    def texts(self) -> list[str | None]:
        return [row.message for row in self.rows]


@asynccontextmanager
async def market_of_our_own(*fates: str) -> AsyncIterator[tuple[Market, ChatSession]]:
    market = Market(*fates)
    async with (
        http_server(market.answer) as url,
        ChatSession(KEY, 12345, base_url=url) as session,
    ):
        yield market, session


@pytest.mark.parametrize("fate", ["lost", "stored"])
@pytest.mark.parametrize("under_way", [False, True])
@pytest.mark.parametrize("step", [-7200.0, -30.0, 30.0, 7200.0])
async def test_clock_steps_give_no_wrong_outcome(fate: str, under_way: bool, step: float) -> None:
    """The loop's time stood still, as on a laptop that slept or a moved virtual machine."""
    async with market_of_our_own("ok", fate) as (market, session):
        await session.send_message(CHAT, "before")
        market.latency = 0.2  # no later answer is as quick as the first one was
        await asyncio.sleep(1.0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.3 if under_way else -1.0, market.step, step)
        try:
            # It is stored 0.2 s from now, and its connection breaks 0.4 s from now.
            receipt = await session.send_message(CHAT, "hi")
        except DeliveryUnknownError:
            # The row of the message before may seem to be a later one.
            assert step < 0
        else:
            assert receipt.confirmed_by == ("history" if fate == "stored" else "answer")
            assert market.texts() == ["before", "hi"]
        assert market.texts().count("hi") <= 1


async def test_clocks_that_are_set_later_do_not_mislead_what_was_stored() -> None:
    """What a process learns of the clocks now says nothing about those of an hour ago."""
    async with market_of_our_own("stored") as (market, session):
        market.behind = 20.0
        assert [row async for row in session.history(CHAT)] == []  # its Date is needed
        error = await error_of(session.send_message(CHAT, "hi", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        await asyncio.sleep(HOUR)
        market.behind = 0.0
        await session.send_message(CHAT, "of today")
        assert isinstance(await error_of(session.settle(error.pending)), DeliveryUnknownError)


@pytest.mark.parametrize("fate", ["lost", "stored"])
async def test_outcome_is_not_guessed_without_a_readable_date(fate: str) -> None:
    async with market_of_our_own(fate) as (market, session):
        market.dates = False
        error = await error_of(session.send_message(CHAT, "hi"))
        assert isinstance(error, DeliveryUnknownError)
        assert "Date" in str(error)


@pytest.mark.parametrize("fate", ["lost", "stored"])
@pytest.mark.parametrize("on_unknown", ["settle", "raise"])
async def test_outcome_is_found_although_the_first_answers_had_no_date(
    fate: str, on_unknown: Literal["settle", "raise"]
) -> None:
    async with market_of_our_own("ok", "ok", fate) as (market, session):
        market.dates = False
        await session.send_message(CHAT, "first")
        market.dates = True
        await asyncio.sleep(3.0)
        await session.send_message(CHAT, "second")
        try:
            receipt = await session.send_message(CHAT, "hi", on_unknown=on_unknown)
        except DeliveryUnknownError as error:
            found = await session.settle(error.pending)
            assert (found is None) is (fate == "lost")
        else:
            assert on_unknown == "settle"
            assert receipt.confirmed_by == ("history" if fate == "stored" else "answer")
            assert market.texts() == ["first", "second", "hi"]


async def test_an_old_outcome_is_settled_at_once_although_dates_have_ceased() -> None:
    async with market_of_our_own("ok", "stored") as (market, session):
        market.latency = 0.5
        await session.send_message(CHAT, "before")
        error = await error_of(session.send_message(CHAT, "hi", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        await asyncio.sleep(HOUR)
        market.dates, market.latency = False, 0.0  # no earlier answer was as quick
        assert len([row async for row in session.history(CHAT)]) == 2
        start = now()
        assert await session.settle(error.pending)
        assert now() - start < 1.0


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Fri, 27 Nov 2026 12:00:00 +99999999999999",
        f"Fri, 27 Nov 2026 12:00:00 +{'9' * 400}",
        f"Fri, 27 Nov 2026 12:00:00 -{'9' * 400}",
    ],
)
async def test_absurd_date_is_no_date(date: str) -> None:
    sent = 0

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        sent += 1
        answer = web.json_response({"status": "OK"}, status=200 if sent == 1 else 502)
        answer.headers["Date"] = date
        answer.headers["X-RateLimit-Resource-Limit"] = "1000"
        answer.headers["X-RateLimit-Resource-Remaining"] = "500"
        answer.headers["X-RateLimit-Resource-Until"] = "Fri, 27 Nov 2026 13:00:00 GMT"
        return answer

    async with http_server(answer) as url, ChatSession(KEY, 12345, base_url=url) as session:
        await session.send_message(CHAT, "before")
        error = await error_of(session.send_message(CHAT, "hi", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        assert error.pending.since is None


@pytest.mark.parametrize("fates", [["stored"], ["lost", "stored"], ["ok", "stored"]])
async def test_slow_answers_give_no_wrong_outcome(fates: list[str]) -> None:
    async with market_of_our_own(*fates) as (market, session):
        market.latency = 9.0
        await session.send_message(CHAT, "hi")
        await session.send_message(CHAT, "hi")
        assert market.texts() == ["hi", "hi"]
