"""A test finds its database as if nobody had used it before, though another test has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from shim.database import connect
from tests.databases import Databases
from tests.support import World

# What rows and sequences can't undo.
OTHER_CHANGES = (
    "CREATE TABLE public.t (x int)",
    "DROP FUNCTION osgprod.tick()",
    "ALTER TABLE osgprod_data.slices SET (fillfactor = 50)",
    "TRUNCATE osgprod_data.reports",
    "GRANT SELECT ON osgprod_data.slices TO PUBLIC",
    "COMMENT ON FUNCTION osgprod.tick() IS 'other'",
    "COMMENT ON DATABASE {name} IS 'other'",
    "ALTER DATABASE {name} SET TimeZone = 'America/New_York'",
    "ALTER ROLE osgprod_worker IN DATABASE {name} SET statement_timeout = '1 s'",
    "ALTER DATABASE {name} CONNECTION LIMIT 50",
    "ANALYZE osgprod_data.projects",
    "VACUUM osgprod_data.projects",
    "SELECT lo_create(0)",
)


def contents(db: psycopg.Connection[Any]) -> dict[str, Any]:
    """All rows of all tables, the values of all sequences, and the settings of the session."""
    names = db.execute(
        "SELECT c.oid::regclass::text AS name, CASE c.relkind WHEN 'S' THEN 'last_value, is_called'"
        " ELSE 't::text' END AS what FROM pg_class c WHERE c.relkind IN ('r', 'S')"
        " AND c.relnamespace = 'osgprod_data'::regnamespace ORDER BY 1"
    ).fetchall()
    return {
        row["name"]: db.execute(f"SELECT {row['what']} FROM {row['name']} t ORDER BY 1".encode()).fetchall()
        for row in names
    } | {
        row["name"]: row["setting"] for row in db.execute("SELECT name, setting FROM pg_settings").fetchall()
    }


@pytest.fixture
def left_open() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_database_that_was_used_is_given_away_again_as_it_was_made(
    databases: Databases, left_open: contextlib.ExitStack
) -> None:
    with databases.copy("world", fresh=True) as dsn, databases.session(dsn) as db:
        made = contents(db)
    with databases.copy("world") as dsn, databases.session(dsn) as db:
        world = World(db, dsn)
        world.add_file(3)
        world.checkout(1)
        world.report(1)
        world.set(maxblockspercore=7)
        db.execute("DELETE FROM osgprod_data._yoyo_migration")
        db.execute("CREATE TEMP TABLE t (x int); SET work_mem = '1 MB'; SET ROLE osgprod_worker; LISTEN x")
        db.autocommit = False
        with contextlib.suppress(psycopg.Error):
            db.execute("not SQL")
        left_open.enter_context(contextlib.closing(connect(dsn)))
    with databases.copy("world") as again, databases.session(again) as db:
        assert again == dsn
        found = contents(db)
        assert {name for name in made if found[name] != made[name]} == set()
        assert db.execute("SELECT to_regclass('t'), current_user = session_user AS is_user").fetchall() == [
            {"to_regclass": None, "is_user": True}
        ]
        others = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND application_name <> 'tests'"
        )
        assert db.execute(others).fetchall() == []


def test_database_in_which_more_than_rows_was_changed_is_not_given_away_again(databases: Databases) -> None:
    seen, same = set(), []
    for statement in (*OTHER_CHANGES, None):
        with databases.copy("world") as dsn, connect(dsn) as db:
            if dsn in seen:
                same.append(statement)
            seen.add(dsn)
            if statement:
                db.execute(statement.format(name=db.info.dbname).encode())
    assert same == [], "the database was given away again after the statement before"
