"""Whatever comes between: what the Market stored is what was handed over, less what was not sent.

Hypothesis makes up the interleaving of messages, failures, cancellations, closings and other
people's messages, and looks for one after which that does not hold.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.helpers import session_of
from tests.virtual import VirtualLoop
from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    Pending,
    Receipt,
    Retry,
    SessionClosedError,
)
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox

T = TypeVar("T")
Fate = Literal["arrived", "not sent", "either"]

CHATS = (1, 2)
BY_HAND = "written by hand"
# Seconds around a message within which a colleague's may be taken for one since its attempt.
CLOCKS_MAY_BE_OFF = 2.5

WRITES_FAIL = (
    Fault("reset"),
    Fault("reset", when="after"),
    Fault("no_answer"),
    Fault("no_answer", when="after"),
    Fault("reset", when="later", delay=4.0),
    Fault("reset", when="later", delay=9.9),
    Fault("status", status=500),
    Fault("status", status=502, html=True, when="after"),
    Fault("status", status=200, html=True),
    Fault("half_body", when="after"),
    Fault("status", status=503),
    Fault("status", status=400),
    Fault("slow", delay=7.0),
    Fault("rate_limit", delay=20.0),
    Fault("parallel_limit"),
)
READS_FAIL = (
    Fault("reset"),
    Fault("no_answer"),
    Fault("status", status=500),
    Fault("status", status=200, html=True),
    Fault("half_body"),
    Fault("slow", delay=1.0),  # one that takes longer leaves the Market's clock less certain
    Fault("parallel_limit"),
)


class Message:
    """A message that was handed over, and what became of it."""

    def __init__(self, chat_id: int, text: str, handed_over: float, *, raises: bool) -> None:
        self.chat_id = chat_id
        self.text = text
        self.handed_over = handed_over
        self.ended = float("inf")
        self.may_be_unknown = raises
        self.fate: Fate = "either"
        self.pending: Pending | None = None
        self.task: asyncio.Task[None] | None = None


def can_have_become(messages: Sequence[Message], stored: Sequence[str | None]) -> bool:
    """Whether these rows are these messages, in order: each that arrived, none not sent."""
    explained = {0}
    for message in messages:
        following = set() if message.fate == "arrived" else set(explained)
        if message.fate != "not sent":
            following |= {
                count + 1
                for count in explained
                if count < len(stored) and stored[count] == message.text.strip()
            }
        explained = following
    return len(stored) in explained


class Delivery(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.loop = self.runner.get_loop()
        self.writes_fail: deque[Fault] = deque()
        self.reads_fail: deque[Fault] = deque()
        self.messages: list[Message] = []
        self.by_hand: list[tuple[int, float]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.closings: list[asyncio.Task[None]] = []
        self.is_down = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def fail(self, request: RequestInfo) -> Fault | None:
        if request.operation == "send_message":
            return self.writes_fail.popleft() if self.writes_fail else None
        if request.operation == "history":
            return self.reads_fail.popleft() if self.reads_fail else None
        return None

    @initialize(
        order=st.sampled_from(["ascending", "descending"]),
        includes_from=st.booleans(),
        delay=st.sampled_from([0.0, 3.0]),
        offset=st.floats(-100.0, 100.0),
        latency=st.sampled_from([0.05, 0.5]),
    )
    def begin(
        self, order: Any, includes_from: bool, delay: float, offset: float, latency: float
    ) -> None:
        async def begin() -> None:
            self.market = Sandbox(
                faults=self.fail,
                history_order=order,
                history_includes_from=includes_from,
                history_delay=delay,
                clock_offset=offset,
                latency=latency,
            )
            await self.market.__aenter__()
            self.open()
            await self.session.get_chat(CHATS[0])  # so that the Market's time is known
            await asyncio.sleep(5.0)

        self.run(begin())

    def open(self) -> None:
        retry = Retry(attempts=10_000, give_up_after=1e6)
        self.session: ChatSession = session_of(self.market, retry=retry)

    # What the program does

    @rule(
        chat_id=st.sampled_from(CHATS),
        text=st.sampled_from(["yes", " yes ", "no"]),
        raises=st.sampled_from([False, False, True]),
    )
    def send(self, chat_id: int, text: str, raises: bool) -> None:
        async def send() -> None:
            message = Message(chat_id, text, self.loop.time(), raises=raises)
            self.messages.append(message)
            message.task = asyncio.create_task(self.carry_out(message, self.session, raises))
            self.tasks.append(message.task)
            await asyncio.sleep(0)

        self.run(send())

    async def carry_out(self, message: Message, session: ChatSession, raises: bool) -> None:
        unknown: Literal["raise", "settle"] = "raise" if raises else "settle"
        sending = session.send_message(message.chat_id, message.text, on_unknown=unknown)
        [outcome] = await asyncio.gather(sending, return_exceptions=True)
        message.ended = self.loop.time()
        if isinstance(outcome, DeliveryUnknownError):
            message.pending = outcome.pending
            assert self.may_be_unknown(message), f"nobody could tell? {outcome}"
        elif isinstance(outcome, ChatError):
            assert outcome.sent is False, repr(outcome)
            message.fate = "not sent"
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            assert isinstance(outcome, Receipt)
            message.fate = "arrived"

    def may_be_unknown(self, message: Message) -> bool:
        """Whether the design allows it: as asked, by closing, or for a colleague's message."""
        return message.may_be_unknown or any(
            chat_id == message.chat_id
            and message.handed_over - CLOCKS_MAY_BE_OFF <= at <= message.ended + CLOCKS_MAY_BE_OFF
            for chat_id, at in self.by_hand
        )

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.messages[-6:]))

        async def cancel() -> None:
            assert message.task is not None
            message.task.cancel()
            await asyncio.sleep(0)

        self.run(cancel())

    @precondition(lambda self: any(message.pending for message in self.messages))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        unknown = [message for message in self.messages if message.pending]
        message = data.draw(st.sampled_from(unknown))
        stored = msgspec.json.encode(message.pending)

        async def settle() -> None:
            pending = msgspec.json.decode(stored, type=Pending)
            asked = self.loop.time()
            try:
                receipt = await self.session.settle(pending)
            except DeliveryUnknownError:
                # Closed meanwhile, or there is somebody's message that nobody can explain.
                return
            except SessionClosedError:
                return
            fate: Fate = "not sent" if receipt is None else "arrived"
            assert message.fate in ("either", fate), f"settled twice, differently, at {asked}"
            message.fate = fate

        async def start() -> None:
            self.tasks.append(asyncio.create_task(settle()))
            await asyncio.sleep(0)

        self.run(start())

    @rule(grace=st.sampled_from([0.0, 5.0, 30.0]), waits=st.booleans())
    def close_and_open_anew(self, grace: float, waits: bool) -> None:
        async def close() -> None:
            for message in self.messages:
                if message.ended == float("inf"):
                    message.may_be_unknown = True
            closing = asyncio.create_task(self.session.close(grace))
            self.closings.append(closing)
            if waits:
                await closing
            self.open()

        self.run(close())

    # What the world does

    @rule(fault=st.sampled_from(WRITES_FAIL))
    def the_next_write_fails(self, fault: Fault) -> None:
        self.writes_fail.append(fault)

    @rule(fault=st.sampled_from(READS_FAIL))
    def the_next_read_fails(self, fault: Fault) -> None:
        self.reads_fail.append(fault)

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.3, 1.0, 4.0, 10.0, 15.0, 18.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def the_market_goes_down_or_comes_back(self) -> None:
        self.is_down = not self.is_down
        self.run(self.market.go_down() if self.is_down else self.market.come_back())

    @rule(
        chat_id=st.sampled_from(CHATS),
        says=st.sampled_from(["buyer_says", "market_says", "support_says"]),
    )
    def others_write(self, chat_id: int, says: str) -> None:
        async def write() -> None:
            getattr(self.market, says)(chat_id, "yes")

        self.run(write())

    @rule(chat_id=st.sampled_from(CHATS))
    def a_colleague_writes(self, chat_id: int) -> None:
        async def write() -> None:
            self.market.shop_says(chat_id, BY_HAND)
            self.by_hand.append((chat_id, self.loop.time()))

        self.run(write())

    # What is promised

    def teardown(self) -> None:
        try:
            if hasattr(self, "market"):
                self.run(self.end())
        finally:
            self.runner.close()

    async def end(self) -> None:
        complaints: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: complaints.append(context))
        try:
            if self.is_down:
                await self.market.come_back()
            async with asyncio.timeout(86_400.0):  # more is a hang
                ended = await asyncio.gather(*self.tasks, *self.closings, return_exceptions=True)
                await self.session.close()
            await asyncio.sleep(15.0)  # the Market may yet be at what was cut short
        finally:
            await self.market.__aexit__(None, None, None)
        for outcome in ended:
            if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        for chat_id in CHATS:
            sent = [message for message in self.messages if message.chat_id == chat_id]
            stored = [
                row.text
                for row in self.market.messages(chat_id)
                if row.sender == "PARTNER" and row.text != BY_HAND
            ]
            told = [(message.text, message.fate) for message in sent]
            assert can_have_become(sent, stored), f"chat {chat_id}: {told} became {stored}"
        assert (self.market.refusals.rate, self.market.refusals.parallel) == (0, 0)
        assert complaints == []
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_what_was_stored_is_what_was_handed_over_less_what_was_not_sent() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "yamarket_chat.sandbox.clock.wall_time", lambda loop: 1_790_000_000.25 + loop.time()
        )
        run_state_machine_as_test(
            Delivery,
            settings=settings(
                derandomize=True,
                max_examples=MAX_EXAMPLES,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


MAX_EXAMPLES = 120


def test_the_check_itself_tells_right_from_wrong() -> None:
    """What the machine asserts in the end would see a loss, a doubling and a wrong order."""
    a, b = (Message(1, text, 0.0, raises=False) for text in "ab")
    a.fate = b.fate = "arrived"
    assert can_have_become([a, b], ["a", "b"])
    for wrong in (["a"], ["b"], [], ["a", "a", "b"], ["b", "a"], ["a", "b", "b"]):
        assert not can_have_become([a, b], wrong)
    b.fate = "not sent"
    assert can_have_become([a, b], ["a"])
    assert not can_have_become([a, b], ["a", "b"])
    b.fate = "either"
    assert can_have_become([a, b], ["a"])
    assert can_have_become([a, b], ["a", "b"])
