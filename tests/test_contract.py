"""Client and sandbox conform to the description of the Market's API.

A recorder between the two keeps every request and every answer as they went over the wire, and
openapi-core checks them. It is made stricter than the description is: a field or a parameter that
the description does not name is a fault of ours.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import openapi_core
import pytest
from aiohttp import web
from openapi_core.datatypes import RequestParameters
from werkzeug.datastructures import Headers, ImmutableMultiDict

from tests.helpers import error_of, http_server
from yamarket_chat import (
    ApiError,
    ChatSession,
    ChatStatus,
    ChatType,
    ContextType,
    Rate,
    Retry,
)
from yamarket_chat._delivery import reading
from yamarket_chat._http import operations
from yamarket_chat.limits import Limits
from yamarket_chat.sandbox import Fault, Sandbox

MARKET = "https://api.partner.market.yandex.ru"
MIB = 2**20


# The check


class Request:
    """One request as openapi-core wants to see it."""

    def __init__(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        self.host_url = MARKET
        self.path, _, query = target.partition("?")
        self.method = method.lower()
        self.body = body
        self.content_type = headers.get("Content-Type", "")
        self.query = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(self.query), header=headers, cookie=ImmutableMultiDict()
        )

    def __repr__(self) -> str:
        return f"{self.method.upper()} {self.path} {self.query} {self.body[:200]!r}"


class Answer:
    """One answer as openapi-core wants to see it."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status_code = status
        self.headers = headers
        self.content_type = headers.get("Content-Type", "")
        self.data = body

    def __repr__(self) -> str:
        return f"{self.status_code} {self.data[:300]!r}"


def schemas_in(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        if isinstance(tree.get("properties"), dict):
            yield tree
        for part in tree.values():
            yield from schemas_in(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from schemas_in(part)


def strict(description: Any) -> Any:
    """Return the description with all unnamed fields and parameters forbidden."""
    description = copy.deepcopy(description)
    for schema in schemas_in(description["components"]["schemas"]):
        schema["additionalProperties"] = False
    return description


class Contract:
    """Checks requests and answers against the description."""

    def __init__(self, description: Any) -> None:
        description = strict(description)
        self._openapi = openapi_core.OpenAPI.from_dict(description)
        parameters = description["components"]["parameters"]
        self._documented = {
            operation["operationId"]: {
                documented["name"]
                for documented in (
                    parameters[row["$ref"].rpartition("/")[2]]
                    for row in operation.get("parameters", ())
                )
                if documented["in"] == "query"
            }
            for path in description["paths"].values()
            for operation in path.values()
        }
        self._with_body = {
            operation["operationId"]
            for path in description["paths"].values()
            for operation in path.values()
            if "requestBody" in operation
        }

    def check_request(self, request: Request, operation_id: str) -> None:
        self._openapi.validate_request(request)
        names = [name for name, _ in request.query]
        unknown = set(names) - self._documented[operation_id]
        assert not unknown, f"{request!r} has parameters that are not documented: {unknown}"
        assert len(set(names)) == len(names), f"{request!r} says something twice"
        assert bool(request.body) is (operation_id in self._with_body), f"{request!r}: the body"

    def check_answer(self, request: Request, answer: Answer) -> None:
        self._openapi.validate_response(request, answer)

    def operation_of(self, request: Request) -> str:
        for operation_id, pattern in PATTERNS.items():
            if (request.method, request.path) == pattern:
                return operation_id
        raise AssertionError(f"{request!r} goes to no documented operation")


_CHATS = "/v2/businesses/12345/chats"
PATTERNS = {
    "sendMessageToChat": ("post", f"{_CHATS}/message"),
    "sendFileToChat": ("post", f"{_CHATS}/file/send"),
    "createChat": ("post", f"{_CHATS}/new"),
    "getChats": ("post", _CHATS),
    "getChat": ("get", "/v2/businesses/12345/chat"),
    "getChatHistory": ("post", f"{_CHATS}/history"),
    "getChatMessage": ("get", f"{_CHATS}/message"),
    "getCampaigns": ("get", "/v2/campaigns"),
    "getAuthTokenInfo": ("post", "/v2/auth/token"),
}


@pytest.fixture(scope="module")
def contract(description: Any) -> Contract:
    return Contract(description)


# The recorder


class Recorder:
    """A proxy in front of the sandbox that records all requests and answers."""

    def __init__(self, market: Sandbox) -> None:
        self._market = market
        self.seen: list[tuple[Request, Answer | None]] = []
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("Host", "Content-Length", "Transfer-Encoding")
        }
        asked = Request(request.method, request.raw_path, Headers(list(headers.items())), body)
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.request(
                    request.method,
                    self._market.url + request.raw_path,
                    data=io.BytesIO(body) if body else None,
                    headers=headers,
                    allow_redirects=False,
                    skip_auto_headers=("Content-Type",),
                ) as answer,
            ):
                content = await answer.read()
        except aiohttp.ClientError:
            self.seen.append((asked, None))
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        told = Answer(answer.status, Headers(list(answer.headers.items())), content)
        self.seen.append((asked, told))
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("Content-Length", "Server")
        }
        return web.Response(status=answer.status, body=content, headers=kept)

    def check(self, contract: Contract) -> dict[str, set[int]]:
        """Check all recorded requests and answers. Return the statuses of each operation."""
        statuses: dict[str, set[int]] = {}
        for request, answer in self.seen:
            operation_id = contract.operation_of(request)
            contract.check_request(request, operation_id)
            statuses.setdefault(operation_id, set())
            if answer is not None:
                contract.check_answer(request, answer)
                statuses[operation_id].add(answer.status_code)
        return statuses


