"""The shim's timer. Promise I4: slices of expired leases are requeued even if a session is stuck."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from shim.database import connect
from shim.web import timer
from tests.support import LiveShim, World, wait_until


def wait_until_taken_back(world: World) -> None:
    """Looks at the recorded outcome, because a waiting job may lease the slice again at once."""

    def is_taken_back() -> bool:
        # A tick that ran while the leases were moved may have noted when the next one would have ended before that.
        world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
        return bool(world.db.execute("SELECT FROM osgprod_data.reports WHERE outcome = 'lost'").fetchall())

    wait_until(is_taken_back, "the slice is requeued")


@pytest.fixture(autouse=True)
def fast_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "TICK_S", 0.02)


def test_shim_requeues_lost_slices_by_itself(world: World, shim: LiveShim) -> None:
    world.add_file(2)
    world.checkout(0)
    world.let_leases_run_out()
    wait_until_taken_back(world)


def test_timer_requeues_whatever_isolation_level_the_database_is_given(world: World, shim: LiveShim) -> None:
    world.add_file(2)
    world.checkout(0)
    name = world.db.info.dbname
    world.db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'".encode())
    with pytest.raises(psycopg.Error, match="isolation level"), psycopg.connect(world.dsn) as other:
        other.execute(
            "SELECT osgprod.tick()"
        )  # such a tick is refused, so that one that works was given its level
    world.let_leases_run_out()
    wait_until_taken_back(world)


def test_tick_goes_on_after_every_error(
    world: World, shim: LiveShim, caplog: pytest.LogCaptureFixture
) -> None:
    world.add_file(2)
    world.checkout(0)
    world.db.execute("ALTER FUNCTION osgprod.tick() RENAME TO tock")
    wait_until(lambda: "tick: " in caplog.text, "a tick has failed")
    world.db.execute("ALTER FUNCTION osgprod.tock() RENAME TO tick")
    world.db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'osgprod %' AND pid <> pg_backend_pid()"
    )
    world.let_leases_run_out()
    wait_until_taken_back(world)


def test_crowded_pool_does_not_delay_the_tick(world: World, folder: Path) -> None:
    world.add_file(1, seqno=1)
    world.add_file(2, seqno=2)
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            shim.checkout(1)

    with LiveShim(world.dsn, folder / "www", OSGPROD_POOL_SIZE="1") as shim, connect(world.dsn) as stuck:
        shim.add_template("p")
        assert shim.checkout(0).headers["Osgprod-Status"] == "assigned"
        waiting = threading.Thread(target=ask)
        with stuck.transaction():
            stuck.execute("SELECT FROM osgprod_data.loaded_files WHERE seqno = 2 FOR NO KEY UPDATE")
            waiting.start()
            try:
                waits = "application_name = 'osgprod shim' AND wait_event_type = 'Lock'"
                look = f"SELECT FROM pg_stat_activity WHERE {waits}".encode()
                wait_until(lambda: world.db.execute(look).fetchall(), "a call waits")
                world.let_leases_run_out()
                wait_until_taken_back(world)
            finally:
                is_over.set()
        waiting.join()
