"""The command `demo`: it shows what the sandbox has recorded, and leaves no process behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import environment, fork
from tests.helpers import now
from tests.test_cli import Finished, end, start
from tests.test_cli import in_process as in_process  # a fixture
from yamarket_chat import Rate
from yamarket_chat.cli import demo, demo_kills
from yamarket_chat.cli.demo_record import Plan
from yamarket_chat.sandbox import Fault, Sandbox, StoredMessage, numbered_faults

# The first scene


@pytest.mark.parametrize("faults", [False, True])
async def test_first_scene_delivers_all_messages_and_prints_a_summary(
    faults: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = demo.plan_of(faults=faults)
    assert await demo.run(plan)
    assert now() < 30
    printed = capsys.readouterr().out

    def number(pattern: str) -> list[float]:
        found = re.search(pattern, printed)
        assert found, pattern
        return [float(group) for group in found.groups()]

    total = plan.chats * plan.messages_each
    assert total >= 300
    assert number(r"Arrived +(\d+) of (\d+) messages, in (\d+) chats") == [total, total, plan.chats]
    assert number(r"In order +(\d+) of (\d+) chats") == [plan.chats, plan.chats]
    assert number(r"Refused +(\d+) requests") == [0]
    most, allowed = number(r"Busiest moment +(\d+) parallel requests, of (\d+)")
    assert most == allowed == 4
    fullest, allowed = number(r"Fullest window +(\d+) requests in 2 s, of (\d+)")
    # A request without a response keeps its parallel slot until the Market has aborted it, so the
    # window may not get full.
    assert fullest == 100 or (faults and fullest > 50)
    assert allowed == 100
    if faults:
        failed, found, again = number(
            r"Failed requests +(\d+); found in the chat's history (\d+), sent again (\d+)"
        )
        assert failed == len(demo.FAULTS)
        # A request that is sent again may fail again.
        assert failed - 2 <= found + again <= failed
        assert "10 s later" in printed
    a_second, seconds, least = number(
        r"Rate +(\d+) per second, ([\d.]+) s in total; the limit requires ([\d.]+) s"
    )
    assert seconds >= least
    assert a_second == pytest.approx(total / seconds, rel=0.02, abs=0.6)  # it is rounded
    left, limit = number(r"Left of the limit +(\d+) of (\d+) requests")
    assert 0 <= left < limit
    assert re.findall(r"\d\d:\d\d:\d\d +(Update .*\S)", printed) == plan.texts
    assert "Everything arrived once, in order and within the limits." in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.real_time
async def test_ctrl_c_ends_the_demo() -> None:
    process = await start("demo")
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert (await end(process)).status == 130


class Lossy(Sandbox):
    """A sandbox whose record lacks a message."""

    def messages(self, chat_id: int) -> list[StoredMessage]:
        return super().messages(chat_id)[chat_id == 102 :]


class Doubling(Sandbox):
    """A sandbox whose record has a message twice."""

    def messages(self, chat_id: int) -> list[StoredMessage]:
        messages = super().messages(chat_id)
        return messages + messages[-1:] if chat_id == 102 else messages


class Mixing(Sandbox):
    """A sandbox whose record has a chat out of order."""

    def messages(self, chat_id: int) -> list[StoredMessage]:
        return super().messages(chat_id)[:: -1 if chat_id == 102 else 1]


class Elsewhere(Sandbox):
    """A sandbox whose record has a message in a chat to which the demo sent none."""

    async def __aenter__(self) -> Elsewhere:
        await super().__aenter__()
        self.buyer_says(7, "Where is my order?")
        return self


class Refusing(Sandbox):
    """A sandbox that answers one request with 420, so that the session retries it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.faults = numbered_faults({3: Fault("parallel_limit")})


