"""What `send-many` prints if there is no terminal, as in cron and CI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import environment, fork
from tests.test_cli import end, variables_of
from tests.test_cli_send_many import messages_of, write
from yamarket_chat import QuotaStatus, Rate
from yamarket_chat.cli.progress import SendingProgress
from yamarket_chat.sandbox import Sandbox

STATUS = QuotaStatus(limit=1000, remaining=500, resets_in=0, waiting=0)


def lines(capsys: pytest.CaptureFixture[str], total: int, per_second: float) -> list[str]:
    """Send `total` messages at this pace, and return the lines that were printed meanwhile."""
    with SendingProgress(total, Rate(1000, per=3600)) as progress:
        ended = 0
        for second in range(round(total / per_second) + 1):
            while ended < second * per_second:
                progress.message_ended(second)
                ended += 1
            progress.show(second, STATUS)
    return capsys.readouterr().err.splitlines()


def test_long_mailing_prints_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys, 3000, per_second=0.5)
    assert [line.split(", ")[0] for line in printed] == [
        f"{n * 300:,} of 3,000" for n in range(1, 10)
    ]
    assert re.fullmatch(r"300 of 3,000, quota 500/1000, \d+:\d\d:\d\d to go", printed[0])


def test_mailing_of_minutes_prints_a_line_each_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split(",")[0] for line in lines(capsys, 800, per_second=4)] == [
        "240 of 800",
        "480 of 800",
        "720 of 800",
    ]


def test_short_mailing_prints_no_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, 100, per_second=4) == []


PATCHED = """
import sys
import yamarket_chat.cli.progress as progress, yamarket_chat.cli.bulk as bulk
progress.LINE_EVERY = bulk.SHOW_EVERY = 0.05
from yamarket_chat.cli import main
sys.exit(main())
"""


@pytest.mark.real_time
async def test_send_many_prints_progress_lines_except_with_json(tmp_path: Path) -> None:
    for options in ((), ("--json",)):
        file = write(tmp_path / f"m{len(options)}.csv", messages_of(chats=20, each=2))
        async with Sandbox(latency=0.1) as market:
            process = await fork(
                PATCHED, "send-many", file, *options, env=environment(**variables_of(market))
            )
            finished = await end(process)
            assert finished.status == 0
            printed = finished.err.splitlines()
            assert printed[0].startswith("Sending 40 messages to 20 chats")
            progress = [line for line in printed if re.match(r"\d+ of 40, quota ", line)]
            assert (1 <= len(progress) <= 9) is not bool(options)
            summary = (finished.err if options else finished.out).splitlines()[-1]
            assert summary.startswith("Delivered 40 of 40 messages")
            assert len(printed) == 1 + len(progress) + bool(options)
