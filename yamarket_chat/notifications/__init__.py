"""What the Market POSTs to a seller's program: parsed, checked and answered as documented."""

from .asgi import AsgiReceiver
from .events import (
    ChatArbitrageFinished,
    ChatArbitrageStarted,
    ChatCreated,
    ChatEvent,
    ChatMessageSent,
    Event,
    OtherNotification,
    Ping,
    WrongNotificationError,
    parse,
)
from .gate import MARKET_NETWORKS
from .handling import Reply
from .receiver import Receiver

__all__ = [
    "MARKET_NETWORKS",
    "AsgiReceiver",
    "ChatArbitrageFinished",
    "ChatArbitrageStarted",
    "ChatCreated",
    "ChatEvent",
    "ChatMessageSent",
    "Event",
    "OtherNotification",
    "Ping",
    "Receiver",
    "Reply",
    "WrongNotificationError",
    "parse",
]
