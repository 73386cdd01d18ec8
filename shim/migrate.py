"""Brings a database up to date by yoyo: ``osgprod migrate``, and yoyo's own command with ``yoyo.ini``.

yoyo applies the files of sql/migrations in order and keeps the register of them, in schema osgprod_data. Here is what
yoyo leaves open: one lock that ends with its process, a migration and its entry in one transaction, and the refusals.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import psycopg
from psycopg.rows import tuple_row
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI, parse_uri
from yoyo.exceptions import BadMigration
from yoyo.migrations import (
    Migration,
    MigrationList,
    StepCollector,
    get_migration_hash,
    parse_metadata_from_sql_comments,
    read_sql_migration,
)
from yoyo.scripts.main import InvalidArgument

from shim.database import (
    CONNECT_TIMEOUT_S,
    MIGRATION_LOCK,
    SET_SESSION,
    DatabaseError,
    connect,
    dsn_from_environment,
)
from shim.snapshot import WORKING_COPY, deployed, render, snapshots, source_digest, source_of
from shim.version import SQL_FOLDER, names

OLDEST_SERVER = 130000
TRIES = 5  # of a migration that waited too long for a lock, or met a deadlock, under running jobs
LOCK_TIMEOUT_S = 10  # behind a migration that waits for a table, all jobs wait
LOCK_INTERVAL_S = 0.2  # between two tries to be the only migration

# Migrations that landed under one name and were renamed before 0.9.0: the name now, the digest of the file then, and
# what that file lacks of the present one.
RENAMED = {
    "0003-a-file-is-work-once": (
        "0003-once-and-due",
        "13d164e5",
        "SET LOCAL ROLE osgprod_owner;"
        " CREATE INDEX idle_slices_due ON osgprod_data.idle_slices (project_id, not_before);"
        " RESET ROLE",
    )
}

log = logging.getLogger("osgprod")
Say = Callable[[str], None]


class MigrationError(DatabaseError, InvalidArgument):  # type: ignore[misc]  # yoyo has no types
    """A refusal. yoyo's own command prints its InvalidArgument as one line."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.args = (f"{message}\nhint: {hint}",)
        self._message = message

    def __str__(self) -> str:
        return self._message


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's backend for an osgprod database; in ``yoyo.ini`` it has the scheme ``osgprod``.

    One migration runs at a time, also after a kill. A migration and its entry in the register are committed in
    one transaction, unless the file says that it is not transactional. A database that doesn't match the files is
    refused before anything changes, and the error names the migration.

    Parameters
    ----------
    uri, migration_table
        As yoyo gives them. The URI is ``osgprod:FOLDER``: it names no database, see dsn.
    dsn
        libpq's connection string; default: OSGPROD_DSN, or libpq's own variables.
    folder
        Holds ``migrations`` and ``functions``; default: the path in the URI.
    say
        Is called with one line for each thing that is worth knowing.
    """

    def __init__(
        self,
        uri: DatabaseURI,
        migration_table: str,
        dsn: str | None = None,
        folder: Path | None = None,
        say: Say = log.info,
    ) -> None:
        self._dsn = dsn_from_environment() if dsn is None else dsn
        self._folder, self._say = folder or Path(f"/{uri.database}"), say
        super().__init__(uri, migration_table)

    def connect(self, dburi: object) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="osgprod migrate",
        )
        try:
            with rights_named():
                _refuse_server(connection)
                _wait_for_lock(connection, self._say)
                connection.execute(SET_SESSION)
                connection.execute("SET client_min_messages = warning")  # not that a schema exists
                connection.execute("CREATE SCHEMA IF NOT EXISTS osgprod_data")
                connection.execute("SET client_min_messages = notice")
                connection.execute("SET search_path = osgprod_data")  # where yoyo's own tables are
        except BaseException:
            connection.close()
            raise
        connection.add_notice_handler(self._pass_on)
        return connection

    def _pass_on(self, notice: psycopg.errors.Diagnostic) -> None:
        # A RAISE of ours: other functions of PostgreSQL say that an index does not exist, for example.
        if notice.source_function == "exec_stmt_raise" and notice.message_primary:
            self._say(notice.message_primary)

    def copy(self) -> NoReturn:
        raise NotImplementedError("a second connection would wait for our own lock")

    @contextlib.contextmanager
    def lock(self, timeout: float = 10) -> Iterator[None]:
        self.break_lock()  # ours is the real lock; a row that a killed run left means nothing
        with super().lock(timeout):
            yield

    def _delete_lock_row(self, pid: int) -> None:
        if not self.connection.closed:  # a lost connection raises its own error; the next run deletes the row
            super()._delete_lock_row(pid)

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
        # yoyo commits the migration, then its entry: a kill between the two would leave tables that the next run makes
        # once more.
        self.ensure_internal_schema_updated()
        self.refuse()
        self._step(migration, "apply", force)

    def rollback_one(self, migration: Migration, force: bool = False) -> None:
        self.ensure_internal_schema_updated()
        self.refuse()
        self._step(migration, "rollback", force)

    def _step(self, migration: Migration, direction: str, force: bool) -> None:
        migration.load()
        for tries_left in reversed(range(TRIES)):
            try:
                if not migration.use_transactions:
                    self._run_statements(migration, direction)
                with rights_named(), self.transaction():
                    if migration.use_transactions:
                        self.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S} s'")
                        migration.process_steps(self, direction, force=force)
                    self.log_migration(migration, direction)
                    if direction == "apply":
                        self.mark_one(migration, log=False)
                    else:
                        self.unmark_one(migration, log=False)
                return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                if not tries_left:
                    raise MigrationError(
                        f"{migration.id} gets no lock: {error.diag.message_primary}",
                        "a long transaction holds a table (pg_stat_activity): end it, and run it again",
                    ) from error
                self._say(f"{migration.id} waits for a table that is in use, {tries_left} tries left")

    def _run_statements(self, migration: Migration, direction: str) -> None:
        """Runs the statements of a migration that is not transactional one by one, in transactions of their own.

        A killed run begins with the first one again, so they must bear to be repeated. They wait for others without an
        end: an index that is made concurrently keeps no job waiting while it waits itself.
        """
        path = Path(migration.path)
        _, _, statements = read_sql_migration(
            path if direction == "apply" else path.with_suffix(".rollback.sql")
        )
        try:
            with rights_named():
                self.connection.execute("SET lock_timeout = 0")
                for statement in statements:
                    self.connection.execute(statement.encode())
        finally:
            if not self.connection.closed:
                self.connection.execute("RESET ROLE")
                self.connection.execute("RESET lock_timeout")

    def log_migration(self, migration: Migration, operation: str) -> None:
        """Adds to yoyo's log, with the digest of the file: yoyo knows a migration by its name alone."""
        self.log_entry(migration.id, operation, file_digest(Path(migration.path)))

    def log_entry(self, migration_id: str, operation: str, digest: str) -> None:
        # Not yoyo's own host name and user: to find them out can take seconds, or fail in a container.
        self.execute(
            """INSERT INTO osgprod_data._yoyo_log
                      (id, migration_hash, migration_id, operation, username, hostname, comment, created_at_utc)
               VALUES (:key, :hash, :id, :operation, :user, :host, :comment, :now)""",
            {
                "key": str(uuid.uuid4()),
                "hash": get_migration_hash(migration_id),
                "id": migration_id,
                "operation": operation,
                "user": self.connection.info.user,
                "host": self.connection.info.host,
                "comment": f"sha256 {digest}",
                "now": datetime.now(UTC).replace(tzinfo=None),
            },
        )

    def refuse(self) -> None:
        """Refuses a database that the files don't match; adopts one of 0.9.0.

        Raises
        ------
        MigrationError
            The database has a migration that is unknown here, has another name here, or was edited since.
        """
        applied = applied_migrations(self.connection)
        if any(digest is None for digest in applied.values()):
            self._adopt_digests(applied)
            applied = applied_migrations(self.connection)
        for name in applied.keys() & RENAMED.keys():
            self._adopt_renamed(name, applied[name])
        refuse_other_files(applied_migrations(self.connection), self._folder / "migrations")

    def _adopt_digests(self, applied: dict[str, str | None]) -> None:
        """Takes the digests over from the register of version 0.9.0."""
        row = self.execute(
            "SELECT relkind::text FROM pg_class WHERE oid = to_regclass('osgprod_data.migrated_files')"
        ).fetchone()
        if row != ("r",):
            return
        with self.transaction():
            known = dict(self.execute("SELECT name, digest FROM osgprod_data.migrated_files").fetchall())
            for name in [name for name, digest in applied.items() if digest is None]:
                if f"{name}.sql" in known:
                    self.log_entry(name, "apply", known[f"{name}.sql"])

    def _adopt_renamed(self, name: str, digest: str | None) -> None:
        present, known, missing = RENAMED[name]
        if digest is None or not digest.startswith(known):
            return
        with self.transaction():
            self.execute(missing)
            self.execute(
                "UPDATE osgprod_data._yoyo_migration SET migration_id = :present, migration_hash = :hash"
                " WHERE migration_id = :former",
                {"present": present, "hash": get_migration_hash(present), "former": name},
            )
            self.log_entry(present, "apply", file_digest(self._folder / "migrations" / f"{present}.sql"))
        self._say(f"{name} is {present} now")


