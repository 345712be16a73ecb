"""The commands that read chats, keys and limits, and those that send one message or file."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.command import Command, environment
from tests.test_cli import (
    COMMAND,
    NOBODY_LISTENS,
    Finished,
    _interruptible,  # noqa: F401
    end,
    in_process,  # noqa: F401
    start,
    texts,
    variables_of,
)
from yamarket_chat import Rate
from yamarket_chat.cli import console, waiting
from yamarket_chat.cli import environment as dotenv
from yamarket_chat.sandbox import Fault, Sandbox

pytestmark = pytest.mark.real_time


Runs = Callable[..., Finished]


def run_all(in_process: Runs, *commands: str) -> list[Finished]:  # noqa: F811
    return [in_process(*command.split()) for command in commands]


@contextmanager
def served(**settings: Any) -> Iterator[Sandbox]:
    """Run a sandbox in a separate thread, for commands that block the thread of the test."""
    holder: list[tuple[Sandbox, asyncio.AbstractEventLoop]] = []
    ready, ending = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with Sandbox(**settings) as sandbox:
            holder.append((sandbox, asyncio.get_running_loop()))
            ready.set()
            await ending.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    sandbox, loop = holder[0]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables_of(sandbox).items():
            patch.setenv(name, value)
        try:
            yield sandbox
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join()


@pytest.fixture
def market() -> Iterator[Sandbox]:
    with served() as market:
        yield market


def test_whoami_shows_scopes_and_business_id(
    in_process: Runs,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(scopes=["PRICING"], campaigns=2):
        monkeypatch.setenv("YAMARKET_BUSINESS_ID", "not known yet")
        plain, programs = in_process("whoami"), in_process("whoami", "--json")
    assert plain.status == 0, plain.err
    key, scopes, may, _, first, second = plain.out.splitlines()
    assert (key, scopes) == ("Key: Sandbox", "Scopes: PRICING")
    assert may == ("Chat: not allowed; the key needs the scope COMMUNICATION or ALL_METHODS")
    assert first.split()[0] == second.split()[0] == "12345"
    token, *shops = map(json.loads, programs.out.splitlines())
    assert token == {"name": "Sandbox", "authScopes": ["PRICING"]}
    assert [shop["business"]["id"] for shop in shops] == [12345, 12345]


def test_quota_shows_remaining_requests_of_reading_operations(in_process: Runs) -> None:  # noqa: F811
    with served(limits={"chats": Rate(4000, per=3600)}) as market:
        market.buyer_says(7, "Где заказ?")
        [programs, plain] = run_all(in_process, "quota --json", "quota")
        assert market.messages_stored == 1
    assert plain.status == 0, plain.err
    rows = {row["operation"]: row for row in map(json.loads, programs.out.splitlines())}
    assert rows["send_message"] == {
        **{"operation": "send_message", "limit": 1000},
        **{"remaining": None, "resets_in": None},
    }
    assert (rows["chats"]["limit"], rows["chats"]["remaining"]) == (4000, 3999)
    assert rows["get_message"]["remaining"] == 999
    assert "unknown before a request is sent" in plain.out


def test_quota_of_chat_reading_operations_needs_a_chat(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
) -> None:
    rows = in_process("quota").out.splitlines()
    without = {line.split()[0] for line in rows if "unknown, no chat to read" in line}
    assert without == {"get_chat", "history", "get_message"}
    market.add_chat(7, order_id=55)
    [message] = [line for line in in_process("quota").out.splitlines() if "get_message" in line]
    assert "unknown, no message to read" in message


def test_chats_prints_a_table_and_accepts_filters(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
) -> None:
    market.buyer_says(7, "Где заказ?")
    market.shop_says(8, "Пришёл")
    market.add_chat(9, order_id=55)
    everything, waiting, about, programs, few, none, wrong = run_all(
        in_process,
        "chats",
        "chats --status waiting_for_partner",
        "chats --order 55",
        "chats --json",
        "chats --limit 1",
        "chats --return 3",
        "chats --order x",
    )
    assert everything.out.splitlines()[0].split()[:3] == ["Chat", "Status", "About"]
    assert [line.split()[0] for line in everything.out.splitlines()[1:]] == ["7", "8", "9"]
    assert [line.split()[0] for line in waiting.out.splitlines()[1:]] == ["7"]
    assert "order 55" in about.out.splitlines()[1]
    assert [json.loads(line)["chatId"] for line in programs.out.splitlines()] == [7, 8, 9]
    assert few.err == "Only 1 chat shown; there are more, see --limit\n"
    assert (none.status, none.out, none.err) == (0, "", "No chat matches\n")
    assert wrong.status == 2


def test_chats_says_so_if_there_are_none(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
) -> None:
    assert in_process("chats").err == "No chats\n"


@pytest.mark.parametrize(
    ("option", "named"),
    [("--status", "WAITING_FOR_PARTNER"), ("--type", "ARBITRAGE"), ("--about", "DIRECT")],
)
def test_unknown_filter_error_lists_the_valid_ones(
    option: str,
    named: str,
    market: Sandbox,
    in_process: Runs,  # noqa: F811
) -> None:
    finished = in_process("chats", option, "FOO")
    assert finished.status == 2
    assert finished.err.startswith(f"Error: Invalid value for '{option}': 'FOO' is not one of ")
    assert named in finished.err
    assert not market.arrivals


def test_chats_fit_a_terminal_of_80_columns(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Console(force_terminal=True, color_system=None, highlight=False, width=80)
    monkeypatch.setattr(console, "out", terminal)
    for chat, status in ((123456789, "WAITING_FOR_CUSTOMER"), (123456790, "WAITING_FOR_ARBITER")):
        market.add_chat(chat, order_id=chat)
        market.set_chat(chat, status=status)
    market.set_chat(123456790, chat_type="ARBITRAGE")
    shown = in_process("chats").out
    customer, arbiter, kind = shown.rstrip().splitlines()[-3:]
    assert customer.split()[:6] == [
        *("123456789", "WAITING_FOR_CUSTOMER", "order", "123456789", "Buyer", "123456789")
    ]
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d$", customer.rstrip())
    assert "WAITING_FOR_ARBITER  order 123456790" in arbiter
    assert kind.strip() == "(ARBITRAGE)"


def test_narrow_terminal_shows_whole_ids(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table would cut them to other ids."""
    terminal = Console(force_terminal=True, color_system=None, highlight=False, width=40)
    monkeypatch.setattr(console, "out", terminal)
    market.add_chat(1000001, order_id=55)
    market.add_chat(1000002)
    shown = in_process("chats").out.splitlines()
    assert [line for line in shown if line.startswith("Chat")] == ["Chat: 1000001", "Chat: 1000002"]
    assert "About: order 55" in shown
    assert shown.count("") == 1


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_history_prints_a_conversation_with_the_newest_message_last(
    order: str,
    in_process: Runs,  # noqa: F811
) -> None:
    with served(history_order=order) as market:
        market.buyer_says(7, "Где\nзаказ?\x1b[2J")
        market.shop_says(7, "В пути")
        market.buyer_sends_file(7, "чек.pdf", b"123")
        plain, last, programs = run_all(
            in_process, "history 7", "history 7 --limit 1", "history 7 --json"
        )
    lines = plain.out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        *("Buyer", "Shop", "Buyer")
    ]
    assert [line for line in lines if line.startswith(" ")] == [
        *("  Где", "  заказ? [2J", "  В пути", "  [чек.pdf, 3 bytes]")
    ]
    assert last.out.splitlines()[1:] == ["  [чек.pdf, 3 bytes]"]
    assert [json.loads(line)["sender"] for line in programs.out.splitlines()] == [
        *("CUSTOMER", "PARTNER", "CUSTOMER")
    ]


