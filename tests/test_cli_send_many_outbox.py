"""`yamarket-chat send-many` on its outbox: files that were changed, deaths, full disks."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.command import environment, fork
from tests.test_cli import (
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
from tests.test_cli_send_many import (
    SOON,
    Messages,
    assert_all_arrived,
    lines_of,
    messages_of,
    start_and_end,
    start_impatient,
    write,
)
from tests.test_readme import market as served_market  # noqa: F401
from yamarket_chat import QuotaStatus, Rate
from yamarket_chat.cli import bulk
from yamarket_chat.cli.encodings import BadFile
from yamarket_chat.cli.mailing import BadOutbox, Mailing, compare
from yamarket_chat.cli.records import read
from yamarket_chat.cli.report import Report
from yamarket_chat.outbox import Outbox, OutboxMessage, deciding
from yamarket_chat.outbox.courier import Seen
from yamarket_chat.outbox.delivering import Delivering
from yamarket_chat.sandbox import Sandbox

pytestmark = pytest.mark.real_time


# A file that was changed between two runs

BUSINESS = 1


def file_of(messages: Messages) -> bytes:
    return "\n".join(["chat_id,text", *(f"{chat},{text}" for chat, text in messages)]).encode()


class Shop:
    """An outbox, and runs that put a file into it and send some of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outbox = Outbox(f"sqlite:///{path}")

    async def run(self, messages: Messages, sent: int = 0, state: str = "delivered") -> Mailing:
        """Put a file, and let the first messages that wait end in a state."""
        await self.outbox.create()
        content = read(file_of(messages), "m.csv")
        compared = await compare(self.outbox, content, BUSINESS, None)
        await compared.put(self.outbox, BUSINESS, content)
        waiting = [one.number async for one in self.outbox.entries(state="waiting")]
        await self._write(waiting[:sent], state)
        return compared

    async def _write(self, numbers: list[int], state: str) -> None:
        def write(connection: object) -> None:
            for number in numbers:
                connection.exec_driver_sql(  # type: ignore[attr-defined]
                    "UPDATE yamarket_outbox_messages SET state = ?, ended_at = ? WHERE number = ?",
                    (state, None if state == "leaving" else 1, number),
                )

        await self.outbox._database.write(write)

    async def left(self) -> Messages:
        """Return what waits, in the order in which it is sent."""
        return [
            (one.chat_id or 0, one.text or "") async for one in self.outbox.entries(state="waiting")
        ]


A, B, C = (1, "a"), (2, "b"), (1, "c")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "m.csv.outbox")


async def test_unchanged_file_changes_nothing(shop: Shop) -> None:
    await shop.run([A, B, C], sent=1)
    again = await shop.run([A, B, C])
    assert (again.changes, again.left, again.ended) == ([], 2, {0: "delivered"})
    assert await shop.left() == [B, C]


async def test_equal_messages_are_sent_as_often_as_they_are_in_the_file(shop: Shop) -> None:
    await shop.run([A, A, B, A], sent=1)
    assert await shop.left() == [A, B, A]
    again = await shop.run([A, A, B, A, A], sent=2)
    assert again.changes == ["1 message at the end of the file: new"]
    assert await shop.left() == [A, A]
    assert (await shop.run([A, A, B, A, A])).changes == []


async def test_new_lines_are_sent_in_the_order_of_their_chat(shop: Shop) -> None:
    await shop.run([A, B, C], sent=1)
    again = await shop.run([A, (1, "new"), (3, "new"), B, C, (2, "last")])
    assert again.changes == [
        "line 3, chat 1: new",
        "line 4, chat 3: new",
        "1 message at the end of the file: new",
    ]
    assert await shop.left() == [B, (1, "new"), (3, "new"), C, (2, "last")]
    assert (await shop.run([A, (1, "new"), (3, "new"), B, C, (2, "last")])).changes == []