class Script(Migration):  # type: ignore[misc]
    """A migration whose file goes to the server as it is, in one message.

    yoyo itself splits the files of all migrations into statements, also of those that are applied: that takes a second
    of a processor, and longer with each snapshot.

    Parameters
    ----------
    path
        Its file; beside it the one of its rollback.
    before
        The migrations on which it can depend, by name.
    """

    def __init__(self, path: Path, before: dict[str, Script]) -> None:
        super().__init__(path.stem, str(path), source_dir=str(path.parent))
        self._before = dict(before)

    def load(self) -> None:
        if self.loaded:
            return
        path = Path(self.path)
        rollback = path.with_suffix(".rollback.sql")
        self.source = path.read_text()
        directives, _, _ = parse_metadata_from_sql_comments(self.source)
        self.use_transactions = directives.get("transactional", "true").lower() == "true"
        depends = set(directives.get("depends", "").split())
        if missing := depends - self._before.keys():
            raise BadMigration(f"{path.name} depends on {', '.join(missing)}, which is not before it")
        self._depends = {self._before[name] for name in depends}
        steps = StepCollector(self)
        steps.add_step(self.source, rollback.read_text() if rollback.exists() else None)
        self.steps = steps.create_steps(self.use_transactions)


def scripts(folder: Path) -> MigrationList:
    """Return the migrations of a folder, oldest first."""
    found: dict[str, Script] = {}
    for name in names(folder):
        found[name] = Script(folder / f"{name}.sql", found)
    return MigrationList(found.values())


