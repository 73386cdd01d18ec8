"""What the pages ask of the database: one connection and one snapshot a page, so that its numbers agree.

Answers are kept for a few seconds, so that a hundred screens cost the database as much as one. They come from a
replica where there is one that is fit (shim/replica.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout
from starlette.requests import Request

from shim.database import statement
from shim.replica import NOW, Freshness, Unfit, snapshot

Rows = list[dict[str, Any]]
Query = tuple[str, dict[str, object]]

KEPT_S = 5.0
LONGEST_QUERY = "5s"  # that one page may keep the database busy with one query
LONGEST_WAIT_S = 10.0
PIECE_ROWS = 200  # that are made into Python's objects before the jobs' requests have their turn

# How old the oldest of the data is that the running request has read.
freshness: ContextVar[Freshness] = ContextVar("freshness", default=NOW)


@dataclass(frozen=True)
class _Kept:
    rows: Rows
    read_at: float  # [s], monotonic
    freshness: Freshness


class Reader:
    """Reads from the database for the pages of this process."""

    _kept: dict[tuple[Any, ...], _Kept]

    def __init__(self) -> None:
        self._kept = {}
        self._busy = asyncio.Lock()

    def forget(self) -> None:
        """Drop the answers that are kept: something was changed."""
        self._kept = {}

    async def read(
        self, request: Request, *queries: Query, offset: int = 0, limit: int | None = None
    ) -> list[Rows]:
        """Call functions of schema osgprod and return their rows, in the order of the queries; note how old they are.

        Parameters
        ----------
        request : Request
            For the pool of its application.
        *queries : tuple of str and dict
            Function name and arguments, each.
        offset : int
            Leave out so many rows of each.
        limit : int or None
            Rows at most of each; None: all.

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
            self._kept = {key: kept for key, kept in self._kept.items() if now - kept.read_at < KEPT_S}
            part = slice(offset, None if limit is None else offset + limit)
            keys = [
                (function, part.start, part.stop, *sorted(arguments.items(), key=str))
                for function, arguments in queries
            ]
            if not all(key in self._kept for key in keys):
                # Read all of them again, in one snapshot: the numbers of a page must agree.
                fresh, answers = await self._ask(request, queries, part)
                self._kept |= {key: _Kept(rows, now, fresh) for key, rows in zip(keys, answers, strict=True)}
            found = [self._kept[key] for key in keys]
            for kept in found:
                if kept.freshness.is_replica:
                    age_s = kept.freshness.age_s + now - kept.read_at
                    freshness.set(max(freshness.get(), replace(kept.freshness, age_s=age_s), key=_age))
            return [kept.rows for kept in found]
        finally:
            self._busy.release()

    async def _ask(
        self, request: Request, queries: Iterable[Query], part: slice
    ) -> tuple[Freshness, list[Rows]]:
        parts = request.app.state.parts

        async def ask(connection: psycopg.AsyncConnection[Any]) -> list[Rows]:
            answers = []
            await connection.execute(f"SET LOCAL statement_timeout = '{LONGEST_QUERY}'")
            async with connection.cursor(row_factory=dict_row) as cursor:
                for function, arguments in queries:
                    await cursor.execute(*statement(function, arguments), prepare=False)
                    answers.append(await _fetch(cursor, part))
            return answers

        try:
            with contextlib.suppress(Unfit):
                if parts.replica:
                    from_replica: tuple[Freshness, list[Rows]] = await parts.replica.read(ask)
                    return from_replica
            async with parts.pool.connection() as connection, snapshot(connection):
                return NOW, await ask(connection)
        except psycopg.errors.QueryCanceled:
            raise PoolTimeout("the database takes too long for this page") from None


async def _fetch(cursor: psycopg.AsyncCursor[dict[str, Any]], part: slice) -> Rows:
    """The rows of a part of a result, which the client has; the event loop goes on with other things in between."""
    rows: Rows = []
    end = min(cursor.rowcount, cursor.rowcount if part.stop is None else part.stop)
    if part.start < end:
        await cursor.scroll(part.start, "absolute")
    while (left := end - part.start - len(rows)) > 0:
        rows += await cursor.fetchmany(min(PIECE_ROWS, left))
        await asyncio.sleep(0)
    return rows


def _age(freshness: Freshness) -> tuple[bool, float]:
    # With the primary's clock ahead, a replica's data may be 0 s old: they are the replica's all the same.
    return freshness.is_replica, freshness.age_s
