"""Where the database is: connections, calls of its functions, and the shim's pool.

No rule is here. What the database can do is in sql/functions, what it holds in sql/migrations; shim/migrate.py brings
both there.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader

from shim.config import Settings
from shim.errors import OperatorError
from shim.version import which_is_older

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

# Else Python prints what the driver warns of beside the one line of a command that failed.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

CONNECT_TIMEOUT_S = 5
HOST_TIMEOUT_S = 2  # of the shim for each host that the DSN names, unless the DSN has a connect_timeout
# The pool waits twice as long after each failed attempt, up to this; then the next call that waits tries again at once.
RECONNECT_S = 2.0
CALL_TIMEOUT_S = 10.0  # after which the shim ends a connection whose server is silent
# For a network that is silent, in libpq's names: the kernel gives up on data that nobody acknowledges, and probes an
# idle connection after 10 s, three times, 5 s apart.
SILENCE = {"tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
PROBES, PROBE_S = 5, 3.0  # of a pooler: how often its sessions are compared, and for how long at most
CONNECTION_WAIT_S = 5.0  # that a call of the shim waits for a connection
LOCK_TIMEOUT_S = 2  # of the shim's calls; less than CALL_TIMEOUT_S
# Any number that no other program locks. It has the form of the jobs' locks (docs/design.md). No job uses
# it: such a job would have process number 1936158834.
MIGRATION_LOCK = 0x6F73677072
# What a call may meet while osgprod migrate changes the functions and tables that it uses: names or types that are not
# there or have another form (class 42), an old plan (0A000), no schema (3F000), an object that is gone (XX000).
# 42501, a missing right, is none of it.
OF_A_CHANGED_SCHEMA = ("42", "0A000", "3F000", "XX000")


# Of each session: a database, a login or PGDATESTYLE may have others. The driver reads texts and times in this form;
# the functions are written for these quotes and arrays; a time is shown in UTC, wherever the server stands; and what is
# read under a lock must be as it is then, so the functions refuse other isolation levels.
SESSION = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "array_nulls": "on",
    "default_transaction_isolation": "read committed",
}
# Nor does such a setting end a session that works: the shim has its own bounds, and some commands take long, or wait
# for storage between two rows. Older servers lack some of these.
_WITHOUT_TIMEOUTS = (
    "SELECT set_config(name, '0', false) FROM unnest('{statement_timeout, transaction_timeout,"
    " idle_in_transaction_session_timeout, idle_session_timeout}'::text[]) AS name"
    " WHERE current_setting(name, true) IS NOT NULL"
)
SET_SESSION = "; ".join(
    (*(f"SET {name} = '{value}'" for name, value in SESSION.items()), _WITHOUT_TIMEOUTS)
).encode()


class Rows(list[dict[str, Any]]):
    """Rows with the names of their columns, which are known also where there is no row.

    Parameters
    ----------
    rows : iterable of dict
        All with these names.
    columns : sequence of str
        The names.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
        super().__init__(rows)
        self.columns = columns


class DatabaseError(OperatorError):
    """Something about the database that its administrator can put right."""


def dsn_from_environment() -> str:
    """Returns OSGPROD_DSN; empty when it is not set: libpq's own variables (PGHOST ...) hold then."""
    return Settings.read().dsn.text


def connect(dsn: str | None = None, timeout_s: int = CONNECT_TIMEOUT_S) -> psycopg.Connection[dict[str, Any]]:
    """Opens one connection, in autocommit, whose rows are dictionaries.

    Parameters
    ----------
    dsn : str | None
        Libpq's connection string; None = the environment's.
    timeout_s : int
        For each host that it names [s].

    Raises
    ------
    psycopg.OperationalError
        The server can't be reached.
    """
    silence: dict[str, Any] = SILENCE
    connection = psycopg.connect(
        dsn_from_environment() if dsn is None else dsn,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=timeout_s,
        application_name="osgprod",
        **silence,
    )
    connection.execute(SET_SESSION)
    connection.execute(
        "SELECT set_config('osgprod.person', %s, false)", [_person()]
    )  # for the log of operations
    return connection


