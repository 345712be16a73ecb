"""Decoding a file of messages. A wrong guess would send garbage to buyers.

UTF-8 proves itself: text in another encoding is hardly ever valid UTF-8. The Russian encodings of
one byte a character accept almost any bytes. So Windows-1251, which Excel writes, is taken only if
a detector and the text itself agree. Otherwise the user decides.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable, Sequence

from . import console

LEGACY = ("cp1251", "cp866", "koi8-r", "mac-cyrillic")
"""The encodings in which Russian files come that are neither UTF-8 nor UTF-16."""

SAMPLE = 65536
"""The number of bytes that the detector gets."""
LEAST_COHERENCE = 0.2
"""How much the letters must be as frequent as in Russian, from 0 to 1."""

VOWELS, LEAST_VOWELS = frozenset("аеиоуыэюя"), 0.3
"""Of the letters of a Russian text, about 43 % are vowels."""

UTF_8_LETTERS = re.compile(rb"(?:[\xd0\xd1][\x80-\xbf]){3}")
"""Three Cyrillic letters in UTF-8. No word looks like this in another encoding."""
UTF_8_CHARACTER = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
UNUSUAL = re.compile("[^\x20-\x7e\r\n\tА-Яа-яЁё\xa0«»„“”‘’–—…•№€°±©®™§·]")
"""A character that Russian texts hardly contain. They appear if the encoding is wrong."""
WRONG_CASE = re.compile("[а-яё][А-ЯЁ]|[а-яё][„“”][а-яё]|[‘’–—…•€™][а-яё]")
"""Letters as in "зАКАЗ" or "завтрЯ": KOI8-R or a Mac's encoding that was read as Windows-1251."""


INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
"""What editors and web pages leave at the beginning of a text: BOMs and spaces of no width."""

BINARY = {
    b"PK\x03\x04": "an Excel workbook (.xlsx) or another ZIP file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls)",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a compressed file (gzip)",
}


class BadFile(Exception):
    """A file that cannot be sent.

    `problems` has a text for each error. `hints` are lines that help the user.
    """

    def __init__(self, problems: Sequence[str], hints: Sequence[str] = ()) -> None:
        super().__init__(*problems)
        self.problems = problems
        self.hints = hints


def decode(
    content: bytes,
    encoding: str | None,
    first_text: Callable[[str], str],
    ask: bool = False,
) -> str:
    """Decode a file, without a BOM and the like. Raises BadFile.

    Args:
        content: The file.
        encoding: The encoding that the user has passed, or None.
        first_text: Finds the text to show, by which a person recognizes the encoding.
        ask: Whether to ask the user on the terminal if the encoding is uncertain.
    """
    for beginning, kind in BINARY.items():
        if content.startswith(beginning):
            raise BadFile([f"this is {kind}; save the messages as CSV in UTF-8"])
    return _decode(content, encoding, first_text, ask).lstrip(INVISIBLE)


def _decode(
    content: bytes, encoding: str | None, first_text: Callable[[str], str], ask: bool
) -> str:
    if encoding is not None:
        return _decode_strictly(content, encoding)
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return _decode_strictly(content, "utf-32")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_strictly(content, "utf-16")  # the format "Unicode text" of spreadsheets
    if b"\0" in content:
        fitting = [name for name in ("utf-16-le", "utf-16-be") if _fits(content, name)]
        if not fitting:
            line = content.count(b"\n", 0, content.index(b"\0")) + 1
            raise BadFile([f"line {line}: the file contains NUL bytes, so it is no text file"])
        return _let_choose(content, fitting, first_text, ask)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if _is_meant_as_utf_8(content):
            raise BadFile([_describe_utf_8_error(content, error)]) from None
    fitting = [name for name in LEGACY if _fits(content, name)]
    if _is_surely_windows_1251(content):
        text = content.decode("cp1251")
        console.note(
            f"The file is read as Windows-1251; the first text: {_shorten(first_text(text))}"
            " (if this is wrong, use --encoding)"
        )
        return text
    if not fitting:
        raise BadFile(["this is not text in UTF-8 or UTF-16; save it as UTF-8"])
    return _let_choose(content, fitting, first_text, ask)


