"""The replica of OSGPROD_READ_DSN: whether it may answer, and how old its data are.

Only what people and programs look at is read from it: the pages, the metrics, the JSON API, the lists of the command
line. What a job asks, and what changes something, is asked of the primary.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from shim import database
from shim.config import Settings

log = logging.getLogger("osgprod")

CONNECTIONS = 2
WAIT_S = 2.0  # for a connection, and for the answer how old the data are
AWAY_S = 10.0  # so long a replica that was away is not tried again
SNAPSHOT_S = 20.0  # after which the connection of a page whose server is silent is ended
NOTE_AGE_S = 20.0  # of data that the command line says; where nothing commits, tick lets the age reach 10 s

_T = TypeVar("_T")


@dataclass(frozen=True)
class Freshness:
    """How old data are.

    Parameters
    ----------
    is_replica : bool
        They are from a replica; else from the primary, and as they are now.
    as_of : datetime or None
        They are at least as new as this; None: nobody knows, or from the primary.
    age_s : float
        That was so long ago [s].
    """

    is_replica: bool = False
    as_of: datetime | None = None
    age_s: float = 0.0


NOW = Freshness()


class Unfit(Exception):
    """The replica can't be asked now: ask the primary. The message says why."""


@contextlib.asynccontextmanager
async def snapshot(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Begin a transaction that reads one state; its connection is ended when the server is silent.

    Parameters
    ----------
    connection : psycopg.AsyncConnection
        In autocommit.
    """
    with database.hang_up_after(connection, SNAPSHOT_S):
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield


class Replica:
    """Reads from the replica for the pages of this process.

    Parameters
    ----------
    dsn : str
        libpq's connection string.
    max_age_s : float
        Data that are older are not shown [s].
    """

    def __init__(self, dsn: str, max_age_s: float) -> None:
        self._pool = database.open_pool(dsn, CONNECTIONS, "osgprod reader")
        self._max_age_s = max_age_s
        self._away_until = float("-inf")
        self._trouble = ""

    async def open(self) -> None:
        """Begin to connect; the replica may be away."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """End all connections."""
        await self._pool.close()

    async def read(
        self, ask: Callable[[psycopg.AsyncConnection[Any]], Awaitable[_T]]
    ) -> tuple[Freshness, _T]:
        """Return what ask() reads in one snapshot of the replica, and how old that is.

        Parameters
        ----------
        ask : callable
            Makes the queries on a connection.

        Raises
        ------
        Unfit
            The replica is away, too old or fails: what it refuses, the primary may know better.
        psycopg.errors.QueryCanceled
            A query, or the whole page, takes too long. The primary must not be asked as well.
        psycopg.DataError
            An argument has a value that can't be, for the primary neither.
        """
        from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

        if time.monotonic() < self._away_until:
            raise Unfit(self._trouble)
        began = float("inf")
        try:
            async with self._pool.connection(timeout=WAIT_S) as connection:
                freshness = await self._freshness(connection)  # before the snapshot, which may be newer
                began = time.monotonic()
                async with snapshot(connection):
                    answer = await ask(connection)
        except (psycopg.errors.QueryCanceled, psycopg.DataError):
            raise
        except Unfit as error:
            self._note(str(error))
            raise
        except (psycopg.Error, PoolTimeout, TooManyRequests, PoolClosed) as error:
            if time.monotonic() >= began + SNAPSHOT_S:  # snapshot() has ended the connection
                raise psycopg.errors.QueryCanceled("the page takes too long") from error
            if getattr(error, "sqlstate", None) is None:  # no answer of the server: it is away
                self._away_until = time.monotonic() + AWAY_S
                self._note("it is away")
            raise Unfit(self._trouble) from error
        self._note("")
        return freshness, answer

    async def _freshness(self, connection: psycopg.AsyncConnection[Any]) -> Freshness:
        with database.hang_up_after(connection, WAIT_S):
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(*database.statement("freshness", {}), prepare=False)
            return _checked(await cursor.fetchone(), self._max_age_s)

    def _note(self, trouble: str) -> None:
        kind = trouble.partition(":")[0]
        if kind != self._trouble.partition(":")[0]:
            log.warning(
                "replica: %s", f"{trouble}; reading from the primary" if trouble else "reading from it"
            )
        self._trouble = trouble


def _checked(row: Mapping[str, Any] | None, max_age_s: float) -> Freshness:
    freshness = Freshness(**row) if row and row["as_of"] else None
    if freshness is None:
        raise Unfit("its data are of unknown age: no shim has called tick yet")
    if freshness.age_s > max_age_s:
        raise Unfit(f"its data are too old: {freshness.age_s:.0f} s")
    return freshness


def look(
    function: str, arguments: Mapping[str, object], say: Callable[[str], object]
) -> database.Rows | None:
    """Call one function of schema osgprod that only reads, on the replica.

    Parameters
    ----------
    function : str
        Its name without the schema.
    arguments : mapping
        Its arguments without the p_.
    say : callable
        Gets a line where the data are older than NOTE_AGE_S, and where the replica is not fit.

    Returns
    -------
    Rows or None
        The rows; None: ask the primary, since no replica is named, or it is not fit.
    """
    settings = Settings.read()
    if not settings.read_dsn:
        return None
    try:
        with database.connect(settings.read_dsn.text, database.HOST_TIMEOUT_S) as connection:
            rows = database.call(connection, "freshness")
            freshness = _checked(rows[0] if rows else None, settings.read_max_age_s)
            answer = database.call(connection, function, **arguments)
    except Unfit as error:
        say(f"the primary was asked, not the replica: {error}")
        return None
    except psycopg.Error as error:
        if error.sqlstate is None:
            say("the primary was asked, not the replica: it is away")
        return None  # what it refuses, the primary may know better
    if freshness.age_s > NOTE_AGE_S:
        say(f"the data of the replica are {freshness.age_s:.0f} s old")
    return answer
