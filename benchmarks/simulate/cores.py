"""Plays the seeds on all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence

from .kinds import kind_of
from .tally import Tally

CHUNK = 25


def cores() -> int:
    """Return how many processes can run at once."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def played(
    first: int,
    seeds: int,
    *,
    jobs: int,
    kind: str = "sessions",
    mutant: str | None = None,
    stop: bool = False,
    only: Sequence[str] = (),
) -> Iterator[Tally]:
    """Play seeds from the first on, and yield the figures of some seeds at a time, in order.

    With `stop`, the rest is left out after the first seed that fails.
    """
    last = first + seeds - 1
    chunks = [
        (kind, begin, min(begin + CHUNK - 1, last), stop, only)
        for begin in range(first, last + 1, CHUNK)
    ]
    # Spawned: nothing of this process comes along, neither a mutant nor a seed of a hash.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(chunks)), _begin, (kind, mutant)) as pool:
        for tally in pool.imap(_chunk, chunks):
            yield tally
            if stop and tally.violations:
                break


def _begin(kind: str, mutant: str | None) -> None:
    mutants = kind_of(kind).mutants
    if mutant is not None:
        mutants[mutant].leave_out(setattr)
    gc.collect()
    gc.freeze()  # what is imported stays: to look through it again and again costs a lot


def _chunk(chunk: tuple[str, int, int, bool, Sequence[str]]) -> Tally:
    kind, first, last, stop, only = chunk
    return kind_of(kind).tell_seeds(first, last, stop=stop, only=only)
