"""Outputs: delivered files are listed with the versions that made them, and lost ones are made again."""

from __future__ import annotations

import io
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shim import outputs
from shim.database import call
from shim.errors import OperatorError
from shim.evio.errors import EvioError
from shim.export import export_project
from shim.storage import Found, Storage
from tests.sql.test_merges import merged, slices
from tests.support import World

pytestmark = pytest.mark.usefixtures("operator")
DIGEST, OTHER = "0" * 64, "1" * 64


class _Silent:
    def advance(self, count: int = 1) -> None:
        pass


def listed(world: World, **choice: Any) -> list[dict[str, Any]]:
    return call(world.db, "list_outputs", project="p", **choice)


def checked(world: World, requeue: bool = False, **more: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    with Storage() as storage:
        counts = outputs.check(
            "p",
            None,
            storage,
            requeue,
            lambda row: said.append(row["fault"]),
            lambda *_: nullcontext(_Silent()),
            again_s=0,
            **more,
        )
    return counts, said


@pytest.fixture
def merging(world: World) -> World:
    world.set(merge_by="file", backoff_s=0)
    world.add_file(2)
    slices(world, 0, 2)
    return world


def test_outputs_are_listed_with_their_blocks_and_what_holds_them(merging: World) -> None:
    rows = listed(merging)
    names = ("run", "seqno", "block1", "block2", "url", "bytes", "adler32", "events")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (1, 1, 1, 2, "https://s/0.tgz", 100, "00000000", 11),
        (1, 1, 2, 3, "https://s/1.tgz", 101, "00000001", 11),
    ]
    assert {row["merged_in"] for row in rows} == {None}
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a", "b"))
    rows = listed(merging)
    assert [(row["kind"], row["merge_id"], row["merged_in"]) for row in rows] == [
        ("tarball", None, 1), ("tarball", None, 1), ("a", 1, None), ("b", 1, None),
    ]  # fmt: skip
    assert [row["kind"] for row in listed(merging, what="merged")] == ["a", "b"]
    assert [row["kind"] for row in listed(merging, what="final")] == ["a", "b"]
    assert [row["kind"] for row in listed(merging, limit=3)] == ["tarball", "tarball", "a"]
    assert [row["kind"] for row in listed(merging, limit=3, history=True)] == ["tarball", "tarball", "a"]
    assert len(listed(merging, what="slices", runs=[1])) == 2
    assert listed(merging, runs=[2]) == []
    with pytest.raises(psycopg.Error, match="outputs are merged, slices, final or all, not 'x'"):
        listed(merging, what="x")


def test_slice_may_list_several_outputs_which_are_the_inputs_of_its_merge(world: World) -> None:
    world.set(merge_by="file")
    world.add_file(1)
    world.checkout(0)
    world.report(0, outputs_list=merged("a", "b"), output_url="https://s/x.tgz")
    assert [row["kind"] for row in listed(world)] == ["a", "b"]
    world.tick()
    answer = world.checkout(1)
    assert [line.split()[0] for line in answer["merge"]["inputs"]] == [
        "https://s/a_000001.x",
        "https://s/b_000001.x",
    ]


def test_replaced_outputs_stay_on_record(merging: World) -> None:
    call(merging.db, "recycle", project="p", states=["done"])
    slices(merging, 10, 2)
    assert [row["url"] for row in listed(merging)] == ["https://s/10.tgz", "https://s/11.tgz"]
    assert sorted((row["url"], row["state"]) for row in listed(merging, history=True)) == [
        ("https://s/0.tgz", "replaced"), ("https://s/1.tgz", "replaced"),
        ("https://s/10.tgz", "current"), ("https://s/11.tgz", "current"),
    ]  # fmt: skip


def test_output_that_htcondor_brings_home_has_the_url_that_the_operator_set(world: World) -> None:
    world.add_file(1)
    world.checkout(5, cluster=4)
    world.report(5, cluster=4, output_bytes=3, output_adler32="3")
    assert listed(world)[0]["url"] is None
    world.set(output_home="file:///home/{project}")
    assert listed(world)[0]["url"] == "file:///home/p/job_4_5.tar.gz"
    world.set(output_home="file:///home/{cluster}/{process}.tgz")
    assert listed(world)[0]["url"] == "file:///home/4/5.tgz"


