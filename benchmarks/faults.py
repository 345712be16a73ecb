"""Missing, doubled and misplaced messages when requests fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests import virtual
from yamarket_chat import ChatError, DeliveryUnknownError
from yamarket_chat.sandbox import Sandbox, random_faults
from yamarket_chat.sandbox.faults import EVERY_FAULT

from .limit import LATENCY, PER, REQUESTS, Open
from .report import Figures, Plot, Report, Step, Table
from .rivals import API_KEY, BUSINESS_ID, GaveUp, Send, aiohttp_by_hand, ours

TITLE = "Under faults"
KINDS = [fault for fault in EVERY_FAULT if fault.kind != "rate_limit"]
ABOUT = f"""
A share of all requests fails, each in one of {len(KINDS)} ways: reset, no response, 5xx, an HTML
page, half a body, a redirect, too many parallel requests. A fault happens before or after the
message was stored, if both make sense. The clock is virtual, the limits are the documented ones,
and a response takes 0.1 s.

*By hand* is aiohttp with AsyncLimiter(1000, 3600), a semaphore and up to 12 attempts, like
yamarket_chat. *A task a chat* awaits each message before the next one. *All at once* starts all
messages at the same time, and so does yamarket_chat. The Market may work on a request for up to 10
s after its connection broke. A semaphore does not know this, so the next requests are refused,
again and again. yamarket_chat holds the parallel slot of such a request for these 10 s, and
also after an answer that is not the Market's own. That takes up most of its time.

