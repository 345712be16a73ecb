"""A story of a bot: what buyers write, what the handlers do, and what happens to the workers.

It has all that a story of an outbox has. The program that only puts writes to the same chats.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..outbox import story as outbox
from ..story import Event, Part


class Told(Part, frozen=True):
    """The Market tells a worker of a message, so many seconds after it was stored."""

    after: float = 0.0
    machine: int = 0


class Writes(Event, frozen=True, kw_only=True, tag="writes"):
    """A buyer writes a message, and what the handler does with it."""

    business: int = 0
    chat: int = 1
    kind: Literal["text", "file", "sticker"] = "text"
    text: str = "?"
    late: float = 0.0
    """Seconds until the history shows it."""
    deleted: float | None = None
    """Seconds until the history shows it no more."""
    told: tuple[Told, ...] = ()

    replies: int = 1
    """How many replies the handler gives; each second run gives one more."""
    now: bool = False
    """It says at once that it looks, in each second run."""
    file: bool = False
    """Its last reply is a file."""
    takes: float = 0.0
    """Seconds that the handler takes."""
    trouble: Literal["", "raises", "hangs", "kills", "clings", "statement"] = ""
    """It raises, hangs, kills its process, goes on when it is cancelled, or its own SQL fails."""
    times: int = 0
    """In how many runs it has this trouble."""
    error: Literal["replies", "says nothing", "raises", "kills", "hangs", "statement"] = "replies"
    """What `Bot.error` does if it is told of the message."""


class Changes(Event, frozen=True, tag="changes"):
    """A chat is finished, or a dispute begins or ends in it."""

    business: int = 0
    chat: int = 1
    status: str | None = None
    type: str | None = None


class Bot(Part, frozen=True):
    """How the bot is set up."""

    every: float = 10.0
    waiting: bool = False
    concurrency: int = 16
    handler_timeout: float = 8.0
    max_age: float | None = None
    down: float = 1.0
    """Seconds until a process runs again that a handler has killed."""
    others: int = 0
    """How many more chats there are, in which nobody writes."""
    tells_own: bool = False
    """The Market tells of the shop's own messages as well."""


AnyEvent = outbox.AnyEvent | Changes


class Story(outbox.Story, frozen=True):
    """All that happens, and `seed`: the seed of what is drawn meanwhile."""

    bot: Bot = Bot()
    writes: tuple[Writes, ...] = ()
    events: tuple[AnyEvent, ...] = ()  # type: ignore[assignment]

    def ends(self) -> float:
        """Return the moment after which nothing begins by itself."""
        moments = [super().ends()]
        for one in self.writes:
            told = [told.after for told in one.told]
            moments.append(one.at + max(one.late, one.deleted or 0.0, *told, 0.0))
        return max(moments)


def from_json(content: bytes) -> Story:
    """Return the story of a JSON."""
    return msgspec.json.decode(content, type=Story)
