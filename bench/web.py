"""The measures at HTTP: the shim as shipped, and the bound, each behind the same server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import IO, Literal

from bench.driver import Order
from bench.ground import HERE, BenchError, Ground, as_worker
from bench.rounds import Figure, in_turn

CHECKOUT_FOLDER = HERE.parent
WRONGS_PER_S = 200.0
# What serves best where clients, shim and PostgreSQL share the cores: more processes make smaller batches.
WORKERS = max(len(os.sched_getaffinity(0)) // 2, 1)


class Served:
    """A running server of one or more processes.

    Parameters
    ----------
    port : int
        On the loopback.
    process : subprocess.Popen[str]
        The one that was started.
    """

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self.pid = process.pid
        self._process = process

    def resident_mb(self) -> float:
        """Returns the resident memory of all processes [MB]."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        statuses = [
            Path(f"/proc/{number}/status").read_text() for number in [str(self._process.pid), *children]
        ]
        return sum(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) for status in statuses) / 1000


@contextlib.contextmanager
def serving(command: list[str], checkout: Path, dsn: str, root: Path, log: Path) -> Iterator[Served]:
    """Run a server until the end of the block.

    Parameters
    ----------
    command : list of str
        What starts it; it says its address on its standard output.
    checkout : Path
        Where it is run.
    dsn : str
        Its database.
    root : Path
        Its document root.
    log : Path
        Where its standard error output goes.

    Raises
    ------
    BenchError
        It does not start.
    """
    environment = {**os.environ, "OSGPROD_DSN": dsn, "OSGPROD_DOCUMENT_ROOT": str(root)}
    environment |= {
        "OSGPROD_CLIENT_RATE": str(10**9),
        "OSGPROD_PROJECT_RATE": str(10**9),
    }  # counted, never reached
    environment.pop("OSGPROD_ROOT_PATH", None)
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    try:
        yield Served(_port(process.stdout, log), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def _serving(ground: Ground, dsn: str, command: list[str]) -> contextlib.AbstractContextManager[Served]:
    root = ground.folder / "www"
    for project in ("p", "one", "thousand"):
        (root / project).mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT_FOLDER / "worker" / "osgprod_work.bash", root / project)
    return serving(
        [sys.executable, "-u", "-m", *command],
        CHECKOUT_FOLDER,
        as_worker(dsn),
        root,
        ground.folder / "shim.log",
    )


def _port(lines: IO[str], log: Path) -> int:
    """The port that a server says it serves at; before that it may say other things, of its database for instance."""
    said = []
    for line in lines:
        if found := re.search(r"http://\S+?:(\d+)/", line):
            return int(found[1])
        said.append(line)
    last = [*said, *log.read_text().splitlines()][-1:] or ["it says nothing"]
    raise BenchError(f"the shim does not start: {last[0].strip()}", "osgprod serve says the same")


def _shim(ground: Ground, dsn: str) -> contextlib.AbstractContextManager[Served]:
    return _serving(ground, dsn, ["shim", "serve", "--port", "0", "--workers", str(_workers(ground))])


def _bound(ground: Ground, dsn: str) -> contextlib.AbstractContextManager[Served]:
    return _serving(ground, dsn, ["bench.bound", str(_workers(ground))])


def _workers(ground: Ground) -> int:
    return 1 if ground.size.is_small else WORKERS


def _drive(order: Order) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-m", "bench.driver", json.dumps(asdict(order))],
        cwd=CHECKOUT_FOLDER,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise BenchError(result.stderr.strip().splitlines()[-1], "see the shim's log")
    answer: dict[str, float] = json.loads(result.stdout)
    return answer


def _pairs(
    ground: Ground, served: Served, project: str = "p", clients: int = 16, wrongs_per_s: float = 0.0
) -> float:
    order = Order(
        served.port,
        "pairs",
        clients,
        seconds=ground.size.seconds,
        cluster0=ground.next_cluster(),
        project=project,
        wrongs_per_s=wrongs_per_s,
    )
    return _drive(order)["per_s"] / 2


def _lines(ground: Ground, served: Served) -> float:
    return _drive(Order(served.port, "lines", seconds=ground.size.seconds))["per_s"] / 2


def http_pairs(ground: Ground) -> Iterator[Figure]:
    """Pairs through the shim against two lines of the bound."""
    figure = _http_pairs(ground, "http_pairs_ratio", ground.few(), (">=", 0.90))
    yield figure
    assert figure.measured is not None
    yield Figure("http_pairs_per_s", figure.measured, (">=", 2400), unit="pairs/s")


def http_statements(ground: Ground) -> Iterator[Figure]:
    """The same with functions that apply no rule: what the shim can reach at most."""
    yield _http_pairs(ground, "http_statements_ratio", ground.bare(), None)


def _http_pairs(ground: Ground, name: str, dsn: str, goal: tuple[str, float] | None) -> Figure:
    ground.checkpoint()
    with _shim(ground, dsn) as shim, _bound(ground, ground.few()) as bound:
        _warm(ground, shim, "pairs")
        _warm(ground, bound, "lines")
        pairs, lines, ratio = in_turn(
            ground.size.rounds, lambda: _pairs(ground, shim), lambda: _lines(ground, bound)
        )
    return Figure(name, ratio, goal, pairs, lines, "pairs/s")


