"""``python -m bench.instructions``: how many instructions of the server a checkout and a report take.

The server runs under valgrind's callgrind, so the numbers are the same within 0.3 %, whatever else the machine does.
They show which of two texts of a function costs less; ``python -m bench.compare`` shows how much time that is.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from bench.compare import FILL
from bench.ground import MAGIC, BenchError, as_worker, work_script_digest
from bench.web import CHECKOUT_FOLDER
from shim.local import embedded
from shim.local.embedded import NOT_DURABLE, Server, memory_or_temporary

BATCH = 16
CALLS = 4 * BATCH  # that are counted together
CUT = "pg_backend_pid"  # its C function writes what was counted, and begins anew
CHECKOUT = """SELECT r.status, r.token FROM osgprod.checkout_slice(p_project => 'p', p_cluster => %s, p_process => %s,
    p_magic => %s, p_client => '127.0.0.1', p_templates => jsonb_build_object('osgprod_work.bash', %s::text)) r"""
REPORT = """SELECT r.status FROM osgprod.report_exit(p_project => 'p', p_cluster => %s, p_process => %s,
    p_exitcode => 0, p_magic => %s, p_client => '127.0.0.1', p_token => %s) r"""
NODE = {"host": "wn1.example.org", "site": "SITE_A", "job_key": "x" * 32}
Database = psycopg.Connection[tuple[Any, ...]]


class CountedServer(Server):
    """A server whose instructions are counted; the counts go to files in the folder `counts`."""

    def __init__(self, folder: Path, settings: dict[str, str], counts: Path) -> None:
        super().__init__(folder, settings)
        self._counts = counts

    def _command(self, program: str) -> list[str]:
        *user, path = super()._command(program)
        options = ("--tool=callgrind", "--trace-children=yes", "-q", f"--dump-before={CUT}")
        return [*user, "valgrind", *options, f"--callgrind-out-file={self._counts}/%p", path]


def count(database: Database, counts: Path, do: Callable[[], Any]) -> float:
    """The instructions of one call [thousands], when `do` makes CALLS of them."""
    database.execute(f"SELECT {CUT}()")
    do()
    database.execute(f"SELECT {CUT}()")
    dumps = counts.glob(f"{database.info.backend_pid}.*")
    last = max(dumps, key=lambda path: int(path.suffix[1:]))
    total = re.search(r"^(?:totals|summary): (\d+)", last.read_text(), re.MULTILINE)
    assert total, last
    return int(total[1]) / CALLS / 1000


def alone(database: Database, counts: Path, cluster: int) -> tuple[float, float]:
    """Checkouts in transactions of their own, then their reports."""
    tokens: list[str] = []

    def checkouts() -> None:
        for process in range(CALLS):
            row = database.execute(CHECKOUT, [cluster, process, MAGIC, work_script_digest()]).fetchone()
            assert row and row[0] == "assigned", row
            tokens.append(str(row[1]))

    def reports() -> None:
        for process, token in enumerate(tokens):
            row = database.execute(REPORT, [cluster, process, MAGIC, token]).fetchone()
            assert row == ("done",), row

    return count(database, counts, checkouts), count(database, counts, reports)


def batches(database: Database, counts: Path, cluster: int) -> tuple[float, float]:
    """The same in batches, with all that a job sends."""
    leased: list[tuple[int, str, int]] = []

    def ask(function: str, columns: str, calls: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        usual = {"project": "p", "cluster": cluster, "magic": MAGIC, "client": "127.0.0.1", **NODE}
        text = json.dumps([{"n": n, **usual, **one} for n, one in enumerate(calls)])
        query = f"SELECT r.status, {columns} FROM osgprod.{function}(%s) r ORDER BY r.n"
        rows = database.execute(query.encode(), [text]).fetchall()
        assert {row[0] for row in rows} <= {"assigned", "done"}, rows[0]
        return rows

    def checkouts() -> None:
        for first in range(0, CALLS, BATCH):
            asked = [
                {"process": first + n, "cpus": 1, "templates": {"osgprod_work.bash": work_script_digest()}}
                for n in range(BATCH)
            ]
            rows = ask("checkout_slices", "r.token, r.events", asked)
            leased.extend((first + n, str(row[1]), row[2]) for n, row in enumerate(rows))

    def reports() -> None:
        for first in range(0, CALLS, BATCH):
            evidence = {"exitcode": 0, "outputs": 1, "output_bytes": 9, "output_adler32": "00000001"}
            told = [
                {"process": p, "token": t, "events": e, **evidence}
                for p, t, e in leased[first : first + BATCH]
            ]
            ask("report_exits", "r.n", told)

    return count(database, counts, checkouts), count(database, counts, reports)


def main() -> int:
    """Count, print, and return the exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind is missing", "apt-get install valgrind brings it")
    embedded.START_TIMEOUT_S = 300.0  # it starts fifty times as slowly
    folder = Path(tempfile.mkdtemp(prefix="osgprod-instructions-", dir=memory_or_temporary()))
    folder.chmod(0o755)
    counts = folder / "counts"
    counts.mkdir()
    counts.chmod(0o777)
    settings = {**NOT_DURABLE, "autovacuum": "off"}
    try:
        with embedded.server(folder / "server", **settings) as dsn:
            subprocess.run([sys.executable, "-c", FILL, dsn, MAGIC], cwd=CHECKOUT_FOLDER, check=True)
        server = CountedServer(folder / "server", settings, counts)
        server.start()
        try:
            with psycopg.connect(as_worker(server.dsn), autocommit=True, prepare_threshold=1) as database:
                for cluster in (1, 2):  # once for the plans
                    rows = [alone(database, counts, cluster), batches(database, counts, cluster + 10)]
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("thousands of instructions of the server for a call")
    for what, (checkout, report) in zip(("alone", f"in a batch of {BATCH}"), rows, strict=True):
        print(f"{what:20} checkout {checkout:8.1f}   report {report:8.1f}   pair {checkout + report:8.1f}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except BenchError as error:
        raise SystemExit(f"{error}: {error.hint}") from error
