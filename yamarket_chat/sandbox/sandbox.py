"""The public class `Sandbox`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Rate

from .api import Api, Seller, check_operation
from .clock import Clock
from .notifier import NotificationPlan, Notifier, SentNotification
from .recorder import Arrival, Recorder, Refusals
from .server import FILES, Server
from .settings import Settings, check_int, check_rates
from .state import State, StoredMessage
from .wire import MAX_INT64, Sender


class Sandbox(Settings):
    """A local server that behaves as the Market's documentation says.

    The sandbox serves the chat API of one seller on the loopback interface while its `async with`
    block runs. It takes the time from the event loop, so it also works on a loop whose time is
    virtual.

    `latency`, `parallel`, `faults`, `scopes` and `rate_limit_headers` can be changed while the
    sandbox runs. Three more attributes are False at first and can be set at any time:

    - `revoked`: True makes the sandbox refuse the key with 401.
    - `inactive`: True makes the sandbox refuse the business with 403.
    - `locked`: True makes the sandbox respond with 423, as during a migration of the business.

    All methods and properties raise RuntimeError if the sandbox was never started. What the sandbox
    has received can also be read after the block.

    Args:
        api_key: The only key that the sandbox accepts. Other keys get 401.
        business_id: The only business that the sandbox accepts. Other ids get 403.
        host: The address to listen on.
        port: The port to listen on. 0 takes a free port; see `url`.
        limits: A `Rate` for the name of an operation, instead of the documented limit. The names
            are send_message, send_file, create_chat, get_chat, chats, history, get_message,
            campaigns and token. The sandbox counts a request when it arrives, whatever the response
            is, unless it refuses the request because of the key, the business id or a full window.
            `Rate.burst` is ignored.
        parallel: The number of requests that may be in progress at the same time. A request is in
            progress until the sandbox has responded, even if the client has closed the connection.
            After 10 s the sandbox aborts it with 504.
        window: "rolling" counts the requests of the last `per` seconds. "fixed" counts them from
            one multiple of `per` seconds to the next.
        window_phase: Seconds for which the first "fixed" window has run when the sandbox starts.
        rate_limit_headers: False omits the X-RateLimit headers.
        latency: Seconds that the sandbox takes for each request, or a function without arguments
            that returns them. The sandbox executes a request at the end of this time. It refuses
            a request at once.
        clock_offset: Seconds by which the sandbox's clock is ahead. The clock sets the Date header,
            createdAt and X-RateLimit-Resource-Until.
        storage_offset: Seconds by which createdAt is ahead of the Date header, or behind below 0.
        storage_milliseconds: True gives createdAt in milliseconds instead of whole seconds.
        keep_alive: Seconds that an idle connection stays open. True means 75 s. False closes the
            connection after each response.
        faults: A function from `RequestInfo` to a `Fault` or None, or a mapping from the number of
            a request to its `Fault`. See also `numbered_faults` and `random_faults`.
        scopes: What the key may do, for example ["COMMUNICATION"].
        chats: The ids of the chats that exist from the start. "any" means that every id is valid:
            the sandbox creates a chat when a request first names it, as a chat that the buyer
            started.
        campaigns: The number of the seller's shops.
        strip_spaces: True removes whitespace from both ends of a text before it is stored.
        history_order: The order of messages in a history: "ascending", "descending" or "shuffled".
            In a shuffled one a new message may push others over to the next page.
        history_includes_from: True if a history contains the message that messageIdFrom names.
        history_delay: Seconds until a stored message appears in the history.
        keep_books: False keeps only counters, and neither messages nor arrivals. Use it for runs
            with millions of messages.

    Raises:
        InvalidArgumentError: An argument is out of range or has the wrong type.
        OSError: The sandbox cannot listen on this host and port (raised when the block is entered).

    Example:
        async with Sandbox(latency=0.1) as box:
            async with ChatSession(box.api_key, box.business_id, base_url=box.url) as chats:
                await chats.send_message(17, "Ваш заказ в пути")
            assert [message.text for message in box.messages(17)] == ["Ваш заказ в пути"]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._running: tuple[Server, State, Recorder, Notifier] | None = None

    async def __aenter__(self) -> Self:
        clock = self._clock = Clock(
            asyncio.get_running_loop(),
            self.clock_offset,
            self.storage_offset,
            self.storage_milliseconds,
        )
        notifier = Notifier(
            asyncio.get_running_loop(), self.business_id, keep_books=self.keep_books
        )
        state = State(
            clock,
            chats=None if self.chats == "any" else self.chats,
            keep_messages=self.keep_books,
            history_delay=self.history_delay,
            history_order=self.history_order,
            history_includes_from=self.history_includes_from,
            tell=notifier.tell,
        )
        recorder = Recorder(keep_arrivals=self.keep_books)
        api = Api(state, self._seller, strip_spaces=self.strip_spaces)
        server = Server(self, clock, state, api, recorder)
        await server.listener.open()
        self.port: int = server.listener.port
        self._running = (server, state, recorder, notifier)
        state.files_url = f"{self.url}{FILES}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._notifier.stop()
        await self._server.stop()

    @property
    def url(self) -> str:
        """The base URL of the API, for example "http://127.0.0.1:54321".

        Example:
            async with ChatSession("ACMA:sandbox:key", 12345, base_url=market.url) as chats:
                await chats.send_message(17, "Ваш заказ в пути")
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._server.listener.port}"

    async def go_down(self) -> None:
        """Refuse new connections and reset the open ones.

        Requests in progress continue, but their responses go nowhere, as behind a load balancer
        that broke down.

        Example:
            await market.go_down()
            ...  # clients cannot connect
            await market.come_back()
        """
        await self._server.listener.close()

    async def come_back(self) -> None:
        """Listen on the same port again. All stored messages are still there.

        Raises:
            OSError: The sandbox cannot listen on the port.
        """
        await self._server.listener.open()

    # What the sandbox has received

    def messages(self, chat_id: int) -> list[StoredMessage]:
        """Return all messages of a chat in the order in which they were stored.

        Args:
            chat_id: The chat. The list is empty if it does not exist.

        Returns:
            A new list of messages. It is empty with `keep_books=False`.

        Example:
            await session.send_message(chat_id, "Ваш заказ в пути")
            assert market.messages(chat_id)[-1].text == "Ваш заказ в пути"
        """
        chat = self._state.existing_chat(chat_id)
        return [] if chat is None else list(chat.messages)

    @property
    def chat_ids(self) -> list[int]:
        """The ids of all chats, in the order in which they were created."""
        return [chat.chat_id for _, chat in self._state.chats_from(0)]

    @property
    def messages_stored(self) -> int:
        """The number of messages stored in all chats, from all senders."""
        return self._state.messages_stored

    @property
    def arrivals(self) -> list[Arrival]:
        """All requests to operations, in order of arrival. Empty with `keep_books=False`."""
        return self._recorder.arrivals

    def requests(self, operation: str) -> int:
        """Return how many requests to an operation arrived, refused ones included.

        Args:
            operation: The name of the operation, for example "send_message".

        Raises:
            InvalidArgumentError: There is no such operation.

        Example:
            await session.send_message(chat_id, "Ваш заказ в пути")
            assert market.requests("send_message") >= 1
        """
        check_operation(operation)
        return self._recorder.requests[operation]

    @property
    def refused(self) -> int:
        """The number of requests that were answered with 420."""
        return self._recorder.refusals.total

    @property
    def refusals(self) -> Refusals:
        """The numbers of requests that were answered with 420, by cause."""
        return self._recorder.refusals

    @property
    def busiest(self) -> int:
        """The largest number of requests in progress at the same time, refused ones included."""
        return self._recorder.busiest

    def busiest_window(self, operation: str, per: float | None = None) -> int:
        """Return the largest number of counted requests of an operation in any `per` seconds.

        Args:
            operation: The name of the operation, for example "send_message".
            per: The length of the window in seconds. Default: that of the operation's limit.

        Raises:
            InvalidArgumentError: There is no such operation.
            RuntimeError: The sandbox was created with `keep_books=False`.

        Example:
            assert market.busiest_window("send_message", per=3600) <= 1000
        """
        check_operation(operation)
        if per is None:
            per = self._server.windows[operation].rate.per
        return self._recorder.busiest_window(operation, per)

    # Notifications

    def notify(
        self,
        url: str | None,
        plan: NotificationPlan | Mapping[int, Sequence[float]] | None = None,
    ) -> None:
        """Send the Market's notifications to an address from now on, beginning with a PING.

        A notification is sent again after any answer but 200 and 400, and if none comes within
        10 s (a PING: 1 s): every minute for an hour, every 15 minutes for the first day, then
        hourly. After 14 days the notifications are switched off. `notifications` lists what was
        sent.

        Args:
            url: The address of the receiver. None sends nothing any more.
            plan: How often and how late each notification is sent: a function from
                `NotificationInfo` to a list of seconds, or a mapping from the number of a
                notification to such a list. `[]` drops it, `[0, 0]` sends it twice, `[30]` sends it
                late, and `{1: [5]}` lets the second overtake the first. Default: each is sent once,
                and at once. See also `random_notifications`.

        Raises:
            InvalidArgumentError: The URL or the plan makes no sense.

        Example:
            market.notify("http://127.0.0.1:8080/notification", {1: [0, 0]})
        """
        self._notifier.set(url, plan, self._clock.timestamp(self._clock.now()))

    @property
    def notifications(self) -> list[SentNotification]:
        """All notifications that were sent, each time that they were, and what was answered."""
        return self._notifier.sent

    # What other people and programs do

    def buyer_says(
        self,
        chat_id: int,
        text: str | bytes | os.PathLike[str] | None = None,
        *,
        file: bytes | os.PathLike[str] | None = None,
        filename: str | None = None,
    ) -> StoredMessage:
        """Store a message from the buyer.

        The status of the chat becomes WAITING_FOR_PARTNER (in a dispute: WAITING_FOR_ARBITER).

        Args:
            chat_id: The chat, at least 1.
            text: The text, at least one character; or instead of it a file, as `file`.
            file: A path or bytes: a file that the buyer sends, with the text or without one. It can
                be downloaded from the URL in the message's payload.
            filename: The name of the file. Default: that of the path.

        Returns:
            The stored message.

        Raises:
            InvalidArgumentError: The chat does not exist, the id is out of range, or the text is
                empty.
            OSError: The file cannot be read.

        Example:
            market.buyer_says(chat_id, "Где мой заказ?")
            market.buyer_says(chat_id, "Вот чек", file=b"photo", filename="чек.jpg")
        """
        if isinstance(text, (bytes, os.PathLike)):
            if file is not None:
                raise InvalidArgumentError("pass one file, or a text and a file")
            text, file = None, text
        if file is None:
            return self._store(chat_id, "CUSTOMER", text or "")
        if isinstance(file, bytes):
            name, content = "file", file
        else:
            name, content = Path(file).name, Path(file).read_bytes()
        return self._store(chat_id, "CUSTOMER", text, [(filename or name, content)])

    def shop_says(self, chat_id: int, text: str) -> StoredMessage:
        """Store a message from the seller that another person or program has sent.

        The status of the chat becomes WAITING_FOR_CUSTOMER (in a dispute: WAITING_FOR_ARBITER).

        Args:
            chat_id: The chat, at least 1.
            text: The text, at least one character.

        Returns:
            The stored message.

        Raises:
            InvalidArgumentError: The chat does not exist, the id is out of range or the text is
                empty.

        Example:
            market.shop_says(chat_id, "Уже проверяем")
        """
        return self._store(chat_id, "PARTNER", text)

    def market_says(self, chat_id: int, text: str) -> StoredMessage:
        """Store an automatic message from the Market. The status of the chat does not change.

        Args:
            chat_id: The chat, at least 1.
            text: The text, at least one character.

        Returns:
            The stored message.

        Raises:
            InvalidArgumentError: The chat does not exist, the id is out of range or the text is
                empty.

        Example:
            market.market_says(chat_id, "Заказ передан в доставку")
        """
        return self._store(chat_id, "MARKET", text)

    def support_says(self, chat_id: int, text: str) -> StoredMessage:
        """Store a message from the Market's support. The status of the chat does not change.

        Args:
            chat_id: The chat, at least 1.
            text: The text, at least one character.

        Returns:
            The stored message.

        Raises:
            InvalidArgumentError: The chat does not exist, the id is out of range or the text is
                empty.

        Example:
            market.support_says(chat_id, "Чем помочь?")
        """
        return self._store(chat_id, "SUPPORT", text)

    def buyer_sends_file(self, chat_id: int, name: str, content: bytes) -> StoredMessage:
        """Store a file from the buyer. It can be downloaded from the URL in the message's payload.

        Args:
            chat_id: The chat, at least 1.
            name: The name of the file.
            content: The bytes of the file.

        Returns:
            The stored message.

        Raises:
            InvalidArgumentError: The chat does not exist or the id is out of range.

        Example:
            message = market.buyer_sends_file(chat_id, "чек.jpg", b"photo")
            assert message.payload[0].name == "чек.jpg"
        """
        return self._store(chat_id, "CUSTOMER", None, [(name, content)])

    def buyer_sends_sticker(self, chat_id: int) -> StoredMessage:
        """Store a sticker from the buyer. The Market does not notify of stickers.

        How the history shows a sticker is not documented. Here it is a file.

        Args:
            chat_id: The chat, at least 1.

        Returns:
            The stored message.

        Raises:
            InvalidArgumentError: The chat does not exist or the id is out of range.

        Example:
            assert market.buyer_sends_sticker(chat_id).text is None
        """
        return self._store(chat_id, "CUSTOMER", None, [("sticker.png", b"sticker")], notifies=False)

    def add_chat(
        self,
        chat_id: int | None = None,
        *,
        order_id: int | None = None,
        return_id: int | None = None,
    ) -> int:
        """Create a chat about a return or about an order.

        Without `order_id` and `return_id` it is a chat that the buyer started.

        Args:
            chat_id: The id of the chat. None takes a free one.
            order_id: The order that the chat is about.
            return_id: The return that the chat is about.

        Returns:
            The id of the chat.

        Raises:
            InvalidArgumentError: The chat exists already, or the order or the return has a chat.

        Example:
            chat = market.add_chat(order_id=55)
        """
        try:
            return self._state.add_chat(chat_id, order_id=order_id, return_id=return_id).chat_id
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None

    def set_chat(
        self, chat_id: int, *, status: str | None = None, chat_type: str | None = None
    ) -> None:
        """Set the status or the type of a chat.

        Args:
            chat_id: The chat.
            status: For example "FINISHED", or a value that the Market does not document yet. None
                leaves the status as it is.
            chat_type: "CHAT", "ARBITRAGE" for a dispute, or a value that the Market does not
                document yet. None leaves the type as it is.

        Raises:
            InvalidArgumentError: The chat does not exist.

        Example:
            market.set_chat(chat_id, chat_type="ARBITRAGE", status="WAITING_FOR_ARBITER")
        """
        chat = self._state.chat(chat_id)
        if chat is None:
            raise InvalidArgumentError(f"there is no chat {chat_id}; create it with add_chat()")
        self._state.set_chat(chat, status, chat_type)

    def other_programs_use(self, operation: str, requests: int) -> None:
        """Count requests of the seller's other programs against the limit of an operation, now.

        Args:
            operation: The name of the operation, for example "send_message".
            requests: The number of requests. At most as many are counted as the limit allows.

        Raises:
            InvalidArgumentError: There is no such operation.

        Example:
            market.other_programs_use("send_file", 900)
        """
        check_operation(operation)
        self._server.windows[operation].take(self._clock_now(), requests)

    @contextmanager
    def other_programs_hold(self, places: int) -> Iterator[None]:
        """Let the seller's other programs hold parallel slots while the `with` block runs.

        Args:
            places: The number of parallel slots that are not available to us.

        Example:
            with market.other_programs_hold(2):
                await session.send_message(chat_id, "Ваш заказ в пути")
        """
        with self._server.parallel.held_by_others(places):
            yield

    def step_clock(self, seconds: float) -> None:
        """Set the sandbox's clock forward, or back if `seconds` is below 0.

        Args:
            seconds: How far the Date header and createdAt jump.

        Example:
            market.step_clock(-20)
        """
        self._clock.step(seconds)

    def set_limit(self, operation: str, rate: Rate) -> None:
        """Change the limit of an operation. Requests that are already counted stay counted.

        Args:
            operation: The name of the operation, for example "send_message".
            rate: The new limit.

        Raises:
            InvalidArgumentError: There is no such operation, or `rate` is not a Rate.

        Example:
            market.set_limit("history", Rate(500, per=3600))
        """
        check_rates({operation: rate})
        self._server.windows[operation].rate = rate

    # Internals

    @property
    def _server(self) -> Server:
        return self._parts[0]

    @property
    def _state(self) -> State:
        return self._parts[1]

    @property
    def _recorder(self) -> Recorder:
        return self._parts[2]

    @property
    def _notifier(self) -> Notifier:
        return self._parts[3]

    @property
    def _parts(self) -> tuple[Server, State, Recorder, Notifier]:
        if self._running is None:
            raise RuntimeError("the sandbox is not running; use it in `async with`")
        return self._running

    def _clock_now(self) -> float:
        return asyncio.get_running_loop().time()

    def _seller(self) -> Seller:
        return Seller(self.business_id, self.campaigns, "Sandbox", self.scopes)

    def _store(
        self,
        chat_id: int,
        sender: Sender,
        text: str | None,
        files: Sequence[tuple[str, bytes]] = (),
        *,
        notifies: bool = True,
    ) -> StoredMessage:
        check_int("chat_id", chat_id, 1, MAX_INT64)
        if text is not None and not (isinstance(text, str) and text):
            raise InvalidArgumentError("the text must be a str of at least one character")
        chat = self._state.chat(chat_id)
        if chat is None:
            raise InvalidArgumentError(f"there is no chat {chat_id}; create it with add_chat()")
        return self._state.store(chat, sender, text, files, notifies=notifies)
