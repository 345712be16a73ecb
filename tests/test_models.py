"""Any answer that the description allows is decoded, and any other answer raises a ChatError."""

from __future__ import annotations

import asyncio
import copy
import gzip
import itertools
import json
import logging
import pickle
import re
import string
import tempfile
import traceback
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

import yamarket_chat
from tests import virtual
from tests.helpers import KEY, error_of, outcome_of
from yamarket_chat import (
    ApiAvailability,
    Campaign,
    Chat,
    ChatContext,
    ChatError,
    ChatSession,
    ChatStatus,
    ChatType,
    ContextType,
    File,
    Message,
    Page,
    Pending,
    PlacementType,
    Retry,
    Scope,
    Sender,
    Token,
    UnexpectedAnswerError,
)

SECRET = KEY.split(":", 1)[1]
BUSINESS = 12345
LARGEST_ID = 2**63 - 1

# As many examples in every run; --hypothesis-profile and a larger number to explore.
repeatable = hypothesis.settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# A Market that answers as it is told


class Market:
    """A server that answers each request with the bytes that come next, the last ones for ever."""

    def __init__(self, answers: list[bytes], *, hangs: bool) -> None:
        self._answers = answers
        self._hangs = hangs
        self._writers: set[asyncio.StreamWriter] = set()
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            answer = self._answers[min(self.requests, len(self._answers) - 1)]
            self.requests += 1
            writer.write(answer)
            await writer.drain()
            if self._hangs:
                await reader.read()
        except (OSError, EOFError):
            pass
        writer.close()

    async def wait_closed(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(w.wait_closed() for w in self._writers), return_exceptions=True)


@asynccontextmanager
async def session_with(
    *answers: bytes, hangs: bool = False, **settings: Any
) -> AsyncIterator[tuple[ChatSession, str]]:
    market = Market(list(answers), hangs=hangs)
    server = await asyncio.start_server(market.serve, "127.0.0.1", 0, limit=2**20)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings.setdefault("retry", Retry(attempts=1))
    try:
        async with ChatSession(KEY, BUSINESS, base_url=url, **settings) as session:
            yield session, url
    finally:
        server.close()
        await market.wait_closed()


def answer(body: Any, status: int = 200) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


def pickled(thing: Any) -> Any:
    """Return the object as another process unpickles it."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - our own


async def listed(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def first_page(listing: yamarket_chat.Listing[Any]) -> Page[Any]:
    async for page in listing.pages():
        return page
    raise AssertionError("no page")


READS: dict[str, Callable[[ChatSession], Awaitable[Any]]] = {
    "createChat": lambda session: session.create_chat(order_id=55),
    "getChats": lambda session: first_page(session.chats()),
    "getChat": lambda session: session.get_chat(17),
    "getChatHistory": lambda session: first_page(session.history(17)),
    "getChatMessage": lambda session: session.get_message(17, 3),
    "getCampaigns": lambda session: first_page(session.campaigns()),
    "getAuthTokenInfo": lambda session: session.token(),
}


# Any answer that the description allows


def resolved(schema: Any, description: Any) -> Any:
    """A schema itself in place of a reference to it."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].rpartition("/")[2]
    return {"name": name, **description["components"]["schemas"][name]}


texts = st.text(st.characters(codec="utf-8"), max_size=40)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
unknown_values = st.text(string.ascii_uppercase + "_", min_size=1, max_size=20) | texts.filter(bool)


@st.composite
def times(draw: st.DrawFn) -> str:
    """Times as in RFC 3339, except those that no datetime can hold (year 0, second 60)."""
    moment = draw(st.datetimes())
    fraction = draw(st.text(string.digits, max_size=9))
    # Its rounding must not go beyond the last moment that a datetime knows.
    assume(moment.year < 9999 or not fraction)
    offset = draw(
        st.sampled_from(["Z", "z", "+00:00", "-00:00", "+03:00", "-11:30", "+23:59", "-23:59"])
    )
    letter = draw(st.sampled_from("TTt"))
    return f"{moment:%Y-%m-%d}{letter}{moment:%H:%M:%S}".zfill(19) + (
        f".{fraction}{offset}" if fraction else offset
    )


