"""Processes of a benchmark: a server, workers that take turns, and instruction counts."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# asyncio reads into a buffer of 256 KiB. glibc takes the buffer either from its heap or from the
# system, with three system calls each time, which is up to a quarter of a request. The choice
# depends on what was freed before, so it is chance. These settings make it always the heap.
_ENVIRONMENT = {
    **os.environ,
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
}
# Instruction counts repeat only if nothing else depends on chance either.
_REPEATABLE = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

Spread = dict[str, float]
"""A median, and the quartiles under `low` and `high`."""


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of some values."""
    low, _, high = (
        statistics.quantiles(values, method="inclusive") if len(values) > 1 else 3 * [*values]
    )
    return {"median": statistics.median(values), "low": low, "high": high}


def python(*arguments: object) -> list[str]:
    """Return the command that runs this interpreter."""
    return [sys.executable, *map(str, arguments)]


def answer(*arguments: object, bytecode: str | None = None) -> Any:
    """Run this interpreter and return what it prints, decoded from JSON.

    `bytecode` is the folder for compiled modules, whatever the environment says.
    """
    env = dict(os.environ)
    if bytecode is not None:
        env["PYTHONPYCACHEPREFIX"] = bytecode
        env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(  # noqa: S603
        python(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=env
    )
    return json.loads(done.stdout)


def forked(target: Callable[[Any], None], plan: Any, name: str) -> BaseProcess:
    """Start a process that does `target(plan)`. It is forked from one that has imported it."""
    context = get_context("forkserver")
    context.set_forkserver_preload([target.__module__])
    process = context.Process(target=target, args=(plan,), name=name, daemon=True)
    process.start()
    return process


@contextmanager
def server(*, awake: bool = False) -> Iterator[str]:
    """Start the minimal server in its own process and yield its address.

    With `awake`, the server never sleeps and takes a whole core. A client of a sleeping server pays
    for waking it, by chance up to an eighth of a request. Over a network, no client pays that.
    """
    with server_process(awake=awake) as (url, _):
        yield url


@contextmanager
def server_process(*, awake: bool = False) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the server as `server` does, and yield its process as well."""
    with started(python("-m", "benchmarks.server", *(["awake"] if awake else []))) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that ends when its stdin is closed."""
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
            process.stdin.close()  # tells the process to end
            process.wait(30)


class Worker:
    """A process that sends messages with one client on command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def send(self, messages: int) -> dict[str, float]:
        """Send messages and return the seconds of wall time ("wall") and CPU time ("cpu")."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(messages, file=self._process.stdin, flush=True)
        took: dict[str, float] = json.loads(self._process.stdout.readline())
        return took


def taking_turns(
    messages: Mapping[str, int], url: str, at_once: int, turns: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the seconds a message of each client, turn by turn.

    Each client has a fresh process and sends its number of messages in each turn. Each turn starts
    with another client.
    """
    names = list(messages)
    with ExitStack() as stack:
        workers = {
            name: Worker(
                stack.enter_context(started(python("-m", "benchmarks.worker", name, url, at_once)))
            )
            for name in names
        }
        for worker in workers.values():
            worker.send(at_once)  # all workers have started before the first turn
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
    """Return whether instructions can be counted."""
    return shutil.which("valgrind") is not None


def instructions(command: list[str], stdin: str = "") -> int:
    """Count the instructions of a command with valgrind."""
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
    """Count the instructions of one message, from the difference of a short and a long run."""
    command = python("-m", "benchmarks.worker", name, url, at_once)
    short, long = (instructions(command, f"{length}\n") for length in lengths)
    return (long - short) / (lengths[1] - lengths[0])
