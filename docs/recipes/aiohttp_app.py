"""python aiohttp_app.py"""

import math
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from aiohttp import web
from outgoing import Outgoing

from yamarket_chat import (
    ChatError,
    ChatSession,
    DeliveryUnknownError,
    InvalidArgumentError,
    MaxWaitExceededError,
)

LEFT = Path(os.environ.get("LEFT", "left.json"))
OUTGOING = web.AppKey("outgoing", Outgoing)


class Reply(msgspec.Struct):
    chat_id: int
    text: str


async def reply(request: web.Request) -> web.Response:
    try:
        reply = msgspec.json.decode(await request.read(), type=Reply)
        receipt = await request.app[OUTGOING].send(reply.chat_id, reply.text)
    except (msgspec.DecodeError, InvalidArgumentError) as error:
        return web.json_response({"error": str(error)}, status=422)
    except MaxWaitExceededError as error:  # the limit is used up; nothing was sent
        retry_after = {"Retry-After": str(math.ceil(error.retry_after or 1))}
        return web.json_response({"error": str(error)}, status=429, headers=retry_after)
    except DeliveryUnknownError:
        return web.json_response({"status": "unknown"}, status=202)  # the next start settles it
    except ChatError as error:  # refused: surely not carried out
        return web.json_response({"error": str(error)}, status=502)
    if receipt is None:
        return web.json_response({"status": "sending"}, status=202)
    return web.json_response({"status": "sent", "trace_id": receipt.trace_id})


async def outgoing(app: web.Application) -> AsyncIterator[None]:
    app[OUTGOING] = Outgoing(ChatSession(max_wait=3), LEFT)
    yield
    await app[OUTGOING].close(grace=20)  # after the handlers; see shutdown_timeout


def make_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/replies", reply)
    app.cleanup_ctx.append(outgoing)
    return app


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, shutdown_timeout=7)
