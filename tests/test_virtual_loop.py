"""The virtual loop with its network in memory: what TCP, clocks and a seed do there.

What the kernel sends after a program has given up is as was measured on Linux, with real outages.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from yamarket_chat import ChatSession, OutgoingMessage, connections, connector
from yamarket_chat._http import bodies
from yamarket_chat.errors import ChatError
from yamarket_chat.sandbox import Fault, Sandbox, VirtualLoop, World, random_faults
from yamarket_chat.sandbox.tcp import TCP_USER_TIMEOUT
from yamarket_chat.system import make_socket

T = TypeVar("T")

DISCARD = struct.pack("ii", 1, 0)


def run(main: Coroutine[Any, Any, T], loop: VirtualLoop | None = None) -> T:
    with asyncio.Runner(loop_factory=lambda: loop or VirtualLoop()) as runner:
        return runner.run(main)


MADE: list[World] = []


def make_world(seed: int = 0, **settings: Any) -> World:
    MADE.append(World(seed, **settings))
    return MADE[-1]


@pytest.fixture(autouse=True)
def _close_worlds() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def session(box: Sandbox, **settings: Any) -> ChatSession:
    return ChatSession(box.api_key, box.business_id, base_url=box.url, **settings)


class Site:
    """A Market and a shop on two machines."""

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        self.lines: list[str] = []
        self.world = make_world(seed, trace=self.lines.append)
        self.market = self.world.loop("market")
        self.shop = self.world.loop("shop")
        self.box: Sandbox = self.market.run_until_complete(self._start(settings))

    async def _start(self, settings: dict[str, Any]) -> Sandbox:
        return await Sandbox(**settings).__aenter__()

    def texts(self) -> list[str | None]:
        return [message.text for chat in self.box.chat_ids for message in self.box.messages(chat)]

    def close(self) -> None:
        self.market.run_until_complete(self.box.__aexit__(None, None, None))


class Sink(asyncio.Protocol):
    """A server that notes what it gets, and when."""

    def __init__(self) -> None:
        self.got: list[tuple[float, bytes]] = []
        self.lost: list[BaseException | None] = []
        self.transports: list[asyncio.Transport] = []

    def connection_made(self, transport: Any) -> None:
        self.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.got.append((asyncio.get_running_loop().time(), data))

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.append(error)


class Pair:
    """A plain connection between two machines."""

    def __init__(self, seed: int = 0) -> None:
        self.world = make_world(seed)
        self.server, self.client = self.world.loop("server"), self.world.loop("client")
        self.sink, self.source = Sink(), Sink()
        listening = self.server.run_until_complete(
            self.server.create_server(lambda: self.sink, "server", 80)
        )
        assert listening.sockets[0].getsockname() == ("10.0.0.1", 80)
        self.transport, _ = self.client.run_until_complete(
            self.client.create_connection(lambda: self.source, "server", 80)
        )
        self.go_on(1.0)
        self.connection = self.world.network.connections[0]

    def go_on(self, seconds: float) -> None:
        self.world.run(lambda: False, limit=self.world.now + seconds)

    def got(self) -> bytes:
        return b"".join(data for _, data in self.sink.got)


# A program alone


def test_hours_pass_and_messages_arrive() -> None:
    async def main() -> list[str | None]:
        async with Sandbox() as box, session(box) as chats:
            await chats.send_message(17, "Ваш заказ в пути")
            await asyncio.sleep(36_000)
            await chats.send_file(17, b"label", filename="label.pdf")
            assert asyncio.get_running_loop().time() > 36_000
            return [message.text or message.payload[0].name for message in box.messages(17)]

    assert run(main()) == ["Ваш заказ в пути", "label.pdf"]


def test_neither_a_socket_nor_a_thread_nor_the_clock_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the system was asked")

    async def main() -> int:
        async with Sandbox(faults={2: Fault("reset", "after")}) as box, session(box) as chats:
            for number in range(3):
                await chats.send_message(17, f"{number}")
            await chats.send_file(17, b"label", filename="label.pdf")
            await box.go_down()
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", box.port)
            await box.come_back()
            await chats.send_message(17, "again")
            return box.messages_stored

    loop = VirtualLoop()
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    # aiohttp's server makes a Date by `time.time`, and drops it: the sandbox has set its own.
    for name in ("monotonic", "perf_counter", "clock_gettime"):
        monkeypatch.setattr(f"time.{name}", refuse)
    assert loop.run_until_complete(main()) == 5
    monkeypatch.undo()
    loop.close()


def test_an_executor_job_runs_in_the_loop_and_may_take_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert await asyncio.to_thread(threading.get_ident) == threading.get_ident()
        loop.job_takes = 5.0
        before = loop.time()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        assert loop.time() - before == pytest.approx(5.0, abs=0.01)

    run(main())


def test_a_program_that_waits_for_ever_is_told() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing can happen any more"):
        run(main())


def test_timers_come_in_order_and_cancelled_ones_never() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        came: list[int] = []
        for number in (3, 1, 2):
            loop.call_later(number, came.append, number)
        handles = [loop.call_later(2.5, came.append, 0) for _ in range(500)]
        for handle in handles:
            handle.cancel()
        await asyncio.sleep(10)
        assert isinstance(loop, VirtualLoop)
        assert loop.timers() == []
        return came

    assert run(main()) == [1, 2, 3]


def test_a_caller_s_own_session_works_as_well() -> None:
    """Its connector opens a real socket, which the loop closes unused."""

    async def main() -> list[str | None]:
        async with Sandbox() as box, aiohttp.ClientSession() as http:
            async with session(box, http=http) as chats:
                await chats.send_message(17, "Здравствуйте")
            return [message.text for message in box.messages(17)]

    assert run(main()) == ["Здравствуйте"]


def test_names_have_addresses() -> None:
    async def main() -> None:
        async with Sandbox(host="market.example") as box, session(box, insecure_http=True) as chats:
            await chats.send_message(17, "Здравствуйте")
            assert "market.example" in box.url

    run(main())


def test_streams_work() -> None:
    async def main() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            whole = await reader.read()
            writer.write(whole[::-1])
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 8080):
            reader, writer = await asyncio.open_connection("127.0.0.1", 8080)
            for _ in range(10):
                writer.write(b"x" * 100_000)
                await writer.drain()
            writer.write(b"end")
            writer.write_eof()
            answered = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answered

    answered = run(main())
    assert len(answered) == 1_000_003
    assert answered[:3] == b"dne"


def test_a_server_serves_until_it_is_cancelled_and_has_its_address_alone() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 8080)
        assert server.is_serving()
        serving = asyncio.create_task(server.serve_forever())
        reader, writer = await asyncio.open_connection("localhost", 8080)
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError, match="Address already in use"):
            await asyncio.start_server(lambda *_: None, "127.0.0.1", 8080)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await server.wait_closed()
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("localhost", 8080)

    run(main())


def test_there_is_no_tls() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="no TLS"):
            await asyncio.open_connection("127.0.0.1", 443, ssl=True)
        with pytest.raises(ValueError, match="no TLS"):
            await asyncio.start_server(lambda *_: None, "127.0.0.1", 443, ssl=ssl_context)

    ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    run(main())


# Idle connections


@pytest.mark.parametrize(("pause", "connections"), [(3.0, 1), (5.0, 2)])
def test_an_idle_connection_expires_on_virtual_time(pause: float, connections: int) -> None:
    site = Site()

    async def main() -> None:
        async with session(site.box) as chats:
            await chats.send_message(17, "one")
            await asyncio.sleep(pause)
            await chats.send_message(17, "two")

    site.shop.run_until_complete(main())
    assert sum("connects" in line for line in site.lines) == connections
    site.close()


def test_the_server_closes_idle_connections() -> None:
    site = Site(keep_alive=1.0)

    async def main() -> None:
        async with session(site.box) as chats:
            await chats.send_message(17, "one")
            await asyncio.sleep(2.0)
            await chats.send_message(17, "two")

    site.shop.run_until_complete(main())
    assert sum("connects" in line for line in site.lines) == 2
    assert site.texts() == ["one", "two"]
    site.close()


def test_what_lies_in_the_kernel_is_no_answer_to_the_next_request() -> None:
    """It comes while the process is stopped: its next pass sends before it reads."""
    site = Site()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"status":"OK"}'

    async def main() -> None:
        async with session(site.box) as chats:
            await chats.send_message(17, "one")
            for connection in site.world.network.connections:
                connection.inject(answer)
            site.shop.pause(1.0)
            await asyncio.sleep(0)  # the next pass begins with this, and not with reading
            await chats.send_message(17, "two")

    site.shop.run_until_complete(main())
    assert site.texts() == ["one", "two"]
    assert sum("connects" in line for line in site.lines) == 2
    site.close()


# What the kernel does after the program has given up


def nothing(transport: Any) -> None:
    """Leave the connection as it is."""


def linger(transport: Any) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD)


def user_timeout(transport: Any) -> None:
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 10_000)


def both(transport: Any) -> None:
    linger(transport)
    user_timeout(transport)


@pytest.mark.parametrize(
    ("guard", "end", "arrives"),
    [
        (nothing, "close", True),
        (nothing, "abort", True),
        (nothing, "kill", True),
        (nothing, "pause", True),
        (linger, "abort", False),
        (linger, "kill", False),
        (linger, "pause", True),
        (user_timeout, "close", False),
        (user_timeout, "abort", False),
        (user_timeout, "pause", False),
        (both, "abort", False),
        (both, "kill", False),
        (both, "pause", False),
    ],
)
def test_what_arrives_after_an_outage_of_40_s(
    guard: Callable[[Any], None], end: str, arrives: bool
) -> None:
    pair = Pair()
    guard(pair.transport)
    pair.world.network.fail(40.0)
    pair.transport.write(b"message")
    pair.go_on(5.0)
    if end == "kill":
        pair.client.kill()
    elif end == "pause":
        pair.client.pause(100.0)
    else:
        pair.client.call_soon(getattr(pair.transport, end))
    pair.go_on(200.0)
    assert pair.got() == (b"message" if arrives else b"")
    if arrives:
        [(at, _)] = pair.sink.got
        assert 41.0 < at < 41.0 + 40.0  # with the next repeat


def test_the_kernel_gives_a_connection_up_after_its_user_timeout() -> None:
    pair = Pair()
    user_timeout(pair.transport)
    pair.world.network.fail(100.0)
    began = pair.client.time()
    pair.transport.write(b"message")
    pair.world.run(lambda: bool(pair.source.lost))
    assert isinstance(pair.source.lost[0], TimeoutError)
    assert 10.0 <= pair.client.time() - began < 11.0


def test_a_reader_that_reads_nothing_counts_as_well() -> None:
    pair = Pair()
    user_timeout(pair.transport)
    pair.sink.transports[0].pause_reading()
    for _ in range(10):
        pair.transport.write(b"x" * 100_000)
    pair.go_on(60.0)
    assert isinstance(pair.source.lost[0], TimeoutError)


def test_a_reader_that_goes_on_gets_all() -> None:
    pair = Pair()
    pair.sink.transports[0].pause_reading()
    for _ in range(10):
        pair.transport.write(b"x" * 100_000)
    pair.go_on(60.0)
    assert not pair.got()
    pair.server.call_soon(pair.sink.transports[0].resume_reading)
    pair.go_on(60.0)
    assert len(pair.got()) == 1_000_000


def test_a_connection_that_closes_notices_that_it_is_reset() -> None:
    """It still has to write, and reads no more."""
    pair = Pair()
    pair.sink.transports[0].pause_reading()
    pair.transport.write(b"x" * 1_000_000)
    pair.transport.close()
    pair.go_on(1.0)
    assert not pair.source.lost
    pair.server.kill()
    pair.go_on(1.0)
    assert isinstance(pair.source.lost[0], ConnectionResetError)


def test_what_is_in_flight_cannot_be_called_back() -> None:
    pair = Pair()
    both(pair.transport)
    pair.transport.write(b"message")
    pair.client.call_soon(pair.transport.abort)
    pair.go_on(1.0)
    assert pair.got() == b"message"
    assert isinstance(pair.sink.lost[0], ConnectionResetError)


def test_a_closed_connection_ends_with_what_was_written() -> None:
    pair = Pair()
    pair.world.network.pieces = 1.0
    pair.transport.write(b"one two three")
    pair.client.call_soon(pair.transport.close)
    pair.go_on(1.0)
    assert pair.got() == b"one two three"
    assert len(pair.sink.got) > 1
    assert pair.sink.lost == [None]


def test_a_killed_process_of_ours_resets_its_connections() -> None:
    site = Site(latency=1.0)

    async def main() -> None:
        async with session(site.box) as chats:
            await chats.send_message(17, "one")

    task = site.shop.create_task(main())
    site.world.call_later(0.5, site.shop.kill)
    assert not site.world.run(task.done, limit=100.0)
    assert any("is reset" in line for line in site.lines)
    assert site.texts() == ["one"]
    site.close()


@pytest.mark.parametrize("is_guarded", [True, False])
def test_an_outage_of_40_s_doubles_a_message_only_without_our_guards(
    is_guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_guarded:
        monkeypatch.setattr(connections, "_make_socket", lambda address: make_socket(*address[:3]))
        monkeypatch.setattr(bodies, "discard", lambda transport: transport.abort())
    site = Site()

    async def main() -> None:
        async with session(site.box) as chats:
            await chats.send_message(17, "one")
            site.world.network.fail(40.0)
            await chats.send_message(17, "two")
            await asyncio.sleep(100)

    site.shop.run_until_complete(main())
    assert site.texts() == (["one", "two"] if is_guarded else ["one", "two", "two"])
    site.close()


# Faults of the network


def test_a_cancelled_connect_leaves_no_connection() -> None:
    world = make_world()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 8080)
        connecting = loop.create_task(loop.create_connection(asyncio.Protocol, "127.0.0.1", 8080))
        while not world.network.connections:
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait({connecting})
        assert connecting.cancelled()
        await asyncio.sleep(1)
        assert not world.network.connections
        server.close()

    run(main(), world.loop())


def test_a_closed_world_leaves_the_thread_as_it_was() -> None:
    before = sys.get_asyncgen_hooks()
    world = World()
    world.loop().create_task(asyncio.sleep(1))
    world.close()
    assert sys.get_asyncgen_hooks() == before


def test_a_connection_is_refused_if_nobody_listens() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", 80)

    run(main())


@pytest.mark.parametrize(("guard", "seconds"), [(nothing, 127.0), (user_timeout, 10.0)])
def test_a_black_hole_answers_nothing(guard: Callable[[Any], None], seconds: float) -> None:
    loop = VirtualLoop()
    loop.world.network.black_holes.add(("127.0.0.1", 80))

    async def main() -> None:
        sock = loop.make_socket()
        if guard is user_timeout:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 10_000)
        with pytest.raises(TimeoutError):
            await loop.sock_connect(sock, ("127.0.0.1", 80))
        assert loop.time() == pytest.approx(seconds, abs=0.1)

    run(main(), loop)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_connection_may_be_half_open(side: str) -> None:
    pair = Pair()
    pair.connection.cut(client=side == "client", server=side == "server")
    pair.go_on(10.0)
    hears, hears_not = (pair.source, pair.sink) if side == "client" else (pair.sink, pair.source)
    assert isinstance(hears.lost[0], ConnectionResetError)
    assert not hears_not.lost
    hears_not.transports[0].write(b"anybody there?")
    pair.go_on(10.0)
    assert isinstance(hears_not.lost[0], ConnectionResetError)


def test_a_connection_stalls_in_one_direction() -> None:
    pair = Pair()
    pair.connection.stall(30.0, to_server=False)
    pair.transport.write(b"question")
    pair.go_on(1.0)
    assert pair.got() == b"question"
    pair.sink.transports[0].write(b"answer")
    pair.go_on(20.0)
    assert not pair.source.got
    pair.go_on(40.0)
    assert [data for _, data in pair.source.got] == [b"answer"]


def test_lost_pieces_come_again_in_order() -> None:
    pair = Pair(seed=3)
    network = pair.world.network
    network.loss, network.pieces, network.latency = 0.3, 0.5, (0.001, 0.3)
    whole = b"".join(b"%d;" % number for number in range(200))
    for number in range(200):
        pair.transport.write(b"%d;" % number)
    pair.go_on(3600.0)
    assert pair.got() == whole


def test_one_machine_is_cut_off() -> None:
    pair = Pair()
    pair.world.network.fail(10.0, pair.server)
    pair.transport.write(b"message")
    pair.go_on(9.0)
    assert not pair.got()
    pair.go_on(30.0)
    assert pair.got() == b"message"


# Clocks


def test_a_machine_sleeps_while_the_others_go_on() -> None:
    world = make_world()
    sleeper, other = world.loop("sleeper"), world.loop("other")
    task = sleeper.create_task(asyncio.sleep(10))
    world.call_at(5.0, sleeper.suspend, 100.0)
    other.run_until_complete(asyncio.sleep(50))
    assert not task.done()
    assert (sleeper.time(), sleeper.stood_still()) == (5.0, 0.0)
    world.run(task.done)
    assert world.now == pytest.approx(110.0, abs=0.01)
    assert sleeper.time() == pytest.approx(10.0, abs=0.01)
    assert sleeper.stood_still() == pytest.approx(100.0, abs=0.01)
    assert sleeper.wall_time() == other.wall_time()


def test_a_process_is_killed_while_its_machine_sleeps() -> None:
    pair = Pair()
    pair.transport.write(b"message")
    pair.client.suspend(60.0)
    pair.client.kill()
    pair.go_on(30.0)
    assert not pair.got()
    pair.go_on(60.0)  # its kernel goes on as the machine wakes up
    assert pair.got() == b"message"
    assert not pair.client.is_asleep


def test_a_stopped_process_does_nothing_but_its_time_goes_on() -> None:
    world = make_world()
    loop = world.loop()
    task = loop.create_task(asyncio.sleep(10))
    world.call_at(5.0, loop.pause, 100.0)
    world.run(task.done)
    assert loop.time() == pytest.approx(105.0, abs=0.01)
    assert loop.stood_still() == 0


def test_a_wall_clock_steps_and_drifts() -> None:
    world = make_world()
    loop, other = world.loop("one"), world.loop("other")
    loop.wall_drift = 1e-3
    loop.run_until_complete(asyncio.sleep(1000))
    assert loop.wall_time() - other.wall_time() == pytest.approx(1.0)
    loop.step_wall_clock(-60)
    assert loop.wall_time() - other.wall_time() == pytest.approx(-59.0)
    assert loop.stood_still() == 0
    loop.has_boot_clock = False  # only the wall clock tells there
    before = loop.stood_still()
    loop.step_wall_clock(60)
    assert loop.stood_still() - before == pytest.approx(60)


def test_the_sandbox_follows_the_wall_clock_of_its_machine() -> None:
    site = Site()
    dates: list[datetime] = []

    async def main() -> None:
        async with session(site.box) as chats:
            for _ in range(2):
                await chats.send_message(17, "one")
                dates.append(site.box.messages(17)[-1].created_at)
                site.market.step_wall_clock(3600)

    site.shop.run_until_complete(main())
    assert (dates[1] - dates[0]).total_seconds() == pytest.approx(3600, abs=1)
    site.close()


# A seed decides everything


def story(seed: int) -> str:
    """Two programs of a shop, and everything that may happen to them. Returns the trace."""
    lines: list[str] = []
    world = World(seed, trace=lines.append)
    market, shops = world.loop("market"), [world.loop("one"), world.loop("two")]
    market.wall_drift = 1e-4
    network, chance = world.network, world.randomness("story")
    network.latency, network.pieces, network.loss = (0.001, 0.2), 0.3, 0.02

    async def start() -> Sandbox:
        latency = world.randomness("latency of the Market")
        box = Sandbox(faults=random_faults(0.15, seed), latency=lambda: latency.uniform(0, 0.5))
        return await box.__aenter__()

    async def send(box: Sandbox, name: str) -> None:
        async with session(box) as chats:
            messages = [OutgoingMessage(17 + i % 3, f"{name} {i}") for i in range(12)]
            async for outcome in chats.send_many(messages):
                world.note(f"{name}: {outcome.message.text} {outcome.status}")
            try:
                async with asyncio.timeout(20):
                    await chats.send_file(17, b"x" * 200_000, filename="label.pdf")
            except (TimeoutError, ChatError) as error:
                world.note(type(error).__name__)

    box = market.run_until_complete(start())
    tasks = [shop.create_task(send(box, shop.name)) for shop in shops]

    def cut() -> None:
        for connection in network.connections:
            connection.cut(client=chance.random() < 0.5, server=chance.random() < 0.5)

    def stall() -> None:
        for connection in network.connections[:1]:
            connection.stall(20.0)

    world.call_at(chance.uniform(0, 3), network.fail, chance.uniform(1, 40))
    world.call_at(chance.uniform(0, 9), shops[0].suspend, chance.uniform(1, 90))
    world.call_at(chance.uniform(0, 9), shops[1].pause, chance.uniform(1, 9))
    world.call_at(chance.uniform(0, 9), shops[0].step_wall_clock, -30.0)
    world.call_at(chance.uniform(0, 9), box.step_clock, 3.0)
    world.call_at(chance.uniform(0, 9), cut)
    world.call_at(chance.uniform(0, 9), stall)
    world.call_at(60.0 + chance.uniform(0, 9), shops[seed % 2].kill)
    world.run(lambda: all(task.done() for task in tasks), limit=7200.0)
    for chat in box.chat_ids:
        for row in box.messages(chat):
            world.note(f"{row.created_at} {row.text}")
    market.run_until_complete(box.__aexit__(None, None, None))
    world.close()
    return "\n".join(lines)


STORIES = """
import logging
from tests.test_virtual_loop import story
logging.disable()
for seed in range(6):
    print(story(seed))