async def test_removed_line_is_not_sent_and_may_come_back(shop: Shop) -> None:
    await shop.run([A, B, C], sent=1)
    again = await shop.run([C])
    assert again.changes == [
        "chat 1: removed; the message 'a' was delivered",
        "chat 2: removed; the message 'b' was not sent",
    ]
    assert await shop.left() == [C]
    assert (await shop.run([A, B, C])).changes == ["line 3, chat 2: new"]
    assert sorted(await shop.left()) == [C, B]


async def test_line_that_was_changed_before_it_was_sent_is_sent_with_its_new_text(
    shop: Shop,
) -> None:
    await shop.run([A, B, C], sent=1)
    again = await shop.run([A, (2, "better"), C])
    assert again.changes == ["line 3, chat 2: changed; the message before 'b' was not sent"]
    assert await shop.left() == [C, (2, "better")]


async def test_message_that_a_person_has_cancelled_is_not_sent(shop: Shop) -> None:
    await shop.run([A, A, B, C], sent=1)
    await shop.run([A, A, B, C, (1, "d")])
    for number in (2, 3):
        assert await shop.outbox.cancel(number)
    again = await shop.run([B, A, (1, "d"), A, C])
    assert (again.changes, again.cancelled()) == (["line 6, chat 1: moved"], [2, 5])
    assert await shop.left() == [(1, "d"), C]
    assert (await shop.run([(1, "d"), A, C])).cancelled() == []
    assert await shop.left() == [(1, "d"), C]
    # Another line of the same text is another message.
    assert (await shop.run([A, A, A, B, B, (1, "d"), C])).cancelled() == [3, 5]
    assert sorted(await shop.left()) == [A, C, (1, "d"), B]


@pytest.mark.parametrize("state", ["delivered", "unknown", "leaving"])
async def test_line_that_was_changed_after_it_was_sent_is_refused(shop: Shop, state: str) -> None:
    await shop.run([A, B, C], sent=2, state=state)
    was = "was delivered" if state == "delivered" else "may have been sent"
    with pytest.raises(BadFile) as caught:
        await shop.run([(1, "A"), (2, "B"), C])
    assert caught.value.problems == [
        f"line 2, chat 1: the text was changed after the message 'a' {was}",
        f"line 3, chat 2: the text was changed after the message 'b' {was}",
    ]
    assert "add a line for it" in caught.value.hints[0]
    assert await shop.left() == [C]
    again = await shop.run([A, (1, "A"), B, (2, "B"), C])
    assert again.changes == ["line 3, chat 1: new", "line 5, chat 2: new"]
    assert await shop.left() == [(1, "A"), (2, "B"), C]


async def test_refused_line_may_be_changed_and_is_sent_again_otherwise(shop: Shop) -> None:
    await shop.run([A, B], sent=2, state="refused")
    again = await shop.run([(1, "better"), B])
    assert again.changes == ["line 2, chat 1: changed; the message before 'a' was refused"]
    assert sorted(await shop.left()) == [(1, "better"), B]


async def test_moved_lines_are_sent_once_and_in_their_new_order(shop: Shop) -> None:
    await shop.run([A, B, C, (1, "d")])
    again = await shop.run([C, (1, "d"), A, B])
    assert again.changes == ["line 4, chat 1: moved"]
    assert await shop.left() == [B, C, (1, "d"), A]
    assert (await shop.run([B, C, (1, "d"), A])).changes == []


async def test_refused_lines_are_sent_in_their_new_order(shop: Shop) -> None:
    """The first ones keep their numbers, which are low, and would be sent first."""
    await shop.run([B, A, C, (1, "d")], sent=4, state="refused")
    changed = [(1, "new"), A, B, C, (1, "d")]
    assert (await shop.run(changed)).changes == ["line 2, chat 1: new"]
    assert await shop.left() == [B, (1, "new"), A, C, (1, "d")]
    assert (await shop.run(changed, sent=5, state="refused")).changes == []
    again = await shop.run([B, (1, "d"), A, (1, "new"), C])
    assert again.changes == ["line 4, chat 1: moved"]
    assert await shop.left() == [B, (1, "d"), A, (1, "new"), C]


