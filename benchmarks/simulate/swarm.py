"""The rare things that a seed may switch on, and the faults of single requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from yamarket_chat.sandbox import Fault
from yamarket_chat.sandbox.faults import FaultTime

Random = random.Random

BEFORE_OR_AFTER: tuple[FaultTime, FaultTime] = ("before", "after")

SWARM: Mapping[str, float] = {
    # The programs
    "equal texts": 0.35,
    "spaces": 0.15,
    "files": 0.15,
    "send_many": 0.25,
    "one after another": 0.25,
    "max_wait": 0.12,
    "raises": 0.2,
    "cancels": 0.3,
    "groups": 0.1,
    "timeouts": 0.1,
    "closes": 0.15,
    "kills": 0.08,
    "reads": 0.2,
    "two sessions": 0.2,
    "two machines": 0.08,
    "own http": 0.08,
    "short timeout": 0.2,
    "few attempts": 0.08,
    # The limits
    "tight": 0.35,
    "tight reads": 0.1,
    "burst": 0.1,
    "fixed window": 0.15,
    "few places": 0.25,
    "lower at the Market": 0.08,
    "no headers": 0.08,
    "others use": 0.1,
    "others hold": 0.1,
    # The Market
    "fails": 0.7,
    "gives no answer": 0.15,
    "reads fail": 0.3,
    "last moment": 0.1,
    "slow": 0.25,
    "jitter": 0.2,
    "keep-alive": 0.15,
    "order": 0.4,
    "pages": 0.12,
    "delay": 0.12,
    "replicas": 0.1,
    "milliseconds": 0.3,
    "old rows": 0.15,
    "odd rows": 0.06,
    "buyers": 0.25,
    "colleague": 0.08,
    "down": 0.12,
    "access": 0.06,
    # The network
    "far": 0.2,
    "uneven": 0.2,
    "pieces": 0.12,
    "loss": 0.08,
    "outage": 0.12,
    "stall": 0.12,
    "cut": 0.12,
    "stray": 0.12,
    # The clocks
    "ahead": 0.3,
    "skew": 0.15,
    "date steps": 0.06,
    "storage steps": 0.04,
    "storage hosts": 0.05,
    "sleeps": 0.08,
    "stops": 0.08,
    "blocks": 0.06,
    "wall steps": 0.06,
    "drift": 0.04,
    "no boot clock": 0.08,
}
"""What a seed may switch on, and how likely."""

THEMES: tuple[tuple[str, ...], ...] = (
    # Things that only show together.
    ("tight", "uneven", "cancels", "timeouts"),
    ("tight", "uneven", "cancels", "far"),
    ("tight", "uneven", "gives no answer", "short timeout"),
    ("few places", "gives no answer", "short timeout", "reads"),
    ("tight", "cancels", "max_wait"),
    ("tight", "groups", "few places"),
    ("raises", "fails", "last moment"),
    ("tight reads", "reads", "cut", "keep-alive"),
    ("equal texts", "cancels", "timeouts", "fails", "slow"),
    ("equal texts", "raises", "fails", "closes"),
    ("equal texts", "fails", "last moment"),
    ("equal texts", "skew", "fails"),
    ("equal texts", "skew", "gives no answer"),
    ("storage steps", "fails"),
    ("equal texts", "storage hosts", "fails", "last moment", "raises"),
    ("equal texts", "storage steps", "fails", "one after another"),
    ("equal texts", "raises", "last moment", "fails"),
    ("equal texts", "skew", "fails", "storage steps"),
    ("equal texts", "sleeps", "fails", "slow"),
    ("equal texts", "date steps", "fails", "slow"),
    ("order", "pages", "old rows", "fails", "equal texts"),
    ("order", "pages", "replicas", "buyers", "gives no answer", "old rows"),
    ("last moment", "fails", "cancels", "short timeout", "delay"),
    ("outage", "stops", "own http"),
    ("outage", "blocks", "raises", "short timeout", "last moment", "fails"),
    ("outage", "stall", "cancels", "timeouts"),
    ("stray", "one after another"),
    ("stray", "gives no answer"),
    ("stray", "reads", "few places"),
    ("stray", "few places", "slow"),
    ("outage", "short timeout", "last moment", "fails"),
)
"""Sets of which a seed may switch all on at once."""


# The faults of single requests


def _delay(rng: Random, least: float, most: float) -> float:
    return round(rng.uniform(least, most), 2)


def _status(status: int, *, html: bool = False, after: bool = True) -> Callable[[Random], Fault]:
    """Return what makes a status; `after` says whether the Market may have carried it out."""

    def make(rng: Random) -> Fault:
        when = rng.choice(BEFORE_OR_AFTER) if after else "before"
        return Fault("status", when, status=status, html=html)

    return make


LATER: tuple[Callable[[Random], Fault], ...] = (
    lambda rng: Fault("reset", "later", delay=_delay(rng, 0.05, 9.9)),
    lambda rng: Fault("no_answer", "later", delay=_delay(rng, 0.05, 9.9)),
    lambda rng: Fault("half_body", "later", delay=_delay(rng, 0.05, 9.9)),
    lambda rng: Fault("status", "later", status=504, delay=_delay(rng, 0.05, 9.9)),
    lambda rng: Fault("status", "later", status=504, html=True, delay=_delay(rng, 0.05, 9.9)),
)

SEND_FAULTS: tuple[Callable[[Random], Fault], ...] = (
    *LATER,
    lambda rng: Fault("reset", rng.choice(BEFORE_OR_AFTER)),
    lambda rng: Fault("no_answer", rng.choice(BEFORE_OR_AFTER)),
    lambda rng: Fault("half_body", rng.choice(BEFORE_OR_AFTER)),
    lambda rng: Fault("slow", delay=_delay(rng, 0.5, 12.0)),
    lambda rng: Fault("unsolicited", delay=_delay(rng, 0.0, 4.0)),
    lambda rng: Fault("rate_limit", delay=_delay(rng, 0.5, 40.0)),
    lambda rng: Fault("parallel_limit"),
    _status(500),
    _status(500, html=True),
    _status(502),
    _status(502, html=True),
    _status(503, after=False),
    _status(503, html=True),
    _status(504),
    _status(504, html=True),
    _status(200, html=True),
    _status(302),
    _status(400, after=False),
    _status(404, after=False),
    _status(408),
    _status(418, html=True),
    _status(423, after=False),
    _status(429, html=True, after=False),
    _status(499),
)

READ_FAULTS: tuple[Callable[[Random], Fault], ...] = (
    lambda rng: Fault("reset"),
    lambda rng: Fault("no_answer"),
    lambda rng: Fault("half_body", "after"),
    lambda rng: Fault("slow", delay=_delay(rng, 0.5, 6.0)),
    lambda rng: Fault("unsolicited", delay=_delay(rng, 0.0, 4.0)),
    lambda rng: Fault("rate_limit", delay=_delay(rng, 0.5, 20.0)),
    lambda rng: Fault("parallel_limit"),
    _status(500, after=False),
    _status(502, html=True, after=False),
    _status(503, after=False),
    _status(200, html=True, after=False),
)


# What must be met


def name_of(fault: Fault) -> str:
    """Return a short name of a fault, by which it is counted."""
    name = f"{fault.kind} {fault.when}"
    if fault.kind == "status":
        name = f"status {fault.status}{' html' if fault.html else ''} {fault.when}"
    return name


def expected() -> Iterator[str]:
    """Return everything that must meet a send in a thousand seeds."""
    rng = random.Random(0)
    names: dict[str, None] = {}
    for prefix, faults in (("fault", SEND_FAULTS), ("read fault", READ_FAULTS)):
        for make in faults:
            for _ in range(20):
                names[f"{prefix} {name_of(make(rng))}"] = None
    events = (
        *("says", "others_use", "others_hold", "down", "access", "market_clock", "outage"),
        *("stall", "cut", "sleep", "stop", "wall_clock", "stray", "cancel", "close", "kill"),
    )
    names.update((f"event {event}", None) for event in events)
    names.update((f"settled: {said}", None) for said in ("arrived", "not sent", "unknown"))
    told = (
        *("arrived by answer", "arrived by history", "DeliveryUnknownError", "cancelled"),
        *("timed out", "stopped", "killed", "MaxWaitExceededError", "SessionClosedError"),
    )
    names.update((f"told {what}", None) for what in told)
    names.update((f"with {feature}", None) for feature in SWARM)
    yield from names
