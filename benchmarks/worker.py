"""A process that sends messages with one client.

`python -m benchmarks.worker NAME URL AT_ONCE` reads a number of messages from each line of its
stdin. It sends them and prints the wall time and the CPU time in seconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

from .rivals import opened


async def main(name: str, url: str, at_once: int) -> None:
    """Run the commands from stdin."""
    async with opened(name, url, at_once) as run:
        await run(2 * at_once)
        gc.collect()
        gc.freeze()  # objects of the imports are no part of a message's cost
        for line in sys.stdin:  # blocks the loop; nothing else runs meanwhile
            # Warm up: open connections again that were idle for too long. send_many needs a while
            # until all parallel slots are busy.
            await run(4 * at_once if name == "send_many" else at_once)
            wall, cpu = time.perf_counter(), time.process_time()
            await run(int(line))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
