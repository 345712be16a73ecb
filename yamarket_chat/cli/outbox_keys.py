"""The file of `outbox deliver --keys`: the keys of several businesses."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

from yamarket_chat.arguments import check_id, check_key
from yamarket_chat.errors import InvalidArgumentError

from . import console

LOOK = 5.0
"""Seconds between two looks whether the file has changed."""


class KeyFile:
    """A file with a line for each business, such as `12345=ACMA:...`.

    Attributes:
        keys: The keys by business. It changes with the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._state()
        self.keys: dict[int, str] = self._read()

    async def watch(self) -> None:
        """Read the file anew whenever it has changed. Keep the keys while it makes no sense."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                state = self._state()
                if state == self._seen:
                    continue
                self._seen = state
                keys = self._read()
            except InvalidArgumentError as error:
                console.warning(f"{error}. The keys stay as they were")
                continue
            if keys != self.keys:
                self.keys.update(keys)
                for business_id in self.keys.keys() - keys.keys():
                    del self.keys[business_id]
                console.note(f"The keys of {businesses(len(keys))} were read anew")

    def _state(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise InvalidArgumentError(
                f"the keys cannot be read: {self._path}: {error.strerror or error}"
            ) from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[int, str]:
        try:
            with self._path.open(encoding="utf-8-sig") as file:
                self._check(os.fstat(file.fileno()))
                text = file.read()
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"{self._path} is not text in UTF-8") from None
        except OSError as error:
            raise InvalidArgumentError(
                f"the keys cannot be read: {self._path}: {error.strerror or error}"
            ) from None
        keys: dict[int, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            business, equals, key = line.partition("=")
            try:
                if not equals:
                    raise InvalidArgumentError("a line is such as 12345=ACMA:your:key")
                business_id = check_id("the business id", business.strip())
                if business_id in keys:
                    raise InvalidArgumentError(f"business {business_id} is there twice")
                keys[business_id] = check_key(key.strip())
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{self._path}, line {number}: {error}") from None
        if not keys:
            raise InvalidArgumentError(
                f"{self._path} has no keys; a line is such as 12345=ACMA:key"
            )
        return keys

    def _check(self, found: os.stat_result) -> None:
        """Who may write the file decides to whom the messages go."""
        if sys.platform == "win32" or not stat.S_ISREG(found.st_mode):
            return
        if found.st_mode & stat.S_IWOTH:
            raise InvalidArgumentError(
                f"everybody may write {self._path}: run chmod 600 {self._path}"
            )
        if found.st_mode & stat.S_IROTH:
            console.warning(f"everybody on this machine may read {self._path}: use chmod 600")


def businesses(count: int) -> str:
    """Format a number of businesses."""
    return "1 business" if count == 1 else f"{count:,} businesses"
