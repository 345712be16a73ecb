"""What the commands of the group `outbox` share: the database, and how a message is described."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer
from rich.table import Table

from yamarket_chat.errors import ChatError, InvalidArgumentError
from yamarket_chat.receipts import Receipt

from . import console, environment, signals
from .conversation import print_indented

# SQLAlchemy takes a third of a second to import, so the commands import the outbox when they run.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

    from yamarket_chat.outbox import Outbox, OutboxEntry, OutboxState

Result = TypeVar("Result")

STATES = ("waiting", "leaving", "delivered", "refused", "unknown", "cancelled", "expired")

VARIABLE = environment.OUTBOX
SCHEMES = ("sqlite", "postgres", "postgresql")
DAY = 24 * 3600.0
MOST_DAYS = 36_500.0
"""The most days of --keep. Many more cannot be counted back from today."""

SHOWN = 100
"""How many characters of a text are shown in one line of a file."""

OTHER_COLUMNS = 56
"""How wide the other columns of the table are, about."""


def _check_database(context: typer.Context, value: str | None) -> str | None:
    source = context.get_parameter_source("database")
    user, at, _ = (value or "").partition("://")[2].rpartition("@")
    if source is not None and source.name == "COMMANDLINE" and at and ":" in user:
        console.warning(
            f"--database has a password, which is visible in the list of processes; set {VARIABLE}"
            " instead"
        )
    return value


Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar=VARIABLE,
        help="The database: the path of an SQLite file, sqlite:///outbox.db, or"
        " postgresql://user:password@host/name.",
        show_default=False,
        callback=_check_database,
    ),
]
OnlyBusiness = Annotated[
    int | None,
    typer.Option("--business-id", min=1, help="Only this business.", show_default=False),
]
OnlyChat = Annotated[
    int | None,
    typer.Option("--chat", min=1, help="Only messages to this chat.", show_default=False),
]
KeyPrefix = Annotated[
    str | None,
    typer.Option(help="Only messages whose key begins so.", show_default=False),
]
Numbers = Annotated[
    list[int] | None,
    typer.Argument(
        metavar="NUMBER", min=1, help="The numbers of the messages.", show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do so without a question.")]
KeepDays = Annotated[
    float,
    typer.Option(
        min=0.001,
        max=MOST_DAYS,
        metavar="DAYS",
        help="For how many days a message is kept after it ended.",
    ),
]
ForgetText = Annotated[
    bool,
    typer.Option("--forget-text", help="Forget the texts of messages that ended an hour ago."),
]


def url_of(database: str | None) -> URL | str:
    """Return the address of the database. A path is the path of an SQLite file."""
    if not database:
        raise InvalidArgumentError(
            f"--database is missing; pass it or set {VARIABLE}, such as sqlite:///outbox.db"
        )
    scheme, colon, _ = database.partition(":")
    if "://" in database or (colon and scheme.partition("+")[0].lower() in SCHEMES):
        return database
    # Rather a mistyped address than a path: it may contain a password, so no text shows it.
    if "@" in os.path.splitdrive(database)[1].partition(":")[2]:
        raise InvalidArgumentError(
            "the address of the outbox begins with postgresql:// or sqlite:///, also that of a file"
            " whose path has a : and an @"
        )
    with installed():
        from sqlalchemy import URL

    return URL.create("sqlite", database=database)


def open_(database: str | None, **options: Any) -> Outbox:
    """Return the outbox. Raises InvalidArgumentError if the address makes no sense."""
    url = url_of(database)
    with installed():
        from yamarket_chat.outbox import Outbox

        return Outbox(url, **options)


@contextmanager
def installed() -> Iterator[None]:
    """Say what to install if something is missing."""
    try:
        yield
    except ImportError as error:
        console.failure(str(error))
        raise typer.Exit(1) from None


def run(outbox: Outbox, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Work with an outbox until that ends, or a signal ends it."""

    async def main() -> Result:
        async with outbox:
            return await work()

    return signals.run(main())


# How a message is described


