"""Bodies of requests that know whether they may have been sent.

This is the only file of the core that uses private attributes of aiohttp. They were tested with
aiohttp 3.14.4 and 3.14.5. `tests/test_aiohttp_private.py` fails if another version changes them.
(`sandbox/aiohttp_clock.py` is the only other one of the package.)

- `Payload._consumed`: aiohttp repeats a GET by itself if a kept connection breaks, unless the body
  says that it is consumed. The rate limit would not see that request.
- `ResponseHandler`, the protocol of a connection: `begin` sets an attribute of ours on it, which
  says that the connection had a request before.
- `_ssl_protocol` and its `_transport`, of asyncio's TLS transport: the bytes below it that wait.
  uvloop has no such thing, and up to 64 kB of a file may wait there.
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
    unfinished = False  # a part of it is still to be written
    over = False  # it must not be written any more
    transport: asyncio.Transport | None = None  # that it was written to
    broken: str | None = None  # why it can never be written, if it cannot

    def begin(self, writer: Any) -> None:
        """Note that the body is about to be written to a connection, and the headers with it.

        Raises an error of aiohttp if it must not be written.
        """
        if self.sent or self.over:
            # The Market must get the request once, even if a middleware of the caller's session
            # repeats it, or if the request has ended before it could be written.
            raise aiohttp.ClientConnectionError("a request is written once")
        transport = writer.transport
        if transport is None or transport.is_closing():
            # The Market has closed the kept connection meanwhile, so not a byte is sent.
            raise aiohttp.ClientConnectionResetError("the connection was closed before")
        if is_readable(writer.protocol, transport):
            transport.abort()
            raise aiohttp.ClientConnectionResetError("an answer came before the request")
        self.sent = True
        self.transport = transport
        self._consumed = True

    def give_up(self) -> None:
        """Send nothing more of the body: it must not arrive after the history was read."""
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


def is_readable(protocol: Any, transport: asyncio.Transport) -> bool:
    """Whether a connection has received anything before its request, or was closed.

    Such data would be mistaken for the answer. aiohttp may have read it already, or the kernel
    holds it.
    """
    if protocol.should_close:
        return True
    poll = getattr(protocol, _POLL, None)
    if poll is not None:
        return bool(poll(0))
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    # A socket in memory (`yamarket_chat.sandbox`) has no file that could be polled.
    poll = getattr(sock, "poll", None) or _poll(sock.fileno())
    setattr(protocol, _POLL, poll)
    # After the TLS handshake a server sends session tickets, which arrive before the first answer.
    return transport.get_extra_info("sslcontext") is None and bool(poll(0))


def unsent(transport: asyncio.Transport) -> int:
    """Return how many bytes the kernel has not taken yet. It counts TLS bytes as well."""
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return transport.get_write_buffer_size() + (
        0 if below is None else below.get_write_buffer_size()
    )


_POLL = "yamarket_chat_poll"


def _poll(file: int) -> Callable[[float], list[Any]]:
    """Return a function that waits until a socket has something to read, or was closed."""
    if not hasattr(select, "poll"):  # Windows
        return lambda timeout: select.select((file,), (), (), timeout)[0]
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return poll.poll
