"""What aiohttp takes from the system, taken from the virtual loop instead.

Besides `_http/bodies.py` this is the only file that touches what is private in aiohttp. It was
tried with aiohttp 3.14.4 and 3.14.5; `tests/test_aiohttp_private.py` fails if another version
changes it.

- `aiohttp.connector.monotonic`: a connector measures by it how long a kept connection was idle. By
  the real clock none would ever expire while virtual hours pass.
- `aiohttp.connector.set`: a connector keeps the connections in use in sets, and closes them in
  their order, which is by address in memory. A class of this name that keeps the order of adding
  makes a run repeatable.

On other loops both do what they did before.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import connector


class OrderedSet(dict[Any, None]):
    """What a connector uses of a set, in the order of adding."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]

    def discard(self, item: Any) -> None:
        self.pop(item, None)


def monotonic() -> float:
    """Return the time of a virtual loop if one is running, and the system's otherwise."""
    loop = asyncio._get_running_loop()
    return loop.time() if hasattr(loop, "stood_still") and loop is not None else time.monotonic()


def install() -> None:
    """Change aiohttp, once for the process."""
    connector.monotonic = monotonic  # type: ignore[attr-defined]
    connector.set = OrderedSet  # type: ignore[attr-defined]