def answers_to(schema: Any, description: Any, name: str = "") -> st.SearchStrategy[Any]:
    schema = resolved(schema, description)
    kind = schema.get("type")
    values: st.SearchStrategy[Any]
    if schema.get("name") == "Status":
        return st.just("OK")
    if kind == "object":
        values = objects(schema, description)
    elif kind == "array":
        unique = (lambda value: json.dumps(value)) if schema.get("uniqueItems") else None
        values = st.lists(
            answers_to(schema["items"], description),
            min_size=schema.get("minItems", 0),
            max_size=3,
            unique_by=unique,
        )
    elif kind == "integer":
        bits = 63 if schema["format"] == "int64" else 31
        least, most = schema.get("minimum", -(2**bits)), 2**bits - 1
        values = st.integers(least, most) | st.sampled_from([least, most])
        if name == "messageId":
            values = values | values.map(str)  # as the notifications document it
    elif "enum" in schema:
        values = st.sampled_from(schema["enum"]) | unknown_values
    elif schema.get("format") == "date-time":
        values = times()
    else:
        assert kind == "string", schema
        values = st.text(
            st.characters(codec="utf-8"),
            min_size=schema.get("minLength", 0),
            max_size=min(schema.get("maxLength", 30), 30),
        ) | st.sampled_from(["null", "true", "17", "Где мой заказ? 📦"])
    return st.none() | values if schema.get("nullable") else values


@st.composite
def objects(draw: st.DrawFn, schema: Any, description: Any) -> Any:
    properties = schema["properties"]
    # `result` may be missing by the description; what then happens has a test of its own.
    needed = {*schema.get("required", ()), "result"} & set(properties)
    chosen = [name for name in properties if name in needed or draw(st.booleans())]
    new = draw(
        st.dictionaries(
            texts.filter(lambda name: name not in {*properties, "status", "errors", "result"}),
            anything,
            max_size=2,
        )
    )
    return new | {
        name: draw(answers_to(properties[name], description, name))
        for name in draw(st.permutations(chosen))
    }


def agrees(read: Any, sent: Any) -> bool:
    """Whether the decoded object has all known data of the answer."""
    if isinstance(read, msgspec.Struct):
        return isinstance(sent, dict) and all(
            agrees(getattr(read, name), sent.get(alias))
            for name, alias in zip(
                read.__struct_fields__, read.__struct_encode_fields__, strict=True
            )
        )
    if isinstance(read, tuple):
        return isinstance(sent, list) and all(map(agrees, read, sent)) and len(read) == len(sent)
    if isinstance(read, datetime):
        assert read.tzinfo is not None
        seconds, _, rest = sent.upper().partition(".")
        digits = re.match(r"\d*", rest)
        assert digits is not None
        moment = datetime.fromisoformat(seconds + rest[digits.end() :])
        fraction = timedelta(microseconds=float(f"0.{digits[0] or 0}") * 1e6)
        return (
            abs(read - moment - fraction) <= timedelta(microseconds=1)
            and read.utcoffset() == moment.utcoffset()
        )
    if isinstance(read, int) and isinstance(sent, str):
        return read == int(sent)
    return bool(read == sent)


def page_agrees(page: Page[Any], sent: Any, items: str) -> bool:
    token = (sent.get("paging") or {}).get("nextPageToken")
    return (
        agrees(page.items, sent[items])
        and (page.next_page_token or "") == (token or "")
        and agrees(page.context, sent.get("context"))
    )


@pytest.mark.parametrize("operation", READS)
def test_any_documented_answer_is_decoded(operation: str, description: Any) -> None:
    [schema] = [
        row["responses"]["200"]["content"]["application/json"]["schema"]
        for path in description["paths"].values()
        for row in path.values()
        if row["operationId"] == operation
    ]

    @hypothesis.settings(repeatable, max_examples=40)
    @given(sent=answers_to(schema, description))
    def every(sent: Any) -> None:
        async def ask() -> Any:
            async with session_with(answer(sent)) as (session, _):
                return await READS[operation](session)

        read = virtual.run(ask())
        result = sent.get("result")
        match operation:
            case "createChat":
                assert read == result["chatId"]
            case "getChats":
                assert page_agrees(read, result, "chats")
            case "getChatHistory":
                assert page_agrees(read, result, "messages")
            case "getCampaigns":
                assert page_agrees(read, sent, "campaigns")
            case "getAuthTokenInfo":
                assert agrees(read, result["apiKey"])
            case _:
                assert agrees(read, result)
        assert pickled(read) == read
        assert hash(copy.deepcopy(read)) == hash(read)

    every()


