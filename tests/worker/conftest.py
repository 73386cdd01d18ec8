"""Nodes to run the scripts of a job on, and a site that they deal with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shim.evio import scan
from shim.evio.writer import write_file
from shim.registry import register
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World
from tests.worker.site import Site

EXEC = CHECKOUT / "condor" / "osgprod_exec.sh"
CLUSTER = 7
# A reconstruction that leaves what tells the slice: its checksum.
RECON = "cksum"


class Node:
    """A worker node: a folder to run in, and an environment with nothing but what a test puts there."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
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

    def start(
        self, process: int, *prefix: str, cpus: int = 1, **environment: str | None
    ) -> subprocess.Popen[str]:
        """Starts a job in a new session; None removes a variable. prefix: a command before it."""
        values = {**self.environment, **environment}
        job = subprocess.Popen(
            [*prefix, str(EXEC), str(CLUSTER), str(process), str(cpus)],
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


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def node(folder: Path, shim: LiveShim) -> Iterator[Node]:
    (folder / "node").mkdir()
    node = Node(folder / "node", shim.url)
    yield node
    node.end()


@pytest.fixture
def rawdata(world: World, db: psycopg.Connection[dict[str, Any]], folder: Path, site: Site) -> Path:
    """A real file with 6 blocks of work in project "p", on disk and, at the same path, at the site."""
    path = folder / "hd_rawdata_000001_001.evio"
    write_file(path, 6, 10, filler_words=100)
    for index in scan.indexes([path]):
        register(db, index)
    db.execute("SELECT osgprod.load_slices(p_project => 'p')")
    site.files[str(path)] = path.read_bytes()
    return path


def kill(session: int) -> None:
    """Kills all processes at once, without notice, like a node that loses power."""
    while found := living(session):  # again, for processes that started during the search
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def living(session: int) -> dict[int, str]:
    """The processes of a session: number and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            is_ours = entry.name.isdigit() and os.getsid(int(entry.name)) == session
            if is_ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:  # a killed one has none any more while it is taken apart
                    found[int(entry.name)] = command
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            pass
    return found
