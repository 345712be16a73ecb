"""Real-life files and environments: the command reads them, or says in a line what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_cli import (
    Finished,
    in_process,  # noqa: F401
    run,
    run_really,
    texts,
    variables_of,
)
from yamarket_chat.cli import environment
from yamarket_chat.cli.records import BadFile, read
from yamarket_chat.sandbox import Sandbox

Run = Callable[..., Finished]


def problems_of(content: str | bytes, name: str = "m.csv") -> list[str]:
    with pytest.raises(BadFile) as caught:
        read(content if isinstance(content, bytes) else content.encode(), name)
    return list(caught.value.problems)


# Quotes: no buyer may get the messages of others

SWALLOWED = [
    'chat_id,text\n17,"Скидка 10%\n18,Заказ готов\n19,Экран 5"\n20,ok\n',
    'chat_id;text\r\n17;"Скидка 10%\r\n18;Заказ готов\r\n19;Экран 5"\r\n20;ok\r\n',
    'n,text,chat_id\n1,"Скидка,17\n2,Заказ готов,18\n3,Экран 5",19\n4,ok,20\n',
    'name,chat_id,text\n"Анна,17,Скидка\nИван,18,Заказ",19,Экран\nЕва,20,ok\n',
]


@pytest.mark.parametrize("content", SWALLOWED)
def test_unclosed_quote_that_swallows_rows_is_refused(content: str) -> None:
    assert problems_of(content) == [
        "line 2: line 3 looks like a row of its own, but belongs to a cell that begins earlier;"
        " check the quotes, or pass --rows-in-text if it is part of a text"
    ]
    assert len(read(content.encode(), "m.csv", rows_in_text=True)) == 2


def test_send_many_refuses_swallowed_rows_unless_rows_in_text_is_passed(
    tmp_path: Path,
    in_process: Run,  # noqa: F811
) -> None:
    file = tmp_path / "m.csv"
    file.write_text(SWALLOWED[0], encoding="utf-8")
    finished = in_process("send-many", str(file), "--dry-run")
    assert finished.status == 2
    assert finished.err.startswith(f"Error: {file}, line 2: line 3 looks like a row")
    finished = in_process("send-many", str(file), "--dry-run", "--rows-in-text")
    assert finished.out.startswith("2 messages to 2 chats")


@pytest.mark.parametrize(
    "text",
    [
        "Здравствуйте,\n\nваш заказ 17, готов.\n2 шт.\n+7 900 000-00-00, звоните",
        "Адрес:\nМосква, 17",
        "10\n20",
    ],
)
def test_line_breaks_in_quoted_texts_are_kept(text: str) -> None:
    content = f'chat_id,text\n17,"{text}"\n18,ok\n'
    assert [record.text for record in read(content.encode(), "m.csv")] == [text, "ok"]


def test_quote_that_closes_lines_later_is_reported_with_both_line_numbers() -> None:
    content = 'chat_id,text\n17,"Скидка 10%\n18,Заказ\n19,"Ждём вас"\n20,ok\n'
    assert problems_of(content)[0].startswith("line 2: a quote opens here and closes in line 4;")


# What is no CSV at all

KINDS = [
    (b"PK\x03\x04\x14\0\x06\0", "this is an Excel workbook (.xlsx)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "this is an old Excel workbook (.xls)"),
    (b"%PDF-1.4\n\xe2\xe3", "this is a PDF file"),
    (b"\x1f\x8b\x08\0\0", "this is a compressed file"),
    (b"<!DOCTYPE html><html>", "line 1: this is a web page"),
    (b'[{"chat_id": 17, "text": "a"}]', "line 1: this is JSON that spans several lines or an ar"),
    (b'\n[\n  {"chat_id": 17, "text": "a"}\n]', "line 1: this is JSON that spans several lines"),
    (b'{\n  "chat_id": 17,\n  "text": "a"\n}', "line 1: this is JSON that spans several lines"),
]


@pytest.mark.parametrize(("content", "told"), KINDS)
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "-"])
def test_file_of_another_kind_is_named_in_the_error(content: bytes, told: str, name: str) -> None:
    assert [problem[: len(told)] for problem in problems_of(content, name)] == [told]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "17,Заказ готов\n18,ok\n",
            "line 1: the header is missing; put the line chat_id,text before '17,Заказ готов'",
        ),
        (
            "Рассылка на ноябрь;\n\nchat_id;text\n17;a\n",
            "line 1: 'Рассылка на ноябрь;' stands before the header in line 3; remove it",
        ),
        (
            "Чат;Текст\n17;a\n",
            "line 1, column chat_id: 'Чат;Текст' is no header; it must contain chat_id once, as in"
            " chat_id,text",
        ),
        ('{"chat_id": 17, "text": "a"}\n', "line 1: this is JSONL, not CSV; pass --format jsonl"),
    ],
)
def test_missing_header_error_shows_the_first_line(content: str, told: str) -> None:
    assert problems_of(content) == [told]


@pytest.mark.parametrize("before", ["\ufeff\ufeff", "\u200b", "\ufeff\u200b\u2060"])
def test_invisible_characters_before_the_header_are_ignored(before: str) -> None:
    assert [r.chat_id for r in read(f"{before}chat_id,text\n17,a\n".encode(), "m.csv")] == [17]
    assert [r.chat_id for r in read(f"chat_id,{before}text\n17,a\n".encode(), "m.csv")] == [17]
    line = f'{before}{{"chat_id": 17, "text": "a"}}'
    assert [r.chat_id for r in read(line.encode(), "m.jsonl")] == [17]
    assert [r.chat_id for r in read(line.encode(), "-")] == [17]


def test_too_deeply_nested_json_line_is_reported() -> None:
    content = '{"chat_id": 17, "text": "a"}\n' + "[" * 200_000
    assert [p[:29] for p in problems_of(content, "m.jsonl")] == ["line 2: this is not valid JSO"]


def test_errors_in_standard_input_name_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    in_process: Run,  # noqa: F811
) -> None:
    (tmp_path / "in").write_text("17,a\n")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        finished = in_process("send-many", "-", "--dry-run")
    assert finished.err.startswith("Error: standard input, line 1: the header is missing")


# .env and the environment


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("12345 # cabinet", "12345"),
        ("12345\t# cabinet", "12345"),
        ('"12345" # the "old" cabinet', "12345"),
        ("'12345'# x", "12345"),
        ('"a # b"', "a # b"),
        ("a#b", "a#b"),
        ("# nothing yet", ""),
        ('""', ""),
    ],
)
def test_comments_in_dotenv_are_ignored(line: str, value: str) -> None:
    path = Path(".env")
    assert environment._parse(f"YAMARKET_API_KEY={line}\n", path) == {"YAMARKET_API_KEY": value}


@pytest.mark.parametrize("line", ['"abc', "'abc\"", '"abc" def'])
def test_unmatched_quotes_in_dotenv_are_reported_with_file_and_line(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert environment._parse(f"A=1\nYAMARKET_API_KEY={line}\n", Path(".env")) == {}
    assert capsys.readouterr().err == (
        "Warning: .env, line 2: YAMARKET_API_KEY is ignored, because its quotes do not match\n"
    )


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.parametrize("key", ['"{}"', "'{}'", '{}"', "{} # cabinet"])
async def test_quoted_key_from_docker_env_file_is_not_sent(key: str) -> None:
    async with Sandbox() as market:
        variables = variables_of(market)
        variables["YAMARKET_API_KEY"] = key.format(market.api_key)
        finished = await run("send", "7", "hello", **variables)
        assert finished.status == 2
        assert "the key begins or ends with a quote" in finished.err or "a space" in finished.err
        assert market.api_key not in finished.err
        assert market.arrivals == []


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locale")
async def test_locale_without_cyrillic_is_reported() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    async with Sandbox() as market:
        for arguments in (("send", "7"), ("sandbox", "say", "7")):
            variables = variables_of(market, **plain)
            finished = await run_really(*arguments, "Привет", **variables)
            assert finished.status == 2
            assert "the text is not in the encoding of this locale" in finished.err
            assert "LC_ALL=C.UTF-8" in finished.err
        assert market.messages_stored == 0
        variables = variables_of(market, LC_ALL="C.UTF-8")
        finished = await run_really("send", "7", "Привет", **variables)
        assert finished.status == 0
        assert texts(market, 7) == ["Привет"]
        assert os.environ.get("PYTHONUTF8") != "0"
