"""A file in another encoding than UTF-8: no buyer gets garbage."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import environment
from tests.test_cli import (
    COMMAND,
    Finished,
    in_process,  # noqa: F401
    texts,
    variables_of,
)
from yamarket_chat.cli.records import BadFile, read
from yamarket_chat.sandbox import Sandbox

RUSSIAN = [
    "Здравствуйте! Ваш заказ собран и ждёт вас в пункте выдачи",
    "Спасибо за ожидание, курьер приедет завтра вечером",
]
CSV = "chat_id,text\n" + "".join(f"{n},{text!r}\n" for n, text in enumerate(RUSSIAN, 1))
CSV = CSV.replace("'", '"')


def texts_of(content: bytes, encoding: str | None = None) -> list[str]:
    return [record.text for record in read(content, "m.csv", encoding=encoding)]


def problems_of(content: bytes, encoding: str | None = None) -> list[str]:
    with pytest.raises(BadFile) as caught:
        read(content, "m.csv", encoding=encoding)
    return [*caught.value.problems, *caught.value.hints]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_files_are_read_without_a_notice(
    encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert texts_of(CSV.encode(encoding)) == RUSSIAN
    assert capsys.readouterr().err == ""


def test_windows_1251_is_read_with_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    assert texts_of(CSV.encode("cp1251")) == RUSSIAN
    said = capsys.readouterr().err
    assert said == (
        "The file is read as Windows-1251; the first text: Здравствуйте! Ваш заказ собран и ждёт"
        " вас в пункте выдачи (if this is wrong, use --encoding)\n"
    )


@pytest.mark.parametrize("encoding", ["cp866", "koi8-r", "mac-cyrillic", "iso8859-5"])
@pytest.mark.parametrize("case", [str, str.upper, str.lower])
def test_another_encoding_is_never_read_as_windows_1251(
    encoding: str, case: Callable[[str], str]
) -> None:
    text = "chat_id,text\n" + case(CSV.partition("\n")[2])
    problems = problems_of(text.encode(encoding))
    assert "the encoding is not certain" in problems[0]
    if encoding != "iso8859-5":
        fitting = [line for line in problems if line.startswith(f"--encoding {encoding} ")]
        assert case(RUSSIAN[0])[:50] in fitting[0]
    assert texts_of(text.encode(encoding), encoding) == [case(text) for text in RUSSIAN]


def test_text_too_short_to_detect_its_encoding_needs_the_option() -> None:
    content = "chat_id,text\n17,Да\n".encode("cp1251")
    assert any(line.startswith("--encoding cp1251        Да") for line in problems_of(content))
    assert texts_of(content, "cp1251") == ["Да"]


def test_encoding_choice_shows_a_text_with_non_ascii_letters() -> None:
    content = "chat_id,text\n1,Hello\n2,Да\n".encode("cp1251")
    assert any("Да" in line for line in problems_of(content))


@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-8-sig"])
def test_broken_utf_8_is_refused_with_the_line_number(encoding: str | None) -> None:
    content = CSV.encode().replace("курьер".encode(), "курье".encode() + b"\xd1")
    assert problems_of(content, encoding) == [
        "line 3: the file is UTF-8, but here are bytes that are no character in UTF-8 (d1); it is"
        " damaged, or parts of it have another encoding"
    ]


def test_utf_8_file_with_some_windows_1251_lines_is_refused() -> None:
    lines = CSV.encode().splitlines(keepends=True)
    content = lines[0] + lines[1] + 20 * lines[2].decode().encode("cp1251")
    assert problems_of(content)[0].startswith("line 3: the file is UTF-8, but here are bytes")


CESU_8 = "chat_id,text\n1,Да\n2,".encode() + b"\xed\xa0\xbd\xed\xb3\xa6\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (CESU_8, 3),
        (b"chat_id,text\n1,\xed\xa0\xbd\n", 2),
        (b"\xef\xbb\xbfchat_id,text\n1,\xed\xb3\xa6\n", 2),
    ],
)
def test_lone_surrogates_in_utf_8_are_refused_with_the_line_number(
    content: bytes, line: int
) -> None:
    assert problems_of(content)[0].startswith(f"line {line}: half of a surrogate pair")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_lone_surrogates_in_utf_16_are_refused_with_the_line_number(encoding: str) -> None:
    text = "\ufeffchat_id,text\n1,Да\n2,\ud83d!\n"
    problems = problems_of(text.encode(encoding, "surrogatepass"))
    assert problems[0].startswith("line 3: this is not text in utf-16")


def test_escaped_lone_surrogate_in_jsonl_is_refused_with_the_line_number() -> None:
    content = b'{"chat_id": 1, "text": "a"}\n{"chat_id": 1, "text": "\\ud83d"}\n'
    with pytest.raises(BadFile) as caught:
        read(content, "m.jsonl")
    assert caught.value.problems[0].startswith("line 2")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_bom_needs_the_option(encoding: str) -> None:
    content = CSV.encode(encoding)
    assert any(line.startswith(f"--encoding {encoding}") for line in problems_of(content))
    assert texts_of(content, encoding) == RUSSIAN


def test_nul_bytes_are_refused_with_the_line_number() -> None:
    assert problems_of(b"chat_id,text\n1,a\0b\n") == [
        "line 2: the file contains NUL bytes, so it is no text file"
    ]


def test_wrong_encoding_option_is_reported_with_the_line_number() -> None:
    assert problems_of(b"chat_id,text\n1,a\x98\n", "cp1251") == [
        "line 2: this is not text in cp1251 (character maps to <undefined>); save it as UTF-8"
    ]


def test_unknown_encoding_prints_one_line(
    in_process: Callable[..., Finished],  # noqa: F811
) -> None:
    for name in ("windows", "base64", "a\0b"):
        finished = in_process("send-many", "m.csv", "--encoding", name)
        assert finished.status == 2
        assert "is not an encoding; use utf-8 or cp1251" in finished.err


@pytest.mark.real_time
@pytest.mark.slow
async def test_command_asks_for_the_encoding_on_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes("chat_id,text\n17,Заказ собран\n".encode("koi8-r"))
    async with Sandbox(latency=0) as market:
        for answer, status, arrived in ((b"\n", 2, []), (b"x\n9\nN\n", 0, ["Заказ собран"])):
            terminal, its_end = os.openpty()
            shown = bytearray()
            process = await asyncio.create_subprocess_exec(
                *(COMMAND, "send-many", str(file)),
                stdin=its_end, stdout=PIPE, stderr=its_end,
                env=environment(TERM="xterm", **variables_of(market)),
            )  # fmt: skip
            os.close(its_end)
            while b"Enter quits" not in shown:
                shown += await asyncio.to_thread(os.read, terminal, 65536)
            lines = shown.decode().splitlines()
            right = next(line for line in lines if "koi8-r" in line)
            assert "Заказ собран" in right
            os.write(terminal, answer.replace(b"N", right.split()[0].encode()))
            await process.communicate()
            os.close(terminal)
            assert process.returncode == status
            assert texts(market, 17) == arrived