*Not delivered*: the message is not in the chat. *Wrong result*: the client reported a message as
sent that is not in the chat, or as failed that is in the chat. *Reported unknown*: the client said
that the outcome is unknown. *Out of order*: the message is stored after a message to the same chat
that was submitted later.
"""


@dataclass
class Client:
    """How to open a client, and whether it gets all messages of a chat at once."""

    open: Open
    all_at_once: bool = False


_BY_HAND = partial(aiohttp_by_hand, requests=REQUESTS, per=PER, attempts=12)
CLIENTS = {
    "yamarket_chat": Client(partial(ours, requests=REQUESTS), all_at_once=True),
    "by hand, all at once": Client(_BY_HAND, all_at_once=True),
    "by hand, a task a chat": Client(_BY_HAND),
    "by hand, no retries": Client(partial(_BY_HAND, attempts=1)),
}


@dataclass
class Size:
    """How much is measured."""

    rates: tuple[float, ...]
    seeds: int
    chats: int
    messages: int
    """Messages to each chat."""


SIZES = {
    "full": Size((0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5), seeds=5, chats=30, messages=20),
    "quick": Size((0.0, 0.1, 0.3, 0.5), seeds=1, chats=30, messages=20),
    "tiny": Size((0.3,), seeds=1, chats=3, messages=2),
}
_COUNTED = ("not_delivered", "doubled", "out_of_order", "wrongly_told", "unknown")


def steps(size: Size) -> int:
    return len(size.rates) * len(CLIENTS) * size.seeds


def run(size: Size, step: Step) -> Figures:
    rows = []
    for rate in size.rates:
        for name, client in CLIENTS.items():
            total: Counter[str] = Counter()
            for seed in range(size.seeds):
                total.update(virtual.run(_sent(client, size, rate, seed)))
                step(f"faults: {rate:.0%}, {name}")
            hours = total.pop("seconds") / size.seeds / 3600
            rows.append({"client": name, "rate": rate, "hours": hours, **total})
    return {"messages": size.chats * size.messages * size.seeds, "rows": rows}


async def _sent(client: Client, size: Size, rate: float, seed: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    told: dict[tuple[int, str], bool | None] = {}

    async def one(send: Send, chat_id: int, text: str) -> None:
        try:
            await send(chat_id, text)
        except DeliveryUnknownError:
            told[chat_id, text] = None
        except (ChatError, GaveUp):
            told[chat_id, text] = False
        else:
            told[chat_id, text] = True

    async def in_turn(send: Send, chat_id: int) -> None:
        for text in texts:
            await one(send, chat_id, text)

    chats = range(1, size.chats + 1)
    texts = [f"Сообщение {number}" for number in range(size.messages)]
    market = Sandbox(
        api_key=API_KEY,
        business_id=BUSINESS_ID,
        latency=LATENCY,
        faults=random_faults(rate, seed, kinds=KINDS),
    )
    async with market, client.open(market.url) as send:
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            if client.all_at_once:
                for text in texts:
                    for chat_id in chats:
                        group.create_task(one(send, chat_id, text))
            else:
                for chat_id in chats:
                    group.create_task(in_turn(send, chat_id))
        seconds = loop.time() - began
        await asyncio.sleep(20)  # wait for requests that are carried out after they failed
        stored = {chat_id: [row.text for row in market.messages(chat_id)] for chat_id in chats}
    counts = _counted(texts, stored, told)
    return {"seconds": seconds, **counts}


def _counted(
    texts: list[str],
    stored: dict[int, list[str | None]],
    told: dict[tuple[int, str], bool | None],
) -> dict[str, int]:
    counts = dict.fromkeys(_COUNTED, 0)
    for chat_id, rows in stored.items():
        for text in texts:
            copies = rows.count(text)
            counts["not_delivered"] += copies == 0
            counts["doubled"] += copies > 1
            said = told[chat_id, text]
            counts["unknown"] += said is None
            counts["wrongly_told"] += said is not None and said != (copies > 0)
        firsts = [texts.index(text) for text in dict.fromkeys(rows) if text is not None]
        counts["out_of_order"] += sum(
            any(later > number for later in firsts[:place]) for place, number in enumerate(firsts)
        )
    return counts


def report(figures: Figures) -> Report:
    tables = []
    rows = figures["rows"]
    header = [
        "client",
        "not delivered",
        "doubled",
        "out of order",
        "wrong result",
        "reported unknown",
        "minutes",
    ]
    for rate in sorted({row["rate"] for row in rows}):
        shown = [
            [row["client"], *(f"{row[kind]:,}" for kind in _COUNTED), _minutes(row)]
            for row in rows
            if row["rate"] == rate
        ]
        tables.append(Table(f"{rate:.0%} of requests fail", header, shown))
    plots = [
        Plot(
            f"faults-{kind.replace('_', '-')}",
            f"Messages {kind.replace('_', ' ')} of {figures['messages']:,}",
            "% of requests that fail",
            "messages",
            _lines(rows, kind),
            log_x=False,
        )
        for kind in ("not_delivered", "doubled")
    ]
    return Report(tables, plots, list(_remarks(figures)))


def _minutes(row: Figures) -> str:
    return f"{60 * row['hours']:.1f}"


def _lines(rows: list[Figures], kind: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["client"], []).append((100 * row["rate"], row[kind]))
    return lines


def _remarks(figures: Figures) -> Iterable[str]:
    yield f"Each row sums up {figures['messages']:,} messages."
    own = [row for row in figures["rows"] if row["client"] == "yamarket_chat"]
    total = {kind: sum(row[kind] for row in own) for kind in _COUNTED}
    yield (
        f"yamarket_chat over all rates: {total['doubled']} doubled, {total['out_of_order']} out of"
        f" order, {total['wrongly_told']} wrong results, {total['unknown']} reported as unknown,"
        f" {total['not_delivered']} not delivered."
    )
    for mine in own:
        quicker = [
            f"{row['client']} ({_minutes(row)})"
            for row in figures["rows"]
            if row["rate"] == mine["rate"] and row["hours"] < 0.99 * mine["hours"]
        ]
        if quicker:
            yield (
                f"At {mine['rate']:.0%} yamarket_chat takes {_minutes(mine)} minutes, longer than"
                f" {', '.join(quicker)}, because it waits until the history is conclusive."
            )