@asynccontextmanager
async def recorded(market: Sandbox) -> AsyncIterator[Recorder]:
    recorder = Recorder(market)
    async with http_server(recorder.handle) as url:
        recorder.url = url
        yield recorder


def session_to(recorder: Recorder, market: Sandbox, **settings: Any) -> ChatSession:
    return ChatSession(market.api_key, market.business_id, base_url=recorder.url, **settings)


# What a program does


async def work(market: Sandbox, chat: ChatSession, folder: Path) -> None:
    """Call all nine operations with all their parameters."""
    await chat.send_message(17, 'Ваш заказ в пути 🚚\n\t«Завтра», с 10 до 18 "\\/\x7f\u2028')
    await chat.send_message(17, "я" * 4096)
    await chat.send_message(2**63 - 1, "x")

    await chat.send_file(17, b"%PDF", filename="накладная № 5.pdf")
    await chat.send_file(17, bytes(5 * MIB), filename="a\"b; c=%22'.bin")
    path = folder / "ярлык заказа.png"
    path.write_bytes(b"\r\n--\x00" * 100)
    await chat.send_file(17, path)
    await chat.send_file(17, io.BytesIO(b"photo"), filename="фото.jpg")

    order = await chat.create_chat(order_id=55)
    assert order == await chat.create_chat(order_id=55)
    await chat.create_chat(return_id=2**63 - 1)

    for number in range(45):
        market.add_chat(order_id=1000 + number)
    assert len([row async for row in chat.chats()]) == 49
    filters: list[dict[str, Any]] = [
        {"statuses": list(ChatStatus)},
        {"statuses": [ChatStatus.NEW, "NEW", ChatStatus.WAITING_FOR_CUSTOMER]},
        {"types": [*ChatType, *ChatType]},
        {"context_types": list(ContextType)},
        {"order_ids": [55, 55, 1001], "return_ids": (2**63 - 1,)},
        {"order_ids": range(1000, 1040), "context_types": {"ORDER"}, "types": ["CHAT"]},
    ]
    for wanted in filters:
        assert [row async for row in chat.chats(**wanted)]

    for number in range(230):
        market.buyer_says(18, f"Вопрос {number}")
    market.buyer_sends_file(18, "чек.jpg", b"photo")
    messages = [message async for message in chat.history(18)]
    assert len(messages) == 231
    [photo] = messages[-1].payload or ()
    assert (photo.name, photo.size) == ("чек.jpg", 5)
    tail = chat.history(18, message_id_from=messages[200].message_id)
    assert len([message async for message in tail]) == 31
    assert await chat.get_message(18, messages[230].message_id) == messages[230]

    row = await chat.get_chat(order)
    assert row.context.order_id == 55
    market.set_chat(order, status="WAITING_FOR_ARBITER", chat_type="ARBITRAGE")
    assert (await chat.get_chat(order)).type is ChatType.ARBITRAGE

    assert len([shop async for shop in chat.campaigns()]) == 230
    assert (await chat.token()).auth_scopes


