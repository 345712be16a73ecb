"""A lock of the operating system that a worker holds while its process lives.

It is a file beside an SQLite database, so all workers are on one machine. The system frees the lock
when it closes the last copy of the file's descriptor. That is when it also has closed the process's
connections to the Market. So whoever gets the lock knows that the worker is dead, and that nothing
of it is under way any more. A process that is only paused keeps its lock.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from contextlib import suppress
from pathlib import Path

OLD = 7 * 24 * 3600.0
"""Seconds, since it was made, after which the file of a lock that nobody holds is removed. A worker
that starts again has to see by the file that the one before is dead, however long that one ran."""

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        # Not lockf: that one is freed at a death although a forked child still has the connections,
        # and by a look of another worker in the same process.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """The lock of a worker.

    Args:
        database: The path of the database.

    Raises OSError if there can be none.
    """

    def __init__(self, database: str) -> None:
        beginning = f"{database}-worker-"
        _tidy(beginning)
        # A name that nobody had before: whoever opens this file later can mean only this worker.
        self._path = Path(f"{beginning}{secrets.token_hex(8)}")
        self.name: str = self._path.name
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _lock(self._file)
        except BaseException:
            self.free()
            raise

    def free(self, *, file_stays: bool = False) -> None:
        """Free the lock, and remove its file, unless others still have to see that it is free."""
        if not file_stays:
            remove(str(self._path))
        os.close(self._file)


def _tidy(beginning: str) -> None:
    """Remove the files of workers that were taken for dead before they died."""
    with suppress(OSError):
        for path in Path(beginning).parent.iterdir():
            if not str(path).startswith(beginning):
                continue
            # A new one may not be locked yet. Files have the times of the wall clock.
            if time.time() - path.stat().st_mtime > OLD and is_free(str(path)):
                remove(str(path))


def is_free(path: str) -> bool:
    """Return whether the lock of a worker is free, which proves that the worker is dead."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False  # removed by somebody: this proves nothing
    try:
        _lock(file)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(file)


def remove(path: str) -> None:
    """Remove the file of a lock."""
    with suppress(OSError):
        Path(path).unlink()
