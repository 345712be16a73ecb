"""`python -m benchmarks crash`: kills workers of the outbox, and counts what went wrong."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .judge import Verdict
from .play import Crash, Size
from .servers import postgres, unshare
from .spread import spread


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks crash", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--kills", type=int, default=100, help="how many kills; default: 100")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds; default: 3")
    parser.add_argument(
        "--pauses",
        type=float,
        default=1.0,
        help="how long they are between what happens; default: 1",
    )
    parser.add_argument("--restarts", type=int, default=0, help="how often the server is killed")
    parser.add_argument(
        "--outage", type=float, default=0.0, help="seconds without a network to it; needs root"
    )
    parser.add_argument(
        "--spread", type=int, metavar="BUSINESSES", help="kill one worker of many businesses"
    )
    parser.add_argument("--log", type=Path, help="keep here what the workers say")
    options = parser.parse_args(arguments)
    if options.database == "sqlite" and (options.restarts or options.outage):
        parser.error("SQLite has no server: --restarts and --outage are for postgresql")
    size = Size(
        kills=options.kills,
        seed=options.seed,
        lease=options.lease,
        restarts=options.restarts,
        outage=options.outage,
        pauses=options.pauses,
    )
    logging.disable()  # failures are expected here
    with tempfile.TemporaryDirectory(prefix="yamarket-crash-") as folder:
        if options.spread is not None:
            return int(not run_spread(options.spread, options.database, Path(folder)))
        verdict = run(size, options.database, Path(folder))
        if options.log is not None:
            shutil.copy(Path(folder) / "workers.log", options.log)
    print(", ".join(f"{count} {name}" for name, count in verdict.figures.items()))
    for problem in verdict.problems[:50]:
        print(problem)
    unknown = verdict.figures["unknown"] > verdict.figures["messages"] / 100
    return int(bool(verdict.problems) or unknown or verdict.figures["420"] > 0)


def run(size: Size, database: str, folder: Path) -> Verdict:
    """Play a run on a database of its own."""
    say = _Say()
    if database == "sqlite":
        crash = Crash(size, f"sqlite:///{folder}/outbox.db", folder, None, say)
        return asyncio.run(crash.play())
    own_network = size.outage > 0
    if own_network:
        if os.geteuid() != 0:
            raise SystemExit("a network of its own needs root: leave --outage out")
        unshare()
    with postgres(own_network=own_network) as server:
        url = server.url.render_as_string(hide_password=False)
        return asyncio.run(Crash(size, url, folder, server, say).play())


def run_spread(businesses: int, database: str, folder: Path) -> bool:
    """Spread many businesses over some workers."""
    if database == "sqlite":
        return asyncio.run(spread(f"sqlite:///{folder}/outbox.db", folder, businesses, _Say()))
    with postgres(own_network=False) as server:
        url = server.url.render_as_string(hide_password=False)
        return asyncio.run(spread(url, folder, businesses, _Say()))


class _Say:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} {text}", file=sys.stderr, flush=True)
