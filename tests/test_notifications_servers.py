"""The receiver in real frameworks, under real servers. The programs are those of the docs."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.helpers import http_server
from tests.test_notifications import MARKET, MESSAGE, PING, Handler, body_of, receiver_of
from yamarket_chat.notifications import Receiver, parse
from yamarket_chat.notifications import asgi as asgi_module
from yamarket_chat.notifications import web as web_module

pytestmark = pytest.mark.real_time

PAGE = (Path(__file__).parents[1] / "docs" / "notifications.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"(?<!tests -->\n)```python\n(.*?)```", PAGE, re.S)
PROGRAMS = re.findall(r"<!-- runs in the tests -->\n```python\n(.*?)```", PAGE, re.S)
FRAMEWORKS = ("aiohttp", "fastapi", "starlette", "litestar", "django", "alone")
LOOPBACK = ["127.0.0.0/8"]


def program_of(framework: str, receiver: Receiver) -> Any:
    """Run the program of the docs, and return its application."""
    if framework == "django":
        from django.conf import settings

        if not settings.configured:
            settings.configure(
                SECRET_KEY="x", ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None, ROOT_URLCONF=__name__
            )
    scope: dict[str, Any] = {"receiver": receiver, "__name__": "my_shop"}
    exec(PROGRAMS[FRAMEWORKS.index(framework)], scope)  # noqa: S102 - our own docs
    return scope["app"]


urlpatterns: list[Any] = []  # Django's


def test_docs_have_a_program_for_each_framework() -> None:
    assert len(PROGRAMS) == len(FRAMEWORKS)
    for name, program in zip(FRAMEWORKS[:-1], PROGRAMS, strict=False):
        assert re.search(rf"from {name}[. ]", program)


async def test_other_code_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"__name__": "my_shop"}
    for snippet in SNIPPETS:
        exec(snippet, scope)  # noqa: S102 - our own docs
    receiver: Receiver = scope["receiver"]
    headers = {"X-Forwarded-For": MARKET}
    assert (await receiver.reply(MESSAGE, "10.1.2.3", headers)).status == 200
    assert capsys.readouterr().out == "look at chat 17\n"


@asynccontextmanager
async def serving(app: Any, uds: str | None = None) -> AsyncIterator[str]:
    """The address of a server that runs an application."""
    if isinstance(app, web.Application):
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.UnixSite(runner, uds) if uds else web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield "http://localhost" if uds else f"http://127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()
        return
    import uvicorn

    config = uvicorn.Config(app, port=0, uds=uds, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield "http://localhost" if uds else f"http://127.0.0.1:{port_of(server)}"
    server.should_exit = True
    await task


def port_of(server: Any) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


Post = Callable[..., Awaitable[int]]


def posting(client: aiohttp.ClientSession, url: str) -> Post:
    async def post(body: Any, **settings: Any) -> int:
        async with client.post(url, data=body, allow_redirects=False, **settings) as response:
            content = await response.json()
            assert ("error" in content) is (response.status != 200)
            return response.status

    return post


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_framework_answers_a_post_to_the_bare_path(framework: str) -> None:
    handler = Handler()
    app = program_of(framework, receiver_of(handler, networks=LOOPBACK))
    async with serving(app) as url, aiohttp.ClientSession() as client:
        post = posting(client, f"{url}/notification")
        assert await post(PING) == 200
        assert await post(MESSAGE) == 200
        assert handler.ended == [parse(MESSAGE)]
        assert await post(b"{") == 400
        handler.error = RuntimeError("secret")
        assert await post(MESSAGE) == 500
        handler.error = None
        assert await post(b" " * 65_537) == 413
        assert await post(chunks(2000)) == 413
        assert await post(chunks(3)) == 400
        assert await post(MESSAGE) == 200
        assert len(handler.events) == 3


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 1000


@pytest.mark.parametrize("framework", ["aiohttp", "alone"])
async def test_request_from_elsewhere_is_answered_before_its_body_comes(framework: str) -> None:
    handler = Handler()
    app = program_of(framework, receiver_of(handler, trusted_proxies=["192.0.2.0/24"]))
    async with serving(app) as url:
        for headers in ("", f"X-Forwarded-For: {MARKET}\r\n", f"Forwarded: for={MARKET}\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[-1]))
            writer.write(
                b"POST /notification HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
                + headers.encode()
                + b"\r\n{"
            )
            answer = await asyncio.wait_for(reader.read(), 10)  # up to the end of the connection
            if framework == "alone" and "X-Forwarded" in headers:
                # uvicorn trusts this header from 127.0.0.1, so the address is the Market's.
                assert answer.startswith(b"HTTP/1.1 413")
            else:
                assert answer.startswith(b"HTTP/1.1 403")
            assert b'{"error":{"type":' in answer
            writer.close()
    assert handler.events == []


@pytest.mark.parametrize("framework", ["aiohttp", "alone"])
async def test_endless_body_is_answered_413_before_its_end(framework: str) -> None:
    handler = Handler()
    app = program_of(framework, receiver_of(handler, networks=LOOPBACK))
    async with serving(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[-1]))
        writer.write(
            b"POST /notification HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(70):
            writer.write(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 413")
        writer.close()
    assert handler.events == []


@pytest.mark.parametrize("framework", ["aiohttp", "alone"])
async def test_body_that_comes_too_slowly_is_given_up(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (asgi_module, web_module):
        monkeypatch.setattr(module, "READ_WITHIN", 0.2)
    handler = Handler()
    app = program_of(framework, receiver_of(handler, networks=LOOPBACK))
    async with serving(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[-1]))
        writer.write(
            b"POST /notification HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\n{\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 503")
        writer.close()
        # A client that goes away in the middle of its body harms nobody.
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[-1]))
        writer.write(b"POST /notification HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        await asyncio.sleep(0.05)
        writer.transport.abort()
        async with aiohttp.ClientSession() as client:
            assert await posting(client, f"{url}/notification")(PING) == 200
    assert handler.events == []


@pytest.mark.parametrize("framework", ["aiohttp", "alone"])
async def test_unix_socket_is_let_in_only_if_it_is_trusted(framework: str, tmp_path: Path) -> None:
    for trusted, status in (((), 403), (("unix:",), 200)):
        path = str(tmp_path / f"socket{status}")
        app = program_of(framework, receiver_of(trusted_proxies=trusted))
        connector = aiohttp.UnixConnector(path)
        async with serving(app, path), aiohttp.ClientSession(connector=connector) as client:
            post = posting(client, "http://localhost/notification")
            assert await post(PING, headers={"X-Forwarded-For": MARKET}) == status
            assert await post(PING, headers={"X-Forwarded-For": "192.0.2.1"}) == 403
            assert await post(PING) == 403


@pytest.mark.parametrize("framework", ["aiohttp", "fastapi", "alone"])
async def test_server_that_shuts_down_lets_handlers_end(framework: str) -> None:
    handler = Handler(takes=0.3)
    receiver = receiver_of(handler, networks=LOOPBACK)
    async with aiohttp.ClientSession() as client:
        async with serving(program_of(framework, receiver)) as url:
            begun = asyncio.ensure_future(posting(client, f"{url}/notification")(MESSAGE))
            while not handler.events:
                await asyncio.sleep(0.01)
        assert await begun == 200
    assert len(handler.ended) == 1
    assert (await receiver.reply(PING, "127.0.0.1")).status == 503


@pytest.mark.parametrize("server", ["aiohttp", "uvicorn"])
async def test_what_is_no_post_is_answered_400_and_logged_once_a_minute(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A redirect makes a GET of a POST: each event would be lost without a word."""
    receiver = receiver_of(networks=LOOPBACK)
    with caplog.at_level(logging.WARNING, "yamarket_chat"):
        async with (
            http_server(receiver.aiohttp) if server == "aiohttp" else serving(receiver.asgi) as url,
            aiohttp.ClientSession() as client,
        ):
            for method in ("GET", "PUT", "DELETE", "OPTIONS"):
                async with client.request(method, f"{url}/") as response:
                    assert response.status == 400
                    assert (await response.json())["error"]["type"] == "WRONG_EVENT_FORMAT"
    [line] = [record.getMessage() for record in caplog.records if record.name == "yamarket_chat"]
    assert line.startswith("1 request(s) answered 400, the last with the method GET: ")


