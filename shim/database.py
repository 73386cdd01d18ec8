"""Where the database is: settings, pool, and migrate(), which brings it up to date.

No rule is here. What the database can do is in sql/functions, what it holds in sql/migrations.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import yoyo
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from shim.config import Settings
from shim.errors import OperatorError

SQL_FOLDER = Path(__file__).resolve().parent.parent / "sql"
OLDEST_SERVER = 130000
# Any number that no other program locks. It has the form of the jobs' locks (docs/design.md), but is no job's: that one
# would have process number 1936158834.
MIGRATION_LOCK = 0x6F73677072
CONNECT_TIMEOUT_S = 5
CONNECTION_WAIT_S = 5.0  # that a call of the shim waits for a connection
LOCK_TIMEOUT_S = 2  # of the shim's calls; less than that

log = logging.getLogger("osgprod")


class DatabaseError(OperatorError):
    """Something about the database that its administrator can put right."""


def dsn_from_environment() -> str:
    """Returns OSGPROD_DSN; empty when it is not set: libpq's own variables (PGHOST ...) hold then."""
    return Settings.read().dsn.text


def connect(dsn: str | None = None) -> psycopg.Connection[dict[str, Any]]:
    """Opens one connection, in autocommit, whose rows are dictionaries.

    Parameters: dsn  libpq's connection string; None = the environment's
    Errors:     psycopg.OperationalError  the server can't be reached
    """
    connection = psycopg.connect(
        dsn_from_environment() if dsn is None else dsn,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="osgprod",
    )
    connection.execute("SET TimeZone = 'UTC'")  # a time is read as it is shown, wherever the server stands
    return connection


def call(
    connection: psycopg.Connection[dict[str, Any]], function: str, **arguments: object
) -> list[dict[str, Any]]:
    """Calls one function of schema osgprod, in a transaction of its own, and returns its rows.

    Parameters: function   its name without the schema
                arguments  its arguments without the p_; those left out keep the function's defaults
    Errors:     psycopg.Error  with the function's own code, message and hint
    """
    query, values = statement(function, arguments)
    return connection.execute(query, values).fetchall()


def statement(function: str, arguments: Mapping[str, object]) -> tuple[bytes, dict[str, object]]:
    """Returns the statement that calls one function of schema osgprod by named arguments, and its values.

    Parameters: see call()
    """
    # An int goes as text of no type, so that the function's own type decides and names what doesn't fit.
    values = {k: str(v) if type(v) is int else v for k, v in arguments.items()}
    return _call_by_name(function, tuple(arguments)), values


@cache  # a few calls are in this program; putting one together takes as long as the driver's part
def _call_by_name(function: str, names: tuple[str, ...]) -> bytes:
    named = [sql.SQL("{} => {}").format(sql.Identifier(f"p_{name}"), sql.Placeholder(name)) for name in names]
    query = sql.SQL("SELECT * FROM {}({})").format(
        sql.Identifier("osgprod", function), sql.SQL(", ").join(named)
    )
    return query.as_bytes()


def open_pool(dsn: str, size: int) -> AsyncConnectionPool[Any]:
    """Makes the shim's pool, not yet open; it recovers by itself from whatever happens to the server.

    Parameters: dsn   libpq's connection string
                size  connections at most [1 ..]
    """

    async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
        # One prepared statement a call: else a small number and a big one would be two types, two plans.
        connection.adapters.register_dumper(int, Int8Dumper)
        connection.prepare_threshold = 1
        connection.adapters.register_loader("uuid", TextLoader)  # tokens are only passed on
        # Whoever waits for somebody's open transaction has a connection: a few of them would have all that there are.
        await connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S} s'")
        # The functions read under a lock what it was taken for: as it is then.
        await connection.execute("SET default_transaction_isolation = 'read committed'")

    return AsyncConnectionPool(
        dsn,
        min_size=min(2, size),
        max_size=size,
        open=False,
        timeout=CONNECTION_WAIT_S,
        max_waiting=1000,
        reconnect_timeout=10.0,
        configure=configure,
        kwargs={
            "autocommit": True,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "osgprod shim",
        },
    )


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's backend on a connection of ours, with a migration and its mark in one transaction."""

    def __init__(self, uri: object, migration_table: str, dsn: str) -> None:
        self._dsn = dsn
        super().__init__(uri, migration_table)

    def connect(self, dburi: object) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._dsn, autocommit=True)
        connection.execute("SET search_path = osgprod_data")  # where yoyo's own tables are
        return connection

    def copy(self) -> _Backend:
        return _Backend(self.uri, self.migration_table, self._dsn)

    def apply_one(self, migration: yoyo.migrations.Migration, force: bool = False, mark: bool = True) -> None:
        # yoyo commits the migration, then its mark: a kill between the two would leave tables that the
        # next run makes once more.
        self.ensure_internal_schema_updated()
        with self.transaction():
            migration.process_steps(self, "apply", force=force)
            self.mark_one(migration, log=False)


