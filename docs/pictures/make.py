"""Makes the pictures of the docs from real runs: python docs/pictures/make.py [commands | bot]"""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI

from yamarket_chat import cli
from yamarket_chat.cli import app, console  # noqa: F401
from yamarket_chat.sandbox import Sandbox

HERE = Path(__file__).parent
WIDTH = 80
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}


def terminal() -> Console:
    """Return a terminal that keeps what it shows."""
    screen = Console(
        record=True,
        force_terminal=True,
        color_system="truecolor",
        width=WIDTH,
        height=50,
        file=io.StringIO(),
        highlight=False,
        legacy_windows=False,
    )
    console.out = console.err = screen
    return screen


def run(screen: Console, *commands: list[str]) -> None:
    """Run commands of yamarket-chat."""
    for command in commands:
        screen.print(f"$ yamarket-chat {shlex.join(command)}", style="bold", highlight=False)
        sys.argv = ["yamarket-chat", *command]
        status = cli.main()
        if status:
            raise SystemExit(f"{command}: exit status {status}")


def keep(screen: Console, name: str, title: str) -> None:
    """Write a picture of what a terminal shows, a light one and a dark one."""
    for shade, theme in THEMES.items():
        svg = screen.export_svg(title=title, theme=theme, clear=False, unique_id=f"{name}-{shade}")
        (HERE / f"{name}-{shade}.svg").write_text(svg, encoding="utf-8")


def picture(name: str, title: str, *commands: list[str]) -> None:
    """Run commands, and keep what a terminal shows of them."""
    screen = terminal()
    run(screen, *commands)
    keep(screen, name, title)


@contextmanager
def serving() -> Iterator[Sandbox]:
    """Run a sandbox in a thread of its own, and connect the command to it."""
    ready = threading.Event()
    running: list[tuple[Sandbox, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with Sandbox(latency=0.05) as market:
            end = asyncio.Event()
            running.append((market, asyncio.get_running_loop(), end))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    market, loop, end = running[0]
    os.environ.update(
        YAMARKET_BASE_URL=market.url,
        YAMARKET_API_KEY=market.api_key,
        YAMARKET_BUSINESS_ID=str(market.business_id),
    )
    try:
        yield market
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


def commands() -> None:
    """Make the pictures of docs/cli.md."""
    file = Path("messages.csv")
    with serving() as market:
        market.buyer_says(17, "Здравствуйте! Где мой заказ?")
        market.shop_says(17, "Он уже в пути, будет завтра")
        market.buyer_says(17, "Спасибо! А можно вечером?")
        market.add_chat(18, order_id=55)
        market.buyer_says(18, "Подойдёт ли чехол к моему телефону?")
        picture(
            "chats", "yamarket-chat",
            ["whoami"], ["chats", "--status", "WAITING_FOR_PARTNER"], ["history", "17"],
        )  # fmt: skip
        rows = (f"{chat},Заказ {chat} собран\n" for chat in range(100, 180))
        file.write_text("chat_id,text\n" + "".join(rows), encoding="utf-8")
        try:
            picture(
                "send-many", "yamarket-chat",
                ["send-many", str(file), "--requests", "50", "--per", "2"],
            )  # fmt: skip
        finally:
            file.unlink(missing_ok=True)
        picture("demo", "yamarket-chat", ["demo", "--faults"])


def bot() -> None:
    """Make the pictures of docs/bot.md: the bot's terminal and the buyer's."""
    with serving() as market, tempfile.TemporaryDirectory() as folder:
        program = subprocess.Popen(  # noqa: S603 - ours
            [sys.executable, "-u", HERE.parent / "recipes" / "first_bot.py"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        screen = terminal()
        for number, text in enumerate(("Здравствуйте!", "Где мой заказ?"), 1):
            run(screen, ["sandbox", "say", "17", text])
            while len(market.messages(17)) < 2 * number:
                time.sleep(0.1)
        run(screen, ["history", "17"])
        keep(screen, "buyer", "the buyer")
        program.send_signal(signal.SIGINT)
        screen = terminal()
        screen.print("$ python first_bot.py", style="bold")
        screen.print(program.communicate()[0], end="")
        keep(screen, "bot", "the bot")


def main() -> None:
    """Make all of them, or those of the page that is named: commands or bot."""
    os.environ["TERM"] = "dumb"  # of what moves, the last state alone
    pages = {"commands": commands, "bot": bot}
    for page in sys.argv[1:] or list(pages):
        pages[page]()


if __name__ == "__main__":
    main()
