"""What ``healthz`` asks of the database: does it answer, and does it take writes?"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from shim import database
from shim.web.batches import Batches

WRITE_S = 5.0  # for so long the result of a write is repeated to those who ask more often
TIMEOUT_S = 3.0  # of each question; a load balancer waits little longer


class Health:
    """Asks the database for ``healthz``.

    Parameters
    ----------
    pool : AsyncConnectionPool
        Where connections come from.
    batches : Batches
        Told to replace the connections when the server takes no writes.
    """

    def __init__(self, pool: AsyncConnectionPool[database.ShimConnection], batches: Batches) -> None:
        self._pool, self._batches = pool, batches
        self._is_writing = asyncio.Lock()
        self._written_at = float("-inf")

    async def version(self) -> str | None:
        """Return the name of the database's newest migration; None when it is too old to tell.

        Raises
        ------
        psycopg.Error, psycopg_pool.PoolTimeout
            The database is away.
        """
        row = await self._ask("SELECT * FROM osgprod.alive()")
        return row[1] if row and len(row) > 1 else None

    async def try_write(self) -> None:
        """Try whether the database takes writes; at most one try that succeeds in WRITE_S.

        Raises
        ------
        psycopg.Error, psycopg_pool.PoolTimeout
            It does not: it is away, read-only (25006), full (53100), or has no standby to wait for.
        """
        async with self._is_writing:
            now = asyncio.get_running_loop().time()
            if now - self._written_at < WRITE_S:
                return
            try:
                await self._ask("SELECT osgprod.write_check()")
            except psycopg.errors.ReadOnlySqlTransaction:  # the server is a primary no longer
                await self._batches.replace_connections()
                raise
            self._written_at = now

    async def _ask(self, query: str) -> tuple[Any, ...] | None:
        async with self._pool.connection() as connection:
            with database.hang_up_after(connection, TIMEOUT_S):
                row: tuple[Any, ...] | None = await (await connection.execute(query.encode())).fetchone()
                return row
