"""Merges: outputs of slices become files that are delivered, by the same protocol, and a bad input is done again."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest

from shim.database import call
from tests.support import World

DIGEST = "0" * 64
TEMPLATES = json.dumps({"osgprod_work.bash": DIGEST, "osgprod_merge.bash": DIGEST})


def merged(*kinds: str, run: int = 1) -> str:
    """What the report of a merge lists."""
    return json.dumps(
        [
            {"kind": kind, "url": f"https://s/{kind}_{run:06d}.x", "bytes": 10, "adler32": "1a", "events": 20}
            for kind in kinds
        ]
    )


def slices(world: World, first: int, count: int, project: str = "p") -> None:
    """Does the next slices, each by another job, which delivers a tarball."""
    for n in range(first, first + count):
        answer = world.checkout(n, project=project)
        assert (answer["status"], answer["task"]) == ("assigned", "slice")
        done = {
            "output_url": f"https://s/{n}.tgz",
            "output_bytes": 100 + n,
            "output_adler32": f"{n:x}",
            "events": 11,
        }
        assert world.report(n, project=project, **done)["status"] == "done"
    world.tick()  # which plans the merges of complete files


def merges(world: World) -> list[dict[str, Any]]:
    return world.db.execute("SELECT * FROM osgprod_data.merges ORDER BY merge_id").fetchall()


@pytest.fixture
def merging(world: World) -> World:
    """A project that merges by file, with a file of three blocks."""
    world.set(merge_by="file", backoff_s=0)
    world.add_file(3)
    return world


def test_complete_file_is_merged_once_from_all_its_slices_in_order(merging: World) -> None:
    slices(merging, 0, 3)
    answer = merging.checkout(10)
    assert (answer["status"], answer["task"], answer["workscript"]) == (
        "assigned",
        "merge",
        "osgprod_merge.bash",
    )
    assert answer["filename"] == "000001_001"
    assert (answer["size_bytes"], answer["events"]) == (303, 33)
    assert answer["merge"] == {
        "run": 1,
        "seqno": 1,
        "output_url": "",
        "cleanup": "keep",
        "token_hosts": None,
        "inputs": [f"https://s/{n}.tgz {100 + n} 0000000{n} {n + 1} {n + 2}" for n in range(3)],
    }
    assert merging.checkout(11)["status"] == "wait"
    for _ in range(2):  # a repeated report has the same answer
        answer = merging.report(10, outputs_list=merged("hd_root", "dana_rest"))
        assert (answer["status"], answer["message"]) == ("done", "thank you, the merge is done")
    assert [merge["state"] for merge in merges(merging)] == ["done"]
    assert merging.checkout(11)["status"] == "no-work"
    assert merging.checkout(10)["status"] == "completed"
    found = merging.db.execute(
        "SELECT kind, url, bytes, adler32 FROM osgprod_data.outputs ORDER BY n"
    ).fetchall()
    assert [tuple(row.values()) for row in found] == [
        ("hd_root", "https://s/hd_root_000001.x", 10, "0000001a"),
        ("dana_rest", "https://s/dana_rest_000001.x", 10, "0000001a"),
    ]


def test_lists_say_which_attempt_works_at_a_merge_and_that_it_is_live(merging: World) -> None:
    slices(merging, 0, 3)
    assert merging.checkout(10, site="A")["task"] == "merge"
    jobs = {row["process"]: row for row in call(merging.db, "list_jobs", project="p")}
    assert (jobs[10]["state"], jobs[10]["task"], jobs[10]["merge"]) == ("live", "merge", "000001_001")
    assert (jobs[0]["state"], jobs[0]["task"], jobs[0]["merge"]) == ("done", "slice", None)
    for site in (None, "A"):
        (live,) = call(merging.db, "live_attempts", project="p", site=site)
        assert (live["process"], live["task"], live["merge"]) == (10, "merge", "000001_001")
        assert 21500 < live["lease_left_s"] <= 21600
    (row,) = call(merging.db, "job_history", project="p", cluster=1, process=10)
    assert (row["task"], row["merge"], row["holds_slice"]) == ("merge", "000001_001", True)
    merging.report(10, outputs_list=merged("hd_root"))
    (done,) = (row for row in call(merging.db, "list_jobs", project="p") if row["process"] == 10)
    assert (done["state"], done["task"]) == ("done", "merge")
    assert call(merging.db, "live_attempts", project="p") == []


def test_health_names_merges_without_progress(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    merging.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = now() - interval '3 h' WHERE process = 10"
    )
    found = {row["what"]: row["found"] for row in call(merging.db, "health", project="p")}
    assert found["without-progress"].startswith("1 leased slice or merge")


def test_merge_does_not_change_how_long_a_slice_is_expected_to_take(merging: World) -> None:
    """A merge of a day among slices of a second: backups are offered, and health is impatient, as before."""
    merging.set(heartbeat_s=0)
    slices(merging, 0, 3)
    merging.checkout(10)
    merging.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = now() - interval '1 day' WHERE process = 10"
    )
    merging.report(10, outputs_list=merged("hd_root"))
    merging.add_file(1, seqno=2)
    merging.checkout(11, host="wn1")
    call(merging.db, "tick")  # measures
    merging.db.execute(
        "INSERT INTO osgprod_data.totals (project_id, outcome, reports, ran_s, blocks)"
        " SELECT project_id, 'done', 4, 86400, 3 FROM osgprod_data.projects"
    )
    merging.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = now() - interval '1 h' WHERE process = 11"
    )
    call(merging.db, "tick")
    assert merging.checkout(12, host="wn2")["status"] == "assigned"
    patience = merging.db.execute("SELECT now() - osgprod._patience(1) < interval '80 min' AS it").fetchone()
    assert patience == {"it": True}


def test_jobs_that_are_gone_at_one_access_point_leave_merges_of_another_alone(merging: World) -> None:
    merging.add_file(3, seqno=2)
    slices(merging, 0, 6)
    for schedd in ("ap1", "ap2"):
        assert merging.checkout(10, schedd=schedd, qdate=1)["task"] == "merge"
    lost = call(merging.db, "reclaim_lost", project="p", cluster=1, schedd="ap1")
    assert lost == [{"project": "p", "reclaimed": 1}]
    assert [merge["state"] for merge in merges(merging)] == ["ready", "leased"]


def test_project_that_merges_nothing_assigns_slices_only(world: World) -> None:
    world.add_file(1)
    slices(world, 0, 1)
    assert world.checkout(1)["status"] == "no-work"
    assert merges(world) == []


def test_merge_is_assigned_before_slices(merging: World) -> None:
    merging.add_file(2, seqno=2)
    slices(merging, 0, 3)
    call(merging.db, "tick")
    assert merging.checkout(10)["task"] == "merge"
    assert merging.checkout(11)["task"] == "slice"


def test_job_that_has_no_time_for_a_block_may_still_get_a_merge(merging: World) -> None:
    merging.add_file(2, seqno=2)
    slices(merging, 0, 3)
    call(merging.db, "tick")
    merging.db.execute("UPDATE osgprod_data.paces SET (s_per_block, slow_s_per_block) = (9e6, 9e6)")
    assert merging.checkout(10, time_left_s=0)["status"] == "no-time"
    assert merging.checkout(11, time_left_s=600)["task"] == "merge"
    assert merging.checkout(12, time_left_s=600)["status"] == "no-time"
    assert merging.progress()["blocks_leased"] == 0


def test_bad_input_is_requeued_alone_and_the_merge_succeeds_later(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    answer = merging.report(10, exitcode=3, bad_inputs="2,3")
    assert (answer["status"], "bad inputs 2,3" in answer["message"]) == ("failed", True)
    assert merges(merging)[0]["state"] == "waiting"
    again = merging.checkout(11)
    assert (again["task"], again["block1"], again["block2"]) == ("slice", 2, 3)
    assert merging.checkout(12)["status"] == "wait"
    assert (
        merging.report(11, output_url="https://s/new.tgz", output_bytes=7, output_adler32="7")["status"]
        == "done"
    )
    assert merging.checkout(13)["status"] == "wait", "the merge of the last file is planned by the next tick"
    merging.tick()
    answer = merging.checkout(13)
    assert answer["merge"]["inputs"][1] == "https://s/new.tgz 7 00000007 2 3"
    assert merging.report(13, outputs_list=merged("a"))["status"] == "done"
    lost = merging.db.execute("SELECT process, reason FROM osgprod_data.lost_outputs").fetchall()
    assert [tuple(row.values()) for row in lost] == [(1, "bad input of merge 1")]
    assert merging.report(10, exitcode=3, bad_inputs="2,3")["status"] == "failed"  # the same report again
    assert merging.progress()["blocks_done"] == 3


def test_merge_that_finds_bad_inputs_again_and_again_ends_failed(merging: World) -> None:
    merging.set(max_failures=2)
    slices(merging, 0, 3)
    for n in (10, 20):
        assert merging.checkout(n)["task"] == "merge"
        assert merging.report(n, exitcode=3, bad_inputs="1,2:3,4")["status"] == "failed"
        slices(merging, n + 1, 2)
    assert merging.checkout(30)["status"] == "no-work"
    assert merges(merging)[0]["state"] == "failed"
    events = merging.db.execute("SELECT details FROM osgprod_data.notifications WHERE event = 'merge-failed'")
    assert [row["details"]["merge"] for row in events] == ["000001_001"]


def test_complete_file_without_a_merge_is_named_and_gets_one_from_a_tick(merging: World) -> None:
    slices(merging, 0, 3)
    merging.db.execute("DELETE FROM osgprod_data.merges")
    found = call(merging.db, "verify", project="p")
    assert [(row["path"], row["fault"]) for row in found] == [
        ("/dcache/hd_rawdata_000001_001.evio", "complete, and no merge")
    ]
    merging.tick()
    assert merging.checkout(10)["task"] == "merge"


def test_inputs_that_a_merge_does_not_have_requeue_nothing(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    assert merging.report(10, exitcode=3, bad_inputs="1,3:0,1;x")["status"] == "failed"
    assert merging.progress()["blocks_done"] == 3
    assert merges(merging)[0]["state"] == "ready"


@pytest.mark.parametrize(
    "listed", [None, "", "[]", "{}", "no JSON", '[{"kind": "a", "url": "b"}]', '[["a"], 3]']
)
def test_success_without_size_and_checksum_of_merged_files_is_a_failure(
    merging: World, listed: str | None
) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    answer = merging.report(10, outputs_list=listed)
    assert (answer["http_status"], answer["status"]) == (200, "failed")
    assert merges(merging)[0]["state"] == "ready"


def test_merge_goes_to_another_job_after_its_lease(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    merging.db.execute("UPDATE osgprod_data.merges SET due_at = now() - interval '1 s'")
    merging.let_leases_run_out()
    assert call(merging.db, "tick") == [{"project": "p", "reclaimed": 1}]
    assert merging.heartbeat(10)["status"] == "alive"  # nobody else has it yet
    merging.db.execute("UPDATE osgprod_data.merges SET due_at = now() - interval '1 s'")
    merging.let_leases_run_out()
    merging.tick()
    assert merging.checkout(11)["task"] == "merge"
    assert merging.heartbeat(10)["status"] == "superseded"
    # What the first one delivered may be replaced by now.
    assert merging.report(10, outputs_list=merged("late"))["status"] == "superseded"
    assert merging.report(11, outputs_list=merged("other"))["status"] == "done"
    delivered = call(merging.db, "list_outputs", project="p", what="merged", history=True)
    assert [row["kind"] for row in delivered] == ["other"]


@pytest.mark.parametrize("then", ["requeued", "failed", "retried"])
def test_late_success_counts_when_nobody_has_had_the_merge_since(merging: World, then: str) -> None:
    merging.set(max_failures=1, max_faults=1)
    slices(merging, 0, 3)
    merging.checkout(10)
    for _ in range(1 if then == "requeued" else 5):  # of those on one worker every fourth counts
        merging.db.execute(
            "UPDATE osgprod_data.merges SET due_at = now() - interval '1 s', state = 'leased', is_ready = NULL,"
            " not_before = NULL"
        )
        merging.let_leases_run_out()
        merging.tick()
    if then == "retried":
        call(merging.db, "retry_merges", project="p")
    assert merges(merging)[0]["state"] == ("failed" if then == "failed" else "ready")
    assert merging.report(10, outputs_list=merged("late"))["status"] == "done"
    assert [merge["state"] for merge in merges(merging)] == ["done"]


@pytest.mark.parametrize("how", ["retried", "lost", "recycled"])
def test_repeated_report_of_a_merge_that_was_superseded_since_is_superseded(merging: World, how: str) -> None:
    """A job that got the answer "done" removes the inputs, which the new merge needs."""
    slices(merging, 0, 3)
    merging.checkout(10)
    for _ in range(2):
        assert merging.report(10, outputs_list=merged("a"))["status"] == "done"
    if how == "retried":
        call(merging.db, "retry_merges", project="p", states=["done"])
    elif how == "lost":
        lost = json.dumps([{"cluster": 1, "process": 10, "nstart": 1}])
        call(merging.db, "lose_outputs", project="p", attempts=lost)
    else:
        call(merging.db, "recycle", project="p", states=["done"])
        slices(merging, 20, 3)
    merging.tick()
    for state in ("ready", "leased", "done"):
        assert merges(merging)[-1]["state"] == state
        answer = merging.report(10, outputs_list=merged("a"))
        assert (answer["http_status"], answer["status"]) == (409, "superseded")
        if state == "ready":
            assert merging.checkout(11)["task"] == "merge"
        elif state == "leased":
            assert merging.report(11, outputs_list=merged("a"))["status"] == "done"
    assert merging.report(11, outputs_list=merged("a"))["status"] == "done"


def test_restarted_job_gets_its_merge_again(merging: World) -> None:
    slices(merging, 0, 3)
    first, second = merging.checkout(10), merging.checkout(10)
    assert (second["nstarts"], second["merge"]) == (2, first["merge"])
    assert merging.report(10, outputs_list=merged("a"), token=str(second["token"]))["status"] == "done"
    assert merging.report(10, outputs_list=merged("a"), token=str(first["token"]))["status"] == "superseded"


def test_restarted_jobs_get_their_merges_again_in_one_batch(merging: World) -> None:
    merging.add_file(3, seqno=2)
    slices(merging, 0, 6)
    first = [merging.checkout(n) for n in (10, 11)]
    job = {"project": "p", "cluster": 1, "cpus": 1, "magic": "m", "client": "127.0.0.1"}
    calls = [{"n": n, "process": 10 + n, **job} for n in range(2)]
    again = sorted(call(merging.db, "checkout_slices", calls=json.dumps(calls)), key=lambda row: row["n"])
    assert [(row["nstarts"], row["merge"]) for row in again] == [(2, row["merge"]) for row in first]


def test_stranger_does_not_get_the_merge_of_a_living_job(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10, job_key="secret")
    assert merging.checkout(10, job_key="other")["status"] == "wait"
    assert merging.checkout(10, job_key="secret")["task"] == "merge"


def test_failing_merge_backs_off_and_is_failed_in_the_end(merging: World) -> None:
    merging.set(backoff_s=60, max_failures=2)
    slices(merging, 0, 3)
    for n, state in ((10, "ready"), (11, "failed")):
        assert merging.checkout(n)["task"] == "merge"
        assert merging.report(n, exitcode=1)["status"] == "failed"
        assert merges(merging)[0]["state"] == state
        if state == "ready":
            assert merging.checkout(12)["status"] == "wait"
        merging.db.execute(
            "UPDATE osgprod_data.merges SET not_before = now() - interval '1 s' WHERE not_before > now()"
        )
        merging.tick()
    assert merging.checkout(13)["status"] == "no-work"


def test_one_tick_ends_the_backoffs_of_slices_and_of_merges(merging: World) -> None:
    slices(merging, 0, 3)
    merging.add_file(1, seqno=2)
    merging.set(backoff_s=600)
    for process, task in ((10, "merge"), (11, "slice")):
        assert merging.checkout(process, templates=TEMPLATES)["task"] == task
        assert merging.report(process, 1)["status"] == "failed"
    for table in ("merges", "slices"):
        merging.db.execute(
            f"UPDATE osgprod_data.{table} SET not_before = now() - interval '1 s' WHERE is_ready IS FALSE"
        )
    merging.db.execute("UPDATE osgprod_data.projects SET next_due_at = now() + interval '1 min'")
    merging.tick()
    assert [merging.checkout(process, templates=TEMPLATES)["task"] for process in (12, 13)] == [
        "merge",
        "slice",
    ]


def test_recycled_slice_supersedes_the_merge_that_runs(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    assert len(call(merging.db, "recycle", project="p", states=["done"])) == 3
    assert merging.heartbeat(10)["status"] == "superseded"
    assert merging.report(10, outputs_list=merged("a"))["status"] == "superseded"
    assert [merge["state"] for merge in merges(merging)] == ["waiting"]
    assert call(merging.db, "list_outputs", project="p", what="merged", history=True) == []
    slices(merging, 20, 3)
    merging.checkout(30)
    assert merging.report(30, outputs_list=merged("a"))["status"] == "done"


def test_recycled_slice_supersedes_a_merge_that_is_done(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a"))
    call(merging.db, "load_slices", project="p", start_over=True)
    slices(merging, 20, 3)
    merging.checkout(30)
    merging.report(30, outputs_list=merged("a"))
    assert [merge["state"] for merge in merges(merging)] == ["superseded", "done"]


def test_file_with_quarantined_blocks_is_merged_only_where_that_is_wanted(merging: World) -> None:
    merging.set(max_failures=1)
    slices(merging, 0, 2)
    merging.checkout(2)
    merging.report(2, exitcode=1)
    merging.tick()
    assert merging.checkout(3)["status"] == "no-work"
    assert merges(merging)[0]["state"] == "waiting"
    merging.set(merge_incomplete=True)
    merging.tick()
    answer = merging.checkout(4)
    assert len(answer["merge"]["inputs"]) == 2
    assert merges(merging)[0]["missing"] == "3,4"


@pytest.mark.parametrize("merge_by", ["file", "none"])
def test_late_success_of_a_quarantined_block_takes_back_the_merge_without_it(
    merging: World, merge_by: str
) -> None:
    merging.set(max_failures=1, merge_incomplete=True)
    slices(merging, 0, 2)
    merging.checkout(2)
    merging.lose_leases()
    assert merging.checkout(3)["block1"] == 3
    merging.report(3, exitcode=1)
    merging.tick()
    assert len(merging.checkout(4)["merge"]["inputs"]) == 2
    assert merging.report(4, outputs_list=merged("hist"))["status"] == "done"
    merging.set(merge_by=merge_by)
    assert merging.report(2)["status"] == "done"
    assert [row["state"] for row in merges(merging)] == ["superseded"]
    merging.set(merge_by="file")
    merging.tick()
    assert len(merging.checkout(5)["merge"]["inputs"]) == 3


def quarantine(world: World, *processes: int) -> None:
    """Each of these jobs gets a slice, and fails."""
    world.set(max_failures=1)
    for process in processes:
        assert world.checkout(process)["task"] == "slice"
        world.report(process, exitcode=1)
    world.tick()


@pytest.mark.parametrize("merge_by", ["file", "run"])
def test_file_whose_blocks_are_all_quarantined_gets_no_merge(world: World, merge_by: str) -> None:
    world.set(merge_by=merge_by, backoff_s=0)
    for run in (1, 2):
        world.add_file(1, run=run)
    quarantine(world, 0)
    slices(world, 1, 1)
    found = [merge["state"] for merge in merges(world)]
    assert found == ["waiting", "ready"], "without merge_incomplete it waits"
    world.set(merge_incomplete=True)
    assert world.progress()["merges_left"] == 1
    assert world.checkout(2)["merge"]["run"] == 2
    assert world.report(2, outputs_list=merged("a"))["status"] == "done"
    assert world.checkout(3)["status"] == "no-work"
    assert (world.progress()["merges_left"], world.progress()["is_complete"]) == (0, True)
    (delivery,) = call(world.db, "delivery", project="p")
    assert (delivery["files_delivered"], delivery["files_without_outputs"]) == (1, 1)
    assert (delivery["files_complete"], delivery["is_delivered"]) == (0, True), "nothing waits for a merge"
    call(world.db, "recycle", project="p")
    assert world.progress()["merges_left"] == 1
    slices(world, 4, 1)
    assert world.checkout(5)["merge"]["run"] == 1
    assert world.report(5, outputs_list=merged("a"))["status"] == "done"


def test_ready_merge_is_superseded_when_its_blocks_are_all_quarantined(merging: World) -> None:
    """A failed merge is retried while all its slices are processed again."""
    merging.set(merge_incomplete=True)
    slices(merging, 0, 3)
    call(merging.db, "recycle", project="p", states=["done"])
    quarantine(merging, 3, 4, 5)
    assert [merge["state"] for merge in merges(merging)] == ["superseded"]
    assert merging.checkout(6)["status"] == "no-work"
    assert merging.progress()["merges_left"] == 0


def test_run_is_merged_without_a_file_whose_blocks_are_all_quarantined(world: World) -> None:
    world.set(merge_by="run", merge_incomplete=True)
    for seqno in (1, 2):
        world.add_file(1, seqno=seqno)
    quarantine(world, 0)
    slices(world, 1, 1)
    assert len(world.checkout(2)["merge"]["inputs"]) == 1
    assert merges(world)[0]["missing"] == "1,2"


def test_merge_of_a_run_numbers_the_blocks_through(world: World) -> None:
    world.set(merge_by="run")
    world.add_file(2, run=7, seqno=1)
    world.add_file(1, run=7, seqno=2)
    slices(world, 0, 3)
    answer = world.checkout(10)
    assert (answer["filename"], answer["merge"]["seqno"]) == ("000007", None)
    assert [line.split()[3:] for line in answer["merge"]["inputs"]] == [["1", "2"], ["2", "3"], ["4", "5"]]
    world.report(10, exitcode=3, bad_inputs="4,5")
    again = world.checkout(11)
    assert (again["url"], again["block1"]) == ("/hd_rawdata_000007_002.evio", 1)


def test_more_files_of_a_run_supersede_its_merge(world: World) -> None:
    world.set(merge_by="run")
    world.add_file(1, run=7, seqno=1)
    slices(world, 0, 1)
    world.checkout(10)
    world.report(10, outputs_list=merged("a"))
    world.add_file(1, run=7, seqno=2)
    slices(world, 20, 1)
    assert len(world.checkout(30)["merge"]["inputs"]) == 2
    assert [merge["state"] for merge in merges(world)] == ["superseded", "leased"]


def test_merge_of_an_unloaded_file_is_superseded(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    call(merging.db, "recycle", project="p", states=["done"])
    assert call(merging.db, "unload_slices", project="p", runs=[1])[0]["files"] == 1
    assert merging.heartbeat(10)["status"] == "superseded"
    assert merging.report(10, outputs_list=merged("a"))["status"] == "superseded"
    assert [merge["state"] for merge in merges(merging)] == ["superseded"]
    assert call(merging.db, "list_outputs", project="p") == []
    assert merging.checkout(11)["status"] == "no-work"
    call(merging.db, "load_slices", project="p")
    slices(merging, 20, 3)
    assert merging.checkout(30)["task"] == "merge"


def test_run_without_its_unloaded_file_is_merged_from_the_others(world: World) -> None:
    world.set(merge_by="run")
    world.add_file(1, run=7, seqno=1)
    slices(world, 0, 1)
    world.add_file(1, run=7, seqno=2)
    call(world.db, "unload_slices", project="p", path="%000007_002.evio")
    world.tick()
    assert len(world.checkout(10)["merge"]["inputs"]) == 1


def test_files_that_were_complete_before_are_merged_when_that_is_set(world: World) -> None:
    world.add_file(1)
    slices(world, 0, 1)
    call(world.db, "tick")
    world.set(merge_by="run")
    world.set(merge_by="file")
    assert world.checkout(1)["status"] == "wait"
    world.tick()
    assert world.checkout(1)["filename"] == "000001_001"
    world.report(1, outputs_list=merged("a"))
    with pytest.raises(psycopg.Error, match="project p has 1 done merges by file") as caught:
        world.set(merge_by="run")
    assert caught.value.sqlstate == "OG420"
    world.set(merge_by="none")
    world.set(merge_by="file")
    assert [merge["state"] for merge in merges(world)] == ["superseded", "done"]


def test_merge_that_merge_by_none_keeps_from_being_assigned_is_listed_with_that_reason(
    merging: World,
) -> None:
    slices(merging, 0, 3)
    merging.tick()
    listed = {}
    for merge_by in ("none", "file"):
        merging.set(merge_by=merge_by)
        (row,) = call(merging.db, "list_merges", project="p")
        listed[merge_by] = (row["state"], row["reason"])
    assert listed == {"none": ("ready", "not assigned: merge_by is none"), "file": ("ready", None)}


def test_caller_without_the_merge_script_has_to_fetch_it_first(merging: World) -> None:
    answer = merging.checkout(0, templates=json.dumps({"osgprod_work.bash": DIGEST}))
    assert (answer["status"], answer["task"], answer["workscript"]) == (
        "template",
        "merge",
        "osgprod_merge.bash",
    )
    assert merging.checkout(0, templates=TEMPLATES)["status"] == "assigned"


def test_merge_script_that_can_not_be_read_keeps_no_slice_back_and_is_on_record(merging: World) -> None:
    broken = json.dumps({"osgprod_work.bash": DIGEST, "osgprod_merge.bash": "No such file or directory"})
    for n in range(3):
        assert merging.checkout(n, templates=broken)["task"] == "slice"
        merging.report(n)
    merging.tick()
    assert merging.checkout(3, templates=broken)["status"] == "no-work"
    noted = {"minute": time.time() // 60 * 60, "project": "p", "route": "checkout", "status": 200}
    noted |= {"reason": "mergescript", "message": "merge script x: No such file or directory", "times": 1}
    call(merging.db, "note_answers", answers=json.dumps([noted]))  # as the shim's timer does

    def why() -> str:
        row = merging.db.execute(
            "SELECT osgprod._why_no_merges(p) AS why FROM osgprod_data.projects p WHERE name = 'p'"
        ).fetchone()
        return str((row or {})["why"])

    assert why().startswith("merge script x: No such file or directory (found ")
    assert merging.checkout(4, templates=TEMPLATES)["task"] == "merge"
    merging.report(4, 1)
    assert why() == "None", "merges are assigned, though none was done"
    merging.let_backoff_pass()
    assert merging.checkout(6, templates=TEMPLATES)["task"] == "merge"
    merging.add_file(1, seqno=2)
    assert merging.checkout(5, templates=TEMPLATES)["task"] == "slice"
    merging.report(5)
    merging.tick()
    assert merging.report(6, outputs_list=merged("hists"))["status"] == "done"
    assert why() == "None", "another merge is ready, and merges are assigned"
    merging.set(mergescript=None)
    assert why() == "the project has no mergescript"
    found = {row["what"]: row["found"] for row in call(merging.db, "health", project="p")}
    assert found["merges"] == "merges are not assigned: the project has no mergescript"


def test_two_merges_of_one_file_are_impossible(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    with pytest.raises(psycopg.errors.UniqueViolation):
        merging.db.execute(
            "INSERT INTO osgprod_data.merges (project_id, run, seqno, rawdata_id, state, is_ready)"
            " SELECT project_id, run, seqno, rawdata_id, 'ready', false FROM osgprod_data.merges"
        )


def test_merge_without_inputs_can_not_be_ready_for_a_job(merging: World) -> None:
    slices(merging, 0, 3)
    with pytest.raises(psycopg.errors.CheckViolation):
        merging.db.execute("UPDATE osgprod_data.merges SET inputs = NULL")


def test_many_jobs_at_once_get_each_merge_once(world: World) -> None:
    world.set(merge_by="file")
    for seqno in range(8):
        world.add_file(1, seqno=seqno)
    slices(world, 0, 8)
    call(world.db, "tick")
    answers = world.at_once(16, lambda n, db: world.checkout(100 + n, db=db))
    names = [answer["filename"] for answer in answers if answer["status"] == "assigned"]
    assert sorted(names) == [f"000001_{seqno:03d}" for seqno in range(8)]


def test_job_that_restarts_for_ever_gives_its_merge_up(merging: World) -> None:
    merging.set(max_starts=3)
    slices(merging, 0, 3)
    assert [merging.checkout(10)["task"] for _ in range(3)] == ["merge"] * 3
    answer = merging.checkout(10)
    assert (answer["status"], "has started too often on its work without a report" in answer["message"]) == (
        "wait",
        True,
    )
    assert merging.heartbeat(10)["status"] == "alive"  # until the tick a heartbeat takes the lease up again
    assert merging.checkout(10)["status"] == "wait"
    assert merging.tick() == 1
    assert merging.heartbeat(10)["http_status"] == 409, "a job that has given up does not get the merge back"
    history = call(merging.db, "job_history", project="p", cluster=1, process=10)
    assert any("started again and again without a report" in str(row) for row in history)
    assert (merges(merging)[0]["state"], merges(merging)[0]["faults"]) == ("ready", 1)
    assert merging.checkout(11)["task"] == "merge"


def test_node_faults_of_a_merge_back_off_from_the_second_one_on(merging: World) -> None:
    merging.set(backoff_s=60)
    slices(merging, 0, 3)
    for n, waits in ((10, False), (11, True)):
        assert merging.checkout(n)["task"] == "merge"
        assert merging.report(n, exitcode=137)["status"] == "node-fault"
        assert merges(merging)[0]["is_ready"] is not waits
    assert (merges(merging)[0]["exit_codes"], merges(merging)[0]["failures"]) == ([137, 137], 0)


def test_stopped_project_ends_its_merges_at_their_next_heartbeat_and_blames_nobody(merging: World) -> None:
    slices(merging, 0, 3)
    merging.checkout(10)
    assert call(merging.db, "stop_project", project="p")[0]["stop_project"] == 1
    answer = merging.heartbeat(10)
    assert (answer["http_status"], answer["message"]) == (409, "stop: the operator has stopped this project")
    assert call(merging.db, "stop_project", project="p")[0]["stop_project"] == 0
    assert (merges(merging)[0]["state"], merges(merging)[0]["faults"]) == ("ready", 0)


def test_merge_without_progress_is_requeued_at_once_and_its_job_stays_stopped(merging: World) -> None:
    merging.set(wedged_s=60)
    slices(merging, 0, 3)
    merging.checkout(10)
    assert merging.heartbeat(10, bytes=1)["status"] == "alive"
    merging.db.execute("UPDATE osgprod_data.merges SET progress_at = progress_at - interval '61 s'")
    for _ in range(2):
        answer = merging.heartbeat(10, bytes=1)
        assert (answer["status"], answer["message"]) == ("wedged", "stop: no progress for more than 60 s")
    assert (merges(merging)[0]["state"], merges(merging)[0]["faults"]) == ("ready", 1)


def test_lost_merge_returns_to_its_job_though_another_access_point_has_used_its_numbers(
    merging: World,
) -> None:
    merging.add_file(1, seqno=2)
    slices(merging, 0, 4)
    token = str(merging.checkout(7, schedd="a", qdate=1)["token"])
    merging.db.execute(
        "UPDATE osgprod_data.merges SET due_at = now() - interval '1 s' WHERE state = 'leased'"
    )
    merging.let_leases_run_out()
    assert merging.tick() == 1
    merging.db.execute(  # the other access point's job gets the merge of the second file
        "UPDATE osgprod_data.merges SET is_ready = false WHERE seqno = 1"
    )
    assert merging.checkout(7, schedd="b", qdate=1)["filename"] == "000001_002"
    assert merging.heartbeat(7, token=token)["status"] == "alive"
    assert [merge["state"] for merge in merges(merging)] == ["leased", "leased"]


def test_health_sees_merges_that_restart_or_make_no_progress(merging: World) -> None:
    slices(merging, 0, 3)
    merging.set(max_starts_per_min=100)
    for _ in range(11):
        merging.checkout(10)
    merging.attempts_pass(3 * 3600)
    merging.db.execute("UPDATE osgprod_data.merges SET opened_at = opened_at - interval '3 hours'")
    found = {row["what"]: row["found"] for row in call(merging.db, "health", project="p")}
    assert found["restarting"].startswith("1 job has started 10 times or more, and reported nothing;")
    assert found["restarting"].endswith("; the most starts are 11")
    assert found["without-progress"].startswith("1 leased slice or merge without progress")


def test_job_that_must_end_before_merges_are_done_gets_none(merging: World) -> None:
    for seqno in (2, 3, 4):
        merging.add_file(1, seqno=seqno)
    slices(merging, 0, 6)
    merging.checkout(10)
    merging.attempts_pass(1000)
    merging.db.execute("UPDATE osgprod_data.merges SET opened_at = opened_at - interval '1000 s'")
    assert merging.report(10, outputs_list=merged("a"))["status"] == "done"
    assert merging.checkout(11, time_left_s=1)["task"] == "merge"  # nobody knows yet how long they take
    merging.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
    merging.tick()
    assert merging.checkout(12, time_left_s=1200)["status"] == "no-work"
    assert merging.checkout(13, time_left_s=1300)["task"] == "merge"
    # A restart with less time gives the merge to others, and nothing counts against it.
    assert merging.checkout(13, time_left_s=1200)["status"] == "no-work"
    assert merging.checkout(14)["filename"] == "000001_003"
    assert merges(merging)[2]["faults"] == 0


def test_ready_merge_of_an_incomplete_file_waits_when_that_is_no_longer_wanted(merging: World) -> None:
    merging.set(max_failures=1, merge_incomplete=True)
    slices(merging, 0, 2)
    merging.checkout(2)
    merging.report(2, exitcode=1)
    merging.tick()
    assert merges(merging)[0]["state"] == "ready"
    merging.set(merge_incomplete=False)
    assert merges(merging)[0]["state"] == "waiting"


def test_checkout_writes_nothing_about_the_merge_script(merging: World) -> None:
    """Two shims, one of which can't read it, would write the project's row, which each claim reads, again and again."""
    row = "SELECT xmin::text, ctid::text FROM osgprod_data.projects"
    assert merging.checkout(0, templates=TEMPLATES)["task"] == "slice"  # its work script is a new one
    before = merging.db.execute(row).fetchall()
    for n, digest in ((1, "No such file or directory"), (2, DIGEST)):
        templates = json.dumps({"osgprod_work.bash": DIGEST, "osgprod_merge.bash": digest})
        assert merging.checkout(n, templates=templates)["task"] == "slice"
    assert merging.db.execute(row).fetchall() == before


def test_file_that_an_import_adds_to_a_merged_run_supersedes_its_merge(world: World) -> None:
    """An import that was cut off had brought the first file only."""
    world.set(merge_by="run")

    def take_over(seqno: int) -> None:
        path = world.add_file(1, seqno=seqno, project=None)
        job = {"block1": 1, "block2": 2, "cluster": 9, "process": seqno, "exit_code": 0, "slices_of_job": 1}
        job |= {"ended_at": "2026-01-02", "worker": "127.0.0.1"}
        size = {"size_bytes": world.registered["size_bytes"], "nblocks": 3}
        (row,) = call(world.db, "import_file", project="p", path=path, slices=json.dumps([job]), **size)
        assert (row["status"], row["blocks_done"]) == ("imported", 1)
        world.tick()

    def is_delivered() -> bool:
        return bool(call(world.db, "delivery", project="p")[0]["is_delivered"])

    take_over(0)
    assert len(world.checkout(10)["merge"]["inputs"]) == 1
    assert world.report(10, outputs_list=merged("a"))["status"] == "done"
    assert is_delivered()
    take_over(1)
    assert not is_delivered()
    assert len(world.checkout(11)["merge"]["inputs"]) == 2
    assert world.report(11, outputs_list=merged("a"))["status"] == "done"
    assert is_delivered()
    assert [merge["state"] for merge in merges(world)] == ["superseded", "done"]


def import_merge(world: World) -> str:
    (row,) = call(
        world.db,
        "import_merge",
        project="p",
        path="/dcache/hd_rawdata_000001_001.evio",
        ended_at="2026-01-01",
    )
    return str(row["import_merge"])


def test_bad_input_of_the_original_that_is_imported_again_leaves_the_new_output_alone(world: World) -> None:
    path = world.add_file(1, project=None)
    job = {"block1": 1, "block2": 2, "cluster": 9, "process": 1, "exit_code": 0, "slices_of_job": 1}
    job |= {"ended_at": "2026-01-01", "worker": "127.0.0.1"}
    size = {"size_bytes": world.registered["size_bytes"], "nblocks": 3}
    call(world.db, "import_file", project="p", path=path, slices=json.dumps([job]), **size)
    bad = {"project": "p", "path": path, "ended_at": "2026-01-02", "bad_inputs": "1,2"}
    assert call(world.db, "import_merge", **bad)[0]["import_merge"] == "requeued"
    assert world.checkout(0)["status"] == "assigned"
    assert world.report(0)["status"] == "done"
    assert call(world.db, "import_merge", **bad)[0]["import_merge"] == "unchanged"
    assert world.progress()["blocks_done"] == 1


def test_imported_merge_of_a_file_does_not_count_where_whole_runs_are_merged(world: World) -> None:
    world.set(merge_by="run")
    world.add_file(1)
    slices(world, 0, 1)
    assert import_merge(world) == "unchanged"
    assert world.progress()["merges_left"] == 1
    assert world.checkout(1)["filename"] == "000001"
    assert world.report(1, outputs_list=merged("a"))["status"] == "done"
    assert world.progress()["merges_left"] == 0
    world.set(merge_by="none")  # its done merges are of whole runs all the same
    world.add_file(1, seqno=1, run=2)
    assert import_merge(world) == "unchanged"


def test_merge_that_is_imported_again_after_its_retry_stays_ready(merging: World) -> None:
    slices(merging, 0, 3)
    assert [import_merge(merging), import_merge(merging)] == ["done", "unchanged"]
    call(merging.db, "retry_merges", project="p", states=["done"])
    assert import_merge(merging) == "unchanged"
    assert [merge["state"] for merge in merges(merging)] == ["superseded", "superseded", "ready"]
    merging.tick()
    assert merging.checkout(10)["task"] == "merge"
