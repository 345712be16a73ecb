"""What a key is, what it may do, and what it sees."""

from __future__ import annotations

from rich.table import Table

from yamarket_chat.arguments import BASE_URL
from yamarket_chat.models import Campaign, Scope, Token
from yamarket_chat.session import ChatSession

from . import console, options, waiting

MAY_CHAT = {Scope.COMMUNICATION, Scope.ALL_METHODS}


def whoami(
    *,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GIVE_UP_AFTER,
) -> None:
    """Tell what the key may do and which businesses and shops it sees.

    It needs no business id: it is how one finds that number.

    Example: yamarket-chat whoami
    """
    # Any business id will do, as none is asked about: that of the environment may be wrong.
    session = options.connect(api_key, 1, base_url, insecure_http, give_up_after)
    waiting.read(session, give_up_after, lambda silence: _tell(session, silence, json))


async def _tell(session: ChatSession, silence: waiting.Silence, json: bool) -> None:
    token = await session.token()
    silence.heard()
    if json:
        console.data(token)
        async for shop in silence.items(session.campaigns()):
            console.data(shop)
        return
    _tell_token(token)
    shops = [shop async for shop in silence.items(session.campaigns())]
    if not shops:
        console.note("The key sees no shop")
        return
    console.table(_table(shops))


def _tell_token(token: Token) -> None:
    scopes = ", ".join(token.auth_scopes) or "none"
    console.result(f"Key: {token.name}")
    console.result(f"Scopes: {scopes}")
    if MAY_CHAT.isdisjoint(token.auth_scopes):
        console.result("It may not chat: that takes COMMUNICATION or ALL_METHODS")
    else:
        console.result("It may chat")


def _table(shops: list[Campaign]) -> Table:
    table = console.new_table("Business id", "Business", "Shop id", "Shop", "Works by", "API")
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
