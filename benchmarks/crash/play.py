"""A run: programs put messages, workers deliver them, and are killed, paused and stopped."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from yamarket_chat.outbox import Outbox, OutboxDatabaseError, OutboxFile, OutboxMessage
from yamarket_chat.outbox.points import NAMES
from yamarket_chat.sandbox import Sandbox, random_faults
from yamarket_chat.sandbox.faults import EVERY_FAULT

from ..processes import forked
from .judge import FINAL, Message, Verdict, judge
from .servers import Postgres
from .worker import Plan, run

Put = OutboxMessage | OutboxFile

API_KEY = "ACMA:crash:key"
FAULTS = [fault for fault in EVERY_FAULT if fault.kind not in ("rate_limit", "parallel_limit")]

# What happens to the workers, and how often in comparison.
BLOWS = {
    "kill one": 30, "kill all": 10, "kill at a point": 35, "pause": 6, "pause at a point": 8,
    "stop": 15,
}  # fmt: skip
PAUSES = (0.2, 0.5, 1.0, 3.0, 10.0)
"""Seconds between two of them, about."""

LONGEST_LEFT = 300.0
"""Seconds after the last one in which everything must have ended."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much happens in a run."""

    kills: int
    seed: int
    lease: float = 3.0
    businesses: int = 6
    chats: int = 16
    rate: float = 1.5  # messages a second for each business
    most: int = 800  # messages of a business: the Market takes 1,000 requests an hour
    faults: float = 0.03
    restarts: int = 0  # of the server
    outage: float = 0.0  # seconds without a network to it
    timeout: float = 5.0
    settle_after: float = 10.0
    blows: Mapping[str, int] = MappingProxyType(BLOWS)
    pauses: float = 1.0  # how long they are between what happens, in comparison


