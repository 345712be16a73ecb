"""Marks and ends: those that come at about the same time share a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection

from yamarket_chat import Limits
from yamarket_chat.outbox import Outbox, OutboxMessage, writer
from yamarket_chat.outbox.marks import End, Mark
from yamarket_chat.outbox.watching import LOOKS
from yamarket_chat.sandbox import Sandbox

BUSINESS = 12345


@pytest.mark.parametrize("gathers", [True, False])
async def test_messages_that_are_sent_at_once_share_two_transactions(
    database_url: Any, monkeypatch: pytest.MonkeyPatch, gathers: bool
) -> None:
    """Each transaction waits for the disk. Their marks share one, and their ends another one."""
    for dialect in LOOKS:
        monkeypatch.setitem(LOOKS, dialect, 1.0)
    if not gathers:
        monkeypatch.setattr(writer, "GATHER", 0.0)
    transactions: list[tuple[int, int]] = []
    write = writer._write

    def counting(connection: Connection, ends: Sequence[End], group: Sequence[Mark]) -> Any:
        transactions.append((len(group), len(ends)))
        return write(connection, ends, group)

    monkeypatch.setattr(writer, "_write", counting)
    async with (
        Sandbox(business_id=BUSINESS, parallel=8) as market,
        Outbox(database_url) as outbox,
    ):
        await outbox.create()
        market.latency = lambda: 0.1
        numbers = await outbox.put_many(OutboxMessage(BUSINESS, c, "Привет") for c in range(1, 9))
        keys = {BUSINESS: market.api_key}
        async with outbox.delivering(keys, base_url=market.url, limits=Limits(parallel=8)):
            for number in numbers:
                await outbox.result(number, timeout=60)
    if gathers:
        assert transactions == [(8, 0), (0, 8)]
    else:
        assert len(transactions) > 2
