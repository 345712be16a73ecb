"""A world of machines on one virtual time: one seed decides everything that happens in it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import sys
from collections.abc import Callable
from typing import Any

from .loop import VirtualLoop
from .network import Network

PASS = 1e-6
"""Seconds that one pass of a loop takes. Above 0, or a timer that was rounded to "now" would spin
for ever."""


class World:
    """Machines that share one true time and one network, all in one thread.

    Each machine is an event loop, and has clocks of its own. If one of the loops runs, all of them
    do. The time jumps to the next event when no loop has anything to do, so hours pass in seconds.
    Two runs with the same seed are the same, if the programs draw their random numbers from
    `randomness` and iterate over no set that is ordered by address.

    Args:
        seed: Decides the network, and everything that is drawn from `randomness`.
        trace: Called with one line for each event: connections, bytes, faults and clocks.

    Attributes:
        now: The true time in seconds. It begins at 0.
        network: What connects the machines, with its faults.
        machines: The loops that are not closed.

    Example:
        world = World(seed=7)
        market, shop = world.loop("market"), world.loop("shop")
        box = market.run_until_complete(Sandbox().__aenter__())

        async def send() -> None:
            async with ChatSession(box.api_key, box.business_id, base_url=box.url) as session:
                await session.send_message(17, "Ваш заказ в пути")

        world.call_later(0.001, lambda: world.network.fail(30))
        shop.run_until_complete(send())
        assert [message.text for message in box.messages(17)] == ["Ваш заказ в пути"]
        market.run_until_complete(box.__aexit__(None, None, None))
        world.close()
    """

    def __init__(self, seed: int = 0, *, trace: Callable[[str], object] | None = None) -> None:
        self.seed: int = seed
        self.now: float = 0.0
        self.machines: list[VirtualLoop] = []
        self._trace = trace
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._streams: dict[str, random.Random] = {}
        self._current: VirtualLoop | None = None
        self._is_running = False
        self.network: Network = Network(self)

    # Machines, time and chance

    def loop(self, name: str = "machine") -> VirtualLoop:
        """Add a machine.

        Args:
            name: Its name in the trace. Its random streams depend on it.

        Returns:
            The event loop of the program that runs there.

        Example:
            with asyncio.Runner(loop_factory=World(seed=7).loop) as runner:
                runner.run(asyncio.sleep(3600))
        """
        return VirtualLoop(self, name)

    def randomness(self, purpose: str) -> random.Random:
        """Return the random stream of a purpose. The same purpose gets the same stream.

        Args:
            purpose: Any name.

        Example:
            wait = world.randomness("pauses of the buyer").uniform(1, 10)
        """
        stream = self._streams.get(purpose)
        if stream is None:
            # A str is hashed by SHA-512 there, whatever PYTHONHASHSEED is.
            stream = self._streams[purpose] = random.Random(f"{self.seed} {purpose}")
        return stream

    def call_at(self, when: float, action: Callable[..., object], *args: Any) -> None:
        """Call a function at a true time, outside of all machines.

        Args:
            when: The true time in seconds.
            action: The function. It may cause faults, and schedule tasks on the loops.
            args: Its arguments.

        Example:
            world.call_at(100.0, world.network.fail, 30.0)
        """
        heapq.heappush(self._events, (when, next(self._numbers), action, args))

    def call_later(self, delay: float, action: Callable[..., object], *args: Any) -> None:
        """Call a function after some seconds of true time, outside of all machines.

        Args:
            delay: Seconds from now.
            action: The function.
            args: Its arguments.

        Example:
            world.call_later(5.0, shop.suspend, 60.0)
        """
        self.call_at(self.now + delay, action, *args)

    def note(self, what: str) -> None:
        """Add a line to the trace, with the true time before it.

        Args:
            what: The line.

        Example:
            world.note("the buyer has lost his patience")
        """
        if self._trace is not None:
            self._trace(f"{self.now:.6f} {what}")

    @property
    def is_traced(self) -> bool:
        """Whether a trace is kept. What is costly to say is not said otherwise."""
        return self._trace is not None

    # Running

    def run(self, until: Callable[[], bool], limit: float = math.inf) -> bool:
        """Run all machines until a condition holds.

        Args:
            until: The condition. It is looked at after each pass of a loop, and after other events.
            limit: The true time in seconds at which to return in any case.

        Returns:
            True if the condition holds.

        Raises:
            RuntimeError: Nothing can happen any more: all machines wait for something that never
                comes.

        Example:
            task = shop.create_task(asyncio.sleep(5))
            assert world.run(task.done, limit=world.now + 10)
        """
        if self._is_running:
            raise RuntimeError("the world is running already")
        self._is_running = True
        hooks = sys.get_asyncgen_hooks()
        try:
            return self._run(until, limit)
        finally:
            self._enter(None)
            sys.set_asyncgen_hooks(*hooks)
            self._is_running = False

    def _run(self, until: Callable[[], bool], limit: float) -> bool:
        events = self._events
        machines = self.machines
        if until():
            return True
        while True:
            if events and events[0][0] <= self.now:
                self._enter(None)
                while events and events[0][0] <= self.now:
                    _, _, action, args = heapq.heappop(events)
                    action(*args)
                if until():
                    return True
            is_busy = False
            for loop in machines:
                # What a method would ask is looked at here: it is asked millions of times.
                if loop._runs and (loop._queue or loop._due <= self.now):
                    is_busy = True
                    self.now += PASS
                    if loop is not self._current:
                        self._enter(loop)
                    loop._run_once()
                    if until():
                        return True
            if not is_busy:
                when = events[0][0] if events else math.inf
                for loop in machines:
                    # First a look: what is due first may have been cancelled, and so be due later.
                    if loop._runs and loop._due < when and loop._next_timer() < when:
                        when = loop._due
                if when > limit:
                    self.now = max(self.now, limit)
                    return False
                if when == math.inf:
                    raise RuntimeError("nothing can happen any more: all programs wait for ever")
                self.now = max(self.now, when)

    def _enter(self, loop: VirtualLoop | None) -> None:
        """Let a loop be the running one."""
        self._current = loop
        asyncio._set_running_loop(loop)
        if loop is not None:
            sys.set_asyncgen_hooks(
                firstiter=loop._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
                finalizer=loop._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
            )

    def close(self) -> None:
        """Cancel what still runs on the machines, and close their loops. Nothing is traced.

        Example:
            world.close()
        """
        self._trace = None
        self.network.fail(math.inf)
        for loop in list(self.machines):
            loop._cancel_all()
            loop.close()
        self._events.clear()
