"""Delivers a mailing of `send-many`, shows its progress, and records the outcomes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection

from yamarket_chat.limits import Rate
from yamarket_chat.outbox import Outbox, OutboxDatabaseError, OutboxEntry, store
from yamarket_chat.outbox.courier import Seen
from yamarket_chat.outbox.database import Database
from yamarket_chat.outbox.delivering import GRACE, Delivering

from . import console, signals
from .estimate import describe, estimate
from .mailing import FOREVER, MAX_SHOWN, Mailing, compare
from .progress import SendingProgress
from .records import Messages
from .report import Line, Report, first_line, line_of
from .waiting import NOTICE_AFTER, note_no_response

LEASE = 30.0
SHORT_GRACE = 5.0
"""Seconds for what is under way if nothing more can be sent, and probably nothing be written."""
LOOK = 0.05
"""Seconds between two looks at what has ended."""
WINDOW = 256
"""How many messages each look is for. Those in the courier's hand are among the first."""
SHOW_EVERY = 0.5
"""Seconds between two updates of the progress bar."""
PATIENCE = 60.0
"""Seconds besides --give-up-after without any outcome after which a run gives up: a message may
wait for its settling meanwhile, or for its next attempt."""
SETTLED = "15 to 60 s"
"""After how long it is known what became of the messages of a run that was killed."""


EXPECTED = (
    "business %d is paused",
    "business %d: message %d is",
    "a worker of the outbox is dead",
)
"""How records of the log begin that say what the run says itself, or that are nothing special."""


class UsageError(Exception):
    """The options do not fit. Nothing was sent."""


def outbox_of(path: Path) -> Outbox:
    """Return the outbox in a file."""
    return Outbox(_url(path), keep=FOREVER)


def _url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


async def look(path: Path, messages: Messages, business_id: int | None) -> Mailing:
    """Return what is left to send, and change nothing. Raises BadFile and UsageError."""
    async with outbox_of(path) as outbox:
        try:
            return await compare(outbox, messages, business_id, None)
        except OutboxDatabaseError as error:
            raise UsageError(str(error)) from None


