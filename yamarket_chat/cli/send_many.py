"""Sending the messages of a file."""

from __future__ import annotations

import asyncio
import logging
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

from . import console, options
from .progress import Sending
from .records import BadFile, Format, Record, read
from .report import Busy, Earlier, Report, earlier, line_of
from .waiting import PATIENCE, tell_of_silence

DOCUMENTED = Limits().send_message
SHOW_EVERY = 0.5
LOG_EVERY = 5.0
"""Seconds between two lines that say why some message takes longer."""
SINGLY = 10
"""So many messages that were not delivered are named one by one."""


def send_many(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV with a header or JSONL; - is standard input.")
    ],
    *,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="What FILE is; by default its name or its content tells."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            dir_okay=False,
            help="Write a line of JSON for each message as it ends, into a new file.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            exists=True,
            dir_okay=False,
            help="Go on where this report ends: send what it does not tell to be delivered.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every line, tell what it takes, send nothing.")
    ] = False,
    requests: Annotated[
        int, typer.Option(min=1, help="Send at most so many messages in --per seconds.")
    ] = DOCUMENTED.requests,
    per: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="The time for which --requests counts."),
    ] = DOCUMENTED.per,
    json: options.Json = False,
    api_key: options.ApiKey = None,
    business_id: options.BusinessId = None,
    base_url: options.BaseUrl = BASE_URL,
    insecure_http: options.InsecureHttp = False,
    give_up_after: options.GiveUpAfter = options.GO_ON_FOR,
) -> None:
    """Send the messages of a file, each once, in order, and within the Market's limit.

    The file has the columns chat_id and text. All its lines are checked before the first message
    is sent. Ctrl-C ends it with nothing lost: --resume goes on.

    Exit status: 0 all delivered, 1 not all, 2 wrong use, 130 interrupted.

    Example: yamarket-chat send-many messages.csv --report report.jsonl
    """
    try:
        records = read(_content(file), file, form)
        before = earlier(resume, records) if resume else Earlier({}, killed=False)
    except BadFile as error:
        raise _bad(error) from None
    except OSError as error:
        raise _wrong(str(error)) from None
    if not records:
        console.note("No messages in the file")
    if report and resume and report != resume:
        raise _wrong("--resume goes on in the report that it is given: leave --report out")
    rate = Rate(requests, per=per)
    if dry_run:
        _tell_what_it_takes([r for r in records if before.status(r) != "delivered"], rate, json)
        return
    if business_id is None:
        raise InvalidArgumentError(
            "business_id is missing: pass it or set YAMARKET_BUSINESS_ID;"
            " yamarket-chat whoami tells it"
        )
    session = options.connect(
        *(api_key, business_id, base_url, insecure_http, give_up_after),
        limits=Limits(send_message=rate),
    )
    if resume is None and report is not None and report.exists():
        raise _wrong(f"{report} exists: --resume {report} goes on where it ends")
    try:
        writing = Report.begin(report) if report and not resume else None
        if resume:
            # Read once more: what another run wrote until it ended counts.
            writing, before = Report.go_on(resume, records)
    except Busy:
        raise _wrong("another run is writing this report") from None
    except BadFile as error:
        raise _bad(error) from None
    except OSError as error:
        raise _wrong(f"the report cannot be written: {error}") from None
    console.show_log(logging.INFO, at_most_every=LOG_EVERY)
    mailing = Mailing(
        *(session, records, before, writing, rate),
        business_id=business_id,
        json=json,
        give_up_after=give_up_after,
    )
    try:
        status = asyncio.run(mailing.run())
    except OSError as error:
        console.failure(f"stopped, because what became of the messages cannot be told: {error}")
        raise typer.Exit(1) from None
    raise typer.Exit(status)


def _bad(error: BadFile) -> typer.Exit:
    for problem in error.problems:
        console.failure(problem)
    if len(error.problems) > 1:
        console.failure(f"{len(error.problems)} lines to mend; nothing was sent")
    return typer.Exit(2)


def _wrong(text: str) -> typer.Exit:
    console.failure(text)
    return typer.Exit(2)


def _content(file: str) -> bytes:
    return options.standard_input() if file == "-" else Path(file).read_bytes()


class _Needs(msgspec.Struct):
    messages: int
    chats: int
    least_seconds: float


def _tell_what_it_takes(records: Sequence[Record], rate: Rate, json: bool) -> None:
    needs = _needs(records, rate)
    if json:
        console.data(needs)
    else:
        console.result(_described(needs, rate) + "; nothing was sent")


def _needs(records: Sequence[Record], rate: Rate) -> _Needs:
    return _Needs(
        len(records),
        len({record.chat_id for record in records}),
        max(len(records) - 1, 0) // rate.requests * rate.per,
    )


def _described(needs: _Needs, rate: Rate) -> str:
    if not needs.messages:
        return "no messages to send"
    return (
        f"{console.number(needs.messages, 'message')} to {console.number(needs.chats, 'chat')};"
        f" the limit of {rate.requests} in {rate.per:g} s"
        + (
            f" makes them take {console.duration(needs.least_seconds)} or more"
            if needs.least_seconds
            else " lets all of them go at once"
        )
    )


