"""TCP in memory: what the kernels of two machines do for a connection.

What is written to an `End` lies in its queue until it has arrived. If the path is down at the
moment of arrival, the kernel sends it again after 0.2 s, 0.4 s, and so on, as long as the options
of the socket let it: long after the program has given up and closed the connection.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import struct
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import VirtualLoop
    from .network import Network
    from .transport import MemoryServer, Transport
    from .world import World

TCP_USER_TIMEOUT: int = getattr(socket, "TCP_USER_TIMEOUT", 18)  # only Linux has it

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
GAP = 2e-6
"""Seconds between two pieces of a connection, so that a program can read them one by one."""
BUFFER = 2**18
"""Bytes that a kernel holds in each direction."""

Address = tuple[str, int]
Options = dict[tuple[int, int], Any]


class MemorySocket:
    """What a program sees of a socket in memory. It keeps the options that are set."""

    family: int = socket.AF_INET
    type: int = socket.SOCK_STREAM
    proto: int = socket.IPPROTO_TCP

    def __init__(self, loop: VirtualLoop, options: Options | None = None) -> None:
        self._loop = loop
        self.options: Options = {} if options is None else options
        self.end: End | None = None
        self.bound: Address | None = None
        self.is_closed: bool = False

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

    def poll(self, timeout: float) -> bool:
        """Whether bytes, an end or a reset has come: `_http/bodies.py` asks for it."""
        end = self.end
        return end is not None and bool(end.unread or end.is_ended or end.error)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if self.bound is not None:
                self._loop.world.network.release(self.bound)
            if self.end is not None and self.end.transport is None:
                self.end.close()


class End:
    """One end of a connection, as its kernel knows it."""

    peer: End

    def __init__(self, loop: VirtualLoop, address: Address, name: str, sock: MemorySocket) -> None:
        self.loop = loop
        self.world: World = loop.world
        self.network: Network = loop.world.network
        self.address = address
        self.name = name  # in the trace
        self.socket = sock
        self.transport: Transport | None = None
        self.accept: MemoryServer | None = None  # that will make a transport for it
        # Received:
        self.unread: list[bytes] = []
        self.is_ended: bool = False
        self.error: OSError | None = None
        # To send: pieces with the time at which they were written; None is the end (FIN).
        self.queue: deque[tuple[bytes | None, float]] = deque()
        self.queued: int = 0  # bytes
        self._has_ended = False  # FIN is sent, or in the queue
        self.is_gone: bool = False  # its process has closed it
        self.is_dead: bool = False  # its kernel sends nothing any more
        self.stalled_until: float = -math.inf  # what it sends gets lost until then
        self._arrives = 0.0  # when the last piece does
        self._generation = 0  # of arrivals that still count
        self._retry = 0.0  # the pause before the next repeat; 0 if nothing was lost
        loop._ends[self] = None

    # Sending

    def room(self) -> int:
        return BUFFER - self.queued

    def send(self, data: bytes) -> None:
        if not self.network.pieces:
            self.put(data)
            return
        for piece in self.network.pieces_of(data):
            self.put(piece)

    def put(self, piece: bytes | None) -> None:
        """Send one piece, or the end (FIN), after which nothing follows."""
        if self.is_dead or self._has_ended:
            return
        self._has_ended = piece is None
        self.queue.append((piece, self.loop.time()))
        self.queued += len(piece or b"")
        if not self._retry:
            self._travel()

    def _travel(self) -> None:
        network = self.network
        when = self._arrives = max(self._arrives + GAP, self.world.now + network.delay())
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
        user = self.socket.options.get((socket.IPPROTO_TCP, TCP_USER_TIMEOUT))
        if user:
            return float(user) / 1000
        return ORPHAN_GIVES_UP if self.is_gone else GIVES_UP

    def _send_again(self, generation: int) -> None:
        if generation != self._generation or not self.queue:
            return
        if self.loop.is_asleep:  # so is its kernel's timer
            self.world.call_at(self.loop._awake_at + FIRST_RETRY, self._send_again, generation)
        elif (
            self._retry > FIRST_RETRY  # it repeats once in any case
            and self.loop.time() - self.queue[0][1] >= self._gives_up() - 1e-6
        ):
            self._note("is given up by its kernel")
            self._die(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        elif self.network.passes(self) and not self.peer.is_full():
            self._note("sends again")
            self._retry = 0.0
            for _ in self.queue:
                self._travel()
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
            # Nobody reads it any more. What was still to be sent is dropped as well.
            self.is_dead = True
            self.queue.clear()
            self._send_reset()
            self._leave()
            return
        if self.accept is not None:
            server, self.accept = self.accept, None
            if not server.is_serving():
                self.close(resets=True)
                return
            server.accept(self)
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

    def close(self, *, resets: bool = False) -> None:
        """Close it as a process does, or the system in its stead when it is killed."""
        if self.is_gone:
            return
        self.is_gone = True
        if self.is_dead:
            self._leave()
            return
        linger = self.socket.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        if resets or (linger and _discards(linger)) or self.unread:
            if self._retry:  # what is in flight already can't be called back
                self.queue.clear()
            self.is_dead = True
            self._send_reset()
        else:
            self.put(None)
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
            self.transport.has_room()
        self._leave()

    def _leave(self) -> None:
        """Be forgotten, if nothing more can come of it."""
        if self.is_gone and (self.is_dead or not self.queue):
            self.loop._ends.pop(self, None)

    def _note(self, what: str) -> None:
        if self.world.is_traced:
            self.world.note(f"{self.name} {what}")


class Connecting:
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
        return not network.reaches(self._loop, other)

    def _arrive(self) -> None:
        server = self._network.server_at(self._address)
        if self.made.done() or self._loop.is_killed:
            return
        if self._is_lost(server):
            self._wait()
        else:
            self._world.call_later(self._network.delay(), self._answer, server)

    def _wait(self) -> None:
        user = self._socket.options.get((socket.IPPROTO_TCP, TCP_USER_TIMEOUT))
        gives_up = float(user) / 1000 if user else CONNECT_GIVES_UP
        left = gives_up - (self._loop.time() - self._began)
        self._world.call_later(max(min(self._retry, left), 0.0), self._again, left <= self._retry)
        self._retry *= 2

    def _again(self, is_last: bool) -> None:
        if self._loop.is_asleep:
            self._world.call_at(self._loop._awake_at + FIRST_RETRY, self._again, False)
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
        number = network.next_number()
        here: Address = (self._address[0], network.free_port())
        client = End(self._loop, here, f"{number}>", self._socket)
        server_end = End(server.loop, self._address, f"{number}<", MemorySocket(server.loop))
        for end in (client, server_end):
            end.socket.end = end
        server_end.accept = server
        network.connected(number, client, server_end)
        self._world.note(f"{number} {self._loop.name} connects to {server.loop.name}")
        self.made.set_result(client)
        client.put(b"")  # the acknowledgement, by which the server accepts


def _discards(linger: bytes) -> bool:
    on, seconds = struct.unpack("hh" if len(linger) == 4 else "ii", linger)
    return bool(on) and seconds == 0


def options_of(sock: socket.socket) -> Options:
    """Return the options of a real socket that matter here."""
    linger = (socket.SOL_SOCKET, socket.SO_LINGER)
    user_timeout = (socket.IPPROTO_TCP, TCP_USER_TIMEOUT)
    options: Options = {linger: sock.getsockopt(*linger, 8)}
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options[user_timeout] = sock.getsockopt(*user_timeout)
    return options
