"""`python -m benchmarks bot`: kills bots while buyers write, and counts what went wrong."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.crash.judge import Verdict
from benchmarks.crash.servers import postgres

from .play import POINTS, SIZE, BotCrash


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks bot", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--kills", type=int, default=50, help="how many kills; default: 50")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--workers", type=int, choices=(1, 2), help="default: now one, now two")
    parser.add_argument("--log", type=Path, help="keep here what the workers say")
    options = parser.parse_args(arguments)
    logging.disable()  # failures are expected here
    with tempfile.TemporaryDirectory(prefix="yamarket-bot-") as name:
        folder = Path(name)
        if options.database == "sqlite":
            result = _run(options, f"sqlite:///{folder}/outbox.db", folder)
        else:
            with postgres(own_network=False) as server:
                url = server.url.render_as_string(hide_password=False)
                result = _run(options, url, folder)
        if options.log is not None:
            shutil.copy(folder / "workers.log", options.log)
    print(", ".join(f"{count} {name}" for name, count in result.figures.items()))
    for problem in result.problems[:50]:
        print(problem)
    return int(bool(result.problems))


def _run(options: Any, url: str, folder: Path) -> Verdict:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} {text}", file=sys.stderr, flush=True)

    size = replace(SIZE, kills=options.kills, seed=options.seed)
    crash = BotCrash(size, url, folder, None, say)
    if options.workers is not None:
        crash.workers = (options.workers,)
    verdict = asyncio.run(crash.play())
    missed = crash.missed()
    print("killed at:", ", ".join(point for point in POINTS if point not in missed))
    if missed and size.kills >= SIZE.kills:
        verdict.problems.append(f"never killed at: {', '.join(missed)}")
    return verdict
