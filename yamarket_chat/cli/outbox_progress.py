"""What `outbox deliver` shows: a line that changes on a terminal, else a line from time to time."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from rich.live import Live
from rich.text import Text

from yamarket_chat.errors import ChatError
from yamarket_chat.limits import HOUR, Rate

from . import console
from .outbox_status import age, describe_load, describe_pause

if TYPE_CHECKING:
    from sqlalchemy import URL

    from yamarket_chat.outbox.overview import Overview

SHOW_EVERY = 1.0
"""Seconds between two looks on a terminal."""

LINE_EVERY = 60.0
"""Seconds between two lines without one."""

SHARE = 20
"""A look counts all that waits. It may take one part of so many of the time."""

OVER = 30.0
"""Seconds over which the rate is measured."""

PAUSES_SHOWN = 5


class Report(msgspec.Struct):
    """What `--json` prints."""

    at: datetime
    waiting: int
    not_due: int
    leaving: int
    oldest_seconds: float | None
    requests_per_second: float
    in_the_hour: int  # of the business that has sent most
    limit: int | None
    workers: int
    paused: dict[int, str]


class DeliveryProgress:
    """Looks at the outbox, and shows it.

    Args:
        url: The database.
        rate: The limit of a business.
        json: True prints reports on standard output instead of lines.
        only: The business, if there is one alone.
    """

    def __init__(self, url: URL | str, rate: Rate, *, json: bool, only: int | None) -> None:
        from yamarket_chat.outbox.database import Database

        # Not the connection of the delivery: that must not wait for a look.
        self._database = Database(url)
        # The hour's use says nothing of a limit for another time.
        self._limit = rate.requests if rate.per == HOUR else None
        self._json = json
        self._only = only
        self._counted: deque[tuple[float, int]] = deque()
        self._said: object = None
        self._on_terminal = console.err.is_terminal and not json

    async def run(self) -> None:
        """Look and show until this is cancelled."""
        loop = asyncio.get_running_loop()
        live = Live(console=console.err, auto_refresh=False, transient=True)
        try:
            if self._on_terminal:
                live.start()
            while True:
                began = loop.time()
                seen = await self._look()
                if seen is not None:
                    rate = self._measure(loop.time(), seen)
                    if self._on_terminal:
                        live.update(self._shown(seen, rate), refresh=True)
                    else:
                        self._print(seen, rate)
                elif self._on_terminal:
                    live.update(Text("Waiting for the database", style="yellow"), refresh=True)
                pause = SHOW_EVERY if self._on_terminal or seen is None else LINE_EVERY
                await asyncio.sleep(max(pause, SHARE * (loop.time() - began)))
        finally:
            live.stop()
            await self._database.close()

    async def _look(self) -> Overview | None:
        from yamarket_chat.outbox.overview import overview

        try:
            return await self._database.read(overview, self._only)
        except ChatError:
            return None  # the delivery says why

    def _measure(self, now: float, seen: Overview) -> float:
        """Return how many requests all workers have sent in a second, lately."""
        counted = self._counted
        if counted and seen.requests_counted < counted[-1][1]:
            counted.clear()  # old counts were pruned
        counted.append((now, seen.requests_counted))
        while len(counted) > 2 and counted[1][0] < now - OVER:
            counted.popleft()
        (first, before), (last, after) = counted[0], counted[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _shown(self, seen: Overview, rate: float) -> Text:
        text = Text(self._line(seen, rate))
        paused = [one for one in seen.businesses if one.paused is not None]
        for one in paused[:PAUSES_SHOWN]:
            text.append("\n" + console.printable(describe_pause(one)), style="yellow")
        if paused[PAUSES_SHOWN:]:
            text.append(f"\nand {len(paused) - PAUSES_SHOWN} more", style="yellow")
        return text

    def _line(self, seen: Overview, rate: float) -> str:
        fullest = max(seen.businesses, key=lambda one: one.messages_in_the_hour, default=None)
        used = 0 if fullest is None else fullest.messages_in_the_hour
        limit = "" if self._limit is None else f" of {self._limit:,}"
        text = f"{describe_load(seen)}, {rate:.1f}/s, {used:,}{limit} in 1 h"
        if self._only is None and fullest is not None and used:
            text += f" (business {fullest.business_id})"
        if seen.oldest is not None:
            text += f", the oldest was put {age(seen.oldest)} ago"
        if len(seen.workers) > 1:
            text += f", {len(seen.workers)} workers"
        return text

    def _print(self, seen: Overview, rate: float) -> None:
        paused = {one.business_id: one.paused for one in seen.businesses if one.paused is not None}
        if self._json:
            fullest = max((one.messages_in_the_hour for one in seen.businesses), default=0)
            now = datetime.now(UTC)
            console.data(
                Report(
                    at=now,
                    waiting=seen.waiting,
                    not_due=seen.not_due,
                    leaving=seen.leaving,
                    oldest_seconds=None
                    if seen.oldest is None
                    else (now - seen.oldest).total_seconds(),
                    requests_per_second=round(rate, 3),
                    in_the_hour=fullest,
                    limit=self._limit,
                    workers=len(seen.workers),
                    paused=paused,
                )
            )
            return
        # Nobody wants to read each minute that nothing happens.
        idle = not (seen.waiting or seen.leaving)
        said = idle, seen.requests_counted, tuple(paused)
        if idle and said == self._said:
            return
        self._said = said
        text = self._line(seen, rate)
        for business_id in list(paused)[:PAUSES_SHOWN]:
            text += f"; business {business_id} is paused"
        console.note(text)
