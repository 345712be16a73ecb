"""What stands in the chats, compared with what the outbox says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec

FINAL = ("delivered", "refused", "unknown", "cancelled", "expired")


class Message(msgspec.Struct):
    """A message that was put, and what became of it."""

    number: int
    business_id: int
    chat_id: int
    text: str
    state: str = "waiting"
    requests: int = 0
    cancelled: bool = False  # `cancel` has said so
    error: str = ""


class Verdict(msgspec.Struct):
    """The figures of a run, and what is wrong in it."""

    figures: dict[str, int]
    problems: list[str]


COUNTED = (
    "messages", "delivered", "refused", "unknown", "cancelled", "expired", "lost", "doubled",
    "disordered", "untrue", "left open",
)  # fmt: skip


def judge(messages: Sequence[Message], stored: Mapping[tuple[int, int], Sequence[str]]) -> Verdict:
    """Compare.

    Args:
        messages: All messages.
        stored: The texts of each business and chat, in the Market's order.
    """
    figures: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    problems: list[str] = []

    def wrong(what: str, message: Message | None, said: str = "") -> None:
        figures[what] += 1
        problems.append(f"{what}: {message} {said}")

    by_chat: dict[tuple[int, int], list[Message]] = defaultdict(list)
    for message in messages:
        by_chat[message.business_id, message.chat_id].append(message)
        figures["messages"] += 1
        if message.state in FINAL:
            figures[message.state] += message.state in COUNTED
        else:
            wrong("left open", message)
        if message.cancelled and message.state != "cancelled":
            wrong("untrue", message, "cancel said True")
    for chat, texts in stored.items():
        equal: dict[str, list[Message]] = defaultdict(list)
        for message in sorted(by_chat.get(chat, []), key=lambda one: one.number):
            equal[message.text].append(message)
        there = Counter(texts)
        for text, some in equal.items():
            delivered = [one for one in some if one.state == "delivered"]
            perhaps = [one for one in some if one.state in ("unknown", "leaving", "waiting")]
            if there[text] < len(delivered):
                wrong("lost", delivered[0], f"stands there {there[text]} times")
            if there[text] > len(delivered) + len(perhaps):
                kind = "doubled" if there[text] > len(some) else "untrue"
                wrong(kind, some[0], f"stands there {there[text]} times, {len(delivered)} are told")
        known = {text for text, some in equal.items() if all(o.state == "delivered" for o in some)}
        order = [text for text in texts if text in known]
        expected = [one.text for one in sorted(by_chat.get(chat, []), key=lambda one: one.number)]
        expected = [text for text in expected if text in known]
        if order != expected and Counter(order) == Counter(expected):
            place = next(n for n, (a, b) in enumerate(zip(order, expected, strict=True)) if a != b)
            wrong("disordered", None, f"{chat}: {order[place]!r} before {expected[place]!r}")
        for text in there.keys() - equal.keys():
            wrong("doubled", None, f"{chat}: nobody put {text!r}")
    for chat in by_chat.keys() - stored.keys():
        # All that was put to it may have been cancelled.
        for one in by_chat[chat]:
            if one.state == "delivered":
                wrong("lost", one, "its chat is not there")
    return Verdict(dict(figures), problems)
