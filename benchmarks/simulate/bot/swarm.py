"""The rare things that the story of a bot may switch on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yamarket_chat.bot.points import NAMES as BOT_POINTS
from yamarket_chat.outbox.points import NAMES

SWARM: Mapping[str, float] = {
    # The workers
    "kills": 0.4,
    "kills at points": 0.35,
    "kills all": 0.1,
    "pauses": 0.25,
    "pauses at points": 0.4,
    "leaves": 0.25,
    "many leaves": 0.04,
    "sleeps": 0.04,
    "no locks": 0.3,
    "short lease": 0.15,
    "long lease": 0.1,
    "short timeout": 0.1,
    "own clocks": 0.2,
    "wall steps": 0.05,
    # The database
    "server": 0.35,
    "slow database": 0.15,
    "hitches": 0.3,
    "away": 0.12,
    "no beats": 0.1,
    "looks often": 0.2,
    # What the shop says otherwise
    "puts": 0.2,
    "persons": 0.3,
    "buyers": 0.2,
    # What buyers write
    "equal texts": 0.4,
    "buyers' files": 0.2,
    "stickers": 0.2,
    "at once": 0.4,
    "late rows": 0.3,
    "deletions": 0.15,
    "finished": 0.15,
    "disputes": 0.15,
    "waiting": 0.3,
    "old rows": 0.2,
    "other chats": 0.2,
    "max age": 0.08,
    # What the Market tells
    "told": 0.7,
    "told thrice": 0.3,
    "told late": 0.3,
    "tells own": 0.2,
    # The handlers
    "slow handlers": 0.4,
    "says nothing": 0.2,
    "many replies": 0.4,
    "now": 0.3,
    "files": 0.2,
    "raises": 0.25,
    "hangs": 0.15,
    "clings": 0.08,
    "statements": 0.1,
    "killers": 0.2,
    "gives up": 0.2,
    "errors fail": 0.2,
    "one at a time": 0.1,
    # The limits
    "tight": 0.1,
    "tight reads": 0.1,
    "few places": 0.15,
    "no headers": 0.05,
    "reserve": 0.05,
    "others use": 0.05,
    # The Market
    "fails": 0.4,
    "gives no answer": 0.1,
    "reads fail": 0.3,
    "last moment": 0.05,
    "slow": 0.15,
    "jitter": 0.15,
    "keep-alive": 0.1,
    "order": 0.3,
    "pages": 0.1,
    "delay": 0.1,
    "replicas": 0.1,
    "milliseconds": 0.3,
    "down": 0.08,
    "access": 0.06,
    # The network
    "far": 0.1,
    "loss": 0.05,
    "outage": 0.12,
    "stall": 0.08,
    "cut": 0.1,
    # The clocks
    "ahead": 0.3,
    "skew": 0.04,
}
"""What a seed may switch on, and how likely."""

THEMES: tuple[tuple[str, ...], ...] = (
    # Things that only show together.
    (),
    ("told",),
    ("slow handlers", "other chats", "persons"),
    ("pauses", "slow handlers", "no locks"),
    ("pauses", "slow handlers", "server", "told"),
    ("pauses at points", "no locks", "told"),
    ("pauses at points", "server", "many replies"),
    ("kills at points", "many replies", "at once"),
    ("kills", "slow handlers", "now", "many replies"),
    ("late rows", "told", "at once"),
    ("late rows", "told", "kills", "slow handlers"),
    ("late rows", "order", "pages", "old rows", "told"),
    ("killers", "gives up", "slow handlers", "at once"),
    ("killers", "gives up", "slow handlers", "server"),
    ("raises", "gives up", "kills"),
    ("raises", "leaves", "kills at points"),
    ("many leaves", "slow handlers"),
    ("many leaves", "slow handlers", "kills at points", "pauses at points"),
    ("many leaves", "slow handlers", "kills at points", "pauses at points", "killers"),
    ("hitches", "server", "slow handlers", "many replies"),
    ("hitches", "kills", "told"),
    ("away", "kills", "slow handlers"),
    ("waiting", "old rows", "kills at points"),
    ("kills at points", "kills", "short lease"),
    ("deletions", "raises", "told", "kills"),
    ("fails", "many replies", "errors fail", "gives up"),
    ("persons", "buyers", "at once", "slow handlers"),
    ("tight reads", "told", "told thrice", "at once"),
)
"""Sets of which a seed may switch all on at once."""


def expected() -> Iterator[str]:
    """Yield everything that must be met in a thousand seeds."""
    points = *NAMES, *BOT_POINTS
    yield from (f"point {point}" for point in points)
    for action in ("kill", "pause"):
        yield from (f"event {action} {point}" for point in points if point != "half written")
    events = (
        *("killed", "left", "away", "sleep", "stop", "wall_clock", "outage", "stall", "cut"),
        *("says", "others_use", "down", "access", "changes", "a person answers"),
    )
    yield from (f"event {event}" for event in events)
    for kind in ("fails", "unlearnt", "late", "slow", "learnt late"):
        whats = ("send", "beat", "lease", "commit", "try", "hint")
        yield from (f"hitch {kind} {what}" for what in whats)
    yield from (f"told {times} times" for times in (0, 1, 3))
    yield from (f"answer {status}" for status in (200, 500))
    for trouble in ("raises", "hangs", "kills", "clings", "statement"):
        yield f"handler {trouble}"
    for trouble in ("raises", "hangs", "kills", "statement"):
        yield f"error {trouble}"
    errors = (
        *("HandlerTimeoutError", "HandlerDiedError", "MessageTooOldError", "Trouble"),
        *("OperationalError", "a reply"),
    )
    yield from (f"given up: {error}" for error in errors)
    yield from (f"with {feature}" for feature in SWARM)
