"""Plays a story: the real sessions over the real sandbox, in virtual time, with nothing real."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from yamarket_chat._delivery import shared
from yamarket_chat.sandbox import VirtualLoop, World

from .market import Market
from .nature import Nature
from .program import Log, Process, Unsettled, current
from .record import Record
from .story import Kill, Step, Story

LATE = 45.0
"""Seconds after the end in which what was given up may yet arrive."""

HANGS_AFTER = 7 * 86_400.0
"""Seconds after the last step: a story that has not ended then hangs."""

MOST_PASSES = 3_000_000
"""Passes of all loops: a story that needs more does not get on."""


def play(story: Story, *, lines: bool = False) -> Record:
    """Play a story, and return what came of it."""
    record = _Play(story, lines=lines).run()
    if record.hung or any(isinstance(step, Kill) for step in story.steps):
        # A program that is killed or hangs closes nothing, and its memory goes with it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            shared._of_loops.clear()
            gc.collect()
    return record


class _Play:
    def __init__(self, story: Story, *, lines: bool) -> None:
        self.story = story
        self.record = Record()
        self.world = World(story.seed)
        self.since = 0.0
        self.log = Log(self.record, lambda: self.world.now - self.since, lines=lines)
        self.market = Market(
            story, self.log, self.world.randomness("jitter"), self.world.randomness("hosts")
        )
        self.market_loop = self.world.loop("market")
        self.loops: list[VirtualLoop] = []
        self.processes: list[Process] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.unsettled: list[Unsettled] = [[] for _ in range(story.machines())]
        self._passes = 0
        self._running = 0  # programs

    def run(self) -> Record:
        with _noticed(self.log):
            try:
                self._run()
            finally:
                self.log.record = Record()  # what is cut off now is no part of the story
                self.world.close()
                sys.set_asyncgen_hooks(None, None)  # they would keep a loop, and all that it holds
        return self.record

    def _run(self) -> None:
        story, world = self.story, self.world
        box = self.market_loop.run_until_complete(self.market.box.__aenter__())
        self.market_loop.set_exception_handler(self._complain)
        self.market.begin()
        nature = Nature(story, world, self.market, self.market_loop, self.loops, self.log)
        nature.begin()
        self.since = world.now
        for machine in range(story.machines()):
            self._boot(machine)
        nature.schedule(self.since)
        for step in story.steps:
            if isinstance(step, Kill):
                world.call_at(self.since + step.at, self._kill, step)
        if self._until_done(story.ends() + HANGS_AFTER):
            for task in self.tasks:
                if not task.cancelled() and (error := task.exception()) is not None:
                    self.record.crashed.append(f"program: {error!r}"[:200])
            self.log.say("world", "all programs have ended")
            world.run(_never, limit=world.now + LATE)
            self._look_for_leaks()
        self.record.refused_for_rate = box.refusals.rate
        self.record.refused_in_parallel = box.refusals.parallel
        self.record.requests_of = dict(box._recorder.requests)
        for arrival in box.arrivals:
            moments = self.record.departures.setdefault(arrival.operation, [])
            moments.append(arrival.time - self.since)
        self.record.chats = self.market.rows()
        for rows in self.record.chats.values():
            for number, row in enumerate(rows):
                rows[number] = type(row)(row.at - self.since, row.who, row.content)
        self.market_loop.run_until_complete(self.market.box.__aexit__(None, None, None))

    def _boot(self, machine: int, life: int = 0, after: float = -1.0) -> None:
        """Start the process of a machine, with the steps up to the next kill."""
        steps: list[tuple[int, Step]] = []
        kills = sorted(
            step.at
            for step in self.story.steps
            if isinstance(step, Kill) and step.machine == machine
        )
        end = next((at for at in kills if at > after), None)
        for number, step in enumerate(self.story.steps):
            if isinstance(step, Kill) or step.machine != machine:
                continue
            if step.at >= max(after, 0.0) and (end is None or step.at < end):
                steps.append((number, step))
        steps.sort(key=lambda item: item[1].at)
        name = f"machine {machine}" + (f" life {life}" if life else "")
        loop = self.world.loop(name)
        loop.wall_drift = self.story.clocks.drift
        loop.has_boot_clock = self.story.clocks.tells_sleep
        if self.story.clocks.offset:
            loop.step_wall_clock(self.story.clocks.offset)
        process = Process(
            self.story,
            machine,
            life,
            steps,  # type: ignore[arg-type]
            self.market.box.url,
            self.log,
            self.unsettled[machine],
        )
        if machine < len(self.loops):
            self.loops[machine] = loop
            self.processes[machine] = process
        else:
            self.loops.append(loop)
            self.processes.append(process)
        since = loop.time() - (self.world.now - self.since)
        task = loop.create_task(process.live(since))
        task.add_done_callback(self._ended)
        self._running += 1
        if machine < len(self.tasks):
            self.tasks[machine] = task
        else:
            self.tasks.append(task)

    def _kill(self, step: Kill) -> None:
        machine = step.machine
        if self.tasks[machine].done():
            return  # there is nothing to kill
        self.log.say("world", f"kills program {machine}")
        self._running -= 1  # its task never ends
        self.tasks[machine].remove_done_callback(self._ended)
        self.processes[machine].kill()
        self.loops[machine].kill()
        self._boot(machine, self.processes[machine].life + 1, step.at)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._running -= 1

    def _all_done(self) -> bool:
        self._passes += 1  # this is asked in each of them
        return not self._running or self._passes > MOST_PASSES

    def _until_done(self, limit: float) -> bool:
        try:
            ended = self.world.run(self._all_done, limit=self.since + limit)
        except RuntimeError as error:
            self._hangs(str(error))
            return False
        if not ended:
            self._hangs(f"not over {HANGS_AFTER / 86_400:g} days after the last step")
        elif self._passes > MOST_PASSES:
            self._hangs(f"time does not pass: {MOST_PASSES} passes")
            return False
        return ended

    def _hangs(self, why: str) -> None:
        waiting = [f"{told.content!r}" for told in self.log.active.values()]
        self.record.hung = f"{why}; not ended: {', '.join(waiting)[:200] or 'a program'}"
        self.log.say("world", self.record.hung)

    def _look_for_leaks(self) -> None:
        looks = [
            (loop, loop.create_task(process.look_for_leaks(), name="world looks for leaks"))
            for loop, process in zip(self.loops, self.processes, strict=True)
        ]
        self._passes = 0
        try:
            self.world.run(
                lambda: all(task.done() for _, task in looks), limit=self.world.now + 1e6
            )
        except RuntimeError as error:
            self._hangs(str(error))
            return
        for loop, task in looks:
            if not task.done():
                self.record.leaked.append("the program does not run any more")
                continue
            self.record.leaked += task.result()
            left = sum(one.client.loop is loop for one in self.world.network.connections)
            if left:
                self.record.leaked.append(f"{left} connections")

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        what = f"sandbox: {context.get('message')}: {context.get('exception')!r}"
        self.record.crashed.append(what[:200])


def _never() -> bool:
    return False


class _Notices(logging.Handler):
    """Notes which messages are looked for in a history: the log says so."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._record = log.record

    def emit(self, record: logging.LogRecord) -> None:
        if "history will be read" not in record.msg:
            return
        told = current.get()  # None in the tasks of send_many
        if told is not None:
            told.in_doubt = True
        self._record.looked_up["send_message" if told is None else told.operation] += 1


@contextmanager
def _noticed(log: Log) -> Iterator[None]:
    logger = logging.getLogger("yamarket_chat")
    level, propagates = logger.level, logger.propagate
    notices = _Notices(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(notices)
    try:
        yield
    finally:
        logger.removeHandler(notices)
        logger.setLevel(level)
        logger.propagate = propagates
