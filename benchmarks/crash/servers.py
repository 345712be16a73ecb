"""The database of a run: a file, or a PostgreSQL server that dies and whose network goes away."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from tests.postgres import as_nobody, programs, wait_for

CLONE_NEWNET = 0x40000000
SERVER, CLIENT = "10.99.8.2", "10.99.8.1"
PORT = 5433
NOWHERE = "02:00:00:00:00:99"


class Postgres:
    """A server that is started, killed and started again, in a network of its own if root may."""

    def __init__(
        self, folder: Path, *, own_network: bool, settings: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._settings = settings or {}
        self._programs = programs(folder)
        self._data = folder / "data"
        self._own_network = own_network
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._data.mkdir(0o700)
        if os.geteuid() == 0:
            shutil.chown(self._data, "nobody")
        initdb = f"-D {self._data} -A trust -U postgres -E UTF8 --locale C --no-sync"
        self._run(self._programs / "initdb", *initdb.split())
        if own_network:
            (self._data / "pg_hba.conf").write_text("host all all all trust\n")
            self._thread.submit(self._make_network).result()

    @property
    def url(self) -> URL:
        """The address of the server."""
        where: dict[str, Any] = {"query": {"host": str(self._data)}}
        if self._own_network:
            where = {"host": SERVER, "port": PORT}
        return URL.create("postgresql+psycopg", username="postgres", database="postgres", **where)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = {
            "fsync": "off",  # the machine does not die here
            "shared_buffers": "64MB",
            "max_connections": "200",
            "unix_socket_directories": str(self._data),
            "listen_addresses": SERVER if self._own_network else "",
            "port": str(PORT if self._own_network else 5432),
            "log_min_messages": "panic",
            **self._settings,
        }
        arguments = [part for item in settings.items() for part in ("-c", "=".join(item))]

        def popen() -> subprocess.Popen[bytes]:
            return subprocess.Popen(  # noqa: S603
                [self._programs / "postgres", "-D", self._data, *arguments],
                **as_nobody(),
                cwd="/",
                stderr=subprocess.DEVNULL,
            )

        # From a thread in the server's network.
        self._process = self._thread.submit(popen).result()
        wait_for(self.url, self._process)

    def cpu(self) -> float:
        """Return the seconds of CPU that the server and all its sessions have used."""
        assert self._process is not None
        mine, ticks = str(self._process.pid), 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, fields = path.read_text(encoding="utf-8").rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            values = fields.split()
            pid = name.partition(" ")[0]
            if mine in (pid, values[1]):
                # Of the first process also what its ended children have used.
                ticks += sum(map(int, values[11 : 15 if pid == mine else 13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it at once, with all its sessions, as in a crash."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def network(self, up: bool) -> None:
        """Cut the network, or mend it. Nobody is told: packets are lost."""
        for address, device, run in (
            (SERVER, "near", _ip),
            (CLIENT, "far", self._ip_there),
        ):
            if up:
                run("neigh", "del", address, "dev", device)
            else:
                nowhere = ("lladdr", NOWHERE, "nud", "permanent", "dev", device)
                run("neigh", "replace", address, *nowhere)

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self.kill()
        self._thread.shutdown()

    def _run(self, *command: Any) -> None:
        subprocess.run(  # noqa: S603
            command, **as_nobody(), check=True, stdout=subprocess.DEVNULL, cwd="/"
        )

    def _ip_there(self, *arguments: str) -> None:
        self._thread.submit(_ip, *arguments).result()

    def _make_network(self) -> None:
        # A thread may have a network of its own, and what it starts is in it.
        unshare()
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "far", "type", "veth", "peer", "name", "near", "netns", str(os.getpid()))
        _ip("addr", "add", f"{SERVER}/24", "dev", "far")
        _ip("link", "set", "far", "up")


def unshare() -> None:
    """Give this thread, and what it starts, a network of its own, with nothing but loopback."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "the system allows no network namespace")
    _ip("link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)  # noqa: S603, S607


@contextmanager
def postgres(*, own_network: bool, settings: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """Run a server."""
    with tempfile.TemporaryDirectory(prefix="yamarket-crash-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        server = Postgres(folder, own_network=own_network, settings=settings)
        if own_network:
            _ip("addr", "add", f"{CLIENT}/24", "dev", "near")
            _ip("link", "set", "near", "up")
        try:
            server.start()
            yield server
        finally:
            server.stop()
