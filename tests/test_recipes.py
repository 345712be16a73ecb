"""The recipes of docs/recipes.md run, with the real servers, against the sandbox."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import batch
import msgspec
import outgoing
import poll_bot
import pytest
from aiohttp import web

from tests.helpers import HOUR, http_server, now, session_of, stored, texts
from yamarket_chat import Rate, Retry
from yamarket_chat.sandbox import Fault, RequestInfo, Sandbox, numbered_faults, random_faults

DOCS = Path(__file__).parents[1] / "docs"
RECIPES = DOCS / "recipes"


def test_recipes_page_shows_the_programs_that_the_tests_run() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"<!-- recipes/(\w+\.py) -->\n```python\n(.*?)```", page, re.S))
    files = {path.name: path.read_text(encoding="utf-8") for path in RECIPES.glob("*.py")}
    assert shown == files


# Programs of their own


def environment(market: Sandbox, tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "YAMARKET_BASE_URL": market.url,
        "YAMARKET_API_KEY": market.api_key,
        "YAMARKET_BUSINESS_ID": str(market.business_id),
        "PYTHONPATH": f"{RECIPES}{os.pathsep}{tmp_path}",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


@asynccontextmanager
async def program(
    *command: str, env: Mapping[str, str], cwd: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of this Python, killed in the end if it still runs. Its output is one stream."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=env,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: asyncio.subprocess.Process, pattern: str) -> str:
    """Read what a program prints up to a line with this."""
    assert process.stdout is not None
    printed = ""
    while line := (await process.stdout.readline()).decode():
        printed += line
        if re.search(pattern, line):
            return printed
    raise AssertionError(f"it ended without {pattern!r}:\n{printed}")


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


UVICORN = ("-m", "uvicorn", "--timeout-graceful-shutdown", "7", "--loop", "uvloop", "--port")
SERVERS = {
    "fastapi": (*UVICORN, "{port}", "fastapi_app:app"),
    "django": (*UVICORN, "{port}", "django_app:application"),
    "aiohttp": (str(RECIPES / "aiohttp_app.py"),),
}


@pytest.mark.real_time
@pytest.mark.parametrize("name", SERVERS)
async def test_web_server_sends_returns_retry_after_and_finishes_on_shutdown(
    name: str, tmp_path: Path
) -> None:
    if "uvloop" in SERVERS[name]:
        pytest.importorskip("uvloop")
    port = free_port()
    command = [part.format(port=port) for part in SERVERS[name]]
    limits = {"send_message": Rate(3, per=HOUR)}
    async with Sandbox(limits=limits) as market, aiohttp.ClientSession() as client:
        env = environment(market, tmp_path, PORT=str(port), SECRET_KEY="x")

        async def reply(text: str) -> tuple[int, Any, str | None]:
            url = f"http://127.0.0.1:{port}/replies"
            async with client.post(url, json={"chat_id": 17, "text": text}) as answer:
                return answer.status, await answer.json(), answer.headers.get("Retry-After")

        async with program(*command, env=env, cwd=tmp_path) as server:
            await said(server, "[Rr]unning on http")
            status, body, _ = await reply("one")
            assert (status, body["status"]) == (200, "sent")
            assert (await reply(""))[0] == 422
            assert (await reply("two"))[0] == 200

            market.latency = 0.8
            third = asyncio.create_task(reply("three"))
            await until(lambda: market.requests("send_message") == 3)
            status, body, retry_after = await reply("four")
            assert status == 429
            assert 3000 < int(retry_after or 0) <= 3601

            server.terminate()  # while the third is under way
            assert (await third)[0] == 200
            output = (await server.communicate())[0].decode()
            assert server.returncode in (0, -signal.SIGTERM), output
            assert "Traceback" not in output
        assert texts(market, 17) == ["one", "two", "three"]
        assert market.refused == 0
    assert not (tmp_path / "left.json").exists()


async def test_web_message_is_settled_after_its_handler_returned(tmp_path: Path) -> None:
    """The answer is lost, and the handler waits for 5 s of the 15 that settling takes."""
    faults = numbered_faults({1: Fault("reset", "after")}, operation="send_message")
    async with Sandbox(faults=faults) as market:
        sender = outgoing.Outgoing(session_of(market), tmp_path / "left.json")
        began = now()
        assert await sender.send(17, "hello") is None
        assert now() - began < 6
        await asyncio.sleep(30)
        await sender.close(grace=20)
        assert texts(market, 17) == ["hello"]
    assert not (tmp_path / "left.json").exists()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_web_server_finishes_open_messages_after_a_restart(when: Any, tmp_path: Path) -> None:
    faults = numbered_faults({2: Fault("reset", when)}, operation="send_message")
    async with Sandbox(faults=faults) as market:
        sender = outgoing.Outgoing(session_of(market), tmp_path / "left.json")
        assert await sender.send(17, "arrives")
        handler = asyncio.create_task(sender.send(17, "unknown"))
        await asyncio.sleep(1)
        waiting = asyncio.create_task(sender.send(17, "waits for the first"))
        await asyncio.sleep(1)
        for task in (handler, waiting):  # what uvicorn does when its time is over
            task.cancel()
        await sender.close(grace=1)
        assert len(msgspec.json.decode((tmp_path / "left.json").read_bytes())) == 2

        again = outgoing.Outgoing(session_of(market), tmp_path / "left.json")
        await asyncio.sleep(60)
        await again.close(grace=1)
        assert texts(market, 17) == ["arrives", "unknown", "waits for the first"]
    assert msgspec.json.decode((tmp_path / "left.json").read_bytes()) == []


async def test_web_message_with_an_unclear_outcome_is_left_to_a_person(
    tmp_path: Path,
) -> None:
    def faults(request: RequestInfo) -> Fault | None:
        return {"send_message": Fault("reset"), "history": Fault("status", status=403)}.get(
            request.operation
        )

    file = tmp_path / "left.json"
    async with Sandbox(faults=faults) as market:
        for _ in range(2):
            sender = outgoing.Outgoing(session_of(market), file)
            if not file.exists():
                assert await sender.send(17, "hello") is None
            await asyncio.sleep(200)
            await sender.close(grace=1)
        (left,) = msgspec.json.decode(file.read_bytes(), type=list[outgoing.Left])
        assert left.pending is not None
        assert left.unclear
        assert market.requests("send_message") == 1


async def test_web_message_is_sent_later_if_the_market_is_down(tmp_path: Path) -> None:
    async with Sandbox() as market:
        retry = Retry(give_up_after=30)
        sender = outgoing.Outgoing(session_of(market, retry=retry), tmp_path / "left.json")
        await market.go_down()
        assert await sender.send(17, "hello") is None
        await asyncio.sleep(120)
        await market.come_back()
        await asyncio.sleep(120)
        await sender.close(grace=1)
        assert texts(market, 17) == ["hello"]


# Batches


def lines_of(market: Sandbox) -> dict[int, list[str | None]]:
    return {chat_id: rows for chat_id, rows in stored(market).items() if rows}


def write_csv(path: Path, messages: list[tuple[int, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("chat_id", "text"), *messages])


@pytest.mark.real_time
async def test_batch_continues_after_sigterm_and_doubles_nothing_after_a_kill(
    tmp_path: Path,
) -> None:
    messages = [(1 + i % 10, f"text {i}") for i in range(1, 321)]
    write_csv(tmp_path / "messages.csv", messages)
    command = [str(RECIPES / "batch.py"), "messages.csv", "report.jsonl"]
    async with Sandbox(latency=0.04) as market:
        env = environment(market, tmp_path)
        for end, stored_by_then in ((signal.SIGTERM, 8), (signal.SIGKILL, 16)):
            async with program(*command, env=env, cwd=tmp_path) as run:
                await until(lambda least=stored_by_then: market.messages_stored >= least)
                run.send_signal(end)
                output = (await run.communicate())[0].decode()
                expected = 130 if end == signal.SIGTERM else -signal.SIGKILL
                assert (run.returncode, output) == (expected, "")
                assert market.messages_stored < 100
        market.latency = 0
        async with program(*command, env=env, cwd=tmp_path) as last:
            output = (await last.communicate())[0].decode()
            assert (last.returncode, output) == (1, "")  # some rows of the killed run are open
        arrived = sorted(
            int((text or "").split()[1]) for rows in stored(market).values() for text in rows
        )
        assert len(arrived) == len(set(arrived))
        report = batch.Report(tmp_path / "report.jsonl")
        report.close()
        open_rows = {line.row for line in report.rows.values() if line.status == "begun"}
        assert 0 < len(open_rows) <= 256
        assert set(range(1, 321)) - set(arrived) <= open_rows


async def test_a_batch_settles_what_its_last_run_left_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [(chat_id, "hello") for chat_id in range(1, 21)]
    write_csv(tmp_path / "messages.csv", messages)
    fault = Fault("reset", "after")
    histories_fail = True

    def faults(request: RequestInfo) -> Fault | None:
        if request.operation == "history" and histories_fail:
            return Fault("status", status=403)
        return fault if request.operation == "send_message" and request.number % 4 == 0 else None

    async with Sandbox(faults=faults) as market:
        for name, value in environment(market, tmp_path).items():
            if name.startswith("YAMARKET"):
                monkeypatch.setenv(name, value)
        report = batch.Report(tmp_path / "report.jsonl")
        assert await batch.main(tmp_path / "messages.csv", report) == 1
        report.close()
        assert "unknown" in (tmp_path / "report.jsonl").read_text()
        histories_fail = False
        report = batch.Report(tmp_path / "report.jsonl")
        assert await batch.main(tmp_path / "messages.csv", report) == 0
        report.close()
        assert lines_of(market) == {chat_id: ["hello"] for chat_id in range(1, 21)}


# Celery

CELERY_CONFIG = """
broker_url = "filesystem://"
broker_transport_options = {{
    "data_folder_in": {folder!r},
    "data_folder_out": {folder!r},
    "control_folder": {folder!r} + ".control",
    "polling_interval": 0.02,
}}
"""


@pytest.mark.real_time
async def test_celery_tasks_share_one_session_and_wait_outside_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = tmp_path / "broker"
    broker.mkdir()
    (tmp_path / "celeryconfig.py").write_text(CELERY_CONFIG.format(folder=str(broker)))
    monkeypatch.syspath_prepend(tmp_path)
    import celery_app

    command = ["-m", "celery", "-A", "celery_app", "worker", "--pool", "threads"]
    options = ["--concurrency", "8", "--loglevel", "info", "--without-mingle", "--without-gossip"]
    limits = {"send_message": Rate(8, per=HOUR)}
    async with Sandbox(limits=limits, latency=0.05) as market:
        env = environment(market, tmp_path)
        for i in range(8):
            celery_app.send.delay(1 + i % 4, "hello")
        async with program(*command, *options, env=env, cwd=tmp_path) as worker:
            await until(lambda: market.messages_stored == 8)
            celery_app.send.delay(1, "above the limit")
            assert "Retry in 600" in await said(worker, "Retry in")
            worker.terminate()
            output = (await worker.communicate())[0].decode()
            assert worker.returncode == 0, output
            assert "Traceback" not in output
        assert lines_of(market) == {chat_id: ["hello"] * 2 for chat_id in range(1, 5)}
        assert market.busiest == 4
        assert market.refused == 0
    (waits,) = broker.glob("*.msg")  # the task, for the next worker
    assert "celery_app.send" in waits.read_text()


# Bots


def buyers_write(market: Sandbox, random: Random, messages: int) -> list[tuple[float, int, str]]:
    """The times and texts of the buyers: often several at once, and while the bot answers."""
    times = sorted(random.uniform(0, 600) for _ in range(messages))
    return [(time, random.randrange(1, 6), f"question {i}") for i, time in enumerate(times)]


@pytest.mark.parametrize("seed", range(3))
async def test_a_poll_bot_answers_each_message_of_a_buyer_once(seed: int) -> None:
    random = Random(seed)
    faults = random_faults(0.15, seed=seed)
    delay = random.choice([0, 5])
    async with (
        Sandbox(faults=faults, latency=lambda: random.uniform(0, 8), history_delay=delay) as market,
        session_of(market) as session,
    ):
        market.buyer_says(6, "answered by a person")
        market.shop_says(6, "answer")
        stop = asyncio.Event()
        bot = asyncio.create_task(poll_bot.bot(session, stop))
        for time, chat_id, text in buyers_write(market, random, 40):
            await asyncio.sleep(max(0, time - now()))
            market.buyer_says(chat_id, text)
        await asyncio.sleep(600)
        stop.set()
        await bot

        for chat_id in range(1, 6):
            rows = texts(market, chat_id)
            asked = [row for row in rows if row and row.startswith("question")]
            answers = [row for row in rows if row not in asked]
            assert answers == [f"Спасибо за вопрос: {question}" for question in asked]
        assert texts(market, 6) == ["answered by a person", "answer"]


async def test_poll_bot_does_not_miss_a_message_that_arrives_during_its_answer() -> None:
    """Then the chat's status says that it waits for the buyer, although a message is unanswered."""
    async with Sandbox(latency=1.0) as market, session_of(market) as session:
        market.buyer_says(17, "one")
        stop = asyncio.Event()
        bot = asyncio.create_task(poll_bot.bot(session, stop))
        while not market.requests("send_message"):
            await asyncio.sleep(0.1)
        market.buyer_says(17, "two")  # before the answer is stored, and after the history was read
        await asyncio.sleep(300)
        stop.set()
        await bot
        assert texts(market, 17)[2:] == ["Спасибо за вопрос: one", "Спасибо за вопрос: two"]


