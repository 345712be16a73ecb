"""The commands `outbox ...`: messages that survive the process, in a database."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from yamarket_chat.errors import InvalidArgumentError

from . import console, options, outbox_options
from .outbox_decide import cancel, retry, settle
from .outbox_deliver import deliver
from .outbox_list import list_, show
from .outbox_put import put
from .outbox_status import status

DIALECTS = ("sqlite", "postgresql")


class _Created(msgspec.Struct):
    version: int


class _Pruned(msgspec.Struct):
    removed: int


def create(*, json: options.Json = False, database: outbox_options.Database = None) -> None:
    """Make the tables, or change them to what this version needs. If they are there, do nothing.

    Example: yamarket-chat outbox create --database outbox.db
    """
    outbox = outbox_options.open_(database)
    outbox_options.run(outbox, outbox.create)
    from yamarket_chat.outbox.schema import VERSION

    if json:
        console.data(_Created(VERSION))
    else:
        console.result(f"The tables are there, version {VERSION}")


def prune(
    *,
    keep: outbox_options.KeepDays = 7.0,
    forget_text: outbox_options.ForgetText = False,
    json: options.Json = False,
    database: outbox_options.Database = None,
) -> None:
    """Remove the messages that ended long ago, in small transactions.

    A process that delivers does so about once an hour.

    Example: yamarket-chat outbox prune --keep 30
    """
    outbox = outbox_options.open_(database, keep=keep * outbox_options.DAY, forget_text=forget_text)
    removed = outbox_options.run(outbox, outbox.prune)
    if json:
        console.data(_Pruned(removed))
    else:
        console.result(f"{console.number(removed, 'message')} removed")


def schema(
    *,
    dialect: Annotated[
        str, typer.Option(metavar="NAME", help="sqlite or postgresql.", show_default=False)
    ],
) -> None:
    """Print the SQL that makes the tables: for Alembic, Django, or whoever may change the database.

    It needs no database. The command create executes the same statements.

    Example: yamarket-chat outbox schema --dialect postgresql
    """
    if dialect not in DIALECTS:
        raise InvalidArgumentError(f"--dialect is one of {', '.join(DIALECTS)}")
    with outbox_options.installed():
        from yamarket_chat.outbox.schema import statements

    with console.writing():
        console.out.out(";\n\n".join(statements(dialect)) + ";", highlight=False)


outbox: typer.Typer = typer.Typer(
    help="Keep messages in a database until they are sent: they survive the process.\n\n"
    'Example: yamarket-chat outbox put 17 "Your order is packed"',
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)
_command = outbox.command
_command()(create)
_command()(put)
_command()(deliver)
_command()(status)
_command(name="list")(list_)
_command()(show)
_command()(cancel)
_command()(settle)
_command()(retry)
_command()(prune)
_command()(schema)
