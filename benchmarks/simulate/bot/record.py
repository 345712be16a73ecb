"""What came of a story of a bot: what buyers wrote, what the handlers did, and what was said."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..outbox import record as outbox


class Buyers(msgspec.Struct, kw_only=True):
    """A message of a buyer, as it stands in the chat."""

    step: int | None
    """Which of the story's; None if it stood there before the story."""
    business: int
    chat: int
    message: int
    at: float
    """When it was stored; seconds since the story began, as all times here."""
    created: float
    """The same by the Market's clock, as the history shows it."""
    shown: float
    """From when on the history shows it."""
    deleted: float | None = None


class Run(msgspec.Struct, kw_only=True):
    """A run of a handler, or of `Bot.error`."""

    number: int
    kind: Literal["answer", "error", "reply"]
    """`reply`: `Bot.error` is told of a reply that was not delivered."""
    about: int = 0
    """The number of that reply."""
    business: int
    chat: int
    message: int
    process: str
    began: float
    error: str = ""
    """What `Bot.error` was told."""
    ended: float | None = None
    how: Literal["", "returned", "raised", "cancelled"] = ""
    """Empty: it was running as its process died."""
    replies: int = 0
    """How many it has given, those at once not counted."""
    kills: bool = False
    """It killed its process."""
    beside: list[int] = []
    """The runs that it killed with it."""


class Row(msgspec.Struct, kw_only=True):
    """A reply, as the outbox has it."""

    number: int
    key: str
    kind: str
    """What its text says it is."""
    message: int
    run: int
    place: int
    state: str


class Also(msgspec.Struct, kw_only=True):
    """A row of the user's own table."""

    business: int
    chat: int
    message: int
    run: int
    kind: str


class Record(outbox.Record, kw_only=True):
    """All that can be seen of a story from outside."""

    buyers: list[Buyers] = msgspec.field(default_factory=list)
    runs: list[Run] = msgspec.field(default_factory=list)
    replies: dict[str, list[Row]] = msgspec.field(default_factory=dict)
    """By "business/chat"."""
    also: list[Also] = msgspec.field(default_factory=list)
    began: dict[int, float] = msgspec.field(default_factory=dict)
    """By business: when it began, as the bot has stored it."""
    first_look: dict[int, float] = msgspec.field(default_factory=dict)
    """By business: when the chats were listed for the first time."""
    spoke: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """By "business/chat": when the shop said something, the bot or anybody."""
    answered: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """By "business/chat": when a person did."""
    kills: int = 0
    """Processes that died."""
