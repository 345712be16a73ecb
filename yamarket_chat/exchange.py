"""One HTTP request and its answer, with no policy: what was seen is told, nothing is repeated.

What was seen is a value, an `Answer` or a `NoAnswer`, and never one of aiohttp's exceptions: those
carry the headers of the request, and so the key.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aiohttp
import msgspec
from aiohttp import payload
from multidict import CIMultiDict, CIMultiDictProxy, istr
from yarl import URL

from .attempt import NEVER, Attempt
from .models import Envelope

MAX_ANSWER = 16 * 2**20
"""Bytes of an answer that are read. A page of 100 messages of 4,096 characters, all escaped, with
some files each, is about 5 MB; what is longer is not the API."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """An answer that came: its status at least."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    form: Any  # decoded: of a 200 the operation's answer, else an Envelope; or None
    fault: str | None = None  # why the body is not whole

    def __repr__(self) -> str:
        return f"Answer({self.status})"  # the rest may echo the key

    @property
    def trace_id(self) -> str | None:
        """The id by which the Market finds the request: from `traceparent`, 00-<trace>-…"""
        parent = self.headers.get(_TRACEPARENT, "")
        if not parent[2:3] == parent[35:36] == "-":
            return None
        trace = parent[3:35]
        try:
            # What is no id is not shown: it may echo the key. A regular expression takes longer.
            return trace if len(bytes.fromhex(trace)) == 16 else None
        except ValueError:
            return None


class NoAnswer(msgspec.Struct, frozen=True):
    """No answer came."""

    reason: str
    left: bool  # the request may have reached the Market
    final: bool = False  # surely not carried out, and trying again is of no use


KEPT_FOR = 4.0
"""Seconds for which an idle connection is kept: less than the 5 s after which the impatient servers
close one. A request that meets a closing connection has an unknown outcome, and costs 15 s."""

_TRACEPARENT = istr("traceparent")

Decode = Callable[[bytes], Any]
"""Reads a body into a form; None where it has another."""


def decoder(form: Any) -> Decode:
    """What reads bodies of a form. Not strict: ids may come as strings."""
    decode = msgspec.json.Decoder(form, strict=False).decode

    def read(body: bytes) -> Any:
        try:
            return decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    return read


decode_envelope = decoder(Envelope)


class Deadlines:
    """One timer for all requests: they have the same time each, so they are due in order.

    aiohttp's own timer for each request costs 5 % of a send.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._attempts: deque[Attempt] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, attempt: Attempt) -> None:
        """The time of a request begins."""
        attempts = self._attempts
        while attempts and attempts[0].ended != NEVER:
            attempts.popleft()
        attempts.append(attempt)
        if self._timer is None:
            self._timer = self._loop.call_at(attempt.began + self._seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        attempts = self._attempts
        while attempts:
            first = attempts[0]
            if first.is_under_way():
                at = first.began + self._seconds
                if at > now:
                    self._timer = self._loop.call_at(at, self._due)
                    return
                first.overdue = True
                first.task.cancel()
            attempts.popleft()

    def close(self) -> None:
        """No request begins any more; those that are under way, where closing was cut off, end."""
        if self._timer is not None and not any(map(Attempt.is_under_way, self._attempts)):
            self._timer.cancel()
            self._timer = None


class Leaving(payload.Payload):
    """The body of a request, which knows whether the request may have left."""

    left = False
    broken: str | None = None  # why it can never be written, if so

    def leave(self, writer: Any) -> None:
        """It is about to be written to a connection that was made; the headers go with it."""
        transport = writer.transport
        if transport is None or transport.is_closing():
            # A kept connection that the Market has closed meanwhile: not a byte goes out.
            raise aiohttp.ClientConnectionResetError("the connection was closed before")
        self.left = True
        # Or aiohttp repeats a GET on its own where a kept connection breaks, unseen by the quota.
        self._consumed = True


class Body(Leaving):
    """Some JSON.

    aiohttp's own BytesPayload makes headers for each, and takes a step more to write them: 2 % of a
    send.
    """

    _value: bytes
    # Those of all bodies, so that nobody may change them.
    _headers: Any = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
    _encoding = _filename = None
    _autoclose = True

    def __init__(self, content: bytes) -> None:
        self._value = content
        self._size = len(content)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Its text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        """Write it."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write it: its length was told before."""
        self.leave(writer)
        await writer.write(self._value)


_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
_CLOSED = "its aiohttp session is closed: keep it open for as long as calls are made"
_NO_CERTIFICATE = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)


