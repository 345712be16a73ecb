"""Bodies that ask before they leave: once the connection stands, and again before their last byte.

The outbox uses them. It commits to its database that a request is about to be sent, and nothing may
be sent if it cannot, or if too much time has passed since. No other request pays for this.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import aiohttp

from .bodies import JsonBody, RequestBody, is_readable, unsent
from .uploads import FormBody

AT_ONCE = 1024
"""The most bytes of a JSON that are written in one piece: with the headers, they fit the buffer of
the kernel for an idle connection, whatever system it is."""

LOOK = 0.01
"""Seconds between two looks whether the kernel has taken all of a long body."""


class Departure(Protocol):
    """Decides whether one request may leave. Each method returns None, or the reason against it."""

    async def mark(self) -> str | None:
        """Note that the request is about to be sent."""

    def look(self, *, again: bool) -> str | None:
        """Look whether the request may be sent now, or `again`: whether its last byte may."""

    def written(self) -> None:
        """Note that the last byte was written."""


class MarkedJson(JsonBody):
    """A body of JSON that asks before it leaves."""

    def __init__(self, content: bytes, departure: Departure) -> None:
        super().__init__(content)
        self._departure = departure

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write the body, if it may leave."""
        await _depart(self, writer, self._departure)
        value = self._value
        if len(value) <= AT_ONCE:
            await writer.write(value)
        else:
            self.unfinished = True
            await writer.write(value[:-1])
            await _finish(self, writer, self._departure, value[-1:])
        self._departure.written()


class MarkedForm(FormBody):
    """A form that asks before it leaves."""

    def __init__(self, subtype: str, boundary: str, departure: Departure) -> None:
        super().__init__(subtype, boundary)
        self._departure = departure

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write the form, if it may leave."""
        await _depart(self, writer, self._departure)
        holding = _Holding(writer)
        await self.write_form(holding)
        self.unfinished = True
        await _finish(self, writer, self._departure, holding.held)
        self._departure.written()


class _Holding:
    """A writer that holds the last piece back."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.held: bytes = b""

    async def write(self, piece: bytes) -> None:
        held, self.held = self.held, piece
        if held:
            await self._writer.write(held)


async def _depart(body: RequestBody, writer: Any, departure: Departure) -> None:
    """Begin a body, if it may leave. Nothing is awaited between the last look and the bytes."""
    refused = await departure.mark() or departure.look(again=False)
    if refused is not None:
        body.broken = refused
        raise aiohttp.ClientConnectionError(refused)
    body.begin(writer)


async def _finish(body: RequestBody, writer: Any, departure: Departure, last: bytes) -> None:
    """Write the last piece when all before it has reached the kernel, after another look.

    What waits in the buffer of the transport would leave whenever the process runs again.
    """
    transport = writer.transport
    if transport is None or transport.is_closing():
        raise aiohttp.ClientConnectionResetError("the connection was closed meanwhile")
    while unsent(transport):  # noqa: ASYNC110 - nothing tells when the kernel has taken all
        await asyncio.sleep(LOOK)
    refused = "its attempt has ended" if body.over else departure.look(again=True)
    # Without its last byte, the Market cannot carry the request out.
    if refused is not None:
        body.broken = refused
        body.give_up()
        raise aiohttp.ClientConnectionError(refused)
    if is_readable(writer.protocol, transport):
        body.sent = False  # so it is sent again
        body.give_up()
        raise aiohttp.ClientConnectionResetError(
            "the connection was closed, or an answer came before the request"
        )
    await writer.write(last)
    body.unfinished = False