async def test_body_that_cannot_be_decompressed_is_answered_400_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = receiver_of(networks=LOOPBACK)
    async with http_server(receiver.aiohttp) as url, aiohttp.ClientSession() as client:
        for _ in range(2):
            headers = {"Content-Encoding": "gzip"}
            async with client.post(url, data=b"abc", headers=headers) as response:
                assert response.status == 400
                assert (await response.json())["error"]["type"] == "WRONG_EVENT_FORMAT"
    [line] = [record.getMessage() for record in caplog.records if record.name == "yamarket_chat"]
    assert line.startswith("1 request(s) answered 400, the body of the last cannot be read: ")


async def test_application_alone_refuses_a_websocket() -> None:
    receiver = receiver_of(networks=LOOPBACK)
    async with serving(receiver.asgi) as url, aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(url)
        assert refused.value.status == 403


async def test_receiver_runs_under_hypercorn() -> None:
    hypercorn = pytest.importorskip("hypercorn.asyncio")
    from hypercorn.config import Config

    handler = Handler()
    end = asyncio.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.errorlog = None
    app = receiver_of(handler, networks=LOOPBACK).asgi
    task = asyncio.create_task(hypercorn.serve(app, config, shutdown_trigger=end.wait))
    async with aiohttp.ClientSession() as client:
        post = posting(client, f"http://127.0.0.1:{port}/notification")
        assert await post(PING) == 200
        assert await post(MESSAGE) == 200
        assert await post(chunks(2000)) == 413
    end.set()
    await task
    assert handler.ended == [parse(MESSAGE)]


