"""Clocks that differ, jump or stand still never lead to a wrong outcome.

The Market has two clocks: that of its answers (Date) and that of its storage (createdAt). Our
machine's clock may stand still while the machine sleeps. The Market's clock goes on: in these
tests, it jumps forward.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import now, outcome_of, session_of, texts
from yamarket_chat import DeliveryUnknownError, Receipt, Retry
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox

CHAT = 7
SKEWS = [-25.0, -14.0, -5.0, -1.0, -0.3, -0.05, 0.0, 0.05, 1.0, 3.0, 14.0, 25.0]


def sends_fail(*faults: Fault | None) -> Callable[[RequestInfo], Fault | None]:
    """Faults for the messages in the order of their arrival; the rest succeeds."""
    coming = iter(faults)

    def plan(request: RequestInfo) -> Fault | None:
        return next(coming, None) if request.operation == "send_message" else None

    return plan


def check(outcome: Receipt | BaseException, stored: int, before: int = 0) -> None:
    """Check that a receipt means one stored message, and an unknown outcome at most one."""
    if isinstance(outcome, Receipt):
        assert stored == before + 1
    else:
        assert isinstance(outcome, DeliveryUnknownError)
        assert stored <= before + 1


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_offset_between_created_at_and_date_gives_no_wrong_outcome(
    skew: float, earlier: bool, when: str
) -> None:
    fault = Fault("reset", "after" if when == "after" else "before")
    for milliseconds in (False, True):
        async with (
            Sandbox(
                storage_offset=skew,
                storage_milliseconds=milliseconds,
                faults=sends_fail(*([None] if earlier else []), fault),
            ) as market,
            session_of(market) as session,
        ):
            if earlier:
                await session.send_message(CHAT, "tells both clocks")
            outcome = await outcome_of(session.send_message(CHAT, "hi"))
            check(outcome, texts(market, CHAT).count("hi"))
            if earlier or abs(skew) < 0.1:
                assert isinstance(outcome, Receipt)


@pytest.mark.parametrize("ago", [120.0, 3600.0])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_old_equal_text_does_not_make_the_outcome_unclear(ago: float, when: str) -> None:
    fault = Fault("reset", "after" if when == "after" else "before")
    async with Sandbox(faults=sends_fail(fault)) as market, session_of(market) as session:
        market.shop_says(CHAT, "hi")
        await asyncio.sleep(ago)
        await session.get_chat(CHAT)
        receipt = await session.send_message(CHAT, "hi")
        assert receipt.confirmed_by == ("history" if when == "after" else "answer")
        assert texts(market, CHAT) == ["hi", "hi"]


@pytest.mark.parametrize("seed", range(12))
async def test_clock_offset_and_history_order_never_double_a_message(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [
        *(Fault("reset"), Fault("reset", "after"), Fault("no_answer", "after")),
        *(Fault("status", "after", status=504), Fault("reset", "later", delay=4.0)),
    ]

    def plan(request: RequestInfo) -> Fault | None:
        fails = request.operation == "send_message" and rng.random() < 0.3
        return rng.choice(kinds) if fails else None

    words = [None, ["yes", "no"]][seed % 2]
    messages = [(rng.randint(1, 3), rng.choice(words) if words else f"{i}") for i in range(24)]
    async with (
        Sandbox(
            faults=plan,
            storage_offset=rng.choice(SKEWS),
            storage_milliseconds=rng.random() < 0.5,
            history_order=rng.choice(["ascending", "descending", "shuffled"]),
            latency=rng.choice([0.0, 0.1, 1.0]),
        ) as market,
        session_of(market) as session,
    ):
        for _ in range(150):  # several pages
            market.buyer_says(1, "?")
        outcomes = await asyncio.gather(
            *(outcome_of(session.send_message(*message)) for message in messages)
        )
        sent = Counter(messages)
        surely = Counter(
            message
            for message, outcome in zip(messages, outcomes, strict=True)
            if isinstance(outcome, Receipt)
        )
        assert all(isinstance(o, (Receipt, DeliveryUnknownError)) for o in outcomes)
        for (chat_id, text), number in sent.items():
            assert surely[chat_id, text] <= texts(market, chat_id).count(text) <= number


@pytest.mark.parametrize("asleep", [2.0, 40.0, 3600.0])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("at", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_suspended_machine_gives_no_wrong_outcome(
    asleep: float, earlier: bool, at: float, when: str
) -> None:
    """The machine sleeps while an attempt is in progress or is being settled."""
    fault = Fault("no_answer", "after" if when == "after" else "before")
    faults = sends_fail(*([None] if earlier else []), fault)
    async with (
        Sandbox(faults=faults, latency=0.2) as market,
        session_of(market, timeout=2.0) as session,
    ):
        if earlier:
            await session.send_message(CHAT, "before")
        loop: Any = asyncio.get_running_loop()  # a virtual one of either kind

        def sleep(loop: Any = loop) -> None:
            loop.slept += asleep
            market.step_clock(asleep)

        loop.call_later(at, sleep)
        outcome = await outcome_of(session.send_message(CHAT, "hi"))
        check(outcome, texts(market, CHAT).count("hi"))


async def test_row_of_a_message_during_which_the_machine_slept_explains_an_equal_text() -> None:
    """The Market stored it 8 s before it dated the answer, and the loop's time shows none of them.

    The offset of the clocks has been learnt, so it cannot explain the 8 s.
    """
    async with (
        Sandbox(
            faults=sends_fail(None, Fault("reset", "after"), None, Fault("reset")), latency=0.2
        ) as market,
        session_of(market) as session,
    ):
        await session.send_message(CHAT, "answered")
        await session.send_message(CHAT, "settled, which shows the offset")
        loop: Any = asyncio.get_running_loop()  # a virtual one of either kind
        market._clock._storage_offset -= 8.0  # instead of an answer that takes 8 s

        def sleep() -> None:
            loop.slept += 8.0
            market.step_clock(8.0)

        loop.call_later(0.1, sleep)
        await session.send_message(CHAT, "hi")
        market._clock._storage_offset += 8.0
        receipt = await session.send_message(CHAT, "hi")
        assert receipt.requests == 2
        assert texts(market, CHAT)[2:] == ["hi", "hi"]


async def test_suspend_doubles_a_message_without_the_system_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The counter-test: before the first Date, only the system clock shows a sleep."""
    monkeypatch.setattr(type(asyncio.get_running_loop()), "stood_still", lambda _: 0.0)
    async with (
        Sandbox(faults=sends_fail(Fault("no_answer", "after")), latency=0.2) as market,
        session_of(market, timeout=2.0) as session,
    ):
        asyncio.get_running_loop().call_later(0.5, market.step_clock, 3600.0)
        await session.send_message(CHAT, "hi")
        assert texts(market, CHAT) == ["hi", "hi"]


