"""The bot with one guard left out. Each mutant must be found, or the simulation is too tame."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from sqlalchemy import and_, delete, update

from yamarket_chat._delivery.departing import DepartingEngine
from yamarket_chat.bot import agenda, bot, business, cursor, inbox, reading, slots
from yamarket_chat.bot.business import Business
from yamarket_chat.bot.handlers import LINGERS, call
from yamarket_chat.bot.message import BuyerMessage
from yamarket_chat.bot.runner import Runner
from yamarket_chat.bot.steps import Steps
from yamarket_chat.models import Sender
from yamarket_chat.outbox import inside, store
from yamarket_chat.outbox.delivering import Delivering
from yamarket_chat.outbox.schema import bot_chats, bot_handled

from ..mutating import Mutant, Patch, added_to

MUTANTS: dict[str, Mutant] = {}

_mutant = added_to(MUTANTS)


# What is committed


@_mutant(
    "the replies count only if the cursor is as it was",
    "in any case",
    story="woke-with-its-replies",
)
def no_compare_and_set(patch: Patch) -> None:
    def change(connection: Any, key: Any, was: Any, values: Any) -> bool:
        if was.version == 0:
            added = cursor._insert(connection, bot_chats).values(
                **key._asdict(), version=1, **values
            )
            connection.execute(added.on_conflict_do_nothing())
            return True
        connection.execute(
            update(bot_chats)
            .where(cursor._is(key))
            .values(version=bot_chats.c.version + 1, **values)
        )
        return True

    patch(cursor, "change", change)
    _any_number_of_times(patch)


def _any_number_of_times(patch: Patch) -> None:
    """Let a message be handled again: or the key of its table would forbid that."""
    original = cursor.handled

    def handled(connection: Any, key: Any, was: Any, values: Any, done: Any, *others: Any) -> bool:
        connection.execute(
            delete(bot_handled).where(
                and_(
                    bot_handled.c.business_id == key.business_id,
                    bot_handled.c.chat_id == key.chat_id,
                    bot_handled.c.message_id == done[0],
                )
            )
        )
        return original(connection, key, was, values, done, *others)

    patch(cursor, "handled", handled)


@_mutant(
    "a reply is put at once only if the cursor is that of its run",
    "in any case",
    story="woke-and-said-it-looks",
)
def now_in_any_case(patch: Patch) -> None:
    def put_now(connection: Any, key: Any, version: Any, reply: Any) -> bool:
        store.put_each(connection, [reply])
        return True

    patch(cursor, "put_now", put_now)


@_mutant("replies are held until the handler has returned", "they are put at once")
def replies_at_once(patch: Patch) -> None:
    async def put(self: Any, row: Any, number: Any) -> None:
        self._check_open()
        await inside.database(self._outbox).write(store.put_each, [row])
        inside.wake(self._outbox)

    patch(BuyerMessage, "_put", put)


# What is new


@_mutant(
    "a look reaches an hour behind the last handled message",
    "only behind it",
    aim=("late rows", "told", "at once"),
)
def no_overlap(patch: Patch) -> None:
    patch(inbox, "HOUR", -1)


@_mutant("the ids that were handled in that hour are known", "they are not")
def handled_unknown(patch: Patch) -> None:
    original = inbox.new_messages

    def new_messages(rows: Any, was: Any, begins_at: int) -> Any:
        return original(rows, msgspec.structs.replace(was, handled=frozenset()), begins_at)

    patch(business, "new_messages", new_messages)
    _any_number_of_times(patch)


@_mutant("only what buyers write is handled", "what the shop says as well")
def own_messages(patch: Patch) -> None:
    original = inbox.new_messages

    def new_messages(rows: Any, was: Any, begins_at: int) -> Any:
        said = [
            msgspec.structs.replace(row, sender=Sender.CUSTOMER)
            if row.sender == Sender.PARTNER
            else row
            for row in rows
        ]
        return original(said, was, begins_at)

    patch(business, "new_messages", new_messages)


@_mutant(
    "the start is stored before the first look",
    "each process begins with now",
    aim=("kills at points", "kills", "short lease", "at once"),
)
def start_not_stored(patch: Patch) -> None:
    original = cursor.begin

    def begin(connection: Any, business_id: int, name: str, now: int, waiting: bool) -> Any:
        row = original(connection, business_id, name, now, waiting)

        class Now:
            began_at, paused, sweep = now, row.paused, row.sweep

        Now.waiting = waiting  # type: ignore[attr-defined]
        return Now

    patch(cursor, "begin", begin)


# Looks


@_mutant(
    "a look is noted when the chat has not changed for 30 s",
    "at once",
    story="row-shows-late-as-the-worker-is-killed",
)
def noted_at_once(patch: Patch) -> None:
    patch(business, "SETTLED", -1.0)
    patch(business, "ONCE_MORE", (1.0, 30.0))


@_mutant(
    "a chat is read again 1 s and 30 s after a message was handled",
    "it is not",
    story="written-while-the-bot-answers",
)
def no_further_looks(patch: Patch) -> None:
    patch(business, "ONCE_MORE", ())


@_mutant(
    "a notification is kept until the history shows its message",
    "until the next look",
    aim=("late rows", "told"),
)
def hints_forgotten(patch: Patch) -> None:
    patch(Business, "_is_late", lambda self, since: True)


@_mutant("a change is noted when the history shows it", "after the next look", aim=("late rows",))
def changes_forgotten(patch: Patch) -> None:
    original = Business._note

    async def note(
        self: Any, key: Any, was: Any, begins_at: Any, rows: Any, todo: Any, now: Any
    ) -> Any:
        todo.listed_at = -1e6
        return await original(self, key, was, begins_at, rows, todo, now)

    patch(Business, "_note", note)


@_mutant(
    "one look at a chat at a time",
    "as many as there are reasons",
    aim=("slow handlers", "told", "told thrice", "at once"),
)
def looks_side_by_side(patch: Patch) -> None:
    def keep(self: Any, chat_id: int, task: Any, todo: Any) -> None:
        self._at_work[chat_id, task] = task, todo
        task.add_done_callback(lambda _: self._at_work.pop((chat_id, task), None))

    patch(agenda.Agenda, "_keep", keep)


# Tries


@_mutant(
    "a try is counted before the handler runs", "when it has failed", aim=("killers", "gives up")
)
def tries_counted_later(patch: Patch) -> None:
    original = Steps.change

    async def change(self: Any, key: Any, was: Any, values: Any) -> Any:
        if values.get("running"):
            values = {**values, "tries": values["tries"] - 1}
            after = await original(self, key, was, values)
            return after and msgspec.structs.replace(after, tries=after.tries + 1)
        if values == {"running": False}:
            values = {"running": False, "tries": was.tries}
        return await original(self, key, was, values)

    patch(Steps, "change", change)


@_mutant(
    "a try is given back if its handler was cancelled",
    "it counts",
    aim=("many leaves", "slow handlers"),
)
def no_giving_back(patch: Patch) -> None:
    async def give_back(self: Any, key: Any, counting: Any) -> None:
        await asyncio.wait({counting}, timeout=LINGERS)
        if not counting.done() or (was := counting.result()) is None:
            return
        await self._database.write(cursor.change, key, was, {"running": False})

    patch(Steps, "give_back", give_back)


@_mutant(
    "a message whose handler died is handled alone",
    "beside others",
    aim=("killers", "gives up", "slow handlers", "at once"),
)
def suspects_beside(patch: Patch) -> None:
    original = slots.Slots.slot

    def slot(self: Any, *, alone: bool) -> Any:
        return original(self, alone=False)

    patch(slots.Slots, "slot", slot)


@_mutant(
    "a handler that takes too long is cancelled", "it is waited for", aim=("hangs", "gives up")
)
def handlers_hang(patch: Patch) -> None:
    async def for_ever(function: Any, *arguments: Any, within: float) -> Any:
        return await call(function, *arguments, within=1e9)

    patch(business, "call", for_ever)


@_mutant("messages of a chat wait for one that failed", "they do not", aim=("raises", "at once"))
def chat_goes_on(patch: Patch) -> None:
    original = inbox.new_messages

    def new_messages(rows: Any, was: Any, begins_at: int) -> Any:
        found = original(rows, was, begins_at)
        return [one for one in found if one.message.message_id != was.message_id] or found

    patch(business, "new_messages", new_messages)


@_mutant(
    "when others have used the limit of histories up, one look asks how much is left",
    "all looks wait",
    story="limit-of-histories-was-used-up",
)
def limit_not_asked(patch: Patch) -> None:
    patch(DepartingEngine, "others", lambda self, operation: 0)


@_mutant(
    "a history in no order is read until it is the same twice",
    "once",
    story="row-missed-on-shuffled-pages",
)
def history_read_once(patch: Patch) -> None:
    async def rows(listing: Any) -> list[Any]:
        return [row async for row in listing]

    patch(reading, "_rows", rows)


@_mutant(
    "an empty history does not tell that the shop has answered nothing",
    "it does",
    story="history-was-empty-at-the-first-look",
)
def empty_history_tells(patch: Patch) -> None:
    original = inbox.Start.begins_at

    def begins_at(self: Any, rows: Any, waited: bool) -> int:
        return original(self, rows, waited) if rows else 0

    def is_old(rows: Any, changed_at: int, now: int) -> bool:
        return now - changed_at > business.LATE * 1e6

    patch(inbox.Start, "begins_at", begins_at)
    patch(business, "_is_old", is_old)


# Beginning and ending


@_mutant(
    "a bot's first request waits until what is under way holds its slots",
    "it is sent at once",
    story="stopped-as-its-only-slot-is-in-use",
)
def first_request_at_once(patch: Patch) -> None:
    patch(Delivering, "_companions_session", Delivering._session)


@_mutant(
    "who begins again ends what a start that failed has begun",
    "it goes on",
    story="began-again-after-a-start-that-failed",
)
def failed_start_goes_on(patch: Patch) -> None:
    original = Runner.begin

    async def begin(self: Any, open_session: Any) -> None:
        kept, self._businesses = self._businesses, {}
        await original(self, open_session)
        self._businesses.update(kept)

    patch(Runner, "begin", begin)


@_mutant(
    "nothing is begun while the bot ends",
    "a business that is granted then is",
    story="granted-a-business-as-it-stops",
)
def begins_at_the_end(patch: Patch) -> None:
    original = Runner.granted

    def granted(self: Any, grant: Any) -> None:
        self._is_ending = False
        original(self, grant)

    patch(Runner, "granted", granted)


@_mutant(
    "a session is closed also if the end of its business is cancelled",
    "it stays open",
    story="taken-for-dead-as-it-hands-over",
)
def session_left_open(patch: Patch) -> None:
    async def stop(self: Any, grace: float) -> None:
        self._begin_no_more()
        try:
            if working := self._agenda.tasks():
                await asyncio.wait(working, timeout=grace)
        finally:
            self.over()
            await asyncio.wait([*self._agenda.tasks(), self._task])
            await self._close_session()

    patch(Business, "stop", stop)


@_mutant(
    "handlers are cancelled if the lease is lost",
    "they go on",
    aim=("pauses", "no locks", "slow handlers"),
)
def over_ignored(patch: Patch) -> None:
    patch(Runner, "over", lambda self, grants: None)


@_mutant(
    "`Bot.error` is told of a reply that was refused, is unknown or has expired",
    "nobody is",
    aim=("fails", "many replies", "gives up"),
)
def replies_not_told(patch: Patch) -> None:
    async def failed(self: Any, entry: Any) -> None:
        return None

    patch(bot.Bot, "_failed", failed)
