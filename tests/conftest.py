"""One PostgreSQL for the whole run, a migrated template database, and a clone of it for each test."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from pytest_postgresql import factories

from shim.database import call, connect
from shim.local.embedded import NOT_DURABLE, SUPERUSER, Server, memory_or_temporary
from shim.migrate import migrate
from tests.support import LiveShim, World

# Started with & by a script, we and all programs that the tests start would not hear Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What drives a browser is installed by make test-browser alone.
collect_ignore = [] if importlib.util.find_spec("playwright") else ["browser"]


@pytest.fixture(scope="session")
def our_server() -> Iterator[SimpleNamespace]:
    folder = Path(tempfile.mkdtemp(prefix="osgprod-test-", dir=memory_or_temporary()))
    server = Server(folder, {**NOT_DURABLE, "max_connections": "200"})
    server.start()
    yield SimpleNamespace(
        host=server.dsn.split()[0].removeprefix("host="),
        port=5432,
        user=SUPERUSER,
        password="",
        options="",
        maintenance_dbname="postgres",
        template_dbname=None,
        server=server,
    )
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def load_schema(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    migrate(f"host={host} port={port} user={user} dbname={dbname}", say=lambda line: None)


template = factories.postgresql_noproc(dbname="osgprod", load=[load_schema], depends_on="our_server")
postgresql = factories.postgresql("template")


@pytest.fixture
def dsn(postgresql: psycopg.Connection[Any]) -> str:
    info = postgresql.info
    return f"host={info.host} port={info.port} user={info.user} dbname={info.dbname}"


@pytest.fixture
def db(dsn: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """A connection as the superuser; at the end everything is recounted, whatever the test did."""
    deep = request.node.get_closest_marker("history_by_hand") is None
    with connect(dsn) as connection:
        yield connection
    with connect(dsn) as connection:
        for row in call(connection, "progress"):
            found = call(connection, "verify", project=row["project"], deep=deep)
            # What a job said of its events may contradict the index; the tables may not contradict each other.
            assert [fault for fault in found if not fault["fault"].startswith("done, but ")] == []


@pytest.fixture
def world(db: psycopg.Connection[dict[str, Any]], dsn: str) -> World:
    """The project "p" with the magic "m", no files, and short ways to ask and report as a job."""
    return World(db, dsn).with_project("p")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the shim wait for a connection no longer than it takes to see that there is none."""
    monkeypatch.setattr("shim.database.CONNECTION_WAIT_S", 0.5)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's and everybody's jobs can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="osgprod-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def shim(world: World, folder: Path) -> Iterator[LiveShim]:
    """The shim on real HTTP, with the work script of this repository for project "p"."""
    with LiveShim(world.dsn, folder / "www") as live:
        live.add_template("p")
        yield live
