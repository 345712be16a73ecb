"""Compares what stands in the chats with what the rows say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from .. import story as parts
from ..judge import _counted, can_have_become
from ..record import Fate, Told, Violation
from .record import Entry, Record
from .story import AtBusiness, Story

KINDS = (
    "lost",
    "doubled",
    "disordered",
    "untrue",
    "two senders",
    "refused",
    "untold",
    "hung",
    "leaked",
    "crashed",
)

_FATES: dict[str, Fate] = {
    "delivered": "arrived",
    "refused": "not sent",
    "cancelled": "not sent",
    "expired": "not sent",
    "unknown": "unknown",
}


def judge(story: Story, record: Record) -> list[Violation]:
    """Return all promises that did not hold."""
    found = list(_messages(record))
    found += (Violation("untrue", what) for what in record.wrong)
    found += (Violation("two senders", what) for what in record.two_senders)
    for limit, count in record.refused.items():
        if _alone(story, limit):
            found.append(Violation("refused", f"{count} requests for the {limit} limit"))
    if record.hung is None:
        for entry in record.messages:
            ended_badly = entry.state in ("refused", "unknown", "expired")
            if ended_badly and (entry.untold or not record.told[entry.number]):
                found.append(Violation("untold", f"{entry}"))
    else:
        open_ones = [
            f"{one.number} ({one.state})" for one in record.messages if one.state not in _FATES
        ]
        found.append(Violation("hung", f"{record.hung}; open: {', '.join(open_ones)[:200]}"))
    found += (Violation("leaked", what) for what in record.leaked)
    found += (Violation("crashed", what) for what in record.crashed)
    return found


def _alone(story: Story, what: str) -> bool:
    """Whether nobody but the outbox uses the limits."""
    if any(
        isinstance(event, AtBusiness)
        and isinstance(event.event, (parts.OthersUse, parts.OthersHold))
        for event in story.events
    ):
        return False
    if what == "parallel":
        return story.program.parallel <= story.market.parallel
    if any(failure.fault.kind == "rate_limit" for failure in story.failures):
        return False
    return not story.clocks.drift


def _messages(record: Record) -> Iterator[Violation]:
    chats: dict[str, list[Told]] = defaultdict(list)
    timed: dict[str, set[str]] = defaultdict(set)
    for entry in record.messages:
        if entry.chat is None:
            if entry.state == "delivered":
                yield Violation("untrue", f"{entry} is in no chat")
            continue
        chat = f"{entry.business}/{entry.chat}"
        chats[chat].append(_told(entry))
        if entry.timed:
            timed[chat].add(entry.content)
    for chat, messages in chats.items():
        rows = [row.content for row in record.chats.get(chat, ()) if row.who == "shop"]
        wrong = list(_counted(chat, messages, rows))  # type: ignore[arg-type]
        yield from wrong
        strange = Counter(rows) - Counter({message.content: len(rows) for message in messages})
        if strange:
            yield Violation("doubled", f"chat {chat}: nobody put {sorted(strange)}")
        if not wrong and not strange:
            yield from _ordered(chat, messages, rows, timed[chat])
    for chat, stood in record.chats.items():
        if chat not in chats and any(row.who == "shop" for row in stood):
            yield Violation("doubled", f"chat {chat}: nobody put anything")


def _ordered(
    chat: str, messages: Sequence[Told], rows: Sequence[str], timed: set[str]
) -> Iterator[Violation]:
    own = [message for message in messages if message.content not in timed]
    own.sort(key=lambda message: message.order)
    stood = [row for row in rows if row not in timed]
    if not can_have_become(own, stood):
        said = ", ".join(f"{message.content!r} {message.fate}" for message in own)
        yield Violation("disordered", f"chat {chat}: {said} became {stood}")


def _told(entry: Entry) -> Told:
    return Told(
        machine=0,
        life=0,
        order=entry.number,
        chat=entry.chat or 0,
        content=entry.content,
        began=0.0,
        step=0,
        fate=_FATES.get(entry.state, "untold"),
    )


def unknown(story: Story, record: Record) -> Counter[str]:
    """Count the messages that were in doubt, and those of them that stayed unknown."""
    counted: Counter[str] = Counter()
    differ = story.market.storage_offset or any(
        isinstance(event, (parts.Sleep, parts.WallClock)) for event in story.events
    )
    where = "clocks differ or are set" if differ else "clocks behave"
    for entry in record.messages:
        if entry.in_doubt:
            rows = record.chats.get(f"{entry.business}/{entry.chat}", ())
            others = any(row.who == "colleague" for row in rows)
            group = "others write as the shop" if others else where
            counted[f"in doubt: an outbox, {group}"] += 1
            counted[f"unknown: an outbox, {group}"] += entry.state == "unknown"
    return counted
