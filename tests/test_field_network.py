"""How a session handles the behaviour of real networks, servers and proxies."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from yarl import URL

from tests.helpers import HOUR, KEY, RAISE_UNKNOWN, error_of, now, outcome_of, session_of, texts
from yamarket_chat import (
    ChatError,
    ChatSession,
    ConnectionFailedError,
    DeliveryUnknownError,
    File,
    InvalidArgumentError,
    NotFoundError,
    Receipt,
    Retry,
    UnexpectedAnswerError,
    connector,
)
from yamarket_chat._http.proxies import Proxies
from yamarket_chat.connections import _make_socket, discard
from yamarket_chat.sandbox import Fault, Sandbox

CLONE_NEWNET = 0x40000000
SERVER, CLIENT = "10.99.7.2", "10.99.7.1"
NOWHERE = "02:00:00:00:00:99"


def _why_no_namespaces() -> str:
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("openssl") is None:
        return "the commands ip and openssl are missing"
    if _in_thread(lambda: ctypes.CDLL(None).unshare(CLONE_NEWNET)) != 0:
        return "the system allows no network namespace"
    return ""


def _in_thread(function: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)  # noqa: S603, S607


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for SERVER and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -keyout key.pem -out cert.pem -subj /CN=market"
        f" -addext subjectAltName=IP:{SERVER},DNS:market.test"
    )
    subprocess.run(command.split(), check=True, capture_output=True, cwd=folder)  # noqa: S603
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


class _Far:
    """A market in another network namespace, over TCP and TLS, with a thread of its own."""

    def __init__(self, certificate: Path) -> None:
        self.stored: list[str] = []
        self.ports: dict[str, int] = {}
        self._certificate = certificate
        self._linked = threading.Event()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run)
        self.tid = 0

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)
        self._ready.clear()

    def link(self) -> None:
        """Go on: the other end of the link is there."""
        self._linked.set()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._linked.set()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    def _run(self) -> None:
        ctypes.CDLL(None).unshare(CLONE_NEWNET)
        self.tid = threading.get_native_id()
        self._ready.set()
        self._linked.wait(10)
        _ip(f"addr add {SERVER}/24 dev far")
        _ip("link set far up")
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._certificate)
        writers: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            with suppress(OSError, EOFError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    length = int(head.partition("content-length: ")[2].partition("\r")[0])
                    self.stored.append(
                        msgspec.json.decode(await reader.readexactly(length))["message"]
                    )
                    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"OK"}')
            writer.transport.abort()

        servers = [
            await asyncio.start_server(serve, SERVER, 0, ssl=context) for context in (None, tls)
        ]
        for scheme, server in zip(("http", "https"), servers, strict=True):
            self.ports[scheme] = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._done.wait()
        for server in servers:
            server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


@pytest.mark.real_time
@pytest.mark.skipif(bool(_why_no_namespaces()), reason=_why_no_namespaces())
def test_message_given_up_in_an_outage_does_not_arrive_later(
    certificate: Path,
) -> None:
    """The kernel goes on retransmitting what was written to a connection that was only closed."""
    far = _Far(certificate)
    try:
        _in_thread(lambda: _outage(far, lambda: _through_an_outage(far, certificate)))
    finally:
        far.stop()
    kept = ("own tcp", "caller's tcp", "caller's tls", "connector's tls")
    assert sorted(far.stored) == sorted(
        [f"{name}: one" for name in (*kept, "unguarded tcp", "unguarded tls")]
        # So the guard is needed:
        + ["unguarded tcp: two", "unguarded tls: two"]
    )


@pytest.mark.real_time
@pytest.mark.skipif(bool(_why_no_namespaces()), reason=_why_no_namespaces())
def test_message_given_up_does_not_arrive_while_the_program_blocks_its_loop(
    certificate: Path,
) -> None:
    """The loop closes the connection only in the pass after the one in which the call ends."""
    far = _Far(certificate)
    try:
        _in_thread(lambda: _outage(far, lambda: _blocks_as_it_is_told(far)))
    finally:
        far.stop()
    assert far.stored == ["one"]


async def _blocks_as_it_is_told(far: _Far) -> None:
    async with ChatSession(
        "ACMA:key:1",
        1,
        base_url=f"http://{SERVER}:{far.ports['http']}",
        insecure_http=True,
        timeout=0.5,
        retry=RAISE_UNKNOWN,
    ) as session:
        await session.send_message(1, "one")
        _ip(f"neigh replace {SERVER} lladdr {NOWHERE} dev near nud permanent")
        try:
            await session.send_message(1, "two")
        except DeliveryUnknownError:
            _ip(f"neigh del {SERVER} dev near")
            time.sleep(0.5)  # the kernel repeats about 0.2, 0.6 and 1.4 s after it has sent first


def _outage(far: _Far, program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    ctypes.CDLL(None).unshare(CLONE_NEWNET)
    far.start()
    _ip(f"link add near type veth peer name far netns {far.tid}")
    _ip(f"addr add {CLIENT}/24 dev near")
    _ip("link set near up")
    far.link()

    async def connected() -> None:
        await _reach(far.ports["http"])
        await program()

    asyncio.run(connected())


async def _reach(port: int) -> None:
    """Wait for the link: the kernel repeats a first packet that is lost after a second only."""
    while True:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(0.1):
                _, writer = await asyncio.open_connection(SERVER, port)
            writer.close()
            return


async def _through_an_outage(far: _Far, certificate: Path) -> None:
    tls = ssl.create_default_context(cafile=str(certificate))
    urls = {scheme: f"{scheme}://{SERVER}:{port}" for scheme, port in far.ports.items()}

    def session(scheme: str, http: aiohttp.ClientSession | None) -> ChatSession:
        return ChatSession(
            "ACMA:key:1",
            1,
            base_url=urls[scheme],
            insecure_http=True,
            timeout=1.0,
            http=http,
            retry=RAISE_UNKNOWN,
        )

    async with (
        aiohttp.ClientSession() as plain,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as secure,
        aiohttp.ClientSession(connector=connector(ssl=tls)) as ours,
        session("http", None) as own_tcp,
        session("http", plain) as callers_tcp,
        session("https", secure) as callers_tls,
        session("https", ours) as connectors_tls,
    ):
        sessions = {
            "own tcp": own_tcp,
            "caller's tcp": callers_tcp,
            "caller's tls": callers_tls,
            "connector's tls": connectors_tls,
        }

        async def unguarded(http: aiohttp.ClientSession, url: str, text: str) -> None:
            timeout = aiohttp.ClientTimeout(1.0)
            async with http.post(url, json={"message": text}, timeout=timeout) as response:
                await response.read()

        def everybody_says(text: str) -> list[Any]:
            return [
                *(each.send_message(i, f"{name}: {text}") for i, (name, each) in
                  enumerate(sessions.items(), 1)),
                unguarded(plain, urls["http"], f"unguarded tcp: {text}"),
                unguarded(secure, urls["https"], f"unguarded tls: {text}"),
            ]  # fmt: skip

        await asyncio.gather(*everybody_says("one"))
        _ip(f"neigh replace {SERVER} lladdr {NOWHERE} dev near nud permanent")
        lost = await asyncio.gather(*map(outcome_of, everybody_says("two")))
        assert [type(error) for error in lost] == [DeliveryUnknownError] * 4 + [TimeoutError] * 2
        _ip(f"neigh del {SERVER} dev near")
        for _ in range(100):  # until the kernel has retransmitted what it still has
            await asyncio.sleep(0.05)
            if sum(text.startswith("unguarded") for text in far.stored) == 4:
                break
        await asyncio.sleep(0.1)


async def test_connector_accepts_the_settings_of_aiohttp() -> None:
    async with connector(limit=7, keepalive_timeout=3) as made:
        assert made.limit == 7


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such option")
def test_kernel_discards_unsent_data_of_a_blocked_or_killed_program() -> None:
    """Then nobody can abort the connection, so the socket options are set from the start."""
    with _make_socket((socket.AF_INET, socket.SOCK_STREAM, 0)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert struct.unpack("ii", linger) == (1, 0)


# An answer that nobody asked for


async def test_unsolicited_answer_on_an_idle_connection_is_ignored() -> None:
    async with (
        Sandbox(faults={1: Fault("unsolicited", delay=1)}) as market,
        session_of(market) as session,
    ):
        one = await session.send_message(1, "one")
        await asyncio.sleep(2)
        two = await session.send_message(1, "two")
        assert texts(market, 1) == ["one", "two"]
        assert one.confirmed_by == two.confirmed_by == "answer"
        assert one.trace_id != two.trace_id


async def test_unsolicited_answer_is_not_taken_for_the_answer_to_a_read() -> None:
    async with (
        Sandbox(chats=[1, 2], faults={1: Fault("unsolicited", delay=1)}) as market,
        session_of(market) as session,
    ):
        assert (await session.get_chat(1)).chat_id == 1
        await asyncio.sleep(2)
        assert (await session.get_chat(2)).chat_id == 2
        assert market.requests("get_chat") == 2


async def test_repeated_answer_is_detected_by_its_trace() -> None:
    """The repeated answer arrives during the next request, so only its trace shows it."""
    delays = iter([0.0, 2.0])
    async with (
        Sandbox(
            latency=lambda: next(delays, 0.0), faults={1: Fault("unsolicited", delay=2)}
        ) as market,
        session_of(market) as session,
    ):
        await session.send_message(1, "one")
        await asyncio.sleep(1)
        receipt = await session.send_message(1, "two")
        assert receipt.confirmed_by == "history"
        assert texts(market, 1) == ["one", "two"]


async def test_read_with_a_repeated_answer_is_retried() -> None:
    delays = iter([0.0, 2.0])
    async with (
        Sandbox(
            latency=lambda: next(delays, 0.0),
            chats=[1, 2],
            faults={1: Fault("unsolicited", delay=2)},
        ) as market,
        session_of(market) as session,
    ):
        await session.get_chat(1)
        await asyncio.sleep(1)
        assert (await session.get_chat(2)).chat_id == 2


async def test_traces_are_known_to_all_sessions_of_one_aiohttp_session() -> None:
    """A web handler makes a session for each request, and its connections are kept."""
    delays = iter([0.0, 2.0])
    async with (
        Sandbox(
            latency=lambda: next(delays, 0.0), faults={1: Fault("unsolicited", delay=2)}
        ) as market,
        aiohttp.ClientSession() as http,
    ):
        async with session_of(market, http=http) as session:
            await session.send_message(1, "one")
        await asyncio.sleep(1)
        async with session_of(market, http=http) as session:
            receipt = await session.send_message(1, "two")
        assert receipt.confirmed_by == "history"
        assert texts(market, 1) == ["one", "two"]


OK = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"OK"}'
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HALF = OK[:30]


@pytest.mark.parametrize("stray", [OK, TIMEOUT, CONTINUE, HALF, b"\0"])
@pytest.mark.parametrize("read", [True, False], ids=["read", "in the kernel"])
async def test_connection_with_unread_data_is_not_reused(stray: bytes, *, read: bool) -> None:
    if stray == HALF and not read and "Uvloop" in type(asyncio.get_running_loop()).__name__:
        pytest.skip("uvloop reads it in the moment of the request, whose outcome is unclear then")
    arrivals: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError, EOFError):
            while True:
                arrivals.append(await reader.readuntil(b"}"))
                writer.write(OK)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, ChatSession(KEY, 1, base_url=url) as session:
        await session.send_message(1, "one")
        writers[0].write(stray)
        if read:
            await asyncio.sleep(1)
        receipt = await session.send_message(1, "two")
        assert receipt.confirmed_by == "answer"
        assert len(arrivals) == 2
        # An incomplete answer that was read while the connection was idle is dropped, which does no
        # harm. On a busy machine, it may still be in the kernel.
        if not (read and stray in (CONTINUE, HALF)):
            assert len(writers) == 2


async def test_an_answer_that_comes_before_all_of_a_file_was_sent_is_none_to_it() -> None:
    """The Market cannot have stored what it has not received."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        with suppress(OSError):
            await reader.read()  # at most what the reader's buffer takes
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**16)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, ChatSession(KEY, 1, base_url=url, retry=RAISE_UNKNOWN) as session:
        error = await error_of(session.send_file(1, bytes(5_000_000), filename="a.pdf"))
        assert isinstance(error, DeliveryUnknownError)


