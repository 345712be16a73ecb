"""Lists of the API: every page, fetched as it is needed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Generic
from urllib.parse import urlencode

import msgspec

from . import operations
from .calls import Calls, Effort, Question
from .errors import InvalidArgumentError, UnexpectedAnswerError
from .models import Item, Message, Page
from .operations import Operation
from .scheduler import Owner

LARGEST_PAGE = {"chats": 20, "history": 100, "campaigns": 100}
"""Items of a page at most, as documented for each operation."""


class Listing(Generic[Item]):
    """The items of a list, and its pages; nothing is fetched before it is needed.

    It can be gone through once more, and fetches anew then.

        async for chat in session.chats():
            ...
        async for page in session.chats().pages():
            page.items, page.next_page_token

    Fetching raises the errors of a call; UnexpectedAnswerError where a page token repeats.
    """

    def __init__(
        self,
        operation: Operation,
        fetch: Callable[[str | None], Awaitable[Page[Item]]],
        page_token: str | None = None,
    ) -> None:
        self._operation = operation
        self._fetch: Callable[[str | None], Awaitable[Page[Item]]] = fetch
        self._page_token = page_token

    async def __aiter__(self) -> AsyncIterator[Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncGenerator[Page[Item], None]:
        """The pages, with what only they tell: the next one's token, the context of a history."""
        token = self._page_token
        seen = {token}
        while True:
            page = await self._fetch(token)
            yield page
            token = page.next_page_token
            if not token:
                return
            if token in seen:
                raise UnexpectedAnswerError(
                    f"{self._operation.name}: the Market gave the same page token twice, so the"
                    " list would never end; take what came until now",
                    status=200,
                    excerpt="",
                    operation=self._operation.name,
                    trace_id=None,
                    sent=False,
                )
            seen.add(token)


def listing(
    calls: Calls,
    operation: Operation,
    path: str,
    *,
    query: Mapping[str, int] | None = None,
    body: Mapping[str, Any] | None = None,
    page_token: str | None = None,
    max_wait: float | None = None,
    owner: Owner | None = None,
    effort: Effort | None = None,
) -> Listing[Any]:
    """The list that an operation answers, in the largest pages that are allowed."""
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
        request = Question(operation, path, urlencode(parameters), content)
        page: Page[Any] = (await calls.ask(request, max_wait, owner, effort)).page()
        return page

    return Listing(operation, fetch, page_token)


def history(
    calls: Calls,
    business_id: int,
    chat_id: int,
    *,
    message_id_from: int | None = None,
    page_token: str | None = None,
    max_wait: float | None = None,
    owner: Owner | None = None,
    effort: Effort | None = None,
) -> Listing[Message]:
    """The messages of a chat."""
    return listing(
        calls,
        operations.HISTORY,
        operations.HISTORY.path.format(business_id=business_id),
        query={"chatId": chat_id},
        body={} if message_id_from is None else {"messageIdFrom": message_id_from},
        page_token=page_token,
        max_wait=max_wait,
        owner=owner,
        effort=effort,
    )
