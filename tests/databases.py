"""Databases for tests: copies of prepared ones, which cost a fraction of a migration, and are used again."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row, tuple_row

from shim.database import SESSION, connect
from tests.support import PATIENCE_S, World

MAX_USES = 100  # of one copy: deleted rows stay in its files
MAX_BYTES = 4 << 20  # of the files of its tables
OF_SESSION = (*SESSION, "osgprod.person")  # what connect() sets


class Databases:
    """Makes databases on one server.

    Parameters
    ----------
    dsn
        Of a superuser of the server.
    migrated
        Name of the migrated database on it.
    """

    def __init__(self, dsn: str, migrated: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self._numbers = itertools.count(1)
        self._prepared = {"migrated": migrated}
        self._unused: list[str] = []
        self._free: dict[str, list[Copy]] = {}
        self._lent: dict[str, Copy] = {}

    def close(self) -> None:
        for copy in (*itertools.chain(*self._free.values()), *self._lent.values()):
            copy.close()
        if self._connection:
            self._connection.close()

    def dsn(self, name: str) -> str:
        return psycopg.conninfo.make_conninfo(self._dsn, dbname=name)

    @contextlib.contextmanager
    def copy(self, of: str, fresh: bool = False) -> Iterator[str]:
        """A copy of a prepared database, for the time of the block; gives its DSN.

        A copy is used again by the next test when it can be made equal to the prepared database, see Copy.

        Parameters
        ----------
        of
            migrated, world (migrated, with the project "p"), or a prepared database.
        fresh
            Nobody has used the files of this copy before, and no session of the tests is in it.
        """
        if fresh:
            with self._new(self._template(of)) as dsn:
                yield dsn
            return
        copy = self._restored(of) or Copy(self.dsn(self._create(self._template(of))))
        self._lent[copy.dsn] = copy
        try:
            yield copy.dsn
        finally:
            del self._lent[copy.dsn]
            self._free.setdefault(of, []).append(copy)

    def prepare(self, name: str, make: Callable[[str], object], of: str | None = None) -> None:
        """Prepares a database that tests copy, unless it is there already.

        Parameters
        ----------
        name
            For copy().
        make
            Is called with the DSN of a database, and fills it.
        of
            The prepared database that it is a copy of; None: it is empty.
        """
        if name not in self._prepared:
            prepared = self._create(self._template(of) if of else "TEMPLATE template0")
            make(self.dsn(prepared))
            self._prepared[name] = prepared

    @contextlib.contextmanager
    def session(self, dsn: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """A connection as the superuser; in a copy that is used again, its session is, with the plans that it has."""
        if dsn in self._lent:
            yield self._lent[dsn].session()
        else:
            with connect(dsn) as connection:
                yield connection

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        """A database with nothing in it, for the time of the block; gives its DSN."""
        with self._new("TEMPLATE template0") as dsn:
            yield dsn

    def _restored(self, of: str) -> Copy | None:
        """A copy that was used before and is as it was made."""
        while free := self._free.get(of):
            copy = free.pop()
            if copy.restore():
                return copy
            copy.close()
            self._unused.append(copy.name)
        return None

    @contextlib.contextmanager
    def _new(self, how: str) -> Iterator[str]:
        name = self._create(how)
        try:
            yield self.dsn(name)
        finally:
            # Dropped later: PostgreSQL would sleep 0.1 s for each session that has not quite ended yet.
            self._unused.append(name)

    def _create(self, how: str) -> str:
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} {how}")
        while self._unused:
            self._execute(f"DROP DATABASE IF EXISTS {self._unused.pop()} WITH (FORCE)")
        return name

    def _template(self, of: str) -> str:
        """To copy files costs a quarter of writing all pages to the WAL; versions up to 14 always copy files."""
        if of == "world" and of not in self._prepared:
            self._prepared[of] = self._create(f"TEMPLATE {self._prepared['migrated']}")
            with connect(self.dsn(self._prepared[of])) as db:
                World(db, self.dsn(self._prepared[of])).with_project("p")
        self._execute("SELECT")
        assert self._connection
        strategy = "STRATEGY FILE_COPY" if self._connection.info.server_version >= 150000 else ""
        return f"TEMPLATE {self._prepared[of]} {strategy}"

    def _execute(self, statement: str) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="tests")
        try:
            self._connection.execute(statement.encode())
        except psycopg.OperationalError:  # a test has restarted the server
            self._connection.close()
            self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="tests")
            self._connection.execute(statement.encode())


@dataclass
class Relation:
    """A table or sequence as it was when the copy was made."""

    name: str
    is_data: bool  # whose rows can be put back
    count: int = 0
    value: str = ""  # of a sequence
    rows: list[bytes] = field(default_factory=list)


class Copy:
    """A copy of a prepared database, and a session in it for the tests that stays, with its plans.

    After a test it is restored: other sessions are ended, the tests' one is reset, and the rows of tables and the
    values of sequences are put back. Another session does that, which stays as well: it sets
    session_replication_role, and a session that sets it loses its plans. A row that is newer than the last time the
    copy was restored has a newer xmin, and where a row is gone the count differs. The same is asked of each system
    catalog, with what the database has in the shared ones: after any other change (DDL, grants, settings of the
    database, large objects, ANALYZE) the copy is not used again.

    Parameters
    ----------
    dsn
        Of the copy, with nobody else in it.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._restorer: psycopg.Connection[Any] | None = None
        self._settings: dict[str, Any] = {}
        self._uses = 0
        with self._cursor() as cursor:
            self._relations = relations(cursor)
            self._ask = comparison(self._relations)
            for relation, (count, _, value) in zip(self._relations, self._compare(cursor, "3"), strict=True):
                relation.count, relation.value = count, value
                if relation.is_data and count and not value:
                    with cursor.copy(f"COPY {relation.name} TO STDOUT".encode()) as rows:
                        relation.rows = [bytes(row) for row in rows]
            self._since = snapshot(cursor)

    def close(self) -> None:
        for connection in (self._connection, self._restorer):
            if connection:
                connection.close()
        self._connection = self._restorer = None

    def session(self) -> psycopg.Connection[dict[str, Any]]:
        """The session of the copy as a new one would be, but for its plans."""
        if self._connection is not None and not self._connection.closed:
            try:
                self._reset(self._connection)
                return self._connection
            except psycopg.OperationalError:  # a test has ended it, or restarted the server
                pass
            self._connection.close()
        self._connection = connect(self.dsn)
        settings = [f"current_setting('{name}') AS \"{name}\"" for name in OF_SESSION]
        self._settings = self._connection.execute(f"SELECT {', '.join(settings)}".encode()).fetchall()[0]
        return self._connection

    def restore(self) -> bool:
        """Makes it equal to the prepared database; False when it can't be."""
        self._uses += 1
        if self._uses >= MAX_USES:
            return False
        try:
            kept = self.session().info.backend_pid
            with self._cursor() as cursor:
                end_other_sessions(cursor, kept)
                changed = []
                for relation, found in zip(self._relations, self._compare(cursor, self._since), strict=True):
                    if found != (relation.count, 0, relation.value):
                        changed.append(relation)
                if not all(relation.is_data for relation in changed):
                    return False
                if changed and size(cursor) > MAX_BYTES:
                    return False
                put_back(cursor, changed)
                self._since = snapshot(cursor)
                return True
        except psycopg.Error:  # like a database that is renamed, or lets nobody in
            return False

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[psycopg.Cursor[Any]]:
        """One of the session that restores."""
        if self._restorer is not None:
            try:
                self._restorer.execute("SELECT")
            except psycopg.OperationalError:  # a test has ended it, or restarted the server
                self._restorer.close()
        if self._restorer is None or self._restorer.closed:
            self._restorer = connect(self.dsn)
            # No trigger and no foreign key acts.
            self._restorer.execute("SET session_replication_role = replica; SET application_name = 'tests'")
        with self._restorer.cursor(row_factory=tuple_row) as cursor:
            yield cursor

    def _compare(self, cursor: psycopg.Cursor[Any], since: str) -> list[tuple[Any, ...]]:
        """Of each relation: how many rows, how many of them are newer, the value of a sequence."""
        return cursor.execute(self._ask, {"since": since}, prepare=True).fetchall()

    def _reset(self, connection: psycopg.Connection[Any]) -> None:
        """DISCARD ALL, but for the plans."""
        connection.rollback()
        connection.autocommit = True
        connection.row_factory = dict_row
        connection.execute(
            "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *;"
            " SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
        )
        settings = [f"set_config('{name}', %({name})s, false)" for name in OF_SESSION]
        connection.execute(f"SELECT {', '.join(settings)}".encode(), self._settings)


