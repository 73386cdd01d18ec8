"""Upgrades while jobs work: they see the database go away for a while (503, Retry-After), and nothing else."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shim.database import connect
from shim.migrate import migrate, pending
from shim.version import SQL_FOLDER
from tests.support import LiveShim, World, wait_until

CLIENTS = 8


class Clients:
    """Jobs that check a slice out, send a heartbeat and report, one after another, until they are stopped."""

    def __init__(self, shim: LiveShim) -> None:
        self._shim, self._stop = shim, threading.Event()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=[n]) for n in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        cluster = 10 + number
        process = 0
        while not self._stop.is_set():
            for route, more in (
                ("workscript.bash", {}),
                ("workscript.ping", {}),
                ("workscript.exit", {"exitcode": 0}),
            ):
                query = {"project": "p", "cluster": cluster, "process": process, "magic": "m", **more}
                answer = self._shim.get(route, **query)
                self.statuses[answer.status_code] += 1
                # 404: the checkout of this attempt met the upgrade, so that there is nothing to report
                if answer.status_code not in (200, 404, 503):
                    self.wrong.append(f"{route} {answer.status_code} {answer.text[:200]}")
                if answer.status_code == 503 and not int(answer.headers.get("Retry-After", 0)) > 0:
                    self.wrong.append(f"{route}: 503 without Retry-After")
            process += 1
            time.sleep(0.02)  # or they would keep all processors busy


def change(sql: Path, number: int) -> None:
    """Another version of the functions: other results, types and a comment; every second version is as before."""
    for name, changes in (
        (
            "types.sql",
            (("    status      text,", "    status      varchar,"),),
        ),  # of all three answers to jobs
        ("upkeep/tick.sql", (("osgprod.tick() IS\n'", "osgprod.tick() IS\n'Next. "),)),
    ):
        text = (SQL_FOLDER / "functions" / name).read_text()
        for old, new in changes if number % 2 == 0 else ():
            assert old in text, f"{name}: {old}"
            text = text.replace(old, new)
        (sql / "functions" / name).write_text(text)


def kill(world: World, application: str) -> None:
    """Ends connections from outside, as an administrator or a crash does."""
    world.db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        " AND datname = current_database()",
        [application],
    )


@pytest.fixture
def busy_shim(world: World, folder: Path) -> Iterator[LiveShim]:
    with LiveShim(world.dsn, folder / "www", OSGPROD_CLIENT_RATE="0") as live:
        live.add_template("p")
        yield live


@pytest.mark.parametrize("upgrades", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_upgrades_under_traffic_give_503_and_never_500(
    world: World, busy_shim: LiveShim, folder: Path, upgrades: int
) -> None:
    sql = folder / "sql"
    shutil.copytree(SQL_FOLDER, sql)
    world.add_file(20_000)
    done = killed = 0
    with Clients(busy_shim) as clients:
        for number in range(upgrades):
            change(sql, number)
            if number % 5 == 2:  # this one is killed in the middle, and made good by the next
                killed += 1
                victim = threading.Thread(target=_killed, args=[world.dsn, sql])
                victim.start()
                time.sleep(0.2)
                kill(world, "osgprod migrate")
                victim.join()
            if number % 5 == 1:
                kill(world, "osgprod shim")
            if number % 5 == 3:
                for table in ("pg_proc", "pg_type", "osgprod_data.attempts", "osgprod_data.slices"):
                    world.db.execute(f"VACUUM FULL {table}")
            done += len(migrate(world.dsn, sql, say=lambda line: None))
        before = clients.statuses[200]
        wait_until(
            lambda: clients.statuses[200] >= before + CLIENTS,
            "work goes on after the last upgrade",
            seen=lambda: clients.statuses,
        )
    assert clients.wrong == []
    assert set(clients.statuses) <= {200, 404, 503}
    assert done >= upgrades - killed  # a killed one may have come to its end


CONCURRENT = """-- An index that no job waits for.
-- depends: 0050-functions
-- transactional: false

SET ROLE osgprod_owner;

DROP INDEX CONCURRENTLY IF EXISTS osgprod_data.slices_later;

CREATE INDEX CONCURRENTLY slices_later ON osgprod_data.slices (project_id, cluster);

