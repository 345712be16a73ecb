"""python aiohttp_app.py

One process with a file beside it. YAMARKET_OUTBOX is the file: sqlite:///outbox.db
"""

import os
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from yamarket_chat import ChatError, InvalidArgumentError
from yamarket_chat.outbox import KeyConflictError, Outbox, OutboxMessage

BUSINESS = int(os.environ["YAMARKET_BUSINESS_ID"])
OUTBOX = web.AppKey("outbox", Outbox)


class Reply(msgspec.Struct):
    key: str  # of the caller's: a repeated request sends nothing twice
    chat_id: int
    text: str


async def reply(request: web.Request) -> web.Response:
    outbox = request.app[OUTBOX]
    try:
        reply = msgspec.json.decode(await request.read(), type=Reply)
        number = await outbox.put(OutboxMessage(BUSINESS, reply.chat_id, reply.text, key=reply.key))
    except (msgspec.DecodeError, InvalidArgumentError) as error:
        return web.json_response({"error": str(error)}, status=422)
    except KeyConflictError as error:
        return web.json_response({"error": str(error)}, status=409)
    try:
        receipt = await outbox.result(number, timeout=5)
    except TimeoutError:  # it goes on by itself
        return web.json_response({"status": "waiting", "message": number}, status=202)
    except ChatError as error:  # refused, or nothing tells whether it arrived
        return web.json_response({"error": str(error)}, status=502)
    return web.json_response({"status": "sent", "trace_id": receipt.trace_id})


async def delivering(app: web.Application) -> AsyncIterator[None]:
    async with Outbox(os.environ["YAMARKET_OUTBOX"]) as outbox:
        await outbox.create()
        app[OUTBOX] = outbox
        async with outbox.delivering({BUSINESS: os.environ["YAMARKET_API_KEY"]}):
            yield


def make_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/replies", reply)
    app.cleanup_ctx.append(delivering)
    return app


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, shutdown_timeout=7)
