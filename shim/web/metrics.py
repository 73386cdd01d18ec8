"""``metrics``: what the shim did and what the database knows, for Prometheus.

Each process counts its own requests. Several processes add up when PROMETHEUS_MULTIPROC_DIR names a folder that they
share (``osgprod serve`` sees to that by itself); then any of them answers for all. What is read from the database is
the same from all of them.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from shim.config import SettingError
from shim.replica import NOW, Freshness

log = logging.getLogger("osgprod")

Rows = list[dict[str, Any]]
FILES = ("counter", "histogram", "gauge_livesum")  # in which the library counts for a process: NAME_PID.db
FILE_BYTES = 1 << 17  # more than all routes take in one of them; the library itself begins with half of that
OF_SERVE = "osgprod-metrics-"  # a folder that osgprod serve has made
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
# What the database is asked for each time, all cheap.
QUERIES: tuple[tuple[str, dict[str, object]], ...] = (
    ("progress", {}),
    ("idle_and_leased", {}),
    ("totals", {}),
    ("blocked_workers", {}),
    ("health", {}),
)
ANSWERS = frozenset(
    ("assigned", "no-work", "completed", "wait", "done", "failed", "node-fault", "superseded", "contradicted", "alive",
     "wedged", "refused", "-")
)  # fmt: skip


class Metrics:
    """The counters of this process, and the text for all processes.

    Parameters
    ----------
    folder : Path or None
        Where the processes of one shim add up; PROMETHEUS_MULTIPROC_DIR, which the library reads as well.

    Raises
    ------
    SettingError
        No file can be made there: each request would be an internal error.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and not os.access(folder / ".", os.W_OK | os.X_OK):
            rule = "a folder in which files can be made"
            raise SettingError("PROMETHEUS_MULTIPROC_DIR", str(folder), rule)
        if folder is not None and not _allocate(folder):
            values.ValueClass = values.MutexValue  # of the metrics that are made from now on: in memory
            folder = None
        self._folder = folder
        self._own = CollectorRegistry()
        self._answers = Counter(
            "osgprod_requests", "Requests, by route, status and answer (header Osgprod-Status)",
            ("route", "status", "answer"), registry=self._own,
        )  # fmt: skip
        self._seconds = Histogram(
            "osgprod_request_seconds", "Time from a request to its answer [s]", ("route",), buckets=SECONDS,
            registry=self._own,
        )  # fmt: skip
        self._pool = Gauge(
            "osgprod_pool_connections", "Connections to the database, by what they are or what waits for one",
            ("state",), multiprocess_mode="livesum", registry=self._own,
        )  # fmt: skip
        # One look-up a request in place of prometheus-client's several.
        self._counters: dict[tuple[str, int, str], Callable[[], None]] = {}
        self._observers: dict[str, Callable[[float], None]] = {}

    def count(self, route: str, status: int, answer: str, seconds: float) -> None:
        """Counts one request. The shim chooses all labels, so no caller can create new time series.

        Parameters
        ----------
        route : str
            Last part of the path of a known route.
        seconds : float
            That it took.
        """
        key = (route, status, answer)
        counter = self._counters.get(key)
        if counter is None:
            plain = answer if answer in ANSWERS else "-"
            counter = self._counters[key] = self._answers.labels(route, str(status), plain).inc
        counter()
        observer = self._observers.get(route)
        if observer is None:
            observer = self._observers[route] = self._seconds.labels(route).observe
        observer(seconds)

    def note_pool(self, stats: Mapping[str, int]) -> None:
        """Takes over how the pool of this process is.

        Parameters
        ----------
        stats : Mapping[str, int]
            Of psycopg_pool's get_stats().
        """
        size, available = stats.get("pool_size", 0), stats.get("pool_available", 0)
        for state, number in (
            ("used", size - available),
            ("free", available),
            ("most", stats.get("pool_max", 0)),
            ("waiting", stats.get("requests_waiting", 0)),
        ):
            self._pool.labels(state).set(number)

    def text(self, answers: list[Rows] | None, freshness: Freshness = NOW) -> bytes:
        """Returns the page.

        Parameters
        ----------
        answers : list[Rows] | None
            Of the database to QUERIES, in their order; None = it is away.
        freshness : Freshness
            Of these answers.
        """
        registry = self._own
        if self._folder:
            _forget_the_dead(self._folder)
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        database = CollectorRegistry()
        database.register(_Collector(answers, freshness))
        return generate_latest(registry) + generate_latest(database)

    def end(self) -> None:
        """This process ends in good order: its live numbers go with it, its counters stay.

        A first process that was killed has left the folder that it made.
        """
        if self._folder:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
            first = multiprocessing.parent_process()
            if first and os.getppid() != first.pid and self._folder.name.startswith(OF_SERVE):
                shutil.rmtree(self._folder, ignore_errors=True)


