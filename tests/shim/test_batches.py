"""The shim makes simultaneous calls as one batch, with the same answers as single calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from shim.app import CHECKOUT, REPORT
from shim.database import open_pool
from shim.web.batches import LANES, Batches, CallError
from shim.web.failures import explain
from tests.support import World

Do = Callable[[Batches], Awaitable[Any]]


def with_batches(world: World, do: Do, size: int = 4) -> Any:
    async def run() -> Any:
        pool = open_pool(world.dsn, size)
        async with pool:
            return await do(Batches(pool, size))

    return asyncio.run(run())


def asking(process: int, **more: object) -> dict[str, Any]:
    return {
        "project": "p",
        "cluster": 1,
        "process": process,
        "cpus": 1,
        "magic": "m",
        "client": "127.0.0.1",
        **more,
    }


def reporting(process: int, token: object, **more: object) -> dict[str, Any]:
    return asking(process, exitcode=0, token=str(token), **more)


async def all_of(batches: Batches, function: Any, requests: list[dict[str, Any]]) -> list[Any]:
    return await asyncio.gather(
        *(batches.call(function, request) for request in requests), return_exceptions=True
    )


def transactions(world: World, table: str) -> int:
    """How many transactions wrote the rows of a table."""
    row = world.db.execute(f"SELECT count(DISTINCT xmin::text) AS n FROM osgprod_data.{table}").fetchone()
    assert row
    return int(row["n"])


def test_jobs_that_come_together_share_one_transaction_a_lane_each_its_own_answer(world: World) -> None:
    world.set(token_required=True)
    world.add_file(40)

    async def do(batches: Batches) -> list[Any]:
        assigned = await all_of(batches, CHECKOUT, [asking(n) for n in range(30)])
        # With the tokens that they were given: another job's would be refused.
        return await all_of(batches, REPORT, [reporting(n, assigned[n]["token"]) for n in range(30)])

    assert {answer["status"] for answer in with_batches(world, do)} == {"done"}
    assert transactions(world, "attempts") == transactions(world, "reports") == LANES
    assert world.progress()["blocks_done"] == 30


def test_no_job_feels_the_error_of_another(world: World) -> None:
    world.add_file(40)

    async def do(batches: Batches) -> list[Any]:
        wrong = [
            asking(7, magic="no"),
            asking(8, project="q"),
            asking(9, cpus=0),
            asking(10, client="nowhere"),
        ]
        return await all_of(batches, CHECKOUT, [asking(1), *wrong, asking(2)])

    first, *errors, last = with_batches(world, do)
    assert [error.sqlstate for error in errors] == ["OG202", "OG301", "OG104", "22P02"]
    assert {first["block1"], last["block1"]} == {1, 2}
    assert world.progress()["blocks_leased"] == 2


def test_job_that_asks_twice_at_once_has_one_slice(world: World) -> None:
    world.add_file(40)

    async def do(batches: Batches) -> list[Any]:
        return await all_of(batches, CHECKOUT, [asking(1), asking(1), asking(1)])

    answers = with_batches(world, do)
    assert sorted((answer["block1"], answer["nstarts"]) for answer in answers) == [(1, 1), (1, 2), (1, 3)]


def test_call_that_has_to_wait_does_not_hold_up_the_others(world: World) -> None:
    world.add_file(40)
    world.checkout(1)
    with psycopg.connect(world.dsn) as other:
        other.execute(
            "SELECT * FROM osgprod.heartbeat('p', 1, 1, 'm')"
        )  # its job is locked until this is rolled back

        async def do(batches: Batches) -> tuple[list[Any], bool, Any]:
            stuck = asyncio.create_task(batches.call(CHECKOUT, asking(1)))
            await asyncio.sleep(0)
            others = await all_of(batches, CHECKOUT, [asking(n) for n in range(2, 9)])
            was_stuck = not stuck.done()
            other.rollback()
            return others, was_stuck, await stuck

        others, was_stuck, answer = with_batches(world, do)
    assert was_stuck
    assert sorted(other["block1"] for other in others) == [2, 3, 4, 5, 6, 7, 8]
    assert (answer["block1"], answer["nstarts"]) == (1, 2)


def test_calls_that_are_busy_wait_side_by_side(world: World) -> None:
    """One after the other, 63 of them would wait for as many times LOCK_TIMEOUT_S."""
    world.add_file(40)
    jobs = range(12)
    for n in jobs:
        world.checkout(n)
    with psycopg.connect(world.dsn) as other:
        for n in jobs:
            other.execute("SELECT * FROM osgprod.heartbeat('p', 1, %s, 'm')", [n])
        waits = f"SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' LIMIT {LANES + 2}"

        async def do(batches: Batches) -> list[Any]:
            stuck = [asyncio.create_task(batches.call(CHECKOUT, asking(n))) for n in jobs]
            while len(world.db.execute(waits).fetchall()) < LANES + 2:
                assert not all(task.done() for task in stuck)
                await asyncio.sleep(0.01)
            other.rollback()
            return await asyncio.gather(*stuck, return_exceptions=True)

        answers = with_batches(world, do, size=LANES + 2)
    assert any(isinstance(answer, dict) and answer["nstarts"] == 2 for answer in answers)


def test_error_of_a_call_is_answered_by_its_class_whatever_its_code() -> None:
    codes = ("OG601", "55P03", "40P01", "22P02", "OGx01", "XX000")
    assert [explain(CallError("no", None, code)).status for code in codes] == [429, 503, 503, 400, 500, 500]


def test_somebodys_open_transaction_does_not_take_all_connections(world: World) -> None:
    world.add_file(40)
    for n in range(8):
        world.checkout(n)
    with psycopg.connect(world.dsn) as other:
        other.execute("SELECT FROM osgprod_data.slices FOR NO KEY UPDATE")  # as recycle has them

        async def do(batches: Batches) -> tuple[Any, list[Any]]:
            stuck = []
            for n in range(8):  # one after the other: each is a batch that waits
                stuck.append(asyncio.create_task(batches.call(REPORT, asking(n, exitcode=0))))
                await asyncio.sleep(0.1)
            answer = await batches.call(CHECKOUT, asking(9))
            assert all(task.exception() for task in stuck if task.done())
            other.rollback()
            return answer, await asyncio.gather(*stuck, return_exceptions=True)

        answer, reports = with_batches(world, do)
    assert answer["status"] == "assigned"
    errors = {type(report).__name__ for report in reports if isinstance(report, Exception)}
    assert "LockNotAvailable" in errors, "a call that waits for a lock returns its connection"
    assert errors <= {"LockNotAvailable", "PoolTimeout"}
    assert world.report(0)["status"] == "done"


def test_isolation_that_the_database_is_given_does_not_matter(world: World) -> None:
    """What is read under a lock must be as it is then, not as it was when the transaction began."""
    world.add_file(40)
    name = world.db.info.dbname
    world.db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'".encode())
    with psycopg.connect(world.dsn) as other:
        with pytest.raises(
            psycopg.Error, match="isolation level of this transaction is repeatable read"
        ) as no:
            other.execute("SELECT * FROM osgprod.checkout_slice('p', 1, 1, 1, 'm')")
        assert no.value.sqlstate == "OG901"
        other.rollback()
        calls = '[{"n": 1, "project": "p", "cluster": 1, "process": 1, "cpus": 1, "magic": "m", "client": "127.0.0.1"}]'
        for function in ("checkout_slices", "report_exits", "heartbeats"):
            row = other.execute(f"SELECT status, code FROM osgprod.{function}('{calls}')").fetchone()
            assert row == ("error", "OG901"), function
        other.rollback()
        other.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        other.execute("SELECT * FROM osgprod.checkout_slice('p', 1, 1, 1, 'm')")

        async def do(batches: Batches) -> Any:
            waiting = asyncio.create_task(batches.call(CHECKOUT, asking(2)))
            waits = "SELECT FROM pg_locks WHERE NOT granted"
            while not world.db.execute(waits).fetchall():
                await asyncio.sleep(0.01)
            other.commit()
            return await waiting

        assert with_batches(world, do)["block1"] == 2


def test_answer_that_nobody_waits_for_any_more_hurts_nobody(world: World) -> None:
    world.add_file(40)

    async def do(batches: Batches) -> Any:
        gone = asyncio.create_task(batches.call(CHECKOUT, asking(1)))
        await asyncio.sleep(0)
        staying = asyncio.create_task(batches.call(CHECKOUT, asking(2)))
        gone.cancel()
        return await staying

    assert with_batches(world, do)["status"] == "assigned"


def test_server_that_is_away_is_told_to_all(world: World, impatient: None) -> None:
    async def do(batches: Batches) -> list[Any]:
        return await all_of(batches, CHECKOUT, [asking(n) for n in range(3)])

    async def run() -> list[Any]:
        pool = open_pool("host=127.0.0.1 port=1", 2)
        await pool.open(wait=False)
        try:
            return await do(Batches(pool, 2))
        finally:
            await pool.close()

    assert {type(error).__name__ for error in asyncio.run(run())} == {"PoolTimeout"}


# --- what several checkouts in one transaction must not do ------------------------------------------------------


def hold_file(db: psycopg.Connection[Any], seqno: int) -> None:
    db.execute(
        "SELECT FROM osgprod_data.loaded_files l WHERE l.seqno = %s FOR NO KEY UPDATE",
        [seqno],
    )


def checkout_in(db: psycopg.Connection[Any], process: int) -> Any:
    db.execute("SET LOCAL statement_timeout = '120s'")
    query = "SELECT status, message, filename FROM osgprod.checkout_slice('p', 1, %s, 1, 'm')"
    return db.execute(query, [process]).fetchone()


def test_who_holds_a_file_does_not_wait_for_another_one(world: World) -> None:
    """Two such calls could deadlock, so the shim tells the job to retry."""
    world.set(maxblockspercore=100)
    world.add_file(3, seqno=1)
    world.add_file(3, seqno=2)
    with psycopg.connect(world.dsn) as mine, psycopg.connect(world.dsn) as others:
        hold_file(others, 2)
        assert checkout_in(mine, 1)[0] == "assigned"
        assert checkout_in(mine, 2)[:2] == ("wait", "project p is busy, ask again soon")


def test_who_holds_a_file_does_not_wait_to_split_a_slice_of_another_one(world: World) -> None:
    world.set(maxblockspercore=100, max_backups=0)  # with backups the failure itself splits it
    world.add_file(3, seqno=1)
    world.checkout(1)
    world.report(1, exitcode=3)
    world.let_backoff_pass()
    world.set(maxblockspercore=1)
    path = world.add_file(3, seqno=2)
    with psycopg.connect(world.dsn) as mine, psycopg.connect(world.dsn) as others:
        hold_file(others, 1)
        hold_file(mine, 2)
        mine.execute("SELECT pg_current_xact_id()")  # as after a checkout, which writes
        status, _, filename = checkout_in(mine, 2)
    assert status == "assigned"
    assert path.endswith(filename)


def test_who_finds_a_slice_whose_file_somebody_has_is_told_to_ask_again_soon(world: World) -> None:
    world.set(maxblockspercore=100)
    world.add_file(3)
    world.checkout(1)
    world.report(1, exitcode=143)
    world.set(maxblockspercore=1)
    with psycopg.connect(world.dsn) as others:
        hold_file(others, 1)
        answer = world.checkout(2)
    assert (answer["status"], answer["retry_s"]) == ("wait", 5)
    assert world.checkout(2)["status"] == "assigned"


def test_who_splits_a_slice_does_not_wait_for_a_second_file(world: World) -> None:
    """Two batches of failures that did so could wait for each other; one by one each gets its file."""
    world.set(max_failures=1, maxblockspercore=2)
    for seqno in (1, 2):
        world.add_file(2, seqno=seqno)
        world.checkout(seqno)
    with psycopg.connect(world.dsn) as others:
        hold_file(others, 2)

        async def do(batches: Batches) -> tuple[str, Any]:
            free, stuck = [asyncio.create_task(batches.call(REPORT, asking(n, exitcode=1))) for n in (1, 2)]
            was_free = (await free)["status"]
            others.rollback()
            return was_free, await stuck

        was_free, answer = with_batches(world, do)
    assert (was_free, answer["status"]) == ("failed", "failed")
    assert world.progress()["blocks_ready"] == 4


def test_all_calls_are_made_however_many_wait_and_whenever_they_come(world: World) -> None:
    world.add_file(400)

    async def do(batches: Batches) -> list[Any]:
        calls: list[asyncio.Task[Any]] = []
        for number in range(150):
            calls.append(asyncio.create_task(batches.call(CHECKOUT, asking(number))))
            if number % 7 == 0:  # some come while batches end and begin
                await calls[number // 2]
        return [await call for call in calls]

    answers = with_batches(world, do, size=2)
    assert {answer["status"] for answer in answers} == {"assigned"}
    assert len({answer["block1"] for answer in answers}) == 150
