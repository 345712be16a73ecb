"""The figures as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .kinds import Kind
from .tally import Tally


def summary(kind: Kind, tally: Tally) -> Iterator[str]:
    """Yield the lines of a summary."""
    seconds = tally.seconds or 1.0
    yield (
        f"{tally.seeds:,} seeds, {tally.messages:,} messages, {tally.requests:,} requests,"
        f" {tally.hours:,.0f} hours of virtual time;"
        f" {tally.seeds / seconds:.0f} seeds and {tally.messages / seconds:,.0f} messages a second"
        " and core"
    )
    yield "violations: " + ", ".join(
        f"{name} {tally.violations.get(name, 0)}" for name in kind.violations
    )
    for name, count in sorted(tally.unknown.items()):
        if name.startswith("in doubt: "):
            group = name.removeprefix("in doubt: ")
            unknown = tally.unknown.get(f"unknown: {group}", 0)
            yield f"unknown, {group}: {unknown:,} of {count:,} in doubt ({unknown / count:.2%})"
    for prefix in ("fault ", "read fault ", "event ", "told ", "settled: ", "with "):
        found = {what: count for what, count in tally.met.items() if what.startswith(prefix)}
        shown = ", ".join(
            f"{what.removeprefix(prefix)} {count:,}" for what, count in sorted(found.items())
        )
        yield f"met, {prefix.strip(' :')}: {shown}"
    if missing := kind.missing(tally):
        yield f"NEVER MET A SEND: {', '.join(missing)}"


def mutants_table(kind: Kind, took: Mapping[str, tuple[int | None, str]]) -> Iterator[str]:
    """Yield the lines of the table for the docs."""
    yield "| guard | without it | found after | as |"
    yield "| --- | --- | --: | --- |"
    for name, (seeds, kinds) in took.items():
        mutant = kind.mutants[name]
        aimed = ", aimed" if mutant.aim else ""
        found = "not found"
        if seeds is not None:
            found = f"{seeds:,} stories" if seeds > 1 else "1 story"
        if mutant.story is not None:
            found = "by its story" if seeds else found
        yield f"| {mutant.guard} | {mutant.without} | {found}{aimed} | {kinds} |"
