"""A tiny run of every benchmark gives figures. No test asserts a speed."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes, report, rivals
from benchmarks.server import listen
from benchmarks.suite import BENCHMARKS


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (int, float)):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str) or value is None:
        return []
    return [number for item in value for number in _numbers(item)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_runs_and_returns_figures(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    size = benchmark.SIZES["tiny"]
    done: list[str] = []
    figures = benchmark.run(size, done.append)
    assert len(done) == benchmark.steps(size)
    numbers = _numbers(figures)
    assert len(numbers) >= 3
    assert all(math.isfinite(number) for number in numbers)
    shown = benchmark.report(figures)
    assert shown.tables
    for table in shown.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}
    # What was stored is what is shown later.
    assert benchmark.report(json.loads(json.dumps(figures))) == shown


@pytest.mark.parametrize("name", BENCHMARKS)
def test_full_run_has_at_least_as_many_steps_as_quick_run(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.steps(benchmark.SIZES["full"]) >= benchmark.steps(benchmark.SIZES["quick"])


def test_benchmark_docs_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plots need matplotlib, of the extra bench")
    limit = BENCHMARKS["limit"]
    figures = limit.run(limit.SIZES["tiny"], lambda _: None)
    result = {"size": "tiny", **report.circumstances(), "figures": figures}
    for _ in range(2):
        report.write({"limit": result}, BENCHMARKS, tmp_path)
        page = (tmp_path / "benchmarks.md").read_text()
    assert "A tiny run." in page
    assert "![" in page
    assert (tmp_path / "benchmarks/limit-time.svg").read_text().startswith("<?xml")
    stored = report.stored(tmp_path)
    assert stored["limit"]["figures"]["rows"]
    assert stored["limit"]["machine"]["cores"]
    assert str(processes.ROOT) not in json.dumps(stored) + page


@pytest.mark.real_time
async def test_bare_aiohttp_posts_the_same_bytes_as_the_session() -> None:
    seen: list[bytes] = []
    server, url = await listen(seen)
    async with server:
        for name in (*rivals.OURS, rivals.YARDSTICK):
            async with rivals.opened(name, url, 1) as run:
                await run(2)
    assert len(seen) == 6
    requests = []
    for request in seen:
        head, _, body = request.partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        requests.append((line, sorted(header.lower() for header in headers), body))
    assert requests[0] == requests[2] == requests[4]
    assert requests[1] == requests[3] == requests[5]


@pytest.mark.real_time
@pytest.mark.parametrize("name", ["send_message", "send_many", *rivals.SENDERS])
async def test_each_rival_client_sends_all_messages(name: str) -> None:
    if name not in rivals.available():
        pytest.skip(f"the package of {name} is missing; it is of the extra bench")
    seen: list[bytes] = []
    server, url = await listen(seen)
    async with server:
        async with rivals.opened(name, url, 3) as run:
            await run(8)
        await asyncio.sleep(0)
    assert len(seen) == 8


def test_instructions_are_counted() -> None:
    if not processes.has_callgrind():
        pytest.skip("valgrind is missing")
    command = shutil.which("true")
    assert command is not None
    counted = processes.instructions([command])
    assert counted > 1000
    assert processes.instructions([command]) == pytest.approx(counted, rel=0.01)
