"""Fetches lists, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from .._http import operations
from .._http.operations import Operation
from .._limits.tickets import CallGroup
from ..errors import InvalidArgumentError
from ..listing import Listing, Page
from ..models import Message
from ..retry import Budget
from .calls import Calls, Query

LARGEST_PAGE = {"chats": 20, "history": 100, "campaigns": 100}
"""The most items of a page, as documented for each operation."""


def listing(
    calls: Calls,
    operation: Operation,
    path: str,
    *,
    query: Mapping[str, int] | None = None,
    body: Mapping[str, Any] | None = None,
    page_token: str | None = None,
    max_wait: float | None = None,
    group: CallGroup | None = None,
    budget: Budget | None = None,
) -> Listing[Any]:
    """Return the list of an operation, in the largest pages that are allowed."""
    if page_token is not None and not (isinstance(page_token, str) and page_token.isprintable()):
        raise InvalidArgumentError("page_token is the next_page_token of a page")
    try:
        content = b"" if body is None else msgspec.json.encode(body)
    except ValueError:
        raise InvalidArgumentError("a filter has half of a surrogate pair") from None

    async def fetch(token: str | None) -> Page[Any]:
        parameters: dict[str, Any] = {**(query or {}), "limit": LARGEST_PAGE[operation.name]}
        if token is not None:
            parameters["pageToken"] = token
        request = Query(operation, path, urlencode(parameters), content)
        answer = await calls.ask(request, max_wait=max_wait, group=group, budget=budget)
        page: Page[Any] = answer.page()
        return page

    return Listing(operation.name, fetch, page_token)


def history(
    calls: Calls,
    business_id: int,
    chat_id: int,
    *,
    message_id_from: int | None = None,
    page_token: str | None = None,
    max_wait: float | None = None,
    group: CallGroup | None = None,
    budget: Budget | None = None,
) -> Listing[Message]:
    """Return the messages of a chat."""
    return listing(
        calls,
        operations.HISTORY,
        operations.HISTORY.path.format(business_id=business_id),
        query={"chatId": chat_id},
        body={} if message_id_from is None else {"messageIdFrom": message_id_from},
        page_token=page_token,
        max_wait=max_wait,
        group=group,
        budget=budget,
    )
