"""The second scene of the demo: the process that sends is killed three times.

The messages are in an outbox. Workers deliver from it, each in a process of its own.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from yamarket_chat.errors import ChatError
from yamarket_chat.limits import Rate
from yamarket_chat.sandbox import Sandbox

from . import console
from .demo_record import Plan, Record, collect, differences, in_order

if TYPE_CHECKING:
    # SQLAlchemy takes a fifth of a second, and no other command needs it.
    from yamarket_chat.outbox import Outbox

PLAN = Plan(
    chats=32,
    messages_each=10,
    # One after another, so that a kill leaves one message in doubt. Its parallel slot stays taken
    # for 10 s, and the others do for what follows.
    rate=Rate(1000, per=50.0, burst=1),
    parallel=4,
    latency=(0.02, 0.03),
)

KILLS = (50, 150, 250)
"""How many messages have arrived when a worker is killed."""

LEASE = 3.0
"""Seconds. On SQLite a lock of the system proves a death, so nobody waits for the lease."""

SETTLE_AFTER = 10.0
"""Seconds. The minimum, because the Market may process a request for up to 10 s."""

LONGEST = 60.0
"""Seconds that the mailing may take. It takes about 30."""

TICK = 0.005


class Failed(Exception):
    """The scene cannot go on. The text says why."""


class Worker(NamedTuple):
    """A process that delivers."""

    process: Process
    stdin: StreamWriter
    stdout: StreamReader
    stderr: StreamReader


class Workers:
    """Processes that deliver. Those that were not told to begin have imported all they need."""

    def __init__(self) -> None:
        self._all: list[Worker] = []

    async def start(self, task: bytes) -> None:
        """Start a process, which waits until `begin`."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "yamarket_chat.cli.demo_worker", task.decode()),
            stdin=PIPE,  # its end ends the worker, however this process ends
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # Ctrl-C is for the demo, which ends the workers
        )
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError
        self._all.append(Worker(process, process.stdin, process.stdout, process.stderr))

    async def begin(self, number: int) -> int:
        """Let a worker deliver, and return the id of its process once it does."""
        worker = self._all[number - 1]
        worker.stdin.write(b"\n")
        if not await worker.stdout.readline():
            said = (await worker.stderr.read()).decode(errors="replace").splitlines()
            raise Failed(f"worker {number} ended: {said[-1] if said else 'it did not say why'}")
        return worker.process.pid

    async def kill(self, number: int) -> None:
        """Kill a worker. It can do nothing about it, not even say so."""
        await _kill([self._all[number - 1].process])

    async def end(self) -> None:
        """Kill all that are left."""
        await _kill([one.process for one in self._all if one.process.returncode is None])