def migrate(dsn: str | None = None, folder: Path = SQL_FOLDER, say: Say = log.info) -> list[str]:
    """Bring a database up to date: migrations, then the functions of the working copy where they differ from its own.

    A repeated call changes nothing. Of two calls at once, one waits for the other. The next call makes good what a
    killed one left.

    Parameters
    ----------
    dsn
        libpq's connection string; default: the environment's. Its user may CREATE in the database and create roles (or
        the three osgprod roles exist and it is a member of osgprod_owner).
    folder
        Holds ``migrations`` and ``functions``.
    say
        Is called with one line for each thing that is done.

    Returns
    -------
    list of str
        What was done, one line each; empty when nothing was to be done.

    Raises
    ------
    DatabaseError
        The server is too old, or behind a pooler; the encoding is not UTF8; the database is newer than these files, or
        has other ones; the user may not; objects of others depend on functions that change.
    psycopg.Error
        The server can't be reached, or refuses a statement.
    """
    done: list[str] = []

    def note(line: str) -> None:
        say(line)
        done.append(line)

    with Backend(parse_uri("osgprod:"), "_yoyo_migration", dsn, folder, say) as backend:
        backend.init_database()
        backend.ensure_internal_schema_updated()
        backend.refuse()
        with backend.lock():
            for migration in backend.to_apply(scripts(folder / "migrations")):
                backend.apply_one(migration)
                note(f"applied {migration.id}")
            if (line := _outdated_functions(backend.connection, folder)) is not None:
                with rights_named():
                    _deploy(backend.connection, folder)
                note(line)
    return done


def pending(dsn: str | None = None, folder: Path = SQL_FOLDER) -> list[str]:
    """Tell what migrate() would do, one line each; changes nothing.

    Parameters
    ----------
    dsn, folder
        As for migrate(); any user that may read the register, like an operator.

    Raises
    ------
    DatabaseError
        What migrate() would refuse.
    psycopg.Error
        The server can't be reached, or the register can't be read.
    """
    with connect(dsn) as connection:
        applied = applied_migrations(connection)
        waiting = [name for name in names(folder / "migrations") if name not in applied]
        renamed = [name for name in applied if name in RENAMED]
        if not renamed:
            refuse_other_files(applied, folder / "migrations")
        functions = [] if waiting else [_outdated_functions(connection, folder)]
    return [f"apply {name}" for name in waiting if name not in renamed] + [line for line in functions if line]


def applied_migrations(connection: psycopg.Connection[Any]) -> dict[str, str | None]:
    """Return the migrations of a database with the digests of their files as they were applied, if known."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute("SELECT to_regclass('osgprod_data._yoyo_migration')").fetchone() == (None,):
            return {}
        rows = cursor.execute(
            "SELECT m.migration_id, (SELECT substr(l.comment, 8) FROM osgprod_data._yoyo_log l"
            "  WHERE l.migration_id = m.migration_id AND l.comment LIKE 'sha256 %'"
            "  ORDER BY l.created_at_utc DESC LIMIT 1)"
            " FROM osgprod_data._yoyo_migration m ORDER BY 1"
        ).fetchall()
    return dict(rows)


def file_digest(path: Path) -> str:
    """Return SHA-256 of a migration's name and text, as hexadecimal digits."""
    return hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes() + b"\0").hexdigest()


