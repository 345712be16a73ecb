"""Files to send: checked before anything is sent, streamed, never held in memory twice."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO

from aiohttp import MultipartWriter, payload

from ..arguments import check_encodable
from ..errors import InvalidArgumentError
from ..system import randomness
from .bodies import RequestBody

LARGEST_FILE = 5 * 2**20
"""The most bytes of a file: 5 MB, as documented for sendFileToChat."""

CHUNK = 2**16

_NOT_IN_NAMES = {"Cc", "Zl", "Zp"}  # control characters, line breaks


_reading = threading.Lock()
"""Held while a file of the caller's is read: several calls may have the same one."""


class Upload:
    """A file to send: its source, the name that the buyer sees, and its size in bytes."""

    def __init__(self, source: object, filename: str | None) -> None:
        """Raises InvalidArgumentError if the file is missing, empty or too large."""
        self._path: str | bytes | None = None
        self._file: BinaryIO | None = None
        self._start = 0
        self._lock: AbstractContextManager[object] = nullcontext()
        self._busy = False  # a thread is in `open` or `read`
        name: object = filename
        if isinstance(source, (bytes, bytearray, memoryview)):
            self.size = memoryview(source).nbytes
            # Bytes are shared. A mutable buffer is copied, unless it is too large anyway.
            self._file = io.BytesIO(source if self.size <= LARGEST_FILE else b"")
        elif isinstance(source, (str, os.PathLike)):
            self._path = os.fspath(source)
            try:
                self.size = os.stat(self._path).st_size
            except (OSError, ValueError) as error:
                raise InvalidArgumentError(f"the file cannot be read: {error}") from None
            if not os.path.isfile(self._path):
                raise InvalidArgumentError(f"{os.fsdecode(self._path)} is not a file")
            name = filename or os.path.basename(os.fsdecode(self._path))
        elif hasattr(source, "read"):
            try:
                self._file, self._start, self.size = _seekable(source)
                self._lock = _reading
            except (OSError, ValueError) as error:
                raise InvalidArgumentError(f"the file cannot be read: {error}") from None
            if filename is None and isinstance(getattr(source, "name", None), str):
                name = os.path.basename(source.name)  # type: ignore[attr-defined]
        else:
            raise InvalidArgumentError("file is a path, bytes, or a file opened for bytes")
        self.name = _check_name(name)
        if not 0 < self.size <= LARGEST_FILE:
            raise InvalidArgumentError(
                f"{self.name} has {self.size} bytes; the Market accepts 1 to {LARGEST_FILE}"
            )

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

    def open(self) -> BinaryIO:
        """Open the file for `read`."""
        if self._path is None:
            assert self._file is not None  # noqa: S101 - a path or a file
            return self._file
        with self._alone():
            return open(self._path, "rb")

    def read(self, file: BinaryIO, position: int, size: int) -> bytes:
        """Read a piece. One open file may be sent to several chats at the same time."""
        with self._alone(), self._lock:
            file.seek(self._start + position)
            return file.read(size)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Nothing ends a thread that hangs. If each attempt left one behind, none would be left.
        if self._busy:
            raise OSError("reading it takes longer than a request may take")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def done(self, file: BinaryIO) -> None:
        """Close what `open` opened. A file of the caller stays open."""
        if self._path is not None:
            file.close()


def _seekable(source: Any) -> tuple[BinaryIO, int, int]:
    if not (hasattr(source, "seekable") and source.seekable()):
        # A pipe or a socket: only reading shows its size, and it cannot be read again.
        content = bytearray()
        while len(content) <= LARGEST_FILE:
            piece = source.read(LARGEST_FILE + 1 - len(content))
            if not isinstance(piece, bytes):
                raise InvalidArgumentError(
                    "the file must be opened for bytes, and reading must block"
                )
            if not piece:
                break
            content += piece
        return io.BytesIO(content), 0, len(content)
    if isinstance(source, io.TextIOBase):
        raise InvalidArgumentError("the file is opened for text: open it with mode 'rb'")
    start = source.tell()
    size = source.seek(0, os.SEEK_END) - start
    source.seek(start)
    return source, start, size


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
            file = await asyncio.to_thread(upload.open)
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
        size = min(CHUNK, self._upload.size - position)
        try:
            piece = await asyncio.to_thread(self._upload.read, file, position, size)
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
