"""What a story gives the outbox instead of the system: locks, names, clocks, and its points."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from yamarket_chat import ChatSession
from yamarket_chat.outbox import checkpoint, lease, points, rows, watching
from yamarket_chat.outbox.database import Database
from yamarket_chat.sandbox import VirtualLoop, World

from .database import Storage


class Locks:
    """Locks of an operating system. The lock of a killed process is free, a paused one's is not."""

    def __init__(self, exist: bool) -> None:
        self.exist = exist
        self._held: dict[str, VirtualLoop | None] = {}
        self._made = 0

    def take(self, loop: VirtualLoop) -> str:
        if not self.exist:
            raise OSError("there are no locks here")
        self._made += 1
        name = f"worker-{self._made}"
        self._held[name] = loop
        return name

    def is_free(self, path: str) -> bool:
        name = os.path.basename(path)
        loop = self._held.get(name)
        return name in self._held and (loop is None or loop.is_killed)

    def free(self, name: str, *, file_stays: bool) -> None:
        if file_stays:
            self._held[name] = None
        else:
            self.remove(name)

    def remove(self, path: str) -> None:
        self._held.pop(os.path.basename(path), None)

    def held(self) -> list[str]:
        """Return whose locks are held by living processes."""
        return [loop.name for loop in self._held.values() if loop and not loop.is_killed]


class _Clock:
    """`time`, as the rows use it: the clock of the machine that is at work."""

    def __init__(self, storage: Storage, otherwise: VirtualLoop) -> None:
        self._storage = storage
        self._otherwise = otherwise

    def time_ns(self) -> int:
        loop: Any = asyncio._get_running_loop() or self._storage.loop or self._otherwise
        return int(loop.wall_time() * 1e6) * 1000


class Tokens:
    """`secrets`, as the workers use it. It remembers whose a token is."""

    def __init__(self, world: World) -> None:
        self._chance = world.randomness("tokens")
        self.whose: dict[str, str] = {}

    def token_urlsafe(self, size: int) -> str:
        token = f"{self._chance.getrandbits(8 * size):0{2 * size}x}"
        loop: Any = asyncio.get_running_loop()
        self.whose[token] = loop.name
        return token


def stand_still(loop: VirtualLoop, seconds: float) -> None:
    """Pause a machine in the middle of a step, while all others go on."""
    world = loop.world
    end = world.now + seconds
    world.note(f"{loop.name} is stopped in the middle of a step for {seconds:g} s")
    task = asyncio.current_task(loop)
    loop.pause(1e9)
    world.call_at(end, lambda: None)
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    try:
        world._run(lambda: world.now >= end, end)
    finally:
        loop._paused_until = 0.0
        loop._go_on()
        world._enter(loop)
        if task is not None:
            asyncio.tasks._enter_task(loop, task)


@contextmanager
def patched(
    world: World,
    storage: Storage,
    locks: Locks,
    tokens: Tokens,
    market_loop: VirtualLoop,
    *,
    server: bool,
    look: float,
    look_at_others: float,
    url_of: Callable[[int], str],
    hook: Callable[[str], None],
    written: Callable[[Any], None],
) -> Iterator[None]:
    """Give the outbox of this process what a story decides, for a while."""
    before: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, value: Any) -> None:
        before.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, value)

    class Lock:
        def __init__(self, _: str) -> None:
            loop: Any = storage.loop or asyncio._get_running_loop()
            self.name = locks.take(loop)

        def free(self, *, file_stays: bool = False) -> None:
            locks.free(self.name, file_stays=file_stays)

    original: Any = Database.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if server:
            self.dialect = "postgresql"

    session: Any = ChatSession.__init__

    def session_init(self: Any, api_key: Any, business_id: Any, **options: Any) -> None:
        options["base_url"] = url_of(int(business_id))  # a sandbox serves one business
        session(self, api_key, business_id, **options)

    note: Any = checkpoint.Passage.written

    def note_written(self: Any) -> None:
        written(self._grant)
        note(self)

    keys = world.randomness("keys")
    looks = dict(watching.LOOKS)
    patch(Database, "__init__", init)
    patch(Database, "call", lambda self, *args: storage.call(self, *args))
    patch(Database, "usable", lambda self, connection: None)
    patch(lease, "Lock", Lock)
    patch(lease, "is_free", locks.is_free)
    patch(lease, "remove", locks.remove)
    patch(lease, "secrets", tokens)
    patch(lease, "LOOK", look_at_others)
    patch(rows, "time", _Clock(storage, market_loop))
    patch(rows, "_random_key", lambda: f"{rows.RANDOM}{keys.getrandbits(128):032x}")
    patch(ChatSession, "__init__", session_init)
    patch(checkpoint.Passage, "written", note_written)
    patch(points, "hook", hook)
    watching.LOOKS.update(dict.fromkeys(looks, look))
    try:
        yield
    finally:
        watching.LOOKS.update(looks)
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
