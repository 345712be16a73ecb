"""The bots of docs/bot.md and docs/recipes.md run against the sandbox."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, text

from tests.helpers import http_server, now, texts
from tests.test_notifications_servers import serving
from tests.test_recipes import RECIPES, environment
from yamarket_chat import Message
from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import Outbox
from yamarket_chat.sandbox import Fault, Sandbox, numbered_faults

FROM_THE_MARKET = {"X-Forwarded-For": "5.45.207.1"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Sandbox], Any]:
    """Load a program of the docs, as a start of it in the current folder would."""
    monkeypatch.chdir(tmp_path)

    def load(name: str, market: Sandbox) -> Any:
        more = {"YAMARKET_OUTBOX": "sqlite:///bot.db"}
        for variable, value in environment(market, tmp_path, **more).items():
            if variable.startswith("YAMARKET"):
                monkeypatch.setenv(variable, value)
        spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


Load = Callable[[str, Sandbox], Any]


async def end(running: asyncio.Task[None]) -> None:
    assert not running.done(), running.exception()
    running.cancel()
    await asyncio.wait({running})


async def test_first_bot_answers_each_message_once_whatever_becomes_of_it(
    program: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = numbered_faults({1: Fault("reset", "after")}, operation="send_message")
    async with Sandbox(faults=faults) as market:
        market.buyer_says(17, "Где мой заказ?")
        running = asyncio.create_task(program("first_bot", market).main())
        await asyncio.sleep(10)
        await end(running)  # while it is unknown whether the reply has arrived
        market.buyer_says(17, "Ау?")
        market.shop_says(17, "В пути")
        running = asyncio.create_task(program("first_bot", market).main())
        await asyncio.sleep(40)
        await end(running)
        assert texts(market, 17) == [
            *("Где мой заказ?", "Вы написали: Где мой заказ?"),
            *("Ау?", "В пути", "Вы написали: Ау?"),
        ]
    assert capsys.readouterr().out == "Chat 17: Где мой заказ?\nChat 17: Ау?\n"


def test_pictures_of_the_page_exist() -> None:
    page = (RECIPES.parent / "bot.md").read_text(encoding="utf-8")
    names = re.findall(r"\"(pictures/\S+\.svg)\"", page)
    assert len(names) == 4
    for name in names:
        assert (RECIPES.parent / name).is_file()


async def test_fragments_of_the_page_run(tmp_path: Path) -> None:
    page = (RECIPES.parent / "bot.md").read_text(encoding="utf-8")
    also, error, status = re.findall(r"(?<!-->)\n```python\n(.*?)```", page, re.S)
    scope: dict[str, Any] = {"BuyerMessage": BuyerMessage, "insert": insert, "print": print}
    scope["seen"] = Table("seen", MetaData(), Column("chat_id", Integer))
    engine = create_engine(f"sqlite:///{tmp_path / 'bot.db'}")
    async with Sandbox() as market, Outbox(engine.url) as outbox:
        await outbox.create()
        scope["seen"].create(engine)
        bot = scope["bot"] = Bot(
            outbox, {market.business_id: market.api_key}, base_url=market.url, max_age=10
        )
        exec(error, scope)  # noqa: S102 - our own docs

        @bot.message
        async def answer(message: BuyerMessage) -> None:
            scope["message"] = message
            exec(also, scope)  # noqa: S102 - our own docs

        market.buyer_says(17, "too old")
        await asyncio.sleep(11)
        market.buyer_says(18, "new")
        async with bot.running():
            await asyncio.sleep(3)
            code = compile(status, "bot.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            await eval(code, scope)  # noqa: S307 - our own docs
        assert texts(market, 17)[1:] == ["Вам ответит сотрудник магазина"]
        assert texts(market, 18) == ["new"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT chat_id FROM seen")).all() == [(18,)]
    engine.dispose()


def test_first_bot_has_about_twenty_lines() -> None:
    lines = (RECIPES / "first_bot.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line]) <= 20


@pytest.mark.real_time
async def test_bot_in_two_web_servers_answers_what_either_hears_of(program: Load) -> None:
    async with Sandbox(chats=[17]) as market:
        first, second = (program("web_bot", market) for _ in range(2))
        async with serving(first.app) as one, serving(second.app) as two:
            async with aiohttp.ClientSession(headers=FROM_THE_MARKET) as client:
                for number, url in enumerate((one, two), 1):
                    message_id = market.buyer_says(17, f"Вопрос {number}").message_id
                    event = {
                        "notificationType": "CHAT_MESSAGE_SENT",
                        **{"businessId": market.business_id, "chatId": 17},
                        **{"messageId": message_id, "sentAt": "2026-11-27T09:00:00Z"},
                    }
                    async with client.post(f"{url}/notification", json=event) as response:
                        assert response.status == 200
            async with asyncio.timeout(5):
                while len(texts(market, 17)) < 4:
                    await asyncio.sleep(0.05)
        asked = ["Вопрос 1", "Вопрос 2"]
        answers = [row for row in texts(market, 17) if row not in asked]
        assert answers == [f"Вы написали: {question}" for question in asked]


async def test_bot_with_a_model_hands_over_what_the_model_cannot_answer(
    program: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Sandbox() as market:
        bot = program("model_bot", market)
        ask: Callable[[list[Message]], Awaitable[str | None]] = bot.ask_model

        async def ask_model(conversation: list[Message]) -> str | None:
            if conversation[-1].message == "Почему?":
                await asyncio.sleep(1000)
            return await ask(conversation)

        monkeypatch.setattr(bot, "ask_model", ask_model)
        running = asyncio.create_task(bot.main())
        await asyncio.sleep(5)
        market.buyer_says(1, "Здравствуйте!")
        market.buyer_says(1, "Есть красный?")
        market.buyer_says(2, file=b"photo", filename="чек.jpg")
        market.buyer_says(3, "Почему?")
        await asyncio.sleep(50)
        market.buyer_says(3, "Ау?")
        await asyncio.sleep(8)
        signal.raise_signal(signal.SIGTERM)
        await running
        handed_over = "Вам ответит сотрудник магазина"
        assert texts(market, 1)[2:] == ["Отвечаю на вопрос: Есть красный?"]
        assert texts(market, 2)[1:] == [handed_over]
        assert texts(market, 3)[1:] == [handed_over, "Ау?"]
    engine = create_engine("sqlite:///bot.db")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT chat_id FROM handed_over ORDER BY chat_id"))
        assert [chat_id for (chat_id,) in rows] == [2, 3]
    engine.dispose()
    bot.engine.dispose()


class Telegram:
    """What the bot needs of Telegram's Bot API."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.away_until = 0.0
        self._more = asyncio.Event()

    def says(self, update_id: int, text: str, reply_to: str) -> None:
        """An operator replies to a message of the bot."""
        group = {"id": -100, "type": "supergroup", "title": "operators"}
        me = {"id": 42, "is_bot": True, "first_name": "relay"}
        original = {"message_id": 1, "date": 0, "chat": group, "from": me, "text": reply_to}
        author = {"id": 7, "is_bot": False, "first_name": "Анна"}
        message = {"message_id": update_id, "date": 0, "chat": group, "from": author, "text": text}
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
            case "sendMessage" if now() < self.away_until:
                return web.json_response({"ok": False, "description": "Bad Gateway"}, status=502)
            case "sendMessage":
                self.sent.append(arguments)
                group = {"id": -100, "type": "supergroup", "title": "operators"}
                result = {"message_id": 3, "date": 0, "chat": group, "text": arguments["text"]}
        return web.json_response({"ok": True, "result": result})


