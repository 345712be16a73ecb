"""The statements about what was handled. Each function works within its connection's transaction.

Each change of a chat's cursor counts its version up, and is made only if the version is the one
that was read. So of two handlers of one message, only the first one's replies are put.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from ..outbox import OutboxDatabaseError, OutboxEntry, claims, store
from ..outbox import telling as outbox_telling
from ..outbox.rows import Row, moment, now
from ..outbox.schema import bot_chats, bot_handled, bot_hints, bot_tellings, bots
from .status import BotStatus

HOUR = 3_600_000_000
"""Microseconds before the latest handled message in which others may appear late."""

HINTS = 1_000
"""The most hints that are read at a time."""

HINT_KEPT = 24 * HOUR
"""Microseconds after which a hint is dropped that nobody has followed."""

WAITED = -1
"""`begins_at` of a chat that waited for the shop as the bot began: that is behind the shop's last
message then."""

_chat, _bot, _done, _hint = bot_chats.c, bots.c, bot_handled.c, bot_hints.c


class Key(NamedTuple):
    """A chat, and the bot that works in it."""

    business_id: int
    bot: str
    chat_id: int


class Cursor(msgspec.Struct, frozen=True):
    """How far a chat is handled. Times are microseconds since 1970, by the Market's clock.

    Attributes:
        version: How often it was changed; 0 if it is not stored yet.
        begins_at: Messages before it are not the bot's; `WAITED` until they are looked at.
        cursor_at: When the latest handled message was created.
        anchor: The message from which the history is to be read; None reads all of it.
        message_id: The message that is being tried, or failed.
        tries: How often its handler was called.
        running: Whether it is running; if it is not, its process died.
        handled: The handled messages of the last hour before `cursor_at`.
    """

    version: int = 0
    begins_at: int | None = None
    cursor_at: int | None = None
    anchor: int | None = None
    message_id: int | None = None
    tries: int = 0
    running: bool = False
    handled: frozenset[int] = frozenset()

    def tried(self, message_id: int) -> int:
        """Return how often the handler of a message was called."""
        return self.tries if self.message_id == message_id else 0


class Hint(NamedTuple):
    """The Market told of something in a chat."""

    business_id: int
    chat_id: int
    message_id: int  # or 0
    hinted_at: int


class StatementError(Exception):
    """What a handler wants to put was refused: a reply or a statement. Nothing was committed."""


def is_refused(error: OutboxDatabaseError) -> bool:
    """Whether the data was refused, as by a deferred constraint: trying again would not help."""
    if error.retry_after is not None or error.sent is not False:
        return False
    raised = getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) or ""
    # P0: a deferred trigger in PostgreSQL.
    return isinstance(error.__cause__, (IntegrityError, DataError)) or raised.startswith("P0")


def _is(key: Key) -> Any:
    return and_(
        _chat.business_id == key.business_id, _chat.bot == key.bot, _chat.chat_id == key.chat_id
    )


def _insert(connection: Connection, table: Any) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


# A bot and a business


def begin(connection: Connection, business_id: int, bot: str, at: int, waiting: bool) -> Any:
    """Note when a bot began with a business, unless that is known. Return what is known."""
    values = {"business_id": business_id, "bot": bot, "began_at": at, "waiting": waiting}
    connection.execute(
        _insert(connection, bots)
        .values(values)
        .on_conflict_do_update(
            index_elements=[_bot.business_id, _bot.bot],
            set_={"began_at": at, "waiting": waiting},
            where=_bot.began_at.is_(None),
        )
    )
    return connection.execute(select(bots).where(*_of(business_id, bot))).one()


def pause(connection: Connection, business_id: int, bot: str, why: str | None) -> None:
    """Note why a bot cannot work for a business; None if it can again."""
    if why is None:
        ended = update(bots).where(*_of(business_id, bot))
        connection.execute(ended.values(paused=None, paused_at=None))
        return
    added = _insert(connection, bots).values(
        business_id=business_id, bot=bot, paused=why, paused_at=now()
    )
    since = func.coalesce(_bot.paused_at, added.excluded.paused_at)
    connection.execute(
        added.on_conflict_do_update(
            index_elements=[_bot.business_id, _bot.bot],
            set_={"paused": why, "paused_at": since},
        )
    )


def swept(connection: Connection, business_id: int, bot: str, chats: int, seconds: float) -> None:
    """Note how long it took to list all chats."""
    connection.execute(
        update(bots).where(*_of(business_id, bot)).values(chats=chats, sweep=seconds)
    )


def suspects(connection: Connection, business_id: int, bot: str) -> list[int]:
    """Return the chats whose handler was running as its process died."""
    found = select(_chat.chat_id).where(
        _chat.running.is_(True), _chat.business_id == business_id, _chat.bot == bot
    )
    return list(connection.scalars(found))


def unfinished(connection: Connection, business_id: int, bot: str) -> list[int]:
    """Return the chats with a message that was tried and is not handled."""
    found = select(_chat.chat_id).where(
        _chat.business_id == business_id, _chat.bot == bot, _chat.message_id.is_not(None)
    )
    return list(connection.scalars(found))


def status(connection: Connection, bot: str) -> list[BotStatus]:
    """Return what is known of a bot, for each of its businesses."""
    trying = (
        select(_chat.business_id, func.count().label("messages"))
        .where(_chat.bot == bot, _chat.message_id.is_not(None))
        .group_by(_chat.business_id)
    )
    counts = {row.business_id: row.messages for row in connection.execute(trying)}
    rows = connection.execute(select(bots).where(_bot.bot == bot).order_by(_bot.business_id))
    return [
        BotStatus(
            business_id=row.business_id,
            began_at=moment(row.began_at),
            chats=row.chats,
            found_within=row.sweep,
            trying=counts.get(row.business_id, 0),
            paused=row.paused,
            paused_at=moment(row.paused_at),
        )
        for row in rows
    ]


def _of(business_id: int, bot: str) -> tuple[Any, Any]:
    return _bot.business_id == business_id, _bot.bot == bot


# A chat


def read(connection: Connection, key: Key) -> Cursor:
    """Return how far a chat is handled."""
    row = connection.execute(select(bot_chats).where(_is(key))).first()
    if row is None:
        return Cursor()
    done = select(_done.message_id).where(
        _done.business_id == key.business_id, _done.bot == key.bot, _done.chat_id == key.chat_id
    )
    return Cursor(
        row.version,
        row.begins_at,
        row.cursor_at,
        row.anchor,
        row.message_id,
        row.tries,
        row.running,
        frozenset(connection.scalars(done)),
    )


def looked(
    connection: Connection, business_id: int, bot: str, chats: Collection[int]
) -> dict[int, int | None]:
    """Return which of these chats are stored, and their time of change at the last look."""
    found = connection.execute(
        select(_chat.chat_id, _chat.looked_at).where(
            _chat.business_id == business_id, _chat.bot == bot, _chat.chat_id.in_(chats)
        )
    )
    return {row.chat_id: row.looked_at for row in found}


def waited(connection: Connection, business_id: int, bot: str, chats: Collection[int]) -> None:
    """Note that chats waited for the shop as the bot began, if nothing is known of them yet."""
    of = {"business_id": business_id, "bot": bot, "version": 1, "begins_at": WAITED}
    values = [{**of, "chat_id": chat_id} for chat_id in chats]
    connection.execute(_insert(connection, bot_chats).values(values).on_conflict_do_nothing())


def change(connection: Connection, key: Key, was: Cursor, values: Mapping[str, Any]) -> bool:
    """Change a cursor if it is still as it was. Returns whether it is changed."""
    if was.version == 0:
        added = _insert(connection, bot_chats).values(**key._asdict(), version=1, **values)
        return bool(connection.execute(added.on_conflict_do_nothing()).rowcount)
    where = _is(key), _chat.version == was.version
    changed = update(bot_chats).where(*where).values(version=was.version + 1, **values)
    return bool(connection.execute(changed).rowcount)


def handled(
    connection: Connection,
    key: Key,
    was: Cursor,
    values: Mapping[str, Any],
    done: tuple[int, int],
    replies: Sequence[Row],
    statements: Sequence[tuple[Any, Any]],
) -> bool:
    """Note that a message is handled, and put the replies, if the cursor is still as it was.

    Args:
        connection: The connection.
        key: The chat.
        was: Its cursor.
        values: What changes of it.
        done: The message, and when it was created.
        replies: The replies.
        statements: The user's own statements and their parameters.

    Raises:
        StatementError: One of these failed. The transaction must not be committed.
    """
    if not change(connection, key, was, values):
        return False
    message_id, created_at = done
    row = {**key._asdict(), "message_id": message_id, "created_at": created_at}
    connection.execute(insert(bot_handled).values(row))
    connection.execute(
        delete(bot_handled).where(
            _done.business_id == key.business_id,
            _done.bot == key.bot,
            _done.chat_id == key.chat_id,
            _done.created_at < values["cursor_at"] - HOUR,
        )
    )
    put(connection, replies, statements)
    return True


def put_now(connection: Connection, key: Key, version: int, reply: Row) -> bool:
    """Put a reply at once, if the cursor is still that of this run. Returns whether it is put."""
    row = connection.execute(
        select(_chat.version, _chat.running).where(_is(key)).with_for_update()
    ).first()
    if row is None or row.version != version or not row.running:
        return False
    store.put_each(connection, [reply])
    return True


def tellings(connection: Connection, number: int) -> int:
    """Return how often `Bot.error` was told of a reply by processes that died meanwhile."""
    found = select(bot_tellings.c.tries).where(bot_tellings.c.number == number)
    return connection.scalar(found) or 0


def telling(connection: Connection, number: int, tries: int) -> None:
    """Note how often `Bot.error` was told of a reply, unless that is done."""
    if not tries:
        connection.execute(delete(bot_tellings).where(bot_tellings.c.number == number))
        return
    added = _insert(connection, bot_tellings).values(number=number, tries=tries)
    connection.execute(
        added.on_conflict_do_update(
            index_elements=[bot_tellings.c.number], set_={"tries": added.excluded.tries}
        )
    )


def told(
    connection: Connection,
    entry: OutboxEntry,
    replies: Sequence[Row],
    statements: Sequence[tuple[Any, Any]],
) -> None:
    """Note that `Bot.error` was told of a reply, and put what it answered: once.

    Raises StatementError.
    """
    if outbox_telling.told(connection, entry):
        put(connection, replies, statements)
    telling(connection, entry.number, 0)


def put(
    connection: Connection, replies: Sequence[Row], statements: Sequence[tuple[Any, Any]]
) -> None:
    """Put replies, and execute the user's own statements. A reply that is there already stays."""
    if replies:
        store.put_each(connection, replies)
    for statement, parameters in statements:
        try:
            connection.execute(statement, parameters)
        except Exception as error:
            if getattr(error, "connection_invalidated", False):
                raise
            raise StatementError from error