def check(encoding: str) -> str:
    """Return the name of an encoding of texts. Raises LookupError."""
    "".encode(encoding)  # a codec such as base64 also raises LookupError
    return codecs.lookup(encoding).name


def _decode_strictly(content: bytes, encoding: str) -> str:
    if check(encoding) == "utf-8-sig":
        encoding = "utf-8"  # otherwise an error would have the position after the BOM
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if check(encoding) == "utf-8":
            raise BadFile([_describe_utf_8_error(content, error)]) from None
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        raise BadFile(
            [f"line {line}: this is not text in {encoding} ({error.reason}); save it as UTF-8"]
        ) from None


def _is_meant_as_utf_8(content: bytes) -> bool:
    if UTF_8_LETTERS.search(content):
        return True
    in_characters = sum(map(len, UTF_8_CHARACTER.findall(content)))
    return in_characters > 0.8 * sum(byte > 0x7F for byte in content)


def _describe_utf_8_error(content: bytes, error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    if SURROGATE.match(content, error.start):
        return (
            f"line {line}: half of a surrogate pair stands for a character, as in CESU-8 of old"
            " databases; save the file as UTF-8"
        )
    found = content[error.start : error.end].hex(" ")
    return (
        f"line {line}: the file is UTF-8, but here are bytes that are no character in UTF-8"
        f" ({found}); it is damaged, or parts of it have another encoding"
    )


def _fits(content: bytes, encoding: str) -> bool:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    others = [c for c in text if not c.isascii()]
    letters = sum("Ѐ" <= c <= "ӿ" for c in others)
    readable = all(c.isprintable() or c.isspace() for c in others)
    return readable and (letters > len(others) / 2 or encoding.startswith("utf-16"))


def _is_surely_windows_1251(content: bytes) -> bool:
    try:
        text = content.decode("cp1251")
    except UnicodeDecodeError:
        return False
    if UNUSUAL.search(text) or WRONG_CASE.search(text):
        return False
    # KOI8-R has small letters where Windows-1251 has capitals, in another order.
    small = [c for c in text if "а" <= c <= "я"]
    capitals = sum("А" <= c <= "Я" for c in text)
    if capitals > len(small) or sum(c in VOWELS for c in small) < LEAST_VOWELS * len(small):
        return False
    from charset_normalizer import from_bytes  # only here, because most files are UTF-8

    # Lines in ASCII would only hide the others.
    lines = b"\n".join(line for line in content.split(b"\n") if not line.isascii())
    candidates = [name.replace("-", "_") for name in (*LEGACY, "iso8859-5")]
    found = {match.encoding: match for match in from_bytes(lines[:SAMPLE], cp_isolation=candidates)}
    best = found.pop("cp1251", None)
    if best is None or best.coherence < LEAST_COHERENCE:
        return False
    return all(
        (other.chaos, -other.coherence) > (best.chaos, -best.coherence) for other in found.values()
    )


def _let_choose(
    content: bytes, fitting: Sequence[str], first_text: Callable[[str], str], ask: bool
) -> str:
    texts = [content.decode(name) for name in fitting]
    shown = [
        f"--encoding {name:<12}  {_shorten(first_text(text))}"
        for name, text in zip(fitting, texts, strict=True)
    ]
    head = "the encoding is not certain"
    if not ask:
        raise BadFile(
            [f"{head}; pass one of these options if its text is right, or save the file as UTF-8"],
            shown,
        )
    console.note(f"{head.capitalize()}. These fit, with the first text in each:")
    for number, line in enumerate(shown, 1):
        console.note(f"{number}  {line.removeprefix('--encoding ')}")
    while True:
        console.err.print(f"Which one, 1 to {len(shown)}? Enter quits: ", end="")
        answer = sys.stdin.readline().strip()
        if not answer:
            raise BadFile(["no encoding was chosen; pass --encoding, or save the file as UTF-8"])
        if answer.isascii() and answer.isdigit() and 1 <= int(answer[:9]) <= len(shown):
            return texts[int(answer) - 1]


def _shorten(text: str) -> str:
    text = console.printable(text)
    return text if len(text) <= 60 else text[:59] + "…"