def test_output_at_home_has_the_name_that_its_start_gave_it(world: World) -> None:
    world.set(output_home="file:///home", maxblockspercore=1)
    world.add_file(4)
    first = world.checkout(5, cluster=4, exec_version="0.11.0")
    world.report(5, cluster=4, token=str(first["token"]))
    second = world.checkout(5, cluster=4, exec_version="0.11.0", after=str(first["token"]))
    world.checkout(5, cluster=4, exec_version="0.11.0")  # evicted, and started again
    world.report(5, cluster=4)
    for _ in range(2):  # a client that numbers nothing
        world.checkout(6, cluster=4)
    world.report(6, cluster=4)
    # Another queue counts from 1 again: its job has its first start.
    other = world.checkout(5, cluster=4, exec_version="0.11.0", schedd="other", qdate=1)
    world.report(5, cluster=4, token=str(other["token"]))
    assert (second["nstarts"], other["nstarts"]) == (2, 1)
    assert [row["url"].removeprefix("file:///home/job_4_") for row in listed(world)] == [
        "5.tar.gz", "5.3.tar.gz", "6.tar.gz", "5.tar.gz",
    ]  # fmt: skip
    world.set(output_home="file:///home/{cluster}/{process}.{start}.tgz")
    assert [row["url"].removeprefix("file:///home/4/") for row in listed(world)] == [
        "5.1.tgz", "5.3.tgz", "6.2.tgz", "5.1.tgz",
    ]  # fmt: skip


def test_merge_gets_the_output_at_home_of_the_start_that_succeeded(world: World) -> None:
    world.set(merge_by="file", output_home="file:///home")
    world.add_file(3)
    for n in range(3):
        for _ in range(n + 1):
            world.checkout(n, exec_version="0.11.0")
        world.report(n)
    world.tick()
    inputs = world.checkout(10)["merge"]["inputs"]
    assert [line.split()[0].removeprefix("file:///home/job_1_") for line in inputs] == [
        "0.tar.gz", "1.2.tar.gz", "2.3.tar.gz",
    ]  # fmt: skip


def age(world: World) -> None:
    """Makes all reports two hours older."""
    world.db.execute("ALTER TABLE osgprod_data.reports DISABLE TRIGGER USER")
    world.db.execute("UPDATE osgprod_data.reports SET reported_at = reported_at - interval '2 h'")
    world.db.execute("ALTER TABLE osgprod_data.reports ENABLE TRIGGER USER")


def test_output_that_htcondor_may_still_bring_home_is_not_called_lost(world: World) -> None:
    world.set(merge_by="file", output_home="file:///home", max_failures=1, max_faults=1)
    world.add_file(3)
    for n in range(2):
        world.checkout(n)
        world.report(n)
    slices(world, 2, 1)  # this job sends its output itself
    lost = json.dumps([{"cluster": 1, "process": n, "nstart": 1} for n in range(2)])
    for n in (10, 11, 12):
        assert world.checkout(n)["task"] == "merge"
        answer = world.report(n, exitcode=65, bad_inputs="1,2:2,3")
        assert answer["status"] == "node-fault"
        assert [row["state"] for row in call(world.db, "list_merges", project="p")] == ["ready"]
        assert world.checkout(20)["status"] == "wait", "after a while"
        assert call(world.db, "lose_outputs", project="p", attempts=lost) == []
        world.db.execute("UPDATE osgprod_data.merges SET not_before = now() WHERE state = 'ready'")
        world.tick()
    world.checkout(13)
    assert world.report(13, exitcode=65, bad_inputs="1,2:3,4")["status"] == "failed"
    states = world.db.execute(
        "SELECT block1, state::text FROM osgprod_data.slices ORDER BY block1"
    ).fetchall()
    assert [row["state"] for row in states] == ["done", "done", "ready"], (
        "the slice whose job sent its output is requeued"
    )


def test_output_of_a_job_that_goes_on_is_lost_an_hour_after_its_end(world: World) -> None:
    world.set(output_home="file:///home", maxblockspercore=1)
    world.add_file(2)
    first = world.checkout(0)
    world.report(0, token=str(first["token"]))
    world.checkout(0, after=str(first["token"]))
    lost = json.dumps([{"cluster": 1, "process": 0, "nstart": 1}])
    age(world)
    assert call(world.db, "lose_outputs", project="p", attempts=lost) == [], "the job keeps it till it ends"
    world.report(0)
    assert call(world.db, "lose_outputs", project="p", attempts=lost) == [], "it is on its way"
    age(world)
    for dry_run in (True, False):
        rows = call(world.db, "lose_outputs", project="p", attempts=lost, dry_run=dry_run)
        assert [(row["block1"], row["block2"]) for row in rows] == [(1, 2)]


def test_start_that_left_no_report_does_not_keep_an_output_from_being_lost(world: World) -> None:
    world.set(output_home="file:///home", maxblockspercore=1)
    world.add_file(2)
    queue = {"schedd": "ap1", "qdate": 1}
    first = world.checkout(0, **queue)
    world.report(0, token=str(first["token"]))
    world.checkout(0, after=str(first["token"]), **queue)
    token = str(
        world.checkout(0, **queue)["token"]
    )  # started again: nothing was reported of the start before
    lost = json.dumps([{"cluster": 1, "process": 0, "nstart": 1}])
    age(world)
    assert call(world.db, "lose_outputs", project="p", attempts=lost) == [], "the job still runs"
    world.report(0, token=token)
    age(world)
    world.add_file(1, seqno=2)
    assert world.checkout(0, schedd="ap2", qdate=1)["block1"] == 1, (
        "a job of another access point, which still runs"
    )
    assert len(call(world.db, "lose_outputs", project="p", attempts=lost)) == 1


