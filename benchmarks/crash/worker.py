"""A process that delivers, and that dies or stops at a point where it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from yamarket_chat import ChatSession, Retry
from yamarket_chat.outbox import Outbox, points

FAREWELL = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP}


class Plan(msgspec.Struct, frozen=True):
    """What a worker does."""

    name: str
    database: str
    markets: Mapping[int, str]  # by business
    api_key: str
    lease: float
    timeout: float
    settle_after: float
    log: str
    point: str | None = None
    action: str = "kill"
    after: int = 1  # how often it reaches the point before


def run(plan: Plan) -> None:
    """Deliver until SIGTERM comes."""
    prepare(plan)
    asyncio.run(_deliver(plan))


def prepare(plan: Plan) -> None:
    """Log to the file, die at the point, and send to the sandboxes."""
    # What the process says goes to a file of its own.
    log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {plan.name} %(message)s"
    )
    random.seed()  # a forked process would draw the numbers of the others
    if plan.point is not None:
        points.hook = _Hook(plan.point, plan.action, plan.after)
    _send_to(plan.markets)


class _Hook:
    def __init__(self, point: str, action: str, after: int) -> None:
        self._point = point
        self._action = action
        self._left = after

    def __call__(self, name: str) -> None:
        if name != self._point:
            return
        self._left -= 1
        if self._left == 0:
            print(f"{self._action} at {name!r}", flush=True)
            os.kill(os.getpid(), FAREWELL[self._action])


def _send_to(markets: Mapping[int, str]) -> None:
    """Let each business have a sandbox of its own: a sandbox serves one."""
    original: Any = ChatSession.__init__

    def init(self: ChatSession, api_key: Any, business_id: Any, **options: Any) -> None:
        options["base_url"] = markets[int(business_id)]
        original(self, api_key, business_id, **options)

    setattr(ChatSession, "__init__", init)  # noqa: B010 - mypy knows no such assignment


async def _deliver(plan: Plan) -> None:
    outbox = Outbox(plan.database)
    work = asyncio.ensure_future(
        outbox.deliver(
            dict.fromkeys(plan.markets, plan.api_key),
            lease=plan.lease,
            timeout=plan.timeout,
            retry=Retry(settle_after=plan.settle_after),
            base_url=next(iter(plan.markets.values())),
            insecure_http=True,
            integration=plan.name,
        )
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    with suppress(asyncio.CancelledError):
        await work
