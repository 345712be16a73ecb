"""A run: buyers write, the Market tells of it or not, and the bot's processes die."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from types import MappingProxyType

from benchmarks.crash.judge import Verdict
from benchmarks.crash.play import API_KEY, LONGEST_LEFT, Crash, Size
from yamarket_chat.bot.points import NAMES as BOT_POINTS
from yamarket_chat.outbox import Outbox, OutboxDatabaseError
from yamarket_chat.outbox.points import NAMES
from yamarket_chat.sandbox import NotificationInfo

from .judge import judge
from .worker import KILLER, BotPlan, run

BLOWS = MappingProxyType({"kill one": 35, "kill all": 10, "kill at a point": 40, "stop": 15})


class BotCrash(Crash):
    """A run."""

    # A try is given back only if a handler outlives the grace of a stop.
    _points = tuple(point for point in (*BOT_POINTS, *NAMES) if point != "giving back")
    _worker = f"{__package__}.worker"
    workers: Sequence[int] = (1, 2)
    killers = 1
    least = 20  # messages of each business, also if all kills have happened

    async def play(self) -> Verdict:
        """Play it, and judge what came of it."""
        # Each process listens there, as behind a load balancer. A dead one refuses.
        with socket.socket() as self._kept:
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._kept.bind(("127.0.0.1", 0))
            self._unknown = 0
            self._told = random.Random(self._size.seed)
            self._begun = asyncio.Event()
            return await super().play()

    def _how_many(self) -> int:
        return self._chance.choice(self.workers)

    def _start(self, point: str | None = None, action: str = "kill") -> BaseProcess:
        size, name = self._size, f"worker-{next(self._names)}"
        plan = BotPlan(
            name=name,
            database=self._url,
            markets={number: box.url for number, box in self._markets.items()},
            api_key=API_KEY,
            lease=size.lease,
            timeout=size.timeout,
            settle_after=size.settle_after,
            log=str(self._folder / "workers.log"),
            point=point,
            action=action,
            after=1 if point == "begun" else self._chance.choice((1, 1, 2, 5)),
            port=self._kept.getsockname()[1],
        )
        process = self._context.Process(target=run, args=(plan,), name=name, daemon=True)
        process.start()
        self._workers.append(process)
        return process

    async def _strike(self) -> None:
        await self._begun.wait()
        await super()._strike()

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
            for _ in range(2 if chance.random() < 0.2 and not kills else 1):
                box.buyer_says(chat, text)
            await asyncio.sleep(chance.uniform(0, 2) / self._size.rate)

    def _tells(self, notification: NotificationInfo) -> Sequence[float]:
        """Tell of a message never, once or three times, late and out of order."""
        times = self._told.choice((0, 1, 1, 3))
        return [self._told.choice((0, 1, 10)) * self._told.random() for _ in range(times)]

    async def _ends(self, outbox: Outbox) -> None:
        """Wait until all is answered, and nothing is to be sent."""
        deadline = time.monotonic() + LONGEST_LEFT
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline:
            self._fill_up()
            await asyncio.sleep(1)
            try:
                status = await outbox.status()
            except OutboxDatabaseError:
                continue
            try:
                unknown = [one async for one in outbox.entries(state="unknown")]
            except OutboxDatabaseError:
                continue
            self._unknown = len(unknown)
            done = not self._judged().problems and not status.waiting and not status.leaving
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


async def _has_begun(outbox: Outbox, business_id: int) -> bool:
    from yamarket_chat.bot import Bot

    bot = Bot(outbox, {business_id: API_KEY})
    try:
        return any(one.business_id == business_id for one in await bot.status())
    except OutboxDatabaseError:
        return False


SIZE = Size(
    kills=50,
    seed=1,
    businesses=2,
    chats=8,
    rate=0.7,
    most=300,  # with their replies: the Market takes 1,000 an hour
    blows=BLOWS,
)
