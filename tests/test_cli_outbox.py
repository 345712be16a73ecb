"""`yamarket-chat outbox ...`: what a person does with an outbox. Delivering is in another file."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Connection, create_engine, text, update

from tests.test_cli import (
    Finished,
    _interruptible,  # noqa: F401
    in_process,  # noqa: F401
)
from tests.test_readme import market, texts  # noqa: F401
from yamarket_chat import DeliveryUnknownError, InvalidArgumentError, Pending
from yamarket_chat.cli import console, outbox_keys, outbox_status
from yamarket_chat.cli.outbox_keys import KeyFile
from yamarket_chat.outbox import Outbox, earlier
from yamarket_chat.outbox.outcomes import encode_outcome
from yamarket_chat.outbox.schema import messages, workers
from yamarket_chat.sandbox import Sandbox

BUSINESS = 12345
Run = Callable[..., Finished]


class Shell:
    """Runs the command on an outbox, in this process."""

    def __init__(self, run: Run, url: str, patch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.url = url
        self.patch = patch

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Return what it prints; on standard error if it fails."""
        finished = self.run("outbox", *arguments)
        assert finished.status == status, finished
        if status:
            assert finished.err.startswith("Error: ")
            return finished.err
        return finished.out

    def json(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        finished = self.run("outbox", *arguments, "--json")
        assert finished.status == status, finished
        return [json.loads(line) for line in finished.out.splitlines()]

    def types(self, *lines: str) -> None:
        """Let somebody sit at a terminal who types these lines."""

        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        self.patch.setattr(sys, "stdin", Terminal("".join(line + "\n" for line in lines)))

    def do(self, work: Callable[[Outbox], Coroutine[Any, Any, Any]]) -> Any:
        """Do something else with the outbox."""

        async def main() -> Any:
            async with Outbox(self.url) as outbox:
                return await work(outbox)

        return asyncio.run(main())

    def becomes(self, number: int, state: str, **values: Any) -> None:
        """Let a message be in a state, as if a worker had left it so."""
        row = {"state": state, "ended_at": round(datetime.now(UTC).timestamp() * 1e6), **values}

        def change(connection: Connection) -> None:
            connection.execute(update(messages).where(messages.c.number == number).values(row))

        self.do(lambda outbox: outbox._database.write(change))

    def unknown(self, number: int, text: str = "да", chat_id: int = 17) -> None:
        """Let a message be unknown since just now."""
        until = datetime.now(UTC)
        since = until - timedelta(seconds=20)
        pending = Pending(
            business_id=BUSINESS, chat_id=chat_id, text=text, since=since, until=until,
            requests=1, seen="no answer",
        )  # fmt: skip
        error = DeliveryUnknownError("it is unknown", pending=pending)
        self.becomes(
            number, "unknown", request=1, chat_id=chat_id, outcome=encode_outcome(error),
            pending=earlier.encode_pending(pending),
        )  # fmt: skip

    def states(self) -> list[str]:
        return [line["state"] for line in self.json("list")]


@pytest.fixture
def empty(
    in_process: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    """A shell whose database is not there yet."""
    url = f"sqlite:///{tmp_path}/outbox.db"
    monkeypatch.chdir(tmp_path)
    for name in ("YAMARKET_API_KEY", "YAMARKET_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("YAMARKET_OUTBOX", url)
    monkeypatch.setenv("YAMARKET_BUSINESS_ID", str(BUSINESS))
    return Shell(in_process, url, monkeypatch)


@pytest.fixture
def shell(empty: Shell) -> Shell:
    assert empty("create") == "The tables are there, version 1\n"
    return empty


@pytest.fixture
def both(empty: Shell, database_url: Any) -> Shell:
    """A shell on each of the databases."""
    if not isinstance(database_url, str):
        empty.url = database_url.render_as_string(hide_password=False)
        empty.patch.setenv("YAMARKET_OUTBOX", empty.url)
    empty("create")
    return empty


# What is put and listed


def test_messages_are_put_listed_and_cancelled(both: Shell) -> None:
    assert both("put", "17", "Заказ собран", "--key", "packed-55") == (
        "Message 1 waits in the outbox\n"
    )
    both("put", "18", "Мы открыты", "--bulk", "--business-id", "77")
    assert both.json("put", "17", "Заказ собран", "--key", "packed-55") == [{"number": 1}]
    first, second = both.json("list")
    assert (first["number"], first["state"], first["text"]) == (1, "waiting", "Заказ собран")
    assert (first["business_id"], first["chat_id"], first["key"]) == (BUSINESS, 17, "packed-55")
    assert (second["business_id"], second["bulk"], second["key"]) == (77, True, None)
    table = both("list").splitlines()
    assert table[0].split() == ["Number", "State", "Business", "To", "Put", "Content"]
    assert table[1].startswith("1       waiting  12345     chat 17")
    assert table[1].rstrip().endswith("Заказ собран")
    assert [line["number"] for line in both.json("list", "--business-id", "77")] == [2]
    assert [line["number"] for line in both.json("list", "--key-prefix", "packed-")] == [1]
    assert both("cancel", "1") == "1 message cancelled\n"
    assert both.json("cancel", "1") == [{"number": 1, "changed": True, "state": "cancelled"}]
    assert [line["number"] for line in both.json("list", "--state", "cancelled")] == [1]
    (status,) = both.json("status")
    assert (status["waiting"], status["leaving"], status["workers"]) == (1, 0, [])
    told = both("status").splitlines()
    assert re.fullmatch(r"Messages: 1 waiting; the oldest was put 0:00:\d\d ago", told[0])
    assert told[1] == "Workers: none; run yamarket-chat outbox deliver"
    assert told[2].split() == [
        "Business",
        "Waiting",
        "Not",
        "due",
        "Sending",
        "Oldest",
        "In",
        "1",
        "h",
    ]


def test_put_takes_files_orders_times_and_standard_input(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "label.pdf").write_bytes(b"%PDF-")
    shell("put", "17", "--file", "label.pdf", "--name", "Этикетка.pdf")
    shell("put", "--order", "55", "Собран", "--not-after", "2099-01-01T00:00:00+03:00")
    shell("put", "--return", "7", "--file", "label.pdf", "--not-before", "2098-01-01")
    shell.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("строка\nещё\n".encode())))
    shell("put", "17", "-")
    file, order, back, read = shell.json("list")
    assert (file["filename"], file["file_size"], file["text"]) == ("Этикетка.pdf", 5, None)
    assert (order["order_id"], order["chat_id"]) == (55, None)
    assert order["not_after"] == "2098-12-31T21:00:00Z"
    assert (back["return_id"], back["filename"]) == (7, "label.pdf")
    assert datetime.fromisoformat(back["not_before"]) == datetime(2098, 1, 1).astimezone()
    assert read["text"] == "строка\nещё"
    assert "order 55" in shell("list")
    assert "[Этикетка.pdf, 5 bytes]" in shell("show", "1")


def test_put_leaves_it_to_the_markets_clock_whether_a_message_is_too_late(shell: Shell) -> None:
    """The clock of this machine may be ahead."""
    late = shell.run("outbox", "put", "17", "x", "--not-after", "2020-01-01T15:00+03:00")
    assert late.out == "Message 1 waits in the outbox\n"
    assert late.err.startswith("Warning: by this machine's clock, --not-after is over: 2020-01-01")
    assert [line["state"] for line in shell.json("list")] == ["waiting"]


def test_show_tells_all_of_a_message(shell: Shell) -> None:
    shell("put", "17", "раз\nдва", "--key", "a", "--bulk")
    shell.unknown(1, "раз\nдва")
    told = shell("show", "--key", "a")
    assert told == shell("show", "1")
    assert told.startswith("Message:    1, unknown\nTo:         chat 17 of business 12345\n")
    assert "Error:      it is unknown whether the message to chat 17 was delivered" in told
    assert told.endswith("Text:\n  раз\n  два\n")
    assert "there is no message 9" in shell("show", "9", status=1)
    assert "there is no message with the key 'b'" in shell("show", "--key", "b", status=1)


def test_list_says_that_there_are_more(shell: Shell) -> None:
    for number in range(3):
        shell("put", "17", str(number))
    finished = shell.run("outbox", "list", "--limit", "2")
    assert len(finished.out.splitlines()) == 3
    assert finished.err == ("Only 2 messages shown; there are more, see --limit and --after 2\n")
    assert [line["text"] for line in shell.json("list", "--after", "2")] == ["2"]
    assert shell.run("outbox", "list", "--chat", "9").err == "No message matches\n"


def test_narrow_terminal_shows_whole_numbers(shell: Shell) -> None:
    terminal = Console(force_terminal=True, color_system=None, highlight=False, width=50)
    shell.patch.setattr(console, "out", terminal)
    shell("put", "1000001", "Заказ собран")
    shown = shell("list").splitlines()
    assert {"Number: 1", "State: waiting", "To: chat 1000001", "Content: Заказ собран"} < {*shown}
    assert "Message:    1, waiting" in shell("show", "1")


WRONG = [
    (["put", "17", "x", "y"], "Got unexpected extra argument(s) (y)"),
    (["put", "17"], "pass either TEXT or --file"),
    (["put", "x"], "CHAT_ID is a whole number, not 'x'"),
    (["put"], "the chat is missing: pass CHAT_ID, --order or --return"),
    (["put", "--order", "5", "17", "x"], "pass no CHAT_ID with --order or --return"),
    (["put", "--order", "5", "--return", "7", "x"], "pass either --order or --return"),
    (["put", "17", "x", "--file", "label.pdf"], "pass either TEXT or --file"),
    (["put", "17", "--file", "no.pdf"], "the file cannot be read"),
    (["put", "17", "--file", "label.pdf", "--name", ""], "the name is empty; leave --name out"),
    (["put", "17", "x", "--name", "y"], "--name is for a file"),
    (["put", "17", " "], "the text is empty"),
    (["put", "17", "x" * 4097], "4097 characters"),
    (["put", "0", "x"], "chat_id is a whole number"),
    (["put", "17", "-5%"], "put -- before a text that begins with a dash"),
    (["put", "17", "x", "--key", "bot:x"], "choose another beginning"),
    (["put", "17", "x", "--key", ""], "key has 1 to 200 characters"),
    (["put", "17", "x", "--not-before", "tomorrow"], "'tomorrow' is no time; write 2026-12-31T15"),
    (["put", "17", "x", "--not-before", "2099-02-01", "--not-after", "2099-01-01"], "before"),
    (["put", "17", "x", "--business-id", "0"], "Invalid value for '--business-id'"),
    (["list", "--state", "lost"], "'lost' is not one of waiting, leaving"),
    (["list", "--key-prefix", ""], "key_prefix is a str"),
    (["show"], "pass either NUMBER or --key"),
    (["cancel"], "Missing argument"),
    (["cancel", "9"], "there is no message 9"),
    (["settle", "--yes"], "pass either the numbers of messages, or --all"),
    (["settle", "1", "--all"], "pass either the numbers of messages, or --all"),
    (["settle", "--all", "--yes"], "--yes needs --delivered or --not-delivered"),
    (["settle", "--all"], "nobody can be asked: pass --yes"),
    (["settle", "1", "--delivered", "--yes"], "message 1 is waiting, and not unknown"),
    (["settle", "--all", "--delivered", "--json"], "--json asks no questions"),
    (["retry"], "pass either the numbers of messages, or --state"),
    (["retry", "1", "--chat", "17"], "pass either the numbers of messages, or --state"),
    (["retry", "--chat", "17", "--yes"], "pass --state as well: unknown, refused or expired"),
    (["retry", "--state", "delivered", "--yes"], "--state is one of unknown, refused, expired"),
    (["retry", "1", "--yes"], "message 1 is waiting, and not unknown or refused or expired"),
    (["schema", "--dialect", "mysql"], "--dialect is one of sqlite, postgresql"),
    (["schema"], "Missing option '--dialect'"),
    (["prune", "--keep", "0"], "Invalid value for '--keep'"),
    (["prune", "--keep", "1e300"], "Invalid value for '--keep'"),
    (["deliver", "--api-key", "k", "--keep", "1e300"], "Invalid value for '--keep'"),
    (["status", "--database", "mysql://x"], "the outbox does not work with"),
    (["status", "--database", "postgresql:x"], "the address of the outbox is one such as"),
    (["status", "--database", "sqlite://"], "an outbox in memory does not survive the process"),
    (["deliver", "--keys", "no.txt"], "the keys cannot be read: no.txt: No such file"),
    (["deliver"], "--api-key is missing"),
    (["deliver", "--api-key", "k", "--reserve", "5000"], "reserve is a whole number from 0 to"),
    (["deliver", "--api-key", "k", "--lease", "0"], "Invalid value for '--lease'"),
    (["deliver", "--api-key", "k", "--base-url", "http://a.example"], "--insecure-http"),
]


def test_wrong_usage_prints_one_line_and_writes_nothing(shell: Shell) -> None:
    shell("put", "17", "да")
    before = shell.json("list")
    for arguments, told in WRONG:
        finished = shell.run("outbox", *arguments)
        assert finished.status == 2, arguments
        error = finished.err.splitlines()[-1]
        assert error.startswith("Error: ")
        assert told in error, arguments
        assert len(finished.err.splitlines()) - ("--api-key" in arguments) <= 2, finished.err
        assert finished.out == ""
    assert shell.json("list") == before


def test_key_of_another_message_is_a_conflict(shell: Shell) -> None:
    shell("put", "17", "да", "--key", "a")
    assert "the key 'a' belongs to message 1" in shell("put", "17", "нет", "--key", "a", status=1)
    assert len(shell.json("list")) == 1


@pytest.mark.parametrize("state", ["cancelled", "delivered", "expired"])
def test_put_says_that_the_message_of_a_key_waits_no_more(shell: Shell, state: str) -> None:
    put = ("put", "17", "да", "--key", "a", "--not-after", "2020-01-01")
    shell(*put)
    assert shell(*put) == "Message 1 waits in the outbox\n"
    shell.becomes(1, state)
    again = shell.run("outbox", *put)
    assert again.out == f"Message 1 has this key already, and is {state}\n"
    assert again.err == ""  # nothing about what becomes of it
    assert shell.json(*put) == [{"number": 1}]


COMMANDS = [
    *("create", "put", "deliver", "status", "list", "show"),
    *("cancel", "settle", "retry", "prune", "schema"),
]


def test_help_names_the_commands_and_each_has_an_example(empty: Shell) -> None:
    empty.patch.setenv("YAMARKET_API_KEY", "ACMA:secret")
    empty.patch.setenv("YAMARKET_OUTBOX", "postgresql://u:secret@h/d")
    assert re.findall(r"^│ ([a-z]+) ", empty("--help"), re.M) == COMMANDS
    for command in COMMANDS:
        told = empty(command, "--help")
        assert f"Example: yamarket-chat outbox {command}" in told
        assert "secret" not in told


# The database


def test_missing_database_says_how_to_make_it(empty: Shell) -> None:
    for command in (["list"], ["put", "17", "да"], ["prune"], ["status"], ["status", "--healthy"]):
        told = empty(*command, status=1)
        assert "run `yamarket-chat outbox create` once" in told
        assert told.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []
    empty.patch.delenv("YAMARKET_OUTBOX")
    assert "--database is missing; pass it or set YAMARKET_OUTBOX" in empty("list", status=2)


def test_database_of_env_file_or_a_plain_path_is_used(empty: Shell) -> None:
    empty.patch.delenv("YAMARKET_OUTBOX")
    Path(".env").write_text("YAMARKET_OUTBOX='of shop.db' # here\n")
    empty("create")
    assert Path("of shop.db").exists()
    empty("create", "--database", "50%.db")
    assert Path("50%.db").exists()
    assert empty.json("create", "--database", "50%.db") == [{"version": 1}]
    empty("create", "--database", "sqlite:///a:b@c.db")
    assert Path("a:b@c.db").exists()


def test_tables_that_are_too_new_are_refused(shell: Shell) -> None:
    with closing(sqlite3.connect("outbox.db")) as connection:
        connection.execute("UPDATE yamarket_outbox_schema SET version = 9, oldest_reader = 9")
        connection.commit()
    for command in (["list"], ["create"], ["put", "17", "да"], ["status", "--healthy"]):
        assert "update yamarket-chat" in shell(*command, status=1)


def test_server_that_is_away_or_refuses_is_one_sentence(empty: Shell, postgres_url: Any) -> None:
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        empty.patch.setenv("YAMARKET_OUTBOX", f"postgresql://u:tiger@127.0.0.1:{port}/d")
        told = empty("list", status=1)
    assert "it cannot be reached: check the address, the network and the server" in told
    assert "tiger" not in told
    assert told.count("\n") == 1
    url = postgres_url.set(database="nowhere").render_as_string(hide_password=False)
    empty.patch.setenv("YAMARKET_OUTBOX", url)
    told = empty("create", status=1)
    assert "nowhere" in told
    assert told.count("\n") == 1
    url = postgres_url.render_as_string(hide_password=False)
    empty.patch.setenv("YAMARKET_OUTBOX", url)
    assert "the tables are missing: run `yamarket-chat outbox create` once" in empty(
        "list", status=1
    )


def test_password_on_the_command_line_is_warned_of(empty: Shell) -> None:
    url = "postgresql://u:tiger@127.0.0.1:1/d"
    finished = empty.run("outbox", "list", "--database", url)
    assert finished.err.startswith("Warning: --database has a password, which is visible")
    assert "tiger" not in finished.err
    empty.patch.setenv("YAMARKET_OUTBOX", url)
    assert "Warning" not in empty.run("outbox", "list").err


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("u:tiger@127.0.0.1/d", "begins with postgresql:// or sqlite:///"),
        ("postgresql//u:tiger@127.0.0.1/d", "begins with postgresql:// or sqlite:///"),
        ("//u:tiger@127.0.0.1/d", "begins with postgresql:// or sqlite:///"),
        ("tiger\udcff.db", "has bytes that could not be decoded"),
        ("sqlite:///tiger\udcff.db", "has bytes that could not be decoded"),
        ("tiger\0.db", "has a NUL character"),
    ],
)
def test_address_that_makes_no_sense_is_not_shown(empty: Shell, address: str, told: str) -> None:
    for command in (["create"], ["status", "--healthy"]):
        finished = empty.run("outbox", *command, "--database", address)
        assert finished.status == 2
        assert told in finished.err
        assert "tiger" not in finished.err
    assert list(Path.cwd().iterdir()) == []


