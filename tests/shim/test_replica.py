"""A streaming replica for reading: which reads use it, how old its data are, and when the primary is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from shim import replica as reading
from shim.cli import doctor
from shim.database import call, connect
from shim.local.embedded import NOT_DURABLE, Server, server_uid
from tests import prepared
from tests.shim.test_database_away import Wire
from tests.support import CHECKOUT, LiveShim, World, run_osgprod, server_folder, wait_until

PATIENCE_S = 60.0
SETTINGS = {
    **NOT_DURABLE,
    "max_connections": "30",
    # A sender that waits for a processor finds its WAL still there after the checkpoint of another base backup.
    "wal_keep_size": "1GB",
}


class Pair:
    """A primary with project p, and a replica that follows it."""

    def __init__(self, primary: Server, replica: Server) -> None:
        self.primary, self.replica = primary, replica

    def tick(self) -> str:
        """Does what the shims' timer does every ten seconds; returns the time that it noted."""
        with connect(self.primary.dsn) as db:
            call(db, "tick")
            row = db.execute(  # tick itself does it once in 5 s
                "UPDATE osgprod_data.presence SET seen_at = clock_timestamp() RETURNING seen_at::text AS at"
            ).fetchone()
        assert row
        return str(row["at"])

    def catch_up(self) -> None:
        """Waits until the replica has replayed all that the primary has written."""
        noted = self.tick()
        with connect(self.replica.dsn) as db:
            wait_until(
                lambda: one(db, f"SELECT seen_at >= '{noted}' AS found FROM osgprod_data.presence"),
                "it follows",
            )

    def stand_still(self) -> None:
        """The replica replays nothing from now on."""
        self.catch_up()
        with connect(self.replica.dsn) as db:
            db.execute("SELECT pg_wal_replay_pause()")
            if db.info.server_version >= 140000:  # the pause is only asked for
                wait_until(
                    lambda: one(db, "SELECT pg_get_wal_replay_pause_state() = 'paused' AS found"),
                    "it has paused",
                )

    def go_on(self) -> None:
        with connect(self.replica.dsn) as db:
            db.execute("SELECT pg_wal_replay_resume()")

    def add_project(self, name: str) -> World:
        """Makes a project with ten blocks of work, on the primary."""
        with connect(self.primary.dsn) as db:
            World(db, self.primary.dsn).with_project(name)
            call(db, "load_slices", project=name)
        return World(db, self.primary.dsn)


def one(db: psycopg.Connection[dict[str, Any]], query: str) -> bool:
    row = db.execute(query.encode()).fetchone()
    return bool(row and row["found"])


@contextlib.contextmanager
def serving(settings: dict[str, str]) -> Iterator[Server]:
    folder = server_folder("primary")
    folder.chmod(0o777)
    server = Server(folder / "primary", settings)
    prepared.put_data(folder / "primary")
    try:
        server.start()
        with connect(server.dsn) as db:
            World(db, server.dsn).with_project("p").add_file(10)
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    with serving(SETTINGS) as server:
        yield server


