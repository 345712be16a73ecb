"""One HTTP request and its response. Nothing is repeated or decided here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final
from weakref import WeakKeyDictionary

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ..connections import connector
from ..secret import Secret
from .answers import TRACEPARENT, Answer, Decode, NoAnswer, decode_envelope
from .attempt import Attempt
from .bodies import JsonBody, RequestBody
from .deadlines import Deadlines
from .headers import retry_after
from .proxies import Proxies

MAX_ANSWER = 16 * 2**20
"""The most bytes of a response that are read. A page of 100 messages of 4,096 characters, all
escaped, with some files each, has about 5 MB. The API sends no longer response."""

KEPT_FOR = 4.0
"""Seconds for which an idle connection is kept. Impatient servers close one after 5 s, and a
request that meets a closing connection has an unknown outcome, which takes 15 s to settle."""

SLOWEST = 1024
"""Bytes a second that a download must have at least. A slower one might never end."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
# What bounds the memory that an answer takes. They are aiohttp's own, but a caller's session may
# have others.
_BOUNDS: Final[dict[str, Any]] = {
    "max_line_size": 8190,
    "max_field_size": 8190,
    "max_headers": 128,
    "read_bufsize": 2**16,
    "auto_decompress": True,
}
_JSON = "application/json"
# After an error of our own code or of a caller's middleware, whose text may show the key.
_IMPOSSIBLE = "its request cannot be made ({})"
_CLOSED = "its aiohttp session is closed: keep it open as long as calls are made"
_NO_ANSWER = (OSError, aiohttp.ClientConnectionError)  # a TimeoutError is an OSError
_MAY_PASS = (OSError, aiohttp.ClientError)
_NOT_OURS = "an answer that is none to this request"
_PASSES = {408, 420, 429, 499}  # a broken connection, or a rate limit
_NO_TRACE = f"00-{'0' * 32}"  # the trace of a request that is not traced
_NO_CERTIFICATE = (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)


