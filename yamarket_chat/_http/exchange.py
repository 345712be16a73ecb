"""One HTTP request and its response. Nothing is repeated or decided here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ..connections import connector
from ..secret import Secret
from .answers import TRACEPARENT, Answer, Decode, NoAnswer, decode_envelope
from .attempt import Attempt
from .bodies import JsonBody, RequestBody
from .deadlines import Deadlines
from .proxies import Proxies

MAX_ANSWER = 16 * 2**20
"""The most bytes of a response that are read. A page of 100 messages of 4,096 characters, all
escaped, with some files each, has about 5 MB; a longer response is none of the API."""

KEPT_FOR = 4.0
"""Seconds for which an idle connection is kept. Impatient servers close one after 5 s, and a
request that meets a closing connection has an unknown outcome, which takes 15 s to settle."""

_OPTIONS: Final[dict[str, Any]] = {
    "timeout": aiohttp.ClientTimeout(total=None),
    "allow_redirects": False,
    "raise_for_status": False,
}
# What bounds the memory that an answer takes. They are aiohttp's own, but a caller's session may
# have others.
_BOUNDS: Final[dict[str, Any]] = {
    "max_line_size": 8190,
    "max_field_size": 8190,
    "max_headers": 128,
    "read_bufsize": 2**16,
    "auto_decompress": True,
}
_CLOSED = "its aiohttp session is closed: keep it open as long as calls are made"
_NO_ANSWER = (OSError, aiohttp.ClientConnectionError)  # a TimeoutError is an OSError
_MAY_PASS = (OSError, aiohttp.ClientError)
_NOT_OURS = "an answer that is none to this request"
_NO_TRACE = f"00-{'0' * 32}"  # what says that a request is not traced
_NO_CERTIFICATE = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)


class FetchFailed(Exception):
    """A download failed. `passes` says whether a retry may succeed."""

    def __init__(self, reason: str, status: int | None, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.passes = passes


class Exchange:
    """Sends requests and downloads files. Only the Market's own host gets the key."""

    def __init__(
        self,
        base_url: str,
        api_key: Secret,
        *,
        integration: str,
        timeout: float,
        http: aiohttp.ClientSession | None,
        proxies: Proxies,
    ) -> None:
        url = URL(base_url)
        self._origin = url.origin()
        self._scheme, self._authority = url.scheme, url.raw_authority
        self._prefix = url.raw_path.rstrip("/")
        self._key = {"Api-Key": api_key.reveal(), "X-Market-Integration": integration}
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
        self._seen = _Traces()
        self._proxies = proxies
        proxy = proxies.of(url)
        self._options = _OPTIONS if http is None else {**_OPTIONS, **_BOUNDS}
        if proxy is not None:
            self._options = {**self._options, "proxy": proxy}
        self._own_http = http is None
        # aiohttp sends the headers of a session to the proxy as well, and the key is not for it.
        with_key = proxy is None
        self._http = http or aiohttp.ClientSession(
            # The number of parallel requests bounds the number of connections.
            connector=connector(limit=0, keepalive_timeout=KEPT_FOR),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**(self._headers if with_key else {}), "User-Agent": integration},
        )
        # A session of our own has these headers already. Passing them with each request costs 2 %
        # of a send.
        self._json_headers = None if http is None and with_key else self._headers

    async def send(
        self,
        attempt: Attempt,
        method: str,
        path: str,
        query: str,
        body: RequestBody,
        decode: Decode,
    ) -> Answer | NoAnswer:
        """Send one request from the running task. `decode` decodes the body of a 200.

        Whatever happens is returned as a value, also a cancellation.
        """
        if self._http.closed:
            attempt.ended = self._loop.time()
            return NoAnswer(_CLOSED, sent=False, final=True)
        response: aiohttp.ClientResponse | None = None
        content = b""
        reason: str | None = None
        final = cut_short = garbled = False
        cancelled: asyncio.CancelledError | None = None
        self._deadlines.start(attempt)
        try:
            response = await self._http.request(
                method,
                # Built of its parts: parsing a new address for each chat costs 3 % of a send.
                URL.build(
                    scheme=self._scheme,
                    authority=self._authority,
                    path=self._prefix + path,
                    query_string=query,
                    encoded=True,
                ),
                data=body,
                headers=self._json_headers
                if isinstance(body, JsonBody)
                else self._headers_of(body),
                **self._options,
            )
            if not body.sent:
                raise _NotOurs  # it was there before the request
            stream = response.content
            content = await stream.readany()
            if not stream.at_eof():
                content = await _rest(stream, content)
        except asyncio.CancelledError as error:
            _give_up(body, response)
            reason = "no answer in time" if body.sent else "no connection in time"
            closed = self._http.closed
            if not attempt.is_cancelled(surely=closed):
                # A connector that closes cancels what waits for it; so may code of the caller's.
                cause, response = "nobody", None
                reason = _CLOSED if closed else "its aiohttp session cancelled the request"
                final = closed and not body.sent
            else:
                cause = attempt.take_back_cancels()
            if cause in ("caller", "closing"):
                response, reason = None, "the call was ended while its request was under way"
                cut_short = cause == "closing"
                # A new one, without aiohttp's frames, whose variables hold the key.
                cancelled = None if cut_short else asyncio.CancelledError(*error.args)
        except aiohttp.ClientHttpProxyError as error:
            # On the way to the Market: nothing was sent but a CONNECT.
            reason, final = _refused_by_proxy(error.status)
            final = final and not body.sent
        except _NO_CERTIFICATE as error:
            reason = f"{_reason(error)}: check base_url and its certificate"
            final = not body.sent
        except Exception as error:  # noqa: BLE001 - a broken response makes aiohttp raise anything
            reason = _reason(error)
            _give_up(body, response)
            if response is not None:
                pass
            elif body.broken is not None:
                reason, final = body.broken, True
            elif self._http.closed:
                reason, final = _CLOSED, not body.sent
            elif body.sent:
                garbled = not isinstance(error, _NO_ANSWER)
            elif not isinstance(error, _MAY_PASS) or isinstance(error, aiohttp.InvalidURL):
                # Of our own code, or of a caller's middleware, whose text may show the key.
                reason, final = f"its request cannot be made ({type(error).__name__})", True
        except BaseException:
            _give_up(body, response)
            attempt.ended = self._loop.time()
            raise
        ended = attempt.ended = self._loop.time()
        if response is None:
            return NoAnswer(reason or "", body.sent, final, cut_short, cancelled, garbled)
        status, headers = response.status, response.headers
        if not body.sent or self._seen.is_again(headers.get(TRACEPARENT)):
            # Even if aiohttp has given the connection back: our own answer will come on it.
            body.give_up()
            return NoAnswer(_NOT_OURS, body.sent)
        if reason is not None:
            return Answer(status, headers, b"", None, attempt.began, ended, reason)
        read = decode if status == 200 else decode_envelope
        decoded = read(content)
        if decoded is None:
            # Perhaps of somebody on the way, and the Market's answer follows: nobody else must take
            # it for the answer to the next request on this connection.
            body.give_up()
        return Answer(status, headers, content, decoded, attempt.began, ended)

    def _headers_of(self, body: RequestBody) -> CIMultiDict[str]:
        # In no variable, which a traceback would show.
        return CIMultiDict({**self._headers, "Content-Type": body.content_type})

    async def fetch(self, url: str, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """Download from an address, in pieces. Only the Market's own host gets the key.

        Raises FetchFailed.
        """
        if self._http.closed:
            raise FetchFailed(_CLOSED, None)
        target = URL(url)
        own = target.origin() == self._origin
        size = 0
        failed: FetchFailed | None = None
        proxy = self._proxies.of(target)
        http = self._keyless() if self._own_http else self._http
        try:
            async with http.get(
                target,
                headers=self._key if own else None,
                # The timeout is for each piece: a large file may take longer in all.
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=self._seconds, sock_read=self._seconds
                ),
                allow_redirects=False,
                raise_for_status=False,
                proxy=proxy,
            ) as response:
                if response.status != 200:
                    passes = response.status >= 500
                    failed = FetchFailed(f"HTTP {response.status}", response.status, passes=passes)
                else:
                    async for piece in response.content.iter_any():
                        size += len(piece)
                        if size > max_bytes:
                            failed = FetchFailed(
                                f"it has more than {max_bytes} bytes: pass a larger max_bytes", 200
                            )
                            break
                        yield piece
        except aiohttp.ClientHttpProxyError as error:
            reason, final = _refused_by_proxy(error.status)
            failed = FetchFailed(reason, None, passes=not final)
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
            raise failed  # outside of `except`: aiohttp's exception holds the headers

    def _keyless(self) -> aiohttp.ClientSession:
        """Return a session with the same connections, without the headers for the Market."""
        return aiohttp.ClientSession(
            connector=self._http.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._key["X-Market-Integration"]},
        )

    async def close(self) -> None:
        """Close the connections, unless they belong to the caller's session."""
        self._deadlines.close()
        if self._own_http:
            await self._http.close()