# Documented names that are deprecated, or only tell of the pages that are deprecated.
LEFT_OUT = {"clientId", "pager"}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Chat", Chat),
        ("Context", ChatContext),
        ("Customer", yamarket_chat.Customer),
        ("Message", Message),
        ("File", File),
        ("Campaign", Campaign),
        ("Business", yamarket_chat.Business),
        ("Token", Token),
    ],
)
def test_every_documented_field_is_in_the_model(
    name: str, model: type[msgspec.Struct], description: Any
) -> None:
    documented = {
        field
        for field, schema in description["components"]["schemas"][name]["properties"].items()
        if not schema.get("deprecated")
    }
    assert set(model.__struct_encode_fields__) == documented - LEFT_OUT


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ChatType", ChatType),
        ("ChatStatus", ChatStatus),
        ("ContextType", ContextType),
        ("Sender", Sender),
        ("PlacementType", PlacementType),
        ("ApiAvailability", ApiAvailability),
        ("Scope", Scope),
    ],
)
def test_every_documented_enum_value_is_known(name: str, known: Any, description: Any) -> None:
    assert [member.value for member in known] == description["components"]["schemas"][name]["enum"]


@pytest.mark.parametrize("operation", READS)
async def test_missing_result_raises(operation: str) -> None:
    # The description does not require it; there is nothing to return without it.
    for body in ({"status": "OK"}, {"status": "OK", "result": None}):
        async with session_with(answer(body)) as (session, _):
            error = await error_of(READS[operation](session))
        assert isinstance(error, UnexpectedAnswerError)
        assert error.status == 200
        assert '"status": "OK"' in error.excerpt


async def test_created_chat_without_an_id_has_an_unknown_outcome() -> None:
    async with session_with(answer({"status": "OK"})) as (session, _):
        error = await error_of(session.create_chat(order_id=55))
    assert error.sent is None


CHAT: Mapping[str, Any] = {
    "chatId": 17,
    "context": {"type": "ORDER", "orderId": 55},
    "type": "CHAT",
    "status": "NEW",
    "createdAt": "2026-01-31T10:00:00+03:00",
    "updatedAt": "2026-01-31T07:00:00.5Z",
}
ROW: Mapping[str, Any] = {
    "messageId": 3,
    "createdAt": "2026-01-31T10:00:00+03:00",
    "sender": "CUSTOMER",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"chatId": "seventeen"},
        {"chatId": None},
        {"chatId": 1.5},
        {"createdAt": "yesterday"},
        {"createdAt": "2026-01-31T10:00:00"},  # it has no offset
        {"status": 5},
        {"context": []},
        {"context": {}},
    ],
)
async def test_answer_of_the_wrong_type_raises_at_once(wrong: Any) -> None:
    body = answer({"status": "OK", "result": CHAT | wrong})
    async with session_with(body, retry=Retry()) as (session, _):
        error = await error_of(session.get_chat(17))
    assert isinstance(error, UnexpectedAnswerError)
    assert asyncio.get_running_loop().time() < 0.5  # a retry would get the same answer


@pytest.mark.parametrize("left_out", CHAT)
async def test_fields_required_by_the_description_are_required(left_out: str) -> None:
    result = {name: value for name, value in CHAT.items() if name != left_out}
    async with session_with(answer({"status": "OK", "result": result})) as (session, _):
        assert isinstance(await error_of(session.get_chat(17)), UnexpectedAnswerError)


# Any bytes at all

