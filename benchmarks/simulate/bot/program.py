"""The processes of a story of a bot: their handlers do what the story says of each message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text

from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.notifications import Receiver
from yamarket_chat.outbox import Outbox

from ..outbox.program import FIRST_BUSINESS, KEY, Process, business_of
from .record import Record, Run
from .story import Story, Writes

ALSO = text("INSERT INTO also VALUES (:business, :chat, :message, :run, :kind)")
FAILS = text("INSERT INTO nowhere VALUES (1)")

CLINGS = 12.0
"""Seconds that a handler goes on although it is cancelled: longer than the bot waits for it."""

AT_ONCE = Writes()


def says_now(message: int, number: int) -> bool:
    """Whether the run of this number of a message says at once that it looks."""
    return (message + number) % 2 == 0


class Trouble(Exception):
    """What a handler raises."""


class Answering(Process):
    """One life of a machine with a bot."""

    story: Story
    _record: Record
    step_of: Callable[[int, int], Writes | None]
    now: Callable[[], float]
    dies: Callable[[], None]
    receiver: Receiver | None = None

    @asynccontextmanager
    async def _delivering(self, outbox: Outbox) -> AsyncIterator[None]:
        bot = self._bot(outbox)
        try:
            async with bot.running():
                self.receiver = bot.receiver
                yield
                await bot.receiver.close()
        finally:
            self.receiver = None

    def _bot(self, outbox: Outbox) -> Bot:
        story, told = self.story, self.story.bot
        known = {business_of(number): KEY for number in range(story.businesses)}
        bot = Bot(
            outbox,
            known,
            every=told.every,
            start="waiting" if told.waiting else "now",
            concurrency=told.concurrency,
            handler_timeout=told.handler_timeout,
            max_age=told.max_age,
            **self._options(),
        )
        bot.message(self._answer)
        bot.error(self._failed)
        return bot

    # What a handler does

    def _begins(self, message: BuyerMessage, kind: Any, error: str = "") -> Run:
        record = self._record
        about = 0
        parts = message._keys.split(":")
        if kind == "error" and parts[-2].isdigit() and "error" in parts:
            kind, about = "reply", int(parts[-2])
        run = Run(
            number=1 + len(record.runs),
            kind=kind,
            about=about,
            business=message.business_id - FIRST_BUSINESS,
            chat=message.chat.chat_id,
            message=message.message_id,
            process=self.name,
            began=self.now(),
            error=error,
        )
        record.runs.append(run)
        self._say(
            self.name,
            f"chat {run.business}/{run.chat}, message {run.message}: run {run.number} ({run.kind})"
            + (f" about {error}" if error else ""),
        )
        return run

    async def _run(self, run: Run, handler: Any) -> None:
        try:
            await handler
        except asyncio.CancelledError:
            self._ends(run, "cancelled")
            raise
        except Exception:
            self._ends(run, "raised")
            raise
        self._ends(run, "returned")

    def _ends(self, run: Run, how: Any) -> None:
        if self.loop.is_killed:
            return
        run.ended, run.how = self.now(), how
        self._say(self.name, f"run {run.number} has {how}")

    def _notes(self, message: BuyerMessage, run: Run) -> None:
        message.also(
            ALSO,
            {
                "business": run.business,
                "chat": run.chat,
                "message": run.message,
                "run": run.number,
                "kind": run.kind,
            },
        )

    async def _answer(self, message: BuyerMessage) -> None:
        run = self._begins(message, "answer")
        await self._run(run, self._answers(message, run))

    async def _answers(self, message: BuyerMessage, run: Run) -> None:
        step = self.step_of(run.business, run.message) or AT_ONCE
        of = [
            one
            for one in self._record.runs
            if one.kind == "answer" and (one.business, one.message) == (run.business, run.message)
        ]
        trouble = step.trouble if len(of) <= step.times else ""
        if trouble:
            self._record.met[f"handler {trouble}"] += 1
        if step.now and says_now(run.message, len(of)):
            await message.reply(f"now {run.message} {run.number} 1", now=True)
        count = step.replies + (1 if step.replies and len(of) % 2 == 0 else 0)
        for place in range(1, count + 1):
            if place == count and step.file:
                name = f"answer-{run.message}-{run.number}-{place}.pdf"
                await message.reply_file(b"x" * 100, filename=name)
            else:
                await message.reply(f"answer {run.message} {run.number} {place}")
            run.replies = place
            if place == 1 and step.takes:
                await asyncio.sleep(step.takes)
        if not count and step.takes:
            await asyncio.sleep(step.takes)
        self._notes(message, run)
        await self._troubles(trouble, message, run)

    async def _failed(self, message: BuyerMessage, error: Exception) -> None:
        run = self._begins(message, "error", type(error).__name__)
        why = type(error).__name__ if run.kind == "error" else "a reply"
        self._record.met[f"given up: {why}"] += 1
        await self._run(run, self._says_sorry(message, run))

    async def _says_sorry(self, message: BuyerMessage, run: Run) -> None:
        step = self.step_of(run.business, run.message) or AT_ONCE
        self._notes(message, run)
        if step.error != "says nothing":
            about = f" {run.about}" if run.about else ""
            await message.reply(f"{run.kind} {run.message} {run.number} 1{about}")
            run.replies = 1
        if step.error not in ("replies", "says nothing"):
            self._record.met[f"error {step.error}"] += 1
            await self._troubles(step.error, message, run)

    async def _troubles(self, trouble: str, message: BuyerMessage, run: Run) -> None:
        match trouble:
            case "raises":
                raise Trouble("once in a while")
            case "hangs":
                await asyncio.sleep(1e6)
            case "statement":
                message.also(FAILS)
            case "kills":
                run.kills = True
                run.beside = [
                    other.number
                    for other in self._record.runs
                    if other.process == self.name and not other.how and other is not run
                ]
                self.dies()
                await asyncio.sleep(1e6)
            case "clings":
                record = self._record
                try:
                    await asyncio.sleep(1e6)
                except asyncio.CancelledError:
                    if record is not self._record:  # the story is over
                        raise
                end = asyncio.get_running_loop().time() + CLINGS
                while (left := end - asyncio.get_running_loop().time()) > 0:
                    try:
                        await asyncio.sleep(left)
                    except asyncio.CancelledError:
                        if record is not self._record:  # the story is over
                            raise
                        self._say(self.name, f"run {run.number} goes on")
