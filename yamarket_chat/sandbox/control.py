"""How the command `yamarket-chat sandbox say` lets the buyer of a running sandbox speak.

This is no part of the Market's API. A request needs a header that only the command sets, and must
come from this machine. For all other requests the path does not exist, as at the Market. The header
also keeps web pages out, because a browser asks before it sends one to another site.
"""

from __future__ import annotations

import ipaddress

import msgspec
from aiohttp import web

from .api import MAX_FILE as MAX_FILE
from .api import parse_id
from .state import State

PATH = "/sandbox/say"
HEADER = "X-Yamarket-Sandbox"
VALUE = "control"


class Said(msgspec.Struct):
    """The message that was stored."""

    chat_id: int
    message_id: int


class Refused(msgspec.Struct):
    """Why nothing was stored."""

    problem: str


def is_control(request: web.BaseRequest) -> bool:
    """Return True if the request comes from the command."""
    return (
        request.path == PATH
        and request.method == "POST"
        and request.headers.get(HEADER) == VALUE
        and _is_loopback(request.remote)
    )


async def handle(request: web.BaseRequest, state: State) -> web.Response:
    """Store what the buyer says: the body is a text, or a file if the parameter `file` names it."""
    content = bytearray()
    async for chunk in request.content.iter_any():
        content += chunk
        if len(content) > MAX_FILE:
            return _respond(400, Refused(f"a file has at most {MAX_FILE} bytes"))
    chat_id = parse_id(request.query.get("chatId", ""))
    chat = None if chat_id is None else state.chat(chat_id)
    if chat is None:
        return _respond(404, Refused("the sandbox has no such chat"))
    name = request.query.get("file")
    if name is not None:
        message = state.store(chat, "CUSTOMER", None, [(name, bytes(content))])
    else:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = ""
        if not text:
            return _respond(400, Refused("the text is empty or not UTF-8"))
        message = state.store(chat, "CUSTOMER", text)
    return _respond(200, Said(chat.chat_id, message.message_id))


def _respond(status: int, answer: Said | Refused) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(answer), headers={HEADER: VALUE})


def _is_loopback(address: str | None) -> bool:
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False
