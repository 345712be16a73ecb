"""The Market of a story: a sandbox, its failures, and what others do there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from msgspec.structs import replace

from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox, StoredMessage
from yamarket_chat.sandbox.state import HistoryPage

from .program import Log, content_of
from .record import Stood
from .story import (
    MarketClock,
    OthersUse,
    Says,
    Send,
    SendMany,
    Story,
)
from .swarm import name_of

SENDS = ("send_message", "send_file")
OLD = ("old", "да", "нет")
"""What stands in the chats from before: some of it says the same as what is sent."""


class Market:
    """The sandbox of a story, and what happens to it."""

    def __init__(self, story: Story, log: Log, jitter: random.Random, hosts: random.Random) -> None:
        self._story = story
        self._log = log
        self._hosts = hosts
        self._failures = {
            (failure.operation, failure.number): failure.fault for failure in story.failures
        }
        self._colleagues: set[int] = set()
        self._old: set[int] = set()
        market = story.market
        latency: float | Callable[[], float] = market.latency
        if market.jitter:
            least, most = market.latency, market.latency + market.jitter

            def latency() -> float:
                return jitter.uniform(least, most)

        self.box: Sandbox = Sandbox(
            faults=self._fault,
            limits=market.limits,
            parallel=market.parallel,
            window=market.window,
            window_phase=market.window_phase,
            rate_limit_headers=market.headers,
            latency=latency,
            keep_alive=market.keep_alive,
            clock_offset=market.clock_offset,
            storage_offset=market.storage_offset,
            storage_milliseconds=market.storage_milliseconds,
            strip_spaces=market.strip_spaces,
            history_order=market.order,
            history_includes_from=market.includes_from,
            history_delay=market.history_delay,
        )

    def begin(self) -> None:
        """Write what stands in the chats from before, and make the pages small."""
        market = self._story.market
        if market.old_rows:
            self.box.step_clock(-7200.0)
            for chat in chats_of(self._story):
                for number in range(market.old_rows):
                    says = self.box.shop_says if number % 3 else self.box.buyer_says
                    row = says(chat, OLD[number % len(OLD)])
                    self._old.add(row.message_id)
            self.box.step_clock(7200.0)
        if market.page < 100 or market.odd_rows:
            self._change_histories(market.page, market.odd_rows)
        if market.replicas:
            self._read_from_replicas(market.history_delay)
        if market.storage_hosts:
            self._store_on_hosts(market.storage_hosts)

    def _change_histories(self, page: int, odd: float) -> None:
        """Make the pages of histories short, and give some rows a time that is none."""
        state = self.box._state
        history = state.history

        def changed(*arguments: Any, limit: int, **others: Any) -> HistoryPage:
            found = history(*arguments, limit=min(limit, page), **others)
            rows: list[Any] = [
                replace(row, created_at="yesterday")
                if row.message_id * 2_654_435_761 % 1000 < 1000 * odd
                else row
                for row in found.messages
            ]
            return HistoryPage(rows, found.last_id)

        state.history = changed  # type: ignore[method-assign]

    def _read_from_replicas(self, late: float) -> None:
        """Let one replica of the storage be late, and each page come from any of them."""
        state = self.box._state
        history = state.history

        def by_some_replica(*arguments: Any, **others: Any) -> HistoryPage:
            state._history_delay = self._hosts.choice((0.0, late))
            return history(*arguments, **others)

        state.history = by_some_replica  # type: ignore[method-assign]

    def _store_on_hosts(self, differ: float) -> None:
        """Let the rows be stored by hosts whose clocks differ."""
        state, clock = self.box._state, self.box._clock
        store = state.store
        hosts = (-differ, 0.0, differ)

        def by_some_host(*arguments: Any, **others: Any) -> StoredMessage:
            before = clock._storage_offset
            clock._storage_offset += self._hosts.choice(hosts)
            try:
                return store(*arguments, **others)
            finally:
                clock._storage_offset = before

        state.store = by_some_host  # type: ignore[method-assign]

    def _fault(self, request: RequestInfo) -> Fault | None:
        fault = self._failures.get((request.operation, request.operation_number))
        if fault is not None:
            what = "fault" if request.operation in SENDS else "read fault"
            self._log.record.met[f"{what} {name_of(fault)}"] += 1
            self._log.say(
                "market",
                f"chat {request.chat_id}: {request.operation} {request.operation_number} meets"
                f" {name_of(fault)}" + (f" {fault.delay:g} s" if fault.delay else ""),
            )
        else:
            self._log.say(
                "market",
                f"chat {request.chat_id}: {request.operation} {request.operation_number}",
            )
        return fault

    def happen(self, event: Says | OthersUse | MarketClock) -> None:
        """Let something happen in the Market. It runs on the Market's loop."""
        box = self.box
        match event:
            case Says():
                row = self._says(event)
                if event.who == "shop":
                    self._colleagues.add(row.message_id)
            case OthersUse():
                box.other_programs_use(event.operation, event.requests)
            case MarketClock():
                box.step_clock(event.by if event.which != "storage" else 0.0)
                clock = box._clock
                if event.which == "date":
                    clock._storage_offset -= event.by
                elif event.which == "storage":
                    clock._storage_offset += event.by

    def _says(self, event: Says) -> StoredMessage:
        says = {
            "buyer": self.box.buyer_says,
            "market": self.box.market_says,
            "support": self.box.support_says,
            "shop": self.box.shop_says,
        }
        return says[event.who](event.chat, event.text)

    def rows(self) -> dict[int, list[Stood]]:
        """Return all that stands in the chats."""
        return {
            chat: [
                Stood(row.stored_at, self._who(row), _content(row))
                for row in self.box.messages(chat)
            ]
            for chat in self.box.chat_ids
        }

    def _who(self, row: StoredMessage) -> str:
        if row.message_id in self._old:
            return "old"
        if row.message_id in self._colleagues:
            return "colleague"
        return "shop" if row.sender == "PARTNER" else row.sender.lower()


def _content(row: StoredMessage) -> str:
    if row.payload:
        return content_of(row.payload[0].name, row.payload[0].size)
    return content_of(row.text or "")


def chats_of(story: Story) -> list[int]:
    """Return the chats to which a story sends."""
    chats: dict[int, None] = {}
    for step in story.steps:
        if isinstance(step, SendMany):
            chats.update(dict.fromkeys(chat for chat, _ in step.messages))
        else:
            chats[getattr(step, "chat", 1)] = None
    return list(chats)


def repeats(story: Story) -> bool:
    """Whether any chat gets the same text twice, or has it already."""
    seen: set[tuple[int, str]] = set()
    for chat, content in contents_of(story):
        if (chat, content) in seen or (story.market.old_rows and content in OLD):
            return True
        seen.add((chat, content))
    return False


def contents_of(story: Story) -> Iterator[tuple[int, str]]:
    """Yield what a story sends, with its chat."""
    for step in story.steps:
        match step:
            case Send():
                for text in (step.text, *step.then):
                    yield step.chat, content_of(text, step.size)
            case SendMany():
                for chat, text in step.messages:
                    yield chat, content_of(text)
