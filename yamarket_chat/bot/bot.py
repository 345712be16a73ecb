"""The public class `Bot`."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, Unpack

from ..arguments import check_async, check_seconds, check_type
from ..errors import ChatError, InvalidArgumentError
from ..notifications import MARKET_NETWORKS, ChatEvent, Event, Receiver
from ..outbox import MessageExpiredError, Outbox, OutboxEntry, inside
from ..outbox.calling import call
from ..outbox.outbox import SessionOptions
from ..outbox.points import reach
from ..outbox.rows import now
from ..outbox.telling import NotNowError
from ..version import __version__
from . import cursor
from .failures import Failures
from .runner import Runner
from .settings import ErrorHandler, Handler, Settings
from .status import BotStatus

logger: logging.Logger = logging.getLogger("yamarket_chat")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Bot:
    """Handles each message of a buyer once, and answers through the outbox.

    It finds messages by listing the chats again and again. The Market's notifications only make it
    quicker: see `receiver`. Any number of processes may run the bot: one of them at a time works
    for a business.

    A handler may run again: after an error, or if its process dies. Only the replies of one run
    are sent.

    Attributes:
        receiver: Answers the Market's notifications: `receiver.asgi`, `receiver.aiohttp`.

    Args:
        outbox: The outbox. Its database also keeps how far each chat is handled.
        keys: The Api-Key of each business: a mapping, or an async function of the business id.
        name: The name of the bot: 1 to 64 of A-Z, a-z, 0-9, ".", "_" and "-". A bot with another
            name begins anew.
        every: Seconds between two looks at the chats that wait for the shop, 1 or more.
        start: What the bot begins with when it runs for the first time: "now" handles what comes
            from then on; "waiting" also the chats that wait for the shop.
        concurrency: How many chats are worked in at the same time. Messages of one chat are handled
            one after the other.
        handler_timeout: Seconds that a handler may take. It is cancelled then, and counts as
            failed. If the process stops, or gives the business to another one, a handler gets 30 s,
            and runs again later.
        max_age: Seconds. A message that is older, by the Market's clock, is not handled: `error` is
            told. None handles all.
        networks: The networks from which notifications are let in, as for `Receiver`.
        trusted_proxies: The networks of your own proxies, as for `Receiver`.
        lease: As for `Outbox.deliver`.
        reserve: As for `Outbox.deliver`.
        on_failure: As for `Outbox.deliver`. It is told of messages that are no replies of the bot.
        **options: As for `Outbox.deliver`.

    Raises:
        InvalidArgumentError: An argument makes no sense.

    Example:
        bot = Bot(outbox, {business_id: api_key})

        @bot.message
        async def answer(message: BuyerMessage) -> None:
            await message.reply(f"Вы написали: {message.text}")
    """

    def __init__(
        self,
        outbox: Outbox,
        keys: Mapping[int, str] | Callable[[int], Awaitable[str | None]],
        *,
        name: str = "bot",
        every: float = 30.0,
        start: Literal["now", "waiting"] = "now",
        concurrency: int = 16,
        handler_timeout: float = 60.0,
        max_age: float | None = None,
        networks: Iterable[str | IPv4Network | IPv6Network] = MARKET_NETWORKS,
        trusted_proxies: Iterable[str | IPv4Network | IPv6Network] = (),
        lease: float = 30.0,
        reserve: int = 0,
        on_failure: Callable[[OutboxEntry], Awaitable[None]] | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        from ..outbox.delivering import check_keys, check_on_failure, check_options

        self._outbox = check_type("outbox", outbox, Outbox)
        self._database = inside.database(outbox)
        self._keys = check_keys(keys)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgumentError("name is 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
        if check_seconds("every", every) < 1:
            raise InvalidArgumentError("every is at least 1 s")
        if start not in ("now", "waiting"):
            raise InvalidArgumentError("start is 'now' or 'waiting'")
        if type(concurrency) is not int or concurrency < 1:
            raise InvalidArgumentError("concurrency is a whole number of at least 1")
        check_options(options, reserve)
        self._name = name
        self._every = every
        self._waiting = start == "waiting"
        self._concurrency = concurrency
        self._handler_timeout = check_seconds("handler_timeout", handler_timeout)
        self._max_age = None if max_age is None else check_seconds("max_age", max_age)
        self._lease = check_seconds("lease", lease)
        self._reserve = reserve
        self._on_failure = check_on_failure(on_failure)
        self._options = options
        self._message: Handler | None = None
        self._error: ErrorHandler | None = None
        self._runner: Runner | None = None
        self._failures = Failures(name, self._database)
        self._told_again: set[int] = set()  # failed replies that are logged already
        self.receiver: Receiver = Receiver(
            self.hear,
            name=f"yamarket-chat {name}",
            version=__version__,
            networks=networks,
            trusted_proxies=trusted_proxies,
        )

    def __repr__(self) -> str:
        return f"Bot({self._name!r}, {self._outbox!r})"

    def message(self, handler: Handler) -> Handler:
        """Call a function for each message of a buyer: a decorator.

        Args:
            handler: An async function of a `BuyerMessage`. If it raises, it is called again after
                2, 10, 60 and 300 s; then `error` is told, and the chat goes on.

        Raises:
            InvalidArgumentError: It is no async function.

        Example:
            @bot.message
            async def answer(message: BuyerMessage) -> None:
                await message.reply("Здравствуйте!")
        """
        check_async("handler", handler)
        self._message = handler
        return handler

    def error(self, handler: ErrorHandler) -> ErrorHandler:
        """Call a function for each message that could not be answered: a decorator.

        It is called if the handler of the message failed five times (with its last error), if its
        process died each time (`HandlerDiedError`), if the message is older than `max_age`
        (`MessageTooOldError`, or the last error of its handler), and if a reply was refused, is
        unknown or has expired (with the error of the outbox). It may reply as well. It is called at
        least once; if it fails, that is logged, and the chat goes on.

        Args:
            handler: An async function of a `BuyerMessage` and an exception.

        Raises:
            InvalidArgumentError: It is no async function.

        Example:
            @bot.error
            async def failed(message: BuyerMessage, error: Exception) -> None:
                await message.reply("Вам ответит сотрудник магазина")
        """
        check_async("handler", handler)
        self._error = handler
        return handler

    async def run(self) -> None:
        """Find messages, handle and answer them, until the task is cancelled.

        Raises:
            InvalidArgumentError: No handler is registered by `message`.
            BotConflictError: A business has the bot of another name.
            OutboxDatabaseError: As for `Outbox.deliver`.

        Example:
            async def main() -> None:
                await outbox.create()
                await bot.run()
        """
        async with self.running():
            await asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do the same beside the program's own work, until the block ends.

        Raises:
            InvalidArgumentError: No handler is registered by `message`, or it runs already.
            BotConflictError: A business has the bot of another name.
            OutboxDatabaseError: As for `Outbox.delivering`.

        Example:
            async with bot.running():
                await web_server.serve()
        """
        if self._message is None:
            raise InvalidArgumentError("the bot has no handler: register one with @bot.message")
        if self._runner is not None:
            raise InvalidArgumentError("the bot runs already")
        settings = Settings(
            name=self._name,
            every=self._every,
            waiting=self._waiting,
            handler_timeout=self._handler_timeout,
            max_age=self._max_age,
            message=self._message,
            error=self._error,
        )
        keys = self._keys
        runner = Runner(
            settings,
            self._outbox,
            self._concurrency,
            self._lease,
            keys.__contains__ if isinstance(keys, Mapping) else lambda _: True,
        )
        self._runner = runner
        self.receiver.open()  # a test suite starts the same program again and again
        try:
            async with inside.delivering(
                self._outbox,
                keys,
                lease=self._lease,
                reserve=self._reserve,
                on_failure=self._failed,
                options=self._options,
                companion=runner,
            ):
                yield
        finally:
            self._runner = None

    async def hear(self, event: Event) -> None:
        """Note that the Market told of something in a chat. `receiver` calls this.

        It returns when the note is stored, in whatever process. The process that runs the bot then
        looks at the chat.

        Args:
            event: What `yamarket_chat.notifications.parse` returned.

        Raises:
            OutboxDatabaseError: The database cannot be used.

        Example:
            await bot.hear(parse(body))
        """
        if not isinstance(event, ChatEvent):
            return
        if isinstance(self._keys, Mapping) and event.business_id not in self._keys:
            logger.info("bot %s: the Market told of business %d", self._name, event.business_id)
            return
        message_id = getattr(event, "message_id", 0)
        await self._database.write(
            cursor.hint,
            event.business_id,
            event.chat_id,
            message_id,
            now(),
            not isinstance(self._keys, Mapping),
        )
        reach("told")
        if self._runner is not None:
            self._runner.wake()

    async def status(self) -> list[BotStatus]:
        """Return what is known of the bot, for each business that it has worked for, or should.

        Raises:
            OutboxDatabaseError: The database cannot be used.

        Example:
            for status in await bot.status():
                print(status.business_id, status.found_within)
        """
        return await self._database.read(cursor.status, self._name)

    async def _failed(self, entry: OutboxEntry) -> None:
        """Tell `error` of a reply that was refused, is unknown or has expired."""
        parts = (entry.key or "").split(":")
        if parts[:2] != ["bot", self._name]:
            if self._on_failure is not None:
                await call(self._on_failure, entry)
            return
        error: Exception = entry.error or MessageExpiredError(
            f"reply {entry.number} was not sent before its not_after"
        )
        chat_id, message_id = int(parts[2]), int(parts[3])
        if entry.number not in self._told_again:
            logger.warning(
                "bot %s, chat %d, message %d: the reply %d is %s: %s",
                self._name, chat_id, message_id, entry.number, entry.state, error,
            )  # fmt: skip
        self._told_again.discard(entry.number)
        if "error" in parts[4:] or self._error is None:
            return  # a reply of `error` itself
        business = None if self._runner is None else self._runner.business(entry.business_id)
        if business is None:
            raise NotNowError("another process works for this business now")
        try:
            await self._failures.tell(business, entry, chat_id, message_id, error)
        except ChatError as failure:  # not of the user's handler: that is logged there
            self._told_again.add(entry.number)
            raise NotNowError(str(failure)) from failure
        inside.wake(self._outbox)
