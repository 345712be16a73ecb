"""The figures of many stories: they can be added up, stored and read again."""

from __future__ import annotations

from collections import Counter

import msgspec

from . import judge as judging

UNKNOWN = {
    "clocks behave": 0.006,
    "clocks differ or are set": 0.09,
    judging.OWN_TEXT: 0.005,
}
"""The share of messages in doubt that may stay unknown, by circumstances; generously."""


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

    def knows_too_little(self) -> bool:
        """Whether more outcomes are unknown than the product leaves unknown with its guards."""
        for group, most in UNKNOWN.items():
            doubtful = self.unknown.get(f"in doubt: {group}", 0)
            unknown = self.unknown.get(f"unknown: {group}", 0)
            if doubtful >= 500 and unknown > most * doubtful:
                return True
        return False