@pytest.mark.parametrize("state", ["waiting", "refused"])
async def test_death_between_two_steps_of_a_change_loses_and_doubles_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    changed = [A, (1, "new"), B, C, (1, "d")]
    await shop.run([A, B, C, (1, "d")], sent=1)
    await shop.run([A, B, C, (1, "d")], sent=0 if state == "waiting" else 3, state=state)
    calls = 0

    def dies_at(owner: object, name: str, nth: int) -> Callable[..., object]:
        real = getattr(owner, name)

        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise KeyError("dead")
            return real(*arguments)

        return call

    for owner, name, nth in (
        (deciding, "withdraw", 1),
        (deciding, "withdraw", 2),
        (Outbox, "put_many", 1),
    ):
        with monkeypatch.context() as patch:
            calls = 0
            patch.setattr(owner, name, dies_at(owner, name, nth))
            with pytest.raises(KeyError):
                await shop.run(changed)
    await shop.run(changed)
    assert await shop.left() == [B, (1, "new"), C, (1, "d")]


async def test_outbox_of_other_messages_is_refused(shop: Shop) -> None:
    await shop.run([A, B])
    with pytest.raises(BadOutbox, match="none of this file"):
        await shop.run([])  # a file that was cut off
    assert await shop.left() == [A, B]
    await shop.run([A, B], sent=1)
    with pytest.raises(BadOutbox, match="none of this file"):
        await shop.run([(7, "x"), (8, "y")])
    with pytest.raises(BadOutbox, match="messages are of business 1, not 2"):
        await compare(shop.outbox, read(file_of([A]), "m.csv"), 2, None)
    await shop.outbox.put(OutboxMessage(BUSINESS, 1, "x", key="mine"))
    with pytest.raises(BadOutbox, match="belongs to another program"):
        await shop.run([A, B])


async def test_nothing_is_put_anew_if_another_program_has_just_sent_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.run([A, C])
    monkeypatch.setattr(deciding, "cancel", lambda connection, number: False)
    with pytest.raises(BadOutbox, match="another program sends its messages"):
        await shop.run([C, A])
    assert len([one async for one in shop.outbox.entries()]) == 2


async def test_command_shows_what_was_changed_and_refuses_what_was_sent(tmp_path: Path) -> None:
    file, report = write(tmp_path / "m.csv", [A, B]), tmp_path / "r.jsonl"
    async with Sandbox(latency=0) as market:
        variables = variables_of(market)
        assert (await run("send-many", file, "--report", str(report), **variables)).status == 0
        again = await run("send-many", file, **variables)
        assert again.status == 0
        assert again.out.startswith("Delivered 2 of 2 messages (2 of them earlier)")
        assert f"delete {file}.outbox or pass another --outbox" in again.err
        write(tmp_path / "m.csv", [(1, "A"), B])
        for more in ((), ("--dry-run",)):
            refused = await run("send-many", file, *more, **variables)
            assert refused.status == 2
            assert refused.err.startswith(
                f"Error: {file}, line 2, chat 1: the text was changed after the message 'a' was"
                " delivered\n"
            )
        write(tmp_path / "m.csv", [B, (3, "new"), A])
        tried = await run("send-many", file, "--dry-run", **variables)
        assert tried.out.startswith("1 message to 1 chat;")
        assert "line 3, chat 3: new" in tried.err
        sent = await run("send-many", file, "--report", str(report), **variables)
        assert sent.status == 0
        assert [(line["number"], line["chat_id"]) for line in lines_of(report)] == [
            (3, 1),
            (1, 2),
            (2, 3),
        ]
        other = await run("send-many", file, "--outbox", str(tmp_path / "2"), **variables)
        assert other.status == 0
        assert [texts(market, chat) for chat in (1, 2, 3)] == [["a"] * 2, ["b"] * 2, ["new"] * 2]


