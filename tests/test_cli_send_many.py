"""`yamarket-chat send-many`: it delivers each message once and in order in spite of faults."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import stat
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import Command, environment, fork
from tests.test_cli import (
    COMMAND,
    Finished,
    _interruptible,  # noqa: F401
    end,
    in_process,  # noqa: F401
    run,
    start,
    texts,
    until,
    variables_of,
)
from tests.test_readme import market as served_market  # noqa: F401
from yamarket_chat import QuotaStatus, Rate
from yamarket_chat.cli.progress import seconds_to_go
from yamarket_chat.cli.records import BadFile, Format, Record, read
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults

pytestmark = pytest.mark.real_time

Messages = list[tuple[int, str]]


def messages_of(chats: int, each: int) -> Messages:
    return [
        (chat, f"Заказ {n} из {each}") for n in range(1, each + 1) for chat in range(1, chats + 1)
    ]


def write(path: Path, messages: Messages) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("chat_id", "text"), *messages])
    return str(path)


def lines_of(report: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


def assert_all_arrived(market: Sandbox, messages: Messages, report: Path) -> None:
    """Check that each message is in its chat once and in order, and that the report says so."""
    for chat in {chat for chat, _ in messages}:
        assert texts(market, chat) == [text for to, text in messages if to == chat]
    last = {line["number"]: line for line in lines_of(report)}
    assert sorted(last) == list(range(1, len(messages) + 1))
    assert {line["status"] for line in last.values()} == {"delivered"}
    assert all(line["chat_id"] == messages[number - 1][0] for number, line in last.items())
    traces = {arrival.trace_id for arrival in market.arrivals if arrival.status == 200}
    assert {line["trace_id"] for line in last.values()} - {None} <= traces


SOMETIMES = {
    **{n: Fault("status", status=502, html=True, when="after") for n in (20, 400)},
    **{n: Fault("status", when="before") for n in (35, 80)},
    **{n: Fault("status", status=503) for n in (50, 51, 52)},
    95: Fault("reset", when="after"),
    330: Fault("reset", when="before"),
    340: Fault("half_body", when="after"),
    175: Fault("parallel_limit"),
}


def failing() -> Sandbox:
    return Sandbox(latency=0.01, faults=numbered_faults(SOMETIMES, operation="send_message"))


async def test_500_messages_arrive_once_in_order_through_faults_ctrl_c_and_kill(
    tmp_path: Path,
) -> None:
    messages = messages_of(chats=50, each=10)
    file = write(tmp_path / "messages.csv", messages)

    async def at_one_go() -> None:
        report = tmp_path / "one.jsonl"
        file = write(tmp_path / "one.csv", messages)
        async with failing() as market:
            sent = await start_and_end(
                "send-many", file, "--report", str(report), **variables_of(market)
            )
            assert sent.status == 0, sent.err
            assert sent.out.startswith("Delivered 500 of 500 messages, refused 0, unknown 0")
            assert_all_arrived(market, messages, report)
            assert len(lines_of(report)) == 500
            confirmed = Counter(line["confirmed_by"] for line in lines_of(report))
            assert confirmed["history"] == 4

    async def interrupted() -> None:
        report = tmp_path / "two.jsonl"
        async with failing() as market:
            process = await start_impatient(
                "send-many", file, "--report", str(report), **variables_of(market)
            )
            await until(lambda: market.messages_stored >= 200)
            process.send_signal(signal.SIGINT)
            stopped = await end_of(process)
            assert stopped.status == 130
            assert "Interrupted; no more messages are sent" in stopped.err
            assert "To continue, run the same command again" in stopped.err
            delivered = sum(line["status"] == "delivered" for line in lines_of(report))
            assert 200 <= delivered < 500
            assert delivered == market.messages_stored
            assert f"Delivered {delivered} of 500 messages" in stopped.out
            assert f"not sent {500 - delivered}" in stopped.out
            resumed = await start_and_end(
                "send-many", file, "--report", str(report), **variables_of(market)
            )
            assert resumed.status == 0, resumed.err
            assert f"({delivered} of them earlier)" in resumed.out
            assert_all_arrived(market, messages, report)

    await asyncio.gather(
        at_one_go(),
        interrupted(),
        a_killed_run_is_gone_on_with_and_doubles_nothing(tmp_path),
    )


async def end_of(process: Command) -> Finished:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


# The command looks for a message of unknown outcome after half a second, and not after 15.
SOON = """
import sys
from functools import partial
import yamarket_chat.cli.options as options, yamarket_chat.retry as retry
retry.CUT_OFF = 0.0
options.Retry = partial(retry.Retry, settle_after=0.5)
from yamarket_chat.cli import main
sys.exit(main())
"""


async def start_impatient(*arguments: str, **variables: str) -> Command:
    return await fork(SOON, *arguments, env=environment(**variables))


async def start_and_end(*arguments: str, **variables: str) -> Finished:
    return await end_of(await start_impatient(*arguments, **variables))


async def a_killed_run_is_gone_on_with_and_doubles_nothing(tmp_path: Path) -> None:
    messages = messages_of(chats=8, each=10)
    file, report = write(tmp_path / "few.csv", messages), tmp_path / "report.jsonl"
    async with Sandbox(latency=0.1) as market:
        process = await start("send-many", file, "--report", str(report), **variables_of(market))
        await until(lambda: market.messages_stored >= 30)
        process.kill()
        await process.communicate()
        market.latency = 0.0
        # Simulate that the run was killed while it wrote the last line.
        content = report.read_bytes()
        report.write_bytes(content[:-30])
        # Also after hours, the lock of the killed run proves that it is dead.
        for lock in tmp_path.glob("few.csv.outbox-worker-*"):
            os.utime(lock, (time.time() - 36_000,) * 2)
        resumed = await start_and_end(
            "send-many", file, "--report", str(report), **variables_of(market)
        )
        assert resumed.status == 0, resumed.err
        assert "may have been sent as the last run ended" in resumed.err
        assert "surely ended" not in resumed.err
        assert_all_arrived(market, messages, report)
    assert sorted(path.name for path in tmp_path.glob("few*")) == ["few.csv", "few.csv.outbox"]


async def test_all_bad_lines_are_listed_and_nothing_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "messages.csv"
    file.write_text('chat_id,text\n17,ok\nx,hello\n18,\n"19","a\nb",c\n0,y\n', encoding="utf-8")
    async with Sandbox() as market:
        for more in ((), ("--dry-run",)):
            finished = await run("send-many", str(file), *more, **variables_of(market))
            assert finished.status == 2
            assert finished.out == ""
            assert finished.err.count(f"Error: {file}, line ") == 4
            assert finished.err.replace(f"{file}, ", "").splitlines() == [
                "Error: line 3, column chat_id: 'x' is not a chat id; use a number such as 17",
                "Error: line 4, column text: the text is empty: the Market needs at least one"
                " character",
                "Error: line 5: 3 cells, but the header has 2; put quotes around a text that"
                " contains ','",
                "Error: line 7, column chat_id: '0' is not a chat id; use a number such as 17",
                "Error: 4 errors; nothing was sent",
            ]
        assert market.arrivals == []


TEXTS = ["Где; заказ?", 'Он сказал "да"', "две\r\nстроки, и ещё", "просто"]


def spreadsheet(encoding: str, delimiter: str) -> bytes:
    rows = (
        ['"chat_id"', '"text"'],
        *([str(n), '"' + text.replace('"', '""') + '"'] for n, text in enumerate(TEXTS, 1)),
    )
    return "\r\n".join(delimiter.join(row) for row in rows).encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1251", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_files_written_by_spreadsheets_are_read(encoding: str, delimiter: str) -> None:
    records = read(spreadsheet(encoding, delimiter), "messages.csv")
    assert [(record.number, record.chat_id, record.text) for record in records] == [
        (n, n, text) for n, text in enumerate(TEXTS, 1)
    ]
    assert [record.line for record in records] == [2, 3, 4, 6]


def test_other_columns_and_empty_lines_are_ignored() -> None:
    content = b"name;Text;x;CHAT_ID;;\n\nAnna;hello;1;17;;\n;;;;;\nIvan;bye;2;18\n"
    with pytest.raises(BadFile, match="line 1"):
        read(b"text\nhello\n", "a.csv")
    assert [(r.line, r.chat_id, r.text) for r in read(content, "a.csv")] == [
        (3, 17, "hello"),
        (5, 18, "bye"),
    ]


def test_jsonl_is_read_and_its_bad_lines_are_listed() -> None:
    good = '{"chat_id": 17, "text": "да\\nнет\u2028"}\n\n{"chat_id": "18", "text": "b", "ref": 1}'
    for name, form in (("a.jsonl", None), ("-", None), ("a.csv", Format.JSONL)):
        records = read(good.encode(), name, form)
        assert [(r.line, r.chat_id, r.text) for r in records] == [
            (1, 17, "да\nнет\u2028"),
            (3, 18, "b"),
        ]
    bad = b'{"chat_id": 17}\n[]\n{"chat_id": 1.5, "text": 3}\n{\n{}'
    with pytest.raises(BadFile) as caught:
        read(bad, "a.jsonl")
    heads = [problem.partition(":")[0] for problem in caught.value.problems]
    assert heads == [
        *("line 1, column text", "line 2", "line 3, column chat_id", "line 3, column text"),
        *("line 4", "line 5, column chat_id", "line 5, column text"),
    ]


def test_errors_after_a_malformed_line_are_listed_too() -> None:
    with pytest.raises(BadFile) as caught:
        read('chat_id,text\n17,"Заказ" готов\n18,ok\n19\nx,y\n'.encode(), "a.csv")
    assert [problem.partition(" (")[0] for problem in caught.value.problems] == [
        "line 2, column text: put quotes around the whole cell and double each quote inside it",
        "line 4: 1 cell, but the header has 2; text is missing",
        "line 5, column chat_id: 'x' is not a chat id; use a number such as 17",
    ]


def test_long_cells_are_ignored_unless_they_are_texts() -> None:
    long = "x" * 200_000
    records = read(f"chat_id,text,x\n17,a,{long}\n".encode(), "a.csv")
    assert list(records) == [Record(1, 2, 17, "a")]
    with pytest.raises(BadFile, match="line 3, column text: the text has 200000 characters"):
        read(f"chat_id,text\n17,a\n18,{long}\n".encode(), "a.csv")


def test_sep_line_of_excel_sets_the_delimiter() -> None:
    assert list(read(b"sep=|\r\nchat_id|text\r\n17|a;b\r\n", "a.csv")) == [Record(1, 3, 17, "a;b")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "line 1: the file is empty"),
        (b'chat_id,text\n1,"open\n', "line 2: this and the following lines are not valid CSV"),
        (b"chat_id,text,text\n1,a,b\n", "line 1, column text"),
    ],
)
def test_unreadable_file_is_reported(content: bytes, told: str) -> None:
    with pytest.raises(BadFile) as caught:
        read(content, "a.csv")
    assert told in caught.value.problems[0]


async def test_send_many_reads_standard_input_and_prints_json(tmp_path: Path) -> None:
    async with Sandbox() as market:
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "send-many", "-", "--format", "csv", "--json"),
            stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(**variables_of(market)),
        )  # fmt: skip
        out, _ = await process.communicate("chat_id,text\n7,привет\n8,пока\n".encode())
        assert process.returncode == 0
        assert {
            (line["chat_id"], line["status"]) for line in map(json.loads, out.splitlines())
        } == {
            (7, "delivered"),
            (8, "delivered"),
        }
        assert texts(market, 7) == ["привет"]


async def test_refused_messages_are_reported_and_sent_again_by_the_next_run(
    tmp_path: Path,
) -> None:
    messages = [(1, "a"), (404, "b"), (1, "c")]
    file, report = write(tmp_path / "m.csv", messages), tmp_path / "r.jsonl"
    async with Sandbox(chats=[1]) as market:
        first = await run("send-many", file, "--report", str(report), **variables_of(market))
        assert first.status == 1
        assert "Error: line 3, chat 404: refused: send_message: HTTP 404" in first.err
        assert first.out.startswith("Delivered 2 of 3 messages, refused 1, unknown 0, not sent 0")
        assert "To continue, run the same command again" in first.err
        assert {line["status"] for line in lines_of(report)} == {"delivered", "refused"}
        again = await run("send-many", file, "--report", str(report), **variables_of(market))
        assert again.status == 1
        market.add_chat(404)
        resumed = await run("send-many", file, "--resume", str(report), **variables_of(market))
        assert resumed.status == 0
        assert texts(market, 1) == ["a", "c"]
        assert texts(market, 404) == ["b"]
        assert [line["status"] for line in lines_of(report)] == ["delivered"] * 3


async def test_report_of_another_mailing_is_not_overwritten(tmp_path: Path) -> None:
    file, report = write(tmp_path / "m.csv", [(1, "a")]), tmp_path / "r.jsonl"
    other = write(tmp_path / "other.csv", [(1, "b")])
    async with Sandbox(latency=0) as market:
        variables = variables_of(market)
        assert (await run("send-many", file, "--report", str(report), **variables)).status == 0
        before = report.read_bytes()
        refused = await run("send-many", other, "--report", str(report), **variables)
        assert refused.status == 2
        assert f"{report} exists already" in refused.err
        assert (await run("send-many", other, **variables)).status == 0
        refused = await run("send-many", other, "--report", str(report), **variables)
        assert refused.status == 2
        assert f"{report} is the report of other messages" in refused.err
        refused = await run("send-many", other, "--report", file, **variables)
        assert refused.status == 2
        assert f"{file} is not a report" in refused.err
        missing = str(tmp_path / "no.db")
        refused = await run(
            "send-many", other, "--resume", str(report), "--outbox", missing, **variables
        )
        assert refused.status == 2
        assert f"there is no outbox {missing}" in refused.err
        assert report.read_bytes() == before
        assert texts(market, 1) == ["a", "b"]
        assert not Path(missing).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes of this kind")
def test_report_is_a_regular_file_of_its_own(
    tmp_path: Path,
    served_market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    file = write(tmp_path / "m.csv", [(1, "a")])
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "to-pipe")
    for name in ("pipe", "to-pipe", os.devnull, "/dev/stdout"):
        refused = in_process("send-many", file, "--report", str(tmp_path / name))
        assert refused.status == 2
        assert "--report must be a regular file; --json prints the outcomes" in refused.err
    for name in (file, f"{file}.outbox"):
        refused = in_process("send-many", file, "--report", name)
        assert refused.status == 2
        assert f"--report must be a file of its own, and not {name}" in refused.err
    refused = in_process("send-many", file, "--report", str(tmp_path / "no" / "r.jsonl"))
    assert refused.status == 2
    assert refused.err.startswith("Error: the report cannot be opened: No such file or directory")
    assert not served_market.arrivals
    # What has the name of the report with ".new" is somebody else's.
    file = write(tmp_path / "r.jsonl.new", [(1, "a"), (1, "b")])
    os.symlink(tmp_path / "r.jsonl", tmp_path / "link")
    send = "send-many", file, "--format", "csv", "--report", str(tmp_path / "link")
    assert in_process(*send).status == 0
    report = tmp_path / "r.jsonl"
    mask = os.umask(0o077)
    os.umask(mask)
    assert stat.S_IMODE(report.stat().st_mode) == 0o666 & ~mask
    report.chmod(0o640)
    assert in_process(*send).status == 0
    assert stat.S_IMODE(report.stat().st_mode) == 0o640
    assert (len(lines_of(report)), Path(file).exists()) == (2, True)
    assert (tmp_path / "link").is_symlink()


async def test_two_runs_of_one_file_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", [(1, "a")])
    os.symlink(file, tmp_path / "link.csv")
    async with Sandbox(latency=60.0) as market:
        first = await start("send-many", file, **variables_of(market))
        await until(lambda: market.arrivals)
        for name in (file, str(tmp_path / "link.csv")):
            second = await run("send-many", name, **variables_of(market))
            assert second == Finished(
                2,
                "",
                f"Error: another run is sending the messages of {file}.outbox; wait until it"
                " ends\n",
            )
        first.kill()
        await first.communicate()


async def test_closed_output_pipe_ends_send_many_with_a_complete_report(tmp_path: Path) -> None:
    messages = messages_of(chats=10, each=10)
    file, report = write(tmp_path / "m.csv", messages), tmp_path / "r.jsonl"
    async with Sandbox(latency=0.05) as market:
        process = await start(
            *("send-many", file, "--json", "--report", str(report)), **variables_of(market)
        )
        assert process.stdout is not None
        await process.stdout.readline()
        # A StreamReader has no public method that closes it.
        process.stdout._transport.close()  # type: ignore[attr-defined]
        assert process.stderr is not None
        err = (await process.stderr.read()).decode()
        assert await process.wait() == 1
        assert "Traceback" not in err
        assert "Error: cannot write the output: Broken pipe; no more messages are sent" in err
        assert len(lines_of(report)) == market.messages_stored < 100


async def test_send_many_reports_a_silent_market_soon(tmp_path: Path) -> None:
    async with Sandbox(latency=60.0) as market:
        file = write(tmp_path / "m.csv", messages_of(chats=10, each=1))
        process = await start("send-many", file, **variables_of(market))
        assert process.stderr is not None
        await process.stderr.readline()  # Sending ...
        async with asyncio.timeout(4):
            assert b"No response from the Market yet" in await process.stderr.readline()
        process.kill()
        await process.communicate()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "m.csv", messages_of(chats=50, each=50))


def test_dry_run_needs_no_key_and_shows_the_duration(
    file: str,
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    finished = in_process("send-many", file, "--dry-run")
    assert finished == Finished(
        0,
        "2,500 messages to 50 chats; the limit is 1,000 in 3600 s, so this takes at least 2:00:00;"
        " nothing was sent\n",
        "",
    )
    finished = in_process("send-many", file, "--dry-run", "--json", "--requests", "100")
    assert json.loads(finished.out) == {"messages": 2500, "chats": 50, "least_seconds": 86400.0}


def test_missing_file_prints_one_line(in_process: Callable[..., Finished]) -> None:  # noqa: F811
    finished = in_process("send-many", "no-such-file.csv")
    assert finished.status == 2
    assert finished.err == "Error: [Errno 2] No such file or directory: 'no-such-file.csv'\n"


def test_a_file_without_messages_says_so(
    tmp_path: Path,
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    finished = in_process("send-many", write(tmp_path / "m.csv", []), "--dry-run")
    assert finished.status == 0
    assert "No messages in the file" in finished.err
    assert finished.out == "no messages to send; nothing was sent\n"


HOUR = Rate(1000, per=3600)


@pytest.mark.parametrize(
    ("left", "remaining", "resets_in", "ended", "expected"),
    [
        (100, 1000, 0, [], 20),  # the limit allows all of them, so the pace decides
        (1500, 1000, 0, [], 3600),  # the last 500 wait until the first ones leave the window
        (3000, 1000, 0, [], 7200),
        (1, 0, 600, [-3000.0] * 1000, 600),  # when the first own request leaves the window
        (1001, 0, 600, [-3000.0] * 1000, 4200),
        (1, 0, 900, [], 900),  # other programs have used the whole limit
    ],
)
def test_time_to_go_follows_the_rate_limit(
    left: int, remaining: int, resets_in: float, ended: list[float], expected: float
) -> None:
    status = QuotaStatus(limit=1000, remaining=remaining, resets_in=resets_in, waiting=0)
    assert seconds_to_go(left, status, HOUR, ended, 0.0, pace=5.0) == expected


def test_time_to_go_does_not_count_requests_in_progress_again() -> None:
    status = QuotaStatus(limit=20, remaining=0, resets_in=3599, waiting=0)
    rate = Rate(20, per=3600)
    assert seconds_to_go(4, status, rate, [-1.0] * 16, 0.0, pace=4.0, under_way=4) == 1
    assert seconds_to_go(5, status, rate, [-1.0] * 16, 0.0, pace=4.0, under_way=4) == 3599


async def test_a_terminal_shows_the_progress(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", messages_of(chats=10, each=8))
    terminal, its_end = os.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: shown.extend(os.read(terminal, 65536)))
    async with Sandbox(latency=0.05) as market:
        try:
            process = await asyncio.create_subprocess_exec(
                *(COMMAND, "send-many", file, "--requests", "50", "--per", "2"),
                stdout=PIPE, stderr=its_end,
                env=environment(TERM="xterm", COLUMNS="100", **variables_of(market)),
            )  # fmt: skip
            finished = await end(process)
        finally:
            loop.remove_reader(terminal)
            os.close(terminal)
            os.close(its_end)
    assert finished.status == 0
    told = shown.decode()
    assert "80/80" in told
    assert "/s" in told
    assert "/50" in told  # what is left of the quota
    assert "0:00:02 to go" in told
