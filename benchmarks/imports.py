"""Import time of `yamarket_chat` over that of aiohttp and msgspec."""

from __future__ import annotations

import importlib.util
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .processes import answer, spread
from .report import Figures, Report, Step, Table, shown

TITLE = "Import"
ABOUT = """
CPU time of an import in a fresh interpreter, with bytecode compiled before; the packages take
turns. The table shows the time after aiohttp and msgspec were imported, and the total with both.
httpx is imported without its command line.
"""
CLIENTS = {
    "yamarket_chat": "yamarket_chat",
    "ya-market-api": "ya_market_api.async_api",
    "httpx": "httpx",
}
MOST_MS = 20.0
"""The largest number of milliseconds that the import may take; the project promises it."""

_PROGRAM = """
import sys, time
sys.modules["click"] = None  # makes httpx skip its command line
began = time.process_time()
import aiohttp, msgspec
ready, modules = time.process_time(), len(sys.modules)
import {module}
ended = time.process_time()
new = len(sys.modules) - modules
print([(ended - ready) * 1e3, (ended - began) * 1e3, new])
"""


@dataclass
class Size:
    """How much is measured."""

    rounds: int
    compile_first: bool = True


SIZES = {"full": Size(40), "quick": Size(10), "tiny": Size(1, compile_first=False)}


def steps(size: Size) -> int:
    return size.rounds + size.compile_first


def run(size: Size, step: Step) -> Figures:
    modules = {
        name: module
        for name, module in CLIENTS.items()
        if importlib.util.find_spec(module.partition(".")[0])
    }
    values: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        bytecode = folder if size.compile_first else None
        for turn in range(steps(size)):
            for name, module in modules.items():
                took = answer("-c", _PROGRAM.format(module=module), bytecode=bytecode)
                if turn or not size.compile_first:
                    values[name].append(took)
            step("imports")
    return {
        "rows": [
            {
                "client": name,
                "ms": spread([more for more, _, _ in values[name]]),
                "total_ms": spread([total for _, total, _ in values[name]]),
                "modules": values[name][0][2],
            }
            for name in modules
        ]
    }


def report(figures: Figures) -> Report:
    rows = [
        [row["client"], shown(row["ms"], 1), str(row["modules"]), shown(row["total_ms"], 0)]
        for row in figures["rows"]
    ]
    header = ["package", "ms over aiohttp and msgspec", "modules", "ms in total"]
    return Report([Table("Import", header, rows)], remarks=list(_remarks(figures["rows"])))


def _remarks(rows: list[Figures]) -> Iterable[str]:
    mine = rows[0]["ms"]["median"]
    kept = "within" if mine <= MOST_MS else "**over**"
    yield f"yamarket_chat takes {mine:.1f} ms, {kept} the {MOST_MS:g} ms that the project promises."
    for row in rows[1:]:
        if row["ms"]["median"] < mine:
            yield f"{row['client']} is faster: {row['ms']['median']:.1f} ms."
