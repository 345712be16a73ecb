"""The messages of a file: CSV as spreadsheets write it, or JSONL, checked line by line."""

from __future__ import annotations

import codecs
import csv
import enum
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from yamarket_chat.arguments import check_id, check_text
from yamarket_chat.errors import InvalidArgumentError

from . import console

CHAT_ID, TEXT = COLUMNS = ("chat_id", "text")
DELIMITERS = ",;\t"
SEPARATOR = re.compile(r'"?sep=([^"])"?', re.IGNORECASE)
"""A first line that is for Excel alone."""


class Format(enum.StrEnum):
    """How the messages of a file are written."""

    CSV = "csv"
    JSONL = "jsonl"


class Record(msgspec.Struct, frozen=True):
    """A message of a file: which one it is, from 1, and the line that it begins in."""

    number: int
    line: int
    chat_id: int
    text: str


class BadLine(Exception):
    """What is wrong with a line, and in which column where that is known."""

    def __init__(self, line: int, what: str, column: str | None = None) -> None:
        where = f"line {line}" if column is None else f"line {line}, column {column}"
        super().__init__(f"{where}: {what}")


class BadFile(Exception):
    """A file of which nothing is sent: `problems` has a text for each bad line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


def read(content: bytes, name: str, form: Format | None = None) -> list[Record]:
    """The messages of a file. Raises BadFile, which names all lines that cannot be sent."""
    text = _decoded(content)
    form = form or _format_of(name, text)
    parsed = _csv(text) if form is Format.CSV else _jsonl(text)
    records: list[Record] = []
    problems: list[str] = []
    while True:
        try:
            line, chat_id, said = next(parsed)
        except StopIteration:
            break
        except BadLine as error:
            raise BadFile([*problems, str(error)]) from None
        found = list(_problems(line, chat_id, said))
        problems += found
        if not found:
            records.append(Record(len(records) + 1, line, int(str(chat_id)), str(said)))
    if problems:
        raise BadFile(problems)
    return records


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]  # "Unicode text" of spreadsheets
    else:
        encodings = ["utf-8-sig", "cp1251"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            pass
    raise BadFile(["the file is no text in UTF-8, UTF-16 or Windows-1251"])


def _format_of(name: str, text: str) -> Format:
    match Path(name).suffix.lower():
        case ".jsonl" | ".ndjson":
            return Format.JSONL
        case ".csv" | ".tsv" | ".txt":
            return Format.CSV
    return Format.JSONL if text.lstrip().startswith("{") else Format.CSV


class _Bad(msgspec.Struct, frozen=True):
    """In place of a value: why there is none."""

    why: str
    column: str | None = None


def _problems(line: int, chat_id: object, text: object) -> Iterator[str]:
    # Once, where one thing is wrong with the line as a whole.
    for value in dict.fromkeys(v for v in (chat_id, text) if isinstance(v, _Bad)):
        yield str(BadLine(line, value.why, value.column))
    if not isinstance(chat_id, _Bad):
        try:
            number = chat_id
            if isinstance(chat_id, str) and chat_id.isascii() and chat_id.isdigit():
                number = int(chat_id[:40])
            check_id(CHAT_ID, number)
        except InvalidArgumentError:
            yield str(BadLine(line, f"{chat_id!r:.40} is no chat number, such as 17", CHAT_ID))
    if not isinstance(text, _Bad):
        try:
            check_text(text)
        except InvalidArgumentError as error:
            yield str(BadLine(line, str(error), TEXT))


def _csv(text: str) -> Iterator[tuple[int, object, object]]:
    """Line, chat_id and text of each row. Raises BadLine where it cannot be read on."""
    lines = list(io.StringIO(text, newline=""))
    if lines and (told := SEPARATOR.fullmatch(lines[0].strip("\r\n"))):
        delimiter = told[1]
        lines[0] = "\n"
    else:
        header_line = next((line for line in lines if line.strip()), "")
        delimiter = max(DELIMITERS, key=header_line.count)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begins = 1
    while True:
        begins = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            # The reader goes on with the next line, unless a quote has taken it to the end.
            if header is None or str(error) == "unexpected end of data":
                raise BadLine(begins, f"this is no CSV from here on ({error})") from None
            why = f"put the whole cell in quotes, and each quote within it twice ({error})"
            bad = _Bad(why, _misquoted(lines[rows.line_num - 1], delimiter, header))
            yield begins, bad, bad
            continue
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = _header(row, begins)
            continue
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if len(row) < len(header):
            why = f"{console.number(len(row), 'cell')}, where the header has {len(header)}: "
            bad = _Bad(why + f"{header[len(row)]} is missing")
            yield begins, bad, bad
            continue
        if len(row) > len(header):
            why = (
                f"{len(row)} cells, where the header has {len(header)}: put a text that has"
                f" {delimiter!r} in it in quotes"
            )
            bad = _Bad(why)
            yield begins, bad, bad
            continue
        cells = dict(zip(header, row, strict=True))
        yield begins, cells[CHAT_ID].strip(), cells[TEXT]
    if header is None:
        raise BadLine(1, "the file is empty; its first line is chat_id,text")


def _misquoted(line: str, delimiter: str, header: Sequence[str]) -> str | None:
    """The column in which something stands behind a closing quote."""
    sign = re.escape(delimiter)
    found = re.search(rf'(?:^|{sign})"(?:[^"]|"")*"(?=[^"{sign}\r\n])', line)
    if found is None:
        return None
    before = next(csv.reader([line[: found.start()]], delimiter=delimiter), [])
    return header[len(before)] if len(before) < len(header) else None


def _header(row: list[str], line: int) -> list[str]:
    header = [cell.strip().lower() for cell in row]
    while header and not header[-1]:
        header.pop()
    for column in COLUMNS:
        if header.count(column) != 1:
            raise BadLine(line, f"the header names {column} once, as in chat_id,text", column)
    return header


def _jsonl(text: str) -> Iterator[tuple[int, object, object]]:
    """Line, chat_id and text of each line."""
    # Not splitlines(): a text may have U+2028 in it, which JSON need not escape.
    for line, row in zip(itertools.count(1), text.split("\n"), strict=False):
        if not row.strip():
            continue
        try:
            fields = msgspec.json.decode(row)
        except (msgspec.DecodeError, UnicodeError) as error:
            bad = _Bad(f"this is no JSON ({error})")
            yield line, bad, bad
            continue
        if not isinstance(fields, dict):
            bad = _Bad('a line is an object such as {"chat_id": 17, "text": "Hello"}')
            yield line, bad, bad
            continue
        chat_id, said = (fields.get(name, _Bad("it is missing", name)) for name in COLUMNS)
        yield line, chat_id, said