RESET ROLE;
"""
CONCURRENT_ROLLBACK = """-- transactional: false

SET ROLE osgprod_owner;

DROP INDEX CONCURRENTLY IF EXISTS osgprod_data.slices_later;

RESET ROLE;
"""
LATER = "SELECT i.indisvalid AS valid FROM pg_index i WHERE i.indexrelid = to_regclass('osgprod_data.slices_later')"

INDEX_WAITS = "SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CON%' AND wait_event_type = 'Lock'"
MIGRATION_WAITS = (
    "SELECT FROM pg_stat_activity WHERE application_name = 'osgprod migrate' AND query LIKE '%advisory_lock%'"
)


@pytest.mark.parametrize("is_killed", [False, True])
def test_jobs_go_on_while_a_migration_builds_an_index_concurrently(
    world: World, busy_shim: LiveShim, folder: Path, is_killed: bool
) -> None:
    sql = folder / "sql"
    shutil.copytree(SQL_FOLDER, sql)
    migrate(world.dsn, sql, say=lambda line: None)
    (sql / "migrations" / "9998-index.sql").write_text(CONCURRENT)
    (sql / "migrations" / "9998-index.rollback.sql").write_text(CONCURRENT_ROLLBACK)
    world.add_file(200)
    with connect(world.dsn) as other:
        other.execute("BEGIN")  # which the index waits for, and behind an ordinary one all jobs would wait
        other.execute("UPDATE osgprod_data.slices SET nstart = nstart WHERE false")
        migrating = threading.Thread(target=_killed, args=[world.dsn, sql])
        migrating.start()
        wait_until(
            lambda: world.db.execute(INDEX_WAITS).fetchone() is not None,
            "the index waits for the open transaction",
        )
        for process in range(5):
            assert busy_shim.checkout(process).status_code == 200
            assert busy_shim.report(process).status_code == 200
        if is_killed:
            kill(world, "osgprod migrate")
            migrating.join()
            assert world.db.execute(LATER).fetchone() == {"valid": False}
            assert pending(world.dsn, sql) == ["apply 9998-index"]
        other.execute("ROLLBACK")
    migrating.join()
    assert migrate(world.dsn, sql, say=lambda line: None) == (["applied 9998-index"] if is_killed else [])
    assert world.db.execute(LATER).fetchone() == {"valid": True}
    assert migrate(world.dsn, sql, say=lambda line: None) == []


def test_second_migration_that_waits_does_not_keep_an_index_from_being_built(
    world: World, folder: Path
) -> None:
    """A statement that waits has a snapshot, and an index that is built concurrently waits for all of them."""
    sql = folder / "sql"
    shutil.copytree(SQL_FOLDER, sql)
    migrate(world.dsn, sql, say=lambda line: None)
    (sql / "migrations" / "9998-index.sql").write_text(CONCURRENT)
    (sql / "migrations" / "9998-index.rollback.sql").write_text(CONCURRENT_ROLLBACK)
    said: list[str] = []
    done: list[list[str]] = []
    with connect(world.dsn) as other:
        other.execute("BEGIN")  # which the index waits for, until the second migration waits for it, too
        other.execute("UPDATE osgprod_data.slices SET nstart = nstart WHERE false")
        runs = [
            threading.Thread(target=lambda: done.append(migrate(world.dsn, sql, say=said.append)))
            for _ in range(2)
        ]
        for run, until in zip(runs, (INDEX_WAITS, MIGRATION_WAITS), strict=True):
            run.start()
            wait_until(lambda until=until: world.db.execute(until).fetchone() is not None, until)
        other.execute("ROLLBACK")
    for run in runs:
        run.join()
    assert sorted(done) == [[], ["applied 9998-index"]]
    assert said == ["another migration is running, waiting for it", "applied 9998-index"]
    assert world.db.execute(LATER).fetchone() == {"valid": True}


def _killed(dsn: str, sql: Path) -> None:
    with contextlib.suppress(psycopg.OperationalError):
        migrate(dsn, sql, say=lambda line: None)


@pytest.mark.parametrize("code", ["XX000", "42703"])
def test_internal_error_that_no_upgrade_explains_stays_an_internal_error(
    world: World, shim: LiveShim, code: str
) -> None:
    """By SQLSTATE and the state of the database, not by its text: the same error is 503 during a migration."""
    world.add_file(3)
    assert shim.checkout(0).status_code == 200
    world.db.execute(
        "CREATE OR REPLACE FUNCTION osgprod._authorize_fails() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'cache lookup failed for type 1' USING ERRCODE = '{code}'; END $$;"
        "CREATE TRIGGER fails BEFORE INSERT ON osgprod_data.attempts FOR EACH ROW"
        " EXECUTE FUNCTION osgprod._authorize_fails()"
    )
    assert shim.checkout(1).status_code == 500
    from shim.migrate import MIGRATION_LOCK

    with connect(world.dsn) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        answer = shim.checkout(1)
        assert (answer.status_code, "brought up to date" in answer.text) == (503, True)
        assert int(answer.headers["Retry-After"]) > 0
    assert shim.checkout(1).status_code == 500
    world.db.execute("COMMENT ON SCHEMA osgprod IS 'other functions'")
    answers = [shim.checkout(1).status_code for _ in range(20)]
    assert 503 in answers and answers[-1] == 500, "once on each connection that knew the former functions"
    world.db.execute("DROP FUNCTION osgprod._authorize_fails CASCADE")
    assert shim.checkout(1).status_code == 200


def test_health_tells_which_side_is_older(world: World, shim: LiveShim) -> None:
    assert shim.raw("healthz").text == "ok\n"
    world.db.execute("INSERT INTO osgprod_data._yoyo_migration VALUES ('x', '9999-future', now())")
    answer = shim.raw("healthz")
    assert answer.status_code == 200 and "older than the database (9999-future)" in answer.text
    world.db.execute("DELETE FROM osgprod_data._yoyo_migration WHERE migration_id <> '0001-roles-and-schema'")
    answer = shim.raw("healthz")
    assert answer.status_code == 503 and "the database (0001-roles-and-schema) is older" in answer.text
    assert "osgprod migrate" in answer.text and int(answer.headers["Retry-After"]) > 0


def test_a_running_shim_is_as_old_as_its_code_not_as_the_folder(tmp_path: Path) -> None:
    """Between "git pull" and the restart the folder has newer migrations and templates than the process."""
    shutil.copytree(SQL_FOLDER.parent / "shim", tmp_path / "shim")
    (tmp_path / "sql/migrations").mkdir(parents=True)
    (tmp_path / "sql/migrations/0001-first.sql").touch()
    program = """
