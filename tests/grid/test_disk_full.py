"""The disk of the database is full under load: jobs wait, health says so, and it goes on by itself."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shim.database import call, connect
from shim.local.embedded import NOT_DURABLE, Server
from shim.migrate import migrate
from tests.grid.mounts import fill, small_file_system
from tests.support import LiveShim, World, server_folder, wait_until
from tests.whole.traffic import Traffic

SIZE_MB, FULL_S = 160, 3.0


class PatientTraffic(Traffic):
    """Jobs that begin no new work after stop()."""

    is_stopped = False

    def _one_job(self, cluster: int, process: int, chance: random.Random) -> bool:
        return not self.is_stopped and super()._one_job(cluster, process, chance)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A separate file system; mounting one takes root."""
    with small_file_system(f"size={SIZE_MB}m,mode=755") as folder:
        yield folder


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
    wait_until(
        lambda: len(traffic.blocks) >= number or not traffic.is_running,
        f"{number} blocks are done",
        seen=lambda: (len(traffic.blocks), traffic.errors),
    )
    assert traffic.is_running, traffic.errors


def wait_for_health(shim: LiveShim, status: int) -> None:
    wait_until(
        lambda: shim.raw("healthz").status_code == status,
        f"healthz answers {status}",
        seen=lambda: shim.raw("healthz").text,
        pause_s=0.1,
    )


class Supervisor:
    """Starts a server again when it has ended, as systemd does. It ends with this thread."""

    def __init__(self, server: Server) -> None:
        self._server, self._ends = server, threading.Event()
        self.deaths = 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(0.2):
            assert self._server._process
            if self._server._process.poll() is not None:
                self.deaths += 1
                self._server._process = self._server._start_postgres()


def flood(dsn: str) -> None:
    """Writes WAL until the server fails."""
    with contextlib.suppress(psycopg.Error), connect(dsn) as db:
        while True:
            db.execute("SELECT pg_logical_emit_message(false, 'osgprod', repeat('x', 1 << 20))")


@pytest.fixture
def full_wal(small_disk: Path) -> Iterator[Server]:
    """A server whose WAL is on a small disk, and is kept there for a standby that is away."""
    folder = server_folder("wal")
    folder.chmod(0o755)
    settings = {**NOT_DURABLE, "synchronous_commit": "on", "max_connections": "30", "min_wal_size": "32MB"}
    server = Server(folder / "server", settings)
    try:
        server.start()
        server.stop()
        wal = folder / "server" / "data" / "pg_wal"
        subprocess.run(["cp", "-a", str(wal), str(small_disk / "pg_wal")], check=True)
        shutil.rmtree(wal)
        wal.symlink_to(small_disk / "pg_wal")
        server.start()
        migrate(server.dsn, say=lambda line: None)
        with connect(server.dsn) as db:
            db.execute("SELECT pg_create_physical_replication_slot('away', true)")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_full_disk_of_the_wal_stops_the_server_and_nothing_is_lost_when_it_is_back(
    full_wal: Server, small_disk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.web.health.WRITE_S", 0.2)
    monkeypatch.setattr("shim.web.timer.TICK_S", 1.0)
    with connect(full_wal.dsn) as db:
        world = World(db, full_wal.dsn).with_project("p", token_required=True)
        for seqno in range(10):
            world.add_file(2000, seqno=seqno, project=None)
        call(db, "load_slices", project="p")
    with (
        LiveShim(full_wal.dsn, folder / "www", OSGPROD_CLIENT_RATE="0") as shim,
        Supervisor(full_wal) as supervisor,
    ):
        shim.add_template("p", b'#input_eviofile_list=""\n')
        with PatientTraffic(shim.port, random.Random(8), jobs=6) as traffic:
            wait_for_blocks(traffic, 100)
            fill(small_disk / "ballast")

            def has_died_twice() -> bool:  # the first recovery may find some room left
                flood(full_wal.dsn)
                return supervisor.deaths >= 2

            wait_until(has_died_twice, "the server has failed twice", pause_s=0.05)
            wait_for_health(shim, 503)
            (small_disk / "ballast").unlink()
            wait_for_health(shim, 200)
            wait_for_blocks(traffic, len(traffic.blocks) + 100)
            traffic.is_stopped = True
        log = (full_wal.folder / "server.log").read_text()
        assert "PANIC" in log and "No space left on device" in log
        assert traffic.asked_again > 0, "some had to wait"
        assert max(traffic.blocks.values()) == 1
        with connect(full_wal.dsn) as db:
            assert call(db, "verify", project="p", deep=True) == []
            done = db.execute("SELECT count(*) AS n FROM osgprod_data.slices WHERE state = 'done'").fetchone()
            assert done and done["n"] == len(traffic.blocks), "each report that was accepted is done"
            unanswered = "SELECT sum(times) AS n FROM osgprod_data.answers WHERE http_status = 503"

            def are_known() -> bool:
                row = db.execute(unanswered).fetchone()
                return bool(row and row["n"])

            wait_until(are_known, "health knows what jobs were answered", pause_s=0.1)
