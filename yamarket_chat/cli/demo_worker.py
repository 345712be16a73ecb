"""A worker of the demo: delivers an outbox until somebody kills it.

The demo starts it as `python -m yamarket_chat.cli.demo_worker TASK`. It imports what it needs,
waits for a line on its standard input, delivers, and says so by a line on its standard output.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

import msgspec

from yamarket_chat.limits import Limits, Rate
from yamarket_chat.outbox import Outbox
from yamarket_chat.retry import Retry


class Task(msgspec.Struct, frozen=True):
    """What a worker is to do."""

    database: str
    base_url: str
    api_key: str
    business_id: int
    parallel: int
    rate: Rate
    lease: float
    settle_after: float


async def deliver(task: Task) -> None:
    """Deliver for ever."""
    outbox = Outbox(task.database)
    async with outbox.delivering(
        {task.business_id: task.api_key},
        lease=task.lease,
        base_url=task.base_url,
        limits=Limits(parallel=task.parallel, send_message=task.rate),
        retry=Retry(settle_after=task.settle_after),
    ):
        sys.stdout.write("delivers\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


def _end_with_the_demo() -> None:
    sys.stdin.buffer.read()  # to its end, which comes even if the demo is killed
    os._exit(1)


def main() -> None:
    """Deliver once the demo says so."""
    # The demo says itself what happens here.
    logging.getLogger("yamarket_chat").setLevel(logging.CRITICAL)
    task = msgspec.json.decode(sys.argv[1], type=Task)
    if sys.stdin.buffer.readline():
        threading.Thread(target=_end_with_the_demo, daemon=True).start()
        asyncio.run(deliver(task))


if __name__ == "__main__":
    main()
