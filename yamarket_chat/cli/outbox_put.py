"""The command `outbox put`: put a text or a file, to be sent by a process that delivers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from yamarket_chat.errors import InvalidArgumentError

from . import console, options, outbox_options

if TYPE_CHECKING:
    from yamarket_chat.outbox import OutboxFile, OutboxMessage, OutboxState


class _Put(msgspec.Struct):
    number: int


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write 2026-12-31T15:00, or 2026-12-31T15:00+03:00"
        ) from None
    try:
        return moment.astimezone()  # without a time zone, that of this machine
    except (OverflowError, OSError):
        raise typer.BadParameter(f"{text!r} is out of range") from None


def put(
    chat_id: Annotated[
        str | None,
        typer.Argument(
            metavar="CHAT_ID",
            help="The id of the chat; leave it out with --order or --return.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="The text, 1 to 4,096 characters; leave it out with --file. - reads standard"
            " input.",
            show_default=False,
        ),
    ] = None,
    *,
    order: Annotated[
        int | None, typer.Option(min=1, help="Send to the chat of this order.", show_default=False)
    ] = None,
    return_: Annotated[
        int | None,
        typer.Option(
            "--return", min=1, help="Send to the chat of this return.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Send this file, at most 5 MiB.", show_default=False),
    ] = None,
    name: options.FileName = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="A name of yours for the message: what is put again under its key is not put"
            " twice.",
            show_default=False,
        ),
    ] = None,
    bulk: Annotated[
        bool, typer.Option("--bulk", help="Send it after all messages that are not bulk.")
    ] = False,
    not_before: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME", parser=_moment, help="The earliest time to send it.", show_default=False
        ),
    ] = None,
    not_after: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME", parser=_moment, help="The latest time to send it.", show_default=False
        ),
    ] = None,
    json: options.Json = False,
    database: outbox_options.Database = None,
    business_id: options.BusinessId = None,
) -> None:
    """Put a message into the outbox, and print its number once it is committed.

    It needs no key of the Market's: a process that delivers sends the message. A TIME is such as
    2026-12-31T15:00, in the time zone of this machine, or 2026-12-31T15:00+03:00.

    Example: yamarket-chat outbox put 17 "Your order is packed" --key packed-55
    """
    outbox = outbox_options.open_(database)
    if business_id is None:
        raise InvalidArgumentError(
            "business_id is missing; pass it or set YAMARKET_BUSINESS_ID."
            " yamarket-chat whoami shows it"
        )
    message = _message(
        [word for word in (chat_id, text) if word is not None],
        business_id, order, return_, file, name,
        {"key": key, "bulk": bulk, "not_before": not_before, "not_after": not_after},
    )  # fmt: skip

    async def work() -> tuple[int, OutboxState]:
        # Looked up before: what is put now may be delivered a moment later.
        known = None if key is None else await outbox.get(business_id=business_id, key=key)
        number = await outbox.put(message)
        return number, known.state if known and known.number == number else "waiting"

    number, state = outbox_options.run(outbox, work)
    if json:
        console.data(_Put(number))
    elif state == "waiting":
        console.result(f"Message {number} waits in the outbox")
    else:
        console.result(f"Message {number} has this key already, and is {state}")
    # The process that delivers goes by the Market's clock, and this machine's may be wrong.
    if state == "waiting" and not_after is not None and not_after <= datetime.now(UTC):
        console.warning(
            f"by this machine's clock, --not-after is over: {console.moment(not_after)}. If it is"
            " over by the Market's clock too, the message expires and is not sent"
        )


def _message(
    words: list[str],
    business_id: int,
    order: int | None,
    return_: int | None,
    file: Path | None,
    name: str | None,
    about: dict[str, Any],
) -> OutboxMessage | OutboxFile:
    from yamarket_chat.outbox import OutboxFile, OutboxMessage

    if order is not None and return_ is not None:
        raise InvalidArgumentError("pass either --order or --return")
    chat: str | None = None
    if order is None and return_ is None:
        if not words:
            raise InvalidArgumentError("the chat is missing: pass CHAT_ID, --order or --return")
        chat = words.pop(0)
        if not (chat.isascii() and chat.isdecimal()):
            raise InvalidArgumentError(f"CHAT_ID is a whole number, not {chat!r:.60}")
    about |= {"order_id": order, "return_id": return_}
    if (file is None) is (not words):
        raise InvalidArgumentError("pass either TEXT or --file")
    if len(words) > 1:
        raise InvalidArgumentError("pass no CHAT_ID with --order or --return")
    if file is not None:
        return OutboxFile(business_id, chat, file, filename=name, **about)
    if name is not None:
        raise InvalidArgumentError("--name is for a file: pass --file")
    return OutboxMessage(business_id, chat, options.text_argument(words[0]), **about)
