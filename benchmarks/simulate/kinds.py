"""The kinds of stories: of sessions, an outbox and a bot. What is done with them is the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from .mutating import Mutant
from .record import Violation
from .tally import Tally

STORIES = Path(__file__).parents[2] / "tests" / "stories"


class Kind(msgspec.Struct, frozen=True, eq=False):
    """How the stories of a kind are made up, played, judged and told."""

    name: str
    swarm: Mapping[str, float]
    mutants: Mapping[str, Mutant]
    violations: Sequence[str]
    folder: Path
    """Where the stories are kept that once failed."""
    generate: Callable[[int, Sequence[str]], Any]
    switched_on: Callable[[int, Sequence[str]], set[str]]
    from_json: Callable[[bytes], Any]
    play: Callable[..., Any]
    """Plays a story and returns its record; `lines=True` records a time line as well."""
    judge: Callable[[Any, Any], list[Violation]]
    unknown: Callable[[Any, Any], Counter[str]]
    figures: Callable[[Any], dict[str, Any]]
    """Returns the messages, requests and hours of a record."""
    told: Callable[[Any, Any, Sequence[Violation]], Iterable[str]]
    expected: Callable[[], Iterable[str]]
    """Returns everything that must be met in a thousand seeds."""

    def fails(self, story: Any, kinds: set[str]) -> bool:
        """Whether a promise of one of these kinds does not hold in a story."""
        return any(one.kind in kinds for one in self.judge(story, self.play(story)))

    def missing(self, tally: Tally) -> list[str]:
        """Return what never met a send: then the simulation is too tame."""
        return [what for what in self.expected() if not tally.met.get(what)]

    def tell(self, story: Any) -> tuple[list[Violation], Tally]:
        """Play a story; return which promises did not hold, and the figures."""
        record = self.play(story)
        violations = self.judge(story, record)
        kinds = {violation.kind for violation in violations}
        return violations, Tally(
            seeds=1,
            violations=dict.fromkeys(kinds, 1),
            failed={kind: [story.seed] for kind in kinds},
            met=dict(record.met),
            unknown=dict(self.unknown(story, record)),
            **self.figures(record),
        )

    def tell_seeds(
        self, first: int, last: int, *, stop: bool = False, only: Sequence[str] = ()
    ) -> Tally:
        """Play the stories of these seeds, or up to the first that fails."""
        tally = Tally()
        began = time.process_time()  # once: on some systems to ask costs as much as a message
        for seed in range(first, last + 1):
            violations, figures = self.tell(self.generate(seed, only))
            figures.spans = [(seed, seed)]
            if any(what.startswith("in doubt") for what in figures.unknown):
                features = self.switched_on(seed, only)
                figures.met.update((f"with {feature}", 1) for feature in features)
            tally.add(figures)
            if stop and violations:
                break
        tally.seconds = time.process_time() - began
        return tally


@cache
def kind_of(name: str) -> Kind:
    """Return a kind: "sessions", "outbox" or "bot"."""
    return {"sessions": _sessions, "outbox": _outbox, "bot": _bot}[name]()


def _sessions() -> Kind:
    from . import generate, judge, mutants, play, story, swarm, timeline

    return Kind(
        "sessions",
        swarm.SWARM,
        mutants.MUTANTS,
        judge.KINDS,
        STORIES,
        generate.generate,
        generate.switched_on,
        story.from_json,
        play.play,
        judge.judge,
        judge.unknown,
        _figures_of_sessions,
        timeline.told,
        _expected_of_sessions,
    )


def _figures_of_sessions(record: Any) -> dict[str, Any]:
    return {
        "messages": len(record.messages),
        "requests": sum(record.requests_of.values()),
        "hours": record.lasted / 3600,
    }


def _expected_of_sessions() -> Iterator[str]:
    from .swarm import expected

    return expected()


def _outbox() -> Kind:
    from .outbox import generate, judge, mutants, play, story, swarm, timeline

    return Kind(
        "outbox",
        swarm.SWARM,
        mutants.MUTANTS,
        judge.KINDS,
        STORIES / "outbox",
        generate.generate,
        generate.switched_on,
        story.from_json,
        play.play,
        judge.judge,
        judge.unknown,
        _figures_of_outbox,
        timeline.told,
        swarm.expected,
    )


def _figures_of_outbox(record: Any) -> dict[str, Any]:
    return {
        "messages": len(record.messages),
        "requests": record.requests,
        "hours": record.virtual / 3600,
    }


def _bot() -> Kind:
    from .bot import generate, judge, mutants, play, story, swarm, timeline

    return Kind(
        "bot",
        swarm.SWARM,
        mutants.MUTANTS,
        judge.KINDS,
        STORIES / "bot",
        generate.generate,
        generate.switched_on,
        story.from_json,
        play.play,
        judge.judge,
        judge.unknown,
        _figures_of_bot,
        timeline.told,
        swarm.expected,
    )


def _figures_of_bot(record: Any) -> dict[str, Any]:
    return {
        "messages": len(record.buyers),
        "requests": record.requests,
        "hours": record.virtual / 3600,
    }
