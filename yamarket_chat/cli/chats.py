"""The command `chats`: list the chats of the business."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, TypeVar

import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.models import Chat, ChatContext, ChatStatus, ChatType, ContextType

from . import console, options, waiting

Known = TypeVar("Known", ChatStatus, ChatType, ContextType)


def _one_of(kind: type[Known]) -> Callable[[str], Known]:
    # A parser, because typer would show the names of an enum in lower case.
    def parse(text: str) -> Known:
        if text.upper() not in list(kind):
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(kind)}")
        return kind(text.upper())

    return parse


def _completion(kind: type[Known]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in kind if name.startswith(incomplete.upper())]

    return complete


def chats(
    *,
    status: Annotated[
        list[ChatStatus] | None,
        typer.Option(
            metavar="STATUS",
            parser=_one_of(ChatStatus),
            autocompletion=_completion(ChatStatus),
            help=f"Only chats with this status; can be repeated. One of: {', '.join(ChatStatus)}.",
        ),
    ] = None,
    type_: Annotated[
        list[ChatType] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            parser=_one_of(ChatType),
            autocompletion=_completion(ChatType),
            help=f"Only chats of this type; can be repeated. One of: {', '.join(ChatType)}.",
        ),
    ] = None,
    about: Annotated[
        list[ContextType] | None,
        typer.Option(
            metavar="WHAT",
            parser=_one_of(ContextType),
            autocompletion=_completion(ContextType),
            help="Only chats with this subject; can be repeated. One of:"
            f" {', '.join(ContextType)}.",
        ),
    ] = None,
    order: Annotated[
        list[int] | None, typer.Option(min=1, help="Only chats about the order with this id.")
    ] = None,
    return_: Annotated[
        list[int] | None,
        typer.Option("--return", min=1, help="Only chats about the return with this id."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of chats.")] = 100,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """List all chats, or those that match all filters.

    Example: yamarket-chat chats --status WAITING_FOR_PARTNER
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)

    async def list_chats(timer: waiting.ResponseTimer) -> None:
        # typer passes an empty list for a missing option, but the SDK treats it as a filter.
        found = session.chats(
            statuses=status or None,
            types=type_ or None,
            context_types=about or None,
            order_ids=order or None,
            return_ids=return_ or None,
        )
        if not await _print_chats(timer.items(found), limit, json):
            filtered = status or type_ or about or order or return_
            console.note("No chat matches" if filtered else "No chats")

    waiting.read(session, give_up_after, list_chats)


async def _print_chats(found: AsyncIterator[Chat], limit: int, json: bool) -> int:
    table = console.new_table("Chat", "Status", "About", "Buyer", "Updated")
    # To fit 80 columns, only the columns About and Buyer may wrap.
    table.padding = 0
    table.show_edge = False
    for number in (0, 1, 4):
        table.columns[number].no_wrap = True
    shown = 0
    more = False
    async for chat in found:
        if shown == limit:
            more = True
            break
        shown += 1
        if json:
            console.data(chat)
        else:
            buyer = chat.context.customer and chat.context.customer.name
            updated = f"{chat.updated_at.astimezone():%Y-%m-%d %H:%M}"
            about = describe_context(chat.context)
            if chat.type != ChatType.CHAT:
                about += f" ({chat.type})"
            table.add_row(*console.cells(chat.chat_id, chat.status, about, buyer, updated))
    if shown and not json:
        console.table(table)
    if more:
        console.note(f"Only {console.number(shown, 'chat')} shown; there are more, see --limit")
    return shown


def describe_context(context: ChatContext) -> str:
    """Describe in a few words what a chat is about."""
    if context.return_id is not None:
        return f"return {context.return_id}"
    if context.order_id is not None:
        return f"order {context.order_id}"
    return "a question" if context.type == ContextType.DIRECT else context.type.lower()