def test_merge_whose_files_are_lost_is_made_again_as_soon_as_merges_are_wanted_again(merging: World) -> None:
    assert merging.checkout(10)["task"] == "merge"
    merging.report(10, outputs_list=merged("a"))
    merging.set(merge_by="none")
    lost = json.dumps([{"cluster": 1, "process": 10, "nstart": 1}])
    assert len(call(merging.db, "lose_outputs", project="p", attempts=lost)) == 1
    states = [row["state"] for row in call(merging.db, "list_merges", project="p")]
    assert states == ["superseded"]
    merging.set(merge_by="file")
    merging.tick()
    assert merging.checkout(11)["task"] == "merge"


def test_lost_outputs_requeue_their_slices_and_supersede_the_merge(merging: World) -> None:
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a"))
    lost = [{"cluster": 1, "process": 1, "nstart": 1, "reason": "is not there"}]
    for dry_run in (True, True, False):
        rows = call(merging.db, "lose_outputs", project="p", attempts=json.dumps(lost), dry_run=dry_run)
        assert [(row["block1"], row["block2"], row["merge_id"]) for row in rows] == [(2, 3, None)]
    assert call(merging.db, "lose_outputs", project="p", attempts=json.dumps(lost)) == []
    assert [row["state"] for row in call(merging.db, "list_merges", project="p")] == ["superseded"]
    assert [
        (row["url"], row["state"]) for row in listed(merging, history=True) if row["state"] == "lost"
    ] == [("https://s/1.tgz", "lost")]
    slices(merging, 20, 1)
    assert merging.checkout(21)["task"] == "merge"
    with pytest.raises(psycopg.Error, match="p_attempts is not an array"):
        call(merging.db, "lose_outputs", project="p", attempts="{}")


def test_lost_merged_file_is_merged_again_from_the_same_slices(merging: World) -> None:
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a"))
    lost = json.dumps([{"cluster": 1, "process": 10, "nstart": 1}])
    assert [row["merge_id"] for row in call(merging.db, "lose_outputs", project="p", attempts=lost)] == [1]
    merging.tick()
    assert merging.checkout(11)["task"] == "merge"
    assert merging.progress()["blocks_done"] == 2


def test_merges_are_retried_when_the_operator_says_so(merging: World) -> None:
    merging.set(max_failures=1)
    merging.checkout(10)
    merging.report(10, exitcode=1)
    assert merging.checkout(11)["status"] == "no-work"
    assert [row["was"] for row in call(merging.db, "retry_merges", project="p", dry_run=True)] == ["failed"]
    assert merging.checkout(11)["status"] == "no-work"
    call(merging.db, "retry_merges", project="p")
    merging.tick()
    assert merging.checkout(11)["task"] == "merge"
    merging.report(11, outputs_list=merged("a"))
    assert [row["was"] for row in call(merging.db, "retry_merges", project="p", states=["done"])] == ["done"]
    merging.tick()
    assert merging.checkout(12)["task"] == "merge"
    assert call(merging.db, "retry_merges", project="p") == []


def test_files_are_counted_by_stage(merging: World) -> None:
    def stage() -> tuple[int, ...]:
        row = call(merging.db, "delivery", project="p")[0]
        return tuple(
            row[name] for name in ("files_in_slices", "files_complete", "files_delivered", "bytes_delivered")
        )

    merging.add_file(1, seqno=2)
    assert stage() == (1, 1, 0, 0)
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a", "b"))
    assert stage() == (1, 0, 1, 20)
    slices(merging, 20, 1)
    assert not call(merging.db, "delivery", project="p")[0]["is_delivered"]
    merging.checkout(30)
    merging.report(30, outputs_list=merged("a"))
    assert call(merging.db, "delivery", project="p")[0]["is_delivered"]


def test_project_is_complete_when_its_last_merge_is_done(merging: World) -> None:
    def found() -> tuple[Any, ...]:
        progress, needed = merging.progress(), call(merging.db, "jobs_needed", project="p")[0]
        return progress["merges_left"], progress["is_complete"], needed["jobs"], needed["is_complete"]

    assert found() == (1, False, 1, False)
    merging.checkout(10)
    assert found() == (1, False, 0, False)
    merging.report(10, outputs_list=merged("a"))
    assert found() == (0, True, 0, True)
    merging.add_file(1, seqno=2)
    assert found()[:2] == (1, False)
    merging.set(merge_by="none")
    assert found()[:2] == (0, False)


