"""SIGTERM and SIGHUP end a command as Ctrl-C does. Nothing that hangs delays the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.command import Command, environment, fork
from tests.test_cli import (
    COMMAND,
    Finished,
    _interruptible,  # noqa: F401
    end,
    start,
    texts,
    until,
    variables_of,
)
from tests.test_cli_send_many import lines_of, messages_of, write
from yamarket_chat.sandbox import Sandbox

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129}
BOTH = pytest.mark.parametrize("number", STATUS)


@BOTH
async def test_a_signal_ends_send_many_with_a_report(
    number: signal.Signals, tmp_path: Path
) -> None:
    file = write(tmp_path / "m.csv", messages_of(chats=20, each=5))
    report = tmp_path / "r.jsonl"
    async with Sandbox(latency=0.1) as market:
        process = await start("send-many", file, "--report", str(report), **variables_of(market))
        await until(lambda: market.messages_stored >= 4)
        process.send_signal(number)
        stopped = await end(process)
        assert stopped.status == STATUS[number]
        assert f"Interrupted by {number.name}; no more messages are sent" in stopped.err
        assert "To continue, run the same command again" in stopped.err
        delivered = len(lines_of(report))
        assert 4 <= delivered == market.messages_stored < 100
        assert f"Delivered {delivered} of 100 messages" in stopped.out


@BOTH
async def test_send_prints_the_outcome_of_the_current_message_after_a_signal(
    number: signal.Signals,
) -> None:
    async with Sandbox(latency=0.4) as market:
        process = await start("send", "7", "hello", **variables_of(market))
        await until(lambda: market.arrivals)
        process.send_signal(number)
        finished = await end(process)
        assert finished.status == STATUS[number]
        assert finished.err.startswith(f"Interrupted by {number.name}; finding out")
        assert finished.out.startswith("Delivered to chat 7")
        assert texts(market, 7) == ["hello"]


@BOTH
async def test_a_signal_ends_watch(number: signal.Signals) -> None:
    async with Sandbox(latency=0) as market:
        process = await start("watch", **variables_of(market))
        assert process.stderr is not None
        await process.stderr.readline()
        process.send_signal(number)
        assert await end(process) == Finished(STATUS[number], "", "")


async def test_sigterm_stops_the_sandbox_as_ctrl_c_does() -> None:
    process = await start("sandbox")
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    finished = await end(process)
    assert finished.status == 0
    assert "Stopped: messages 0" in finished.err


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_ends_send_many_at_once(
    second: signal.Signals, tmp_path: Path
) -> None:
    file = write(tmp_path / "m.csv", messages_of(chats=20, each=5))
    report = tmp_path / "r.jsonl"
    async with Sandbox(latency=0.5) as market:
        process = await start("send-many", file, "--report", str(report), **variables_of(market))
        await until(lambda: len(market.arrivals) >= 1)
        market.latency = 8
        await until(lambda: [a.status for a in market.arrivals[1:]] == [None] * 4)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while b"Send a second signal" not in await process.stderr.readline():
            pass
        process.send_signal(second)
        async with asyncio.timeout(6):  # the requests in progress end after 8 s
            finished = await end(process)
        assert (finished.status, finished.out) == (128 + second, "")
        assert finished.err == ""
        again = await start("send-many", file, "--report", str(report), **variables_of(market))
        assert again.stderr is not None
        told = await again.stderr.readline()
        assert told.startswith(b"4 messages may have been sent as the last run ended")
        again.kill()
        await again.communicate()


async def test_a_signal_before_anything_is_sent_ends_the_command() -> None:
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "send-many", "-", "--api-key", "key"),  # warns before it reads its input
        stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(),
    )  # fmt: skip
    assert process.stderr is not None
    assert b"--api-key is visible" in await process.stderr.readline()
    await asyncio.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 143


async def test_nohup_protects_from_sighup(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", messages_of(chats=1, each=3))
    async with Sandbox(latency=0.1) as market:
        process = await asyncio.create_subprocess_exec(
            *("nohup", COMMAND, "send-many", file),
            stdout=PIPE, stderr=PIPE, env=environment(**variables_of(market)),
        )  # fmt: skip
        await until(lambda: market.arrivals)
        process.send_signal(signal.SIGHUP)
        assert (await end(process)).status == 0
        assert len(texts(market, 1)) == 3


async def test_closing_the_terminal_loses_no_outcome(tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and writing to the terminal fails from then on."""
    file = write(tmp_path / "m.csv", messages_of(chats=20, each=5))
    report = tmp_path / "r.jsonl"
    terminal, its_end = os.openpty()
    async with Sandbox(latency=0.1) as market:
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "send-many", file, "--report", str(report)),
            env=environment(TERM="xterm", **variables_of(market)),
            preexec_fn=lambda: os.login_tty(its_end),
        )
        os.close(its_end)
        await until(lambda: market.messages_stored >= 4)
        os.close(terminal)
        async with asyncio.timeout(10):
            assert await process.wait() == 129
        assert 4 <= len(lines_of(report)) == market.messages_stored < 100


HANGING = """
import os, socket, sys, time
def hang(*args, **more):
    os.write(2, b"resolving\\n")
    time.sleep(60)
socket.getaddrinfo = hang
from yamarket_chat.cli import main
sys.exit(main())
"""


async def start_hanging(*arguments: str) -> Command:
    """Start the command on a machine whose resolver does not answer."""
    env = environment(YAMARKET_API_KEY="key", YAMARKET_BUSINESS_ID="1")
    return await fork(HANGING, *arguments, env=env)


@pytest.mark.parametrize(
    "arguments", [("whoami",), ("send", "7", "hello"), ("send-many", "FILE"), ("watch",)]
)
async def test_hanging_dns_resolver_does_not_delay_giving_up(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    file = write(tmp_path / "m.csv", [(1, "a"), (2, "b")])
    named = [file if argument == "FILE" else argument for argument in arguments]
    process = await start_hanging(*named, "--give-up-after", "0.3")
    async with asyncio.timeout(15):
        finished = await end(process)
    assert finished.status == 1


async def test_hanging_dns_resolver_does_not_delay_ctrl_c(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", [(1, "a"), (2, "b")])
    for arguments in (("whoami",), ("send", "7", "hello"), ("send-many", file)):
        process = await start_hanging(*arguments)
        assert process.stderr is not None
        while await process.stderr.readline() != b"resolving\n":
            pass
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(15):
            assert (await end(process)).status == 130
