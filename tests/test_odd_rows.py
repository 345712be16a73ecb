"""An item of a list in an undocumented form does not affect the others, and settles nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.helpers import KEY, error_of, http_server
from yamarket_chat import ChatSession, DeliveryUnknownError, Unreadable

CONTEXT = {"type": "ORDER", "customer": {"name": "Анна"}, "campaignId": 1, "orderId": 5}
GOOD = {
    "messageId": 1,
    "createdAt": "2026-09-21T17:13:20+03:00",
    "sender": "PARTNER",
    "message": "old",
}
ODD: dict[str, Any] = {
    "no sender": {"sender": None},
    "no zone": {"createdAt": "2026-09-21T17:13:20"},
    "a text that is a number": {"message": 5},
    "a file without an address": {"payload": [{"name": "a.jpg", "size": 1}]},
    "an id that is no number": {"messageId": "seven"},
    "no time": {"createdAt": None},
}


def row(number: int, **other: Any) -> dict[str, Any]:
    return {**GOOD, "messageId": number, **other}


@asynccontextmanager
async def a_market(rows: list[Any], **more: Any) -> AsyncIterator[ChatSession]:
    """A Market whose history has these rows, and which stores nothing."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        if request.path.endswith("/message"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if request.path.endswith("/history"):
            return answer({"context": CONTEXT, "messages": rows, **more})
        if request.path.endswith("/campaigns"):
            return web.json_response({"campaigns": rows})
        return answer({"chats": rows})

    def answer(result: Any) -> web.Response:
        return web.json_response({"status": "OK", "result": result})

    async with http_server(handle) as url, ChatSession(KEY, 1, base_url=url) as session:
        yield session


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_history_lists_readable_rows_and_reports_unreadable_ones(
    odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with a_market([row(1), row(2, **odd), row(3), row(4, **odd)]) as session:
        assert [message.message_id async for message in session.history(17)] == [1, 3]
        [page] = [page async for page in session.history(17).pages()]
        assert [message.message_id for message in page] == [1, 3]
        assert page.context is not None
        assert [json.loads(item.raw)["message"] for item in page.unreadable]
        expected = [None, None] if "messageId" in odd else [2, 4]
        assert [item.id for item in page.unreadable] == expected
    [warning] = caplog.records
    assert "Page.unreadable" in warning.getMessage()


async def test_chats_and_campaigns_list_readable_rows_and_report_unreadable_ones() -> None:
    chat = {
        "chatId": 7,
        "context": CONTEXT,
        "type": "CHAT",
        "status": "NEW",
        "createdAt": "2026-09-21T17:13:20+03:00",
        "updatedAt": "2026-09-21T17:13:20+03:00",
    }
    async with a_market([chat, {**chat, "chatId": 8, "context": None}]) as session:
        [page] = [page async for page in session.chats().pages()]
        assert ([one.chat_id for one in page], [one.id for one in page.unreadable]) == ([7], [8])
    async with a_market([{"id": 5}, {"id": 6, "domain": 3}]) as session:
        [shops] = [page async for page in session.campaigns().pages()]
        assert ([one.id for one in shops], [one.id for one in shops.unreadable]) == ([5], [6])


async def test_answer_without_a_list_raises() -> None:
    async with a_market("nothing") as session:  # type: ignore[arg-type]  # on purpose
        error = await error_of(anext(aiter(session.history(17))))
        assert "does not document" in str(error)


def sent_by(sender: str, at: str = "now") -> dict[str, Any]:
    return {"messageId": 9, "createdAt": at, "sender": sender, "message": 5}


@pytest.mark.parametrize(
    ("odd", "unclear"),
    [
        ({"sender": "PARTNER"}, True),
        ({"sender": None}, True),
        ({"sender": "PARTNER", "createdAt": "yesterday"}, True),
        ({"sender": "CUSTOMER"}, False),
        ({"sender": "PARTNER", "createdAt": "2020-01-01T00:00:00+03:00"}, False),
    ],
)
async def test_unreadable_shop_row_near_the_attempt_makes_the_outcome_unclear(
    odd: dict[str, Any], unclear: bool
) -> None:
    rows: list[Any] = []
    async with a_market(rows) as session:
        async for _ in session.history(17):  # so that the Market's time is known
            pass
        error = await error_of(session.send_message(17, "hi", on_unknown="raise"))
        assert isinstance(error, DeliveryUnknownError)
        assert error.pending.since is not None
        rows.append(row(9, createdAt=error.pending.since.isoformat(), message=5) | odd)
        settled = session.settle(error.pending)
        if unclear:
            unknown = await error_of(settled)
            assert "cannot be read" in str(unknown)
        else:
            assert await settled is None


def test_unreadable_items_compare_by_value() -> None:
    assert Unreadable(b"{}", 5) == Unreadable(b"{}", 5)
