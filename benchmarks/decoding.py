"""Decoding time of a page of 100 messages and of a page of 20 chats."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from yamarket_chat._http import operations

from .processes import spread
from .report import Figures, Report, Step, Table, shown

TITLE = "Decoding"
ABOUT = """
The time to turn the bytes of a response into the objects that the caller gets:

- yamarket_chat: msgspec structs;
- ya-market-api: its pydantic models, called as it calls them, with arrow times;
- pydantic, datetime: pydantic models with plain datetimes;
- json, dicts only: the standard library's json, unchecked, with times as strings.

The decoders take turns in one process.
"""
YARDSTICK = "json, dicts only"


@dataclass
class Size:
    """How much is measured."""

    rounds: int
    repeats: int


SIZES = {"full": Size(50, 50), "quick": Size(15, 20), "tiny": Size(2, 1)}


def _message(number: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "messageId": 1_000_000 + number,
        "createdAt": f"2025-11-{1 + number % 28:02}T12:{number % 60:02}:07.123456+03:00",
        "sender": ("CUSTOMER", "PARTNER", "MARKET", "SUPPORT")[number % 4],
        "message": f"Здравствуйте! Подскажите, когда привезут заказ № {number}? "
        * (1 + number % 5),
    }
    if number % 10 == 0:
        file = {"name": "фото.jpg", "url": f"https://example.com/files/{number}", "size": 123_456}
        message["payload"] = [file]
    return message


def _chat(number: int) -> dict[str, Any]:
    return {
        "chatId": 5_000_000 + number,
        "orderId": 77_000_000 + number,
        "context": {
            "type": "ORDER",
            "campaignId": 4321,
            "orderId": 77_000_000 + number,
            "customer": {"name": "Покупатель", "publicId": f"{number:032x}"},
        },
        "type": "CHAT",
        "status": ("NEW", "WAITING_FOR_PARTNER", "WAITING_FOR_CUSTOMER")[number % 3],
        "createdAt": "2025-11-07T12:13:14.123456+03:00",
        "updatedAt": "2025-11-08T12:13:14.123456+03:00",
    }


def _page(result: dict[str, Any]) -> bytes:
    paged = {**result, "paging": {"nextPageToken": "eyJvcCI6Ij4iLCJrZXkiOiIxMjMifQ=="}}
    return json.dumps({"status": "OK", "result": paged}, ensure_ascii=False).encode()


PAGES = {
    "100 messages": _page(
        {"context": _chat(1)["context"], "messages": [_message(n) for n in range(100)]}
    ),
    "20 chats": _page({"chats": [_chat(n) for n in range(20)]}),
}


def _decoders(page: str) -> dict[str, Callable[[bytes], Any]]:
    """The decoders of a page, by name."""
    operation = operations.HISTORY if page == "100 messages" else operations.CHATS
    decode = msgspec.json.Decoder(operation.answer, strict=False).decode
    decoders: dict[str, Callable[[bytes], Any]] = {
        YARDSTICK: json.loads,
        "yamarket_chat": lambda body: decode(body).result.page(),
    }
    try:
        from ya_market_api.chat.dataclass import ChatListResponse, ChatMessageListResponse

        from . import pydantic_models
    except ImportError:
        return decoders
    peers = {"100 messages": ChatMessageListResponse, "20 chats": ChatListResponse}
    # ya-market-api decodes the body to a str first.
    decoders["ya-market-api"] = lambda body: peers[page].model_validate_json(body.decode())
    decoders["pydantic, datetime"] = pydantic_models.ANSWERS[page].model_validate_json
    return decoders


def steps(size: Size) -> int:
    return len(PAGES) * size.rounds


def run(size: Size, step: Step) -> Figures:
    rows = []
    for page, body in PAGES.items():
        decoders = _decoders(page)
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for _ in range(size.rounds):
            took = {name: _timed(decode, body, size) for name, decode in decoders.items()}
            for name, seconds in took.items():
                values[name, "us"].append(seconds * 1e6)
                values[name, "ratio"].append(seconds / took[YARDSTICK])
            step(f"decoding: {page}")
        rows += [
            {
                "page": page,
                "bytes": len(body),
                "decoder": name,
                "us": spread(values[name, "us"]),
                "ratio": spread(values[name, "ratio"]),
            }
            for name in decoders
        ]
    return {"rows": rows}


def _timed(decode: Callable[[bytes], Any], body: bytes, size: Size) -> float:
    began = time.perf_counter()
    for _ in range(size.repeats):
        decode(body)
    return (time.perf_counter() - began) / size.repeats


def report(figures: Figures) -> Report:
    tables = []
    remarks = []
    header = ["decoder", f"over {YARDSTICK}", "µs"]
    for page in PAGES:
        rows = [row for row in figures["rows"] if row["page"] == page]
        shown_rows = [[row["decoder"], shown(row["ratio"]), shown(row["us"], 0)] for row in rows]
        size = rows[0]["bytes"] / 1000
        tables.append(Table(f"A page of {page}, {size:.1f} kB", header, shown_rows))
        mine = next(row for row in rows if row["decoder"] == "yamarket_chat")
        remarks += [
            f"A page of {page}: {row['decoder']} is faster than yamarket_chat,"
            f" {row['us']['median']:.0f} µs against {mine['us']['median']:.0f}."
            for row in rows
            if row["us"]["median"] < mine["us"]["median"]
        ]
    return Report(tables, remarks=remarks)
