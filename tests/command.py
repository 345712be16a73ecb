"""The command `yamarket-chat` in a process of its own, forked from one that has imported it.

Python takes half a second to import what the command needs, and the tests run it a hundred times.
So one process imports all of it once, and is forked for each command. The fork has its own
environment, arguments, standard streams and signals. Some tests start the real command.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

MAIN = "import sys; from yamarket_chat.cli import main; sys.exit(main())"
ROOT = Path(__file__).parents[1]
NUMBER = struct.Struct("i")  # a process, or how it ended: 4 bytes, which a pipe writes at once


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without the variables that change the output."""
    unwanted = ("YAMARKET_", "FORCE_COLOR", "PY_COLORS", "TTY_", "GITHUB_ACTIONS", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"COLUMNS": "80"} | variables


class Command:
    """A running command, with what the tests use of `asyncio.subprocess.Process`."""

    def __init__(
        self,
        pid: int,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
        status: asyncio.StreamReader,
    ) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._end = asyncio.ensure_future(self._ended(status))

    async def _ended(self, status: asyncio.StreamReader) -> int:
        # Up to its end: only then is the pipe closed.
        [self.returncode] = NUMBER.unpack(await status.read())
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._end)

    async def communicate(self) -> tuple[bytes, bytes]:
        out, err, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return out, err


async def fork(code: str, *arguments: str, env: Mapping[str, str]) -> Command:
    """Run this code in a fork, with these arguments and this environment only."""
    pipes = [os.pipe() for _ in range(3)]
    request = json.dumps([code, arguments, dict(env)]).encode()
    with open(os.devnull) as nothing:
        theirs = [nothing.fileno(), *(written for _, written in pipes)]
        socket.send_fds(_server()[0], [request], theirs)
    for _, written in pipes:
        os.close(written)
    stdout, stderr, status = [await _reader(read) for read, _ in pipes]
    [pid] = NUMBER.unpack(await status.readexactly(NUMBER.size))
    return Command(pid, stdout, stderr, status)


async def _reader(file: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file, "rb", buffering=0)
    )
    return reader


@functools.cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that is forked. It ends when nobody has the socket any more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tests.command", str(theirs.fileno())],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours, process


def stop() -> None:
    """End the process that is forked, if a test has started it."""
    if _server.cache_info().currsize:
        ours, process = _server()
        ours.close()
        process.wait()


def serve(connection: socket.socket) -> None:
    """Fork for each request. In the fork, this returns when the code has run."""
    import yamarket_chat.cli.app
    import yamarket_chat.cli.bulk
    import yamarket_chat.cli.watcher
    import yamarket_chat.outbox  # noqa: F401

    with suppress(ModuleNotFoundError):
        # typer imports this, and pydantic if it is there, when it parses the first option.
        importlib.import_module("typer._adapters")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    signal.signal(signal.SIGINT, signal.default_int_handler)  # CI may have it ignored
    while True:
        request, files, _, _ = socket.recv_fds(connection, 2**20, 4)
        if not request:
            return
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code, arguments, env = json.loads(request)
            _watch(code, arguments, env, files)
            return
        for file in files:
            os.close(file)


def _watch(code: str, arguments: list[str], env: dict[str, str], files: list[int]) -> None:
    """Fork once more, and say how that fork ends: only its parent can know."""
    *streams, status = files
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(streams):
            os.dup2(file, number)
        for file in files:
            os.close(file)
        os.environ.clear()
        os.environ.update(env)
        # The old ones believe that they can seek.
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False
        )
        sys.argv = ["yamarket-chat", *arguments]
        exec(code, {"__name__": "__main__"})  # noqa: S102
        return
    for file in streams:
        os.close(file)
    os.write(status, NUMBER.pack(pid))
    _, ended = os.waitpid(pid, 0)
    os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
