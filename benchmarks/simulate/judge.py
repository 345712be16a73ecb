"""Compares what stands in the chats with what was told, and sees nothing of the product inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from .allowance import latest_end
from .record import Record, Told, Violation
from .story import (
    Access,
    AnyEvent,
    Cut,
    Kill,
    MarketClock,
    OthersHold,
    OthersUse,
    Outage,
    Says,
    Sleep,
    Stall,
    Stop,
    Story,
    WallClock,
)

KINDS = (
    "lost",
    "doubled",
    "disordered",
    "untrue",
    "refused",
    "hasty",
    "hung",
    "leaked",
    "crashed",
    "late",
)


def judge(story: Story, record: Record) -> list[Violation]:
    """Return all promises that did not hold."""
    found = list(_messages(record))
    if record.refused_for_rate and _alone(story, "rate"):
        found.append(Violation("refused", f"{record.refused_for_rate} requests over a limit"))
    if record.refused_in_parallel and _alone(story, "parallel"):
        found.append(
            Violation("refused", f"{record.refused_in_parallel} requests too many in parallel")
        )
    found += _hasty(story, record)
    if record.hung is not None:
        found.append(Violation("hung", record.hung))
    found += [Violation("leaked", what) for what in record.leaked]
    found += [Violation("crashed", what) for what in record.crashed]
    if record.hung is None:
        latest = latest_end(story, record)
        if record.lasted > latest:
            found.append(
                Violation("late", f"ended at {record.lasted:.1f} s, and not by {latest:.1f} s")
            )
    return found


def _alone(story: Story, what: str) -> bool:
    """Whether nobody but the one process of the story uses the limits."""
    if story.machines() > 1 or any(isinstance(step, Kill) for step in story.steps):
        return False
    if any(isinstance(event, (OthersUse, OthersHold)) for event in story.events):
        return False
    if what == "parallel":
        return story.program.parallel <= story.market.parallel
    if any(failure.fault.kind == "rate_limit" for failure in story.failures):
        return False
    if story.clocks.drift:
        return False  # the product counts by its own clock
    for operation, rate in story.market.limits.items():
        own = story.program.limits.get(operation)
        if own is None or own.requests > rate.requests or own.per < rate.per:
            return False
    return True


def _hasty(story: Story, record: Record) -> Iterator[Violation]:
    """Requests follow one another no faster than their token bucket lets them."""
    network = story.network
    events = any(isinstance(event, (Outage, Stall, Sleep, Stop, Cut)) for event in story.events)
    if events or network.loss or network.pieces or story.machines() > 1 or story.clocks.drift:
        return  # what was sent one after another may come at once
    if any(isinstance(step, Kill) for step in story.steps):
        return
    for operation, moments in record.departures.items():
        rate = story.program.limits.get(operation)
        if rate is None or rate.burst is None:
            continue
        tokens, last = float(rate.burst), 0.0
        for moment in moments:
            gained = (moment - last + network.most - network.least) * rate.requests / rate.per
            tokens, last = min(tokens + gained, float(rate.burst)) - 1.0, moment
            # A connection is made before its first request.
            slack = (network.most * 4 + 0.001) * rate.requests / rate.per
            if tokens < -slack - 1e-6:
                yield Violation("hasty", f"{operation} at {moment:.3f} s")
                break


# What became of the messages


def _messages(record: Record) -> Iterator[Violation]:
    chats: dict[int, list[Told]] = {}
    for message in record.messages:
        chats.setdefault(message.chat, []).append(message)
    for chat, messages in chats.items():
        rows = [row.content for row in record.chats.get(chat, ()) if row.who == "shop"]
        known = {message.content for message in messages}
        rows = [row for row in rows if row in known]
        wrong = list(_counted(chat, messages, rows))
        yield from wrong
        if not wrong:
            yield from _ordered(chat, messages, rows)


def _counted(chat: int, messages: Sequence[Told], rows: Sequence[str]) -> Iterator[Violation]:
    stored = Counter(rows)
    by_content: dict[str, list[Told]] = {}
    for message in messages:
        by_content.setdefault(message.content, []).append(message)
    for content, equal in by_content.items():
        fates = Counter(message.fate for message in equal)
        there, arrived = stored[content], fates["arrived"]
        may = arrived + fates["unknown"] + fates["untold"]
        told = ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))
        what = f"chat {chat}: {content!r} stands there {there} times; told: {told}"
        if there < arrived:
            yield Violation("lost", what)
        elif there > len(equal):
            yield Violation("doubled", what)
        elif there > may:
            yield Violation("untrue", what)


def _ordered(chat: int, messages: Sequence[Told], rows: Sequence[str]) -> Iterator[Violation]:
    """The messages of each process stand in the order in which they were handed over."""
    lives = sorted({(message.machine, message.life) for message in messages})
    for life in lives:
        own = [message for message in messages if (message.machine, message.life) == life]
        own.sort(key=lambda message: message.order)
        contents = {message.content for message in own}
        if len(lives) > 1 and any(
            message.content in contents
            for message in messages
            if (message.machine, message.life) != life
        ):
            continue  # equal texts of two processes: nobody can tell whose is whose
        stood = [row for row in rows if row in contents]
        if not can_have_become(own, stood):
            said = ", ".join(f"{message.content!r} {message.fate}" for message in own)
            yield Violation("disordered", f"chat {chat}: {said} became {stood}")


def can_have_become(messages: Sequence[Told], rows: Sequence[str]) -> bool:
    """Whether these rows are these messages, in order: each that arrived, none not sent."""
    explained = {0}
    for message in messages:
        following = set() if message.fate == "arrived" else set(explained)
        if message.fate != "not sent":
            following |= {
                count + 1
                for count in explained
                if count < len(rows) and rows[count] == message.content
            }
        explained = following
    return len(rows) in explained


# What was unknown


UNCLEAR = "cannot be told apart"
"""What the error says of a message if the history was read, and does not tell."""

OWN_TEXT = "a text of its own while clocks behave"


def circumstances(story: Story) -> str:
    """Return what bounds what can be known in a story: how its clocks behave, and who writes."""
    colleagues = any(isinstance(event, Says) and event.who == "shop" for event in story.events)
    if story.market.odd_rows:
        return "the history cannot be read"
    if colleagues or story.machines() > 1 or any(isinstance(step, Kill) for step in story.steps):
        return "others write as the shop"
    if story.program.attempts < 12 or any(isinstance(event, Access) for event in story.events):
        return "the history cannot be read"
    if (
        story.market.storage_offset
        or story.market.storage_hosts
        or story.clocks.drift
        or any(is_of_clocks(event) for event in story.events)
    ):
        return "clocks differ or are set"
    return "clocks behave"


def is_of_clocks(event: AnyEvent) -> bool:
    """Whether an event concerns clocks."""
    return isinstance(event, (MarketClock, Sleep, Stop, WallClock))


def unknown(story: Story, record: Record) -> Counter[str]:
    """Count the messages whose answer was lost, and those of them that stayed unknown."""
    counted: Counter[str] = Counter()
    where = circumstances(story)
    texts = Counter((message.chat, message.content) for message in record.messages)
    for message in record.messages:
        if not message.in_doubt:
            continue
        if where == "clocks behave" and texts[message.chat, message.content] == 1:
            # Nothing is like it, so the history tells, however soon the next message follows.
            counted[f"in doubt: {OWN_TEXT}"] += 1
            counted[f"unknown: {OWN_TEXT}"] += message.fate == "unknown" and UNCLEAR in message.said
        group = "asked for" if message.raises or message.ended_by_program else where
        counted[f"in doubt: {group}"] += 1
        counted[f"unknown: {group}"] += message.fate == "unknown"
    return counted