async def line_of(process: Command) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 15)).decode().rstrip()


async def test_watch_shows_new_messages_of_buyers(market: Sandbox) -> None:
    market.buyer_says(7, "old")
    market.buyer_says(8, "old too")
    process = await start("watch", "--every", "1", **variables_of(market))
    assert process.stderr is not None
    told = (await asyncio.wait_for(process.stderr.readline(), 15)).decode()
    # Not every 1 s, because watch uses at most a fifth of the rate limit, half of it for all chats.
    assert told == "Watching every 7 s, until Ctrl-C\n"
    market.buyer_says(8, "new")
    market.shop_says(9, "ours")
    market.buyer_says(9, "in a chat that is new")
    shown = [await line_of(process) for _ in range(4)]
    assert shown[0].startswith("Buyer, chat 8  ")
    assert shown[1] == "  new"
    assert shown[2].startswith("Buyer, chat 9  ")
    assert shown[3] == "  in a chat that is new"
    market.buyer_says(8, "and more")
    assert (await line_of(process)).startswith("Buyer, chat 8  ")
    assert await line_of(process) == "  and more"
    process.send_signal(signal.SIGINT)
    finished = await end(process)
    assert finished.status == 130
    assert finished.out == ""
    assert finished.err == ""  # no notice, because the Market responds