def relations(cursor: psycopg.Cursor[Any]) -> list[Relation]:
    """All tables and sequences of a database, and those of the shared catalogs that know databases."""
    rows = cursor.execute("""
        SELECT c.oid::regclass::text, c.relnamespace <> 'pg_catalog'::regnamespace, c.relkind = 'S'
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence <> 't' AND NOT c.relisshared
           AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema'
         ORDER BY c.oid""").fetchall()
    of_database = "SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()"
    shared = {
        "pg_database": "datname = current_database()",
        "pg_db_role_setting": f"setdatabase = ({of_database})",
        "pg_shdescription": f"objoid = ({of_database})",
    }
    return [Relation(f"{name} WHERE {rule}", False) for name, rule in shared.items()] + [
        Relation(name, is_data, value="?" if is_sequence else "") for name, is_data, is_sequence in rows
    ]


def comparison(relations: list[Relation]) -> bytes:
    """One statement that has a row for each relation, in this order."""
    parts = []
    for place, relation in enumerate(relations):
        name, newer, value = relation.name, "count(*) FILTER (WHERE age(xmin) <= age(%(since)s::xid))", "''"
        if name == "pg_class":  # VACUUM changes these in place
            value = "concat_ws(' ', sum(relpages), sum(reltuples))"
        if name == "pg_namespace":  # of temporary tables
            name += " WHERE nspname !~ '^pg_(toast_)?temp_'"
        if relation.value:
            newer, value = "0", "max(concat_ws(' ', last_value, is_called))"
        parts.append(
            f"SELECT {place} AS place, count(*) AS n, {newer} AS newer, {value} AS value FROM {name}"
        )
    united = " UNION ALL ".join(parts)
    return f"SELECT n, newer, value FROM ({united}) x ORDER BY place".encode()


