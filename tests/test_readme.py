"""The programs in README.md run."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from yamarket_chat.sandbox import Sandbox

README = Path(__file__).parents[1] / "README.md"
PROGRAMS = re.findall(
    r"## ([^\n]+)(?:(?!## ).)*?<!-- runs in the tests -->\n```python\n(.*?)```",
    README.read_text(encoding="utf-8"),
    re.S,
)


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox in a thread of its own: the programs call asyncio.run themselves."""
    ready, end = threading.Event(), asyncio.Event()
    holder: list[tuple[Sandbox, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        async with Sandbox() as sandbox:
            holder.append((sandbox, asyncio.get_running_loop()))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    sandbox, loop = holder[0]

    monkeypatch.setenv("YAMARKET_BASE_URL", sandbox.url)
    monkeypatch.setenv("YAMARKET_API_KEY", sandbox.api_key)
    monkeypatch.setenv("YAMARKET_BUSINESS_ID", str(sandbox.business_id))
    yield sandbox
    loop.call_soon_threadsafe(end.set)
    thread.join()


def run(title: str) -> None:
    program = dict(PROGRAMS)[title]
    exec(compile(program, f"README.md: {title}", "exec"), {"__name__": "__main__"})  # noqa: S102


def texts(market: Sandbox, chat_id: int) -> list[str | None]:
    return [message.text for message in market.messages(chat_id)]


@pytest.mark.real_time
def test_quickstart_delivers_its_message(
    market: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    run("Quickstart")
    assert texts(market, 17) == ["Ваш заказ уже в пути"]
    assert "arrived, trace id" in capsys.readouterr().out


def test_quickstart_has_under_ten_lines() -> None:
    lines = dict(PROGRAMS)["Quickstart"].splitlines()
    assert len([line for line in lines if line]) < 10


@pytest.mark.real_time
def test_program_starts_a_chat_about_an_order(
    market: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    run("Start a chat about an order")
    (chat_id,) = market.chat_ids
    text, file = market.messages(chat_id)
    assert text.text == "Здравствуйте! Какой размер вам нужен?"
    assert file.payload[0].name == "Таблица размеров.pdf"
    assert "Какой размер" in capsys.readouterr().out


@pytest.mark.real_time
def test_program_answers_the_chats_that_wait_for_the_shop(market: Sandbox) -> None:
    market.buyer_says(1, "Есть красный?")
    market.buyer_says(2, "Где заказ?")
    market.buyer_says(3, "Спасибо")
    market.shop_says(3, "Пожалуйста")
    market.buyer_says(4, "x" * 4096)
    market.add_chat(5)  # nobody has said anything yet
    run("Answer the chats that wait for the shop")
    assert texts(market, 1) == ["Есть красный?", "Спасибо за вопрос: Есть красный?"]
    assert texts(market, 2) == ["Где заказ?", "Спасибо за вопрос: Где заказ?"]
    assert texts(market, 3) == ["Спасибо", "Пожалуйста"]
    assert len(texts(market, 4)) == 2
    assert texts(market, 5) == []


@pytest.mark.real_time
def test_bot_answers(market: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def until_answered(main: Coroutine[Any, Any, None]) -> None:
        running = asyncio.create_task(main)
        async with asyncio.timeout(20):
            while len(texts(market, 17)) < 2:
                await asyncio.sleep(0.05)
        assert not running.done()
        running.cancel()
        await asyncio.wait({running})

    run_forever = asyncio.run
    monkeypatch.setattr(asyncio, "run", lambda main: run_forever(until_answered(main)))
    monkeypatch.chdir(tmp_path)
    market.buyer_says(17, "Есть красный?")
    run("A bot")
    assert texts(market, 17) == ["Есть красный?", "Спасибо за вопрос: Есть красный?"]


@pytest.mark.real_time
def test_program_puts_a_message_into_an_outbox(
    market: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second run puts nothing
        run("Messages that survive the process")
        assert "Receipt(" in capsys.readouterr().out
    (chat_id,) = market.chat_ids
    assert texts(market, chat_id) == ["Заказ собран"]


@pytest.mark.real_time
def test_program_sends_many_messages(market: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    run("Thousands of messages")
    assert all(texts(market, chat_id) == ["Мы открыты и в праздники"] for chat_id in range(1, 101))
    assert capsys.readouterr().out == ""


def test_program_tests_a_bot_in_the_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    run("Test your bot without the Market")
    assert capsys.readouterr().out == "['Где мой заказ?', 'Уже в пути'] 0\n"
