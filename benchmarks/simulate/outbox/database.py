"""The database of a story: SQLite in memory, whose jobs are done at chosen virtual moments.

The product's functions work on it unchanged, each within one transaction. The world is one thread,
so a job happens at one moment: some time after it was begun, and some time before its end is
learnt. In between its process may be killed or paused, its commit be lost, or its success.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, StaticPool, create_engine, event

from yamarket_chat.bot import cursor
from yamarket_chat.errors import ChatError
from yamarket_chat.outbox import claims, schema, store, writer
from yamarket_chat.outbox.database import Database
from yamarket_chat.outbox.errors import OutboxDatabaseError
from yamarket_chat.outbox.troubles import BrokenConnectionError
from yamarket_chat.sandbox import VirtualLoop, World

from .story import Away, Hitch, Story, What

Say = Callable[[str, str], None]

ALSO = "CREATE TABLE also (business INTEGER, chat INTEGER, message INTEGER, run INTEGER, kind TEXT)"
"""A table of the user's own, into which the handlers of a bot write."""

_LANES = {False: 1, True: 4}
_WHAT: dict[Any, What] = {
    writer._write: "send",
    claims.beat: "beat",
    store.put: "put",
    store.put_each: "put",
    cursor.handled: "commit",
    cursor.change: "try",
    cursor.hint: "hint",
}


class _Memory:
    """The one connection of this process. Each story begins with empty tables."""

    def __init__(self) -> None:
        self.raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.raw.execute("PRAGMA foreign_keys = ON")
        engine = create_engine("sqlite://", creator=lambda: self.raw, poolclass=StaticPool)
        self.writes = True
        event.listen(engine, "begin", self._begin)
        self.connection: Connection = engine.connect()
        with self.connection.begin():
            schema.create(self.connection)
        self.raw.execute(ALSO)
        tables = [one for one in schema.metadata.sorted_tables[::-1] if one is not schema.schema]
        names = "also", *(table.name for table in tables)
        self._empty = [f"DELETE FROM {name}" for name in names]  # noqa: S608 - ours

    def _begin(self, connection: Connection) -> None:
        if self.writes:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def clear(self) -> None:
        for statement in self._empty:
            self.raw.execute(statement)
        self.raw.execute("DELETE FROM sqlite_sequence")


@cache
def memory() -> _Memory:
    return _Memory()


class _Job(msgspec.Struct, eq=False):
    work: Callable[[], Any]
    future: asyncio.Future[Any]
    what: What | None  # None: it only reads
    patience: float
    lane: _Lane


class _Lane:
    """The threads of one Database."""

    def __init__(self, machine: int, loop: VirtualLoop) -> None:
        self.machine = machine
        self.loop = loop
        self.running = 0
        self.waiting: deque[_Job] = deque()


