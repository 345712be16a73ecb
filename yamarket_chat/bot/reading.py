"""Reads the histories of chats, within the limit that they have."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from .._delivery.histories import read_history
from ..errors import ApiError, UnexpectedAnswerError
from ..listing import Listing
from ..models import Message
from ..outbox.pausing import AGAIN, pauses
from ..outbox.turns import Session
from ..session import ChatSession
from .inbox import micros

logger: logging.Logger = logging.getLogger("yamarket_chat")

LEFT = 0.2
"""The part of the limit of histories that is left to finding messages of unknown outcome."""

LOOK = 1.0
"""Seconds until the limit is looked at again at the earliest."""


class Reading:
    """Says when a history may be read."""

    def __init__(self) -> None:
        self._limit = asyncio.Lock()
        self._reading = 0  # looks that may read, and have not ended

    @asynccontextmanager
    async def may_read(self, session: Callable[[], Session]) -> AsyncIterator[None]:
        """Wait for the limit. Some of it is left to messages of unknown outcome."""
        async with self._limit:  # one looks at the limit, not all that wait
            while True:
                status = session().quota_status("history")
                if status.remaining - self._reading > status.limit * LEFT:
                    break
                # After others have used it up, only an answer tells how much is left now.
                is_unknown = session().departing().others("history") is None
                if is_unknown and status.remaining and not self._reading:
                    break
                await asyncio.sleep(min(max(status.resets_in, LOOK), AGAIN))
            self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1


async def read(session: ChatSession, chat_id: int, since: int | None) -> list[Message]:
    """Read the history of a chat, from a message on if one is known."""
    try:
        return await _rows(session.history(chat_id, message_id_from=since))
    except ApiError as error:
        if since is None or error.retry_after is not None or pauses(error):
            raise
    # Perhaps the message from which it was to be read is gone.
    return await _rows(session.history(chat_id))


async def earlier(
    session: ChatSession, chat_id: int, message_ids: Iterable[int], before: int
) -> set[int]:
    """Return which of these messages were created before a moment."""
    found = set()
    for message_id in message_ids:
        try:
            message = await session.get_message(chat_id, message_id)
        except (ApiError, UnexpectedAnswerError) as error:
            if error.retry_after is not None or pauses(error):
                raise
        else:
            if micros(message.created_at) < before:
                found.add(message_id)
    return found


async def _rows(listing: Listing[Message]) -> list[Message]:
    # If its pages are in no order, a row that is added meanwhile may move another one to a page
    # that was read already. The missed one would be handled after later ones.
    history = await read_history(listing.pages, lambda: -math.inf, asyncio.sleep)
    if history.unreadable:
        logger.warning(
            "history: the Market sent %d messages in a form that it does not document; they are"
            " left out",
            len(history.unreadable),
        )
    return list(history.rows)
