"""The benchmarks run, on tables so small that their numbers mean nothing."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import run, web
from bench.ground import BenchError
from bench.rounds import Figure
from tests.support import CHECKOUT, PATIENCE_S

WANTED = {
    "sql_pairs_ratio", "sql_growth_ratio", "http_pairs_ratio", "http_pairs_per_s", "http_growth_ratio",
    "contention_ratio", "horizon_ratio", "load_ratio", "scan_ratio", "scan_slow_ratio", "verify_ratio",
    "shim_rss_growth_mb", "p99_ms_at_half_load", "lone_checkout_ratio", "wrong_magics_ratio",
}  # fmt: skip


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.run", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE_S,
    )


@pytest.mark.slow
def test_every_measure_runs_and_writes_its_number(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = bench("--small", "--results", str(results))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(results.read_text())
    assert set(numbers) >= WANTED
    assert all(isinstance(number, int | float) and number >= 0 for number in numbers.values())
    for name in WANTED:
        assert name in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is missing")
def test_instructions_of_a_pair_are_the_same_in_two_runs() -> None:
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "bench.instructions"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        runs.append([float(number) for number in re.findall(r"\d+\.\d", done.stdout)])
    assert len(runs[0]) == 6
    assert runs[0] == pytest.approx(runs[1], rel=0.01)


def test_server_of_the_bench_is_found_whatever_it_says_before_its_address(tmp_path: Path) -> None:
    log = tmp_path / "shim.log"
    log.write_text("a line\nthe port is taken\n")
    said = "the database is older than this program\nserving http://127.0.0.1:8081/osgprod, Ctrl-C ends it\n"
    assert web._port(io.StringIO(said), log) == 8081
    with pytest.raises(BenchError, match="does not start: the port is taken"):
        web._port(io.StringIO("the database is older than this program\n"), log)


def test_an_unknown_measure_is_refused_in_one_line_with_those_that_there_are() -> None:
    done = bench("--only", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert all(name in done.stderr for name in run.MEASURES)
    assert "Traceback" not in done.stderr


def test_a_whole_run_puts_its_numbers_into_the_page_and_leaves_the_rest() -> None:
    page = run.DOCUMENT.read_text()
    once = run.documented(page, [Figure("x_ratio", 0.4, (">=", 0.5), 2.0, 5.0, "pairs/s")])
    assert "| `x_ratio` | 0.4 | >= 0.5 | 2 | 5 | pairs/s falls short |" in once
    assert once.startswith(page.partition(run.BEGIN)[0])
    assert once.endswith(page.partition(run.END)[2])
    again = run.documented(once, [Figure("y_ratio", 1, (">=", 0.5))])
    assert "x_ratio" not in again
    assert "| `y_ratio` | 1 |" in again
