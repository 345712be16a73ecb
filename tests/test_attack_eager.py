"""Puts into SQLite on a loop with eager tasks."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.shops import message
from yamarket_chat.outbox import Outbox

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of 3.12")


@pytest.mark.real_time
async def test_put_that_fails_at_once_does_not_let_the_next_one_hang(tmp_path: Path) -> None:
    """The task of a group ends before `create_task` returns, and is then kept as if it ran."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.db")
    await outbox.create()
    closing = asyncio.create_task(outbox.close())
    await asyncio.sleep(0)
    with suppress(RuntimeError):
        await outbox.put(message("раз"))
    await closing
    async with asyncio.timeout(2):
        await outbox.put(message("два"))
