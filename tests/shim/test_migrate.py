"""``osgprod migrate``: the schema is always current and never half migrated, also after a crash."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import psycopg
import pytest

from shim.database import DatabaseError, call, connect
from shim.migrate import OTHER_TEXTS, migrate, pending
from shim.snapshot import deployed
from shim.version import SQL_FOLDER
from tests.databases import Databases
from tests.shim.databases import WORKING_COPY, catalog, quietly, state, works
from tests.support import wait_until


def test_second_run_finds_nothing_to_do_and_changes_nothing(migrated: str) -> None:
    before = state(migrated)
    assert migrate(migrated, say=quietly) == []
    assert state(migrated) == before
    assert works(migrated)


def test_of_two_at_once_one_waits_and_both_succeed(empty: str) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda n: migrate(empty, say=said.append), range(4)))
    assert sorted(map(bool, done)) == [False, False, False, True]
    assert said.count("another migration is running, waiting for it") == 3
    assert works(empty)


@pytest.mark.parametrize("where", ["in a migration", "in the functions"])
def test_killed_in_the_middle_the_next_run_recovers(migrated: str, sql: Path, where: str) -> None:
    slow = (
        sql / "migrations" / "0099-slow.sql"
        if where == "in a migration"
        else sql / "functions" / "y-slow.sql"
    )
    depends = "-- depends: 0002-tables\n" if where == "in a migration" else ""
    slow.write_text(
        f"{depends}DO $$ BEGIN CREATE TABLE osgprod_data.slow (n int); PERFORM pg_advisory_xact_lock(99); END $$;\n"
    )
    program = f"from pathlib import Path; from shim.migrate import migrate; migrate({migrated!r}, Path({str(sql)!r}))"
    with connect(migrated) as connection:
        connection.execute("SELECT pg_advisory_lock(99)")
        killed = subprocess.Popen([sys.executable, "-c", program], cwd=SQL_FOLDER.parent)
        waits = (
            "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 99 AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        wait_until(lambda: connection.execute(waits).fetchall(), "it comes to the slow place", killed)
        killed.kill()
        killed.wait()
    expected = "applied 0099-slow" if where == "in a migration" else WORKING_COPY
    assert expected in migrate(migrated, sql, say=quietly)
    with connect(migrated) as connection:
        assert connection.execute("SELECT count(*) AS n FROM osgprod_data.slow").fetchone() == {"n": 0}
    assert migrate(migrated, sql, say=quietly) == []
    assert works(migrated)


KILLED = """
import os, signal, sys
from pathlib import Path
from psycopg import Cursor
from shim.migrate import migrate

dsn, statement = sys.argv[1], int(sys.argv[2])
seen, execute = 0, Cursor.execute


def counted(self, *arguments, **more):
    global seen
    seen += 1
    if seen == statement:
        os.kill(os.getpid(), signal.SIGKILL)
    return execute(self, *arguments, **more)


