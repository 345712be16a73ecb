"""Connections that send nothing more after a request was given up."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

import aiohttp

from .system import make_socket

GIVEN_UP_AFTER = 10
"""Seconds after which the kernel drops what the other end has not acknowledged. Otherwise it
retransmits for 15 minutes, and delivers a message long after its chat's history was read."""

# Closing a socket then discards what the kernel has not sent yet, and resets the connection.
# Windows has two shorts in it.
_DISCARD = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def connector(**settings: Any) -> aiohttp.TCPConnector:
    """Make a connector for an aiohttp session of yours that you pass as `http`.

    The kernel goes on sending what was written to a connection, even after the connection is
    closed. In a network outage, a message could arrive long after its request was given up. On the
    connections of this connector, the kernel discards unsent data when the connection is closed or
    the process is killed. On Linux, it also gives up data that was not acknowledged for 10 s.

    The session's own connections are made in the same way.

    Args:
        settings: The arguments of `aiohttp.TCPConnector`, except `socket_factory`.

    Returns:
        The connector. It belongs to the running event loop.

    Example:
        async with aiohttp.ClientSession(connector=connector(limit=0, keepalive_timeout=4)) as http:
            async with ChatSession(api_key, business_id, http=http) as session:
                await session.send_message(chat_id, "Ваш заказ в пути")
    """
    return _Connector(**settings, socket_factory=_make_socket)


class _Connector(aiohttp.TCPConnector):
    """A connector that a forked child may collect.

    Parent and child share one epoll. If the child closed the connections, the parent would wait for
    ever for what comes on them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._process = os.getpid()

    def __del__(self, *warnings: Any) -> None:
        if os.getpid() == getattr(self, "_process", None):
            super().__del__(*warnings)


def _make_socket(address: tuple[Any, ...]) -> socket.socket:
    made = make_socket(*address[:3])
    with suppress(OSError):  # not every system knows each option
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        _limit_repeats(made, GIVEN_UP_AFTER * 1000)
    return made


def _limit_repeats(sock: Any, milliseconds: int) -> None:
    """Let the kernel drop what the other end has not acknowledged for so long."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def discard(transport: asyncio.Transport) -> None:
    """Close a connection, and send nothing more of what was written to it.

    `close` and `abort` alone leave what is in the kernel's buffer, which is sent later. This works
    after `close` as well, in the same pass of the loop.
    """
    try:
        sock = transport.get_extra_info("socket")
    except AttributeError:
        return  # asyncio has lost a TLS connection that was aborted, and closed after that
    if sock is not None:
        # Already closed (uvloop then raises ValueError), or not a TCP socket.
        with suppress(OSError, ValueError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
            # The loop closes the socket in its next pass. A program may block the loop before
            # that, for example to write the error down.
            _limit_repeats(sock, 1)
    transport.abort()