HEADER_VALUES = st.sampled_from(
    [
        b"0",
        b"-1",
        b"1",
        b"4",
        b"99999999999999999999999",
        b"9" * 5000,
        "٤".encode(),
        "²".encode(),
        b"1e3",
        b"nan",
        b"inf",
        b" ",
        b"\xff\xfe",
        b"Fri, 31 Jan 2026 10:00:00 GMT",
        b"Fri, 31 Jan 9999 23:59:59 -2359",
        b"Fri, 31 Jan 0001 00:00:00 +9999",
        b"Fri, 99 Foo 2026 99:99:99 GMT",
        b"gzip",
        b"deflate",
        b"br",
        b"zstd",
        b"chunked",
        b"gzip, chunked",
        b"close",
        b"keep-alive",
        b"upgrade",
        b"text/html; charset=no-such",
        b"00-" + KEY.encode().ljust(32, b"0") + b"-1-01",
        b"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
        KEY.encode(),
        b"a=b; Domain=[; Max-Age=x",
        b"http://[",
        b"bytes */*",
    ]
)
HEADER_NAMES = st.sampled_from(
    [
        b"Content-Length",
        b"Transfer-Encoding",
        b"Content-Encoding",
        b"Content-Type",
        b"Connection",
        b"Upgrade",
        b"Date",
        b"Location",
        b"Retry-After",
        b"Set-Cookie",
        b"Trailer",
        b"traceparent",
        b"X-RateLimit-Resource-Limit",
        b"X-RateLimit-Resource-Remaining",
        b"X-RateLimit-Resource-Until",
    ]
)
STATUSES = st.sampled_from([200, 200, 400, 401, 403, 404, 405, 415, 420, 420, 423, 500, 502, 503])
NUMBERS = st.sampled_from([b"0", b"4", b"1000", b"9" * 30, b"9" * 5000, "४".encode(), b"\xff"])
RIGHT_ANSWERS = st.sampled_from(
    [
        {"status": "OK"},
        {"status": "OK", "result": CHAT},
        {"status": "OK", "result": ROW},
        {"status": "OK", "result": {"chats": [CHAT], "paging": {"nextPageToken": "x"}}},
        {"status": "OK", "result": {"context": {"type": "DIRECT"}, "messages": [ROW, ROW]}},
        {"campaigns": [{"id": 1}], "paging": {"nextPageToken": "x"}},
        {"status": "OK", "result": {"apiKey": {"name": "x", "authScopes": []}}},
        {
            "status": "ERROR",
            "errors": [{"code": KEY, "message": f"{KEY} is revoked"}, {"code": ""}],
        },
        {"status": "ERROR", "errors": [{"code": "X", "message": "\n" * 300 + KEY}]},
        {"status": "ERROR", "errors": [None]},
        {"status": "ERROR", "errors": {"code": "X"}},
        {"status": KEY},
    ]
).map(lambda body: json.dumps(body).encode())


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    body: bytes = draw(
        st.binary(max_size=60)
        | RIGHT_ANSWERS
        | RIGHT_ANSWERS
        | anything.map(lambda value: json.dumps(value).encode())
        | NUMBERS.map(lambda number: b"Hit rate limit of %s parallel requests" % number)
        | NUMBERS.map(lambda number: b"Hit rate limit of %s requests per hour" % number)
        | st.sampled_from(
            [
                b"[" * 3000,
                b'{"status":"OK","result":' + b"[" * 3000,
                b"<html>" + KEY.encode() * 20,
                b" " * 790 + KEY.encode(),
                b'{"status":"OK","result":{"chatId":' + b"9" * 5000 + b"}}",
                b'{"status":"OK","result":{"chatId":1e999999999}}',
                b'{"status":"OK","result":{"message":"\\ud800"}}',
                '{"status":"OK"}'.encode("utf-16"),
                b"\xef\xbb\xbf" + b'{"status":"OK"}',
                b"",
            ]
        )
    )
    match draw(st.sampled_from(["whole", "whole", "whole", "cut", "gzip", "deflate", "chunked"])):
        case "cut":
            return body[: draw(st.integers(0, len(body)))]
        case "gzip":
            return gzip.compress(body)
        case "deflate":
            return zlib.compress(body)
        case "chunked":
            return b"%x\r\n%s\r\n%s" % (
                len(body),
                body,
                draw(st.sampled_from([b"0\r\n\r\n", b"", b"x"])),
            )
    return body


@st.composite
def odd_answers(draw: st.DrawFn) -> tuple[int | None, bytes]:
    """Something instead of an answer, and its status if it has one."""
    if draw(st.integers(0, 5)) == 0:
        start = draw(st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"ERR "]))
        rest = draw(st.binary(max_size=40) | st.just(KEY.encode() + b"\r\n\r\n"))
        return None, start + rest
    status = draw(STATUSES | st.integers(200, 599))
    body = draw(bodies())
    headers = draw(st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=3))
    if draw(st.booleans()):
        headers.append((b"Content-Length", b"%d" % len(body)))
    reason = draw(st.sampled_from([b"OK", b"", KEY.encode(), "Готово".encode(), b"\xff\x80"]))
    head = b"HTTP/1.1 %d %s\r\n" % (status, reason)
    head += b"".join(b"%s: %s\r\n" % header for header in headers)
    return status, head + b"\r\n" + body


