"""The command `outbox deliver`: send what waits in the outbox, until a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yamarket_chat.arguments import BASE_URL, check_business, check_key
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Limits, Rate

from . import console, environment, options, outbox_options, signals
from .outbox_keys import KeyFile, businesses
from .outbox_progress import DeliveryProgress

if TYPE_CHECKING:
    from yamarket_chat.outbox import Outbox

DOCUMENTED = Limits().send_message

LOG_EVERY = 5.0
"""Seconds between two lines that say why something waits. Warnings are all shown."""

LAST_PART = 2.0
"""Seconds of the grace that are left for handing over, at most half of it."""

AT_ONCE = 1.0
"""Seconds after a second signal in which the leases are handed over, if that is possible."""

FUSE = 6
"""The part of the lease after which a process that stands still before its bytes is ended."""


def _ignore_url(value: Path | None) -> Path | None:
    # The keys do not come from .env, so a URL of .env must not get them.
    if value is not None:
        environment.ignore_url_from_file()
    return value


def deliver(
    *,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Deliver for the businesses of this file: a line such as 12345=ACMA:your:key for"
            " each. The file is read anew when it changes. Default: --business-id and --api-key.",
            show_default=False,
            callback=_ignore_url,
        ),
    ] = None,
    lease: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="The time after which another worker takes over if this one has died. The same for"
            " all workers.",
        ),
    ] = 30.0,
    grace: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long to wait after a signal for what is under way."
        ),
    ] = 20.0,
    reserve: Annotated[
        int,
        typer.Option(
            min=0, help="How many requests of each window are left to messages that are not bulk."
        ),
    ] = 0,
    requests: Annotated[
        int, typer.Option(min=1, help="Send at most this many messages of a business in --per.")
    ] = DOCUMENTED.requests,
    per: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="The length of the window of --requests."),
    ] = DOCUMENTED.per,
    keep: outbox_options.KeepDays = 7.0,
    forget_text: outbox_options.ForgetText = False,
    json: options.Json = False,
    database: outbox_options.Database = None,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
) -> None:
    """Send what waits in the outbox, until Ctrl-C or SIGTERM.

    Any number of processes may run this, on several machines with PostgreSQL. At a signal, the
    command sends nothing new, waits for what is under way, and hands over to the others.

    Exit status: 0 stopped by a signal, 1 the database cannot be used, 2 wrong usage, 130 or 143 if
    a second signal came.

    Example: yamarket-chat outbox deliver
    """
    rate = Rate(requests, per=per)
    outbox = outbox_options.open_(database, keep=keep * outbox_options.DAY, forget_text=forget_text)
    file = None if keys is None else KeyFile(keys)
    chosen = _one(api_key, business_id) if file is None else file.keys
    console.show_log(logging.INFO, at_most_every=LOG_EVERY)
    progress = DeliveryProgress(
        outbox_options.url_of(database), rate, json=json, only=_only(chosen)
    )
    console.note(
        f"Delivering for {businesses(len(chosen))} as process {os.getpid()} on"
        f" {socket.gethostname()}, until Ctrl-C"
    )
    work = _Delivery(outbox, chosen, file, progress, lease=lease, grace=grace).run(
        reserve=reserve,
        limits=Limits(send_message=rate),
        base_url=base_url,
        insecure_http=insecure_http,
    )
    raise typer.Exit(signals.run(work))


def _one(api_key: str | None, business_id: int | None) -> dict[int, str]:
    key = check_key(api_key)
    business = check_business(business_id)
    if business is None:
        raise InvalidArgumentError(
            "business_id is missing; pass it or set YAMARKET_BUSINESS_ID, or pass --keys."
            " yamarket-chat whoami shows it"
        )
    return {business: key}


def _only(chosen: Mapping[int, str]) -> int | None:
    return next(iter(chosen)) if len(chosen) == 1 else None


class _Delivery:
    """The delivery of this process."""

    def __init__(
        self,
        outbox: Outbox,
        keys: Mapping[int, str],
        file: KeyFile | None,
        progress: DeliveryProgress,
        *,
        lease: float,
        grace: float,
    ) -> None:
        self._outbox = outbox
        self._keys = keys
        self._file = file
        self._progress = progress
        self._lease = lease
        self._grace = grace

    async def run(self, **options: Any) -> int:
        """Deliver until the first signal, which cancels this task. Return the exit status."""
        from yamarket_chat.outbox import fuse

        with fuse.armed(self._lease / FUSE):
            async with self._outbox:
                delivering = asyncio.create_task(
                    self._outbox.deliver(self._keys, lease=self._lease, **options)
                )
                beside = [asyncio.create_task(self._progress.run())]
                if self._file is not None:
                    beside.append(asyncio.create_task(self._file.watch()))
                try:
                    await asyncio.wait({delivering, *beside}, return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    return await self._stop(delivering, beside)
                # The delivery has failed, or the output cannot be written to.
                ended = next(task for task in (delivering, *beside) if task.done())
                await self._stop(delivering, beside, told=False)
                await ended
        return 1

    async def _stop(
        self,
        delivering: asyncio.Task[None],
        beside: list[asyncio.Task[None]],
        *,
        told: bool = True,
    ) -> int:
        for task in beside:
            task.cancel()
        if told:
            console.note(
                f"{signals.interrupted()}; nothing new is sent, waiting for the requests in"
                f" progress. {signals.again()} to quit at once"
            )
        delivering.cancel()
        tasks = {delivering, *beside}
        try:
            last = min(LAST_PART, self._grace / 2)
            await asyncio.wait(tasks, timeout=self._grace - last)
            if not delivering.done():
                console.warning(
                    f"some requests are still in progress after {self._grace:g} s; the next worker"
                    " finds out what became of them"
                )
                delivering.cancel()
                await asyncio.wait(tasks, timeout=last)
        except asyncio.CancelledError:
            await self._quit(delivering)
        if told and delivering.done():
            if not delivering.cancelled():
                delivering.result()  # it has failed at its end
            console.note("Stopped")
        if not all(task.done() for task in tasks):
            _exit(0 if told else 1)  # a thread still waits for the database
        return 0

    async def _quit(self, delivering: asyncio.Task[None]) -> None:
        """End at once: a second signal came. What is under way is found out by others."""
        console.show_log(logging.CRITICAL)
        delivering.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({delivering}, timeout=AT_ONCE)
        _exit(signals.last_status())


def _exit(status: int) -> None:
    """End without waiting for a thread that waits for the database."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)