FILE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("read", [True, False], ids=["read", "in the kernel"])
@pytest.mark.parametrize("callers", [False, True], ids=["own session", "caller's session"])
async def test_a_stray_answer_is_not_taken_for_a_file(*, read: bool, callers: bool) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError, EOFError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(FILE + b"right")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    file = File(name="a.pdf", url=f"{url}/a.pdf", size=5)
    async with (
        server,
        aiohttp.ClientSession() as http,
        ChatSession(KEY, 1, base_url=url, http=http if callers else None) as session,
    ):
        assert await session.download(file) == b"right"
        assert await session.download(file) == b"right"
        assert len(writers) == 1  # it is kept
        writers[0].write(FILE + b"stray")
        if read:
            await asyncio.sleep(1)
        assert await session.download(file) == b"right"
        assert len(writers) == 2


async def test_a_middleware_that_repeats_a_request_does_not_double_a_message() -> None:
    async def twice(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        await handler(request)
        return await handler(request)

    async with (
        Sandbox() as market,
        aiohttp.ClientSession(middlewares=[twice]) as http,
        session_of(market, http=http, retry=RAISE_UNKNOWN) as session,
    ):
        assert isinstance(await outcome_of(session.send_message(1, "one")), DeliveryUnknownError)
        assert texts(market, 1) == ["one"]


# Answers that do not end


async def _a_million_headers() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for number in range(1000):
        yield b"".join(b"h%d-%d: x\r\n" % (number, each) for each in range(1000))


async def _a_header_without_an_end() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nh: "
    while True:
        yield b"x" * 10_000


async def _a_trickled_body() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    while True:
        await asyncio.sleep(1)
        yield b" "


async def _a_trickled_head() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        await asyncio.sleep(1)
        yield b"h: x\r\n"


async def _a_body_that_grows_a_thousandfold() -> AsyncIterator[bytes]:
    packing = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packing.compress(b" " * 2**20) for _ in range(100)) + packing.flush()
    yield b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    yield packed


