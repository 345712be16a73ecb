"""What the scenes of the demo plan, what the sandbox has recorded, and how the two differ."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import msgspec

from yamarket_chat.limits import Rate
from yamarket_chat.receipts import OutgoingMessage
from yamarket_chat.sandbox import Fault, Sandbox, StoredMessage

FIRST_CHAT = 101


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of the demo, and the limits of the sandbox and the session.

    `latency` is the shortest and the longest time of a request, in seconds.
    """

    chats: int
    messages_each: int
    rate: Rate
    parallel: int
    latency: tuple[float, float]
    faults: tuple[Fault, ...] = ()

    @property
    def total(self) -> int:
        return self.chats * self.messages_each

    @property
    def least_seconds(self) -> float:
        """The shortest time in seconds in which the limit allows all messages."""
        return (self.total - 1) // self.rate.requests * self.rate.per

    @property
    def chat_ids(self) -> range:
        return range(FIRST_CHAT, FIRST_CHAT + self.chats)

    @property
    def texts(self) -> list[str]:
        """The texts that each chat gets, in order."""
        return [f"Update {n} of {self.messages_each}" for n in range(1, self.messages_each + 1)]

    def messages(self) -> Iterator[OutgoingMessage]:
        for text in self.texts:
            for chat_id in self.chat_ids:
                yield OutgoingMessage(chat_id, text)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox has recorded at the end.

    `seconds` is the time from the first request to the last. `left` is how many requests the limit
    allows now.
    """

    chats: dict[int, list[StoredMessage]]
    refused: int
    busiest: int
    fullest_window: int
    seconds: float
    left: int

    @property
    def total(self) -> int:
        return sum(map(len, self.chats.values()))

    def texts(self, chat_id: int) -> list[str]:
        return [message.text or "" for message in self.chats.get(chat_id, [])]


def collect(plan: Plan, market: Sandbox) -> Record:
    counted = [
        arrival.time
        for arrival in market.arrivals
        if arrival.operation == "send_message" and arrival.counted
    ]
    window_began = asyncio.get_running_loop().time() - plan.rate.per
    return Record(
        chats={chat_id: market.messages(chat_id) for chat_id in market.chat_ids},
        refused=market.refused,
        busiest=market.busiest,
        fullest_window=market.busiest_window("send_message"),
        seconds=counted[-1] - counted[0] if counted else 0.0,
        left=plan.rate.requests - sum(time > window_began for time in counted),
    )


def differences(plan: Plan, record: Record) -> list[str]:
    """Return a line for each way in which the chats differ from the plan."""
    missing: list[str] = []
    extra: list[str] = []
    for chat_id in sorted({*plan.chat_ids, *record.chats}):
        sent = Counter(plan.texts if chat_id in plan.chat_ids else ())
        stored = Counter(record.texts(chat_id))
        missing += (f"{text!r} in chat {chat_id}" for text in (sent - stored).elements())
        extra += (f"{text!r} in chat {chat_id}" for text in (stored - sent).elements())
    unordered = [
        f"chat {chat_id}" for chat_id in plan.chat_ids if not in_order(plan, record, chat_id)
    ]
    return [
        f"{kind}: {len(found)}, the first: {found[0]}"
        for kind, found in (
            ("messages missing", missing),
            ("messages stored more often than sent", extra),
            ("chats out of order", unordered),
        )
        if found
    ]


def in_order(plan: Plan, record: Record, chat_id: int) -> bool:
    """Return True if the messages of a chat are in the order of the plan. Ignores duplicates."""
    stored = dict.fromkeys(record.texts(chat_id))
    return [text for text in plan.texts if text in stored] == [
        text for text in stored if text in plan.texts
    ]
