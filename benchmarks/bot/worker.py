"""A process with a bot that answers differently each time, and that dies where it is told to."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from benchmarks.crash.worker import Plan, prepare
from yamarket_chat import Retry
from yamarket_chat.bot import Bot, BuyerMessage
from yamarket_chat.outbox import Outbox

KILLER = "kills"
"""How a message begins whose handler kills its process each time."""

SILENT = "kills always"
"""How a message begins whose error handler does so as well. Nobody can answer it."""

SLOW = 45.0
"""Seconds that a slow handler takes: longer than its process is paused."""


class BotPlan(Plan, frozen=True):
    """What a worker with a bot does."""

    port: int = 0  # where it hears the Market; 0: nowhere
    bot: bool = True  # or it only hears
    every: float = 5.0
    quick: bool = False  # its handler answers at once
    at_work: str = ""  # its handler is slow, and makes this file as it begins


def run(plan: BotPlan) -> None:
    """Answer until SIGTERM comes."""
    prepare(plan)
    asyncio.run(_answer(plan))


def make(plan: BotPlan, outbox: Outbox) -> Bot:
    """Make the bot. Its replies say of which message they are, which run gave them, and which."""
    bot = Bot(
        outbox,
        dict.fromkeys(plan.markets, plan.api_key),
        every=plan.every,
        lease=plan.lease,
        timeout=plan.timeout,
        retry=Retry(settle_after=plan.settle_after),
        base_url=next(iter(plan.markets.values())),
        insecure_http=True,
        integration=plan.name,
        networks=["127.0.0.0/8"],
    )

    @bot.message
    async def answer(message: BuyerMessage) -> None:
        if message.text.startswith(KILLER):
            os.kill(os.getpid(), signal.SIGKILL)
        name, run_ = message.message_id, secrets.token_hex(4)
        if name % 4 == 1 and not plan.quick:
            run_ += "x" * 1_500  # a long one, which leaves in two parts
        if plan.at_work:
            await asyncio.to_thread(Path(plan.at_work).touch)
            await asyncio.sleep(SLOW)
        if not plan.quick:
            if name % 7 == 0:
                await message.reply(f"now {name} {run_} 1", now=True)
            await asyncio.sleep(random.choice((0, 0.01, 0.1, 1)) * random.random())
            if random.random() < 0.02:
                raise ValueError("once in a while")
        for number in range(1, 1 + (1 if plan.quick else name % 3 or 3)):
            await message.reply(f"answer {name} {run_} {number}")

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        if message.text.startswith(SILENT):
            os.kill(os.getpid(), signal.SIGKILL)
        await message.reply(f"error {message.message_id} {type(error).__name__} 1")

    return bot


async def _answer(plan: BotPlan) -> None:
    async with Outbox(plan.database) as outbox:
        bot = make(plan, outbox)
        runner = None
        if plan.port:
            app = web.Application()
            app.router.add_post("/notification", bot.receiver.aiohttp)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", plan.port, reuse_port=True).start()
        work = asyncio.ensure_future(bot.run() if plan.bot else asyncio.Event().wait())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        with suppress(asyncio.CancelledError):
            await work
        if runner is not None:
            await runner.cleanup()