def test_missing_driver_says_what_to_install(empty: Shell) -> None:
    empty.patch.setitem(sys.modules, "psycopg", None)
    empty.patch.setenv("YAMARKET_OUTBOX", "postgresql://h/d")
    assert "pip install 'yamarket-chat[postgres]'" in empty("list", status=1)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_printed_schema_is_what_create_makes(
    empty: Shell, dialect: str, request: pytest.FixtureRequest
) -> None:
    empty.patch.delenv("YAMARKET_OUTBOX")
    statements = empty("schema", "--dialect", dialect)
    url = "sqlite:///outbox.db"
    if dialect == "sqlite":
        with closing(sqlite3.connect("outbox.db")) as connection:
            connection.executescript(statements)
    else:
        address = request.getfixturevalue("postgres_url")
        url = address.render_as_string(hide_password=False)
        engine = create_engine(address)
        with engine.begin() as connection:
            connection.execute(text(statements.replace(":", r"\:")))
        engine.dispose()
    empty.patch.setenv("YAMARKET_OUTBOX", url)
    empty("put", "17", "да")
    empty("create")
    assert empty.states() == ["waiting"]


def test_prune_removes_what_ended_long_ago(shell: Shell) -> None:
    for number in (1, 2, 3):
        shell("put", "17", "да")
        if number < 3:
            shell("cancel", str(number))
    month = 30 * 24 * 3600 * 1_000_000
    ended = round(datetime.now(UTC).timestamp() * 1e6) - month
    shell.becomes(1, "cancelled", ended_at=ended)
    assert shell("prune", "--keep", "31") == "0 messages removed\n"
    assert shell.json("prune") == [{"removed": 1}]
    assert [line["number"] for line in shell.json("list")] == [2, 3]
    shell.becomes(2, "cancelled", ended_at=ended + month - 7_200_000_000)
    shell("prune", "--forget-text")
    assert "(forgotten)" in shell("list")
    assert "the text of message 2 is forgotten" not in shell("show", "2")