async def test_run_says_that_earlier_requests_have_used_the_limit_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bulk, "NOTICE_AFTER", 0.0)
    sender = bulk.BulkSender(
        tmp_path / "o", read(file_of([A]), "m.csv"), Rate(5, per=10), business_id=BUSINESS,
        api_key="k", options={}, report=None, resume=False, json=False, give_up_after=900.0,
        kept=True,
    )  # fmt: skip
    for resets_in in (70.0, 69.5):
        quota = QuotaStatus(limit=5, remaining=0, resets_in=resets_in, waiting=1)
        sender._show(Seen(True, 1, quota, None, None))
    told = capfd.readouterr().err
    assert told.startswith("The rate limit is used up, by earlier requests as well. The next")
    assert "message leaves in 0:01:10, or about a minute later" in told
    assert told.count("\n") == 1


# Deaths

# A copy of a disk has no lock that proves a death, so the next run waits for the lease. Here the
# processes are really dead, so nothing of them is under way.
COPIED = (
    """
import yamarket_chat.cli.bulk as bulk, yamarket_chat.outbox.lease as lease
bulk.LEASE = 2.5
lease.Grant.settle_wait = lambda self, timeout, settle_after: settle_after
"""
    + SOON
)


async def test_power_cuts_lose_and_double_nothing(tmp_path: Path) -> None:
    messages = [(chat, "equal" if n % 3 else f"{n}") for n in range(6) for chat in range(1, 9)]
    folder = tmp_path / "0"
    folder.mkdir()
    file = write(folder / "m.csv", messages)
    async with Sandbox(latency=0.03) as market:
        env = environment(**variables_of(market))
        for number, stored in enumerate((6, 20), 1):
            process = await fork(COPIED, "send-many", file, env=env)
            await until(lambda: market.messages_stored >= stored)  # noqa: B023
            process.send_signal(signal.SIGSTOP)
            copy = tmp_path / str(number)
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm", "*-worker-*"))
            process.kill()
            await process.communicate()
            folder, file = copy, str(copy / "m.csv")
        report = folder / "r.jsonl"
        process = await fork(COPIED, "send-many", file, "--report", str(report), env=env)
        ended = await end(process)
        assert "may have been sent as the last run ended" in ended.err
        assert "until the last run has surely ended" in ended.err
        assert ended.status == 0, ended.err
        assert_all_arrived(market, messages, report)


