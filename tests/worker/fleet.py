"""A pool in small: nodes with names, sites and addresses of their own run the real job scripts, job after job."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support import PATIENCE_S, World
from tests.worker.conftest import CLUSTER, EXEC, kill

REST_S = 1.0  # of a node that got no work
# What a node calls itself, and the address that its requests come from.
HOSTNAME = '#!/bin/bash\necho "$NODE_NAME"\n'
CURL = '#!/bin/bash\nexec /usr/bin/curl "$@" --interface "$NODE_ADDRESS"\n'


@dataclass(frozen=True)
class Machine:
    """One node.

    Parameters
    ----------
    environment
        What differs from other nodes, like a program that is not there.
    """

    name: str
    site: str
    address: str
    environment: Mapping[str, str] = field(default_factory=dict)


def machines(site: str, number: int, network: int, **environment: str) -> list[Machine]:
    """Nodes of a site, all in one network.

    Parameters
    ----------
    number : int
        How many [1 .. 250].
    network : int
        Third number of their addresses, 127.1.NETWORK.x [0 .. 255].
    """
    return [
        Machine(f"{site.lower()}-wn{n}", site, f"127.1.{network}.{n + 1}", environment) for n in range(number)
    ]


class Fleet:
    """Lets nodes run jobs in turn until it is closed, as HTCondor does with a queue that is kept filled.

    Parameters
    ----------
    folder : Path
        For the nodes' folders.
    nodes
        In the order in which they take turns.
    slots : int
        How many run at the same time.
    """

    def __init__(
        self, folder: Path, url: str, nodes: Iterable[Machine], slots: int = 5, **environment: str
    ) -> None:
        self._folder = folder
        programs = folder / "programs"
        programs.mkdir()
        for name, text in (("hostname", HOSTNAME), ("curl", CURL)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self._environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "OSGPROD_URL": url,
            "OSGPROD_PROJECT": "p",
            "OSGPROD_MAGIC": "m",
            "OSGPROD_TRIES": "1",  # HTCondor tries again
            "OSGPROD_BACKOFF_MS": "20",
            "OSGPROD_MAX_WAIT_S": "0",
            "OSGPROD_RECON": "cksum",
            **environment,
        }
        self._free = deque(nodes)
        self._rests_until: dict[str, float] = {}
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._slot) for _ in range(slots)]
        self._running: set[subprocess.Popen[str]] = set()
        self._busy, self._is_held = 0, False
        self._jobs, self.beside = 0, slots - 1  # how many run beside one
        self.ends: Counter[int] = Counter()  # exit codes of jobs
        self.log = ""  # of the last job that did not end well

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)
        with self._lock:
            left = list(self._running)
        for job in left:
            kill(job.pid)
        for thread in self._threads:
            thread.join()

    def _slot(self) -> None:
        while not self._is_over.is_set():
            with self._lock:
                now = time.monotonic()
                node = next((node for node in self._free if self._rests_until.get(node.name, 0) <= now), None)
                if self._is_held:
                    node = None
                if node:
                    self._free.remove(node)
                    self._jobs += 1
                    self._busy += 1
                    process = self._jobs
            if not node:
                self._is_over.wait(0.05)
                continue
            code, log = self._run(node, process)
            with self._lock:
                self._free.append(node)
                self._busy -= 1
                self.ends[code] += 1
                if code:
                    self.log = log
                if "reported exit code" not in log:  # it got no work
                    self._rests_until[node.name] = time.monotonic() + REST_S

    def _run(self, node: Machine, process: int) -> tuple[int, str]:
        scratch = self._folder / f"{node.name}-{process}"
        scratch.mkdir()
        job = subprocess.Popen(
            [str(EXEC), str(CLUSTER), str(process), "1"],
            cwd=scratch,
            env={
                **self._environment,
                "_CONDOR_SCRATCH_DIR": str(scratch),
                "NODE_NAME": node.name,
                "NODE_ADDRESS": node.address,
                "OSGPROD_SITE": node.site,
                **node.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        with self._lock:
            self._running.add(job)
        log, _ = job.communicate()
        with self._lock:
            self._running.remove(job)
        return job.returncode, log

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No job runs meanwhile: what happens then has happened to all that a later job does, and to nothing before."""
        with self._lock:
            self._is_held = True
        self.wait_until(lambda: not self._busy)
        yield
        with self._lock:
            self._is_held = False

    def wait_until(self, condition: Callable[[], object]) -> float:
        """Waits for a condition while the nodes work; returns how long that took [s]."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() < started + PATIENCE_S, f"{self.ends}\n{self.log}"
            time.sleep(0.05)
        return time.monotonic() - started


class Figures:
    """The cost of an outage, from the records."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _count(self, query: str) -> int:
        (row,) = self._world.db.execute(f"SELECT count(*) AS n FROM {query}").fetchall()
        return int(row["n"])

    @property
    def blocks_done(self) -> int:
        return int(self._world.progress()["blocks_done"])

    @property
    def is_done(self) -> bool:
        row = self._world.progress()
        return bool(row["blocks_done"] == row["blocks"])

    @property
    def wasted(self) -> int:
        """Attempts that ended without a success."""
        return self._count("osgprod_data.reports WHERE outcome <> 'done'")

    def wasted_before(self, event: str) -> int:
        """Of these, those that began before the first notification of a name, and before their file was suspended.

        What began later is a probe.
        """
        return self._count(
            "osgprod_data.reports r JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)"
            " JOIN osgprod_data.rawdata f USING (rawdata_id)"
            " WHERE r.outcome <> 'done' AND a.started_at <= (SELECT min(n.noted_at) FROM osgprod_data.notifications n"
            f" WHERE n.event = '{event}' OR n.event = 'file-suspended' AND n.details ->> 'path' = f.path)"
        )

    def wasted_after(self, event: str) -> int:
        """Of these, those that began after the first notification of a name."""
        return self._count(
            "osgprod_data.reports r JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)"
            " WHERE r.outcome <> 'done' AND a.started_at > (SELECT min(n.noted_at) FROM osgprod_data.notifications n"
            f" WHERE n.event = '{event}')"
        )

    def failures_until(self, workers: int, sites: int) -> int:
        """How many failures were reported until they were by so many workers at so many sites."""
        rows = self._world.db.execute(
            "SELECT r.worker, r.site FROM osgprod_data.reports r WHERE r.outcome <> 'done' ORDER BY r.reported_at"
        ).fetchall()
        seen_workers, seen_sites = set(), set()
        for number, row in enumerate(rows, 1):
            seen_workers.add(row["worker"])
            seen_sites.add(row["site"])
            if len(seen_workers) >= workers and len(seen_sites) >= sites:
                return number
        raise AssertionError(f"all failures were by {seen_workers} at {seen_sites}")

    @property
    def successes(self) -> int:
        return self._count("osgprod_data.reports WHERE outcome = 'done'")

    def events(self, name: str) -> list[str]:
        """The worker, file or reason of each notification of a name."""
        rows = self._world.db.execute(
            "SELECT coalesce(details ->> 'worker', details ->> 'path', details ->> 'reason') AS of"
            " FROM osgprod_data.notifications WHERE event = %s ORDER BY notification_id",
            [name],
        ).fetchall()
        return [row["of"] for row in rows]

    def say(self, what: str, **more: object) -> None:
        """Prints the figures of an outage in a line, and below it all that happened: pytest shows it of a failure."""
        others = "".join(f", {name.replace('_', ' ')} {value}" for name, value in more.items())
        print(
            f"{what}: {self.successes} successes, {self.wasted} attempts wasted,"
            f" banned {self.events('worker-banned')}, quarantined {len(self.events('block-quarantined'))}{others}"
        )
        print(*self._history(), sep="\n")

    def _history(self) -> list[str]:
        """Reports, with the start of their attempts, and notifications, in their order."""
        rows = self._world.db.execute(
            "SELECT r.reported_at AS at, concat_ws(' ', r.outcome, r.exit_code, r.worker, 'began',"
            " to_char(a.started_at, 'MI:SS.MS'), 'block', a.rawdata_id || '+' || a.block1, r.reason) AS what"
            " FROM osgprod_data.reports r JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)"
            " UNION ALL"
            " SELECT n.noted_at, concat_ws(' ', upper(n.event), n.details ->> 'worker', n.details ->> 'path',"
            " n.details ->> 'reason') FROM osgprod_data.notifications n ORDER BY at"
        ).fetchall()
        return [f"{row['at']:%M:%S.%f} {row['what']}" for row in rows]
