"""The parts of a session that its first call creates: connections, calls, sending and downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from .._http import operations
from .._http.attempt import running_task, unlimited_attempt
from .._http.download import download
from .._http.exchange import Exchange
from .._http.operations import OPERATIONS, Operation
from .._http.proxies import Proxies
from .._limits.clock import Clock
from ..errors import InvalidArgumentError, SessionClosedError
from ..limits import Limits, QuotaStatus
from ..listing import Listing
from ..models import File
from ..retry import Retry
from ..secret import Secret
from .calls import Calls, Query
from .failures import Failures
from .reading import listing
from .sending import Sending
from .shared import shared_by


class Engine:
    """Connects the modules for one session, on the event loop of its first call."""

    def __init__(
        self,
        api_key: Secret,
        business_id: int | None,
        base_url: str,
        *,
        limits: Limits,
        retry: Retry,
        timeout: float,
        http: aiohttp.ClientSession | None,
        proxy: str | None,
        integration: str,
    ) -> None:
        proxies = Proxies(proxy, environment=http is None)
        del proxy  # no frame of a traceback shows its password
        proxies.of(URL(base_url))  # this may raise, so it comes before there is anything to undo
        self._shared = shared_by(str(URL(base_url).origin()), business_id, limits)
        self._shared.deliveries.note_timeout(timeout)
        self._exchange = Exchange(
            base_url,
            api_key,
            integration=integration,
            timeout=timeout,
            http=http,
            proxies=proxies,
        )
        self._business_id = business_id
        self._retry = retry
        self._failures = Failures(api_key)
        self._closed: asyncio.Event | None = None
        self._calls = Calls(self._exchange, self._shared, self._failures, retry)
        self._calls_to_close: Calls | Sending = self._calls
        self.check_loop: Callable[[], None] = self._calls.check_loop
        self.status: Callable[[str], QuotaStatus] = self._shared.scheduler.status
        self._shared.sessions += 1  # last: what has raised holds nobody up

    @cached_property
    def sending(self) -> Sending:
        """The sender of messages, which is created when the first message is sent."""
        self._calls_to_close = sending = Sending(
            self._calls, self._shared, self._failures, self._business(), self._retry
        )
        return sending

    async def ask(
        self, name: str, max_wait: float | None, *, query: str = "", content: object = None
    ) -> Any:
        """Carry out an operation that sends nothing to a chat, and return its result."""
        operation = OPERATIONS[name]
        body = b"" if content is None else msgspec.json.encode(content)
        request = Query(operation, self._path(operation), query, body)
        return await self._calls.ask(request, max_wait=max_wait)

    async def request(
        self, method: str, target: URL, body: bytes, *, repeatable: bool, max_wait: float | None
    ) -> Any:
        """Call any other method of the API; see `ChatSession.request`."""
        operation = operations.other(method, repeatable=repeatable)
        request = Query(operation, target.raw_path, target.raw_query_string, body)
        return await self._calls.ask(request, max_wait=max_wait)

    def listing(
        self,
        name: str,
        *,
        query: Mapping[str, int] | None = None,
        body: Mapping[str, Any] | None = None,
        page_token: str | None,
        max_wait: float | None,
    ) -> Listing[Any]:
        """Return the list of an operation."""
        operation = OPERATIONS[name]
        ask = partial(self._calls.ask, max_wait=max_wait)
        path = self._path(operation)
        return listing(ask, operation, path, query=query, body=body, page_token=page_token)

    async def download(self, file: File, path: Path | None, max_bytes: int) -> bytes | Path:
        """Download a file; see `ChatSession.download`."""
        # It needs no slot, but it is in progress like a call: closing waits for it or cancels it.
        group = self._calls.group
        attempt = unlimited_attempt(running_task(), asyncio.get_running_loop().time())
        group.under_way[attempt] = None
        cancelled: asyncio.CancelledError | None = None
        try:
            return await download(self._exchange, file, path, max_bytes, self._retry)
        except asyncio.CancelledError as error:
            if attempt.take_back_cancels() == "caller":
                # A new one, without aiohttp's frames, whose variables hold the key.
                cancelled = asyncio.CancelledError(*error.args)
        finally:
            group.attempt_ended(attempt)
        if cancelled is not None:
            raise cancelled
        raise SessionClosedError(
            f"{file.name!r}: the session was closed: download it again in a new one"
        )

    def market_clock(self) -> Clock | None:
        """Return the Market's clock; None if it has not answered yet."""
        return self._shared.clock.now()

    async def close(self, grace: float) -> None:
        """End all calls and the connections; see `ChatSession.close`."""
        if self._closed is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._closed.wait()
            if not self._closed.is_set():
                self._calls_to_close.cut_short()
                await self._closed.wait()
            return
        self._closed = asyncio.Event()
        try:
            await self._calls_to_close.close(grace)
        finally:
            self._shared.sessions -= 1
            try:
                await self._exchange.close()
            finally:
                self._closed.set()

    def _business(self) -> int:
        if self._business_id is None:
            raise InvalidArgumentError(
                "business_id is missing: pass it or set YAMARKET_BUSINESS_ID; campaigns() lists it"
            )
        return self._business_id

    def _path(self, operation: Operation) -> str:
        if "{business_id}" not in operation.path:
            return operation.path
        return operation.path.format(business_id=self._business())
