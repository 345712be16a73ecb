"""The chats of the business."""

from __future__ import annotations

from typing import Annotated

import typer

from yamarket_chat.models import Chat, ChatContext, ChatStatus, ChatType, ContextType
from yamarket_chat.reading import Listing
from yamarket_chat.session import BASE_URL

from . import console, options, waiting


def chats(
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS", help=f"Only these, can be repeated: {', '.join(ChatStatus)}."
        ),
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help=f"Only these: {', '.join(ChatType)}."),
    ] = None,
    about: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help=f"Only those about: {', '.join(ContextType)}."),
    ] = None,
    order: Annotated[
        list[int] | None, typer.Option(min=1, help="Only those about this order.")
    ] = None,
    return_: Annotated[
        list[int] | None, typer.Option("--return", min=1, help="Only those about this return.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """List the chats, all of them or those that every filter lets through.

    Example: yamarket-chat chats --status WAITING_FOR_PARTNER
    """
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)

    async def tell() -> None:
        # An option that is not given is an empty list here, which the SDK takes for a filter.
        found = session.chats(
            statuses=_upper(status),
            types=_upper(type_),
            context_types=_upper(about),
            order_ids=order or None,
            return_ids=return_ or None,
        )
        await _tell(found, limit, json)

    waiting.read(session, "chats", give_up_after, tell())


def _upper(values: list[str] | None) -> list[str] | None:
    return [value.upper() for value in values] if values else None


async def _tell(found: Listing[Chat], limit: int, json: bool) -> None:
    table = console.new_table("Chat", "Status", "About", "Buyer", "Last change")
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
            updated = console.moment(chat.updated_at)
            status = chat.status if chat.type == ChatType.CHAT else f"{chat.status} ({chat.type})"
            table.add_row(
                *console.cells(chat.chat_id, status, about_what(chat.context), buyer, updated)
            )
    if shown and not json:
        console.table(table)
    if more:
        console.note(f"There are more than {shown}: see --limit")
    elif not shown:
        console.note("No such chat")


def about_what(context: ChatContext) -> str:
    """What a chat is about, in few words."""
    if context.return_id is not None:
        return f"return {context.return_id}"
    if context.order_id is not None:
        return f"order {context.order_id}"
    return "a question" if context.type == ContextType.DIRECT else context.type.lower()