Cursor.execute = counted
migrate(dsn, say=lambda line: None)
"""


@pytest.mark.parametrize(("first", "kills"), [((3,), 1), pytest.param((1, 3, 6), 6, marks=pytest.mark.slow)])
def test_killed_at_any_statement_the_next_run_recovers(
    empty: str, another: str, first: tuple[int, ...], kills: int
) -> None:
    """On the way from nothing to now: at the first statements, and at random ones."""
    with mock.patch.object(
        psycopg.Cursor, "execute", autospec=True, side_effect=psycopg.Cursor.execute
    ) as made:
        migrate(another, say=quietly)
    wanted = catalog(another)
    seed = random.randrange(1 << 32)
    chosen = random.Random(seed).sample(range(10, made.call_count - 5), kills)
    # Each run goes on where the killed one before it ended, so a later moment is counted from there.
    for statement in (*first, *chosen):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, empty, str(statement)],
            cwd=SQL_FOLDER.parent, capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode in (-signal.SIGKILL, 0), (ended.stderr, f"seed {seed}")
    migrate(empty, say=quietly)
    assert catalog(empty) == wanted, f"seed {seed}, statements {chosen}"
    assert migrate(empty, say=quietly) == []
    assert works(empty)


def test_migration_that_fails_leaves_no_trace_of_itself(migrated: str, sql: Path) -> None:
    bad = sql / "migrations" / "0099-bad.sql"
    bad.write_text("-- depends: 0002-tables\nCREATE TABLE osgprod_data.bad (n int);\nSELECT 1 / 0;\n")
    before = state(migrated)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(migrated, sql, say=quietly)
    assert state(migrated) == before
    assert works(migrated)


def test_edited_migration_is_refused_by_its_name_and_nothing_changes(migrated: str, sql: Path) -> None:
    before = state(migrated)
    path = sql / "migrations" / "0002-tables.sql"
    path.write_text(path.read_text() + "-- a small remark\n")
    (sql / "functions" / "y-new.sql").write_text(
        "CREATE FUNCTION osgprod.y() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    )
    with pytest.raises(
        DatabaseError, match=r"migration 0002-tables\.sql was edited after it was applied"
    ) as caught:
        migrate(migrated, sql, say=quietly)
    assert caught.value.hint
    with pytest.raises(DatabaseError, match="was edited"):
        pending(migrated, sql)
    assert state(migrated) == before


def test_functions_are_always_current(migrated: str, sql: Path) -> None:
    (sql / "functions" / "upkeep" / "alive.sql").unlink()
    grants = sql / "functions" / "grants.sql"
    grants.write_text(grants.read_text().replace(", osgprod.alive", ""))
    assert migrate(migrated, sql, say=quietly) == [WORKING_COPY]
    with connect(migrated) as connection, pytest.raises(psycopg.errors.UndefinedFunction):
        call(connection, "alive")


TAMPERING = (
    "DROP FUNCTION osgprod.tick()",
    "GRANT EXECUTE ON FUNCTION osgprod.verify TO PUBLIC",
    "ALTER FUNCTION osgprod.alive() RESET ALL",
    "ALTER FUNCTION osgprod.health RENAME TO wealth",
    "COMMENT ON FUNCTION osgprod.progress IS 'other'",
)


def test_what_was_changed_by_hand_is_put_right(migrated: str) -> None:
    wanted = catalog(migrated)
    with connect(migrated) as connection:
        for statement in TAMPERING:
            with connection.transaction(force_rollback=True):
                connection.execute(statement.encode())
                _, _, as_deployed = deployed(connection)
                assert not as_deployed, statement
        for statement in TAMPERING:
            connection.execute(statement.encode())
    (line,) = migrate(migrated, say=quietly)
    assert line.endswith("renewed: somebody had changed them")
    assert migrate(migrated, say=quietly) == []
    assert catalog(migrated) == wanted


def test_owner_of_the_database_who_may_make_roles_needs_no_superuser(empty: str) -> None:
    with connect(empty) as connection:
        connection.execute("DROP ROLE IF EXISTS chief")
        connection.execute("CREATE ROLE chief LOGIN CREATEROLE")
        connection.execute(f"ALTER DATABASE {connection.info.dbname} OWNER TO chief")
        # As after an earlier installation on this server, by the same administrator.
        connection.execute(
            "DO $$ BEGIN GRANT osgprod_owner TO chief WITH ADMIN OPTION; EXCEPTION WHEN undefined_object"
            " THEN NULL; END $$"
        )
    dsn = empty.replace("user=postgres", "user=chief")
    assert migrate(dsn, say=quietly)
    assert migrate(dsn, say=quietly) == []
    assert works(dsn)
    with connect(empty) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} OWNER TO postgres")
        connection.execute("DROP OWNED BY chief CASCADE; DROP ROLE chief")


def test_user_who_may_not_is_told_what_it_takes(empty: str) -> None:
    with connect(empty) as connection:
        connection.execute("DROP ROLE IF EXISTS nobody_much")
        connection.execute("CREATE ROLE nobody_much LOGIN")
    with pytest.raises(DatabaseError, match="permission denied") as caught:
        migrate(empty.replace("user=postgres", "user=nobody_much"), say=quietly)
    assert "CREATEROLE" in caught.value.hint
    with connect(empty) as connection:
        connection.execute("DROP ROLE nobody_much")


def test_command_says_what_is_wrong_in_one_line_with_a_hint(folder: Path) -> None:
    environment = {**os.environ, "OSGPROD_DSN": f"host={folder} dbname=none password=s3cret"}
    ended = subprocess.run(
        [sys.executable, "-m", "shim", "migrate"],
        cwd=SQL_FOLDER.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("osgprod: ") and "\nhint: " in ended.stderr
    assert "Traceback" not in ended.stderr and "s3cret" not in ended.stderr + ended.stdout


def test_migration_files_have_names_in_order_and_a_rollback_each() -> None:
    names = [path.name for path in sorted((SQL_FOLDER / "migrations").iterdir())]
    forward = [name for name in names if not name.endswith(".rollback.sql")]
    numbers = [name[:4] for name in forward]
    assert len(set(numbers)) == len(numbers) and all(number.isdigit() for number in numbers)
    assert names == sorted(forward + [name.replace(".sql", ".rollback.sql") for name in forward])


def test_database_of_another_encoding_is_refused_and_stays_empty(databases: Databases) -> None:
    name = f"ascii_{uuid.uuid4().hex[:12]}"
    with connect(databases.dsn("postgres")) as maintenance:
        maintenance.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        try:
            with pytest.raises(DatabaseError, match="encoding SQL_ASCII, UTF8 is needed"):
                migrate(databases.dsn(name), say=quietly)
            with connect(databases.dsn(name)) as connection:
                row = connection.execute(
                    "SELECT to_regnamespace('osgprod_data') IS NULL AS is_empty"
                ).fetchone()
            assert row == {"is_empty": True}
        finally:
            maintenance.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("name", OTHER_TEXTS)
def test_both_texts_with_which_a_snapshot_was_applied_are_accepted(migrated: str, name: str) -> None:
    with connect(migrated) as db:
        db.execute(
            "UPDATE osgprod_data._yoyo_log SET comment = %s WHERE migration_id = %s",
            (f"sha256 {OTHER_TEXTS[name]}", name),
        )
    assert pending(migrated) == []