# What a person decides


def test_unknown_messages_are_shown_with_their_chat_and_asked_about(
    shell: Shell,
    market: Sandbox,  # noqa: F811
) -> None:
    for text_ in ("да", "нет", "снова", "ещё", "потом"):
        shell("put", "17", text_)
    for number, text_ in enumerate(("да", "нет", "снова", "ещё"), 1):
        shell.unknown(number, text_)
    market.buyer_says(17, "Где мой заказ?")
    market.shop_says(17, "да")
    shell.types("y", "what?", "n", "r", "q")
    finished = shell.run("outbox", "settle", "--all")
    assert finished.status == 0
    assert shell.states() == ["delivered", "refused", "waiting", "unknown", "waiting"]
    first = finished.out.partition("Message:    2")[0]
    assert "Text:\n  да\n" in first
    assert "Где мой заказ?" in first
    assert "  да\n  ^ says the same as this message\n" in first
    assert finished.out.count("^ says the same") == 1
    assert "1 of 4: did it arrive? [y/n/r/s/q]" in finished.err
    (one, *_) = shell.json("list")
    assert one["receipt"]["confirmed_by"] == "person"
    assert "somebody has looked" in shell("show", "1")


def test_without_a_key_or_a_market_the_person_looks_alone(shell: Shell) -> None:
    shell("put", "17", "да")
    shell.unknown(1)
    shell.types("s")
    finished = shell.run("outbox", "settle", "1")
    assert "No key of business 12345 is set, so look at chat 17 yourself" in finished.err
    shell.patch.setenv("YAMARKET_API_KEY", "key")
    shell.patch.setenv("YAMARKET_BASE_URL", "http://127.0.0.1:1")
    shell.patch.setattr("yamarket_chat.cli.outbox_decide.READ_WITHIN", 0.3)
    shell.types()  # closes the input
    finished = shell.run("outbox", "settle", "1")
    assert "The history of chat 17 cannot be read" in finished.err
    assert finished.status == 0
    assert shell.states() == ["unknown"]