def test_project_is_not_complete_while_a_merge_failed_or_waits_for_quarantined_blocks(world: World) -> None:
    def needed() -> tuple[Any, ...]:
        (row,) = call(world.db, "jobs_needed", project="p")
        assert row["is_complete"] is world.progress()["is_complete"]
        return row["jobs"], row["is_complete"], row["reason"]

    world.set(merge_by="file", backoff_s=0, max_failures=1)
    for seqno in (1, 2, 3):
        world.add_file(1, seqno=seqno)
    world.checkout(0)
    assert world.report(0, 1)["status"] == "failed"  # quarantined
    for process in (1, 2):
        world.checkout(process)
        assert world.report(process)["status"] == "done"
    assert needed() == (0, False, "the merges that are left become ready at the next tick")
    world.tick()
    for process in (10, 11):
        assert world.checkout(process)["task"] == "merge"
    assert needed() == (0, False, "all remaining work of project p is leased")
    assert world.report(10, 1)["status"] == "failed"
    assert world.report(11, outputs_list=merged("a"))["status"] == "done"
    failed, waits = (
        "1 merge failed: osgprod merges list p --state failed",
        "1 merge waits for quarantined blocks",
    )
    assert needed() == (0, False, f"{failed}; {waits}: osgprod quarantined p")
    world.set(merge_incomplete="true")
    assert needed() == (0, False, failed)
    call(world.db, "retry_merges", project="p")
    assert needed()[0] == 1
    world.tick()
    world.checkout(20)
    world.report(20, outputs_list=merged("b"))
    assert needed() == (0, True, "no work is left in project p")


def test_jobs_for_merges_that_can_not_be_assigned_are_not_needed_and_it_is_said_why(merging: World) -> None:
    call(merging.db, "tick")
    merging.set(mergescript=None)
    row = call(merging.db, "jobs_needed", project="p")[0]
    assert (row["jobs"], row["merges_ready"], row["is_complete"]) == (0, 1, False)
    assert row["reason"] == "merges are not assigned: the project has no mergescript"


def test_estimate_counts_the_time_for_the_merges_that_are_left(merging: World) -> None:
    def hours_left() -> float | None:
        row = call(merging.db, "estimate", project="p")[0]
        ends_at = row["ends_at"]
        return None if ends_at is None else (ends_at - datetime.now(UTC)).total_seconds() / 3600

    merging.add_file(1, seqno=2)
    merging.add_file(1, seqno=3)
    row = call(merging.db, "estimate", project="p")[0]
    assert (row["merges_left"], row["merge_s"], row["reason"]) == (3, None, None)
    for n in (20, 21):  # jobs that can't merge get slices
        merging.checkout(n, templates='{"osgprod_work.bash": "", "osgprod_merge.bash": "no such file"}')
        merging.report(n)
    merging.tick()
    assert hours_left() is None, "nobody knows how long a merge takes"
    assert call(merging.db, "estimate", project="p")[0]["reason"].startswith("only merges are left, and none")
    merging.checkout(30)
    merging.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = now() - interval '2 h' WHERE merge_id IS NOT NULL"
    )
    merging.report(30, outputs_list=merged("a"))
    assert call(merging.db, "estimate", project="p")[0]["merge_s"] == pytest.approx(7200, abs=60)
    assert hours_left() == pytest.approx(4, abs=0.1), "two merges, one after the other"
    merging.checkout(31)
    merging.checkout(32)
    assert hours_left() == pytest.approx(2, abs=0.1), "two at the same time"


def test_outputs_of_a_file_and_of_a_job_are_what_the_list_says(merging: World) -> None:
    def of(**choice: Any) -> list[tuple[Any, ...]]:
        rows = call(merging.db, "outputs_of", project="p", **choice)
        return [
            (row["block1"], row["merge"], row["url"], row["bytes"], row["state"], row["merged_in"])
            for row in rows
        ]

    file_id = call(merging.db, "list_files", project="p")[0]["file_id"]
    assert of(file_id=file_id) == [
        (1, None, "https://s/0.tgz", 100, "current", None),
        (2, None, "https://s/1.tgz", 101, "current", None),
    ]
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a"))
    assert of(file_id=file_id) == [
        (None, "000001_001", "https://s/a_000001.x", 10, "current", None),
        (1, None, "https://s/0.tgz", 100, "current", "000001_001"),
        (2, None, "https://s/1.tgz", 101, "current", "000001_001"),
    ]
    assert of(cluster=1, process=10) == of(file_id=file_id)[:1]
    assert [row["merge"] for row in call(merging.db, "job_history", project="p", cluster=1, process=10)] == [
        "000001_001"
    ]
    lost = json.dumps([{"cluster": 1, "process": 1, "nstart": 1}])
    call(merging.db, "lose_outputs", project="p", attempts=lost)
    assert of(cluster=1, process=1) == [(2, None, "https://s/1.tgz", 101, "lost", None)]
    assert of(cluster=1, process=10)[0][4] == "replaced"
    assert of(file_id=file_id) == [(1, None, "https://s/0.tgz", 100, "current", None)]
    assert of() == []


