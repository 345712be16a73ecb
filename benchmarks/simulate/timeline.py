"""A story and what came of it, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .record import Record, Violation
from .shrink import parts_of
from .story import Story


def told(story: Story, record: Record, violations: Sequence[Violation]) -> Iterator[str]:
    """Yield the lines of a replay."""
    yield from happened(story, record)
    for message in record.messages:
        ended = "never" if message.ended is None else f"{message.ended:.3f}"
        yield (
            f"  chat {message.chat} {message.content!r}: {message.fate}"
            f" ({message.why or 'not over'}), {message.began:.3f} to {ended}"
        )
    yield (
        f"  refused: {record.refused_for_rate} for a limit, {record.refused_in_parallel} in"
        f" parallel; over at {record.lasted:.1f} s"
    )
    yield ""
    yield from judged(violations)


def happened(story: Any, record: Any) -> Iterator[str]:
    """Yield how a story is set up, and its time line."""
    yield f"Seed {story.seed}"
    for name in parts_of(story):
        part = getattr(story, name)
        given = [
            f"{field.name}={value!r}"
            for field in msgspec.structs.fields(type(part))
            if (value := getattr(part, field.name)) != field.default and value != {}
        ]
        yield f"  {name}: {', '.join(given) or 'as usual'}"
    yield ""
    rows = [
        (row.at, f"chat {chat}", f"stores {row.content!r} of {row.who}")
        for chat, stood in record.chats.items()
        for row in stood
        if row.who != "old"
    ]
    for at, who, what in sorted([*record.line, *rows], key=lambda line: line[0]):
        yield f"{at:10.3f}  {who:12} {what}"
    yield ""


def judged(violations: Sequence[Violation]) -> Iterator[str]:
    """Yield which promises did not hold."""
    yield from (f"{violation.kind.upper()}: {violation.what}" for violation in violations)
    if not violations:
        yield "All promises held."
