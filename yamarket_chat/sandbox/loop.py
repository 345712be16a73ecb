"""The public class `VirtualLoop`: an event loop with virtual time and a network in memory.

A reader may know `asyncio.base_events`: this is the same, with three differences. Nothing waits:
the world moves the time on. Sockets are those of `tcp.py`. Executor jobs run in the loop's thread.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from . import aiohttp_clock
from .tcp import MemorySocket
from .transport import MemoryServer, Transport

if TYPE_CHECKING:
    from .tcp import End
    from .world import World

BEGINNING = 1_767_225_600.0
"""The wall time at which each world begins: 2026-01-01, 00:00 UTC."""

RESOLUTION = 1e-9  # timers that are so close are due: sums of floats are not exact
MOST_CANCELLED = 100  # timers that are kept although they were cancelled


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time is virtual, and whose network is in memory.

    Hours pass in seconds, and every run is the same. A program and a `Sandbox` on one loop talk
    over connections in memory, with aiohttp on both sides. No socket is opened, and no thread is
    started: what is given to an executor runs in the loop. There is no TLS, no subprocess and no
    other network than this.

    A loop that is made alone has a `World` of its own. For several machines, and for faults of
    their clocks and of the network between them, make the loops with `World.loop`.

    Args:
        world: The world of the machine. None makes a new one, with seed 0.
        name: The name of the machine.

    Attributes:
        world: The world of the machine.
        name: The name of the machine.
        job_takes: Seconds that an executor job takes. It is carried out at the end of this time.
        wall_drift: Seconds by which the wall clock gains in each second.
        has_boot_clock: False if the operating system has no clock that goes on during sleep. Then
            steps of the wall clock look like sleep, as on macOS and Windows.

    Example:
        async def main() -> None:
            async with Sandbox() as market:
                async with ChatSession(
                    market.api_key, market.business_id, base_url=market.url
                ) as session:
                    await session.send_message(17, "Ваш заказ в пути")
                    await asyncio.sleep(3600)  # takes no time
                    await session.send_message(17, "Ваш заказ доставлен")

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
    """

    def __init__(self, world: World | None = None, name: str = "machine") -> None:
        from .world import World

        self.world: World = World() if world is None else world
        self.name: str = name
        super().__init__()
        self.job_takes: float = 0.0
        self.wall_drift: float = 0.0
        self.has_boot_clock: bool = True
        self._ends: dict[End, None] = {}  # of its connections
        self._queue: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._due = math.inf  # the true time of the first timer
        self._cancelled = 0
        self._is_stopping = False
        self._runs = True
        self._is_killed = False
        self._slept = 0.0
        self._asleep_since: float | None = None
        self._awake_at = 0.0
        self._paused_until = 0.0
        self._wall_steps = 0.0
        self._connected: dict[Any, End] = {}  # by its socket
        self.world.machines.append(self)
        aiohttp_clock.install()

    def __repr__(self) -> str:
        return f"<VirtualLoop {self.name}>"

    # Clocks. `yamarket_chat.system` asks for `stood_still`, `wall_time` and `randomness`.

    def time(self) -> float:
        """Return the machine's monotonic time. It stands still while the machine sleeps."""
        since = self._asleep_since
        return (self.world.now if since is None else since) - self._slept

    def stood_still(self) -> float:
        """Return for how many seconds the time has stood still, as far as the system can tell."""
        return self._slept if self.has_boot_clock else self.wall_time() - self.time()

    def wall_time(self) -> float:
        """Return the seconds since 1970 by the machine's own clock."""
        now = self.world.now
        return BEGINNING + now + now * self.wall_drift + self._wall_steps

    def randomness(self, purpose: str) -> Any:
        """Return the random stream of a purpose on this machine.

        Args:
            purpose: Any name.

        Example:
            pause = shop.randomness("pauses of the person").uniform(1, 10)
        """
        return self.world.randomness(f"{self.name} {purpose}")

    # What may happen to a machine

    def suspend(self, seconds: float) -> None:
        """Let the machine sleep: its time stands still, and its network is away.

        Args:
            seconds: How long it sleeps from now.

        Example:
            shop.suspend(3600.0)
            assert shop.is_asleep
        """
        world = self.world
        world.note(f"{self.name} sleeps for {seconds:g} s")
        if self._asleep_since is None:
            self._asleep_since = world.now
        self._runs = False
        self._awake_at = max(self._awake_at, world.now + seconds)
        world.call_at(self._awake_at, self._go_on)

    def pause(self, seconds: float) -> None:
        """Stop the process, as SIGSTOP or a blocking call does: its time and its kernel go on.

        Args:
            seconds: How long it is stopped from now.

        Example:
            shop.pause(30.0)
        """
        world = self.world
        if self._is_killed:
            return
        world.note(f"{self.name} is stopped for {seconds:g} s")
        self._runs = False
        self._paused_until = max(self._paused_until, world.now + seconds)
        world.call_at(self._paused_until, self._go_on)

    def kill(self) -> None:
        """Kill the process, as SIGKILL does: its kernel closes the connections.

        Example:
            shop.kill()
            assert shop.is_killed
        """
        self.world.note(f"{self.name} is killed")
        self._exit()

    def _exit(self) -> None:
        self._is_killed = True
        self._runs = False
        for end in list(self._ends):
            end.close(resets=end.transport is None)
            end.transport = None
        self.world.network.stop_listening(self)

    def step_wall_clock(self, seconds: float) -> None:
        """Set the wall clock forward, or back if `seconds` is below 0.

        Args:
            seconds: How far it jumps.

        Example:
            shop.step_wall_clock(-60.0)
        """
        self.world.note(f"the clock of {self.name} steps by {seconds:g} s")
        self._wall_steps += seconds

    def _go_on(self) -> None:
        now = self.world.now
        if self._asleep_since is not None and now >= self._awake_at:
            self._slept += now - self._asleep_since
            self._asleep_since = None
            self._next_timer()
            self.world.note(f"{self.name} wakes up")
        is_awake = self._asleep_since is None and now >= self._paused_until
        self._runs = is_awake and not self._is_killed

    @property
    def is_asleep(self) -> bool:
        """Whether the machine sleeps."""
        return self._asleep_since is not None

    @property
    def is_killed(self) -> bool:
        """Whether the process was killed."""
        return self._is_killed

    # What the world asks

    def _next_timer(self) -> float:
        """Return the true time of the first timer; infinity if there is none."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
            self._cancelled -= 1
        self._due = timers[0][0] + self._slept if timers else math.inf
        return self._due

    def _run_once(self) -> None:
        """Run what is due, and what was scheduled before this pass."""
        queue = self._queue
        if self._due <= self.world.now:
            timers = self._timers
            due = self.time() + RESOLUTION
            while timers and timers[0][0] < due:
                timer = heapq.heappop(timers)[2]
                if timer._cancelled:
                    self._cancelled -= 1
                else:
                    queue.append(timer)
            self._next_timer()
        for _ in range(len(queue)):
            handle = queue.popleft()
            if not handle._cancelled:
                handle._run()

    def _cancel_all(self) -> None:
        """Cancel all tasks, and run this machine alone until they have ended."""
        for timer in [timer for _, _, timer in self._timers]:
            timer.cancel()
        self._runs = True
        # By the numbers in their names, and not by their addresses.
        tasks = sorted(
            asyncio.all_tasks(self), key=lambda task: (len(task.get_name()), task.get_name())
        )
        for task in tasks:
            task.cancel()
        hooks = sys.get_asyncgen_hooks()
        self.world._enter(self)
        try:
            for _ in range(1000):
                self._run_once()
                if all(task.done() for task in tasks):
                    break
        finally:
            self.world._enter(None)
            sys.set_asyncgen_hooks(*hooks)  # those of the loop would keep it alive

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are neither due nor cancelled, for tests that look for leaks."""
        return [timer for _, _, timer in self._timers if not timer.cancelled()]

    # What asyncio asks of a loop

    def is_running(self) -> bool:
        """Whether it is the running loop."""
        return self.world._current is self

    def run_forever(self) -> None:
        """Run all machines of the world until `stop` is called on this one."""
        self._check_closed()  # type: ignore[attr-defined]
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("another loop is running in this thread")
        try:
            self.world.run(lambda: self._is_stopping)
        finally:
            self._is_stopping = False

    def stop(self) -> None:
        """End `run_forever` after this pass."""
        self._is_stopping = True

    def close(self) -> None:
        """Close the loop: the machine leaves the world."""
        if self.is_running():
            raise RuntimeError("a running loop cannot be closed")
        if not self.is_closed():
            self._exit()
            self.world.machines.remove(self)
            self._queue.clear()
            self._timers.clear()
            super().close()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call a function in the next pass."""
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        return self._call_at(self.time() + delay, callback, args, context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function at a time of the loop."""
        return self._call_at(when, callback, args, context)

    def _call_at(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> asyncio.TimerHandle:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        if when + self._slept < self._due:
            self._due = when + self._slept
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled += 1
        if self._cancelled > MOST_CANCELLED and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function in the loop, after `job_takes` seconds. The executor is not used."""
        future: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - the caller's
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self.job_takes, run) if self.job_takes else self.call_soon(run)
        return future

    # The network

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        """Answer by itself: each name has an address in memory."""
        address = self.world.network.address_of(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0)))]

    def make_socket(self, *kind: Any) -> MemorySocket:
        """Make a socket in memory: `yamarket_chat.system` asks for it.

        Args:
            kind: What `socket.socket` would take. All sockets in memory are of one kind.
        """
        return MemorySocket(self)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connect a socket. It may be a real one, which stays unused."""
        self._connected[sock] = await self.world.network.connect(self, sock, address)

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        ssl: Any = None,
        sock: Any = None,
        **_: Any,
    ) -> tuple[Transport, Any]:
        """Connect to a server in memory, or take a socket that `sock_connect` has connected."""
        if ssl:
            raise ValueError("there is no TLS in memory: connect by http://")
        if sock is None:
            [(_, _, _, _, address)] = await self.getaddrinfo(host, port)
            sock = self.make_socket()
            try:
                await self.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
        end = self._connected.pop(sock)
        if not isinstance(sock, MemorySocket):
            sock.close()
        protocol = protocol_factory()
        transport = Transport(self, end, protocol)
        made = self.create_future()
        self.call_soon(_set_done, made)  # after the protocol's connection_made
        try:
            await made
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        ssl: Any = None,
        **_: Any,
    ) -> MemoryServer:
        """Listen on an address in memory."""
        if ssl:
            raise ValueError("there is no TLS in memory")
        address = self.world.network.address_of(host)
        return self.world.network.listen(self, protocol_factory, address, int(port or 0))


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