class Breaking(Sandbox):
    """A sandbox that answers one message with 400, so that it is never delivered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.faults = numbered_faults({3: Fault("status", status=400)})


class Crowded(Sandbox):
    """A sandbox whose record has more parallel requests than allowed."""

    @property
    def busiest(self) -> int:
        return 5


class Flooded(Sandbox):
    """A sandbox whose record has more requests in a window than allowed."""

    def busiest_window(self, operation: str, per: float | None = None) -> int:
        return 101


SMALL = Plan(chats=4, messages_each=3, rate=Rate(100, per=2.0), parallel=4, latency=(0.0, 0.001))


@pytest.mark.parametrize(
    ("sandbox", "told"),
    [
        (Lossy, "messages missing: 1, the first: 'Update 1 of 3' in chat 102"),
        (Doubling, "messages stored more often than sent: 1, the first: 'Update 3 of 3' in chat"),
        (Mixing, "chats out of order: 1, the first: chat 102"),
        (Elsewhere, "messages stored more often than sent: 1, the first: 'Where is my order?'"),
        (Refusing, "requests refused: 1"),
        (Breaking, "not delivered or unknown: 1, the first: send_message: HTTP 400"),
        (Crowded, "parallel requests: 5, allowed: 4"),
        (Flooded, "requests in 2 s: 101, allowed: 100"),
    ],
)
def test_demo_fails_if_the_sandbox_recorded_something_else(
    sandbox: type[Sandbox],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable[..., Finished],
) -> None:
    monkeypatch.setattr(demo, "PLAN", SMALL)
    monkeypatch.setattr(demo, "Sandbox", sandbox)
    finished = in_process("demo")
    assert finished.status == 1
    assert told in finished.err
    assert "Everything arrived" not in finished.out


# Both scenes

SMALL_DEMO = """
import sys
from msgspec.structs import replace
from yamarket_chat.cli import demo, demo_kills, main
demo.PLAN = replace(demo.PLAN, chats=4, messages_each=3)
demo_kills.PLAN = replace(demo_kills.PLAN, chats=6, messages_each=5)
demo_kills.KILLS = (4,)
sys.exit(main())
"""


def workers(folder: Path) -> set[int]:
    """The processes that deliver an outbox in this folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if "demo_worker" in command and str(folder) in command:
            found.add(int(process.name))
    return found


@pytest.mark.real_time
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
async def test_demo_kills_its_workers_and_leaves_no_process_behind(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "interrupted", "killed")]
    for folder in folders:
        folder.mkdir()
    await asyncio.gather(
        kills_and_compares(folders[0]),
        ends_its_workers(folders[1], signal.SIGINT),
        ends_its_workers(folders[2], signal.SIGKILL),
    )


async def kills_and_compares(folder: Path) -> None:
    terminal, its_end = os.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: shown.extend(os.read(terminal, 65536)))
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SMALL_DEMO, "demo"),
            stdout=PIPE, stderr=its_end, env=environment(TERM="xterm", TMPDIR=str(folder)),
        )  # fmt: skip
        finished = await end(process)
    finally:
        loop.remove_reader(terminal)
        os.close(terminal)
        os.close(its_end)
    assert finished.status == 0
    for said in ("12/12", "30/30", "kill -9 worker 1!", "Worker 2 goes on"):
        assert said in shown.decode()
    assert "Everything arrived once, in order and within the limits." in finished.out
    scene = finished.out.partition("Scene 2 of 2")[2]
    for line in (
        r"Killed +1 of 2 workers",
        r"Arrived +30 of 30 messages, in 6 chats",
        r"Lost +0 messages",
        r"Doubled +0 messages",
        r"In order +6 of 6 chats",
        r"In doubt +\d+; found in the chat's history \d+, sent again \d+",
    ):
        assert re.search(line, scene), line
    assert "Everything arrived once and in order" in scene
    assert max(map(len, finished.out.splitlines())) <= 80
    assert workers(folder) == set()
    assert list(folder.iterdir()) == []


async def ends_its_workers(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C, or kill -9 of the demo itself: the workers end with it."""
    process = await fork(SMALL_DEMO, "demo", env=environment(TMPDIR=str(folder)))
    while b"stands by" not in await process.stderr.readline():
        pass
    assert len(workers(folder)) == 2
    process.send_signal(number)
    assert (await end(process)).status == (130 if number == signal.SIGINT else -number)
    async with asyncio.timeout(10):
        while workers(folder):
            await asyncio.sleep(0.01)
    assert number == signal.SIGKILL or list(folder.iterdir()) == []


def small_kills(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Nobody is killed, so the scene takes a second."""
    monkeypatch.setattr(demo_kills, "KILLS", ())
    return SMALL


class Wrong(Breaking, Lossy, Doubling):
    """A sandbox that refuses a message, and whose record lacks one and has another one twice."""


@pytest.mark.real_time
async def test_second_scene_fails_if_the_sandbox_recorded_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_kills, "Sandbox", Wrong)
    assert not await demo_kills.run(small_kills(monkeypatch))
    printed = capsys.readouterr()
    assert re.search(r"not delivered or unknown: 1, the first: \w+: HTTP 400", printed.err)
    assert "messages missing: 2, the first: " in printed.err
    assert "messages stored more often than sent: 1, the first: 'Update 3 of 3'" in printed.err
    assert re.search(r"Lost +2 messages", printed.out)
    assert re.search(r"Doubled +1 message\b", printed.out)
    assert "Everything arrived" not in printed.out


@pytest.mark.real_time
async def test_second_scene_says_why_it_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = small_kills(monkeypatch)
    monkeypatch.setattr(demo_kills, "LONGEST", 0.2)
    assert not await demo_kills.run(plan)
    assert "the mailing did not end within 0.2 s" in capsys.readouterr().err
    monkeypatch.setattr(demo_kills, "LONGEST", 30.0)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no module' >&2\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert not await demo_kills.run(plan)
    assert "worker 1 ended: no module" in capsys.readouterr().err
