"""The public class `Receiver`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from ..arguments import check_async, check_encodable
from ..errors import InvalidArgumentError
from .asgi import AsgiReceiver
from .gate import MARKET_NETWORKS, Gate, Header
from .handling import ANSWER_WITHIN, Handling, OnEvent, Reply

if TYPE_CHECKING:
    from aiohttp import web

MAX_NAME = 100
"""Characters of the name and of the version, as documented for the answer."""

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Receiver:
    """Answers the notifications that the Market POSTs, and passes their events on.

    A PING is answered at once, and never waits for `on_event`. All other events are answered 200
    after `on_event` has returned. If `on_event` raises, the answer is 500. If it takes longer than
    9 s, it is cancelled, and the answer is 500 as well. After a 500 the Market sends the event
    again. It may also send an event more than once, late, out of order or never, so take an event
    as a hint to read the chat's history.

    Requests that do not come from the Market are answered 403, and their body is not read.

    A receiver belongs to one event loop at a time. `on_event` must not block it.

    Attributes:
        asgi: The receiver as an ASGI application, for FastAPI, Starlette, Litestar, Django and
            any ASGI server.

    Args:
        on_event: An async function that takes the event. It is not called for a PING. It is
            called for several events at the same time.
        name: The name of your program, which the answers contain: 1 to 100 characters.
        version: The version of your program: 1 to 100 characters.
        networks: The networks that are let in, instead of the Market's.
        trusted_proxies: The networks of your own proxies. Only if a connection comes from one of
            them, the client's address is read from X-Forwarded-For or Forwarded, from the right, up
            to the first address that is not a trusted proxy's. "unix:" trusts connections without
            an address, such as those of a Unix socket; otherwise they are answered 403.

    Raises:
        InvalidArgumentError: An argument is out of range or has the wrong type.

    Example:
        async def on_event(event: Event) -> None:
            if isinstance(event, ChatMessageSent):
                print("look at chat", event.chat_id)

        receiver = Receiver(on_event, name="my-shop", version="1.0")
        app = aiohttp.web.Application()
        app.router.add_post("/notification", receiver.aiohttp)
    """

    def __init__(
        self,
        on_event: OnEvent,
        *,
        name: str,
        version: str,
        networks: Iterable[str | IPv4Network | IPv6Network] = MARKET_NETWORKS,
        trusted_proxies: Iterable[str | IPv4Network | IPv6Network] = (),
    ) -> None:
        check_async("on_event", on_event)
        self._handling = Handling(
            on_event,
            _checked("name", name),
            _checked("version", version),
            Gate(networks, trusted_proxies),
        )
        self.asgi: AsgiReceiver = AsgiReceiver(self._handling)

    async def aiohttp(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request of aiohttp's server: a handler for `add_post`.

        Args:
            request: The request.

        Returns:
            The response.

        Example:
            app = aiohttp.web.Application()
            app.router.add_post("/notification", receiver.aiohttp)
        """
        from .web import respond

        return await respond(self._handling, request)

    async def reply(self, body: bytes, remote: str | None, headers: Headers = ()) -> Reply:
        """Answer a request of any other framework. No exception of `on_event` comes out of it.

        Args:
            body: The body of the POST. Read at most 65,537 bytes: more than 65,536 are refused.
            remote: The address of the connection's other end, such as "5.45.207.1". None if the
                connection has none.
            headers: The headers of the request, if `trusted_proxies` are to count.

        Returns:
            The status and the body of the answer.

        Example:
            reply = await receiver.reply(b'{"notificationType": "PING"}', "5.45.207.1")
            assert reply.status == 200
        """
        deadline = asyncio.get_running_loop().time() + ANSWER_WITHIN
        refused = self._handling.refuses(remote, _header(headers))
        return refused or await self._handling.answer(body, deadline)

    def admits(self, remote: str | None, headers: Headers = ()) -> bool:
        """Return whether a request is from the Market and would be answered. Read no body if not.

        Args:
            remote: The address of the connection's other end. None if it has none.
            headers: The headers of the request, if `trusted_proxies` are to count.

        Example:
            assert not receiver.admits("192.0.2.1")
        """
        return self._handling.admits(remote, _header(headers))

    async def close(self) -> None:
        """Answer 503 from now on, and wait until the handlers that have begun end.

        After 10 s, those that still run are cancelled. `asgi` does this by itself if an ASGI
        server runs it as an application of its own.

        Example:
            await receiver.close()
        """
        await self._handling.close()

    def open(self) -> None:
        """Answer again after `close`: if a test starts the same application more than once.

        `asgi` does this by itself if an ASGI server runs it as an application of its own, and
        `Bot.running` does it as it begins.

        Example:
            receiver.open()
        """
        self._handling.open()


def _header(headers: Headers) -> Header:
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    return lambda name: [value for key, value in pairs if key.lower() == name]


def _checked(name: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise InvalidArgumentError(f"{name} must be a text of 1 to {MAX_NAME} characters")
    check_encodable(name, value)
    return value
