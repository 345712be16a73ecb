"""Delivers the messages of many businesses in one process: a worker, couriers and their feed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..arguments import check_async, check_id, check_seconds
from ..errors import ChatError, InvalidArgumentError
from . import earlier
from .calling import NotAsyncError, call
from .claims import OtherBot
from .courier import Courier, Seen
from .database import Database
from .errors import OutboxDatabaseError
from .feed import Feed
from .grant import Grant
from .lease import Worker
from .telling import OnFailure, Telling
from .turns import Session
from .writer import Writer

logger: logging.Logger = logging.getLogger("yamarket_chat")

Keys = Mapping[int, str] | Callable[[int], Awaitable[str | None]]
"""The Api-Key of each business, or an async function that returns it."""

TAKEN = {
    "base_url", "limits", "retry", "timeout", "integration", "insecure_http", "proxy",
}  # fmt: skip
"""The options of `ChatSession` that a delivery takes."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
"""Seconds until a beginning delivery looks again for a database that is away: they double."""

SHORTEST_LEASE = 0.1
"""Seconds. A beat is a commit, and six of them go into a lease."""

KEY_WITHIN = 60.0
"""Seconds that the function of the keys may take."""

HELD_WITHIN = 10.0
"""Seconds for which a companion waits until what is under way holds its slots."""

GRACE = 30.0
"""Seconds that a stopping courier waits for what is under way."""


class Companion(Protocol):
    """Who works under the leases as well: a bot."""

    name: str

    async def begin(self, open_session: Callable[[int], Awaitable[Session]]) -> None:
        """Be ready."""

    async def outlive(self, others: Sequence[OtherBot]) -> Collection[tuple[str, int]]:
        """Wait until these are dead, and return their tokens and beats.

        Raises ChatError if one of them lives.
        """

    def granted(self, grant: Grant) -> None:
        """Begin with a business."""

    async def release(self, grant: Grant) -> None:
        """Begin nothing new for a business; return when nothing of it is under way any more."""

    def over(self, grants: Sequence[Grant]) -> None:
        """Stop at once: these are lost."""

    async def end(self, grace: float) -> None:
        """Begin nothing new, and wait for what is under way."""


