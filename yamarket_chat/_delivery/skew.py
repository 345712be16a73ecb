"""Learns the offset between the Market's two clocks: its storage's and its answers'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..pending import Stored
from .settling import SKEW, Offset, Row

MARGIN = 2.0
"""Seconds by which a learnt offset may be wrong: clocks drift, and a storage has several hosts."""

LEARNT_FOR = 120.0
"""Seconds for which a learnt offset is used."""


class Skew:
    """The offset that the shop's own messages in histories show."""

    def __init__(self) -> None:
        self._learnt = Offset()
        self._until = -math.inf
        self._since = -math.inf

    def offset(self, now: float) -> Offset:
        """Return the possible offsets at a moment of the loop."""
        return self._learnt if now < self._until else Offset()

    def forget(self, since: float) -> None:
        """Forget the offset, because rows that nothing explains may mean that a clock was set.

        What was delivered before `since`, in seconds since 1970, is not learnt from again.
        """
        self._until = -math.inf
        self._since = max(self._since, since)

    def learn(self, rows: Sequence[Row], delivered: Iterable[Stored], now: float) -> None:
        """Compare rows of the shop with messages that an answer has confirmed before `now`.

        Only a text that appears exactly once in both counts. A message that was itself found in a
        history does not count, because the time of its storing is not known well enough.
        """
        items = [
            item
            for item in delivered
            if item.surely and item.row_id is None and item.earliest > self._since
        ]
        offset = self.offset(now)
        learnt = False
        for item in items:
            if sum(other.content == item.content for other in items) != 1:
                continue
            found = [row for row in rows if row.content == item.content]
            if len(found) != 1:
                continue
            # The row may have whole seconds.
            seen = Offset(
                found[0].at - item.latest - MARGIN, found[0].at + 1 - item.earliest + MARGIN
            )
            if seen.most < -SKEW or seen.least > SKEW:
                continue  # a row of somebody else
            least, most = max(offset.least, seen.least), min(offset.most, seen.most)
            # If they do not agree, a clock was set: every offset in between is possible.
            offset = (
                Offset(least, most)
                if least <= most
                else Offset(min(offset.least, seen.least), max(offset.most, seen.most))
            )
            learnt = True
        if learnt:
            self._learnt, self._until = offset, now + LEARNT_FOR
