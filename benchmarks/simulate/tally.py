"""The figures of many stories: they can be added up, stored and read again."""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from . import judge as judging

COMPARED = ("clocks behave", "clocks differ or are set", judging.OWN_TEXT)
"""The circumstances in which a guard may decide how many outcomes stay unknown."""


class Tally(msgspec.Struct, kw_only=True):
    """What came of many stories, in numbers."""

    seeds: int = 0
    messages: int = 0
    requests: int = 0
    hours: float = 0.0
    """Of virtual time."""
    seconds: float = 0.0
    """Of one core."""
    violations: dict[str, int] = {}
    """Stories in which a promise did not hold, by kind."""
    failed: dict[str, list[int]] = {}
    """Their seeds, by kind; a hundred of each."""
    met: dict[str, int] = {}
    unknown: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    """The seeds, from the first to the last, in the order in which they were played."""

    def add(self, other: Tally) -> None:
        """Add the figures of other stories."""
        for name in ("seeds", "messages", "requests", "hours", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("violations", "met", "unknown"):
            setattr(self, name, dict(Counter(getattr(self, name)) + Counter(getattr(other, name))))
        for kind, seeds in other.failed.items():
            self.failed[kind] = [*self.failed.get(kind, []), *seeds][:100]
        for first, last in other.spans:
            if self.spans and self.spans[-1][1] + 1 == first:
                self.spans[-1] = (self.spans[-1][0], last)
            else:
                self.spans.append((first, last))

    def knows_less_than(self, other: Tally) -> bool:
        """Whether more outcomes are unknown than in others of the same seeds, and not by chance.

        A guard that is left out changes what happens in a seed later on, so a few more or fewer
        say nothing.
        """
        for group in COMPARED:
            ours, theirs = (one.unknown.get(f"unknown: {group}", 0) for one in (self, other))
            if ours - theirs > 3 * math.sqrt(ours + theirs) + 2:
                return True
        return False
