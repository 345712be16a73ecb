"""A story: what programs, persons, the Market and the machines do. A value, all of it explicit.

Times are seconds since the story began. Every part but `seed` can be left out of the JSON, so a
story that a test keeps is short.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from yamarket_chat.limits import Rate
from yamarket_chat.sandbox import Fault

HOUR = 3600.0
MINUTE = 60.0

Text = str
OnUnknown = Literal["settle", "raise"]


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a story."""


# What the programs do


class Step(Part, frozen=True, tag_field="does"):
    """One thing that a program does at a moment, on one of the machines, with one session of it."""

    at: float = 0.0
    machine: int = 0
    session: int = 0


class Send(Step, frozen=True, kw_only=True, tag="send"):
    """Sends a text, or if `size` is not 0, a file of this name and so many bytes."""

    chat: int = 1
    text: str
    size: int = 0
    max_wait: float | None = None
    on_unknown: OnUnknown = "settle"
    cancel: float | None = None
    """The task is cancelled so many seconds later."""
    timeout: float | None = None
    """The seconds of an `asyncio.timeout` around the call."""
    settle: float | None = None
    """An unknown outcome is settled so many seconds after it was raised."""
    again: bool = False
    """What was settled as not arrived is sent again."""
    then: tuple[str, ...] = ()
    """Texts that the same task sends to the chat afterwards, one after another."""
    ends_others: bool = False
    """As it ends, the other sends of the program are cancelled, as a TaskGroup does."""


class SendMany(Step, frozen=True, kw_only=True, tag="send_many"):
    """Sends many texts by one `send_many`."""

    messages: tuple[tuple[int, str], ...]
    reserve: int = 0
    stop: float | None = None
    """The generator is closed so many seconds later."""
    pause: float = 0.0
    """Seconds that the program takes for each outcome."""


class Read(Step, frozen=True, tag="read"):
    """Reads a chat, its history, the list of chats or the token."""

    what: Literal["get_chat", "history", "chats", "get_message"] = "get_chat"
    chat: int = 1
    cancel: float | None = None


class Close(Step, frozen=True, tag="close"):
    """Closes the session. Later steps have a new one."""

    grace: float = 30.0


class Kill(Step, frozen=True, tag="kill"):
    """Kills the process of a machine. Later steps run in a new process."""


AnyStep = Send | SendMany | Read | Close | Kill


# What happens around them


class Event(Part, frozen=True, tag_field="is"):
    """Something that happens at a moment, of its own accord."""

    at: float = 0.0


class Says(Event, frozen=True, tag="says"):
    """Somebody writes to a chat: `shop` is a colleague, or another program of the seller."""

    chat: int = 1
    who: Literal["buyer", "market", "support", "shop"] = "buyer"
    text: str = "?"


class OthersUse(Event, frozen=True, tag="others_use"):
    """Other programs of the seller use up a part of a limit."""

    operation: str = "send_message"
    requests: int = 1


class OthersHold(Event, frozen=True, tag="others_hold"):
    """Other programs of the seller hold parallel slots for a while."""

    places: int = 1
    seconds: float = 5.0


class Down(Event, frozen=True, tag="down"):
    """The Market refuses connections and resets the open ones for a while."""

    seconds: float = 5.0


class Access(Event, frozen=True, tag="access"):
    """The Market refuses all requests for a while."""

    why: Literal["revoked", "inactive", "locked"] = "locked"
    seconds: float = 5.0


class MarketClock(Event, frozen=True, tag="market_clock"):
    """The Market's clock is set: that of the Dates, of the storage, or both."""

    which: Literal["both", "date", "storage"] = "both"
    by: float = 1.0


class Outage(Event, frozen=True, tag="outage"):
    """The network between a machine and the Market carries nothing for a while."""

    machine: int = 0
    seconds: float = 5.0


class Stall(Event, frozen=True, tag="stall"):
    """One open connection of a machine carries nothing for a while, in one or both directions."""

    machine: int = 0
    connection: int = 0
    seconds: float = 20.0
    way: Literal["both", "up", "down"] = "both"


class Cut(Event, frozen=True, tag="cut"):
    """Something on the way resets one open connection of a machine, or only one end of it."""

    machine: int = 0
    connection: int = 0
    end: Literal["both", "client", "server"] = "both"


class Sleep(Event, frozen=True, tag="sleep"):
    """A machine sleeps: the time of its loop stands still, and its system's clock goes on."""

    machine: int = 0
    seconds: float = 60.0


class Stop(Event, frozen=True, tag="stop"):
    """A process is stopped (SIGSTOP), or blocks its loop; its kernel does what it does."""

    machine: int = 0
    seconds: float = 30.0
    as_told: bool = False
    """It blocks its loop as the next message fails: it writes that down, and that takes long."""


