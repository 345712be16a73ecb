"""A story of a bot and what came of it, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..record import Violation
from ..timeline import happened, judged
from .record import Record
from .story import Story


def told(story: Story, record: Record, violations: Sequence[Violation]) -> Iterator[str]:
    """Yield the lines of a replay."""
    yield from happened(story, record)
    for number, began in record.began.items():
        yield f"  business {number}: the bot began at {began:.3f} s"
    for one in record.buyers:
        if one.step is not None:
            yield f"  chat {one.business}/{one.chat}, message {one.message}:"
            yield f"    {story.writes[one.step]}"
        for run in record.runs:
            if (run.business, run.message) == (one.business, one.message):
                yield (
                    f"    run {run.number} ({run.kind} {run.error}) in {run.process}:"
                    f" {run.began:.3f} s, {run.how or 'died'}"
                )
        for row in record.replies.get(f"{one.business}/{one.chat}", ()):
            if row.message == one.message:
                yield f"    {row.number} {row.key}: run {row.run}, {row.state}"
    for entry in record.messages:
        if entry.number in record.put:
            yield f"  {entry.number} chat {entry.business}/{entry.chat}: {entry.state}"
    yield f"  answered at {record.lasted:.1f} s; refused: {dict(record.refused) or 'nothing'}"
    yield ""
    yield from judged(violations)
