"""The sandbox as its users see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Rate

from .api import Api, Seller, check_operation
from .books import Arrival, Books, Refusals
from .clock import Clock
from .front import FILES, Front
from .settings import Settings, check_int, check_rates
from .state import State, StoredMessage
from .wire import MAX_INT64, Sender


class Sandbox(Settings):
    """A stand-in for the Market on loopback, which behaves as the Market's documentation says.

        async with Sandbox(latency=0.1) as market:
            async with ChatSession(market.api_key, market.business_id, base_url=market.url) as chat:
                await chat.send_message(7, "On its way")
            assert [message.text for message in market.messages(7)] == ["On its way"]

    It takes its time from the event loop, so it also works on one whose clock is virtual. Times are
    in seconds. All keywords have defaults; wrong ones raise InvalidArgumentError.

    Who is served:

    - `api_key`, `business_id`: those of the seller; others get 401 and 403. `scopes` are what
      the key may do, `campaigns` is how many shops the seller has.
    - `host`, `port`: where to listen; 0 takes any free port. See `url`.
    - `chats`: "any" (the default) makes each chat when it is first named, as one that its buyer
      started; given ids are the only ones that exist, beside those made by create_chat.
    - `strip_spaces`: text is stored without spaces at its ends.

    Limits, which are strict:

    - `limits`: a `Rate` for the name of an operation (send_message, send_file, create_chat,
      get_chat, chats, history, get_message, campaigns, token) instead of the documented limit.
      A request is counted when it arrives, whatever comes of it, unless the key, the business id
      or a full window keeps it out. `Rate.burst` means nothing here.
    - `window`: "rolling" counts the last `per` seconds; "fixed" counts from one multiple of `per`
      to the next, beginning `window_phase` seconds before the start of the sandbox.
    - `parallel`: how many requests may be processed at once. One is processed until it is answered,
      also when its client has gone, and cut off with 504 after 10 s.
    - `rate_limit_headers`: False leaves the X-RateLimit headers out.

    Time and connections:

    - `latency`: seconds, or a function that returns them: how long a request is processed. It is
      carried out at the end of this time; requests that are refused are answered at once.
    - `clock_offset`: how far the clock of Date, createdAt and Until is ahead.
    - `keep_alive`: True, seconds that an idle connection stays open, or False: closed after each
      answer.
    - `history_order` ("ascending" or "descending"), `history_includes_from` (whether messageIdFrom
      is in its own answer), `history_delay` (how much later a stored message can be read).
    - `faults`: a function from `RequestInfo` to a `Fault` or None, or a mapping from the number of
      a request to its `Fault`. See `numbered_faults` and `random_faults`.
    - `keep_books`: False keeps neither messages nor arrivals, only numbers: for very long runs.

    While it runs, `latency`, `parallel`, `faults`, `scopes` and `rate_limit_headers` may be set
    anew, and so may three attributes that begin as False: `revoked` (the key: 401), `inactive`
    (the business: 403) and `locked` (the business is in migration: 423).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._running: tuple[Front, State, Books] | None = None

    async def __aenter__(self) -> Self:
        clock = Clock(asyncio.get_running_loop(), self.clock_offset)
        state = State(
            clock,
            chats=None if self.chats == "any" else self.chats,
            keep_messages=self.keep_books,
            history_delay=self.history_delay,
            history_order=self.history_order,
            history_includes_from=self.history_includes_from,
        )
        books = Books(keep_arrivals=self.keep_books)
        api = Api(state, self._seller, strip_spaces=self.strip_spaces)
        front = Front(self, clock, state, api, books)
        await front.listener.open()
        self.port = front.listener.port
        self._running = (front, state, books)
        state.files_url = f"{self.url}{FILES}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._front.stop()

    @property
    def url(self) -> str:
        """The address of the API, for example "http://127.0.0.1:54321"."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._front.listener.port}"

    async def go_down(self) -> None:
        """Refuse new connections and reset all there are.

        Requests in progress go on, answered to nobody, as behind a balancer that broke down.
        """
        await self._front.listener.close()

    async def come_back(self) -> None:
        """Listen again on the same port, with all that was stored."""
        await self._front.listener.open()

    # What arrived

    def messages(self, chat_id: int) -> list[StoredMessage]:
        """All messages of a chat in the order in which they were stored."""
        chat = self._state.known_chat(chat_id)
        return [] if chat is None else list(chat.messages)

    @property
    def chat_ids(self) -> list[int]:
        """The ids of all chats, in the order in which they came to be."""
        return [chat.chat_id for _, chat in self._state.chats_from(0)]

    @property
    def messages_stored(self) -> int:
        """How many messages were stored in all chats, whoever wrote them."""
        return self._state.messages_stored

    @property
    def arrivals(self) -> list[Arrival]:
        """Every request to an operation, in the order of arrival."""
        return self._books.arrivals

    def requests(self, operation: str) -> int:
        """How many requests to an operation arrived, refused ones included."""
        check_operation(operation)
        return self._books.requests[operation]

    @property
    def refused(self) -> int:
        """How many requests were answered with 420."""
        return self._books.refusals.total

    @property
    def refusals(self) -> Refusals:
        """How many requests were answered with 420, by cause."""
        return self._books.refusals

    @property
    def busiest(self) -> int:
        """The largest number of requests in progress at once, refused ones included."""
        return self._books.busiest

    def busiest_window(self, operation: str, per: float | None = None) -> int:
        """The largest number of requests of an operation that were counted in any `per` seconds.

        `per` is by default that of the operation's limit. Needs `keep_books`.
        """
        check_operation(operation)
        if per is None:
            per = self._front.windows[operation].rate.per
        return self._books.busiest_window(operation, per)

    # What others do

    def buyer_says(self, chat_id: int, text: str) -> StoredMessage:
        """The buyer writes; the chat waits for the shop.

        market.buyer_says(7, "Where is my order?")

        Raises InvalidArgumentError where the chat does not exist, as do all of this kind.
        """
        return self._store(chat_id, "CUSTOMER", text)

    def shop_says(self, chat_id: int, text: str) -> StoredMessage:
        """A colleague of the seller's writes, by hand or from another program."""
        return self._store(chat_id, "PARTNER", text)

    def market_says(self, chat_id: int, text: str) -> StoredMessage:
        """The Market writes an automatic message, which leaves the chat's status as it is."""
        return self._store(chat_id, "MARKET", text)

    def support_says(self, chat_id: int, text: str) -> StoredMessage:
        """The Market's support writes, which leaves the chat's status as it is."""
        return self._store(chat_id, "SUPPORT", text)

    def buyer_sends_file(self, chat_id: int, name: str, content: bytes) -> StoredMessage:
        """The buyer sends a file, which can be fetched from the URL in the message's payload."""
        return self._store(chat_id, "CUSTOMER", None, [(name, content)])

    def add_chat(
        self,
        chat_id: int | None = None,
        *,
        order_id: int | None = None,
        return_id: int | None = None,
    ) -> int:
        """Make a chat about a return, about an order or, without both, one that its buyer started.

        Returns its id. Raises InvalidArgumentError where such a chat exists.
        """
        try:
            return self._state.add_chat(chat_id, order_id=order_id, return_id=return_id).chat_id
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None

    def set_chat(
        self, chat_id: int, *, status: str | None = None, chat_type: str | None = None
    ) -> None:
        """Set the status or the type of a chat: finish it, or make a dispute of it.

        market.set_chat(7, chat_type="ARBITRAGE", status="WAITING_FOR_ARBITER")

        Both may be values that the Market does not document yet.
        """
        chat = self._state.chat(chat_id)
        if chat is None:
            raise InvalidArgumentError(f"there is no chat {chat_id}")
        chat.status = status or chat.status
        chat.type = chat_type or chat.type

    def other_programs_use(self, operation: str, requests: int) -> None:
        """Other programs of the seller use up so many of an operation's requests, now.

        As many as its limit allows; what exceeds it is refused to them, not to us.
        """
        check_operation(operation)
        self._front.windows[operation].take(self._clock_now(), requests)

    @contextmanager
    def other_programs_hold(self, places: int) -> Iterator[None]:
        """Other programs of the seller hold so many of the parallel places, until this is left.

        with market.other_programs_hold(2):
            ...
        """
        with self._front.places.held(places):
            yield

    def set_limit(self, operation: str, rate: Rate) -> None:
        """Change the limit of an operation; what was counted stays counted."""
        check_rates({operation: rate})
        self._front.windows[operation].rate = rate

    # Inside

    @property
    def _front(self) -> Front:
        return self._parts[0]

    @property
    def _state(self) -> State:
        return self._parts[1]

    @property
    def _books(self) -> Books:
        return self._parts[2]

    @property
    def _parts(self) -> tuple[Front, State, Books]:
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
    ) -> StoredMessage:
        check_int("chat_id", chat_id, 1, MAX_INT64)
        if text is not None and not (isinstance(text, str) and text):
            raise InvalidArgumentError("the text is a str of at least one character")
        chat = self._state.chat(chat_id)
        if chat is None:
            raise InvalidArgumentError(f"there is no chat {chat_id}; add_chat() makes one")
        return self._state.store(chat, sender, text, files)
