"""The handler for aiohttp's server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from .handling import (
    ANSWER_WITHIN,
    MAX_BODY,
    READ_WITHIN,
    TOO_LARGE,
    TOO_SLOW,
    UNREADABLE,
    Handling,
    Reply,
)

if TYPE_CHECKING:
    from aiohttp import web


async def respond(handling: Handling, request: web.BaseRequest) -> web.StreamResponse:
    """Answer one request."""
    from aiohttp import web  # late: who uses ASGI need not import aiohttp's server

    began = asyncio.get_running_loop().time()
    reply = _refuses(handling, request)
    if reply is None:
        try:
            async with asyncio.timeout_at(began + READ_WITHIN):
                body = await _read(request)
        except TimeoutError:
            reply = TOO_SLOW
        except OSError:  # the client has gone, and sees no answer
            reply = UNREADABLE
        except Exception as error:  # noqa: BLE001 - whatever decompressing or the socket raises
            reply = handling.unreadable(error)
        else:
            reply = await handling.answer(body, began + ANSWER_WITHIN)
    response = web.Response(
        status=reply.status, body=reply.body, headers={"Content-Type": "application/json"}
    )
    if not request.content.is_eof():
        await _hang_up(request, response)
    return response


def _refuses(handling: Handling, request: web.BaseRequest) -> Reply | None:
    reply = handling.refuses(request.remote, lambda name: request.headers.getall(name, []))
    if reply is None and request.method != "POST":
        return handling.not_posted(request.method)
    if reply is None and (request.content_length or 0) > MAX_BODY:
        return TOO_LARGE
    return reply


async def _read(request: web.BaseRequest) -> bytes:
    """Read a body, and a little more than allowed of a larger one."""
    body = bytearray()
    while len(body) <= MAX_BODY and (chunk := await request.content.readany()):
        body += chunk
    return bytes(body)


async def _hang_up(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Answer and close the connection, or aiohttp would read the rest of the body for 10 s."""
    response.force_close()
    with suppress(OSError):  # the client has gone
        await response.prepare(request)
        await response.write_eof()
    if request.transport is not None:
        request.transport.close()
