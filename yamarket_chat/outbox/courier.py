"""The courier of one business: feeds its messages to a session, and writes what became of them.

Only the first message of a chat is submitted, and only as many as can be sent: all others can still
be cancelled, expire, or be overtaken by a message with a lower number that is committed late.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import msgspec

from .._delivery.departing import KERNEL, DepartingEngine
from .._delivery.failures import closed_error
from .._http.uploads import Upload
from ..errors import (
    ChatError,
    DeliveryUnknownError,
    ForbiddenError,
    SessionClosedError,
)
from ..limits import QuotaStatus
from ..pending import Pending, Stored
from ..receipts import Receipt
from . import checkpoint, earlier, marks
from .checkpoint import Passage
from .database import Database
from .errors import OutboxDatabaseError
from .grant import Grant
from .hand import Hand, Kind, Row, operation, taken
from .lease import Worker
from .marks import End
from .openings import Openings
from .outcomes import encode_outcome
from .parts import About
from .pausing import AGAIN, Reminder, pauses
from .points import reach
from .settling import Settling
from .turns import Session, Turns
from .writer import Writer

logger: logging.Logger = logging.getLogger("yamarket_chat")

AHEAD = 20
"""How many messages of a chat are read when one before those in hand has to go first."""

MOMENT = 0.2
"""Seconds for which a chat rests after the database has refused a mark."""

FIRST_PAUSE = 1.0
"""Seconds until a beginning that failed is tried again. They double."""

SCOPES = {"communication", "all-methods"}
"""What a key needs one of, to write to chats."""


class Seen(NamedTuple):
    """How the delivery for one business goes."""

    begun: bool  # it is ready for messages
    under_way: int  # how many messages are being sent, or settled
    quota: QuotaStatus | None  # of texts; None if nobody knows just now
    paused: str | None  # why
    failing: str | None  # why it could not begin yet


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
        self.hand: Hand = Hand()
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
        self._settling = Settling(self)
        self._openings = Openings(self, database)
        self._refused_for_good: set[About] = set()  # whose 403 is not about the business
        self.session: Session | None = None
        self.engine: DepartingEngine | None = None
        self._timeout = 0.0
        self.settle_after: float = 0.0
        self.stopping: bool = False
        self.paused: str | None = None  # why
        self.failing: str | None = None  # why it could not begin yet
        self.held: asyncio.Event = asyncio.Event()
        """Set when what earlier couriers have marked holds its parallel slots."""
        self._holds: dict[int, float] = {}  # by row: until when a slot is held for its request
        self._ready = False
        self.trying: bool = False  # it was paused, and one row is tried
        self.goes_on: asyncio.Event = asyncio.Event()  # not set while it is paused
        self.goes_on.set()
        self._reminder = Reminder()
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
                marked = await self._database.read(marks.leaving, self.business_id)
                self._hold(marked)
                self._hold_for_reads()
                self.held.set()
                await self._read_clock()
                # Of those that were marked: an end may have come, or a later request.
                known = await self._read_before([read.number for read in marked])
                break
            except ChatError as error:
                self.failing = str(error)
                mends_itself = error.retry_after is not None and not pauses(error)
                paused = not (mends_itself or isinstance(error, OutboxDatabaseError))
                if mends_itself or self._reminder.is_due(self._loop.time()):
                    said = "business %d is paused: %s" if paused else "business %d: %s"
                    logger.warning(said, self.business_id, error)
                if paused and not noted:
                    noted = await self._note_pause(str(error))
            except Exception as error:
                self.failing = f"a defect: {type(error).__name__}"
                logger.exception("business %d: a defect", self.business_id)
            await self._close_session()
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN)
        assert self.engine is not None and self.session is not None  # noqa: S101, PT018
        earlier.learn(
            self.engine,
            known,
            self.business_id,
            self.session.limits,
            self._timeout,
            self._writer.counted,
        )
        if noted or known.paused:
            await self._go_on()
        self.failing = None
        self._ready = True
        self._take(known.leaving, first=True)
        self._wake()

    def _hold(self, leaving: Iterable[Any]) -> None:
        """Hold a parallel slot for each request that may be under way, once."""
        if self.engine is not None:
            for read in leaving:
                if read.number not in self._holds:
                    until = self._holds[read.number] = self._settling.moment(read)
                    self.engine.count(operation(read), [until], held=True)

    def _hold_for_reads(self) -> None:
        if self.engine is not None and self.session is not None:
            now = self._loop.time()
            held = sum(until > now for until in self._holds.values())
            earlier.hold_for_reads(self.engine, self.grant, self.session.limits.parallel, held)

    def _use(self, session: Session) -> None:
        self.session = session
        self._timeout, self.settle_after = session.times
        self.engine = session.departing()
        self.engine.sending.scheduler.bulks[self._turns] = None

    async def _close_session(self) -> None:
        session, self.session = self.session, None
        if self.engine is not None:
            self.engine.sending.scheduler.bulks.pop(self._turns, None)
            self.engine = None
        if session is not None:
            await session.close(0.0)

    async def _read_clock(self) -> None:
        assert self.session is not None and self.engine is not None  # noqa: S101, PT018
        try:
            # Whatever it answers has a Date, also if its form is not the documented one.
            await self.session.request("GET", "/v2/campaigns", params={"limit": 1})
        except ChatError as error:
            # Most errors of the API have a Date as well, and say nothing of the messages.
            if self.engine.market_clock() is None or pauses(error):
                raise

    async def _read_before(self, marked: Sequence[int]) -> marks.Before:
        times = self.times()
        if times is None:
            raise ChatError("the Market's answers have no Date, so messages cannot be found by it")
        latest = times[1] / 1e6
        span = 2 * (max(self._timeout, KERNEL) + self.settle_after) + 300
        return await self._database.read(
            marks.before,
            self.business_id,
            round((latest - span) * 1e6),
            int(latest // 60) - marks.COUNTED_FOR,
            marked,
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
        self.stopping = True
        if self.engine is not None:
            self.engine.sending.scheduler.bulks.pop(self._turns, None)
        self._turns.fail_waiting(closed_error())

    def lost(self) -> float:
        """Send nothing more and read nothing: the business is another worker's.

        Returns the seconds in which what has left may still be answered. After them, the histories
        of what was not answered would be read.
        """
        self.over()
        # Nobody else knows of a read, which takes one of the business's parallel slots.
        self._turns.stop_settling()
        return min(self._timeout, self.settle_after)

    # What is in hand

    def seen(self) -> Seen:
        """Return how it goes."""
        quota = None
        if self._ready and self.session is not None:
            with suppress(SessionClosedError):
                quota = self.session.quota_status("send_message")
        return Seen(self._ready, len(self._turns.under_way), quota, self.paused, self.failing)

    def times(self) -> tuple[int, int] | None:
        """Return what the Market's clock shows at least and at most, in microseconds."""
        clock = None if self.engine is None else self.engine.market_clock()
        if clock is None:
            return None
        now = self._loop.time()
        return int((now + clock.least) * 1e6), int((now + clock.most) * 1e6)

    def wants(self) -> tuple[int, int]:
        """Return how many singles and how many others may be taken."""
        if not self._ready or self.stopping or not self.goes_on.is_set():
            return 0, 0
        return self.hand.wants()

    def wish(self, singles: int, bulk: int) -> marks.Wish:
        """Return what a look is to find: so many singles and others at most."""
        hand = self.hand
        return marks.Wish(
            singles,
            bulk,
            known=list(hand.rows),
            chats=list(hand.left_out()),
            contexts=self._openings.left_out(),
        )

    def idle_for(self) -> float:
        """Return for how many seconds nothing was in hand."""
        if not self._ready or self.hand.rows or self._own:
            self._idle_since = self._loop.time()
        return self._loop.time() - self._idle_since

    def take(self, found: Iterable[Any], look: int) -> None:
        """Take what a look has found."""
        self._take(self.hand.end_look(look, found))

    def _take(self, found: Iterable[Any], *, first: bool = False) -> None:
        if self.stopping:
            return
        for read in found:
            row = taken(read)
            if row.leaving and (first or read.epoch != self.grant.epoch):
                # Under our own epoch nothing of it is under way, or it would be in hand.
                if not first:
                    self._hold([read])  # it was committed after the first look
                self._settling.begin(row, read)
            elif row.chat_id is None:
                self._openings.begin(row, (read.context, read.context_id))
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
        if self.stopping or not self.goes_on.is_set() or not self._ready:
            return
        best, later = self.hand.next(self._loop.time(), self._turns.in_front)
        for kind, row in best.items():
            if self.trying and self.hand.busy:
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
        assert row.chat_id is not None and self.engine is not None  # noqa: S101, PT018
        self.hand.busy[row.chat_id] = row
        send = self._send(row, row.chat_id, self.engine, self._reserve if kind[0] else None)
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
            self.hand.free(row.chat_id)

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
            self.settle_after,
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
            self.end(row, "delivered", receipt, stored)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not row.preempted or task is None:
                raise
            task.uncancel()
            row.preempted, stays = False, True
        except ChatError as error:
            stays = self._failed(row, chat_id, passage, error)
        row.task = None
        if not stays:
            self.hand.drop(row)
        self.hand.free(chat_id)

    async def _upload(self, row: Row) -> Upload:
        content = await self._database.read(marks.content, row.number)
        return Upload(content or b"", row.file_name)

    def _failed(self, row: Row, chat_id: int, passage: Passage, error: ChatError) -> bool:
        """Note the error of a message. Returns whether it stays in hand."""
        if passage.refused is not None:
            if passage.refused == checkpoint.EXPIRED:
                self.end(row, "expired")
                return False
            # It is read anew; not at once, or what refuses it might be asked all the time.
            self.hand.rest(chat_id, self._loop.time() + MOMENT)
            if passage.refused == marks.EARLIER:
                self.in_background(self._read_head(chat_id))
            return False
        if self.stopping or isinstance(error, SessionClosedError):
            return False  # if it has left, it stays marked, and is settled by who comes next
        if isinstance(error, DeliveryUnknownError):
            error.pending = msgspec.structs.replace(error.pending, requests=row.request)
            self.end(row, "unknown", error, error.pending)
            return False
        if isinstance(error, OutboxDatabaseError):  # of reading a file
            self.hand.rest(chat_id, self._loop.time() + FIRST_PAUSE)
            return True
        if error.sent is False and not self.is_for_good(error, chat_id):
            self.hand.rest(chat_id, self._loop.time() + (error.retry_after or AGAIN))
            if row.leaving:
                self.end(row, "waiting")
            return not row.leaving
        self.end(row, "refused", error)
        return False

    def is_for_good(self, error: ChatError, about: About) -> bool:
        """Whether an error is about a message, and will not pass. Pauses the business if not."""
        if not pauses(error):
            return error.retry_after is None
        if not isinstance(error, ForbiddenError):
            self.pause(str(error))
        elif about in self._refused_for_good:
            return True
        elif self.goes_on.is_set():
            self.in_background(self.ask_what_is_forbidden(about, str(error)))
        return False

    async def ask_what_is_forbidden(self, about: About, why: str) -> None:
        """Find out whether a 403 is about a chat, an order or a return, or about the business."""
        if self.session is not None:
            with suppress(ChatError):
                token = await self.session.token()
                if isinstance(about, int):
                    await self.session.get_chat(about)
                else:
                    async with aclosing(self.session.chats().pages()) as pages:
                        await anext(pages)
                if SCOPES.intersection(str(scope).lower() for scope in token.auth_scopes):
                    self._refused_for_good.add(about)
                    if isinstance(about, int):
                        self.hand.wake(about)
                    return
        self.pause(why)

    def end(
        self,
        row: Row,
        state: str,
        outcome: Receipt | ChatError | None = None,
        known: Stored | Pending | None = None,
    ) -> None:
        """Write an end. The row stays in hand until that is committed."""
        reach("before the end")
        number = row.number
        pending, ended_at = earlier.encode_known(known)
        if ended_at is None and (times := self.times()) is not None:
            ended_at = times[1]
        end = End(
            number,
            "leaving" if row.leaving else "waiting",
            row.request,
            state,
            None if outcome is None else encode_outcome(outcome),
            pending,
            ended_at,
        )
        ending = self._writer.end(end)
        self.hand.end(row, ending)

        def written(future: asyncio.Future[None]) -> None:
            self.hand.ended(number)
            if not future.cancelled():
                reach("ended")
                if end.untold:
                    why = "" if outcome is None else f": {outcome}"
                    about = self.business_id, number, state, why
                    logger.warning("business %d: message %d is %s%s", *about)
                    self._tell()
            if state == "waiting":
                self.hand.more[row.bulk] = True
            elif self.trying and not self.stopping:
                self.trying = False
                self.in_background(self._go_on())
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
            self._take(self.hand.end_look(look, found, heads=True))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what ends when the courier stops."""
        self._keep(self._loop.create_task(work), self._own)

    # Pausing the business

    def pause(self, why: str) -> None:
        if self.goes_on.is_set():
            self.goes_on.clear()
            if self._reminder.is_due(self._loop.time()):
                logger.warning("business %d is paused: %s", self.business_id, why)
            self.in_background(self._resume(why))

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
            except Exception:
                logger.exception("business %d: a defect", self.business_id)
        former = self.session
        self._use(session)
        if former is not None:
            self.in_background(self._retire(former))
        self.trying = True
        self.goes_on.set()
        self.hand.wake()

    async def _retire(self, former: Session) -> None:
        """Close a session when nothing that was sent with it is under way any more."""
        try:
            if sends := set(self._sends):
                await asyncio.wait(sends)
        finally:
            await former.close(0.0)

    async def _go_on(self) -> None:
        self._reminder.end()
        logger.info("business %d is no longer paused", self.business_id)
        await self._note_pause(None)

    async def _note_pause(self, why: str | None) -> bool:
        self.paused = why
        try:
            await self._database.write(marks.pause, self.business_id, why)
        except OutboxDatabaseError:
            return False
        return True
