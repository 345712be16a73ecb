"""The demo: many messages through a sandbox, and what its books say about them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from yamarket_chat.limits import Limits, Rate
from yamarket_chat.receipts import OutgoingMessage, Refused, Unknown
from yamarket_chat.retry import Retry
from yamarket_chat.sandbox import Fault, Sandbox, StoredMessage, numbered_faults
from yamarket_chat.sandbox.faults import FaultPlan
from yamarket_chat.session import ChatSession

from . import console

FIRST_CHAT = 101


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo sends, and the limits of the sandbox and the session.

    `latency` is the least and the largest number of seconds that a request takes.
    """

    chats: int
    messages_each: int
    rate: Rate
    parallel: int
    latency: tuple[float, float]
    faults: tuple[Fault, ...] = ()

    @property
    def total(self) -> int:
        return self.chats * self.messages_each

    @property
    def least_seconds(self) -> float:
        """The least time in which the limit lets all messages through."""
        return (self.total - 1) // self.rate.requests * self.rate.per

    @property
    def chat_ids(self) -> range:
        return range(FIRST_CHAT, FIRST_CHAT + self.chats)

    @property
    def texts(self) -> list[str]:
        """What each chat gets, in this order."""
        return [f"Update {n} of {self.messages_each}" for n in range(1, self.messages_each + 1)]

    def messages(self) -> Iterator[OutgoingMessage]:
        for text in self.texts:
            for chat_id in self.chat_ids:
                yield OutgoingMessage(chat_id, text)


PLAN = Plan(chats=40, messages_each=10, rate=Rate(100, per=2.0), parallel=4, latency=(0.01, 0.03))

AMONG = 80
"""The first requests, among which are those that fail: so all is settled at about the same time."""
FAULTS = (
    *(Fault("reset", when=when) for when in ("before", "after")),
    *(Fault("half_body", when=when) for when in ("before", "after")),
    *(Fault("status", status=500, when=when) for when in ("before", "after")),
    *(Fault("status", status=502, html=True, when=when) for when in ("before", "after")),
    *(Fault("status", status=200, when=when) for when in ("before", "after")),
    *(Fault("status", status=504, when=when) for when in ("before", "after")),
    Fault("status", status=503),
)
"""Of each of them one; none of those after which an answer is waited for in vain."""
SETTLE_AFTER = 10.0
"""Seconds, the least that the Market's cut-off allows; for real work it is 15."""


def demo(
    *,
    faults: Annotated[
        bool,
        typer.Option(
            "--faults", help="Let some requests fail, before or after they are carried out."
        ),
    ] = False,
) -> None:
    """Send a few hundred messages through a sandbox on this machine, in some seconds.

    Nothing leaves this machine. What is shown at the end is what the sandbox saw.

    Example: yamarket-chat demo --faults
    """
    plan = msgspec.structs.replace(PLAN, faults=FAULTS) if faults else PLAN
    if not asyncio.run(play(plan)):
        raise typer.Exit(1)


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox's books say when all is over.

    `seconds` is the time from the first request to the last, `left` how much of the limit is.
    """

    chats: dict[int, list[StoredMessage]]
    refused: int
    busiest: int
    fullest_window: int
    seconds: float
    left: int

    @property
    def total(self) -> int:
        return sum(map(len, self.chats.values()))

    def texts(self, chat_id: int) -> list[str]:
        return [message.text or "" for message in self.chats.get(chat_id, [])]


async def play(plan: Plan) -> bool:
    """Send the plan's messages through a sandbox and show its books; whether all is as promised."""
    console.out.print(_introduction(plan))
    market = Sandbox(
        limits={"send_message": plan.rate},
        parallel=plan.parallel,
        latency=partial(random.uniform, *plan.latency),
    )
    if plan.faults:
        market.faults = _somewhere(plan.faults)
    async with market:
        settled: Counter[str] = Counter()
        failed = await _send(plan, market, settled)
        books = _read(plan, market)
    console.out.print(_report(plan, books, settled))
    problems = _problems(plan, books, failed)
    for problem in problems:
        console.failure(problem)
    if not problems:
        console.out.print(
            "\nEverything arrived once, in order and within the limits.", style="green"
        )
    return not problems


def _somewhere(faults: Sequence[Fault]) -> FaultPlan:
    """Each fault for one of the first messages, elsewhere each time."""
    numbers = random.sample(range(1, AMONG + 1), len(faults))
    return numbered_faults(dict(zip(numbers, faults, strict=True)), operation="send_message")


async def _send(plan: Plan, market: Sandbox, settled: Counter[str]) -> list[Refused | Unknown]:
    """Send everything; the outcomes of what was not delivered. Counts how the rest was settled."""
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