class FetchFailed(Exception):
    """A file did not come. `passes` says whether it may the next time."""

    def __init__(self, reason: str, status: int | None, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.passes = passes


class Exchange:
    """Sends requests to the Market with the key, and fetches files, elsewhere without it."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        integration: str,
        timeout: float,
        http: aiohttp.ClientSession | None,
    ) -> None:
        url = URL(base_url)
        self._origin = url.origin()
        self._scheme, self._authority = url.scheme, url.authority
        self._prefix = url.raw_path.rstrip("/")
        self._key = {"Api-Key": api_key, "X-Market-Integration": integration}
        self._headers = CIMultiDict(
            {
                **self._key,
                "Accept": "application/json",
                "Content-Type": "application/json",
            }
        )
        self._loop = asyncio.get_running_loop()
        self._seconds = timeout
        self._deadlines = Deadlines(timeout)
        self._own_http = http is None
        self._http = http or aiohttp.ClientSession(
            # The number of connections is bounded by the parallel places.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_FOR),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**self._headers, "User-Agent": integration},
        )
        # A session of our own has them already: naming them for each request costs 2 % of a send.
        self._named = self._headers if http is not None else None

    async def send(
        self,
        attempt: Attempt,
        method: str,
        path: str,
        query: str,
        body: Leaving,
        decode: Decode,
    ) -> Answer | NoAnswer:
        """Send one request from the running task; `decode` reads the body of a 200.

        Raises nothing but CancelledError: whatever else happens is part of what was seen.
        """
        if self._http.closed:
            attempt.ended = self._loop.time()
            return NoAnswer(_CLOSED, left=False, final=True)
        response: aiohttp.ClientResponse | None = None
        final = False
        self._deadlines.start(attempt)
        try:
            response = await self._http.request(
                method,
                # Built from its parts: parsing a new address for each chat costs 3 % of a send.
                URL.build(
                    scheme=self._scheme,
                    authority=self._authority,
                    path=self._prefix + path,
                    query_string=query,
                    encoded=True,
                ),
                data=body,
                headers=self._named if isinstance(body, Body) else self._headers_of(body),
                timeout=_NO_TIMEOUT,
                allow_redirects=False,
                raise_for_status=False,
            )
            stream = response.content
            content = await stream.readany()
            while not stream.at_eof():
                if len(content) > MAX_ANSWER:
                    raise _TooLong
                content += await stream.readany()
        except asyncio.CancelledError:
            if response is not None:
                response.close()
            if not attempt.ran_out_of_time():
                raise
            reason = "no answer in time"
        except _NO_CERTIFICATE as error:
            reason, final = f"{_reason(error)}: check base_url and its certificate", True
        except Exception as error:  # noqa: BLE001 - whatever a broken answer makes aiohttp raise
            reason = _reason(error)
            if response is not None:
                response.close()
            elif body.broken is not None:
                reason, final = body.broken, True
            elif self._http.closed:
                reason, final = _CLOSED, not body.left
        else:
            read = decode if response.status == 200 else decode_envelope
            return Answer(response.status, response.headers, content, read(content))
        finally:
            attempt.ended = self._loop.time()
        if response is not None:
            return Answer(response.status, response.headers, b"", None, reason)
        return NoAnswer(reason, left=body.left, final=final)

    def _headers_of(self, body: Leaving) -> CIMultiDict[str]:
        headers = self._headers.copy()
        headers["Content-Type"] = body.content_type
        return headers

    async def fetch(self, url: str, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """The content of an address in pieces. The key goes along to the Market's own host only.

        Raises FetchFailed.
        """
        if self._http.closed:
            raise FetchFailed(_CLOSED, None)
        target = URL(url)
        own = target.origin() == self._origin
        size = 0
        failed: FetchFailed | None = None
        http = self._keyless() if self._own_http else self._http
        try:
            async with http.get(
                target,
                headers=self._key if own else None,
                # Each piece has the time of an attempt; a large file may take longer in all.
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=self._seconds, sock_read=self._seconds
                ),
                allow_redirects=False,
                raise_for_status=False,
            ) as response:
                if response.status != 200:
                    passes = response.status >= 500
                    failed = FetchFailed(f"HTTP {response.status}", response.status, passes=passes)
                else:
                    async for piece in response.content.iter_any():
                        size += len(piece)
                        if size > max_bytes:
                            failed = FetchFailed(f"it has more than {max_bytes} bytes", 200)
                            break
                        yield piece
        except Exception as error:  # noqa: BLE001 - as in send
            if self._http.closed:
                failed = FetchFailed(_CLOSED, None)
            else:
                passes = not isinstance(error, _NO_CERTIFICATE)
                failed = FetchFailed(_reason(error), None, passes=passes)
        finally:
            if http is not self._http:
                await http.close()
        if failed is not None:
            raise failed  # here, so that it does not carry aiohttp's own, which has the headers

    def _keyless(self) -> aiohttp.ClientSession:
        """The same connections, without the headers that only the Market may see."""
        return aiohttp.ClientSession(
            connector=self._http.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._key["X-Market-Integration"]},
        )

    async def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        self._deadlines.close()
        if self._own_http:
            await self._http.close()


class _TooLong(Exception):
    pass


def _reason(error: Exception) -> str:
    """What happened, in words that quote nothing of the answer: it may echo the key."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host} ({error.os_error.strerror or 'no reason given'})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, _TooLong):
        return f"an answer of more than {MAX_ANSWER} bytes"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "an answer that was cut off"
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError)):
        return "the connection was closed without an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"an answer that is no HTTP ({type(error).__name__})"