FIRST = datetime(1970, 1, 1, tzinfo=UTC)
PENDING = Pending(business_id=BUSINESS, chat_id=17, text="hi", requests=1, seen="", since=FIRST)

EVERY_METHOD: dict[str, Callable[[ChatSession, str, Path], Awaitable[Any]]] = {
    "send_message": lambda session, url, folder: session.send_message(17, "hi"),
    "send_message, raise": lambda session, url, folder: session.send_message(
        17, "hi", on_unknown="raise"
    ),
    "send_file": lambda session, url, folder: session.send_file(17, b"hi", filename="hi.txt"),
    "send_many": lambda session, url, folder: listed(
        session.send_many([yamarket_chat.OutgoingMessage(17, "hi")])
    ),
    "settle": lambda session, url, folder: session.settle(PENDING),
    "create_chat": lambda session, url, folder: session.create_chat(return_id=5),
    "get_chat": lambda session, url, folder: session.get_chat(17),
    "get_message": lambda session, url, folder: session.get_message(17, 3),
    "chats": lambda session, url, folder: listed(aiter(session.chats())),
    "history": lambda session, url, folder: listed(aiter(session.history(17))),
    "campaigns": lambda session, url, folder: listed(aiter(session.campaigns())),
    "token": lambda session, url, folder: session.token(),
    "request": lambda session, url, folder: session.request("GET", "/v2/x"),
    "request, POST": lambda session, url, folder: session.request("POST", "/v2/x", json={}),
    "download": lambda session, url, folder: session.download(
        File(name="x", url=f"{url}/f", size=1)
    ),
    "download to a path": lambda session, url, folder: session.download(
        File(name="x", url=f"{url}/f", size=1), folder / "x"
    ),
}

REFUSED = answer({"status": "ERROR", "errors": [{"code": "BAD_REQUEST"}]}, 400)


