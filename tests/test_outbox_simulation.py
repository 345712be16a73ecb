"""Stories of an outbox in virtual time: some seeds, those that once failed, and some mutants."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulate.command import by_story
from benchmarks.simulate.kinds import kind_of
from benchmarks.simulate.mutating import mutated
from benchmarks.simulate.outbox.generate import generate
from benchmarks.simulate.outbox.story import from_json
from benchmarks.simulate.story import to_json
from yamarket_chat.outbox.delivering import GRACE, Delivering
from yamarket_chat.outbox.grant import Grant

OUTBOX = kind_of("outbox")
ROOT = Path(__file__).parents[1]

REPEATED = """
import hashlib, msgspec
from benchmarks.simulate.command import by_story
from benchmarks.simulate.kinds import kind_of
outbox = kind_of("outbox")
for seed in (17, 23, 31, 34, 57):
    record = outbox.play(outbox.generate(seed, ()), lines=True)
    print(seed, hashlib.sha256(msgspec.json.encode(record)).hexdigest())
"""


@pytest.mark.parametrize("path", sorted(OUTBOX.folder.glob("*.json")), ids=lambda path: path.stem)
def test_a_story_that_once_failed_ends_well(path: Path) -> None:
    story = from_json(path.read_bytes())
    assert OUTBOX.judge(story, OUTBOX.play(story)) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(16, 46, 15))
def test_all_promises_hold(first: int) -> None:
    tally = OUTBOX.tell_seeds(first, first + 14)
    assert tally.failed == {}, "python -m benchmarks simulate --outbox --replay SEED shows it"


@pytest.mark.slow
def test_a_seed_decides_everything() -> None:
    """Two processes with other hashes of strings play the same, to the byte."""
    told = [
        subprocess.run(  # noqa: S603 - this Python
            [sys.executable, "-c", REPEATED],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert told[0] == told[1]
    assert told[0].count(b"\n") == 5


# By when a story must be over: what holds messages up longer than it must is no broken promise.
SOON = {
    # Killed at 4 s, and settled after 15 s, not as if it might only be paused. Requests take 3 s.
    "restarted-while-a-request-is-under-way": 35.0,
    # Four requests are under way at 4.5 s, and may be for 31 s: about as long as the lease is.
    "killed-with-all-slots-in-use": 45.0,
    # It is over for long when the third worker takes over, at 65 s: that one has seen it begin.
    "killed-before-it-has-settled-what-another-left": 75.0,
    # A request that takes 8.5 s is under way as another worker asks. That one settles nothing.
    "given-away-while-a-request-is-under-way": 30.0,
    # The first request after a death gets a 403. The second one goes a second later.
    "refused-as-it-begins-after-a-death": 4.0,
    # The file is sent again at once. The business is not paused for a minute.
    "answer-before-the-last-byte-of-a-file": 5.0,
}


@pytest.mark.parametrize("name", SOON)
def test_a_story_is_over_soon(name: str) -> None:
    record = OUTBOX.play(from_json((OUTBOX.folder / f"{name}.json").read_bytes()))
    assert record.lasted < SOON[name]


def test_a_business_that_is_given_away_at_once_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No promise is broken by it, but the worker that asked has to settle what is under way."""

    async def release(self: Delivering, grant: Grant) -> None:
        del self._grants[grant.business_id]
        self._end(self._couriers.pop(grant.business_id), GRACE)

    monkeypatch.setattr(Delivering, "release", release)
    name = "given-away-while-a-request-is-under-way"
    story = from_json((OUTBOX.folder / f"{name}.json").read_bytes())
    record = OUTBOX.play(story)
    assert record.lasted > SOON[name]
    assert OUTBOX.judge(story, record) == []


# Mutants, and rare things with which they are found soon: usually far sooner than within 100 seeds.
FOUND: dict[str, tuple[str, ...]] = {
    "no-mark": (),
    "no-settling": (),
    "no-counts": ("kills", "tight"),
    "no-epoch-and-no-first": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_a_product_without_a_guard_is_found_out(name: str) -> None:
    with mutated(name, OUTBOX.mutants):
        assert OUTBOX.tell_seeds(1, 100, stop=True, only=FOUND[name]).failed


@pytest.mark.parametrize("name", [name for name, one in OUTBOX.mutants.items() if one.story])
def test_a_product_without_a_guard_is_found_out_by_the_story_of_that_guard(name: str) -> None:
    assert by_story(OUTBOX, name)


@pytest.mark.parametrize("name", OUTBOX.mutants)
def test_a_mutant_fits_the_product(name: str) -> None:
    """It leaves a guard out, and calls nothing that is not there any more."""
    with mutated(name, OUTBOX.mutants):
        assert "crashed" not in OUTBOX.tell_seeds(17, 17).failed


def test_a_story_is_a_value() -> None:
    for seed in range(30):
        story = generate(seed)
        assert generate(seed) == story
        assert from_json(to_json(story)) == story
