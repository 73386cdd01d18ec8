"""A database that hangs or refuses writes: jobs get an answer soon, and the shim finds the database that works."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shim.database import call, connect
from shim.local.embedded import NOT_DURABLE, Server
from tests import prepared
from tests.support import PATIENCE_S, LiveShim, World, server_folder, wait_until


class Wire:
    """A unix socket in front of the server's: it passes everything on, until it is silent as a dead network is."""

    def __init__(self, folder: Path, target: str, dsn: str) -> None:
        self.dsn = psycopg.conninfo.make_conninfo(dsn, host=str(folder), port=5432)
        self._target = target
        self._open: list[socket.socket] = []
        self._passing: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/.s.PGSQL.5432")
        self._listener.listen(100)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def silence(self) -> None:
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.resume()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._passing:
            thread.join()
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._open += [client, server]
                server.connect(self._target)
                for ends in ((client, server), (server, client)):
                    self._passing.append(threading.Thread(target=self._pass, args=ends, daemon=True))
                    self._passing[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    folder = Path(tempfile.mkdtemp(prefix="osgprod-wire-", dir="/tmp"))
    info = psycopg.conninfo.conninfo_to_dict(world.dsn)
    wire = Wire(folder, f"{info['host']}/.s.PGSQL.{info.get('port', 5432)}", world.dsn)
    yield wire
    wire.close()
    shutil.rmtree(folder)


def test_silent_database_is_answered_503_within_the_bound_and_used_again_when_it_speaks(
    world: World, wire: Wire, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.database.CALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr("shim.database.HOST_TIMEOUT_S", 2)
    monkeypatch.setattr("shim.database.CONNECTION_WAIT_S", 1.0)
    world.add_file(20)
    with LiveShim(wire.dsn, folder / "www") as shim:
        shim.add_template("p")
        assert _soon(shim, 0) == 200  # half a second is little for the first call on a busy machine
        wire.silence()
        for process in range(1, 5):
            began = time.monotonic()
            answer = shim.checkout(process)
            assert answer.status_code == 503 and answer.headers["Retry-After"], answer.text
            assert time.monotonic() - began < PATIENCE_S, "bounded at any load"
        wire.resume()
        assert _soon(shim, 5) == 200


@pytest.fixture
def two_servers() -> Iterator[tuple[Server, Server]]:
    folder = server_folder("two")
    folder.chmod(0o755)
    servers = [Server(folder / name, {**NOT_DURABLE, "max_connections": "30"}) for name in ("old", "new")]
    for name in ("old", "new"):
        prepared.put_data(folder / name)
    try:
        for server in servers:
            server.start()
            with connect(server.dsn) as db:
                World(db, server.dsn).with_project("p").add_file(100)
        yield servers[0], servers[1]
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_primary_that_was_fenced_without_a_restart_is_left_for_the_new_one(
    two_servers: tuple[Server, Server], folder: Path
) -> None:
    old, new = (psycopg.conninfo.conninfo_to_dict(server.dsn) for server in two_servers)
    dsn = (
        f"host={old['host']},{new['host']} port=5432,5432 user={old['user']} dbname={old['dbname']}"
        " target_session_attrs=read-write"
    )
    with LiveShim(dsn, folder / "www") as shim, connect(two_servers[0].dsn) as fenced:
        shim.add_template("p")
        assert shim.checkout(0).status_code == 200
        fenced.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        fenced.execute("SELECT pg_reload_conf()")
        processes = itertools.count(1)
        with connect(two_servers[1].dsn) as promoted:

            def leases() -> bool:
                assert _soon(shim, next(processes)) == 200
                return [row["leased"] for row in call(promoted, "idle_and_leased")] == [1]

            # The reload reaches each session in its own time: until then the old server is the primary.
            wait_until(leases, "the new server leases a slice")


def test_health_check_is_not_ok_while_the_database_takes_no_writes(
    two_servers: tuple[Server, Server], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.web.health.WRITE_S", 0.0)
    monkeypatch.setattr("shim.web.batches.REPLACE_S", 0.0)
    server = two_servers[0]
    with LiveShim(server.dsn, folder / "www") as shim, connect(server.dsn) as fenced:
        assert shim.raw("healthz").text == "ok\n"
        for setting, status, text in (("on", 503, "takes no writes"), ("off", 200, "ok\n")):
            fenced.execute(f"ALTER SYSTEM SET default_transaction_read_only = {setting}".encode())
            fenced.execute("SELECT pg_reload_conf()")
            fenced.execute("SET default_transaction_read_only = off")
            wait_until(
                lambda status=status: shim.raw("healthz").status_code == status,
                f"healthz answers {status}",
                seen=lambda: shim.raw("healthz").text,
            )
            answer = shim.raw("healthz")
            assert text in answer.text
            assert status == 200 or answer.headers["Retry-After"]


def test_health_checks_write_once_in_a_while(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.web.health.WRITE_S", 1000.0)
    with LiveShim(world.dsn, folder / "www") as shim:
        assert shim.raw("healthz").status_code == 200
        world.db.execute("REVOKE EXECUTE ON FUNCTION osgprod.write_check FROM osgprod_worker")
        assert [shim.raw("healthz").status_code for _ in range(10)] == [200] * 10


def test_tick_goes_on_when_a_silent_server_speaks_again(
    world: World, wire: Wire, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.web.timer.TICK_S", 0.02)
    monkeypatch.setattr("shim.web.timer.TICK_TIMEOUT_S", 0.5)
    monkeypatch.setattr("shim.database.HOST_TIMEOUT_S", 2)
    world.add_file(2)
    world.checkout(0)
    with LiveShim(wire.dsn, folder / "www"):
        wire.silence()
        time.sleep(1.0)  # a tick that was on its way has met the silence
        monkeypatch.setattr("shim.web.timer.TICK_TIMEOUT_S", PATIENCE_S)
        wire.resume()
        world.let_leases_run_out()
        lost = "SELECT FROM osgprod_data.reports WHERE outcome = 'lost'"
        wait_until(lambda: world.db.execute(lost).fetchall(), "a tick requeues the slice")


def _soon(shim: LiveShim, process: int) -> int:
    """Asks as a job does, until the answer is not 503."""
    statuses: list[int] = []

    def is_answered() -> bool:
        statuses.append(shim.checkout(process).status_code)
        return statuses[-1] != 503

    wait_until(is_answered, "an answer that is not 503")
    return statuses[-1]
