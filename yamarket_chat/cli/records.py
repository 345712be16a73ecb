"""Reading messages from a file: CSV as spreadsheets write it, or JSONL."""

from __future__ import annotations

import csv
import enum
import itertools
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from yamarket_chat.arguments import check_id, check_text
from yamarket_chat.errors import InvalidArgumentError

from . import console
from .encodings import INVISIBLE, decode
from .encodings import BadFile as BadFile

CHAT_ID, TEXT = COLUMNS = ("chat_id", "text")
DELIMITERS = ",;\t"
LINE_BREAK = re.compile("\r\n|\r|\n")
STRIPPED = string.whitespace + '\xa0"' + INVISIBLE
HEADER_WITHIN = 20
"""The number of lines in which the header is looked for, to say where it is."""
LONGEST_CELL = 2**31 - 1
"""The number of characters that a cell may have. Texts are checked later, others are ignored."""
SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n|\Z)', re.IGNORECASE)
"""A first line that sets the delimiter, for Excel."""


class Format(enum.StrEnum):
    """The format of a file."""

    CSV = "csv"
    JSONL = "jsonl"


class Record(msgspec.Struct, frozen=True, gc=False):
    """A message of a file: its number, from 1, and the line in which it begins."""

    number: int
    line: int
    chat_id: int
    text: str


class BadLine(Exception):
    """An error in a line, and in which column if that is known."""

    def __init__(self, line: int, problem: str, column: str | None = None) -> None:
        place = f"line {line}" if column is None else f"line {line}, column {column}"
        super().__init__(f"{place}: {problem}")


Parsed = Iterator[tuple[int, object, object]]
"""Line, chat_id and text of each message."""


class Messages:
    """The messages of a file. Each iteration parses the file anew, so a large one fits in memory.

    Attributes:
        chats: How many chats they are to.
    """

    def __init__(self, parse: Callable[[], Parsed]) -> None:
        """Check all lines. Raises BadFile, which lists the errors of all of them."""
        self._parse = parse
        self._length = 0
        chats: set[int] = set()
        problems: list[str] = []
        try:
            for line, chat_id, text in parse():
                number = _chat_if_fine(chat_id, text)
                if number is None:
                    problems += _problems(line, chat_id, text)
                else:
                    self._length += 1
                    chats.add(number)
        except BadLine as error:
            raise BadFile([*problems, str(error)]) from None
        if problems:
            raise BadFile(problems)
        self.chats: int = len(chats)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record]:
        for number, (line, chat_id, text) in enumerate(self._parse(), 1):
            yield Record(number, line, int(str(chat_id)), str(text))


def read(
    content: bytes,
    name: str,
    form: Format | None = None,
    encoding: str | None = None,
    *,
    ask: bool = False,
    rows_in_text: bool = False,
) -> Messages:
    """Parse the messages of a file. Raises BadFile, which lists the errors of all lines.

    With `ask`, the user chooses the encoding on the terminal if it is uncertain. With
    `rows_in_text`, a text may contain a line that looks like a row of the file.
    """
    text = decode(content, encoding, lambda text: _first_text(_parse(text, name, form)), ask)
    del content  # it is large
    return Messages(lambda: _parse(text, name, form, rows_in_text))


def _parse(text: str, name: str, form: Format | None, rows_in_text: bool = False) -> Parsed:
    form = form or _guess_format(name, text)
    beginning = text[:1000].lstrip()
    if re.match(r"\[\s*[{\]]", beginning) or re.match(r"\{[^\S\n]*+\n", beginning):
        raise BadFile(
            [
                "line 1: this is JSON that spans several lines or an array; write one object per"
                ' line, such as {"chat_id": 17, "text": "Hello"}'
            ]
        )
    if re.match(r"<(?:!doctype|html|\?xml)", beginning, re.IGNORECASE):
        raise BadFile(["line 1: this is a web page or XML; save the messages as CSV in UTF-8"])
    return _csv(text, rows_in_text) if form is Format.CSV else _jsonl(text)


