"""The command `demo`: send messages through a sandbox and show what the sandbox recorded.

Its first scene is here, and the second one, with an outbox and killed workers, in `demo_kills`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from yamarket_chat.limits import Limits, Rate
from yamarket_chat.receipts import Refused, Unknown
from yamarket_chat.retry import Retry
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults
from yamarket_chat.sandbox.faults import FaultPlan
from yamarket_chat.session import ChatSession

from . import console, demo_kills, signals
from .demo_record import Plan, Record, collect, differences, in_order

PLAN = Plan(chats=40, messages_each=10, rate=Rate(100, per=2.0), parallel=4, latency=(0.01, 0.03))

FAULTS_WITHIN = 80
"""The faults hit some of the first requests, so that all are resolved at about the same time."""
FAULTS = (
    *(Fault("reset", when=when) for when in ("before", "after")),
    Fault("half_body", when="after"),
    *(Fault("status", status=500, when=when) for when in ("before", "after")),
    Fault("status", status=502, html=True, when="after"),
    *(Fault("status", status=200, when=when) for when in ("before", "after")),
    *(Fault("status", status=504, when=when) for when in ("before", "after")),
    Fault("status", status=503),
)
"""The demo uses each fault once. Faults that make the client wait for its timeout are left out.

Four of them hold a parallel slot for 10 s: more would leave no slot for the others.
"""
SETTLE_AFTER = 10.0
"""Seconds. The minimum, because the Market may process a request for up to 10 s."""


def demo(
    *,
    faults: Annotated[
        bool,
        typer.Option("--faults", help="Let some requests fail, before or after they are executed."),
    ] = False,
) -> None:
    """Send a few hundred messages through a sandbox on this machine, within a minute.

    First the demo sends as fast as the limits allow. Then it puts the messages into an outbox, and
    kills the process that delivers them, three times. Nothing leaves this machine. At the end of
    each scene the demo shows what the sandbox has recorded.

    Example: yamarket-chat demo --faults
    """
    if not signals.run(scenes(plan_of(faults=faults))):
        raise typer.Exit(1)


def plan_of(*, faults: bool) -> Plan:
    """Return the plan of the first scene."""
    return msgspec.structs.replace(PLAN, faults=FAULTS) if faults else PLAN


async def scenes(plan: Plan) -> bool:
    """Show both scenes. Return True if all checks passed."""
    return await run(plan) and await demo_kills.run(demo_kills.PLAN)


async def run(plan: Plan) -> bool:
    """Send the messages through a sandbox and show its record. Return True if all checks passed."""
    console.out.print(_introduction(plan))
    market = Sandbox(
        limits={"send_message": plan.rate},
        parallel=plan.parallel,
        latency=partial(random.uniform, *plan.latency),
    )
    if plan.faults:
        market.faults = _at_random_requests(plan.faults)
    async with market:
        settled: Counter[str] = Counter()
        failed = await _send(plan, market, settled)
        record = collect(plan, market)
    console.out.print(_report(plan, record, settled))
    problems = _problems(plan, record, failed)
    for problem in problems:
        console.failure(problem)
    if not problems:
        console.out.print(
            "\nEverything arrived once, in order and within the limits.", style="green"
        )
    return not problems


def _at_random_requests(faults: Sequence[Fault]) -> FaultPlan:
    """Assign each fault to a random one of the first requests."""
    numbers = random.sample(range(1, FAULTS_WITHIN + 1), len(faults))
    return numbered_faults(dict(zip(numbers, faults, strict=True)), operation="send_message")


def _problems(plan: Plan, record: Record, failed: list[Refused | Unknown]) -> list[str]:
    """Compare the record with the plan. Return a line for each difference."""
    problems = []
    errors = [console.describe(outcome.error) for outcome in failed]
    if errors:
        problems.append(f"not delivered or unknown: {len(errors)}, the first: {errors[0]}")
    problems += differences(plan, record)
    if record.refused:
        problems.append(f"requests refused: {record.refused}")
    if record.busiest > plan.parallel:
        problems.append(f"parallel requests: {record.busiest}, allowed: {plan.parallel}")
    if record.fullest_window > plan.rate.requests:
        problems.append(
            f"requests in {plan.rate.per:g} s: {record.fullest_window},"
            f" allowed: {plan.rate.requests}"
        )
    return problems


async def _send(plan: Plan, market: Sandbox, settled: Counter[str]) -> list[Refused | Unknown]:
    """Send all messages and return the outcomes that are not delivered.

    Counts in `settled` how the outcomes of failed requests were found out.
    """
    failed: list[Refused | Unknown] = []
    progress = Progress(
        TextColumn("Sending"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console.err,
        disable=not console.err.is_terminal,
    )
    session = ChatSession(
        market.api_key,
        market.business_id,
        base_url=market.url,
        limits=Limits(parallel=plan.parallel, send_message=plan.rate),
        retry=Retry(settle_after=SETTLE_AFTER) if plan.faults else Retry(),
    )
    with progress:
        bar = progress.add_task("", total=plan.total)
        async with session:
            async for outcome in session.send_many(plan.messages()):
                progress.advance(bar)
                if outcome.status != "delivered":
                    failed.append(outcome)
                elif outcome.receipt.confirmed_by == "history":
                    settled["history"] += 1
                elif outcome.receipt.requests > 1:
                    settled["again"] += 1
    return failed


def _introduction(plan: Plan) -> Text:
    documented = Limits().send_message
    least, most = (round(1000 * seconds) for seconds in plan.latency)
    text = Text.assemble(
        ("Scene 1 of 2: the limits", "bold underline"),
        f"\n\nThe demo sends {plan.total} messages to {plan.chats} chats of a sandbox. Nothing"
        f" leaves this machine. The Market allows {documented.requests} requests in"
        f" {documented.per:g} s; the sandbox allows {plan.rate.requests} in {plan.rate.per:g} s, so"
        f" that you do not have to wait for hours. Up to {plan.parallel} requests run in parallel,"
        f" and each takes {least} to {most} ms.",
    )
    if plan.faults:
        text.append(
            f"\n\n{len(plan.faults)} of the requests fail: a reset, half a response, 5xx or HTML,"
            " before or after the message was stored. To find out whether it was stored, the"
            f" session reads the chat's history {SETTLE_AFTER:.0f} s later, when the Market can no"
            " longer be processing the request (by default"
            f" {Retry().settle_after:.0f} s later). Only this chat waits. This takes about 20 s."
        )
    return text


def _report(plan: Plan, record: Record, settled: Counter[str]) -> RenderableType:
    chats = sum(in_order(plan, record, chat_id) for chat_id in plan.chat_ids)
    rate = record.total / record.seconds if record.seconds else 0.0
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in (
        ("Arrived", f"{record.total} of {plan.total} messages, in {len(record.chats)} chats"),
        ("In order", f"{chats} of {plan.chats} chats"),
        ("Refused", f"{record.refused} requests"),
        ("Busiest moment", f"{record.busiest} parallel requests, of {plan.parallel} allowed"),
        (
            "Fullest window",
            f"{record.fullest_window} requests in {plan.rate.per:g} s,"
            f" of {plan.rate.requests} allowed",
        ),
        (
            "Rate",
            f"{rate:.0f} per second, {record.seconds:.1f} s in total;"
            f" the limit requires {plan.least_seconds:.1f} s",
        ),
        ("Left of the limit", f"{record.left} of {plan.rate.requests} requests at this moment"),
    ):
        table.add_row(Text(name, style="bold"), value)
    if plan.faults:
        value = (
            f"{len(plan.faults)}; found in the chat's history {settled['history']},"
            f" sent again {settled['again']}"
        )
        table.add_row(Text("Failed requests", style="bold"), value)
    sample = plan.chat_ids[plan.chats // 2]
    chat = Table.grid(padding=(0, 3, 0, 0))
    for message in record.chats.get(sample, []):
        chat.add_row(Text(f"{message.created_at.astimezone():%H:%M:%S}", style="dim"), message.text)
    return Group(
        "",
        Text("What the sandbox has recorded", style="bold underline"),
        table,
        "",
        Text(f"Example: chat {sample}", style="bold underline"),
        chat,
    )
