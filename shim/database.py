"""Where the database is: connections, calls of its functions, and the shim's pool.

No rule is here. What the database can do is in sql/functions, what it holds in sql/migrations; shim/migrate.py brings
both there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool

from shim.config import Settings
from shim.errors import OperatorError

CONNECT_TIMEOUT_S = 5
CONNECTION_WAIT_S = 5.0  # that a call of the shim waits for a connection
LOCK_TIMEOUT_S = 2  # of the shim's calls; less than that


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
