"""The public docstrings: Google style, and their examples run."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

import yamarket_chat
from yamarket_chat import bot, notifications, outbox, sandbox

MODULES = (yamarket_chat, bot, notifications, outbox, sandbox)
NO_RECORDS = (
    *(yamarket_chat.ChatSession, outbox.Outbox),
    *(sandbox.Sandbox, sandbox.VirtualLoop, sandbox.World, notifications.Receiver),
    bot.Bot,
)
# Values and aliases.
NO_NEED = {
    *("__version__", "Outcome", "OutboxState", "FaultPlan", "EVERY_FAULT"),
    *("Event", "MARKET_NETWORKS", "NotificationPlan"),
}


def public() -> Iterator[tuple[str, Any]]:
    """Return all public objects: the exports of the package and its wings, and their methods."""
    for module in MODULES:
        for name in module.__all__:
            if name in NO_NEED:
                continue
            thing = getattr(module, name)
            yield name, thing
            if inspect.isclass(thing):
                for attribute, value in vars(thing).items():
                    if attribute.startswith("_") or hasattr(asyncio.AbstractEventLoop, attribute):
                        continue  # asyncio documents what each loop has
                    if inspect.isfunction(value) or isinstance(value, (property, classmethod)):
                        yield f"{name}.{attribute}", value


PUBLIC = dict(public())


def section(doc: str, title: str) -> str:
    """The text of a section of a Google-style docstring."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", doc + "\n", re.M)
    return textwrap.dedent(found[1]) if found else ""


EXAMPLES = {
    name: example
    for name, thing in PUBLIC.items()
    if (example := section(inspect.getdoc(thing) or "", "Example"))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name])
    assert doc
    assert doc.splitlines()[0].endswith((".", "?")), "the first line is one sentence"


def arguments_of(thing: Any) -> set[str]:
    """The arguments of a function, or of a class that is more than a record of data."""
    if isinstance(thing, property):
        return set()
    if isinstance(thing, classmethod):
        thing = thing.__func__
    if inspect.isclass(thing) and thing not in NO_RECORDS:
        return set()
    return {name for name in inspect.signature(thing).parameters if name not in ("self", "cls")}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_describes_each_argument(name: str) -> None:
    described = set(
        re.findall(
            r"^\*{0,2}(\w+)(?: \([^)]*\))?:",
            section(inspect.getdoc(PUBLIC[name]) or "", "Args"),
            re.M,
        )
    )
    assert described == arguments_of(PUBLIC[name])


def test_each_session_method_has_an_example() -> None:
    methods = {name for name in PUBLIC if name.startswith("ChatSession.")} - {"ChatSession.close"}
    assert methods <= set(EXAMPLES)
    assert len(EXAMPLES) > 25


RUNS_LOOPS = {name for name in EXAMPLES if name.startswith(("World", "VirtualLoop"))}


@pytest.mark.parametrize("name", sorted(RUNS_LOOPS))
def test_the_example_runs_loops_of_its_own(name: str) -> None:
    world = sandbox.World(seed=7)
    scope: dict[str, Any] = {"asyncio": asyncio, "world": world, "shop": world.loop("shop")}
    for module in MODULES:
        scope |= {exported: getattr(module, exported) for exported in module.__all__}
    exec(EXAMPLES[name], scope)  # noqa: S102 - our own docstring
    world.close()


class web_server:
    """Serves nothing."""

    @staticmethod
    async def serve() -> None:
        """Return at once."""


CREATED = (
    b'{"notificationType": "CHAT_CREATED", "businessId": 12345, "chatId": 17,'
    b' "createdAt": "2026-11-27T09:00:00Z"}'
)


def bot_of(box: outbox.Outbox, market: sandbox.Sandbox) -> bot.Bot:
    """Return a bot with a handler."""
    made = bot.Bot(box, {market.business_id: market.api_key})

    @made.message
    async def answer(message: bot.BuyerMessage) -> None:
        assert message

    return made


@asynccontextmanager
async def message_of(
    box: outbox.Outbox, market: sandbox.Sandbox, name: str
) -> AsyncIterator[bot.BuyerMessage | None]:
    """Handle a message, for the examples of handlers."""
    if not name.startswith("BuyerMessage"):
        yield None
        return
    made = bot.Bot(box, {market.business_id: market.api_key}, base_url=market.url)
    handled: asyncio.Future[bot.BuyerMessage] = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()

    @made.message
    async def answer(message: bot.BuyerMessage) -> None:
        if not handled.done():
            handled.set_result(message)
        await ended.wait()

    async with made.running():
        yield await handled
        ended.set()


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - RUNS_LOOPS))
async def test_docstring_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}

    async def on_event(event: notifications.Event) -> None:
        assert event

    for module in MODULES:
        scope |= {exported: getattr(module, exported) for exported in module.__all__}
    async with (
        sandbox.Sandbox(business_id=12345) as market,
        outbox.Outbox("sqlite:///outbox.db") as box,
    ):
        if name.startswith("B") or "Outbox" in name or "outbox." in EXAMPLES[name]:
            await box.create()
        market.buyer_says(17, "Где мой заказ?")
        market.buyer_sends_file(17, "чек.jpg", b"photo")
        Path("инструкция.pdf").write_bytes(b"%PDF-")
        async with (
            yamarket_chat.ChatSession(
                market.api_key, market.business_id, base_url=market.url
            ) as session,
            message_of(box, market, name) as message,
        ):
            scope |= {
                "market": market,
                "session": session,
                "outbox": box,
                "receiver": notifications.Receiver(on_event, name="my-shop", version="1.0"),
                "bot": bot_of(box, market),
                "web_server": web_server,
                "body": CREATED,
                "message": message,
                "api_key": market.api_key,
                "business_id": market.business_id,
                "chat_id": 17,
                "print": lambda *_: None,
                "text": sqlalchemy.text,
                "aiohttp": __import__("aiohttp"),
                "asyncio": asyncio,
                "msgspec": __import__("msgspec"),
                "pending": yamarket_chat.Pending(
                    business_id=market.business_id, chat_id=17, text="hello", requests=1, seen=""
                ),
            }
            # The address of the sandbox comes from the environment.
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("YAMARKET_BASE_URL", market.url)
                code = compile(EXAMPLES[name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    result = eval(code, scope)  # noqa: S307 - our own docstring
                    if inspect.iscoroutine(result):
                        await result
