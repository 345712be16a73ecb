"""The network between the machines of a `World`, and its faults."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .tcp import Address, Connecting, End, MemorySocket, options_of
from .transport import MemoryServer

if TYPE_CHECKING:
    from .loop import VirtualLoop
    from .world import World


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
        latency: Seconds that a piece of data takes, at least and at most. On loopback it is 0.
        pieces: The probability that written data arrives in several pieces.
        loss: The probability that a piece gets lost, and is sent again.
        black_holes: Addresses (host, port) that nothing reaches.
    """

    def __init__(self, world: World) -> None:
        self.latency: tuple[float, float] = (0.0, 0.0)
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
        """The open connections, in the order in which they were made."""
        return [one for one in self._connections if one.is_open()]

    # What ends ask

    def delay(self) -> float:
        low, high = self.latency
        return low if low == high else low + (high - low) * self._chance.random()

    def pieces_of(self, data: bytes) -> list[bytes]:
        chance = self._chance
        if not self.pieces or len(data) < 2 or chance.random() >= self.pieces:
            return [data]
        cuts = sorted(chance.randrange(1, len(data)) for _ in range(chance.randint(1, 3)))
        edges = [0, *cuts, len(data)]
        return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]

    def passes(self, end: End) -> bool:
        """Whether what an end has sent arrives now."""
        now = self._world.now
        if end.stalled_until > now or not self.reaches(end.loop, end.peer.loop):
            return False
        return not (self.loss and self._chance.random() < self.loss)

    def reaches(self, one: VirtualLoop, other: VirtualLoop) -> bool:
        """Whether one machine reaches the other now."""
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
        if ":" in host or host.replace(".", "").isdigit():
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
            port = self.free_port()
        address = (host, port)
        sock = MemorySocket(loop)
        sock.bind(address)
        server = self._servers[address] = MemoryServer(loop, factory, sock)
        self._world.note(f"{loop.name} listens on {host}:{port}")
        return server

    def stop_listening(self, loop: VirtualLoop) -> None:
        for server in list(self._servers.values()):
            if server.loop is loop:
                server.close()

    def reserve(self, address: Address) -> None:
        if address in self._reserved:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._reserved.add(address)

    def release(self, address: Address) -> None:
        self._reserved.discard(address)
        self._servers.pop(address, None)

    def free_port(self) -> int:
        self._next_port += 1
        return self._next_port

    # Connecting

    def server_at(self, address: Address) -> MemoryServer | None:
        return self._servers.get(address)

    def next_number(self) -> int:
        self._made += 1
        return self._made

    def connected(self, number: int, client: End, server: End) -> None:
        self._connections.append(Connection(number, client, server))
        if number % 64 == 0:
            self._connections = self.connections

    async def connect(self, loop: VirtualLoop, sock: Any, address: Any) -> End:
        """Connect a socket to an address."""
        options = sock.options if isinstance(sock, MemorySocket) else options_of(sock)
        memory = sock if isinstance(sock, MemorySocket) else MemorySocket(loop, options)
        attempt = Connecting(self, loop, memory, (str(address[0]), int(address[1])))
        return await attempt.made
