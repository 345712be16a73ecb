"""Named points around a send, at which the tests stop, pause or kill a process."""

from __future__ import annotations

from collections.abc import Callable

NAMES = (
    "before the mark", "marked", "before the look", "half written", "written", "answered",
    "before the end", "ended", "handing over",
)  # fmt: skip

hook: Callable[[str], None] | None = None
"""What a test has to be called at each point. Nobody else sets it."""


def reach(name: str) -> None:
    """Say that the program is at a point."""
    if hook is not None:
        hook(name)
