"""The ASGI application: for uvicorn, and within FastAPI, Starlette, Litestar and Django."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .handling import (
    ANSWER_WITHIN,
    MAX_BODY,
    READ_WITHIN,
    TOO_LARGE,
    TOO_SLOW,
    Handling,
    Reply,
)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class AsgiReceiver:
    """An ASGI application that answers the Market on whatever path it is called.

    An object and no function: Starlette wraps functions, and a mount would redirect a POST to the
    bare path.
    """

    def __init__(self, handling: Handling) -> None:
        self._handling = handling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI 3 defines it.

        Args:
            scope: What is known of the request. Requests of HTTP and the lifespan are served.
            receive: Returns the next event from the server.
            send: Sends an event to the server.
        """
        if scope["type"] == "http":
            await self._respond(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before it is open: 403

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = asyncio.get_running_loop().time()
        # The server still has to read a body that is not read here, unless it hangs up.
        reply, is_read = self._refuses(scope), False
        if reply is None:
            try:
                async with asyncio.timeout_at(began + READ_WITHIN):
                    body = await _read(receive)
            except TimeoutError:
                reply = TOO_SLOW
            else:
                if body is None:
                    return  # the client has gone
                is_read = len(body) <= MAX_BODY
                reply = await self._handling.answer(body, began + ANSWER_WITHIN)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(reply.body)).encode()),
        ]
        if not is_read and str(scope.get("http_version", "1.1")).startswith("1"):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def _refuses(self, scope: Scope) -> Reply | None:
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])

        def header(name: str) -> list[str]:
            wanted = name.encode()
            return [value.decode("latin-1") for key, value in headers if key.lower() == wanted]

        client = scope.get("client")
        reply = self._handling.refuses(client[0] if client else None, header)
        if reply is None and scope["method"] != "POST":
            return self._handling.not_posted(scope["method"])
        if reply is None and any(
            length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY
            for length in header("content-length")
        ):
            return TOO_LARGE
        return reply

    async def _live(self, receive: Receive, send: Send) -> None:
        """Be an application of its own: close the receiver as the server shuts down.

        A test client starts the same application again and again.
        """
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._handling.open()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._handling.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _read(receive: Receive) -> bytes | None:
    """Read a body, and a little more than allowed of a larger one. None if the client has gone."""
    body = bytearray()
    while len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)
