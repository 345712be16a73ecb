"""The command `new-chat`: start a chat."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.errors import InvalidArgumentError

from . import console, options, waiting


class _Created(msgspec.Struct):
    chat_id: int


def new_chat(
    *,
    order: Annotated[
        int | None, typer.Option(min=1, help="The id of the order that the chat is about.")
    ] = None,
    return_: Annotated[
        int | None,
        typer.Option("--return", min=1, help="The id of the return that the chat is about."),
    ] = None,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Start a chat about an order or a return. If it exists already, show its id.

    Example: yamarket-chat new-chat --order 55
    """
    if (order is None) is (return_ is None):
        raise InvalidArgumentError("pass either --order or --return")
    session = options.connect(api_key, business_id, base_url, insecure_http, give_up_after)

    async def create(_: waiting.ResponseTimer) -> None:
        chat_id = await session.create_chat(order_id=order, return_id=return_)
        if json:
            console.data(_Created(chat_id))
        else:
            about = f"return {return_}" if order is None else f"order {order}"
            console.result(f"Chat {chat_id} is about {about}")

    waiting.read(session, give_up_after, create)