def _read(plan: Plan, market: Sandbox) -> Books:
    counted = [
        arrival.time
        for arrival in market.arrivals
        if arrival.operation == "send_message" and arrival.counted
    ]
    window_began = asyncio.get_running_loop().time() - plan.rate.per
    return Books(
        chats={chat_id: market.messages(chat_id) for chat_id in market.chat_ids},
        refused=market.refused,
        busiest=market.busiest,
        fullest_window=market.busiest_window("send_message"),
        seconds=counted[-1] - counted[0] if counted else 0.0,
        left=plan.rate.requests - sum(time > window_began for time in counted),
    )


def _problems(plan: Plan, books: Books, failed: list[Refused | Unknown]) -> list[str]:
    """Where the books say something else than what was promised, a line each."""
    problems = []
    errors = [console.describe(outcome.error) for outcome in failed]
    if errors:
        problems.append(f"not known to be delivered: {len(errors)}, the first: {errors[0]}")
    missing: list[str] = []
    surplus: list[str] = []
    for chat_id in sorted({*plan.chat_ids, *books.chats}):
        sent = Counter(plan.texts if chat_id in plan.chat_ids else ())
        stored = Counter(books.texts(chat_id))
        missing += (f"{text!r} in chat {chat_id}" for text in (sent - stored).elements())
        surplus += (f"{text!r} in chat {chat_id}" for text in (stored - sent).elements())
    mixed = [f"chat {chat_id}" for chat_id in plan.chat_ids if not _in_order(plan, books, chat_id)]
    for kind, found in (
        ("messages missing", missing),
        ("messages stored more often than sent", surplus),
        ("chats out of order", mixed),
    ):
        if found:
            problems.append(f"{kind}: {len(found)}, the first: {found[0]}")
    if books.refused:
        problems.append(f"requests refused: {books.refused}")
    if books.busiest > plan.parallel:
        problems.append(f"requests at once: {books.busiest}, allowed: {plan.parallel}")
    if books.fullest_window > plan.rate.requests:
        problems.append(
            f"requests in {plan.rate.per:g} s: {books.fullest_window},"
            f" allowed: {plan.rate.requests}"
        )
    return problems


def _in_order(plan: Plan, books: Books, chat_id: int) -> bool:
    """Whether what arrived did so in the order of the plan, however often it did."""
    stored = dict.fromkeys(books.texts(chat_id))
    return [text for text in plan.texts if text in stored] == [
        text for text in stored if text in plan.texts
    ]


def _introduction(plan: Plan) -> Text:
    documented = Limits().send_message
    least, most = (round(1000 * seconds) for seconds in plan.latency)
    text = Text(
        f"{plan.total} messages go to {plan.chats} chats of a sandbox on this machine; nothing"
        f" leaves it. The Market allows {documented.requests} requests in {documented.per:g} s;"
        f" here it is {plan.rate.requests} in {plan.rate.per:g} s, so that you need not wait for"
        f" hours. {plan.parallel} may be under way at once, and each takes {least} to {most} ms."
    )
    if plan.faults:
        text.append(
            f"\n\n{len(plan.faults)} of the requests fail: a reset, half an answer, 5xx, HTML,"
            " before or after the message was stored. Whether it arrived, its chat's history tells"
            f" {SETTLE_AFTER:.0f} s later, when the Market can no longer be at it (for real work,"
            f" {Retry().settle_after:.0f} s); only that chat waits. It takes about a"
            " quarter of a minute."
        )
    return text


def _report(plan: Plan, books: Books, settled: Counter[str]) -> RenderableType:
    in_order = sum(_in_order(plan, books, chat_id) for chat_id in plan.chat_ids)
    rate = books.total / books.seconds if books.seconds else 0.0
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in (
        ("Arrived", f"{books.total} of {plan.total} messages, in {len(books.chats)} chats"),
        ("In order", f"{in_order} of {plan.chats} chats"),
        ("Refused", f"{books.refused} requests"),
        ("Busiest moment", f"{books.busiest} requests at once, of {plan.parallel} allowed"),
        (
            "Fullest window",
            f"{books.fullest_window} requests in {plan.rate.per:g} s,"
            f" of {plan.rate.requests} allowed",
        ),
        (
            "Rate",
            f"{rate:.0f} a second, all in {books.seconds:.1f} s;"
            f" the limit alone takes {plan.least_seconds:.1f} s",
        ),
        ("Left of the quota", f"{books.left} of {plan.rate.requests} requests at this moment"),
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
    for message in books.chats.get(sample, []):
        chat.add_row(Text(f"{message.created_at.astimezone():%H:%M:%S}", style="dim"), message.text)
    return Group(
        "",
        Text("What the sandbox's books say", style="bold underline"),
        table,
        "",
        Text(f"Chat {sample}, for example", style="bold underline"),
        chat,
    )
