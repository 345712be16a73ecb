"""A short round of `python -m benchmarks bot` on each database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from benchmarks.bot.judge import judge
from benchmarks.bot.play import SIZE, BotCrash

# Without faults, so that nothing is carried out late. The points are the benchmark's.
ROUND = replace(
    SIZE,
    kills=3,
    businesses=1,
    chats=5,
    rate=6.0,
    faults=0.0,
    timeout=2.0,
    blows={"kill one": 2, "kill all": 1, "stop": 1},
)


@pytest.mark.real_time
@pytest.mark.timeout(
    300
)  # a process starts slowly on a busy machine, and a dead one must be noticed
async def test_killed_bots_answer_each_message_once(tmp_path: Path, postgres_url: Any) -> None:
    urls = [f"sqlite:///{tmp_path}/outbox.db", str(postgres_url)]
    crashes = [BotCrash(ROUND, url, tmp_path, None, lambda _: None) for url in urls]
    crashes[1].killers = 0
    for killers, verdict in zip(
        (1, 0), await asyncio.gather(*(crash.play() for crash in crashes)), strict=True
    ):
        assert verdict.problems == []
        assert verdict.figures["kills"] == ROUND.kills
        assert verdict.figures["answered"] >= BotCrash.least - killers
        assert verdict.figures["given up"] == killers
        assert verdict.figures["420"] == 0


WRITTEN = [(1, "CUSTOMER", "да"), (2, "CUSTOMER", "да"), (4, "CUSTOMER", "kills 4")]
WRITTEN.append((5, "CUSTOMER", "kills always 5"))  # nobody can answer it
ONE, TWO, DEAD = ["answer 1 a 1"], ["answer 2 b 1", "answer 2 b 2"], ["error 4 Died 1"]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ([*ONE, *TWO, *DEAD], None),
        (["now 1 c 1", *ONE, *TWO, *DEAD], None),
        (["now 1 c 1", "now 1 d 1", *ONE, *TWO, *DEAD], "doubled"),
        ([*ONE, *TWO], "unanswered"),
        ([*TWO, *ONE, *DEAD], "disordered"),
        ([*ONE, "answer 2 b 1", *DEAD], "mixed"),
        ([*ONE, "answer 2 b 1", "answer 2 c 2", *DEAD], "mixed"),
        ([*ONE, *ONE, *TWO, *DEAD], "mixed"),
        ([*ONE, *TWO, *DEAD, *DEAD], "doubled"),
        ([*ONE, *TWO, "answer 4 e 1"], "doubled"),
        ([*ONE, *TWO, *DEAD, "answer 9 e 1"], "doubled"),
        ([*ONE, *TWO, *DEAD, "error 5 Died 1"], "doubled"),
    ],
)
def test_judge_sees_what_is_wrong(said: list[str], problem: str | None) -> None:
    rows = [*WRITTEN, *((10 + n, "PARTNER", text) for n, text in enumerate(said))]
    verdict = judge({(1, 17): rows})
    assert [name.partition(":")[0] for name in verdict.problems] == [problem] * bool(problem)