@contextlib.contextmanager
def replicated(primary: Server, options: Sequence[str] = ("--write-recovery-conf",)) -> Iterator[Pair]:
    folder = server_folder("replica")
    folder.chmod(0o777)
    (folder / "replica").mkdir()
    replica = Server(folder / "replica", SETTINGS)
    os.chown(folder / "replica", server_uid(), -1)
    try:
        subprocess.run(
            [
                *primary._command("pg_basebackup"),
                *(f"--dbname={primary.dsn}", f"--pgdata={folder}/replica/data"),
                *(*options, "--checkpoint=fast", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            **primary._as_server(),
        )
        replica.start()
        yield Pair(primary, replica)
    finally:
        replica.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(primary: Server) -> Iterator[Pair]:
    with replicated(primary) as pair:
        yield pair


@pytest.fixture
def pair(request: pytest.FixtureRequest, primary: Server) -> Iterator[Pair]:
    """A test that stops or promotes its replica has one of its own (marker own_replica); the others share one."""
    if request.node.get_closest_marker("own_replica"):
        with replicated(primary) as pair:
            yield pair
    else:
        pair = request.getfixturevalue("shared")
        yield pair
        pair.go_on()


@pytest.fixture
def shim_of(pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LiveShim]]:
    """Starts a shim that reads from the replica; the command line does it too."""
    monkeypatch.setattr("shim.dashboard.reader.KEPT_S", 0.0)
    monkeypatch.setattr("shim.replica.AWAY_S", 0.1)
    monkeypatch.setenv("OSGPROD_DSN", pair.primary.dsn)
    started: list[LiveShim] = []

    def start(max_age_s: int = 10_000, read_dsn: str = "") -> LiveShim:
        settings = {
            "OSGPROD_READ_DSN": read_dsn or pair.replica.dsn,
            "OSGPROD_READ_MAX_AGE_S": str(max_age_s),
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        started.append(LiveShim(pair.primary.dsn, folder / "www", **settings))
        started[0].__enter__()
        return started[0]

    yield start
    for shim in started:
        shim.__exit__(None, None, None)


def command(*arguments: str) -> Result:
    result = run_osgprod(*arguments)
    assert result.exit_code == 0, result.output
    return result


def doctor_finds(what: str) -> dict[str, Any]:
    (finding,) = (row for row in doctor.examine() if row["what"] == what)
    return finding


def source(shim: LiveShim) -> str:
    """Where the pages are read from: replica or primary. The metrics and the JSON API are read from the same."""
    text = shim.raw("metrics").text
    (name,) = (
        word for word in ("replica", "primary") if f'osgprod_data_age_seconds{{source="{word}"}}' in text
    )
    return name


def test_pages_metrics_api_and_lists_come_from_the_replica_and_say_how_old_they_are(
    pair: Pair, shim_of: Callable[..., LiveShim], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.catch_up()
    shim = shim_of()
    wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
    assert command("status").stderr == "", "data of a few seconds are not worth a line"
    pair.stand_still()
    pair.add_project("late")
    monkeypatch.setattr(reading, "NOTE_AGE_S", 0.0)

    page, rows = shim.raw("").text, shim.raw("api/progress").json()
    assert " s ago (replica)" in page and "late" not in page
    assert rows["is_replica"] and [row["project"] for row in rows["rows"]] == ["p"]
    with connect(pair.replica.dsn) as db:
        as_of = call(db, "freshness")[0]["as_of"]
    assert rows["as_of"] == as_of.isoformat(), "the time is the replica's, and stands still with it"
    assert 'project="late"' not in shim.raw("metrics").text
    for words in (("status",), ("health",), ("project", "list"), ("attempts", "p"), ("slices", "list", "p")):
        listed = command(*words)
        assert "late" not in listed.stdout and "the data of the replica are" in listed.stderr
    (finding,) = (row for row in doctor.examine() if row["what"] == "replica")
    assert finding["is_well"], finding
    with connect(pair.primary.dsn) as db:
        call(db, "remove_project", project="late")


def test_what_a_job_asks_and_what_changes_something_is_asked_of_the_primary(
    pair: Pair, shim_of: Callable[..., LiveShim]
) -> None:
    pair.stand_still()
    pair.add_project("busy")
    shim = shim_of()
    shim.add_template("busy")
    wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
    assert shim.raw("healthz").text == "ok\n"
    assert shim.checkout(1, project="busy").headers["Osgprod-Status"] == "assigned"
    assert shim.get("workscript.ping", project="busy", cluster=1, process=1, magic="m").status_code == 200
    assert shim.report(1, project="busy").headers["Osgprod-Status"] == "done"
    command("project", "pause", "busy")
    assert '"jobs": 0' in command("jobs", "needed", "busy", "--json").stdout
    with connect(pair.primary.dsn) as db:
        call(db, "remove_project", project="busy", force=True)


def test_project_that_the_replica_does_not_know_yet_is_looked_for_on_the_primary(
    pair: Pair, shim_of: Callable[..., LiveShim]
) -> None:
    pair.stand_still()
    pair.add_project("new")
    shim = shim_of()
    wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
    assert shim.raw("project/new").status_code == 200
    assert shim.raw("project/nowhere").status_code == 404
    assert "new" in command("status", "new").stdout
    with connect(pair.primary.dsn) as db:
        call(db, "remove_project", project="new")


def test_replica_that_is_too_old_is_not_shown_until_it_has_caught_up(
    pair: Pair, shim_of: Callable[..., LiveShim]
) -> None:
    pair.stand_still()
    shim = shim_of(max_age_s=2)
    wait_until(lambda: "its data are too old" in command("status").stderr, "the command sees their age")
    assert source(shim) == "primary"
    assert "(replica)" not in shim.raw("").text
    finding = doctor_finds("replica")
    assert not finding["is_well"] and "too old" in finding["found"]
    assert "its replay is paused" in finding["found"] and "pg_wal_replay_resume" in finding["advice"]
    pair.go_on()

    def is_back() -> bool:
        pair.tick()
        return source(shim) == "replica"

    wait_until(is_back, "the replica is back")


@pytest.mark.own_replica
def test_copy_that_follows_the_primary_no_longer_is_found_out(
    pair: Pair, shim_of: Callable[..., LiveShim]
) -> None:
    pair.catch_up()
    with connect(pair.replica.dsn) as db:
        db.execute("SELECT pg_promote()")

    shim = shim_of(max_age_s=2)
    wait_until(lambda: "its data are too old" in command("status").stderr, "the command sees their age")
    wait_until(lambda: source(shim) == "primary", "pages are read from the primary")
    assert doctor_finds("replica")["found"].endswith("it follows no primary")


def pass_wal(server: Server, segments: int) -> None:
    """The server writes so many segments of WAL, and keeps none that nobody needs."""
    with connect(server.dsn) as db:
        for _ in range(segments):
            db.execute("SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()")
        db.execute("CHECKPOINT")


def test_replica_made_as_documented_follows_again_until_its_slot_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (CHECKOUT / "docs" / "operations.md").read_text()
    (command_line,) = re.findall("^pg_basebackup (.*)$", text, re.MULTILINE)
    options = [word for word in shlex.split(command_line) if not re.match("--(dbname|pgdata)=", word)]
    settings = {**NOT_DURABLE, "max_connections": "30", "max_slot_wal_keep_size": "64MB"}
    with serving(settings) as primary, replicated(primary, options) as pair:
        monkeypatch.setenv("OSGPROD_DSN", primary.dsn)
        pair.catch_up()
        pair.replica.stop()
        pass_wal(primary, 2)
        pair.replica.start()
        pair.catch_up()
        monkeypatch.setenv("OSGPROD_READ_DSN", pair.replica.dsn)
        assert doctor_finds("replica")["is_well"] and doctor_finds("replication slots")["is_well"]
        pair.replica.stop()
        pass_wal(primary, 8)
        pair.replica.start()
        monkeypatch.setenv("OSGPROD_READ_DSN", pair.replica.dsn)
        monkeypatch.setenv("OSGPROD_READ_MAX_AGE_S", "1")
        wait_until(
            lambda: "it receives nothing from the primary" in doctor_finds("replica")["found"],
            "the replica is found not to follow",
        )
        slots = doctor_finds("replication slots")
        assert not slots["is_well"] and slots["found"] == "osgprod_read lost"
        assert "make the replica again" in slots["advice"]


@pytest.mark.own_replica
def test_replica_that_is_away_is_replaced_by_the_primary_until_it_is_back(
    pair: Pair, shim_of: Callable[..., LiveShim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.replica.WAIT_S", 0.5)
    pair.catch_up()
    shim = shim_of()
    wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
    pair.replica.stop()
    for page in ("", "project/p", "api/progress", "metrics"):
        assert shim.raw(page).status_code == 200
    assert source(shim) == "primary"
    status = command("status")
    assert "p" in status.stdout and "it is away" in status.stderr
    finding = doctor_finds("replica")
    assert not finding["is_well"] and "away" in finding["found"]


def test_replica_that_is_silent_keeps_no_page(
    pair: Pair, shim_of: Callable[..., LiveShim], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.replica.WAIT_S", 0.5)
    folder = Path(tempfile.mkdtemp(prefix="osgprod-wire-", dir="/tmp"))
    wire = Wire(
        folder, f"{pair.replica.dsn.split()[0].removeprefix('host=')}/.s.PGSQL.5432", pair.replica.dsn
    )
    try:
        pair.catch_up()
        shim = shim_of(read_dsn=wire.dsn)
        wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
        wire.silence()
        assert shim.raw("").status_code == 200 and source(shim) == "primary"
        wire.resume()
        wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
    finally:
        wire.close()
        shutil.rmtree(folder)


def test_value_that_can_not_be_and_a_page_that_takes_too_long_are_no_outage_of_the_replica(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.replica.WAIT_S", PATIENCE_S)
    pair.catch_up()

    def asking(query: bytes, *values: str) -> Callable[[psycopg.AsyncConnection[Any]], Any]:
        return lambda connection: connection.execute(query, values)

    async def ask() -> None:
        replica = reading.Replica(pair.replica.dsn, 10_000)
        await replica.open()
        try:
            with pytest.raises(psycopg.DataError):
                await replica.read(asking(b"SELECT %s::text", "p\0"))
            monkeypatch.setattr("shim.replica.SNAPSHOT_S", 0.2)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await replica.read(asking(b"SELECT pg_sleep(%s::float8)", "600"))
            monkeypatch.setattr("shim.replica.SNAPSHOT_S", PATIENCE_S)
            freshness, _ = await replica.read(asking(b"SELECT 1"))
            assert freshness.is_replica
        finally:
            await replica.close()

    asyncio.run(ask())


def test_page_of_a_replica_says_so_where_its_clock_is_behind(
    pair: Pair, shim_of: Callable[..., LiveShim], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def new(*_: object) -> reading.Freshness:
        return reading.Freshness(True, datetime.now(UTC), 0.0)

    pair.catch_up()
    shim = shim_of()
    monkeypatch.setattr(reading.Replica, "_freshness", new)
    wait_until(lambda: source(shim) == "replica", "pages are read from the replica")
    assert "0 s ago (replica)" in shim.raw("").text