def migrate(
    dsn: str | None = None, folder: Path = SQL_FOLDER, say: Callable[[str], None] = log.info
) -> list[str]:
    """Brings a database up to date: migrations, then the functions as they are now, with their grants.

    Promise:    a repeated call changes nothing; of two at once, one waits for the other; a call that was
                killed is made good by the next one.
    Parameters: dsn     libpq's connection string; None = the environment's. Its user may CREATE in the
                        database and create roles (or the three osgprod roles exist and it is a member
                        of osgprod_owner)
                folder  has migrations/ and functions/
                say     is called with one line for each thing that is done
    Returns:    what was done, one line each; empty = nothing was to be done
    Errors:     DatabaseError  server too old; encoding not UTF8; a migration was edited after it was applied; the
                               user may not
                psycopg.Error  the server can't be reached, or refuses a statement
    """
    done: list[str] = []

    def note(line: str) -> None:
        say(line)
        done.append(line)

    dsn = dsn_from_environment() if dsn is None else dsn
    with connect(dsn) as guard:
        if guard.info.server_version < OLDEST_SERVER:
            version = guard.info.server_version // 10000
            raise DatabaseError(
                f"the server is PostgreSQL {version}, 13 or later is needed", "upgrade the server"
            )
        _refuse_other_encoding(guard)
        _wait_for_lock(guard, say)
        try:
            _prepare(guard)
            _apply_migrations(guard, dsn, folder / "migrations", note)
            _remember_files(guard, folder / "migrations")
            if _deploy_functions(guard, folder / "functions"):
                note("functions renewed")
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                error.diag.message_primary or "permission denied",
                "migrate as a superuser, or as who owns the database, has CREATEROLE, and made the roles osgprod_..."
                " if another database of this server has them already",
            ) from error
    return done


def pending(dsn: str | None = None, folder: Path = SQL_FOLDER) -> list[str]:
    """Tells what migrate() would do, one line each; changes nothing.

    Parameters: see migrate()
    Errors:     DatabaseError  a migration was edited after it was applied
                psycopg.Error  the server can't be reached, or its registers can't be read
    """
    with connect(dsn) as connection:
        row = connection.execute("SELECT to_regclass('osgprod_data.migrated_files') AS known").fetchone()
        known = dict(_migrated_files(connection)) if row and row["known"] else {}
        if known:
            _refuse_edited(connection, folder / "migrations")
        functions = f"{_digest(function_files(folder / 'functions'))} {_deployed_digest(connection)}"
    files = [
        path.stem for path in sorted((folder / "migrations").glob("[0-9]*.sql")) if path.suffixes == [".sql"]
    ]
    waiting = [f"apply {name}" for name in files if f"{name}.sql" not in known]
    return waiting + ([] if known.get("functions") == functions else ["renew the functions"])


def function_files(folder: Path = SQL_FOLDER / "functions") -> list[Path]:
    """Return the files of sql/functions in the order in which they load: types.sql first, grants.sql last."""
    places = {"types.sql": 0, "grants.sql": 2}
    paths = folder.rglob("*.sql")
    return sorted(paths, key=lambda path: (places.get(str(path.relative_to(folder)), 1), path))


def _refuse_other_encoding(guard: psycopg.Connection[dict[str, Any]]) -> None:
    encoding = guard.info.parameter_status("server_encoding")
    if encoding != "UTF8":  # initdb in a bare environment makes SQL_ASCII, whose texts come as bytes
        raise DatabaseError(
            f"database {guard.info.dbname} has the encoding {encoding}, UTF8 is needed",
            "createdb --template=template0 --encoding=UTF8 makes one that has it",
        )


def _wait_for_lock(guard: psycopg.Connection[dict[str, Any]], say: Callable[[str], None]) -> None:
    """The lock of the session: it ends with us, however we end."""
    row = guard.execute("SELECT pg_try_advisory_lock(%s) AS mine", [MIGRATION_LOCK]).fetchone()
    if row and not row["mine"]:
        say("another migration is running, waiting for it")
        guard.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])