async def test_all_requests_and_responses_match_the_description(
    contract: Contract, tmp_path: Path
) -> None:
    async with (
        Sandbox(campaigns=230) as market,
        recorded(market) as recorder,
        session_to(recorder, market) as chat,
    ):
        await work(market, chat, tmp_path)
    statuses = recorder.check(contract)
    assert statuses == {name: {200} for name in PATTERNS}
    assert len(recorder.seen) == len(market.arrivals) >= 39


@pytest.mark.parametrize("when", ["before", "after"])
async def test_settling_requests_match_the_description(when: Any, contract: Contract) -> None:
    faults = {2: Fault("reset", when=when), 3: Fault("status", status=500, when=when)}
    async with (
        Sandbox(faults=faults) as market,
        recorded(market) as recorder,
        session_to(recorder, market) as chat,
    ):
        await chat.get_chat(17)
        await chat.send_message(17, "Здравствуйте")
        await chat.send_file(17, b"%PDF", filename="накладная.pdf")
    statuses = recorder.check(contract)
    assert statuses["getChatHistory"] == {200, 500}
    assert [row.text for row in market.messages(17)] == ["Здравствуйте", None]


async def test_each_request_has_the_key_and_the_integration_header(
    contract: Contract, tmp_path: Path
) -> None:
    async with (
        Sandbox(campaigns=101) as market,
        recorded(market) as recorder,
        session_to(recorder, market, integration="shop/1.0") as chat,
    ):
        await chat.send_message(17, "x")
        await chat.send_file(17, b"x", filename="x")
        [_ async for _ in chat.campaigns()]
        await chat.token()
    for request, _ in recorder.seen:
        assert request.parameters.header["Api-Key"] == market.api_key
        assert request.parameters.header["X-Market-Integration"] == "shop/1.0"
        assert request.parameters.header["Accept"] == "application/json"
        assert "Authorization" not in request.parameters.header


# Errors

CALLS: dict[str, Callable[[ChatSession], Awaitable[object]]] = {
    "sendMessageToChat": lambda chat: chat.send_message(17, "Здравствуйте"),
    "sendFileToChat": lambda chat: chat.send_file(17, b"x", filename="x.txt"),
    "createChat": lambda chat: chat.create_chat(order_id=55),
    "getChats": lambda chat: first_of(chat.chats().pages()),
    "getChat": lambda chat: chat.get_chat(17),
    "getChatHistory": lambda chat: first_of(chat.history(17).pages()),
    "getChatMessage": lambda chat: chat.get_message(17, 3),
    "getCampaigns": lambda chat: first_of(chat.campaigns().pages()),
    "getAuthTokenInfo": lambda chat: chat.token(),
}


async def first_of(pages: AsyncIterator[Any]) -> Any:
    return await anext(pages)


ONCE = Retry(attempts=1)