class Delivering:
    """The delivery of one process. A `Worker` tells it what it may send."""

    def __init__(
        self,
        database: Database,
        keys: Keys,
        *,
        lease: float,
        reserve: int,
        on_failure: OnFailure | None,
        options: Mapping[str, Any],
        companion: Companion | None = None,
    ) -> None:
        self._database = database
        self._companion = companion
        self._keys = keys
        self._reserve = reserve
        self._options = options
        businesses: Collection[int] | None = keys.keys() if isinstance(keys, Mapping) else None
        self._worker = Worker(
            database,
            self,
            lease=lease,
            businesses=businesses,
            bot=None if companion is None else companion.name,
            outlive=None if companion is None else companion.outlive,
        )
        self._writer = Writer(database)
        self._grants: dict[int, Grant] = {}
        self._couriers: dict[int, Courier] = {}  # of those that have had messages
        self._beginning: dict[Courier, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._feed = Feed(
            database,
            self._grants,
            self._couriers,
            self._begin,
            self._rest,
            self._wake_telling,
        )
        self._telling = (
            None if on_failure is None else Telling(database, self._grants.keys(), on_failure)
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Join the other workers, and deliver from now on. Waits for a database that is away.

        A process may be started before its database. Raises OutboxDatabaseError if the trouble
        cannot pass by itself.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                if self._companion is not None:
                    await self._companion.begin(self._companions_session)
                await self._worker.join()
                break
            except OutboxDatabaseError as error:
                if error.retry_after is None:
                    raise
                logger.warning("the delivery begins later, and waits for its database: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        self._tasks.append(asyncio.create_task(self._feed.run()))
        if self._telling is not None:
            self._tasks.append(asyncio.create_task(self._telling.run()))

    async def end(self, grace: float = GRACE) -> None:
        """Send nothing new, wait for what is under way, and hand over."""
        # It may be cancelled again, and still nothing of it may go on.
        try:
            if self._companion is not None:
                await self._companion.end(grace)
        finally:
            await self._end_couriers(grace)

    async def _end_couriers(self, grace: float) -> None:
        couriers = list(self._couriers.values())
        self._couriers.clear()
        try:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            if couriers:
                await asyncio.gather(*(self._stop(one, grace) for one in couriers))
            if self._ending:
                await asyncio.wait(self._ending, timeout=grace)
        finally:
            try:
                await self._writer.close(grace)
            finally:
                await self._worker.leave()

    def wake(self) -> None:
        """Look for new messages at once."""
        self._feed.wake()

    def seen(self, business_id: int) -> Seen | None:
        """Return how it goes for a business; None if this process does not send for it now."""
        courier = self._couriers.get(business_id)
        return None if courier is None else courier.seen()

    def _wake_telling(self) -> None:
        if self._telling is not None:
            self._telling.wake()

    # What the worker tells

    def granted(self, grant: Grant) -> None:
        """Begin with a business, when it has messages."""
        self._grants[grant.business_id] = grant
        self._feed.wake()
        if self._companion is not None:
            self._companion.granted(grant)

    async def release(self, grant: Grant) -> None:
        """Begin nothing new for a business; return when nothing of it is under way any more."""
        if self._companion is not None:
            await self._companion.release(grant)
        self._grants.pop(grant.business_id, None)
        courier = self._couriers.pop(grant.business_id, None)
        if courier is not None:
            await self._stop(courier, GRACE)

    def over(self, grants: Sequence[Grant]) -> None:
        """Send nothing more under these: they are lost."""
        if self._companion is not None:
            self._companion.over(grants)
        for grant in grants:
            if self._grants.get(grant.business_id) is grant:
                del self._grants[grant.business_id]
            courier = self._couriers.get(grant.business_id)
            if courier is not None and courier.grant is grant:
                del self._couriers[grant.business_id]
                self._end(courier, courier.lost())

    def _begin(self, business_id: int) -> None:
        courier = Courier(
            self._grants[business_id],
            self._worker,
            self._session,
            self._database,
            self._writer,
            reserve=self._reserve,
            wake=self._feed.wake,
            failed=self._wake_telling,
        )
        self._couriers[business_id] = courier
        beginning = self._beginning[courier] = asyncio.create_task(courier.begin())

        def begun(task: asyncio.Task[None]) -> None:
            self._beginning.pop(courier, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("business %d: a defect", business_id, exc_info=error)

        beginning.add_done_callback(begun)

    def _rest(self, business_id: int) -> None:
        self._end(self._couriers.pop(business_id), GRACE)

    def _end(self, courier: Courier, grace: float) -> None:
        ending = asyncio.create_task(self._stop(courier, grace))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _stop(self, courier: Courier, grace: float) -> None:
        beginning = self._beginning.get(courier)
        if beginning is not None:
            beginning.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({beginning})
        await courier.stop(grace)

    async def _companions_session(self, business_id: int) -> Session:
        """Make a session when what is under way for a business holds its parallel slots.

        The companion's first request may be one too many otherwise. A business without messages
        has no courier, which would hold slots for what a dead companion was reading.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(HELD_WITHIN):
                await self._feed.serves(business_id)
                courier = self._couriers.get(business_id)
                if courier is not None:
                    await courier.held.wait()
        session = await self._session(business_id)
        if (grant := self._grants.get(business_id)) is not None:
            earlier.hold_for_reads(session.departing(), grant, session.limits.parallel, 0)
        return session

    async def _session(self, business_id: int) -> Session:
        """Ask for the key of a business, and make a session for it."""
        key = None
        limit = asyncio.timeout(KEY_WITHIN)
        try:
            if isinstance(self._keys, Mapping):
                key = self._keys.get(business_id)
            else:
                async with limit:
                    key = await call(self._keys, business_id)
        except ChatError:
            raise
        except NotAsyncError as error:
            raise ChatError(
                f"the key of business {business_id} is not known: keys: {error}"
            ) from None
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise ChatError(
                    f"the key of business {business_id} is not known: keys() did not return within"
                    f" {KEY_WITHIN:g} s"
                ) from None
            logger.exception("business %d: keys() failed", business_id)
            raise ChatError(
                f"the key of business {business_id} is not known: keys() raised"
                f" {type(error).__name__}"
            ) from None
        if not key:
            raise ChatError(f"there is no key for business {business_id}: add it to keys")
        return Session(key, business_id, **self._options)


def check_options(options: Mapping[str, Any], reserve: object) -> None:
    """Check the options of the sessions, before any is made."""
    unknown = options.keys() - TAKEN
    if unknown:
        raise InvalidArgumentError(
            f"{', '.join(sorted(unknown))}: a delivery takes {', '.join(sorted(TAKEN))} of the"
            " options of ChatSession"
        )
    limits = Session("key", 1, **options).limits
    most = min(limits.send_message.requests, limits.send_file.requests) - 1
    if type(reserve) is not int or not 0 <= reserve <= most:
        raise InvalidArgumentError(
            f"reserve is a whole number from 0 to {most}: a part of the limit"
        )


def check_keys(keys: object) -> Keys:
    """Check the keys: a mapping, which may change later, or an async function."""
    if isinstance(keys, Mapping):
        for business_id in keys:
            if type(business_id) is not int:
                raise InvalidArgumentError("the business ids of keys are ints")
            check_id("a business id of keys", business_id)
        return keys
    if callable(keys):
        check_async("keys", keys)
        return keys
    raise InvalidArgumentError(
        "keys is a mapping of business ids to keys, or an async function of the business id"
    )


def check_lease(lease: object) -> float:
    """Check the seconds of a lease."""
    seconds = check_seconds("lease", lease)
    if seconds < SHORTEST_LEASE:
        raise InvalidArgumentError(
            f"lease is at least {SHORTEST_LEASE:g} s: a worker has to beat several times within it"
        )
    return seconds


def check_on_failure(on_failure: OnFailure | None) -> OnFailure | None:
    """Check what is told of failures."""
    if on_failure is not None:
        check_async("on_failure", on_failure)
    return on_failure