async def test_power_cut_cannot_bring_the_journal_of_a_new_outbox_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would undo the whole file by it. SQLite itself does not sync its removal."""
    synced: list[list[str]] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        fsync(file)
        if stat.S_ISDIR(os.fstat(file).st_mode):
            synced.append(sorted(os.listdir(tmp_path)))

    monkeypatch.setattr(os, "fsync", noted)
    async with Outbox(f"sqlite:///{tmp_path}/o") as outbox:
        await outbox.create()
    assert ["o"] in synced


async def test_death_after_a_wrong_key_leaves_nothing_to_look_up(tmp_path: Path) -> None:
    messages = messages_of(chats=10, each=20)
    file, report = write(tmp_path / "m.csv", messages), tmp_path / "r.jsonl"
    async with Sandbox(latency=0.05) as market:
        variables = variables_of(market)
        refused = await run("send-many", file, **variables | {"YAMARKET_API_KEY": "ACMA:no"})
        assert refused.status == 1
        assert "check the Api-Key" in refused.err
        assert refused.err.count("HTTP 401") == 1
        assert refused.out == ("Delivered 0 of 200 messages, refused 0, unknown 0, not sent 200\n")
        process = await start_impatient("send-many", file, **variables)
        await until(lambda: market.messages_stored >= 20)
        process.kill()
        await process.communicate()
        market.latency = 0
        reads = len(market.arrivals)
        ended = await start_and_end("send-many", file, "--report", str(report), **variables)
        assert ended.status == 0
        assert_all_arrived(market, messages, report)
        read = {one.chat_id for one in market.arrivals[reads:] if one.operation == "history"}
        assert len(read) <= 6


async def test_unclear_message_is_left_to_a_person(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", [(7, "the same"), (8, "other")])
    async with Sandbox(latency=0) as market:
        variables = variables_of(market)
        refused = await run("send-many", file, **variables | {"YAMARKET_API_KEY": "ACMA:no"})
        assert refused.status == 1
        with closing(sqlite3.connect(f"{file}.outbox")) as connection, connection:
            connection.execute(
                "UPDATE yamarket_outbox_messages SET state = 'unknown', ended_at = 1"
                " WHERE chat_id = 7"
            )
        settle = f"outbox settle --all --database {file}.outbox"
        for _ in range(2):
            ended = await run("send-many", file, **variables)
            assert ended.status == 1
            assert "unknown 1, not sent 0" in ended.out
            assert f"check chat 7, then run yamarket-chat {settle}" in ended.err
            assert "To continue" not in ended.err
        assert (texts(market, 7), texts(market, 8)) == ([], ["other"])
        settled = await run(*settle.split(), "--not-delivered", "--yes", **variables)
        assert settled.status == 0
        assert (await run("send-many", file, **variables)).status == 0
        assert texts(market, 7) == ["the same"]


async def test_key_that_is_revoked_ends_the_run(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", messages_of(chats=5, each=10))
    async with Sandbox(latency=0.05) as market:
        process = await start("send-many", file, **variables_of(market))
        await until(lambda: market.messages_stored >= 10)
        key, market.api_key = market.api_key, "ACMA:another:key"
        stopped = await end(process)
        assert stopped.status == 1
        assert stopped.err.count("HTTP 401") == 1
        market.api_key, market.latency = key, 0
        ended = await run("send-many", file, **variables_of(market))
        assert ended.out.startswith("Delivered 50 of 50 messages")
        assert market.messages_stored == 50


def test_standard_input_has_an_outbox_if_one_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served_market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    def pipe(*arguments: str) -> Finished:
        content = file_of(messages_of(chats=2, each=2))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return in_process("send-many", "-", *arguments)

    for expected in ("Delivered 4 of 4 messages,", "Delivered 4 of 4 messages (4 of them"):
        piped = pipe("--outbox", str(tmp_path / "o"))
        assert piped.out.startswith(expected)
        assert "is killed" not in piped.err
    assert served_market.messages_stored == 4
    assert "If this run is killed, nobody knows" in pipe().err
    assert served_market.messages_stored == 8
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes of this kind")
def test_named_pipe_is_told_by_its_name(
    tmp_path: Path,
    served_market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[file_of([A])])
    writer.start()
    sent = in_process("send-many", str(tmp_path / "pipe"))
    writer.join()
    assert sent.status == 0
    assert f"nobody knows which messages of {tmp_path / 'pipe'} were sent" in sent.err
    assert served_market.messages_stored == 1


def test_cancelled_message_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served_market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    file = write(tmp_path / "m.csv", [A, B])
    with monkeypatch.context() as patch:
        patch.setenv("YAMARKET_API_KEY", "ACMA:no")
        assert in_process("send-many", file).status == 1
    assert in_process("outbox", "cancel", "2", "--database", f"{file}.outbox").status == 0
    report = tmp_path / "r.jsonl"
    for earlier in ("", " (1 of them earlier)"):
        sent = in_process("send-many", file, "--report", str(report))
        assert sent.status == 1
        assert "1 message cancelled (yamarket-chat outbox cancel), so not sent: line 3" in sent.err
        assert "To continue" not in sent.err
        counts = f"Delivered 1 of 2 messages{earlier}, refused 0, unknown 0, not sent 1"
        assert sent.out.startswith(counts)
        assert [line["chat_id"] for line in lines_of(report)] == [1]
    assert served_market.messages_stored == 1


def test_outbox_whose_path_is_no_text_is_refused_before_it_is_made(
    tmp_path: Path,
    served_market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    file = write(tmp_path / "m\udcff.csv", [A])
    refused = in_process("send-many", file)
    assert refused.status == 2
    assert "the path of the outbox (see --outbox) has bytes that could not be" in refused.err
    assert len(list(tmp_path.iterdir())) == 1
    assert in_process("send-many", file, "--outbox", str(tmp_path / "o")).status == 0
    assert served_market.messages_stored == 1


# Disks


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
async def test_full_disk_sends_nothing_that_is_not_noted(tmp_path: Path) -> None:
    """Files may not grow beyond a limit, first while the messages are put, then while sending."""
    messages = messages_of(chats=20, each=15)
    file, report = write(tmp_path / "m.csv", messages), tmp_path / "r.jsonl"
    async with Sandbox(latency=0) as market:
        env = environment(**variables_of(market))
        finished = await end(await fork(LIMITED, "send-many", file, env=env | {"SIZE": "100000"}))
        assert finished.status == 1
        assert "whether it is full" in finished.err
        assert market.messages_stored == 0
        process = await fork(
            LIMITED, "send-many", file, "--give-up-after", "1", env=env | {"SIZE": "500000"}
        )
        finished = await end(process)
        assert finished.status == 1
        assert "no more messages are sent" in finished.err
        assert 0 < market.messages_stored < 300
        ended = await start_and_end(
            "send-many", file, "--report", str(report), **variables_of(market)
        )
        assert ended.status == 0
        assert_all_arrived(market, messages, report)


LIMITED = (
    """
