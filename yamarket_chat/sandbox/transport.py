"""asyncio's view of TCP in memory: a transport for each end of a connection, and a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import VirtualLoop
    from .tcp import End, MemorySocket

HIGH_WATER = 2**16
"""Bytes that asyncio holds before it tells a protocol to pause."""


class Transport(asyncio.Transport):
    """asyncio's view of an end."""

    def __init__(self, loop: VirtualLoop, end: End, protocol: Any) -> None:
        super().__init__(
            {
                "socket": end.socket,
                "sockname": end.address,
                "peername": end.peer.address,
            }
        )
        self._loop = loop
        self._end = end
        self._protocol = protocol
        self._buffer = bytearray()
        self._low, self._high = HIGH_WATER // 4, HIGH_WATER
        self._is_paused = False  # the protocol's writing
        self._is_reading = False
        self._is_closing = False
        self._is_lost = False
        self._ends_after_buffer = False
        self._read_handle = asyncio.Handle(self._read, (), loop)
        self._is_read_scheduled = False
        end.transport = self
        loop.call_soon(protocol.connection_made, self)
        loop.call_soon(self.resume_reading)

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._is_closing

    # Reading

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not (self._is_closing or self._is_reading):
            self._is_reading = True
            self.wake()

    def wake(self) -> None:
        """Read in the next pass of the loop, if there is something to read."""
        end = self._end
        if (
            self._is_reading
            and not self._is_read_scheduled
            and (end.unread or end.is_ended or end.error)
        ):
            self._is_read_scheduled = True
            self._loop._queue.append(self._read_handle)

    def _read(self) -> None:
        self._is_read_scheduled = False
        if not self._is_reading or self._is_lost:
            return
        end = self._end
        if end.unread:
            self._protocol.data_received(end.take())
            self.wake()
        elif end.error is not None:
            self._fail(end.error)
        elif end.is_ended:
            self._is_reading = False
            if not self._protocol.eof_received():
                self.close()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_lost or not data:
            return
        end = self._end
        if end.error is not None:
            self._fail(end.error)
            return
        if not self._buffer:
            room = end.room()
            if len(data) <= room:
                end.send(bytes(data))
                return
            end.send(bytes(data[:room]))
            data = data[room:]
        self._buffer += data
        if len(self._buffer) > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._ends_after_buffer = True
        if not self._buffer:
            self._end.put(None)

    def has_room(self) -> None:
        """Go on writing what is in the buffer, or notice that it cannot be written any more."""
        if self._buffer:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._is_lost or not self._buffer:
            return
        if self._end.error is not None:
            self._fail(self._end.error)
            return
        room = self._end.room()
        self._end.send(bytes(self._buffer[:room]))
        del self._buffer[:room]
        if self._is_paused and len(self._buffer) <= self._low:
            self._is_paused = False
            self._protocol.resume_writing()
        if not self._buffer:
            if self._is_closing:
                self._lose(None)
            elif self._ends_after_buffer:
                self._end.put(None)

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    # The end

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._is_reading = False
            if not self._buffer:
                self._lose(None)

    def abort(self) -> None:
        self._buffer.clear()
        self._lose(None)

    def _fail(self, error: OSError) -> None:
        self._buffer.clear()
        self._lose(error)

    def _lose(self, error: OSError | None) -> None:
        self._is_closing = True
        self._is_reading = False
        if not self._is_lost:
            self._is_lost = True
            self._loop.call_soon(self._lost, error)

    def _lost(self, error: OSError | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            end = self._end
            end.transport = None
            end.close()
            end.socket.is_closed = True
            self._protocol = None


class MemoryServer(asyncio.AbstractServer):
    """A listening socket."""

    def __init__(
        self, loop: VirtualLoop, factory: Callable[[], asyncio.BaseProtocol], sock: MemorySocket
    ) -> None:
        self.loop = loop
        self._factory = factory
        self._sockets = [sock]
        self._closed = asyncio.Event()

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening socket, until the server is closed."""
        return tuple(self._sockets)

    def get_loop(self) -> VirtualLoop:
        return self.loop

    def is_serving(self) -> bool:
        return bool(self._sockets)

    def accept(self, end: End) -> None:
        """Make a transport for a new connection."""
        self.loop.call_soon(self._accept, end)

    def _accept(self, end: End) -> None:
        if not end.is_gone:
            Transport(self.loop, end, self._factory())

    async def start_serving(self) -> None:
        """Do nothing: it listens from the start."""

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def serve_forever(self) -> None:
        try:
            await self._closed.wait()
        finally:
            self.close()
