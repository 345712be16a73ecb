"""Results of a benchmark: tables and plots, on the terminal, as JSON and in the docs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from .processes import ROOT, Spread

DOCS = ROOT / "docs"
JSON_NAME = "benchmarks.json"
_PACKAGES = (
    "aiohttp", "aiolimiter", "httpx", "msgspec", "procrastinate", "psycopg", "pydantic",
    "sqlalchemy", "ya-market-api", "yarl",
)  # fmt: skip

Figures = dict[str, Any]
"""The results of a benchmark, as stored in the JSON."""
Step = Callable[[str], None]
"""Reports a finished step to the progress bar, with its description."""


@dataclass
class Table:
    """Rows under a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Plot:
    """Lines over x, saved under `name`. `lines` has a list of points for each client."""

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = True
    log_y: bool = False
    from_zero: bool = True


@dataclass
class Report:
    """The figures of a benchmark, ready for display."""

    tables: list[Table]
    plots: list[Plot] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Benchmark(Protocol):
    """The interface of a benchmark module."""

    TITLE: str
    ABOUT: str

    @property
    def SIZES(self) -> Mapping[str, Any]:
        """The sizes of a run: "full", "quick", and "tiny" for the tests."""

    def steps(self, size: Any) -> int:
        """Return the number of steps of `run`."""

    def run(self, size: Any, step: Step) -> Figures:
        """Measure and return the figures."""

    def report(self, figures: Figures) -> Report:
        """Prepare the figures for display."""


def shown(value: Spread, digits: int = 2) -> str:
    """Format a median with its quartiles for a table."""
    low, median, high = (f"{value[name]:,.{digits}f}" for name in ("low", "median", "high"))
    return median if low == high else f"{median} ({low}–{high})"


def circumstances() -> dict[str, Any]:
    """Return the commit, the date, the machine and the versions of a measurement."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
    }


def _commit() -> str | None:
    try:
        commit = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", "yamarket_chat")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}, with changes" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def stored(docs: Path = DOCS) -> dict[str, Any]:
    """Read the results of the latest run of each benchmark."""
    path = docs / "benchmarks" / JSON_NAME
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def write(results: dict[str, Any], benchmarks: Mapping[str, Benchmark], docs: Path = DOCS) -> None:
    """Write the JSON, the plots and docs/benchmarks.md."""
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: results[name] for name in benchmarks if name in results}
    text = json.dumps(_rounded(results), ensure_ascii=False, indent=1)
    (folder / JSON_NAME).write_text(text + "\n")
    page = [_HEAD]
    for name, result in results.items():
        benchmark = benchmarks[name]
        report = benchmark.report(result["figures"])
        page += [f"## {benchmark.TITLE}", benchmark.ABOUT.strip()]
        for table in report.tables:
            page += [f"**{table.title}**", _markdown(table)]
        for plot in report.plots:
            _draw(plot, folder / f"{plot.name}.svg")
            page.append(f"![{plot.title}](benchmarks/{plot.name}.svg)")
        page += ["\n".join(f"- {remark}" for remark in report.remarks)] if report.remarks else []
        page.append(f"<sub>{_origin(name, result)}</sub>")
    (docs / "benchmarks.md").write_text("\n\n".join(page) + "\n")


_HEAD = """# Benchmarks

<!-- Written by `python -m benchmarks`; do not edit. -->

    pip install -e '.[bench]'
    python -m benchmarks             # all benchmarks; --quick takes a few minutes
    python -m benchmarks cost limit  # some benchmarks

Absolute times on a shared machine mean little, so look at the ratios. The clients under comparison
take turns, each in its own process. Figures are medians, with the quartiles in brackets.
Instructions are counted by `valgrind --tool=callgrind`. They repeat to within half a percent; those
of bare aiohttp at 64 in parallel vary by 3 %. All figures are in
[benchmarks.json](benchmarks/benchmarks.json)."""


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _origin(name: str, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    used = ", ".join(
        f"{package} {version}" for package, version in result["versions"].items() if version
    )
    size = "" if result["size"] == "full" else f" A {result['size']} run."
    return (
        f"`python -m benchmarks {name}` on {result['date']} at commit {result['commit']}:"
        f" {machine['cpu']}, {machine['cores']} cores, {machine['system']}, {result['python']},"
        f" {used}.{size}"
    )


def _markdown(table: Table) -> str:
    rows = [table.header, ["---"] + ["--:"] * (len(table.header) - 1), *table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _draw(plot: Plot, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    # The salt makes the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": plot.name, "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for number, (name, points) in enumerate(plot.lines.items()):
            (line,) = axes.plot(*zip(*points, strict=True), ms=4, clip_on=False, label=name)
            line.set(marker="osD^vP*X"[number % 8], zorder=9 - number)  # the first line is on top
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        if plot.log_x:
            axes.set_xscale("log")
            places = sorted({x for points in plot.lines.values() for x, _ in points})
            axes.set_xticks(places, minor=False)
            axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        if plot.log_y:
            axes.set_yscale("log")
        elif plot.from_zero:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