# Hints


def hint(
    connection: Connection, business_id: int, chat_id: int, message_id: int, at: int, serve: bool
) -> None:
    """Note that the Market told of a chat.

    With `serve`, the workers learn of the business: nothing may have been sent for it yet.
    """
    added = _insert(connection, bot_hints).values(
        business_id=business_id, chat_id=chat_id, message_id=message_id, hinted_at=at
    )
    highest = func.greatest if connection.dialect.name == "postgresql" else func.max
    connection.execute(
        added.on_conflict_do_update(
            index_elements=[_hint.business_id, _hint.chat_id, _hint.message_id],
            set_={"hinted_at": highest(_hint.hinted_at + 1, added.excluded.hinted_at)},
        )
    )
    if serve:
        claims.add(connection, [business_id])


def hints(connection: Connection, after: tuple[int, int, int]) -> list[Hint]:
    """Return hints, by business, chat and message."""
    order = _hint.business_id, _hint.chat_id, _hint.message_id
    found = select(bot_hints).where(tuple_(*order) > after).order_by(*order).limit(HINTS)
    return [Hint(*row) for row in connection.execute(found)]


def followed(connection: Connection, hints: Sequence[Hint]) -> None:
    """Remove hints that were followed, unless the Market told of the same once more."""
    for hint in hints:
        connection.execute(
            delete(bot_hints).where(
                _hint.business_id == hint.business_id,
                _hint.chat_id == hint.chat_id,
                _hint.message_id == hint.message_id,
                _hint.hinted_at == hint.hinted_at,
            )
        )


def drop_hints(connection: Connection, before: int) -> None:
    """Remove hints that nobody follows: of businesses without a bot."""
    connection.execute(delete(bot_hints).where(_hint.hinted_at < before))
