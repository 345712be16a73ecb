"""An SQLite file that somebody has removed or replaced while a process has it open."""

from __future__ import annotations

from pathlib import Path

from tests.shops import message
from yamarket_chat.outbox import Outbox, OutboxDatabaseError


async def test_put_into_a_file_that_was_replaced_is_not_lost(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/outbox.db"
    async with Outbox(url) as web, Outbox(url) as other:
        await web.create()
        await web.put(message("раз"))
        for path in tmp_path.iterdir():  # as by `mv backup.db outbox.db`
            path.unlink()
        await other.create()
        try:
            number = await web.put(message("два"))
        except OutboxDatabaseError:
            return
        entry = await other.get(number)
        assert entry is not None, "accepted, and in no file that anybody can open"
        assert entry.text == "два"
