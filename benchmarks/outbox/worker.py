"""A process that delivers or puts with one queue.

`python -m benchmarks.outbox.worker NAME DATABASE deliver MARKET BUSINESSES` delivers. Each line of
stdin is answered by how many statements it has executed since the last `freeze` (if it counts them:
`count`, for SQLite; the server counts those of PostgreSQL). `freeze` says that the start is over.

`… NAME DATABASE put` puts as each line says, `single 100`, `at-once 100` or `many 100`, and prints
the seconds a message.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from typing import Any

from .clients import QUEUES, Queue, messages

AT_ONCE = 8


async def put(queue: Queue, way: str, count: int) -> None:
    """Put messages."""
    some = list(messages(count, 1))
    if way == "many":
        await queue.put_many(some)
        return

    async def one_after_another(part: list[Any]) -> None:
        for one in part:
            await queue.put(one)

    tasks = AT_ONCE if way == "at-once" else 1
    await asyncio.gather(*(one_after_another(some[start::tasks]) for start in range(tasks)))


async def main(name: str, url: str, what: str, *about: str) -> None:
    """Carry out the commands from stdin."""
    queue = QUEUES[name][1](url)
    statements = [0]
    try:
        if what == "put":
            await put(queue, "single", 20)
            for line in sys.stdin:
                way, count = line.split()
                wall, cpu = time.perf_counter(), time.process_time()
                await put(queue, way, int(count))
                took = time.perf_counter() - wall, time.process_time() - cpu
                print(json.dumps([seconds / int(count) for seconds in took]), flush=True)
            return
        if "count" in about:
            count_statements(statements)
        async with queue.delivering(about[0], int(about[1])):
            print("ready", flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                if line.strip() == "freeze":
                    gc.collect()
                    gc.freeze()  # objects of the imports are no part of a message's cost
                    statements[0] = 0
                print(statements[0], flush=True)
    finally:
        await queue.close()


def count_statements(count: list[int]) -> None:
    """Count what SQLAlchemy executes."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "before_cursor_execute")
    def executed(*arguments: Any) -> None:
        count[0] += len(arguments[3]) if arguments[5] else 1


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main(*sys.argv[1:]))