async def _kill(processes: list[Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it has just ended
            process.kill()
    for process in processes:
        await process.communicate()  # to the end of its pipes


class Seen(msgspec.Struct):
    """What the scene has seen besides the sandbox's record."""

    pauses: list[float] = []  # from a kill until the next message arrived
    settled: Counter[str] = msgspec.field(default_factory=Counter)  # how the doubts ended
    failed: list[str] = []  # why messages were refused, or are unknown


async def run(plan: Plan) -> bool:
    """Play the scene, and show what the sandbox recorded. Return True if all checks passed."""
    console.out.print(_introduction(plan))
    seen = Seen()
    problems: list[str] = []
    async with Sandbox(
        limits={"send_message": plan.rate},
        parallel=plan.parallel,
        latency=partial(random.uniform, *plan.latency),
    ) as market:
        try:
            async with asyncio.timeout(LONGEST), _workers(plan, market) as (outbox, workers):
                await _mail(plan, market, outbox, workers, seen)
        except TimeoutError:
            problems.append(f"the mailing did not end within {LONGEST:g} s")
        except Failed as failed:
            problems.append(str(failed))
        record = collect(plan, market)
    console.out.print(_report(plan, record, seen))
    if seen.failed:
        problems.append(
            f"not delivered or unknown: {len(seen.failed)}, the first: {seen.failed[0]}"
        )
    problems += differences(plan, record)
    for problem in problems:
        console.failure(problem)
    if not problems:
        console.out.print(
            "\nEverything arrived once and in order, although the process that sent was killed"
            f" {len(KILLS)} times.",
            style="green",
        )
    return not problems


@asynccontextmanager
async def _workers(plan: Plan, market: Sandbox) -> AsyncIterator[tuple[Outbox, Workers]]:
    """An outbox, and one worker more than will be killed. In the end no process is left."""
    from yamarket_chat.outbox import Outbox

    from .demo_worker import Task

    workers = Workers()
    with tempfile.TemporaryDirectory(
        prefix="yamarket-demo-",
        ignore_cleanup_errors=True,  # Ctrl-C may come again before the workers have ended
    ) as folder:
        database = f"sqlite:///{Path(folder, 'outbox.db')}"
        task = Task(
            database=database,
            base_url=market.url,
            api_key=market.api_key,
            business_id=market.business_id,
            parallel=plan.parallel,
            rate=plan.rate,
            lease=LEASE,
            settle_after=SETTLE_AFTER,
        )
        async with Outbox(database) as outbox:
            try:
                await outbox.create()
                for _ in range(len(KILLS) + 1):
                    await workers.start(msgspec.json.encode(task))
                yield outbox, workers
            finally:
                await workers.end()


async def _mail(plan: Plan, market: Sandbox, outbox: Outbox, workers: Workers, seen: Seen) -> None:
    """Put the messages, and kill worker after worker until the last one has sent the rest."""
    from yamarket_chat.outbox import OutboxMessage

    progress = Progress(
        TextColumn("Sending"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console.err,
        disable=not console.err.is_terminal,
    )
    with progress:
        bar = progress.add_task("", total=plan.total)

        async def until(condition: Callable[[], bool]) -> None:
            while not condition():
                progress.update(bar, completed=market.messages_stored)
                await asyncio.sleep(TICK)

        numbers = await outbox.put_many(
            OutboxMessage(market.business_id, message.chat_id, message.text)
            for message in plan.messages()
        )
        console.note(f"{plan.total} messages are in the outbox.")
        process = await workers.begin(1)
        console.note(f"Worker 1 (process {process}) sends.")
        loop = asyncio.get_running_loop()
        for victim, count in enumerate(KILLS, 1):
            process = await workers.begin(victim + 1)
            console.note(f"Worker {victim + 1} (process {process}) stands by.")
            await until(lambda: market.messages_stored >= count)  # noqa: B023
            # A request has just begun, and those before it are written down.
            await until(lambda: market.requests("send_message") == market.messages_stored)
            await until(lambda: market.requests("send_message") > market.messages_stored)
            await workers.kill(victim)
            killed, stored = loop.time(), market.messages_stored
            in_doubt = (await outbox.status()).leaving  # nobody has taken over yet
            console.note(
                f"{stored} messages have arrived: kill -9 worker {victim}! It was just sending:"
                f" {console.number(in_doubt, 'message')} may have arrived or not."
            )
            await until(lambda: market.messages_stored > stored + in_doubt)  # noqa: B023
            seen.pauses.append(loop.time() - killed)
            why = ""
            if in_doubt >= plan.parallel:
                why = f" The Market may have been busy with all {plan.parallel} parallel requests."
            console.note(f"Worker {victim + 1} goes on, {seen.pauses[-1]:.1f} s later.{why}")
        console.note(
            f"The chats of these messages wait for {SETTLE_AFTER:g} s. Then their histories tell."
        )
        for number in numbers:
            try:
                receipt = await outbox.result(number)
            except ChatError as error:
                seen.failed.append(console.describe(error))
                continue
            if receipt.confirmed_by == "history":
                seen.settled["history"] += 1
            elif receipt.requests > 1:
                seen.settled["again"] += 1
            progress.update(bar, completed=market.messages_stored)


def _introduction(plan: Plan) -> Text:
    return Text.assemble(
        "\n",
        ("Scene 2 of 2: kill -9", "bold underline"),
        "\n\nA process may die at any moment: kill -9, a power cut, too little memory. What it had"
        f" in its memory is lost then. So the demo puts {plan.total} messages into an outbox, which"
        " is a file here. Worker processes send from the outbox, one at a time, while another one"
        f" stands by. The demo kills the one that sends, {len(KILLS)} times, within about 30 s.",
    )


def _report(plan: Plan, record: Record, seen: Seen) -> RenderableType:
    chats = sum(in_order(plan, record, chat_id) for chat_id in plan.chat_ids)
    sent, stored = _counted(plan, record)
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in (
        ("Killed", f"{len(seen.pauses)} of {len(KILLS) + 1} workers"),
        ("Arrived", f"{record.total} of {plan.total} messages, in {len(record.chats)} chats"),
        ("Lost", console.number((sent - stored).total(), "message")),
        ("Doubled", console.number((stored - sent).total(), "message")),
        ("In order", f"{chats} of {plan.chats} chats"),
        (
            "In doubt",
            f"{seen.settled.total()}; found in the chat's history {seen.settled['history']},"
            f" sent again {seen.settled['again']}",
        ),
        ("Took over", "after " + ", ".join(f"{pause:.1f} s" for pause in seen.pauses)),
        (
            "Fullest window",
            f"{record.fullest_window} requests in {plan.rate.per:g} s,"
            f" of {plan.rate.requests} allowed to all workers together",
        ),
    ):
        table.add_row(Text(name, style="bold"), value)
    return Group("", Text("What the sandbox has recorded", style="bold underline"), table)


def _counted(plan: Plan, record: Record) -> tuple[Counter[object], Counter[object]]:
    """Return the messages that were put, and those that the chats have."""
    put = ((chat_id, text) for chat_id in plan.chat_ids for text in plan.texts)
    stored = ((chat_id, text) for chat_id in record.chats for text in record.texts(chat_id))
    return Counter(put), Counter(stored)
