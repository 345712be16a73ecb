"""BotStatus: how late a bot may find a message."""

from __future__ import annotations

from datetime import datetime

import msgspec


class BotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a bot and a business.

    Attributes:
        business_id: The business.
        began_at: When the bot began with this business, by the Market's clock.
        chats: How many chats the business has; None until all were listed once.
        found_within: Seconds within which a message is found of which the Market tells nothing, and
            which somebody has answered before the bot saw it. Messages in chats that wait for the
            shop are found within `every`. None until all chats were listed once.
        trying: How many messages failed, or are being handled.

    Example:
        for status in await bot.status():
            print(status.business_id, status.found_within)
    """

    business_id: int
    began_at: datetime
    chats: int | None
    found_within: float | None
    trying: int
