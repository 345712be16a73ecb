"""What happens to one request between its arrival and its answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http_exceptions import BadHttpMessage

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
from .books import Arrival, Books
from .clock import Clock
from .faults import Fault, RequestInfo
from .limits import FixedWindow, Place, Places, RollingWindow, Window, describe_period
from .listener import Listener, reset
from .settings import Settings
from .state import State

CUT_OFF = 10.0
FILES = "/files/"

_BUSINESS = "/v2/businesses/"
_LIMIT = "X-RateLimit-Resource-Limit"
_REMAINING = "X-RateLimit-Resource-Remaining"
_UNTIL = "X-RateLimit-Resource-Until"
_TRACEPARENT = "traceparent"

_REASONS = {420: "Enhance Your Calm"}
_FAILURES = {
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


def _routes(*, anywhere: bool) -> dict[str, dict[str, Operation]]:
    routes: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS.values():
        if operation.anywhere is anywhere:
            routes.setdefault(operation.path, {})[operation.method] = operation
    return routes


_BUSINESS_ROUTES = _routes(anywhere=False)
_OTHER_ROUTES = _routes(anywhere=True)


class _ClientGoneError(Exception):
    """The client left before the whole of its request was here."""


class _Visit(msgspec.Struct):
    """One request to an operation, and what each answer to it says."""

    request: web.BaseRequest
    operation: Operation
    arrival: Arrival
    limit_headers: Mapping[str, str] = {}
    place: Place | None = None


class Front:
    """Checks, counts, delays, carries out and answers; makes fail what is to fail."""

    def __init__(
        self, settings: Settings, clock: Clock, state: State, api: Api, books: Books
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state = state
        self._api = api
        self._books = books
        self._let_in: Counter[str] = Counter()
        self._timers: set[asyncio.TimerHandle] = set()
        self.places = Places()
        self.windows = _windows(settings, clock.now())
        keep_alive = settings.keep_alive
        self.listener = Listener(
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

    # The way of a request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        business_id: str | None = None
        if path.startswith(_BUSINESS):
            business_id, slash, rest = path[len(_BUSINESS) :].partition("/")
            methods = _BUSINESS_ROUTES.get(slash + rest)
        else:
            methods = _OTHER_ROUTES.get(path)
        if methods is None:
            return self._outside_the_api(request)
        operation = methods.get(request.method)
        if operation is None:
            error = ApiError(
                405, "METHOD_NOT_ALLOWED", f"Request method '{request.method}' not supported"
            )
            return self._answer(error.status, error.body, {"Allow": ", ".join(methods)})
        return await self._visit(request, operation, business_id)

    async def _visit(
        self, request: web.BaseRequest, operation: Operation, business_id: str | None
    ) -> web.StreamResponse:
        """Let a request in, or refuse it at once."""
        now = self._clock.now()
        arrival = Arrival(
            now,
            operation.name,
            parse_id(request.query.get("chatId", "")),
            self.places.in_progress + 1,
            counted=False,
            trace_id=f"{random.getrandbits(128) or 1:032x}",
        )
        visit = _Visit(request, operation, arrival)
        try:
            self._check_seller(request, business_id)
        except ApiError as error:
            self._books.arrived(arrival)
            return self._answer_error(visit, error)

        window = self.windows[operation.name]
        arrival.counted = window.take(now) == 1
        visit.limit_headers = self._limit_headers(
            operation, window.rate.requests - window.used(now), window.until(now)
        )
        self._books.arrived(arrival)
        place = self.places.take(self._settings.parallel)
        if place is None:
            self._books.refusals.parallel += 1
            return self._answer_error(visit, self._too_many_at_once())
        visit.place = place
        try:
            if not arrival.counted:
                self._books.refusals.rate += 1
                return self._answer_error(visit, self._too_many_over_time(operation))
            return await self._serve(visit)
        finally:
            if visit.place is not None:
                visit.place.release()

    async def _serve(self, visit: _Visit) -> web.StreamResponse:
        """Answer a request that was let in."""
        arrival = visit.arrival
        fault = self._choose_fault(arrival)
        deadline = arrival.time + CUT_OFF
        try:
            self._check_access(visit)
            async with asyncio.timeout_at(deadline):
                call = await self._receive(visit)
        except ApiError as error:
            return self._answer_error(visit, error)
        except TimeoutError:
            return self._answer_error(visit, _failure(504))
        except _ClientGoneError:
            return web.Response()

        latency = self._settings.latency
        answer_at = arrival.time + (latency() if callable(latency) else latency)
        if fault is not None and fault.kind == "slow":
            answer_at += fault.delay
            fault = None
        await self._sleep_until(min(answer_at, deadline))
        if answer_at > deadline:
            return self._answer_error(visit, _failure(504))
        if fault is None:
            return self._answer_visit(visit, *self._carry_out(visit.operation, call))
        return await self._fail(visit, call, fault)

    async def _fail(self, visit: _Visit, call: Call, fault: Fault) -> web.StreamResponse:
        status, body = 200, OK_BODY
        if fault.when == "after":
            status, body = self._carry_out(visit.operation, call)
        elif fault.when == "later":
            then = self._clock.now() + fault.delay
            self._at(then, self._carry_out, visit.operation, call)
            self._hold_place(visit, until=then)

        match fault.kind:
            case "reset":
                if visit.request.transport is not None:
                    reset(visit.request.transport)
                return web.Response()
            case "no_answer":
                self._hold_place(visit, until=visit.arrival.time + CUT_OFF)
                await self.listener.wait_until_gone(visit.request)
                return web.Response()
            case "half_body":
                return self._answer_half(visit, status, body)
            case "rate_limit":
                self._books.refusals.fault += 1
                until = self._clock.now() + fault.delay
                visit.limit_headers = self._limit_headers(visit.operation, 0, until)
                return self._answer_error(visit, self._too_many_over_time(visit.operation))
            case "parallel_limit":
                self._books.refusals.fault += 1
                return self._answer_error(visit, self._too_many_at_once())
        if fault.html:
            return self._answer_html(visit, fault.status)
        if 300 <= fault.status < 400:
            return self._answer_visit(visit, fault.status, b"", {hdrs.LOCATION: "/elsewhere"})
        return self._answer_visit(visit, fault.status, _failure(fault.status).body)

    def _choose_fault(self, arrival: Arrival) -> Fault | None:
        plan = self._settings.faults
        if plan is None:
            return None
        self._let_in[arrival.operation] += 1
        info = RequestInfo(
            number=self._let_in.total(),
            operation_number=self._let_in[arrival.operation],
            operation=arrival.operation,
            chat_id=arrival.chat_id,
            time=arrival.time,
        )
        return plan(info) if callable(plan) else plan.get(info.number)

    def _carry_out(self, operation: Operation, call: Call) -> tuple[int, bytes]:
        try:
            return 200, operation.carry_out(self._api, call)
        except ApiError as error:
            return error.status, error.body

    # Who may, and how much

    def _check_seller(self, request: web.BaseRequest, business_id: str | None) -> None:
        settings = self._settings
        key = request.headers.get("Api-Key")
        if key is None:
            raise ApiError(401, "UNAUTHORIZED", "Api-Key token is not specified")
        if key != settings.api_key:
            prefix = settings.api_key.partition(":")[0]
            fault = "is invalid" if key.startswith(prefix) else "prefix invalid"
            raise ApiError(401, "UNAUTHORIZED", f"Api-Key token {fault}")
        if settings.revoked:
            raise ApiError(401, "UNAUTHORIZED", "Api-Key token is revoked")
        if business_id is not None:
            number = parse_id(business_id)
            if number is None:
                raise bad_request("Value of businessId must be an int64 of at least 1")
            if number != settings.business_id:
                raise ApiError(403, "FORBIDDEN", "Access denied")

    def _check_access(self, visit: _Visit) -> None:
        settings = self._settings
        operation = visit.operation
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
        media_type = visit.request.content_type
        if operation.media_type is not None and media_type != operation.media_type:
            if not visit.request.can_read_body and hdrs.CONTENT_TYPE not in visit.request.headers:
                raise bad_request("Required request body is missing")
            raise ApiError(
                415, "UNSUPPORTED_MEDIA_TYPE", f"Content type '{media_type}' not supported"
            )

    def _too_many_at_once(self) -> ApiError:
        settings = self._settings
        return ApiError(
            420,
            "LIMIT_EXCEEDED",
            f"Hit rate limit of {settings.parallel} parallel requests"
            f" for businessId {settings.business_id}",
        )

    def _too_many_over_time(self, operation: Operation) -> ApiError:
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

    async def _receive(self, visit: _Visit) -> Call:
        request = visit.request
        try:
            if visit.operation.media_type == JSON:
                return Call(request.query, await request.read())
            if visit.operation.media_type == MULTIPART:
                return Call(request.query, file=await _receive_file(request))
            return Call(request.query)
        except web.HTTPRequestEntityTooLarge:
            raise bad_request(f"Request body is larger than {MAX_JSON_BODY} bytes") from None
        except OSError:
            raise _ClientGoneError from None
        except (ValueError, RuntimeError, AssertionError, BadHttpMessage, web.RequestPayloadError):
            raise bad_request("Request body is malformed") from None

    def _outside_the_api(self, request: web.BaseRequest) -> web.StreamResponse:
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
        return self._answer(error.status, error.body)

    # Answers

    def _answer(
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

    def _answer_visit(
        self, visit: _Visit, status: int, body: bytes, headers: Mapping[str, str] = {}
    ) -> web.StreamResponse:
        visit.arrival.status = status
        return self._answer(
            status,
            body,
            {_TRACEPARENT: _traceparent(visit.arrival), **visit.limit_headers, **headers},
        )

    def _answer_error(self, visit: _Visit, error: ApiError) -> web.StreamResponse:
        return self._answer_visit(visit, error.status, error.body)

    def _answer_html(self, visit: _Visit, status: int) -> web.StreamResponse:
        """A page of a balancer or a robot check, which knows nothing of the API's headers."""
        visit.arrival.status = status
        title = "Are you a robot?" if status == 200 else f"{status} - nginx"
        body = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return self._answer(status, body.encode(), {hdrs.CONTENT_TYPE: "text/html; charset=utf-8"})

    def _answer_half(self, visit: _Visit, status: int, body: bytes) -> web.StreamResponse:
        visit.arrival.status = status
        transport = visit.request.transport
        if transport is not None:
            head = (
                f"HTTP/1.1 {status} OK\r\n"
                f"Date: {self._clock.http_date(self._clock.now())}\r\n"
                f"Content-Type: {JSON}\r\n"
                f"Content-Length: {len(body)}\r\n"
                f"{_TRACEPARENT}: {_traceparent(visit.arrival)}\r\n\r\n"
            )
            transport.write(head.encode() + body[: len(body) // 2])
            transport.close()
        # Nobody sees this one: the connection is closed.
        return web.Response()

    # Time

    async def _sleep_until(self, moment: float) -> None:
        delay = moment - self._clock.now()
        if delay > 0:
            await asyncio.sleep(delay)

    def _at(self, moment: float, action: Callable[..., object], *args: Any) -> None:
        def act() -> None:
            self._timers.discard(timer)
            action(*args)

        timer = asyncio.get_running_loop().call_at(moment, act)
        self._timers.add(timer)

    def _hold_place(self, visit: _Visit, *, until: float) -> None:
        """Keep the place of a request that ends later than its connection."""
        if visit.place is not None:
            self._at(min(until, visit.arrival.time + CUT_OFF), visit.place.release)
            visit.place = None


def _windows(settings: Settings, now: float) -> dict[str, Window]:
    start = now - settings.window_phase
    windows: dict[str, Window] = {}
    for name, operation in OPERATIONS.items():
        rate = settings.limits.get(name, operation.limit)
        windows[name] = (
            RollingWindow(rate) if settings.window == "rolling" else FixedWindow(rate, start)
        )
    return windows


def _failure(status: int) -> ApiError:
    code, message = _FAILURES.get(status, ("ERROR", "Something went wrong"))
    return ApiError(status, code, message)


def _traceparent(arrival: Arrival) -> str:
    return f"00-{arrival.trace_id}-{random.getrandbits(64) or 1:016x}-01"


async def _receive_file(request: web.BaseRequest) -> tuple[str, bytes] | None:
    """The name and the content of the part `file`; None where there is no such part."""
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