import atexit, os, resource, signal, yamarket_chat.cli.bulk as bulk
unlimited = resource.RLIM_INFINITY
# What measures coverage writes at the end as well.
atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, (unlimited, unlimited))
bulk.PATIENCE = bulk.SHORT_GRACE = 1.0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["SIZE"]), unlimited))
"""
    + SOON
)


def test_run_goes_on_if_its_report_cannot_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served_market: Sandbox,  # noqa: F811
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    file, report = write(tmp_path / "m.csv", [A, B]), tmp_path / "r.jsonl"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("add", "place"):
        with monkeypatch.context() as patch:
            patch.setattr(Report, name, full)
            sent = in_process("send-many", file, "--report", str(report))
        assert sent.status == 1
        told = "Error: the report cannot be written: No space left on device; the run goes on"
        assert sent.err.count(told) == 1
        assert "To write the report, run the same command again" in sent.err
        assert sent.out.startswith("Delivered 2 of 2 messages")
    assert served_market.messages_stored == 2
    assert in_process("send-many", file, "--report", str(report)).status == 0
    assert len(lines_of(report)) == 2
    assert len(list(tmp_path.iterdir())) == 3
    file = write(tmp_path / "n.csv", [A])
    monkeypatch.setattr(Delivering, "begin", full)
    stopped = in_process("send-many", file, "--report", str(tmp_path / "n.jsonl"))
    assert stopped.status == 1
    assert stopped.err.endswith("Error: stopped: [Errno 28] No space left on device\n")


async def test_outbox_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", [A])
    (tmp_path / "text").write_text("no database, but a text that is long enough")
    async with Sandbox(latency=0) as market:
        for outbox, told in (
            (tmp_path / "no" / "o", "No such file or directory; pass a file in another folder"),
            (tmp_path / "text", "this is no SQLite file: check the path; or pass another --outbox"),
            (tmp_path / "o", "the report cannot be opened"),
        ):
            report = str(tmp_path / "none" / "r.jsonl")
            refused = await run(
                *("send-many", file, "--outbox", str(outbox), "--report", report),
                **variables_of(market),
            )
            assert refused.status == 2
            assert told in refused.err
            assert refused.err.splitlines()[-1].startswith("Error: ")
        assert market.arrivals == []