async def test_watch_reports_a_market_that_stops_answering() -> None:
    async with Sandbox(faults=lambda r: Fault("no_answer") if r.number > 1 else None) as market:
        process = await start("watch", "--every", "1", **variables_of(market))
        assert process.stderr is not None
        lines = [(await asyncio.wait_for(process.stderr.readline(), 15)) for _ in range(2)]
        assert lines[0].startswith(b"Watching every")
        assert lines[1].startswith(b"No response from the Market yet")
        process.send_signal(signal.SIGINT)
        assert (await end(process)).status == 130


def test_slow_market_prints_one_notice(
    in_process: Runs,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "NOTICE_AFTER", 0.2)
    with served(latency=0.5) as market:
        for chat in range(1, 42):
            market.add_chat(chat, order_id=chat)
        finished = in_process("chats", "--give-up-after", "1.2")
        assert market.requests("chats") == 3
    assert finished.status == 0
    assert len(finished.out.splitlines()) == 42
    assert finished.err.count("No response") == 1


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the command use a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("YAMARKET_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("YAMARKET_API_KEY", "ACMA:1")
        monkeypatch.setenv("YAMARKET_BUSINESS_ID", "1")
        yield


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("chats", "no response from the Market within 0.5 s"),
        ("new-chat --order 5", "no response from the Market within 0.5 s"),
        ("send 17 hi", "it is unknown whether the message to chat 17 was delivered"),
    ],
)
def test_command_gives_up_on_a_silent_server_in_time(
    command: str,
    told: str,
    in_process: Runs,  # noqa: F811
) -> None:
    began = time.monotonic()
    finished = in_process(*command.split(), "--give-up-after", "0.5")
    assert time.monotonic() - began < 1.5
    assert finished.status == 1
    assert finished.out == ""
    assert finished.err.startswith(f"Error: {told}")
    assert finished.err.count("\n") == 1


def test_command_does_not_give_up_while_it_waits_for_the_quota(in_process: Runs) -> None:  # noqa: F811
    with served(faults={1: Fault("rate_limit", delay=1.5)}) as market:
        finished = in_process("send", "7", "hello", "--give-up-after", "0.5")
        assert finished.status == 0, finished.err
        assert texts(market, 7) == ["hello"]


def test_new_chat_prints_the_chat_id(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
) -> None:
    order, back = run_all(in_process, "new-chat --order 55", "new-chat --return 3 --json")
    wrong = in_process("new-chat")
    [of_order, of_return] = sorted(
        market.chat_ids, key=lambda chat: f"Chat {chat} " not in order.out
    )
    assert order.out == f"Chat {of_order} is about order 55\n"
    assert json.loads(back.out) == {"chat_id": of_return}
    assert wrong.status == 2
    assert wrong.err == "Error: pass either --order or --return\n"


