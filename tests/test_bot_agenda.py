"""One look at a chat at a time: who waits for whom, and what goes first."""

from __future__ import annotations

import asyncio

import pytest

from tests import bots
from tests.bots import BUSINESS, Shop
from yamarket_chat import SessionClosedError
from yamarket_chat.bot import cursor
from yamarket_chat.bot.agenda import Agenda, Todo
from yamarket_chat.outbox import OutboxEntry, OutboxMessage
from yamarket_chat.sandbox import Fault

fewer_looks, small = bots.fewer_looks, bots.small


async def test_failures_are_told_while_a_look_at_their_chat_waits_for_the_limit(
    small: Shop,
) -> None:
    failed: list[str | None] = []

    async def on_failure(entry: OutboxEntry) -> None:
        failed.append(entry.text)

    sending = 503
    small.market.faults = lambda request: (
        Fault("status", status=sending) if request.operation == "send_message" else None
    )
    async with small.running(on_failure=on_failure):
        await asyncio.sleep(10)
        small.market.other_programs_use("history", 8500)
        small.says("раз")
        await small.until(lambda: small.seen)  # that look has learnt it
        small.says("два")
        await asyncio.sleep(100)
        sending = 404
        await small.outbox.put(OutboxMessage(BUSINESS, 18, "Заказ собран"))
        await small.until(lambda: small.told and failed, within=150)
    assert small.seen == ["раз"]


def _agenda() -> tuple[Agenda, list[str], asyncio.Event]:
    """An agenda whose looks get their turn when the event is set."""
    done: list[str] = []
    turn = asyncio.Event()

    async def look(chat_id: int, todo: Todo) -> None:
        await turn.wait()
        todo.has_turn = True
        done.append(f"look {sorted(todo.hints)}")
        await asyncio.sleep(10)
        done.append("looked")

    return Agenda(look), done, turn


def _hint(message_id: int) -> cursor.Hint:
    return cursor.Hint(BUSINESS, 17, message_id, 0)


async def test_a_look_that_waits_lets_others_go_first_and_is_begun_again() -> None:
    agenda, done, turn = _agenda()

    async def work() -> None:
        agenda.look_at(17, hint=_hint(2))
        turn.set()
        await asyncio.sleep(1)
        done.append("work")

    agenda.look_at(17, hint=_hint(1))
    await asyncio.sleep(1)
    await asyncio.gather(agenda.alone(17, work), agenda.alone(17, work))
    await asyncio.sleep(20)
    assert done == ["work", "work", "look [1, 2]", "looked"]
    assert not agenda.tasks()


async def test_a_look_that_has_its_turn_is_waited_for() -> None:
    agenda, done, turn = _agenda()

    async def work() -> None:
        done.append("work")

    turn.set()
    agenda.look_at(17)
    await asyncio.sleep(1)
    agenda.look_at(17, hint=_hint(1))
    await agenda.alone(17, work)
    await asyncio.sleep(20)
    assert done == ["look []", "looked", "work", "look [1]", "looked"]


@pytest.mark.parametrize("after", [0, 1, 5])
async def test_a_look_goes_on_if_what_was_to_go_first_is_cancelled(after: float) -> None:
    agenda, done, turn = _agenda()
    agenda.look_at(17)
    await asyncio.sleep(1)
    alone = asyncio.create_task(agenda.alone(17, lambda: asyncio.sleep(3)))
    await asyncio.sleep(after)
    alone.cancel()
    turn.set()
    await asyncio.sleep(20)
    assert done == ["look []", "looked"]


async def test_a_stop_ends_a_look_that_waits_and_what_goes_first() -> None:
    agenda, done, _ = _agenda()
    agenda.look_at(17)
    await asyncio.sleep(1)
    alone = asyncio.create_task(agenda.alone(17, lambda: asyncio.sleep(1000)))
    await asyncio.sleep(1)
    agenda.stop(())
    with pytest.raises(SessionClosedError):
        await alone
    await asyncio.sleep(1)
    assert done == []
    assert not agenda.tasks()
