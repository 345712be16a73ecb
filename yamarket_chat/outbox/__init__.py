"""Messages that survive the process: put into a database, and sent from there."""

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "the outbox needs SQLAlchemy, which is not installed: pip install 'yamarket-chat[outbox]',"
        " or 'yamarket-chat[outbox,postgres]' for PostgreSQL"
    ) from _error

from .errors import (
    KeyConflictError,
    MessageCancelledError,
    MessageExpiredError,
    OutboxDatabaseError,
)
from .messages import OutboxEntry, OutboxFile, OutboxMessage, OutboxState, OutboxStatus
from .outbox import Outbox

__all__ = [
    "KeyConflictError",
    "MessageCancelledError",
    "MessageExpiredError",
    "Outbox",
    "OutboxDatabaseError",
    "OutboxEntry",
    "OutboxFile",
    "OutboxMessage",
    "OutboxState",
    "OutboxStatus",
]
