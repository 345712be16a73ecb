"""Processes side by side: a server, workers that take turns, and counting instructions."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# asyncio reads into 256 KiB at a time. Whether glibc takes these from its heap or asks the system
# for them, three calls each time and up to a quarter of a request, depends on what was freed
# before, and so on chance. For servers and workers it is the heap.
_ENVIRONMENT = {
    **os.environ,
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
}
# Instructions repeat only where nothing else is left to chance either.
_REPEATABLE = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

Spread = dict[str, float]
"""A median, and the quartiles as low and high."""


def spread(values: Sequence[float]) -> Spread:
    """The median of some values, and their quartiles."""
    low, _, high = (
        statistics.quantiles(values, method="inclusive") if len(values) > 1 else 3 * [*values]
    )
    return {"median": statistics.median(values), "low": low, "high": high}


def python(*arguments: object) -> list[str]:
    """The command that runs this interpreter."""
    return [sys.executable, *map(str, arguments)]


def answer(*arguments: object, bytecode: str | None = None) -> Any:
    """What a run of this interpreter prints, read as JSON.

    `bytecode` is a folder in which it keeps what it compiled, whatever the environment says.
    """
    env = dict(os.environ)
    if bytecode is not None:
        env["PYTHONPYCACHEPREFIX"] = bytecode
        env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(  # noqa: S603
        python(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=env
    )
    return json.loads(done.stdout)


@contextmanager
def server(*, awake: bool = False) -> Iterator[str]:
    """A lean server in a process of its own; its address.

    One that is awake takes a core for itself. Whoever sends to one that sleeps pays for waking it,
    by chance up to an eighth of a request, which nobody does over a network.
    """
    with _started(python("-m", "benchmarks.server", *(["awake"] if awake else []))) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_ENVIRONMENT,
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()  # by which they know that they are no longer needed
            process.wait(30)


class Worker:
    """A process that sends messages with one client when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def send(self, messages: int) -> dict[str, float]:
        """Seconds that so many messages took, of the clock ("wall") and the processor ("cpu")."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(messages, file=self._process.stdin, flush=True)
        took: dict[str, float] = json.loads(self._process.stdout.readline())
        return took


def taking_turns(
    messages: Mapping[str, int], url: str, at_once: int, turns: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Seconds a message of each client, turn by turn; in each turn everybody sends its number.

    Each client has a fresh process; the first to send is another one each turn.
    """
    names = list(messages)
    with ExitStack() as stack:
        workers = {
            name: Worker(
                stack.enter_context(_started(python("-m", "benchmarks.worker", name, url, at_once)))
            )
            for name in names
        }
        for worker in workers.values():
            worker.send(at_once)  # so that all of them have started before the first turn
        for turn in range(turns):
            first = turn % len(names)
            took = {
                name: workers[name].send(messages[name])
                for name in [*names[first:], *names[:first]]
            }
            yield {
                name: {clock: seconds / messages[name] for clock, seconds in took[name].items()}
                for name in names
            }


def has_callgrind() -> bool:
    """Whether instructions can be counted."""
    return shutil.which("valgrind") is not None


def instructions(command: list[str], stdin: str = "") -> int:
    """How many instructions a command takes, counted by valgrind."""
    with tempfile.NamedTemporaryFile() as out:
        done = subprocess.run(  # noqa: S603
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", *command],  # noqa: S607
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
            env={**_ENVIRONMENT, **_REPEATABLE},
        )
    counted = re.search(r"Collected : (\d+)", done.stderr)
    assert counted is not None, done.stderr[-1000:]
    return int(counted[1])


def instructions_a_message(name: str, url: str, at_once: int, lengths: tuple[int, int]) -> float:
    """Instructions of one message: the difference of two runs, divided."""
    command = python("-m", "benchmarks.worker", name, url, at_once)
    short, long = (instructions(command, f"{length}\n") for length in lengths)
    return (long - short) / (lengths[1] - lengths[0])
