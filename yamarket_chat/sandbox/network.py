"""The network of a `World`: TCP as programs meet it, in memory.

A `Connection` has two `End`s: what the kernel of each machine holds. A `Transport` is asyncio's view
of an end. What is written to an end lies in its queue until it has arrived. If the path is down at
the moment of arrival, the kernel sends again after 0.2 s, 0.4 s, and so on, as long as the socket's
options let it: long after the program has given up and closed the connection.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import random
import socket
import struct
import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import VirtualLoop
    from .world import World

FIRST_RETRY = 0.2
"""Seconds after which the kernel sends anew what was not acknowledged. Each pause is doubled."""
LONGEST_RETRY = 120.0
FIRST_CONNECT_RETRY = 1.0
CONNECT_GIVES_UP = 127.0
"""Seconds after which the kernel gives up to connect: six repeats."""
GIVES_UP = 924.0
"""Seconds after which the kernel gives up a connection whose data is not acknowledged."""
ORPHAN_GIVES_UP = 100.0
"""The same for a connection that its process has closed."""
BUFFER = 2**18
"""Bytes that a kernel holds in each direction."""
HIGH_WATER = 2**16
"""Bytes that asyncio holds before it tells a protocol to pause."""

Address = tuple[str, int]


class MemorySocket:
    """What a program sees of a socket in memory. It keeps the options that are set."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, loop: VirtualLoop, options: dict[tuple[int, int], Any] | None = None) -> None:
        self._loop = loop
        self.options: dict[tuple[int, int], Any] = {} if options is None else options
        self.end: End | None = None
        self.bound: Address | None = None
        self.is_closed = False

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        if self.is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.options[level, name] = value

    def getsockopt(self, level: int, name: int, size: int = 0) -> Any:
        return self.options.get((level, name), bytes(size) if size else 0)

    def setblocking(self, flag: bool) -> None:
        """Do nothing: a socket in memory never blocks."""

    def fileno(self) -> int:
        return -1

    def bind(self, address: Address) -> None:
        self._loop.world.network.reserve(address)
        self.bound = address

    def getsockname(self) -> Address:
        if self.end is not None:
            return self.end.address
        return self.bound or ("0.0.0.0", 0)  # noqa: S104 - as a socket says that is not bound

    def getpeername(self) -> Address:
        if self.end is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self.end.peer.address

    def nothing_to_read(self) -> bool:
        """Whether neither bytes nor an end nor a reset has come: `_http/bodies.py` asks for it."""
        end = self.end
        return end is None or not (end.unread or end.is_ended or end.error)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if self.bound is not None:
                self._loop.world.network.release(self.bound)
            if self.end is not None and self.end.transport is None:
                self.end.close()


