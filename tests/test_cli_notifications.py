"""`yamarket-chat notifications listen` and `send`, and `sandbox --notify`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.command import Command
from tests.helpers import http_server
from tests.test_cli import (
    Finished,
    _interruptible,  # noqa: F401
    end,
    in_process,  # noqa: F401
    run,
    start,
)
from tests.test_notifications import MARKET, Handler, body_of, receiver_of

pytestmark = pytest.mark.real_time

KINDS = (
    *("PING", "CHAT_CREATED", "CHAT_MESSAGE_SENT"),
    *("CHAT_ARBITRAGE_STARTED", "CHAT_ARBITRAGE_FINISHED"),
)


async def listen(*arguments: str) -> tuple[Command, str]:
    """Start the command, and return its address as well."""
    process = await start("notifications", "listen", "--port", "0", *arguments)
    line = (await process.stderr.readline()).decode()
    assert line.startswith("Listening on http://127.0.0.1:")
    assert line.endswith("/ until Ctrl-C\n")
    return process, line.split()[2]


async def stop(process: Command) -> Finished:
    process.send_signal(signal.SIGINT)
    finished = await end(process)
    assert finished.status == 0
    return finished


async def test_listen_prints_what_send_sends() -> None:
    process, url = await listen()
    sent = await run("notifications", "send", url, "--chat", "7", "--message", "42")
    assert sent.status == 0
    lines = sent.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(KINDS)
    assert all(": 200, " in line and "yamarket-chat 0." in line for line in lines)
    async with aiohttp.ClientSession() as client:
        for body, status in ((b'{"notificationType": "ORDER_CREATED"}', 200), (b"{", 400)):
            async with client.post(f"{url}any/path", data=body) as response:
                assert response.status == status
    finished = await stop(process)
    assert finished.out == (
        "CHAT_CREATED business 12345, chat 7\n"
        "CHAT_MESSAGE_SENT business 12345, chat 7, message 42\n"
        "CHAT_ARBITRAGE_STARTED business 12345, chat 7\n"
        "CHAT_ARBITRAGE_FINISHED business 12345, chat 7\n"
        'ORDER_CREATED {"notificationType":"ORDER_CREATED"}\n'
    )
    assert "the Market has sent a PING\n" in finished.err
    assert "Warning: a notification was answered 400: the body is no JSON object" in finished.err


async def test_listen_prints_json_as_the_market_sends_it() -> None:
    process, url = await listen("--json")
    sent = await run(
        *("notifications", "send", url, "--json", "--kind", "CHAT_MESSAGE_SENT"),
        YAMARKET_BUSINESS_ID="6",
    )
    assert sent.status == 0
    result = json.loads(sent.out)
    assert result.pop("seconds") < 10
    assert result == {"type": "CHAT_MESSAGE_SENT", "status": 200, "problem": None}
    event = json.loads((await stop(process)).out)
    assert event.pop("sentAt").endswith("Z")
    assert event == {
        "notificationType": "CHAT_MESSAGE_SENT",
        "businessId": 6,
        "chatId": 17,
        "messageId": 1,
    }


async def test_listen_ends_if_nobody_reads_its_output() -> None:
    process, url = await listen()
    process.stdout._transport.close()  # type: ignore[attr-defined]
    await run("notifications", "send", url, "--kind", "CHAT_CREATED")
    assert await process.wait() == 1


async def test_listen_lets_the_client_of_a_trusted_proxy_in() -> None:
    process, url = await listen("--trusted-proxy", "127.0.0.1", "--network", "203.0.113.0/24")
    async with aiohttp.ClientSession() as client:
        for address, status in (("203.0.113.9", 200), (MARKET, 403)):
            headers = {"X-Forwarded-For": address}
            async with client.post(url, data=body_of(), headers=headers) as response:
                assert response.status == status
    told = (
        f"answered 403, the last from {MARKET}, as the trusted proxy 127.0.0.1 says in X-Forwarded-"
    )
    assert told in (await stop(process)).err


async def test_sandbox_notifies_the_address_of_the_option() -> None:
    listening, url = await listen()
    sandbox = await start(
        *("sandbox", "--latency", "0", "--notify", url, "--notify-faults", "0.001", "--seed", "1")
    )
    lines = [(await sandbox.stdout.readline()).decode().strip() for _ in range(3)]
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert (await run("sandbox", "say", "7", "Где мой заказ?", **variables)).status == 0
    heard = [(await listening.stdout.readline()).decode() for _ in range(2)]
    assert heard == [
        "CHAT_CREATED business 12345, chat 7\n",
        "CHAT_MESSAGE_SENT business 12345, chat 7, message 1\n",
    ]
    assert "--seed 1 repeats the same faults" in (await stop(sandbox)).err
    await stop(listening)


async def test_send_says_what_is_wrong_with_a_receiver() -> None:
    async with http_server(receiver_of().aiohttp) as url:
        finished = await run("notifications", "send", url, "--kind", "PING")
        assert finished.status == 1
        assert "PING: 403, " in finished.out
        assert "UNKNOWN: The request does not come from the Market" in finished.out
        assert "add its address to networks" in finished.err
    handler = Handler(error=RuntimeError("secret"))
    async with http_server(receiver_of(handler, networks=["127.0.0.1"]).aiohttp) as url:
        finished = await run("notifications", "send", url, "--json")
        assert finished.status == 1
        results = [json.loads(line) for line in finished.out.splitlines()]
        assert [result["status"] for result in results] == [200, 500, 500, 500, 500]
        assert results[1]["problem"] == "UNKNOWN: The event was not processed"

    async def answer(request: Any) -> Any:
        return aiohttp.web.Response(text='{"name": "", "version": "1", "time": "now"}')

    async with http_server(answer) as url:
        finished = await run("notifications", "send", url, "--kind", "PING")
        assert finished.status == 1
        assert "the answer is not in the documented form: " in finished.out


def test_wrong_usage_of_notifications_prints_one_line(
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    for arguments, told in (
        (("send",), "Missing argument 'URL'"),
        (("send", "127.0.0.1:8080"), "is no URL of a receiver"),
        (("send", "http://[::1"), "is no URL of a receiver"),
        (("send", "http://127.0.0.1:99999/"), "Port out of range"),
        (("send", "http://127.0.0.1:1/", "--kind", "ORDER_CREATED"), "Invalid value for"),
        (("listen", "--network", "everybody"), "networks: "),
        (("listen", "--port", "65536"), "Invalid value for"),
        (("listen", "--host", ".."), "is no name or address of a machine"),
    ):
        finished = in_process("notifications", *arguments)
        assert finished.status == 2, arguments
        assert told in finished.err
    finished = in_process("sandbox", "--notify-faults", "0.5")
    assert finished.status == 2
    assert finished.err.startswith("Error: --notify-faults needs the address of a receiver")
    finished = in_process("sandbox", "--host", "..")
    assert finished.status == 2
    assert "is no name or address of a machine" in finished.err
    finished = in_process("sandbox", "--notify", "localhost:8080")
    assert finished.status == 2
    assert "is no URL of a receiver" in finished.err
    finished = in_process("notifications", "send", "http://127.0.0.1:1/", "--kind", "PING")
    assert finished.status == 1
    assert finished.out.startswith("PING: ")
    finished = in_process("notifications", "listen", "--host", "192.0.2.1")
    assert finished.status == 1
    assert finished.err.startswith("Error: cannot listen on 192.0.2.1, port 8080: ")
