"""A run: buyers write, the Market tells of it or not, and the bot's processes die."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import MappingProxyType

from benchmarks.crash.judge import Verdict
from benchmarks.crash.play import API_KEY, Crash, Size
from yamarket_chat.bot import Bot
from yamarket_chat.bot.points import NAMES as BOT_POINTS
from yamarket_chat.outbox import Outbox, OutboxDatabaseError
from yamarket_chat.outbox.points import NAMES
from yamarket_chat.sandbox import NotificationInfo

from .judge import judge
from .worker import KILLER, SILENT, BotPlan, run

BLOWS = MappingProxyType(
    {
        "kill one": 28, "kill all": 8, "kill at a point": 36, "pause": 7, "pause at a point": 7,
        "stop": 14,
    }
)  # fmt: skip

POINTS = (*BOT_POINTS, *NAMES)
GIVING_BACK = "giving back"

PATIENCE = 20.0
"""Seconds in which a process must reach its point."""

PATIENT_LEFT = 900.0
"""Seconds after the last kill in which all must be answered. Two messages kill 15 processes."""

FAILURES = 4
"""How often a point that no process reaches in time is preferred to others."""


class BotCrash(Crash):
    """A run."""

    _points = POINTS
    _patience = PATIENCE
    _run = staticmethod(run)
    workers: Sequence[int] = (1, 2)
    killers = 1  # businesses with a message whose handler kills its process each time
    silent = 2  # the first one with a message whose error handler does so as well
    least = 20  # messages of each business, also if all kills have happened

    async def play(self) -> Verdict:
        """Play it, and judge what came of it."""
        # Each process listens there, as behind a load balancer. A dead one refuses.
        with socket.socket() as self._kept:
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._kept.bind(("127.0.0.1", 0))
            self._unknown = 0
            self._tried: Counter[str] = Counter()
            self._told = random.Random(self._size.seed)
            self._begun = asyncio.Event()
            return await super().play()

    def _how_many(self) -> int:
        return self._chance.choice(self.workers)

    def _plan(self, name: str, point: str | None, action: str) -> BotPlan:
        slow, first = point == GIVING_BACK, action == "kill" and point in self.missed()
        return BotPlan(
            **self._common(name, point, action),
            after=1 if first or point == "begun" else self._chance.choice((1, 1, 2, 5)),
            port=self._kept.getsockname()[1],
            at_work=str(self._folder / f"{name} is at work") if slow else "",
        )

    async def _strike(self) -> None:
        await self._begun.wait()
        await super()._strike()

    def missed(self) -> list[str]:
        """Return the points at which no process was killed."""
        return [point for point in self._points if not self._blows[f"kill at: {point}"]]

    def _next_kind(self, kills: int) -> str | None:
        """Leave enough kills to the points that were not reached yet."""
        if "kill at a point" not in self._size.blows:
            return None
        open_ = [point for point in self.missed() if self._tried[point] < FAILURES]
        return "kill at a point" if open_ and len(open_) >= self._size.kills - kills else None

    def _next_point(self, points: Sequence[str], kind: str) -> str:
        missed, point = self.missed(), points[0]
        if kind.startswith("kill"):
            first = [one for one in points if one in missed and self._tried[one] < FAILURES]
            point = next(iter(first), point)
        elif point == GIVING_BACK:
            point = points[1]  # a paused process gives back, and needs no pause there
        return point

    async def _at(self, point: str, action: str, group: asyncio.TaskGroup) -> bool:
        self._tried[point] += 1
        if point != GIVING_BACK:
            return await super()._at(point, action, group)
        # It loses its lease while its handler is at work.
        leaving = self._running()
        process = self._start(point, action)
        for other in leaving:
            other.terminate()
        at_work = self._folder / f"{process.name} is at work"
        if not await _within(PATIENCE, lambda: at_work.exists() or not process.is_alive()):
            process.terminate()
            return False
        if process.is_alive():
            await self._pause(process)
        if await _within(PATIENCE, lambda: not process.is_alive()):
            return True
        process.terminate()
        return False

    async def _produce(self, outbox: Outbox, business_id: int) -> None:
        """Let the buyers of a business write. Some write the same twice."""
        box, chance = self._markets[business_id], random.Random(self._size.seed * 100 + business_id)
        box.notify(f"http://127.0.0.1:{self._kept.getsockname()[1]}/notification", self._tells)
        while not await _has_begun(outbox, business_id):
            self._fill_up()
            await asyncio.sleep(0.2)
        self._begun.set()
        count = 0
        while (self._producing and count < self._size.most) or count < self.least:
            count += 1
            chat = chance.randint(1, self._size.chats)
            kills = business_id <= self.killers and count == 10
            text = f"{KILLER} {count}" if kills else f"Где заказ {chance.randint(1, 9)}?"
            if business_id == self.silent and count == 10:
                text, kills = f"{SILENT} {count}", True
            for _ in range(2 if chance.random() < 0.2 and not kills else 1):
                box.buyer_says(chat, text)
            await asyncio.sleep(chance.uniform(0, 2) / self._size.rate)

    def _tells(self, notification: NotificationInfo) -> Sequence[float]:
        """Tell of a message never, once or three times, late and out of order."""
        times = self._told.choice((0, 1, 1, 3))
        return [self._told.choice((0, 1, 10)) * self._told.random() for _ in range(times)]

    async def _ends(self, outbox: Outbox) -> None:
        """Wait until all is answered, and nothing is to be sent."""
        deadline = time.monotonic() + PATIENT_LEFT
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline:
            self._fill_up()
            await asyncio.sleep(1)
            try:
                status = await outbox.status()
                unknown = [one async for one in outbox.entries(state="unknown")]
                trying = sum(one.trying for one in await Bot(outbox, {}).status())
            except OutboxDatabaseError:
                continue
            self._unknown = len(unknown)
            open_ = trying + status.waiting + status.leaving
            done = not self._judged().problems and not open_
            quiet = quiet + 1 if done else 0

    def _judged(self) -> Verdict:
        rows = {
            (business_id, chat_id): [
                (row.message_id, row.sender, row.text or "") for row in box.messages(chat_id)
            ]
            for business_id, box in self._markets.items()
            for chat_id in box.chat_ids
        }
        return judge(rows, self._unknown)


async def _within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def _has_begun(outbox: Outbox, business_id: int) -> bool:
    bot = Bot(outbox, {business_id: API_KEY})
    try:
        return any(
            one.business_id == business_id and one.began_at is not None
            for one in await bot.status()
        )
    except OutboxDatabaseError:
        return False


SIZE = Size(
    kills=50,
    seed=1,
    businesses=2,
    chats=24,  # some are quiet for long enough to be noted as looked at
    rate=0.5,  # until the last kill
    pauses=0.7,
    most=300,  # with their replies: the Market takes 1,000 an hour
    blows=BLOWS,
)
