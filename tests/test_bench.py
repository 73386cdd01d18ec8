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

from bench import driver, run, web
from bench.ground import BenchError
from bench.rounds import Figure
from shim.database import call
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World

WANTED = {
    "sql_pairs_ratio", "sql_growth_ratio", "http_pairs_ratio", "http_pairs_per_s", "http_growth_ratio",
    "contention_ratio", "horizon_ratio", "load_ratio", "scan_ratio", "scan_slow_ratio", "verify_ratio",
    "shim_rss_growth_mb", "p99_ms_at_half_load", "lone_checkout_ratio", "wrong_magics_ratio",
    "sql_statements_ratio", "http_statements_ratio", "contention_statements_ratio", "lone_statements_ratio",
}  # fmt: skip


def bench(*arguments: str, module: str = "bench.run") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
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


def test_the_original_and_ours_are_driven_in_turn_each_as_its_clients_do(
    world: World, shim: LiveShim
) -> None:
    for seqno in range(40):
        world.add_file(500, seqno=seqno)
    call(world.db, "set_magic", project="p", magic="another")
    sides = ("--original", f"{shim.url}/", "--ours", shim.url)
    done = bench(*sides, "--magic=another", "--rounds=1", "--seconds=0.2", module="bench.original")
    assert done.returncode == 0, done.stderr
    assert "original_16_clients_ratio" in done.stdout
    assert "original_4_clients_ratio" in done.stdout
    said = [
        int(number.replace(",", ""))
        for number in re.findall(r"([0-9,]+) (?:ours|the original's)", done.stdout)
    ]
    reports = world.db.execute("SELECT count(*) AS n FROM osgprod_data.reports").fetchone()
    assert min(said) > 0
    assert reports
    assert abs(sum(said) - reports["n"]) <= 8 * 16, "a client's last job may be between checkout and report"
    wrong = bench(*sides, module="bench.original")
    assert wrong.returncode == 1
    assert "403 Forbidden" in wrong.stderr, "a refused checkout is no pair"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080/osgprod", "http://127.0.0.1/osgprod", "http://127.0.0.1:1/osgprod"]
)
def test_a_server_of_the_comparison_that_cannot_be_reached_is_named_in_one_line_with_a_hint(url: str) -> None:
    done = bench("--original", url, "--ours", url, module="bench.original")
    assert done.returncode == 1
    assert re.fullmatch(rf"bench: {re.escape(url)}.*\nhint: .*\n", done.stderr)


def test_an_answer_in_chunks_is_complete_with_its_last_chunk() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
    assert not driver._is_whole(head, b"4\r\n#!/b\r\n")
    assert driver._is_whole(head, b"4\r\n#!/b\r\n0\r\n\r\n")
    assert not driver._is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 4", b"#!/")
    assert driver._is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 4", b"#!/b")
