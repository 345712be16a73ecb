"""What is learnt of the offset between the Market's two clocks: its storage's and its answers'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..pending import Stored
from .settling import SKEW, Offset, Row

MARGIN = 2.0
"""Seconds by which a learnt offset may be wrong: clocks drift, and storages have several hosts."""

LEARNT_FOR = 600.0
"""Seconds for which a learnt offset is believed."""


class Skew:
    """The offset, as the shop's own messages in histories show it."""

    def __init__(self) -> None:
        self._learnt = Offset()
        self._until = -math.inf

    def offset(self, now: float) -> Offset:
        """Return the offset that the clocks can have at a moment of the loop."""
        return self._learnt if now < self._until else Offset()

    def learn(self, rows: Sequence[Row], delivered: Iterable[Stored], now: float) -> None:
        """Compare rows of the shop with messages that an answer has confirmed.

        Only a text that stands once among both tells. A message that was itself found in a history
        does not: nobody knows so well when it was stored.
        """
        items = [item for item in delivered if item.surely and item.row_id is None]
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
                continue  # somebody else's row of another time
            least, most = max(offset.least, seen.least), min(offset.most, seen.most)
            # If they do not agree, a clock was set: all of it is possible.
            offset = (
                Offset(least, most)
                if least <= most
                else Offset(min(offset.least, seen.least), max(offset.most, seen.most))
            )
            learnt = True
        if learnt:
            self._learnt, self._until = offset, now + LEARNT_FOR
