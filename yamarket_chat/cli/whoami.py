"""The command `whoami`: show what a key may do and which shops it can access."""

from __future__ import annotations

from rich.table import Table

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.models import Campaign, Scope, Token
from yamarket_chat.session import ChatSession

from . import console, options, waiting

CHAT_SCOPES = {Scope.COMMUNICATION, Scope.ALL_METHODS}


def whoami(
    *,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Show what the key may do, and which businesses and shops it can access.

    This command needs no business id. Use it to find the id.

    Example: yamarket-chat whoami
    """
    # These requests use no business id, so a wrong one in the environment must not matter.
    session = options.connect(api_key, 1, base_url, insecure_http, give_up_after)
    waiting.read(session, give_up_after, lambda timer: _show(session, timer, json))


async def _show(session: ChatSession, timer: waiting.ResponseTimer, json: bool) -> None:
    token = await session.token()
    timer.response_received()
    if json:
        console.data(token)
        async for shop in timer.items(session.campaigns()):
            console.data(shop)
        return
    _print_token(token)
    shops = [shop async for shop in timer.items(session.campaigns())]
    if not shops:
        console.note("The key has access to no shops")
        return
    console.table(_table(shops))


def _print_token(token: Token) -> None:
    scopes = ", ".join(token.auth_scopes) or "none"
    console.result(f"Key: {token.name}")
    console.result(f"Scopes: {scopes}")
    if CHAT_SCOPES.isdisjoint(token.auth_scopes):
        console.result("Chat: not allowed; the key needs the scope COMMUNICATION or ALL_METHODS")
    else:
        console.result("Chat: allowed")


def _table(shops: list[Campaign]) -> Table:
    table = console.new_table("Business id", "Business", "Shop id", "Shop", "Model", "API")
    for shop in shops:
        business = shop.business
        table.add_row(
            *console.cells(
                business and business.id,
                business and business.name,
                shop.id,
                shop.domain,
                shop.placement_type,
                shop.api_availability,
            )
        )
    return table
