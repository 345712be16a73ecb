"""Plays a story of a bot: real workers over one database and real sandboxes, in virtual time."""

from __future__ import annotations

import gc
import warnings
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from yamarket_chat.outbox import schema
from yamarket_chat.sandbox import StoredMessage, wire
from yamarket_chat.sandbox.loop import BEGINNING
from yamarket_chat.sandbox.notifier import notification_of

from .. import story as parts
from ..market import SENDS
from ..outbox.play import Play, played
from ..outbox.program import FIRST_BUSINESS, business_of
from ..outbox.story import AtBusiness
from .market import BuyersMarket
from .program import Answering
from .record import Also, Buyers, Record, Row
from .story import Changes, Story, Told, Writes

QUIET = 35.0
"""Seconds in which nothing more may happen after all is answered."""

REPEATS = 60.0
"""Seconds after which the Market tells again of what was not accepted."""

MOST_RUNS = 20
"""How often a handler may be called for a message, and `Bot.error` with it."""

ANSWER_WITHIN = 10.0
"""Seconds that the Market waits for an answer."""

MOST_TELLS = 5

MARKET = "5.45.207.1"
"""An address of the Market's."""

OLD = 7200.0
"""How many seconds ago old rows were stored."""

BEFORE = 30.0
"""Seconds before the bot began from which messages may be handled: docs/bot.md says so."""

SLACK = 3.0
"""Seconds by which the Market's clock is known, and shown."""