def _allocate(folder: Path) -> bool:
    """Allocates the files of this process; False, with a line in the log, where the disk has no room for them.

    The library maps them into memory: the first request that needs a page for which a full disk has no room would kill
    the process (SIGBUS), and the next one with it.
    """
    paths = [folder / f"{name}_{os.getpid()}.db" for name in FILES]
    try:
        for path in paths:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        log.warning("metrics are those of one process: %s can't be written: %s", folder, error.strerror)
        return False
    return True


def _forget_the_dead(folder: Path) -> None:
    """Takes the live numbers of processes that were killed out of the sum."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                path.unlink()


class _Collector:
    """What the database knows, as metrics."""

    def __init__(self, answers: list[Rows] | None, freshness: Freshness) -> None:
        self._answers, self._freshness = answers, freshness

    def collect(self) -> Iterable[Metric]:
        """Gives the families of metrics."""
        yield GaugeMetricFamily(
            "osgprod_database_up", "Does the database answer?", value=float(self._answers is not None)
        )
        if self._answers is not None:
            source = "replica" if self._freshness.is_replica else "primary"
            age = GaugeMetricFamily(
                "osgprod_data_age_seconds", "How old the database's metrics are, and where they are from [s]",
                labels=("source",),
            )  # fmt: skip
            age.add_metric((source,), self._freshness.age_s)
            yield age
            yield from _families(*self._answers)


def _families(progress: Rows, slices: Rows, totals: Rows, refused: Rows, health: Rows) -> Iterator[Metric]:
    projects = [row["project"] for row in progress]
    blocks = GaugeMetricFamily("osgprod_blocks", "Blocks of a project, by state", labels=("project", "state"))
    files = GaugeMetricFamily("osgprod_files", "Files of a project, by state", labels=("project", "state"))
    active = GaugeMetricFamily(
        "osgprod_project_state", "1 for the state that a project is in", labels=("project", "state")
    )
    for row in progress:
        for state in ("done", "leased", "ready", "quarantined", "unallocated"):
            blocks.add_metric((row["project"], state), row[f"blocks_{state}"])
        files.add_metric((row["project"], "complete"), row["files_finished"])
        files.add_metric((row["project"], "unfinished"), row["files"] - row["files_finished"])
        for state in ("active", "paused", "draining"):
            active.add_metric((row["project"], state), float(row["state"] == state))
    yield from (blocks, files, active)

    counted = GaugeMetricFamily(
        "osgprod_slices",
        "Slices of a project that are leased, ready or quarantined",
        labels=("project", "state"),
    )
    for row in slices:
        for state in ("leased", "ready", "quarantined"):
            counted.add_metric((row["project"], state), row[state])
    yield counted

    ended = CounterMetricFamily(
        "osgprod_attempts_ended",
        "Attempts that ended, by outcome",
        labels=("project", "outcome"),
    )
    settled = CounterMetricFamily(
        "osgprod_attempt_blocks", "Blocks of the slices of attempts that ended", labels=("project", "outcome")
    )
    ran = CounterMetricFamily(
        "osgprod_attempt_seconds",
        "Time that attempts on slices ran until they ended [s]",
        labels=("project", "outcome"),
    )
    for row in totals:
        labels = (row["project"], row["outcome"])
        ended.add_metric(labels, row["reports"])
        settled.add_metric(labels, row["blocks"])
        ran.add_metric(labels, row["ran_s"])
    yield from (ended, settled, ran)

    workers = GaugeMetricFamily("osgprod_workers_refused", "Banned workers", labels=("project",))
    level = GaugeMetricFamily(
        "osgprod_health", "1 for what osgprod.health says of a project", labels=("project", "level", "what")
    )
    for project in projects:
        workers.add_metric((project,), sum(row["project"] == project for row in refused))
    for row in health:
        level.add_metric((row["project"], row["level"], row["what"]), 1)
    yield from (workers, level)
