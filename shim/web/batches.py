"""Batches calls of one function that arrive at the same time: one statement, one transaction, one commit.

What a call costs beside its own work (a round trip, a transaction that begins, a commit that waits for the disk) is
paid once for all of them. No call waits for others to arrive: those that are there go as soon as a lane is free.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from shim import database
from shim.web.logs import log

LANES = 2  # batches at a time in one process; with more of them each would be smaller
LEAST = 4  # calls that a batch may have before lanes share what there is
MOST = 64  # calls in a batch: while it runs, its jobs and a file are locked
MAX_WAITING = 1000
# A batch that takes so long waits for something; then others go past it, as many as there are connections.
STALLED_S = 0.05
REPLACE_S = 1.0
COLUMNS = frozenset(("n", "code", "hint"))  # of each answer, beside those that the route reads
# Classes of errors that say nothing of a single call: each would meet the same.
SERVERS_TROUBLE = ("08", "25006", "53", "57P")
BUSY = "55P03"  # a call that would have to wait, and is left out of its batch


class CallError(Exception):
    """The error of one call of a batch, as the database answers it.

    Parameters
    ----------
    message, hint
        One line each.
    code : str
        One of those in docs/design.md.
    """

    def __init__(self, message: str, hint: str | None, code: str) -> None:
        super().__init__(message)
        self.hint, self.sqlstate = hint, code


class AnswerMismatch(psycopg.OperationalError):
    """The answer is not one to the question, as through a pooler that crosses prepared statements."""


@dataclass(eq=False)
class _Call:
    function: str
    arguments: dict[str, Any]
    answer: asyncio.Future[dict[str, Any]]
    came_at: float
    is_alone: bool = False  # it is made again, after its batch has failed or left it out


class Batches:
    """Makes calls, in batches where several arrive at once, on the connections of a pool.

    Parameters
    ----------
    pool : AsyncConnectionPool[database.ShimConnection]
        Where connections come from.
    size : int
        How many it has.
    """

    def __init__(self, pool: AsyncConnectionPool[database.ShimConnection], size: int) -> None:
        self._pool, self._size = pool, size
        self._waiting: list[_Call] = []
        self._running: dict[int, tuple[float, int]] = {}  # batches: since when; how many calls
        self._lanes: set[asyncio.Task[None]] = set()
        self._is_starting = False  # a lane, which takes all calls that come until it begins
        self._replaced_at = float("-inf")
        self._alarm: asyncio.Handle | None = None  # while calls wait, whether or not anything else happens

    async def call(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Calls a function that gives one row, and returns it.

        The error of one call is nothing to the others of its batch; one that would have to wait is made again,
        alone. When the whole batch fails, all are made again one by one, unless the server is in trouble: then each
        gets that error.

        Parameters
        ----------
        function : str
            Of schema osgprod that takes a list of calls, as checkout_slices does.
        arguments : dict[str, Any]
            Of this call; its number n in the list is ours.

        Raises
        ------
        CallError, psycopg.Error
            Of this call.
        PoolTimeout, TooManyRequests
            The database is away or too slow.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} calls are waiting")
        loop = asyncio.get_running_loop()
        call = _Call(function, arguments, loop.create_future(), loop.time())
        self._waiting.append(call)
        self._start()
        return await call.answer

    def _start(self) -> None:
        """Start a lane for the calls that wait if there is room for one; else look again later."""
        if self._is_starting or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if self._room(loop.time()):
            self._is_starting = True
            task = loop.create_task(self._lane())
            self._lanes.add(task)  # the loop itself may forget it
            task.add_done_callback(self._lanes.discard)
        elif self._alarm is None:
            self._alarm = loop.call_later(STALLED_S, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._end_old_calls()
        self._start()

    async def _lane(self) -> None:
        """Make one batch after the other, until no call waits.

        It begins a moment after the call that started it, when all that came in this turn of the loop is there. The
        next batch goes before the answers of the last one, so that the server is at work while they are sent.
        """
        self._is_starting = False
        try:
            while batch := self._next_batch():
                self._running[id(batch)] = asyncio.get_running_loop().time(), len(batch)
                self._start()  # another one
                try:
                    await self._run(batch)
                finally:
                    del self._running[id(batch)]
        finally:
            self._start()

    def _next_batch(self) -> list[_Call]:
        """Take the calls of the next batch; none when no call waits, or no lane is free."""
        self._end_old_calls()
        room = self._room(asyncio.get_running_loop().time())
        if not self._waiting or not room:
            return []
        first = self._waiting[0]
        alike = [call for call in self._waiting if call.function == first.function and not call.is_alone]
        batch = [first] if first.is_alone else alike[:room]
        taken = set(batch)
        self._waiting = [call for call in self._waiting if call not in taken]
        return batch

    def _end_old_calls(self) -> None:
        wait_s = database.CONNECTION_WAIT_S
        too_old = asyncio.get_running_loop().time() - wait_s
        while self._waiting and self._waiting[0].came_at < too_old:
            _fail(self._waiting.pop(0), PoolTimeout(f"no connection within {wait_s} s"))

    def _room(self, now: float) -> int:
        """How many calls the next batch may have; 0 when no lane is free.

        A batch of all that waits would leave the other lane what trickles in, and us nothing to do until it is back.
        Lanes that share take turns: answers of one are sent while the other is at work (8 % more pairs a second).
        """
        moving = [calls for began_at, calls in self._running.values() if now - began_at < STALLED_S]
        lanes = min(LANES, self._size)
        if len(moving) >= lanes or len(self._running) >= self._size:
            return 0
        share = -(-(len(self._waiting) + sum(moving)) // lanes)
        return min(max(share, LEAST), MOST)

    async def _run(self, batch: list[_Call]) -> None:
        for number, call in enumerate(batch):
            call.arguments["n"] = number
        try:
            rows = await self._ask(batch)
        except Exception as error:
            code = getattr(error, "sqlstate", None) or "08000"
            if len(batch) == 1 or code.startswith(SERVERS_TROUBLE):
                for call in batch:
                    _fail(call, error)
                return
            self._make_again(batch)
        else:
            busy = []
            for row in rows:
                call, code, hint = batch[row.pop("n")], row.pop("code"), row.pop("hint")
                if code == BUSY and len(batch) > 1:
                    busy.append(call)
                elif code:
                    _fail(call, CallError(row["message"], hint, code))
                elif not call.answer.done():
                    call.answer.set_result(row)
            self._make_again(busy)

    def _make_again(self, calls: list[_Call]) -> None:
        """Queue calls again, each to be made alone, on as many connections as are free.

        They keep the time when they came, from which CONNECTION_WAIT_S counts.
        """
        for call in calls:
            call.is_alone = True
        self._waiting += calls  # the lane goes on with them

    async def _ask(self, batch: list[_Call]) -> list[dict[str, Any]]:
        # Plain calls in place of the pool's and the cursor's context managers, which cost a tenth of a request.
        connection, function = await self._pool.getconn(), batch[0].function
        try:
            calls = json.dumps([call.arguments for call in batch])
            with database.hang_up_after(connection, database.CALL_TIMEOUT_S):
                await connection.batches.execute(database.batch_statement(function), [calls])
                rows = await connection.batches.fetchall()
            if not _is_answer(function, len(batch), rows):
                await connection.close()
                log.error(
                    "the answer to %s was not of that call: is there a pooler? osgprod doctor", function
                )
                raise AnswerMismatch(f"the answer to {function} is of another call")
            if connection.is_in_doubt:
                await connection.close()
                raise psycopg.OperationalError("nobody knows whether this commit is on a standby")
        except psycopg.errors.ReadOnlySqlTransaction:  # the server is a primary no longer
            await connection.close()
            await self.replace_connections()
            raise
        except psycopg.OperationalError:
            if connection.closed:  # by the server, or by hang_up_after
                await self.replace_connections()
            raise
        except psycopg.Error as error:
            if await database.schema_has_changed(connection, error):
                await connection.close()  # what it has prepared is of no use any more
                await self.replace_connections()
                raise database.SchemaChanged from error
            raise
        finally:
            await self._pool.putconn(connection)
        if not rows[0].keys() >= COLUMNS:
            raise database.SchemaChanged("these functions are of another version than this program")
        return rows

    async def replace_connections(self) -> None:
        """Replace all connections, since those made before lead to the same server; at most once a second."""
        now = asyncio.get_running_loop().time()
        if now - self._replaced_at > REPLACE_S:
            self._replaced_at = now
            await self._pool.drain()


def _is_answer(function: str, calls: int, rows: list[dict[str, Any]]) -> bool:
    """Are these the rows of this function for so many calls? Takes the name of the function out of the rows."""
    names = [row.pop("function", None) for row in rows]
    numbers = sorted(
        row.get("n", at) for at, row in enumerate(rows)
    )  # functions of another version have none
    return names == [function] * calls and numbers == list(range(calls))


def _fail(call: _Call, error: Exception) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)
