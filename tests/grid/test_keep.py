"""``osgprod jobs keep`` with a real HTCondor pool and the submit file that ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shim.database import call
from tests.grid.pool import USER, Pool
from tests.grid.test_condor import add_files, credentials
from tests.grid.xrootd import XRootD
from tests.support import CHECKOUT, LiveShim, World


def inside(pool: Pool, folder: Path, name: str) -> None:
    """A program that runs the one of the same name inside the pool, as the user who submits."""
    (folder / name).write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nsys.exit(subprocess.run(['nsenter', '-t', '{pool._pid}', '-m',"
        f" '-p', 'chroot', '{pool._root}', 'setpriv', '--reuid={USER}', '--regid={USER}', '--clear-groups',"
        " '/bin/bash', '-c', 'cd /srv/keep && export CONDOR_CONFIG=/srv/condor_config && exec \"$@\"', '-',"
        f" '{name}', *sys.argv[1:]], stdin=subprocess.DEVNULL).returncode)\n"
    )
    (folder / name).chmod(0o755)


@pytest.mark.timeout(600)
def test_queue_is_filled_by_the_work_that_is_left_and_the_keeper_ends_by_itself(
    pool: Pool, xrootd: XRootD, world: World, shim: LiveShim, tmp_path: Path
) -> None:
    add_files(world, "p", xrootd, [12, 11], run=8)
    world.set(lease_s=60, heartbeat_s=5, wait_s=2)
    pool.submit_folder("keep")
    (pool.srv / "keep" / "magic").write_text("m")
    for name in ("condor_submit", "condor_q"):
        inside(pool, tmp_path, name)
    settings = [
        f"server={shim.url}", "project=p", "magic_file=magic", "memory=100MB", "disk=10MB",
        f"outputs={xrootd.https_url}/outputs", f"env={credentials(pool, xrootd)} OSGPROD_MAX_WAIT_S=60",
    ]  # fmt: skip
    keeper = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "shim",
                "jobs",
                "keep",
                "p",
                "--idle",
                "4",
                "--max",
                "8",
                "--interval",
                "6",
            ),
            *("--", *settings, "/srv/condor/osgprod.sub"),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OSGPROD_DSN": world.dsn},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert keeper.returncode == 0, keeper.stdout + keeper.stderr
    assert keeper.stdout.endswith("project p is complete\n")
    assert world.progress()["blocks_done"] == 23
    assert call(world.db, "verify", project="p") == []
    clusters = pool.run(
        "condor_history", "-constraint", 'OsgprodProject == "p"', "-af", "ClusterId", user=USER
    ).stdout.split()
    assert 23 <= len(clusters) <= 23 + 8, "a job for each slice, and those that were idle at the end"
    assert len(set(clusters)) > 3, "they were submitted as the queue got empty"
