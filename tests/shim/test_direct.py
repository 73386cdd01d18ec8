"""Batches go to the server through libpq's own functions, on connections that psycopg uses as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from shim.database import ShimConnection

LONG = 4_000_000  # characters: more than any socket takes at once
Do = Callable[[ShimConnection], Awaitable[Any]]


def on_connection(dsn: str, do: Do) -> Any:
    async def run() -> Any:
        async with await ShimConnection.connect(dsn, autocommit=True) as connection:
            return await asyncio.wait_for(do(connection), 60)

    return asyncio.run(run())


def test_rows_have_the_types_of_the_driver_and_psycopg_may_use_the_connection_in_between(dsn: str) -> None:
    async def do(connection: ShimConnection) -> list[Any]:
        answers = []
        for text in ("one", "two"):
            answers += await connection.direct.ask(
                b"SELECT $1::text AS a, 7 AS b, NULL::int AS c, '{x,y}'::text[] AS d", text
            )
            answers += await (await connection.execute("SELECT %s::text AS a", [text])).fetchall()
        return answers

    rest = {"b": 7, "c": None, "d": ["x", "y"]}
    assert on_connection(dsn, do) == [{"a": "one", **rest}, ("one",), {"a": "two", **rest}, ("two",)]


def test_value_longer_than_the_buffer_of_a_socket_arrives_as_a_whole(dsn: str) -> None:
    async def do(connection: ShimConnection) -> Any:
        return await connection.direct.ask(b"SELECT length($1::text) AS n, $1::text AS text", "x" * LONG)

    assert on_connection(dsn, do) == [{"n": LONG, "text": "x" * LONG}]


def test_connection_is_of_use_after_an_error_of_a_statement(dsn: str) -> None:
    async def do(connection: ShimConnection) -> Any:
        with pytest.raises(psycopg.errors.UndefinedFunction, match="no_such_function"):
            await connection.direct.ask(b"SELECT no_such_function($1)", "1")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.direct.ask(b"SELECT 1 / $1::int AS n", "0")
        return await connection.direct.ask(b"SELECT 1 / $1::int AS n", "1")

    assert on_connection(dsn, do) == [{"n": 1}]


def test_error_of_the_commit_is_the_answer_not_the_rows_before_it(dsn: str) -> None:
    async def do(connection: ShimConnection) -> Any:
        await connection.execute("CREATE TEMP TABLE t (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            await connection.direct.ask(b"INSERT INTO t VALUES ($1::int), ($1::int) RETURNING n", "1")
        return await connection.direct.ask(b"SELECT count(*) + $1::int AS n FROM t", "0")

    assert on_connection(dsn, do) == [{"n": 0}]


def test_server_that_ends_a_call_gives_its_reason(dsn: str) -> None:
    async def do(connection: ShimConnection) -> None:
        with pytest.raises(psycopg.errors.AdminShutdown):
            await connection.direct.ask(b"SELECT pg_terminate_backend(pg_backend_pid()), $1::text", "")

    on_connection(dsn, do)


def test_idle_connection_that_the_server_ends_is_not_looked_at_again_and_fails_at_the_next_call(
    dsn: str,
) -> None:
    async def do(connection: ShimConnection) -> None:
        await connection.direct.ask(b"SELECT $1::text", "")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        while connection.direct.is_registered:
            await asyncio.sleep(0.01)
        with pytest.raises(psycopg.OperationalError):
            await connection.direct.ask(b"SELECT $1::text", "")
        assert connection.closed

    on_connection(dsn, do)


def test_closed_connection_leaves_no_registration_behind(dsn: str) -> None:
    async def do(connection: ShimConnection) -> None:
        await connection.direct.ask(b"SELECT $1::text", "")
        assert connection.direct.is_registered
        number = connection.fileno()
        await connection.close()
        assert not connection.direct.is_registered
        assert not asyncio.get_running_loop().remove_reader(number)

    on_connection(dsn, do)
