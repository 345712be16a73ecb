"""The progress bar of `send-many`: the rate, what is left of the limit, and the time to go."""

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
    """Estimate how many seconds `left` messages take.

    The rate limit decides. If it allows all of them at once, `pace` decides: the number of messages
    that end per second. `under_way` of the messages are counted against the limit already. `ended`
    are the times at which the latest messages ended, ascending. Each of these leaves the window
    `rate.per` seconds later.
    """
    blocked = left - under_way - status.remaining
    if blocked <= 0:
        return left / pace if pace > 0 else 0.0
    limit = max(status.limit, 1)
    used = max(limit - status.remaining, 0)
    own = [time + rate.per - now for time in ended if time + rate.per > now][-used:] if used else []
    under_way = min(under_way, used - len(own))
    # Requests of other programs. The Market says when the first one leaves the window; the others
    # may stay for the whole period.
    others = [rate.per] * (used - len(own) - under_way)
    if others and status.resets_in and (not own or own[0] > status.resets_in):
        others = [status.resets_in] * len(others)
    free_in = sorted(own + others) + [rate.per] * (status.remaining + under_way)
    rounds, index = divmod(blocked - 1, limit)
    return max(free_in[index] + rounds * rate.per, status.resets_in, 0.0)


LINE_EVERY = 60.0
"""The shortest time in seconds between two lines, where there is no progress bar."""
LINES = 10
"""The largest number of lines."""


class SendingProgress:
    """The progress bar. If standard error is not a terminal, lines from time to time.

    A line is printed once a minute or once a tenth of the messages, whichever is rarer. Nobody
    wants to read more in the log of a cron job. With `silent`, none is printed.
    """

    def __init__(self, total: int, rate: Rate, *, silent: bool = False) -> None:
        self._rate = rate
        self._total = total
        self._left = total
        self._silent = silent or console.err.is_terminal
        self._line_time: float | None = None
        self._line_left = total
        self._stopped = False
        self._start_time: float | None = None
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

    def __enter__(self) -> SendingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stop(self) -> None:
        """Hide the time to go, because no more messages are sent."""
        self._stopped = True
        self._progress.update(self._bar, to_go="")

    def message_ended(self, now: float) -> None:
        """Count a message whose outcome is known."""
        self._left -= 1
        self._ended.append(now)
        self._recent.append(now)
        self._progress.advance(self._bar)

    def show(self, now: float, status: QuotaStatus, under_way: int = 0) -> None:
        """Update the figures. `under_way` messages are being sent."""
        if self._start_time is None:
            self._start_time = now
        recent = self._recent
        time = now - (recent[0] if len(recent) == recent.maxlen else self._start_time)
        pace = len(recent) / time if time > 0 else 0.0
        to_go = seconds_to_go(self._left, status, self._rate, self._ended, now, pace, under_way)
        shown = str(timedelta(seconds=math.ceil(to_go)))
        self._show_line(now, shown, f"quota {status.remaining}/{status.limit}")
        self._progress.update(
            self._bar,
            rate=f"{pace:.1f}/s",
            quota=f"quota {status.remaining}/{status.limit}",
            to_go=f"{shown} to go" if to_go and not self._stopped else "",
        )

    def _show_line(self, now: float, to_go: str, quota: str) -> None:
        if self._line_time is None:
            self._line_time = now
        if (
            self._silent
            or self._stopped
            or not self._left  # the summary follows
            or now < self._line_time + LINE_EVERY
            or (self._line_left - self._left) * LINES < self._total
        ):
            return
        self._line_time, self._line_left = now, self._left
        console.note(f"{self._total - self._left:,} of {self._total:,}, {quota}, {to_go} to go")
