"""Files to send: checked before anything is sent, streamed, never held in memory twice."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar
from weakref import WeakValueDictionary

from aiohttp import MultipartWriter, payload

from ..arguments import check_encodable
from ..errors import InvalidArgumentError
from ..system import randomness, thread_time
from .bodies import RequestBody

LARGEST_FILE = 5 * 2**20
"""The most bytes of a file: 5 MB, as documented for sendFileToChat."""

CHUNK = 2**16

HANGS = 5.0
"""Seconds after which a thread that is in a file counts as one that hangs, as on a dead network
mount. Nobody waits for it any longer."""

LOOK = 0.001
"""Seconds between two looks whether a file is free."""

_NOT_IN_NAMES = {"Cc", "Zl", "Zp"}  # control characters, line breaks

_T = TypeVar("_T")


class Upload:
    """A file to send: its source, the name that the buyer sees, and its size in bytes."""

    def __init__(self, source: object, filename: str | None) -> None:
        """Raises InvalidArgumentError if the file is missing, empty or too large."""
        self._path: str | bytes | None = None
        self._file: BinaryIO | None = None
        self._start = 0
        self._turns = _Turns()
        name: object = filename
        try:
            if isinstance(source, (bytes, bytearray, memoryview)):
                self.size = memoryview(source).nbytes
                # Bytes are shared. A mutable buffer is copied, unless it is too large anyway.
                self._file = io.BytesIO(bytes(source) if self.size <= LARGEST_FILE else b"")
            elif isinstance(source, (str, os.PathLike)):
                self._path = os.fspath(source)
                self.size = os.stat(self._path).st_size
                if not os.path.isfile(self._path):
                    raise InvalidArgumentError(f"{os.fsdecode(self._path)} is not a file")
                name = filename or os.path.basename(os.fsdecode(self._path))
            elif hasattr(source, "read"):
                self._open_file(source)
                if filename is None and isinstance(called := getattr(source, "name", None), str):
                    name = os.path.basename(called)
            else:
                raise InvalidArgumentError("file is a path, bytes, or a file opened for bytes")
        except InvalidArgumentError:
            raise
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(f"the file cannot be read: {error}") from None
        except Exception as error:  # noqa: BLE001 - an object of the caller may raise anything
            raise InvalidArgumentError(
                f"the file cannot be read ({error or type(error).__name__}): pass a path, bytes, or"
                " a file opened by open(path, 'rb')"
            ) from None
        self.name = _check_name(name)
        if not 0 < self.size <= LARGEST_FILE:
            raise InvalidArgumentError(
                f"{self.name} has {self.size} bytes; the Market accepts 1 to {LARGEST_FILE}"
            )

    def _open_file(self, source: Any) -> None:
        """Note where an open file begins and how long it is."""
        if not (hasattr(source, "seekable") and source.seekable()):
            content = _drain(source)
            self._file, self.size = io.BytesIO(content), len(content)
            return
        if isinstance(source, io.TextIOBase):
            raise InvalidArgumentError("the file is opened for text: open it with mode 'rb'")
        self._file = source
        self._turns = _turns_of(source)
        self._start, end = self._turns.measure(source)
        self.size = end - self._start

    def body(self, make: Callable[[str, str], FormBody] | None = None) -> FormBody:
        """Return the form for one request. `make` makes it, if it is of another class."""
        boundary = f"{randomness('boundary').getrandbits(128):032x}"
        form = (make or FormBody)("form-data", boundary)
        part = form.append_payload(_Part(self))
        # The name in UTF-8, as browsers send it: Russian names need this (RFC 7578).
        part.set_content_disposition(
            "form-data", quote_fields=False, name="file", filename=self.name
        )
        return form

    async def in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        """Call `open` or `read` in a thread, once no other thread is in the file.

        Raises OSError if the other one hangs.
        """
        while True:
            if not self._turns.is_taken():
                with suppress(_Taken):
                    return await asyncio.to_thread(function, *args, wait=0.0)
            await asyncio.sleep(LOOK)

    def open(self, wait: float = HANGS) -> BinaryIO:
        """Open the file for `read`. It waits so many seconds for its turn."""
        if self._path is None:
            assert self._file is not None  # noqa: S101 - a path or a file
            return self._file
        with self._turns.take(wait):
            return open(self._path, "rb")

    def read(self, file: BinaryIO, position: int, size: int, wait: float = HANGS) -> bytes:
        """Read a piece, and leave the file where it was. It waits so many seconds for its turn."""
        with self._turns.take(wait):
            found = self._turns.start = file.tell()
            try:
                file.seek(self._start + position)
                return file.read(size)
            finally:
                file.seek(found)

    def done(self, file: BinaryIO) -> None:
        """Close what `open` opened. A file of the caller stays open."""
        if self._path is not None:
            file.close()


class _Taken(OSError):
    """Another thread is in the file."""


class _Turns:
    """Lets one thread at a time into a file.

    All calls with one open file of the caller share it, because they share its position. The calls
    wait in the loop: if each took a thread to wait for one that hangs, none would be left.
    """

    def __init__(self, file: object = None) -> None:
        self.start = 0  # where the caller has left the file
        self._file = file  # it is kept: its id stands for it
        self._end: int | None = None
        self._lock = threading.Lock()
        self._since: float | None = None  # when the present turn began

    def is_taken(self) -> bool:
        """Whether a thread is in the file. Raises OSError if it hangs."""
        since = self._since
        if since is not None and thread_time() - since > HANGS:
            raise OSError(f"reading it hangs, for more than {HANGS:g} s already")
        return since is not None

    @contextmanager
    def take(self, wait: float) -> Iterator[None]:
        """Take a turn. Raises OSError if there is none for so many seconds, or a thread hangs."""
        self.is_taken()
        if not self._lock.acquire(timeout=wait):
            raise _Taken("another thread is reading it")
        try:
            self._since = thread_time()
            yield
        finally:
            self._since = None
            self._lock.release()

    def measure(self, file: Any) -> tuple[int, int]:
        """Return the position of an open file and its end.

        A call that is reading it has moved it for a moment. Then the last positions hold: waiting
        would block the loop.
        """
        self.is_taken()
        if self._lock.acquire(blocking=self._end is None):
            try:
                self.start = file.tell()
                try:
                    self._end = file.seek(0, os.SEEK_END)
                finally:
                    file.seek(self.start)
            finally:
                self._lock.release()
        assert self._end is not None  # noqa: S101 - this call or an earlier one has measured it
        return self.start, self._end


_turns: WeakValueDictionary[int, _Turns] = WeakValueDictionary()
_turns_lock = threading.Lock()


def _turns_of(file: object) -> _Turns:
    with _turns_lock:  # for a moment: it is not held while a file is touched
        turns = _turns.get(id(file))
        if turns is None:
            turns = _turns[id(file)] = _Turns(file)
        return turns


def _drain(source: Any) -> bytearray:
    """Read a pipe or a socket: only reading shows its size, and it cannot be read again."""
    content = bytearray()
    while len(content) <= LARGEST_FILE:
        piece = source.read(LARGEST_FILE + 1 - len(content))
        if not isinstance(piece, bytes):
            raise InvalidArgumentError("the file must be opened for bytes, and reading must block")
        if not piece:
            break
        content += piece
    return content


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(
            "filename is missing: pass the name that the buyer sees, such as 'label.pdf'"
        )
    check_encodable("filename", name)
    forbidden = any(c in "/\\" or unicodedata.category(c) in _NOT_IN_NAMES for c in name)
    if len(name) > 255 or forbidden:
        raise InvalidArgumentError(
            "filename is a plain name of at most 255 characters, without slashes, line breaks and"
            " control characters"
        )
    return name


class _Part(payload.Payload):
    """The file in the form. It is read in a thread, in pieces."""

    def __init__(self, upload: Upload) -> None:
        super().__init__(upload, content_type="application/octet-stream")
        self._upload = upload

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._upload.size

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Fail: the file is streamed."""
        raise TypeError("a file is streamed")

    async def write(self, writer: Any) -> None:
        """Write the file."""
        upload = self._upload
        try:
            file = await upload.in_thread(upload.open)
        except OSError as error:
            raise Unreadable(str(error)) from None
        try:
            position = 0
            while position < upload.size:
                piece = await self._piece(file, position)
                position += len(piece)
                await writer.write(piece)
        finally:
            upload.done(file)

    async def _piece(self, file: BinaryIO, position: int) -> bytes:
        upload = self._upload
        size = min(CHUNK, upload.size - position)
        try:
            piece = await upload.in_thread(upload.read, file, position, size)
        except Exception as error:  # noqa: BLE001 - a file of the caller may raise anything
            raise Unreadable(str(error) or type(error).__name__) from None
        if not isinstance(piece, bytes):
            raise Unreadable(f"reading it gave {type(piece).__name__} instead of bytes")
        if not piece:
            raise Unreadable("it has become shorter since it was passed to send_file")
        return piece

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write the file. Its length is known before."""
        await self.write(writer)


class FormBody(RequestBody, MultipartWriter):
    """A form that knows whether it may have been sent, and whether its file could not be read."""

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write the form to a connection."""
        self.begin(writer)
        await self.write_form(writer)

    async def write_form(self, writer: Any) -> None:
        """Write the form to a connection that it has begun."""
        self.unfinished = True
        try:
            await super().write(writer)
        except Unreadable as error:
            # The form is incomplete: the Market may have counted the request, but not carried it
            # out.
            self.broken = f"the file cannot be read: {error}"
            raise
        self.unfinished = False


class Unreadable(Exception):
    """The file could not be read when it was to be sent."""
