"""A local server that behaves like the Market's chat API, for tests and demos.

    async with Sandbox() as market:
        ...  # connect to market.url with market.api_key and market.business_id

The sandbox listens on the loopback interface. It implements the operations, the limits and the
errors that the Market documents, and it can inject faults.
"""

from .faults import (
    EVERY_FAULT,
    Fault,
    FaultPlan,
    RequestInfo,
    numbered_faults,
    random_faults,
)
from .loop import VirtualLoop
from .notifier import (
    NotificationInfo,
    NotificationPlan,
    SentNotification,
    random_notifications,
)
from .recorder import Arrival, Refusals
from .sandbox import Sandbox
from .state import StoredFile, StoredMessage
from .world import World

__all__ = [
    "EVERY_FAULT",
    "Arrival",
    "Fault",
    "FaultPlan",
    "NotificationInfo",
    "NotificationPlan",
    "Refusals",
    "RequestInfo",
    "Sandbox",
    "SentNotification",
    "StoredFile",
    "StoredMessage",
    "VirtualLoop",
    "World",
    "numbered_faults",
    "random_faults",
    "random_notifications",
]
