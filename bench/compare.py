"""Compares the CPU time of a pair in two checkouts, on a machine that may be busy with other work.

``python -m bench.compare OTHER`` serves this checkout and OTHER side by side, each with its own functions in its own
database of one server, drives both in turn in many short rounds, and prints what a pair of checkout and report costs:
CPU time of the shim, and of the connections' backends. Time on the clock depends on what else runs; CPU time hardly.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg

from bench.driver import Order, drive
from bench.ground import MAGIC, SETTINGS, as_worker
from bench.web import CHECKOUT_FOLDER, serving
from shim.database import connect
from shim.local.embedded import Server

# Run in a checkout, so that each side has its own functions.
FILL = """
import sys
from pathlib import Path
from shim.database import call, connect
from shim.migrate import migrate
dsn, magic = sys.argv[1:]
migrate(dsn, say=lambda line: None)
with connect(dsn) as database:
    database.execute(Path("bench/functions.sql").read_text())
    call(database, "add_project", project="p", subnet_pattern="127.0.0.0/8", workscript="osgprod_work.bash",
         xrootd_prefix="root://xrootd.example.org/", maxblockspercore=10, magic=magic)
    call(database, "set_project", project="p", settings='{"probe_jobs": 0}')
    database.execute("SELECT bench.add_files(500000, 200, 10000)")
    call(database, "load_slices", project="p", runs=[500000, 500001])
"""


@dataclass(frozen=True)
class Cost:
    """What a pair cost in one round.

    shim_us, backend_us  CPU time [us];  per_s  pairs a second;  p50_ms  of a checkout;  calls  in a batch, mean
    """

    shim_us: float
    backend_us: float
    per_s: float
    p50_ms: float
    calls: float


class Side:
    """One checkout with its database and its running shim.

    Parameters
    ----------
    port, pid : int
        Of the shim.
    dsn : str
        Of the database, as superuser.
    """

    def __init__(self, port: int, pid: int, dsn: str) -> None:
        self._port, self._pid = port, pid
        self._database: psycopg.Connection[dict[str, Any]] = connect(dsn)
        self._cluster = 1_000_000

    def measure(self, clients: int, seconds: float) -> Cost:
        """Drive it for a while, and return what a pair cost."""
        self._cluster += clients
        shim, backends, batches = _cpu_s(self._pid), self._backends_s(), self._batches()
        result = drive(Order(self._port, "pairs", clients, seconds, cluster0=self._cluster))
        pairs = result["requests"] / 2
        return Cost(
            1e6 * (_cpu_s(self._pid) - shim) / pairs,
            1e6 * (self._backends_s() - backends) / pairs,
            result["per_s"] / 2,
            result["p50_ms"],
            2 * pairs / max(self._batches() - batches, 1),
        )

    def _batches(self) -> int:
        """Transactions until now: batches, and a few of others."""
        row = self._database.execute(
            "SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row
        return int(row["n"])

    def _backends_s(self) -> float:
        rows = self._database.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'osgprod shim'"
        )
        return sum(_cpu_s(row["pid"]) for row in rows)


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process until now [s]."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


@contextlib.contextmanager
def _side(name: str, checkout: Path, server: Server, folder: Path) -> Iterator[Side]:
    with connect(server.dsn) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    dsn = server.dsn.replace("dbname=postgres", f"dbname={name}")
    subprocess.run([_python(checkout), "-c", FILL, dsn, MAGIC], cwd=checkout, check=True)
    root = folder / name
    (root / "p").mkdir(parents=True)
    shutil.copy(checkout / "worker" / "osgprod_work.bash", root / "p")
    command = [_python(checkout), "-u", "-m", "shim", "serve", "--port", "0"]
    with serving(command, checkout, as_worker(dsn), root, folder / f"{name}.log") as served:
        yield Side(served.port, served.pid, dsn)


def _python(checkout: Path) -> str:
    own = checkout / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="folder of another checkout")
    parser.add_argument("--rounds", type=int, default=30, help="of each side (default: 30)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round (default: 1)")
    parser.add_argument("--clients", type=int, default=16, help="keep-alive connections (default: 16)")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="osgprod-compare-", dir=os.environ.get("TMPDIR", "/tmp")))
    folder.chmod(0o755)
    server = Server(folder / "server", {**SETTINGS, "shared_buffers": "256MB"})
    try:
        server.start()
        with (
            _side("this", CHECKOUT_FOLDER, server, folder) as this,
            _side("other", chosen.other.resolve(), server, folder) as other,
        ):
            for side in (this, other):
                side.measure(chosen.clients, 2.0)  # connections, prepared statements, the template
            rounds = []
            for number in range(chosen.rounds):
                order = (this, other) if number % 2 else (other, this)
                costs = {side: side.measure(chosen.clients, chosen.seconds) for side in order}
                rounds.append((costs[this], costs[other]))
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    for line in _table(rounds):
        print(line)
    return 0


def _table(rounds: list[tuple[Cost, Cost]]) -> Iterator[str]:
    yield f"{'':24}{'this':>10}{'other':>10}{'ratio':>10}   half of the rounds"
    what: list[tuple[str, Callable[[Cost], float]]] = [
        ("shim [us]", lambda cost: cost.shim_us),
        ("backends [us]", lambda cost: cost.backend_us),
        ("both [us]", lambda cost: cost.shim_us + cost.backend_us),
        ("pairs a second", lambda cost: cost.per_s),
        ("p50 of a checkout [ms]", lambda cost: cost.p50_ms),
        ("calls in a batch", lambda cost: cost.calls),
    ]
    for name, get in what:
        ratios = [get(this) / get(other) for this, other in rounds]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        mine, others = (median(get(pair[at]) for pair in rounds) for at in (0, 1))
        yield f"{name:24}{mine:>10.4g}{others:>10.4g}{median(ratios):>10.3f}   {low:.3f} to {high:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
