"""`yamarket-chat sandbox say`: the buyer of a running sandbox speaks."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.test_cli import (
    Finished,
    _interruptible,  # noqa: F401
    end,
    in_process,  # noqa: F401
    run,
    start,
)
from tests.test_readme import market  # noqa: F401
from yamarket_chat.sandbox import Sandbox, control

CONTROL = {control.HEADER: control.VALUE}


@pytest.mark.real_time
async def test_sandbox_say_reaches_a_bot_as_a_message_of_the_buyer(tmp_path: Path) -> None:
    process = await start("sandbox", "--latency", "0")
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode().strip() for _ in range(3)]
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    said = await run("sandbox", "say", "7", "Где мой заказ?", **variables)
    assert said == Finished(0, "The buyer of chat 7 has sent message 1\n", "")
    history = await run("history", "7", "--json", **variables)
    message = json.loads(history.out)
    assert (message["sender"], message["message"]) == ("CUSTOMER", "Где мой заказ?")
    process.send_signal(signal.SIGINT)
    assert (await end(process)).status == 0


Run = Callable[..., Finished]


def test_sandbox_say_sends_a_file(market: Sandbox, tmp_path: Path, in_process: Run) -> None:  # noqa: F811
    photo = tmp_path / "чек & фото.jpg"
    photo.write_bytes(b"\xff\xd8" * 100_000)
    finished = in_process("sandbox", "say", "7", "--file", str(photo), "--json")
    assert json.loads(finished.out) == {"chat_id": 7, "message_id": 1}
    (message,) = market.messages(7)
    assert message.sender == "CUSTOMER"
    assert [(file.name, file.size) for file in message.payload] == [(photo.name, 200_000)]
    assert market.arrivals == []  # it counts against no limit


def test_wrong_usage_of_say_prints_one_line(
    market: Sandbox,  # noqa: F811
    tmp_path: Path,
    in_process: Run,  # noqa: F811
) -> None:
    photo = tmp_path / "photo"
    undecoded = tmp_path / "\udcd1\udc84"  # so it comes under LC_ALL=C
    undecoded.write_bytes(b"x")
    for arguments, told in (
        (("7", "--file", str(undecoded)), "set LC_ALL=C.UTF-8"),
        (("7",), "pass either a text or --file"),
        (("7", "x", "--file", str(photo)), "pass either a text or --file"),
        (("7", "--file", str(photo)), "the file cannot be read"),
        (("7", " "), "the text is empty"),
        (("0", "x"), "Invalid value for"),
        (("7", "-5%"), "put -- before a text"),
        (("7", "x", "--base-url", ""), "the URL of the sandbox is missing"),
        (("7", "x", "--base-url", "https://api.partner.market.yandex.ru"), "is not the URL of a"),
        (("7", "x", "--base-url", "http://192.0.2.1"), "is not the URL of a sandbox on this"),
        (("7", "x", "--base-url", "https://127.0.0.1"), "is not the URL of a sandbox on this"),
    ):
        finished = in_process("sandbox", "say", *arguments)
        assert finished.status == 2, arguments
        assert told in finished.err
    assert market.messages_stored == 0


def test_sandbox_say_refuses_a_too_large_file(
    market: Sandbox,  # noqa: F811
    tmp_path: Path,
    in_process: Run,  # noqa: F811
) -> None:
    photo = tmp_path / "photo"
    photo.write_bytes(bytes(6 * 1024 * 1024))
    finished = in_process("sandbox", "say", "7", "--file", str(photo))
    assert finished.status == 2
    assert finished.err == "Error: the file has more than 5,242,880 bytes\n"
    assert market.messages_stored == 0


def test_sandbox_say_prints_one_line_if_no_sandbox_listens(in_process: Run) -> None:  # noqa: F811
    finished = in_process("sandbox", "say", "7", "x", "--base-url", "http://127.0.0.1:1")
    assert finished.status == 1
    assert finished.err.startswith("Error: no sandbox answers at http://127.0.0.1:1")


async def test_say_path_answers_only_the_command() -> None:
    """For all other clients the path does not exist, as at the Market."""
    async with Sandbox(chats=[7]) as sandbox, aiohttp.ClientSession(sandbox.url) as http:

        async def status(method: str, path: str, **more: object) -> int:
            async with http.request(method, path, data=b"hello", **more) as response:  # type: ignore[arg-type]
                assert (response.headers.get(control.HEADER) is None) is (
                    response.status == 404 and "chatId=8" not in path
                )
                return response.status

        path = f"{control.PATH}?chatId=7"
        assert await status("POST", path) == 404
        assert await status("POST", path, headers={"Api-Key": sandbox.api_key}) == 404
        assert await status("GET", path, headers=CONTROL) == 404
        assert await status("POST", f"/v2{path}", headers=CONTROL) == 404
        assert sandbox.messages_stored == 0
        assert await status("POST", f"{control.PATH}?chatId=8", headers=CONTROL) == 404
        assert sandbox.messages_stored == 0
        assert await status("POST", path, headers=CONTROL) == 200
        assert [message.text for message in sandbox.messages(7)] == ["hello"]


@pytest.mark.parametrize("address", ["192.0.2.1", "::ffff:192.0.2.1", "", None])
def test_say_path_refuses_requests_from_another_machine(address: str | None) -> None:
    assert not control._is_loopback(address)
    assert control._is_loopback("127.0.0.1")
    assert control._is_loopback("::1")
