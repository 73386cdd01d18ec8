"""The database's housekeeping, called by each shim every few seconds."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import psycopg

from shim import database
from shim.web.answers import Answers

log = logging.getLogger("osgprod")

TICK_S = 10.0
TICK_TIMEOUT_S = 60.0


async def tick_for_ever(dsn: str, answers: Answers) -> None:
    """Call osgprod.tick() every TICK_S seconds, and write down what this process answered.

    Errors are logged, and the loop continues. Each call has its own connection and time limit, so that neither a
    crowded pool nor a server that hangs delays the next one. The limit closes the connection: to cancel the call would
    wait for a server that is silent.

    Parameters
    ----------
    dsn : str
        libpq's connection string.
    answers : Answers
        Of this process.
    """
    while True:
        await asyncio.sleep(TICK_S)
        try:
            async with await database.connect_apart(dsn, "osgprod tick") as db:
                with database.hang_up_after(db, TICK_TIMEOUT_S):
                    await db.execute(database.SET_SESSION)
                    await db.execute("SELECT * FROM osgprod.tick()")
                    await _note_answers(db, answers)
        except Exception as error:
            log.warning("tick: %s", (str(error).splitlines() or [type(error).__name__])[0])


async def _note_answers(db: psycopg.AsyncConnection[Any], answers: Answers) -> None:
    rows = answers.take()
    if not rows:
        return
    try:
        await db.execute("SELECT osgprod.note_answers(p_answers => %s)", [json.dumps(rows)])
    except BaseException:
        answers.put_back(rows)  # the database may be read-only, or of an older version
        raise
