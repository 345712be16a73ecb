"""Bodies of requests that know whether they may have been sent.

This is the only file of the core that touches private attributes of aiohttp. They were tried with
aiohttp 3.14.4 and 3.14.5; `tests/test_aiohttp_private.py` fails if another version changes them.
(`sandbox/aiohttp_clock.py` is the only other one of the package.)

- `Payload._consumed`: aiohttp repeats a GET by itself if a kept connection breaks, unless the body
  says that it is consumed. The rate limit would not see that request.
- `ResponseHandler`, the protocol of a connection: `begin` sets an attribute of ours on it, which
  says that the connection had a request before.
- `Payload._value`, `_size`, `_headers`, `_encoding`, `_filename`, `_autoclose`: what
  `Payload.__init__` sets. `JsonBody` sets them itself: see there.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import payload
from multidict import CIMultiDict, CIMultiDictProxy

from ..connections import discard


class RequestBody(payload.Payload):
    """The body of a request, which knows whether the request may have been sent."""

    sent = False
    over = False  # it may not be written any more
    transport: asyncio.Transport | None = None  # that it was written to
    broken: str | None = None  # why it can never be written, if so

    def begin(self, writer: Any) -> None:
        """Note that the body is about to be written to a connection, and the headers with it.

        Raises an error of aiohttp if it must not be written.
        """
        if self.sent or self.over:
            # A middleware of the caller's session repeats requests by itself, or the request has
            # ended before its turn to be written: the Market must get it once.
            raise aiohttp.ClientConnectionError("a request is written once")
        transport = writer.transport
        if transport is None or transport.is_closing():
            # A kept connection that the Market has closed meanwhile: not a byte is sent.
            raise aiohttp.ClientConnectionResetError("the connection was closed before")
        if _is_readable(writer.protocol, transport):
            transport.abort()
            raise aiohttp.ClientConnectionResetError("an answer came before the request")
        self.sent = True
        self.transport = transport
        self._consumed = True

    def give_up(self) -> None:
        """Send nothing more of it: it must not arrive after its outcome was looked up."""
        self.over = True
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


def _is_readable(protocol: Any, transport: asyncio.Transport) -> bool:
    """Whether a connection has received anything before its request, or was closed.

    It would be taken for the answer. aiohttp may have read it already, or the kernel holds it.
    """
    if protocol.should_close:
        return True
    is_empty = getattr(protocol, _IS_EMPTY, None)
    if is_empty is not None:
        return not is_empty()
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    # A socket in memory (`yamarket_chat.sandbox`) has no file that could be polled.
    is_empty = getattr(sock, "nothing_to_read", None) or _is_empty(sock.fileno())
    setattr(protocol, _IS_EMPTY, is_empty)
    # A server sends tickets after the handshake of TLS. They come before the first answer.
    return transport.get_extra_info("sslcontext") is None and not is_empty()


_IS_EMPTY = "yamarket_chat_is_empty"


def _is_empty(file: int) -> Callable[[], bool]:
    """Return a function that says whether a socket has nothing to read, an end included."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: not select.select((file,), (), (), 0)[0]
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return lambda: not poll.poll(0)