STUCK_AFTER = 7200.0
"""Seconds after the last event in which everything must be answered."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def play(story: Story, *, lines: bool = False) -> Record:
    """Play a story, and return what came of it."""
    record: Record = played(BotPlay(story, lines=lines))
    return record


class BotPlay(Play):
    """A story of a bot that is played."""

    story: Story
    record: Record
    record_of = Record
    process_of = Answering
    market_of = BuyersMarket
    stuck_after = STUCK_AFTER
    markets: list[BuyersMarket]  # type: ignore[assignment]

    def __init__(self, story: Story, *, lines: bool) -> None:
        super().__init__(story, lines=lines)
        self.steps: dict[tuple[int, int], int] = {}  # by business and message
        self.buyers: dict[tuple[int, int], Buyers] = {}
        self.written = 0
        self._quiet_since: float | None = None
        self._own = self.world.randomness("tells of own messages")

    def _of_market(self, number: int) -> parts.Story:
        of = super()._of_market(number)
        steps = [
            parts.Send(chat=one.chat, text=one.text)
            for one in self.story.writes
            if one.business == number
        ]
        return msgspec.structs.replace(of, steps=(*of.steps, *steps))

    # Playing

    def run(self) -> Any:
        """Play it, and return what came of it."""
        with warnings.catch_warnings():
            # The loop complains of what was not closed as well, and that is judged.
            warnings.simplefilter("ignore", ResourceWarning)
            return super().run()

    def _begin_markets(self) -> None:
        super()._begin_markets()
        for number, market in enumerate(self.markets):
            market.now = lambda: self.world.now
            market.told = partial(self._tells, number)
            market.spoke = partial(self._spoke, number)
            market.listed = partial(self._listed, number)
            for chat in market.box.chat_ids:
                self._note_old(number, market, chat)
            market.open(self.story.bot.others)

    def _spoke(self, number: int, chat: int) -> None:
        self.record.spoke.setdefault(f"{number}/{chat}", []).append(self.now())

    def _listed(self, number: int) -> None:
        self.record.first_look.setdefault(number, self.now())

    def _note_old(self, number: int, market: BuyersMarket, chat: int) -> None:
        rows = market.box.messages(chat)
        for place, row in enumerate(rows):
            if row.sender == "CUSTOMER":
                self._note_buyer(number, None, chat, row, at=-OLD + place)
            else:
                self.record.spoke.setdefault(f"{number}/{chat}", []).append(-OLD + place)

    def _schedule(self) -> None:
        super()._schedule()
        for number, step in enumerate(self.story.writes):
            self.world.call_at(self.since + step.at, self._writes, number, step)

    def _boot(self, machine: int) -> None:
        super()._boot(machine)
        process: Any = self.processes[machine]
        process.step_of = self._step_of
        process.now = self.now
        process.dies = partial(self._kill, machine, self.story.bot.down)

    def _step_of(self, business: int, message: int) -> Writes | None:
        number = self.steps.get((business, message))
        return None if number is None else self.story.writes[number]

    # What happens

    def _happen(self, event: Any) -> None:
        match event:
            case Changes():
                self._meets("event changes")
                self.say("world", repr(event))
                market = self.markets[event.business]
                self.market_loop.call_soon(market.changes, event)
            case AtBusiness(event=parts.Says(who="shop") as says):
                key = f"{event.business}/{says.chat}"
                self.record.answered.setdefault(key, []).append(self.now())
                self._meets("event a person answers")
                super()._happen(event)
            case _:
                super()._happen(event)

    def _kill(self, machine: int, down: float) -> None:
        before = self.loops[machine].is_killed
        super()._kill(machine, down)
        self.record.kills += self.loops[machine].is_killed and not before

    def _writes(self, number: int, step: Writes) -> None:
        market = self.markets[step.business]

        def written(row: StoredMessage) -> None:
            self.written += 1
            self.steps[step.business, row.message_id] = number
            deleted = None if step.deleted is None else self.world.now + step.deleted
            market.hide(row.message_id, self.world.now + step.late, deleted)
            self._note_buyer(step.business, number, step.chat, row, at=self.now())
            self.say(
                f"chat {step.business}/{step.chat}", f"a buyer writes message {row.message_id}"
            )

        self.market_loop.call_soon(market.writes, step, written)

    def _note_buyer(
        self, business: int, step: int | None, chat: int, row: StoredMessage, *, at: float
    ) -> None:
        one = None if step is None else self.story.writes[step]
        buyers = Buyers(
            step=step,
            business=business,
            chat=chat,
            message=row.message_id,
            at=at,
            created=(row.created_at - EPOCH).total_seconds(),
            shown=at + (0.0 if one is None else one.late),
            deleted=None if one is None or one.deleted is None else at + one.deleted,
        )
        self.buyers[business, row.message_id] = buyers
        self.record.buyers.append(buyers)

    # Notifications

    def _tells(
        self, business: int, kind: str, chat: int, time: datetime, message: int | None
    ) -> None:
        step = None if message is None else self._step_of(business, message)
        told = () if step is None else step.told
        if step is None and self.story.bot.tells_own:
            told = (Told(machine=self._own.randrange(self.story.workers)),)
        if step is not None:
            self._meets(f"told {min(len(told), 3)} times")
        if not told:
            return
        notification = notification_of(kind, business_of(business), chat, message, time)
        body = wire.encode(notification)
        for one in told:
            self.world.call_later(one.after, self._tell, one.machine, body, 1)

    def _tell(self, machine: int, body: bytes, tells: int) -> None:
        """Tell a worker. One that is paused is told when it goes on."""
        process: Any = self.processes[machine]
        loop = self.loops[machine]
        if self._is_over or tells > MOST_TELLS:
            return
        again = partial(self.world.call_later, REPEATS, self._tell, machine, body, tells + 1)
        if loop.is_killed or process.receiver is None:
            again()
            return
        receiver = process.receiver
        answers: list[int] = []

        async def answer() -> None:
            reply = await receiver.reply(body, MARKET)
            self._meets(f"answer {reply.status}")
            answers.append(reply.status)

        def look() -> None:
            if not answers or answers[0] not in (200, 400):
                again()

        self.kept.append(loop.create_task(answer()))
        self.world.call_later(ANSWER_WITHIN, look)

    # The end

    def _refused(self, number: int, limit: str, operation: str, who: str) -> None:
        """A bot that begins knows nothing of what a paused one has under way."""
        if operation in SENDS or not self.record.met["event stop"]:
            super()._refused(number, limit, operation, who)

    def is_defect(self, said: str) -> bool:
        """Whether it must not happen that an exception is logged with these words."""
        # The last one is tried again: the Market could not be asked for the message.
        allowed = "Bot.error failed", "statement of Bot.error failed", "on_event", "on_failure"
        return not any(words in said for words in allowed)

    def _has_ended(self) -> bool:
        if len(self.record.runs) > MOST_RUNS * (1 + len(self.record.buyers)):
            self.record.wrong.append("handlers are called without end")
            return True
        if not self._is_quiet():
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = self.world.now
            self.record.lasted = self.now()
        return self.world.now - self._quiet_since >= QUIET

    def _is_quiet(self) -> bool:
        if self.written < len(self.story.writes) or not super()._has_ended():
            return False
        if self.storage.select(f"SELECT 1 FROM {schema.bot_hints.name} LIMIT 1"):  # noqa: S608
            return False
        trying = f"SELECT 1 FROM {schema.bot_chats.name} WHERE message_id IS NOT NULL LIMIT 1"  # noqa: S608
        if self.storage.select(trying):
            return False
        self._note_began()
        done = set(self.storage.select("SELECT business, message FROM also WHERE kind != 'reply'"))
        done |= {(run.business, run.message) for run in self.record.runs if run.kind == "error"}
        return all(
            key in done
            for key, one in self.buyers.items()
            if is_expected(one, self.record, self.story)
        )

    def _note_began(self) -> None:
        market = BEGINNING + self.story.market.clock_offset
        for business_id, began_at in self.storage.select(
            f"SELECT business_id, began_at FROM {schema.bots.name} WHERE began_at IS NOT NULL"  # noqa: S608
        ):
            began = began_at / 1e6 - market - self.since
            self.record.began[business_id - FIRST_BUSINESS] = began

    def _stop_all(self) -> None:
        lasted = self.record.lasted
        super()._stop_all()
        self.record.lasted = lasted

    def _note(self) -> None:
        # What nobody has closed complains now, and so in each run of this story.
        gc.collect()
        super()._note()
        record = self.record
        self._note_began()
        record.also = [
            Also(business=business, chat=chat, message=message, run=run, kind=kind)
            for business, chat, message, run, kind in self.storage.select(
                "SELECT business, chat, message, run, kind FROM also"
            )
        ]
        keys = dict(self.storage.select(f"SELECT number, key FROM {schema.messages.name}"))  # noqa: S608
        for entry in record.messages:
            key = keys[entry.number] or ""
            if key.startswith("bot:"):
                kind, message, run, place = said_by(entry.content)
                row = Row(
                    number=entry.number,
                    key=key,
                    kind=kind,
                    message=message,
                    run=run,
                    place=place,
                    state=entry.state,
                )
                record.replies.setdefault(f"{entry.business}/{entry.chat}", []).append(row)
        about = {run.about for run in record.runs if run.kind == "reply"}
        gone = {(f"{one.business}/{one.chat}", one.message) for one in record.buyers if one.deleted}
        for chat, replies in record.replies.items():
            for row in replies:
                # Nobody is told of a reply of `Bot.error` itself, nor if the message is gone.
                if ":error:" in row.key or row.number in about or (chat, row.message) in gone:
                    record.told[row.number] += 1
        self._look_for_rows()

    def _look_for_rows(self) -> None:
        """Look for rows that must not be left."""
        if self.record.hung is not None:
            return
        chats, handled = schema.bot_chats.name, schema.bot_handled.name
        left = self.storage.select(
            f"SELECT chat_id, message_id, tries, running FROM {chats}"  # noqa: S608
            " WHERE message_id IS NOT NULL OR tries OR running"
        )
        self.record.leaked += [f"a try: {row}" for row in left]
        old = self.storage.select(
            f"SELECT count(*) FROM {handled} h JOIN {chats} c USING (business_id, bot, chat_id)"  # noqa: S608
            " WHERE h.created_at < c.cursor_at - 3600000000"
        )
        if old[0][0]:
            self.record.leaked.append(f"{old[0][0]} rows of handled messages")


def is_expected(one: Buyers, record: Record, story: Story) -> bool:
    """Whether a message must be handled."""
    return one.deleted is None and is_for_the_bot(one, record, story) is True


def is_for_the_bot(one: Buyers, record: Record, story: Story) -> bool | None:
    """Whether a message is one of those that the bot handles; None if it may be.

    These are the messages since it began, and with "waiting" also those behind the shop's last one
    in chats that waited then. Whether a chat waited whose status is changed is not known here.
    """
    began = record.began.get(one.business)
    looked = record.first_look.get(one.business)
    if began is None or one.at > began or (looked is not None and one.at >= looked):
        return True
    chat = f"{one.business}/{one.chat}"
    slack = SLACK + abs(story.market.storage_offset)
    since = began - BEFORE
    if story.bot.waiting and not any(one.at <= at < since for at in record.spoke.get(chat, ())):
        if one.at > since - slack or any(one.at <= at for at in record.spoke.get(chat, ())):
            return None
        changes = (event for event in story.events if isinstance(event, Changes))
        named = ((event.business, event.chat) for event in changes)
        return None if (one.business, one.chat) in named else True
    return None if one.at >= since - slack else False


def said_by(content: str) -> tuple[str, int, int, int]:
    """Return what a reply says of itself: its kind, its message, its run and its place."""
    if content.startswith("file "):
        content = content.split()[1].removesuffix(".pdf").replace("-", " ")
    kind, message, run, place = content.split()[:4]
    return kind, int(message), int(run), int(place)
