"""The documented operations: their parameters, checks, effects and responses. No HTTP here."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Rate

from . import wire
from .state import ChatRecord, State, StoredMessage

MAX_JSON_BODY = 512 * 1024
MAX_FILE = 5 * 1024 * 1024

JSON = "application/json"
MULTIPART = "multipart/form-data"

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=wire.Request)

_encoder = msgspec.json.Encoder()
OK_BODY = b'{"status":"OK"}'


class ApiError(Exception):
    """A documented error: its HTTP status, its code and its text."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    @property
    def body(self) -> bytes:
        return _encoder.encode(wire.Errors([wire.ErrorDetail(self.code, self.message)]))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BAD_REQUEST", message)


def not_found(message: str) -> ApiError:
    return ApiError(404, "NOT_FOUND", message)


class Call(msgspec.Struct, frozen=True):
    """A request that passed the limits: the parameters of its URL, and its body or its file."""

    query: Mapping[str, str]
    body: bytes = b""
    file: tuple[str, bytes] | None = None


class Seller(msgspec.Struct, frozen=True):
    """What the operations campaigns and token return about the seller."""

    business_id: int
    campaigns: int
    token_name: str
    scopes: Sequence[str]


class Api:
    """Executes the operations on the state."""

    def __init__(self, state: State, seller: Callable[[], Seller], *, strip_spaces: bool) -> None:
        self._state = state
        self._seller = seller
        self._strip_spaces = strip_spaces

    def send_message(self, call: Call) -> bytes:
        chat_id = _required_id(call.query, "chatId")
        text = _decode(_SEND_MESSAGE, call.body).message
        if self._strip_spaces:
            text = text.strip()
            if not text:
                raise bad_request("Value of message must not be blank")
        self._state.store(self._chat(chat_id), "PARTNER", text)
        return OK_BODY

    def send_file(self, call: Call) -> bytes:
        chat_id = _required_id(call.query, "chatId")
        if call.file is None:
            raise bad_request("Required request part 'file' is not present")
        self._state.store(self._chat(chat_id), "PARTNER", None, [call.file])
        return OK_BODY

    def create_chat(self, call: Call) -> bytes:
        request = _decode(_CREATE_CHAT, call.body)
        if request.context is not msgspec.UNSET:
            chat = self._state.chat_for(request.context.type, request.context.id)
        elif request.order_id is not msgspec.UNSET:
            if request.order_id < 1:
                raise not_found(f"Order not found: {request.order_id}")
            chat = self._state.chat_for("ORDER", request.order_id)
        else:
            raise bad_request("Value of context must not be null")
        return _ok(wire.CreatedChat(chat.chat_id))

    def get_chat(self, call: Call) -> bytes:
        return _ok(self._chat_row(self._chat(_required_id(call.query, "chatId"))))

    def chats(self, call: Call) -> bytes:
        limit = _limit(call.query, default=10, maximum=20)
        position = _page_token(call.query, "chats")
        request = _decode(_GET_CHATS, call.body)
        matches = _chat_filter(request)
        chats: list[wire.Chat] = []
        token = None
        for next_position, chat in self._state.chats_from(position or 0):
            if not matches(chat):
                continue
            if len(chats) == limit:
                token = _encode_token("chats", position or 0)
                break
            chats.append(self._chat_row(chat))
            position = next_position
        return _ok(wire.ChatPage(chats, wire.Paging(token)))

    def history(self, call: Call) -> bytes:
        chat_id = _required_id(call.query, "chatId")
        kind = f"history.{chat_id}"
        limit = _limit(call.query, default=50, maximum=100)
        after_id = _page_token(call.query, kind)
        from_id = _decode(_GET_HISTORY, call.body).message_id_from
        chat = self._chat(chat_id)
        page = self._state.history(
            chat,
            from_id=None if from_id is msgspec.UNSET else from_id,
            after_id=after_id,
            limit=limit,
        )
        token = None if page.last_id is None else _encode_token(kind, page.last_id)
        return _ok(
            wire.MessagePage(
                self._context(chat),
                [_message_row(message) for message in page.messages],
                wire.Paging(token),
                chat.order_id,
            )
        )

    def get_message(self, call: Call) -> bytes:
        chat_id = _required_id(call.query, "chatId")
        message_id = _required_id(call.query, "messageId")
        message = self._state.message(self._chat(chat_id), message_id)
        if message is None:
            raise not_found(f"Can't find message by id: {message_id} for chat {chat_id}")
        return _ok(_message_row(message))

    def campaigns(self, call: Call) -> bytes:
        seller = self._seller()
        limit = _limit(call.query, default=None, maximum=100)
        page_size = min(100, max(1, _int32(call.query, "pageSize") or 50))
        page = max(1, _int32(call.query, "page") or 1)
        if page > 10_000:
            raise bad_request("Value of page must be less than or equal to 10000")
        start = _page_token(call.query, "campaigns")
        size = limit or page_size
        if start is None:
            start = (page - 1) * size
        numbers = range(seller.campaigns)[start : start + size]
        more = start + size < seller.campaigns
        business = wire.Business(seller.business_id, f"Business {seller.business_id}")
        return _encoder.encode(
            wire.CampaignPage(
                [
                    wire.Campaign(
                        id=FIRST_CAMPAIGN + number,
                        domain=f"shop-{number + 1}.example",
                        client_id=2_000_001 + number,
                        business=business,
                        placement_type="FBS",
                        api_availability="AVAILABLE",
                    )
                    for number in numbers
                ],
                wire.Pager(
                    total=seller.campaigns,
                    from_=start + 1,
                    to=start + len(numbers),
                    current_page=start // size + 1,
                    pages_count=math.ceil(seller.campaigns / size),
                    page_size=size,
                ),
                wire.Paging(_encode_token("campaigns", start + size) if more else None),
            )
        )

    def token(self, call: Call) -> bytes:
        seller = self._seller()
        return _ok(wire.Token(wire.ApiKey(seller.token_name, list(dict.fromkeys(seller.scopes)))))

    def _chat(self, chat_id: int) -> ChatRecord:
        chat = self._state.chat(chat_id)
        if chat is None:
            raise not_found(f"Can't find chat by id: {chat_id}")
        return chat

    def _chat_row(self, chat: ChatRecord) -> wire.Chat:
        return wire.Chat(
            chat_id=chat.chat_id,
            context=self._context(chat),
            type=chat.type,
            status=chat.status,
            created_at=chat.created_at,
            updated_at=chat.updated_at,
            order_id=chat.order_id,
        )

    def _context(self, chat: ChatRecord) -> wire.Context:
        return wire.Context(
            type=chat.context_type,
            customer=wire.Customer(f"Buyer {chat.chat_id}", f"buyer{chat.chat_id}"),
            campaign_id=FIRST_CAMPAIGN,
            order_id=chat.order_id,
            return_id=chat.return_id,
        )


