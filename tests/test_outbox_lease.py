"""Who sends for which business: one worker at a time, also when workers die, pause and return."""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import AsyncIterator, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, insert, select

from yamarket_chat import Pending
from yamarket_chat._limits.clock import Clock
from yamarket_chat.outbox import (
    Outbox,
    OutboxDatabaseError,
    OutboxMessage,
    claims,
    lease,
    locks,
    shares,
)
from yamarket_chat.outbox.checkpoint import Passage
from yamarket_chat.outbox.deaths import Beat, Moment, Watcher
from yamarket_chat.outbox.grant import Grant
from yamarket_chat.outbox.lease import Worker
from yamarket_chat.outbox.marks import Mark
from yamarket_chat.outbox.schema import leases, workers

LEASE = 30.0
LOOK = LEASE / 6


class Recorder:
    """A courier that sends nothing, and knows what it might send."""

    worker: Worker

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

    async def worker(
        self, businesses: Collection[int] | None = None, seconds: float = LEASE
    ) -> Recorder:
        courier = Recorder()
        courier.worker = Worker(self.database, courier, lease=seconds, businesses=businesses)
        await courier.worker.join()
        self.workers.append(courier.worker)
        return courier

    async def sold(self, business_ids: Collection[int]) -> None:
        await self.outbox.put_many(OutboxMessage(one, 17, "Заказ собран") for one in business_ids)

    async def settled(self, *couriers: Recorder) -> list[int]:
        """Wait until nothing moves; return how many businesses each has."""
        await asyncio.sleep(LEASE)
        return [len(courier.grants) for courier in couriers]


async def die(worker: Worker, lock: bool = True) -> None:
    """End a worker as `kill -9` does; `lock`: also free what the system frees."""
    for task in worker._tasks:
        task.cancel()
    worker._tasks = []
    if lock and worker._lock is not None:
        os.close(worker._lock._file)
        worker._lock = None