# --- verify ----------------------------------------------------------------------------------------------------


def faults(world: World) -> list[str]:
    return [row["fault"] for row in call(world.db, "verify", project="p")]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE osgprod_data.merges SET inputs = inputs[1:1]", "done, and not in merge 1 of its file"),
        ("UPDATE osgprod_data.merges SET inputs = inputs || inputs[1]", "in 2 merges"),
        ("UPDATE osgprod_data.outputs SET kind = 'a'", "merge 1 has 2 files of kind a"),
        ("UPDATE osgprod_data.merges SET nstart = 9", "merge 1 is done without a success on record"),
        (
            "UPDATE osgprod_data.loaded_files SET state = 'allocated'",
            "merge 1 is done, but the file is allocated",
        ),
        (
            "INSERT INTO osgprod_data.lost_outputs SELECT project_id, 1, 0, 1, 'x' FROM osgprod_data.projects",
            "in merge 1, but its output is lost",
        ),
    ],
)
def test_verify_recounts_what_is_in_which_merge(merging: World, change: str, fault: str) -> None:
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a", "b"))
    assert faults(merging) == []
    with pytest.raises(ZeroDivisionError), merging.db.transaction():
        merging.db.execute(change.encode())
        assert fault in faults(merging)
        raise ZeroDivisionError  # undoes it


def test_verify_names_files_of_a_mixed_production(world: World) -> None:
    world.add_file(2)
    for n, digest in enumerate((DIGEST, OTHER)):
        world.checkout(n, templates=json.dumps({"osgprod_work.bash": digest}), exec_version="2", image="i")
        world.report(n, software="recon-4")
    made = [f"osgprod_work.bash {digest[:12]}, 2, i, recon-4" for digest in (DIGEST, OTHER)]
    assert faults(world) == ["done, but by 2 versions: " + "; ".join(made)]
    row = listed(world)[0]
    assert (row["script"], row["digest"], row["exec_version"], row["image"], row["software"]) == (
        "osgprod_work.bash", DIGEST, "2", "i", "recon-4",
    )  # fmt: skip
    assert [row["digest"] for row in call(world.db, "list_versions", project="p")] == [DIGEST, OTHER]


def test_a_text_that_is_no_digest_makes_one_version(world: World) -> None:
    world.set(maxblockspercore=1)
    world.add_file(2)
    for n in range(2):
        world.checkout(n, templates=json.dumps({"osgprod_work.bash": "x" * 65}))
    rows = world.db.execute("SELECT v.digest FROM osgprod_data.versions v").fetchall()
    assert [row["digest"] for row in rows] == ["x" * 64]


@pytest.mark.parametrize(
    ("first", "other"), [("recon-4", "recon-5"), ("recon-4", "recon-3"), ("recon-4", None), (None, "recon-4")]
)
def test_verify_names_files_that_several_versions_of_the_software_made_under_one_script(
    world: World, first: str | None, other: str | None
) -> None:
    world.add_file(3)
    same = {"templates": json.dumps({"osgprod_work.bash": DIGEST}), "exec_version": "2", "image": "i"}
    for n in range(2):
        world.checkout(n, **same)
        world.report(n, software=first)
    assert faults(world) == []
    world.checkout(2, **same)
    world.report(2, software=other)
    assert len(faults(world)) == 1 and faults(world)[0].startswith("done, but by 2 versions: ")


# --- lists, manifest and check ---------------------------------------------------------------------------------


def test_manifest_has_every_output_and_an_empty_project_an_empty_one(merging: World) -> None:
    merging.checkout(10)
    merging.report(10, outputs_list=merged("a", "b"))
    merging.add_file(1, run=2)
    text = io.StringIO()
    assert outputs.manifest("p", None, text) == {"files": 1, "outputs": 4, "bytes": 20}
    found = json.loads(text.getvalue())
    assert (found["project"], found["is_delivered"], len(found["files"])) == ("p", False, 1)
    file = found["files"][0]
    assert [output["kind"] for output in file["merged"]] == ["a", "b"]
    assert [output["blocks"] for output in file["slices"]] == [[1, 2], [2, 3]]
    merging.with_project("empty")
    text = io.StringIO()
    outputs.manifest("empty", None, text)
    assert json.loads(text.getvalue())["files"] == []


