"""Makes the pictures of docs/cli.md from real runs: python docs/pictures/make.py"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI

from yamarket_chat import cli
from yamarket_chat.cli import app, console  # noqa: F401
from yamarket_chat.sandbox import Sandbox

HERE = Path(__file__).parent
WIDTH = 80
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}


def picture(name: str, title: str, *commands: list[str]) -> None:
    """Run commands, and keep what a terminal shows of them, a light one and a dark one."""
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
    for command in commands:
        screen.print(f"$ yamarket-chat {' '.join(command)}", style="bold", highlight=False)
        sys.argv = ["yamarket-chat", *command]
        status = cli.main()
        if status:
            raise SystemExit(f"{command}: exit status {status}")
    for shade, theme in THEMES.items():
        svg = screen.export_svg(title=title, theme=theme, clear=False, unique_id=f"{name}-{shade}")
        (HERE / f"{name}-{shade}.svg").write_text(svg, encoding="utf-8")


def main() -> None:
    """Make all of them."""
    os.environ["TERM"] = "dumb"  # of what moves, the last state alone
    ready = threading.Event()
    running: list[tuple[Sandbox, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with Sandbox(latency=0.05) as market:
            market.buyer_says(17, "Здравствуйте! Где мой заказ?")
            market.shop_says(17, "Он уже в пути, будет завтра")
            market.buyer_says(17, "Спасибо! А можно вечером?")
            market.add_chat(18, order_id=55)
            market.buyer_says(18, "Подойдёт ли чехол к моему телефону?")
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
    file = Path("messages.csv")
    try:
        picture(
            "chats", "yamarket-chat",
            ["whoami"], ["chats", "--status", "WAITING_FOR_PARTNER"], ["history", "17"],
        )  # fmt: skip
        rows = (f"{chat},Заказ {chat} собран\n" for chat in range(100, 180))
        file.write_text("chat_id,text\n" + "".join(rows), encoding="utf-8")
        picture(
            "send-many", "yamarket-chat",
            ["send-many", str(file), "--requests", "50", "--per", "2"],
        )  # fmt: skip
        picture("demo", "yamarket-chat", ["demo", "--faults"])
    finally:
        file.unlink(missing_ok=True)
        loop.call_soon_threadsafe(end.set)
        thread.join()


if __name__ == "__main__":
    main()
