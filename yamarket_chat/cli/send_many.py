"""The command `send-many`: send the messages of a file."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from yamarket_chat._delivery.batch import READ_AHEAD
from yamarket_chat.arguments import BASE_URL
from yamarket_chat.errors import (
    ChatError,
    DeliveryUnknownError,
    InvalidArgumentError,
    SessionClosedError,
)
from yamarket_chat.limits import Limits, Rate
from yamarket_chat.pending import Pending
from yamarket_chat.receipts import Delivered, Outcome, OutgoingMessage, Unknown
from yamarket_chat.session import ChatSession

from . import console, options, signals
from .encodings import check
from .progress import SendingProgress
from .records import BadFile, Format, Record, read
from .report import PreviousRun, Report, ReportLockedError, line_of, read_report
from .waiting import (
    NOTICE_AFTER,
    SINGLE_REQUEST_TIMEOUT,
    close_after_interrupt,
    note_no_response,
)

DOCUMENTED = Limits().send_message
SHOW_EVERY = 0.5
"""Seconds between two updates of the progress bar."""
LOG_EVERY = 5.0
"""Seconds between two lines that say why a message takes longer."""
MAX_ERRORS_SHOWN = 10
"""The number of undelivered messages that are listed one by one."""


def _encoding(name: str) -> str:
    try:
        return check(name)
    except (LookupError, ValueError):
        raise typer.BadParameter(f"{name!r} is not an encoding; use utf-8 or cp1251") from None


def send_many(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="CSV with a header, or JSONL. - reads standard input."),
    ],
    *,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format", help="The format of FILE. Default: guessed from its name or content."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=_encoding,
            help="The encoding of FILE, such as cp1251. Default: UTF-8, UTF-16 or Windows-1251 if"
            " it is certain.",
        ),
    ] = None,
    rows_in_text: Annotated[
        bool,
        typer.Option(
            "--rows-in-text",
            help="Accept a text with a line that looks like a row of the file.",
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            dir_okay=False,
            help="Write one JSON line per message to this new file when its outcome is known.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            exists=True,
            dir_okay=False,
            help="Continue the run of this report: send what it does not list as delivered.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check all lines, show how long sending takes, send nothing."
        ),
    ] = False,
    requests: Annotated[
        int, typer.Option(min=1, help="Send at most this many messages in --per seconds.")
    ] = DOCUMENTED.requests,
    per: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="The length of the window of --requests."),
    ] = DOCUMENTED.per,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.UNATTENDED_GIVE_UP_AFTER,
) -> None:
    """Send the messages of a file, each once, in order and within the Market's rate limit.

    The file has the columns chat_id and text. The command checks all lines before it sends the
    first message. After Ctrl-C, --resume continues where the run stopped.

    Exit status: 0 all delivered, 1 not all delivered, 2 wrong usage, 130 interrupted
    (143 by SIGTERM, 129 by SIGHUP).

    Example: yamarket-chat send-many messages.csv --report report.jsonl
    """
    try:
        ask = (
            file != "-" and sys.stdin is not None and sys.stdin.isatty() and console.err.is_terminal
        )
        records = read(
            *(_read_input(file), file, form, encoding), ask=ask, rows_in_text=rows_in_text
        )
    except BadFile as error:
        raise _exit_for_bad_file(error, file) from None
    except OSError as error:
        raise _usage_error(str(error)) from None
    try:
        before = read_report(resume, records) if resume else PreviousRun({}, killed=False)
    except BadFile as error:
        raise _exit_for_bad_file(error) from None
    except OSError as error:
        raise _usage_error(str(error)) from None
    if not records:
        console.note("No messages in the file")
    if report and resume and report != resume:
        raise _usage_error("--resume appends to its own report; leave --report out")
    rate = Rate(requests, per=per)
    if dry_run:
        _print_estimate([r for r in records if before.status(r) != "delivered"], rate, json)
        return
    if business_id is None:
        raise InvalidArgumentError(
            "business_id is missing; pass it or set YAMARKET_BUSINESS_ID."
            " yamarket-chat whoami shows it"
        )
    session = options.connect(
        *(api_key, business_id, base_url, insecure_http, give_up_after),
        limits=Limits(send_message=rate),
    )
    if resume is None and report is not None and report.exists():
        raise _usage_error(
            f"{report} exists already; use --resume {report} to continue, or pass a new file"
        )
    try:
        writing = Report.create(report) if report and not resume else None
        if resume:
            # Read the report again, because another run may have written to it until now.
            writing, before = Report.resume(resume, records)
    except ReportLockedError:
        raise _usage_error("another run is writing this report; wait until it ends") from None
    except BadFile as error:
        raise _exit_for_bad_file(error) from None
    except OSError as error:
        raise _usage_error(f"the report cannot be opened: {error}") from None
    console.show_log(logging.INFO, at_most_every=LOG_EVERY)
    sender = BulkSender(
        *(session, records, before, writing, rate),
        business_id=business_id,
        json=json,
        give_up_after=give_up_after,
    )
    try:
        status = signals.run(sender.run(), resolve_within=give_up_after or SINGLE_REQUEST_TIMEOUT)
    except OSError as error:
        console.failure(f"stopped, because the outcomes cannot be recorded: {error}")
        raise typer.Exit(1) from None
    raise typer.Exit(status)


def _exit_for_bad_file(error: BadFile, file: str = "") -> typer.Exit:
    name = "standard input" if file == "-" else file
    for problem in error.problems:
        separator = ", " if problem.startswith("line ") else ": "
        console.failure(f"{name}{separator}{problem}" if name else problem)
    for hint in error.hints:
        console.note(hint)
    if len(error.problems) > 1:
        console.failure(f"{len(error.problems)} errors; nothing was sent")
    return typer.Exit(2)


def _usage_error(text: str) -> typer.Exit:
    console.failure(text)
    return typer.Exit(2)


def _read_input(file: str) -> bytes:
    return options.standard_input() if file == "-" else Path(file).read_bytes()


class _Estimate(msgspec.Struct):
    messages: int
    chats: int
    least_seconds: float


def _print_estimate(records: Sequence[Record], rate: Rate, json: bool) -> None:
    estimate = _estimate(records, rate)
    if json:
        console.data(estimate)
    else:
        console.result(_describe(estimate, rate) + "; nothing was sent")


def _estimate(records: Sequence[Record], rate: Rate) -> _Estimate:
    return _Estimate(
        len(records),
        len({record.chat_id for record in records}),
        max(len(records) - 1, 0) // rate.requests * rate.per,
    )


def _describe(estimate: _Estimate, rate: Rate) -> str:
    if not estimate.messages:
        return "no messages to send"
    return (
        f"{console.number(estimate.messages, 'message')} to"
        f" {console.number(estimate.chats, 'chat')};"
        f" the limit is {rate.requests:,} in {rate.per:g} s,"
        + (
            f" so this takes at least {console.duration(estimate.least_seconds)}"
            if estimate.least_seconds
            else " so all of them can be sent without a pause"
        )
    )


class BulkSender:
    """Sends the messages of a file and records the outcomes."""

    def __init__(
        self,
        session: ChatSession,
        records: Sequence[Record],
        before: PreviousRun,
        report: Report | None,
        rate: Rate,
        *,
        business_id: int,
        json: bool,
        give_up_after: float,
    ) -> None:
        self._session = session
        self._give_up_after = give_up_after
        self._business_id = business_id
        self._records = records
        self._before = before
        self._report = report
        self._rate = rate
        self._json = json
        self._ended: Counter[str] = Counter()
        self._interrupted = False
        self._closing: asyncio.Task[None] | None = None  # set when the output has failed
        self._progress: SendingProgress | None = None
        self._failures = 0
        self._undecidable: list[int] = []  # chats whose history does not decide an unknown outcome

    async def run(self) -> int:
        """Send all messages, print a summary and return the exit status."""
        with self._report or nullcontext():
            async with self._session:
                sending = asyncio.create_task(self._send_all())
                try:
                    await asyncio.wait({sending})
                except asyncio.CancelledError:
                    self._interrupted = True
                    self._hide_time_to_go()
                    console.note(
                        f"{signals.interrupted()}; no more messages are sent, waiting for the"
                        f" requests in progress. {signals.again()} to quit at once"
                    )
                    await close_after_interrupt(self._session)
                await sending
        return self._conclude()

    @property
    def _stopping(self) -> bool:
        return self._interrupted or self._closing is not None

    def _hide_time_to_go(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    async def _send_all(self) -> None:
        before = self._before
        left = [record for record in self._records if before.status(record) != "delivered"]
        self._ended["delivered earlier"] = len(self._records) - len(left)
        uncertain = self._uncertain(left)
        if uncertain:
            console.note(
                f"Looking up {console.number(len(uncertain), 'message')} in the chat histories,"
                " because the report does not say whether they were delivered"
            )
        absent = await self._settle(uncertain)
        looked_up = {record.number for record, _ in uncertain}
        left = [r for r in left if r.number not in looked_up or r.number in absent]
        if left:
            console.note("Sending " + _describe(_estimate(left, self._rate), self._rate))
        if not self._stopping:
            await self._send(left)

    def _uncertain(self, left: Sequence[Record]) -> list[tuple[Record, Pending]]:
        """Return the messages that an earlier run may have sent, with the data to look them up."""
        found = []
        unlisted = READ_AHEAD  # a killed run may have sent this many without a line in the report
        for record in left:
            line = self._before.lines.get(record.number)
            if not self._before.killed:
                pending = line.pending if line else None
            elif line is not None or unlisted:
                # The killed run may have sent the message again after it wrote the line.
                unlisted -= line is None
                pending = Pending(
                    business_id=self._business_id,
                    chat_id=record.chat_id,
                    text=record.text,
                    requests=0,
                    seen="the program was ended while the message may have been under way",
                )
            else:
                break
            if pending is not None:
                found.append((record, pending))
        return found

    async def _settle(self, uncertain: Sequence[tuple[Record, Pending]]) -> set[int]:
        """Look up these messages and return the numbers of those that were never delivered."""
        receipts = await asyncio.gather(
            *(self._session.settle(pending) for _, pending in uncertain), return_exceptions=True
        )
        absent = set()
        for (record, _), receipt in zip(uncertain, receipts, strict=True):
            message = OutgoingMessage(record.chat_id, record.text)
            if receipt is None:
                absent.add(record.number)
            elif isinstance(receipt, ChatError):
                if not isinstance(receipt, DeliveryUnknownError):
                    raise receipt
                if receipt.__context__ is None:  # otherwise reading the history failed
                    self._undecidable.append(record.chat_id)
                self._note(record, Unknown(message, receipt))
            elif isinstance(receipt, BaseException):
                raise receipt
            else:
                self._note(record, Delivered(message, receipt))
        return absent

    async def _send(self, records: Sequence[Record]) -> None:
        now = asyncio.get_running_loop().time

        def messages() -> Iterator[OutgoingMessage]:
            for record in records:
                progress.message_started()
                yield OutgoingMessage(record.chat_id, record.text, ref=record)

        with SendingProgress(len(records), self._rate, silent=self._json) as progress:
            self._progress = progress
            showing = asyncio.create_task(self._keep_showing(progress))
            try:
                async for outcome in self._session.send_many(messages()):
                    if outcome.status == "refused" and isinstance(
                        outcome.error, SessionClosedError
                    ):
                        continue  # interrupted before the message was sent
                    progress.message_ended(now())
                    self._note(outcome.message.ref, outcome)
                progress.show(now(), self._session.quota_status("send_message"))
            except SessionClosedError:
                if not self._stopping:
                    raise
            finally:
                showing.cancel()

    async def _keep_showing(self, progress: SendingProgress) -> None:
        loop = asyncio.get_running_loop()
        notice_shown = False
        with suppress(SessionClosedError):
            while True:
                status = self._session.quota_status("send_message")
                progress.show(loop.time(), status)
                waiting = progress.time_without_response(loop.time()) >= NOTICE_AFTER
                if waiting and not notice_shown and progress.under_way(status):
                    notice_shown = True
                    note_no_response(f"{self._give_up_after:g} s per message")
                await asyncio.sleep(SHOW_EVERY)

    def _note(self, record: Record, outcome: Outcome) -> None:
        self._ended[outcome.status] += 1
        line = line_of(record, outcome)
        if self._report is not None:
            self._report.add(line)
        if self._json:
            try:
                console.data(line)
            except console.OutputError as error:
                self._stop(error)
        elif outcome.status != "delivered":
            self._failures += 1
            if self._failures <= MAX_ERRORS_SHOWN:
                why = console.describe(outcome.error)
                console.failure(f"line {line.line}, chat {line.chat_id}: {outcome.status}: {why}")
            elif self._failures == MAX_ERRORS_SHOWN + 1:
                console.note("More messages were not delivered; use --report to list all of them")

    def _stop(self, error: console.OutputError) -> None:
        self._hide_time_to_go()
        console.failure(f"{error}; no more messages are sent, waiting for the requests in progress")
        self._closing = asyncio.create_task(self._session.close())

    def _conclude(self) -> int:
        ended = self._ended
        delivered = ended["delivered"] + ended["delivered earlier"]
        left = len(self._records) - ended.total()
        summary = f"Delivered {delivered} of {console.number(len(self._records), 'message')}"
        if ended["delivered earlier"]:
            summary += f" ({ended['delivered earlier']} of them earlier)"
        summary += f", refused {ended['refused']}, unknown {ended['unknown']}, not sent {left}"
        (console.note if self._json else console.result)(summary)
        if self._undecidable and delivered + len(self._undecidable) == len(self._records):
            to_check = sorted(set(self._undecidable))
            chats = ", ".join(map(str, to_check[:MAX_ERRORS_SHOWN])) + (
                ", ..." if to_check[MAX_ERRORS_SHOWN:] else ""
            )
            console.note(
                "--resume cannot find out whether the unknown messages were delivered; check chat"
                f" {chats}"
            )
        elif self._report is not None and delivered < len(self._records):
            console.note(f"To continue, run the same command with --resume {self._report.path}")
        if self._interrupted:
            return signals.exit_status()
        return 0 if delivered == len(self._records) and not self._closing else 1
