"""A story of an outbox: who puts what, who delivers, and what happens to them.

Machines are numbered: first the workers, then a program that only puts and is never killed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .. import story as parts
from ..story import Event, Part, Step

Point = Literal[
    "before the mark",
    "marked",
    "before the look",
    "half written",
    "written",
    "answered",
    "before the end",
    "ended",
    "handing over",
]
BotPoint = Literal[
    "told",
    "begun",
    "before the try",
    "tried",
    "handled",
    "before the replies",
    "replies put",
    "before the look is noted",
    "look noted",
    "giving back",
]
What = Literal["send", "beat", "lease", "put", "other", "commit", "try", "hint"]
"""Which write of a worker: marks and ends, beats, what else concerns leases, puts.

Of a bot: that a message is handled, what else concerns a chat, notifications.
"""

# What the programs do


class Put(Step, frozen=True, kw_only=True, tag="put"):
    """Puts a text, or if `size` is not 0, a file of this name and so many bytes."""

    business: int = 0
    chat: int = 1
    text: str
    size: int = 0
    key: bool = True
    """It has a key, by which it is put again if the first try fails."""
    twice: bool = False
    """It is put twice under its key."""
    bulk: bool = False
    order: int | None = None
    """It goes to the chat of this order, and not to `chat`."""
    not_before: float | None = None
    not_after: float | None = None
    """Seconds since the story began, by the Market's clock."""
    cancel: float | None = None
    """It is cancelled so many seconds after it was put."""


class PutMany(Step, frozen=True, kw_only=True, tag="put_many"):
    """Puts many texts by one `put_many`."""

    business: int = 0
    messages: tuple[tuple[int, str], ...]
    bulk: bool = True


AnyStep = Put | PutMany


# What happens around them


class Killed(Event, frozen=True, tag="killed"):
    """A worker is killed, and started again later."""

    machine: int = 0
    down: float = 1.0


class Left(Event, frozen=True, tag="left"):
    """A worker is stopped cleanly, and started again so many seconds after it has ended."""

    machine: int = 0
    down: float = 1.0


class AtPoint(Event, frozen=True, tag="at_point"):
    """From `at` on, a worker is killed or paused as it reaches a point for the `count`th time."""

    machine: int = 0
    point: Point | BotPoint = "marked"
    count: int = 1
    action: Literal["kill", "pause"] = "kill"
    seconds: float = 1.0
    """How long it is paused, or until it is started again."""


class Away(Event, frozen=True, tag="away"):
    """A machine, or each one if it is -1, cannot use the database for a while."""

    machine: int = -1
    seconds: float = 5.0
    beats: bool = False
    """Only the connection for the beats is away."""


AtMarket = parts.Says | parts.OthersUse | parts.OthersHold | parts.Down | parts.Access | parts.Stray


class AtBusiness(Event, frozen=True, kw_only=True, tag="at_business"):
    """Something that happens at the Market to one business."""

    business: int = 0
    event: AtMarket


AnyEvent = (
    Killed
    | Left
    | AtPoint
    | Away
    | AtBusiness
    | parts.Outage
    | parts.Stall
    | parts.Cut
    | parts.Sleep
    | parts.Stop
    | parts.WallClock
)


class Failure(parts.Failure, frozen=True, kw_only=True):
    """One request of a business that fails."""

    business: int = 0


class Hitch(Part, frozen=True, kw_only=True):
    """One write into the database that does not go well: the `number`th of its kind of a machine.

    - fails: nothing is committed, and an error is raised.
    - unlearnt: it is committed, and an error is raised.
    - late: an error is raised, and it is committed later (by a server that is away from its
      client).
    - slow: it is committed later.
    - learnt late: its success is learnt later.
    """

    machine: int = 0
    what: What = "send"
    number: int = 1
    kind: Literal["fails", "unlearnt", "late", "slow", "learnt late"] = "fails"
    seconds: float = 1.0


class Database(Part, frozen=True):
    """How the database works. A job takes some time before and after its moment."""

    server: bool = False
    """As PostgreSQL: commits go on without their clients, four at a time, and nothing is locked."""
    locks: bool = True
    """The workers hold locks of the system's, which prove a death."""
    least: float = 0.001
    most: float = 0.001
    look: float = 1.0
    """Seconds between two looks for messages."""


class Delivery(Part, frozen=True):
    """How the workers are set up besides `Program`."""

    lease: float = 12.0
    look: float = 5.0
    """Seconds between two looks at the other workers, at most."""
    reserve: int = 0
    keys_by_function: bool = False
    forgets_text: bool = False


class Story(Part, frozen=True):
    """All that happens, and `seed`: the seed of what is drawn meanwhile."""

    seed: int = 0
    workers: int = 2
    businesses: int = 1
    market: parts.Market = parts.Market()
    program: parts.Program = parts.Program()
    network: parts.Network = parts.Network()
    clocks: parts.Clocks = parts.Clocks()
    """Of the machines: worker 1 is twice as much ahead as worker 0, and so on."""
    database: Database = Database()
    delivery: Delivery = Delivery()
    steps: tuple[AnyStep, ...] = ()
    failures: tuple[Failure, ...] = ()
    hitches: tuple[Hitch, ...] = ()
    events: tuple[AnyEvent, ...] = ()

    def machines(self) -> int:
        """Return how many machines there are."""
        return self.workers + 1

    def ends(self) -> float:
        """Return the moment after which nothing begins by itself."""
        moments = [step.at + (getattr(step, "cancel", None) or 0.0) for step in self.steps]
        for event in self.events:
            inner = event.event if isinstance(event, AtBusiness) else event
            lasts = getattr(inner, "seconds", 0.0) + getattr(inner, "down", 0.0)
            moments.append(event.at + lasts)
        return max(moments, default=0.0)


def from_json(content: bytes) -> Story:
    """Return the story of a JSON."""
    return msgspec.json.decode(content, type=Story)