@pytest.fixture(autouse=True)
def _few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look each 5 s, so that a test that takes minutes of virtual time is cheap."""
    monkeypatch.setattr(lease, "LOOK", LOOK)


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
    one = await shop.worker()
    assert sorted(one.grants) == list(range(1, 11))
    two = await shop.worker()
    three = await shop.worker()
    assert sorted(await shop.settled(one, two, three)) == [3, 3, 4]
    assert sorted([*one.grants, *two.grants, *three.grants]) == list(range(1, 11))
    await two.worker.leave()
    await asyncio.sleep(LOOK + 1)
    assert sorted(await shop.settled(one, three)) == [5, 5]
    await three.worker.leave()
    assert await shop.settled(one) == [10]
    assert not one.lost


async def test_dead_worker_is_taken_over_when_its_beat_stood_still_for_its_lease(
    shop: Shop,
) -> None:
    await shop.sold(range(1, 5))
    one = await shop.worker()
    two = await shop.worker()
    await shop.settled(one, two)
    epochs = {number: grant.epoch for number, grant in one.grants.items()}
    await die(one.worker, lock=False)
    left = one.worker.beat_age()
    loop = asyncio.get_running_loop()
    died = loop.time()
    while len(two.grants) < 4:
        await asyncio.sleep(1)
        # A read that fails, because the machine is busy, begins the count anew.
        assert loop.time() < died + 40 + LEASE
    assert left + loop.time() - died >= LEASE
    for number, epoch in epochs.items():
        grant = two.grants[number]
        assert grant.epoch == epoch + 1
        assert not grant.proven
        assert grant.settle_wait(4, 3) == 14  # the kernel of a paused process sends on for 11 s
        assert grant.settle_wait(60, 3) == 63


async def test_lock_of_the_system_proves_a_death_at_once(tmp_path: Any) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()
        shop = Shop(outbox)
        await shop.sold(range(1, 5))
        one = await shop.worker()
        two = await shop.worker()
        await shop.settled(one, two)
        await die(one.worker)
        await asyncio.sleep(LOOK + 1)
        assert len(two.grants) == 4
        assert [two.grants[number].settle_wait(4, 3) for number in one.grants] == [3, 3]
        await two.worker.leave()
        assert [path.name for path in tmp_path.iterdir() if "worker" in path.name] == []


async def test_locks_that_nobody_holds_any_more_are_removed(tmp_path: Any) -> None:
    database = str(tmp_path / "outbox.db")
    held, left = locks.Lock(database), locks.Lock(database)
    os.close(left._file)
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    new = locks.Lock(database)
    assert {path.name for path in tmp_path.iterdir()} == {held.name, new.name}
    held.free()
    new.free()


async def test_paused_worker_stops_before_others_begin_and_joins_anew(shop: Shop) -> None:
    await shop.sold(range(1, 5))
    one = await shop.worker()
    two = await shop.worker()
    await shop.settled(one, two)
    old, token = dict(one.grants), one.worker.token
    async with contextlib.AsyncExitStack() as paused:
        for working in one.worker._working:
            await paused.enter_async_context(working)
        while len(two.grants) < 4:
            assert not one.lost
            age = one.worker.beat_age()
            await asyncio.sleep(1)
        # What could still leave under the old leases was over long before.
        assert age >= LEASE > one.worker.lease * lease.TRUST + LEASE / 6
    await asyncio.sleep(LOOK + 1)
    assert set(one.lost) == set(old.values())
    assert all(grant.over for grant in old.values())
    assert one.worker.token != token
    assert one.worker.beat_age() < 5
    assert await shop.settled(one, two) == [2, 2]
    assert not two.lost


async def test_business_is_given_away_when_nothing_of_it_is_under_way(shop: Shop) -> None:
    await shop.sold(range(1, 5))
    one = await shop.worker()
    one.busy = {number: asyncio.Event() for number in (3, 4)}  # it is asked for 1 and 3, or 2 and 4
    two = await shop.worker()
    await asyncio.sleep(60)
    assert (len(one.grants), len(two.grants)) == (3, 1)
    for under_way in one.busy.values():
        under_way.set()
    assert await shop.settled(one, two) == [2, 2]
    assert not one.lost


async def test_business_that_nobody_took_is_granted_again(shop: Shop) -> None:
    await shop.sold([1, 2])
    one = await shop.worker()
    one.busy = {1: asyncio.Event(), 2: asyncio.Event()}
    two = await shop.worker()
    await asyncio.sleep(5)
    await two.worker.leave()
    for under_way in one.busy.values():
        under_way.set()
    await asyncio.sleep(LOOK + 1)
    assert sorted(one.grants) == [1, 2]
    assert all(not grant.over for grant in one.grants.values())


async def test_grant_of_a_business_that_went_and_came_back_marks_nothing(shop: Shop) -> None:
    await shop.sold([1, 2])
    one = await shop.worker()
    old = dict(one.grants)
    two = await shop.worker()
    await shop.settled(one, two)
    (moved,) = two.grants
    await two.worker.leave()
    await shop.settled(one)

    def holds(grant: Grant, **changes: Any) -> Any:
        fields = {"token": grant.token, "epoch": grant.epoch, **changes}
        condition = claims.bears(grant.business_id, **fields)
        return shop.database.read(lambda connection: connection.scalar(select(condition)))

    new = one.grants[moved]
    assert new.token == old[moved].token  # so the token alone would not tell the two apart
    assert await holds(new)
    assert not await holds(old[moved])
    assert await holds(old[3 - moved])
    assert not await holds(new, token="other")


async def test_worker_serves_its_businesses_only(shop: Shop) -> None:
    keys = {1: "a", 2: "b", 3: "c", 4: "d"}
    one = await shop.worker(keys.keys())
    two = await shop.worker([3, 4, 5, 6])
    assert sorted(await shop.settled(one, two)) == [3, 3]
    assert {1, 2} <= set(one.grants)
    assert {5, 6} <= set(two.grants)
    # The others serve none of these, so there is nobody to share them with.
    three = await shop.worker([7, 8, 9, 10, 11, 12, 13])
    assert await shop.settled(one, two, three) == [3, 3, 7]
    keys[14] = "e"
    del keys[1]
    assert await shop.settled(one, two, three) == [3, 3, 7]
    assert 14 in one.grants
    assert 1 not in one.grants
    assert not [*one.lost, *two.lost, *three.lost]
    await two.worker.leave()
    assert await shop.settled(one, three) == [4, 7]


async def test_new_business_is_found_by_its_first_message(shop: Shop) -> None:
    courier = await shop.worker()
    assert not courier.grants
    await shop.sold([7, 8])
    await asyncio.sleep(LOOK + 1)
    assert sorted(courier.grants) == [7, 8]


async def test_worker_is_not_dead_while_nobody_can_write(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was away, for all of them. Nobody takes anybody over when it is back."""
    await shop.sold(range(1, 5))
    one = await shop.worker()
    two = await shop.worker()
    await shop.settled(one, two)

    async def away(*_: Any) -> Any:
        raise OutboxDatabaseError("it is away", retry_after=1.0)

    for courier in (one, two):
        monkeypatch.setattr(courier.worker._beating, "write", away)
    await asyncio.sleep(100)
    assert (len(one.grants), len(two.grants)) == (2, 2)
    for courier in (one, two):
        assert courier.worker.beat_age() > 90  # so neither has sent anything
        monkeypatch.delattr(courier.worker._beating, "write")
    await asyncio.sleep(100)
    assert (len(one.grants), len(two.grants)) == (2, 2)
    assert not one.lost
    assert not two.lost