FIRST_CAMPAIGN = 1_001


class Operation(msgspec.Struct, frozen=True):
    """One documented operation.

    `path` follows /v2/businesses/ID or, if `outside_business` is set, the host.
    """

    name: str
    resource: str
    method: Literal["GET", "POST"]
    path: str
    limit: Rate
    execute: Callable[[Api, Call], bytes]
    media_type: str | None = None
    scopes: frozenset[wire.Scope] | None = None
    outside_business: bool = False


_WRITE: frozenset[wire.Scope] = frozenset({"ALL_METHODS", "COMMUNICATION"})
_READ: frozenset[wire.Scope] = _WRITE | {"ALL_METHODS_READ_ONLY"}


def _per_hour(requests: int) -> Rate:
    return Rate(requests, per=3600)


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            "send_message",
            "sendMessageToChat",
            "POST",
            "/chats/message",
            _per_hour(1000),
            Api.send_message,
            JSON,
            _WRITE,
        ),
        Operation(
            "send_file",
            "sendFileToChat",
            "POST",
            "/chats/file/send",
            _per_hour(1000),
            Api.send_file,
            MULTIPART,
            _WRITE,
        ),
        Operation(
            "create_chat",
            "createChat",
            "POST",
            "/chats/new",
            _per_hour(1000),
            Api.create_chat,
            JSON,
            _WRITE,
        ),
        Operation(
            "get_chat", "getChat", "GET", "/chat", _per_hour(1000), Api.get_chat, scopes=_READ
        ),
        Operation("chats", "getChats", "POST", "/chats", _per_hour(5000), Api.chats, JSON, _READ),
        Operation(
            "history",
            "getChatHistory",
            "POST",
            "/chats/history",
            _per_hour(10_000),
            Api.history,
            JSON,
            _READ,
        ),
        Operation(
            "get_message",
            "getChatMessage",
            "GET",
            "/chats/message",
            _per_hour(1000),
            Api.get_message,
            scopes=_READ,
        ),
        Operation(
            "campaigns",
            "getCampaigns",
            "GET",
            "/v2/campaigns",
            _per_hour(1000),
            Api.campaigns,
            outside_business=True,
        ),
        Operation(
            "token",
            "getAuthTokenInfo",
            "POST",
            "/v2/auth/token",
            _per_hour(100),
            Api.token,
            outside_business=True,
        ),
    )
}


