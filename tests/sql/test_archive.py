"""A production that has ended moves out of the hot tables: whole, once, in nobody's way, and still answers."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.production import fill
from tests.support import World
from tests.whole.test_concurrency import Waiting, held

TABLES = ("slices", "attempts", "reports")


@pytest.fixture
def ended(world: World) -> World:
    """Project "p" with three files at their end: failures, a lost job, a restarted one, and a bad block in the last."""
    world.set(max_failures=1, backoff_s=0, max_fast_failures=10000)
    for seqno in (1, 2, 3):
        world.add_file(4, run=seqno, seqno=seqno)
    world.checkout(0)
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")  # job 1.0 is lost and never heard of again
    world.checkout(1)
    world.checkout(1)
    world.report(1)
    world.checkout(2, host="bad")
    world.report(2, 137, token=None)
    for process in range(3, 13):
        world.checkout(process)
        world.report(process)
    assert world.checkout(20)["block1"] == 4
    world.report(20, 6)
    assert world.checkout(21)["status"] == "no-work"
    world.attempts_pass(1800)
    assert world.progress()["blocks_quarantined"] == 1
    return world


def twenty_minutes_pass(world: World) -> None:
    world.attempts_pass(1200)
    for table, column in (
        ("archived_slices", "opened_at"),
        ("archived_attempts", "opened_at"),
        ("archived_attempts", "started_at"),
        ("archived_reports", "reported_at"),
        ("projects", "tallied_until"),
    ):
        world.db.execute(f"UPDATE osgprod_data.{table} SET {column} = {column} - interval '1200 s'".encode())


def archive(world: World, project: str = "p", **more: object) -> dict[str, Any]:
    return call(world.db, "archive", project=project, **more)[0]


def archive_all(world: World, project: str = "p", limit: int = 3) -> dict[str, int]:
    moved = dict.fromkeys(("files", *TABLES, "waiting"), 0)
    while True:
        batch = archive(world, project, limit=limit)
        assert call(world.db, "verify", project=project, deep=True) == []
        for name in moved:
            moved[name] += batch[name]
        if not batch["more"]:
            return moved


def rows(world: World, table: str) -> list[tuple[Any, ...]]:
    return sorted(
        tuple(row.values()) for row in world.db.execute(f"SELECT * FROM osgprod_data.{table}".encode())
    )


def refused(code: str, world: World, function: str, **arguments: object) -> None:
    with pytest.raises(psycopg.Error) as error:
        call(world.db, function, **arguments)
    assert error.value.sqlstate == code
    assert error.value.diag.message_hint


def told(world: World) -> dict[str, Any]:
    """All that is told of project "p" and does not depend on the moment."""
    jobs = [(1, process) for process in (0, 1, 2, 3, 12, 20)]
    return {
        "progress": [{k: v for k, v in world.progress().items() if k != "state"}],
        "histories": [call(world.db, "job_history", project="p", cluster=c, process=p) for c, p in jobs],
        "rate": [
            {k: v for k, v in row.items() if k != "began_at"}
            for row in call(world.db, "rate", project="p", hours=24)
            if row["done"]
        ],
        "jobs": call(world.db, "list_jobs", project="p", cluster=1),
        **{
            name: call(world.db, name, project="p")
            for name in (
                "totals", "attempts_by_exit", "attempts_by_site", "list_files", "map_files", "quarantined",
                "idle_and_leased", "list_slices",
            )
        },
    }  # fmt: skip


def test_production_with_work_left_is_not_archived(world: World) -> None:
    refused("OG405", world, "archive", project="p")  # it has no files
    world.add_file(2)
    world.checkout(0)
    world.report(0)
    for dry_run in (False, True):
        refused("OG405", world, "archive", project="p", dry_run=dry_run)
    world.checkout(1)
    refused("OG405", world, "archive", project="p")
    assert world.progress()["state"] == "active"
    world.report(1)
    assert archive(world)["more"]


def test_history_moves_in_batches_and_everything_told_stays_the_same(ended: World) -> None:
    before, whole = told(ended), {table: rows(ended, table) for table in TABLES}
    foretold = archive(ended, dry_run=True)
    assert {table: rows(ended, table) for table in TABLES} == whole
    moved = archive_all(ended)
    assert told(ended) == before
    assert (moved["files"], moved["slices"], moved["waiting"]) == (2, 8, 0)
    assert {name: foretold[name] for name in ("files", *TABLES)} == {
        name: moved[name] for name in ("files", *TABLES)
    }
    for table in TABLES:
        assert sorted(rows(ended, table) + rows(ended, f"archived_{table}")) == whole[table]
        assert len(rows(ended, f"archived_{table}")) == moved[table]
        # the file with the bad block, and what was tried on it, stay
        assert len(rows(ended, table)) == len(whole[table]) - moved[table] > 0
    assert archive_all(ended) == dict.fromkeys(moved, 0)
    assert ended.progress()["state"] == "archived"
    health = call(ended.db, "health", project="p")
    assert [(row["level"], row["what"]) for row in health] == [("well", "archived")]


def test_what_is_not_tallied_yet_waits_and_is_counted_once(world: World) -> None:
    world.add_file(2)
    for process in (0, 1):
        world.checkout(process)
        world.report(process)
    moved = archive_all(world)
    assert (moved["slices"], moved["attempts"], moved["waiting"]) == (2, 0, 2)
    assert call(world.db, "rate", project="p", hours=1)
    twenty_minutes_pass(world)
    assert archive_all(world)["attempts"] == 2  # and no tick was needed
    assert call(world.db, "totals", project="p")[0]["reports"] == 2


def test_two_archivings_at_once_count_each_report_once(world: World) -> None:
    world.add_file(2)
    for process in (0, 1):
        world.checkout(process)
        world.report(process)
    archive(world)  # closed
    archive(world)  # the slices
    twenty_minutes_pass(world)
    with held(world) as db:
        assert call(db, "archive", project="p", limit=1)[0]["reports"] == 1
        other = Waiting(world, lambda db: call(db, "archive", project="p", limit=1))
    assert other.result()[0]["reports"] == 1
    assert call(world.db, "totals", project="p")[0]["reports"] == 2


def test_jobs_of_an_archived_production_are_answered_as_before(ended: World) -> None:
    ended.set(token_required=True)
    world = ended
    tokens = {}
    for process in (0, 3):
        tokens[process] = f"{process:08}-0000-0000-0000-000000000000"
        world.db.execute(
            "UPDATE osgprod_data.attempts SET token_digest = sha256(convert_to(%s, 'UTF8')) WHERE process = %s",
            [tokens[process], process],
        )
    archive_all(world)
    assert not any(row[2] in (0, 3) for row in rows(world, "attempts"))
    assert world.checkout(3)["status"] == "completed"
    assert world.checkout(0)["status"] == "no-work"
    assert world.checkout(99)["status"] == "no-work"
    with pytest.raises(psycopg.Error, match="cpus"):
        world.checkout(99, cpus=0)
    again = world.report(3, 0, token=tokens[3])
    assert (again["http_status"], again["status"]) == (200, "done")
    other = world.report(3, 1, token=tokens[3])
    assert (other["http_status"], other["status"]) == (409, "contradicted")
    for _ in range(2):  # it was lost, and had never reported: too late, on record, and never in two places
        late = world.report(0, 0, token=tokens[0])
        assert (late["http_status"], late["status"]) == (409, "superseded")
        assert call(world.db, "verify", project="p", deep=True) == []
        twenty_minutes_pass(world)
        archive_all(world)
    assert world.report(0, 5, token=tokens[0])["status"] == "contradicted"
    assert [row["outcome"] for row in call(world.db, "job_history", project="p", cluster=1, process=0)] == [
        "lost",
        "superseded",
    ]
    assert {row["outcome"]: row["reports"] for row in call(world.db, "totals", project="p")}[
        "superseded"
    ] == 1
    assert world.heartbeat(3, token=tokens[3])["http_status"] == 409
    assert world.report(3, 0, token="wrong")["http_status"] == 403
    with pytest.raises(psycopg.Error, match="no attempt"):
        world.report(99, 0, token="wrong")


def test_archived_production_takes_no_new_work(ended: World) -> None:
    archive_all(ended)
    ended.add_file(3, run=9, project=None)
    refused("OG406", ended, "load_slices", project="p")
    refused("OG406", ended, "recycle", project="p", states=["done"])
    refused("OG406", ended, "recycle", project="p")
    refused("OG406", ended, "set_project", project="p", settings='{"state": "active"}')
    refused("OG108", ended.with_project("q"), "set_project", project="q", settings='{"state": "archived"}')
    refused(
        "OG406", ended, "import_file", project="p", path="/dcache/hd_rawdata_000009_001.evio", size_bytes=4032,
        nblocks=4, slices="[]",
    )  # fmt: skip
    ended.set(lease_s=60, heartbeat_s=0)
    assert ended.progress()["state"] == "archived"
    call(ended.db, "tick")


def test_files_begun_anew_come_out_of_the_archive(ended: World) -> None:
    whole = {table: rows(ended, table) for table in TABLES}
    archive_all(ended)
    call(ended.db, "load_slices", project="p", runs=[1], start_over=True)
    assert ended.progress()["state"] == "active"
    assert (ended.progress()["blocks_uncut"], ended.progress()["blocks_done"]) == (4, 7)
    assert [rows(ended, table) for table in TABLES[1:]] == [whole[table] for table in TABLES[1:]]
    assert rows(ended, "archived_attempts") == []
    refused("OG406", ended, "recycle", project="p", states=["done"], runs=[2])
    call(ended.db, "recycle", project="p", states=["done", "quarantined"], runs=[3])
    # who did work of a file that stays in the archive has done it; the others get new slices
    assert ended.checkout(7)["status"] == "completed"
    processes = iter(range(30, 60))
    while ended.checkout(process := next(processes))["status"] == "assigned":
        ended.report(process)
    assert ended.checkout(0)["status"] == "no-work"
    twenty_minutes_pass(ended)
    assert archive_all(ended)["files"] == 2
    assert [rows(ended, table) for table in TABLES] == [[], [], []]
    call(ended.db, "load_slices", project="p", start_over=True)
    assert rows(ended, "archived_slices") == []
    assert ended.progress()["blocks_uncut"] == 12


def test_another_production_works_while_one_is_archived(ended: World) -> None:
    """Nothing waits for a batch that is not committed: neither the other production, nor the housekeeping, nor even a
    job that comes back to this one."""
    world = ended.with_project("q")
    world.add_file(5, run=7, project=None)
    call(world.db, "load_slices", project="q", runs=[7])
    archive(world)
    with connect(world.dsn) as archiver:
        world.db.execute("SET lock_timeout = '2s'")
        for n in range(6):
            with archiver.transaction():
                more = call(archiver, "archive", project="p", limit=4)[0]["more"]
                strong = world.db.execute(
                    "SELECT relation::regclass, mode FROM pg_locks WHERE pid = %s AND locktype = 'relation'"
                    " AND mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')",
                    [archiver.info.backend_pid],
                ).fetchall()
                assert strong == []
                answer = world.checkout(n, cluster=5, project="q")
                assert answer["status"] == ("assigned" if n < 5 else "no-work")
                if n < 5:
                    assert world.heartbeat(n, cluster=5, project="q")["status"] == "alive"
                    assert world.report(n, cluster=5, project="q")["status"] == "done"
                assert world.checkout(3)["status"] == "completed"
                assert world.report(4)["status"] == "done"
                world.let_leases_run_out()
                call(world.db, "tick")
                call(world.db, "reclaim_lost")
                for project in "pq":
                    assert call(world.db, "verify", project=project, deep=True) == []
                call(world.db, "progress")
            if not more:
                break
        assert not more
        world.db.execute("RESET lock_timeout")


def test_archiving_killed_ten_times_goes_on_where_it_ended(world: World) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    world.with_project("big")
    fill(world.db, "big", runs=8, files=30, blocks=60, a_slice=2, finished=1, in_flight=0, attempts=9999)
    world.attempts_pass(3600)
    whole = {table: len(rows(world, table)) for table in TABLES}

    def moved() -> int:
        counts = " + ".join(f"(SELECT count(*) FROM osgprod_data.archived_{table})" for table in TABLES)
        row = world.db.execute(f"SELECT {counts} AS n".encode()).fetchone()
        assert row
        return int(row["n"])

    def archive_until_killed(victim: psycopg.Connection[dict[str, Any]]) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while call(victim, "archive", project="big", limit=100)[0]["more"]:
                pass

    with ThreadPoolExecutor(1) as thread:
        # Spread over what there is to move: slices first, then attempts with their reports.
        for n in range(10):
            with connect(world.dsn) as victim:
                running = thread.submit(archive_until_killed, victim)
                while moved() <= n * sum(whole.values()) // 12:
                    assert not running.done(), running.result()
                time.sleep(0.005 * chance.random())
                world.db.execute("SELECT pg_terminate_backend(%s)", [victim.info.backend_pid])
                running.result()
            for table in TABLES:
                assert len(rows(world, table)) + len(rows(world, f"archived_{table}")) == whole[table]
            assert call(world.db, "verify", project="big", deep=True) == []
    assert len(rows(world, "archived_slices")) > 0
    assert len(rows(world, "attempts")) > 0, "it was killed before its end"
    while archive(world, "big")["more"]:
        pass
    assert [len(rows(world, table)) for table in TABLES] == [0, 0, 0]


def test_room_that_was_left_is_used_again(world: World) -> None:
    """A production after the other, each archived: the hot tables do not grow."""
    sizes = []
    for n in range(3):
        world.with_project(f"p{n}")
        fill(
            world.db, f"p{n}", runs=4, files=30, blocks=60, a_slice=2, finished=1, in_flight=0, attempts=3000
        )
        world.db.execute("UPDATE osgprod_data.reports SET reported_at = reported_at - interval '1 h'")
        sizes.append(
            [
                row["size"]
                for table in TABLES
                for row in world.db.execute(
                    "SELECT pg_total_relation_size(%s) AS size", [f"osgprod_data.{table}"]
                )
            ]
        )
        while archive(world, f"p{n}")["more"]:
            pass
        world.db.execute("UPDATE osgprod_data.rawdata SET path = %s || path", [f"/{n}"])
        for table in TABLES:
            world.db.execute(f"VACUUM osgprod_data.{table}".encode())  # what autovacuum does by itself
    assert rows(world, "slices") == []
    growth = [(third - second) / first for first, second, third in zip(*sizes, strict=True)]
    assert max(growth) < 0.2, sizes


def test_late_success_on_a_quarantined_block_counts_and_its_file_follows(world: World) -> None:
    world.set(max_failures=1, max_faults=1, backoff_s=0)
    world.add_file(2)
    for process in range(3):  # block 1 is done; block 2 is lost on two nodes, and cornered by that
        world.checkout(process, host=f"wn{process}")
        if process:
            world.let_leases_run_out()
            call(world.db, "reclaim_lost")
        else:
            world.report(process)
    assert world.progress()["blocks_quarantined"] == 1
    world.attempts_pass(1800)
    assert archive_all(world)["files"] == 0
    assert world.report(1)["status"] == "done"
    assert call(world.db, "verify", project="p", deep=True) == []
    twenty_minutes_pass(world)
    assert archive_all(world) == {"files": 1, "slices": 2, "attempts": 3, "reports": 4, "waiting": 0}
    assert world.checkout(1)["status"] == "completed"
    assert world.report(2)["status"] == "superseded"
