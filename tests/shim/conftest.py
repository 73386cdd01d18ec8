"""Databases and SQL folders to migrate."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shim.database import connect
from shim.version import SQL_FOLDER


@pytest.fixture
def empty(our_server: SimpleNamespace) -> Iterator[str]:
    """The DSN of a new database with nothing in it."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    server = f"host={our_server.host} port={our_server.port} user={our_server.user}"
    with connect(f"{server} dbname=postgres") as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{server} dbname={name}"
    with connect(f"{server} dbname=postgres") as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sql(folder: Path) -> Path:
    """A copy of the SQL folder, to be changed."""
    shutil.copytree(SQL_FOLDER, folder / "sql")
    return folder / "sql"


@pytest.fixture
def another(our_server: SimpleNamespace, empty: str) -> Iterator[str]:
    """The DSN of a second new database."""
    name = f"another_{uuid.uuid4().hex[:12]}"
    with connect(empty) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield empty.rpartition("dbname=")[0] + f"dbname={name}"
    with connect(empty) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
