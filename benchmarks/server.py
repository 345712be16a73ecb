"""A minimal server that answers with the Market's headers, without limits and without state.

`python -m benchmarks.server [awake]` prints its address and serves until its stdin is closed. For
each line it prints how many requests it has answered. With `awake` it never sleeps meanwhile.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import sys
import time

ANSWER = b'{"status":"OK"}'
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Head:
    """The head of a response, built again each second."""

    made_at = 0
    value = b""
    answers = 0

    def __call__(self) -> bytes:
        now = int(time.time())
        if now != self.made_at:
            self.made_at = now
            self.value = (
                "HTTP/1.1 200 OK\r\n"
                f"Date: {email.utils.formatdate(now, usegmt=True)}\r\n"
                "Content-Type: application/json; charset=utf-8\r\n"
                f"Content-Length: {len(ANSWER)}\r\n"
                "traceparent: 00-4bf92f35%024x-00f067aa0ba902b7-01\r\n"
                "X-RateLimit-Resource-Limit: 1000000000\r\n"
                "X-RateLimit-Resource-Remaining: 1000000000\r\n"
                f"X-RateLimit-Resource-Until: {email.utils.formatdate(now + 3600, usegmt=True)}\r\n"
                "Connection: keep-alive\r\n\r\n"
            ).encode()
        self.answers += 1  # each answer of the Market has a trace of its own
        return self.value % self.answers


class Connection(asyncio.Protocol):
    """Answers each request as soon as it is complete."""

    def __init__(self, head: Head, seen: list[bytes] | None = None) -> None:
        self._head = head
        self._seen = seen  # raw requests, for the test that compares them
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(data, 0, end)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(data) < size:
                break
            if self._seen is not None:
                self._seen.append(data[:size])
            data = data[size:]
            self._transport.write(self._head() + ANSWER)
        self._received = data


async def listen(
    seen: list[bytes] | None = None, head: Head | None = None
) -> tuple[asyncio.Server, str]:
    """Start a server on a free port of loopback and return it with its address."""
    head = head or Head()
    server = await asyncio.get_running_loop().create_server(
        # With asyncio's backlog of 100, 512 clients that connect at once may be reset.
        lambda: Connection(head, seen),
        "127.0.0.1",
        0,
        backlog=1024,
    )
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _stay_awake() -> None:
    while True:  # noqa: ASYNC110 - it waits for no condition
        await asyncio.sleep(0)


async def main(*, awake: bool) -> None:
    """Serve requests until stdin is closed."""
    head = Head()
    server, url = await listen(head=head)
    async with server, asyncio.TaskGroup() as group:
        print(url, flush=True)
        busy = group.create_task(_stay_awake()) if awake else None
        while await asyncio.to_thread(sys.stdin.readline):
            print(head.answers, flush=True)
        if busy is not None:
            busy.cancel()


if __name__ == "__main__":
    asyncio.run(main(awake="awake" in sys.argv))
