"""The recipes of docs/recipes.md run, with the real servers, against the sandbox."""

from __future__ import annotations

import asyncio
import configparser
import csv
import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psycopg
import pytest
from sqlalchemy import URL, make_url
from typer.main import get_command

from tests.helpers import HOUR, stored, texts
from yamarket_chat import Rate
from yamarket_chat.cli import outbox_deliver, outbox_status
from yamarket_chat.cli.app import app
from yamarket_chat.outbox import Outbox
from yamarket_chat.outbox.delivering import GRACE
from yamarket_chat.sandbox import Fault, Sandbox

T = TypeVar("T")

DOCS = Path(__file__).parents[1] / "docs"
RECIPES = DOCS / "recipes"


def test_recipes_page_shows_the_programs_that_the_tests_run() -> None:
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("recipes.md", "bot.md")]
    page = "".join(pages)
    shown = dict(re.findall(r"<!-- recipes/([\w.-]+) -->\n```\w+\n(.*?)```", page, re.S))
    files = {path.name: path.read_text(encoding="utf-8") for path in RECIPES.glob("*.*")}
    files["Dockerfile"] = (RECIPES / "Dockerfile").read_text(encoding="utf-8")
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


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something of the real world. Meanwhile the virtual clock goes with the real one."""
    loop: Any = asyncio.get_running_loop()
    began = waited = time.monotonic()
    while not condition():
        assert waited < began + 60
        await loop.run_in_executor(None, time.sleep, 0.01)
        now, last = time.monotonic(), waited
        loop.block(now - last)
        waited = now


async def of_the_world(awaitable: Awaitable[T]) -> T:
    """Wait for what another process does."""
    task = asyncio.ensure_future(awaitable)
    await until(task.done)
    return await task


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
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await of_the_world(process.communicate())


async def said(process: asyncio.subprocess.Process, pattern: str) -> str:
    """Read what a program prints up to a line with this."""
    assert process.stdout is not None
    printed = ""
    while line := (await process.stdout.readline()).decode():
        printed += line
        if re.search(pattern, line):
            return printed
    raise AssertionError(f"it ended without {pattern!r}:\n{printed}")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


# Shops


class Shop:
    """The database of a shop, with orders and an outbox, and its Market."""

    def __init__(self, url: URL, market: Sandbox, tmp_path: Path) -> None:
        self.url = url.render_as_string(hide_password=False)
        self.market = market
        self.outbox = Outbox(url)
        self.env = environment(market, tmp_path, YAMARKET_OUTBOX=self.url, SECRET_KEY="x")
        if url.get_backend_name() == "postgresql":
            # Django's settings have no place for them.
            host, options = url.query["host"], url.query["options"]
            self.env |= {"PGHOST": str(host), "PGOPTIONS": str(options)}

    async def open(self, orders: int = 0) -> None:
        await self.outbox.create()
        if orders:
            with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
                connection.execute("CREATE TABLE orders (id integer PRIMARY KEY, state text)")
                connection.execute(
                    "INSERT INTO orders SELECT n, 'new' FROM generate_series(1, %s) n", [orders]
                )

    def packed(self) -> set[int]:
        with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
            rows = connection.execute("SELECT id FROM orders WHERE state = 'packed'").fetchall()
        return {number for (number,) in rows}

    async def deliver(self) -> None:
        """Deliver all that is in the outbox, in virtual time."""
        keys = {self.market.business_id: self.market.api_key}
        async with self.outbox.delivering(keys, base_url=self.market.url):
            while (status := await self.outbox.status()).waiting or status.leaving:
                await asyncio.sleep(1)
        await self.outbox.close()

    def told(self) -> list[str]:
        """The texts of all chats of orders."""
        return [text or "" for rows in stored(self.market).values() for text in rows]


def about(orders: Iterable[int]) -> list[str]:
    return [f"Заказ {order} собран" for order in orders]


UVICORN = ("-m", "uvicorn", "--timeout-graceful-shutdown", "7", "--port")


async def test_killed_fastapi_shop_keeps_what_it_has_promised(
    postgres_url: URL, tmp_path: Path
) -> None:
    """uvicorn is killed in the middle of 500 requests, and the clients repeat theirs."""
    orders = range(1, 501)
    port = free_port()
    promised: Counter[int] = Counter()
    serving = asyncio.Event()

    async def pack(numbers: Iterator[int], client: aiohttp.ClientSession) -> None:
        for order in numbers:
            while not promised[order]:
                await serving.wait()
                try:
                    url = f"http://127.0.0.1:{port}/orders/{order}/packed"
                    async with client.post(url) as answer:
                        assert answer.status == 200, await answer.text()
                        await answer.json()
                        promised[order] += 1
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)

    command = (*UVICORN, str(port), "fastapi_app:app")
    async with Sandbox(latency=0.01) as market, aiohttp.ClientSession() as client:
        shop = Shop(postgres_url, market, tmp_path)
        await shop.open(len(orders))
        numbers = iter(orders)
        clients = asyncio.gather(*(pack(numbers, client) for _ in range(8)))
        async with program(*command, "--workers", "2", env=shop.env, cwd=tmp_path) as server:
            for _ in range(2):
                await of_the_world(said(server, "startup complete"))
            serving.set()
            await until(lambda: promised.total() > 200)
            serving.clear()
            os.killpg(server.pid, signal.SIGKILL)  # its workers as well
        assert promised.total() < len(orders)
        async with program(*command, env=shop.env, cwd=tmp_path) as server:
            await of_the_world(said(server, "startup complete"))
            serving.set()
            await of_the_world(clients)
            server.terminate()
            output = (await of_the_world(server.communicate()))[0].decode()
            assert server.returncode in (0, -signal.SIGTERM), output
            assert "Traceback" not in output
        assert shop.packed() == {*orders}
        await shop.deliver()
        assert Counter(shop.told()) == Counter(about(orders))


async def test_django_shop_tells_the_buyer_in_the_transaction_of_the_order(
    postgres_url: URL, tmp_path: Path
) -> None:
    port = free_port()
    async with Sandbox() as market, aiohttp.ClientSession() as client:
        shop = Shop(postgres_url, market, tmp_path)
        await shop.open(3)
        command = (*UVICORN, str(port), "django_app:application")

        async def pack(order: int) -> tuple[int, Any]:
            url = f"http://127.0.0.1:{port}/orders/{order}/packed"
            async with client.post(url) as answer:
                return answer.status, answer.status == 200 and await answer.json()

        async with program(*command, env=shop.env, cwd=tmp_path) as server:
            await of_the_world(said(server, "running on http"))
            first = await of_the_world(pack(1))
            assert first[0] == 200
            assert await of_the_world(pack(1)) == first  # the client repeats it
            assert (await of_the_world(pack(2)))[0] == 200
            assert (await of_the_world(pack(4)))[0] == 404
            server.terminate()
            output = (await of_the_world(server.communicate()))[0].decode()
            assert "Traceback" not in output
        assert shop.packed() == {1, 2}
        await shop.deliver()
        assert sorted(shop.told()) == about([1, 2])


async def test_psycopg_and_asyncpg_tell_the_buyer_in_the_transaction_of_the_order(
    postgres_url: URL, tmp_path: Path
) -> None:
    async with Sandbox() as market:
        shop = Shop(postgres_url, market, tmp_path)
        await shop.open(2)
        env = shop.env | {"YAMARKET_OUTBOX": shop.url.replace("+psycopg", "")}

        async def pack(library: str, order: int) -> None:
            command = (str(RECIPES / f"{library}_orders.py"), str(order))
            async with program(*command, env=env, cwd=tmp_path) as run:
                output = (await run.communicate())[0].decode()
                assert (run.returncode, output) == (0, "")

        await of_the_world(asyncio.gather(pack("psycopg", 1), pack("asyncpg", 2)))
        assert shop.packed() == {1, 2}
        await shop.deliver()
        assert sorted(shop.told()) == about([1, 2])


async def test_aiohttp_app_says_what_became_of_a_message(tmp_path: Path) -> None:
    port = free_port()
    limits = {"send_message": Rate(3, per=HOUR)}
    async with Sandbox(limits=limits) as market, aiohttp.ClientSession() as client:
        shop = Shop(make_url(f"sqlite:///{tmp_path}/outbox.db"), market, tmp_path)

        async def reply(text: str, key: str | None = None) -> tuple[int, Any]:
            url = f"http://127.0.0.1:{port}/replies"
            reply = {"chat_id": 17, "text": text, "key": key or text or "-"}
            async with client.post(url, json=reply) as answer:
                return answer.status, await answer.json()

        env = shop.env | {"PORT": str(port)}
        async with program(str(RECIPES / "aiohttp_app.py"), env=env, cwd=tmp_path) as server:
            await of_the_world(said(server, "Running on http"))
            status, body = await of_the_world(reply("one"))
            assert (status, body["status"]) == (200, "sent")
            assert await of_the_world(reply("one")) == (status, body)  # the client repeats it
            assert (await of_the_world(reply("other", key="one")))[0] == 409
            assert (await of_the_world(reply("")))[0] == 422
            assert (await of_the_world(reply("two")))[0] == 200
            market.latency = 0.5
            third = asyncio.create_task(reply("three"))
            await until(lambda: market.requests("send_message") == 3)
            server.terminate()  # while it is under way
            assert (await of_the_world(third))[0] == 200
            output = (await of_the_world(server.communicate()))[0].decode()
            assert server.returncode == 0, output
            assert "Traceback" not in output
        assert texts(market, 17) == ["one", "two", "three"]
        assert market.refused == 0


# Batches


def write_csv(path: Path, messages: Iterable[tuple[int, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("chat_id", "text"), *messages])


async def test_killed_batch_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [(1 + i % 10, f"text {i}") for i in range(100)]
    file = tmp_path / "messages.csv"
    write_csv(file, messages)
    async with Sandbox(latency=0.04) as market:
        env = environment(market, tmp_path)
        command = [str(RECIPES / "batch.py"), "messages.csv"]
        for end, stored_by_then in ((signal.SIGTERM, 8), (signal.SIGKILL, 16)):
            async with program(*command, env=env, cwd=tmp_path) as run:
                await until(lambda least=stored_by_then: market.messages_stored >= least)  # type: ignore[misc]
                run.send_signal(end)
                output = (await of_the_world(run.communicate()))[0].decode()
                expected = 130 if end == signal.SIGTERM else -signal.SIGKILL
                assert (run.returncode, output) == (expected, "")
                assert market.messages_stored < len(messages)
        for name, value in env.items():
            if name.startswith("YAMARKET"):
                monkeypatch.setenv(name, value)
        import batch  # reads them

        for status in (0, 0):  # the second run sends nothing
            assert await batch.main(file) == status
        for chat_id in range(1, 11):
            expected_texts = [text for chat, text in messages if chat == chat_id]
            assert texts(market, chat_id) == expected_texts
        write_csv(file, [*messages, (11, "refused")])
        market.faults = lambda request: (
            Fault("status", status=400) if request.operation == "send_message" else None
        )
        assert await batch.main(file) == 1
        assert "row 101: " in caplog.text


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


async def test_celery_task_that_runs_twice_tells_the_buyer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = tmp_path / "broker"
    broker.mkdir()
    (tmp_path / "celeryconfig.py").write_text(CELERY_CONFIG.format(folder=str(broker)))
    async with Sandbox() as market:
        shop = Shop(make_url(f"sqlite:///{tmp_path}/outbox.db"), market, tmp_path)
        await shop.open()
        for name in ("YAMARKET_OUTBOX", "YAMARKET_BUSINESS_ID"):
            monkeypatch.setenv(name, shop.env[name])
        monkeypatch.syspath_prepend(tmp_path)
        import celery_app

        orders = range(1, 7)
        for order in (*orders, *orders):  # as a broker does that has heard of no end
            celery_app.packed.delay(order)
        command = ["-m", "celery", "-A", "celery_app", "worker", "--concurrency", "2"]
        options = ["--loglevel", "info", "--without-mingle", "--without-gossip"]
        async with program(*command, *options, env=shop.env, cwd=tmp_path) as worker:
            await until(lambda: not [*broker.glob("*.msg")])
            worker.terminate()
            output = (await of_the_world(worker.communicate()))[0].decode()
            assert worker.returncode == 0, output
            assert output.count(" succeeded in ") == 12, output
        await shop.deliver()
        assert sorted(shop.told()) == about(orders)


# A process that delivers

SLACK = 5.0
"""Seconds for what a process does besides: to hear of its end, and to end."""


def test_supervisors_wait_for_what_is_under_way() -> None:
    import yaml

    options = {
        name: one.default for name, one in signature(outbox_deliver.deliver).parameters.items()
    }

    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(RECIPES / "yamarket-outbox.service")
    assert float(unit["Service"]["TimeoutStopSec"]) >= options["grace"] + SLACK
    create, deliver = (unit["Service"][name].split()[1:] for name in ("ExecStartPre", "ExecStart"))

    deployment = yaml.safe_load((RECIPES / "yamarket-outbox.yaml").read_text())
    assert (
        deployment["spec"]["selector"]["matchLabels"]
        == (deployment["spec"]["template"]["metadata"]["labels"])
    )
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= options["grace"] + SLACK
    assert [pod["initContainers"][0]["args"], pod["containers"][0]["args"]] == [create, deliver]
    probe = pod["containers"][0]["livenessProbe"]
    assert probe["timeoutSeconds"] >= options["lease"] * outbox_status.TRUST + SLACK
    look = probe["exec"]["command"]

    lines = (RECIPES / "Dockerfile").read_text().splitlines()
    image = dict(line.partition(" ")[::2] for line in lines)
    assert json.loads(image["ENTRYPOINT"]) == look[:1] == ["yamarket-chat"]
    assert json.loads(image["CMD"]) == deliver
    assert json.loads(image["HEALTHCHECK"].partition("CMD ")[2]) == look
    assert f"--timeout={probe['timeoutSeconds']}s" in image["HEALTHCHECK"]

    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for given in re.findall(r"--stop-timeout (\d+)|stop_grace_period: (\d+)", page):
        assert float("".join(given)) >= options["grace"] + SLACK

    for words in (create, deliver, look[1:]):
        assert knows(words), words


def knows(words: list[str]) -> bool:
    """Return True if the command has this group, this command, and these options."""
    command: Any = get_command(app)
    for word in words:
        if word.startswith("-"):
            return any(word in option.opts for option in command.params)
        command = command.commands[word]
    return True


def test_fastapi_shop_has_time_for_its_handlers_and_for_what_is_under_way() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    (handlers,) = {*re.findall(r"--timeout-graceful-shutdown (\d+)", page)}
    assert handlers == UVICORN[UVICORN.index("--timeout-graceful-shutdown") + 1]
    (container,) = re.findall(r"give the container\s+(\d+) s", page)
    assert float(container) >= float(handlers) + GRACE + SLACK
