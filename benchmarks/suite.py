"""All benchmarks, in the order of the docs page."""

from __future__ import annotations

from collections.abc import Mapping

from . import cost, decoding, faults, growth, imports, limit, notifications, simulation
from .bot import latency
from .outbox import backlog, delivery, scale
from .report import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = {
    "cost": cost,
    "limit": limit,
    "faults": faults,
    "growth": growth,
    "decoding": decoding,
    "imports": imports,
    "simulation": simulation,
    "outbox": delivery,
    "backlog": backlog,
    "notifications": notifications,
    "scale": scale,
    "reply": latency,
}
