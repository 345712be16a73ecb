"""What is private in aiohttp, and touched by `_http/bodies.py` and `sandbox/aiohttp_clock.py`.

If one of these fails after an update of aiohttp, look at that file: it says what each is for.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import payload

from tests.helpers import http_server, outcome_of
from yamarket_chat._http import bodies
from yamarket_chat._http.bodies import JsonBody
from yamarket_chat.sandbox import VirtualLoop, aiohttp_clock

PACKAGE = Path(__file__).parents[1] / "yamarket_chat"
TOUCHED = ("_consumed", "_value", "_size", "_headers", "_encoding", "_filename", "_autoclose")


def private_attributes(source: str, names: set[str]) -> set[str]:
    """The names of a set that a source touches on any object."""
    return {name for name in re.findall(r"[\w)\]]\.(_[a-z]\w*)", source) if name in names}


def aiohttps_own() -> set[str]:
    """Each private attribute of the objects of aiohttp that a client has to do with."""
    classes = (
        *(payload.Payload, payload.BytesPayload, aiohttp.MultipartWriter),
        *(aiohttp.ClientSession, aiohttp.ClientResponse, aiohttp.StreamReader),
        *(aiohttp.TCPConnector, aiohttp.BaseConnector),
    )
    names: set[str] = set()
    for one in classes:
        names |= set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(one)))
    return names


def test_a_module_of_aiohttp_is_changed_in_one_file_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert path.name == "aiohttp_clock.py" or not re.search(
            r"from aiohttp import .*\b(connector|helpers|client)\b|aiohttp\.connector\.", source
        ), path


def test_no_other_file_touches_a_private_attribute_of_aiohttp() -> None:
    own = aiohttps_own()
    assert {"_consumed", "_size", "_connector"} <= own  # or it would find nothing
    # A name of ours may be the same: `self._closed`. So only attributes of other objects count.
    for path in (PACKAGE / "_http").glob("*.py"):
        source = re.sub(r"self\._\w+", "", path.read_text(encoding="utf-8"))
        found = private_attributes(source, own)
        assert not found or path.name == "bodies.py", (path, found)
    for path in (PACKAGE / "_http").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "payload.Payload" in source or "MultipartWriter" in source:
            touched = private_attributes(source, set(TOUCHED))
            assert not touched or path.name == "bodies.py", (path, touched)


@pytest.mark.parametrize("name", TOUCHED)
def test_a_payload_has_the_attribute(name: str) -> None:
    assert hasattr(payload.BytesPayload(b"x"), name)


def test_a_body_shows_what_its_attributes_say() -> None:
    """aiohttp reads them by its public properties."""
    body = JsonBody(b'{"a": 1}')
    assert body.size == 8
    assert body.headers["Content-Type"] == body.content_type == "application/json"
    assert body.encoding is None
    assert body.filename is None
    assert body.autoclose is True
    assert body.consumed is False
    assert body.decode() == '{"a": 1}'


async def test_a_protocol_takes_an_attribute_of_ours() -> None:
    protocol = aiohttp.client_proto.ResponseHandler(asyncio.get_running_loop())
    assert protocol.should_close is False
    setattr(protocol, bodies._IS_EMPTY, bool)


async def test_what_is_consumed_is_not_repeated_by_aiohttp() -> None:
    """A GET on a kept connection that breaks: aiohttp repeats it, unless its body is consumed."""
    arrivals = 0

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        nonlocal arrivals
        arrivals += 1
        await request.read()
        if arrivals == 2:
            assert request.transport is not None
            request.transport.abort()
        return aiohttp.web.Response(text="{}")

    async with http_server(handle) as url, aiohttp.ClientSession() as http:
        for _ in range(2):
            await outcome_of(_get(http, url, JsonBody(b"{}")))
        assert arrivals == 2
        arrivals = 0
        for _ in range(2):
            await outcome_of(_get(http, url, payload.BytesPayload(b"{}")))
        assert arrivals == 3  # so the guard is needed


async def _get(http: aiohttp.ClientSession, url: str, body: payload.Payload) -> None:
    async with http.get(url, data=body) as response:
        await response.read()


def test_a_connector_asks_its_module_for_the_time_and_for_sets() -> None:
    """`aiohttp_clock` puts others there. A new name would leave the real ones in use."""
    source = inspect.getsource(aiohttp.connector)
    assert "from time import monotonic" in source
    assert len(re.findall(r"\bmonotonic\(\)", source)) == 5
    assert not re.search(r"\b(time|perf_counter|monotonic_ns)\(", source)
    assert "self._acquired: set[ResponseHandler] = set()" in source


def test_other_loops_have_the_time_and_the_sets_that_they_had() -> None:
    aiohttp_clock.install()
    before = time.monotonic()
    assert before <= aiohttp.connector.monotonic() <= time.monotonic()  # type: ignore[attr-defined]

    async def main() -> bool:
        before = time.monotonic()
        return before <= aiohttp_clock.monotonic() <= time.monotonic()

    with asyncio.Runner() as runner:
        assert runner.run(main())


def test_a_connector_keeps_its_connections_in_order() -> None:
    async def main() -> None:
        connector = aiohttp.TCPConnector()
        acquired: Any = connector._acquired
        assert isinstance(acquired, aiohttp_clock.OrderedSet)
        for number in (5, 3, 9, 1):
            acquired.add(number)
        acquired.remove(3)
        acquired.discard(3)
        acquired.discard(5)
        assert list(acquired) == [9, 1]
        acquired.clear()
        await connector.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