def test_a_file_and_a_text_from_standard_input_are_sent(
    market: Sandbox,
    in_process: Runs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label = tmp_path / "Накладная.pdf"
    label.write_bytes(b"12345")
    sent = in_process("send-file", "7", str(label), "--json")
    assert sent.status == 0, sent.err
    assert json.loads(sent.out)["confirmed_by"] == "answer"
    [message] = market.messages(7)
    assert [(file.name, file.size) for file in message.payload] == [("Накладная.pdf", 5)]
    nameless = in_process("send-file", "7", str(label), "--name", "")
    assert nameless.status == 2
    assert "the name is empty; leave --name out for the file's own name" in nameless.err
    assert len(market.messages(7)) == 1
    absent = in_process("send-file", "7", "no-such.pdf")
    assert absent.status == 2
    assert absent.err.startswith("Error: the file cannot be read")
    for content, status in (("две\nстроки\n".encode(), 0), (b"\xff", 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert in_process("send", "8", "-").status == status
    assert texts(market, 8) == ["две\nстроки"]


@pytest.mark.parametrize(
    ("content", "already", "after"),
    [
        (
            "# mine\nexport YAMARKET_API_KEY='ACMA:1'\r\nYAMARKET_BUSINESS_ID = 7\nPATH=/evil\n",
            {},
            {"YAMARKET_API_KEY": "ACMA:1", "YAMARKET_BUSINESS_ID": "7"},
        ),
        (
            "YAMARKET_API_KEY=theirs\nYAMARKET_BUSINESS_ID=7\nYAMARKET_BASE_URL=https://evil\n",
            {"YAMARKET_API_KEY": "mine"},
            {"YAMARKET_API_KEY": "mine", "YAMARKET_BUSINESS_ID": "7"},
        ),
        (
            "YAMARKET_API_KEY=a\nYAMARKET_BASE_URL=http://127.0.0.1:1\n",
            {"YAMARKET_BASE_URL": "https://set"},
            {"YAMARKET_API_KEY": "a", "YAMARKET_BASE_URL": "https://set"},
        ),
    ],
)
def test_a_dotenv_file_never_overrides_the_environment(
    content: str,
    already: dict[str, str],
    after: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".env").write_text(content, encoding="utf-8")
    variables = dict(already)
    monkeypatch.setattr(os, "environ", variables)
    dotenv.load(tmp_path / ".env")
    assert variables == after


async def test_command_reads_the_dotenv_file(market: Sandbox, tmp_path: Path) -> None:
    lines = (f"{name}={value}\n" for name, value in variables_of(market).items())
    (tmp_path / ".env").write_text("".join(lines))
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "whoami"), cwd=tmp_path, stdout=PIPE, stderr=PIPE, env=environment()
    )
    assert "Chat: allowed" in (await end(process)).out


async def test_command_says_that_the_market_is_silent_and_may_be_ended_then() -> None:
    async with Sandbox(latency=50.0) as market:
        slow = await start("chats", **variables_of(market))
        gone = await start(
            "chats", "--give-up-after", "1",
            **variables_of(market, YAMARKET_BASE_URL=NOBODY_LISTENS),
        )  # fmt: skip
        assert slow.stderr is not None
        told = (await asyncio.wait_for(slow.stderr.readline(), 60)).decode()
        assert told.startswith("No response from the Market yet")
        slow.send_signal(signal.SIGINT)
        assert (await end(slow)).status == 130
        finished = await end(gone)
        assert finished.status == 1
        again, *_, error = finished.err.splitlines()
        assert "retry in" in again
        assert error.startswith("Error: chats: ")


def test_missing_business_id_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    for name in dotenv.NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("YAMARKET_API_KEY", "ACMA:1")
    for command in ("chats", "history 7", "quota", "new-chat --order 5"):
        finished = in_process(*command.split())
        assert finished.status == 2
        assert finished.err.startswith("Error: business_id is missing") or finished.err.startswith(
            "Error: --business-id is missing"
        )