ENDLESS = (
    _a_million_headers,
    _a_header_without_an_end,
    _a_trickled_body,
    _a_body_that_grows_a_thousandfold,
)
EMPTY_HISTORY = {
    "status": "OK",
    "result": {
        "context": {
            "type": "ORDER",
            "campaignId": 1,
            "orderId": 1,
            "customer": {"name": "", "publicId": ""},
        },
        "messages": [],
        "paging": {},
    },
}


@asynccontextmanager
async def _endless(answer: Callable[[], AsyncIterator[bytes]]) -> AsyncIterator[_Market]:
    """A server that answers everything this way, except histories and the second message."""
    market = _Market()

    def whole(body: bytes) -> bytes:
        date = "Thu, 26 Nov 2026 10:00:00 GMT"
        return (
            f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            market.requests.append(head.split(b" ")[1].partition(b"?")[0].decode())
            sent = market.requests.count("/v2/businesses/1/chats/message")
            if head.startswith(b"POST"):
                await reader.readuntil(b"}")
            if market.requests[-1].endswith("/history"):
                writer.write(whole(msgspec.json.encode(EMPTY_HISTORY)))
            elif sent == 2:
                writer.write(whole(b'{"status":"OK"}'))
            else:
                async for piece in answer():
                    writer.write(piece)
                    await writer.drain()
                break

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, EOFError):
                await answer_all(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    market.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield market


class _Market:
    def __init__(self) -> None:
        self.requests: list[str] = []
        self.url = ""


@asynccontextmanager
async def _endless_session(
    answer: Callable[[], AsyncIterator[bytes]], *, callers: bool
) -> AsyncIterator[tuple[_Market, ChatSession]]:
    """A session of such a server, on its own aiohttp session or on a caller's without bounds."""
    boundless = aiohttp.ClientSession(
        max_headers=10**9, max_field_size=10**9, max_line_size=10**9, read_bufsize=10**9
    )
    async with (
        boundless,
        _endless(answer) as market,
        ChatSession(
            KEY,
            1,
            base_url=market.url,
            http=boundless if callers else None,
            retry=Retry(attempts=1),
        ) as session,
    ):
        yield market, session


@pytest.mark.parametrize("callers", [False, True], ids=["own session", "caller's session"])
@pytest.mark.parametrize("answer", ENDLESS)
async def test_endless_answer_is_cut_off(
    answer: Callable[[], AsyncIterator[bytes]], *, callers: bool
) -> None:
    async with _endless_session(answer, callers=callers) as (_, session):
        began = now()
        with pytest.raises(UnexpectedAnswerError):
            await session.get_chat(1)
        assert now() - began < 16


@pytest.mark.parametrize("callers", [False, True], ids=["own session", "caller's session"])
@pytest.mark.parametrize("answer", [*ENDLESS, _a_trickled_head])
async def test_a_download_without_an_end_is_bounded(
    answer: Callable[[], AsyncIterator[bytes]], *, callers: bool
) -> None:
    async with _endless_session(answer, callers=callers) as (market, session):
        began = now()
        file = File(name="a", url=f"{market.url}/a", size=1)
        async with asyncio.timeout(HOUR):
            with pytest.raises((UnexpectedAnswerError, ConnectionFailedError)):
                await session.download(file, max_bytes=2**20)
        assert now() - began < 20


@pytest.mark.parametrize(("bytes_a_second", "ends_well"), [(1050, True), (950, False)])
async def test_a_download_is_ended_if_it_is_slower_than_1024_bytes_a_second(
    bytes_a_second: int, *, ends_well: bool
) -> None:
    pieces, every = 40, 10.0  # the timeout of 15 s more allows 386 s for the slower one

    async def answer() -> AsyncIterator[bytes]:
        piece = b"x" * int(bytes_a_second * every)
        yield f"HTTP/1.1 200 OK\r\nContent-Length: {pieces * len(piece)}\r\n\r\n".encode()
        for _ in range(pieces):
            await asyncio.sleep(every)
            yield piece
        await asyncio.sleep(1)

    async with _endless_session(answer, callers=False) as (market, session):
        file = File(name="a", url=f"{market.url}/a", size=1)
        outcome = await outcome_of(session.download(file))
        if ends_well:
            assert isinstance(outcome, bytes)
            assert len(outcome) == pieces * every * bytes_a_second
        else:
            assert isinstance(outcome, ConnectionFailedError)


@pytest.mark.parametrize("answer", [*ENDLESS, _a_trickled_head])
async def test_message_with_an_endless_answer_is_settled(
    answer: Callable[[], AsyncIterator[bytes]],
) -> None:
    async with (
        _endless(answer) as market,
        ChatSession(KEY, 1, base_url=market.url) as session,
    ):
        await session.send_message(1, "one")
        paths = [path.rpartition("/")[2] for path in market.requests]
        assert paths == ["message", "history", "message"]


# Errors of ours, and addresses


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
async def test_ipv6_address_works_as_base_url() -> None:
    async with Sandbox(host="::1") as market:
        assert market.url.startswith("http://[::1]:")
        async with session_of(market) as session:
            receipt = await session.send_message(1, "one")
            market.buyer_sends_file(1, "чек.jpg", b"photo")
            assert [file async for file in session.history(1)]
    assert receipt.confirmed_by == "answer"
    assert receipt.requests == 1


@pytest.mark.parametrize(
    "base", ["http://[::1]:8080/a", "http://[::1]", "http://a.рф:80", "https://a"]
)
async def test_base_url_is_requested_as_passed(base: str) -> None:
    asked: list[str] = []

    async def note(request: aiohttp.ClientRequest, _: aiohttp.ClientHandlerType) -> Any:
        asked.append(str(request.url))
        raise aiohttp.ClientConnectionError

    async with (
        aiohttp.ClientSession(middlewares=[note]) as http,
        ChatSession(
            KEY, 1, base_url=base, http=http, retry=Retry(attempts=1), insecure_http=True
        ) as session,
    ):
        assert isinstance(await outcome_of(session.get_chat(5)), ConnectionFailedError)
    assert asked == [f"{str(URL(base)).rstrip('/')}/v2/businesses/1/chat?chatId=5"]


async def test_invalid_request_raises_at_once() -> None:
    calls = 0

    async def broken(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> Any:
        nonlocal calls
        calls += 1
        raise ValueError(f"a text of others may show {KEY}")

    async with (
        Sandbox() as market,
        aiohttp.ClientSession(middlewares=[broken]) as http,
        session_of(market, http=http) as session,
    ):
        began = now()
        for call in (session.send_message(1, "one"), session.get_chat(1)):
            error = await error_of(call)
            assert isinstance(error, ConnectionFailedError)
            assert error.sent is False
            assert error.retry_after is None
            assert KEY not in str(error)
        assert calls == 2
        assert now() - began < 1


# Proxies

VARIABLES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a proxy."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


class _Proxy:
    """An HTTP proxy: every name leads to one port of this machine."""

    def __init__(self, to: int, refuses: Sequence[int]) -> None:
        self.heads: list[str] = []
        self.port = 0
        self._to = to
        self._refuses = list(refuses)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        if self._refuses:
            writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self._refuses.pop(0))
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        if head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            method, url, rest = head.split(b" ", 2)
            far_writer.write(b" ".join((method, URL(url.decode()).raw_path_qs.encode(), rest)))
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
        writer.close()


@asynccontextmanager
async def proxy_to(url: str, refuses: Sequence[int] = ()) -> AsyncIterator[_Proxy]:
    port = URL(url).port
    assert port is not None
    proxy = _Proxy(port, refuses)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
    await asyncio.sleep(0.01)  # its connections end with those of the session


def of_market(market: Sandbox, base_url: str, **settings: Any) -> ChatSession:
    return session_of(market, base_url=base_url, insecure_http=True, **settings)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_proxy_from_the_environment_is_used(
    name: str, environment: pytest.MonkeyPatch
) -> None:
    async with Sandbox() as market, proxy_to(market.url) as proxy:
        environment.setenv(name, f"127.0.0.1:{proxy.port}")
        async with of_market(market, "http://market.test") as session:
            await session.send_message(1, "one")
            # It is read once.
            environment.setenv(name, "http://127.0.0.1:1")
            await session.send_message(1, "two")
        assert texts(market, 1) == ["one", "two"]
        assert proxy.heads[0].startswith("POST http://market.test/v2/businesses/")


async def test_proxy_argument_beats_the_environment(
    environment: pytest.MonkeyPatch,
) -> None:
    async with Sandbox() as market, proxy_to(market.url) as proxy:
        environment.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        environment.setenv("NO_PROXY", "*")
        passed = f"http://user:p%40ss@127.0.0.1:{proxy.port}"
        async with of_market(market, "http://market.test", proxy=passed) as session:
            await session.send_message(1, "one")
        assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.heads[0]


@pytest.mark.parametrize("passed", [None, "http://127.0.0.1:1"])
async def test_loopback_is_never_proxied(
    passed: str | None, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    async with Sandbox() as market, session_of(market, proxy=passed) as session:
        await session.send_message(1, "one")


async def test_key_is_sent_through_the_proxy_tunnel_only(
    certificate: Path, environment: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    environment.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # a caller's session is not for it

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"status": "OK"})

    server = web.Server(handle, access_log=None)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with (
        proxy_to(url, refuses=[502, 503, 504]) as proxy,
        aiohttp.ClientSession(connector=connector(ssl=trusting)) as http,
        ChatSession(
            KEY,
            1,
            base_url="https://market.test",
            http=http,
            proxy=f"http://user:secret@127.0.0.1:{proxy.port}",
        ) as session,
    ):
        # What the proxy refused was surely not carried out: no history is read.
        receipt = await session.send_message(1, "one")
        assert receipt.confirmed_by == "answer"
        assert receipt.requests == 4
        assert all(head.startswith("CONNECT market.test:443") for head in proxy.heads)
    listening.close()
    await server.shutdown(0)


async def test_connection_over_tls_that_was_closed_twice_can_be_given_up(certificate: Path) -> None:
    """Asyncio knows nothing of it then, and what asks for its socket fails with AttributeError."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    transport, _ = await loop.create_connection(
        asyncio.Protocol, "127.0.0.1", port, ssl=trusting, server_hostname="market.test"
    )
    discard(transport)
    transport.close()
    discard(transport)
    listening.close()


@pytest.mark.parametrize("status", [407, 403])
async def test_permanent_refusal_by_the_proxy_raises_at_once(
    status: int, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with Sandbox() as market, proxy_to(market.url, [status] * 9) as proxy:
        environment.setenv("https_proxy", f"http://user:secret@127.0.0.1:{proxy.port}")
        async with of_market(market, "https://market.test") as session:
            error = await error_of(session.send_message(1, "one"))
        assert isinstance(error, ConnectionFailedError)
        assert error.sent is False
        assert error.retry_after is None
        assert f"HTTP {status}" in str(error)
        assert len(proxy.heads) == 1
        # The session's headers would go to the proxy as well.
        assert market.api_key not in proxy.heads[0]
        assert "secret" not in str(error) + caplog.text


async def test_unreachable_proxy_error_hides_the_password(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    environment.setenv("ALL_PROXY", "http://user:secret@127.0.0.1:1")
    retry = Retry(attempts=2)
    async with Sandbox() as market, of_market(market, "https://a.test", retry=retry) as session:
        error = await error_of(session.send_message(1, "one"))
    assert "cannot connect to the proxy 127.0.0.1" in str(error)
    assert error.sent is False
    assert "secret" not in str(error) + repr(error) + caplog.text


@pytest.mark.parametrize(
    "proxy", ["socks5://u:secret@p:1", "SOCKS4A://p", "ftp://p", "http://", "http://p:x", "a b"]
)
async def test_unsupported_proxy_raises_a_clear_error(
    proxy: str, environment: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        ChatSession(KEY, 1, proxy=proxy)
    assert "secret" not in str(raised.value)
    environment.setenv("ALL_PROXY", proxy)
    with pytest.raises(InvalidArgumentError) as raised:
        async with ChatSession(KEY, 1):
            pass
    assert "ALL_PROXY" in str(raised.value)
    assert "secret" not in str(raised.value)
    environment.setenv("NO_PROXY", "yandex.ru")
    async with ChatSession(KEY, 1):
        pass


@pytest.mark.parametrize(
    ("without", "url", "proxied"),
    [
        ("yandex.ru", "https://api.yandex.ru", False),
        (".yandex.ru", "https://api.yandex.ru", False),
        ("*.yandex.ru", "https://api.yandex.ru", False),
        ("a.test, API.Yandex.ru", "https://api.yandex.ru.", False),
        ("andex.ru", "https://api.yandex.ru", True),
        ("yandex.ru:443", "https://api.yandex.ru", False),
        ("yandex.ru:8443", "https://api.yandex.ru", True),
        ("*", "https://api.yandex.ru", False),
        ("10.0.0.0/8", "https://10.1.2.3", False),
        ("10.0.0.0/8", "https://11.1.2.3", True),
        ("fd00::/8", "https://[fd00::1]", False),
        ("[fd00::1]", "https://[fd00::1]", False),
        ("[fd00::1]:443", "https://[fd00::1]:443", False),
        (".", "https://api.yandex.ru", True),
        ("", "https://api.yandex.ru", True),
    ],
)
def test_no_proxy_is_read_as_curl_reads_it(
    *, without: str, url: str, proxied: bool, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("HTTPS_PROXY", "http://p:3128")
    environment.setenv("NO_PROXY", without)
    proxy = Proxies(None, environment=True).of(URL(url))
    assert (proxy is not None) is proxied


def test_http_proxy_variable_is_ignored_under_cgi(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REQUEST_METHOD", "GET")
    environment.setenv("HTTP_PROXY", "http://p:3128")
    assert Proxies(None, environment=True).of(URL("http://a.test")) is None


# The caller's own aiohttp session


async def outcome_is_true(market: Sandbox, sending: Awaitable[Receipt], text: str = "one") -> Any:
    """Check that the outcome of a message, a receipt or a ChatError, is true."""
    async with asyncio.timeout(HOUR):
        try:
            outcome: Any = await sending
        except ChatError as error:
            outcome = error
    stored = texts(market, 1).count(text)
    if isinstance(outcome, Receipt):
        assert stored == 1
    elif outcome.sent is False:
        assert stored == 0
    else:
        assert stored <= 1
    return outcome


class _NeverResolves(aiohttp.abc.AbstractResolver):
    async def resolve(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("closes", ["session", "connector"])
async def test_calls_waiting_for_a_connection_end_when_the_aiohttp_session_closes(
    closes: str,
) -> None:
    async with (
        Sandbox(latency=5) as market,
        aiohttp.ClientSession(connector=connector(limit=1)) as http,
        session_of(market, http=http, retry=RAISE_UNKNOWN) as session,
    ):
        waiting = [
            asyncio.create_task(outcome_of(session.send_message(chat, "one")))
            for chat in range(1, 7)
        ]
        reading = asyncio.create_task(outcome_of(session.get_chat(1)))
        await asyncio.sleep(1)
        assert http.connector is not None
        await (http if closes == "session" else http.connector).close()
        first, *others = await asyncio.gather(*waiting)
        assert isinstance(first, DeliveryUnknownError)
        for error in (*others, await reading):
            assert isinstance(error, ConnectionFailedError)
            assert error.sent is False
            assert error.retry_after is None
            assert "closed" in str(error)
        assert market.messages_stored <= 1


async def test_call_in_dns_lookup_ends_when_the_aiohttp_session_closes() -> None:
    async with (
        Sandbox() as market,
        aiohttp.ClientSession(connector=connector(resolver=_NeverResolves())) as http,
        of_market(market, "http://market.test", http=http) as session,
    ):
        calls = [asyncio.create_task(outcome_of(session.get_chat(n))) for n in (1, 2)]
        await asyncio.sleep(1)
        await http.close()
        for error in await asyncio.gather(*calls):
            assert isinstance(error, ConnectionFailedError)
            assert "closed" in str(error)


async def test_cancelled_call_raises_cancelled_error_when_the_aiohttp_session_closes() -> None:
    async with (
        Sandbox(latency=5) as market,
        aiohttp.ClientSession() as http,
        session_of(market, http=http) as session,
    ):
        call = asyncio.create_task(session.get_chat(1))
        await asyncio.sleep(1)
        call.cancel()
        await http.close()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_closing_the_aiohttp_session_gives_no_wrong_outcome() -> None:
    async with (
        Sandbox(latency=5) as market,
        aiohttp.ClientSession() as http,
        session_of(market, http=http) as session,
    ):
        sending = asyncio.create_task(outcome_is_true(market, session.send_message(1, "one")))
        reading = asyncio.create_task(outcome_of(session.get_chat(1)))
        await asyncio.sleep(1)
        await http.close()
        assert isinstance(await sending, DeliveryUnknownError)
        read = await reading
        assert isinstance(read, ConnectionFailedError)
        assert "closed" in str(read)


async def _refuse(_: aiohttp.ClientResponse) -> None:
    raise ValueError


@pytest.mark.parametrize(
    "settings",
    [
        {"raise_for_status": True},
        {"raise_for_status": _refuse},
        {"timeout": aiohttp.ClientTimeout(0.1, 0.1, 0.1, 0.1)},
        {"read_bufsize": 1},
        {"auto_decompress": False},
        {"cookies": {"a": "b"}},
        {"headers": {"Api-Key": "another", "Content-Type": "text/plain"}},
        {"base_url": "http://127.0.0.1:1/"},
        {"version": aiohttp.HttpVersion10},
        {"skip_auto_headers": ["Content-Type", "User-Agent"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
async def test_settings_of_the_callers_aiohttp_session_change_no_verdict(
    settings: dict[str, Any],
) -> None:
    async with (
        Sandbox(latency=1, chats=[1]) as market,
        aiohttp.ClientSession(**settings) as http,
        session_of(market, http=http) as session,
    ):
        receipt = await session.send_message(1, "one")
        assert (receipt.requests, receipt.confirmed_by) == (1, "answer")
        assert isinstance(await outcome_of(session.get_chat(2)), NotFoundError)
        assert texts(market, 1) == ["one"]


@pytest.mark.parametrize("settings", [{"limit": 1}, {"limit_per_host": 1}, {"force_close": True}])
async def test_a_connector_with_few_or_short_lived_connections(settings: dict[str, Any]) -> None:
    async with (
        Sandbox(latency=9) as market,
        aiohttp.ClientSession(connector=connector(**settings)) as http,
        session_of(market, http=http) as session,
    ):
        sends = [session.send_message(chat, "one") for chat in range(1, 7)]
        receipts = await asyncio.gather(*sends)
        assert len(receipts) == market.messages_stored == 6


HOOKS = [name for name in dir(aiohttp.TraceConfig) if name.startswith("on_")]


@pytest.mark.parametrize("error", [ValueError, OSError, asyncio.CancelledError])
@pytest.mark.parametrize("hook", HOOKS)
async def test_raising_trace_hook_gives_no_wrong_outcome(
    hook: str, error: type[BaseException]
) -> None:
    async def broken(*_: Any) -> None:
        raise error

    tracing = aiohttp.TraceConfig()
    getattr(tracing, hook).append(broken)
    async with (
        Sandbox() as market,
        aiohttp.ClientSession(trace_configs=[tracing]) as http,
        session_of(market, http=http, retry=Retry(attempts=2)) as session,
    ):
        await outcome_is_true(market, session.send_message(1, "one"))
        await outcome_is_true(market, session.send_message(1, "two"), "two")
        assert not isinstance(await outcome_of(session.get_chat(1)), asyncio.CancelledError)


async def test_endless_trace_hook_is_ended_by_the_timeout() -> None:
    async def waits(*_: Any) -> None:
        await asyncio.Event().wait()

    for hook in ("on_request_start", "on_connection_create_start", "on_request_end"):
        tracing = aiohttp.TraceConfig()
        getattr(tracing, hook).append(waits)
        async with (
            Sandbox() as market,
            aiohttp.ClientSession(trace_configs=[tracing]) as http,
            session_of(market, http=http, retry=Retry(attempts=1)) as session,
        ):
            await outcome_is_true(market, session.send_message(1, "one"))


@pytest.mark.parametrize("error", [ValueError, OSError, asyncio.CancelledError, TimeoutError])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_raising_middleware_gives_no_wrong_outcome(
    when: str, error: type[BaseException]
) -> None:
    async def broken(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if when == "after":
            await handler(request)
        raise error

    async with (
        Sandbox() as market,
        aiohttp.ClientSession(middlewares=[broken]) as http,
        session_of(market, http=http, retry=Retry(attempts=2)) as session,
    ):
        outcome = await outcome_is_true(market, session.send_message(1, "one"))
        assert isinstance(outcome, DeliveryUnknownError if when == "after" else ChatError)
        assert isinstance(await outcome_of(session.get_chat(1)), ChatError)


async def test_middleware_that_answers_itself_sends_no_request() -> None:
    kept: list[aiohttp.ClientResponse] = []

    async def caching(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if not kept:
            kept.append(await handler(request))
        return kept[0]

    async with (
        Sandbox() as market,
        aiohttp.ClientSession(middlewares=[caching]) as http,
        session_of(market, http=http, retry=Retry(attempts=2)) as session,
    ):
        assert isinstance(await outcome_is_true(market, session.send_message(1, "one")), Receipt)
        error = await outcome_is_true(market, session.send_message(1, "two"), "two")
        assert isinstance(error, ConnectionFailedError)
