"""Stories of a bot in virtual time: some seeds, those that once failed, and some mutants."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulate.bot.generate import generate
from benchmarks.simulate.bot.story import from_json
from benchmarks.simulate.command import by_story
from benchmarks.simulate.kinds import kind_of
from benchmarks.simulate.mutating import mutated
from benchmarks.simulate.story import to_json

BOT = kind_of("bot")
ROOT = Path(__file__).parents[1]

REPEATED = """
import hashlib, msgspec
from benchmarks.simulate.kinds import kind_of
bot = kind_of("bot")
for seed in (17, 23):
    record = bot.play(bot.generate(seed, ()), lines=True)
    print(seed, hashlib.sha256(msgspec.json.encode(record)).hexdigest())
"""


@pytest.mark.parametrize("path", sorted(BOT.folder.glob("*.json")), ids=lambda path: path.stem)
def test_a_story_that_once_failed_ends_well(path: Path) -> None:
    story = from_json(path.read_bytes())
    assert BOT.judge(story, BOT.play(story)) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", [16, 19])
def test_each_message_is_answered_once(first: int) -> None:
    tally = BOT.tell_seeds(first, first + 2)
    assert tally.failed == {}, "python -m benchmarks simulate --bot --replay SEED shows it"


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
    assert told[0].count(b"\n") == 2


# Mutants, and rare things with which they are found at the first seeds.
FOUND: dict[str, tuple[str, ...]] = {
    "replies-at-once": ("raises", "many replies"),
    "own-messages": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_a_bot_without_a_guard_is_found_out(name: str) -> None:
    with mutated(name, BOT.mutants):
        assert BOT.tell_seeds(1, 50, stop=True, only=FOUND[name]).failed


@pytest.mark.parametrize("name", [name for name, one in BOT.mutants.items() if one.story])
def test_a_bot_without_a_guard_is_found_out_by_the_story_of_that_guard(name: str) -> None:
    assert by_story(BOT, name)


# Two messages: short, and each guard is asked.
SHORT = from_json(
    b'{"writes": [{"is": "writes", "told": [{}]}, {"is": "writes", "at": 5.0, "chat": 2}]}'
)


@pytest.mark.parametrize("name", BOT.mutants)
def test_a_mutant_fits_the_bot(name: str) -> None:
    """It leaves a guard out, and calls nothing that is not there any more."""
    with mutated(name, BOT.mutants):
        record = BOT.play(SHORT)
    assert record.crashed == []


def test_a_story_is_a_value() -> None:
    for seed in range(30):
        story = generate(seed)
        assert generate(seed) == story
        assert from_json(to_json(story)) == story
