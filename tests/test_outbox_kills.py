"""A short round of `python -m benchmarks crash` on each database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash.judge import Message, judge
from benchmarks.crash.play import Crash, Size

# Without faults, so that nothing is carried out late. Points are in test_outbox_crashes.py.
SIZE = Size(
    kills=4,
    seed=1,
    lease=1.5,
    businesses=2,
    chats=5,
    rate=8.0,
    faults=0.0,
    timeout=2.0,
    blows={"kill one": 2, "kill all": 1, "stop": 1},
    pauses=1.5,
)


@pytest.mark.real_time
async def test_killed_workers_lose_and_double_nothing(tmp_path: Path, postgres_url: Any) -> None:
    urls = [f"sqlite:///{tmp_path}/outbox.db", postgres_url]
    said: list[str] = []
    crashes = [Crash(SIZE, str(url), tmp_path, None, said.append) for url in urls]
    for verdict in await asyncio.gather(*(crash.play() for crash in crashes)):
        assert verdict.problems == []
        assert verdict.figures["kills"] == SIZE.kills
        assert verdict.figures["delivered"] > 20
        assert verdict.figures["420"] == 0, said


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (["a", "b", "b", "c"], None),
        (["a", "b", "b", "c", "c"], "doubled"),
        (["a", "b", "b", "b", "c"], "doubled"),
        (["a", "b", "c"], "lost"),
        (["b", "a", "b", "c"], "disordered"),
        (["a", "b", "b", "c", "refused"], "untrue"),
        (["a", "b", "b", "c", "x"], "doubled"),
    ],
)
def test_judge_sees_what_is_wrong(stored: list[str], problem: str | None) -> None:
    texts = ["a", "b", "b", "c", "refused", "u"]
    states = {"refused": "refused", "u": "unknown"}
    messages = [
        Message(number, 1, 17, text, states.get(text, "delivered"))
        for number, text in enumerate(texts, 1)
    ]
    verdict = judge(messages, {(1, 17): stored})
    assert [name.partition(":")[0] for name in verdict.problems] == [problem] * bool(problem)
    verdict = judge(messages, {(1, 17): [*stored, "u"]})
    assert len(verdict.problems) == bool(problem)