from pathlib import Path
from shim import version
from shim.config import Settings
from shim.dashboard.routes import Dashboard, freshness
from shim.web.guard import Guard
from shim.web.metrics import Metrics
from shim.web.operators import Operators
settings = Settings.read()
dashboard = Dashboard("", Guard(settings), Metrics(None), Operators(settings), "")
Path("sql/migrations/0002-second.sql").touch()
for template in Path("shim/dashboard/templates").iterdir():
    template.write_text("{{ what.old.code.does.not.know }}")
print(version.which_is_older("0001-first") or "same")
print(version.which_is_older("0002-second"))
values = {"freshness": freshness.get(), "acting": None, "lines": ["old"], "status": 404}
print(dashboard._draw("error.html", values).decode())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same, older, *page = done.stdout.splitlines()
    assert same == "same"
    assert older.startswith("this program (0001-first) is older than the database (0002-second)")
    assert "old" in "".join(page)


def test_functions_of_an_older_database_give_503_and_no_silence(world: World, shim: LiveShim) -> None:
    """A shim that was started before osgprod migrate: the functions answer rows that it doesn't know."""
    world.db.execute(
        "DROP FUNCTION osgprod.heartbeats; CREATE FUNCTION osgprod.heartbeats(p_calls json)"
        " RETURNS TABLE (n int, http_status int, status text, message text)"
        " LANGUAGE sql AS $$ SELECT 0, 200, 'alive', 'x' $$;"
        "GRANT EXECUTE ON FUNCTION osgprod.heartbeats TO osgprod_worker"
    )
    answer = shim.raw("workscript.ping?project=p&cluster=1&process=0&magic=m")
    assert (answer.status_code, "brought up to date" in answer.text) == (503, True)
    assert int(answer.headers["Retry-After"]) > 0
