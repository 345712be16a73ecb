"""ChatSession: one method an operation. What there is to decide is decided below."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import aiohttp
from msgspec import UNSET, UnsetType
from yarl import URL

from . import scheduler
from .calls import Calls, Retry
from .errors import InvalidArgumentError
from .exchange import Exchange
from .models import Outcome, OutgoingMessage, QuotaStatus, Receipt
from .quota import Limits
from .scheduler import Scheduler
from .sending import Sending, check_id, closed_error
from .version import __version__

_T = TypeVar("_T")

BASE_URL = "https://api.partner.market.yandex.ru"
INTEGRATION = f"yamarket-chat/{__version__}"
LONGEST_INTEGRATION = 100
"""Characters that the Market takes in X-Market-Integration, as documented."""


class ChatSession:
    """Talks to the buyers of one business on Yandex.Market.

    `api_key` and `business_id` are taken from YAMARKET_API_KEY and YAMARKET_BUSINESS_ID where they
    are not given. `limits`, `retry`: see there. `max_wait` is the number of seconds that a call may
    wait before its first attempt leaves, for each call that does not name its own; None waits as
    long as it takes. `timeout` is for one attempt, in seconds: above the 10 s after which the
    Market cuts a request off. `http` is an aiohttp.ClientSession of yours, which stays yours to
    close. `integration`, "name/version", names your program in the seller's request log.
    `insecure_http` allows plain http to another host than loopback, for a sandbox in the next
    container.

        async with ChatSession(api_key, business_id) as session:
            await session.send_message(chat_id, "Ваш заказ в пути")

    All sessions of one business on one event loop share its limits and the order of its chats.
    Raises InvalidArgumentError where an argument makes no sense.
    """

    def __init__(
        self,
        api_key: str | None = None,
        business_id: int | None = None,
        *,
        base_url: str = BASE_URL,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        quota: None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        max_wait: float | None = None,
        timeout: float = 15.0,
        http: aiohttp.ClientSession | None = None,
        integration: str = INTEGRATION,
        insecure_http: bool = False,
    ) -> None:
        self._api_key = _check_key(api_key or os.environ.get("YAMARKET_API_KEY"))
        self._business_id = _check_business(business_id)
        self._base_url = _check_url(base_url, insecure_http=insecure_http)
        self._limits = _check_type("limits", limits, Limits)
        self._retry = _check_type("retry", retry, Retry)
        if quota is not None:
            raise InvalidArgumentError("quota is None: there is no shared quota yet")
        self._max_wait = _check_max_wait(max_wait)
        self._timeout = _check_seconds("timeout", timeout)
        self._http = None if http is None else _check_type("http", http, aiohttp.ClientSession)
        self._integration = _check_integration(integration)
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
        to end, and then fail with DeliveryUnknownError. Closing twice is no error.
        """
        grace = _check_seconds("grace", grace, at_least_0=True)
        self._closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                await opened.sending.close(grace)
            finally:
                opened.scheduler.sessions -= 1
                await opened.exchange.close()

    async def send_message(
        self, chat_id: int, text: str, *, max_wait: float | UnsetType | None = UNSET
    ) -> Receipt:
        """Send a text of 1 to 4,096 characters to a chat; return when it has arrived.

        Messages to one chat go one after the other, in the order of the calls. `max_wait` is the
        number of seconds that it may take until the first attempt leaves; None waits as long as it
        takes, and not given is the session's.

            receipt = await session.send_message(17, "Ваш заказ в пути", max_wait=5)

        Raises InvalidArgumentError, QuotaExceededError, SessionClosedError, ConnectionFailedError
        and ApiError where nothing was sent, DeliveryUnknownError where that cannot be told.
        """
        return await self._open().sending.send_message(chat_id, text, self._wait(max_wait))

    def send_many(
        self,
        messages: Iterable[OutgoingMessage] | AsyncIterable[OutgoingMessage],
        *,
        reserve: int = 0,
    ) -> AsyncIterator[Outcome]:
        """Send many texts, and tell what became of each, as they end.

        The messages are read only as fast as they can be sent, at most 256 of them are in hand,
        and nothing more is read while the outcomes are not taken. One message that fails is an
        outcome, never an exception; after a 401 the rest is refused without being sent. An
        exception of the iterable itself is raised once the messages before it have ended.
        Leaving the loop lets end what is under way and sends nothing more. `reserve` places of the
        window are left to single calls, which go first anyway.

            async for outcome in session.send_many(messages, reserve=100):
                print(outcome.message.chat_id, outcome.status)

        Raises InvalidArgumentError where an argument makes no sense, SessionClosedError.
        """
        return self._open().sending.send_many(messages, reserve)

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
        return self._open().scheduler.status(operation)

    def _wait(self, max_wait: float | UnsetType | None) -> float | None:
        return self._max_wait if max_wait is UNSET else _check_max_wait(max_wait)

    def _open(self) -> _Opened:
        if self._opened is not None:
            return self._opened
        if self._closed:
            raise closed_error()
        if self._business_id is None:
            raise InvalidArgumentError(
                "business_id is missing: pass it or set YAMARKET_BUSINESS_ID"
            )
        origin = str(URL(self._base_url).origin())
        shared = scheduler.attach(origin, self._business_id, self._limits)
        exchange = Exchange(
            self._base_url,
            self._api_key,
            integration=self._integration,
            timeout=self._timeout,
            http=self._http,
        )
        calls = Calls(exchange, shared, self._api_key)
        self._opened = _Opened(
            exchange, shared, Sending(calls, shared, self._business_id, self._retry)
        )
        return self._opened