def test_many_are_settled_after_one_question_or_none(both: Shell) -> None:
    for number in range(1, 5):
        both("put", "17" if number < 4 else "18", "да", "--key", f"a{number}")
        both.unknown(number, chat_id=17 if number < 4 else 18)
    both.types("n")
    finished = both.run("outbox", "settle", "--chat", "17", "--delivered")
    assert "Settle 3 messages as delivered? [y/n]" in finished.err
    assert finished.err.endswith("Nothing was changed\n")
    both.types("y")
    assert both("settle", "--chat", "17", "--key-prefix", "a1", "--delivered").endswith(
        "1 message settled as delivered\n"
    )
    assert both.json("settle", "2", "3", "--not-delivered", "--yes") == [
        {"number": 2, "changed": True, "state": "refused"},
        {"number": 3, "changed": True, "state": "refused"},
    ]
    assert both.states() == ["delivered", "refused", "refused", "unknown"]
    assert both("retry", "--state", "refused", "--yes") == "2 messages waiting again\n"
    assert both.run("outbox", "retry", "--state", "refused", "--yes").err == "No message matches\n"
    both.types("y")
    finished = both.run("outbox", "retry", "4")
    assert "Message:    4, unknown" in finished.out
    assert "Send 1 message again? [y/n]" in finished.err
    assert both.states() == ["delivered", "waiting", "waiting", "waiting"]


