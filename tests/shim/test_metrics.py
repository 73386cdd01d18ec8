"""``metrics``: the values for Prometheus, from one process and several. Alerts and boards use existing metrics."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shim.database import call
from shim.web.metrics import Metrics
from tests.grid.mounts import fill, small_file_system
from tests.support import CHECKOUT, PATIENCE_S, WORKER_ROLE, LiveShim, World, wait_until

MONITORING = CHECKOUT / "deploy" / "monitoring"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """The sum of all samples with these labels."""
    wanted = set(labels.items())
    return sum(number for (its, has), number in found.items() if its == name and wanted <= has)


def test_requests_are_counted_by_route_status_and_answer(shim: LiveShim, world: World) -> None:
    world.add_file(2)
    assert shim.checkout(0).status_code == 200
    assert shim.report(0).status_code == 200
    shim.checkout(1)
    shim.report(1, 9)
    shim.checkout(2)
    shim.checkout(3, magic="wrong")
    shim.raw("workscript.bash", method="HEAD")
    found = samples(shim.raw("metrics").text)
    assert value(found, "osgprod_requests_total", route="checkout", status="200", answer="assigned") == 2
    assert value(found, "osgprod_requests_total", route="checkout", status="403") == 1
    assert value(found, "osgprod_requests_total", route="checkout", status="405") == 1
    assert value(found, "osgprod_requests_total", route="report", answer="done") == 1
    assert value(found, "osgprod_requests_total", route="report", answer="failed") == 1
    assert value(found, "osgprod_request_seconds_count", route="checkout") == 5
    assert value(found, "osgprod_request_seconds_bucket", route="report", le="+Inf") == 2
    assert value(found, "osgprod_pool_connections", state="most") == 1
    assert value(found, "osgprod_database_up") == 1


def test_production_is_told_as_the_database_knows_it(shim: LiveShim, world: World) -> None:
    world.set(max_failures=1)
    world.add_file(5)
    for process, code in enumerate((0, 0, 9, 137)):
        world.checkout(process, host=f"wn{process}")
        world.report(process, code)
    world.checkout(4)
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    call(world.db, "ban_worker", project="p", worker="wn9", seconds=60)
    found = samples(shim.raw("metrics").text)
    progress = world.progress()
    for state in ("done", "leased", "ready", "quarantined", "unallocated"):
        assert value(found, "osgprod_blocks", project="p", state=state) == progress[f"blocks_{state}"]
    for row in call(world.db, "totals", project="p"):
        labels = {"project": "p", "outcome": row["outcome"]}
        assert value(found, "osgprod_attempts_ended_total", **labels) == row["reports"]
        assert value(found, "osgprod_attempt_blocks_total", **labels) == row["blocks"]
    assert value(found, "osgprod_attempts_ended_total", project="p", outcome="lost") == 1, "reclaimed"
    assert value(found, "osgprod_slices", project="p", state="quarantined") == 1
    assert value(found, "osgprod_workers_refused", project="p") == 1
    assert value(found, "osgprod_project_state", project="p", state="active") == 1
    assert value(found, "osgprod_files", project="p", state="unfinished") == 1
    assert value(found, "osgprod_health", project="p", level="attention", what="quarantine") == 1


def test_no_caller_can_make_new_time_series(shim: LiveShim) -> None:
    shim.raw("metrics")
    before = len(samples(shim.raw("metrics").text))
    for n in range(20):
        shim.raw(f"workscript.bash?project=x{n}&cluster={n}&magic={n}")
        shim.raw(f"project/x{n}")
        shim.raw(f"nothing{n}")
    after = samples(shim.raw("metrics").text)
    assert len(after) - before < 55 and not [key for key in after if "x1" in str(key)]


@pytest.fixture
def two_processes(world: World, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``osgprod serve --workers 2`` and where it serves."""
    (folder / "www").mkdir()
    environment = {
        **os.environ,
        "OSGPROD_DSN": world.dsn + WORKER_ROLE,
        "OSGPROD_DOCUMENT_ROOT": str(folder / "www"),
    }
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    server = subprocess.Popen(
        [sys.executable, "-m", "shim", "serve", "--port", "0", "--workers", "2"],
        cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("serving "), line
    yield line.split()[1].rstrip(","), server
    server.terminate()
    server.communicate(timeout=PATIENCE_S)


def pids(url: str, requests: int) -> set[int]:
    """Asks on that many connections of their own and returns which processes answered."""
    answered = set()
    for _ in range(requests):
        answer = httpx.get(f"{url}/healthz", timeout=PATIENCE_S, verify=False)
        assert answer.status_code == 200
        answered.add(int(answer.headers["osgprod-request"].split("-")[0], 16))
    return answered


def test_several_processes_add_up_and_a_killed_one_takes_no_count_with_it(
    two_processes: tuple[str, subprocess.Popen[str]],
) -> None:
    url, server = two_processes
    asked, seen = 0, set[int]()

    def have_answered() -> bool:
        nonlocal asked, seen
        with contextlib.suppress(httpx.TransportError):  # not yet listening
            seen |= pids(url, 10)
            asked += 10
        return len(seen) == 2

    wait_until(have_answered, "both processes answer", server)
    for _ in range(4):
        found = samples(httpx.get(f"{url}/metrics", timeout=PATIENCE_S, verify=False).text)
        assert value(found, "osgprod_requests_total", route="healthz", status="200") >= asked
    before = value(found, "osgprod_requests_total", route="healthz", status="200")
    assert value(found, "osgprod_pool_connections", state="most") in (8, 16)

    os.kill(min(seen), signal.SIGKILL)

    def has_answered() -> bool:
        nonlocal found
        with contextlib.suppress(httpx.TransportError):
            found = samples(httpx.get(f"{url}/metrics", timeout=PATIENCE_S, verify=False).text)
            return True
        return False

    wait_until(has_answered, "the server answers with its metrics", server)
    assert value(found, "osgprod_requests_total", route="healthz", status="200") >= before


def test_requests_are_served_while_the_disk_is_full(world: World) -> None:
    """The files in which the processes count are in TMPDIR."""

    @contextlib.contextmanager
    def serving(workers: int, **more: str) -> Iterator[str]:
        server = subprocess.Popen(
            [sys.executable, "-m", "shim", "serve", "--port", "0", "--workers", str(workers)],
            cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn + WORKER_ROLE, **more},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        with contextlib.closing(server.stdout or io.StringIO()) as lines:
            try:
                yield next(line for line in lines if line.startswith("serving ")).split()[1].rstrip(",")
            finally:
                server.terminate()
                said.append("".join(lines))
                assert server.wait(PATIENCE_S) == 0

    def ask(url: str) -> None:
        for page in ("healthz", "", "nope", "openapi.json", "metrics", "api/progress", "workscript.ping"):
            assert httpx.get(f"{url}/{page}", timeout=PATIENCE_S).status_code in (200, 400, 404), page

    said: list[str] = []
    with small_file_system("size=2m,mode=1777") as disk:
        with serving(2, TMPDIR=str(disk)) as url:
            wait_until(lambda: len(list(disk.glob("*/*.db"))) == 6, "both processes count")
            fill(disk / "filled")
            ask(url)
        assert "can't be written" not in said[-1]
        fill(disk / "filled again")
        with serving(1, PROMETHEUS_MULTIPROC_DIR=str(disk)) as url:
            ask(url)
        assert (
            said[-1].count(f"metrics are those of one process: {disk} can't be written: No space left") == 1
        )


def test_counting_a_request_costs_microseconds() -> None:
    """A checkout takes milliseconds; what it is counted with must not show. Other processes don't count."""
    metrics = Metrics(None)
    metrics.count("checkout", 200, "assigned", 0.01)
    best = min(_time(metrics) for _ in range(20))
    assert best < 100e-6


def _time(metrics: Metrics) -> float:
    started = time.thread_time()
    for _ in range(200):
        metrics.count("checkout", 200, "assigned", 0.01)
    return (time.thread_time() - started) / 200


def test_dashboard_of_grafana_and_the_alerts_ask_only_for_what_there_is(shim: LiveShim, world: World) -> None:
    world.add_file(1)
    shim.checkout(0)
    text = shim.raw("metrics").text
    there = {name for name, _ in samples(text)}
    labels = {label for _, has in samples(text) for label, _ in has}
    board = json.loads((MONITORING / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 10
    alerts = (MONITORING / "alerts.yml").read_text()
    rules = re.findall(r"^      - alert: (\w+)\n        expr: (.*)$", alerts, re.MULTILINE)
    assert [name for name, _ in rules] == ["OsgprodStalled", "OsgprodFailing", "OsgprodDraining"]
    for query in [*queries, *(expression for _, expression in rules)]:
        names = set(re.findall(r"\bosgprod_\w+", query))
        assert names and names <= there, query
        used = set(re.findall(r"[{,]\s*(\w+)(?:=~|!~|!=|=)", query))
        assert used <= labels, query
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    words = set(
        re.findall(
            r"'(?:bad|attention|well)', '([a-z-]+)'",
            (CHECKOUT / "sql/functions/reading/health.sql").read_text(),
        )
    )
    for _, expression in rules:
        for pattern in re.findall(r'what=~?"([^"]+)"', expression):
            assert set(pattern.split("|")) <= words, "osgprod.health returns each of them"