class Mailing:
    """The messages of a file on their way."""

    def __init__(
        self,
        session: ChatSession,
        records: Sequence[Record],
        before: Earlier,
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
        self._closing: asyncio.Task[None] | None = None  # since nobody reads the output
        self._progress: Sending | None = None
        self._failures = 0
        self._never_told: list[int] = []  # chats of unknown messages, of which no history tells

    async def run(self) -> int:
        """Send everything, tell what became of it, and return the exit status."""
        with self._report or nullcontext():
            async with self._session:
                sending = asyncio.create_task(self._send_all())
                try:
                    await asyncio.wait({sending})
                except asyncio.CancelledError:
                    self._interrupted = True
                    self._hide_time_to_go()
                    console.note(
                        "Interrupted: nothing more is sent; waiting for what is under way. Ctrl-C"
                        " again leaves at once"
                    )
                    await self._session.close()
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
        doubtful = self._doubtful(left)
        if doubtful:
            console.note(
                f"Looking up {console.number(len(doubtful), 'message')} of which the report does"
                " not tell whether they arrived"
            )
        absent = await self._settle(doubtful)
        asked = {record.number for record, _ in doubtful}
        left = [r for r in left if r.number not in asked or r.number in absent]
        if left:
            console.note("Sending " + _described(_needs(left, self._rate), self._rate))
        if not self._stopping:
            await self._send(left)

    def _doubtful(self, left: Sequence[Record]) -> list[tuple[Record, Pending]]:
        """What an earlier run may have sent, with what it takes to find it."""
        found = []
        in_hand = READ_AHEAD  # so many may have left
        for record in left:
            line = self._before.lines.get(record.number)
            if not self._before.killed:
                pending = line.pending if line else None
            elif line is not None or in_hand:
                # It may have been sent once more since that line, if there is one.
                in_hand -= line is None
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

    async def _settle(self, doubtful: Sequence[tuple[Record, Pending]]) -> set[int]:
        """Find out what became of these; the numbers of those that never arrived."""
        receipts = await asyncio.gather(
            *(self._session.settle(pending) for _, pending in doubtful), return_exceptions=True
        )
        absent = set()
        for (record, _), receipt in zip(doubtful, receipts, strict=True):
            message = OutgoingMessage(record.chat_id, record.text)
            if receipt is None:
                absent.add(record.number)
            elif isinstance(receipt, ChatError):
                if not isinstance(receipt, DeliveryUnknownError):
                    raise receipt
                if receipt.__context__ is None:  # else the history could not be read
                    self._never_told.append(record.chat_id)
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
                progress.one_begins()
                yield OutgoingMessage(record.chat_id, record.text, ref=record)

        with Sending(len(records), self._rate) as progress:
            self._progress = progress
            showing = asyncio.create_task(self._keep_showing(progress))
            try:
                async for outcome in self._session.send_many(messages()):
                    if outcome.status == "refused" and isinstance(
                        outcome.error, SessionClosedError
                    ):
                        continue  # interrupted before it left
                    progress.one_ended(now())
                    self._note(outcome.message.ref, outcome)
                progress.show(now(), self._session.quota_status("send_message"))
            except SessionClosedError:
                if not self._stopping:
                    raise
            finally:
                showing.cancel()

    async def _keep_showing(self, progress: Sending) -> None:
        loop = asyncio.get_running_loop()
        told = False
        with suppress(SessionClosedError):
            while True:
                status = self._session.quota_status("send_message")
                progress.show(loop.time(), status)
                silent = progress.nothing_heard_for(loop.time()) >= PATIENCE
                if silent and not told and progress.under_way(status):
                    told = True
                    tell_of_silence(f"{self._give_up_after:g} s a message")
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
            if self._failures <= SINGLY:
                why = console.describe(outcome.error)
                console.failure(f"line {line.line}, chat {line.chat_id}: {outcome.status}: {why}")
            elif self._failures == SINGLY + 1:
                console.note("More messages were not delivered; --report tells of each")

    def _stop(self, error: console.OutputError) -> None:
        self._hide_time_to_go()
        console.failure(f"{error}; nothing more is sent; waiting for what is under way")
        self._closing = asyncio.create_task(self._session.close())

    def _conclude(self) -> int:
        ended = self._ended
        delivered = ended["delivered"] + ended["delivered earlier"]
        left = len(self._records) - ended.total()
        told = f"Delivered {delivered} of {console.number(len(self._records), 'message')}"
        if ended["delivered earlier"]:
            told += f" ({ended['delivered earlier']} of them earlier)"
        told += f", refused {ended['refused']}, unknown {ended['unknown']}, not sent {left}"
        (console.note if self._json else console.result)(told)
        if self._never_told and delivered + len(self._never_told) == len(self._records):
            look_at = sorted(set(self._never_told))
            chats = ", ".join(map(str, look_at[:SINGLY])) + (", ..." if look_at[SINGLY:] else "")
            console.note(
                "Only a person can tell whether the unknown ones arrived, --resume cannot: look at"
                f" chat {chats}"
            )
        elif self._report is not None and delivered < len(self._records):
            console.note(f"To go on: the same command with --resume {self._report.path}")
        if self._interrupted:
            return console.INTERRUPTED
        return 0 if delivered == len(self._records) and not self._closing else 1
