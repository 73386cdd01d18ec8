"""``make bench-grid``: one production on a simulated grid, assigned in several ways; into docs/performance.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.grid_plot import plot
from bench.grid_run import Grid, Outcome, Way, simulate
from shim.database import connect
from shim.local.embedded import EmbeddedError, temporary_server
from shim.migrate import migrate

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- grid: written by make bench-grid -->\n", "<!-- end of grid -->"
TEMPLATE = "grid_template"
PROCESSES = 2
# The original cuts ten blocks for each core, in all projects that its authors ran.
ORIGINAL_BLOCKS = 10
OUR_BLOCKS = 20  # at most
SLICES = 100
TARGET_S = 420  # short slices lose little to evictions, and a job that has many of them starts once


def ways(grid: Grid) -> dict[str, Way]:
    """The ways that are compared, by their short names.

    Parameters
    ----------
    grid
        Where they run: a file's size decides what one job a file is.
    """
    settings: dict[str, object] = {
        "target_s": TARGET_S,
        "max_backups": grid.workers // 5,
        "shrink_tail": True,
    }
    # Neither of these has a test of the work script, in which all jobs but the first ones wait.
    others: dict[str, object] = {"max_backups": 0, "probe_jobs": 0}
    return {
        "ours": Way("osgprod", OUR_BLOCKS, SLICES, settings),
        "one": Way("osgprod, one slice a job", OUR_BLOCKS, 1, settings),
        "fixed": Way("fixed slices", ORIGINAL_BLOCKS, 1, others),
        "file": Way("one job a file", grid.blocks, 1, others),
    }


def main() -> int:
    """Run the ways, print the table, write page and plot; the exit code is 1 when a run was not possible."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ways(Grid()), help="this way; may be repeated")
    parser.add_argument("--small", action="store_true", help="a small grid for seconds; figures mean little")
    parser.add_argument("--files", type=int, help="as much work (a whole run has 400)")
    parser.add_argument(
        "--workers", type=int, help="nodes (a whole run has 1,000); the work is in proportion"
    )
    parser.add_argument("--seed", type=int, default=1, help="of speeds, faults and bad blocks (default: 1)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of performance.md and images/")
    chosen = parser.parse_args()
    grid = replace(small() if chosen.small else Grid(), seed=chosen.seed)
    if chosen.files is not None:
        if chosen.files < 1:
            parser.error(f"--files must be at least 1, not {chosen.files}")
        grid = replace(grid, files=chosen.files)
    if chosen.workers is not None:
        if chosen.workers < grid.sites:
            parser.error(f"--workers must be at least {grid.sites}, not {chosen.workers}")
        grid = replace(
            grid, workers=chosen.workers, files=max(grid.files * chosen.workers // grid.workers, 1)
        )
    asked = [way for name, way in ways(grid).items() if not chosen.only or name in chosen.only]
    started = time.monotonic()
    try:
        outcomes = run(grid, asked)
    except (EmbeddedError, RuntimeError) as error:
        print(f"bench.grid: {error}", file=sys.stderr)
        return 1
    lines = [*table(grid, outcomes), "", *parts(outcomes)]
    print(*lines, sep="\n")
    print(f"{time.monotonic() - started:.0f} s")
    if not chosen.only and not chosen.small:
        page = chosen.docs / "performance.md"
        page.write_text(documented(page.read_text(), lines))
        (chosen.docs / "images" / "bench-grid.svg").write_text(plot(outcomes, grid.files * grid.blocks))
    return 0


def small() -> Grid:
    """A grid for the test suite."""
    return Grid(workers=30, files=4, blocks=400, block_s=288.0, poisoned=1 / 1600)


def run(grid: Grid, asked: Sequence[Way]) -> list[Outcome]:
    """Run each way on its own database, two at a time.

    Parameters
    ----------
    grid, asked
        Where, and which.

    Returns
    -------
    list of Outcome
        In the order of `asked`.
    """
    with temporary_server(shared_buffers="512MB", autovacuum_naptime="10s") as server:
        with connect(server) as database:
            database.execute(f"CREATE DATABASE {TEMPLATE}")
        migrate(server.replace("dbname=postgres", f"dbname={TEMPLATE}"), say=lambda line: None)
        with connect(server) as database:
            for number in range(len(asked)):
                database.execute(f"CREATE DATABASE grid{number} TEMPLATE {TEMPLATE}")
        with ProcessPoolExecutor(PROCESSES) as pool:
            runs = [
                pool.submit(simulate, server.replace("dbname=postgres", f"dbname=grid{number}"), grid, way)
                for number, way in enumerate(asked)
            ]
            return [one.result() for one in runs]


def table(grid: Grid, outcomes: Sequence[Outcome]) -> list[str]:
    """The figures, as lines of Markdown.

    Parameters
    ----------
    grid, outcomes
        The run and its result.
    """
    ideal_h = grid.ideal_s / 3600
    lines = [
        "| way | makespan [h] | over the ideal | wasted core hours | attempts | attempts a slice | tail [h] |",
        "|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        more = "" if o.is_complete else "> "
        lines.append(
            f"| {o.name} | {more}{o.makespan_s / 3600:.2f} | {more}{o.makespan_s / o.ideal_s:.3f} "
            f"| {100 * o.wasted_s / max(o.used_s, 1):.1f} % | {o.attempts:,} "
            f"| {o.attempts / max(o.done, 1):.2f} | {o.tail_s / 3600:.2f} |"
        )
    lines.append(f"| ideal: work / sum of speeds | {ideal_h:.2f} | 1 | 0 % | | | |")
    lines.append(f"| ideal, and the hour without storage | {ideal_h + grid.outage_s / 3600:.2f} "
                 f"| {1 + grid.outage_s / grid.ideal_s:.3f} | | | | |")  # fmt: skip
    lines.append(f"| least: that, vanishing attempts, evictions and starts | {grid.least_s / 3600:.2f} "
                 f"| {grid.least_s / grid.ideal_s:.3f} | | | | |")  # fmt: skip
    return lines


def parts(outcomes: Sequence[Outcome]) -> list[str]:
    """Where the time of the nodes went, as lines of Markdown: their sum is the makespan over the ideal.

    Parameters
    ----------
    outcomes
        Of the runs.
    """
    names = {name: None for o in outcomes for name in sorted(o.parts, key=lambda part: -o.parts[part])}
    rows = [[name, *(f"{o.parts.get(name, 0):.3f}" for o in outcomes)] for name in names]
    rows.append(["makespan", *(f"{sum(o.parts.values()):.3f}" for o in outcomes)])
    head = ["part of the makespan, over the ideal", *(o.name for o in outcomes)]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def documented(page: str, lines: Sequence[str]) -> str:
    """The page with these lines in the place of those of the last run.

    Parameters
    ----------
    page
        Text of docs/performance.md.
    lines
        The table.
    """
    before, _, old = page.partition(BEGIN)
    _, _, after = old.partition(END)
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


if __name__ == "__main__":
    sys.exit(main())