# Parameters and bodies

_SEND_MESSAGE = msgspec.json.Decoder(wire.SendMessageRequest)
_CREATE_CHAT = msgspec.json.Decoder(wire.CreateChatRequest)
_GET_CHATS = msgspec.json.Decoder(wire.GetChatsRequest)
_GET_HISTORY = msgspec.json.Decoder(wire.GetHistoryRequest)


def parse_id(text: str) -> int | None:
    """Parse an int64 of at least 1. None means that the text is something else."""
    if not (text.isascii() and text.isdigit()) or len(text) > 100:
        return None
    number = int(text)
    return number if 1 <= number <= wire.MAX_INT64 else None


def _required_id(query: Mapping[str, str], name: str) -> int:
    text = query.get(name)
    if text is None:
        raise bad_request(f"Required parameter '{name}' is not present")
    number = parse_id(text)
    if number is None:
        raise bad_request(f"Value of {name} must be an int64 greater than or equal to 1")
    return number


def _int32(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 100:
        number = int(text)
        if -wire.MAX_INT32 - 1 <= number <= wire.MAX_INT32:
            return number
    raise bad_request(f"Value of {name} must be an int32")


def _limit(query: Mapping[str, str], *, default: T, maximum: int) -> int | T:
    limit = _int32(query, "limit")
    if limit is None:
        return default
    if not 1 <= limit <= maximum:
        raise bad_request(f"Value of limit must be between 1 and {maximum}")
    return limit


def _encode_token(kind: str, number: int) -> str:
    return base64.urlsafe_b64encode(f"{kind}:{number}".encode()).decode()


def _page_token(query: Mapping[str, str], kind: str) -> int | None:
    token = query.get("pageToken", query.get("page_token"))
    if not token:
        return None
    try:
        found, _, number = base64.urlsafe_b64decode(token).decode().partition(":")
    except (binascii.Error, ValueError):
        found = number = ""
    position = parse_id(number)
    if found != kind or position is None:
        raise bad_request("Invalid page token")
    return position


def _decode(decoder: msgspec.json.Decoder[RequestT], body: bytes) -> RequestT:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_request("Request body is not valid JSON") from None


def _chat_filter(request: wire.GetChatsRequest) -> Callable[[ChatRecord], bool]:
    order_ids = _distinct("orderIds", request.order_ids)
    contexts = _distinct(
        "contexts",
        request.contexts and [(context.type, context.id) for context in request.contexts],
    )
    context_types = _distinct("contextTypes", request.context_types)
    types = _distinct("types", request.types)
    statuses = _distinct("statuses", request.statuses)

    def matches(chat: ChatRecord) -> bool:
        return (
            (order_ids is None or chat.order_id in order_ids)
            and (contexts is None or (chat.context_type, chat.identifier) in contexts)
            and (context_types is None or chat.context_type in context_types)
            and (types is None or chat.type in types)
            and (statuses is None or chat.status in statuses)
        )

    return matches


def _distinct(name: str, values: Sequence[Any] | None) -> set[Any] | None:
    if values is None:
        return None
    distinct = set(values)
    if len(distinct) != len(values):
        raise bad_request(f"Values of {name} must be unique")
    return distinct


# Responses


def _ok(result: Any) -> bytes:
    return _encoder.encode(wire.Ok(result))


def _message_row(message: StoredMessage) -> wire.Message:
    return wire.Message(
        message.message_id,
        message.created_at,
        message.sender,
        message.text,
        [wire.Payload(file.name, file.url, file.size) for file in message.payload] or None,
    )


def check_operation(name: str) -> None:
    """Raise InvalidArgumentError if there is no operation of this name."""
    if name not in OPERATIONS:
        raise InvalidArgumentError(
            f"there is no operation {name!r}; pass one of {', '.join(OPERATIONS)}"
        )