def test_nothing_is_changed_if_one_of_the_numbers_is_wrong(shell: Shell) -> None:
    shell("put", "17", "да")
    shell("put", "17", "да")
    shell.unknown(1)
    for arguments in (
        ["settle", "1", "2", "--delivered"],
        ["retry", "1", "2"],
        ["retry", "1", "9"],
    ):
        shell(*arguments, "--yes", status=2)
    assert shell.states() == ["unknown", "waiting"]


def test_what_cannot_be_done_is_said_and_the_rest_is_done(shell: Shell) -> None:
    shell("put", "17", "да")
    shell("put", "17", "нет")
    shell.becomes(1, "refused", text=None)
    shell.becomes(2, "refused")
    finished = shell.run("outbox", "retry", "1", "2", "--yes")
    assert finished.status == 1
    assert "the text of message 1 is forgotten" in finished.err
    assert finished.out == "1 message waiting again\n"
    shell.becomes(2, "delivered")
    assert "message 2 was left as it is: delivered" in shell("cancel", "2", status=1)


# Health


def beating(shell: Shell, host: str, *, beats: bool) -> None:
    """Add a worker of a machine. If it beats, each look at the workers finds a higher beat."""

    def add(connection: Connection) -> None:
        connection.execute(
            workers.insert(),
            {
                "token": host, "lease": 30.0 if beats else 0.3, "started_at": 1, "beat": 1,
                "about": f"process 7 on {host}, yamarket-chat 0.1.0",
            },
        )  # fmt: skip

    shell.do(lambda outbox: outbox._database.write(add))
    if beats:
        with closing(sqlite3.connect("outbox.db")) as connection:
            connection.execute("ALTER TABLE yamarket_outbox_workers RENAME TO real_workers")
            connection.execute(
                "CREATE VIEW yamarket_outbox_workers AS SELECT token, abs(random() >> 1) AS beat,"
                " lease, bot, lock, about, started_at FROM real_workers"
            )


