"""ChatSession: one method an operation. What there is to decide is decided below."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, overload

import aiohttp
import msgspec
from msgspec import UNSET, UnsetType
from yarl import URL

from . import operations, reading
from .arguments import (
    Unknown,
    check_address,
    check_base_url,
    check_business,
    check_id,
    check_integration,
    check_key,
    check_max_wait,
    check_seconds,
    check_type,
    check_unknown,
    distinct,
)
from .business import Business, attach
from .calls import Calls, Question, Retry, running_task
from .download import LARGEST_DOWNLOAD, download
from .errors import InvalidArgumentError, SessionClosedError
from .exchange import Exchange
from .files import Upload
from .models import (
    Campaign,
    Chat,
    ChatStatus,
    ChatType,
    ContextType,
    CreatedChat,
    File,
    Message,
    Outcome,
    OutgoingMessage,
    Pending,
    QuotaStatus,
    Receipt,
    Token,
    TokenInfo,
)
from .operations import Operation
from .quota import Limits
from .reading import Listing
from .sending import Sending
from .version import __version__

INTEGRATION = f"yamarket-chat/{__version__}"
LARGEST_BODY = 512 * 1024
"""Bytes of a request at most, files aside, as documented."""


class ChatSession:
    """Talks to the buyers of one business on Yandex.Market.

    `api_key`, `business_id` and `base_url` are taken from YAMARKET_API_KEY, YAMARKET_BUSINESS_ID
    and YAMARKET_BASE_URL where they are not given. `limits`, `retry`: see there. `max_wait` is the
    number of seconds that a call may wait before its first attempt leaves, for each call that takes
    one and does not name its own; None waits as long as it takes. `timeout` is for one attempt, in
    seconds; below the 10 s after which the Market cuts a request off, outcomes are unknown that
    a little patience would have told. `http` is an aiohttp.ClientSession of yours, which stays
    yours to close. `integration`, "name/version", names your program in the seller's request log.
    `insecure_http` allows plain http to another host than loopback, for a sandbox in the next
    container. `quota` is there for one that processes share; there is none yet.

        async with ChatSession(api_key, business_id) as session:
            await session.send_message(chat_id, "Ваш заказ в пути")

    All sessions of one business on one event loop share its limits and the order of its chats. A
    session belongs to the event loop of its first call: another one (a second asyncio.run, another
    thread) needs its own. Raises InvalidArgumentError where an argument makes no sense.
    """

    def __init__(
        self,
        api_key: str | None = None,
        business_id: int | None = None,
        *,
        base_url: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        quota: None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        max_wait: float | None = None,
        timeout: float = 15.0,
        http: aiohttp.ClientSession | None = None,
        integration: str = INTEGRATION,
        insecure_http: bool = False,
    ) -> None:
        self._api_key = check_key(api_key or os.environ.get("YAMARKET_API_KEY"))
        self._business_id = check_business(business_id)
        self._base_url = check_base_url(base_url, insecure_http=insecure_http)
        self._insecure_http = insecure_http
        self._limits = check_type("limits", limits, Limits)
        self._retry = check_type("retry", retry, Retry)
        if quota is not None:
            raise InvalidArgumentError("quota is None: there is no shared quota yet")
        self._max_wait = check_max_wait(max_wait)
        self._timeout = check_seconds("timeout", timeout)
        self._http = None if http is None else check_type("http", http, aiohttp.ClientSession)
        self._integration = check_integration(integration)
        self._opened: _Opened | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace: float = 30.0) -> None:
        """End all calls and the connections; leaving `async with` does it.

        Calls that wait fail at once with SessionClosedError. Those under way get `grace` seconds
        to end; then messages fail with DeliveryUnknownError, and all else with SessionClosedError.
        Closing twice is no error: the second one waits for the first, for `grace` at most.
        """
        grace = check_seconds("grace", grace, at_least_0=True)
        if self._opened is not None:
            self._opened.calls.check_loop()
        self._closed = True
        if self._opened is not None:
            await self._opened.close(grace)

    async def send_message(
        self,
        chat_id: int,
        text: str,
        *,
        max_wait: float | UnsetType | None = UNSET,
        unknown: Unknown | None = None,
    ) -> Receipt:
        """Send a text of 1 to 4,096 characters to a chat; return when it has arrived.

        Messages to one chat go one after the other, in the order of the calls. `max_wait` is the
        number of seconds that it may take until the first attempt leaves; None waits as long as it
        takes, and not given is the session's. `unknown` is that of `Retry`, for this message.

            receipt = await session.send_message(17, "Ваш заказ в пути", max_wait=5)

        Raises InvalidArgumentError, QuotaExceededError, SessionClosedError, ConnectionFailedError,
        ApiError and UnexpectedAnswerError where nothing was sent, DeliveryUnknownError where that
        cannot be told.
        """
        return await self._sending().send_text(
            chat_id,
            text,
            self._wait(max_wait),
            None if unknown is None else check_unknown(unknown),
        )

    async def send_file(
        self,
        chat_id: int,
        file: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        filename: str | None = None,
        max_wait: float | UnsetType | None = UNSET,
        unknown: Unknown | None = None,
    ) -> Receipt:
        """Send a file of at most 5 MiB to a chat; return when it has arrived.

        `file` is a path, bytes, or a file opened for bytes, which is read from where it stands and
        stays open. `filename` is what the buyer sees, by default the name of the file.

            await session.send_file(17, "накладная.pdf")

        Raises as `send_message` does; InvalidArgumentError also for a file that is missing, empty
        or too large.
        """
        return await self._sending().send_file(
            chat_id,
            Upload(file, filename),
            self._wait(max_wait),
            None if unknown is None else check_unknown(unknown),
        )

    async def settle(
        self, pending: Pending, *, max_wait: float | UnsetType | None = UNSET
    ) -> Receipt | None:
        """Tell from the chat's history what became of a message of unknown outcome.

        Returns its receipt where it stands there, and None where it never arrived and may be sent
        again. Waits where the Market may yet be at it. `max_wait` is for each page of the history.

            receipt = await session.settle(error.pending)

        Raises DeliveryUnknownError where the history cannot tell or cannot be read, within
        `max_wait` or at all: QuotaExceededError would say that nothing was sent.
        """
        pending = check_type("pending", pending, Pending)
        return await self._sending().settle(pending, self._wait(max_wait))

    async def create_chat(
        self,
        *,
        order_id: int | None = None,
        return_id: int | None = None,
        max_wait: float | UnsetType | None = UNSET,
    ) -> int:
        """Open a chat about an order or a return; the id of the chat, also of one that exists.

            chat_id = await session.create_chat(order_id=55)

        Raises InvalidArgumentError, NotFoundError and the other errors of a call.
        """
        if (order_id is None) is (return_id is None):
            raise InvalidArgumentError("create_chat takes order_id or return_id, one of the two")
        if order_id is not None:
            context = {"type": "ORDER", "id": check_id("order_id", order_id)}
        else:
            context = {"type": "RETURN", "id": check_id("return_id", return_id)}
        created: CreatedChat = await self._ask(
            operations.CREATE_CHAT, max_wait, content={"context": context}
        )
        return created.chat_id

    async def get_chat(self, chat_id: int, *, max_wait: float | UnsetType | None = UNSET) -> Chat:
        """One chat: what it is about, and whose turn it is.

            chat = await session.get_chat(17)

        Raises InvalidArgumentError, NotFoundError and the other errors of a call.
        """
        chat: Chat = await self._ask(
            operations.GET_CHAT, max_wait, query=f"chatId={check_id('chat_id', chat_id)}"
        )
        return chat

    async def get_message(
        self, chat_id: int, message_id: int, *, max_wait: float | UnsetType | None = UNSET
    ) -> Message:
        """One message of a chat.

            message = await session.get_message(17, 3)

        Raises InvalidArgumentError, NotFoundError and the other errors of a call.
        """
        query = f"chatId={check_id('chat_id', chat_id)}"
        query += f"&messageId={check_id('message_id', message_id)}"
        message: Message = await self._ask(operations.GET_MESSAGE, max_wait, query=query)
        return message

    def chats(
        self,
        *,
        statuses: Iterable[ChatStatus | str] | None = None,
        types: Iterable[ChatType | str] | None = None,
        context_types: Iterable[ContextType | str] | None = None,
        order_ids: Iterable[int] | None = None,
        return_ids: Iterable[int] | None = None,
        page_token: str | None = None,
        max_wait: float | UnsetType | None = UNSET,
    ) -> Listing[Chat]:
        """The chats of the business, all of them or those that match every filter.

        `order_ids` and `return_ids` are what a chat is about, `page_token` goes on where a page
        ended. `max_wait` is for each page.

            async for chat in session.chats(statuses=[ChatStatus.WAITING_FOR_PARTNER]):
                print(chat.chat_id, chat.context.order_id)

        Raises InvalidArgumentError; fetching raises the errors of a call.
        """
        contexts = [
            {"type": kind, "id": check_id(name, number)}
            for kind, name, numbers in (
                ("ORDER", "order_ids", order_ids),
                ("RETURN", "return_ids", return_ids),
            )
            for number in distinct(name, numbers, int)
        ]
        filters = {
            "contexts": contexts,
            "contextTypes": distinct("context_types", context_types, str),
            "types": distinct("types", types, str),
            "statuses": distinct("statuses", statuses, str),
        }
        given = {
            "order_ids or return_ids": (
                order_ids if order_ids is not None else return_ids,
                contexts,
            ),
            "context_types": (context_types, filters["contextTypes"]),
            "types": (types, filters["types"]),
            "statuses": (statuses, filters["statuses"]),
        }
        for name, (argument, values) in given.items():
            if argument is not None and not values:
                raise InvalidArgumentError(
                    f"an empty filter ({name}) matches no chat: leave it out"
                )
        return reading.listing(
            self._open().calls,
            operations.CHATS,
            operations.CHATS.path.format(business_id=self._business()),
            body={name: values for name, values in filters.items() if values},
            page_token=page_token,
            max_wait=self._wait(max_wait),
        )

    def history(
        self,
        chat_id: int,
        *,
        message_id_from: int | None = None,
        page_token: str | None = None,
        max_wait: float | UnsetType | None = UNSET,
    ) -> Listing[Message]:
        """The messages of a chat, all of them or those from `message_id_from` on.

        Whether that one is among them, and whether they ascend, the Market does not document.

            async for message in session.history(17):
                print(message.created_at, message.sender, message.message)

        Raises InvalidArgumentError; fetching raises the errors of a call.
        """
        if message_id_from is not None:
            check_id("message_id_from", message_id_from)
        return reading.history(
            self._open().calls,
            self._business(),
            check_id("chat_id", chat_id),
            message_id_from=message_id_from,
            page_token=page_token,
            max_wait=self._wait(max_wait),
        )

    def campaigns(
        self, *, page_token: str | None = None, max_wait: float | UnsetType | None = UNSET
    ) -> Listing[Campaign]:
        """The shops that the key sees; `campaign.business.id` is the business id of each.

        It needs no business id: this is how one finds it.

            async for campaign in session.campaigns():
                print(campaign.domain, campaign.business and campaign.business.id)

        Fetching raises the errors of a call.
        """
        return reading.listing(
            self._open().calls,
            operations.CAMPAIGNS,
            operations.CAMPAIGNS.path,
            page_token=page_token,
            max_wait=self._wait(max_wait),
        )

    async def token(self, *, max_wait: float | UnsetType | None = UNSET) -> Token:
        """The name of the key and its scopes; COMMUNICATION and ALL_METHODS may chat.

        It needs no business id.

            token = await session.token()

        Raises UnauthorizedError and the other errors of a call.
        """
        info: TokenInfo = await self._ask(operations.TOKEN, max_wait)
        return info.api_key

    @overload
    async def download(self, file: File, *, max_bytes: int = ...) -> bytes: ...

    @overload
    async def download(
        self, file: File, to: str | os.PathLike[str], *, max_bytes: int = ...
    ) -> Path: ...

    async def download(
        self,
        file: File,
        to: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = LARGEST_DOWNLOAD,
    ) -> bytes | Path:
        """Fetch a file of a message: its bytes, or its path where `to` names one.

        It is written piece by piece, and stands under that name only when it has ended. The key
        goes to no other host than the Market's. Tried again after network faults and 5xx. Closing
        the session ends it.

            for number, file in enumerate(message.payload or ()):
                await session.download(file, f"inbox/{message.message_id}-{number}")

        Raises InvalidArgumentError for an address that is not https or a file that announces more
        than `max_bytes` bytes, UnexpectedAnswerError for one that has more, NotFoundError and the
        other errors of a call, OSError where the path cannot be written.
        """
        check_type("file", file, File)
        if type(max_bytes) is not int or max_bytes < 1:
            raise InvalidArgumentError("max_bytes is a whole number of at least 1")
        if file.size > max_bytes:
            raise InvalidArgumentError(
                f"{file.name!r} has {file.size} bytes: pass max_bytes to allow so many"
            )
        check_address("the file's address", file.url, insecure_http=self._insecure_http)
        if to is not None and not isinstance(to, (str, os.PathLike)):
            raise InvalidArgumentError("to is a path")
        path = None if to is None else Path(to)
        return await self._open().download(file, path, max_bytes, self._retry)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: object = UNSET,
        repeatable: bool | None = None,
        max_wait: float | UnsetType | None = UNSET,
    ) -> Any:
        """Call any other method of the Market's API that answers 200 and JSON; its answer, decoded.

        It shares the parallel places of the business, where the session has a business id: order
        calls compete with messages for the same four. Its own limit over time is not known here: a
        420 over it is raised, with `retry_after` where the Market says when it ends. `repeatable`
        says that carrying it out twice does no harm, so that it is tried again after network faults
        and 5xx; by default only GET is.

            await session.request("GET", "/v2/campaigns/7/orders/55")

        Raises InvalidArgumentError and the errors of a call; `sent` is None where nothing tells
        whether it was carried out.
        """
        method = check_type("method", method, str).upper()
        if not method.isascii() or not method.isalpha():
            raise InvalidArgumentError("method is one of HTTP, such as GET")
        check_type("path", path, str)
        if not path.startswith("/") or path.startswith("//") or "#" in path:
            raise InvalidArgumentError(
                "path starts with one slash, such as /v2/campaigns, and stays on the Market's host"
            )
        try:
            target = URL(path).update_query(params or {})
            body = b"" if json is UNSET else msgspec.json.encode(json)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"params or json cannot be sent: {error}") from None
        if len(body) > LARGEST_BODY:
            raise InvalidArgumentError(
                f"the body has {len(body)} bytes; {LARGEST_BODY} may be sent"
            )
        operation = operations.other(
            method, repeatable=method == "GET" if repeatable is None else repeatable
        )
        request = Question(operation, target.raw_path, target.raw_query_string, body)
        return await self._open().calls.ask(request, self._wait(max_wait))

    def send_many(
        self,
        messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage],
        *,
        reserve: int = 0,
    ) -> AsyncGenerator[Outcome, None]:
        """Send many texts, and tell what became of each, as they end.

        The messages are read only as fast as they can be sent, at most 256 of them are in hand,
        and nothing more is read while the outcomes are not taken. One message that fails is an
        outcome, never an exception; after a 401 the rest is refused without being sent. An
        exception of the iterable itself is raised once the messages before it have ended.
        `aclose()` (by `contextlib.aclosing`, or after a `break` when nobody refers to it any more)
        lets end what is under way and sends nothing more, but drops the outcomes that were not
        taken; closing the session tells them all, and then raises SessionClosedError. `reserve`
        places of the window are left to single calls, which go first anyway. There is no
        `max_wait`: it waits as long as it takes.

            async for outcome in session.send_many(messages, reserve=100):
                print(outcome.message.chat_id, outcome.status)

        Raises InvalidArgumentError where an argument makes no sense, SessionClosedError.
        """
        return self._sending().send_many(messages, reserve)

    def quota_status(self, operation: str) -> QuotaStatus:
        """How much of the limit of a method of this session is left.

        It counts all sessions of the business on this event loop, and what the Market said of
        other programs. Call it on the event loop.

            session.quota_status("send_message").remaining

        Raises InvalidArgumentError for a name that is no field of `Limits`.
        """
        names = [name for name in Limits.__struct_fields__ if name != "parallel"]
        if operation not in names:
            raise InvalidArgumentError(f"operation is one of {', '.join(names)}")
        return self._open().business.scheduler.status(operation)

    def _wait(self, max_wait: float | UnsetType | None) -> float | None:
        return self._max_wait if max_wait is UNSET else check_max_wait(max_wait)

    async def _ask(
        self,
        operation: Operation,
        max_wait: float | UnsetType | None,
        *,
        query: str = "",
        content: object = None,
    ) -> Any:
        path = operation.path
        if "{business_id}" in path:
            path = path.format(business_id=self._business())
        body = b"" if content is None else msgspec.json.encode(content)
        request = Question(operation, path, query, body)
        return await self._open().calls.ask(request, self._wait(max_wait))

    def _business(self) -> int:
        if self._business_id is None:
            raise InvalidArgumentError(
                "business_id is missing: pass it or set YAMARKET_BUSINESS_ID; campaigns() tells it"
            )
        return self._business_id

    def _open(self) -> _Opened:
        if self._closed:
            raise SessionClosedError(
                "this session is closed: make a new one, or call it inside its `async with`"
            )
        if self._opened is None:
            origin = str(URL(self._base_url).origin())
            business = attach(origin, self._business_id, self._limits)
            business.attempts_take(self._timeout)
            exchange = Exchange(
                self._base_url,
                self._api_key,
                integration=self._integration,
                timeout=self._timeout,
                http=self._http,
            )
            calls = Calls(exchange, business, self._api_key, self._retry)
            self._opened = _Opened(exchange, business, calls)
        else:
            self._opened.calls.check_loop()
        return self._opened

    def _sending(self) -> Sending:
        opened = self._opened
        if self._closed or opened is None or opened.sending is None:
            opened = self._open()
            opened.sending = Sending(opened.calls, opened.business, self._business(), self._retry)
        else:
            opened.calls.check_loop()
        return opened.sending


class _Opened:
    """What a session has from its first call on, on the event loop of that call."""

    def __init__(self, exchange: Exchange, business: Business, calls: Calls) -> None:
        self._exchange = exchange
        self._downloads: set[asyncio.Task[Any]] = set()
        self._closed: asyncio.Event | None = None
        self.business = business
        self.calls = calls
        self.sending: Sending | None = None

    async def download(
        self, file: File, path: Path | None, max_bytes: int, retry: Retry
    ) -> bytes | Path:
        task = running_task()
        cancelling = task.cancelling()
        self._downloads.add(task)
        try:
            return await download(self._exchange, file, path, max_bytes, retry)
        except asyncio.CancelledError:
            if self._closed is not None and task.uncancel() <= cancelling:
                raise SessionClosedError(
                    f"{file.name!r}: the session was closed; fetch it again in a new one"
                ) from None
            raise
        finally:
            self._downloads.discard(task)

    async def close(self, grace: float) -> None:
        if self._closed is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._closed.wait()
            return
        self._closed = asyncio.Event()
        try:
            await (self.sending or self.calls).close(grace)
        finally:
            for task in self._downloads:
                task.cancel()
            self.business.sessions -= 1
            try:
                await self._exchange.close()
            finally:
                self._closed.set()