async def test_telegram_bot_relays_each_message_once_although_updates_are_repeated(
    program: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    telegram = Telegram()
    async with Sandbox(latency=0.5) as market, http_server(telegram.answer) as url:
        monkeypatch.setenv("TELEGRAM", url)
        monkeypatch.setenv("TELEGRAM_TOKEN", "42:token")
        monkeypatch.setenv("TELEGRAM_GROUP", "-100")
        telegram.away_until = now() + 15
        market.buyer_says(17, "Где заказ?")
        bot = asyncio.create_task(program("aiogram_bot", market).main())
        await asyncio.sleep(30)
        assert [(sent["chat_id"], sent["text"]) for sent in telegram.sent] == [
            ("-100", "#17 Где заказ?")
        ]
        telegram.says(1, "В пути", reply_to="#17 Где заказ?")
        await asyncio.sleep(5)
        telegram.says(2, "Будет завтра", reply_to="#17 Где заказ?")
        while market.requests("send_message") < 2:
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)  # while it is under way
        await bot
        assert texts(market, 17) == ["Где заказ?", "В пути", "Будет завтра"]
        assert [sent["text"] for sent in telegram.sent[1:]] == ["Принято"] * 2

        # Telegram repeats what was not confirmed before a kill.
        telegram.says(2, "Будет завтра", reply_to="#17 Где заказ?")
        telegram.says(3, "Звоните", reply_to="#17 Где заказ?")
        bot = asyncio.create_task(program("aiogram_bot", market).main())
        await asyncio.sleep(5)
        signal.raise_signal(signal.SIGTERM)
        await bot
        assert texts(market, 17)[3:] == ["Звоните"]
