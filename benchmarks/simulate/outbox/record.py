"""What came of a story of an outbox: what its rows say, and what stands in the chats."""

from __future__ import annotations

from collections import Counter

import msgspec

from ..record import Stood


class Entry(msgspec.Struct, kw_only=True):
    """A row of the outbox at the end, and what was told of it."""

    number: int
    business: int
    chat: int | None
    content: str
    state: str
    requests: int = 0
    error: str = ""
    timed: bool = False
    """It was not to be sent before a time, so its number says nothing of the order."""
    in_doubt: bool = False
    """A courier looked for it in the history, or does not know."""
    untold: bool = False
    """`on_failure` is still to be called."""


class Record(msgspec.Struct, kw_only=True):
    """All that can be seen of a story from outside."""

    messages: list[Entry] = []
    chats: dict[str, list[Stood]] = {}
    """By "business/chat"."""
    put: dict[int, str] = {}
    """By number: what the programs learnt to have put."""
    told: Counter[int] = msgspec.field(default_factory=Counter)
    """By number: how often `on_failure` was called."""
    wrong: list[str] = []
    """What a program was told that cannot be."""
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    """By limit, "rate" or "parallel": requests that a courier could have known to be too many."""
    requests: int = 0
    two_senders: list[str] = []
    hung: str | None = None
    leaked: list[str] = []
    crashed: list[str] = []
    line: list[tuple[float, str, str]] = []
    """The time line: when, who, what. Empty unless it was asked for."""
    met: Counter[str] = msgspec.field(default_factory=Counter)
    lasted: float = 0.0
    """Seconds until all messages had ended."""
    virtual: float = 0.0
    """Seconds of virtual time."""