def _prepare(guard: psycopg.Connection[dict[str, Any]]) -> None:
    """Makes the schema of tables, which holds the registers of what was applied as well."""
    known = guard.execute("SELECT to_regclass('osgprod_data.migrated_files') AS known").fetchone()
    if known and known["known"]:
        return
    with guard.transaction():
        guard.execute("CREATE SCHEMA IF NOT EXISTS osgprod_data")
        guard.execute(
            "CREATE TABLE osgprod_data.migrated_files (name text PRIMARY KEY, digest text NOT NULL)"
        )
        guard.execute(
            "COMMENT ON TABLE osgprod_data.migrated_files IS 'what the SQL files held when they were applied';"
            "COMMENT ON COLUMN osgprod_data.migrated_files.name IS 'migration file; functions = all of their files';"
            "COMMENT ON COLUMN osgprod_data.migrated_files.digest IS 'SHA-256 of what it held; for functions, MD5"
            " of what was deployed as well'"
        )


def _apply_migrations(
    guard: psycopg.Connection[dict[str, Any]],
    dsn: str,
    folder: Path,
    note: Callable[[str], None],
) -> None:
    migrations = yoyo.read_migrations(str(folder))
    _refuse_edited(guard, folder)
    with _Backend(parse_uri("postgresql+psycopg://"), "_yoyo_migration", dsn) as backend:
        backend.init_database()
        backend.break_lock()  # ours is the real lock; a row that a killed run left means nothing
        with backend.lock():
            for migration in backend.to_apply(migrations):
                backend.apply_one(migration)
                note(f"applied {migration.id}")


def _refuse_edited(guard: psycopg.Connection[dict[str, Any]], folder: Path) -> None:
    """yoyo knows a migration by its name alone; what it held when applied is remembered here."""
    known = dict(_migrated_files(guard))
    for path in sorted(folder.glob("[0-9]*.sql")):
        if path.name in known and known[path.name] != _digest([path]):
            raise DatabaseError(
                f"migration {path.name} was edited after it was applied",
                "put it back as it was and write a new migration",
            )


def _remember_files(guard: psycopg.Connection[dict[str, Any]], folder: Path) -> None:
    for path in sorted(folder.glob("[0-9]*.sql")):
        _remember(guard, path.name, _digest([path]))


def _remember(guard: psycopg.Connection[dict[str, Any]], name: str, digest: str) -> None:
    guard.execute(
        "INSERT INTO osgprod_data.migrated_files AS m VALUES (%s, %s) ON CONFLICT (name)"
        " DO UPDATE SET digest = excluded.digest WHERE m.digest <> excluded.digest",
        [name, digest],
    )


def _migrated_files(guard: psycopg.Connection[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for row in guard.execute("SELECT name, digest FROM osgprod_data.migrated_files").fetchall():
        yield row["name"], row["digest"]


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _deploy_functions(guard: psycopg.Connection[dict[str, Any]], folder: Path) -> bool:
    """Recreates schema osgprod, all or nothing, when its files or what is deployed have changed.

    The schema is dropped and made anew since CREATE OR REPLACE keeps what was taken out of a file, and a
    new parameter would leave the old function beside the new one, callable by PUBLIC.
    """
    paths = function_files(folder)
    wanted = _digest(paths)
    known = dict(_migrated_files(guard)).get("functions")
    if known == f"{wanted} {_deployed_digest(guard)}":
        return False
    with guard.transaction():
        guard.execute("SET LOCAL client_min_messages = warning")
        guard.execute("DROP SCHEMA IF EXISTS osgprod CASCADE")
        guard.execute("CREATE SCHEMA osgprod AUTHORIZATION osgprod_owner")
        guard.execute("SET LOCAL ROLE osgprod_owner")
        for path in paths:
            guard.execute(path.read_bytes())
        guard.execute("RESET ROLE")
        guard.execute("GRANT SELECT ON osgprod_data.migrated_files TO osgprod_operator")  # for osgprod doctor
        _remember(guard, "functions", f"{wanted} {_deployed_digest(guard)}")
    return True


def _deployed_digest(guard: psycopg.Connection[dict[str, Any]]) -> str:
    row = guard.execute(
        "SELECT md5(coalesce(string_agg(pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '')"
        " || coalesce(obj_description(p.oid, 'pg_proc'), ''), '' ORDER BY p.oid::regprocedure::text), ''))"
        " AS digest FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = 'osgprod'"
    ).fetchone()
    assert row is not None
    return str(row["digest"])
