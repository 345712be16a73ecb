"""Bodies of requests that know whether they may have been sent.

This is the only file that touches private attributes of aiohttp. They were tried with aiohttp
3.14.4 and 3.14.5; `tests/test_aiohttp_private.py` fails if another version changes them.

- `Payload._consumed`: aiohttp repeats a GET by itself if a kept connection breaks, unless the body
  says that it is consumed. The rate limit would not see that request.
- `Payload._value`, `_size`, `_headers`, `_encoding`, `_filename`, `_autoclose`: what
  `Payload.__init__` sets. `JsonBody` sets them itself: see there.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import payload
from multidict import CIMultiDict, CIMultiDictProxy

from ..connections import discard


class RequestBody(payload.Payload):
    """The body of a request, which knows whether the request may have been sent."""

    sent = False
    transport: asyncio.Transport | None = None  # that it was written to
    broken: str | None = None  # why it can never be written, if so

    def begin(self, writer: Any) -> None:
        """Note that the body is about to be written to a connection, and the headers with it."""
        transport = writer.transport
        if transport is None or transport.is_closing():
            # A kept connection that the Market has closed meanwhile: not a byte is sent.
            raise aiohttp.ClientConnectionResetError("the connection was closed before")
        self.sent = True
        self.transport = transport
        self._consumed = True

    def give_up(self) -> None:
        """Send nothing more of it: it must not arrive after its outcome was looked up."""
        if self.transport is not None:
            discard(self.transport)


class JsonBody(RequestBody):
    """A body of JSON.

    aiohttp's BytesPayload makes headers for each body, and takes a step more to write it: 2 % of
    a send.
    """

    _value: bytes
    # All bodies share these headers, so nobody may change them.
    _headers: Any = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
    _encoding = _filename = None
    _autoclose = True

    def __init__(self, content: bytes) -> None:
        self._value = content
        self._size = len(content)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        """Write the body."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write the body. Its length is known before."""
        self.begin(writer)
        await writer.write(self._value)