@pytest.mark.parametrize("step", [-3600.0, -20.0, -7.0, -1.0, 1.0, 7.0, 20.0, 3600.0])
@pytest.mark.parametrize("at", [-1.0, 0.1, 3.0, 16.0])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_clock_step_of_the_market_gives_no_wrong_outcome(
    step: float, at: float, when: str
) -> None:
    fault = Fault("reset", "after" if when == "after" else "before")
    async with (
        Sandbox(faults=sends_fail(None, fault), latency=0.2) as market,
        session_of(market, retry=Retry(settle_after=15.0)) as session,
    ):
        await session.send_message(CHAT, "before")
        await asyncio.sleep(2.0)
        if at < 0:
            market.step_clock(step)
        else:
            asyncio.get_running_loop().call_later(at, market.step_clock, step)
        outcome = await outcome_of(session.send_message(CHAT, "hi"))
        check(outcome, texts(market, CHAT).count("hi"))


@pytest.mark.parametrize("blocked", [3.0, 20.0])
async def test_blocked_event_loop_gives_no_wrong_outcome(blocked: float) -> None:
    """The same happens if the process is stopped: its clock goes on, and it reads answers late."""
    async with (
        Sandbox(faults=sends_fail(None, Fault("reset", "after")), latency=0.2) as market,
        session_of(market) as session,
    ):
        await session.send_message(CHAT, "before")
        loop: Any = asyncio.get_running_loop()
        loop.call_later(0.25, loop.block, blocked)
        began = now()
        outcome = await outcome_of(session.send_message(CHAT, "hi"))
        assert now() - began >= blocked
        check(outcome, texts(market, CHAT).count("hi"))


STOPPED = """
import asyncio, sys
import msgspec
from yamarket_chat import ChatSession, Retry

async def main():
    retry = Retry()
    msgspec.structs.force_setattr(retry, "settle_after", 0.4)  # on the real clock
    async with ChatSession("key", 1, base_url=sys.argv[1], timeout=0.4, retry=retry) as session:
        await session.get_chat(1)
        sent = [session.send_message(chat, "hi") for chat in (1, 2, 3)]
        for receipt in await asyncio.gather(*sent, return_exceptions=True):
            print(getattr(receipt, "confirmed_by", receipt))

asyncio.run(main())
"""


@pytest.mark.real_time
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system stops no process")
async def test_a_process_may_be_stopped_and_continued() -> None:
    """For longer than its timeout and its settling take together."""
    faults = {1: Fault("no_answer", "after"), 2: Fault("no_answer", "before")}

    def plan(request: RequestInfo) -> Fault | None:
        first = request.operation == "send_message" and request.operation_number <= 3
        return faults.get(request.chat_id or 0) if first else None

    async with Sandbox(
        api_key="key", business_id=1, chats=[1, 2, 3], faults=plan, latency=0.15
    ) as market:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STOPPED, market.url), stdout=asyncio.subprocess.PIPE
        )
        while market.requests("send_message") < 3:
            await asyncio.sleep(0.005)
        child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.0)
        assert [texts(market, chat) for chat in (1, 2, 3)] == [["hi"], [], ["hi"]]
        child.send_signal(signal.SIGCONT)
        said, _ = await child.communicate()
        assert [texts(market, chat) for chat in (1, 2, 3)] == [["hi"]] * 3
        assert said.split()[0] == b"history"
        assert set(said.split()) <= {b"answer", b"history"}
