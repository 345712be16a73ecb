"""The result of a request, and the forms of the Market's answers.

The result is a value, an `Answer` or a `NoAnswer`, and never an exception of aiohttp: such an
exception carries the headers of the request, and so the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, get_origin

import msgspec
from multidict import CIMultiDictProxy, istr

from ..errors import ErrorDetail
from ..listing import Item, Page, Unreadable
from ..models import Campaign, Chat, ChatContext, Message, Received, Token

TRACEPARENT = istr("traceparent")
DATE = istr("Date")


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A response: at least its status and its headers came."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    decoded: Any  # of a 200 in the operation's form, otherwise an Envelope; None if neither fits
    began: float  # when the request was sent, on the loop's clock
    ended: float  # when the response was read
    traceparent: str | None = None  # the header
    fault: str | None = None  # why the body is not whole

    def __repr__(self) -> str:
        return f"Answer({self.status})"  # headers and body may echo the key

    @property
    def trace_id(self) -> str | None:
        """The id by which the Market finds the request: from `traceparent`, 00-<trace>-…"""
        parent = self.traceparent
        if parent is None or not parent[2:3] == parent[35:36] == "-":
            return None
        trace = parent[3:35]
        try:
            # A value that is no id may echo the key, so it is not shown. A regular expression is
            # slower.
            return trace if len(bytes.fromhex(trace)) == 16 else None
        except ValueError:
            return None


class NoAnswer(msgspec.Struct, frozen=True):
    """No response came."""

    reason: str
    sent: bool  # the request may have reached the Market
    final: bool = False  # surely not carried out, and a retry would fail likewise
    cut_short: bool = False  # the session was closed, and its grace was over
    cancelled: asyncio.CancelledError | None = None  # to be raised: the caller cancelled the call
    garbled: bool = False  # something arrived that is no HTTP response


class Envelope(msgspec.Struct):
    """The part that all answers in the API's form share: a status, and errors if there are any."""

    status: str
    errors: list[ErrorDetail] | None = None


Result = TypeVar("Result")


class Answered(Envelope, Generic[Result]):
    """An answer with a result. The Market's description lets the result be missing."""

    result: Result | None = None


class Paging(Received, frozen=True, kw_only=True):
    """The token of the next page."""

    next_page_token: str | None = None


def _next(paging: Paging | None) -> str | None:
    return (paging.next_page_token or None) if paging else None


class CreatedChat(Received, frozen=True, kw_only=True):
    """The result of createChat."""

    chat_id: int


class _List(Received, Generic[Item], frozen=True, kw_only=True):
    """A page of a list, in which each operation has a name of its own for the items."""

    items: tuple[Item, ...]
    paging: Paging | None = None

    def page(self) -> Page[Item]:
        """Return the page."""
        context = getattr(self, "context", None)
        return Page(items=self.items, next_page_token=_next(self.paging), context=context)


class ChatList(_List[Chat], frozen=True, kw_only=True):
    """The result of getChats."""

    items: tuple[Chat, ...] = msgspec.field(name="chats")


class MessageList(_List[Message], frozen=True, kw_only=True):
    """The result of getChatHistory."""

    items: tuple[Message, ...] = msgspec.field(name="messages")
    context: ChatContext


class CampaignList(_List[Campaign], frozen=True, kw_only=True):
    """The answer of getCampaigns, the only one without a status of its own."""

    items: tuple[Campaign, ...] = msgspec.field(name="campaigns")
    status: str = "OK"

    @property
    def result(self) -> Self:
        """The list itself, because it is at the top level of the answer."""
        return self


class TokenInfo(Received, frozen=True, kw_only=True):
    """The result of getAuthTokenInfo."""

    api_key: Token


Decode = Callable[[bytes], Any]
"""Decodes a body. Returns None if the body has another form."""


def decoder(form: Any) -> Decode:
    """Return the decoder of a form. It is not strict: ids may come as strings."""
    decode = msgspec.json.Decoder(form, strict=False).decode
    has_result = get_origin(form) is Answered

    def read(body: bytes) -> Any:
        try:
            answer = decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if has_result and answer.result is None and answer.status == "OK":
            return None  # an OK to another request
        return answer

    return read


decode_envelope = decoder(Envelope)


class _Ids(Received, frozen=True, kw_only=True):
    """The id of an item that cannot be decoded, if it has one."""

    message_id: Any = None
    chat_id: Any = None
    id: Any = None


class _Rows(msgspec.Struct, frozen=True):
    """A list of which some items could not be decoded."""

    items: Page[Any]

    def page(self) -> Page[Any]:
        """Return the page."""
        return self.items


class _RawList(Received, frozen=True, kw_only=True):
    """A list whose items are not decoded yet."""

    messages: list[msgspec.Raw] | None = None
    chats: list[msgspec.Raw] | None = None
    campaigns: list[msgspec.Raw] | None = None
    context: msgspec.Raw = msgspec.Raw(b"null")
    paging: Paging | None = None


class _RawCampaigns(_RawList, frozen=True, kw_only=True):
    """The same at the top level of an answer, as in getCampaigns."""

    status: str = "OK"

    @property
    def result(self) -> Self:
        """Itself."""
        return self


def list_decoder(form: Any, item: Any) -> Decode:
    """Return the decoder of a list. If the whole cannot be decoded, it decodes each item alone."""
    decode_whole = decoder(form)
    decode_raw = decoder(_RawCampaigns if form is CampaignList else Answered[_RawList])
    decode_item, decode_context = decoder(item), decoder(ChatContext)
    decode_ids = decoder(_Ids)

    def unreadable(raw: msgspec.Raw) -> Unreadable:
        ids = decode_ids(bytes(raw)) or _Ids()
        found = [str(one) for one in (ids.message_id, ids.chat_id, ids.id) if one is not None]
        text = found[0] if found else ""
        is_id = text.isascii() and text.isdecimal() and len(text) < 20
        return Unreadable(bytes(raw), int(text) if is_id else None)

    def read(body: bytes) -> Any:
        whole = decode_whole(body)
        if whole is not None:
            return whole
        answer = decode_raw(body)
        raw = None if answer is None else answer.result
        if raw is None:
            return None
        rows = next((r for r in (raw.messages, raw.chats, raw.campaigns) if r is not None), None)
        if rows is None:
            return None
        decoded = [(row, decode_item(bytes(row))) for row in rows]
        page = Page(
            items=tuple(one for _, one in decoded if one is not None),
            unreadable=tuple(unreadable(row) for row, one in decoded if one is None),
            next_page_token=_next(raw.paging),
            context=decode_context(bytes(raw.context)),
        )
        return Answered(status=answer.status, result=_Rows(page))

    return read
