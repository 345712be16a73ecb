"""The figures of many stories: they can be added up, stored and read again."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from . import judge as judging
from .generate import generate, switched_on
from .judge import judge
from .market import name_of
from .play import play
from .record import Violation
from .story import Story
from .swarm import READ_FAULTS, SEND_FAULTS, SWARM

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

    def missing(self) -> list[str]:
        """Return what never met a send: then the simulation is too tame."""
        return [what for what in expected() if not self.met.get(what)]


def tell(story: Story) -> tuple[list[Violation], Tally]:
    """Play a story; return which promises did not hold, and the figures."""
    record = play(story)
    violations = judge(story, record)
    kinds = {violation.kind for violation in violations}
    return violations, Tally(
        seeds=1,
        messages=len(record.messages),
        requests=sum(record.requests_of.values()),
        hours=record.lasted / 3600,
        violations=dict.fromkeys(kinds, 1),
        failed={kind: [story.seed] for kind in kinds},
        met=dict(record.met),
        unknown=dict(judging.unknown(story, record)),
    )


def tell_seeds(first: int, last: int, *, stop: bool = False, only: Sequence[str] = ()) -> Tally:
    """Play the stories of the seeds from the first to the last, or up to the first that fails."""
    tally = Tally()
    began = time.process_time()  # once: on some systems to ask costs as much as a message
    for seed in range(first, last + 1):
        violations, figures = tell(generate(seed, only))
        figures.spans = [(seed, seed)]
        if any(what.startswith("in doubt") for what in figures.unknown):
            figures.met.update((f"with {feature}", 1) for feature in switched_on(seed, only))
        tally.add(figures)
        if stop and violations:
            break
    tally.seconds = time.process_time() - began
    return tally


def expected() -> list[str]:
    """Return everything that must meet a send in a thousand seeds."""
    rng = random.Random(0)
    names: dict[str, None] = {}
    for prefix, faults in (("fault", SEND_FAULTS), ("read fault", READ_FAULTS)):
        for make in faults:
            for _ in range(20):
                names[f"{prefix} {name_of(make(rng))}"] = None
    events = (
        *("says", "others_use", "others_hold", "down", "access", "market_clock", "outage"),
        *("stall", "cut", "sleep", "stop", "wall_clock", "stray", "cancel", "close", "kill"),
    )
    names.update((f"event {event}", None) for event in events)
    names.update((f"settled: {said}", None) for said in ("arrived", "not sent", "unknown"))
    told = (
        *("arrived by answer", "arrived by history", "DeliveryUnknownError", "cancelled"),
        *("timed out", "stopped", "killed", "MaxWaitExceededError", "SessionClosedError"),
    )
    names.update((f"told {what}", None) for what in told)
    names.update((f"with {feature}", None) for feature in SWARM)
    return list(names)
