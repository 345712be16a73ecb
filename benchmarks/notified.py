"""The programs of the benchmark of notifications: a receiver, and a flood of strangers.

`python -m benchmarks.notified serve NAME SLOWEST` prints its port and serves until its stdin is
closed. For each line it prints what it has done so far. `… flood PORT SECONDS` floods a port, and
prints how often.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from yamarket_chat.notifications import ChatMessageSent, Event, Receiver

GENUINE = "127.0.0.1"
STRANGERS = [f"127.0.0.{number}" for number in range(2, 10)]
STRANGE_CHAT = 666
AT_ONCE = 16
BODY = b'{"notificationType":"CHAT_MESSAGE_SENT","businessId":1,"chatId":666,"messageId":"1",'


class Heard:
    """What the handlers have done."""

    def __init__(self, slowest: float) -> None:
        self._slowest = slowest
        self.handled = 0
        self.strangers = 0

    async def on_event(self, event: Event) -> None:
        if isinstance(event, ChatMessageSent) and event.chat_id == STRANGE_CHAT:
            self.strangers += 1
        await asyncio.sleep(random.uniform(0, self._slowest))
        self.handled += 1


async def exchange(
    port: int, source: str, body: bytes, declared: int | None = None
) -> tuple[int, float]:
    """POST over a connection of its own. Return the status, 0 if it was cut, and the seconds."""
    began = time.monotonic()
    status = 0
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        with suppress(OSError):
            writer.write(
                b"POST /notification HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % (declared or len(body))
                + body
            )
            answer = await reader.read(65536)
            status = int(answer[9:12] or 0)
            while await reader.read(65536):
                pass
        writer.close()
    return status, time.monotonic() - began


@asynccontextmanager
async def _serving(name: str, receiver: Receiver) -> AsyncIterator[int]:
    if name == "aiohttp":
        from aiohttp import web

        app = web.Application()
        app.router.add_post("/notification", receiver.aiohttp)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        yield runner.addresses[0][1]
        await runner.cleanup()
        return
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(receiver.asgi, port=0, log_level="error", access_log=False, backlog=1024)
    )
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def serve(name: str, slowest: float) -> None:
    """Run a receiver until stdin is closed. Its handlers take up to some seconds."""
    heard = Heard(slowest)
    receiver = Receiver(heard.on_event, name="benchmark", version="1", networks=[GENUINE])
    async with _serving(name, receiver) as port:
        print(port, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            figures = {
                "cpu": time.process_time(),
                "handled": heard.handled,
                "strangers": heard.strangers,
            }
            print(json.dumps(figures), flush=True)


async def flood(port: int, seconds: float) -> None:
    """Send from foreign addresses, as fast as it goes, and print how many requests that were."""
    end = time.monotonic() + seconds
    answers = {"refused": 0, "cut": 0, "let_in": 0}
    body = BODY + b" " * 4096

    async def send(source: str) -> None:
        while time.monotonic() < end:
            status, _ = await exchange(port, source, body, declared=60_000)
            answers["refused" if status == 403 else "cut" if status == 0 else "let_in"] += 1

    await asyncio.gather(*(send(STRANGERS[n % len(STRANGERS)]) for n in range(AT_ONCE)))
    print(json.dumps(answers), flush=True)


def on_core(first: bool) -> None:
    """Leave the first core to the receiver, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:1] if first else cores[1:] or cores)


if __name__ == "__main__":
    logging.disable()
    what, subject, seconds = sys.argv[1:]
    on_core(what == "serve")
    if what == "serve":
        asyncio.run(serve(subject, float(seconds)))
    else:
        asyncio.run(flood(int(subject), float(seconds)))
