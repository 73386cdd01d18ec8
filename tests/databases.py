"""Databases for tests: copies of prepared ones, which cost a fraction of a migration."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import psycopg

from shim.database import connect
from tests.support import World


class Databases:
    """Makes databases on one server.

    Parameters
    ----------
    dsn
        Of a superuser of the server.
    migrated
        Name of the migrated database on it, which pytest-postgresql has made. It would copy it through the WAL, and
        drop the copy at once; each test has one, so we do both more cheaply.
    """

    def __init__(self, dsn: str, migrated: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self._numbers = itertools.count(1)
        self._prepared = {"migrated": migrated}
        self._unused: list[str] = []

    def close(self) -> None:
        if self._connection:
            self._connection.close()

    def dsn(self, name: str) -> str:
        return psycopg.conninfo.make_conninfo(self._dsn, dbname=name)

    @contextlib.contextmanager
    def copy(self, of: str) -> Iterator[str]:
        """A copy of a prepared database, for the time of the block; gives its DSN.

        Parameters
        ----------
        of
            migrated, or world (migrated, with the project "p").
        """
        if of not in self._prepared:
            self._prepared[of] = self._create(f"TEMPLATE {self._prepared['migrated']}")
            with connect(self.dsn(self._prepared[of])) as db:
                World(db, self.dsn(self._prepared[of])).with_project("p")
        with self._new(f"TEMPLATE {self._prepared[of]} {self._strategy()}") as dsn:
            yield dsn

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        """A database with nothing in it, for the time of the block; gives its DSN."""
        with self._new("TEMPLATE template0") as dsn:
            yield dsn

    @contextlib.contextmanager
    def _new(self, how: str) -> Iterator[str]:
        name = self._create(how)
        while self._unused:
            self._execute(f"DROP DATABASE {self._unused.pop()} WITH (FORCE)")
        try:
            yield self.dsn(name)
        finally:
            # Dropped later: PostgreSQL would sleep 0.1 s for each session that has not quite ended yet.
            self._unused.append(name)

    def _create(self, how: str) -> str:
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} {how}")
        return name

    def _strategy(self) -> str:
        """To copy files costs a quarter of writing all pages to the WAL; until version 14 there is no other way."""
        self._execute("SELECT")
        assert self._connection
        return "STRATEGY FILE_COPY" if self._connection.info.server_version >= 150000 else ""

    def _execute(self, statement: str) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="tests")
        try:
            self._connection.execute(statement.encode())
        except psycopg.OperationalError:  # a test has restarted the server
            self._connection.close()
            self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="tests")
            self._connection.execute(statement.encode())