"""


def test_two_runs_of_a_seed_are_the_same_byte_for_byte() -> None:
    traces = [
        subprocess.run(  # noqa: S603
            [sys.executable, "-c", STORIES],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert len(traces[0].splitlines()) > 500
    assert hashlib.sha256(traces[0]).digest() == hashlib.sha256(traces[1]).digest()


def test_each_purpose_has_a_stream_of_its_own() -> None:
    one, other = World(7), World(7)
    one.randomness("faults").random()
    assert one.randomness("pauses").random() == other.randomness("pauses").random()
    assert World(8).randomness("pauses").random() != World(7).randomness("pauses").random()


def test_the_connector_of_ours_is_made_with_its_guards() -> None:
    async def main() -> None:
        async with Sandbox() as box, aiohttp.ClientSession(connector=connector()) as http:
            async with session(box, http=http) as chats:
                await chats.send_message(17, "one")
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            [connection] = loop.world.network.connections
            options = connection.client.socket.options
            assert options[socket.SOL_SOCKET, socket.SO_LINGER] == DISCARD
            assert options[socket.IPPROTO_TCP, TCP_USER_TIMEOUT] == 10_000

    run(main())


PROGRAMS = re.findall(
    r"<!-- runs in the tests -->\n```python\n(.*?)```",
    (Path(__file__).parents[1] / "docs" / "sandbox.md").read_text(encoding="utf-8"),
    re.S,
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_of_the_docs_run(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(program, "docs/sandbox.md", "exec"), {"__name__": "__main__"})  # noqa: S102


def test_the_docs_have_programs() -> None:
    assert len(PROGRAMS) == 3