class BulkSender:
    """Sends the messages of a file by their outbox.

    Args:
        path: The outbox.
        messages: The messages.
        rate: The rate limit.
        business_id: The business.
        api_key: Its key.
        options: What the delivery takes of the options of `ChatSession`.
        report: The file of the report, if there is to be one.
        resume: Whether the report may be there already.
        json: Whether to print the outcomes as JSON.
        give_up_after: Seconds after which to give up if the Market does not answer.
        kept: Whether the outbox is kept.
    """

    def __init__(
        self,
        path: Path,
        messages: Messages,
        rate: Rate,
        *,
        business_id: int,
        api_key: str,
        options: Mapping[str, Any],
        report: Path | None,
        resume: bool,
        json: bool,
        give_up_after: float,
        kept: bool,
    ) -> None:
        self._path = path
        self._messages = messages
        self._rate = rate
        self._business_id = business_id
        self._keys = {business_id: api_key}
        self._options = options
        self._report_path = report
        self._resume = resume
        self._json = json
        self._give_up_after = give_up_after
        self._kept = kept
        self._mailing = Mailing()
        self._report: Report | None = None
        self._report_failed = False
        self._ended: Counter[str] = Counter()
        self._leaving = 0  # at the end
        self._unknown: list[int] = []  # chats
        self._failures = 0
        self._interrupted = False
        self._stopped = False  # by something else
        self._output_failed = False
        self._progress: SendingProgress | None = None
        # What has not ended, by number in the outbox: the first ones, and the iterator of the rest.
        self._window: dict[int, int] = {}
        self._rest: Iterator[tuple[int, int]] = iter(())
        self._quiet_since = 0.0
        self._began_at: float | None = None
        self._notice_shown = False
        self._limit_noted = False

    async def run(self) -> int:
        """Send all messages, print a summary and return the exit status.

        Raises BadFile and UsageError if nothing can be sent.
        """
        console.hide_from_log(_is_told_anyway)
        async with outbox_of(self._path) as outbox:
            try:
                try:
                    await self._prepare(outbox)
                except asyncio.CancelledError:
                    console.note(f"{signals.interrupted()}; nothing was sent")
                    raise
                self._write_report()
                if self._mailing.left:
                    await self._deliver()
                    self._leaving = (await outbox.status(self._business_id)).leaving
            finally:
                if self._report is not None:
                    self._report.close()
        return self._conclude()

    async def _prepare(self, outbox: Outbox) -> None:
        """Bring the outbox to what the file says, and begin the report."""
        try:
            # Buyers' texts are nobody else's business.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            await outbox.create()
        except OSError as error:
            raise UsageError(
                f"there can be no outbox {self._path}: {error.strerror}; pass another --outbox"
            ) from None
        except OutboxDatabaseError as error:
            if error.retry_after is not None:
                raise
            raise UsageError(f"{error}; or pass another --outbox") from None
        self._mailing = mailing = await compare(
            outbox, self._messages, self._business_id, self._reported()
        )
        path = self._report_path
        if path is not None and path.exists() and not (mailing.known or self._resume):
            raise UsageError(f"{path} exists already; pass a new file to --report")
        if not mailing.reported:
            raise UsageError(f"{path} is the report of other messages; pass a new one to --report")
        if path is not None:
            try:
                self._report = Report(path)
            except OSError as error:
                raise UsageError(f"the report cannot be opened: {error.strerror}: {path}") from None
        show_changes(mailing)
        if mailing.under_way:
            console.note(
                f"{console.number(mailing.under_way, 'message')} may have been sent as the last run"
                f" ended. The histories of their chats tell in {SETTLED}; other chats go on before"
            )
        if mailing.left:
            left = estimate(self._messages, mailing.ended, self._rate)
            console.note("Sending " + describe(left, self._rate))
        await mailing.put(outbox, self._business_id, self._messages)
        by_number = sorted((number, index) for index, number in enumerate(mailing.numbers))
        self._rest = (both for both in by_number if both[1] not in mailing.ended)
        await self._note_earlier(outbox, dict(by_number))

    def _reported(self) -> Line | None:
        if self._report_path is None:
            return None
        try:
            return first_line(self._report_path)
        except OSError as error:
            raise UsageError(f"the report cannot be opened: {error}") from None
        except ValueError:
            raise UsageError(
                f"{self._report_path} is not a report; pass a new file to --report"
            ) from None

    def _write_report(self, line: Line | None = None) -> None:
        """Write a line of the report, or put it in its place.

        The run goes on without the report if that fails: the outbox knows all of it.
        """
        if self._report is None:
            return
        try:
            if line is None:
                self._report.place()
            else:
                self._report.add(line)
        except OSError as error:
            self._report.close()
            self._report, self._report_failed = None, True
            console.failure(
                f"the report cannot be written: {error.strerror}; the run goes on without it"
            )

    async def _note_earlier(self, outbox: Outbox, indexes: Mapping[int, int]) -> None:
        """Note what earlier runs have sent."""
        ended = {i: state for i, state in self._mailing.ended.items() if state != "cancelled"}
        for state in ended.values():
            self._ended["delivered earlier" if state == "delivered" else state] += 1
        if not ended or (self._report is None and not self._ended["unknown"]):
            return
        async for entry in outbox.entries():
            index = indexes.get(entry.number)
            if index in ended:
                if entry.state == "unknown" and entry.chat_id is not None:
                    self._unknown.append(entry.chat_id)
                self._write_report(self._line(index, entry))

    def _line(self, index: int, entry: OutboxEntry) -> Line:
        return line_of(index + 1, self._mailing.lines[index], entry)

    # Sending

    async def _deliver(self) -> None:
        database = Database(_url(self._path))
        delivery = Delivering(
            database,
            self._keys,
            lease=LEASE,
            reserve=0,
            on_failure=None,
            options=self._options,
        )
        failed: Exception | None = None
        try:
            with SendingProgress(self._mailing.left, self._rate, silent=self._json) as progress:
                self._progress = progress
                try:
                    await delivery.begin()
                    await self._follow(database, delivery)
                except asyncio.CancelledError:
                    self._interrupted = True
                    progress.stop()
                    console.note(
                        f"{signals.interrupted()}; no more messages are sent, waiting for the"
                        f" requests in progress. {signals.again()} to quit at once"
                    )
                except Exception as error:  # noqa: BLE001 - raised below
                    failed = error
                try:
                    await delivery.end(SHORT_GRACE if self._stopped else GRACE)
                except asyncio.CancelledError:
                    # What is cut off now has nothing to say.
                    console.show_log(logging.CRITICAL)
                    raise
                if failed is not None:
                    raise failed
                while await self._look(database):
                    pass
        finally:
            await database.close()

    async def _follow(self, database: Database, delivery: Delivering) -> None:
        """Note what ends, until all messages have ended or nothing more can be sent."""
        loop = asyncio.get_running_loop()
        self._quiet_since = loop.time()
        show_at, version = 0.0, None
        while not self._output_failed:
            newest = await database.data_version()
            if newest != version or len(self._window) < WINDOW:
                version = newest
                while await self._look(database):
                    self._quiet_since = loop.time()
            if loop.time() >= show_at:
                show_at = loop.time() + SHOW_EVERY
                seen = delivery.seen(self._business_id)
                self._show(seen)
                why = self._why_to_stop(seen)
                if why is not None and self._window:
                    self._stopped = True
                    self._hide_time_to_go()
                    console.failure(f"no more messages are sent: {why}")
            if not self._window or self._stopped:
                break
            await asyncio.sleep(LOOK)

    async def _look(self, database: Database) -> bool:
        """Note which of the first messages have ended. Returns whether there were any."""
        self._window.update(itertools.islice(self._rest, WINDOW - len(self._window)))
        ended = await database.read(_ended, list(self._window))
        for number, entry in ended:
            index = self._window.pop(number)
            if self._progress is not None:
                self._progress.message_ended(asyncio.get_running_loop().time())
            if entry is not None and entry.state in ("delivered", "refused", "unknown"):
                self._note(index, entry)
        return bool(ended)

    def _note(self, index: int, entry: OutboxEntry) -> None:
        self._ended[entry.state] += 1
        line = self._line(index, entry)
        self._write_report(line)
        if entry.state == "unknown":
            self._unknown.append(line.chat_id)
        if self._json:
            if not self._output_failed:
                try:
                    console.data(line)
                except console.OutputError as error:
                    self._output_failed = True
                    self._hide_time_to_go()
                    console.failure(
                        f"{error}; no more messages are sent, waiting for the requests in progress"
                    )
        elif entry.state != "delivered":
            self._failures += 1
            if self._failures <= MAX_SHOWN:
                console.failure(
                    f"line {line.line}, chat {line.chat_id}: {entry.state}: {line.error}"
                )
            elif self._failures == MAX_SHOWN + 1:
                console.note("More messages were not delivered; use --report to list all of them")

    def _hide_time_to_go(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _show(self, seen: Seen | None) -> None:
        now = asyncio.get_running_loop().time()
        status = None if seen is None else seen.quota
        if seen is not None and self._began_at is None:
            self._began_at = self._quiet_since = now
        if status is not None and seen is not None and self._progress is not None:
            self._progress.show(now, status, seen.under_way)
        if status is not None and status.resets_in > 0:
            self._quiet_since = now
            long = self._began_at is not None and now - self._began_at >= NOTICE_AFTER
            if long and not self._ended["delivered"] and not self._limit_noted:
                self._limit_noted = True
                console.note(
                    "The rate limit is used up, by earlier requests as well. The next message"
                    f" leaves in {console.duration(status.resets_in)}, or about a minute later:"
                    " the requests of earlier runs are counted by the minute"
                )
        elif not self._notice_shown and now - self._quiet_since >= NOTICE_AFTER:
            if seen is None:
                self._notice_shown = True
                console.note(
                    f"Waiting for up to {LEASE:g} s, until the last run has surely ended: its"
                    " machine was switched off, or another program sends these messages"
                )
            elif not self._ended["delivered"] and (seen.under_way or not seen.begun):
                self._notice_shown = True
                note_no_response(f"{self._give_up_after:g} s")

    def _why_to_stop(self, seen: Seen | None) -> str | None:
        quiet = asyncio.get_running_loop().time() - self._quiet_since
        if seen is not None and seen.paused is not None:
            return seen.paused
        if seen is not None and seen.failing is not None and quiet >= self._give_up_after:
            return seen.failing
        if quiet >= self._give_up_after + PATIENCE:
            return f"nothing could be sent for {console.duration(quiet)} (--give-up-after)"
        return None

    def _conclude(self) -> int:
        ended, total = self._ended, len(self._messages)
        delivered = ended["delivered"] + ended["delivered earlier"]
        summary = f"Delivered {delivered} of {console.number(total, 'message')}"
        if ended["delivered earlier"]:
            summary += f" ({ended['delivered earlier']} of them earlier)"
        left = total - ended.total()
        summary += f", refused {ended['refused']}, unknown {ended['unknown']}, not sent {left}"
        (console.note if self._json else console.result)(summary)
        if self._leaving:
            console.note(
                f"{console.number(self._leaving, 'message')} may have been sent; the next run finds"
                " out"
            )
        if self._unknown:
            chats = _some(sorted(set(self._unknown)))
            settle = f"yamarket-chat outbox settle --all --database {shlex.quote(str(self._path))}"
            console.note(
                "Nothing tells whether the unknown messages were delivered, so they are not sent"
                f" again; check chat {chats}" + (f", then run {settle}" if self._kept else "")
            )
        if self._kept and left + ended["refused"] > len(self._mailing.cancelled()):
            console.note("To continue, run the same command again")
        elif self._kept and self._report_failed:
            console.note("To write the report, run the same command again")
        elif self._kept and total and not self._mailing.left:
            console.note(
                f"Nothing was left to send. To send the file once more, delete {self._path} or pass"
                " another --outbox"
            )
        if self._interrupted:
            return signals.exit_status()
        failed = self._output_failed or self._report_failed
        return 0 if delivered == total and not failed else 1


def _is_told_anyway(record: logging.LogRecord) -> bool:
    """Whether a record of the log is not to be shown."""
    return record.msg.startswith(EXPECTED)


def _ended(connection: Connection, numbers: Sequence[int]) -> list[tuple[int, OutboxEntry | None]]:
    """Return which of these messages have ended, or are gone."""
    return [(one, store.get(connection, one)) for one in store.ended(connection, numbers)]


def show_changes(mailing: Mailing) -> None:
    """Print what was changed in the file since the last run."""
    if mailing.changes:
        console.note("The file was changed since the last run:")
    for change in mailing.changes[:MAX_SHOWN]:
        console.note(f"  {change}")
    if more := mailing.changes[MAX_SHOWN:]:
        console.note(f"  and {len(more):,} more")
    if cancelled := mailing.cancelled():
        console.note(
            f"{console.number(len(cancelled), 'message')} cancelled (yamarket-chat outbox cancel),"
            f" so not sent: line {_some(cancelled)}"
        )


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:MAX_SHOWN])) + (", ..." if numbers[MAX_SHOWN:] else "")