async def test_beat_whose_success_was_not_learnt_is_no_loss(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    courier = await shop.worker([1])
    write, fails = courier.worker._beating.write, 3

    async def unlearnt(*args: Any) -> Any:
        nonlocal fails
        result = await write(*args)
        if fails:
            fails -= 1
            raise OutboxDatabaseError("the connection broke", sent=None)
        return result

    monkeypatch.setattr(courier.worker._beating, "write", unlearnt)
    await asyncio.sleep(30)
    assert fails == 0
    assert not courier.lost
    assert courier.worker.beat_age() < 6


async def test_age_of_a_beat_counts_from_before_its_commit_and_while_the_machine_sleeps(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    courier = await shop.worker([1])
    write = courier.worker._beating.write

    async def slow(*args: Any) -> Any:
        result = await write(*args)
        await asyncio.sleep(9)
        return result

    monkeypatch.setattr(courier.worker._beating, "write", slow)
    await asyncio.sleep(5 + 9.5)
    assert 9 < courier.worker.beat_age() < 10
    loop: Any = asyncio.get_running_loop()
    loop.slept += 1000
    assert courier.worker.beat_age() > 1000
    monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_forked_child_holds_nothing(shop: Shop) -> None:
    courier = await shop.worker([1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
        child = os.fork()
    if child == 0:
        code = 0
        try:
            code = 7 if courier.worker.beat_age() == float("inf") else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert courier.worker.beat_age() < LOOK


async def test_copy_of_a_worker_does_not_beat_beside_it(shop: Shop) -> None:
    """A machine was copied while it ran: both have the same token, and one of them must stop."""
    courier = await shop.worker([1])
    worker = courier.worker
    await asyncio.sleep(1)
    assert await shop.database.write(claims.beat, worker.token, worker._beat, worker._beat)
    await asyncio.sleep(LOOK + 1)
    assert len(courier.lost) == 1


async def test_leases_of_a_worker_that_is_gone_are_free(shop: Shop) -> None:
    """It claimed them while it was taken over: its commit came last."""
    courier = await shop.worker([1])
    await shop.sold([2])

    def orphan(connection: Connection) -> None:
        connection.execute(insert(leases).values(business_id=2, worker="gone", epoch=7))

    await shop.database.write(orphan)
    courier.worker._businesses = [1, 2]
    await shop.settled(courier)
    assert courier.grants[2].epoch == 8


async def test_locked_rows_are_left_for_the_next_round(postgres_url: Any) -> None:
    async with Outbox(postgres_url) as outbox:
        await outbox.create()
        shop = Shop(outbox)
        await shop.sold(range(1, 5))
        one = await shop.worker()
        two = await shop.worker()
        await shop.settled(one, two)
        engine = create_engine(postgres_url)
        with engine.begin() as connection:
            mine = next(iter(one.grants))
            connection.execute(
                select(leases).where(leases.c.business_id == mine).with_for_update()
            ).all()
            await die(one.worker)
            await asyncio.sleep(40)
            assert len(two.grants) == 3
            connection.execute(
                select(workers).where(workers.c.token == two.worker.token).with_for_update()
            )
        await asyncio.sleep(6)
        assert len(two.grants) == 4
        engine.dispose()
        await two.worker.leave()


async def test_worker_that_beats_at_the_last_moment_is_not_taken_over(shop: Shop) -> None:
    one = await shop.worker([1])
    (before,) = await shop.database.read(claims.beats)
    await asyncio.sleep(LOOK + 1)
    taken = await shop.database.write(claims.take_over, "other", before, False, lambda _: True)
    assert taken is None
    await asyncio.sleep(LOOK + 1)
    assert not one.lost


# The count of a watcher


class Watch:
    """A watcher, and the two clocks of its machine."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.own = self.slept = 0.0

    def read(self, beat: int, *, token: str = "a", after: float = 5.0, asleep: float = 0.0) -> bool:  # noqa: S107
        self.own += after - asleep
        self.slept += asleep
        now = Moment(self.own, self.own + self.slept)
        return bool(self.watcher.read([Beat(token, beat, LEASE)], now, now))


def test_business_is_kept_if_giving_it_would_only_swap_the_roles() -> None:
    """Those who ask have counted before others gave them some."""
    wanted = [(1, "a"), (2, "a"), (3, "gone"), (4, "b")]
    assert shares.gives(5, {"a": 3, "b": 4}, wanted) == ([(1, "a")], [2, 3, 4])
    assert shares.gives(3, {"a": 2, "b": 3}, wanted) == ([], [1, 2, 3, 4])


def test_beat_that_changes_is_alive() -> None:
    watch = Watch()
    assert not any(watch.read(n // 5) for n in range(100))
    assert [watch.read(20) for _ in range(7)] == [False] * 6 + [True]


def test_reads_that_failed_or_are_far_apart_begin_the_count_anew() -> None:
    watch = Watch()
    for interrupt in (
        watch.watcher.begin_anew,
        lambda: watch.read(1, after=LEASE / 3 + 1),
        lambda: watch.read(1, after=LEASE / 3 + 1, asleep=LEASE / 3 + 1),
    ):
        watch.watcher.begin_anew()
        assert not any(watch.read(1) for _ in range(6))
        interrupt()
        assert not any(watch.read(1) for _ in range(5))
        assert any(watch.read(1) for _ in range(2))


def test_count_belongs_to_one_token() -> None:
    watch = Watch()
    assert not any(watch.read(1) for _ in range(6))
    assert not any(watch.read(1, token="b") for _ in range(6))
    assert watch.read(1, token="b")


def test_beat_began_before_it_or_a_later_one_was_first_seen() -> None:
    watcher = Watcher()
    assert watcher.seen_at("a", 0) is None
    for at, beat in ((10.0, 2), (11.0, 2), (12.0, 5)):
        watcher.note([Beat("a", beat, LEASE), Beat("b", 9, LEASE)], Moment(at, at + 100.0))
        watcher.begin_anew()  # a read that failed
    assert [watcher.seen_at("a", beat) for beat in range(7)] == [10.0] * 3 + [12.0] * 3 + [None]
    watcher.note([], Moment(600.0, 700.0))
    assert (watcher.seen_at("a", 5), watcher.seen_at("b", 9)) == (12.0, 10.0)
    watcher.note([], Moment(611.0, 711.0))  # "b" is gone for ten minutes
    assert (watcher.seen_at("a", 5), watcher.seen_at("b", 9)) == (12.0, None)


@pytest.mark.parametrize("operation", ["send_message", "send_file"])
async def test_last_byte_leaves_within_the_time_that_the_mark_names(operation: str) -> None:
    """Whoever takes over counts from the mark how long it may be under way."""
    row: Any = SimpleNamespace(not_after=None, request=0, number=1, operation=operation)
    grant = Grant(1, "a", 1, 0.0, False, 0.0, lambda token, beat: None)
    worker: Any = SimpleNamespace(lease=LEASE, beat=7, beat_age=lambda: 2.0)
    written: list[Mark] = []

    async def mark(one: Mark) -> None:
        written.append(one)

    writer: Any = SimpleNamespace(mark=mark)
    pending = Pending(business_id=1, chat_id=17, text="Привет", requests=1, seen="")
    passage = Passage(row, grant, worker, writer, lambda: Clock(0.0, 0.0), 15.0, 15.0)
    assert await passage.mark(pending) is None
    assert (written[0].token, written[0].beat) == ("a", 7)
    leaves_within = LEASE / 6 if operation == "send_message" else 15.0
    assert written[0].arrives_within == 2.0 + leaves_within + 11.0
    await asyncio.sleep(leaves_within - 0.1)
    assert passage.look(again=True) is None
    await asyncio.sleep(0.1)
    assert passage.look(again=True) is not None


# The shares


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.randoms())
def test_asking_and_giving_end_in_even_shares(counts: list[int], chance: Any) -> None:
    have = {str(number): count for number, count in enumerate(counts)}
    for _ in range(20):
        order = list(have)
        chance.shuffle(order)
        asked = [
            (holder, me)
            for me in order
            for holder, count in shares.asks(me, have).items()
            for _ in range(count)
        ]
        for holder in order:
            wanted = [(number, me) for number, (one, me) in enumerate(asked) if one == holder]
            others = {one: count for one, count in have.items() if one != holder}
            given, _ = shares.gives(have[holder], others, wanted)
            for _, me in given:
                have[holder] -= 1
                have[me] += 1
        if not asked:
            break
    assert not asked
    assert max(have.values()) - min(have.values()) <= 1
    assert sum(have.values()) == sum(counts)
