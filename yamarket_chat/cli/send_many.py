"""The command `send-many`: send the messages of a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from yamarket_chat.arguments import BASE_URL, check_encodable
from yamarket_chat.errors import InvalidArgumentError
from yamarket_chat.limits import Limits, Rate

from . import console, options, signals
from .encodings import check
from .estimate import describe, estimate
from .records import BadFile, Format, Messages, read
from .report import resolve
from .waiting import SINGLE_REQUEST_TIMEOUT

DOCUMENTED = Limits().send_message
LOG_EVERY = 5.0
"""Seconds between two lines that say why a message takes longer."""
SUFFIX = ".outbox"
"""What the name of an outbox has behind that of its file."""


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
    outbox: Annotated[
        Path | None,
        typer.Option(
            metavar="OUTBOX",
            dir_okay=False,
            help="The SQLite file that knows what was sent. Default: FILE.outbox beside FILE.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            dir_okay=False,
            help="Write one JSON line per message to this file when its outcome is known.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            exists=True,
            dir_okay=False,
            help="The same as --report, for a report that must be there already.",
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
    first message. If the run ends early, even by a power cut, run the same command again: it
    continues, and sends nothing twice.

    Exit status: 0 all delivered, 1 not all delivered, 2 wrong usage, 130 interrupted
    (143 by SIGTERM, 129 by SIGHUP).

    Example: yamarket-chat send-many messages.csv --report report.jsonl
    """
    try:
        kept = file != "-" and Path(file).is_file()
        ask = (
            file != "-" and sys.stdin is not None and sys.stdin.isatty() and console.err.is_terminal
        )
        messages = read(_read_input(file), file, form, encoding, ask=ask, rows_in_text=rows_in_text)
    except BadFile as error:
        raise _exit_for_bad_file(error, file) from None
    except OSError as error:
        raise _usage_error(str(error)) from None
    if not messages:
        console.note("No messages in the file")
    if report and resume and report != resume:
        raise _usage_error("--resume appends to its own report; leave --report out")
    if outbox is None and kept:
        # Of the file itself: another name of it must not send it once more.
        outbox = Path(os.path.realpath(file) + SUFFIX)
    if outbox is not None:
        check_encodable("the path of the outbox (see --outbox)", str(outbox))
    if path := resume or report:
        report = _check_report(path, resume is not None, file, outbox)
    if resume and (outbox is None or not outbox.exists()):
        raise _usage_error(
            f"there is no outbox {outbox or 'of ' + _name(file)}, which knows what was sent; pass"
            " the one of that run to --outbox"
        )
    rate = Rate(requests, per=per)
    if dry_run:
        _estimate(file, outbox, messages, business_id, rate, json)
        return
    if business_id is None:
        raise InvalidArgumentError(
            "business_id is missing; pass it or set YAMARKET_BUSINESS_ID."
            " yamarket-chat whoami shows it"
        )
    limits = Limits(send_message=rate)
    options.connect(  # checks them
        *(api_key, business_id, base_url, insecure_http, give_up_after), limits=limits
    )
    console.show_log(logging.INFO, at_most_every=LOG_EVERY)
    with ExitStack() as stack:
        if outbox is None:
            folder = stack.enter_context(TemporaryDirectory(prefix="yamarket-chat-"))
            outbox = Path(folder, "outbox")
            console.note(
                f"If this run is killed, nobody knows which messages of {_name(file)} were sent;"
                " pass --outbox to be able to continue"
            )
        else:
            kept = True
        from . import bulk  # SQLAlchemy takes a while to import
        from .mailing import AnotherRunError, BadOutbox, locked

        try:
            stack.enter_context(locked(outbox))
        except AnotherRunError:
            raise _usage_error(
                f"another run is sending the messages of {outbox}; wait until it ends"
            ) from None
        except OSError as error:
            raise _usage_error(
                f"there can be no outbox {outbox}: {error.strerror}; pass a file in another folder"
                " to --outbox"
            ) from None
        sender = bulk.BulkSender(
            outbox,
            messages,
            rate,
            business_id=business_id,
            api_key=api_key or "",
            options={
                "base_url": base_url,
                "limits": limits,
                "retry": options.retry(give_up_after),
                "insecure_http": insecure_http,
            },
            report=report,
            resume=resume is not None,
            json=json,
            give_up_after=give_up_after or SINGLE_REQUEST_TIMEOUT,
            kept=kept,
        )
        try:
            status = signals.run(
                sender.run(), resolve_within=give_up_after or SINGLE_REQUEST_TIMEOUT
            )
        except BadOutbox as error:
            raise _exit_for_bad_file(error, str(outbox)) from None
        except BadFile as error:
            raise _exit_for_bad_file(error, file) from None
        except bulk.UsageError as error:
            raise _usage_error(str(error)) from None
        except OSError as error:
            console.failure(f"stopped: {error}")
            raise typer.Exit(1) from None
    raise typer.Exit(status)


def _check_report(path: Path, resume: bool, file: str, outbox: Path | None) -> Path:
    """Return the file of the report itself, to which links lead."""
    option = "--resume" if resume else "--report"
    others = ([] if file == "-" else [Path(file)]) + ([] if outbox is None else [outbox])
    try:
        return resolve(path, others)
    except ValueError as error:
        raise _usage_error(f"{option} {error}") from None
    except OSError as error:
        raise _usage_error(f"the report cannot be opened: {error}") from None


def _estimate(
    file: str,
    outbox: Path | None,
    messages: Messages,
    business_id: int | None,
    rate: Rate,
    json: bool,
) -> None:
    """Print how long it takes to send what is left."""
    ended: Collection[int] = ()
    if outbox is not None and outbox.exists():
        from . import bulk
        from .mailing import BadOutbox

        try:
            mailing = signals.run(bulk.look(outbox, messages, business_id))
        except BadOutbox as error:
            raise _exit_for_bad_file(error, str(outbox)) from None
        except BadFile as error:
            raise _exit_for_bad_file(error, file) from None
        except bulk.UsageError as error:
            raise _usage_error(str(error)) from None
        bulk.show_changes(mailing)
        ended = mailing.ended
    estimated = estimate(messages, ended, rate)
    if json:
        console.data(estimated)
    else:
        console.result(describe(estimated, rate) + "; nothing was sent")


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _exit_for_bad_file(error: BadFile, file: str = "") -> typer.Exit:
    name = _name(file)
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
