"""What the parts of a courier use of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from .._delivery.departing import DepartingEngine
from ..errors import ChatError
from ..pending import Pending, Stored
from ..receipts import Receipt
from .grant import Grant
from .hand import Hand, Row
from .turns import Session

Context = tuple[str, int]
"""An order or a return."""

About = int | Context
"""What an error may be about, other than the business: a chat, or what has none yet."""


class Whole(Protocol):
    """A courier, as its parts see it."""

    grant: Grant
    business_id: int
    hand: Hand
    session: Session | None
    engine: DepartingEngine | None
    settle_after: float
    stopping: bool
    goes_on: asyncio.Event
    trying: bool

    def end(
        self,
        row: Row,
        state: str,
        outcome: Receipt | ChatError | None = None,
        known: Stored | Pending | None = None,
    ) -> None:
        """Write an end."""

    def pause(self, why: str) -> None:
        """Pause the business."""

    def is_for_good(self, error: ChatError, about: About) -> bool:
        """Whether an error is about a message, and will not pass. Pauses the business if not."""

    async def ask_what_is_forbidden(self, about: About, why: str) -> None:
        """Find out whether a 403 is about a chat, an order or a return, or about the business."""

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what ends when the courier stops."""
