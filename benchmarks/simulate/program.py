"""The programs of a story: one process of a machine, with its sessions and its tasks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, assert_never

import aiohttp
import msgspec

from yamarket_chat import (
    ChatError,
    ChatSession,
    Delivered,
    DeliveryUnknownError,
    InvalidArgumentError,
    Limits,
    OutgoingMessage,
    Pending,
    Receipt,
    Retry,
    connector,
)

from .record import Record, Told
from .story import (
    AnyStep,
    Close,
    Kill,
    MarketClock,
    Read,
    Send,
    SendMany,
    Story,
    WallClock,
)

current: contextvars.ContextVar[Told | None] = contextvars.ContextVar("current", default=None)
"""The message that the running task sends."""

Unsettled = list[tuple[Told, Pending]]


def content_of(text: str, size: int = 0) -> str:
    """Return how a record names a text, or a file."""
    return f"file {text} {size}" if size else text.strip()


class Log:
    """The record of a story while it is played."""

    def __init__(self, record: Record, now: Callable[[], float], *, lines: bool) -> None:
        self.record = record
        self.now = now
        self._lines = lines
        self._orders = itertools.count()
        self.active: dict[int, Told] = {}
        self.heard = False  # an answer of the Market
        self.as_told: dict[int, list[Callable[[], object]]] = {}
        """What happens to a machine as the next message fails there."""
        self.last_end = 0.0

    def say(self, who: str, what: str) -> None:
        """Add a line to the time line, if there is one."""
        if self._lines:
            self.record.line.append((self.now(), who, what))

    def hand_over(self, process: Process, step: int, chat: int, content: str, raises: bool) -> Told:
        """Note a message whose call starts now."""
        told = Told(
            machine=process.machine,
            life=process.life,
            order=next(self._orders),
            chat=chat,
            content=content,
            began=self.now(),
            step=step,
            raises=raises,
        )
        self.record.messages.append(told)
        self.active[told.order] = told
        self.say(process.name, f"chat {chat}: hands over {content!r}")
        return told

    def end(self, process: Process, told: Told, what: str) -> None:
        """Note that the call of a message is over."""
        if told.ended is not None:
            return  # it was killed, and its task is cut off only now
        told.ended = self.last_end = self.now()
        told.why = what
        if told.fate != "arrived":
            for action in self.as_told.pop(process.machine, ()):
                action()
        self.active.pop(told.order, None)
        self.record.met[f"told {what}"] += 1
        self.say(process.name, f"chat {told.chat}: {told.content!r} is told: {what}")


class Process:
    """One process of a machine: it runs its steps, and ends when all of them have ended."""

    def __init__(
        self,
        story: Story,
        machine: int,
        life: int,
        steps: Sequence[tuple[int, AnyStep]],
        url: str,
        log: Log,
        unsettled: Unsettled,
    ) -> None:
        self.story = story
        self.machine = machine
        self.life = life
        self.name = f"program {machine}" + (f" (life {life})" if life else "")
        self._steps = steps
        self._url = url
        self._log = log
        self._sessions: dict[int, ChatSession] = {}
        self._sessions_made = 0
        self._session_of: dict[int, ChatSession] = {}  # by the order of the messages
        self._tasks: list[asyncio.Task[None]] = []
        self._sends: dict[int, asyncio.Task[None]] = {}  # by the number of their step
        self._closings: list[asyncio.Task[None]] = []
        self._https: list[aiohttp.ClientSession] = []
        self.unsettled = unsettled
        self._retry = Retry(
            attempts=story.program.attempts,
            give_up_after=story.program.give_up_after,
            settle_after=story.program.settle_after,
        )
        self._limits = Limits(parallel=story.program.parallel, **story.program.limits)

    async def live(self, since: float) -> None:
        """Run all steps; their times count from `since`, a moment of this loop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._complain)
        if self.life:
            await asyncio.sleep(STARTS_AFTER)
        for told, pending in list(self.unsettled):
            self._start(self._settle_later(told, pending))
        for number, step in self._steps:
            wait = since + step.at - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            self._begin(number, step)
        while True:
            waiting = [task for task in (*self._tasks, *self._closings) if not task.done()]
            if not waiting:
                break
            await asyncio.wait(waiting)
        self._log.record.lasted = max(self._log.record.lasted, self._log.now())
        for session in self._sessions.values():
            await session.close()
        for http in self._https:
            await http.close()

    async def look_for_leaks(self) -> list[str]:
        """Return what is left after the end, an hour later: tasks, and what limits still hold."""
        leaked = []
        rates = self._limits.rates().values()
        # An equal message waits for as long as a clock was set by while the first one was sent.
        steps = sum(abs(e.by) for e in self.story.events if isinstance(e, (MarketClock, WallClock)))
        await asyncio.sleep(max(rate.per for rate in rates) + 300.0 + steps)
        this = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not this and not is_idle(task)]
        leaked += sorted(f"a task: {task.get_coro()!s:.80}" for task in left)
        # Nothing may be left that another set of limits would have to respect.
        other = Limits(parallel=self._limits.parallel + 1)
        session = ChatSession(KEY, BUSINESS, base_url=self._url, limits=other)
        try:
            if session.quota_status("send_message").waiting:
                leaked.append("calls that wait")
        except InvalidArgumentError as error:
            leaked.append(f"limits are still in force: {error}"[:60])
        await session.close()
        return leaked

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        what = f"{context.get('message')}: {context.get('exception')!r}"
        self._log.record.crashed.append(what[:200])
        self._log.say(self.name, f"the loop complains: {what}")

    def _session(self, number: int) -> ChatSession:
        session = self._sessions.get(number)
        if session is None:
            http = None
            if self.story.program.sessions_of_its_own:
                http = aiohttp.ClientSession(connector=connector(limit=0, keepalive_timeout=4))
                self._https.append(http)
            session = self._sessions[number] = ChatSession(
                KEY,
                BUSINESS,
                base_url=self._url,
                limits=self._limits,
                retry=self._retry,
                timeout=self.story.program.timeout,
                max_wait=self.story.program.max_wait,
                http=http,
            )
            self._log.say(self.name, f"opens session {number}")
        return session

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    def _begin(self, number: int, step: AnyStep) -> None:
        loop = asyncio.get_running_loop()
        match step:
            case Send():
                task = self._sends[number] = self._start(self._send(number, step))
                if step.cancel is not None:
                    loop.call_later(step.cancel, self._cancel, task, number)
            case SendMany():
                self._start(self._send_many(number, step))
            case Read():
                task = self._start(self._read(step))
                if step.cancel is not None:
                    loop.call_later(step.cancel, task.cancel)
            case Close():
                session = self._sessions.pop(step.session, None)
                if session is not None:
                    self._log.say(self.name, f"closes session {step.session}")
                    self._end_by_program(session)
                    self._closings.append(loop.create_task(session.close(step.grace)))
            case Kill():
                pass  # the machine's part
            case _:
                assert_never(step)

    def _cancel(self, task: asyncio.Task[None], step: int) -> None:
        if task.done():
            return
        for told in self._log.active.values():
            if told.step == step and told.ended is None:
                told.ended_by_program = True
                self._log.record.met["event cancel"] += 1
                self._log.say(self.name, f"chat {told.chat}: cancels {told.content!r}")
        task.cancel()

    def _end_by_program(self, session: ChatSession) -> None:
        for told in self._log.active.values():
            if self._session_of.get(told.order) is session:
                told.ended_by_program = True
                self._log.record.met["event close"] += 1

    def kill(self) -> None:
        """Note that the process is killed: nothing more is told."""
        for told in list(self._log.active.values()):
            if told.machine == self.machine:
                told.ended_by_program = True
                self._log.record.met["event kill"] += 1
                self._log.end(self, told, "killed")

    # What the tasks do

    async def _send(self, number: int, step: Send) -> None:
        try:
            for text in (step.text, *step.then):
                pending = await self._one(number, step, text)
                if pending is not None and step.settle is not None:
                    told, stored = pending
                    self.unsettled.append(pending)
                    arrived = await self._settle(told, stored, step.session, step.settle)
                    if arrived is False and step.again:
                        await self._one(number, step, text)
        except asyncio.CancelledError:
            if step.cancel is None:
                raise
        if step.ends_others:
            for other, task in self._sends.items():
                if other != number:
                    self._cancel(task, other)

    async def _one(self, number: int, step: Send, text: str) -> tuple[Told, Pending] | None:
        session = self._session(step.session)
        content = content_of(text, step.size)
        raises = step.on_unknown == "raise"
        told = self._log.hand_over(self, number, step.chat, content, raises)
        self._session_of[told.order] = session
        current.set(told)
        wait = {} if step.max_wait is None else {"max_wait": step.max_wait}
        unknown = step.on_unknown if raises else None
        try:
            async with asyncio.timeout(step.timeout):
                if step.size:
                    receipt = await session.send_file(
                        step.chat, b"x" * step.size, filename=text, on_unknown=unknown, **wait
                    )
                else:
                    receipt = await session.send_message(
                        step.chat, text, on_unknown=unknown, **wait
                    )
        except ChatError as error:
            return self._failed(told, error)
        except asyncio.CancelledError:
            self._log.end(self, told, "cancelled")
            raise
        except TimeoutError:
            told.ended_by_program = True
            self._log.end(self, told, "timed out")
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self._log.record.crashed.append(f"send: {error!r}"[:200])
            self._log.end(self, told, f"crash {error!r}"[:200])
        else:
            self._arrived(told, receipt)
        return None

    def _arrived(self, told: Told, receipt: Receipt) -> None:
        told.fate = "arrived"
        self._log.heard = True
        if receipt.confirmed_by == "history":
            told.in_doubt = True
        self._log.end(self, told, f"arrived by {receipt.confirmed_by}")

    def _failed(self, told: Told, error: ChatError) -> tuple[Told, Pending] | None:
        told.fate = "not sent" if error.sent is False else "unknown"
        told.said = str(error)
        if told.fate == "unknown":
            told.in_doubt = True
        self._log.end(self, told, type(error).__name__)
        self._log.say(self.name, f"    {error}")
        return (told, error.pending) if isinstance(error, DeliveryUnknownError) else None

    async def _settle_later(self, told: Told, pending: Pending) -> None:
        """Settle what a killed process has left."""
        await self._settle(told, pending, 0, 0.0)

    async def _settle(self, told: Told, pending: Pending, session: int, wait: float) -> bool | None:
        await asyncio.sleep(wait)
        self._log.say(self.name, f"chat {told.chat}: settles {told.content!r}")
        try:
            # As it is stored: that is what it is for.
            stored = msgspec.json.decode(msgspec.json.encode(pending), type=Pending)
            receipt = await self._session(session).settle(stored)
        except DeliveryUnknownError as error:
            arrived = None
            told.said = f"settle: {error}"
            self._log.say(self.name, f"    {error}")
        except ChatError as error:
            arrived = None
            self._log.say(self.name, f"    {error}")
        else:
            arrived = receipt is not None
            told.fate = "arrived" if arrived else "not sent"
            told.settled = True
        with contextlib.suppress(ValueError):
            self.unsettled.remove((told, pending))
        said = {True: "arrived", False: "not sent", None: "unknown"}[arrived]
        self._log.record.met[f"settled: {said}"] += 1
        self._log.say(self.name, f"chat {told.chat}: {told.content!r} is settled: {said}")
        return arrived

    async def _send_many(self, number: int, step: SendMany) -> None:
        session = self._session(step.session)
        handed: list[Told] = []

        def messages() -> Iterator[OutgoingMessage]:
            for chat, text in step.messages:
                told = self._log.hand_over(self, number, chat, content_of(text), raises=False)
                self._session_of[told.order] = session
                handed.append(told)
                yield OutgoingMessage(chat, text, told)

        try:
            async with asyncio.timeout(step.stop):
                many = session.send_many(messages(), reserve=step.reserve)
                async with contextlib.aclosing(many) as outcomes:
                    async for outcome in outcomes:
                        told = outcome.message.ref
                        if isinstance(outcome, Delivered):
                            if outcome.receipt.requests > 1:
                                told.in_doubt = True
                            self._arrived(told, outcome.receipt)
                        else:
                            self._failed(told, outcome.error)
                        if step.pause:
                            await asyncio.sleep(step.pause)
        except ChatError as error:
            self._log.say(self.name, f"send_many ends: {type(error).__name__}: {error}")
        except TimeoutError:
            self._log.say(self.name, "stops send_many")
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self._log.record.crashed.append(f"send_many: {error!r}"[:200])
        for told in handed:
            if told.ended is None:
                told.ended_by_program = True
                self._log.end(self, told, "stopped")

    async def _read(self, step: Read) -> None:
        session = self._session(step.session)
        try:
            match step.what:
                case "get_chat":
                    await session.get_chat(step.chat)
                case "get_message":
                    await session.get_message(step.chat, 1)
                case "chats":
                    async for _ in session.chats():
                        pass
                case "history":
                    async for _ in session.history(step.chat):
                        pass
            self._log.heard = True
        except asyncio.CancelledError:
            if step.cancel is None:
                raise
        except ChatError:
            pass
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self._log.record.crashed.append(f"read: {error!r}"[:200])


def is_idle(task: asyncio.Task[Any]) -> bool:
    """Whether a task is none of the product's: one of the world's own."""
    return task.get_name().startswith("world")


STARTS_AFTER = 12.0
"""Seconds until a program that was killed runs again: docs/delivery.md says why it matters."""

KEY = "ACMA:sandbox:key"
BUSINESS = 12345
