"""Which requests a sandbox refuses for its limits, and whether a courier could have known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from yamarket_chat.sandbox import Sandbox

from ..market import SENDS

Refused = Callable[[str, str, str], None]
"""Is told the limit, "rate" or "parallel", the operation, and the program."""


def watch(box: Sandbox, refused: Refused, took_over_from: Callable[[str], bool]) -> None:
    """Tell of messages that are refused for the rate, and of requests for the parallel limit.

    A courier counts what it has under way itself, and what those before it have marked. After a
    death it holds all slots but one for reads of the dead process. It cannot know of other
    reads: a request that is refused because of these is not told of. docs/outbox.md says so.
    """
    server: Any = box._server
    handle, acquire = server._handle_operation, server.parallel.acquire
    who = ""
    under_way: dict[Any, tuple[str, str]] = {}

    def handled(request: Any, operation: Any, business_id: Any) -> Any:
        async def and_noted() -> Any:
            nonlocal who
            who = request.headers.get("X-Market-Integration", "")
            return await handle(request, operation, business_id)

        return and_noted()

    def acquired(slots: int) -> Any:
        arrival = box.arrivals[-1]
        slot = acquire(slots)
        for other in [other for other in under_way if other._limit is None]:
            del under_way[other]
        if slot is None:
            others = [(whose, what) for whose, what in under_way.values() if whose != who]
            reads = [whose for whose, what in others if what not in SENDS]
            # One request may be sent in any case, also if none of the slots is free.
            room = len(others) < slots
            if not reads or (room and all(took_over_from(whose) for whose in reads)):
                refused("parallel", arrival.operation, who)
            return None
        if not arrival.counted and arrival.operation in SENDS:
            refused("rate", arrival.operation, who)
        under_way[slot] = who, arrival.operation
        return slot

    server._handle_operation = handled
    server.parallel.acquire = acquired
