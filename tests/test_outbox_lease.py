"""Who sends for which business: one worker at a time, also when workers die, pause and return."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from yamarket_chat.outbox import Outbox, OutboxMessage
from yamarket_chat.outbox.lease import Grant, Worker
from yamarket_chat.outbox.schema import leases, workers

LEASE = 30.0


class Recorder:
    """A courier that sends nothing, and knows what it might send."""

    def __init__(self) -> None:
        self.grants: dict[int, Grant] = {}
        self.lost: list[Grant] = []
        self.busy: dict[int, asyncio.Event] = {}  # what is under way: until the event is set

    def granted(self, grant: Grant) -> None:
        self.grants[grant.business_id] = grant

    async def release(self, grant: Grant) -> None:
        if grant.business_id in self.busy:
            await self.busy[grant.business_id].wait()
        del self.grants[grant.business_id]

    def over(self, grants: Sequence[Grant]) -> None:
        self.lost += grants
        for grant in grants:
            self.grants.pop(grant.business_id, None)


class Shop:
    """An outbox, and the workers of a test."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.database = outbox._database
        self.workers: list[Worker] = []

    async def worker(self, businesses: Collection[int] | None = None, lease: float = LEASE) -> Any:
        courier = Recorder()
        worker = Worker(self.database, courier, lease=lease, businesses=businesses)
        await worker.join()
        self.workers.append(worker)
        return worker, courier

    async def sold(self, business_ids: Collection[int]) -> None:
        await self.outbox.put_many(OutboxMessage(one, 17, "Заказ собран") for one in business_ids)

    async def settled(self, *couriers: Recorder) -> list[int]:
        """Wait until nothing moves; return how many businesses each has."""
        await asyncio.sleep(2 * LEASE / 3)
        return [len(courier.grants) for courier in couriers]


async def die(worker: Worker, lock: bool = True) -> None:
    """End a worker as `kill -9` does; `lock`: also free what the system frees."""
    for task in worker._tasks:
        task.cancel()
    worker._tasks = []
    if lock and worker._lock is not None:
        worker._lock.free()
        worker._lock = None


@pytest.fixture
async def shop(database_url: Any) -> AsyncIterator[Shop]:
    async with Outbox(database_url) as outbox:
        await outbox.create()
        made = Shop(outbox)
        yield made
        for worker in made.workers:
            await worker.leave()


async def test_businesses_are_spread_evenly_and_move_when_workers_come_and_go(shop: Shop) -> None:
    await shop.sold(range(1, 11))
    first, one = await shop.worker()
    assert sorted(one.grants) == list(range(1, 11))
    second, two = await shop.worker()
    third, three = await shop.worker()
    assert sorted(await shop.settled(one, two, three)) == [3, 3, 4]
    assert sorted([*one.grants, *two.grants, *three.grants]) == list(range(1, 11))
    await second.leave()
    await asyncio.sleep(2)
    assert sorted(await shop.settled(one, three)) == [5, 5]
    await third.leave()
    assert await shop.settled(one) == [10]
    assert not one.lost
