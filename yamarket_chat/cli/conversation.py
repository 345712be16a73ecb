"""Printing messages as a conversation."""

from __future__ import annotations

from rich.padding import Padding
from rich.text import Text

from yamarket_chat.models import Message, Sender

from . import console

NAMES = {
    Sender.PARTNER: ("Shop", "green"),
    Sender.CUSTOMER: ("Buyer", "cyan"),
    Sender.MARKET: ("Market", "magenta"),
    Sender.SUPPORT: ("Support", "magenta"),
}


def show(message: Message, chat_id: int | None = None) -> None:
    """Print a message: sender, time, text and files, and the chat if `chat_id` is given."""
    name, style = NAMES.get(message.sender, (str(message.sender), "magenta"))
    chat = "" if chat_id is None else f", chat {chat_id}"
    head = Text.assemble((console.printable(name) + chat, f"bold {style}"), "  ")
    head.append(console.moment(message.created_at), style="dim")
    console.out.print(head, soft_wrap=True)
    for line in (message.message or "").splitlines():
        print_indented(line)
    for file in message.payload or ():
        print_indented(f"[{file.name}, {file.size:,} bytes]")


def print_indented(line: str) -> None:
    """Print a line of a text, wrapped between words on a terminal."""
    text = Text(console.printable(line))
    if console.out.is_terminal:
        console.out.print(Padding(text, (0, 0, 0, 2), expand=False))
    else:
        console.out.print(Text("  ") + text, soft_wrap=True)