@pytest.mark.parametrize(("version", "hangs_up"), [("1.1", True), ("2", False)])
async def test_only_http_1_has_a_header_that_closes_the_connection(
    version: str, hangs_up: bool
) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is not read")

    scope = {
        "type": "http",
        "method": "POST",
        "http_version": version,
        "client": ("192.0.2.1", 443),
        "headers": [],
    }
    await receiver_of().asgi(scope, receive, send)
    assert sent[0]["status"] == 403
    assert ((b"connection", b"close") in sent[0]["headers"]) is hangs_up


async def test_application_that_is_started_again_answers_again() -> None:
    """A test suite opens a test client for the same application in each test."""
    receiver = receiver_of()
    for _ in range(2):
        told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = asyncio.create_task(receiver.asgi({"type": "lifespan"}, told.get, said.put))
        for turn, status in (("startup", 200), ("shutdown", 503)):
            await told.put({"type": f"lifespan.{turn}"})
            assert await said.get() == {"type": f"lifespan.{turn}.complete"}
            assert (await receiver.reply(PING, MARKET)).status == status
        await task


async def test_length_that_is_no_number_harms_nobody() -> None:
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await told.put({"type": "http.request", "body": PING})
    scope = {
        "type": "http",
        "method": "POST",
        "client": (MARKET, 443),
        "headers": [(b"content-length", "²".encode("latin-1"))],  # it is a digit, says Python
    }
    await receiver_of().asgi(scope, told.get, said.put)
    assert (await said.get())["status"] == 200


async def test_large_notification_in_many_pieces_is_read() -> None:
    handler = Handler()
    body = body_of(more="x" * 60_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7000):
            yield body[start : start + 7000]

    for framework in ("aiohttp", "alone"):
        app = program_of(framework, receiver_of(handler, networks=LOOPBACK))
        async with serving(app) as url, aiohttp.ClientSession() as client:
            assert await posting(client, f"{url}/notification")(pieces()) == 200
    assert handler.events == [parse(body)] * 2
