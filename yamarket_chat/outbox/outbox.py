"""Outbox: puts messages into a database, and tells what became of them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

from sqlalchemy import URL

from ..arguments import check_id, check_seconds, check_type
from ..errors import ChatError, InvalidArgumentError
from ..limits import Limits
from ..receipts import Receipt
from ..retry import Retry
from ..system import randomness
from . import deciding, store
from .database import Database
from .errors import MessageCancelledError, MessageExpiredError
from .messages import OutboxEntry, OutboxState, OutboxStatus
from .pruning import prune
from .putting import Put, Putting
from .rows import check_key, prepare
from .schema import DIALECTS
from .watching import Watch

if TYPE_CHECKING:
    from .delivering import Companion, Delivering
    from .putting import CallersConnection

logger: logging.Logger = logging.getLogger("yamarket_chat")

T = TypeVar("T")
ByLoop = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T]

WEEK = 7 * 24 * 3600.0

PRUNE_EVERY = 3600.0
"""Seconds, on average, between two prunings of a process that delivers."""

PARAMSTYLES = ("format", "pyformat", "named", "qmark", "numeric_dollar")


class SessionOptions(TypedDict, total=False):
    """What a delivery takes of the options of `ChatSession`."""

    base_url: str | None
    limits: Limits
    retry: Retry
    timeout: float
    integration: str
    insecure_http: bool
    proxy: str | None


class Outbox:
    """Messages in a database, which survive the process until they are sent.

    An outbox may be used on several event loops, and after a fork. It needs no closing, but can be
    used in an `async with`.

    Args:
        url: The database: "sqlite:///outbox.db" for the processes of one machine, or
            "postgresql+psycopg://user:password@host/database" for those of several.
        keep: Seconds for which a message is kept after it ended, with its key. Those of the last
            hour in which a business has sent are kept in any case: they tell equal texts apart.
        forget_text: True forgets the text of a message an hour after it ended. The texts of the
            last hour in which a business has sent are kept for a day, or until it sends more.

    Raises:
        InvalidArgumentError: An argument makes no sense.
        ImportError: The driver of the database is missing. The text names the extra to install.

    Example:
        async with Outbox("sqlite:///outbox.db") as outbox:
            await outbox.create()
            number = await outbox.put(OutboxMessage(business_id, chat_id, "Заказ собран"))
    """

    def __init__(self, url: str | URL, *, keep: float = WEEK, forget_text: bool = False) -> None:
        self._keep = check_seconds("keep", keep)
        self._forget_text = check_type("forget_text", forget_text, bool)
        self._database = Database(url)
        self._putting = Putting(self._database)
        # By event loop. A loop that is gone takes its own with it.
        self._watches: ByLoop[Watch] = weakref.WeakKeyDictionary()
        self._deliveries: ByLoop[set[Delivering]] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Outbox({self._database.shown!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A later call opens them again.

        Example:
            await outbox.close()
        """
        await self._database.close()

    async def create(self) -> None:
        """Make the tables, or change them to what this version of the package needs.

        If they are there, this changes nothing, so a program may call it at each start.

        Raises:
            OutboxDatabaseError: The tables are of a version that this one does not know, or the
                database cannot be used.

        Example:
            await outbox.create()
        """
        await self._database.create()

    async def put(self, message: Put, *, connection: CallersConnection | None = None) -> int:
        """Put a message, and return its number once it is committed.

        If the connection breaks, nothing tells whether the commit was carried out. Then this puts
        the message again under its key, so it is there once.

        Args:
            message: The message.
            connection: A connection or session of SQLAlchemy's, sync or async, to the same
                database. The message is put in its transaction: it is committed with it, or not at
                all.

        Raises:
            InvalidArgumentError: A value of the message makes no sense. Nothing was put.
            KeyConflictError: The key belongs to a message with other content. Nothing was put.
            OutboxDatabaseError: The database cannot be used.

        Example:
            message = OutboxMessage(business_id, 17, "Заказ собран", key="packed-55")
            number = await outbox.put(message)
        """
        number = await self._putting.put(message, connection)
        self._wake()
        return number

    async def put_many(
        self,
        messages: Iterable[Put] | AsyncIterable[Put],
        *,
        connection: CallersConnection | None = None,
    ) -> Sequence[int]:
        """Put many messages, and return their numbers, in the order of the messages.

        They are put in transactions of 1,000 messages. An error says how many are in: its attribute
        `numbers` has the numbers of all messages before the one that failed.

        Args:
            messages: The messages; an async iterable as well.
            connection: As for `put`. Then all messages are in its transaction.

        Raises:
            ChatError: As `put`.
            Exception: What the iterable raised.

        Example:
            numbers = await outbox.put_many(
                OutboxMessage(business_id, chat_id, "Мы открыты", bulk=True)
                for chat_id in range(1, 5_000)
            )
        """
        try:
            return await self._putting.put_many(messages, connection)
        finally:
            self._wake()

    def sql(self, message: Put, dialect: str, *, paramstyle: str = "format") -> tuple[str, Any]:
        """Return one SQL statement that puts a message, and its parameters.

        Execute it in a transaction of Django, psycopg, asyncpg or any other library. It returns one
        row with the number. It returns no row if the key belongs to other content.

        Args:
            message: The message. A path or an open file is read at once. SQLite takes no files
                here.
            dialect: "postgresql" or "sqlite".
            paramstyle: How the library marks parameters: "format" (%s; Django and psycopg),
                "numeric_dollar" ($1; asyncpg), "qmark" (?; sqlite3), "pyformat" or "named".

        Returns:
            The statement and a list of parameters; a dict for "pyformat" and "named".

        Raises:
            InvalidArgumentError: A value makes no sense.

        Example:
            message = OutboxMessage(business_id, 17, "Заказ собран")
            statement, parameters = outbox.sql(message, "postgresql", paramstyle="numeric_dollar")
        """
        if not isinstance(dialect, str) or dialect not in DIALECTS:
            raise InvalidArgumentError(f"dialect is one of {', '.join(DIALECTS)}")
        if paramstyle not in PARAMSTYLES:
            raise InvalidArgumentError(f"paramstyle is one of {', '.join(PARAMSTYLES)}")
        return store.sql(prepare(message), dialect, paramstyle)

    @overload
    async def get(self, number: int) -> OutboxEntry | None: ...

    @overload
    async def get(self, *, business_id: int | str, key: str) -> OutboxEntry | None: ...

    async def get(
        self,
        number: int | None = None,
        *,
        business_id: int | str | None = None,
        key: str | None = None,
    ) -> OutboxEntry | None:
        """Get a message by its number, or by its key.

        Args:
            number: The number that `put` returned.
            business_id: The business; with `key`.
            key: The key of the message.

        Returns:
            The message; None if there is none, or it is pruned.

        Raises:
            InvalidArgumentError: Neither a number nor a business and a key were passed.
            OutboxDatabaseError: The database cannot be used.

        Example:
            entry = await outbox.get(business_id=business_id, key="packed-55")
        """
        if number is not None and business_id is None and key is None:
            return await self._database.read(store.get, check_id("number", number))
        if number is None and business_id is not None and key is not None:
            business = check_id("business_id", business_id)
            return await self._database.read(store.get_by_key, business, check_key(key))
        raise InvalidArgumentError("get takes a number, or business_id and key: pass one of them")

    async def result(
        self,
        number: int,
        timeout: float | None = None,  # noqa: ASYNC109 - it stands in the promise
    ) -> Receipt:
        """Wait until a message has ended, and return the proof that it arrived.

        Any process may wait for any message.

        Args:
            number: The number that `put` returned.
            timeout: Seconds to wait at most. None waits as long as needed.

        Raises:
            InvalidArgumentError: There is no such message, or it is pruned.
            ApiError: The Market refused the message; so with the other errors of `send_message`.
            DeliveryUnknownError: Nothing tells whether the message arrived.
            MessageCancelledError: It was cancelled.
            MessageExpiredError: It was not sent before its `not_after`.
            TimeoutError: It has not ended in time. It goes on.
            OutboxDatabaseError: The database cannot be used. While this waits, it waits for a
                database that is away to return as well.

        Example:
            number = await outbox.put(OutboxMessage(business_id, 17, "Заказ собран"))
            try:
                receipt = await outbox.result(number, timeout=0.1)
            except TimeoutError:
                print("it waits")
        """
        number = check_id("number", number)
        if timeout is not None:
            timeout = check_seconds("timeout", timeout, at_least_0=True)
        entry = await self.get(number)
        if entry is not None and entry.ended_at is None:
            watch = self._watches.setdefault(asyncio.get_running_loop(), Watch(self._database))
            await watch.end_of(number, timeout)
            entry = await self.get(number)
        if entry is None:
            raise InvalidArgumentError(
                f"there is no message {number}: it was never put, its transaction is not committed"
                " yet, or it is pruned"
            )
        return _result(entry)

    async def cancel(self, number: int) -> bool:
        """Cancel a message that waits.

        Args:
            number: The number that `put` returned.

        Returns:
            True if the message has not left and never will. False if it has left, or may have.

        Raises:
            InvalidArgumentError: There is no such message, or it is pruned.
            OutboxDatabaseError: The database cannot be used.

        Example:
            number = await outbox.put(OutboxMessage(business_id, 17, "Заказ собран"))
            assert await outbox.cancel(number)
        """
        return await self._database.write(deciding.cancel, check_id("number", number))

    def entries(
        self,
        *,
        business_id: int | str | None = None,
        state: OutboxState | None = None,
        chat_id: int | str | None = None,
        key_prefix: str | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[OutboxEntry]:
        """Iterate over messages, by number.

        They are read in pieces, each in a short transaction. So each entry is as the message was
        when its piece was read, and a message that is committed meanwhile may be left out.

        Args:
            business_id: Only messages of this business.
            state: Only messages in this state.
            chat_id: Only messages to this chat.
            key_prefix: Only messages whose key begins so.
            after: Only messages with a higher number.
            limit: How many messages at most. None returns all.

        Returns:
            An async iterator.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            OutboxDatabaseError: The database cannot be used.

        Example:
            async for entry in outbox.entries(state="unknown"):
                print(entry.number, entry.chat_id, entry.text)
        """
        wish = deciding.check_wish(business_id, state, chat_id, key_prefix)
        after = check_id("after", after) if after else 0
        most = None if limit is None else check_id("limit", limit)
        return deciding.entries(self._database, wish, after, most)

    async def settle(self, number: int, *, delivered: bool) -> bool:
        """Store what somebody found out about a message whose outcome is unknown.

        Look at the chat first. If the message stands there, pass True: the message is delivered
        then, and its receipt says `confirmed_by="person"`. Otherwise pass False: the message is
        refused then, and is not sent again. To send it again, call `retry` instead.

        Args:
            number: The number that `put` returned.
            delivered: Whether the message arrived.

        Returns:
            True if the outcome was unknown, and is decided now. False if the message is in another
            state; then nothing changes.

        Raises:
            InvalidArgumentError: There is no such message, or it is pruned.
            OutboxDatabaseError: The database cannot be used.

        Example:
            async for entry in outbox.entries(state="unknown"):
                await outbox.settle(entry.number, delivered=True)
        """
        check_type("delivered", delivered, bool)
        return await self._database.write(deciding.settle, check_id("number", number), delivered)

    async def retry(self, number: int) -> bool:
        """Let a message wait again that is unknown, was refused, or has expired.

        It is sent by its number within its chat: before all messages that were put later and still
        wait. Its `not_after` is removed. If its outcome was unknown, it waits until the request
        before can no longer be carried out, which is at most a few minutes after that request.
        Look at the chat first: if the message did arrive, the buyer gets it twice.

        Args:
            number: The number that `put` returned.

        Returns:
            True if the message waits again. False if it is in another state; then nothing changes.

        Raises:
            InvalidArgumentError: There is no such message, it is pruned, or its text is forgotten
                (`forget_text`).
            OutboxDatabaseError: The database cannot be used.

        Example:
            async for entry in outbox.entries(state="refused"):
                await outbox.retry(entry.number)
        """
        done = await self._database.write(deciding.retry, check_id("number", number))
        if done:
            self._wake()
        return done

    async def status(self, business_id: int | str | None = None) -> OutboxStatus:
        """Count what waits, and say which businesses are paused. This reads all that waits.

        Args:
            business_id: Counts this business alone.

        Raises:
            InvalidArgumentError: The id makes no sense.
            OutboxDatabaseError: The database cannot be used.

        Example:
            status = await outbox.status()
            print(status.waiting, status.oldest)
        """
        business = None if business_id is None else check_id("business_id", business_id)
        return await self._database.read(store.status, business)

    @asynccontextmanager
    async def delivering(
        self,
        keys: Mapping[int, str] | Callable[[int], Awaitable[str | None]],
        *,
        lease: float = 30.0,
        reserve: int = 0,
        on_failure: Callable[[OutboxEntry], Awaitable[None]] | None = None,
        **options: Unpack[SessionOptions],
    ) -> AsyncIterator[None]:
        """Deliver messages beside the program's own work, until the block ends.

        Any number of processes may deliver. They share the businesses among them, and one of them
        at a time sends for a business.

        If the database is away, this logs a warning and waits for the database before the block
        begins, so that a process may be started before its database.

        Args:
            keys: The Api-Key of each business: a mapping, or an async function of the business id
                that returns the key. With a function, all businesses that have messages are served.
            lease: Seconds after which another process takes over if this one has stopped. All
                processes should have the same.
            reserve: How many requests of each period are left to messages that are not bulk.
            on_failure: An async function that is told of each message that ends as refused, unknown
                or expired. It is called at least once for each, and again if it raises.
            **options: `base_url`, `limits`, `retry`, `timeout`, `integration`, `insecure_http` and
                `proxy`, as for `ChatSession`.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            OutboxDatabaseError: The database cannot be used, and the cause does not pass by itself:
                the tables are missing or too new, or the password is wrong.

        Example:
            async with outbox.delivering({business_id: api_key}):
                await outbox.put(OutboxMessage(business_id, 17, "Заказ собран"))
        """
        async with self._delivering(keys, lease, reserve, on_failure, options):
            yield

    @asynccontextmanager
    async def _delivering(
        self,
        keys: Any,
        lease: float,
        reserve: int,
        on_failure: Callable[[OutboxEntry], Awaitable[None]] | None,
        options: SessionOptions,
        companion: Companion | None = None,
    ) -> AsyncIterator[None]:
        # A program that only puts needs none of it.
        from .delivering import (
            Delivering,
            check_keys,
            check_lease,
            check_on_failure,
            check_options,
        )

        check_options(options, reserve)
        delivery = Delivering(
            self._database,
            check_keys(keys),
            lease=check_lease(lease),
            reserve=reserve,
            on_failure=check_on_failure(on_failure),
            options=options,
            companion=companion,
        )
        deliveries = self._deliveries.setdefault(asyncio.get_running_loop(), set())
        deliveries.add(delivery)
        pruning = asyncio.create_task(self._prune_hourly())
        try:
            await delivery.begin()
            yield
        finally:
            pruning.cancel()
            deliveries.discard(delivery)
            await delivery.end()

    async def deliver(
        self,
        keys: Mapping[int, str] | Callable[[int], Awaitable[str | None]],
        *,
        lease: float = 30.0,
        reserve: int = 0,
        on_failure: Callable[[OutboxEntry], Awaitable[None]] | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        """Deliver messages until the task is cancelled: for a process that does nothing else.

        It waits for a database that is away, also at its beginning.

        Args:
            keys: As for `delivering`.
            lease: As for `delivering`.
            reserve: As for `delivering`.
            on_failure: As for `delivering`.
            **options: As for `delivering`.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            OutboxDatabaseError: As for `delivering`.

        Example:
            async def main() -> None:
                await outbox.deliver({business_id: api_key})
        """
        async with self.delivering(
            keys, lease=lease, reserve=reserve, on_failure=on_failure, **options
        ):
            await asyncio.get_running_loop().create_future()

    async def prune(self) -> int:
        """Remove the messages that ended more than `keep` seconds ago, in small transactions.

        It also removes the contents of delivered files, and forgets texts if `forget_text` is set.

        Returns:
            How many messages were removed.

        Raises:
            OutboxDatabaseError: The database cannot be used.

        Example:
            removed = await outbox.prune()
        """
        return await prune(self._database, self._keep, forget_text=self._forget_text)

    async def _prune_hourly(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_EVERY * randomness("pruning").uniform(0.5, 1.5))
            try:
                await self.prune()
            except ChatError as error:
                logger.warning("the outbox could not be pruned: %s", error)
            except Exception:
                logger.exception("the outbox could not be pruned")

    def _wake(self) -> None:
        for delivery in self._deliveries.get(asyncio.get_running_loop(), ()):
            delivery.wake()


def _result(entry: OutboxEntry) -> Receipt:
    if entry.receipt is not None:
        return entry.receipt
    if entry.error is not None:
        raise entry.error
    if entry.state == "cancelled":
        raise MessageCancelledError(f"message {entry.number} was cancelled")
    if entry.state == "expired":
        raise MessageExpiredError(
            f"message {entry.number} was not sent before its not_after, {entry.not_after}"
        )
    raise ChatError(
        f"message {entry.number} is {entry.state}, and nothing else is known", sent=None
    )
