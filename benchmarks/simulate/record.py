"""What came of a story: what the callers were told, and what stands in the chats."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

Fate = Literal["arrived", "not sent", "unknown", "untold"]
"""What a caller was told of a message. Nothing is told to one that was cancelled or killed."""


class Told(msgspec.Struct, kw_only=True):
    """A message that was handed over, and what its caller was told."""

    machine: int
    life: int
    """Of the machine's process: a killed one has another after it."""
    order: int
    """In which the messages of all machines were handed over."""
    chat: int
    content: str
    began: float
    step: int
    ended: float | None = None
    fate: Fate = "untold"
    why: str = ""
    said: str = ""
    """The text of the error."""
    by_history: bool = False
    raises: bool = False
    """The caller asked not to settle."""
    ended_by_program: bool = False
    """It was cancelled, timed out, or its session or its generator was closed, or it was killed."""
    settled: bool = False
    """Its unknown outcome was settled later, and `fate` says to what."""
    in_doubt: bool = False
    """Its answer was lost, and the session looked for it in the history."""

    @property
    def operation(self) -> str:
        """What sends it."""
        return "send_file" if self.content.startswith("file ") else "send_message"


class Stood(msgspec.Struct, frozen=True):
    """A row of a chat."""

    at: float
    who: str
    content: str


class Record(msgspec.Struct, kw_only=True):
    """All that can be seen of a story from outside."""

    messages: list[Told] = []
    chats: dict[int, list[Stood]] = {}
    refused_for_rate: int = 0
    refused_in_parallel: int = 0
    departures: dict[str, list[float]] = {}
    """When the requests of an operation came to the Market."""
    requests_of: dict[str, int] = {}
    looked_up: Counter[str] = msgspec.field(default_factory=Counter)
    """How often the sessions looked for the messages of an operation in a history."""
    hung: str | None = None
    leaked: list[str] = []
    crashed: list[str] = []
    """What programs got that is no ChatError, and what the loop complained of."""
    line: list[tuple[float, str, str]] = []
    """The time line: when, who, what. Empty unless it was asked for."""
    met: Counter[str] = msgspec.field(default_factory=Counter)
    """What met a send: faults and events, and how calls ended."""
    lasted: float = 0.0
    """Seconds until the last call had ended."""
    idle_until: float = 0.0


class Violation(msgspec.Struct, frozen=True):
    """A promise that did not hold."""

    kind: str
    what: str
