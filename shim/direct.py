"""Calls with a JSON list, through libpq's own functions: the shim's batches.

psycopg's cursor, and its registration of the socket with the event loop for each answer, take half of the shim's CPU
time for a batch of one call (docs/performance.md). Here the registration stays until psycopg uses the connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

FLUSH_AGAIN_S = 0.001


class Direct:
    """The direct way to the server of one connection, for one call at a time.

    Parameters
    ----------
    connection : psycopg.AsyncConnection
        In autocommit. It calls release() before psycopg waits for the server or closes the socket.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection, self._pgconn = connection, connection.pgconn
        self._prepared: dict[bytes, bytes] = {}  # names of statements
        self._registered: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._arrival: asyncio.Future[None] | None = None  # of the answer that is waited for

    async def ask(self, statement: bytes, value: str) -> list[dict[str, Any]]:
        """Execute a statement in a transaction of its own; the first time, prepare it.

        Parameters
        ----------
        statement : bytes
            With one parameter, $1.
        value : str
            Of the parameter, in ASCII.

        Returns
        -------
        list of dict
            The rows.

        Raises
        ------
        psycopg.Error
            Of the statement, or of the connection.
        """
        name = self._prepared.get(statement)
        if name is None:
            name = b"osgprod_%d" % len(self._prepared)
            self._pgconn.send_prepare(name, statement)
            await self._result()
            self._prepared[statement] = name
        self._pgconn.send_query_prepared(name, [value.encode("ascii")])
        result = await self._result()
        rows = Transformer(self._connection)
        rows.set_pgresult(result)
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        return rows.load_rows(0, result.ntuples, lambda values: dict(zip(names, values, strict=True)))

    @property
    def is_registered(self) -> bool:
        """Does the event loop look at the socket?"""
        return self._registered is not None

    def release(self) -> None:
        """End the registration with the event loop; the next call makes a new one."""
        if self._registered:
            loop, number = self._registered
            loop.remove_reader(number)
            self._registered = None

    async def _result(self) -> PGresult:
        """Send what is not sent yet, and wait until the server is ready for the next command."""
        loop = asyncio.get_running_loop()
        if self._registered is None:
            self._registered = loop, self._pgconn.socket
            loop.add_reader(self._pgconn.socket, self._read)
        while self._pgconn.flush():  # more than the socket takes at once
            await asyncio.sleep(FLUSH_AGAIN_S)
        result = await self._next_result()
        if result is None:
            raise psycopg.OperationalError("the server gave no result")
        try:
            # Not before the server is ready has it committed: a commit that fails is one more result.
            while following := await self._next_result():
                result = following
        except psycopg.OperationalError:
            if result.status != ExecStatus.FATAL_ERROR:  # else that is why the server ended the connection
                raise
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise error_from_result(result, self._connection.info.encoding)
        return result

    async def _next_result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._pgconn.get_result()

    def _read(self) -> None:
        """Take what the server has sent. The event loop calls this."""
        error = None
        try:
            self._pgconn.consume_input()
            if self._pgconn.is_busy():
                return
        except psycopg.OperationalError as end:
            self.release()  # the end of a connection can be read again and again
            error = end
        if self._arrival and not self._arrival.done():
            if error:
                self._arrival.set_exception(error)
            else:
                self._arrival.set_result(None)
