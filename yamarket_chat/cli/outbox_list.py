"""The commands `outbox list` and `outbox show`: which messages there are, and one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from yamarket_chat.errors import InvalidArgumentError

from . import console, options, outbox_options

if TYPE_CHECKING:
    from yamarket_chat.outbox import OutboxEntry


def list_(
    *,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            parser=outbox_options.check_state,
            autocompletion=outbox_options.complete_state,
            help=f"Only messages in this state: {', '.join(outbox_options.STATES)}.",
            show_default=False,
        ),
    ] = None,
    chat: outbox_options.OnlyChat = None,
    key_prefix: outbox_options.KeyPrefix = None,
    after: Annotated[
        int, typer.Option(min=0, metavar="NUMBER", help="Only messages with a higher number.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of messages.")] = 100,
    json: options.Json = False,
    database: outbox_options.Database = None,
    business_id: outbox_options.OnlyBusiness = None,
) -> None:
    """List messages of the outbox by number, all or those that match all filters.

    Example: yamarket-chat outbox list --state unknown
    """
    outbox = outbox_options.open_(database)
    filtered = state or chat or key_prefix or after or business_id
    found = outbox.entries(
        business_id=business_id,
        state=state,  # type: ignore[arg-type]  # it was checked
        chat_id=chat,
        key_prefix=key_prefix,
        after=after,
        limit=limit + 1,
    )
    shown: list[OutboxEntry] = []

    async def work() -> bool:
        count = 0
        async for entry in found:
            if count == limit:
                return True
            count += 1
            if json:
                console.data(outbox_options.line_of(entry))
            shown.append(entry)
        return False

    more = outbox_options.run(outbox, work)
    if not shown:
        console.note("No message matches" if filtered else "No messages")
        return
    if not json:
        outbox_options.print_table(shown)
    if more:
        console.note(
            f"Only {console.number(len(shown), 'message')} shown; there are more, see --limit and"
            f" --after {shown[-1].number}"
        )


def show(
    number: Annotated[
        int | None,
        typer.Argument(min=1, help="The number of the message.", show_default=False),
    ] = None,
    *,
    key: Annotated[
        str | None,
        typer.Option(help="The key of the message, instead of its number.", show_default=False),
    ] = None,
    json: options.Json = False,
    database: outbox_options.Database = None,
    business_id: options.BusinessId = None,
) -> None:
    """Show all that is known of a message, by its number or by its key.

    Example: yamarket-chat outbox show --key packed-55
    """
    if (number is None) is (key is None):
        raise InvalidArgumentError("pass either NUMBER or --key")
    if key is not None and business_id is None:
        raise InvalidArgumentError("business_id is missing: a key is unique within a business")
    outbox = outbox_options.open_(database)

    async def work() -> OutboxEntry | None:
        if number is not None:
            return await outbox.get(number)
        return await outbox.get(business_id=business_id or 0, key=key or "")

    entry = outbox_options.run(outbox, work)
    if entry is None:
        name = f"message {number}" if key is None else f"message with the key {key!r}"
        console.failure(f"there is no {name}: it was never put, or is pruned")
        raise typer.Exit(1)
    if json:
        console.data(outbox_options.line_of(entry))
    else:
        outbox_options.print_details(entry)