async def test_restarted_poll_bot_answers_nothing_twice() -> None:
    """The Market carries out the answer after the kill."""
    faults = numbered_faults({1: Fault("reset", "later", delay=12.0)}, operation="send_message")
    async with Sandbox(faults=faults) as market:
        market.buyer_says(17, "one")
        killed = session_of(market)
        bot = asyncio.create_task(poll_bot.bot(killed, asyncio.Event()))
        while not market.requests("send_message"):
            await asyncio.sleep(0.1)
        bot.cancel()
        await asyncio.wait({bot})
        await killed.close(grace=0)

        stop = asyncio.Event()
        async with session_of(market) as session:
            bot = asyncio.create_task(poll_bot.bot(session, stop))
            await asyncio.sleep(300)
            stop.set()
            await bot
        assert texts(market, 17) == ["one", "Спасибо за вопрос: one"]


class Telegram:
    """What the bot needs of Telegram's Bot API."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self._more = asyncio.Event()

    def says(self, update_id: int, text: str, reply_to: str) -> None:
        """An operator replies to a message of the bot."""
        group = {"id": -100, "type": "supergroup", "title": "operators"}
        me = {"id": 42, "is_bot": True, "first_name": "relay"}
        original = {"message_id": 1, "date": 0, "chat": group, "from": me, "text": reply_to}
        author = {"id": 7, "is_bot": False, "first_name": "Анна"}
        message = {"message_id": 2, "date": 0, "chat": group, "from": author, "text": text}
        message["reply_to_message"] = original
        self.updates.append({"update_id": update_id, "message": message})
        self._more.set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        arguments = dict(await request.post())
        result: Any
        match request.path.rpartition("/")[2]:
            case "getMe":
                result = {"id": 42, "is_bot": True, "first_name": "relay", "username": "relay"}
            case "getUpdates":
                offset = int(str(arguments.get("offset", 0)))
                self.updates = [row for row in self.updates if row["update_id"] >= offset]
                if not self.updates:
                    self._more.clear()
                    try:
                        async with asyncio.timeout(float(str(arguments["timeout"]))):
                            await self._more.wait()
                    except TimeoutError:
                        pass
                result = list(self.updates)
            case "sendMessage":
                self.sent.append(arguments)
                group = {"id": -100, "type": "supergroup", "title": "operators"}
                result = {"message_id": 3, "date": 0, "chat": group, "text": arguments["text"]}
        return web.json_response({"ok": True, "result": result})


async def test_telegram_bot_relays_messages_and_finishes_on_shutdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aiogram_bot  # takes seconds: not for each worker

    telegram = Telegram()
    monkeypatch.setattr(aiogram_bot, "SEEN", tmp_path / "seen.txt")
    async with Sandbox(latency=0.5) as market, http_server(telegram.answer) as url:
        more = {"TELEGRAM": url, "TELEGRAM_TOKEN": "42:token", "TELEGRAM_GROUP": "-100"}
        for name, value in environment(market, tmp_path, **more).items():
            if name.startswith(("YAMARKET", "TELEGRAM")):
                monkeypatch.setenv(name, value)
        market.buyer_says(17, "Где заказ?")
        bot = asyncio.create_task(aiogram_bot.main())
        await asyncio.sleep(60)
        assert [(sent["chat_id"], sent["text"]) for sent in telegram.sent] == [
            ("-100", "#17 Где заказ?")
        ]
        telegram.says(1, "В пути", reply_to="#17 Где заказ?")
        await asyncio.sleep(5)
        assert [sent["text"] for sent in telegram.sent[1:]] == ["Отправлено"]

        telegram.says(2, "Будет завтра", reply_to="#17 Где заказ?")
        while market.requests("send_message") < 2:
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)  # while it is under way
        await bot
        assert texts(market, 17) == ["Где заказ?", "В пути", "Будет завтра"]
        assert [sent["text"] for sent in telegram.sent[1:]] == ["Отправлено"] * 2

        # Telegram repeats what was not confirmed before a kill.
        telegram.says(2, "Будет завтра", reply_to="#17 Где заказ?")
        telegram.says(3, "Звоните", reply_to="#17 Где заказ?")
        bot = asyncio.create_task(aiogram_bot.main())
        await asyncio.sleep(60)
        signal.raise_signal(signal.SIGTERM)
        await bot
        assert texts(market, 17)[3:] == ["Звоните"]
