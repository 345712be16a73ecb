"""ChatSession: one method for each operation. It checks arguments; the modules below decide."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, overload

import aiohttp
from msgspec import UNSET

from .arguments import (
    INTEGRATION,
    LARGEST_DOWNLOAD,
    OnUnknown,
    Wait,
    chat_context,
    chat_filters,
    check_base_url,
    check_business,
    check_download,
    check_id,
    check_integration,
    check_key,
    check_max_wait,
    check_on_unknown,
    check_pending,
    check_proxy,
    check_request,
    check_seconds,
    check_text,
    check_type,
)
from .errors import InvalidArgumentError, SessionClosedError
from .limits import HOUR, Limits, QuotaStatus
from .listing import Listing
from .models import Campaign, Chat, ChatStatus, ChatType, ContextType, File, Message, Token
from .pending import Pending
from .receipts import Outcome, OutgoingMessage, Receipt
from .retry import Retry
from .secret import Secret

if TYPE_CHECKING:
    from ._delivery.engine import Engine
    from ._delivery.sending import Sending
    from ._http.answers import CreatedChat, TokenInfo


class ChatSession:
    """Writes to the buyers of one business on Yandex.Market, and reads their chats.

    All sessions of one business on one event loop share the rate limits and the order of the
    chats. A session belongs to the event loop of its first call. Another loop (a second
    `asyncio.run`, another thread) needs a session of its own.

    Args:
        api_key: The Api-Key of the seller's cabinet, with the scope `communication` or
            `all-methods`. Default: YAMARKET_API_KEY in the environment. An empty one is an error.
        business_id: The id of the business, at least 1. A decimal string is accepted as well.
            Default: YAMARKET_BUSINESS_ID. `campaigns` and `token` work without it.
        base_url: The address of the API. Default: YAMARKET_BASE_URL, or else the Market's.
        limits: The rate limits. Default: the documented ones.
        retry: How often and how long a call is retried.
        max_wait: Seconds that a call may wait before its first request is sent. None waits as long
            as needed. A call that is passed a `max_wait` of its own follows that.
        timeout: Seconds for one request, at most 3600. The Market ends a request after 10 s, so a
            shorter timeout leaves outcomes unknown that a longer one would have learnt.
        http: An aiohttp.ClientSession of yours, which stays open when this session closes.
        proxy: The address of an HTTP proxy, such as "http://user:password@proxy:3128". Default:
            HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, unless you pass `http`. An empty string
            means no proxy. Loopback addresses are never proxied.
        integration: "name/version" of your program, which the seller's request log shows. At most
            100 ASCII characters.
        insecure_http: True allows plain http to another host than loopback, for a sandbox.

    Raises:
        InvalidArgumentError: An argument makes no sense.

    Example:
        async with ChatSession(api_key, business_id) as session:
            await session.send_message(chat_id, "Ваш заказ в пути")
    """

    def __init__(
        self,
        api_key: str | None = None,
        business_id: int | str | None = None,
        *,
        base_url: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        retry: Retry = Retry(),  # noqa: B008 - frozen
        max_wait: float | None = None,
        timeout: float = 15.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        integration: str = INTEGRATION,
        insecure_http: bool = False,
    ) -> None:
        problem: str | None = None
        try:
            self._api_key = Secret(check_key(api_key))
            self._business_id = check_business(business_id)
            self._base_url = check_base_url(base_url, insecure_http=insecure_http)
            self._insecure_http = insecure_http
            self._limits = check_type("limits", limits, Limits)
            self._retry = check_type("retry", retry, Retry)
            self._max_wait = check_max_wait(max_wait)
            self._timeout = check_seconds("timeout", timeout, at_most=HOUR)
            self._http = None if http is None else check_type("http", http, aiohttp.ClientSession)
            if proxy is not None:
                check_proxy("proxy", proxy)
            self._proxy = proxy
            self._integration = check_integration(integration)
        except InvalidArgumentError as error:
            problem = str(error)
        finally:
            # No frame of a traceback shows the key, even if it was passed as another argument.
            del api_key, business_id, base_url, integration, proxy
        if problem is not None:
            raise InvalidArgumentError(problem)
        self._engine: Engine | None = None
        self._engine_kind: type[Engine] | None = None  # of the package's own
        self._closed = False

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float = 30.0) -> None:
        """End all calls and close the connections. Leaving `async with` does this as well.

        Calls that wait fail at once with SessionClosedError. After the grace, messages under way
        fail with DeliveryUnknownError, and all other calls with SessionClosedError. A second call
        may shorten the grace of the first one; cancelling `close` ends it.

        Args:
            grace: Seconds for calls under way to end, 0 or more.

        Raises:
            InvalidArgumentError: `grace` makes no sense, or the event loop is another one.
        """
        grace = check_seconds("grace", grace, at_least_0=True)
        if self._engine is not None:
            self._engine.check_loop()
        self._closed = True
        if self._engine is not None:
            await self._engine.close(grace)

    async def send_message(
        self,
        chat_id: int | str,
        text: str,
        *,
        max_wait: Wait = UNSET,
        on_unknown: OnUnknown | None = None,
    ) -> Receipt:
        """Send a text to a chat, and return the proof that it arrived.

        The messages of one chat are sent one after another, in the order of the calls.

        Args:
            chat_id: The chat, at least 1. A decimal string is accepted as well.
            text: 1 to 4,096 characters, as documented for sendMessageToChat.
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.
            on_unknown: "settle" or "raise"; see `Retry.on_unknown`. Default: that of the session.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            MaxWaitExceededError: The call would have waited longer than `max_wait`.
            SessionClosedError: The session was closed before the message was sent.
            ConnectionFailedError: The Market could not be reached.
            ApiError: The Market refused the message.
            UnexpectedAnswerError: The Market gave undocumented answers. Nothing was sent.
            DeliveryUnknownError: Nothing tells whether the message arrived.

        Example:
            receipt = await session.send_message(17, "Ваш заказ в пути", max_wait=5)
        """
        return await self._sending().send(
            check_id("chat_id", chat_id),
            check_text(text),
            self._wait(max_wait),
            check_on_unknown(on_unknown),
        )

    async def send_file(
        self,
        chat_id: int | str,
        file: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        filename: str | None = None,
        max_wait: Wait = UNSET,
        on_unknown: OnUnknown | None = None,
    ) -> Receipt:
        """Send a file to a chat, and return the proof that it arrived.

        Args:
            chat_id: The chat, at least 1. A decimal string is accepted as well.
            file: A path, bytes, or a file opened for bytes; at most 5 MB, as documented. An open
                file is read from its current position, and stays open and there. Do not use it
                until the call has ended, except for other calls that send it.
            filename: The name that the buyer sees. Default: the name of the file.
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.
            on_unknown: "settle" or "raise"; see `Retry.on_unknown`. Default: that of the session.

        Raises:
            InvalidArgumentError: The file is missing, empty or too large.
            ChatError: As `send_message`.

        Example:
            await session.send_file(17, b"...", filename="накладная.pdf")
        """
        from ._http.uploads import Upload  # late, as the engine

        return await self._sending().send(
            check_id("chat_id", chat_id),
            Upload(file, filename),
            self._wait(max_wait),
            check_on_unknown(on_unknown),
        )

    def send_many(
        self,
        messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage],
        *,
        reserve: int = 0,
    ) -> AsyncGenerator[Outcome, None]:
        """Send many texts, and yield what became of each as it ends.

        The messages are read only as fast as they can be sent: at most 256 of them are in hand,
        counting those whose outcomes are not taken yet. They wait as long as needed. A message that
        fails is an outcome and not an exception. After a 401 the rest is refused without a request.

        `aclose()` of the generator sends nothing more and waits for what is under way, but drops
        the outcomes that were not taken. Closing the session yields them all before it raises.

        Args:
            messages: The messages; an async iterable as well.
            reserve: How many requests of each period are left to single calls, which go first.

        Yields:
            Delivered, Refused or Unknown, one for each message.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            SessionClosedError: The session was closed before all messages were sent.
            Exception: What the iterable raised, after the messages before have ended.

        Example:
            messages = [OutgoingMessage(1, "Мы открыты"), OutgoingMessage(2, "Мы открыты")]
            async for outcome in session.send_many(messages, reserve=100):
                print(outcome.message.chat_id, outcome.status)
        """
        return self._sending().send_many(messages, reserve)

    async def settle(self, pending: Pending, *, max_wait: Wait = UNSET) -> Receipt | None:
        """Find out from the chat's history whether a message of unknown outcome arrived.

        If the Market may still carry the message out, this waits until it cannot.

        Args:
            pending: The `pending` of a DeliveryUnknownError.
            max_wait: Seconds to wait at most before each page is requested; see `ChatSession`.

        Returns:
            The receipt if the message arrived; None if it did not, and may be sent again.

        Raises:
            InvalidArgumentError: An argument makes no sense, or the message is another business's.
            DeliveryUnknownError: The history does not tell, or cannot be read.

        Example:
            try:
                await session.send_message(17, "Ваш заказ в пути", on_unknown="raise")
            except DeliveryUnknownError as error:
                receipt = await session.settle(error.pending)
        """
        return await self._sending().settle(check_pending(pending), self._wait(max_wait))

    async def create_chat(
        self,
        *,
        order_id: int | str | None = None,
        return_id: int | str | None = None,
        max_wait: Wait = UNSET,
    ) -> int:
        """Open a chat about an order or a return, and return its id, also if it existed before.

        Args:
            order_id: The order. Pass this or `return_id`.
            return_id: The return.
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.

        Raises:
            InvalidArgumentError: Not exactly one id was passed, or the id makes no sense.
            NotFoundError: There is no such order or return.
            ChatError: The other errors of a call.

        Example:
            chat_id = await session.create_chat(order_id=55)
        """
        content = {"context": chat_context(order_id, return_id)}
        created: CreatedChat = await self._open().ask(
            "create_chat", self._wait(max_wait), content=content
        )
        return created.chat_id

    async def get_chat(self, chat_id: int | str, *, max_wait: Wait = UNSET) -> Chat:
        """Get a chat: what it is about, and who is expected to write next.

        Args:
            chat_id: The chat, at least 1. A decimal string is accepted as well.
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            NotFoundError: There is no such chat.
            ChatError: The other errors of a call.

        Example:
            chat = await session.get_chat(17)
        """
        query = f"chatId={check_id('chat_id', chat_id)}"
        chat: Chat = await self._open().ask("get_chat", self._wait(max_wait), query=query)
        return chat

    async def get_message(
        self,
        chat_id: int | str,
        message_id: int | str,
        *,
        max_wait: Wait = UNSET,
    ) -> Message:
        """Get one message of a chat.

        Args:
            chat_id: The chat, at least 1. A decimal string is accepted as well.
            message_id: The message, likewise.
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            NotFoundError: There is no such message.
            ChatError: The other errors of a call.

        Example:
            async for message in session.history(17):
                same = await session.get_message(17, message.message_id)
        """
        query = f"chatId={check_id('chat_id', chat_id)}"
        query += f"&messageId={check_id('message_id', message_id)}"
        message: Message = await self._open().ask("get_message", self._wait(max_wait), query=query)
        return message

    def chats(
        self,
        *,
        statuses: Iterable[ChatStatus | str] | None = None,
        types: Iterable[ChatType | str] | None = None,
        context_types: Iterable[ContextType | str] | None = None,
        order_ids: Iterable[int | str] | None = None,
        return_ids: Iterable[int | str] | None = None,
        page_token: str | None = None,
        max_wait: Wait = UNSET,
    ) -> Listing[Chat]:
        """List the chats of the business, or those that match every filter.

        Args:
            statuses: Who is expected to write next.
            types: Whether the Market's arbiter takes part.
            context_types: What kind of thing the chat is about.
            order_ids: The orders that the chat is about.
            return_ids: The returns that the chat is about.
            page_token: The `next_page_token` of a page, to go on after it.
            max_wait: Seconds to wait at most before each page is requested; see `ChatSession`.

        Returns:
            The chats, 20 a page. Fetching them raises the errors of a call.

        Raises:
            InvalidArgumentError: An argument makes no sense.

        Example:
            async for chat in session.chats(statuses=[ChatStatus.WAITING_FOR_PARTNER]):
                print(chat.chat_id, chat.context.order_id)
        """
        return self._open().listing(
            "chats",
            body=chat_filters(statuses, types, context_types, order_ids, return_ids),
            page_token=page_token,
            max_wait=self._wait(max_wait),
        )

    def history(
        self,
        chat_id: int | str,
        *,
        message_id_from: int | str | None = None,
        page_token: str | None = None,
        max_wait: Wait = UNSET,
    ) -> Listing[Message]:
        """List the messages of a chat.

        Args:
            chat_id: The chat, at least 1. A decimal string is accepted as well.
            message_id_from: Lists the messages from this one on. The Market does not document
                whether this message is included, or whether the messages ascend.
            page_token: The `next_page_token` of a page, to go on after it.
            max_wait: Seconds to wait at most before each page is requested; see `ChatSession`.

        Returns:
            The messages, 100 a page. Fetching them raises the errors of a call.

        Raises:
            InvalidArgumentError: An argument makes no sense.

        Example:
            async for message in session.history(17):
                print(message.created_at, message.sender, message.message)
        """
        body = {}
        if message_id_from is not None:
            body["messageIdFrom"] = check_id("message_id_from", message_id_from)
        return self._open().listing(
            "history",
            query={"chatId": check_id("chat_id", chat_id)},
            body=body,
            page_token=page_token,
            max_wait=self._wait(max_wait),
        )

    def campaigns(
        self, *, page_token: str | None = None, max_wait: Wait = UNSET
    ) -> Listing[Campaign]:
        """List the shops that the key can see. `campaign.business.id` is their business id.

        No business id is needed: this is how to find it.

        Args:
            page_token: The `next_page_token` of a page, to go on after it.
            max_wait: Seconds to wait at most before each page is requested; see `ChatSession`.

        Returns:
            The shops, 100 a page. Fetching them raises the errors of a call.

        Example:
            async for campaign in session.campaigns():
                print(campaign.domain, campaign.business and campaign.business.id)
        """
        return self._open().listing(
            "campaigns", page_token=page_token, max_wait=self._wait(max_wait)
        )

    async def token(self, *, max_wait: Wait = UNSET) -> Token:
        """Get the name of the key and its scopes. COMMUNICATION and ALL_METHODS may chat.

        No business id is needed.

        Args:
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.

        Raises:
            UnauthorizedError: The key is wrong.
            ChatError: The other errors of a call.

        Example:
            token = await session.token()
        """
        info: TokenInfo = await self._open().ask("token", self._wait(max_wait))
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
        """Download a file of a message. Only the Market's own host gets the key.

        Args:
            file: A file of `Message.payload`.
            to: The path to write to, which is then returned. Default: the bytes are returned.
            max_bytes: The largest size that is accepted; by default 64 MiB.

        Raises:
            InvalidArgumentError: `to` or the address makes no sense, or the file is too large.
            UnexpectedAnswerError: The file turned out larger than `max_bytes`.
            SessionClosedError: The session was closed during the download.
            OSError: The path cannot be written.
            ChatError: The other errors of a call.

        Example:
            async for message in session.history(17):
                for file in message.payload or ():
                    content = await session.download(file)
        """
        path = check_download(file, to, max_bytes, insecure_http=self._insecure_http)
        return await self._open().download(file, path, max_bytes)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: object = UNSET,
        repeatable: bool | None = None,
        max_wait: Wait = UNSET,
    ) -> Any:
        """Call another method of the Market's API, and return its decoded JSON.

        It takes one of the parallel requests of the business. Its rate limit is not known here.

        Args:
            method: The HTTP method.
            path: The path, beginning with a slash.
            params: The query.
            json: The body, at most 512 KB, as documented. Numbers are finite.
            repeatable: True retries the request after network failures and 5xx: carrying it out
                twice must do no harm. Default: True for GET only.
            max_wait: Seconds to wait at most before the first request is sent; see `ChatSession`.

        Raises:
            InvalidArgumentError: An argument makes no sense.
            LimitExceededError: A rate limit of the method was exceeded.
            ChatError: The other errors of a call.

        Example:
            campaigns = await session.request("GET", "/v2/campaigns", params={"limit": 5})
        """
        method, target, body = check_request(method, path, params, json)
        return await self._open().request(
            method,
            target,
            body,
            repeatable=method == "GET" if repeatable is None else repeatable,
            max_wait=self._wait(max_wait),
        )

    def quota_status(self, operation: str) -> QuotaStatus:
        """Return how much of the rate limit of a method is left. Call it on the event loop.

        All sessions of the business on this loop count, and other programs as far as headers tell.

        Args:
            operation: The name of a method of this session that is a field of `Limits`.

        Raises:
            InvalidArgumentError: There is no such method.

        Example:
            left = session.quota_status("send_message").remaining
        """
        names = self._limits.rates()
        if not isinstance(operation, str) or operation not in names:
            raise InvalidArgumentError(f"operation is one of {', '.join(names)}")
        return self._open().status(operation)

    def _wait(self, max_wait: Wait) -> float | None:
        return self._max_wait if max_wait is UNSET else check_max_wait(max_wait)

    def _open(self) -> Engine:
        if self._closed:
            raise SessionClosedError(
                "this session is closed: make a new one, or call it inside its `async with`"
            )
        if self._engine is None:
            # Imported late, because it is two thirds of the time of `import yamarket_chat`.
            from ._delivery.engine import Engine

            self._engine = (self._engine_kind or Engine)(
                self._api_key,
                self._business_id,
                self._base_url,
                limits=self._limits,
                retry=self._retry,
                timeout=self._timeout,
                http=self._http,
                proxy=self._proxy,
                integration=self._integration,
            )
        else:
            self._engine.check_loop()
        return self._engine

    def _sending(self) -> Sending:
        return self._open().sending