class WallClock(Event, frozen=True, tag="wall_clock"):
    """The system's clock of a machine is set."""

    machine: int = 0
    by: float = 1.0


class Stray(Event, frozen=True, tag="stray"):
    """Somebody writes an answer that nobody asked for on an open connection.

    One that looks like the Market's comes only while no message is under way: as the answer to
    another request it could not be told from the right one.
    """

    connection: int = 0
    what: Literal["408", "page", "200"] = "408"


AnyEvent = (
    Says
    | OthersUse
    | OthersHold
    | Down
    | Access
    | MarketClock
    | Outage
    | Stall
    | Cut
    | Sleep
    | Stop
    | WallClock
    | Stray
)


class Failure(Part, frozen=True, kw_only=True):
    """One request that fails: the `number`th of its operation that the limits let through."""

    operation: str = "send_message"
    number: int
    fault: Fault


class Market(Part, frozen=True):
    """How the Market is set up."""

    limits: Mapping[str, Rate] = {}
    parallel: int = 4
    window: Literal["rolling", "fixed"] = "rolling"
    window_phase: float = 0.0
    headers: bool = True
    latency: float = 0.1
    jitter: float = 0.0
    keep_alive: bool | float = True
    clock_offset: float = 0.0
    storage_offset: float = 0.0
    storage_milliseconds: bool = False
    storage_hosts: float = 0.0
    """Seconds by which one host of the storage is ahead, and another one behind."""
    strip_spaces: bool = True
    order: Literal["ascending", "descending", "shuffled"] = "ascending"
    includes_from: bool = True
    history_delay: float = 0.0
    replicas: bool = False
    """Each page comes from one of two replicas, and only one of them is late by `history_delay`."""
    page: int = 100
    """The most rows of a page of a history, whatever is asked for."""
    odd_rows: float = 0.0
    """The share of rows of a history that have another form than the documented one."""
    old_rows: int = 0
    """Messages that stand in each chat from before the story."""


class Program(Part, frozen=True):
    """How the sessions of all machines are set up."""

    limits: Mapping[str, Rate] = {}
    parallel: int = 4
    timeout: float = 15.0
    attempts: int = 12
    give_up_after: float = 900.0
    settle_after: float = 15.0
    max_wait: float | None = None
    sessions_of_its_own: bool = False
    """An aiohttp session of the program's, as `http`."""


class Network(Part, frozen=True):
    """How the network carries bytes. The time of each way is drawn between the two numbers."""

    least: float = 0.0005
    most: float = 0.0005
    pieces: float = 0.0
    """The share of what is written that arrives in several pieces."""
    loss: float = 0.0
    """The share of pieces that get lost, and are sent again."""


class Clocks(Part, frozen=True):
    """The clocks of a machine: by how much one is ahead, and seconds gained in a second."""

    offset: float = 0.0
    drift: float = 0.0
    tells_sleep: bool = True


class Story(Part, frozen=True):
    """All that happens, and `seed`: the seed of what is drawn meanwhile (pauses, jitter, ids)."""

    seed: int = 0
    market: Market = Market()
    program: Program = Program()
    network: Network = Network()
    clocks: Clocks = Clocks()
    steps: tuple[AnyStep, ...] = ()
    failures: tuple[Failure, ...] = ()
    events: tuple[AnyEvent, ...] = ()

    def machines(self) -> int:
        """Return how many machines there are."""
        return 1 + max((step.machine for step in self.steps), default=0)

    def ends(self) -> float:
        """Return the moment after which nothing begins by itself."""
        moments = [step.at + (getattr(step, "cancel", None) or 0.0) for step in self.steps]
        moments += [event.at + getattr(event, "seconds", 0.0) for event in self.events]
        return max(moments, default=0.0)


def to_json(story: Part) -> bytes:
    """Return a story as JSON that a person can read."""
    return msgspec.json.format(msgspec.json.encode(_plain(story)), indent=1)


def _plain(part: Any) -> Any:
    """Return JSON without the values that are the default: msgspec knows only the very object."""
    if isinstance(part, (tuple, list)):
        return [_plain(item) for item in part]
    if isinstance(part, Mapping):
        return {key: _plain(item) for key, item in part.items()}
    if not isinstance(part, msgspec.Struct):
        return part
    config = part.__struct_config__
    plain = {} if config.tag is None else {config.tag_field: config.tag}
    for field in msgspec.structs.fields(type(part)):
        value = getattr(part, field.name)
        if field.required or value != (
            field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        ):
            plain[field.encode_name] = _plain(value)
    return plain


def from_json(content: bytes) -> Story:
    """Return the story of a JSON."""
    return msgspec.json.decode(content, type=Story)
