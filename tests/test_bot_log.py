"""How a failed reply is told and logged: again if it fails again, a traceback only for a fault."""

from __future__ import annotations

import asyncio

import pytest

from tests import bots
from tests.bots import BUSINESS, Shop
from yamarket_chat import ChatError, InvalidArgumentError, Retry
from yamarket_chat.bot import BuyerMessage
from yamarket_chat.outbox import OutboxEntry, OutboxMessage
from yamarket_chat.sandbox import Fault

fewer_looks, small = bots.fewer_looks, bots.small


async def test_a_fault_of_on_failure_has_its_traceback_whatever_it_raises(
    small: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """The program of a user raises errors of this package as well: a reply that is too long."""
    raised: list[ChatError] = []

    async def on_failure(entry: OutboxEntry) -> None:
        if not raised:
            raised.append(InvalidArgumentError("text has 5,000 characters"))
            raise raised[0]
        raised.append(ChatError("told"))

    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    async with small.bot(on_failure=on_failure).running():
        await small.outbox.put(OutboxMessage(BUSINESS, 18, "Заказ собран"))
        await small.until(lambda: len(raised) == 2)
    (said,) = [one for one in caplog.records if one.exc_info]
    assert said.levelname == "ERROR"
    assert said.exc_info is not None
    assert said.exc_info[1] is raised[0]


async def test_a_fault_of_the_error_handler_has_its_traceback(
    small: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    bot = small.bot()

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        small.told.append((message.text, error))
        raise ChatError("somebody else's chat")

    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    async with bot.running():
        small.says("да")
        await small.until(lambda: small.told)
    (said,) = [one for one in caplog.records if one.exc_info]
    assert "Bot.error failed" in said.getMessage()


async def test_a_market_that_is_away_costs_a_line_and_no_traceback(
    small: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """The bot asks it for the message whose reply was refused, and asks again in a while."""
    small.market.faults = lambda request: (
        Fault("status", status=404)
        if request.operation == "send_message"
        else Fault("status", status=503)
        if request.operation == "get_message" and request.operation_number < 3
        else None
    )
    async with small.bot(retry=Retry(attempts=1)).running():
        small.says("да")
        await small.until(lambda: small.told)
    said = [one for one in caplog.records if "is told again" in one.getMessage()]
    assert said
    assert {one.levelname for one in said} == {"WARNING"}
    assert sum("the reply 1 is refused" in one.getMessage() for one in caplog.records) == 1
    assert [one for one in caplog.records if one.exc_info] == []


async def test_a_reply_that_fails_again_while_its_failure_is_told_is_told_again(
    small: Shop,
) -> None:
    """Bot.error sends the reply once more, and does something else: that fails meanwhile."""
    small.market.faults = lambda request: (
        Fault("status", status=404) if request.operation == "send_message" else None
    )
    bot = small.bot()

    @bot.error
    async def failed(message: BuyerMessage, error: Exception) -> None:
        small.told.append((message.text, error))
        if len(small.told) == 1:
            async for entry in small.outbox.entries(state="refused"):
                assert await small.outbox.retry(entry.number)
            await asyncio.sleep(30)

    async with bot.running():
        small.says("да")
        await small.until(lambda: len(small.told) == 2)
