"""Stories that are played in virtual time: a few hundred seeds, and those that once failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulate.command import by_story
from benchmarks.simulate.generate import generate
from benchmarks.simulate.judge import judge
from benchmarks.simulate.kinds import kind_of
from benchmarks.simulate.mutants import MUTANTS
from benchmarks.simulate.mutating import mutated
from benchmarks.simulate.play import play
from benchmarks.simulate.story import from_json, to_json

STORIES = Path(__file__).parent / "stories"
SESSIONS = kind_of("sessions")


@pytest.mark.parametrize("path", sorted(STORIES.glob("*.json")), ids=lambda path: path.stem)
def test_a_story_that_once_failed_ends_well(path: Path) -> None:
    story = from_json(path.read_bytes())
    assert judge(story, play(story)) == []


@pytest.mark.parametrize("first", range(1, 226, 25))
def test_all_promises_hold(first: int) -> None:
    tally = SESSIONS.tell_seeds(first, first + 24)
    assert tally.failed == {}, "python -m benchmarks simulate --shrink SEED shows what happens"


# Mutants, and rare things with which they are found soon: usually far sooner than within 200 seeds.
FOUND: dict[str, tuple[str, ...]] = {
    "no-lines": (),
    "no-rest": ("cancels", "slow", "fails"),
    "no-settling": (),
    "settle-does-not-wait": ("raises", "fails", "last moment"),
    "free-window": ("tight", "gives no answer", "short timeout"),
    "no-timeout": (),
    "nothing-given-back": ("groups",),
    "no-user-timeout": ("outage", "blocks", "raises", "short timeout", "last moment", "fails"),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_product_without_a_guard_is_found_out(name: str) -> None:
    with mutated(name, MUTANTS):
        assert SESSIONS.tell_seeds(1, 200, stop=True, only=FOUND[name]).failed


@pytest.mark.parametrize("name", [name for name in MUTANTS if MUTANTS[name].story])
def test_a_product_without_a_guard_is_found_out_by_the_story_of_that_guard(name: str) -> None:
    assert by_story(SESSIONS, name)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fits_the_product(name: str) -> None:
    """It leaves a guard out, and calls nothing that is not there any more."""
    with mutated(name, MUTANTS):
        assert "crashed" not in SESSIONS.tell_seeds(1, 2).failed


def test_a_story_is_a_value() -> None:
    for seed in range(50):
        story = generate(seed)
        assert generate(seed) == story
        assert from_json(to_json(story)) == story