def breaks(market: Sandbox, how: str) -> None:
    """Make the sandbox refuse."""
    match how:
        case "revoked":
            market.revoked = True
        case "inactive":
            market.inactive = True
        case "locked":
            market.locked = True
        case "scopes":
            market.scopes = ("PRICING",)
        case _:
            market.faults = lambda request: Fault("status", status=int(how))


REFUSALS = {
    "400": 400,
    "revoked": 401,
    "inactive": 403,
    "scopes": 403,
    "404": 404,
    "405": 405,
    "415": 415,
    "locked": 423,
    "500": 500,
    "503": 503,
}
ANY_KEY_MAY = {"getCampaigns", "getAuthTokenInfo"}


@pytest.mark.parametrize(
    ("operation_id", "how"),
    [
        (operation_id, how)
        for operation_id in CALLS
        for how in REFUSALS
        if not (how == "scopes" and operation_id in ANY_KEY_MAY)
    ],
)
async def test_sandbox_errors_match_the_description(
    operation_id: str, how: str, contract: Contract
) -> None:
    status = REFUSALS[how]
    async with Sandbox() as market, recorded(market) as recorder:
        breaks(market, how)
        async with session_to(recorder, market, retry=ONCE) as chat:
            error = await error_of(CALLS[operation_id](chat))
    # A message of unknown outcome is looked up, and the history fails as well.
    statuses = recorder.check(contract)
    assert statuses.pop(operation_id) == {status}
    assert set(statuses) <= {"getChatHistory"}
    if not statuses:
        assert isinstance(error, ApiError)
        assert error.status == status


@pytest.mark.parametrize("operation_id", CALLS)
async def test_sandbox_420_matches_the_description(operation_id: str, contract: Contract) -> None:
    for kind in ("rate_limit", "parallel_limit"):
        fault = Fault(kind, delay=10.0 if kind == "rate_limit" else 0.0)
        async with Sandbox(faults={1: fault}) as market, recorded(market) as recorder:
            market.buyer_says(17, "1")
            market.buyer_says(17, "2")
            market.buyer_says(17, "3")
            async with session_to(recorder, market) as chat:
                await CALLS[operation_id](chat)
        assert recorder.check(contract) == {operation_id: {420, 200}}


# What cannot be wrong with an operation, because it has no business id, nothing that may be
# missing, or no body.
NEVER = {
    ("getAuthTokenInfo", 400),
    *((operation_id, 403) for operation_id in ANY_KEY_MAY),
    *((operation_id, 404) for operation_id in (*ANY_KEY_MAY, "getChats")),
    *((name, 415) for name in (*ANY_KEY_MAY, "getChat", "getChatMessage")),
}


@pytest.mark.parametrize(
    ("operation_id", "status"),
    [
        (operation_id, status)
        for operation_id in CALLS
        for status in (400, 401, 403, 404, 405, 415, 420)
        if (operation_id, status) not in NEVER
    ],
)
async def test_sandbox_refusals_of_wrong_requests_match_the_description(
    operation_id: str, status: int, contract: Contract
) -> None:
    """The client never sends these requests: wrong data, a wrong method, a wrong content type."""
    method, path = PATTERNS[operation_id]
    queries = {"getChat": "?chatId=17", "getChatMessage": "?chatId=17&messageId=3"}
    queries |= dict.fromkeys(
        ("sendMessageToChat", "sendFileToChat", "getChatHistory"), "?chatId=17"
    )
    query = queries.get(operation_id, "")
    headers = {"Api-Key": "ACMA:sandbox:key"}
    bodies = {"sendMessageToChat": b'{"message":"x"}', "createChat": b'{"orderId":5}'}
    bodies |= {"getChats": b"{}", "getChatHistory": b"{}", "sendFileToChat": FORM}
    body = bodies.get(operation_id)
    if body is not None:
        headers["Content-Type"] = "application/json" if body is not FORM else FORM_TYPE
    settings: dict[str, Any] = {}
    match status:
        case 400:
            query = "?limit=0" if operation_id == "getCampaigns" else query.replace("17", "0")
            body = body and b"{"
        case 401:
            del headers["Api-Key"]
        case 403:
            path = path.replace("12345", "12346")
        case 404:
            settings["chats"] = (1,)
            if operation_id == "createChat":
                body = b'{"orderId":0}'
        case 405:
            method = "delete"
        case 415:
            headers["Content-Type"] = "text/plain"
        case 420:
            market_name = NAMES[operation_id]
            settings["limits"] = {market_name: Rate(1, per=3600)}
    async with Sandbox(**settings) as market, aiohttp.ClientSession() as http:
        if status == 420:
            market.other_programs_use(market_name, 1)
        async with http.request(
            method, market.url + path + query, data=body, headers=headers
        ) as refusal:
            content = await refusal.read()
            told = Headers(list(refusal.headers.items()))
    assert refusal.status == status, content
    request = Request(PATTERNS[operation_id][0], path + query, Headers(headers), body or b"")
    contract.check_answer(request, Answer(status, told, content))
    said = json.loads(content)
    assert said["status"] == "ERROR"
    assert said["errors"][0]["message"]
    assert ("X-RateLimit-Resource-Until" in told) is (status not in (401, 403, 405))