# Snapshots that were also applied with another text of a few lines. The next snapshot replaces both.
OTHER_TEXTS = {
    "0029-functions": "9571674f2ed4182c1a28231e6be7f1e5bc22876622f618deb7bb35378dc1f6a1",
    "0037-functions": "744e1a03c5c5189bdd0bbc4c629b2e7800ec65674e6a9c019f95e09d3df09767",
    "0053-functions": "7ec450d72b786220ed4eb2e9b588e3b6b3367ad2ded9dc234ecf52d524c2d875",
    "0058-functions": "e1fdb8d11bb1ff2b9e0e1a19b9195aed1d228c7aa70cda6fe495d27bf6172628",
}


def refuse_other_files(applied: dict[str, str | None], migrations: Path) -> None:
    """Refuse a database whose migrations are not those of the files.

    Raises
    ------
    MigrationError
        With the name of the migration and what to do.
    """
    ours = names(migrations)
    for name in applied:
        namesake = [other for other in ours if other[:4] == name[:4] and other not in applied]
        if name not in ours and namesake:
            raise MigrationError(
                f"migration {name} of the database has another name here: {namesake[0]}",
                "a migration is never renamed: give the file its name back, or use the checkout that applied it",
            )
    if unknown := sorted(applied.keys() - set(ours)):
        raise MigrationError(
            f"this checkout is older than the database, which has migration {unknown[-1]}",
            "update this checkout; nothing was changed",
        )
    for name, digest in applied.items():
        known = (None, file_digest(migrations / f"{name}.sql"), OTHER_TEXTS.get(name))
        if digest not in known:
            raise MigrationError(
                f"migration {name}.sql was edited after it was applied",
                "put it back as it was and write a new migration; a database from before version 0.9.0 can't be"
                " upgraded: keep using the checkout that made it, and install this one with a new database",
            )


def _outdated_functions(connection: psycopg.Connection[Any], folder: Path) -> str | None:
    """What has to be done about the functions; None = they are as they should be."""
    wanted = source_digest(folder / "functions")
    name, source, as_deployed = deployed(connection)
    if source == wanted and as_deployed:
        return None
    if source == wanted:
        return f"functions of {name} renewed: somebody had changed them"
    released = _released(folder)
    return f"functions of {released.stem} renewed" if released else f"functions of {WORKING_COPY}"


def _released(folder: Path) -> Path | None:
    """The newest snapshot, if sql/functions is not newer."""
    made = snapshots(folder / "migrations")
    return made[-1] if made and source_of(made[-1])[1] == source_digest(folder / "functions") else None


def _deploy(connection: psycopg.Connection[Any], folder: Path) -> None:
    snapshot = _released(folder)
    script = snapshot.read_text() if snapshot else render(connection, folder / "functions", WORKING_COPY)
    with connection.transaction():
        connection.execute(script.encode())


@contextlib.contextmanager
def rights_named() -> Iterator[None]:
    """Make refusals of PostgreSQL that a person can put right one line and a hint."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            error.diag.message_primary or "permission denied",
            error.diag.message_hint
            or "migrate as a superuser, or as who owns the database, has CREATEROLE, and made the roles osgprod_..."
            " if another database of this server has them already",
        ) from error
    except psycopg.errors.DependentObjectsStillExist as error:
        if not re.match("objects that are not ours", error.diag.message_primary or ""):
            raise
        raise MigrationError(error.diag.message_primary or "", error.diag.message_hint or "") from error


def _refuse_server(connection: psycopg.Connection[Any]) -> None:
    if connection.info.server_version < OLDEST_SERVER:
        version = connection.info.server_version // 10000
        raise MigrationError(
            f"the server is PostgreSQL {version}, 13 or later is needed", "upgrade the server"
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":  # initdb in a bare environment makes SQL_ASCII, whose texts come as bytes
        raise MigrationError(
            f"database {connection.info.dbname} has the encoding {encoding}, UTF8 is needed",
            "createdb --template=template0 --encoding=UTF8 makes one that has it",
        )
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    if row != (connection.info.backend_pid,):
        raise MigrationError(
            "this connection goes through a connection pooler, like PgBouncer, where a lock of the session is not ours",
            "name the server itself: host and port in OSGPROD_DSN, or PGHOST and PGPORT",
        )


def _wait_for_lock(connection: psycopg.Connection[Any], say: Say) -> None:
    """Take the lock of the session, which ends with us, however we end.

    It is tried again and again: a statement that waits has a snapshot, and an index that the other run builds
    concurrently waits for all snapshots. PostgreSQL would end one of the two runs.
    """
    is_announced = False
    while connection.execute("SELECT pg_try_advisory_lock(%s)", [MIGRATION_LOCK]).fetchone() == (False,):
        if not is_announced:
            say("another migration is running, waiting for it")
            is_announced = True
        time.sleep(LOCK_INTERVAL_S)
