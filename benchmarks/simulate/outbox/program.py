"""The processes of a story: each delivers, puts, or both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from yamarket_chat import Limits, Retry
from yamarket_chat.outbox import (
    KeyConflictError,
    Outbox,
    OutboxDatabaseError,
    OutboxEntry,
    OutboxFile,
    OutboxMessage,
)
from yamarket_chat.sandbox import VirtualLoop
from yamarket_chat.sandbox.loop import BEGINNING

from ..program import content_of
from .record import Record
from .story import AnyStep, Put, PutMany, Story

FIRST_BUSINESS = 101
KEY = "ACMA:sandbox:key"
AGAIN = 0.5
"""Seconds until a program puts again what failed."""
STARTS_AGAIN = 1.0

Say = Callable[[str, str], None]


def business_of(number: int) -> int:
    """Return the id of a business of a story."""
    return FIRST_BUSINESS + number


def name_of(machine: str) -> str:
    """Return the name by which a process of a machine is known to the Market."""
    return machine.replace(" ", "-")


class Process:
    """One life of a machine."""

    def __init__(
        self,
        story: Story,
        machine: int,
        loop: VirtualLoop,
        record: Record,
        say: Say,
        left: dict[int, AnyStep],
    ) -> None:
        self.story = story
        self.machine = machine
        self.loop = loop
        self.name = loop.name
        self._record = record
        self._say = say
        self._left = left  # of this machine: what is not put yet
        self.delivers = machine < story.workers
        self.is_ready = False

    async def live(self, since: float) -> None:
        """Deliver until it is cancelled, and put."""
        asyncio.get_running_loop().set_exception_handler(self._complain)
        outbox = Outbox(
            "sqlite:////simulated/outbox.db", forget_text=self.story.delivery.forgets_text
        )
        putting: list[asyncio.Task[None]] = []
        async with AsyncExitStack() as stack:
            while self.delivers:
                try:
                    await stack.enter_async_context(self._delivering(outbox))
                except OutboxDatabaseError as error:
                    self._say(self.name, f"cannot start: {error}")
                    await asyncio.sleep(STARTS_AGAIN)
                else:
                    break
            self.is_ready = True
            self._say(self.name, "runs")
            try:
                for number, step in list(self._left.items()):
                    putting.append(asyncio.create_task(self._step(outbox, since, number, step)))
                if self.delivers:
                    await asyncio.get_running_loop().create_future()
                await asyncio.gather(*putting)
            finally:
                for task in putting:
                    task.cancel()
                if putting:
                    await asyncio.wait(putting)
        await outbox.close()

    def _delivering(self, outbox: Outbox) -> Any:
        story = self.story
        known = {business_of(number): KEY for number in range(story.businesses)}

        async def key_of(business_id: int) -> str | None:
            await asyncio.sleep(0.01)
            return known.get(business_id)

        return outbox.delivering(
            key_of if story.delivery.keys_by_function else known,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        story = self.story
        return {
            "lease": story.delivery.lease,
            "reserve": story.delivery.reserve,
            "on_failure": self._told,
            "base_url": "http://127.0.0.1:1",
            "integration": name_of(self.name),
            "limits": Limits(parallel=story.program.parallel, **story.program.limits),
            "retry": Retry(
                attempts=story.program.attempts,
                give_up_after=story.program.give_up_after,
                settle_after=story.program.settle_after,
            ),
            "timeout": story.program.timeout,
        }

    async def _told(self, entry: OutboxEntry) -> None:
        if not self.loop.is_killed:
            self._record.met[f"told {entry.state}"] += 1
            self._record.told[entry.number] += 1
            self._say(self.name, f"on_failure: message {entry.number} is {entry.state}")

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.loop.is_killed:
            return
        what = f"{context.get('message')}: {context.get('exception')!r}"
        self._record.crashed.append(what[:200])
        self._say(self.name, f"the loop complains: {what}")

    # Putting

    async def _step(self, outbox: Outbox, since: float, number: int, step: AnyStep) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, since + step.at - loop.time()))
        try:
            match step:
                case Put():
                    await self._put(outbox, number, step)
                case PutMany():
                    await self._put_many(outbox, number, step)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self._record.crashed.append(f"put: {error!r}"[:200])
        self._left.pop(number, None)

    async def _put(self, outbox: Outbox, number: int, step: Put) -> None:
        message, content = self._message(number, step)
        found: list[int] = []
        for _ in range(2 if step.twice and step.key else 1):
            put = await self._surely(lambda: outbox.put(message), repeat=step.key)
            if put is None:
                return
            found.append(put)
        self._known(found, content)
        if step.cancel is not None:
            await asyncio.sleep(step.cancel)
            cancelled = await self._surely(lambda: outbox.cancel(found[0]), repeat=False)
            self._say(self.name, f"cancels message {found[0]}: {cancelled}")
            if cancelled:
                self._record.put[found[0]] += CANCELLED

    async def _put_many(self, outbox: Outbox, number: int, step: PutMany) -> None:
        business = business_of(step.business)
        messages = [
            OutboxMessage(business, chat, text, key=f"k{number}-{index}", bulk=step.bulk)
            for index, (chat, text) in enumerate(step.messages)
        ]
        numbers = await self._surely(lambda: outbox.put_many(messages), repeat=True)
        assert numbers is not None
        for one, (_, text) in zip(numbers, step.messages, strict=True):
            self._known([one], content_of(text))

    def _message(self, number: int, step: Put) -> tuple[OutboxMessage | OutboxFile, str]:
        options: dict[str, Any] = {
            "key": f"k{number}" if step.key else None,
            "bulk": step.bulk,
            "not_before": self._moment(step.not_before),
            "not_after": self._moment(step.not_after),
        }
        business = business_of(step.business)
        content = content_of(step.text, step.size)
        if step.order is not None:
            return OutboxMessage.to_order(business, step.order, step.text, **options), content
        if step.size:
            body = b"x" * step.size
            return OutboxFile(business, step.chat, body, filename=step.text, **options), content
        return OutboxMessage(business, step.chat, step.text, **options), content

    def _moment(self, seconds: float | None) -> datetime | None:
        if seconds is None:
            return None
        # The story has begun nearly at the beginning of the world.
        return datetime.fromtimestamp(BEGINNING + self.story.market.clock_offset + seconds, UTC)

    async def _surely(self, put: Callable[[], Coroutine[Any, Any, Any]], *, repeat: bool) -> Any:
        while True:
            try:
                return await put()
            except OutboxDatabaseError as error:
                self._record.met["put failed"] += 1
                self._say(self.name, f"cannot put: {error}")
                if not repeat:
                    return None
            except KeyConflictError as error:
                self._record.wrong.append(f"a key conflict: {error}")
                return None
            await asyncio.sleep(AGAIN)

    def _known(self, numbers: Sequence[int], content: str) -> None:
        if len(set(numbers)) > 1:
            self._record.wrong.append(f"{content!r} has the numbers {numbers}")
        for number in numbers:
            self._record.put.setdefault(number, content)
        self._say(self.name, f"has put message {numbers[0]}: {content!r}")


CANCELLED = "\0cancelled"


def steps_of(story: Story, machine: int) -> Iterator[tuple[int, AnyStep]]:
    """Yield the steps of a machine, with their numbers."""
    for number, step in enumerate(story.steps):
        if min(step.machine, story.workers) == machine:
            yield number, step
