"""How long a mailing takes at least."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from yamarket_chat.limits import Rate

from . import console
from .records import Messages


class Estimate(msgspec.Struct):
    """How many messages are to be sent, to how many chats, and how long that takes at least."""

    messages: int
    chats: int
    least_seconds: float


def estimate(messages: Messages, ended: Collection[int], rate: Rate) -> Estimate:
    """Estimate how long messages take without some of them, which are named by their index."""
    left = len(messages) - len(ended)
    chats = messages.chats
    if ended:
        to = {record.chat_id for record in messages if record.number - 1 not in ended}
        chats = len(to)
    return Estimate(left, chats, max(left - 1, 0) // rate.requests * rate.per)


def describe(estimated: Estimate, rate: Rate) -> str:
    """Describe an estimate for people."""
    if not estimated.messages:
        return "no messages to send"
    return (
        f"{console.number(estimated.messages, 'message')} to"
        f" {console.number(estimated.chats, 'chat')};"
        f" the limit is {rate.requests:,} in {rate.per:g} s,"
        + (
            f" so this takes at least {console.duration(estimated.least_seconds)}"
            if estimated.least_seconds
            else " so all of them can be sent without a pause"
        )
    )
