"""How many stories the simulation plays: on one core, and on all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .report import Figures, Plot, Report, Step, Table
from .simulate.cores import cores, played
from .simulate.tally import Tally

TITLE = "The simulation"
ABOUT = """
`python -m benchmarks simulate` plays stories that a seed decides: sessions and sandbox, with
aiohttp on both sides, in virtual time and with a network in memory. A story has about twelve
messages. A process plays one story after another, and needs no other process. The time includes
the start of the processes.
"""


@dataclass
class Size:
    """How many stories are played."""

    seeds: int


SIZES = {"full": Size(4000), "quick": Size(1000), "tiny": Size(4)}


def steps(size: Size) -> int:
    return len(_jobs())


def _jobs() -> list[int]:
    return sorted({1, cores()})


def run(size: Size, step: Step) -> Figures:
    rows = []
    for jobs in _jobs():
        total = Tally()
        began = time.perf_counter()
        for tally in played(1, size.seeds, jobs=jobs):
            total.add(tally)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "processes": jobs,
                "seeds": total.seeds / seconds,
                "messages": total.messages / seconds,
                "hours": total.hours / seconds,
                "failed": sum(total.violations.values()),
            }
        )
        step(f"simulation: {jobs} processes")
    return {"seeds": size.seeds, "rows": rows}


def report(figures: Figures) -> Report:
    shown = [
        [
            f"{row['processes']}",
            f"{row['seeds']:,.0f}",
            f"{row['messages']:,.0f}",
            f"{row['hours']:.1f}",
            f"{row['failed']:,}",
        ]
        for row in figures["rows"]
    ]
    header = ["processes", "stories a second", "messages a second", "hours a second", "failed"]
    plots: list[Plot] = []
    remarks = [f"Each row played {figures['seeds']:,} stories."]
    return Report([Table("Stories in virtual time", header, shown)], plots, remarks)
