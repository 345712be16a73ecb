"""The rare things that the story of an outbox may switch on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yamarket_chat.outbox.points import NAMES

SWARM: Mapping[str, float] = {
    # The workers
    "kills": 0.5,
    "kills at points": 0.35,
    "kills all": 0.1,
    "pauses": 0.25,
    "pauses at points": 0.2,
    "leaves": 0.25,
    "sleeps": 0.06,
    "no locks": 0.4,
    "short lease": 0.15,
    "long lease": 0.1,
    "keys by function": 0.2,
    "short timeout": 0.3,
    "own clocks": 0.3,
    "wall steps": 0.05,
    # The database
    "server": 0.35,
    "slow database": 0.2,
    "hitches": 0.3,
    "away": 0.12,
    "no beats": 0.1,
    "looks often": 0.2,
    # What is put
    "equal texts": 0.4,
    "many": 0.25,
    "bulk": 0.3,
    "twice": 0.3,
    "no keys": 0.15,
    "by workers": 0.25,
    "cancels": 0.2,
    "not before": 0.15,
    "not after": 0.15,
    "orders": 0.15,
    "files": 0.15,
    "large files": 0.05,
    "forgets text": 0.1,
    # The limits
    "tight": 0.25,
    "burst": 0.05,
    "fixed window": 0.1,
    "few places": 0.25,
    "no headers": 0.05,
    "reserve": 0.1,
    "others use": 0.05,
    "others hold": 0.05,
    # The Market
    "fails": 0.5,
    "gives no answer": 0.2,
    "reads fail": 0.2,
    "last moment": 0.15,
    "slow": 0.3,
    "jitter": 0.2,
    "keep-alive": 0.1,
    "order": 0.3,
    "pages": 0.08,
    "delay": 0.1,
    "milliseconds": 0.3,
    "old rows": 0.1,
    "buyers": 0.15,
    "down": 0.08,
    "access": 0.06,
    # The network
    "far": 0.2,
    "uneven": 0.2,
    "pieces": 0.08,
    "loss": 0.06,
    "outage": 0.15,
    "stall": 0.12,
    "cut": 0.1,
    "stray": 0.1,
    # The clocks
    "ahead": 0.3,
    "skew": 0.1,
}
"""What a seed may switch on, and how likely."""

THEMES: tuple[tuple[str, ...], ...] = (
    # Things that only show together.
    ("kills", "tight"),
    ("kills", "few places", "slow"),
    ("kills at points", "equal texts"),
    ("kills", "gives no answer", "slow", "equal texts"),
    ("kills", "last moment", "fails", "equal texts"),
    ("kills", "outage", "equal texts"),
    ("pauses", "outage", "equal texts", "no locks"),
    ("pauses at points", "no locks"),
    ("pauses at points", "server"),
    ("pauses at points", "large files"),
    ("leaves", "tight", "equal texts"),
    ("leaves", "fails", "equal texts"),
    ("hitches", "server", "kills"),
    ("hitches", "server", "pauses", "leaves"),
    ("away", "server", "kills"),
    ("away", "pauses", "no locks"),
    ("no beats", "server", "hitches", "equal texts"),
    ("no beats", "no locks", "slow database"),
    ("no beats", "no locks", "large files"),
    ("sleeps", "server", "equal texts"),
    ("kills", "kills all", "equal texts", "own clocks"),
    ("kills", "gives no answer", "last moment", "short timeout"),
    ("cancels", "not after", "not before", "kills"),
    ("bulk", "many", "kills", "few places"),
)
"""Sets of which a seed may switch all on at once."""


def expected() -> Iterator[str]:
    """Yield everything that must be met in a thousand seeds."""
    yield from (f"point {point}" for point in NAMES)
    for action in ("kill", "pause"):
        yield from (f"event {action} {point}" for point in NAMES)
    events = (
        *("killed", "left", "away", "sleep", "stop", "wall_clock", "outage", "stall", "cut"),
        *("says", "others_use", "others_hold", "down", "access", "stray"),
    )
    yield from (f"event {event}" for event in events)
    for kind in ("fails", "unlearnt", "late", "slow", "learnt late"):
        yield from (f"hitch {kind} {what}" for what in ("send", "beat", "lease", "put"))
    yield from (f"told {state}" for state in ("refused", "unknown", "expired"))
    yield from (f"with {feature}" for feature in SWARM)
