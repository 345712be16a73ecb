"""Lists of the API: their pages, and iteration over all of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from .errors import UnexpectedAnswerError
from .models import Campaign, Chat, ChatContext, Message

logger: logging.Logger = logging.getLogger("yamarket_chat")

Item = TypeVar("Item", Chat, Message, Campaign)


class Unreadable(msgspec.Struct, frozen=True):
    """An item of a page that the Market sent in another form than it documents.

    Attributes:
        raw: The item as it came, in JSON.
        id: The id of the chat, message or campaign, if it can be read.
    """

    raw: bytes
    id: int | None = None


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """One page of a list.

    Attributes:
        items: The items, in the Market's order.
        unreadable: Items in a form that the Market does not document. They are not in `items`.
        next_page_token: The token of the next page, to be used now or later; None on the last
            page.
        context: What the chat is about, on the pages of a history.
    """

    items: tuple[Item, ...]
    unreadable: tuple[Unreadable, ...] = ()
    next_page_token: str | None = None
    context: ChatContext | None = None

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


class Listing(Generic[Item]):
    """The items of a list and its pages. Each page is fetched when it is needed.

    A second iteration fetches the list again.

    Raises:
        ChatError: While a page is fetched, the errors of a call.
        UnexpectedAnswerError: The Market gave the same page token twice.

    Example:
        async for chat in session.chats():
            print(chat.chat_id)
        async for page in session.chats().pages():
            print(page.items, page.next_page_token)
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[str | None], Awaitable[Page[Item]]],
        page_token: str | None = None,
    ) -> None:
        self._name = name
        self._fetch: Callable[[str | None], Awaitable[Page[Item]]] = fetch
        self._page_token = page_token

    async def __aiter__(self) -> AsyncIterator[Item]:
        warned = False
        async for page in self.pages():
            if page.unreadable and not warned:
                warned = True
                logger.warning(
                    "%s: the Market sent items in a form that it does not document; they are left"
                    " out, and stand in Page.unreadable",
                    self._name,
                )
            for item in page.items:
                yield item

    async def pages(self) -> AsyncGenerator[Page[Item], None]:
        """Iterate over the pages, which also have the next page's token and a history's context.

        Yields:
            One page after another.

        Raises:
            ChatError: The errors of a call.
        """
        token = self._page_token
        used = {token}
        while True:
            page = await self._fetch(token)
            yield page
            token = page.next_page_token
            if not token:
                return
            if token in used:
                raise UnexpectedAnswerError(
                    f"{self._name}: the Market gave the same page token twice, so the list would"
                    " never end. The pages until now are complete",
                    status=200,
                    operation=self._name,
                    sent=False,
                )
            used.add(token)
