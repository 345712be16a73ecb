"""`python -m benchmarks [names] [--quick]`, `… simulate`, `… crash` and `… bot`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from .outbox import backlog, delivery
from .report import DOCS, Report, circumstances, stored, write
from .suite import BENCHMARKS


def main() -> None:
    """Run the chosen benchmarks, print the results, and write the JSON, the plots and the docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"one of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="smaller runs, a few minutes in all")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder for the results")
    parser.add_argument(
        "--redraw", action="store_true", help="measure nothing; rewrite the docs from the JSON"
    )
    parser.add_argument(
        "--database",
        choices=delivery.DATABASES,
        help="of outbox and backlog only this one; nothing is written to the docs",
    )
    arguments = parser.parse_args()
    if arguments.database:
        delivery.DATABASES[:] = backlog.DATABASES[:] = [arguments.database]
    names = arguments.names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(
            f"unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}"
        )
    size = "quick" if arguments.quick else "full"
    console = Console()
    logging.disable()  # long waits and failures are expected here
    results = stored(arguments.docs)
    for name in [] if arguments.redraw else names:
        benchmark = BENCHMARKS[name]
        with _progress(console) as progress:
            task = progress.add_task(name, total=benchmark.steps(benchmark.SIZES[size]))

            def step(what: str, progress: Progress = progress, task: TaskID = task) -> None:
                progress.update(task, advance=1, description=what)

            before = circumstances()
            figures = benchmark.run(benchmark.SIZES[size], step)
        after = circumstances()["commit"]
        if after != before["commit"]:
            before["commit"] = f"{before['commit']} to {after}"
        results[name] = {"size": size, **before, "figures": figures}
        _show(console, benchmark.report(figures))
        if not arguments.database:
            write(results, BENCHMARKS, arguments.docs)
    if arguments.redraw:
        write(results, BENCHMARKS, arguments.docs)


def _progress(console: Console) -> Progress:
    columns = Progress.get_default_columns()
    return Progress(
        *columns[:2], MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
    )


def _show(console: Console, report: Report) -> None:
    for shown in report.tables:
        table = Table(title=shown.title, title_justify="left")
        for number, head in enumerate(shown.header):
            table.add_column(head, justify="right" if number else "left", no_wrap=not number)
        for row in shown.rows:
            table.add_row(*row)
        console.print(table)
    for remark in report.remarks:
        console.print(f"- {remark}", highlight=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["simulate"]:
        from .simulate import command

        sys.exit(command.main(sys.argv[2:]))
    if sys.argv[1:2] == ["crash"]:
        from .crash.command import main as crash

        sys.exit(crash(sys.argv[2:]))
    if sys.argv[1:2] == ["bot"]:
        from .bot.command import main as bot

        sys.exit(bot(sys.argv[2:]))
    main()
