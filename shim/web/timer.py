"""The database's housekeeping, called by each shim every few seconds."""

from __future__ import annotations

import asyncio
import logging

import psycopg

log = logging.getLogger("osgprod")

TICK_S = 10.0
TICK_TIMEOUT_S = 60.0


async def tick_for_ever(dsn: str) -> None:
    """Call osgprod.tick() every TICK_S seconds. Errors are logged, and the loop continues.

    Each call has its own connection and time limit, so that neither a crowded pool nor a server that hangs
    delays the next one.

    Parameters
    ----------
    dsn : str
        libpq's connection string.
    """
    while True:
        await asyncio.sleep(TICK_S)
        try:
            async with (
                asyncio.timeout(TICK_TIMEOUT_S),
                await psycopg.AsyncConnection.connect(
                    dsn, autocommit=True, application_name="osgprod tick"
                ) as db,
            ):
                # The functions refuse other isolation levels, and the database's default may differ.
                await db.execute("SET default_transaction_isolation = 'read committed'")
                await db.execute("SELECT * FROM osgprod.tick()")
        except Exception as error:
            log.warning("tick: %s", (str(error).splitlines() or [type(error).__name__])[0])