class Line(msgspec.Struct):
    """A message, as `--json` prints it."""

    number: int
    state: str
    business_id: int
    chat_id: int | None
    order_id: int | None
    return_id: int | None
    text: str | None
    filename: str | None
    file_size: int | None
    key: str | None
    bulk: bool
    requests: int
    receipt: Receipt | None
    error: str | None
    not_before: datetime | None
    not_after: datetime | None
    created_at: datetime
    ended_at: datetime | None


def line_of(entry: OutboxEntry) -> Line:
    """Return what `--json` prints of a message."""
    values = {name: getattr(entry, name) for name in Line.__struct_fields__}
    error: ChatError | None = entry.error
    return Line(**values | {"error": None if error is None else console.describe(error)})


def to_whom(entry: OutboxEntry, *, shortly: bool = False) -> str:
    """Describe to which chat a message is."""
    about = "order" if entry.order_id is not None else "return"
    context = entry.order_id if entry.order_id is not None else entry.return_id
    if context is None:
        return f"chat {entry.chat_id}"
    return f"{about} {context}" + (
        "" if entry.chat_id is None or shortly else f", chat {entry.chat_id}"
    )


def content_of(entry: OutboxEntry, most: int = SHOWN) -> str:
    """Describe in one line what a message says."""
    if entry.filename is not None:
        return f"[{entry.filename}, {entry.file_size or 0:,} bytes]"
    if entry.text is None:
        return "(forgotten)"
    return entry.text if len(entry.text) <= most else entry.text[: most - 1] + "…"


def print_table(entries: list[OutboxEntry]) -> None:
    """Print messages, one in a row."""
    table = console.new_table("Number", "State", "Business", "To", "Put", "Content")
    table.padding = 0
    table.show_edge = False
    for column in table.columns[:5]:
        column.no_wrap = True
    most = max(console.out.width - OTHER_COLUMNS, 20) if console.out.is_terminal else SHOWN
    for entry in entries:
        put = f"{entry.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(
            *console.cells(
                entry.number,
                entry.state,
                entry.business_id,
                to_whom(entry, shortly=True),
                put,
                content_of(entry, most),
            )
        )
    console.table(table)


def print_details(entry: OutboxEntry) -> None:
    """Print all that is known of a message."""
    facts: list[tuple[str, object]] = [
        ("Message", f"{entry.number}, {entry.state}"),
        ("To", f"{to_whom(entry)} of business {entry.business_id}"),
        ("Key", entry.key),
        ("Bulk", "yes" if entry.bulk else None),
        ("Put", console.moment(entry.created_at)),
        ("Not before", entry.not_before and console.moment(entry.not_before)),
        ("Not after", entry.not_after and console.moment(entry.not_after)),
        ("Ended", entry.ended_at and console.moment(entry.ended_at)),
        ("Requests", entry.requests),
        ("Proof", _proof(entry.receipt)),
        ("Error", entry.error and console.describe(entry.error)),
    ]
    if entry.text is None:
        facts.append(("Content", content_of(entry)))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, width=11)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value is None:
            continue
        if console.out.is_terminal:
            grid.add_row(*console.cells(f"{name}:", value))
        else:
            console.result(f"{name + ':':<12}{value}")
    if grid.rows:
        console.table(grid)
    if entry.text is not None:
        console.result("Text:")
        for line in entry.text.splitlines():
            print_indented(line)


def _proof(receipt: Receipt | None) -> str | None:
    if receipt is None:
        return None
    if receipt.confirmed_by == "answer":
        return f"the Market's response, trace id {receipt.trace_id or 'not given'}"
    return (
        "it stands in the chat's history"
        if receipt.confirmed_by == "history"
        else "somebody has looked"
    )


def check_state(value: str) -> OutboxState:
    """Check the name of a state."""
    if value.lower() not in STATES:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(STATES)}")
    state: Any = value.lower()
    return state  # type: ignore[no-any-return]


def complete_state(incomplete: str) -> list[str]:
    """Complete the name of a state."""
    return [name for name in STATES if name.startswith(incomplete.lower())]
