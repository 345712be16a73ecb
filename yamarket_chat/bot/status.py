"""BotStatus: how late a bot may find a message."""

from __future__ import annotations

from datetime import datetime

import msgspec


class BotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a bot and a business.

    Attributes:
        business_id: The business.
        began_at: When the bot began with this business, by the Market's clock; None if it could not
            begin yet.
        chats: How many chats the business has; None until all were listed once.
        found_within: Seconds within which a message is found of which the Market tells nothing, and
            which somebody has answered before the bot saw it. Messages in chats that wait for the
            shop are found within `every`. None until all chats were listed once.
        trying: How many messages failed, or are being handled.
        paused: Why the bot cannot work for the business until somebody mends it: the key is wrong
            or missing, or the business is closed; None if it can.
        paused_at: Since when; None if it can.

    Example:
        for status in await bot.status():
            print(status.business_id, status.found_within, status.paused)
    """

    business_id: int
    began_at: datetime | None
    chats: int | None
    found_within: float | None
    trying: int
    paused: str | None
    paused_at: datetime | None
