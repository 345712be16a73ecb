"""What a mutant is: the product with one guard left out.

A mutant patches the product at run time, in a process of its own or within `mutated`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

Patch = Callable[[Any, str, Any], None]
LeaveOut = Callable[[Patch], None]


class Mutant(msgspec.Struct, frozen=True):
    """A guard, what the product does without it, and how it is left out."""

    guard: str
    without: str
    leave_out: LeaveOut
    aim: tuple[str, ...] = ()
    """The rare things that show it, if seeds with anything else hardly do."""
    story: str | None = None
    """The story in `tests/stories` that shows it, if no seed does."""


def added_to(mutants: dict[str, Mutant]) -> Callable[..., Callable[[LeaveOut], LeaveOut]]:
    """Return a decorator that adds a mutant, under the name of the function."""

    def mutant(
        guard: str, without: str, *, aim: tuple[str, ...] = (), story: str | None = None
    ) -> Callable[[LeaveOut], LeaveOut]:
        def add(leave_out: LeaveOut) -> LeaveOut:
            name = leave_out.__name__.strip("_").replace("_", "-")
            mutants[name] = Mutant(guard, without, leave_out, aim, story)
            return leave_out

        return add

    return mutant


@contextmanager
def mutated(name: str | None, mutants: Mapping[str, Mutant]) -> Iterator[None]:
    """Leave a guard out for a while; None leaves none out."""
    before: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        before.append((owner, attribute, owner.__dict__[attribute]))
        setattr(owner, attribute, value)

    try:
        if name is not None:
            mutants[name].leave_out(patch)
        yield
    finally:
        for owner, attribute, value in reversed(before):
            setattr(owner, attribute, value)