def snapshot(cursor: psycopg.Cursor[Any]) -> str:
    """The number that the next transaction will have, or a later one."""
    row = cursor.execute(
        "SELECT (txid_snapshot_xmax(txid_current_snapshot()) %% 4294967296)::text", ()
    ).fetchone()
    assert row
    return str(row[0])


def end_other_sessions(cursor: psycopg.Cursor[Any], kept: int) -> None:
    """Ends all sessions in the database but for this one and the one whose process is kept."""
    end = time.monotonic() + PATIENCE_S
    while cursor.execute(
        """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)""",
        [kept],
    ).fetchall():
        assert time.monotonic() < end, "a session in a test's database does not end"
        time.sleep(0.002)


def size(cursor: psycopg.Cursor[Any]) -> int:
    row = cursor.execute("""
        SELECT sum(pg_relation_size(c.oid)) FROM pg_class c
         WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace('osgprod_data')""").fetchone()
    assert row
    return int(row[0] or 0)


def put_back(cursor: psycopg.Cursor[Any], changed: list[Relation]) -> None:
    """Gives tables and sequences their first rows and values; no trigger and no foreign key has a say, see Copy."""
    with cursor.connection.transaction():
        for relation in changed:
            if relation.value:
                value, is_called = relation.value.split()
                cursor.execute("SELECT setval(%s, %s, %s)", [relation.name, int(value), is_called == "t"])
                continue
            cursor.execute(f"DELETE FROM {relation.name}".encode())
            if relation.rows:
                with cursor.copy(f"COPY {relation.name} FROM STDIN".encode()) as rows:
                    for row in relation.rows:
                        rows.write(row)
    cursor.execute("SELECT pg_stat_reset()")
