"""What the pages ask of the database: one connection and one snapshot a page, so that its numbers agree.

Answers are kept for a few seconds, so that a hundred screens cost the database as much as one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout
from starlette.requests import Request

from shim.database import statement

Rows = list[dict[str, Any]]
Query = tuple[str, dict[str, object]]

KEPT_S = 5.0
LONGEST_QUERY = "5s"  # that one page may keep the database busy with one query
LONGEST_WAIT_S = 10.0


class Reader:
    """Reads from the database for the pages of this process."""

    _kept: dict[tuple[Any, ...], tuple[float, Rows]]

    def __init__(self) -> None:
        self._kept = {}
        self._busy = asyncio.Lock()

    async def read(self, request: Request, *queries: Query) -> list[Rows]:
        """Call functions of schema osgprod and return their rows, in the order of the queries.

        Parameters
        ----------
        request : Request
            For the pool of its application.
        *queries : tuple of str and dict
            Function name and arguments, each.

        Raises
        ------
        PoolTimeout
            Too many pages wait, or the database takes too long.
        psycopg.Error
            The function's own error.
        """
        try:  # one page at a time: jobs come first
            await asyncio.wait_for(self._busy.acquire(), LONGEST_WAIT_S)
        except TimeoutError:
            raise PoolTimeout("too many pages wait for the database") from None
        try:
            now = time.monotonic()
            self._kept = {key: kept for key, kept in self._kept.items() if now - kept[0] < KEPT_S}
            keys = [(function, *sorted(arguments.items(), key=str)) for function, arguments in queries]
            if not all(key in self._kept for key in keys):
                # Read all of them again, in one snapshot: the numbers of a page must agree.
                answers = await self._ask(request, queries)
                self._kept |= {key: (now, rows) for key, rows in zip(keys, answers, strict=True)}
            return [self._kept[key][1] for key in keys]
        finally:
            self._busy.release()

    async def _ask(self, request: Request, queries: Iterable[Query]) -> list[Rows]:
        answers = []
        try:
            async with request.app.state.parts.pool.connection() as connection, connection.transaction():
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await connection.execute(f"SET LOCAL statement_timeout = '{LONGEST_QUERY}'")
                async with connection.cursor(row_factory=dict_row) as cursor:
                    for function, arguments in queries:
                        await cursor.execute(*statement(function, arguments), prepare=False)
                        answers.append(await cursor.fetchall())
        except psycopg.errors.QueryCanceled:
            raise PoolTimeout("the database takes too long for this page") from None
        return answers
