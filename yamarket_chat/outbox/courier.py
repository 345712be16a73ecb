"""The courier of one business: feeds its messages to a session, and writes what became of them.

Only the first message of a chat is submitted, and only as many as can be sent: all others can still
be cancelled, expire, or be overtaken by a message with a lower number that is committed late.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from .._delivery.departing import KERNEL, DepartingEngine
from .._delivery.failures import closed_error
from .._delivery.settling import content_of_text
from .._http.uploads import Upload
from .._limits.tickets import CallGroup
from ..errors import (
    NOT_THE_API,
    ApiError,
    ChatError,
    DeliveryUnknownError,
    ForbiddenError,
    LockedError,
    SessionClosedError,
    UnauthorizedError,
)
from ..pending import Content, Pending, Stored
from ..receipts import Receipt
from ..session import ChatSession
from . import checkpoint, marks
from .checkpoint import Passage, Row
from .database import Database
from .errors import OutboxDatabaseError
from .lease import Grant, Worker
from .marks import Before, End
from .outcomes import encode_outcome
from .points import reach
from .writer import Writer

logger = logging.getLogger("yamarket_chat.outbox")

SINGLES = 128
BULK = 128
"""How many messages of a business are in hand at most."""

AHEAD = 20
"""How many messages of a chat are read when one before those in hand has to go first."""

AGAIN = 60.0
"""Seconds until a message that failed for now is tried again, and a business that is paused."""

FIRST_PAUSE = 1.0

_encode = msgspec.json.Encoder().encode
_pending = msgspec.json.Decoder(Pending).decode
_stored = msgspec.json.Decoder(Stored).decode

_TEXT, _FILE = "send_message", "send_file"
_NOTHING = Content()


class Session(ChatSession):
    """A session whose messages ask before they leave."""

    def departing(self) -> DepartingEngine:
        """Return its engine."""
        self._engine_kind = DepartingEngine
        engine = self._open()
        assert isinstance(engine, DepartingEngine)  # noqa: S101 - it was not open before
        return engine

    @property
    def limits(self) -> Any:
        """The limits."""
        return self._limits

    @property
    def times(self) -> tuple[float, float]:
        """The timeout, and `settle_after`."""
        return self._timeout, self._retry.settle_after


class _Turns(CallGroup):
    """The calls of a courier. It learns when another one may be submitted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, more: Callable[[], None]) -> None:
        super().__init__()
        self._loop = loop
        self._more = more
        self.in_front: dict[tuple[bool, str], asyncio.Task[Any]] = {}  # wait for the limits

    def make_way(self) -> None:
        """One of the calls was sent, or waits for something other than a slot."""
        task = asyncio.current_task(self._loop)
        for kind, front in self.in_front.items():
            if front is task:
                del self.in_front[kind]
                break
        self._more()


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
        counted: dict[tuple[int, str, int], int],
    ) -> None:
        self.grant = grant
        self.business_id: int = grant.business_id
        self._worker = worker
        self._open_session = open_session
        self._database = database
        self._writer = writer
        self._reserve = reserve
        self._wake = wake
        self._counted = counted
        self._loop = asyncio.get_running_loop()
        self._chats: dict[int, list[Row]] = {}  # by chat, by number; the first one may be busy
        self._busy: dict[int, Row] = {}  # by chat: what is submitted
        self._settling: dict[int, int] = {}  # by chat: how many marked rows are to be settled
        self._opening: dict[tuple[str, int], list[Row]] = {}  # by order or return: what waits
        self._resting: dict[int, float] = {}  # by chat: until when, since its head failed for now
        self._ending: dict[int, asyncio.Future[None]] = {}  # by number: ends that are written
        self._own: set[asyncio.Task[None]] = set()  # that nobody has to wait for
        self.in_hand: dict[int, Row] = {}
        self._gone: dict[int, int] = {}  # numbers that left the hand, and during which look
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns = _Turns(self._loop, self._pump_soon)
        self._pumping = False
        self._later = math.inf  # when a timer pumps
        self._session: Session | None = None
        self._engine: DepartingEngine | None = None
        self._timeout = self._settle_after = 0.0
        self.stopping = False
        self.ready = False
        self.hungry = True  # wants a look although nothing has changed
        self._paused: str | None = None
        self._trying = False  # it is paused, and one row is tried
        self._looks = 0
        self._looking: set[int] = set()

    # Beginning and ending

    async def begin(self) -> None:
        """Read what earlier couriers have sent, and the Market's clock; be ready for messages."""
        pause = FIRST_PAUSE
        while True:
            try:
                self._use(await self._open_session(self.business_id))
                await self._read_clock()
                self._learn(await self._read_before())
                break
            except ChatError as error:
                logger.warning("business %d: %s", self.business_id, error)
                if not isinstance(error, OutboxDatabaseError) and pause > 2 * FIRST_PAUSE:
                    await self._note_pause(str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN)
            await self._close_session()
        self.ready = True
        if self._paused is not None:
            await self._note_pause(None)
        self._wake()

    def _use(self, session: Session) -> None:
        self._session = session
        self._timeout, self._settle_after = session.times
        engine = self._engine = session.departing()
        engine.sending.scheduler.bulks[self._turns] = None

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
            async for _ in self._session.campaigns():
                break
        except ChatError as error:
            # An error of the API has a Date as well, and says nothing of the messages.
            if self._engine.market_clock() is None or _pauses(error):
                raise

    def _market_time(self) -> float:
        """Return the latest time that the Market's clock may show."""
        assert self._engine is not None  # noqa: S101
        clock = self._engine.market_clock()
        assert clock is not None  # noqa: S101 - it was read before
        return self._loop.time() + clock.most

    async def _read_before(self) -> Before:
        now = self._market_time()
        span = 2 * (self._timeout + self._settle_after) + 300
        return await self._database.read(
            marks.before,
            self.business_id,
            round((now - span) * 1e6),
            int(now // 60) - marks.COUNTED_FOR,
        )

    def _learn(self, known: Before) -> None:
        engine, session = self._engine, self._session
        assert engine is not None and session is not None  # noqa: S101, PT018
        clock = engine.market_clock()
        assert clock is not None  # noqa: S101 - it was read before
        now = self._loop.time()
        for row in known.ended:
            content = (
                Content(file_name=row.file_name, file_size=row.file_size)
                if row.file_name is not None
                else content_of_text(row.text or "")
            )
            if row.state == "delivered":
                stored = _stored(row.pending)
                engine.remember(row.chat_id, msgspec.structs.replace(stored, content=content))
                continue
            pending = _pending(row.pending)
            if pending.since is not None and pending.until is not None:
                since, until = pending.since.timestamp(), pending.until.timestamp()
                engine.remember(row.chat_id, Stored(content, since, until, surely=False))
                engine.rest(row.chat_id, min(until - clock.least, now + AGAIN))
        for row in known.leaving:
            engine.count(_operation(row), [self._settle_at(row)], held=True)
        for row in known.counted:
            mine = self._counted.get((self.business_id, row.operation, row.minute), 0)
            rate = session.limits.rates()[row.operation]
            leave_at = (row.minute + 1) * 60 - clock.least + self._timeout + rate.per
            if leave_at > now:
                engine.count(row.operation, [leave_at] * max(row.requests - mine, 0))
        self._take(known.leaving, first=True)

    async def stop(self, grace: float) -> None:
        """Begin nothing new; return when nothing is under way, at the latest after the grace."""
        self.over()
        for task in self._own:
            task.cancel()
        try:
            await self._turns.end_under_way(grace)
        finally:
            self._turns.cut_short()
            while running := [*self._tasks, *self._own]:
                await asyncio.wait(running)
            await self._close_session()
        if self._ending:
            await asyncio.wait(self._ending.values(), timeout=grace)

    def over(self) -> None:
        """Send nothing more. What has left may still be answered."""
        self.stopping = True
        if self._engine is not None:
            self._engine.sending.scheduler.bulks.pop(self._turns, None)
        self._turns.fail_waiting(closed_error())

    # What is in hand

    def wants(self) -> tuple[int, int]:
        """Return how many singles and how many others may be taken."""
        if not self.ready or self.stopping or self._paused:
            return 0, 0
        bulk = sum(row.bulk for row in self.in_hand.values())
        singles = len(self.in_hand) - bulk
        return (
            SINGLES - singles if singles <= SINGLES // 2 else 0,
            BULK - bulk if bulk <= BULK // 2 else 0,
        )

    def times(self) -> tuple[int, int] | None:
        """Return what the Market's clock shows at least and at most, in microseconds."""
        clock = None if self._engine is None else self._engine.market_clock()
        if clock is None or self.stopping:
            return None
        now = self._loop.time()
        return int((now + clock.least) * 1e6), int((now + clock.most) * 1e6)

    def begin_look(self) -> int:
        """Return the number of a look that begins."""
        self._looks += 1
        self._looking.add(self._looks)
        return self._looks

    def take(self, rows: Sequence[Any], look: int, *, more: bool = False) -> None:
        """Take what a look has read. `more` says that it has not read everything.

        A look shows rows as they were: what has left the hand since it began is not taken again.
        """
        self._looking.discard(look)
        if not self.stopping:
            self._take([row for row in rows if self._gone.get(row.number, 0) < look])
        self.hungry = self.hungry or more
        oldest = min(self._looking, default=self._looks + 1)
        for number in [number for number, at in self._gone.items() if at < oldest]:
            del self._gone[number]

    def _take(self, rows: Iterable[Any], *, first: bool = False) -> None:
        for read in rows:
            if read.number in self.in_hand:
                continue
            row = Row(
                read.number,
                read.chat_id,
                read.bulk,
                read.text,
                read.file_name,
                read.file_size,
                read.not_after,
                read.request,
                read.state == "leaving",
                read.context,
                read.context_id,
                _operation(read),
            )
            if row.leaving and (first or read.epoch != self.grant.epoch):
                self._begin_to_settle(row, read)
            elif row.chat_id is None:
                self._open_chat(row)
            else:
                self._put(row.chat_id, row)
        self._pump_soon()

    def _put(self, chat_id: int, row: Row) -> None:
        self.in_hand[row.number] = row
        waiting = self._chats.setdefault(chat_id, [])
        waiting.append(row)
        waiting.sort(key=_number)
        busy = self._busy.get(chat_id)
        # A row that waits for the limits is not marked yet: an earlier one goes first, and one of
        # a bulk no longer waits behind singles if a single waits behind it.
        if (
            busy is not None
            and busy.task in self._turns.in_front.values()
            and (row.number < busy.number or (busy.bulk and not row.bulk))
        ):
            busy.preempted = True
            assert busy.task is not None  # noqa: S101 - it is in front
            busy.task.cancel()

    def _drop(self, row: Row) -> None:
        """Let a row go out of hand, unless its end is being written."""
        if row.number not in self._ending:
            self.in_hand.pop(row.number, None)
            self._gone[row.number] = self._looks
            self.hungry = True
        if row.chat_id is not None:
            waiting = self._chats.get(row.chat_id)
            if waiting is not None:
                if row in waiting:
                    waiting.remove(row)
                if not waiting:
                    del self._chats[row.chat_id]

    # Sending

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self.stopping or self._paused or not self.ready or (self._trying and self._busy):
            return
        now = self._loop.time()
        best: dict[tuple[bool, str], Row] = {}
        later = math.inf
        in_front = self._turns.in_front
        for chat_id, waiting in self._chats.items():
            if chat_id in self._busy or chat_id in self._settling:
                continue
            rests = self._resting.get(chat_id)
            if rests is not None:
                if rests > now:
                    later = min(later, rests)
                    continue
                del self._resting[chat_id]
            head = waiting[0]
            kind = all(row.bulk for row in waiting), head.operation
            if kind not in in_front and (kind not in best or head.number < best[kind].number):
                best[kind] = head
        for kind, row in best.items():
            self._submit(row, kind)
            if self._trying:
                break
        if later < self._later:
            self._later = later
            self._loop.call_at(later, self._later_is_now)
        if self.hungry and any(self.wants()):
            self._wake()

    def _later_is_now(self) -> None:
        self._later = math.inf
        self._pump_soon()

    def _submit(self, row: Row, kind: tuple[bool, str]) -> None:
        assert row.chat_id is not None  # noqa: S101 - it stands in a chat
        self._busy[row.chat_id] = row
        task = row.task = self._loop.create_task(self._send(row, row.chat_id, bulk=kind[0]))
        self._turns.in_front[kind] = task
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._turns.in_front.get(kind) is task:
                del self._turns.in_front[kind]
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("business %d: a defect", self.business_id, exc_info=error)
            self._pump_soon()

        task.add_done_callback(done)

    async def _send(self, row: Row, chat_id: int, *, bulk: bool) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101 - it has begun
        passage = Passage(
            row,
            self.grant,
            self._worker,
            self._writer,
            engine.market_clock,
            self._timeout,
            self._settle_after,
        )
        keep = False
        try:
            carries = row.text if row.file_name is None else await self._upload(row)
            receipt = await engine.sending.depart(
                chat_id, carries or "", passage, self._turns, self._reserve if bulk else None
            )
            reach("answered")
            self._end_delivered(row, chat_id, receipt)
        except asyncio.CancelledError:
            if not row.preempted:
                row.task = None
                raise
            row.preempted, keep = False, True
            asyncio.current_task().uncancel()  # type: ignore[union-attr]
        except ChatError as error:
            keep = self._failed(row, passage, error)
        except BaseException:
            # Nobody knows what has left: whoever takes over settles it. Its chat waits until then.
            row.task = None
            raise
        row.task = None
        del self._busy[chat_id]
        if not keep:
            self._drop(row)

    async def _upload(self, row: Row) -> Upload:
        content = await self._database.read(marks.content, row.number)
        return Upload(content or b"", row.file_name)

    def _failed(self, row: Row, passage: Passage, error: ChatError) -> bool:
        """Note an error. Returns whether the row stays in hand."""
        if passage.refused is not None:
            if passage.refused == checkpoint.EXPIRED:
                self._end(row, "expired", None)
            elif passage.refused == marks.EARLIER and row.chat_id is not None:
                self._read_head(row.chat_id)
            return False
        if self.stopping or isinstance(error, SessionClosedError):
            return False  # it stays marked if it has left, and is settled by who comes next
        if isinstance(error, DeliveryUnknownError):
            known = msgspec.structs.replace(error.pending, requests=row.request)
            error.pending = known
            self._end(row, "unknown", error, _encode(known).decode())
            return False
        if error.sent is False and (error.retry_after is not None or _pauses(error)):
            if _pauses(error):
                self._pause(str(error))
            elif row.chat_id is not None:
                self._resting[row.chat_id] = self._loop.time() + (error.retry_after or AGAIN)
            if row.leaving:
                self._end(row, "waiting", None)
            return not row.leaving
        self._end(row, "refused", error)
        return False

    def _end_delivered(self, row: Row, chat_id: int, receipt: Receipt) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101
        stored = engine.last_delivery(chat_id)
        if stored is not None:
            stored = msgspec.structs.replace(stored, content=_NOTHING)
        receipt = msgspec.structs.replace(receipt, requests=row.request)
        self._end(row, "delivered", receipt, None if stored is None else _encode(stored).decode())

    def _end(
        self,
        row: Row,
        state: str,
        outcome: Receipt | ChatError | None,
        pending: str | None = None,
    ) -> None:
        """Write an end. The row stays in hand until that is committed."""
        reach("before the end")
        number = row.number
        ending = self._writer.end(
            End(
                number,
                "leaving" if row.leaving else "waiting",
                row.request,
                state,
                None if outcome is None else encode_outcome(outcome),
                pending,
            )
        )
        self._ending[number] = ending

        def written(future: asyncio.Future[None]) -> None:
            del self._ending[number]
            self.in_hand.pop(number, None)
            self._gone[number] = self._looks
            if state == "waiting":
                self.hungry = True
            if not future.cancelled():
                reach("ended")
            if state == "delivered":
                self._paused, self._trying = None, False
            self._pump_soon()

        ending.add_done_callback(written)

    def _read_head(self, chat_id: int) -> None:
        async def read() -> None:
            look = self.begin_look()
            rows: Sequence[Any] = ()
            try:
                rows = await self._database.read(marks.heads, self.business_id, [chat_id], AHEAD)
            except OutboxDatabaseError:
                self.hungry = True
            finally:
                self.take(rows, look)

        self._in_background(read())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what nobody has to wait for. It ends when the courier stops."""
        task = self._loop.create_task(work)
        self._own.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._own.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("business %d: a defect", self.business_id, exc_info=error)
            self._pump_soon()

        task.add_done_callback(done)

    # What earlier couriers have marked

    def _settle_at(self, read: Any) -> float:
        """Return when a marked row may be settled: its request cannot be carried out after that."""
        timeout, settle_after = read.timeout or 0.0, read.settle_after or self._settle_after
        if read.epoch == self.grant.epoch:
            return self._loop.time() + max(timeout, KERNEL) + settle_after
        return self.grant.taken_at + self.grant.settle_wait(timeout, settle_after)

    def _begin_to_settle(self, row: Row, read: Any) -> None:
        assert row.chat_id is not None  # noqa: S101 - it was sent
        self.in_hand[row.number] = row
        self._settling[row.chat_id] = self._settling.get(row.chat_id, 0) + 1
        pending = msgspec.structs.replace(_pending(read.pending), text=read.text)
        self._in_background(self._settle(row, row.chat_id, pending, self._settle_at(read)))

    async def _settle(self, row: Row, chat_id: int, pending: Pending, at: float) -> None:
        pending = msgspec.structs.replace(pending, requests=row.request)
        try:
            while True:
                await asyncio.sleep(at - self._loop.time())
                engine = self._engine
                try:
                    if engine is None:
                        raise closed_error()  # another key is being asked for
                    receipt = await engine.sending.find(pending)
                    break
                except DeliveryUnknownError as error:
                    if not self.stopping:
                        self._remember(chat_id, pending, surely=False)
                        self._end(row, "unknown", error, _encode(pending).decode())
                    return
                except ChatError as error:
                    if self.stopping:
                        return
                    if _pauses(error):
                        self._pause(str(error))
                    at = self._loop.time() + (error.retry_after or AGAIN)
            if receipt is None:
                self._end(row, "waiting", None)
                return
            stored = self._remember(chat_id, pending, surely=True)
            self._end(
                row, "delivered", receipt, None if stored is None else _encode(stored).decode()
            )
        finally:
            self._settling[chat_id] -= 1
            if not self._settling[chat_id]:
                del self._settling[chat_id]
            self.hungry = True

    def _remember(self, chat_id: int, pending: Pending, *, surely: bool) -> Stored | None:
        if pending.since is None or pending.until is None or self._engine is None:
            return None
        content = (
            content_of_text(pending.text)
            if pending.text is not None
            else Content(file_name=pending.file_name, file_size=pending.file_size)
        )
        stored = Stored(content, pending.since.timestamp(), pending.until.timestamp(), surely)
        self._engine.remember(chat_id, stored)
        return msgspec.structs.replace(stored, content=_NOTHING)

    # Orders and returns

    def _open_chat(self, row: Row) -> None:
        assert row.context is not None and row.context_id is not None  # noqa: S101, PT018
        self.in_hand[row.number] = row
        context = row.context, row.context_id
        if context in self._opening:
            self._opening[context].append(row)
        else:
            self._opening[context] = [row]
            self._in_background(self._find_chat(*context))

    async def _find_chat(self, context: str, context_id: int) -> None:
        """Find or open the chat of an order or a return, and let its rows know."""
        about = self.business_id, context, context_id
        refused: ChatError | None = None
        try:
            while True:
                try:
                    if await self._database.write(marks.chat_of, *about) is None:
                        assert self._session is not None  # noqa: S101
                        chat_id = await self._session.create_chat(**{f"{context}_id": context_id})
                        await self._database.write(marks.opened, *about, chat_id)
                    return
                except ChatError as error:
                    if self.stopping:
                        return
                    if _pauses(error):
                        self._pause(str(error))
                    elif error.retry_after is None and not isinstance(error, OutboxDatabaseError):
                        refused = error
                        return
                    await asyncio.sleep(error.retry_after or AGAIN)
        finally:
            for row in self._opening.pop((context, context_id)):
                if refused is not None:
                    self._end(row, "refused", refused)
                else:
                    self._drop(row)
            self.hungry = True

    # Pausing the business

    def _pause(self, why: str) -> None:
        if self._paused is None:
            self._paused, self._trying = why, False
            logger.warning("business %d is paused: %s", self.business_id, why)
            self._in_background(self._resume(why))

    async def _resume(self, why: str) -> None:
        """Ask for the key anew in a minute, and try one row."""
        await self._note_pause(why)
        await asyncio.sleep(AGAIN)
        await self._note_pause(None)
        self._paused, self._trying = None, True

    async def _note_pause(self, why: str | None) -> None:
        self._paused = why
        with suppress(OutboxDatabaseError):
            await self._database.write(marks.pause, self.business_id, why)


def _operation(row: Any) -> str:
    return _TEXT if row.file_name is None else _FILE


def _pauses(error: ChatError) -> bool:
    """Whether an error is about the business or its key, and not about one message."""
    if isinstance(error, (UnauthorizedError, ForbiddenError, LockedError)):
        return True
    return (
        isinstance(error, ApiError)
        and 400 <= error.status < 500
        and bool(error.errors)
        and error.errors[0].code == NOT_THE_API
    )


def _number(row: Row) -> int:
    return row.number