FORM_TYPE = "multipart/form-data; boundary=x"
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--x--\r\n'
NAMES = {
    "sendMessageToChat": "send_message",
    "sendFileToChat": "send_file",
    "createChat": "create_chat",
    "getChats": "chats",
    "getChat": "get_chat",
    "getChatHistory": "history",
    "getChatMessage": "get_message",
    "getCampaigns": "campaigns",
    "getAuthTokenInfo": "token",
}


# The table of operations


def test_operations_table_matches_the_description(description: Any) -> None:
    described = {
        operation["operationId"]: (
            method.upper(),
            path.replace("{businessId}", "{business_id}"),
            operation["x-requests-an-hour"],
        )
        for path, row in description["paths"].items()
        for method, operation in row.items()
    }
    for operation in operations.OPERATIONS.values():
        rate = Limits().rates()[operation.name]
        assert rate.per == 3600
        assert described.pop(operation.operation_id) == (
            operation.method,
            operation.path,
            rate.requests,
        )
    assert not described


# The check itself finds something


async def test_contract_check_finds_a_too_large_page(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading.LARGEST_PAGE, "chats", 21)
    async with (
        Sandbox() as market,
        recorded(market) as recorder,
        session_to(recorder, market) as chat,
    ):
        await error_of(CALLS["getChats"](chat))
    with pytest.raises(openapi_core.exceptions.OpenAPIError):
        recorder.check(contract)


GOOD = ("POST", f"{_CHATS}/message?chatId=17", b'{"message":"x"}')


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", f"{_CHATS}/message?chatId=0", b'{"message":"x"}'),
        ("POST", f"{_CHATS}/message?chatId=x", b'{"message":"x"}'),
        ("POST", f"{_CHATS}/message", b'{"message":"x"}'),
        ("POST", f"{_CHATS}/message?chatId=17&chatId=17", b'{"message":"x"}'),
        ("POST", f"{_CHATS}/message?chatId=17&chat=17", b'{"message":"x"}'),
        ("POST", f"{_CHATS}/message?chatId=17", b'{"message":"x","chatId":17}'),
        ("POST", f"{_CHATS}/message?chatId=17", b'{"message":""}'),
        ("POST", f"{_CHATS}/message?chatId=17", b"{}"),
        ("POST", f"{_CHATS}/message?chatId=17", b""),
        ("POST", f"{_CHATS}?limit=20", b'{"statuses":[]}'),
        ("POST", f"{_CHATS}?limit=20", b'{"statuses":["NEW","NEW"]}'),
        ("POST", f"{_CHATS}?limit=20", b'{"contexts":[{"type":"DIRECT","id":1}]}'),
        ("POST", f"{_CHATS}?limit=20", b'{"contexts":[{"type":"ORDER","id":"1"}]}'),
        ("POST", f"{_CHATS}?limit=20", b'{"contexts":[{"type":"ORDER","id":1,"n":1}]}'),
        ("GET", f"{_CHATS}/message?chatId=17&messageId=3", b"{}"),
        ("GET", f"{_CHATS}/message?chatId=17", b""),
    ],
)
def test_contract_check_finds_a_wrong_request(
    method: str, target: str, body: bytes, contract: Contract
) -> None:
    headers = {"Api-Key": "x", "Content-Type": "application/json"}

    def check(method: str, target: str, body: bytes, **changed: str) -> None:
        request = Request(method, target, Headers({**headers, **changed}), body)
        contract.check_request(request, contract.operation_of(request))

    check(*GOOD)
    with pytest.raises((AssertionError, openapi_core.exceptions.OpenAPIError)):
        check(method, target, body)


