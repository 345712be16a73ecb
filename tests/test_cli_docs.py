"""The commands on docs/cli.md run, and print what the page quotes."""

from __future__ import annotations

import asyncio
import io
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_cli import (
    Finished,
    _interruptible,  # noqa: F401
    in_process,  # noqa: F401
    start,
    variables_of,
)
from tests.test_readme import market  # noqa: F401
from yamarket_chat.outbox import Outbox
from yamarket_chat.sandbox import Sandbox

pytestmark = pytest.mark.real_time

PAGE = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
QUOTED = re.findall(r"(?<!`:)\n\n```text\n(.*?)```", PAGE, re.S)
"""The outputs that the page quotes. The other text blocks follow the name of a file."""


def without_trace_ids(text: str) -> str:
    return re.sub(r"[0-9a-f]{32}", "TRACE_ID", text)


def runs_until_ctrl_c(arguments: list[str]) -> bool:
    if arguments[0] == "notifications":
        return arguments[1] == "listen"
    if arguments[0] == "outbox":
        return arguments[1] == "deliver"
    return arguments[0] in ("watch", "sandbox") and arguments[1:2] != ["say"]


def arguments_of(command: str) -> list[str]:
    command = command.replace("--port 8080", "--port 0")  # another test may have that one
    return shlex.split(command.rpartition("| ")[2], comments=True)[1:]


def test_commands_in_the_docs_run(
    market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables_of(market).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"`(\S+)`:\n\n```text\n(.*?)```", PAGE, re.S):
        Path(name).write_text(content, encoding="utf-8")
    Path("label.pdf").write_bytes(b"a label")
    market.buyer_says(17, "Где мой заказ?")
    outputs = []
    for command in COMMANDS:
        arguments = arguments_of(command)
        if runs_until_ctrl_c(arguments) or arguments[0] == "demo":
            continue
        if arguments[0] == "notifications":  # they go to another program
            assert in_process(*arguments, "--help").status == 0
            continue
        before, pipe, _ = command.rpartition(" | ")
        if pipe:
            _, text = shlex.split(before)  # echo TEXT, cat FILE
            said = text + "\n" if before.startswith("echo") else Path(text).read_text("utf-8")
            stdin = io.TextIOWrapper(io.BytesIO(said.encode()))
            monkeypatch.setattr(sys, "stdin", stdin)
        finished = in_process(*arguments)
        assert finished.status == 0, (command, finished)
        outputs.append(without_trace_ids(finished.out))
    assert len(QUOTED) == 2
    for quoted in QUOTED:
        assert without_trace_ids(quoted) in outputs
    assert [message.text for message in market.messages(17)].count("Ваш заказ в пути") == 1


async def test_documented_long_running_commands_run_until_ctrl_c(tmp_path: Path) -> None:
    async with Outbox(f"sqlite:///{tmp_path}/outbox.db") as outbox:
        await outbox.create()

    async def try_out(command: str) -> None:
        async with Sandbox() as market:  # noqa: F811
            variables = variables_of(market, YAMARKET_OUTBOX=f"{tmp_path}/outbox.db")
            process = await start(*arguments_of(command), **variables)
            assert process.stderr is not None
            told = (await asyncio.wait_for(process.stderr.readline(), 15)).decode()
            assert "Ctrl-C" in told or "repeats the same faults" in told
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.communicate(), 15)
            assert process.returncode in (0, 130)

    commands = [c for c in COMMANDS if runs_until_ctrl_c(arguments_of(c))]
    assert len(commands) >= 3
    await asyncio.gather(*map(try_out, commands))


def test_docs_show_the_demo_commands_that_the_tests_run() -> None:
    assert [c for c in COMMANDS if arguments_of(c)[0] == "demo"] == [
        "yamarket-chat demo",
        "yamarket-chat demo --faults",
    ]


def test_pictures_in_the_docs_exist() -> None:
    names = re.findall(r"\"(pictures/\S+\.svg)\"", PAGE)
    assert len(names) == 6
    for name in names:
        assert (Path(__file__).parents[1] / "docs" / name).is_file()
