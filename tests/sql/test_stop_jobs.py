"""Stopping the running jobs of one worker or site: their work is requeued, and nobody is blamed."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call
from tests.sql.test_backups import in_tail
from tests.support import Run, World
from tests.whole.test_concurrency import held

MERGED = json.dumps([{"kind": "a", "url": "https://s/a", "bytes": 1, "adler32": "1"}])
STOPPED = "stop: the operator has stopped the jobs of site:A"


@pytest.fixture
def busy(world: World) -> World:
    """Jobs 0 and 1 run at site A, on two nodes, job 2 at site B."""
    world.add_file(3)
    for process, site in enumerate("AAB"):
        world.checkout(process, site=site, host=f"wn{process}")
    return world


def stop(world: World, worker: str = "site:A", **more: Any) -> int:
    stopped: int = call(more.get("db", world.db), "stop_jobs", project="p", worker=worker)[0]["stop_jobs"]
    return stopped


def slices(world: World) -> list[dict[str, Any]]:
    return world.db.execute("SELECT * FROM osgprod_data.slices ORDER BY rawdata_id, block1").fetchall()


def reports_of(world: World, process: int) -> list[dict[str, Any]]:
    return world.db.execute("SELECT * FROM osgprod_data.reports WHERE process = %s", [process]).fetchall()


@pytest.mark.parametrize(
    ("worker", "stopped"),
    [
        ("site:A", {0, 1}),
        ("site:B", {2}),
        ("wn1", {1}),
        ("wn1@127.0.0.1", {1}),
        ("127.0.0.1", {0, 1, 2}),
        ("all", {0, 1, 2}),
        ("site:C", set()),
    ],
)
def test_jobs_of_a_worker_or_a_site_are_told_to_end_and_the_others_go_on(
    busy: World, worker: str, stopped: set[int]
) -> None:
    assert stop(busy, worker) == len(stopped)
    assert stop(busy, worker) == 0
    for _ in range(2):  # a job that sends heartbeats on and on does not get its slice back
        for process in range(3):
            answer = busy.heartbeat(process)
            if process in stopped:
                assert answer["http_status"] == 409
                assert answer["message"] == f"stop: the operator has stopped the jobs of {worker}"
            else:
                assert answer["status"] == "alive"


def test_work_of_stopped_jobs_is_assigned_to_others_at_once_and_nothing_is_counted(busy: World) -> None:
    call(busy.db, "ban_worker", project="p", worker="site:A", seconds=600)
    assert stop(busy) == 2
    assert {(row["failures"], row["faults"], row["exit_codes"]) for row in slices(busy)} == {(0, 0, None)}
    assert [row["worker"] for row in call(busy.db, "blocked_workers")] == ["site:A"]
    with pytest.raises(psycopg.Error, match="banned"):
        busy.checkout(10, site="A", host="wn0")
    assert [busy.checkout(11 + n, site="B", host="wn9")["block1"] for n in range(2)] == [1, 2]
    (row,) = call(busy.db, "job_history", project="p", cluster=1, process=0)
    assert (row["outcome"], row["reason"]) == ("superseded", STOPPED.removeprefix("stop: "))
    (logged,) = [row for row in call(busy.db, "list_operations") if row["operation"] == "stop_jobs"]
    assert (logged["times"], logged["details"]) == (2, {"worker": "site:A"})


def test_success_of_a_stopped_job_counts_if_nobody_was_faster(busy: World) -> None:
    stop(busy)
    busy.checkout(11, site="B", host="wn9")
    busy.report(11)
    assert busy.report(0)["status"] == "superseded"
    assert busy.report(1)["status"] == "done"


def test_merge_of_a_stopped_job_is_requeued(world: World) -> None:
    world.set(merge_by="file", mergescript="merge.bash")
    world.add_file(1)
    world.checkout(0)
    world.report(0, output_url="https://s/0", output_bytes=1, output_adler32="1")
    world.tick()
    assert world.checkout(1, site="A")["task"] == "merge"
    assert stop(world) == 1
    assert world.heartbeat(1)["message"] == STOPPED
    (merge,) = call(world.db, "list_merges", project="p")
    assert (merge["state"], merge["failures"]) == ("ready", 0)
    assert world.checkout(2, site="B")["task"] == "merge"
    assert world.report(2, outputs_list=MERGED)["status"] == "done"


@pytest.mark.parametrize(
    ("worker", "stopped", "holder"), [("wn1", {1}, {7}), ("wn7", {7}, {1}), ("127.0.0.1", {1, 2, 7}, set())]
)
def test_backup_and_holder_are_stopped_each_by_where_it_runs(
    world: World, worker: str, stopped: set[int], holder: set[int]
) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["block1"] == 2  # as backup of job 1
    assert stop(world, worker) == len(stopped)
    for process in (1, 2, 7):
        answer = world.heartbeat(process, **({"job_key": f"key {process}"} if process != 7 else {}))
        assert (answer["status"] != "alive") == (process in stopped)
        assert answer["status"] == "alive" or answer["message"] == STOPPED.replace("site:A", worker)
    held_by = {row["process"] for row in slices(world) if row["state"] == "leased" and row["block1"] == 2}
    assert held_by == holder


def test_nothing_is_waited_for_and_what_is_locked_is_stopped_by_the_next_call(busy: World) -> None:
    with held(busy) as db, held(busy) as operator:
        job = {"project": "p", "cluster": 1, "process": 0, "magic": "m", "client": "127.0.0.1"}
        assert call(db, "heartbeat", **job)[0]["status"] == "alive"
        operator.execute("SET LOCAL lock_timeout = '1s'")
        assert stop(busy, db=operator) == 1
    assert stop(busy) == 1


def test_call_waits_for_no_split_of_the_slice_before(world: World) -> None:
    world.set(maxblockspercore=2, max_failures=1)
    world.add_file(6)
    for process, site in enumerate("BAA"):
        world.checkout(process, site=site, host=f"wn{process}")
    with held(world) as db, held(world) as operator:
        assert world.report(0, 1, db=db)["status"] == "failed", "its slice is split"
        operator.execute("SET LOCAL lock_timeout = '1s'")
        assert stop(world, db=operator) == 0
    assert stop(world) == 2


def test_job_that_was_silent_for_a_lease_does_not_get_its_slice_back(busy: World) -> None:
    busy.let_leases_run_out()
    assert busy.tick() == 3
    assert stop(busy) == 2
    assert [busy.heartbeat(process)["http_status"] for process in (0, 1)] == [409, 409]
    assert busy.heartbeat(2)["status"] == "alive"


@pytest.mark.parametrize("exit_code", [0, 1])
def test_backup_that_has_ended_is_not_stopped_and_its_slice_gets_no_other_one(
    world: World, exit_code: int
) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["block1"] == 2
    world.report(7, exit_code)
    assert stop(world, "wn7") == 0
    call(world.db, "tick")
    assert world.checkout(8, host="wn8")["status"] != "assigned"
    assert [row["by_worker"] for row in reports_of(world, 7)] == [True]


def test_call_without_a_worker_or_with_its_merges_alone_is_refused(world: World) -> None:
    for worker in ("", None, "merges:wn1"):
        with pytest.raises(psycopg.Error) as refused:
            call(world.db, "stop_jobs", project="p", worker=worker)
        assert refused.value.sqlstate == "OG108"


def test_command_stops_the_jobs_of_a_site(busy: World, run: Run) -> None:
    preview = run("workers", "stop", "p", "--site", "A", "--dry-run")
    assert "2 attempts would be stopped, each at its next heartbeat" in preview.output
    assert busy.heartbeat(0)["status"] == "alive"
    done = run("workers", "stop", "p", "--site", "A")
    assert "2 attempts are stopped, each at its next heartbeat" in done.output
    assert busy.heartbeat(0)["message"] == STOPPED
    assert run("workers", "stop", "p").exit_code == 2
