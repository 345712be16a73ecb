"""The sandbox's socket and its connections, which can be broken at will."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

# Closing such a socket sends RST instead of FIN and throws away what was not sent.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Break a connection as a crashed server or a bad network does."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class _Connections(web.Server):
    """aiohttp's low-level server, which also tells when a connection is gone."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], **settings: Any) -> None:
        super().__init__(handler, **settings)
        self.transports: dict[web.RequestHandler, asyncio.Transport] = {}
        self._gone: dict[web.RequestHandler, asyncio.Event] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self.transports.pop(handler, None)
        if (gone := self._gone.pop(handler, None)) is not None:
            gone.set()

    async def wait_until_gone(self, handler: web.RequestHandler) -> None:
        if handler in self.transports:
            await self._gone.setdefault(handler, asyncio.Event()).wait()

    async def wait_until_all_gone(self) -> None:
        await asyncio.gather(*map(self.wait_until_gone, list(self.transports)))


class Listener:
    """Listens on one port and hands each request to `handler`; can go down and come back."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        host: str,
        port: int,
        *,
        idle_timeout: float,
        max_body: int,
    ) -> None:
        self._handler = handler
        self._host = host
        self._max_body = max_body
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = _Connections(
            self._handle,
            request_factory=self._make_request,
            keepalive_timeout=idle_timeout,
            access_log=None,
        )
        self._server: asyncio.Server | None = None
        self._kept: list[socket.socket] = []  # bound, not listening
        self.port = port

    async def open(self) -> None:
        if self._server is None:
            self._let_go()
            self._server = await asyncio.get_running_loop().create_server(
                self._connections, self._host, self.port
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse new connections and reset those there are; requests in progress go on.

        The port stays ours: somebody else's server there would answer in our place.
        """
        bound = [] if self._server is None else list(self._server.sockets)
        places = [(sock.family, sock.getsockname()) for sock in bound]
        self._refuse_new()
        for family, address in places:
            kept = socket.socket(family)
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(address)
            self._kept.append(kept)
        for transport in list(self._connections.transports.values()):
            reset(transport)
        await self._connections.wait_until_all_gone()

    async def stop(self) -> None:
        """Close, and end all that is in progress."""
        self._refuse_new()
        self._let_go()
        self._connections.pre_shutdown()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._connections.shutdown(timeout=1.0)
        for transport in list(self._connections.transports.values()):
            transport.abort()  # also where a client does not read its answer
        await self._connections.wait_until_all_gone()

    def _refuse_new(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _let_go(self) -> None:
        for kept in self._kept:
            kept.close()
        self._kept.clear()

    async def wait_until_gone(self, request: web.BaseRequest) -> None:
        await self._connections.wait_until_gone(request.protocol)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        # The connection's own task, which waits for this one and outlives it by a step.
        task = request.task
        self._tasks.add(task)
        try:
            return await self._handler(request)
        finally:
            self._tasks.discard(task)

    def _make_request(
        self,
        message: Any,
        payload: Any,
        protocol: web.RequestHandler,
        writer: Any,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            asyncio.get_running_loop(),
            client_max_size=self._max_body,
        )
