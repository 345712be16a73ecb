"""A story of an outbox and what came of it, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..record import Violation
from ..timeline import happened, judged
from .record import Record
from .story import Story


def told(story: Story, record: Record, violations: Sequence[Violation]) -> Iterator[str]:
    """Yield the lines of a replay."""
    yield from happened(story, record)
    for entry in record.messages:
        yield (
            f"  {entry.number} chat {entry.business}/{entry.chat} {entry.content!r}: {entry.state}"
            f" after {entry.requests} requests {entry.error}"
        )
    yield f"  over at {record.lasted:.1f} s; refused: {dict(record.refused) or 'nothing'}"
    yield ""
    yield from judged(violations)
