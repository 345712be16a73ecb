"""The sandbox's listening socket and its connections."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from yamarket_chat.system import make_socket

# With this option, closing a socket sends RST instead of FIN and discards the send buffer.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Reset a connection, as a crashed server or a broken network does."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class _Connections(web.Server):
    """aiohttp's low-level server. One can also wait until a connection is closed."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], **settings: Any) -> None:
        super().__init__(handler, **settings)
        self.transports: dict[web.RequestHandler, asyncio.Transport] = {}
        self._closed: dict[web.RequestHandler, asyncio.Event] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self.transports.pop(handler, None)
        if (closed := self._closed.pop(handler, None)) is not None:
            closed.set()

    async def wait_until_closed(self, handler: web.RequestHandler) -> None:
        if handler in self.transports:
            await self._closed.setdefault(handler, asyncio.Event()).wait()

    async def wait_until_all_closed(self) -> None:
        await asyncio.gather(*map(self.wait_until_closed, list(self.transports)))


class Listener:
    """Listens on one port and passes each request to `handler`. It can be closed and reopened."""

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
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._connections = _Connections(
            self._handle,
            request_factory=self._make_request,
            keepalive_timeout=idle_timeout,
            access_log=None,
        )
        self._server: asyncio.Server | None = None
        self._reserved: list[socket.socket] = []  # bound to the port, not listening
        self.port: int = port

    async def open(self) -> None:
        if self._server is None:
            self._release_port()
            self._server = await asyncio.get_running_loop().create_server(
                self._connections, self._host, self.port
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse new connections and reset the open ones. Requests in progress continue.

        The port stays reserved, because another program that listens there would get our requests.
        """
        bound = [] if self._server is None else list(self._server.sockets)
        addresses = [(sock.family, sock.getsockname()) for sock in bound]
        self._stop_listening()
        for family, address in addresses:
            reserved = make_socket(family)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(address)
            self._reserved.append(reserved)
        for transport in list(self._connections.transports.values()):
            reset(transport)
        await self._connections.wait_until_all_closed()

    async def stop(self) -> None:
        """Close all connections and cancel the requests in progress."""
        self._stop_listening()
        self._release_port()
        self._connections.pre_shutdown()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._connections.shutdown(timeout=1.0)
        for transport in list(self._connections.transports.values()):
            transport.abort()  # shutdown() leaves those whose client does not read its response
        await self._connections.wait_until_all_closed()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _release_port(self) -> None:
        for reserved in self._reserved:
            reserved.close()
        self._reserved.clear()

    async def wait_until_closed(self, request: web.BaseRequest) -> None:
        await self._connections.wait_until_closed(request.protocol)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        # aiohttp's task of the connection; it ends shortly after this coroutine does.
        task = request.task
        self._tasks[task] = None
        try:
            return await self._handler(request)
        finally:
            self._tasks.pop(task, None)

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