def test_contract_check_finds_a_request_without_the_key(contract: Contract) -> None:
    method, target, body = GOOD
    request = Request(method, target, Headers({"Content-Type": "application/json"}), body)
    with pytest.raises(openapi_core.exceptions.OpenAPIError):
        contract.check_request(request, "sendMessageToChat")


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, "application/json", b'{"status":"OK","result":{}}'),
        (200, "application/json", b'{"status":"FINE"}'),
        (200, "application/json", b"{}"),
        (200, "application/json", b""),
        (200, "text/html", b'{"status":"OK"}'),
        (201, "application/json", b'{"status":"OK"}'),
        (400, "application/json", b'{"status":"ERROR","errors":[]}'),
        (400, "application/json", b'{"status":"ERROR","errors":[{"message":"x"}]}'),
        (400, "application/json", b'{"status":"ERROR","errors":[{"code":"x","text":"x"}]}'),
        (502, "application/json", b'{"status":"ERROR"}'),
    ],
)
def test_contract_check_finds_a_wrong_answer(
    status: int, content_type: str, body: bytes, contract: Contract
) -> None:
    request = Request("GET", f"{_CHATS}/message?chatId=17&messageId=3", Headers(), b"")
    row = {"messageId": 3, "createdAt": "2026-01-31T10:00:00Z", "sender": "PARTNER"}
    good = json.dumps({"status": "OK", "result": row}).encode()
    contract.check_answer(request, Answer(200, Headers(GOOD_HEADERS), good))
    wrong = Answer(status, Headers({**GOOD_HEADERS, "Content-Type": content_type}), body)
    with pytest.raises(openapi_core.exceptions.OpenAPIError):
        contract.check_answer(request, wrong)


GOOD_HEADERS = {
    "Content-Type": "application/json",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "X-RateLimit-Resource-Limit": "1000",
    "X-RateLimit-Resource-Remaining": "999",
    "X-RateLimit-Resource-Until": "Sat, 31 Jan 2026 10:10:00 GMT",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in GOOD_HEADERS if name != "Content-Type"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-01"),
        ("X-RateLimit-Resource-Limit", "many"),
        ("X-RateLimit-Resource-Remaining", "0.5"),
        ("X-RateLimit-Resource-Until", "2026-01-31T10:10:00Z"),
    ],
)
def test_contract_check_finds_a_wrong_header(
    name: str, value: str | None, contract: Contract
) -> None:
    request = Request("POST", f"{_CHATS}/message?chatId=17", Headers(), b"")
    headers = Headers(GOOD_HEADERS)
    contract.check_answer(request, Answer(200, headers, b'{"status":"OK"}'))
    del headers[name]
    if value is not None:
        headers[name] = value
    with pytest.raises(openapi_core.exceptions.OpenAPIError):
        contract.check_answer(request, Answer(200, headers, b'{"status":"OK"}'))