def _first_text(parsed: Parsed) -> str:
    """Return the first text by which a person recognizes the encoding."""
    with suppress(BadLine, BadFile):
        for _, _, text in parsed:
            if isinstance(text, str) and not text.isascii():
                return text
    return "(the file cannot be parsed in this encoding)"


def _guess_format(name: str, text: str) -> Format:
    match Path(name).suffix.lower():
        case ".jsonl" | ".ndjson":
            return Format.JSONL
        case ".csv" | ".tsv" | ".txt":
            return Format.CSV
    return Format.JSONL if text.lstrip().startswith("{") else Format.CSV


class _Invalid(msgspec.Struct, frozen=True):
    """Stands for a value that could not be read."""

    problem: str
    column: str | None = None


def _chat_if_fine(chat_id: object, text: object) -> int | None:
    """Return the chat of a message; None if something is wrong with the message."""
    try:
        number = check_id(CHAT_ID, _number(chat_id))
        return None if "\0" in check_text(text) else number
    except InvalidArgumentError:
        return None


def _number(chat_id: object) -> object:
    if isinstance(chat_id, str) and chat_id.isascii() and chat_id.isdigit():
        return int(chat_id[:40])
    return chat_id


def _problems(line: int, chat_id: object, text: object) -> Iterator[str]:
    # An error of the whole line stands for both values, but is reported once.
    for value in dict.fromkeys(v for v in (chat_id, text) if isinstance(v, _Invalid)):
        yield str(BadLine(line, value.problem, value.column))
    if not isinstance(chat_id, _Invalid):
        try:
            check_id(CHAT_ID, _number(chat_id))
        except InvalidArgumentError:
            yield str(
                BadLine(line, f"{chat_id!r:.40} is not a chat id; use a number such as 17", CHAT_ID)
            )
    if not isinstance(text, _Invalid):
        try:
            check_text(text)
        except InvalidArgumentError as error:
            yield str(BadLine(line, str(error), TEXT))
        else:
            if "\0" in str(text):
                yield str(BadLine(line, "the text has a NUL character, which cannot be sent", TEXT))


def _csv(text: str, rows_in_text: bool) -> Parsed:
    """Yield line, chat_id and text of each row. Raises BadLine if the rest cannot be parsed."""
    separator = SEPARATOR.match(text)
    if separator is not None:
        delimiter = separator[1]
        text = text[separator.end() :]
    else:
        header_line = next((line for line in _lines(text) if line.strip()), "")
        delimiter = max(DELIMITERS, key=header_line.count)
    lines_before = int(separator is not None)
    current = ""

    def lines() -> Iterator[str]:
        # Not a list: it would need more memory than all the rest of a large file.
        nonlocal current
        for current in _lines(text):  # noqa: UP028 - read below
            yield current

    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    chat_at = text_at = 0
    while True:
        line = rows.line_num + lines_before + 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            # The reader continues with the next line, unless an open quote extends to the end.
            if header is None or str(error) == "unexpected end of data":
                raise BadLine(
                    line,
                    f"this and the following lines are not valid CSV ({error}); check the quotes",
                ) from None
            problem = f"put quotes around the whole cell and double each quote inside it ({error})"
            column = _misquoted(current, delimiter, header)
            last = rows.line_num + lines_before
            if last > line:
                problem = f"a quote opens here and closes in line {last}; " + problem
                column = None
            bad = _Invalid(problem, column)
            yield line, bad, bad
            continue
        if not any(map(str.strip, row)):
            continue
        if header is None:
            following = itertools.islice(_lines(text), rows.line_num, None)
            header = _header(row, line, following, delimiter)
            chat_at, text_at = header.index(CHAT_ID), header.index(TEXT)
            continue
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if len(row) < len(header):
            problem = f"{console.number(len(row), 'cell')}, but the header has {len(header)}; "
            bad = _Invalid(problem + f"{header[len(row)]} is missing")
            yield line, bad, bad
            continue
        if len(row) > len(header):
            problem = (
                f"{len(row)} cells, but the header has {len(header)}; put quotes around a text that"
                f" contains {delimiter!r}"
            )
            bad = _Invalid(problem)
            yield line, bad, bad
            continue
        if not rows_in_text and (swallowed := _swallowed_row(row, header, delimiter)) is not None:
            bad = _Invalid(
                f"line {line + swallowed} looks like a row of its own, but belongs to a cell that"
                " begins earlier; check the quotes, or pass --rows-in-text if it is part of a text"
            )
            yield line, bad, bad
            continue
        yield line, row[chat_at].strip(), row[text_at]
    if header is None:
        raise BadLine(1, "the file is empty; its first line must be chat_id,text")