class Crash:
    """A run."""

    _points: Sequence[str] = NAMES
    _patience = 10.0  # seconds in which a process must reach its point
    _run: Callable[[Any], None] = staticmethod(run)

    def __init__(
        self,
        size: Size,
        url: str,
        folder: Path,
        server: Postgres | None,
        say: Callable[[str], None],
    ) -> None:
        self._size = size
        self._url = url
        self._folder = folder
        self._server = server
        self._say = say
        self._chance = random.Random(size.seed)
        self._workers: list[BaseProcess] = []
        self._names = iter(range(1, 1_000_000))
        self._paused: set[int] = set()
        self._markets: dict[int, Sandbox] = {}
        self._messages: dict[int, Message] = {}
        self._blows: Counter[str] = Counter()
        self._wanted = self._how_many()
        self._producing = True

    async def play(self) -> Verdict:
        """Play it, and judge what came of it."""
        size = self._size
        async with AsyncExitStack() as stack:
            for business_id in range(1, size.businesses + 1):
                box = Sandbox(
                    api_key=API_KEY,
                    business_id=business_id,
                    chats="any",
                    latency=self._latency,
                    faults=random_faults(size.faults, size.seed + business_id, kinds=FAULTS),
                )
                self._markets[business_id] = await stack.enter_async_context(box)
            outbox = await stack.enter_async_context(Outbox(self._url))
            await outbox.create()
            began = time.monotonic()
            try:
                self._fill_up()
                async with asyncio.TaskGroup() as group:
                    producing = [
                        group.create_task(self._produce(outbox, business_id))
                        for business_id in self._markets
                    ]
                    if self._server is not None:
                        group.create_task(self._trouble_of_the_server())
                    await self._strike()
                    self._producing = False
                    await asyncio.wait(producing)
                    self._say("the last messages are put: waiting for their ends")
                    await self._ends(outbox)
                if size.faults:
                    await asyncio.sleep(12)  # what the sandboxes carry out late must be there
            finally:
                await self._stop_all()
            verdict = self._judged()
            verdict.figures["seconds"] = round(time.monotonic() - began)
            for business_id, market in self._markets.items():
                verdict.figures["420"] = verdict.figures.get("420", 0) + market.refused
                if market.refused:
                    self._say(f"business {business_id} got 420: {market.refusals}")
            verdict.figures |= dict(self._blows)
            return verdict

    def _judged(self) -> Verdict:
        return judge(list(self._messages.values()), self._stored())

    def _how_many(self) -> int:
        """How many workers are wanted."""
        return self._chance.randint(2, 4)

    def _latency(self) -> float:
        return random.uniform(0.02, 0.4)

    # The programs

    async def _produce(self, outbox: Outbox, business_id: int) -> None:
        """Put the messages of a business, one call after another: so their order is known."""
        chance = random.Random(self._size.seed * 1000 + business_id)
        count = 0
        while self._producing and count < self._size.most:
            some: list[Put] = []
            for _ in range(chance.choice((1, 1, 1, 2, 10))):
                count += 1
                some += self._some(business_id, count, chance)
            await self._put(outbox, some, chance)
            await asyncio.sleep(len(some) / self._size.rate * chance.uniform(0.5, 1.5))

    def _some(self, business_id: int, count: int, chance: random.Random) -> Iterator[Put]:
        """Make a message, or two equal ones, one behind the other."""
        chat = chance.randint(1, self._size.chats)
        name = f"{business_id}-{chat}-{count}"
        bulk, expires, kind = chance.random() < 0.3, chance.random() < 0.05, chance.random()
        not_after = datetime.now(UTC) + timedelta(seconds=chance.uniform(0.1, 15))
        for copy in range(2 if chance.random() < 0.1 else 1):
            options: dict[str, Any] = {"key": f"{name}-{copy}", "bulk": bulk}
            if expires:
                options["not_after"] = not_after
            if kind < 0.1:
                content = name.encode() * (count % 50 * 500 + 1)
                yield OutboxFile(business_id, chat, content, filename=f"{name}.pdf", **options)
            elif kind < 0.2:
                yield OutboxMessage.to_order(business_id, chat % 4 + 1, name, **options)
            elif kind < 0.4:  # a long one, which leaves in two parts
                yield OutboxMessage(business_id, chat, f"{name} {'x' * 1_500}", **options)
            else:
                yield OutboxMessage(business_id, chat, name, **options)

    async def _put(self, outbox: Outbox, some: list[Put], chance: random.Random) -> None:
        for attempt in range(1 + (chance.random() < 0.1)):  # some keys are handed over twice
            while True:
                try:
                    if len(some) == 1:
                        numbers = [await outbox.put(some[0])]
                    else:
                        numbers = list(await outbox.put_many(some))
                except OutboxDatabaseError:
                    await asyncio.sleep(0.2)
                else:
                    break
            for number, one in zip(numbers, some, strict=True):
                text = one.text if isinstance(one, OutboxMessage) else str(one.filename)
                # The chat of an order is learnt at the end.
                message = Message(number, int(one.business_id), int(one.chat_id or 0), text)
                known = self._messages.setdefault(number, message)
                if attempt and known.text != text:
                    raise AssertionError(f"the key of {one} gave {number}, which is {known}")
        if chance.random() < 0.05:
            with suppress(OutboxDatabaseError):
                self._messages[numbers[-1]].cancelled = await outbox.cancel(numbers[-1])

    # The workers

    def _start(self, point: str | None = None, action: str = "kill") -> BaseProcess:
        name = f"worker-{next(self._names)}"
        process = forked(self._run, self._plan(name, point, action), name)
        self._workers.append(process)
        return process

    def _plan(self, name: str, point: str | None, action: str) -> Plan:
        return Plan(
            **self._common(name, point, action),
            after=self._chance.choice((1, 1, 2, 5, 20)),
        )

    def _common(self, name: str, point: str | None, action: str) -> dict[str, Any]:
        """What each worker is told."""
        size = self._size
        return {
            "name": name,
            "database": self._url,
            "markets": {number: box.url for number, box in self._markets.items()},
            "api_key": API_KEY,
            "lease": size.lease,
            "timeout": size.timeout,
            "settle_after": size.settle_after,
            "log": str(self._folder / "workers.log"),
            "point": point,
            "action": action,
        }

    def _fill_up(self) -> None:
        """Start workers until there are as many as wanted, and forget those that have ended."""
        for process in self._workers:
            if not process.is_alive() and process.exitcode not in (
                0,
                -signal.SIGKILL,
                -signal.SIGTERM,
            ):
                self._say(f"{process.name} ended with {process.exitcode}: see workers.log")
        self._workers = [process for process in self._workers if process.is_alive()]
        while len(self._running()) < self._wanted:
            self._start()

    def _running(self) -> list[BaseProcess]:
        return [p for p in self._workers if p.is_alive() and p.pid not in self._paused]

    async def _strike(self) -> None:
        """Kill, pause and stop workers, until so many kills have happened."""
        points = list(self._points)
        kinds, weights = list(self._size.blows), list(self._size.blows.values())
        kills = 0
        async with asyncio.TaskGroup() as group:
            while kills < self._size.kills:
                pause = self._chance.choice(PAUSES) * self._chance.uniform(0.5, 1.5)
                await asyncio.sleep(pause * self._size.lease / 3.0 * self._size.pauses)
                self._fill_up()
                if self._chance.random() < 0.1:
                    self._wanted = self._how_many()
                kind = self._next_kind(kills) or self._chance.choices(kinds, weights)[0]
                running = self._running()
                victim = self._chance.choice(running)
                if kind == "kill one":
                    victim.kill()
                elif kind == "kill all":
                    for process in self._workers:
                        process.kill()
                elif kind == "stop":
                    victim.terminate()
                elif kind == "pause":
                    group.create_task(self._pause(victim))
                else:
                    # Another one takes its place first: then it has something to do.
                    point = self._next_point(points, kind)
                    points.remove(point)
                    points.append(point)
                    kind = f"{kind.removesuffix(' at a point')} at: {point}"
                    if not await self._at(point, kind.split()[0], group):
                        continue
                self._blows[kind] += 1
                if kind.startswith("kill"):
                    kills += 1
                    self._blows["kills"] = kills
                self._say(f"{kills} of {self._size.kills} kills: {kind}")

    def _next_kind(self, kills: int) -> str | None:
        """Return what must happen next; None leaves it to chance."""
        return None

    def _next_point(self, points: Sequence[str], kind: str) -> str:
        return points[0]

    async def _at(self, point: str, action: str, group: asyncio.TaskGroup) -> bool:
        """Replace the workers by one that ends or stops at a point; return whether it did."""
        leaving = self._running()
        process = self._start(point, action)
        for other in leaving[: max(1, len(leaving) - 1)]:
            other.terminate()
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            if not process.is_alive():
                return True
            if _is_stopped(process):
                group.create_task(self._pause(process))
                return True
            # Nobody asks for a business: it hands over when it is stopped.
            if point == "handing over" and time.monotonic() > deadline - self._patience * 0.8:
                process.terminate()
        process.kill()  # or it stops itself later, perhaps for ever, and holds SQLite's lock
        return False

    async def _pause(self, process: BaseProcess) -> None:
        """Let a process stand still beyond the time in which it is taken over from."""
        pid = process.pid
        assert pid is not None
        self._paused.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._fill_up()
            await asyncio.sleep(self._size.lease * 1.4 + self._chance.uniform(0, 6))
            os.kill(pid, signal.SIGCONT)
        self._paused.discard(pid)

    async def _trouble_of_the_server(self) -> None:
        assert self._server is not None
        left, began = self._size.restarts, not self._size.outage
        while self._producing and (left or not began):
            await asyncio.sleep(self._chance.uniform(5, 15))
            if left:
                left -= 1
                self._say("the server dies, and starts again")
                await asyncio.to_thread(self._server.kill)
                await asyncio.sleep(self._chance.uniform(0, 4))
                await asyncio.to_thread(self._server.start)
                self._blows["restarts"] += 1
            else:
                began = True
                self._say(f"the network to the server is gone for {self._size.outage:g} s")
                self._server.network(False)
                await asyncio.sleep(self._size.outage)
                self._server.network(True)
                self._blows["outages"] += 1

    # The end

    async def _ends(self, outbox: Outbox) -> None:
        """Wait until all messages have ended, and note how."""
        left = {number for number, one in self._messages.items() if one.state not in FINAL}
        deadline = time.monotonic() + LONGEST_LEFT
        while left and time.monotonic() < deadline:
            self._fill_up()
            for number in sorted(left):
                try:
                    entry = await outbox.get(number)
                except OutboxDatabaseError:
                    break
                assert entry is not None
                message = self._messages[number]
                message.state, message.requests = entry.state, entry.requests
                message.chat_id = entry.chat_id or 0
                message.error = "" if entry.error is None else repr(entry.error)
                if entry.state in FINAL:
                    left.discard(number)
            await asyncio.sleep(1)

    async def _stop_all(self) -> None:
        for process in self._workers:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + 20
        while any(process.is_alive() for process in self._workers):
            await asyncio.sleep(0.05)
            if time.monotonic() > deadline:
                for process in self._workers:
                    self._say(f"{process.name} does not stop: it is killed")
                    process.kill()
                break
        for process in self._workers:
            process.join()

    def _stored(self) -> dict[tuple[int, int], list[str]]:
        return dict(self._rows())

    def _rows(self) -> Iterator[tuple[tuple[int, int], list[str]]]:
        for business_id, box in self._markets.items():
            for chat_id in box.chat_ids:
                yield (
                    (business_id, chat_id),
                    [row.text or row.payload[0].name for row in box.messages(chat_id)],
                )


def _is_stopped(process: BaseProcess) -> bool:
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[0] == "T"
    return False