class _Opened(NamedTuple):
    """What a session has from its first call on, on the event loop of that call."""

    exchange: Exchange
    scheduler: Scheduler
    sending: Sending


def _check_key(key: object) -> str:
    if not key:
        raise InvalidArgumentError("api_key is missing: pass it or set YAMARKET_API_KEY")
    # None of these texts may show the key.
    if not isinstance(key, str):
        raise InvalidArgumentError("api_key is a str")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidArgumentError(
            "api_key cannot stand in a header: it has spaces, line breaks or letters that are not"
            " ASCII. A token looks like ACMA:…:…, without Bearer before it"
        )
    return key


def _check_business(business_id: object) -> int | None:
    if business_id is None:
        text = os.environ.get("YAMARKET_BUSINESS_ID")
        if not text:
            return None
        try:
            business_id = int(text)
        except ValueError:
            raise InvalidArgumentError(
                f"YAMARKET_BUSINESS_ID is a whole number, not {text!r:.80}"
            ) from None
    return check_id("business_id", business_id)


def _check_url(base_url: object, *, insecure_http: bool) -> str:
    try:
        url = URL(base_url) if isinstance(base_url, str) else None
    except ValueError:
        url = None
    if url is None or not url.host or url.scheme not in ("http", "https"):
        raise InvalidArgumentError(f"base_url is an https address such as {BASE_URL}")
    if url.user or url.password or url.query_string or url.fragment:
        raise InvalidArgumentError("base_url has a scheme, a host, and perhaps a port and a path")
    if url.scheme == "http" and not insecure_http and not _is_loopback(url.host):
        raise InvalidArgumentError(
            "base_url is https, or the key would travel in the clear; for a sandbox on another"
            " host pass insecure_http=True"
        )
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_type(name: str, value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} is of type {kind.__name__}")
    return value


def _check_seconds(name: str, value: object, *, at_least_0: bool = False) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (0 < value < math.inf or (at_least_0 and value == 0))
    ):
        least = "0 or more" if at_least_0 else "above 0"
        raise InvalidArgumentError(f"{name} is a number of seconds, {least}")
    return float(value)


def _check_max_wait(max_wait: object) -> float | None:
    return None if max_wait is None else _check_seconds("max_wait", max_wait, at_least_0=True)


def _check_integration(integration: object) -> str:
    if (
        not isinstance(integration, str)
        or not 0 < len(integration) <= LONGEST_INTEGRATION
        or not (integration.isascii() and integration.isprintable())
    ):
        raise InvalidArgumentError(
            f'integration is "name/version" in ASCII, of at most {LONGEST_INTEGRATION} characters'
        )
    return integration