def _misquoted(line: str, delimiter: str, header: Sequence[str]) -> str | None:
    """Return the column in which text follows a closing quote."""
    sign = re.escape(delimiter)
    found = re.search(rf'(?:^|{sign})"(?:[^"]|"")*+"(?=[^"{sign}\r\n])', line)
    if found is None:
        return None
    before = next(csv.reader([line[: found.start()]], delimiter=delimiter), [])
    return header[len(before)] if len(before) < len(header) else None


def _lines(text: str) -> Iterator[str]:
    """Yield the lines with their line breaks. `str.splitlines` would also split at U+2028."""
    start = 0
    for line_break in LINE_BREAK.finditer(text):
        yield text[start : line_break.end()]
        start = line_break.end()
    if start < len(text):
        yield text[start:]


def _swallowed_row(row: Sequence[str], header: Sequence[str], delimiter: str) -> int | None:
    """Find a line within a cell that looks like a row, and return its distance to the first line.

    A quote without its partner makes one cell of the rows up to the next quote. One buyer would get
    the messages of others.
    """
    index = header.index(CHAT_ID)
    before = 0
    for cell in row:
        if "\n" not in cell and "\r" not in cell:
            continue
        _, *others = LINE_BREAK.split(cell)
        for number, text in enumerate(others, 1):
            cells = text.split(delimiter)
            if len(cells) > max(index, 1) and cells[index].strip().isdecimal():
                return before + number
        before += len(others)
    return None


def _header(row: list[str], line: int, following: Iterable[str], delimiter: str) -> list[str]:
    header = _names(row)
    for column in COLUMNS:
        if header.count(column) == 1:
            continue
        found = console.printable(delimiter.join(row).strip())
        if found.startswith("{"):
            raise BadLine(line, "this is JSONL, not CSV; pass --format jsonl")
        if any(cell.strip().isdecimal() for cell in row):
            problem = f"the header is missing; put the line chat_id,text before {found!r:.60}"
            raise BadLine(line, problem)
        for number, text in enumerate(itertools.islice(following, HEADER_WITHIN), line + 1):
            below = _names(re.split(f"[{DELIMITERS}]", text))
            if all(below.count(name) == 1 for name in COLUMNS):
                problem = f"{found!r:.60} stands before the header in line {number}; remove it"
                raise BadLine(line, problem)
        problem = f"{found!r:.60} is no header; it must contain {column} once, as in chat_id,text"
        raise BadLine(line, problem, column)
    return header


def _names(row: Sequence[str]) -> list[str]:
    names = [cell.strip(STRIPPED).lower() for cell in row]
    while names and not names[-1]:
        names.pop()
    return names


def _jsonl(text: str) -> Parsed:
    """Yield line, chat_id and text of each line."""
    # splitlines() would also split at U+2028, which JSON does not need to escape.
    for line, row in zip(itertools.count(1), text.split("\n"), strict=False):
        if not row.strip():
            continue
        try:
            fields = msgspec.json.decode(row)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            bad = _Invalid(f"this is not valid JSON ({error})")
            yield line, bad, bad
            continue
        if not isinstance(fields, dict):
            bad = _Invalid('each line must be an object such as {"chat_id": 17, "text": "Hello"}')
            yield line, bad, bad
            continue
        chat_id, message = (
            fields.get(name, _Invalid("the value is missing", name)) for name in COLUMNS
        )
        yield line, chat_id, message
