"""Nodes to run the scripts of a job on, and a site that they deal with."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.evio.writer import write_file
from tests.grid.xrootd import make_certificate
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World, wait_until
from tests.worker.fetching import PLACE, Slice
from tests.worker.site import Site

EXEC = CHECKOUT / "condor" / "osgprod_exec.sh"
SHIPPED = ("condor/osgprod_exec.sh", "worker/osgprod_work.bash", "worker/osgprod_merge.bash")
CLUSTER = 7
# A reconstruction that leaves what tells the slice: its checksum.
RECON = "cksum"
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="hiding parts of a node takes root")


class Node:
    """A worker node: a folder to run in, and an environment with nothing but what a test puts there."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        # As HTCondor does: others than root may not read the checkout.
        self._script = shutil.copy(EXEC, folder.parent)
        self._jobs: list[subprocess.Popen[str]] = []
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "_CONDOR_SCRATCH_DIR": str(folder),
            "OSGPROD_URL": url,
            "OSGPROD_PROJECT": "p",
            "OSGPROD_MAGIC": "m",
            "OSGPROD_TRIES": "3",
            "OSGPROD_BACKOFF_MS": "20",
            "OSGPROD_MAX_WAIT_S": "0",
            "OSGPROD_RECON": RECON,
        }

    def use(self, script: Path) -> None:
        """Its jobs have another exec script."""
        shutil.copy(script, self._script)

    def start(
        self, process: int, *prefix: str, cpus: int = 1, **environment: str | None
    ) -> subprocess.Popen[str]:
        """Starts a job in a new session; None removes a variable. prefix: a command before it."""
        values = {**self.environment, **environment}
        job = subprocess.Popen(
            [*prefix, self._script, str(CLUSTER), str(process), str(cpus)],
            cwd=self.folder,
            env={name: value for name, value in values.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._jobs.append(job)
        return job

    def end(self) -> None:
        """Kills what a failed test left running."""
        for job in self._jobs:
            kill(job.pid)
            if job.stdout and not job.stdout.closed:
                job.communicate()

    def run(self, process: int, *prefix: str, **environment: Any) -> tuple[int, str]:
        """Runs a job to its end; returns exit code and output."""
        job = self.start(process, *prefix, **environment)
        output, _ = job.communicate(timeout=2 * PATIENCE_S)
        return job.returncode, output

    def program(self, name: str, text: str) -> str:
        """Puts a bash program on the node and returns its path."""
        path = self.folder.parent / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return str(path)


def slow(*cases: Any) -> list[Any]:
    """Cases for parametrize() that make test leaves to make test-slow: others take the same way."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow) for case in cases
    ]


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture(scope="session")
def certificate() -> Iterator[Path]:
    """A folder with a certificate that only the grid knows, also under the name by which OpenSSL looks for it."""
    with tempfile.TemporaryDirectory(prefix="osgprod-") as name:
        folder = Path(name)
        make_certificate(folder)
        command = ["openssl", "x509", "-hash", "-noout", "-in", str(folder / "cert.pem")]
        hashed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        (folder / f"{hashed}.0").symlink_to("cert.pem")
        yield folder


@pytest.fixture
def node(folder: Path, shim: LiveShim) -> Iterator[Node]:
    (folder / "node").mkdir()
    node = Node(folder / "node", shim.url)
    yield node
    node.end()


@pytest.fixture
def rawdata(world: World, folder: Path, site: Site) -> Path:
    """A real file with 6 blocks of work in project "p", on disk and, at the same path, at the site."""
    path = folder / "hd_rawdata_000001_001.evio"
    write_file(path, 6, 10, filler_words=100)
    world.load_raw(path)
    site.files[str(path)] = path.read_bytes()
    return path


def reachable_for_all(folder: Path) -> None:
    """Jobs that don't run as root may enter and write all folders, but not those of the database."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and "pg" not in path.name:
            path.chmod(0o777)


def names(tarball: Path) -> set[str]:
    """The files in it."""
    with tarfile.open(tarball) as archive:
        return {member.name.removeprefix("./") for member in archive if member.isfile()}


def state(world: World) -> dict[str, int]:
    """How many slices are in each state."""
    rows = world.db.execute("SELECT state, count(*) AS n FROM osgprod_data.slices GROUP BY state").fetchall()
    return {row["state"]: row["n"] for row in rows}


def report_of(world: World, process: int = 1) -> dict[str, Any]:
    """The last report that a job sent itself; empty when there is none."""
    rows = world.db.execute(
        "SELECT * FROM osgprod_data.reports WHERE process = %s AND by_worker ORDER BY nstart DESC LIMIT 1",
        [process],
    ).fetchall()
    return rows[0] if rows else {}


@pytest.fixture(scope="module")
def assigned() -> dict[str, bytes]:
    """What the tests share: the script of one slice, and the raw data file that it is of."""
    return {}


@pytest.fixture
def slice_(request: pytest.FixtureRequest, assigned: dict[str, bytes], folder: Path, site: Site) -> Slice:
    if not assigned:
        path, world, shim = map(request.getfixturevalue, ("rawdata", "world", "shim"))
        world.set(xrootd_prefix=PLACE, strip_prefix=str(path.parent))
        shim.checkout(1, cpus=3)  # its slice begins right behind the preamble: one range
        assigned.update(script=shim.checkout(2, cpus=3).content, rawdata=path.read_bytes())
    site.files["/hd_rawdata_000001_001.evio"] = assigned["rawdata"]
    return Slice(assigned, folder, site.url)


def kill(session: int) -> None:
    """Kills all processes at once, without notice, like a node that loses power."""
    while found := living(session):  # again, for processes that started during the search
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for_end(session: int) -> None:
    """Waits until no process of a session lives. A killed one needs a moment of a processor to end."""
    wait_until(lambda: not living(session), "all its processes have ended")


def living(session: int) -> dict[int, str]:
    """The processes of a session: number and command line."""
    found = {}
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))):  # noqa: PTH208  # a Path for each takes 3 ms
        try:
            if os.getsid(number) != session:
                continue
            entry = Path("/proc", str(number))
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:  # a killed one has none any more while it is taken apart
                    found[number] = command
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            pass
    return found