def wrong_magics(ground: Ground) -> Iterator[Figure]:
    """Pairs through the shim beside wrong magics, against those alone less the time of the wrong magics alone."""
    ground.checkpoint()
    with _shim(ground, ground.few()) as shim:
        _warm(ground, shim, "pairs")

        def wrongs() -> float:
            order = Order(shim.port, "wrongs", seconds=ground.size.seconds, cluster0=ground.next_cluster())
            return _drive(order)["per_s"]

        def left_of_pairs() -> float:
            """Pairs a second of a server that serves the wrong magics apart from the pairs."""
            return _pairs(ground, shim) * max(1 - WRONGS_PER_S / wrongs(), 0.1)

        measured, bound, ratio = in_turn(
            ground.size.rounds, lambda: _pairs(ground, shim, wrongs_per_s=WRONGS_PER_S), left_of_pairs
        )
    yield Figure("wrong_magics_ratio", ratio, (">=", 1.0), measured, bound, "pairs/s")


def http_growth(ground: Ground) -> Iterator[Figure]:
    """Pairs through the shim with large tables against pairs with small ones."""
    ground.checkpoint()
    with _shim(ground, ground.many()) as many, _shim(ground, ground.few()) as few:
        _warm(ground, many, "pairs")
        _warm(ground, few, "pairs")
        measured, bound, ratio = in_turn(
            ground.size.rounds, lambda: _pairs(ground, many), lambda: _pairs(ground, few)
        )
    yield Figure("http_growth_ratio", ratio, (">=", 0.95), measured, bound, "pairs/s")


def http_contention(ground: Ground) -> Iterator[Figure]:
    """Pairs through the shim of 32 clients on one file against as many on a thousand files."""
    ground.checkpoint()
    with _shim(ground, ground.few()) as shim:
        _warm(ground, shim, "pairs")
        measured, bound, ratio = in_turn(
            ground.size.rounds,
            lambda: _pairs(ground, shim, "one", 32),
            lambda: _pairs(ground, shim, "thousand", 32),
        )
    yield Figure("http_contention_ratio", ratio, (">=", 0.80), measured, bound, "pairs/s")


def shim_memory(ground: Ground) -> Iterator[Figure]:
    """What the shim's memory grows by in many requests."""
    with _shim(ground, ground.few()) as shim:
        looks = []
        for requests in (min(1_000, ground.size.requests), ground.size.requests):
            _drive(Order(shim.port, "pairs", seconds=0, requests=requests, cluster0=ground.next_cluster()))
            looks.append(shim.resident_mb())
    yield Figure("shim_rss_growth_mb", looks[1] - looks[0], ("<=", 5), looks[1], looks[0], "MB")


def latency(ground: Ground) -> Iterator[Figure]:
    """p99 of checkouts at half the saturated rate, against that of the bound at the same rate."""
    ground.checkpoint()
    with _shim(ground, ground.few()) as shim, _bound(ground, ground.few()) as bound:
        _warm(ground, shim, "pairs")
        _warm(ground, bound, "lines")
        rate = median(2 * _pairs(ground, shim) for _ in range(min(3, ground.size.rounds))) / 2

        def p99(served: Served, talk: Literal["pairs", "lines"]) -> float:
            order = Order(
                served.port,
                talk,
                seconds=ground.size.seconds,
                rate=rate,
                cluster0=ground.next_cluster(),
            )
            return _drive(order)["p99_ms"]

        measured, bound_ms, ratio = in_turn(
            ground.size.rounds, lambda: p99(shim, "pairs"), lambda: p99(bound, "lines")
        )
    yield Figure("p99_ms_at_half_load", ratio, ("<=", 2), measured, bound_ms, "ms")


def lone_request(ground: Ground) -> Iterator[Figure]:
    """p50 of checkouts of one client with nobody else, against that of the bound."""
    yield _lone(ground, "lone_checkout_ratio", ground.few(), ("<=", 1.5))


def lone_statements(ground: Ground) -> Iterator[Figure]:
    """The same with functions that apply no rule."""
    yield _lone(ground, "lone_statements_ratio", ground.bare(), None)


def _lone(ground: Ground, name: str, dsn: str, goal: tuple[str, float] | None) -> Figure:
    ground.checkpoint()
    with _shim(ground, dsn) as shim, _bound(ground, ground.few()) as bound:
        _warm(ground, shim, "pairs")
        _warm(ground, bound, "lines")

        def p50(served: Served, talk: Literal["pairs", "lines"]) -> float:
            order = Order(
                served.port, talk, clients=1, seconds=ground.size.seconds, cluster0=ground.next_cluster()
            )
            return _drive(order)["p50_ms"]

        measured, bound_ms, ratio = in_turn(
            ground.size.rounds, lambda: p50(shim, "pairs"), lambda: p50(bound, "lines")
        )
    return Figure(name, ratio, goal, measured, bound_ms, "ms")


def _warm(ground: Ground, served: Served, talk: Literal["pairs", "lines"]) -> None:
    """Connections, prepared statements and templates, before anything is measured."""
    _drive(Order(served.port, talk, seconds=ground.size.seconds / 5, cluster0=ground.next_cluster()))
