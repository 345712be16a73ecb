"""How a mailing goes, on a terminal: rate, what the quota leaves, and a true time to go."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from yamarket_chat.limits import QuotaStatus, Rate

from . import console


def seconds_to_go(
    left: int,
    status: QuotaStatus,
    rate: Rate,
    ended: Sequence[float],
    now: float,
    pace: float,
    under_way: int = 0,
) -> float:
    """How long `left` messages take by the limit or, where that lets all of them go, by the pace.

    `under_way` of them have their places already. `ended` is when the latest messages ended,
    ascending; the place of each is free again `rate.per` seconds after that. `pace` is how many end
    in a second.
    """
    behind = left - under_way - status.remaining
    if behind <= 0:
        return left / pace if pace > 0 else 0.0
    limit = max(status.limit, 1)
    used = max(limit - status.remaining, 0)
    own = [time + rate.per - now for time in ended if time + rate.per > now][-used:] if used else []
    under_way = min(under_way, used - len(own))
    # Places of others: the first one as the Market says, the rest at the latest.
    others = [rate.per] * (used - len(own) - under_way)
    if others and status.resets_in and (not own or own[0] > status.resets_in):
        others = [status.resets_in] * len(others)
    free_in = sorted(own + others) + [rate.per] * (status.remaining + under_way)
    rounds, place = divmod(behind - 1, limit)
    return max(free_in[place] + rounds * rate.per, status.resets_in, 0.0)


class Sending:
    """The progress bar of a mailing. Shows nothing where there is no terminal."""

    def __init__(self, total: int, rate: Rate) -> None:
        self._rate = rate
        self._left = total
        self._begun = 0
        self._ended_in_all = 0
        self._stopped = False
        self._began: float | None = None
        self._ended: deque[float] = deque(maxlen=rate.requests)
        self._recent: deque[float] = deque(maxlen=50)
        self._progress = Progress(
            TextColumn("Sending"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[quota]}"),
            TextColumn("{task.fields[to_go]}"),
            console=console.err,
            disable=not console.err.is_terminal,
            expand=True,
        )
        self._bar = self._progress.add_task("", total=total, rate="", quota="", to_go="")

    def __enter__(self) -> Sending:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def one_begins(self) -> None:
        """A message is taken in hand."""
        self._begun += 1

    def stop(self) -> None:
        """Nothing more is sent: no time to go is shown any more."""
        self._stopped = True
        self._progress.update(self._bar, to_go="")

    def under_way(self, status: QuotaStatus) -> int:
        """How many messages have left, and have not ended."""
        return max(self._begun - self._ended_in_all - status.waiting, 0)

    def nothing_heard_for(self, now: float) -> float:
        """Seconds since the beginning, 0 where some message has ended."""
        return 0.0 if self._recent or self._began is None else now - self._began

    def one_ended(self, now: float) -> None:
        """A message has ended."""
        self._left -= 1
        self._ended_in_all += 1
        self._ended.append(now)
        self._recent.append(now)
        self._progress.advance(self._bar)

    def show(self, now: float, status: QuotaStatus) -> None:
        """Bring the figures up to date."""
        if self._began is None:
            self._began = now
        recent = self._recent
        time = now - (recent[0] if len(recent) == recent.maxlen else self._began)
        pace = len(recent) / time if time > 0 else 0.0
        to_go = seconds_to_go(
            self._left, status, self._rate, self._ended, now, pace, self.under_way(status)
        )
        shown = str(timedelta(seconds=math.ceil(to_go)))
        self._progress.update(
            self._bar,
            rate=f"{pace:.1f}/s",
            quota=f"quota {status.remaining}/{status.limit}",
            to_go=f"{shown} to go" if to_go and not self._stopped else "",
        )
