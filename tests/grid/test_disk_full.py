"""The disk of the database is full under load: jobs wait, health says so, and it goes on by itself."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.database import call, connect
from shim.local.embedded import NOT_DURABLE, Server
from shim.migrate import migrate
from tests.support import LiveShim, World
from tests.whole.traffic import Traffic

SIZE_MB, FULL_S, PATIENCE_S = 160, 3.0, 60.0


class PatientTraffic(Traffic):
    """Jobs that begin no new work after stop()."""

    is_stopped = False

    def _one_job(self, cluster: int, process: int, chance: random.Random) -> bool:
        return not self.is_stopped and super()._one_job(cluster, process, chance)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A separate file system; mounting one takes root."""
    folder = Path(tempfile.mkdtemp(prefix="osgprod-disk-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=755", "none", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(path: Path) -> None:
    """Writes a file until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                pass


def test_full_disk_of_the_database_loses_nothing_and_heals_by_itself(
    small_disk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.web.health.WRITE_S", 0.2)
    server = Server(small_disk / "server", {**NOT_DURABLE, "max_connections": "30", "max_wal_size": "32MB"})
    server.start()
    try:
        migrate(server.dsn, say=lambda line: None)
        with connect(server.dsn) as db:
            world = World(db, server.dsn).with_project("p", token_required=True)
            for seqno in range(10):
                world.add_file(2000, seqno=seqno, project=None)
            call(db, "load_slices", project="p")
        with LiveShim(server.dsn, folder / "www", OSGPROD_CLIENT_RATE="0") as shim:
            shim.add_template("p", b'#input_eviofile_list=""\n')
            with PatientTraffic(shim.port, random.Random(8), jobs=6) as traffic:
                wait_for_blocks(traffic, 100)
                fill(small_disk / "ballast")
                wait_for_health(shim, 503)
                assert "disk of the database is full" in shim.raw("healthz").text
                time.sleep(FULL_S)
                assert shim.raw("healthz").status_code == 503
                (small_disk / "ballast").unlink()
                wait_for_health(shim, 200)
                wait_for_blocks(traffic, len(traffic.blocks) + 100)
                traffic.is_stopped = True
            assert traffic.asked_again > 0, "some had to wait"
            assert max(traffic.blocks.values()) == 1
        with connect(server.dsn) as db:
            assert call(db, "verify", project="p", deep=True) == []
            done = db.execute("SELECT count(*) AS n FROM osgprod_data.slices WHERE state = 'done'").fetchone()
        assert done and done["n"] == len(traffic.blocks), "answered done = done"
    finally:
        server.stop()


def wait_for_blocks(traffic: Traffic, number: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(traffic.blocks) < number:
        assert traffic.is_running and time.monotonic() < end, traffic.errors
        time.sleep(0.05)


def wait_for_health(shim: LiveShim, status: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while shim.raw("healthz").status_code != status:
        assert time.monotonic() < end, status
        time.sleep(0.1)
