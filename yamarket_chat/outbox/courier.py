"""The courier of one business: feeds its messages to a session, and writes what became of them.

Only the first message of a chat is submitted, and only as many as can be sent: all others can still
be cancelled, expire, or be overtaken by a message with a lower number that is committed late.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from .._delivery.departing import KERNEL, DepartingEngine
from .._delivery.failures import closed_error
from .._http.uploads import Upload
from ..errors import (
    NOT_THE_API,
    ApiError,
    ChatError,
    ConnectionFailedError,
    DeliveryUnknownError,
    ForbiddenError,
    LockedError,
    SessionClosedError,
    UnauthorizedError,
)
from ..pending import Pending
from ..receipts import Receipt
from . import checkpoint, earlier, marks
from .checkpoint import Passage
from .database import Database
from .errors import OutboxDatabaseError
from .hand import Hand, Kind, Row, operation, taken
from .lease import Grant, Worker
from .marks import End
from .outcomes import encode_outcome
from .points import reach
from .turns import Session, Turns
from .writer import Writer

logger: logging.Logger = logging.getLogger("yamarket_chat")

AHEAD = 20
"""How many messages of a chat are read when one before those in hand has to go first."""

MOMENT = 0.2
"""Seconds for which a chat rests after the database has refused a mark."""

FIRST_PAUSE = 1.0
AGAIN = 60.0
"""Seconds until something that failed is tried again, at first and at most; so long a business is
paused as well until one message is tried."""

SCOPES = {"communication", "all-methods"}
"""What a key needs one of, to write to chats."""


class Courier:
    """Sends the messages of one business, as long as its grant holds."""

    def __init__(
        self,
        grant: Grant,
        worker: Worker,
        open_session: Callable[[int], Awaitable[Session]],
        database: Database,
        writer: Writer,
        *,
        reserve: int,
        wake: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.grant = grant
        self.business_id: int = grant.business_id
        self.hand = Hand()
        self._worker = worker
        self._open_session = open_session
        self._database = database
        self._writer = writer
        self._reserve = reserve
        self._wake = wake
        self._tell = failed
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._loop, self._pump_soon)
        self._sends: set[asyncio.Task[None]] = set()
        self._own: set[asyncio.Task[None]] = set()  # that nobody has to wait for
        self._opening: dict[tuple[str, int], list[Row]] = {}  # by order or return: what waits
        self._refused_for_good: set[int] = set()  # chats whose 403 is not about the business
        self._session: Session | None = None
        self._engine: DepartingEngine | None = None
        self._timeout = self._settle_after = 0.0
        self._stopping = False
        self._ready = False
        self._paused = False
        self._trying = False  # it was paused, and one row is tried
        self._idle_since = self._loop.time()
        self._pumping = False
        self._pumps_at = math.inf  # when a timer pumps

    # Beginning and ending

    async def begin(self) -> None:
        """Read what earlier couriers have sent, and the Market's clock; be ready for messages."""
        pause, noted = FIRST_PAUSE, False
        while True:
            try:
                self._use(await self._open_session(self.business_id))
                # Before the first request of all, or it may be one too many in parallel.
                held = self._hold(await self._database.read(marks.leaving, self.business_id), ())
                await self._read_clock()
                known = await self._read_before()
                break
            except ChatError as error:
                logger.warning("business %d: %s", self.business_id, error)
                mends_itself = error.retry_after is not None and not _pauses(error)
                if not (noted or mends_itself or isinstance(error, OutboxDatabaseError)):
                    noted = await self._note_pause(str(error))
            await self._close_session()
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN)
        assert self._engine is not None and self._session is not None  # noqa: S101, PT018
        earlier.learn(
            self._engine,
            known,
            self.business_id,
            self._session.limits,
            self._timeout,
            self._writer.counted,
        )
        self._hold(known.leaving, held)
        if noted or known.paused:
            await self._note_pause(None)
        self._ready = True
        self._take(known.leaving, first=True)
        self._wake()

    def _hold(self, leaving: Iterable[Any], held: Collection[int]) -> set[int]:
        """Hold a parallel slot for each request that may be under way. Returns their numbers."""
        assert self._engine is not None  # noqa: S101
        numbers = set()
        for read in leaving:
            numbers.add(read.number)
            if read.number not in held:
                self._engine.count(operation(read), [self._settle_at(read)], held=True)
        return numbers

    def _use(self, session: Session) -> None:
        self._session = session
        self._timeout, self._settle_after = session.times
        self._engine = session.departing()
        self._engine.sending.scheduler.bulks[self._turns] = None

    async def _close_session(self) -> None:
        session, self._session = self._session, None
        if self._engine is not None:
            self._engine.sending.scheduler.bulks.pop(self._turns, None)
            self._engine = None
        if session is not None:
            await session.close(0.0)

    async def _read_clock(self) -> None:
        assert self._session is not None and self._engine is not None  # noqa: S101, PT018
        try:
            # Whatever it answers has a Date, also if its form is not the documented one.
            await self._session.request("GET", "/v2/campaigns", params={"limit": 1})
        except ChatError as error:
            # Most errors of the API have a Date as well, and say nothing of the messages.
            if self._engine.market_clock() is None or _pauses(error):
                raise

    async def _read_before(self) -> marks.Before:
        times = self.times()
        if times is None:
            raise ChatError("the Market's answers have no Date, so messages cannot be found by it")
        latest = times[1] / 1e6
        span = 2 * (max(self._timeout, KERNEL) + self._settle_after) + 300
        return await self._database.read(
            marks.before,
            self.business_id,
            round((latest - span) * 1e6),
            int(latest // 60) - marks.COUNTED_FOR,
        )

    async def stop(self, grace: float) -> None:
        """Begin nothing new; return when nothing is under way, at the latest after the grace."""
        self.over()
        for task in self._own:
            task.cancel()
        try:
            await self._turns.end_under_way(grace)
        finally:
            self._turns.cut_short()
            while running := [*self._sends, *self._own]:
                await asyncio.wait(running)
            await self._close_session()
        if self.hand.ending:
            await asyncio.wait(list(self.hand.ending.values()), timeout=grace)

    def over(self) -> None:
        """Begin nothing new. What has left may still be answered."""
        self._stopping = True
        if self._engine is not None:
            self._engine.sending.scheduler.bulks.pop(self._turns, None)
        self._turns.fail_waiting(closed_error())

    # What is in hand

    def times(self) -> tuple[int, int] | None:
        """Return what the Market's clock shows at least and at most, in microseconds."""
        clock = None if self._engine is None else self._engine.market_clock()
        if clock is None:
            return None
        now = self._loop.time()
        return int((now + clock.least) * 1e6), int((now + clock.most) * 1e6)

    def wants(self) -> tuple[int, int]:
        """Return how many singles and how many others may be taken."""
        if not self._ready or self._stopping or self._paused:
            return 0, 0
        return self.hand.wants()

    def idle_for(self) -> float:
        """Return for how many seconds nothing was in hand."""
        if not self._ready or self.hand.rows or self._own:
            self._idle_since = self._loop.time()
        return self._loop.time() - self._idle_since

    def take(self, found: Iterable[Any], look: int) -> None:
        """Take what a look has found."""
        self._take(self.hand.end_look(look, found))

    def _take(self, found: Iterable[Any], *, first: bool = False) -> None:
        if self._stopping:
            return
        for read in found:
            row = taken(read)
            if row.leaving and (first or read.epoch != self.grant.epoch):
                # Under our own epoch nothing of it is under way, or it would be in hand.
                self._begin_to_settle(row, read)
            elif row.chat_id is None:
                self._begin_to_open(row, (read.context, read.context_id))
            else:
                before = self.hand.put(row)
                # It waits for the limits, so it is not marked yet.
                task = None if before is None else before.task
                if before is not None and task is not None and self._turns.waits(task):
                    before.preempted = True
                    task.cancel()
        self._pump_soon()

    # Sending

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Submit what may be sent."""
        self._pumping = False
        if self._stopping or self._paused or not self._ready:
            return
        best, later = self.hand.next(self._loop.time(), self._turns.in_front)
        for kind, row in best.items():
            if self._trying and self.hand.busy:
                break
            self._submit(row, kind)
        if later < self._pumps_at:
            self._pumps_at = later
            self._loop.call_at(later, self._pump_later)
        if self.hand.is_hungry():
            self._wake()

    def _pump_later(self) -> None:
        self._pumps_at = math.inf
        self._pump_soon()

    def _submit(self, row: Row, kind: Kind) -> None:
        assert row.chat_id is not None and self._engine is not None  # noqa: S101, PT018
        self.hand.busy[row.chat_id] = row
        send = self._send(row, row.chat_id, self._engine, self._reserve if kind[0] else None)
        task = row.task = self._loop.create_task(send)
        self._turns.in_front[kind] = task
        self._keep(task, self._sends)
        task.add_done_callback(lambda task: self._never_began(task, row))

    def _never_began(self, task: asyncio.Task[None], row: Row) -> None:
        """Let a row that made way be submitted again, if its task was cancelled too early.

        A task that is cancelled before its first step runs nothing, so it cannot tidy up.
        """
        if task.cancelled() and row.preempted and row.task is task and row.chat_id is not None:
            row.task, row.preempted = None, False
            self.hand.busy.pop(row.chat_id, None)

    def _keep(self, task: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
        tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._turns.left(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("business %d: a defect", self.business_id, exc_info=error)
            self._pump_soon()

        task.add_done_callback(done)

    async def _send(
        self, row: Row, chat_id: int, engine: DepartingEngine, reserve: int | None
    ) -> None:
        passage = Passage(
            row,
            self.grant,
            self._worker,
            self._writer,
            engine.market_clock,
            self._timeout,
            self._settle_after,
        )
        # Of what fails unexpectedly nobody knows whether it has left. It stays in hand, and its
        # chat busy: who takes over settles it.
        stays = False
        try:
            carries = row.text if row.file_name is None else await self._upload(row)
            receipt = await engine.sending.depart(
                chat_id, carries or "", passage, self._turns, reserve
            )
            # In the step in which the chat's turn ends, so that no mark comes before.
            reach("answered")
            stored = engine.last_delivery(chat_id)
            receipt = msgspec.structs.replace(receipt, requests=row.request)
            self._end(row, "delivered", receipt, earlier.encode_stored(stored))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not row.preempted or task is None:
                raise
            task.uncancel()
            row.preempted, stays = False, True
        except ChatError as error:
            stays = self._failed(row, chat_id, passage, error)
        row.task = None
        del self.hand.busy[chat_id]
        if not stays:
            self.hand.drop(row)

    async def _upload(self, row: Row) -> Upload:
        content = await self._database.read(marks.content, row.number)
        return Upload(content or b"", row.file_name)

    def _failed(self, row: Row, chat_id: int, passage: Passage, error: ChatError) -> bool:
        """Note the error of a message. Returns whether it stays in hand."""
        if passage.refused is not None:
            if passage.refused == checkpoint.EXPIRED:
                self._end(row, "expired")
                return False
            # It is read anew; not at once, or what refuses it might be asked all the time.
            self.hand.resting[chat_id] = self._loop.time() + MOMENT
            if passage.refused == marks.EARLIER:
                self._in_background(self._read_head(chat_id))
            return False
        if self._stopping or isinstance(error, SessionClosedError):
            return False  # if it has left, it stays marked, and is settled by who comes next
        if isinstance(error, DeliveryUnknownError):
            error.pending = msgspec.structs.replace(error.pending, requests=row.request)
            self._end(row, "unknown", error, earlier.encode_pending(error.pending))
            return False
        if isinstance(error, OutboxDatabaseError):  # of reading a file
            self.hand.resting[chat_id] = self._loop.time() + FIRST_PAUSE
            return True
        if error.sent is False and not self._is_for_good(error, chat_id):
            self.hand.resting[chat_id] = self._loop.time() + (error.retry_after or AGAIN)
            if row.leaving:
                self._end(row, "waiting")
            return not row.leaving
        self._end(row, "refused", error)
        return False

    def _is_for_good(self, error: ChatError, chat_id: int | None) -> bool:
        """Whether an error is about a message, and will not pass. Pauses the business if not."""
        if not _pauses(error):
            return error.retry_after is None
        if isinstance(error, ForbiddenError) and chat_id is not None:
            if chat_id in self._refused_for_good:
                return True
            self._in_background(self._ask_what_is_forbidden(chat_id, str(error)))
        else:
            self._pause(str(error))
        return False

    async def _ask_what_is_forbidden(self, chat_id: int, why: str) -> None:
        """Find out whether a 403 is about a chat or about the business."""
        if self._session is not None:
            with suppress(ChatError):
                token = await self._session.token()
                await self._session.get_chat(chat_id)
                if SCOPES.intersection(str(scope).lower() for scope in token.auth_scopes):
                    self._refused_for_good.add(chat_id)
                    self.hand.resting.pop(chat_id, None)
                    return
        self._pause(why)

    def _end(
        self,
        row: Row,
        state: str,
        outcome: Receipt | ChatError | None = None,
        pending: str | None = None,
    ) -> None:
        """Write an end. The row stays in hand until that is committed."""
        reach("before the end")
        number = row.number
        end = End(
            number,
            "leaving" if row.leaving else "waiting",
            row.request,
            state,
            None if outcome is None else encode_outcome(outcome),
            pending,
        )
        ending = self._writer.end(end)
        self.hand.end(row, ending)

        def written(future: asyncio.Future[None]) -> None:
            self.hand.ended(number)
            if not future.cancelled():
                reach("ended")
                if end.untold:
                    self._tell()
            if state == "waiting":
                self.hand.more[row.bulk] = True
            elif self._trying and not self._stopping:
                self._trying = False
                self._in_background(self._go_on())
            self._pump_soon()

        ending.add_done_callback(written)

    async def _read_head(self, chat_id: int) -> None:
        look = self.hand.begin_look()
        found: Sequence[Any] = ()
        try:
            found = await self._database.read(marks.head, self.business_id, chat_id, AHEAD)
        except OutboxDatabaseError as error:
            logger.warning("business %d: %s", self.business_id, error)
        finally:
            self.take(found, look)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what ends when the courier stops."""
        self._keep(self._loop.create_task(work), self._own)

    # What earlier couriers have marked

    def _settle_at(self, read: Any) -> float:
        """Return when a marked row may be settled: its request cannot be carried out after that."""
        timeout, settle_after = read.timeout or 0.0, read.settle_after or self._settle_after
        if read.epoch == self.grant.epoch:
            return self._loop.time() + max(timeout, KERNEL) + settle_after
        return self.grant.taken_at + self.grant.settle_wait(timeout, settle_after)

    def _begin_to_settle(self, row: Row, read: Any) -> None:
        settling, chat_id = self.hand.settling, read.chat_id
        self.hand.rows[row.number] = row
        settling[chat_id] = settling.get(chat_id, 0) + 1
        pending = earlier.pending_of(read)
        self._in_background(self._settle(row, chat_id, pending, self._settle_at(read)))

    async def _settle(self, row: Row, chat_id: int, pending: Pending, at: float) -> None:
        """Find out what became of a marked row, and write its end."""
        while True:
            await asyncio.sleep(at - self._loop.time())
            engine = self._engine
            try:
                if engine is None:
                    raise closed_error()  # a new session is being made
                receipt = await engine.sending.find(pending)
            except DeliveryUnknownError as error:
                if self._stopping or engine is None:
                    return
                earlier.remember(engine, pending, surely=False)
                self._end(row, "unknown", error, earlier.encode_pending(pending))
            except ChatError as error:
                if self._stopping:
                    return
                if _pauses(error):
                    self._pause(str(error))
                at = self._loop.time() + (error.retry_after or AGAIN)
                continue
            else:
                if receipt is None:
                    self._end(row, "waiting")
                else:
                    stored = earlier.remember(engine, pending, surely=True)
                    self._end(row, "delivered", receipt, earlier.encode_stored(stored))
            break
        settling = self.hand.settling
        settling[chat_id] -= 1
        if not settling[chat_id]:
            del settling[chat_id]

    # Orders and returns

    def _begin_to_open(self, row: Row, context: tuple[str, int]) -> None:
        self.hand.rows[row.number] = row
        if context in self._opening:
            self._opening[context].append(row)
        else:
            self._opening[context] = [row]
            self._in_background(self._open(context))

    async def _open(self, context: tuple[str, int]) -> None:
        """Find or open the chat of an order or a return, and let its rows know."""
        about = self.business_id, *context
        refused: ChatError | None = None
        while True:
            try:
                if await self._database.write(marks.chat_of, *about) is None:
                    if self._session is None:
                        raise closed_error()
                    chat_id = await self._session.create_chat(**{f"{context[0]}_id": context[1]})
                    await self._database.write(marks.opened, *about, chat_id)
            except ChatError as error:
                if self._stopping:
                    return
                passes = isinstance(error, (OutboxDatabaseError, SessionClosedError))
                if passes or not self._is_for_good(error, None):
                    await asyncio.sleep(error.retry_after or AGAIN)
                    continue
                refused = error
            break
        for row in self._opening.pop(context):
            if refused is not None:
                self._end(row, "refused", refused)
            else:
                self.hand.drop(row)

    # Pausing the business

    def _pause(self, why: str) -> None:
        if not self._paused:
            self._paused = True
            logger.warning("business %d is paused: %s", self.business_id, why)
            self._in_background(self._resume(why))

    async def _resume(self, why: str) -> None:
        """Ask for the key anew in a minute, and try one row."""
        await self._note_pause(why)
        while True:
            await asyncio.sleep(AGAIN)
            try:
                session = await self._open_session(self.business_id)
                break
            except ChatError as error:
                await self._note_pause(str(error))
        former = self._session
        self._use(session)
        if former is not None:
            self._in_background(self._retire(former))
        self._paused, self._trying = False, True
        self.hand.resting.clear()

    async def _retire(self, former: Session) -> None:
        """Close a session when nothing that was sent with it is under way any more."""
        try:
            if sends := set(self._sends):
                await asyncio.wait(sends)
        finally:
            await former.close(0.0)

    async def _go_on(self) -> None:
        logger.info("business %d is no longer paused", self.business_id)
        await self._note_pause(None)

    async def _note_pause(self, why: str | None) -> bool:
        try:
            await self._database.write(marks.pause, self.business_id, why)
        except OutboxDatabaseError:
            return False
        return True


def _pauses(error: ChatError) -> bool:
    """Whether an error is about the business or its key, and not about one message."""
    if isinstance(error, (UnauthorizedError, ForbiddenError, LockedError)):
        return True
    if isinstance(error, ConnectionFailedError):
        return error.retry_after is None  # a certificate, or a proxy that wants a password
    return (
        isinstance(error, ApiError)
        and 400 <= error.status < 500
        and bool(error.errors)
        and error.errors[0].code == NOT_THE_API
    )
