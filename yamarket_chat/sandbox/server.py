"""The HTTP server: what happens to a request between its arrival and its response."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http_exceptions import BadHttpMessage

from yamarket_chat.system import randomness

from . import control
from .api import (
    JSON,
    MAX_FILE,
    MAX_JSON_BODY,
    MULTIPART,
    OK_BODY,
    OPERATIONS,
    Api,
    ApiError,
    Call,
    Operation,
    bad_request,
    not_found,
    parse_id,
)
from .clock import Clock
from .faults import Fault, RequestInfo
from .limits import (
    FixedWindow,
    ParallelLimit,
    ParallelSlot,
    RollingWindow,
    Window,
    describe_period,
)
from .listener import Listener, reset
from .recorder import Arrival, Recorder
from .settings import Settings
from .state import State

PROCESSING_TIMEOUT = 10.0
"""Seconds after which the Market aborts a request and responds with 504."""

FILES = "/files/"

_BUSINESS = "/v2/businesses/"
_LIMIT = "X-RateLimit-Resource-Limit"
_REMAINING = "X-RateLimit-Resource-Remaining"
_UNTIL = "X-RateLimit-Resource-Until"
_TRACEPARENT = "traceparent"

_REASONS = {420: "Enhance Your Calm"}
_ERRORS = {
    400: ("BAD_REQUEST", "Bad request"),
    401: ("UNAUTHORIZED", "Api-Key token is invalid"),
    403: ("FORBIDDEN", "Access denied"),
    404: ("NOT_FOUND", "Resource not found"),
    423: ("LOCKED", "Business is in migration"),
    500: ("INTERNAL_ERROR", "Internal server error"),
    502: ("BAD_GATEWAY", "Bad gateway"),
    503: ("SERVICE_UNAVAILABLE", "Service temporarily unavailable. Please, try again later"),
    504: ("GATEWAY_TIMEOUT", "The request took too long"),
}


def _routes(*, outside_business: bool) -> dict[str, dict[str, Operation]]:
    routes: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS.values():
        if operation.outside_business is outside_business:
            routes.setdefault(operation.path, {})[operation.method] = operation
    return routes


_BUSINESS_ROUTES = _routes(outside_business=False)
_OTHER_ROUTES = _routes(outside_business=True)


class _ClientDisconnectedError(Exception):
    """The client closed the connection before its whole request had arrived."""


class _Exchange(msgspec.Struct):
    """One request to an operation, and what every response to it contains."""

    request: web.BaseRequest
    operation: Operation
    arrival: Arrival
    limit_headers: Mapping[str, str] = {}
    slot: ParallelSlot | None = None


class Server:
    """Receives, checks, counts, delays and executes requests, and injects the faults."""

    def __init__(
        self, settings: Settings, clock: Clock, state: State, api: Api, recorder: Recorder
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state = state
        self._api = api
        self._recorder = recorder
        self._ids = randomness("sandbox ids")
        self._accepted: Counter[str] = Counter()
        self._timers: set[asyncio.TimerHandle] = set()
        self.parallel: ParallelLimit = ParallelLimit()
        self.windows: dict[str, Window] = _windows(settings, clock.now())
        keep_alive = settings.keep_alive
        self.listener: Listener = Listener(
            self._handle,
            settings.host,
            settings.port,
            idle_timeout=75.0 if isinstance(keep_alive, bool) else keep_alive,
            max_body=MAX_JSON_BODY,
        )

    async def stop(self) -> None:
        await self.listener.stop()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # Handling a request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        business_id: str | None = None
        if path.startswith(_BUSINESS):
            business_id, slash, rest = path[len(_BUSINESS) :].partition("/")
            methods = _BUSINESS_ROUTES.get(slash + rest)
        else:
            methods = _OTHER_ROUTES.get(path)
        if methods is None:
            if control.is_control(request):
                return await control.handle(request, self._state)
            return self._respond_to_other_path(request)
        operation = methods.get(request.method)
        if operation is None:
            error = ApiError(
                405, "METHOD_NOT_ALLOWED", f"Request method '{request.method}' not supported"
            )
            return self._response(error.status, error.body, {"Allow": ", ".join(methods)})
        return await self._handle_operation(request, operation, business_id)

    async def _handle_operation(
        self, request: web.BaseRequest, operation: Operation, business_id: str | None
    ) -> web.StreamResponse:
        """Check the key and the limits, then process the request or refuse it."""
        now = self._clock.now()
        arrival = Arrival(
            now,
            operation.name,
            parse_id(request.query.get("chatId", "")),
            self.parallel.in_progress + 1,
            counted=False,
            trace_id=f"{self._ids.getrandbits(128) or 1:032x}",
        )
        exchange = _Exchange(request, operation, arrival)
        try:
            self._check_credentials(request, business_id)
        except ApiError as error:
            self._recorder.record(arrival)
            return self._respond_with_error(exchange, error)

        window = self.windows[operation.name]
        arrival.counted = window.take(now) == 1
        exchange.limit_headers = self._limit_headers(
            operation, window.rate.requests - window.used(now), window.until(now)
        )
        self._recorder.record(arrival)
        slot = self.parallel.acquire(self._settings.parallel)
        if slot is None:
            self._recorder.refusals.parallel += 1
            return self._respond_with_error(exchange, self._parallel_limit_error())
        exchange.slot = slot
        try:
            if not arrival.counted:
                self._recorder.refusals.rate += 1
                return self._respond_with_error(exchange, self._rate_limit_error(operation))
            return await self._process(exchange)
        finally:
            if exchange.slot is not None:
                exchange.slot.release()

    async def _process(self, exchange: _Exchange) -> web.StreamResponse:
        """Process a request that is within the limits."""
        arrival = exchange.arrival
        fault = self._choose_fault(arrival)
        deadline = arrival.time + PROCESSING_TIMEOUT
        try:
            self._check_permissions(exchange)
            async with asyncio.timeout_at(deadline):
                call = await self._receive(exchange)
        except ApiError as error:
            return self._respond_with_error(exchange, error)
        except TimeoutError:
            return self._respond_with_error(exchange, _documented_error(504))
        except _ClientDisconnectedError:
            return web.Response()

        latency = self._settings.latency
        respond_at = arrival.time + (latency() if callable(latency) else latency)
        if fault is not None and fault.kind == "slow":
            respond_at += fault.delay
            fault = None
        await self._sleep_until(min(respond_at, deadline))
        if respond_at > deadline:
            return self._respond_with_error(exchange, _documented_error(504))
        if fault is None or fault.kind == "unsolicited":
            status, body = self._execute(exchange.operation, call)
            if fault is not None:
                self._call_at(
                    self._clock.now() + fault.delay, self._write_now, exchange, status, body
                )
            return self._respond(exchange, status, body)
        return await self._fail(exchange, call, fault)

    async def _fail(self, exchange: _Exchange, call: Call, fault: Fault) -> web.StreamResponse:
        status, body = 200, OK_BODY
        if fault.when == "after":
            status, body = self._execute(exchange.operation, call)
        elif fault.when == "later":
            then = self._clock.now() + fault.delay
            self._call_at(then, self._execute, exchange.operation, call)
            if not _is_own_error(fault):
                self._hold_slot(exchange, until=then)

        match fault.kind:
            case "reset":
                if exchange.request.transport is not None:
                    reset(exchange.request.transport)
                return web.Response()
            case "no_answer":
                self._hold_slot(exchange, until=exchange.arrival.time + PROCESSING_TIMEOUT)
                await self.listener.wait_until_closed(exchange.request)
                return web.Response()
            case "half_body":
                return self._respond_with_half(exchange, status, body)
            case "rate_limit":
                self._recorder.refusals.fault += 1
                until = self._clock.now() + fault.delay
                exchange.limit_headers = self._limit_headers(exchange.operation, 0, until)
                return self._respond_with_error(
                    exchange, self._rate_limit_error(exchange.operation)
                )
            case "parallel_limit":
                self._recorder.refusals.fault += 1
                return self._respond_with_error(exchange, self._parallel_limit_error())
        if fault.html:
            return self._respond_with_html(exchange, fault.status)
        if 300 <= fault.status < 400:
            return self._respond(exchange, fault.status, b"", {hdrs.LOCATION: "/elsewhere"})
        return self._respond(exchange, fault.status, _documented_error(fault.status).body)

    def _choose_fault(self, arrival: Arrival) -> Fault | None:
        plan = self._settings.faults
        if plan is None:
            return None
        self._accepted[arrival.operation] += 1
        info = RequestInfo(
            number=self._accepted.total(),
            operation_number=self._accepted[arrival.operation],
            operation=arrival.operation,
            chat_id=arrival.chat_id,
            time=arrival.time,
        )
        return plan(info) if callable(plan) else plan.get(info.number)

    def _execute(self, operation: Operation, call: Call) -> tuple[int, bytes]:
        try:
            return 200, operation.execute(self._api, call)
        except ApiError as error:
            return error.status, error.body

    # Access and limits

    def _check_credentials(self, request: web.BaseRequest, business_id: str | None) -> None:
        settings = self._settings
        key = request.headers.get("Api-Key")
        if key is None:
            raise ApiError(401, "UNAUTHORIZED", "Api-Key token is not specified")
        if key != settings.api_key:
            prefix = settings.api_key.partition(":")[0]
            problem = "is invalid" if key.startswith(prefix) else "prefix invalid"
            raise ApiError(401, "UNAUTHORIZED", f"Api-Key token {problem}")
        if settings.revoked:
            raise ApiError(401, "UNAUTHORIZED", "Api-Key token is revoked")
        if business_id is not None:
            number = parse_id(business_id)
            if number is None:
                raise bad_request("Value of businessId must be an int64 of at least 1")
            if number != settings.business_id:
                raise ApiError(403, "FORBIDDEN", "Access denied")

    def _check_permissions(self, exchange: _Exchange) -> None:
        settings = self._settings
        operation = exchange.operation
        if settings.inactive:
            raise ApiError(
                403,
                "FORBIDDEN",
                f"API for business {settings.business_id} disabled because it has only disabled"
                " partners",
            )
        if operation.scopes is not None and operation.scopes.isdisjoint(settings.scopes):
            raise ApiError(
                403, "FORBIDDEN", "Token does not have any of the scopes to access the API method"
            )
        if settings.locked:
            raise ApiError(423, "LOCKED", "Business is in migration")
        media_type = exchange.request.content_type
        if operation.media_type is not None and media_type != operation.media_type:
            if (
                not exchange.request.can_read_body
                and hdrs.CONTENT_TYPE not in exchange.request.headers
            ):
                raise bad_request("Required request body is missing")
            raise ApiError(
                415, "UNSUPPORTED_MEDIA_TYPE", f"Content type '{media_type}' not supported"
            )

    def _parallel_limit_error(self) -> ApiError:
        settings = self._settings
        return ApiError(
            420,
            "LIMIT_EXCEEDED",
            f"Hit rate limit of {settings.parallel} parallel requests"
            f" for businessId {settings.business_id}",
        )

    def _rate_limit_error(self, operation: Operation) -> ApiError:
        rate = self.windows[operation.name].rate
        return ApiError(
            420,
            "LIMIT_EXCEEDED",
            f"Hit rate limit of {rate.requests} requests per {describe_period(rate.per)}"
            f" for resource {operation.resource}",
        )

    def _limit_headers(
        self, operation: Operation, remaining: int, until: float
    ) -> Mapping[str, str]:
        if not self._settings.rate_limit_headers:
            return {}
        return {
            _LIMIT: str(self.windows[operation.name].rate.requests),
            _REMAINING: str(max(0, remaining)),
            _UNTIL: self._clock.http_date(until),
        }

    # Bodies

    async def _receive(self, exchange: _Exchange) -> Call:
        request = exchange.request
        try:
            if exchange.operation.media_type == JSON:
                return Call(request.query, await request.read())
            if exchange.operation.media_type == MULTIPART:
                return Call(request.query, file=await _receive_file(request))
            return Call(request.query)
        except web.HTTPRequestEntityTooLarge:
            raise bad_request(f"Request body is larger than {MAX_JSON_BODY} bytes") from None
        except OSError:
            raise _ClientDisconnectedError from None
        except (ValueError, RuntimeError, AssertionError, BadHttpMessage, web.RequestPayloadError):
            raise bad_request("Request body is malformed") from None

    def _respond_to_other_path(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith(FILES) and request.method in ("GET", "HEAD"):
            file = self._state.file(parse_id(request.path[len(FILES) :]) or 0)
            if file is not None:
                name, content = file
                headers = {
                    hdrs.DATE: self._clock.http_date(self._clock.now()),
                    hdrs.CONTENT_TYPE: "application/octet-stream",
                    hdrs.CONTENT_DISPOSITION: f"attachment; filename*=UTF-8''{quote(name)}",
                }
                return web.Response(body=content, headers=headers)
        error = not_found("Resource not found")
        return self._response(error.status, error.body)

    # Responses

    def _response(
        self, status: int, body: bytes, headers: Mapping[str, str] = {}
    ) -> web.StreamResponse:
        response = web.Response(
            body=body,
            status=status,
            reason=_REASONS.get(status),
            headers={
                hdrs.DATE: self._clock.http_date(self._clock.now()),
                hdrs.CONTENT_TYPE: JSON,
                **headers,
            },
        )
        if self._settings.keep_alive is False:
            response.force_close()
        return response

    def _respond(
        self, exchange: _Exchange, status: int, body: bytes, headers: Mapping[str, str] = {}
    ) -> web.StreamResponse:
        exchange.arrival.status = status
        return self._response(
            status,
            body,
            {
                _TRACEPARENT: self._traceparent(exchange.arrival),
                **exchange.limit_headers,
                **headers,
            },
        )

    def _respond_with_error(self, exchange: _Exchange, error: ApiError) -> web.StreamResponse:
        return self._respond(exchange, error.status, error.body)

    def _respond_with_html(self, exchange: _Exchange, status: int) -> web.StreamResponse:
        """Respond with a page like a load balancer's or a robot check's, without API headers."""
        exchange.arrival.status = status
        title = "Are you a robot?" if status == 200 else f"{status} - nginx"
        body = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return self._response(
            status, body.encode(), {hdrs.CONTENT_TYPE: "text/html; charset=utf-8"}
        )

    def _respond_with_half(
        self, exchange: _Exchange, status: int, body: bytes
    ) -> web.StreamResponse:
        exchange.arrival.status = status
        self._write_now(exchange, status, body, half=True)
        # aiohttp needs a response object; it is not sent, because the connection is closing.
        return web.Response()

    def _write_now(
        self, exchange: _Exchange, status: int, body: bytes, *, half: bool = False
    ) -> None:
        """Write a response to the connection, even if it is idle or busy with another request."""
        transport = exchange.request.transport
        if transport is None:
            return
        head = (
            f"HTTP/1.1 {status} OK\r\n"
            f"Date: {self._clock.http_date(self._clock.now())}\r\n"
            f"Content-Type: {JSON}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"{_TRACEPARENT}: {self._traceparent(exchange.arrival)}\r\n\r\n"
        )
        transport.write(head.encode() + (body[: len(body) // 2] if half else body))
        if half:
            transport.close()

    def _traceparent(self, arrival: Arrival) -> str:
        return f"00-{arrival.trace_id}-{self._ids.getrandbits(64) or 1:016x}-01"

    # Time

    async def _sleep_until(self, when: float) -> None:
        delay = when - self._clock.now()
        if delay > 0:
            await asyncio.sleep(delay)

    def _call_at(self, when: float, action: Callable[..., object], *args: Any) -> None:
        def run() -> None:
            self._timers.discard(timer)
            action(*args)

        timer = asyncio.get_running_loop().call_at(when, run)
        self._timers.add(timer)

    def _hold_slot(self, exchange: _Exchange, *, until: float) -> None:
        """Keep the parallel slot of a request that ends later than its connection."""
        if exchange.slot is not None:
            self._call_at(
                min(until, exchange.arrival.time + PROCESSING_TIMEOUT), exchange.slot.release
            )
            exchange.slot = None


def _windows(settings: Settings, now: float) -> dict[str, Window]:
    start = now - settings.window_phase
    windows: dict[str, Window] = {}
    for name, operation in OPERATIONS.items():
        rate = settings.limits.get(name, operation.limit)
        windows[name] = (
            RollingWindow(rate) if settings.window == "rolling" else FixedWindow(rate, start)
        )
    return windows


def _is_own_error(fault: Fault) -> bool:
    """Whether a fault is an error in the API's format, with which the Market ends a request."""
    return fault.kind == "status" and not fault.html and not 300 <= fault.status < 400


def _documented_error(status: int) -> ApiError:
    code, message = _ERRORS.get(status, ("ERROR", "Something went wrong"))
    return ApiError(status, code, message)


async def _receive_file(request: web.BaseRequest) -> tuple[str, bytes] | None:
    """Read the part `file`: its name and its content. None means that there is no such part."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or part.name != "file":
            continue
        content = bytearray()
        while chunk := await part.read_chunk(65536):
            content += chunk
            if len(content) > MAX_FILE:
                raise bad_request(f"File is larger than {MAX_FILE} bytes")
        return part.filename or "file", bytes(content)
    return None
