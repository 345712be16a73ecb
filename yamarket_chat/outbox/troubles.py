"""What is wrong with a database, in words that say what to do."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from .errors import OutboxDatabaseError

SOON = 1.0
LATER = 60.0
"""Guesses: after so many seconds the cause may have passed."""

MOUNTS = "/proc/self/mountinfo"

NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "smb3", "smbfs",
}  # fmt: skip

# By SQLite's primary result code: what to do, and after how many seconds it may have passed.
_SQLITE = {
    sqlite3.SQLITE_BUSY: (
        "another program holds it locked for long, or an open transaction of this one: look which",
        SOON,
    ),
    sqlite3.SQLITE_LOCKED: ("another connection holds it locked for long: look which", SOON),
    sqlite3.SQLITE_READONLY: (
        "it is read-only: let this user write the file and its folder, and check the mount",
        None,
    ),
    sqlite3.SQLITE_FULL: ("the disk is full: make room", LATER),
    sqlite3.SQLITE_IOERR: ("the disk fails: check it, and whether it is full", LATER),
    sqlite3.SQLITE_CANTOPEN: (
        "the file cannot be opened: check its path and its permissions, and call"
        " `await outbox.create()` once to make it",
        None,
    ),
    sqlite3.SQLITE_NOTADB: ("this is no SQLite file: check the path", None),
    sqlite3.SQLITE_CORRUPT: ("the file is damaged: restore a backup", None),
}
_MISSING = "the tables are missing: call `await outbox.create()` once, and check the address"

# By the beginning of PostgreSQL's SQLSTATE, the longest first.
_POSTGRESQL: tuple[tuple[str, str, float | None], ...] = (
    ("42P01", _MISSING, None),
    ("42501", "this user may not do that: grant it the rights to the tables", None),
    ("25006", "it is read-only: connect to the primary server", LATER),
    ("53100", "its disk is full: make room", LATER),
    ("55P03", "another transaction holds the row for long: look which", SOON),
    ("57014", "it took too long: look whether the server is busy, and at statement_timeout", SOON),
    ("57P", "it is being stopped or started", SOON),
    ("40", "another transaction was in the way", SOON),
    ("08", "the connection broke", SOON),
    ("53", "it has no resources left: connections or memory", LATER),
    ("28", "it refuses this user: check the name, the password and pg_hba.conf", None),
    ("3D", "there is no such database: check the address", None),
)
_AWAY = "it cannot be reached: check the address, the network and the server"

# libpq tells no SQLSTATE of a connection that the server refuses, and servers speak many languages.
# What neither list has may pass as well.
_PASSES = (
    "starting up", "shutting down", "recovery mode", "not accepting", "not yet accepting",
    "too many", "connection slots",
    "запускается", "останавливается", "восстановлени", "не принимает", "слишком много",
    "слоты подключений",
)  # fmt: skip
_LASTS = (
    "pg_hba.conf", "authentication failed", "does not exist", "not permitted to log in",
    "certificate verify failed", "does not support SSL", "не существует",
)  # fmt: skip


class BrokenConnectionError(OutboxDatabaseError):
    """The connection broke: nothing tells whether the transaction was committed."""


def translated(error: Exception, address: str) -> OutboxDatabaseError:
    """Return the error that says what is wrong with a database.

    The address is without passwords.
    """
    where = f"the outbox's database, {address}"
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    said = " ".join(str(original).split())
    if isinstance(error, PoolTimeout):
        return OutboxDatabaseError(f"{where}: all connections are in use", retry_after=SOON)
    if isinstance(original, sqlite3.Error):
        advice, retry_after = _of_sqlite(original, said)
        return OutboxDatabaseError(f"{where}: {said}: {advice}", retry_after=retry_after)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return BrokenConnectionError(
            f"{where}: the connection broke, and nothing tells whether the transaction was"
            f" committed: {said}",
            sent=None,
            retry_after=SOON,
        )
    code = getattr(original, "sqlstate", None) or ""
    for beginning, advice, retry_after in _POSTGRESQL:
        if code.startswith(beginning):
            return OutboxDatabaseError(f"{where}: {said}: {advice}", retry_after=retry_after)
    if not code and type(original).__name__ in ("OperationalError", "ConnectionTimeout"):
        advice, retry_after = _of_connecting(original, said)
        return OutboxDatabaseError(f"{where}: {said}: {advice}", retry_after=retry_after)
    return OutboxDatabaseError(f"{where}: {said or type(original).__name__}")


def _of_sqlite(error: sqlite3.Error, said: str) -> tuple[str, float | None]:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if "no such table" in said:
        return _MISSING, None
    return _SQLITE.get(code, ("check the file", None))


def _of_connecting(error: Any, said: str) -> tuple[str, float | None]:
    if any(words in said for words in _PASSES):
        return "it is being started or stopped, or has no free connection", SOON
    used = getattr(getattr(error, "pgconn", None), "used_password", False)
    # The server asks for a password only when it is ready.
    if used or any(words in said for words in _LASTS):
        advice = "check the address, the user, the password, the database's name and pg_hba.conf"
        return advice, None
    return _AWAY, SOON


def refuse_network(path: str) -> None:
    """Raise OutboxDatabaseError if a file is on a network file system, where it can be seen.

    The processes of several machines share no memory, and SQLite's write-ahead log needs it.
    """
    kind = _file_system(os.path.realpath(path))
    if kind in NETWORK:
        raise OutboxDatabaseError(
            f"{path} is on a network file system ({kind}), where SQLite can lose messages: use a"
            " local disk, or PostgreSQL"
        )


def _file_system(path: str) -> str | None:
    """Return the type of the file system of a path; None if the system does not say."""
    try:
        mounts = Path(MOUNTS).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    found, longest = None, -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ").rstrip("/")
        # Of equal points the last one counts: it was mounted over the others.
        if (path == point or path.startswith(point + "/")) and len(point) >= longest:
            found, longest = after.split()[0], len(point)
    return found
