"""Compares what buyers wrote with what the shop has said, and with what the handlers did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from yamarket_chat import Limits
from yamarket_chat.bot.polling import SHARE

from ..outbox import judge as outbox
from ..outbox.story import AtBusiness, Left
from ..record import Violation
from .play import SLACK, is_expected, is_for_the_bot
from .program import says_now
from .record import Also, Buyers, Record, Row, Run
from .story import Changes, Story, Writes

KINDS = ("unanswered", "mixed", "beside a suspect", "late", *outbox.KINDS)

TRIES = 5
"""How often a handler is called before its message is given up: docs/bot.md says so."""

FAILING = ("raises", "kills", "hangs", "statement")
"""What a handler of errors does of which nothing is committed."""

Key = tuple[int, int]


def judge(story: Story, record: Record) -> list[Violation]:
    """Return all promises that did not hold."""
    found = list(_messages(story, record))
    found += _ordered(story, record)
    found += _alone(story, record)
    if record.hung is None:
        found += _found_late(story, record)
    for one in outbox.judge(story, record):
        if one.kind != "hung" or not any(other.kind == "unanswered" for other in found):
            found.append(one)
    return found


unknown = outbox.unknown


class _About:
    """What concerns one message."""

    def __init__(self, one: Buyers, step: Writes) -> None:
        self.one = one
        self.step = step
        self.also: list[Also] = []
        self.rows: list[Row] = []
        self.runs: list[Run] = []

    def __str__(self) -> str:
        runs = ", ".join(f"{run.number} {run.kind} {run.how or 'died'}" for run in self.runs)
        rows = ", ".join(f"{row.kind} {row.run}.{row.place} {row.state}" for row in self.rows)
        also = ", ".join(f"{row.kind} {row.run}" for row in self.also)
        return (
            f"message {self.one.message} in chat {self.one.business}/{self.one.chat}, at"
            f" {self.one.at:.1f} s: runs: {runs or 'none'}; replies: {rows or 'none'}; own rows:"
            f" {also or 'none'}"
        )


def _all(story: Story, record: Record) -> dict[Key, _About]:
    found = {
        (one.business, one.message): _About(
            one, Writes() if one.step is None else story.writes[one.step]
        )
        for one in record.buyers
    }

    def about(business: int, chat: int, message: int) -> _About:
        if (business, message) not in found:  # no buyer has written it
            times = {"at": -1e9, "created": -1e9, "shown": -1e9}
            one = Buyers(step=None, business=business, chat=chat, message=message, **times)
            found[business, message] = _About(one, Writes())
        return found[business, message]

    for row in record.also:
        about(row.business, row.chat, row.message).also.append(row)
    for run in record.runs:
        about(run.business, run.chat, run.message).runs.append(run)
    for key, rows in record.replies.items():
        business, chat = map(int, key.split("/"))
        for reply in rows:
            about(business, chat, reply.message).rows.append(reply)
    return found


def _messages(story: Story, record: Record) -> Iterator[Violation]:
    for about in _all(story, record).values():
        yield from _message(story, record, about)


def _message(story: Story, record: Record, about: _About) -> Iterator[Violation]:
    one, step = about.one, about.step
    answers = [row for row in about.also if row.kind == "answer"]
    errors = [row for row in about.also if row.kind == "error"]
    told = [run for run in about.runs if run.kind == "error"]
    rows = {
        kind: [row for row in about.rows if row.kind == kind]
        for kind in ("answer", "now", "error", "reply")
    }
    if len(answers) + len(errors) > 1:
        yield Violation("doubled", f"handled twice: {about}")
    elif answers:
        yield from _answered(about, answers[0], rows["answer"])
        if told or rows["error"]:
            yield Violation("untrue", f"answered, and given up as well: {about}")
    elif errors or (told and step.error in FAILING):
        if rows["answer"]:
            yield Violation("mixed", f"given up, and answered as well: {about}")
        if len(rows["error"]) != (1 if errors and step.error == "replies" else 0):
            yield Violation("mixed", f"Bot.error has answered otherwise: {about}")
    else:
        if is_expected(one, record, story):
            yield Violation("unanswered", f"{about}")
        if rows["answer"] or rows["error"]:
            yield Violation("mixed", f"not handled, and answered: {about}")
    if (answers or errors or told) and is_for_the_bot(one, record, story) is False:
        yield Violation("untrue", f"not for the bot: {about}")
    yield from _at_once(about, answers, rows["now"], rows["answer"])
    per_reply = Counter(run.about for run in about.runs if run.number in _runs(about, "reply"))
    if per_reply and max(per_reply.values()) > 1:
        yield Violation("doubled", f"Bot.error has answered twice to a reply: {about}")
    if len(rows["reply"]) > len(per_reply):
        yield Violation("mixed", f"Bot.error: {about}")
    yield from _given_up(story, record, about, told)


def _runs(about: _About, kind: str) -> set[int]:
    return {row.run for row in about.also if row.kind == kind}


def _answered(about: _About, by: Also, rows: Sequence[Row]) -> Iterator[Violation]:
    run = next(run for run in about.runs if run.number == by.run)
    if run.how != "returned":
        yield Violation("untrue", f"run {run.number} has not returned: {about}")
    said = [(row.run, row.place) for row in sorted(rows, key=lambda row: row.number)]
    if said != [(run.number, place) for place in range(1, run.replies + 1)]:
        yield Violation("mixed", f"run {run.number} gave {run.replies} replies: {about}")


def _at_once(
    about: _About, answers: Sequence[Also], said: Sequence[Row], replies: Sequence[Row]
) -> Iterator[Violation]:
    runs = [run.number for run in about.runs if run.kind == "answer"]
    is_due = about.step.now and any(says_now(by.message, 1 + runs.index(by.run)) for by in answers)
    if len(said) > about.step.now or (is_due and not said):
        yield Violation("mixed", f"at once: {about}")
    if said and replies and said[0].number > min(row.number for row in replies):
        yield Violation("mixed", f"at once, and after the answer: {about}")


def _given_up(
    story: Story, record: Record, about: _About, told: Sequence[Run]
) -> Iterator[Violation]:
    """Look whether it was time to give up, or to think a message too old."""
    most = story.bot.max_age
    slack = SLACK + abs(story.market.storage_offset)
    for run in about.runs:
        age = run.began - about.one.at
        if run.kind == "error" and run.error == "MessageTooOldError":
            if most is None or age < most - slack:
                yield Violation("untrue", f"{age:.1f} s are not too old: {about}")
        elif run.kind == "answer" and most is not None and age > most + slack:
            if _only_leaves(story):  # it may be paused, or the database be slow, after a look
                yield Violation("untrue", f"{age:.1f} s are too old: {about}")
        elif run.kind == "error":
            committed = _runs(about, "answer")
            before = [
                other
                for other in about.runs
                if other.kind == "answer"
                and other.number < run.number
                and other.number not in committed
                and (_is_a_try(other, story) or not _only_leaves(story))
            ]
            # A message that is too old now is not tried again.
            least = 1 if most is not None and age >= most - slack else TRIES
            # A process may die when a try is counted, and before the handler is called.
            if len(before) + record.kills < least:
                yield Violation("untrue", f"given up after {len(before)} tries: {about}")


def _is_a_try(run: Run, story: Story) -> bool:
    """Whether it was not cancelled, or because it took too long."""
    if run.how != "cancelled" or run.ended is None:
        return True
    return run.ended - run.began >= story.bot.handler_timeout - 0.01


def _only_leaves(story: Story) -> bool:
    usual = Left, AtBusiness, Changes
    return not story.hitches and all(isinstance(event, usual) for event in story.events)


def _ordered(story: Story, record: Record) -> Iterator[Violation]:
    """The messages of a chat are answered in their order, but for those that show late."""
    lag = story.market.history_delay if story.market.replicas else 0.0
    stands = {(one.business, one.message): one for one in record.buyers}
    for chat, rows in record.replies.items():
        business = int(chat.split("/")[0])
        order: list[Buyers] = []
        for row in sorted(rows, key=lambda row: row.number):
            one = stands.get((business, row.message))
            if one is not None and row.kind != "reply" and (not order or order[-1] is not one):
                order.append(one)
        for place, later in enumerate(order):
            for earlier in order[place + 1 :]:
                if _place(earlier) < _place(later) and earlier.shown + lag <= later.at:
                    said = [one.message for one in order]
                    yield Violation("disordered", f"chat {chat}: {said}")
                    break


def _place(one: Buyers) -> tuple[float, int]:
    return one.created, one.message


def _alone(story: Story, record: Record) -> Iterator[Violation]:
    """A handler that has killed its process before runs alone."""
    steps = {(one.business, one.message): one.step for one in record.buyers}
    killers: set[Key] = set()
    by_number = {run.number: run for run in record.runs}
    for run in record.runs:
        if not run.kills:
            continue
        key = run.business, run.message
        beside = [
            number
            for number in run.beside
            if (step := steps.get((by_number[number].business, by_number[number].message))) is None
            or story.writes[step].trouble != "clings"
        ]
        if key in killers and beside:
            yield Violation("beside a suspect", f"run {run.number} killed {beside}")
        killers.add(key)


# How soon


def _found_late(story: Story, record: Record) -> Iterator[Violation]:
    """If nothing disturbs the bot, it finds a message as soon as docs/bot.md says."""
    if not _is_calm(story):
        return
    first: dict[Key, float] = {}
    ends: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in record.runs:
        first.setdefault((run.business, run.message), run.began)
        if run.ended is not None:
            ends[f"{run.business}/{run.chat}"].append((run.began, run.ended))
    takes = max((step.takes for step in story.writes), default=0.0)
    chats = story.program.limits.get("chats", Limits().chats)
    spacing = chats.per / (chats.requests * SHARE)
    most = max(story.bot.every, 2 * spacing) + 5.0 + 2 * takes  # a page, and one of the sweep
    for one in record.buyers:
        if not is_expected(one, record, story) or one.shown > one.at:
            continue
        began = record.began[one.business]
        found = first.get((one.business, one.message))
        if found is None:
            continue
        chat = f"{one.business}/{one.chat}"
        if any(at <= found for at in record.answered.get(chat, ())):
            continue  # the sweep finds it
        # What stands before it in the chat goes first.
        since = max([one.at, began, *(end for begin, end in ends[chat] if begin < found >= end)])
        within = most
        if any(begin < one.at <= end for begin, end in ends[chat]):
            within = 31.0 + 5.0 + 2 * takes
        if found > since + within:
            yield Violation(
                "late",
                f"message {one.message} in chat {chat}: written at {one.at:.1f} s, found at"
                f" {found:.1f} s",
            )


def _is_calm(story: Story) -> bool:
    return not (
        story.events
        or story.failures
        or story.hitches
        or story.steps
        or story.market.limits.keys() - {"chats"}
        or story.market.latency + story.market.jitter > 0.5
        or story.network.loss
        or story.market.history_delay
        or any(step.trouble or step.late or step.deleted for step in story.writes)
        or len(story.writes) > story.bot.concurrency
    )
