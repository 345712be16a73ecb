"""The tables, for SQLite and PostgreSQL alike, and the version of the schema.

All DDL is here. `statements` returns it as text, and `create` executes that text.

Times are microseconds since 1970. A row has ended when `ended_at` is set. The partial indexes ask
for that column and not for the state: PostgreSQL need not touch the indexes (HOT) if none mentions
a changed column. So the mark of a row, which changes its state, is cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    inspect,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from .errors import OutboxDatabaseError

VERSION = 1
"""The version of the tables below."""

OLDEST_READER = 1
"""The oldest version whose program may use these tables. An added column does not raise it."""

MIGRATIONS: dict[int, dict[str, tuple[str, ...]]] = {}
"""By the version that they lead to, and the dialect: the statements that change the tables."""

DIALECTS: dict[str, Callable[..., Dialect]] = {
    "sqlite": sqlite.dialect,
    "postgresql": postgresql.dialect,
}

_LOCK = 0x79616D61726B6574
"""Held in PostgreSQL while the tables are made: two programs may start at the same moment."""

metadata: MetaData = MetaData()
_prefix = "yamarket_outbox_"


def _table(name: str, *columns: Any, **options: Any) -> Table:
    return Table(_prefix + name, metadata, *columns, **options)


def _often_changed(threshold: int) -> dict[str, Any]:
    """Vacuum after so many changed rows, however large the table is: dead rows slow every look."""
    storage = {
        "fillfactor": 70,  # space for the next version of a row on the same page
        "autovacuum_vacuum_scale_factor": 0,
        "autovacuum_vacuum_threshold": threshold,
        "autovacuum_analyze_scale_factor": 0,
        "autovacuum_analyze_threshold": threshold,
    }
    # SQLAlchemy has an argument for this since 2.1.
    return {"info": {"storage": ", ".join(f"{name} = {to}" for name, to in storage.items())}}


schema: Table = _table(
    "schema",
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("oldest_reader", Integer, nullable=False),
)

messages: Table = _table(
    "messages",
    # SQLite numbers only an INTEGER. AUTOINCREMENT: the number of a pruned row never comes back.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("business_id", BigInteger, nullable=False),
    Column("chat_id", BigInteger),  # null until the chat of the order or return is open
    Column("context", Text),  # order, return; null if the message is to a chat
    Column("context_id", BigInteger),
    Column("key", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of whom it is to and what it says
    Column("text", Text),  # null for a file, and once it is forgotten
    Column("file_name", Text),
    Column("file_size", Integer),
    Column("bulk", Boolean, nullable=False, server_default=false()),
    Column("not_before", BigInteger),
    Column("not_after", BigInteger),
    Column("due_at", BigInteger),  # not_before, until the courier has seen that it is due
    Column("created_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="waiting"),
    # The mark: which request left last, under which epoch, and how to find out what became of it.
    Column("request", Integer, nullable=False, server_default=text("0")),
    Column("epoch", BigInteger),
    Column("pending", Text),  # Pending, as JSON
    Column("timeout", Double),
    Column("settle_after", Double),
    # Its time, by no clock: the worker, a beat of it, and how many seconds after the beginning of
    # that beat the request cannot come to the Market any more.
    Column("worker", Text),
    Column("beat", BigInteger),
    Column("arrives_within", Double),
    # The end.
    Column("ended_at", BigInteger),
    Column("outcome", Text),  # a receipt or an error, as JSON
    Column("untold", Boolean, nullable=False, server_default=false()),  # on_failure is to be told
    sqlite_autoincrement=True,
    **_often_changed(5_000),
)


def _partial(name: str, condition: Any, *columns: Any, unique: bool = False) -> Index:
    return Index(
        f"{_prefix}{name}",
        *columns,
        unique=unique,
        postgresql_where=condition,
        sqlite_where=condition,
    )


_row = messages.c
_open = _row.ended_at.is_(None)
Index(f"{_prefix}key", _row.business_id, _row.key, unique=True)
# What is next: singles before bulk, by number.
_partial("due", _open & _row.due_at.is_(None), _row.business_id, _row.bulk, _row.number)
_partial("not_due", _open & _row.due_at.is_not(None), _row.business_id, _row.due_at)
_partial("expiring", _open & _row.not_after.is_not(None), _row.business_id, _row.not_after)
# What else is to go to a chat, or to an order whose chat is not open yet.
_partial("chat", _open, _row.business_id, _row.chat_id, _row.number)
_partial("context", _open & _row.context.is_not(None), _row.business_id, _row.context_id)
# What was delivered lately, and what is to be pruned.
_partial("ended", _row.ended_at.is_not(None), _row.business_id, _row.ended_at)
# SQLite uses this index for the same words alone: `untold` and `untold = 1` are others to it.
UNTOLD: ColumnElement[bool] = _row.untold.is_(true())
_partial("untold", UNTOLD, _row.business_id, _row.number)

files: Table = _table(
    "files",
    Column(
        "number",
        BigInteger().with_variant(Integer, "sqlite"),
        ForeignKey(messages.c.number, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("content", LargeBinary, nullable=False),
)

chats: Table = _table(
    "chats",  # the chats of orders and returns that were opened
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("context", Text, primary_key=True),
    Column("context_id", BigInteger, primary_key=True, autoincrement=False),
    Column("chat_id", BigInteger, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
)

workers: Table = _table(
    "workers",
    Column("token", Text, primary_key=True),
    Column("beat", BigInteger, nullable=False, server_default=text("0")),
    Column("lease", Double, nullable=False),  # seconds
    Column("bot", Text),  # the name of its bot, if it has one
    Column("lock", Text),  # SQLite: the file that the living worker holds locked
    Column("about", Text),  # for people: host, process, version
    Column("started_at", BigInteger, nullable=False),
    **_often_changed(100),
)

leases: Table = _table(
    "leases",
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("worker", Text),  # its token; null if nobody holds the lease
    Column("wanted", Text),  # the token of a worker that asks for the lease, because it has fewer
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("paused", Text),  # why the business is paused
    Column("paused_at", BigInteger),
    Column("others_at", BigInteger),  # when it was last said that other programs send as well
    **_often_changed(1_000),
)

counts: Table = _table(
    "counts",  # how many requests left, for the limits of the last hour
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("operation", Text, primary_key=True),
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    Column("requests", Integer, nullable=False),
    **_often_changed(1_000),
)

bots: Table = _table(
    "bots",
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("bot", Text, primary_key=True),  # its name
    Column("began_at", BigInteger),  # by the Market's clock; null if it could not begin yet
    Column("waiting", Boolean),  # it began with the chats that waited
    Column("chats", BigInteger),  # how many there are, by the last sweep
    Column("sweep", Double),  # how many seconds that took
    Column("paused", Text),  # why it cannot work
    Column("paused_at", BigInteger),  # since when
)

bot_chats: Table = _table(
    "bot_chats",
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("bot", Text, primary_key=True),
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),  # each change counts it up, and needs the last
    Column(
        "begins_at", BigInteger, nullable=False
    ),  # earlier ones are not the bot's; -1: see `WAITED`
    Column("cursor_at", BigInteger),  # when the latest handled message was created
    Column("anchor", BigInteger),  # the message from which the history is read
    Column("looked_at", BigInteger),  # the chat's updatedAt at the last look that found all
    Column("message_id", BigInteger),  # which message is being tried,
    Column("tries", Integer, nullable=False, server_default=text("0")),  # how often it was,
    Column("running", Boolean, nullable=False, server_default=false()),  # and whether it is now
    **_often_changed(1_000),
)
_partial("bot_running", bot_chats.c.running.is_(true()), bot_chats.c.business_id)

bot_handled: Table = _table(
    "bot_handled",  # the messages of the last hour before the cursor
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("bot", Text, primary_key=True),
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False),
    Column("message_id", BigInteger, primary_key=True, autoincrement=False),
    Column("created_at", BigInteger, nullable=False),
    **_often_changed(1_000),
)

bot_tellings: Table = _table(
    "bot_tellings",  # replies that failed, while `Bot.error` is told of them
    Column(
        "number",
        BigInteger().with_variant(Integer, "sqlite"),
        ForeignKey(messages.c.number, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("tries", Integer, nullable=False),  # how often that was begun, and its process died
)

bot_hints: Table = _table(
    "bot_hints",  # messages of which a notification told, until a look has found them
    Column("business_id", BigInteger, primary_key=True, autoincrement=False),
    Column("chat_id", BigInteger, primary_key=True, autoincrement=False),
    Column("message_id", BigInteger, primary_key=True, autoincrement=False),  # 0: only of the chat
    Column("hinted_at", BigInteger, nullable=False),
    **_often_changed(100),
)


def statements(dialect: str) -> list[str]:
    """Return the statements that make the tables of the newest version."""
    kind = DIALECTS[dialect]()
    made: list[str] = []
    for table in metadata.sorted_tables:
        storage = table.info.get("storage") if dialect == "postgresql" else None
        made.append(
            str(CreateTable(table).compile(dialect=kind)).strip()
            + (f" WITH ({storage})" if storage else "")
        )
        made += (
            str(CreateIndex(index).compile(dialect=kind))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        )
    made.append(
        f"INSERT INTO {schema.name} (version, oldest_reader)"  # noqa: S608 - numbers of ours
        f" VALUES ({VERSION}, {OLDEST_READER})"
    )
    return made


def create(connection: Connection) -> None:
    """Make the tables, or bring them to the newest version, in one transaction."""
    dialect = connection.dialect.name
    if dialect == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise OutboxDatabaseError(
                f"the database's encoding is {encoding}, which cannot store every text: make a"
                " database with ENCODING 'UTF8'"
            )
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    if not inspect(connection).has_table(schema.name):
        for statement in statements(dialect):
            connection.exec_driver_sql(statement)
        return
    version = check(connection)
    for step in range(version + 1, VERSION + 1):
        for statement in MIGRATIONS[step][dialect]:
            connection.exec_driver_sql(statement)
    if version < VERSION:
        connection.execute(update(schema).values(version=VERSION, oldest_reader=OLDEST_READER))


def check(connection: Connection) -> int:
    """Return the version of the tables.

    Raises OutboxDatabaseError if this program is too old for them.
    """
    row = connection.execute(select(schema.c.version, schema.c.oldest_reader)).first()
    if row is None:
        raise OutboxDatabaseError(
            f"the table {schema.name} is empty: the tables were not made by `create`, or not to the"
            " end"
        )
    if row.oldest_reader > VERSION:
        raise OutboxDatabaseError(
            f"the tables are of version {row.version}, and need a program that knows version"
            f" {row.oldest_reader}. This one knows version {VERSION}: update yamarket-chat"
        )
    return int(row.version)


def check_usable(connection: Connection) -> None:
    """Check that this program can use the tables: they are neither too new nor too old."""
    version = check(connection)
    if version < VERSION:
        raise OutboxDatabaseError(
            f"the tables are of version {version}, and this program needs version {VERSION}: call"
            " `await outbox.create()` once, it changes the tables"
        )
