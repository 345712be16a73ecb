"""The command `outbox status`: what waits, who delivers, and whether all of that is healthy."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from yamarket_chat.errors import ChatError

from . import console, options, outbox_options, signals

if TYPE_CHECKING:
    from yamarket_chat.outbox.database import Database
    from yamarket_chat.outbox.overview import Business, Overview, Worker

LOOK = 0.25
"""Seconds between two looks at the beats."""

TRUST = 2 / 3
"""The part of its lease after which a worker that has not beaten sends nothing more."""


class Health(msgspec.Struct):
    """Whether a worker of this machine delivers."""

    healthy: bool
    reason: str


def status(
    *,
    healthy: Annotated[
        bool,
        typer.Option(
            "--healthy",
            help="Only check whether a worker of this machine delivers: exit status 0 if one does,"
            " else 1. This takes up to two thirds of its lease, usually a few seconds.",
        ),
    ] = False,
    json: options.Json = False,
    database: outbox_options.Database = None,
    business_id: outbox_options.OnlyBusiness = None,
) -> None:
    """Show what waits, who delivers, what is paused and why, and what was sent in the last hour.

    Example: yamarket-chat outbox status
    """
    url = outbox_options.url_of(database)
    with outbox_options.installed():
        from yamarket_chat.outbox.database import Database
        from yamarket_chat.outbox.overview import overview

        reading = Database(url)
    if healthy:
        found = signals.run(_health(reading))
        if json:
            console.data(found)
        elif found.healthy:
            console.result(found.reason)
        else:
            console.failure(found.reason)
        raise typer.Exit(0 if found.healthy else 1)

    async def look() -> Overview:
        try:
            return await reading.read(overview, business_id)
        finally:
            await reading.close()

    seen = signals.run(look())
    if json:
        console.data(seen)
    else:
        _print(seen)


async def _health(database: Database) -> Health:
    """Look for a beat of a worker of this machine.

    No clocks are compared: a worker lives if its beat is counted up while somebody watches.
    """
    from yamarket_chat.outbox.overview import workers_of

    here = f" on {socket.gethostname()},"
    loop = asyncio.get_running_loop()
    began = loop.time()
    first: dict[str, int] = {}
    try:
        while True:
            workers = [one for one in await database.read(workers_of) if here in one.about]
            for one in workers:
                if one.beat > first.setdefault(one.token, one.beat):
                    return Health(True, f"healthy: {one.about} delivers")
            patience = max((one.lease for one in workers), default=0.0) * TRUST
            if loop.time() >= began + patience:
                break
            await asyncio.sleep(LOOK)
    except ChatError as error:
        return Health(False, f"not healthy: {console.describe(error)}")
    finally:
        await database.close()
    if not workers:
        return Health(False, f"not healthy: no worker{here.rstrip(',')} delivers")
    names = "; ".join(one.about for one in workers)
    return Health(False, f"not healthy: no beat within {patience:.0f} s of {names}")


def describe_load(seen: Overview) -> str:
    """Describe in one line what waits."""
    text = f"{seen.waiting:,} waiting"
    if seen.not_due:
        text += f", {seen.not_due:,} not due yet"
    if seen.leaving:
        text += f", {seen.leaving:,} being sent"
    return text


def describe_pause(one: Business) -> str:
    """Say why a business is paused."""
    since = "" if one.paused_at is None else f" since {console.moment(one.paused_at)}"
    return f"business {one.business_id} is paused{since}: {one.paused}"


def age(moment: datetime) -> str:
    """Describe how long ago something was."""
    return console.duration(max((datetime.now(UTC) - moment).total_seconds(), 0.0))


def _print(seen: Overview) -> None:
    oldest = "" if seen.oldest is None else f"; the oldest was put {age(seen.oldest)} ago"
    console.result(f"Messages: {describe_load(seen)}{oldest}")
    if not seen.workers:
        console.result("Workers: none; run yamarket-chat outbox deliver")
    for worker in seen.workers:
        console.sentence(f"Worker: {_describe_worker(worker)}")
    if seen.businesses:
        table = console.new_table("Business", "Waiting", "Not due", "Sending", "Oldest", "In 1 h")
        for one in seen.businesses:
            in_the_hour = f"{one.messages_in_the_hour:,}"
            if one.files_in_the_hour:
                in_the_hour += f" + {console.number(one.files_in_the_hour, 'file')}"
            table.add_row(
                *console.cells(
                    one.business_id,
                    f"{one.waiting:,}",
                    f"{one.not_due:,}",
                    f"{one.leaving:,}",
                    one.oldest and age(one.oldest),
                    in_the_hour,
                )
            )
        console.table(table)
    for one in seen.businesses:
        if one.paused is not None:
            console.sentence(f"Paused: {describe_pause(one)}")
        if one.others_at is not None:
            console.sentence(
                f"Others: somebody else sends for business {one.business_id} as well, as a worker"
                f" said at {console.moment(one.others_at)}"
            )


def _describe_worker(worker: Worker) -> str:
    count = worker.businesses
    businesses = "1 business" if count == 1 else f"{count:,} businesses"
    return f"{worker.about}, since {console.moment(worker.started_at)}, {businesses}"
