"""Fetches lists, page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from .._http.operations import Operation
from ..errors import InvalidArgumentError
from ..listing import Listing, Page
from .calls import Query

LARGEST_PAGE = {"chats": 20, "history": 100, "campaigns": 100}
"""The most items of a page, as documented for each operation."""

Ask = Callable[[Query], Awaitable[Any]]
"""Fetches a page: `Calls.ask`, with the `max_wait`, the group or the budget of its caller."""


def listing(
    ask: Ask,
    operation: Operation,
    path: str,
    *,
    query: Mapping[str, int] | None = None,
    body: Mapping[str, Any] | None = None,
    page_token: str | None = None,
) -> Listing[Any]:
    """Return the list of an operation, in the largest pages that are allowed."""
    if page_token is not None and not (isinstance(page_token, str) and page_token.isprintable()):
        raise InvalidArgumentError(
            "page_token must be the next_page_token of a page: pass it unchanged"
        )
    try:
        content = b"" if body is None else msgspec.json.encode(body)
    except ValueError:
        raise InvalidArgumentError("a filter has half of a surrogate pair") from None

    async def fetch(token: str | None) -> Page[Any]:
        parameters: dict[str, Any] = {**(query or {}), "limit": LARGEST_PAGE[operation.name]}
        if token is not None:
            parameters["pageToken"] = token
        answer = await ask(Query(operation, path, urlencode(parameters), content))
        page: Page[Any] = answer.page()
        return page

    return Listing(operation.name, fetch, page_token)
