"""What came back of a request, and the forms of the Market's answers.

What was seen is a value, an `Answer` or a `NoAnswer`, and never an exception of aiohttp: those
carry the headers of the request, and with them the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import msgspec
from multidict import CIMultiDictProxy, istr

from ..errors import ErrorDetail
from ..listing import Page
from ..models import Campaign, Chat, ChatContext, Message, Received, Token

TRACEPARENT = istr("traceparent")


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A response: at least its status and its headers came."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    decoded: Any  # a 200: the operation's form; otherwise an Envelope; None if it has another form
    began: float  # when the request was sent, on the loop's clock
    ended: float  # when the response was read
    fault: str | None = None  # why the body is not whole

    def __repr__(self) -> str:
        return f"Answer({self.status})"  # headers and body may echo the key

    @property
    def trace_id(self) -> str | None:
        """The id by which the Market finds the request: from `traceparent`, 00-<trace>-…"""
        parent = self.headers.get(TRACEPARENT, "")
        if not parent[2:3] == parent[35:36] == "-":
            return None
        trace = parent[3:35]
        try:
            # What is no id is not shown: it may echo the key. A regular expression is slower.
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
    garbled: bool = False  # something came that is no answer of HTTP


class Envelope(msgspec.Struct):
    """What every answer in the API's form has: a status, and errors if there are any."""

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


class ChatList(Received, frozen=True, kw_only=True):
    """The result of getChats."""

    chats: tuple[Chat, ...]
    paging: Paging | None = None

    def page(self) -> Page[Chat]:
        """Return the page."""
        return Page(items=self.chats, next_page_token=_next(self.paging))


class MessageList(Received, frozen=True, kw_only=True):
    """The result of getChatHistory."""

    context: ChatContext
    messages: tuple[Message, ...]
    paging: Paging | None = None

    def page(self) -> Page[Message]:
        """Return the page."""
        return Page(
            items=self.messages,
            next_page_token=_next(self.paging),
            context=self.context,
        )


class CampaignList(Received, frozen=True, kw_only=True):
    """The answer of getCampaigns, the only one without a status of its own."""

    campaigns: tuple[Campaign, ...]
    paging: Paging | None = None
    status: str = "OK"

    @property
    def result(self) -> Self:
        """The list itself: it stands at the top of the answer."""
        return self

    def page(self) -> Page[Campaign]:
        """Return the page."""
        return Page(items=self.campaigns, next_page_token=_next(self.paging))


class TokenInfo(Received, frozen=True, kw_only=True):
    """The result of getAuthTokenInfo."""

    api_key: Token


Decode = Callable[[bytes], Any]
"""Decodes a body; returns None if the body has another form."""


def decoder(form: Any) -> Decode:
    """Return the decoder of a form. It is not strict: ids may come as strings."""
    decode = msgspec.json.Decoder(form, strict=False).decode

    def read(body: bytes) -> Any:
        try:
            return decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    return read


decode_envelope = decoder(Envelope)
