"""A process that sends messages with one client, as many as each line of its stdin says.

`python -m benchmarks.worker NAME URL AT_ONCE` answers each line with the seconds that it took, on
the clock and of the processor.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

from .rivals import opened


async def main(name: str, url: str, at_once: int) -> None:
    """Serve the lines of stdin."""
    async with opened(name, url, at_once) as run:
        await run(2 * at_once)
        gc.collect()
        gc.freeze()  # what the imports left behind is not the message's cost
        for line in sys.stdin:  # nothing else runs meanwhile
            # The connections are made, should they have been idle too long; send_many takes a while
            # until all places are busy.
            await run(4 * at_once if name == "send_many" else at_once)
            wall, cpu = time.perf_counter(), time.process_time()
            await run(int(line))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