async def _rest(stream: aiohttp.StreamReader, content: bytes) -> bytes:
    # Not as bytes: to add each of a million pieces to 16 MB would take minutes.
    whole = bytearray(content)
    while not stream.at_eof():
        if len(whole) > MAX_ANSWER:
            raise _TooLong
        whole += await stream.readany()
    return bytes(whole)


class _TooLong(Exception):
    pass


class _NotOurs(Exception):
    pass


class _Traces:
    """The traces of the last answers: each answer has one of its own."""

    MOST = 512

    def __init__(self) -> None:
        self._newer: set[str] = set()
        self._older: set[str] = set()

    def is_again(self, parent: str | None) -> bool:
        """Note the `traceparent` of an answer. Return whether an earlier answer had it."""
        if parent is None:
            return False
        trace = parent[:35]
        if trace in self._newer or trace in self._older:
            return trace != _NO_TRACE
        self._newer.add(trace)
        if len(self._newer) >= self.MOST:
            self._newer, self._older = set(), self._newer
        return False


def _give_up(body: RequestBody, response: aiohttp.ClientResponse | None) -> None:
    """End a request that has no whole response."""
    # A response that was read to its end has given its connection back: others may use it.
    if response is None or response.connection is not None:
        body.give_up()
    if response is not None:
        response.close()


def _refused_by_proxy(status: int) -> tuple[str, bool]:
    """Say why a proxy made no connection, and whether it will refuse it again."""
    reason = f"the proxy answered HTTP {status}, and made no connection"
    if status == 407:
        reason += ": pass the user and the password as proxy=http://user:password@proxy:3128"
    return reason, 400 <= status < 500 and status not in (408, 429)


def _reason(error: Exception) -> str:
    """Say what happened, without a quote of the response: it may echo the key."""
    if isinstance(error, aiohttp.ClientConnectorError):
        which = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        why = error.os_error.strerror or "no reason given"
        return f"cannot connect to {which}{error.host} ({why})"
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