class MemoryServer(asyncio.AbstractServer):
    """A listening socket."""

    def __init__(
        self, loop: VirtualLoop, factory: Callable[[], asyncio.BaseProtocol], address: Address
    ) -> None:
        self.loop = loop
        self.factory = factory
        self.address = address
        self._sockets = [MemorySocket(loop)]
        self._sockets[0].bound = address
        self._closed = loop.create_future()

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening socket, until the server is closed."""
        return tuple(self._sockets)

    def get_loop(self) -> VirtualLoop:
        return self.loop

    def is_serving(self) -> bool:
        return bool(self._sockets)

    async def start_serving(self) -> None:
        """Do nothing: it listens from the start."""

    def close(self) -> None:
        if self._sockets:
            self._sockets.clear()
            self.loop.world.network.release(self.address)
            if not self._closed.done():
                self._closed.set_result(None)

    async def wait_closed(self) -> None:
        await self._closed

    async def serve_forever(self) -> None:
        try:
            await self._closed
        finally:
            self.close()


class End:
    """One end of a connection, as its kernel knows it."""

    peer: End

    def __init__(self, loop: VirtualLoop, address: Address, name: str, sock: MemorySocket) -> None:
        self.loop = loop
        self.world = loop.world
        self.network = loop.world.network
        self.address = address
        self.name = name  # in the trace
        self.socket = sock
        self.transport: Transport | None = None
        self.accept: MemoryServer | None = None  # that will make a transport for it
        # Received:
        self.unread: list[bytes] = []
        self.is_ended = False
        self.error: OSError | None = None
        # To send: pieces with the time at which they were written; None is the end (FIN).
        self.queue: deque[tuple[bytes | None, float]] = deque()
        self.queued = 0  # bytes
        self.is_gone = False  # its process has closed it
        self.is_dead = False  # its kernel sends nothing any more
        self.stalled_until = -math.inf  # what it sends gets lost until then
        self._arrives = 0.0  # when the last piece does
        self._generation = 0  # of arrivals that still count
        self._retry = 0.0  # the pause before the next repeat; 0 if nothing was lost
        loop.ends[self] = None

    # Sending

    def room(self) -> int:
        return BUFFER - self.queued

    def send(self, data: bytes) -> None:
        for piece in self.network.pieces_of(data):
            self._put(piece)

    def _put(self, piece: bytes | None) -> None:
        if self.is_dead:
            return
        self.queue.append((piece, self.loop.time()))
        self.queued += len(piece or b"")
        if not self._retry:
            self._travel()

    def _travel(self) -> None:
        network = self.network
        when = self._arrives = max(self._arrives, self.world.now + network.delay())
        self.world.call_at(when, self._arrive, self._generation)

    def _arrive(self, generation: int) -> None:
        if generation != self._generation or not self.queue:
            return
        if not self.network.passes(self) or self.peer.is_full():
            if self.is_dead:  # it was in flight as the connection was reset
                self.queue.clear()
                return
            self._generation += 1
            self._note("lost")
            self._retry = FIRST_RETRY
            self.world.call_later(self._pause(), self._send_again, self._generation)
            return
        piece, _ = self.queue.popleft()
        self.queued -= len(piece or b"")
        if self.world.is_traced:
            self._note("ends" if piece is None else f"{len(piece)} bytes {zlib.crc32(piece):08x}")
        self.peer.receive(piece)
        if self.transport is not None:
            self.transport.has_room()
        self._leave()

    def _pause(self) -> float:
        """Return the seconds until the kernel sends anew, or gives up."""
        waited = self.loop.time() - self.queue[0][1]
        return max(min(self._retry, self._gives_up() - waited), 0.0)

    def _gives_up(self) -> float:
        user = self.socket.options.get((socket.IPPROTO_TCP, network_constant("TCP_USER_TIMEOUT")))
        if user:
            return float(user) / 1000
        return ORPHAN_GIVES_UP if self.is_gone else GIVES_UP

    def _send_again(self, generation: int) -> None:
        if generation != self._generation or not self.queue:
            return
        if self.loop.is_asleep:  # so is its kernel's timer
            self.world.call_at(self.loop.awake_at + FIRST_RETRY, self._send_again, generation)
        elif self.network.passes(self) and not self.peer.is_full():
            self._note("sends again")
            self._retry = 0.0
            for _ in self.queue:
                self._travel()
        elif self.loop.time() - self.queue[0][1] >= self._gives_up() - 1e-6:
            self._note("is given up by its kernel")
            self._die(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        else:
            self._retry = min(self._retry * 2, LONGEST_RETRY)
            self.world.call_later(self._pause(), self._send_again, generation)

    def send_at_once(self) -> None:
        """Repeat now what was lost: the other end has room again."""
        if self._retry and self.queue:
            self._generation += 1
            self.world.call_later(0.0, self._send_again, self._generation)

    # Receiving

    def is_full(self) -> bool:
        return sum(map(len, self.unread)) >= BUFFER if len(self.unread) > 1 else False

    def receive(self, piece: bytes | None) -> None:
        if self.is_gone or self.is_dead:
            self._send_reset()
            return
        if self.accept is not None:
            server, self.accept = self.accept, None
            if not server.is_serving() or self.loop.is_killed:
                self.close()
                return
            self.loop.call_soon(_accept, server, self)
        if piece is None:
            self.is_ended = True
        elif piece:
            self.unread.append(piece)
        else:
            return
        if self.transport is not None:
            self.transport.wake()

    def take(self) -> bytes:
        was_full = self.is_full()
        data = self.unread[0] if len(self.unread) == 1 else b"".join(self.unread)
        self.unread.clear()
        if was_full:
            self.peer.send_at_once()
        return data

    # The end

    def close(self) -> None:
        """Close it as a process does, or the system in its stead when it is killed."""
        if self.is_gone:
            return
        self.is_gone = True
        if self.is_dead:
            self._leave()
            return
        linger = self.socket.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        if (linger and _discards(linger)) or self.unread:
            if self._retry:  # what is in flight already can't be called back
                self.queue.clear()
            self.is_dead = True
            self._send_reset()
        else:
            self._put(None)
        self._leave()

    def _send_reset(self) -> None:
        when = self._arrives = max(self._arrives, self.world.now + self.network.delay())
        self.world.call_at(when, self._reset_arrives)

    def _reset_arrives(self) -> None:
        if self.network.passes(self):
            self.peer.reset()

    def reset(self) -> None:
        """Receive a reset."""
        if not self.is_dead:
            self._note("is reset")
            self._die(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _die(self, error: OSError) -> None:
        self.is_dead = True
        self.error = error
        self.queue.clear()
        self.queued = 0
        self._generation += 1
        if self.transport is not None:
            self.transport.wake()
        self._leave()

    def _leave(self) -> None:
        """Be forgotten, if nothing more can come of it."""
        if self.is_gone and (self.is_dead or not self.queue):
            self.loop.ends.pop(self, None)

    def _note(self, what: str) -> None:
        if self.world.is_traced:
            self.world.note(f"{self.name} {what}")


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
            self._end._put(None)

    def has_room(self) -> None:
        """Go on writing what is in the buffer."""
        if self._buffer:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._is_lost or not self._buffer:
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
                self._end._put(None)

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


class Connection:
    """A connection of two machines, for those who break it.

    Attributes:
        number: The number of the connection in its world, from 1.
        client: The end of the machine that connected.
        server: The end of the machine that listened.
    """

    def __init__(self, number: int, client: End, server: End) -> None:
        self.number = number
        self.client = client
        self.server = server
        client.peer, server.peer = server, client

    def is_open(self) -> bool:
        """Whether neither end was closed."""
        return not any(end.is_gone or end.is_dead for end in (self.client, self.server))

    def cut(self, *, client: bool = True, server: bool = True) -> None:
        """Reset it, as a device on the way does.

        Args:
            client: Whether the client hears of it. If not, its end is half-open.
            server: Whether the server hears of it.
        """
        for end, hears in ((self.client, client), (self.server, server)):
            if hears:
                end.reset()

    def stall(self, seconds: float, *, to_client: bool = True, to_server: bool = True) -> None:
        """Lose all that is sent on it for some seconds. The kernels send it again later.

        Args:
            seconds: From now. Infinity makes it half-open.
            to_client: Whether what the server sends gets lost.
            to_server: Whether what the client sends gets lost.
        """
        until = self.client.world.now + seconds
        for end, stalls in ((self.server, to_client), (self.client, to_server)):
            if stalls:
                end._note(f"stalls for {seconds:g} s")
                end.stalled_until = max(end.stalled_until, until)

    def inject(self, data: bytes) -> None:
        """Let the client receive bytes that the server's program has not sent.

        Args:
            data: The bytes. They travel as all others of the server.
        """
        self.server.send(data)


class Network:
    """What connects the machines of a world. All of them see the same addresses.

    Attributes:
        latency: Seconds that a piece of data takes, at least and at most.
        pieces: The probability that written data arrives in several pieces.
        loss: The probability that a piece gets lost, and is sent again.
        black_holes: Addresses (host, port) that nothing reaches.
        connections: All connections that are open, in the order in which they were made.
    """

    def __init__(self, world: World) -> None:
        self.latency: tuple[float, float] = (5e-5, 5e-5)
        self.pieces: float = 0.0
        self.loss: float = 0.0
        self.black_holes: set[Address] = set()
        self._world = world
        self._up_at = -math.inf
        self._cut_off: dict[Any, float] = {}  # machines: until when
        self._servers: dict[Address, MemoryServer] = {}
        self._reserved: set[Address] = set()
        self._names: dict[str, str] = {}
        self._next_port = 40_000
        self._made = 0
        self._connections: list[Connection] = []
        self._chance: random.Random = world.randomness("network")

    # Faults

    def fail(self, seconds: float, *machines: VirtualLoop) -> None:
        """Let nothing pass for some seconds. What is sent gets lost; kernels send it again later.

        Args:
            seconds: From now.
            machines: Those whose network is away. None means all.

        Example:
            world.network.fail(30.0)
        """
        world = self._world
        until = world.now + seconds
        names = ", ".join(machine.name for machine in machines) or "all"
        world.note(f"the network is away for {seconds:g} s: {names}")
        if not machines:
            self._up_at = max(self._up_at, until)
        for machine in machines:
            self._cut_off[machine] = max(self._cut_off.get(machine, until), until)

    @property
    def connections(self) -> list[Connection]:
        """All open connections."""
        self._connections = [one for one in self._connections if one.is_open()]
        return list(self._connections)

    # What ends ask

    def delay(self) -> float:
        low, high = self.latency
        return low if low == high else low + (high - low) * self._chance.random()

    def pieces_of(self, data: bytes) -> list[bytes]:
        if not self.pieces or len(data) < 2 or self._chance.random() >= self.pieces:
            return [data]
        cuts = sorted(self._chance.randrange(1, len(data)) for _ in range(self._chance.randint(1, 3)))
        edges = [0, *cuts, len(data)]
        return [data[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]

    def passes(self, end: End) -> bool:
        """Whether what an end has sent arrives now."""
        now = self._world.now
        if end.stalled_until > now or not self._reach(end.loop, end.peer.loop):
            return False
        return not (self.loss and self._chance.random() < self.loss)

    def _reach(self, one: VirtualLoop, other: VirtualLoop) -> bool:
        now = self._world.now
        if now < self._up_at or one.is_asleep or other.is_asleep:
            return False
        cut_off = self._cut_off
        return not cut_off or max(cut_off.get(one, 0.0), cut_off.get(other, 0.0)) <= now

    # Addresses

    def address_of(self, host: Any) -> str:
        """Return the address of a name. Numbers are their own, and names get one each."""
        if isinstance(host, bytes):
            host = host.decode()
        if not host or host == "localhost":
            return "127.0.0.1"
        if str(host).replace(".", "").isdigit():
            return str(host)
        return self._names.setdefault(str(host), f"10.0.0.{len(self._names) + 1}")

    def listen(
        self,
        loop: VirtualLoop,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
    ) -> MemoryServer:
        if port == 0:
            port = self._free_port()
        address = (host, port)
        self.reserve(address)
        server = self._servers[address] = MemoryServer(loop, factory, address)
        self._world.note(f"{loop.name} listens on {host}:{port}")
        return server

    def stop_listening(self, loop: VirtualLoop) -> None:
        for server in list(self._servers.values()):
            if server.loop is loop:
                server._sockets.clear()
                self.release(server.address)

    def reserve(self, address: Address) -> None:
        if address in self._reserved:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._reserved.add(address)

    def release(self, address: Address) -> None:
        self._reserved.discard(address)
        self._servers.pop(address, None)

    def _free_port(self) -> int:
        self._next_port += 1
        return self._next_port

    # Connecting

    async def connect(self, loop: VirtualLoop, sock: Any, address: Any) -> End:
        """Connect a socket to an address."""
        options = sock.options if isinstance(sock, MemorySocket) else _options_of(sock)
        memory = sock if isinstance(sock, MemorySocket) else MemorySocket(loop, options)
        attempt = _Attempt(self, loop, memory, (str(address[0]), int(address[1])))
        return await attempt.made


class _Attempt:
    """An attempt to connect: SYN, and its answer."""

    def __init__(
        self, network: Network, loop: VirtualLoop, sock: MemorySocket, address: Address
    ) -> None:
        self._network = network
        self._world = loop.world
        self._loop = loop
        self._socket = sock
        self._address = address
        self._began = loop.time()
        self._retry = FIRST_CONNECT_RETRY
        self.made: asyncio.Future[End] = loop.create_future()
        self._syn()

    def _syn(self) -> None:
        self._world.call_later(self._network.delay(), self._arrive)

    def _is_lost(self, server: MemoryServer | None) -> bool:
        network = self._network
        if self._address in network.black_holes:
            return True
        other = self._loop if server is None else server.loop
        return not network._reach(self._loop, other)

    def _arrive(self) -> None:
        server = self._network._servers.get(self._address)
        if self.made.done() or self._loop.is_killed:
            return
        if self._is_lost(server):
            self._wait()
        else:
            self._world.call_later(self._network.delay(), self._answer, server)

    def _wait(self) -> None:
        user = self._socket.options.get((socket.IPPROTO_TCP, network_constant("TCP_USER_TIMEOUT")))
        gives_up = float(user) / 1000 if user else CONNECT_GIVES_UP
        left = gives_up - (self._loop.time() - self._began)
        self._world.call_later(max(min(self._retry, left), 0.0), self._again, left <= self._retry)
        self._retry *= 2

    def _again(self, is_last: bool) -> None:
        if self._loop.is_asleep:
            self._world.call_at(self._loop.awake_at + FIRST_RETRY, self._again, False)
        elif is_last:
            self._fail(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        else:
            self._syn()

    def _answer(self, server: MemoryServer | None) -> None:
        if self.made.done() or self._loop.is_killed:
            return
        if self._is_lost(server):
            self._wait()
        elif server is None or not server.is_serving():
            self._fail(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
        else:
            self._establish(server)

    def _fail(self, error: OSError) -> None:
        if not self.made.done():
            self._world.note(f"{self._loop.name} cannot connect: {error.strerror}")
            self.made.set_exception(error)

    def _establish(self, server: MemoryServer) -> None:
        network = self._network
        network._made += 1
        number = network._made
        here: Address = (server.address[0], network._free_port())
        client = End(self._loop, here, f"{number}>", self._socket)
        server_end = End(server.loop, server.address, f"{number}<", MemorySocket(server.loop))
        for end in (client, server_end):
            end.socket.end = end
        server_end.accept = server
        network._connections.append(Connection(number, client, server_end))
        if len(network._connections) % 64 == 0:
            network.connections  # noqa: B018 - forget the closed ones
        self._world.note(f"{number} {self._loop.name} connects to {server.loop.name}")
        self.made.set_result(client)
        client._put(b"")  # the acknowledgement, by which the server accepts


def _accept(server: MemoryServer, end: End) -> None:
    if end.is_gone:
        return
    Transport(server.loop, end, server.factory())


def _discards(linger: bytes) -> bool:
    on, seconds = struct.unpack("hh" if len(linger) == 4 else "ii", linger)
    return bool(on) and seconds == 0


def network_constant(name: str) -> int:
    """Return a constant of Linux, also on other systems."""
    return int(getattr(socket, name, {"TCP_USER_TIMEOUT": 18}[name]))


def _options_of(sock: socket.socket) -> dict[tuple[int, int], Any]:
    """Return the options of a real socket that matter here."""
    user = (socket.IPPROTO_TCP, network_constant("TCP_USER_TIMEOUT"))
    options: dict[tuple[int, int], Any] = {
        (socket.SOL_SOCKET, socket.SO_LINGER): sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, 8
        )
    }
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options[user] = sock.getsockopt(*user)
    return options
