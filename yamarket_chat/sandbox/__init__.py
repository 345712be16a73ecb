"""A stand-in for the Market on loopback: for the demo, for tests, and for users' own tests.

async with Sandbox() as market:
    ...  # talk to market.url with market.api_key and market.business_id
"""

from .books import Arrival, Refusals
from .faults import (
    EVERY_FAULT,
    Fault,
    FaultPlan,
    RequestInfo,
    numbered_faults,
    random_faults,
)
from .sandbox import Sandbox
from .state import StoredFile, StoredMessage

__all__ = [
    "EVERY_FAULT",
    "Arrival",
    "Fault",
    "FaultPlan",
    "Refusals",
    "RequestInfo",
    "Sandbox",
    "StoredFile",
    "StoredMessage",
    "numbered_faults",
    "random_faults",
]
