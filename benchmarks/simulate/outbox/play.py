"""Plays a story: real workers over one database and real sandboxes, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from msgspec.structs import replace

from yamarket_chat._delivery import shared
from yamarket_chat.outbox import schema, store
from yamarket_chat.sandbox import VirtualLoop, World

from .. import story as parts
from ..market import SENDS, Market
from ..nature import Nature
from ..play import LATE, MOST_PASSES
from ..program import Log
from ..record import Record as MarketsRecord
from ..record import Stood
from .database import Storage
from .program import CANCELLED, KEY, Process, business_of, name_of, steps_of
from .record import Entry, Record
from .refusals import watch
from .seams import Locks, Tokens, patched, stand_still
from .story import AnyEvent, AnyStep, AtBusiness, AtPoint, Away, Killed, Left, Put, PutMany, Story

STUCK_AFTER = 2 * 3600.0
"""Seconds after the last event in which everything must have ended."""

STOPS_WITHIN = 300.0
"""Seconds in which a worker must have stopped."""

LOOK = 1.0
"""Seconds between two looks whether everything has ended."""

SOON = 40.0
"""Seconds after which nothing may be left of a program that has ended: a job, or a put."""

SLEEPS_LATER = 0.05
"""Seconds until a machine sleeps whose kernel still holds a request: docs/outbox.md names that."""


def play(story: Story, *, lines: bool = False) -> Record:
    """Play a story, and return what came of it."""
    record: Record = played(Play(story, lines=lines))
    return record


def played(play: Play) -> Any:
    """Play what is ready, and return its record."""
    freezes = not gc.get_freeze_count()
    if freezes:
        gc.freeze()  # what was there before need not be looked through
    try:
        record = play.run()
        # A program that is killed closes nothing, and its memory goes with it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            shared._of_loops.clear()
            gc.collect()
    finally:
        if freezes:
            gc.unfreeze()
    return record


class _Nature(Nature):
    """Nature, without what concerns the messages of sessions."""

    def _can_be_set(self, event: Any) -> bool:
        return False

    def happen(self, event: Any) -> None:
        """Let something happen now."""
        self._happen(event)


class Play:
    """A story that is played."""

    record_of: type[Record] = Record
    process_of: type[Process] = Process
    market_of: type[Market] = Market
    stuck_after: float = STUCK_AFTER

    def __init__(self, story: Story, *, lines: bool) -> None:
        self.story = story
        self.record = self.record_of()
        self.world = World(story.seed)
        self.since = 0.0
        self._lines = lines
        self.market_loop = self.world.loop("market")
        self.loops: list[VirtualLoop] = []
        self.processes: list[Process] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.left: list[dict[int, AnyStep]] = []
        self.lives: list[int] = []
        self.kept: list[object] = []  # of killed processes: nothing may be collected before the end
        self.machines: dict[Any, int] = {}
        self.locks = Locks(story.database.locks and not story.database.server)
        self.died_under: dict[str, dict[int, int]] = {}
        """By the name of each killed process: the epoch of each business that it held.

        Empty if there are no locks: nothing proves a death then.
        """
        self.tokens = Tokens(self.world)
        self.storage = Storage(
            story, self.world, self.machines.__getitem__, self.record.met, self.say
        )
        self.points: list[AtPoint] = []
        self.reached: Counter[tuple[int, str]] = Counter()
        self.logs: list[Log] = []
        self.markets: list[Market] = []
        self.natures: list[_Nature] = []
        self._passes = 0
        self._is_calm = False
        self._is_over = False
        for number in range(story.businesses):
            log = Log(MarketsRecord(met=self.record.met), self.now, lines=False)
            log.say = self._say_of(number)  # type: ignore[method-assign]
            log.active = {0: None}  # type: ignore[dict-item]  # something may be under way
            market = self.market_of(
                self._of_market(number),
                log,
                self.world.randomness(f"jitter {number}"),
                self.world.randomness(f"hosts {number}"),
            )
            market.box.business_id = business_of(number)
            market.box.api_key = KEY
            self.logs.append(log)
            self.markets.append(market)

    def _of_market(self, number: int) -> parts.Story:
        """Return the story of one business, as its market sees it."""
        story = self.story
        steps: list[parts.AnyStep] = []
        for step in story.steps:
            if step.business != number:
                continue
            match step:
                case Put():
                    steps.append(parts.Send(chat=step.chat, text=step.text, size=step.size))
                case PutMany():
                    steps.append(parts.SendMany(messages=step.messages))
        return parts.Story(
            seed=story.seed,
            market=story.market,
            network=story.network,
            steps=tuple(steps),
            failures=tuple(one for one in story.failures if one.business == number),
        )

    def now(self) -> float:
        """Return the seconds since the story began."""
        return self.world.now - self.since

    def say(self, who: str, what: str) -> None:
        """Add a line to the time line."""
        if self._lines and not self._is_over:
            self.record.line.append((self.now(), who, what))

    def _say_of(self, number: int) -> Any:
        return lambda who, what: self.say(f"{who} {number}", what)

    # Playing

    def run(self) -> Record:
        """Play it, and return what came of it."""
        logger = logging.getLogger("yamarket_chat")
        with (
            _listened(logger, self),
            patched(
                self.world,
                self.storage,
                self.locks,
                self.tokens,
                self.market_loop,
                server=self.story.database.server,
                look=self.story.database.look,
                look_at_others=self.story.delivery.look,
                url_of=self._url_of,
                hook=self._reach,
                written=self._written,
            ),
        ):
            try:
                self._run()
            finally:
                self._is_over = self.storage.is_over = True
                record, self.record = self.record, self.record_of()
                for process in self.processes:
                    process._record = self.record
                for log in self.logs:
                    log.record = MarketsRecord()
                for loop in self.world.machines:
                    _end(loop)
                self.world.close()
                sys.set_asyncgen_hooks(None, None)  # they would keep a loop, and all that it holds
        return record

    def _run(self) -> None:
        story, world = self.story, self.world
        for number, market in enumerate(self.markets):
            self.market_loop.run_until_complete(market.box.__aenter__())
            watch(market.box, partial(self._refused, number), partial(self._took_over_from, number))
        self.market_loop.set_exception_handler(self._complain)
        self._begin_markets()
        self.natures[0].begin()
        self.since = world.now
        for machine in range(story.machines()):
            self.left.append(dict(steps_of(story, machine)))
            self.lives.append(0)
            self._boot(machine)
        self._schedule()
        calm = self.since + story.ends() + 1.0
        if self._until(lambda: False, calm, "") and self._until(
            self._has_ended, calm + self.stuck_after, "messages are open"
        ):
            self.record.lasted = self.now()
            self._stop_all()
        self.record.virtual = world.now
        if self.record.hung is None:
            world.run(lambda: False, limit=world.now + LATE)
            self._look_for_leaks()
        self._note()
        for market in self.markets:
            self.market_loop.run_until_complete(market.box.__aexit__(None, None, None))

    def _begin_markets(self) -> None:
        for number, market in enumerate(self.markets):
            market.begin()
            nature = _Nature(
                self._of_market(number),
                self.world,
                market,
                self.market_loop,
                self.loops,
                self.logs[number],
            )
            self.natures.append(nature)

    def _schedule(self) -> None:
        for event in self.story.events:
            self.world.call_at(self.since + event.at, self._happen, event)

    def _url_of(self, business_id: int) -> str:
        number = business_id - business_of(0)
        # The options of a delivery are tried with another one.
        return self.markets[number if 0 <= number < len(self.markets) else 0].box.url

    def _boot(self, machine: int) -> None:
        life = self.lives[machine] = self.lives[machine] + 1
        name = f"worker {machine}" if machine < self.story.workers else "program"
        loop = self.world.loop(name + (f" life {life}" if life > 1 else ""))
        clocks = self.story.clocks
        loop.wall_drift = clocks.drift
        loop.has_boot_clock = clocks.tells_sleep
        if clocks.offset:
            loop.step_wall_clock(clocks.offset * (machine + 1))
        self.machines[loop] = machine
        process = self.process_of(
            self.story,
            machine,
            loop,
            self.record,
            self.say,
            self.left[machine],
        )
        task = loop.create_task(process.live(loop.time() - (self.world.now - self.since)))
        task.add_done_callback(lambda task: self._ended(loop, task))
        self.kept.append(task)
        self.loops[machine:] = [loop, *self.loops[machine + 1 :]]
        self.processes[machine:] = [process, *self.processes[machine + 1 :]]
        self.tasks[machine:] = [task, *self.tasks[machine + 1 :]]

    def _ended(self, loop: VirtualLoop, task: asyncio.Task[None]) -> None:
        if self._is_over or loop.is_killed or task.cancelled():
            return
        if (error := task.exception()) is not None:
            self.record.crashed.append(f"{loop.name}: {error!r}"[:200])

    # What happens

    def _happen(self, event: AnyEvent) -> None:
        match event:
            case AtBusiness():
                if event.business < len(self.natures):
                    self.natures[event.business].happen(replace(event.event, at=event.at))
            case Killed():
                self._kill(event.machine, event.down)
            case Left():
                self._leave(event.machine, event.down)
            case AtPoint():
                self.points.append(event)
                self.reached[event.machine, event.point] = 0
            case Away():
                self._meets("event away")
                self.say("world", repr(event))
                self.storage.away(event)
            case parts.Sleep() if self._holds_a_request(event.machine):
                self.world.call_later(SLEEPS_LATER, self._happen, event)
            case _:
                self.natures[0].happen(event)

    def _holds_a_request(self, machine: int) -> bool:
        loop = self.loops[machine]
        return any(end.queue for end in loop._ends)

    def _meets(self, what: str) -> None:
        self.record.met[what] += 1

    def _kill(self, machine: int, down: float) -> None:
        loop = self.loops[machine]
        if loop.is_killed or self.tasks[machine].done():
            return
        self._meets("event killed")
        self.say("world", f"kills worker {machine}")
        loop.kill()
        self.died_under[name_of(loop.name)] = self._epochs_of(name_of(loop.name))
        if not self._is_over:
            self.world.call_later(down, self._boot_again, machine, self.lives[machine])

    def _boot_again(self, machine: int, life: int) -> None:
        if self.lives[machine] == life and not self._is_calm:
            self._boot(machine)

    def _leave(self, machine: int, down: float) -> None:
        task, loop, life = self.tasks[machine], self.loops[machine], self.lives[machine]
        if loop.is_killed or task.done():
            return
        self._meets("event left")
        self.say("world", f"stops worker {machine}")
        loop.call_soon(task.cancel)
        began = self.world.now

        def look() -> None:
            if self._is_calm or self.lives[machine] != life or loop.is_killed:
                return
            if task.done():
                self.world.call_later(SOON, self._check_stopped, loop)
                self.world.call_later(down, self._boot_again, machine, life)
            elif self.world.now > began + STOPS_WITHIN and loop._runs:
                self.record.leaked.append(f"{loop.name} does not stop")
                self._kill(machine, down)
            else:
                self.world.call_later(0.1, look)

        self.world.call_later(0.1, look)

    def _reach(self, name: str) -> None:
        loop: Any = asyncio._get_running_loop()
        machine = self.machines.get(loop)
        if machine is None or loop.is_killed or self._is_over:
            return
        self._meets(f"point {name}")
        self.reached[machine, name] += 1
        for event in self.points:
            if (event.machine, event.point) == (machine, name) and (
                self.reached[machine, name] == event.count
            ):
                self.points.remove(event)
                self._meets(f"event {event.action} {name}")
                self.say("world", f"{event.action}s worker {machine} at {name!r}")
                if event.action == "kill":
                    self._kill(machine, event.seconds)
                elif not self._is_calm:
                    stand_still(loop, event.seconds)
                break

    def _refused(self, number: int, limit: str, operation: str, who: str) -> None:
        """Note what is refused, but not a read of one who does not know yet that it was paused."""
        self.say(f"market {number}", f"refuses {operation} for the {limit} limit")
        holder = self._lease(business_of(number))[0]
        if operation in SENDS or name_of(self.tokens.whose.get(holder, "")) == who:
            self.record.refused[limit] += 1

    def _took_over_from(self, number: int, whose: str) -> bool:
        """Whether a business was taken over from this process, which died, and not handed on."""
        under = self.died_under.get(whose, {}).get(number)
        return under is not None and self._lease(business_of(number))[1] == under + 1

    def _epochs_of(self, name: str) -> dict[int, int]:
        found = {}
        for number in range(len(self.markets)):
            holder, epoch = self._lease(business_of(number))
            if name_of(self.tokens.whose.get(holder, "")) == name:
                found[number] = epoch
        return found

    def _lease(self, business_id: int) -> tuple[str, int]:
        """Return who holds the lease of a business, and its epoch."""
        found = self.storage.select(
            f"SELECT worker, epoch FROM {schema.leases.name} WHERE business_id = ?",  # noqa: S608
            business_id,
        )
        return tuple(found[0]) if found else ("", 0)

    def _written(self, grant: Any) -> None:
        """Look whether the lease of what is sent now is still that of the sender."""
        loop: Any = asyncio._get_running_loop()
        if self._is_over or loop.is_killed:
            return
        holder, epoch = self._lease(grant.business_id)
        if (holder, epoch) != (grant.token, grant.epoch):
            self.record.two_senders.append(
                f"at {self.now():.3f} {loop.name} sends for business {grant.business_id} under its"
                f" epoch {grant.epoch}; {self.tokens.whose.get(holder)} holds it under {epoch}"
            )

    def is_defect(self, said: str) -> bool:
        """Whether it must not happen that an exception is logged with these words."""
        return True

    # The end

    def _has_ended(self) -> bool:
        return not any(self.left) and not self.storage.select(
            f"SELECT 1 FROM {schema.messages.name} WHERE ended_at IS NULL OR untold LIMIT 1"  # noqa: S608
        )

    def _until(self, condition: Any, limit: float, why: str) -> bool:
        """Run until a condition holds, which is looked at each second, or a time has come."""
        state = {"holds": False}

        def look() -> None:
            state["holds"] = condition()
            if not state["holds"] and self.world.now < limit:
                self.world.call_later(LOOK, look)

        def is_done() -> bool:
            self._passes += 1
            return state["holds"] or self._passes > MOST_PASSES

        if why:
            look()
        try:
            self.world.run(is_done, limit=limit)
        except RuntimeError as error:
            self.record.hung = str(error)
            return False
        if self._passes > MOST_PASSES:
            self.record.hung = f"time does not pass: {MOST_PASSES} passes"
        elif why and not state["holds"]:
            self.record.hung = f"{why} after {limit - self.since:.0f} s"
        return self.record.hung is None

    def _stop_all(self) -> None:
        self._is_calm = True
        self.say("world", "all messages have ended: stops all")
        running = [
            (task, loop)
            for task, loop in zip(self.tasks, self.loops, strict=True)
            if not task.done() and not loop.is_killed
        ]
        for task, loop in running:
            loop.call_soon(task.cancel)
        limit = self.world.now + STOPS_WITHIN

        def have_ended() -> bool:
            # One may be killed at a point of its ending.
            return all(task.done() or loop.is_killed for task, loop in running)

        self._until(have_ended, limit, "workers do not stop")
        for name in self.locks.held():
            self.record.leaked.append(f"the lock of {name}")

    def _check_stopped(self, loop: VirtualLoop) -> None:
        """Look for what is left on the machine of a worker that has stopped."""
        if self._is_over or loop.is_killed:
            return
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        self.record.leaked += sorted(f"a task: {task.get_coro()!s:.80}" for task in left)

    def _look_for_leaks(self) -> None:
        for task, loop in zip(self.tasks, self.loops, strict=True):
            if loop.is_killed or not task.done():
                continue
            self._check_stopped(loop)
            left = sum(one.client.loop is loop for one in self.world.network.connections)
            if left:
                self.record.leaked.append(f"{left} connections of {loop.name}")
        living = self.storage.select(f"SELECT count(*) FROM {schema.workers.name}")  # noqa: S608
        killed = sum(self.record.met[f"event {what}"] for what in ("killed", "away"))
        if living[0][0] and not killed and not self.story.hitches:
            self.record.leaked.append(f"{living[0][0]} rows of workers")

    def _note(self) -> None:
        """Note what the rows say, and what stands in the chats."""
        record = self.record
        fields = "number, business_id, chat_id, state, request, not_before, untold"
        rows = self.storage.select(f"SELECT {fields} FROM {schema.messages.name} ORDER BY number")  # noqa: S608
        for number, business_id, chat_id, state, requests, not_before, untold in rows:
            entry = self.storage.read(store.get, number)
            said = record.put.get(number, "")
            content = said.removesuffix(CANCELLED)
            if entry.text is not None:
                content = entry.text.strip()
            elif entry.filename is not None:
                content = f"file {entry.filename} {entry.file_size}"
            if said and said.removesuffix(CANCELLED) != content:
                record.wrong.append(f"{said!r} was put as {number}, which is {content!r}")
            if said.endswith(CANCELLED) and state not in ("cancelled", "expired"):
                record.wrong.append(f"message {number} was cancelled, and is {state}")
            by_history = entry.receipt is not None and entry.receipt.confirmed_by == "history"
            record.messages.append(
                Entry(
                    number=number,
                    business=business_id - business_of(0),
                    chat=chat_id,
                    content=content,
                    state=state,
                    requests=requests,
                    error="" if entry.error is None else f"{entry.error!r}"[:300],
                    timed=not_before is not None,
                    in_doubt=by_history or state == "unknown" or requests > 1,
                    untold=bool(untold),
                )
            )
        known = {entry.number for entry in record.messages}
        for number, content in record.put.items():
            if number not in known:
                record.wrong.append(f"{content!r} was put as {number}, which is not there")
        for number, market in enumerate(self.markets):
            box = market.box
            record.requests += sum(box._recorder.requests.values())
            for chat, stood in market.rows().items():
                record.chats[f"{number}/{chat}"] = [
                    Stood(row.at - self.since, row.who, row.content) for row in stood
                ]

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        what = f"sandbox: {context.get('message')}: {context.get('exception')!r}"
        self.record.crashed.append(what[:200])


def _end(loop: VirtualLoop) -> None:
    """End all tasks of a machine. One that waits as it ends is cancelled again."""
    for _ in range(10):
        if not asyncio.all_tasks(loop):
            break
        loop._cancel_all()


class _Notices(logging.Handler):
    """Notes the defects that the product logs, and the rest for the time line."""

    def __init__(self, played: Play) -> None:
        super().__init__()
        self._play = played

    def emit(self, record: logging.LogRecord) -> None:
        loop: Any = asyncio._get_running_loop()
        if loop is None or self._play._is_over or loop.is_killed:
            return
        said = record.getMessage()
        if record.levelno >= logging.ERROR and record.exc_info and self._play.is_defect(said):
            self._play.record.crashed.append(f"{said}: {record.exc_info[1]!r}"[:300])
        self._play.say(loop.name, f"log: {said}")


@contextmanager
def _listened(logger: logging.Logger, played: Play) -> Iterator[None]:
    level, propagates = logger.level, logger.propagate
    notices = _Notices(played)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(notices)
    try:
        yield
    finally:
        logger.removeHandler(notices)
        logger.setLevel(level)
        logger.propagate = propagates
