"""Worker: takes part in the delivery, and holds the leases of its businesses.

One worker at a time sends for a business. A worker proves that it lives by counting up its beat. It
trusts its leases only for a part of the time after which others take it for dead, and counts that
time from before the commit of its last beat. So it stops before anybody else begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from ..arguments import is_id
from ..limits import CUT_OFF
from ..version import __version__
from . import claims, points, shares
from .database import Database
from .deaths import Beat, Moment, Watcher
from .errors import OutboxDatabaseError
from .grant import Grant
from .locks import Lock, is_free, remove

logger: logging.Logger = logging.getLogger("yamarket_chat")

T = TypeVar("T")
Outlive = Callable[[Sequence[claims.OtherBot]], Awaitable[Collection[tuple[str, int]]]]

BEATS = 6
"""How often a worker beats within its lease."""

TRUST = 2 / 3
"""The part of the lease for which a worker trusts it after a beat."""

LOOK = 1.0
"""Seconds between two looks at the other workers, or a sixth of the shortest lease if less."""

UNSETTLED = 15.0
"""Seconds after a worker came or went in which each look counts all leases."""


class Courier(Protocol):
    """Who sends under the leases: what a worker tells it."""

    def granted(self, grant: Grant) -> None:
        """Begin with a business. It may be one that was released before, and that nobody took."""

    async def release(self, grant: Grant) -> None:
        """Begin nothing new for a business; return when nothing of it is under way any more."""

    def over(self, grants: Sequence[Grant]) -> None:
        """Send nothing more under these: they are lost. What has left may still be answered."""


class _Release(NamedTuple):
    task: asyncio.Task[None]
    to: str | None  # a worker that asks for it; None if this one does not serve it any more


class Worker:
    """A process that delivers.

    It belongs to the process and the event loop in which it joined. In a forked child it holds
    nothing.

    Args:
        database: The outbox's database. The worker opens another connection for its beats.
        courier: Who sends under the leases.
        lease: Seconds without a beat after which other workers take this one for dead.
        businesses: The businesses that it serves, read anew each sixth of the lease; None serves
            all that have messages.
        bot: The name of the bot that works under the leases, if there is one.
        outlive: Called with the bots of other names that are in the way as it joins. Returns the
            tokens and beats of those that are dead, or raises.
    """

    def __init__(
        self,
        database: Database,
        courier: Courier,
        *,
        lease: float = 30.0,
        businesses: Collection[int] | None = None,
        bot: str | None = None,
        outlive: Outlive | None = None,
    ) -> None:
        self.lease = lease
        self._bot = bot
        self._outlive = outlive
        self.token: str = ""
        self.held: dict[int, Grant] = {}
        self._database = database
        self._courier = courier
        self._businesses = businesses
        # A beat must not wait behind other work, nor for a silent server until its lease is over.
        self._beating = Database(database.url, patience=min(10.0, lease / 3))
        self._pid = 0
        self._lock: Lock | None = None
        self._watcher = Watcher()
        self._tasks: list[asyncio.Task[None]] = []
        self._releases: dict[int, _Release] = {}
        self._wake = asyncio.Event()
        self._working = asyncio.Lock(), asyncio.Lock()  # a beat, a round: held while it works
        self._beat = 0  # the last one whose commit was learnt
        self._unlearnt = 0  # how many were tried since
        self._beaten = Moment(0.0, 0.0)
        self._entered = False
        self._known: set[int] = set()  # businesses that have leases
        self._others: set[str] = set()
        self._shortest = lease  # of all workers
        self._unsettled_until = 0.0
        self._survey_at = 0.0
        self._free_before: set[int] = set()  # what this one serves, at the last count
        self._refused: frozenset[tuple[str, int]] | None = None
        self._away = False

    def beat_age(self) -> float:
        """Return the seconds since the last beat: since before its commit, by the later clock."""
        if not self._entered or os.getpid() != self._pid:
            return float("inf")
        return self._beaten.until(Moment.now())

    @property
    def beat(self) -> int:
        """The number of the beat whose age `beat_age` returns."""
        return self._beat

    async def join(self) -> None:
        """Join the other workers, and hold leases from now on.

        Raises OutboxDatabaseError if the database cannot be used.
        """
        self._pid = os.getpid()
        if self._database.dialect == "sqlite" and self._lock is None:
            taking = asyncio.ensure_future(
                self._database.call(Lock, self._database.url.database or "")
            )
            try:
                self._lock = await asyncio.shield(taking)
            except asyncio.CancelledError:
                taking.add_done_callback(_free)  # its thread goes on
                raise
            except OSError as error:
                logger.warning("the outbox's worker has no lock beside the database: %s", error)
        try:
            await self._enter(self._outlive)
            self._tasks.append(asyncio.create_task(self._keep_beating()))
            await self._round()
        except BaseException:
            await self.leave()
            raise
        self._tasks.append(asyncio.create_task(self._keep_leases()))

    async def leave(self) -> None:
        """Give all leases away, and leave. Stop the courier first.

        If the database is away, the others find out later that this worker is gone.
        """
        if os.getpid() != self._pid:
            return
        try:
            try:
                # A cancelled task leaves its thread at work, and that would commit after the end.
                for working in self._working:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(working.acquire(), self.lease / BEATS)
            finally:
                # Also if this is cancelled: nobody may beat for a program that sends nothing.
                ending = self._cancel_all()
            for task in ending:
                with suppress(asyncio.CancelledError, Exception):
                    await task
            if self._entered:
                points.reach("handing over")
                try:
                    await self._database.write(claims.leave, self.token)
                    self._entered = False
                except OutboxDatabaseError as error:
                    logger.warning("the outbox's worker could not hand over: %s", error)
        finally:
            if self._lock is not None:
                self._lock.free(file_stays=self._entered)
                self._lock = None
            self._entered = False
        await self._beating.close()

    def _cancel_all(self) -> list[asyncio.Task[None]]:
        """Hold nothing any more, and cancel all tasks; return them."""
        ending = [*self._tasks, *(release.task for release in self._releases.values())]
        self._tasks, self._releases = [], {}
        for task in ending:
            task.cancel()
        self._working = asyncio.Lock(), asyncio.Lock()
        for grant in self.held.values():
            grant.over = True
        self.held = {}
        return ending

    # The beat

    async def _keep_beating(self) -> None:
        sixth = self.lease / BEATS
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            pause = sixth
            if self._entered:
                try:
                    async with self._working[0]:
                        await self._beat_once()
                except OutboxDatabaseError as error:
                    self._complain(error)
                    pause = sixth / 4
                except Exception:
                    logger.exception("the outbox's worker could not beat")
                    pause = sixth / 4
            await asyncio.sleep(max(0.0, began + pause - loop.time()))

    async def _beat_once(self) -> None:
        token, began = self.token, Moment.now()
        # A worker stops if a newer program has made the tables too new for it.
        self._beating.check_again()
        self._unlearnt += 1
        beat = await self._beating.write(
            claims.beat, token, self._beat, self._beat + self._unlearnt - 1
        )
        if token != self.token or not self._entered:
            return
        if beat is None:
            self._lose()
        else:
            self._beat, self._unlearnt, self._beaten = beat, 0, began
            self._away = False

    def _lose(self) -> None:
        """Somebody has taken this worker for dead: hold nothing, and join anew."""
        logger.warning(
            "the outbox's worker was taken for dead, because it did not beat for %g s: it joins"
            " anew",
            self.lease,
        )
        self._entered = False
        self._over(list(self.held.values()))
        for release in self._releases.values():
            release.task.cancel()
        self._releases = {}
        self._wake.set()

    # The leases

    async def _enter(self, outlive: Outlive | None = None) -> None:
        """Join under a new token."""
        token = secrets.token_urlsafe(12)
        lock = None if self._lock is None else self._lock.name
        about = f"process {self._pid} on {socket.gethostname()}, yamarket-chat {__version__}"
        worker = token, self.lease, lock, about, self._bot
        dead: Collection[tuple[str, int]] = ()
        while True:
            began = Moment.now()
            if outlive is None:
                await self._join(token, claims.join, *worker)
                break
            businesses = None if self._businesses is None else set(self._businesses)
            others = await self._join(token, claims.join_with_bot, *worker, businesses, dead)
            if not others:
                break
            dead = await outlive(others)
        self.token, self._beat, self._unlearnt, self._beaten = token, 0, 0, began
        self._survey_at = 0.0
        self._free_before, self._refused = set(), None
        self._watcher.begin_anew()
        self._entered = True

    async def _join(self, token: str, function: Callable[..., T], *arguments: Any) -> T:
        joining = asyncio.ensure_future(self._database.write(function, *arguments))
        try:
            return await asyncio.shield(joining)
        except asyncio.CancelledError:
            # Its thread goes on, and the row would stay until others take this worker for dead.
            await asyncio.wait({joining}, timeout=self.lease / BEATS)
            if joining.done() and not joining.cancelled() and joining.exception() is None:
                with suppress(OutboxDatabaseError):
                    await self._database.write(claims.leave, token)
            raise

    async def _keep_leases(self) -> None:
        while True:
            # Not `wait_for`: in CPython 3.11 it loses a cancellation if the event is just set.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK, self.lease / BEATS, self._shortest / BEATS)):
                    await self._wake.wait()
            self._wake.clear()
            try:
                async with self._working[1]:
                    if not self._entered:
                        await self._enter()
                    await self._round()
            except OutboxDatabaseError as error:
                self._watcher.begin_anew()
                self._complain(error)
            except Exception:
                self._watcher.begin_anew()
                logger.exception("the outbox's worker could not look after its leases")

    async def _round(self) -> None:
        loop = asyncio.get_running_loop()
        await self._look()
        if self._entered and any(release.task.done() for release in self._releases.values()):
            await self._give()
        now = loop.time()
        if self._entered and (now >= self._survey_at or now < self._unsettled_until):
            await self._count()
            self._survey_at = now + self.lease / BEATS

    async def _look(self) -> None:
        """Look for dead workers, and take them over."""
        began = Moment.now()
        beats = await self._database.read(claims.beats)
        ended = Moment.now()
        self._watcher.note(beats, ended)
        self._shortest = min((worker.lease for worker in beats), default=self.lease)
        tokens = {worker.token for worker in beats}
        if self._entered and self.token not in tokens:
            self._lose()
            return
        if tokens != self._others:
            self._others = tokens
            self._unsettled_until = ended.own + UNSETTLED
        others = [worker for worker in beats if worker.token != self.token]
        if self.beat_age() > self.lease * TRUST:
            # If this one could not beat, perhaps nobody could.
            self._watcher.begin_anew()
        else:
            for worker in self._watcher.read(others, began, ended):
                await self._take_over(worker, proven=False)
        for worker in others:
            if worker.lock is not None and is_free(path := self._beside(worker.lock)):
                await self._take_over(worker, proven=True)
                remove(path)

    async def _take_over(self, dead: Beat, proven: bool) -> None:
        token = self.token
        found = await self._database.write(claims.take_over, token, dead, proven, self._serves())
        if found is None or token != self.token:
            return
        logger.warning(
            "a worker of the outbox is dead (%s): another one takes its businesses over",
            "its process ended" if proven else f"it did not beat for {dead.lease:g} s",
        )
        self._others.discard(dead.token)
        self._unsettled_until = asyncio.get_running_loop().time() + UNSETTLED
        # Without a beat it sends, and so reads, for a part of the lease only.
        reads_for = CUT_OFF - (0.0 if proven else dead.lease * (1 - TRUST))
        self._reconcile(token, found, proven, max(reads_for, 0.0))

    async def _count(self) -> None:
        """Count all leases, take free ones, ask for others, and hear who asks."""
        token = self.token
        await self._add()
        survey = await self._database.read(claims.survey, token)
        if token not in survey.tokens:
            if self._entered and token == self.token:
                self._lose()
            return
        mine = survey.counts.get(token, 0), survey.epochs
        if mine != (len(self.held), sum(grant.epoch for grant in self.held.values())):
            # Given by others, or by a commit whose success was not learnt.
            self._reconcile(token, await self._database.read(claims.held, token))
        if survey.free:
            await self._claim(survey)
        if any(holder == token for holder, _ in survey.asked):
            await self._hear(survey)
        await self._drop()
        await self._ask(survey)

    async def _add(self) -> None:
        """Add the leases of new businesses."""
        if self._businesses is None:
            new = await self._database.read(claims.new_businesses)
        else:
            new = [one for one in self._businesses if one not in self._known]
            if not all(map(is_id, new)):
                logger.error("keys has a business id that is no id of the Market: it is left out")
                self._known.update(new)
                new = list(filter(is_id, new))
        if new:
            for start in range(0, len(new), claims.PIECE):
                await self._database.write(claims.add, new[start : start + claims.PIECE])
            if self._businesses is not None:
                self._known.update(new)

    async def _claim(self, survey: claims.Survey) -> None:
        token, serves = self.token, self._serves()
        free = await self._database.read(claims.listed, survey.free)
        mine = _own_first([one for one in free if serves(one)], token, survey.tokens)
        if not mine:
            return
        most = shares.claimable(
            len(self.held), sum(survey.counts.values()), len(self._equals(survey))
        )
        if self._bot is None and survey.bots:
            most = 0  # workers with a bot come first
        waited = self._free_before.intersection(mine)
        # What was free in the round before as well, nobody else has wanted.
        taken = waited.union(mine[:most])
        self._free_before = set(mine) - taken
        if taken:
            found = await self._database.write(claims.claim, token, survey.free, taken)
            self._reconcile(token, found)

    async def _hear(self, survey: claims.Survey) -> None:
        """Begin to release businesses that others ask for, if these have fewer."""
        token, now = self.token, asyncio.get_running_loop().time()
        wanted = [
            (business_id, asker)
            for business_id, asker in await self._database.read(claims.wanted, token)
            if business_id in self.held
            and business_id not in self._releases
            and self.held[business_id].reads_until <= now  # only this worker knows of the death
        ]
        if token != self.token or not self._entered:
            return
        counts = {one: survey.counts.get(one, 0) for one in self._equals(survey) if one != token}
        for release in self._releases.values():
            if release.to in counts:
                counts[release.to] += 1
        first = [one for one in wanted if self._bot is None and one[1] in survey.bots]
        mine = len(self.held) - len(self._releases) - len(first)
        given, kept = shares.gives(mine, counts, [one for one in wanted if one not in first])
        given += first
        for business_id, asker in given:
            self._release(business_id, asker)
        if kept:
            await self._database.write(claims.keep, token, kept)

    async def _drop(self) -> None:
        serves = self._serves()
        for business_id in list(self.held):
            if not serves(business_id) and business_id not in self._releases:
                self._release(business_id, None)

    async def _ask(self, survey: claims.Survey) -> None:
        """Ask those who hold more for some of theirs."""
        token = self.token
        counts = {one: survey.counts.get(one, 0) for one in self._equals(survey)}
        counts[token] = len(self.held)
        for (holder, asker), count in survey.asked.items():
            if holder in counts and asker in counts:
                counts[holder] -= count
                counts[asker] += count
        without_bot: dict[str, int] = {}
        if self._bot is not None:
            for one in survey.tokens:
                if one not in survey.bots and (count := survey.counts.get(one, 0)):
                    without_bot[one] = count
        serves, situation = self._serves(), frozenset({**counts, **without_bot}.items())
        if situation == self._refused:
            return
        wishes, found = {**shares.asks(token, counts), **without_bot}, False
        for holder, most in wishes.items():
            theirs = await self._database.read(claims.listed, [holder], False)
            some = [business_id for business_id in theirs if serves(business_id)]
            some = _own_first(some, token, survey.tokens)[:most]
            if some:
                found = True
                await self._database.write(claims.ask, token, holder, some)
        # Others serve other businesses: do not look again until something has changed.
        self._refused = situation if wishes and not found else None

    def _release(self, business_id: int, to: str | None) -> None:
        grant = self.held[business_id]
        task = asyncio.create_task(self._courier.release(grant))
        task.add_done_callback(lambda _: self._wake.set())
        self._releases[business_id] = _Release(task, to)

    async def _give(self) -> None:
        """Give away what is released."""
        token = self.token
        ready = {one: each for one, each in self._releases.items() if each.task.done()}
        given: set[int] = set()
        for business_id, release in ready.items():
            del self._releases[business_id]
            if release.task.cancelled():
                continue
            if error := release.task.exception():
                logger.error("the courier did not release %d", business_id, exc_info=error)
            elif grant := self.held.pop(business_id, None):
                grant.over = True
                given.add(business_id)
        points.reach("handing over")
        for way, function in ((True, claims.give), (False, claims.drop)):
            some = [one for one in given if (ready[one].to is not None) is way]
            if some:
                self._reconcile(token, await self._database.write(function, token, some))

    def _reconcile(
        self,
        token: str,
        found: Collection[claims.Held],
        proven: bool = False,
        reads_for: float = 0.0,
    ) -> None:
        """Take what the database says of one's leases."""
        if token != self.token or not self._entered:
            return
        taken_at = asyncio.get_running_loop().time()
        epochs = dict(found)
        self._over([one for one in self.held.values() if epochs.get(one.business_id) != one.epoch])
        for business_id, epoch in found:
            if business_id not in self.held:
                seen_at = self._watcher.seen_at
                grant = Grant(business_id, token, epoch, taken_at, proven, reads_for, seen_at)
                self.held[business_id] = grant
                self._courier.granted(grant)

    def _over(self, grants: Sequence[Grant]) -> None:
        for grant in grants:
            grant.over = True
            del self.held[grant.business_id]
            if release := self._releases.pop(grant.business_id, None):
                release.task.cancel()
        if grants:
            self._courier.over(grants)

    def _equals(self, survey: claims.Survey) -> list[str]:
        """Return the workers among whom the businesses are spread: those with the same bot."""
        return [one for one in survey.tokens if survey.bots.get(one) == self._bot]

    def _serves(self) -> Callable[[int], bool]:
        if self._businesses is None:
            return lambda _: True
        return set(self._businesses).__contains__

    def _beside(self, name: str) -> str:
        path = self._database.url.database or ""
        return os.path.join(os.path.dirname(path), os.path.basename(name))

    def _complain(self, error: OutboxDatabaseError) -> None:
        if not self._away:  # once, until a beat succeeds again
            self._away = True
            logger.warning("the outbox's worker cannot use the database: %s", error)


def _free(taken: asyncio.Future[Lock]) -> None:
    if not taken.cancelled() and taken.exception() is None:
        taken.result().free()


def _own_first(businesses: list[int], token: str, tokens: Collection[str]) -> list[int]:
    """Order businesses, for each worker in another way: so they do not all want the same."""
    ordered, mine = sorted(businesses), sorted(tokens).index(token)
    first = ordered[mine :: len(tokens)]
    del ordered[mine :: len(tokens)]
    return first + ordered