class Storage:
    """The database of a story."""

    def __init__(
        self,
        story: Story,
        world: World,
        machine_of: Callable[[Any], int],
        met: Counter[str],
        say: Say,
    ) -> None:
        self._story = story
        self._world = world
        self._machine_of = machine_of
        self._met = met
        self._say = say
        self._memory = memory()
        self._memory.clear()
        self._chance: random.Random = world.randomness("database")
        self._lanes: dict[Database, _Lane] = {}
        self._counts: Counter[tuple[int, What]] = Counter()
        self._hitches = {(one.machine, one.what, one.number): one for one in story.hitches}
        self._away: list[tuple[float, float, Away]] = []
        self._version = 1
        self._beats = 1
        self._known: dict[Any, tuple[int, int, Any]] = {}
        self.loop: VirtualLoop | None = None  # whose job is done outside of all loops
        self.is_over = False

    def away(self, event: Away) -> None:
        """Let the database be away from now on."""
        now = self._world.now
        self._away.append((now, now + event.seconds, event))

    def select(self, statement: str, *values: Any) -> list[Any]:
        """Read at once, as a judge."""
        return self._memory.raw.execute(statement, values).fetchall()

    def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """Read at once by a function of the product."""
        return self._transact(True, function, args)

    # What a Database asks for

    async def call(self, database: Database, function: Callable[..., Any], *args: Any) -> Any:
        """Do a job of a Database."""
        loop: Any = asyncio.get_running_loop()
        if self.is_over or loop.is_killed:
            raise OutboxDatabaseError("the process is dead")
        lane = self._lanes.get(database)
        if lane is None:
            lane = self._lanes[database] = _Lane(self._machine_of(loop), loop)
        what: What | None = None
        if function == database._data_version:
            if self._until(lane.machine, beats=False) is None:
                return self._version
            function, args = (lambda: self._version), ()
        elif function == database._transact:
            reading, function, args = args
            if not reading:
                what = _WHAT.get(function)
                if what is None:
                    what = "lease" if function.__module__ == claims.__name__ else "other"
            work, arguments = function, args
            function, args = (lambda: self._transact(reading, work, arguments)), ()
        else:
            outside, given = function, args  # it reads a file, or takes a lock
            function, args = (lambda: outside(*given)), ()
        future: asyncio.Future[Any] = loop.create_future()
        lane.waiting.append(_Job(function, future, what, database._patience, lane))
        self._pump(lane)
        return await future

    def _transact(self, reading: bool, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        memory = self._memory
        if reading:
            # Idle workers ask the same again and again.
            version = self._version, self._beats if function is claims.beats else 0
            key = function, repr(args)
            known = self._known.get(key)
            if known is not None and known[:2] == version:
                return known[2]
            memory.writes = False
            with memory.connection.begin():
                result = function(memory.connection, *args)
            self._known[key] = (*version, result)
            return result
        memory.writes = True
        before = memory.raw.total_changes
        with memory.connection.begin():
            result = function(memory.connection, *args)
        if memory.raw.total_changes != before:
            if function is claims.beat:
                self._beats += 1
            else:
                self._version += 1
        return result

    # When jobs are done

    def _pump(self, lane: _Lane) -> None:
        while lane.waiting and lane.running < _LANES[self._story.database.server]:
            job = lane.waiting.popleft()
            if job.future.cancelled():
                continue
            lane.running += 1
            hitch = None
            if job.what is not None:
                named = lane.machine, job.what
                self._counts[named] += 1
                hitch = self._hitches.get((*named, self._counts[named]))
                if hitch is not None:
                    self._met[f"hitch {hitch.kind} {hitch.what}"] += 1
                    self._say("database", f"{hitch}")
            self._later(lane, self._takes(), self._do, job, hitch)

    def _takes(self) -> float:
        told = self._story.database
        return (
            told.least if told.least == told.most else self._chance.uniform(told.least, told.most)
        )

    def _later(self, lane: _Lane, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """A server works on while its client is paused or dead."""
        if self._story.database.server:
            self._world.call_later(seconds, action, *args)
        else:
            lane.loop.call_later(seconds, action, *args)

    def _do(self, job: _Job, hitch: Hitch | None) -> None:
        lane = job.lane
        if self.is_over:
            return
        if lane.loop.is_killed and self._chance.random() < 0.5:
            return  # it was killed before the server had all of it
        until = self._until(lane.machine, beats=job.what == "beat")
        if until is not None:
            wait = until - self._world.now
            if not self._story.database.server and wait <= job.patience:
                self._later(lane, wait + 1e-3, self._do, job, hitch)
            else:
                self._learn(job, OutboxDatabaseError("it is away", retry_after=1.0), min(wait, 1.0))
            return
        takes = self._takes()
        if hitch is None:
            self._learn(job, self._done(job), takes)
            return
        error = BrokenConnectionError("its success is not learnt", sent=None, retry_after=1.0)
        match hitch.kind:
            case "fails":
                self._learn(job, OutboxDatabaseError("it failed", retry_after=1.0), takes)
            case "unlearnt":
                self._done(job)
                self._learn(job, error, takes)
            case "late" if self._story.database.server:
                self._learn(job, error, takes)
                self._world.call_later(hitch.seconds, self._done, job)
            case "learnt late":
                self._learn(job, self._done(job), takes + hitch.seconds)
            case _:
                self._later(lane, hitch.seconds, self._do, job, None)

    def _done(self, job: _Job) -> Any:
        """Do it, and return its result or its error."""
        if self.is_over:
            return None
        self.loop = job.lane.loop
        try:
            return job.work()
        except Exception as error:  # noqa: BLE001 - the caller's
            return error
        finally:
            self.loop = None

    def _learn(self, job: _Job, result: Any, seconds: float) -> None:
        """Tell the result after some seconds."""
        lane = job.lane

        def learn() -> None:
            lane.running -= 1
            began = self._world.now - seconds
            future, told = job.future, result
            if self._story.database.server and self._went_away(job, began):
                told = BrokenConnectionError("it went away", sent=None, retry_after=1.0)
            if not future.done():
                if isinstance(told, Exception):
                    future.set_exception(told)
                    if not isinstance(told, (ChatError, OSError)):
                        self._met["a defect"] += 1
                else:
                    future.set_result(told)
            self._pump(lane)

        if not lane.loop.is_killed:
            lane.loop.call_later(seconds, learn)

    def _went_away(self, job: _Job, since: float) -> bool:
        about = job.lane.machine, job.what == "beat"
        return any(since <= at and _concerns(event, *about) for at, _, event in self._away)

    def _until(self, machine: int, *, beats: bool) -> float | None:
        """Return until when a machine cannot use the database; None if it can."""
        now = self._world.now
        ends = [
            end
            for at, end, event in self._away
            if at <= now < end and _concerns(event, machine, beats)
        ]
        return max(ends, default=None)


def _concerns(event: Away, machine: int, beats: bool) -> bool:
    return event.machine in (-1, machine) and (beats or not event.beats)