class FetchFailed(Exception):
    """A download failed. `passes` says whether a retry may succeed, and `after` how soon."""

    def __init__(
        self, reason: str, status: int | None, *, passes: bool = False, after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.passes = passes
        self.after = after  # the seconds of a Retry-After


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
        self._headers = CIMultiDict({**self._key, "Accept": _JSON, "Content-Type": _JSON})
        self._loop = asyncio.get_running_loop()
        self._seconds = timeout
        self._deadlines = Deadlines(timeout)
        self._proxies = proxies
        proxy = proxies.of(url)
        self._bounds: dict[str, Any] = {} if http is None else _BOUNDS
        self._options = dict(self._bounds)
        if http is not None:
            self._options.update(timeout=_NO_TIMEOUT, raise_for_status=False)
        if proxy is not None:
            self._options["proxy"] = proxy
        self._own_http = http is None
        # aiohttp sends the headers of a session to the proxy as well, and the key is not for it.
        with_key = proxy is None
        self._http = http or aiohttp.ClientSession(
            # The number of parallel requests bounds the number of connections.
            connector=connector(limit=0, keepalive_timeout=KEPT_FOR),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
            headers={**(self._headers if with_key else {}), "User-Agent": integration},
        )
        # Its connections outlive this session, if it is the caller's, and so do stray answers.
        self._seen = _traces.setdefault(self._http, _Traces())
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

        Every result is returned as a value, even a cancellation.
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
                # Built from its parts, because parsing a new URL for each chat costs 3 % of a send.
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
                allow_redirects=False,
                **self._options,
            )
            if not body.sent:
                raise _NotOurs  # the data arrived before the request
            stream = response.content
            content = await stream.readany()
            if not stream.at_eof():
                content = await _rest(stream, content)
        except asyncio.CancelledError as error:
            _give_up(body, response)
            reason = "no answer in time" if body.sent else "no connection in time"
            closed = self._http.closed
            if not attempt.is_cancelled(surely=closed):
                # A connector that closes cancels the calls that wait for it. Code of the caller may
                # do so, too.
                response, final = None, closed and not body.sent
                reason = _CLOSED if closed else "its aiohttp session cancelled the request"
            elif (cause := attempt.take_back_cancels()) != "timeout":
                response, reason = None, "the call was ended while its request was under way"
                cut_short = cause == "closing"
                # A new one, without aiohttp's frames, whose variables hold the key.
                cancelled = None if cut_short else asyncio.CancelledError(*error.args)
        except aiohttp.ClientHttpProxyError as error:
            # The proxy failed: nothing was sent except a CONNECT.
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
            elif _is_impossible(error):
                reason, final = _IMPOSSIBLE.format(type(error).__name__), True
                if type(error) is RuntimeError and not self._own_http:
                    reason += ": the aiohttp session must belong to this event loop"
        except BaseException:
            _give_up(body, response)
            attempt.ended = self._loop.time()
            raise
        ended = attempt.ended = self._loop.time()
        if response is None:
            return NoAnswer(reason or "", body.sent, final, cut_short, cancelled, garbled)
        status, headers = response.status, response.headers
        parent = headers.get(TRACEPARENT)
        if (
            not body.sent
            or (body.unfinished and status == 200)
            or (parent is not None and self._seen.is_again(parent))
        ):
            # Even if aiohttp has returned it to its pool: our own answer will arrive on it.
            body.give_up()
            return NoAnswer(_NOT_OURS, body.sent)
        if reason is not None:
            return Answer(status, headers, b"", None, attempt.began, ended, parent, reason)
        read = decode if status == 200 else decode_envelope
        return Answer(status, headers, content, read(content), attempt.began, ended, parent)

    def _headers_of(self, body: RequestBody) -> CIMultiDict[str]:
        # Not in a variable, because a traceback would show it.
        return CIMultiDict({**self._headers, "Content-Type": body.content_type})

    async def fetch(self, url: str, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """Download from a URL, in pieces. Only the Market's own host gets the key.

        Raises FetchFailed.
        """
        if self._http.closed:
            raise FetchFailed(_CLOSED, None)
        target = URL(url)
        own = target.origin() == self._origin
        size = 0
        failed: FetchFailed | None = None
        body = JsonBody(b"")  # it looks at the connection before anything is sent
        proxy = self._proxies.of(target)
        http = self._keyless() if self._own_http else self._http
        try:
            async with asyncio.timeout(self._seconds):
                response = await http.get(
                    target,
                    data=body,
                    skip_auto_headers=("Content-Type",),
                    headers=self._key if own else None,
                    # The timeout is for each piece: a large file may take longer in total.
                    timeout=aiohttp.ClientTimeout(total=None, sock_read=self._seconds),
                    allow_redirects=False,
                    raise_for_status=False,
                    proxy=proxy,
                    **self._bounds,
                )
            async with response:
                parent = response.headers.get(TRACEPARENT)
                if not body.sent or (parent is not None and self._seen.is_again(parent)):
                    response.close()
                    failed = FetchFailed(_NOT_OURS, None, passes=True)
                elif response.status != 200:
                    status = response.status
                    failed = FetchFailed(
                        f"HTTP {status}",
                        status,
                        passes=status >= 500 or status in _PASSES,
                        after=retry_after(response.headers),
                    )
                else:
                    began = self._loop.time()
                    async for piece in response.content.iter_any():
                        size += len(piece)
                        if size > max_bytes:
                            failed = FetchFailed(
                                f"it has more than {max_bytes} bytes: pass a larger max_bytes", 200
                            )
                            break
                        if self._loop.time() - began > self._seconds + size / SLOWEST:
                            raise TimeoutError
                        yield piece
        except aiohttp.ClientHttpProxyError as error:
            reason, final = _refused_by_proxy(error.status)
            failed = FetchFailed(reason, None, passes=not final)
        except Exception as error:  # noqa: BLE001 - as in send
            if self._http.closed:
                failed = FetchFailed(_CLOSED, None)
            elif not body.sent and _is_impossible(error):
                failed = FetchFailed(_IMPOSSIBLE.format(type(error).__name__), None)
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
    # Not as bytes, because adding each of a million pieces to 16 MB would take minutes.
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
    """The trace ids of the last answers. Each answer has its own."""

    MOST = 512

    def __init__(self) -> None:
        self._newer: set[str] = set()
        self._older: set[str] = set()

    def is_again(self, parent: str) -> bool:
        """Note the `traceparent` of an answer. Return whether an earlier answer had its trace."""
        trace = parent[:35]
        newer = self._newer
        known = len(newer)
        newer.add(trace)
        if len(newer) == known or trace in self._older:
            return trace != _NO_TRACE
        if known >= self.MOST:
            self._newer, self._older = set(), newer
        return False


_traces: WeakKeyDictionary[aiohttp.ClientSession, _Traces] = WeakKeyDictionary()


def _give_up(body: RequestBody, response: aiohttp.ClientResponse | None) -> None:
    """End a request that has no whole response."""
    # A response that was read to its end has returned its connection, so others may use it.
    if response is None or response.connection is not None:
        body.give_up()
    if response is not None:
        response.close()


def _refused_by_proxy(status: int) -> tuple[str, bool]:
    """Say why a proxy made no connection, and whether it will refuse the next one, too."""
    reason = f"the proxy answered HTTP {status}, and made no connection"
    if status == 407:
        reason += ": pass the user and the password as proxy=http://user:password@proxy:3128"
    return reason, 400 <= status < 500 and status not in (408, 429)


def _is_impossible(error: Exception) -> bool:
    """Whether a request that was not sent can never be: because of its URL, or of what made it."""
    return not isinstance(error, _MAY_PASS) or isinstance(error, aiohttp.InvalidURL)


def _reason(error: Exception) -> str:
    """Say what happened, without quoting the response, because it may echo the key."""
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