def _person() -> str:
    """Who runs this program, as far as the operating system knows."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a number without a name, as in a container
        return f"{os.getuid()}@{socket.gethostname()}"


def call(connection: psycopg.Connection[dict[str, Any]], function: str, **arguments: object) -> Rows:
    """Calls one function of schema osgprod, in a separate transaction unless one is open, and returns its rows.

    Parameters
    ----------
    function : str
        Its name without the schema.
    arguments
        Its arguments without the p_; those left out keep the function's defaults.

    Raises
    ------
    psycopg.Error
        With the function's own code, message and hint.
    """
    query, values = statement(function, arguments)
    cursor = connection.execute(query, values)
    return Rows(cursor.fetchall(), [column.name for column in cursor.description or ()])


def statement(function: str, arguments: Mapping[str, object]) -> tuple[bytes, dict[str, object]]:
    """Returns the statement that calls one function of schema osgprod by named arguments, and its values.

    Parameters
    ----------
    function, arguments
        See call().
    """
    # An int goes as text of no type, so that the function's own type decides and names what doesn't fit.
    values = {k: str(v) if type(v) is int else v for k, v in arguments.items()}
    return _call_by_name(function, tuple(arguments)), values


@cache  # this program has few distinct calls; composing one takes as long as the driver's part
def _call_by_name(function: str, names: tuple[str, ...]) -> bytes:
    named = [sql.SQL("{} => {}").format(sql.Identifier(f"p_{name}"), sql.Placeholder(name)) for name in names]
    query = sql.SQL("SELECT * FROM {}({})").format(
        sql.Identifier("osgprod", function), sql.SQL(", ").join(named)
    )
    return query.as_bytes()


@cache
def batch_statement(function: str) -> bytes:
    """Return the statement that calls a function of schema osgprod with a list of calls, its only value, as $1.

    Each row has a column "function" with the function's name: an answer that a pooler has confused with another has
    the other's name.

    Parameters
    ----------
    function : str
        Its name without the schema.
    """
    query = sql.SQL("SELECT {} AS function, * FROM {}(p_calls => $1)").format(
        sql.Literal(function), sql.Identifier("osgprod", function)
    )
    return query.as_bytes()


@contextlib.contextmanager
def hang_up_after(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """End the connection when the block takes longer; what waits on it then raises psycopg.OperationalError.

    To cancel the call instead would wait for the answer of a server that is silent.

    Parameters
    ----------
    connection
        Which one.
    seconds
        How long the block may take [s].
    """
    timer = asyncio.get_running_loop().call_later(seconds, _shut_down, connection)
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(connection: psycopg.AsyncConnection[Any]) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as twin,
    ):
        twin.shutdown(socket.SHUT_RDWR)


POOLER_HINT = (
    "name the server itself in OSGPROD_DSN, since the shim has its own pool;"
    " or use PgBouncer with pool_mode = session"
)


class PoolerError(DatabaseError):
    """The connection goes through a pooler that gives each transaction another session."""

    def __init__(self) -> None:
        super().__init__(
            "OSGPROD_DSN leads to a connection pooler in transaction mode, like PgBouncer", POOLER_HINT
        )


async def pooling(dsn: str) -> str:
    """Tell what kind of connection pooler a DSN leads to.

    Parameters
    ----------
    dsn : str
        libpq's connection string.

    Returns
    -------
    str
        '' = the server itself; 'session' = a pooler that leaves a connection its session; 'transaction' = one that
        does not: what a session remembers, like prepared statements and lock_timeout, is mixed up with that of others.

    Raises
    ------
    psycopg.OperationalError
        The server can't be reached.
    """
    async with await connect_apart(dsn, "osgprod probe") as one:
        if await _session_of(one) == one.info.backend_pid:
            return ""
        try:
            async with await connect_apart(dsn, "osgprod probe") as two:
                # Two connections that are open at the same time have a session each. A pooler in transaction mode gives
                # both the session that is free; where others take it in between, the sessions of one connection differ.
                with hang_up_after(two, PROBE_S):
                    pairs = [(await _session_of(one), await _session_of(two)) for _ in range(PROBES)]
        except psycopg.OperationalError:  # it waits for a free session: it would leave it to us
            return "session"
        ones, twos = ({pair[n] for pair in pairs} for n in (0, 1))
        return "session" if len(ones) == len(twos) == 1 and ones != twos else "transaction"


async def _session_of(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()", prepare=False)).fetchone()
    assert row
    return int(row[0])


class SchemaChanged(Exception):
    """A call failed since osgprod migrate changes the database, or has changed it since the connection was opened."""


class ShimConnection(psycopg.AsyncConnection[Any]):
    """A connection of the shim's pool.

    It knows which functions it found, and whether its last commit is in doubt. Its batches share a cursor: to make one
    for each, and to look for placeholders, takes a quarter of the driver's time.
    """

    functions_found = ""
    is_in_doubt = False
    batches: psycopg.AsyncRawCursor[dict[str, Any]]


def _note_doubt(connection: ShimConnection, notice: psycopg.errors.Diagnostic) -> None:
    # Our functions that the pool calls give no warnings. PostgreSQL gives this one when somebody cancels a commit that
    # waits for a standby: "committed locally, but might not have been replicated". The call itself ends as a success.
    if notice.severity_nonlocalized == "WARNING":
        connection.is_in_doubt = True


async def schema_has_changed(connection: ShimConnection, error: psycopg.Error) -> bool:
    """Tell whether a call failed because of osgprod migrate. If so, the connection should be closed.

    Parameters
    ----------
    connection
        The one on which the call failed.
    error
        With which it failed.

    Returns
    -------
    bool
        The error is of a kind that comes from a change of the schema, and a migration is running, or the functions
        were exchanged since the connection was opened, or database and program are of different versions.
    """
    code = error.sqlstate or ""
    if not code.startswith(OF_A_CHANGED_SCHEMA) or code == "42501":
        return False
    try:
        found, is_migrating = await _functions(connection)
        if is_migrating or found != connection.functions_found:
            return True
        row = await (await connection.execute("SELECT * FROM osgprod.alive()")).fetchone()
    except psycopg.Error:
        return True
    return row is None or len(row) < 2 or which_is_older(row[1]) != ""


async def _functions(connection: psycopg.AsyncConnection[Any]) -> tuple[str, bool]:
    """Which functions there are, as a text that each exchange changes; is a migration running?"""
    cursor = await connection.execute(
        "SELECT coalesce((SELECT d.xmin::text FROM pg_description d WHERE d.objoid = to_regnamespace('osgprod')"
        "   AND d.classoid = 'pg_namespace'::regclass), 'none'),"
        " EXISTS (SELECT FROM pg_locks l JOIN pg_database b ON b.oid = l.database"
        "   WHERE b.datname = current_database() AND l.locktype = 'advisory' AND l.granted"
        "   AND l.classid::bigint = %s AND l.objid::bigint = %s AND l.objsubid = 1)",
        [MIGRATION_LOCK >> 32, MIGRATION_LOCK & 0xFFFFFFFF],
        prepare=False,
    )
    found, is_migrating = await cursor.fetchone() or ("none", False)
    return str(found), bool(is_migrating)


def _kept_alive(dsn: str, name: str) -> dict[str, Any]:
    """What each connection of the shim has beside its DSN: an end to every wait for a silent network."""
    return {
        "autocommit": True,
        "connect_timeout": conninfo_to_dict(dsn).get("connect_timeout", HOST_TIMEOUT_S),
        "application_name": name,
        **SILENCE,
    }


async def connect_apart(dsn: str, name: str) -> psycopg.AsyncConnection[Any]:
    """Open a connection that is not of the pool, with the pool's bounds on a silent network, and without SET_SESSION.

    Parameters
    ----------
    dsn : str
        libpq's connection string.
    name : str
        Shown by PostgreSQL as its application_name.

    Raises
    ------
    psycopg.OperationalError
        The server can't be reached.
    """
    return await psycopg.AsyncConnection.connect(dsn, **_kept_alive(dsn, name))


def open_pool(dsn: str, size: int, name: str = "osgprod shim") -> AsyncConnectionPool[ShimConnection]:
    """Makes a pool of the shim, not yet open. It reconnects by itself after a restart or crash of the server.

    Parameters
    ----------
    dsn : str
        Libpq's connection string.
    size : int
        Connections at most [1 ..].
    name : str
        Shown by PostgreSQL as their application_name.
    """

    from psycopg_pool import AsyncConnectionPool  # which commands do not need

    async def configure(connection: ShimConnection) -> None:
        try:
            await prepare(connection)
        except BaseException:
            await connection.close()  # the pool only forgets it
            raise

    async def prepare(connection: ShimConnection) -> None:
        connection.add_notice_handler(partial(_note_doubt, connection))
        # One prepared statement a call: else a small number and a big one would be two types, two plans.
        connection.adapters.register_dumper(int, Int8Dumper)
        connection.prepare_threshold = 1
        connection.adapters.register_loader("uuid", TextLoader)  # tokens are only passed on
        # A call that waits for a lock holds a pool connection, so bound the wait.
        with hang_up_after(connection, CALL_TIMEOUT_S):
            if (
                await _session_of(connection) != connection.info.backend_pid
                and await pooling(dsn) == "transaction"
            ):
                raise PoolerError
            await connection.execute(
                b"SET lock_timeout = '%d s'; " % LOCK_TIMEOUT_S + SET_SESSION, prepare=False
            )
            connection.functions_found, _ = await _functions(connection)
        connection.batches = psycopg.AsyncRawCursor(connection, row_factory=dict_row)

    return AsyncConnectionPool(
        dsn,
        connection_class=ShimConnection,
        min_size=min(2, size),
        max_size=size,
        open=False,
        timeout=CONNECTION_WAIT_S,
        max_waiting=1000,
        reconnect_timeout=RECONNECT_S,
        configure=configure,
        kwargs=_kept_alive(dsn, name),
    )