class Kept(logging.Handler):
    """Keeps what was logged, as it would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_any_bytes_as_an_answer_raise_a_chat_error(method: str) -> None:
    call = EVERY_METHOD[method]
    log = Kept()
    logger = logging.getLogger("yamarket_chat")

    async def ask(status: int | None, odd: bytes, hangs: bool, folder: Path) -> ChatError | None:
        unhandled: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        # If the Market answers 420 for ever, the session waits for ever.
        answers = [odd, REFUSED] if status == 420 else [odd]
        try:
            async with session_with(*answers, hangs=hangs, retry=Retry(attempts=2)) as (it, url):
                result = await call(it, url, folder)
        except ChatError as error:
            return error
        finally:
            assert not unhandled
        if method == "send_many":
            [outcome] = result
            kept: ChatError | None = outcome.error
            return kept
        assert status in (200, None), result
        return None

    @hypothesis.settings(repeatable, max_examples=25)
    @given(odd=odd_answers(), hangs=st.booleans())
    def every(odd: tuple[int | None, bytes], hangs: bool) -> None:
        log.lines.clear()
        with tempfile.TemporaryDirectory() as folder:
            error = virtual.run(ask(*odd, hangs, Path(folder)))
            left = [path.name for path in Path(folder).iterdir()]
        assert left == ([] if error or method != "download to a path" else ["x"])
        told = [*log.lines]
        if error is not None:
            told += traceback.format_exception(error)
            told += [repr(error), repr(vars(error)), str(pickle.dumps(error))]
            assert vars(pickled(error)) == vars(error)
            assert error.sent in (False, None)
            assert "\n" not in str(error)
            assert len(str(error)) < 2000
        assert not [line for line in told if SECRET in line]

    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    try:
        every()
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(log)


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize(
    "body",
    [
        b"Hit rate limit of " + b"9" * 5000 + b" parallel requests",
        b"Hit rate limit of " + b"9" * 5000 + b" requests per hour for resource x",
        "Hit rate limit of ४ parallel requests".encode(),
    ],
)
async def test_420_with_an_absurd_number_is_still_a_420(
    method: str, body: bytes, tmp_path: Path
) -> None:
    async with session_with(answer(body, 420), REFUSED) as (session, url):
        result: Any = await outcome_of(EVERY_METHOD[method](session, url, tmp_path))
    outcome = result[0].error if method == "send_many" else result
    assert isinstance(outcome, ChatError)
    assert getattr(outcome, "status", 400) in (400, 420)


async def test_a_body_that_is_far_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    written = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        piece = b'{"status":"OK"' + b" " * 2**20
        try:
            for _ in range(1000):
                writer.write(piece)
                await writer.drain()
                written += len(piece)
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with ChatSession(KEY, BUSINESS, base_url=url, retry=Retry(attempts=1)) as session:
        error = await error_of(session.get_chat(17))
    server.close()
    assert isinstance(error, UnexpectedAnswerError)
    assert len(str(error)) < 1000
    assert written < 100 * 2**20


# The objects that a caller gets


@given(value=unknown_values)
@hypothesis.settings(repeatable, max_examples=50)
@pytest.mark.parametrize(
    "enum", [ChatStatus, ChatType, ContextType, Sender, PlacementType, ApiAvailability, Scope]
)
def test_unknown_enum_value_is_kept_as_received(enum: Any, value: str) -> None:
    assume(value not in list(enum))
    new = enum(value)
    assert isinstance(new, enum)
    assert new == value == new.value
    assert str(new) == f"{new}" == value
    assert value in repr(new) or repr(value)[1:-1] in repr(new)
    assert new == enum(value)
    assert new not in list(enum)
    assert {new: 1}[value] == 1
    assert {value: 1}[enum(value)] == 1
    for same in (pickled(new), copy.copy(new), copy.deepcopy(new)):
        assert same == new
        assert type(same) is enum
    assert msgspec.json.decode(msgspec.json.encode([new])) == [value]
    assert json.loads(json.dumps([new])) == [value]
    assert msgspec.json.decode(msgspec.json.encode(value), type=enum) == new


def test_known_enum_value_is_the_enum_member() -> None:
    assert ChatStatus("NEW") is ChatStatus.NEW
    assert ChatStatus.NEW == "NEW"
    by_text: dict[str, int] = {ChatStatus.NEW: 1}
    assert by_text["NEW"] == 1
    with pytest.raises(ValueError):
        ChatStatus(5)  # type: ignore[arg-type]  # on purpose


async def chat_of(**changes: Any) -> Chat:
    body = answer({"status": "OK", "result": {**CHAT, **changes}})
    async with session_with(body) as (session, _):
        return await session.get_chat(17)


async def test_datetimes_are_aware_and_keep_their_offset() -> None:
    chat = await chat_of()
    assert chat.created_at == datetime(2026, 1, 31, 7, tzinfo=UTC)
    assert chat.created_at.utcoffset() == timedelta(hours=3)
    assert chat.updated_at - chat.created_at == timedelta(seconds=0.5)


async def test_the_largest_ids_survive() -> None:
    chat = await chat_of(
        chatId=LARGEST_ID,
        context={"type": "RETURN", "orderId": LARGEST_ID - 1, "returnId": LARGEST_ID - 2},
    )
    assert chat.chat_id == LARGEST_ID
    assert (chat.context.order_id, chat.context.return_id) == (LARGEST_ID - 1, LARGEST_ID - 2)


async def test_a_message_id_may_be_a_string() -> None:
    row = {**ROW, "messageId": str(LARGEST_ID)}
    async with session_with(answer({"status": "OK", "result": row})) as (session, _):
        message = await session.get_message(17, 3)
    assert message.message_id == LARGEST_ID
    assert (message.message, message.payload) == (None, None)


async def test_decoded_models_are_immutable() -> None:
    chat = await chat_of()
    for thing, name in itertools.chain(
        ((chat, name) for name in chat.__struct_fields__),
        ((chat.context, name) for name in chat.context.__struct_fields__),
        ((Page(items=(chat,)), "items"), (Message(**FIELDS), "message")),
    ):
        with pytest.raises(AttributeError):
            setattr(thing, name, None)
    assert len({chat, await chat_of(), await chat_of(status="PAUSED")}) == 2


FIELDS: dict[str, Any] = {"message_id": 3, "created_at": FIRST, "sender": Sender.PARTNER}


async def test_empty_page_token_means_no_next_page() -> None:
    body = {"status": "OK", "result": {"chats": [CHAT], "paging": {"nextPageToken": ""}}}
    async with session_with(answer(body)) as (session, _):
        pages = await listed(session.chats().pages())
    assert [page.next_page_token for page in pages] == [None]
