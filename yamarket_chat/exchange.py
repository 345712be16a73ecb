"""One HTTP request and its answer, with no policy: what was seen is told, nothing is repeated.

What was seen is a value, an `Answer` or a `NoAnswer`, and never one of aiohttp's exceptions: those
carry the headers of the request, and so the key.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aiohttp
import msgspec
from aiohttp import payload
from multidict import CIMultiDictProxy
from yarl import URL

from .models import Envelope

MAX_ANSWER = 16 * 2**20
"""Bytes of an answer that are read. A page of 100 messages of 4,096 characters, all escaped, with
some files each, is about 5 MB; what is longer is not the API."""


class Answer:
    """An answer that came: its status at least."""

    __slots__ = ("body", "fault", "form", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: CIMultiDictProxy[str],
        body: bytes,
        *,
        form: Any = None,
        fault: str | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.form = form  # decoded: of a 200 the operation's answer, else an Envelope; or None
        self.fault = fault  # why the body is not whole, or None

    @property
    def trace_id(self) -> str | None:
        """The id by which the Market finds the request: from `traceparent`, 00-<trace>-…"""
        parts = self.headers.get("traceparent", "").split("-")
        return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else None


class NoAnswer:
    """No answer came. `left` says whether the request may have reached the Market."""

    __slots__ = ("final", "left", "reason")

    def __init__(self, reason: str, *, left: bool, final: bool = False) -> None:
        self.reason = reason
        self.left = left
        self.final = final  # trying again is of no use


class Leaving(payload.Payload):
    """The body of a request, which knows whether the request may have left."""

    left = False

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write to a connection that was made; the headers go with it."""
        self.left = True
        await super().write_with_length(writer, content_length)


class Body(Leaving, payload.BytesPayload):
    """Some bytes, written in one piece with the headers."""

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write to a connection that was made."""
        try:
            await super().write_with_length(writer, content_length)
        except aiohttp.ClientConnectionResetError:
            self.left = False  # the connection had been closed: not a byte went out
            raise


class FetchFailed(Exception):
    """A file did not come. `passes` says whether it may the next time."""

    def __init__(self, reason: str, status: int | None, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.passes = passes


class Exchange:
    """Sends requests to one host, with the key."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        integration: str,
        timeout: float,
        http: aiohttp.ClientSession | None,
    ) -> None:
        self._base_url = base_url
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._headers = {
            "Api-Key": api_key,
            "X-Market-Integration": integration,
            "Accept": "application/json",
        }
        self._own_http = http is None
        self._http = http or aiohttp.ClientSession(
            # The number of connections is bounded by the parallel places.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": integration},
        )

    async def send(
        self, method: str, path: str, body: Leaving | None, answer: type[Any]
    ) -> Answer | NoAnswer:
        """Send one request; `path` with its query, escaped. `answer` is the form of a 200.

        Raises nothing but CancelledError: whatever else happens is part of what was seen.
        """
        try:
            response = await self._http.request(
                method,
                URL(self._base_url + path, encoded=True),
                data=body,
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
                raise_for_status=False,
            )
        except (
            aiohttp.ClientConnectorCertificateError,
            aiohttp.ServerFingerprintMismatch,
        ) as error:
            return NoAnswer(_reason(error), left=False, final=True)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return NoAnswer(_reason(error), left=False)
        except Exception as error:  # noqa: BLE001 - whatever a broken answer makes aiohttp raise
            left = body is None or body.left
            if self._http.closed:
                return NoAnswer("its aiohttp session is closed", left=left, final=True)
            return NoAnswer(_reason(error), left=left)
        fault = None
        chunks = []
        size = 0
        try:
            content = response.content
            while not content.at_eof():
                chunk = await content.readany()
                size += len(chunk)
                if size > MAX_ANSWER:
                    fault = f"more than {MAX_ANSWER} bytes"
                    response.close()
                    break
                chunks.append(chunk)
        except Exception as error:  # noqa: BLE001 - as above
            fault = _reason(error)
            response.close()
        except BaseException:
            response.close()
            raise
        body_bytes = b"".join(chunks)
        form = None
        if fault is None:
            form = decode(body_bytes, answer if response.status == 200 else Envelope)
        return Answer(response.status, response.headers, body_bytes, form=form, fault=fault)

    async def fetch(self, url: str, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """The content of an address in pieces. The key goes along to the Market's own host only.

        Raises FetchFailed.
        """
        target = URL(url)
        own = target.origin() == URL(self._base_url).origin()
        size = 0
        failed: FetchFailed | None = None
        try:
            async with self._http.get(
                target,
                headers=self._headers if own else None,
                # Each piece has the time of an attempt; a large file may take longer in all.
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=self._timeout.total, sock_read=self._timeout.total
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
        except (aiohttp.ClientError, OSError) as error:
            failed = FetchFailed(_reason(error), None, passes=True)
        if failed is not None:
            raise failed  # here, so that it does not carry aiohttp's own, which has the headers

    async def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._own_http:
            await self._http.close()


@functools.cache
def _decoder(form: Any) -> Callable[[bytes], Any]:
    # Not strict: ids may come as strings.
    return msgspec.json.Decoder(form, strict=False).decode


def decode(body: bytes, form: Any) -> Any:
    """The body in a form; None where it has another."""
    try:
        return _decoder(form)(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    """What happened, in words that quote nothing of the answer: it may echo the key."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host} ({error.os_error.strerror or 'no reason given'})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"an answer that is no HTTP ({type(error).__name__})"
