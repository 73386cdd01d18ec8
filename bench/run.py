"""``make bench``: every measure in one run, as ratios against bounds taken in turn, into bench/results.json."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import files, peers, pgbench, tables, web
from bench.ground import SMALL, BenchError, Ground, Size, SkipMeasure, ground
from bench.rounds import Figure
from shim.local.embedded import EmbeddedError

RESULTS = Path(__file__).resolve().parent / "results.json"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: written by make bench -->\n", "<!-- end of figures -->"
# In this order: what needs quiet tables first, what leaves many dead rows last.
MEASURES: dict[str, Callable[[Ground], Iterator[Figure]]] = {
    "sql_pairs": pgbench.sql_pairs,
    "sql_writes": pgbench.sql_writes,
    "sql_statements": pgbench.sql_statements,
    "sql_growth": pgbench.sql_growth,
    "procrastinate": peers.procrastinate,
    "procrastinate_statements": peers.procrastinate_statements,
    "pgmq": peers.pgmq,
    "http_pairs": web.http_pairs,
    "http_statements": web.http_statements,
    "wrong_magics": web.wrong_magics,
    "http_growth": web.http_growth,
    "contention": pgbench.contention,
    "contention_statements": pgbench.contention_statements,
    "http_contention": web.http_contention,
    "latency": web.latency,
    "lone_request": web.lone_request,
    "lone_statements": web.lone_statements,
    "load": tables.load,
    "verify": tables.verify,
    "scan": files.scan,
    "scan_slow": files.scan_slow,
    "shim_memory": web.shim_memory,
    "horizon": pgbench.horizon,
    "hot_updates": pgbench.hot_updates,
}


def main() -> int:
    """Runs the measures and returns the exit code: 0 measured, 1 not; what falls short is only said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=MEASURES, help="this measure; may be repeated")
    parser.add_argument("--small", action="store_true", help="seconds only, numbers that mean nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    chosen = parser.parse_args()
    started = time.monotonic()
    names = chosen.only or list(MEASURES)
    try:
        pgbench.find_pgbench()
        with ground(SMALL if chosen.small else Size(), _say) as place:
            figures = []
            for name in names:
                _say(f"measuring {name}")
                try:
                    for figure in MEASURES[name](place):
                        figures.append(figure)
                        _say(next(_lines([figure])))  # should a later measure fail, this one is known
                except SkipMeasure as reason:
                    _say(f"left out: {reason} ({reason.hint})")
            place.check()
    except (BenchError, EmbeddedError) as error:
        print(f"bench: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    for line in table(figures):
        print(line)
    _write(figures, chosen.results, is_whole=not chosen.only)
    if chosen.results == RESULTS and not chosen.only and not chosen.small:
        DOCUMENT.write_text(documented(DOCUMENT.read_text(), figures))
    _say(f"done in {time.monotonic() - started:.0f} s")
    return 0


def table(figures: list[Figure]) -> Iterator[str]:
    """Gives the lines of the table that a person reads."""
    yield f"{'':24}{'value':>10}   {'goal':<10}{'measured':>12}{'bound':>12}"
    yield from _lines(figures)


def _lines(figures: list[Figure]) -> Iterator[str]:
    for figure in figures:
        sides = "".join(
            f"{'' if side is None else f'{side:,.4g}':>12}" for side in (figure.measured, figure.bound)
        )
        short = "" if figure.is_reached else "   falls short"
        yield f"{figure.name:24}{figure.value:>10,.4g}   {figure.wanted:<10}{sides} {figure.unit}{short}"


def documented(text: str, figures: list[Figure]) -> str:
    """Returns the page with the figures in their place."""
    before, _, following = text.partition(BEGIN)
    lines = ["| name | value | goal | measured | bound | |", "|---|---|---|---|---|---|"]
    for figure in figures:
        sides = " | ".join("" if side is None else f"{side:,.4g}" for side in (figure.measured, figure.bound))
        short = "" if figure.is_reached else " falls short"
        lines.append(
            f"| `{figure.name}` | {figure.value:,.4g} | {figure.wanted} | {sides} | {figure.unit}{short} |"
        )
    return before + BEGIN + "\n".join(lines) + "\n" + END + following.partition(END)[2]


def _write(figures: list[Figure], path: Path, is_whole: bool) -> None:
    known = {} if is_whole or not path.exists() else json.loads(path.read_text())
    for figure in figures:
        known[figure.name] = round(figure.value, 4)
        for side in ("measured", "bound"):
            if getattr(figure, side) is not None:
                known[f"{figure.name}.{side}"] = round(getattr(figure, side), 4)
    path.write_text(json.dumps(known, indent=1) + "\n")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
