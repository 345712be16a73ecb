"""The command `yamarket-chat`. Most tests run it in a process of its own: see command.py."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command import MAIN, Command, environment, fork
from yamarket_chat import (
    ChatSession,
    DeliveryUnknownError,
    InvalidArgumentError,
    Pending,
    __version__,
    cli,
)
from yamarket_chat.arguments import BASE_URL
from yamarket_chat.cli import console, options
from yamarket_chat.cli import environment as environment_file
from yamarket_chat.sandbox import (
    Fault,
    RequestInfo,
    Sandbox,
    random_faults,
)

pytestmark = pytest.mark.real_time

COMMAND = str(Path(sys.executable).with_name("yamarket-chat"))
NOBODY_LISTENS = "http://127.0.0.1:1"


class Finished(NamedTuple):
    status: int
    out: str
    err: str


async def start(*arguments: str, **variables: str) -> Command:
    return await fork(MAIN, *arguments, env=environment(**variables))


async def start_really(*arguments: str, **variables: str) -> Process:
    """Start the command as users do, with a Python of its own."""
    return await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdout=PIPE, stderr=PIPE, env=environment(**variables)
    )


async def end(process: Command | Process) -> Finished:
    try:
        # A demo takes ten seconds, and far longer on a machine that does much else.
        async with asyncio.timeout(120):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    finished = Finished(process.returncode, out.decode(), (err or b"").decode())
    assert "Traceback" not in finished.err
    assert "\x1b" not in finished.out
    return finished


async def run(*arguments: str, **variables: str) -> Finished:
    return await end(await start(*arguments, **variables))


async def run_really(*arguments: str, **variables: str) -> Finished:
    return await end(await start_really(*arguments, **variables))


def variables_of(market: Sandbox, **others: str) -> dict[str, str]:
    return {
        "YAMARKET_BASE_URL": market.url,
        "YAMARKET_API_KEY": market.api_key,
        "YAMARKET_BUSINESS_ID": str(market.business_id),
    } | others


def texts(market: Sandbox, chat_id: int) -> list[str | None]:
    return [message.text for message in market.messages(chat_id)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C reach the command, even if the test run was started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
async def market() -> AsyncIterator[Sandbox]:
    async with Sandbox() as market:
        yield market


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Finished]]:
    """Return a function that runs the command in this process, so that tests can patch it."""

    def run_here(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["yamarket-chat", *arguments])
        status = cli.main()
        return Finished(status, *capfd.readouterr())

    kept = console.logger.handlers, console.logger.level, console.logger.propagate
    yield run_here
    console.logger.handlers, console.logger.propagate = kept[0], kept[2]
    console.logger.setLevel(kept[1])


# send


async def test_send_prints_one_line_when_the_message_is_delivered(market: Sandbox) -> None:
    finished = await run_really("send", "7", "Ваш заказ в пути", **variables_of(market))
    assert finished.status == 0
    assert texts(market, 7) == ["Ваш заказ в пути"]
    [arrival] = market.arrivals
    assert finished.out == f"Delivered to chat 7, 1 attempt, trace id {arrival.trace_id}\n"
    assert finished.err == ""


async def test_options_win_over_the_environment(market: Sandbox) -> None:
    finished = await run(
        *("send", "7", "hello", "--base-url", market.url, "--business-id", "12345"),
        **variables_of(market, YAMARKET_BASE_URL=NOBODY_LISTENS, YAMARKET_BUSINESS_ID="1"),
    )
    assert finished.status == 0
    assert texts(market, 7) == ["hello"]


async def test_api_key_on_the_command_line_prints_a_warning(market: Sandbox) -> None:
    finished = await run(
        "send", "7", "hello", "--api-key", market.api_key, YAMARKET_BUSINESS_ID="12345",
        YAMARKET_BASE_URL=market.url,
    )  # fmt: skip
    assert finished.status == 0
    assert finished.err.startswith("Warning: --api-key is visible in the list of processes")
    assert finished.err.count("\n") == 1
    assert market.api_key not in finished.err + finished.out


async def test_wrong_key_error_does_not_show_the_key(market: Sandbox) -> None:
    finished = await run("send", "7", "hello", **variables_of(market, YAMARKET_API_KEY="ACMA:no"))
    assert finished.status == 1
    assert finished.out == ""
    assert finished.err.startswith("Error: send_message: HTTP 401")
    assert "check the Api-Key" in finished.err
    assert finished.err.count("\n") == 1
    assert "ACMA:no" not in finished.err
    assert market.messages_stored == 0


@pytest.mark.parametrize(
    ("arguments", "changed", "told"),
    [
        (["7", "hello"], {"YAMARKET_API_KEY": ""}, "--api-key is missing"),
        (["7", "hello"], {"YAMARKET_API_KEY": "кключ"}, "--api-key cannot be sent in a header"),
        (["7", "hello"], {"YAMARKET_BUSINESS_ID": ""}, "--business-id is missing"),
        (["7", "hello"], {"YAMARKET_BUSINESS_ID": "mine"}, "YAMARKET_BUSINESS_ID"),
        (["7", "hello"], {"YAMARKET_BASE_URL": "http://example.org"}, "pass --insecure-http"),
        (["seven", "hello"], {}, "'CHAT_ID'"),
        (["0", "hello"], {}, "'CHAT_ID'"),
        (["99999999999999999999", "hello"], {}, "chat_id is a whole number"),
        (["7", "  "], {}, "the text is empty"),
        (["7", "x" * 4097], {}, "4097 characters"),
        (["7"], {}, "Missing argument 'TEXT'; see yamarket-chat send --help"),
        (["7", "hello", "--no-such"], {}, "--no-such"),
    ],
)
def test_wrong_usage_prints_one_line_and_sends_nothing(
    arguments: list[str],
    changed: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable[..., Finished],
) -> None:
    right = {
        "YAMARKET_BASE_URL": NOBODY_LISTENS,
        "YAMARKET_API_KEY": "ACMA:key",
        "YAMARKET_BUSINESS_ID": "12345",
    }
    for name, value in (right | changed).items():
        monkeypatch.setenv(name, value)
    finished = in_process("send", *arguments)
    assert finished.status == 2
    assert finished.out == ""
    assert finished.err.startswith("Error: ")
    assert told in finished.err
    assert finished.err.count("\n") == 1


async def test_insecure_http_allows_another_host() -> None:
    finished = await run(
        *("send", "7", "x", "--insecure-http", "--give-up-after", "0"),
        YAMARKET_API_KEY="key",
        YAMARKET_BUSINESS_ID="1",
        YAMARKET_BASE_URL="http://no-such-host.invalid",
    )
    assert finished.status == 1
    assert "no-such-host.invalid" in finished.err


async def test_send_reports_and_retries_an_unreachable_market() -> None:
    finished = await run(
        *("send", "7", "hello", "--give-up-after", "1.2"),
        YAMARKET_API_KEY="key",
        YAMARKET_BUSINESS_ID="1",
        YAMARKET_BASE_URL=NOBODY_LISTENS,
    )
    assert finished.status == 1
    again, *_, error = finished.err.splitlines()
    assert "retry in" in again
    assert error.startswith("Error: ")


async def test_ctrl_c_waits_for_the_message_being_sent() -> None:
    async with Sandbox(latency=1.0) as market:
        process = await start("send", "7", "hello", **variables_of(market))
        await until(lambda: market.arrivals)
        process.send_signal(signal.SIGINT)
        finished = await end(process)
        assert finished.status == 130
        assert finished.err.startswith("Interrupted")
        assert finished.out.startswith("Delivered to chat 7")
        assert texts(market, 7) == ["hello"]


async def test_second_ctrl_c_quits_at_once() -> None:
    async with Sandbox(latency=8.0) as market:
        process = await start("send", "7", "hello", **variables_of(market))
        assert process.stderr is not None
        await until(lambda: market.arrivals)
        process.send_signal(signal.SIGINT)
        assert b"Press Ctrl-C again" in await process.stderr.readline()
        await asyncio.sleep(0.3)  # a person does not press it faster
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(3):
            finished = await end(process)
        assert finished.status == 130
        assert finished.out == ""


async def test_ctrl_c_between_attempts_says_that_nothing_was_sent() -> None:
    process = await start(
        *("send", "7", "hello"),
        YAMARKET_API_KEY="key",
        YAMARKET_BUSINESS_ID="1",
        YAMARKET_BASE_URL=NOBODY_LISTENS,
    )
    assert process.stderr is not None
    assert b"retry in" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    finished = await end(process)
    assert finished.status == 130
    assert finished.err.endswith("Error: interrupted; nothing was sent\n")
    assert "finding out" not in finished.err


def test_an_unknown_outcome_says_that_it_may_have_arrived(
    monkeypatch: pytest.MonkeyPatch, in_process: Callable[..., Finished]
) -> None:
    pending = Pending(business_id=1, chat_id=7, text="hello", requests=1, seen="a reset")

    async def nobody_knows(self: ChatSession, chat_id: int, text: str) -> None:
        raise DeliveryUnknownError("chat 7: nothing tells", pending=pending)

    monkeypatch.setattr(ChatSession, "send_message", nobody_knows)
    finished = in_process("send", "7", "hello", "--api-key", "key", "--business-id", "1")
    assert finished.status == 1
    assert finished.out == ""
    told = "Error: it is unknown whether the message to chat 7 was delivered (a reset)."
    assert told in finished.err


# sandbox


async def test_send_works_with_the_variables_that_the_sandbox_prints() -> None:
    process = await start("sandbox", "--latency", "0")
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode().strip() for _ in range(3)]
    assert all(line.startswith("export YAMARKET_") for line in lines)
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    for text in ("one", "two"):
        sent = await run("send", "7", text, **variables)
        assert sent.status == 0
    process.send_signal(signal.SIGINT)
    finished = await end(process)
    assert finished.status == 0
    assert finished.err.endswith("Stopped: messages 2, chats 1, refused requests 0\n")


async def test_sandbox_command_enforces_the_requested_limit() -> None:
    process = await start("sandbox", "--requests", "1", "--per", "600", "--latency", "0")
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode().strip() for _ in range(3)]
    variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert (await run("send", "7", "first", **variables)).status == 0
    second = await start("send", "7", "second", **variables)
    assert second.stderr is not None
    told = (await second.stderr.readline()).decode()
    assert told.startswith("Warning: send_message: the Market's rate limit is used up")
    second.send_signal(signal.SIGINT)
    interrupted = await end(second)
    assert interrupted.status == 130
    assert "Error: interrupted; nothing was sent\n" in interrupted.err
    assert "finding out" not in interrupted.err
    process.send_signal(signal.SIGINT)
    assert "refused requests 1" in (await end(process)).err


async def test_sandbox_command_injects_the_requested_faults() -> None:
    request = RequestInfo(1, 1, "token", None, 0.0)
    for status in (500, 502):
        fault = Fault("status", status=status)
        seed = next(s for s in itertools.count() if random_faults(1, s)(request) == fault)
        process = await start("sandbox", "--latency", "0", "--faults", "1", "--seed", str(seed))
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode().strip() for _ in range(3)]
        variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        asked = await run("whoami", "--give-up-after", "0", **variables)
        assert asked.status == 1
        assert f"HTTP {status}" in asked.err
        process.send_signal(signal.SIGINT)
        assert "100% of the requests fail" in (await end(process)).err


async def test_port_in_use_prints_one_line(market: Sandbox) -> None:
    finished = await run("sandbox", "--port", str(market.port))
    assert finished.status == 1
    assert finished.err.startswith(f"Error: cannot listen on 127.0.0.1, port {market.port}: ")
    assert finished.err.count("\n") == 1


# The command itself


async def test_version_option_prints_the_version() -> None:
    assert await run_really("--version") == Finished(0, f"yamarket-chat {__version__}\n", "")


COMMANDS = [
    *("demo", "whoami", "chats", "history", "watch", "send", "send-file", "send-many"),
    *("new-chat", "quota", "outbox", "sandbox", "notifications"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_shows_no_key(
    command: str, monkeypatch: pytest.MonkeyPatch, in_process: Callable[..., Finished]
) -> None:
    monkeypatch.setenv("YAMARKET_API_KEY", "ACMA:secret")
    finished = in_process(command, "--help")
    assert finished.status == 0
    assert f"Example: yamarket-chat {command}" in finished.out
    assert "ACMA:secret" not in finished.out
    assert ("YAMARKET_API_KEY" in finished.out) is (
        command not in ("demo", "outbox", "sandbox", "notifications")
    )


async def shell(line: str, **variables: str) -> Finished:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", line.replace("yamarket-chat", COMMAND)),
        stdout=PIPE, stderr=PIPE, env=environment(**variables),
    )  # fmt: skip
    return await end(process)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", ["--version", "--help", "send 17 x", "chats --json"])
async def test_full_disk_prints_one_line(arguments: str, market: Sandbox) -> None:
    market.add_chat(17)
    finished = await shell(f"yamarket-chat {arguments} >/dev/full", **variables_of(market))
    assert finished == Finished(1, "", "Error: cannot write the output: No space left on device\n")


async def test_closed_standard_input_prints_one_line(market: Sandbox) -> None:
    finished = await shell("yamarket-chat send-many - <&-", **variables_of(market))
    assert finished.status == 2
    assert finished.err.startswith("Error: standard input is closed")


async def test_characters_missing_in_the_output_encoding_become_question_marks(
    market: Sandbox,
) -> None:
    market.add_chat(17)
    market.buyer_says(17, "Где 📦?")
    variables = variables_of(market, PYTHONIOENCODING="cp1251")
    process = await start_really("history", "17", **variables)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert "Где ??" in out.decode("cp1251")
    finished = await run("history", "17", "--json", **variables)
    assert "Где 📦?" in finished.out


def test_text_that_begins_with_a_dash_gets_a_hint(in_process: Callable[..., Finished]) -> None:
    finished = in_process("send", "17", "-5% скидка")
    assert finished.status == 2
    assert "put -- before a text that begins with a dash" in finished.err


KEY, URL = "YAMARKET_API_KEY=other", f"YAMARKET_BASE_URL={NOBODY_LISTENS}"


@pytest.mark.parametrize("dotenv", [URL, f"{KEY}\n{URL}"])
def test_base_url_from_dotenv_is_ignored_with_a_key_from_the_command_line(
    dotenv: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable[..., Finished],
) -> None:
    asked: list[str] = []

    def no_session(*_: object, base_url: str, **__: object) -> None:
        asked.append(base_url)
        raise InvalidArgumentError("nothing is to be sent")

    monkeypatch.setattr(options, "ChatSession", no_session)
    monkeypatch.chdir(tmp_path)
    for name in environment_file.NAMES:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text(dotenv)
    finished = in_process("send", "17", "x", "--api-key", "key")
    assert asked == [BASE_URL]
    assert "YAMARKET_BASE_URL from the file .env is ignored" in finished.err


async def test_nul_byte_in_dotenv_prints_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("YAMARKET_API_KEY=a\0b")
    finished = await shell(f"cd {tmp_path} && yamarket-chat --version")
    assert finished.status == 0
    finished = await shell(f"cd {tmp_path} && yamarket-chat whoami")
    assert finished.status == 2
    assert finished.err.startswith("Warning: .env cannot be read")


async def test_the_help_names_all_commands() -> None:
    finished = await run("--help")
    assert re.findall(r"^│ ([a-z][a-z-]+) ", finished.out, re.M) == COMMANDS


async def test_completion_can_be_shown() -> None:
    finished = await run_really(
        "--show-completion", SHELL="/bin/bash", _TYPER_COMPLETE_TEST_DISABLE="1"
    )
    assert finished.status == 0


async def test_no_command_shows_the_help() -> None:
    finished = await run()
    assert finished.status == 2
    assert "Commands" in finished.out + finished.err


async def test_unknown_command_prints_one_line() -> None:
    finished = await run("sned")
    assert finished.status == 2
    assert finished.err.startswith("Error: No such command 'sned'")


async def python(code: str) -> Finished:
    return await end(
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=PIPE, stderr=PIPE, env=environment()
        )
    )


@pytest.mark.parametrize("missing", ["typer", "rich"])
async def test_command_without_the_cli_extra_says_how_to_install_it(missing: str) -> None:
    finished = await python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from yamarket_chat.cli import main; sys.exit(main())"
    )
    assert finished == Finished(
        1, "", f"Error: {missing} is not installed; run: pip install 'yamarket-chat[cli]'\n"
    )


async def test_package_import_does_not_import_the_cli() -> None:
    finished = await python(
        "import sys, yamarket_chat\n"
        "print({'typer', 'rich', 'yamarket_chat.sandbox', 'yamarket_chat.cli'} & {*sys.modules})"
    )
    assert finished.out == "set()\n"


def test_control_codes_and_line_breaks_in_received_texts_are_not_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.failure("a\x1b[2Jb\nc\r[red]d[/red]")
    assert capsys.readouterr().err == "Error: a [2Jb c [red]d[/red]\n"