def test_each_form_of_the_list_has_all_rows(merging: World) -> None:
    for write in (outputs.write_csv, outputs.write_json, outputs.write_urls):
        text = io.StringIO()
        with outputs.listed(merging.db, "p") as rows:
            assert write(rows, text) == 2
        assert text.getvalue().count("https://s/") == 2
    text = io.StringIO()
    outputs.write_json(iter([]), text)
    assert json.loads(text.getvalue()) == []


def test_list_of_three_times_as_many_outputs_takes_no_more_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_file(1)
    slices(world, 0, 1)
    peaks, had = [], 0
    monkeypatch.setattr(outputs, "ROWS_A_FETCH", 400)
    for count in (1000, 3000):  # two pages are there at a time
        world.db.execute(
            "INSERT INTO osgprod_data.outputs (project_id, cluster, process, nstart, n, kind, url, bytes, adler32)"
            " SELECT a.project_id, a.cluster, a.process, a.nstart, n, 'k' || n, 'https://s/file/' || n, n, '0000001a'"
            " FROM osgprod_data.attempts a, generate_series(%s + 1, %s) n",
            [had, count],
        )
        had = count
        with Path(os.devnull).open("w") as file, outputs.listed(world.db, "p") as rows:
            tracemalloc.start()
            assert outputs.write_csv(rows, file) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_export_has_what_was_delivered_and_a_leased_merge_keeps_its_project(
    merging: World, tmp_path: Path
) -> None:
    merging.checkout(10)
    with pytest.raises(psycopg.Error, match="project p has 1 live attempt"):
        call(merging.db, "remove_project", project="p", force=True)
    merging.report(10, outputs_list=merged("a", "b"))
    rows = export_project("p", tmp_path / "exported")
    assert (rows["merges"], rows["outputs"], rows["lost_outputs"]) == (1, 2, 0)
    call(merging.db, "remove_project", project="p", force=True)
    for table in ("merges", "outputs", "attempts"):
        assert merging.db.execute(f"SELECT FROM osgprod_data.{table}").fetchall() == []


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server that answers HEAD for the files of the dictionary, as XRootD does."""
    import zlib

    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            content = files.get(self.path)
            if self.path.startswith("/redirected"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/redirected"))
            elif self.path.startswith("/broken"):
                self.send_response(503)
            elif content is None:
                self.send_response(404)
            else:
                self.send_response(200)
                self.send_header("Digest", f"adler32={zlib.adler32(content):08x}")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    thread.join()
    server.server_close()


def test_storage_tells_what_is_there_gone_different_or_not_known(
    web: tuple[str, dict[str, bytes]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, files = web
    files["/a"] = b"content"  # adler32 0bcb02fc
    storage = Storage()
    request.addfinalizer(lambda: storage.__exit__())
    assert storage.compare(f"{url}/a", 7, "bcb02fc") == ("", True)
    assert storage.compare(f"{url}/redirected/a", 7, None) == ("", True)
    assert storage.compare(f"{url}/a", 8, None) == ("has 7 of 8 bytes", True)
    assert storage.compare(f"{url}/a", 7, "00000001") == ("has checksum 0bcb02fc, not 00000001", True)
    assert storage.compare(f"{url}/b", 7, None) == ("is not there", True)
    assert not storage.compare(f"{url}/broken", 7, None).is_known
    assert not storage.compare("http://127.0.0.1:1/a", 7, None).is_known
    assert not storage.compare("odd://x/a", 7, None).is_known
    assert not storage.compare(None, 7, None).is_known
    (tmp_path / "a b").write_bytes(b"content")
    assert storage.compare(f"file://{tmp_path}/a%20b", 7, "0bcb02fc") == ("", True)
    assert storage.compare(str(tmp_path / "a b"), 6, None) == ("has 7 of 6 bytes", True)
    assert storage.compare(f"file://{tmp_path}/c", 7, None) == ("is not there", True)


def test_check_requeues_what_is_gone_or_differs_and_nothing_else(
    world: World, web: tuple[str, dict[str, bytes]]
) -> None:
    url, files = web
    world.add_file(4)
    for n, name in enumerate(("good", "short", "gone", "broken")):
        files[f"/{name}"] = b"x" * 10
        world.checkout(n)
        world.report(n, output_url=f"{url}/{name}", output_bytes=10)
    files["/short"] = b"x" * 9
    del files["/gone"]
    counts, said = checked(world, threads=2)
    assert counts == {"same": 1, "bad": 2, "unknown": 1, "requeued": 0}
    assert sorted(said) == ["has 9 of 10 bytes", "is not there", "status 503 Service Unavailable"]
    assert world.progress()["blocks_done"] == 4
    counts, _ = checked(world, requeue=True, dry_run=True)
    assert (counts["requeued"], world.progress()["blocks_done"]) == (2, 4)
    counts, _ = checked(world, requeue=True)
    assert (counts["requeued"], world.progress()["blocks_done"]) == (2, 2)
    again = [world.checkout(10 + n)["block1"] for n in range(2)]
    assert again == [2, 3]
    assert checked(world)[0] == {"same": 1, "bad": 0, "unknown": 1, "requeued": 0}


def test_orphans_are_the_old_files_that_no_report_names(world: World, tmp_path: Path) -> None:
    world.add_file(3)
    (tmp_path / "run 1").mkdir()
    for n, name in enumerate(("job 0.tgz", "replaced.tgz", "lost.tgz", "new.tgz")):
        (tmp_path / "run 1" / name).write_bytes(b"x")
        if name != "new.tgz":
            os.utime(tmp_path / "run 1" / name, (0, 0))
        if n < 2:
            world.checkout(n)
            world.report(n, output_url=f"https://storage/{name.replace(' ', '%20')}", output_bytes=1)
    lost = [{"cluster": 1, "process": 1, "nstart": 1, "reason": "gone"}]
    call(world.db, "lose_outputs", project="p", attempts=json.dumps(lost))
    found: list[str] = []
    for folder in (str(tmp_path), f"file://{tmp_path}"):
        assert outputs.orphans("p", folder, 1.0, found.append) == {"files": 3, "orphans": 1}
    assert found == [f"{tmp_path}/run 1/lost.tgz"] * 2
    assert outputs.orphans("p", str(tmp_path), 0.0, found.append) == {"files": 4, "orphans": 2}
    with pytest.raises(EvioError, match="nowhere"):
        outputs.orphans("p", str(tmp_path / "nowhere"), 0.0, found.append)
    with pytest.raises(EvioError, match="can't be listed"):
        outputs.orphans("p", "https://storage/p", 0.0, found.append)


def test_a_broken_url_of_one_report_does_not_end_the_search_for_orphans(world: World, tmp_path: Path) -> None:
    world.add_file(2)
    for n, url in enumerate(("http://[", "http://[x/named.tgz?a=b")):
        world.checkout(n)
        world.report(n, output_url=url)
    for name in ("named.tgz", "lost.tgz"):
        (tmp_path / name).write_bytes(b"x")
    found: list[str] = []
    assert outputs.orphans("p", str(tmp_path), -1.0, found.append) == {"files": 2, "orphans": 1}
    assert found == [f"{tmp_path}/lost.tgz"]


def test_what_a_failure_or_a_superseded_report_names_is_no_orphan(world: World, tmp_path: Path) -> None:
    world.set(backoff_s=0)
    world.add_file(1)
    world.checkout(0)
    world.report(0, 9, output_url="https://storage/failed_odd.tar.gz")
    world.checkout(1)
    call(world.db, "reclaim_lost", project="p", cluster=1, process=1)
    world.checkout(2)
    world.report(2, output_url="https://storage/good.tgz")
    assert world.report(1, output_url="https://storage/late.tgz")["status"] == "superseded"
    names = ("failed_odd.tar.gz", "late.tgz", "good.tgz", "failed_job_1_0.tar.gz", "job_1_2.tar.gz")
    for name in (*names, "job_1_3.tar.gz", "job_1_2.2.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
    found: list[str] = []
    assert outputs.orphans("p", str(tmp_path), -1.0, found.append) == {"files": 7, "orphans": 2}
    assert sorted(found) == [f"{tmp_path}/job_1_2.2.tar.gz", f"{tmp_path}/job_1_3.tar.gz"]


def test_files_that_a_failed_or_a_superseded_merge_lists_are_no_orphans(world: World, tmp_path: Path) -> None:
    world.set(merge_by="file", backoff_s=0)
    world.add_file(1)
    world.checkout(0)
    world.report(0, output_url="https://storage/job_1_0.tar.gz")

    def listed(*names: str) -> str:
        return json.dumps(
            [{"kind": name, "url": f"https://storage/{name}", "bytes": 1, "adler32": "1"} for name in names]
        )

    world.tick()
    assert world.checkout(1)["task"] == "merge"
    world.report(1, 74, outputs_list=listed("failed-a", "failed-b"))
    assert world.checkout(2)["task"] == "merge"
    call(world.db, "reclaim_lost", project="p", cluster=1, process=2)
    assert world.checkout(3)["task"] == "merge"
    assert world.report(3, outputs_list=listed("a", "b"))["status"] == "done"
    assert world.report(2, outputs_list=listed("late-a", "late-b"))["status"] == "superseded"
    for name in ("failed-a", "failed-b", "a", "b", "late-a", "late-b", "orphan"):
        (tmp_path / name).write_bytes(b"x")
    found: list[str] = []
    assert outputs.orphans("p", str(tmp_path), -1.0, found.append) == {"files": 7, "orphans": 1}
    assert found == [f"{tmp_path}/orphan"]
    rows = call(world.db, "list_outputs", project="p", what="merged", history=True)
    assert [row["kind"] for row in rows] == ["a", "b"], "only what an accepted report lists is an output"
    assert call(world.db, "delivery", project="p")[0]["bytes_delivered"] == 2


def test_orphans_are_not_listed_while_outputs_have_no_url(world: World, tmp_path: Path) -> None:
    world.add_file(2)
    world.checkout(0)
    world.report(0)
    for name in ("job_1_0.tar.gz", "job_1_1.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
    found: list[str] = []
    with pytest.raises(OperatorError, match="have no URL") as caught:
        outputs.orphans("p", str(tmp_path), -1.0, found.append)
    assert "output_home" in caught.value.hint and found == []
    world.set(output_home=f"file://{tmp_path}")
    assert outputs.orphans("p", str(tmp_path), -1.0, found.append) == {"files": 2, "orphans": 1}
    assert found == [f"{tmp_path}/job_1_1.tar.gz"]


def test_interrupted_check_has_requeued_nothing(world: World, web: tuple[str, dict[str, bytes]]) -> None:
    world.add_file(3)
    for n in range(3):
        world.checkout(n)
        world.report(n, output_url=f"{web[0]}/{n}", output_bytes=10)

    def interrupt(row: dict[str, Any]) -> None:
        if row["block1"] == 2:
            raise KeyboardInterrupt

    silent = lambda *_: nullcontext(_Silent())  # noqa: E731
    with pytest.raises(KeyboardInterrupt), Storage() as storage:
        outputs.check("p", None, storage, True, interrupt, silent, 1, again_s=0)
    assert world.progress()["blocks_done"] == 3


def test_slices_whose_outputs_were_removed_after_the_merge_are_requeued_by_a_check_after_retry(
    world: World, web: tuple[str, dict[str, bytes]]
) -> None:
    """As merge_cleanup=delete leaves them. The merge itself names no bad inputs where three or more are gone."""
    url, files = web
    world.set(merge_by="file", backoff_s=0)
    world.add_file(3)
    for n in range(3):
        world.checkout(n)
        world.report(n, output_url=f"{url}/{n}", output_bytes=10)
    world.tick()
    assert world.checkout(10)["task"] == "merge"
    made = {"kind": "a", "url": f"{url}/a", "bytes": 1, "adler32": "00790079"}
    assert world.report(10, outputs_list=json.dumps([made]))["status"] == "done"
    files["/a"] = b"x"
    assert checked(world, requeue=True)[0] == {"same": 1, "bad": 0, "unknown": 0, "requeued": 0}
    call(world.db, "retry_merges", project="p", states=["done"])
    assert checked(world, requeue=True)[0] == {"same": 0, "bad": 3, "unknown": 0, "requeued": 3}
    assert world.checkout(11)["task"] == "slice"


def test_check_leaves_a_merge_alone_that_removed_its_inputs_meanwhile(world: World, tmp_path: Path) -> None:
    """As with merge_cleanup=delete: the check has listed the inputs before the merge was done."""
    (tmp_path / "a").write_bytes(b"x")
    made = {"kind": "a", "url": str(tmp_path / "a"), "bytes": 1, "adler32": "00790079"}
    world.set(merge_by="file", backoff_s=0)
    world.add_file(2)
    for n in range(2):
        world.checkout(n)
        world.report(n, output_url=str(tmp_path / f"{n}.gz"), output_bytes=10)
    world.tick()
    assert world.checkout(10)["task"] == "merge"

    class Meanwhile(Storage):
        def compare(self, url: str | None, size: int | None, adler32: str | None) -> Found:
            assert world.report(10, outputs_list=json.dumps([made]))["status"] == "done"
            return super().compare(url, size, adler32)

    said: list[dict[str, Any]] = []
    silent = lambda *_: nullcontext(_Silent())  # noqa: E731
    with Meanwhile() as storage:
        counts = outputs.check("p", None, storage, True, said.append, silent, 1, again_s=0)
    assert (counts, said) == ({"same": 0, "bad": 0, "unknown": 0, "requeued": 0}, [])
    assert world.progress()["blocks_done"] == 2
    assert checked(world)[0] == {"same": 1, "bad": 0, "unknown": 0, "requeued": 0}


def test_outputs_of_merged_slices_are_checked_only_when_that_is_asked_for(
    merging: World, web: tuple[str, dict[str, bytes]]
) -> None:
    merging.checkout(10)
    listed_ = [{"kind": "a", "url": f"{web[0]}/a", "bytes": 1, "adler32": "1"}]
    merging.report(10, outputs_list=json.dumps(listed_))
    web[1]["/a"] = b"x"
    assert checked(merging)[1] == ["has checksum 00790079, not 00000001"]
    assert checked(merging, requeue=True)[0]["requeued"] == 1
    merging.tick()
    assert merging.checkout(11)["task"] == "merge"
