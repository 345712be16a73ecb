"""Marks and ends: those that come at about the same time share a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from yamarket_chat.outbox import writer
from yamarket_chat.outbox.writer import Writer


class SlowDisk:
    """A database that counts the marks and ends of each transaction."""

    def __init__(self) -> None:
        self.transactions: list[tuple[int, int]] = []

    async def write(self, _: Any, ends: Sequence[Any], marks: Sequence[Any]) -> Any:
        self.transactions.append((len(marks), len(ends)))
        await asyncio.sleep(0.01)
        return set(), [None] * len(marks)


@pytest.mark.parametrize("gathers", [True, False])
async def test_messages_that_are_sent_at_once_share_two_transactions(
    monkeypatch: pytest.MonkeyPatch, gathers: bool
) -> None:
    """Each transaction waits for the disk. Their marks share one, and their ends another one."""
    if not gathers:
        monkeypatch.setattr(writer, "GATHER", 0.0)
    disk: Any = SlowDisk()
    writing = Writer(disk)

    async def send(number: int) -> None:
        about: Any = SimpleNamespace(
            number=number, business_id=1, operation="send_message", minute=1
        )
        await asyncio.sleep(number * 1e-4)  # its connection is there a little later
        assert await writing.mark(about) is None
        await asyncio.sleep(0.1 + number * 1e-4)
        await writing.end(about)

    await asyncio.gather(*(send(number) for number in range(8)))
    await writing.close(1.0)
    if gathers:
        assert disk.transactions == [(8, 0), (0, 8)]
    else:
        assert len(disk.transactions) > 3
