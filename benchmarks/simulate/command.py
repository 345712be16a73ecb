"""`python -m benchmarks simulate`: plays seeds, replays one, and tries the mutants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from .cores import cores, played
from .kinds import Kind, kind_of
from .mutating import mutated
from .report import mutants_table, summary
from .shrink import shrink
from .story import to_json
from .tally import Tally

MUTANT_SEEDS = 2000


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks simulate", description=__doc__)
    parser.add_argument(
        "--outbox", action="store_true", help="stories of an outbox, and not of sessions"
    )
    parser.add_argument("--bot", action="store_true", help="stories of a bot, and not of sessions")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds; default: 1000")
    parser.add_argument("--from", dest="first", type=int, default=1, help="the first seed")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes; default: all cores")
    parser.add_argument(
        "--record", type=Path, help="add the figures to those in this file, for many runs"
    )
    parser.add_argument("--replay", type=int, metavar="SEED", help="show what happens in a seed")
    parser.add_argument("--story", type=Path, help="show what happens in a stored story")
    parser.add_argument(
        "--shrink", type=int, metavar="SEED", help="make the story of a failing seed short"
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="THINGS",
        help="switch on these rare things of swarm.py, separated by commas, and no others",
    )
    parser.add_argument("--mutant", metavar="NAME", help="leave a guard out")
    parser.add_argument(
        "--mutants", nargs="*", metavar="NAME", help="how many seeds each mutant takes; all of them"
    )
    options = parser.parse_args(arguments)
    kind = kind_of("bot" if options.bot else "outbox" if options.outbox else "sessions")
    mutant = [] if options.mutant is None else [options.mutant]
    for given, known in (
        (options.only, kind.swarm),
        ([*(options.mutants or ()), *mutant], kind.mutants),
    ):
        if strange := set(given) - set(known):
            parser.error(f"there is no {', '.join(strange)}: choose from {', '.join(known)}")
    console = Console()
    if options.mutants is not None:
        return _mutants(kind, console, options)
    one = options.replay if options.replay is not None else options.shrink
    if one is not None or options.story is not None:
        story = (
            kind.generate(one, options.only)
            if one is not None
            else kind.from_json(options.story.read_bytes())
        )
        with mutated(options.mutant, kind.mutants):
            return _one(kind, story, shorter=options.shrink is not None)
    return _many(kind, console, options)


def _one(kind: Kind, story: Any, *, shorter: bool) -> int:
    if shorter:
        _show_shorter(kind, story)
    record = kind.play(story, lines=True)
    violations = kind.judge(story, record)
    for line in kind.told(story, record, violations):
        print(line)
    return 1 if violations else 0


def _show_shorter(kind: Kind, story: Any) -> None:
    kinds = {violation.kind for violation in kind.judge(story, kind.play(story))}
    if kinds:
        story = shrink(story, lambda other: kind.fails(other, kinds))
    print(to_json(story).decode())


def _many(kind: Kind, console: Console, options: argparse.Namespace) -> int:
    total = Tally()
    shown: set[int] = set()
    with _progress(console) as progress:
        task = progress.add_task("seeds", total=options.seeds)
        for tally in played(
            options.first,
            options.seeds,
            jobs=options.jobs,
            kind=kind.name,
            mutant=options.mutant,
            only=options.only,
        ):
            total.add(tally)
            failed = sum(total.violations.values())
            progress.update(task, advance=tally.seeds, description=f"{failed} failed")
            for what, seeds in tally.failed.items():
                for seed in seeds:
                    if seed not in shown:
                        shown.add(seed)
                        console.print(f"seed {seed}: {what}", highlight=False)
    if options.record is not None:
        stored = Tally()
        if options.record.exists():
            stored = msgspec.json.decode(options.record.read_bytes(), type=Tally)
        stored.add(total)
        text = msgspec.json.format(msgspec.json.encode(stored), indent=1)
        options.record.write_bytes(text + b"\n")
        total = stored
    for line in summary(kind, total):
        print(line)
    if total.failed and options.mutant is None:
        seed = min(seed for seeds in total.failed.values() for seed in seeds)
        console.print(f"The story of seed {seed}, as short as it gets:")
        _show_shorter(kind, kind.generate(seed, options.only))
    too_tame = total.seeds >= 1000 and kind.missing(total)
    return 1 if total.failed or too_tame else 0


def _mutants(kind: Kind, console: Console, options: argparse.Namespace) -> int:
    names = options.mutants or list(kind.mutants)
    seeds = options.seeds if options.seeds != 1000 else MUTANT_SEEDS
    usual: dict[int, Tally] = {}  # the product with all its guards, by the number of seeds
    took: dict[str, tuple[int | None, str]] = {}
    for name in names:
        mutant = kind.mutants[name]
        if mutant.story is not None:
            shown = by_story(kind, name)
            took[name] = (1 if shown else None, ", ".join(sorted(shown)))
            console.print(f"{name}: its story: {took[name][1] or 'not found'}", highlight=False)
            continue
        only = options.only or mutant.aim
        if not only and not usual:
            usual = _usual(kind, options.first, seeds, options.jobs)
        total, knows_less = Tally(), False
        for tally in played(
            options.first,
            seeds,
            jobs=options.jobs,
            kind=kind.name,
            mutant=name,
            stop=True,
            only=only,
        ):
            total.add(tally)
            if not only and not total.failed and total.knows_less_than(usual[total.seeds]):
                knows_less = True
                break
        kinds = "unknown" if knows_less else ", ".join(sorted(total.failed))
        found = min((seed for seeds in total.failed.values() for seed in seeds), default=None)
        if found is not None:
            found -= options.first - 1
        elif knows_less:
            found = total.seeds
        took[name] = (found, kinds)
        console.print(f"{name}: {found or 'not found'} {kinds}", highlight=False)
    for line in mutants_table(kind, took):
        print(line)
    return 1 if any(found is None for found, _ in took.values()) else 0


def _usual(kind: Kind, first: int, seeds: int, jobs: int) -> dict[int, Tally]:
    sums: dict[int, Tally] = {}
    total = Tally()
    for tally in played(first, seeds, jobs=jobs, kind=kind.name):
        total.add(tally)
        sums[total.seeds] = msgspec.convert(msgspec.to_builtins(total), Tally)
    return sums


def by_story(kind: Kind, name: str) -> set[str]:
    """Return how the story of a mutant shows it: as "unknown" if the product knows more."""
    story = kind.from_json((kind.folder / f"{kind.mutants[name].story}.json").read_bytes())
    usual = _unknown(kind, story, kind.play(story))
    with mutated(name, kind.mutants):
        record = kind.play(story)
    shown = {violation.kind for violation in kind.judge(story, record)}
    if _unknown(kind, story, record) > usual:
        shown.add("unknown")
    return shown


def _unknown(kind: Kind, story: Any, record: Any) -> int:
    found = kind.unknown(story, record)
    return sum(count for what, count in found.items() if what.startswith("unknown"))


def _progress(console: Console) -> Progress:
    columns = Progress.get_default_columns()
    return Progress(
        *columns[:2], MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
    )
