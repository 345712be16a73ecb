"""python batch.py messages.csv report.jsonl

One session for the whole run. After SIGTERM or Ctrl-C, the script finishes and reports the messages
in progress. A row is in the report before it is sent, so a run after a kill sends nothing twice.
"""

import asyncio
import csv
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from yamarket_chat import (
    ChatSession,
    Delivered,
    DeliveryUnknownError,
    OutgoingMessage,
    Pending,
    Refused,
    SessionClosedError,
    Unknown,
)


class Line(msgspec.Struct):
    """What became of a row of the file. The last line of a row counts."""

    row: int
    status: str  # begun, delivered, not sent (surely), refused, unknown
    pending: Pending | None = None


class Report:
    def __init__(self, path: Path) -> None:
        written = path.read_bytes().splitlines() if path.exists() else []
        lines = [msgspec.json.decode(line, type=Line) for line in written]
        self.rows = {line.row: line for line in lines}
        self.begun: set[int] = set()  # in this run, without an outcome yet
        self._file = path.open("ab", buffering=0)

    def note(self, row: int, status: str, pending: Pending | None = None) -> None:
        self.rows[row] = Line(row, status, pending)
        self._file.write(msgspec.json.encode(self.rows[row]) + b"\n")
        os.fsync(self._file.fileno())
        if status == "begun":
            self.begun.add(row)
        else:
            self.begun.discard(row)

    def close(self) -> None:
        self._file.close()


def messages(path: Path, report: Report) -> Iterator[OutgoingMessage]:
    """The rows that were surely not sent yet."""
    with path.open(encoding="utf-8", newline="") as file:
        for row, record in enumerate(csv.DictReader(file), 1):
            if row not in report.rows or report.rows[row].status == "not sent":
                report.note(row, "begun")
                yield OutgoingMessage(record["chat_id"], record["text"], ref=row)


async def send(path: Path, report: Report, session: ChatSession) -> None:
    for line in list(report.rows.values()):  # first what the run before left unknown
        if line.pending is not None:
            try:
                arrived = await session.settle(line.pending)
            except DeliveryUnknownError:
                continue  # a person has to look
            report.note(line.row, "delivered" if arrived else "not sent")
    async for outcome in session.send_many(messages(path, report), reserve=100):
        row = outcome.message.ref
        match outcome:
            case Delivered():
                report.note(row, "delivered")
            case Unknown(error=error):
                report.note(row, "unknown", error.pending)
            case Refused(error=error):
                passes = error.retry_after is not None  # by itself: the next run sends it
                report.note(row, "not sent" if passes else "refused")


async def main(path: Path, report: Report) -> int:
    async with ChatSession() as session:
        loop = asyncio.get_running_loop()
        closing: list[asyncio.Task[None]] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(
                number, lambda: closing.append(loop.create_task(session.close()))
            )
        try:
            await send(path, report, session)
        except SessionClosedError:
            for row in list(report.begun):  # all others have their outcome by now
                report.note(row, "not sent")
            return 130
    return 0 if all(line.status == "delivered" for line in report.rows.values()) else 1


if __name__ == "__main__":
    report = Report(Path(sys.argv[2]))
    try:
        sys.exit(asyncio.run(main(Path(sys.argv[1]), report)))
    finally:
        report.close()
