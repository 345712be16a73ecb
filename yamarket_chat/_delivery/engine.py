"""What a session has from its first call on: connections, calls, sending and downloads."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from .._http.attempt import running_task
from .._http.download import download
from .._http.exchange import Exchange
from ..errors import SessionClosedError
from ..limits import Limits
from ..models import File
from ..retry import Retry
from .calls import Calls
from .failures import Failures
from .sending import Sending
from .shared import attach


class Engine:
    """Puts the rooms together for one session, on the event loop of its first call."""

    def __init__(
        self,
        api_key: str,
        business_id: int | None,
        base_url: str,
        *,
        limits: Limits,
        retry: Retry,
        timeout: float,
        http: aiohttp.ClientSession | None,
        integration: str,
    ) -> None:
        self._shared = attach(str(URL(base_url).origin()), business_id, limits)
        self._shared.deliveries.attempts_take(timeout)
        self._exchange = Exchange(
            base_url, api_key, integration=integration, timeout=timeout, http=http
        )
        self._retry = retry
        self._failures = Failures(api_key)
        self._downloads: dict[asyncio.Task[Any], None] = {}
        self._closed: asyncio.Event | None = None
        self._sending: Sending | None = None
        self.scheduler = self._shared.scheduler
        self.calls = Calls(self._exchange, self._shared, self._failures, retry)

    def sending(self, business_id: int) -> Sending:
        """Return what sends messages; it is made when the first one is sent."""
        if self._sending is None:
            self._sending = Sending(
                self.calls, self._shared, self._failures, business_id, self._retry
            )
        return self._sending

    async def download(self, file: File, path: Path | None, max_bytes: int) -> bytes | Path:
        """Download a file; see `ChatSession.download`."""
        task = running_task()
        cancelling = task.cancelling()
        self._downloads[task] = None
        try:
            return await download(self._exchange, file, path, max_bytes, self._retry)
        except asyncio.CancelledError:
            if self._closed is not None and task.uncancel() <= cancelling:
                raise SessionClosedError(
                    f"{file.name!r}: the session was closed; download it again in a new one"
                ) from None
            raise
        finally:
            del self._downloads[task]

    async def close(self, grace: float) -> None:
        """End all calls and the connections; see `ChatSession.close`."""
        if self._closed is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._closed.wait()
            return
        self._closed = asyncio.Event()
        try:
            await (self._sending or self.calls).close(grace)
        finally:
            for task in self._downloads:
                task.cancel()
            self._shared.sessions -= 1
            try:
                await self._exchange.close()
            finally:
                self._closed.set()
