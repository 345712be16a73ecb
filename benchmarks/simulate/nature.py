"""What happens to the machines, to their network and to the Market, each at its moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, assert_never

from yamarket_chat.sandbox import VirtualLoop, World

from .market import Market, repeats
from .program import Log
from .story import (
    Access,
    AnyEvent,
    Cut,
    Down,
    MarketClock,
    OthersHold,
    OthersUse,
    Outage,
    Says,
    Sleep,
    Stall,
    Stop,
    Story,
    Stray,
    WallClock,
)

QUIET = 150.0
"""Seconds after which nothing is remembered of what was sent."""

SET = 30.0
"""Seconds by which the Market's clock may be set around a sleep: docs/delivery.md says so."""

PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
STRAYS = {
    "408": b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "page": b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE),
    "200": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n"
    b"traceparent: 00-%032x-%016x-01\r\n\r\n" % (1, 1) + b'{"status":"OK"}',
}


class Nature:
    """Lets the events of a story happen. `loops` are those of the machines, by number."""

    def __init__(
        self,
        story: Story,
        world: World,
        market: Market,
        market_loop: VirtualLoop,
        loops: Sequence[VirtualLoop],
        log: Log,
    ) -> None:
        self._story = story
        self._world = world
        self._market = market
        self._market_loop = market_loop
        self._loops = loops
        self._log = log
        self._repeats = repeats(story)

    def begin(self) -> None:
        """Set the network up."""
        network, told = self._world.network, self._story.network
        network.latency = (told.least, told.most)
        network.pieces = told.pieces
        network.loss = told.loss

    def schedule(self, since: float) -> None:
        """Let each event happen at its moment after `since`."""
        for event in self._story.events:
            self._world.call_at(since + event.at, self._happen, event)

    def _happen(self, event: AnyEvent) -> None:
        tag = event.__struct_config__.tag
        self._log.say("world", repr(event))
        self._meets(f"event {tag}")
        world = self._world
        match event:
            case MarketClock() if not self._can_be_set(event):
                pass
            case Says() | OthersUse() | MarketClock():
                self._in_market(lambda: self._market.happen(event))
            case Outage():
                world.network.fail(event.seconds, self._loops[event.machine])
            case Stall():
                connection = self._connection(event.connection, event.machine)
                if connection is not None:
                    connection.stall(
                        event.seconds,
                        to_client=event.way != "up",
                        to_server=event.way != "down",
                    )
            case Cut():
                connection = self._connection(event.connection, event.machine)
                if connection is not None:
                    connection.cut(client=event.end != "server", server=event.end != "client")
            case Stray():
                connection = self._connection(event.connection, None)
                if connection is not None and (event.what != "200" or self._nobody_sends(event.at)):
                    connection.inject(STRAYS[event.what])
            case Sleep():
                self._loops[event.machine].suspend(event.seconds)
            case Stop(as_told=True):
                loop = self._loops[event.machine]
                actions = self._log.as_told.setdefault(event.machine, [])
                actions.append(lambda: loop.pause(event.seconds))
            case Stop():
                self._loops[event.machine].pause(event.seconds)
            case WallClock():
                self._loops[event.machine].step_wall_clock(event.by)
            case Down():
                self._start(self._market.box.go_down)
                world.call_later(event.seconds, self._start, self._market.box.come_back)
            case Access():
                box = self._market.box
                setattr(box, event.why, True)
                world.call_later(event.seconds, setattr, box, event.why, False)
            case OthersHold():
                holding = contextlib.ExitStack()
                holding.enter_context(self._market.box.other_programs_hold(event.places))
                world.call_later(event.seconds, holding.close)
            case _:
                assert_never(event)

    def _can_be_set(self, event: MarketClock) -> bool:
        """Whether a program has a chance to know that a clock was set.

        It needs a Date from before. If a machine sleeps meanwhile, that Date tells only of small
        steps. And of two clocks that move against each other while an outcome is unknown, and a
        chat's messages say the same, nothing tells which row is whose.
        """
        if not self._log.heard:
            return False
        if abs(event.by) > SET and any(
            isinstance(e, Sleep) and e.at - QUIET < event.at < e.at + e.seconds + QUIET
            for e in self._story.events
        ):
            return False
        if event.which == "both" or not self._repeats:
            return True
        since = self._log.now() - QUIET
        return not self._log.active and not any(
            told.fate in ("unknown", "untold") and told.ended is not None and told.ended > since
            for told in self._log.record.messages
        )

    def _nobody_sends(self, at: float) -> bool:
        """Whether no message is under way, and none begins until what is sent now has come."""
        network, steps = self._story.network, self._story.steps
        if network.loss or any(isinstance(e, (Stall, Outage)) for e in self._story.events):
            return False  # it may come much later
        # While a machine sleeps or is stopped, it does nothing: what it does next may be late.
        late = sum(e.seconds for e in self._story.events if isinstance(e, (Sleep, Stop)))
        soon = at + 3 * network.most
        return not self._log.active and not any(at - late <= step.at <= soon for step in steps)

    def _meets(self, what: str) -> None:
        if self._log.active:
            self._log.record.met[what] += 1

    def _in_market(self, action: Callable[[], object]) -> None:
        self._market_loop.call_soon(action)

    def _start(self, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._market_loop.create_task(action(), name="world")

    def _connection(self, number: int, machine: int | None) -> Any:
        found = [
            connection
            for connection in self._world.network.connections
            if machine is None or connection.client.loop is self._loops[machine]
        ]
        if not found:
            return None
        self._log.record.met["a connection is hit"] += 1
        return found[number % len(found)]