def test_status_is_healthy_if_a_worker_of_this_machine_beats(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_status, "LOOK", 0.02)
    here = socket.gethostname()
    assert f"not healthy: no worker on {here} delivers" in shell("status", "--healthy", status=1)
    beating(shell, "elsewhere", beats=False)
    assert f"no worker on {here} delivers" in shell("status", "--healthy", status=1)
    beating(shell, here, beats=False)
    told = shell("status", "--healthy", status=1)
    assert (
        told
        == f"Error: not healthy: no beat within 0 s of process 7 on {here}, yamarket-chat 0.1.0\n"
    )


def test_status_is_healthy_as_soon_as_a_beat_is_seen(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_status, "LOOK", 0.02)
    beating(shell, socket.gethostname(), beats=True)
    (found,) = shell.json("status", "--healthy")
    assert found["healthy"] is True
    assert found["reason"].startswith("healthy: process 7 on ")


# The file of keys


def test_key_file_has_a_line_for_each_business(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n12345=ACMA:a:b=\n\n 77 = ACMA:c \n", encoding="utf-8-sig")
    path.chmod(0o600)
    assert KeyFile(path).keys == {12345: "ACMA:a:b=", 77: "ACMA:c"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("12345 ACMA:secret", "line 1: a line is such as 12345=ACMA:your:key"),
        ("1=ACMA:a\nx=ACMA:secret", "line 2: the business id is an int"),
        ("1=ACMA:a\n1=ACMA:secret", "line 2: business 1 is there twice"),
        ("1=ACMA:sec ret", "line 1: api_key cannot be sent in a header"),
        ("1=", "line 1: api_key is empty"),
        ("# nothing\n", "has no keys"),
        (b"\xff\xff", "is not text in UTF-8"),
    ],
)
def test_wrong_key_file_is_explained_without_its_keys(
    tmp_path: Path, content: str | bytes, told: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    with pytest.raises(InvalidArgumentError) as error:
        KeyFile(path)
    assert told in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_key_file_that_others_may_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    path.write_text("1=ACMA:a")
    path.chmod(0o666)
    with pytest.raises(InvalidArgumentError, match=r"everybody may write .*: run chmod 600"):
        KeyFile(path)
    path.chmod(0o644)
    assert KeyFile(path).keys
    assert "everybody on this machine may read" in capsys.readouterr().err


async def test_key_file_is_read_anew_when_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    path.write_text("1=ACMA:a\n2=ACMA:b")
    path.chmod(0o600)
    file = KeyFile(path)
    keys = file.keys
    watching = asyncio.create_task(file.watch())
    path.write_text("1=ACMA:new\n3=ACMA:c")
    await asyncio.sleep(outbox_keys.LOOK + 1)
    assert keys == {1: "ACMA:new", 3: "ACMA:c"}
    assert "The keys of 2 businesses were read anew" in capsys.readouterr().err
    path.write_text("1=ACMA:newer and broken")
    await asyncio.sleep(outbox_keys.LOOK + 1)
    path.unlink()
    await asyncio.sleep(outbox_keys.LOOK + 1)
    assert keys == {1: "ACMA:new", 3: "ACMA:c"}
    assert capsys.readouterr().err.count("The keys stay as they were") == 2
    watching.cancel()
