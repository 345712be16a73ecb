"""The points of a bot at which the tests stop, pause or kill a process, as `outbox.points` has."""

from __future__ import annotations

NAMES = (
    "told", "begun", "before the try", "tried", "handled", "before the replies", "replies put",
    "before the look is noted", "look noted", "giving back",
)  # fmt: skip
