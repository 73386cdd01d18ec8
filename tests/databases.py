"""Databases for tests: copies of prepared ones, which cost a fraction of a migration."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from shim.database import connect
from shim.migrate import migrate
from tests.support import World


def migrated(dsn: str) -> None:
    migrate(dsn, say=lambda line: None)


def with_world(dsn: str) -> None:
    migrated(dsn)
    with connect(dsn) as db:
        World(db, dsn).with_project("p")


class Databases:
    """Makes databases on one server.

    Parameters
    ----------
    dsn
        Of a superuser of the server.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self._numbers = itertools.count(1)
        self._prepared: dict[str, str] = {}
        self._unused: list[str] = []
        self._makers: dict[str, Callable[[str], None]] = {"migrated": migrated, "world": with_world}

    def close(self) -> None:
        if self._connection:
            self._connection.close()

    def dsn(self, name: str) -> str:
        return psycopg.conninfo.make_conninfo(self._dsn, dbname=name)

    @contextlib.contextmanager
    def copy(self, of: str, prepare: Callable[[str], None] | None = None) -> Iterator[str]:
        """A copy of a prepared database, for the time of the block; gives its DSN.

        Parameters
        ----------
        of
            What the prepared database is called: migrated, world (migrated, with the project "p"), or any other name.
        prepare
            Fills the prepared database when it is copied for the first time, given its DSN.
        """
        if of not in self._prepared:
            name = f"prepared_{next(self._numbers)}"
            self._execute(f"CREATE DATABASE {name} TEMPLATE template0")
            (prepare or self._makers[of])(self.dsn(name))
            self._prepared[of] = name
        with self._new(f"TEMPLATE {self._prepared[of]} {self._strategy()}") as dsn:
            yield dsn

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        """A database with nothing in it, for the time of the block; gives its DSN."""
        with self._new("TEMPLATE template0") as dsn:
            yield dsn

    @contextlib.contextmanager
    def _new(self, how: str) -> Iterator[str]:
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} {how}")
        while self._unused:
            self._execute(f"DROP DATABASE {self._unused.pop()} WITH (FORCE)")
        try:
            yield self.dsn(name)
        finally:
            # Dropped later: PostgreSQL would sleep 0.1 s for each session that has not quite ended yet.
            self._unused.append(name)

    def _strategy(self) -> str:
        """To copy files costs a quarter of writing all pages to the WAL; until version 14 there is no other way."""
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
