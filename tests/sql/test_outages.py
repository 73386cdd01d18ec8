"""Outages burn neither good nodes nor good blocks: the cause is found before anybody is blamed."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import World

FETCH, DELIVERY = {"exitcode": 75, "fault": "fetch"}, {"exitcode": 74, "fault": "delivery"}


def slices(world: World) -> list[dict[str, Any]]:
    return world.db.execute("SELECT * FROM osgprod_data.slices ORDER BY run, seqno, block1").fetchall()


def let_server_be_away(world: World, seconds: int) -> None:
    """Moves everything into the past, in place of an absence of the server."""
    world.db.execute(
        "UPDATE osgprod_data.presence SET seen_at = now() - make_interval(secs => %s)", [seconds]
    )
    world.db.execute("UPDATE osgprod_data.slices SET due_at = due_at - make_interval(secs => %s)", [seconds])
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")


def test_living_jobs_keep_their_slices_when_the_server_was_away_longer_than_a_lease(world: World) -> None:
    """62 s away with leases of 60 s: no new job gets a slice of a living one, and none of these must stop."""
    world.set(lease_s=60, heartbeat_s=20)
    world.add_file(10)
    held = {n: world.checkout(n)["block1"] for n in range(10)}
    call(world.db, "tick")
    let_server_be_away(world, 62)
    for n in range(6):
        assert world.checkout(100 + n)["status"] == "wait"
    call(world.db, "tick")
    assert [world.heartbeat(n)["status"] for n in range(10)] == ["alive"] * 10
    assert held == {row["process"]: row["block1"] for row in slices(world)}


def test_leases_expire_again_once_every_job_had_the_time_to_be_heard(world: World) -> None:
    world.set(lease_s=60, heartbeat_s=20)
    world.add_file(1)
    world.checkout(0)
    call(world.db, "tick")
    let_server_be_away(world, 62)
    call(world.db, "tick")
    assert world.checkout(1)["status"] == "wait"
    for seconds, status in ((62 + 39, "wait"), (2, "assigned")):  # the absence, and two heartbeat intervals
        world.db.execute(
            "UPDATE osgprod_data.presence SET back_at = back_at - make_interval(secs => %s)", [seconds]
        )
        world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
        world.tick()
        assert world.checkout(1)["status"] == status


def test_leases_expire_where_ticks_come_seldom(world: World) -> None:
    """A cron job that calls tick once a minute looks like an absence each time."""
    world.set(lease_s=660, heartbeat_s=300)
    world.add_file(1)
    world.checkout(0)
    call(world.db, "tick")
    lost = []
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() + interval '30 s'")
    for _ in range(4):
        let_server_be_away(world, 60)
        world.db.execute("UPDATE osgprod_data.presence SET back_at = back_at - interval '60 s'")
        lost += call(world.db, "tick")
    assert [row["reclaimed"] for row in lost] == [1]


def test_slice_is_left_to_another_worker_after_a_node_fault(world: World) -> None:
    world.add_file(1)
    world.checkout(0, host="bad")
    world.report(0, 137, host="bad")
    assert world.checkout(1, host="bad")["status"] == "wait", "others may ask"
    assert world.checkout(2, host="good")["status"] == "assigned"


def test_slice_comes_to_the_same_worker_again_when_nobody_else_asks(world: World) -> None:
    world.set(wait_s=30)
    world.add_file(1)
    world.checkout(0, host="only")
    world.report(0, 137, host="only")
    assert world.checkout(1, host="only")["status"] == "wait"
    world.db.execute("UPDATE osgprod_data.slices SET not_before = now() - interval '31 s'")
    assert world.checkout(2, host="only")["status"] == "assigned"


def test_node_faults_make_a_slice_back_off_but_for_the_first(world: World) -> None:
    world.set(backoff_s=60, max_fast_failures=1000)
    world.add_file(1)
    waits = []
    for process in range(6):
        world.checkout(process)
        world.report(process, 137)
        waits.append(
            world.db.execute(
                "SELECT extract(epoch FROM not_before - now())::float AS s FROM osgprod_data.slices"
            ).fetchone()["s"]  # type: ignore[index]
        )
        world.let_backoff_pass()
    assert waits[0] <= 0
    for wait, mean in zip(waits[1:], (60, 120, 240, 480, 960), strict=True):
        assert 0.4 * mean < wait < 1.6 * mean


def test_discounted_failures_end_their_backoff(world: World) -> None:
    """What a node failed before it was banned is assigned to others at once."""
    world.set(max_fast_failures=3, backoff_s=3600)
    world.add_file(3)
    for process in range(3):
        world.checkout(process, host="bad")
        world.report(process, 1, host="bad")
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["bad@127.0.0.1"]
    assert [world.checkout(10 + n, host="good")["status"] for n in range(3)] == ["assigned"] * 3


def test_wrong_setting_counts_against_no_node_no_site_and_no_slice(world: World) -> None:
    world.set(max_fast_failures=2, max_faults=2)
    world.add_file(6)
    for process in range(12):
        host = f"good{process % 6}"
        assert world.checkout(process, host=host, site="S")["status"] == "assigned"
        assert world.report(process, 40, host=host, fault="setting")["status"] == "node-fault"
        world.let_backoff_pass()
    assert call(world.db, "blocked_workers") == []
    assert {(row["state"], row["failures"], row["faults"]) for row in slices(world)} == {("ready", 0, 0)}
    assert {row["exit_code"] for row in call(world.db, "list_attempts", project="p")} == {40}


def test_exit_code_40_of_the_work_itself_counts_as_before(world: World) -> None:
    world.set(max_fast_failures=2)
    world.add_file(3)
    for process in range(2):
        world.checkout(process, host="bad")
        assert world.report(process, 40, host="bad")["status"] == "failed"
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["bad@127.0.0.1"]


def test_job_that_restarts_for_ever_gives_its_slice_up(world: World) -> None:
    world.set(max_starts=5)
    world.add_file(2)
    assert [world.checkout(0, host="short-pilot")["block1"] for _ in range(5)] == [1] * 5
    answer = world.checkout(0, host="short-pilot")
    assert answer["status"] == "wait"
    assert "has started too often on its work without a report (max_starts = 5)" in answer["message"]
    assert world.tick() == 1
    assert world.checkout(0, host="short-pilot")["block1"] == 2, "the first is for another worker"
    history = call(world.db, "job_history", project="p", cluster=1, process=0)
    assert any("started again and again without a report" in str(row) for row in history)
    assert world.checkout(1, host="long-pilot")["block1"] == 1


def test_job_gives_its_slice_up_after_starts_on_that_slice_in_a_row(world: World) -> None:
    world.set(max_starts=3)
    world.add_file(2)
    for block in (1, 2):
        assert world.checkout(0, host="wn1")["block1"] == block
        assert world.report(0, 75, host="wn1")["status"] == "node-fault"
    world.db.execute("UPDATE osgprod_data.slices SET faulted_on = NULL")  # in place of wait_s
    assert [world.checkout(0, host="wn1")["block1"] for _ in range(4)] == [1, 1, 1, None]


def test_job_that_restarts_and_reports_keeps_getting_slices(world: World) -> None:
    world.set(max_starts=3, max_fast_failures=1000)
    world.add_file(9)
    for _ in range(6):
        assert world.checkout(0)["status"] == "assigned"
        world.report(0, 1)
        world.let_backoff_pass()


def test_new_project_ends_work_that_gets_nowhere(
    db: psycopg.Connection[dict[str, Any]], world: World
) -> None:
    row = call(db, "set_project", project="p", settings="{}")
    assert {r["setting"]: r["value"] for r in row}["wedged_s"] == "14400"


def test_site_is_banned_and_unbanned_by_the_operator(world: World) -> None:
    world.add_file(9)
    call(world.db, "ban_worker", project="p", worker="site:SITE_A", seconds=60, reason="no CVMFS")
    with pytest.raises(psycopg.Error, match="no CVMFS"):
        world.checkout(0, host="wn1", site="SITE_A")
    assert world.checkout(1, host="wn1", site="MIT")["status"] == "assigned"
    call(world.db, "ban_worker", project="p", worker="site:SITE_A", seconds=0)
    assert world.checkout(2, host="wn1", site="SITE_A")["status"] == "assigned"


def run_jobs(
    world: World, jobs: int, code: Any, nodes: int = 50, sites: int = 5, first: int = 0, **more: Any
) -> dict[str, int]:
    """Lets jobs ask one after the other, as nodes of several sites; code(answer, node) is what each reports.

    The timer ticks whenever a job has to wait.

    Returns how many were assigned, refused and so on, by status or error code.
    """
    seen: dict[str, int] = {}
    for n in range(first, first + jobs):
        node = n % nodes
        where = {
            "host": f"wn{node}",
            "client": f"127.0.{node % sites}.{node + 1}",
            "site": f"S{node % sites}",
        }
        try:
            answer = world.checkout(n, **where, **more)
        except psycopg.Error as error:
            seen[error.sqlstate or ""] = seen.get(error.sqlstate or "", 0) + 1
            continue
        seen[answer["status"]] = seen.get(answer["status"], 0) + 1
        if answer["status"] != "assigned":
            world.tick()
            continue
        result = code(answer, node)
        if result is not None:
            world.report(n, client=where["client"], host=where["host"], **result)
    return seen


def suspended(world: World) -> list[str]:
    return [
        row["path"]
        for row in world.db.execute(
            "SELECT w.path FROM osgprod_data.loaded_files f JOIN osgprod_data.rawdata w USING (rawdata_id)"
            " WHERE f.suspended_at IS NOT NULL ORDER BY f.run, f.seqno"
        )
    ]


def project(world: World) -> dict[str, Any]:
    row = world.db.execute(
        "SELECT state, pause_cause, pause_reason FROM osgprod_data.projects WHERE name = 'p'"
    ).fetchone()
    assert row
    return row


def time_passes(world: World, seconds: int) -> None:
    """Moves what waits for a time into the past, in place of waiting."""
    world.attempts_pass(seconds)
    for table, columns in (
        ("projects", ("paused_at", "probe_at", "resumed_at")),
        ("loaded_files", ("suspended_at", "retest_at")),
        ("slices", ("not_before",)),
    ):
        for column in columns:
            world.db.execute(
                f"UPDATE osgprod_data.{table} SET {column} = {column} - make_interval(secs => %s)", [seconds]
            )


def not_blamed(world: World) -> None:
    """No node is banned, no block quarantined, and nothing counts against a slice."""
    assert call(world.db, "blocked_workers") == []
    assert world.progress()["blocks_quarantined"] == 0


def test_unreadable_file_is_suspended_and_the_others_go_on(world: World) -> None:
    """50 workers, the first file of three can't be read: 3 attempts are wasted (243 before), and nobody is banned."""
    paths = [world.add_file(40, seqno=n) for n in range(3)]
    wasted = 0

    def code(answer: dict[str, Any], node: int) -> dict[str, Any]:
        nonlocal wasted
        is_bad = answer["url"] == paths[0].removeprefix("/dcache")
        wasted += is_bad
        return FETCH if is_bad else {"exitcode": 0}

    seen = run_jobs(world, 100, code)
    print(f"{wasted} attempts wasted, {seen}")
    assert suspended(world) == [paths[0]]
    assert wasted == 3
    assert seen["assigned"] == 83, "all of the other files is done"
    not_blamed(world)
    assert {row["faults"] + row["failures"] for row in slices(world)} == {0}


def test_suspended_file_is_tried_by_one_job_at_a_time_and_resumes_by_itself(world: World) -> None:
    world.set(backoff_s=0)
    path = world.add_file(10)
    run_jobs(world, 3, lambda answer, node: FETCH)
    assert suspended(world) == [path]
    probes = 0
    for _ in range(4):
        time_passes(world, 600)
        call(world.db, "tick")
        probes += run_jobs(world, 10, lambda answer, node: FETCH, first=1000 + 10 * probes)["assigned"]
    assert probes == 4, "one for each time"
    time_passes(world, 3600)
    call(world.db, "tick")
    run_jobs(world, 1, lambda answer, node: {"exitcode": 0}, first=5000)
    assert suspended(world) == []
    assert run_jobs(world, 20, lambda answer, node: {"exitcode": 0}, first=6000)["assigned"] == 9
    not_blamed(world)


@pytest.mark.parametrize(
    ("failure", "is_resumed"), [(FETCH, True), ({"exitcode": 1}, False)], ids=["fetch", "work"]
)
def test_slice_that_has_arrived_resumes_a_file_that_could_not_be_read_and_no_other(
    world: World, failure: dict[str, Any], is_resumed: bool
) -> None:
    world.set(backoff_s=0)
    path = world.add_file(7)
    world.add_file(2, seqno=2)
    for n in range(9):
        world.checkout(n, host=f"wn{n}")
    world.report(8)
    for n in range(7):
        world.report(n, host=f"wn{n}", **failure)
    assert suspended(world) == [path]
    time_passes(world, 600)
    call(world.db, "tick")
    assert "_001." in world.checkout(100)["url"]
    world.heartbeat(100, bytes=10**9)
    assert (suspended(world) == []) is is_resumed
    world.report(100)
    assert suspended(world) == []


def test_small_job_that_tries_a_suspended_file_leaves_nothing_of_it_ready(world: World) -> None:
    world.set(backoff_s=0, maxblockspercore=40)
    path = world.add_file(80)
    run_jobs(world, 3, lambda answer, node: FETCH)
    assert suspended(world) == [path]
    time_passes(world, 600)
    call(world.db, "tick")
    world.set(maxblockspercore=10)
    probe = world.checkout(100)
    assert (probe["status"], probe["block2"] - probe["block1"]) == ("assigned", 10)
    assert world.checkout(101)["status"] == "wait"
    world.report(100)
    assert suspended(world) == []
    assert run_jobs(world, 20, lambda answer, node: {"exitcode": 0}, first=200)["assigned"] == 7


@pytest.mark.parametrize("time_left_s", [600, 30])
def test_slice_that_a_job_gives_back_is_not_ready_while_its_file_is_suspended(
    world: World, time_left_s: int
) -> None:
    world.set(backoff_s=0, maxblockspercore=20, max_fast_failures=1000)
    path = world.add_file(200)
    assert world.checkout(1, cpus=2)["status"] == "assigned"
    world.attempts_pass(40 * 60)
    world.report(1)  # a minute a block and core
    world.db.execute("UPDATE osgprod_data.pace_looks SET looked_at = '-infinity'")
    call(world.db, "tick")
    kept = world.checkout(50)
    run_jobs(world, 3, lambda answer, node: FETCH, first=100)
    assert suspended(world) == [path]
    again = world.checkout(50, time_left_s=time_left_s)
    assert again["status"] == ("wait" if time_left_s == 600 else "no-time"), kept
    assert [row for row in slices(world) if row["is_ready"]] == []
    assert world.checkout(51)["status"] == "wait"


@pytest.mark.parametrize("suspends_first", [True, False])
def test_no_slice_becomes_ready_beside_a_session_that_suspends_its_file(
    world: World, suspends_first: bool
) -> None:
    world.set(max_faults=100, max_fast_failures=1000)
    path = world.add_file(10)
    for n in range(4):
        assert world.checkout(n, host=f"wn{n}")["status"] == "assigned"
    world.report(3, 1, host="wn3")  # in a backoff, which ends now
    for n in range(2):
        world.report(n, **FETCH, host=f"wn{n}")
    time_passes(world, 3600)
    world.attempts_pass(-3600)
    with connect(world.dsn) as other:
        first, second = (other, world.db) if suspends_first else (world.db, other)
        with first.transaction():
            if suspends_first:
                world.report(2, **FETCH, host="wn2", db=first)
                call(second, "tick")
            else:
                call(first, "tick")
                world.report(2, **FETCH, host="wn2", db=second)
    ready = [row for row in slices(world) if row["is_ready"]]
    assert (suspended(world), bool(ready)) == (([path], False) if suspends_first else ([], True))


def test_file_whose_slices_are_locked_while_it_should_be_tried_stays_suspended(world: World) -> None:
    world.add_file(3)
    run_jobs(world, 3, lambda answer, node: FETCH)
    assert len(suspended(world)) == 1
    time_passes(world, 3600)
    with connect(world.dsn) as other, other.transaction():
        other.execute("SELECT FROM osgprod_data.slices WHERE state = 'ready' FOR NO KEY UPDATE")
        world.tick()
        assert len(suspended(world)) == 1
    world.tick()
    assert world.checkout(900, host="wn9")["status"] == "assigned", "the probe"


def test_failures_of_an_outage_count_against_no_slice_after_the_paused_project_is_stopped(
    world: World,
) -> None:
    for seqno in range(3):
        world.add_file(10, seqno=seqno)
    late = [world.checkout(500 + n, host=f"wn{n}")["status"] for n in range(3)]
    assert late == ["assigned"] * 3
    run_jobs(world, 30, lambda answer, node: DELIVERY)
    assert project(world)["pause_cause"] == "output"
    call(world.db, "stop_project", project="p")
    for n in range(3):
        assert world.report(500 + n, host=f"wn{n}", **DELIVERY)["status"] == "node-fault"
    assert {row["faults"] + row["failures"] for row in slices(world)} == {0}
    not_blamed(world)


def test_suspended_file_is_listed_with_its_reason_and_resumed_by_the_operator(world: World) -> None:
    path = world.add_file(10)
    run_jobs(world, 3, lambda answer, node: FETCH | {"reason": "not fetched: status 404"})
    (row,) = call(world.db, "list_files", project="p", state="suspended")
    assert (row["path"], row["suspend_reason"]) == (
        path,
        "3 workers can't read it; the last: not fetched: status 404",
    )
    assert row["retest_at"] > row["suspended_at"]
    assert call(world.db, "progress")[0]["files_suspended"] == 1
    (found,) = [row for row in call(world.db, "health") if row["what"] == "suspended-files"]
    assert "status 404" in found["found"] and "osgprod slices resume p" in found["advice"]
    assert [row["path"] for row in call(world.db, "resume_files", project="p")] == [path]
    assert call(world.db, "resume_files", project="p") == []
    assert suspended(world) == []
    assert run_jobs(world, 20, lambda answer, node: {"exitcode": 0}, first=100)["assigned"] == 10
    (row,) = call(world.db, "list_operations", project="p", hours=1)[:1]
    assert (row["operation"], row["times"]) == ("resume_files", 1)


def test_health_says_that_nothing_can_be_assigned_while_all_files_with_work_are_suspended(
    world: World,
) -> None:
    """Two of three sites can't read any file: too few for a pause, and the third one may read them later."""
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    for seqno in (2, 3):
        world.add_file(10, seqno=seqno)
    world.checkout(1, host="slow", client="127.0.9.1", site="S9")
    run_jobs(world, 20, lambda answer, node: FETCH, sites=2, first=100)
    assert (len(suspended(world)), project(world)["state"]) == (2, "active")
    (found,) = [row for row in call(world.db, "health") if row["what"] == "suspended-files"]
    assert found["level"] == "bad"
    assert found["found"].startswith("no block can be assigned: 2 files are suspended; hd_rawdata")
    assert "one slice at a time tries each file" in found["advice"]
    world.set(state="draining")
    assert {row["level"] for row in call(world.db, "health")} == {"attention"}
    world.set(state="active")
    world.add_file(1, seqno=4)
    (found,) = [row for row in call(world.db, "health") if row["what"] == "suspended-files"]
    assert found["level"] == "attention", "there is other work"
    assert found["found"].startswith("2 files are suspended; hd_rawdata")


def test_suspended_files_are_tried_at_once_when_a_setting_is_changed(world: World) -> None:
    """Another prefix, for instance, may be the repair."""
    for seqno in range(3):
        world.add_file(10, seqno=seqno)
    world.checkout(1, host="slow", client="127.0.9.1", site="S9")
    run_jobs(world, 20, lambda answer, node: FETCH, sites=2, first=100)
    assert len(suspended(world)) == 3
    world.set(retest_s=60)
    call(world.db, "tick")
    assert world.checkout(2)["status"] == "wait", "nothing has changed"
    world.set(xrootd_prefix="root://door.example.org/")
    call(world.db, "tick")
    seen = run_jobs(world, 9, lambda answer, node: {"exitcode": 0}, first=200)
    assert seen["assigned"] == 9
    assert len(suspended(world)) == 1, "of which a slice is still leased"


def test_project_that_has_paused_itself_is_tried_at_once_when_a_setting_is_changed(world: World) -> None:
    world.add_file(40)
    run_jobs(world, 20, lambda answer, node: DELIVERY)
    for is_changed in (False, True):
        world.set(output_home="https://storage.example.org/outputs" if is_changed else None)
        assert (refused(world, 500) is None) is is_changed
    assert "has paused itself" in str(refused(world, 501)), "one job at a time"
    world.report(500)
    assert project(world)["state"] == "active"


def refused(world: World, process: int) -> psycopg.Error | None:
    """Lets a job ask; the error, if it gets one and no work."""
    try:
        assert world.checkout(process)["status"] == "assigned"
    except psycopg.Error as error:
        return error
    return None


def test_health_says_why_the_project_has_paused_itself(world: World) -> None:
    world.add_file(10)
    run_jobs(world, 3, lambda answer, node: DELIVERY | {"reason": "status 507"})
    found = {row["what"]: row for row in call(world.db, "health")}
    assert found["paused-itself"]["level"] == "bad"
    assert "outputs can't be delivered" in found["paused-itself"]["found"]
    assert "paused" not in found, "it is said once"
    assert "status 507" in call(world.db, "progress")[0]["pause_reason"]
    world.set(state="paused")
    found = {row["what"]: row for row in call(world.db, "health")}
    assert "paused" in found and "paused-itself" not in found


def test_a_file_that_one_worker_cannot_fetch_is_not_suspended(world: World) -> None:
    """The others read it: it is the worker, and that is banned."""
    world.add_file(60)
    run_jobs(world, 100, lambda answer, node: FETCH if node == 0 else {"exitcode": 0}, nodes=4)
    assert suspended(world) == []
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["wn0@127.0.0.1"]


def test_a_blip_of_the_storage_bans_no_node(world: World) -> None:
    """20 nodes, none can fetch for a while: a handful of attempts, no ban (20 of 20 before), and then all goes on."""
    for n in range(5):
        world.add_file(30, seqno=n)
    seen = run_jobs(world, 60, lambda answer, node: FETCH, nodes=20)
    print(seen)
    assert seen["assigned"] == 7
    assert project(world)["pause_cause"] == "input"
    assert suspended(world) == [], "it is not these files"
    time_passes(world, 120)
    seen = run_jobs(world, 200, lambda answer, node: {"exitcode": 0}, nodes=20, first=1000)
    assert seen.get("assigned") == 150, "the first was the probe, and a slice may be one block now"
    assert project(world)["state"] == "active"
    not_blamed(world)


def test_output_that_cannot_be_delivered_pauses_the_project_and_quarantines_nothing(world: World) -> None:
    """With backoff_s=0: 250 attempts, 50 of 50 workers banned, 37 good blocks quarantined before."""
    world.set(backoff_s=0, maxblockspercore=5)
    world.add_file(100)
    seen = run_jobs(world, 100, lambda answer, node: DELIVERY | {"reason": "status 507 no space left"})
    print(seen)
    assert seen["assigned"] <= 3
    row = project(world)
    assert (row["state"], row["pause_cause"]) == ("paused", "output")
    assert "outputs can't be delivered" in row["pause_reason"]
    assert "status 507 no space left" in row["pause_reason"]
    probes = 0
    for hour in range(4):
        time_passes(world, 3600)
        probes += run_jobs(world, 20, lambda answer, node: DELIVERY, first=1000 * (hour + 1))["assigned"]
    assert probes == 4
    assert len({row["block2"] - row["block1"] for row in slices(world)}) <= 3, "a probe is one block"
    time_passes(world, 3600)
    run_jobs(world, 150, lambda answer, node: {"exitcode": 0}, first=9000)
    assert world.progress()["blocks_done"] == 100
    not_blamed(world)


def test_jobs_that_run_when_the_output_fails_count_for_nothing_either(world: World) -> None:
    """A hundred jobs at work all fail to deliver: no slice is split, and the first success resumes the project."""
    world.set(backoff_s=0, max_faults=1, max_failures=1)
    world.add_file(100)
    for n in range(100):
        world.checkout(n, host=f"wn{n}", site=f"S{n % 4}")
    for n in range(99):
        world.report(n, **DELIVERY)
    assert project(world)["pause_cause"] == "output"
    assert {row["faults"] + row["failures"] for row in slices(world)} == {0}
    world.report(99)
    assert project(world)["state"] == "active"
    not_blamed(world)


@pytest.mark.parametrize("fault", [FETCH, DELIVERY], ids=["input", "output"])
def test_failures_before_an_outage_is_seen_at_three_sites_count_for_nothing_either(
    world: World, fault: dict[str, Any]
) -> None:
    """Jobs at two sites fail first: their slices do not back off, and their files resume, when the project pauses."""
    world.set(backoff_s=3600, max_fast_failures=1000)
    for seqno, nblocks in enumerate((7, 7, 6, 1)):
        world.add_file(nblocks, seqno=seqno)
    where = [{"host": f"wn{n}", "client": f"127.0.{n % 2}.{n}", "site": f"S{n % 2}"} for n in range(1, 20)]
    where.append({"host": "late", "client": "127.0.2.1", "site": "S2"})
    for n in (100, 101):
        world.checkout(n, **where[0])
        world.report(n)  # until then all is well
    for n, node in enumerate(where[1:], 1):
        assert world.checkout(n, **node)["status"] == "assigned"
    for n, node in enumerate(where[1:], 1):
        assert project(world)["pause_cause"] is None
        world.report(n, **fault, host=node["host"], client=node["client"])
    assert project(world)["pause_cause"] in ("input", "output")
    assert suspended(world) == []
    waiting = [row for row in slices(world) if row["state"] == "ready"]
    assert len(waiting) == 19
    assert {row["failures"] + row["faults"] for row in waiting} == {0}
    world.tick()
    assert all(row["is_ready"] for row in slices(world) if row["state"] == "ready")


def test_faults_of_a_cause_leave_an_earlier_fault_of_the_slice(world: World) -> None:
    world.set(backoff_s=0, max_faults=9, max_fast_failures=1000)
    for seqno in range(3):
        world.add_file(1, seqno=seqno)
    world.checkout(0, host="bad")
    world.report(0, 137, host="bad")
    world.db.execute("UPDATE osgprod_data.recent_failures SET failed_at = failed_at - interval '2 h'")
    world.let_backoff_pass()
    where = [{"host": f"wn{n}", "client": f"127.0.{n}.1", "site": f"S{n}"} for n in range(3)]
    jobs = {world.checkout(10 + n, **where[n])["filename"]: n for n in range(3)}
    for _, n in sorted(jobs.items(), reverse=True):
        world.report(10 + n, **DELIVERY, host=where[n]["host"], client=where[n]["client"])
    assert project(world)["pause_cause"] == "output"
    assert [row["faults"] for row in slices(world)] == [1, 0, 0]


def test_what_failed_during_a_pause_is_assigned_at_once_when_the_pause_ends(world: World) -> None:
    """However often it was the probe: a backoff of an hour would be the length of the recovery."""
    world.set(backoff_s=3600)
    world.add_file(10)
    run_jobs(world, 10, lambda answer, node: DELIVERY)
    for hour in range(3):
        time_passes(world, 3600)
        run_jobs(world, 3, lambda answer, node: DELIVERY, first=100 * (hour + 1))
    time_passes(world, 3600)
    assert run_jobs(world, 1, lambda answer, node: {"exitcode": 0}, first=1000)["assigned"] == 1
    assert project(world)["state"] == "active"
    seen = run_jobs(world, 20, lambda answer, node: {"exitcode": 0}, first=2000)
    assert seen["assigned"] == 9, (seen, [row for row in slices(world) if row["state"] != "done"])


def test_operator_who_ends_a_pause_ends_the_backoffs_of_the_pause_too(world: World) -> None:
    world.set(backoff_s=3600)
    world.add_file(5)
    run_jobs(world, 5, lambda answer, node: DELIVERY)
    time_passes(world, 3600)
    run_jobs(world, 1, lambda answer, node: DELIVERY, first=100)
    world.set(state="active")
    assert run_jobs(world, 20, lambda answer, node: {"exitcode": 0}, first=2000)["assigned"] == 5
    events = [row["event"] for row in world.db.execute("SELECT event FROM osgprod_data.notifications")]
    assert events.count("project-paused") == events.count("project-resumed") == 1


def test_systematic_fault_of_the_work_script_pauses_the_project(world: World) -> None:
    """Each slice is reported with one event too few: all good blocks were quarantined before."""
    world.set(demand_events=True, backoff_s=60)
    for n in range(11):
        world.add_file(10, seqno=n)
    seen = run_jobs(world, 200, lambda answer, node: {"exitcode": 0, "events": answer["events"] - 1})
    print(seen)
    assert seen["assigned"] <= 40
    assert project(world)["pause_cause"] == "work"
    assert "events read" in project(world)["pause_reason"]
    assert {row["failures"] for row in slices(world)} == {0}
    time_passes(world, 3600)
    run_jobs(world, 200, lambda answer, node: {"exitcode": 0, "events": answer["events"]}, first=5000)
    assert world.progress()["blocks_done"] == 110
    not_blamed(world)


def test_site_that_fails_everything_is_banned_after_a_handful_of_nodes(world: World) -> None:
    """40 nodes of one site fail all, 60 of others don't: some 200 attempts before."""
    for n in range(10):
        world.add_file(30, seqno=n)
    wasted = 0

    def code(answer: dict[str, Any], node: int) -> dict[str, Any]:
        nonlocal wasted
        wasted += node % 5 < 2
        return {"exitcode": 137} if node % 5 < 2 else {"exitcode": 0}

    for n in range(250):
        node = n % 100
        site = "bad" if node % 5 < 2 else f"S{node % 5}"
        client = f"127.0.{9 if site == 'bad' else node % 5}.{node + 1}"
        try:
            answer = world.checkout(n, host=f"wn{node}", site=site, client=client)
        except psycopg.Error as error:
            assert error.sqlstate == "OG601"
            assert site == "bad"
            continue
        if answer["status"] == "assigned":
            world.report(n, client=client, **code(answer, node))
    bans = [row["worker"] for row in call(world.db, "blocked_workers")]
    print(f"{wasted} attempts wasted, {bans}")
    assert bans == ["site:bad"]
    assert wasted <= 10
    assert suspended(world) == []
    assert project(world)["state"] == "active"


@pytest.mark.parametrize(("fault", "cause"), [(FETCH, "input"), (DELIVERY, "output")])
def test_banned_site_does_not_hide_an_outage_that_the_other_sites_share(
    world: World, fault: dict[str, object], cause: str
) -> None:
    """One site of three was broken and banned; then storage failed, and good nodes of the other two were banned."""
    world.set(probe_jobs=0)
    for n in range(12):
        world.add_file(30, seqno=n)
    run_jobs(world, 60, lambda answer, node: {"exitcode": 137 if node % 3 == 2 else 0}, nodes=30, sites=3)
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["site:S2"]
    seen = run_jobs(world, 120, lambda answer, node: fault, nodes=30, sites=3, first=1000)
    assert (project(world)["state"], project(world)["pause_cause"]) == ("paused", cause)
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["site:S2"]
    assert suspended(world) == [] and seen["assigned"] < 20


def test_worker_with_a_new_name_each_time_is_banned_by_its_address(world: World) -> None:
    """570 attempts, 100 blocks quarantined before."""
    world.set(backoff_s=0, max_failures=3)
    world.add_file(100)
    for n in range(5):
        world.checkout(10_000 + n, host=f"good{n}", client=f"127.1.0.{n}", site="S")
    wasted = 0
    for n in range(150):
        try:
            answer = world.checkout(n, host=f"name{n}", client="127.0.0.66")
        except psycopg.Error as error:
            assert error.sqlstate == "OG601"
            continue
        wasted += answer["status"] == "assigned"
        world.report(n, 1, client="127.0.0.66")
    print(f"{wasted} attempts wasted")
    assert wasted <= 10
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["127.0.0.66"]
    assert world.progress()["blocks_quarantined"] == 0
    assert {row["failures"] for row in slices(world) if row["state"] == "ready"} == {0}


def test_first_jobs_of_a_project_are_few_until_they_have_succeeded(world: World) -> None:
    world.set(probe_jobs=3)
    world.add_file(50)
    assert [world.checkout(n)["status"] for n in range(5)] == ["assigned"] * 3 + ["wait"] * 2
    for n in range(3):
        world.report(n)
    assert [world.checkout(10 + n)["status"] for n in range(20)] == ["assigned"] * 20


def test_changed_work_script_is_tested_by_few_jobs_again(world: World) -> None:
    """While the jobs with the former script go on, and count neither as its successes nor as its jobs."""
    world.set(probe_jobs=2)
    world.add_file(90)
    old, new = ({"templates": json.dumps({"osgprod_work.bash": 64 * digit})} for digit in "0a")
    assert run_jobs(world, 2, lambda answer, node: {"exitcode": 0}, **old)["assigned"] == 2
    assert run_jobs(world, 20, lambda answer, node: None, first=10, **old)["assigned"] == 20
    assert run_jobs(world, 9, lambda answer, node: None, first=100, **new) == {"assigned": 2, "wait": 7}
    for n in range(10, 20):
        world.report(n, client=f"127.0.{n % 5}.{n + 1}")
    assert run_jobs(world, 3, lambda answer, node: None, first=200, **new) == {"wait": 3}
    for n in (100, 101):
        world.report(n, client=f"127.0.{n % 5}.{n % 50 + 1}")
    assert run_jobs(world, 5, lambda answer, node: None, first=300, **new)["assigned"] == 5
    assert run_jobs(world, 5, lambda answer, node: None, first=400, **old)["assigned"] == 5, "tested before"
    (row,) = world.db.execute("SELECT tested_scripts FROM osgprod_data.projects").fetchall()
    world.checkout(999)  # by a client that names no script
    assert world.db.execute("SELECT tested_scripts FROM osgprod_data.projects").fetchall() == [row]
    assert row["tested_scripts"] == [16 * "a", 16 * "0"]


@pytest.mark.parametrize("tested", [[], ["0"]])
def test_batch_waits_for_the_test_that_another_batch_is_about_to_begin(
    world: World, tested: list[str]
) -> None:
    """The other batch has noted the new work script and not committed that."""
    held = [json.dumps({"osgprod_work.bash": 64 * digit}) for digit in [*tested, "a"]]
    for process, templates in enumerate(held[:-1]):
        world.add_file(1, seqno=2)
        world.checkout(process, templates=templates)
        world.report(process)
    world.set(probe_jobs=3)
    if tested:
        world.db.execute("UPDATE osgprod_data.projects SET unproven = 0")
    world.add_file(50)

    def batch(db: psycopg.Connection[dict[str, Any]], first: int) -> list[str]:
        common = {"project": "p", "cluster": 1, "cpus": 1, "magic": "m", "client": "127.0.0.1"}
        calls = [
            {"n": n, "process": n, "templates": json.loads(held[-1]), **common}
            for n in range(first, first + 4)
        ]
        rows = call(db, "checkout_slices", calls=json.dumps(calls))
        return [row["status"] for row in sorted(rows, key=lambda row: row["n"])]

    with connect(world.dsn) as other, other.transaction():
        assert batch(other, 100) == ["assigned"] * 3 + ["wait"]
        assert batch(world.db, 200) == ["wait"] * 4
    assert batch(world.db, 300) == ["wait"] * 4
    for process in range(100, 103):
        world.report(process)
    assert batch(world.db, 400) == ["assigned"] * 4


def test_restart_on_its_own_slice_begins_no_test_of_a_changed_work_script(world: World) -> None:
    world.set(probe_jobs=1)
    world.add_file(9)
    old, new = ({"templates": json.dumps({"osgprod_work.bash": 64 * digit})} for digit in "0a")
    for process in (0, 1):
        world.checkout(process, **old)
        world.report(process)
    world.checkout(2, **old)
    with connect(world.dsn) as other, other.transaction():
        other.execute("SELECT FROM osgprod_data.projects FOR NO KEY UPDATE")
        again = world.checkout(2, **new)
        assert (again["status"], again["nstarts"]) == ("assigned", 2)
    (row,) = world.db.execute("SELECT tested_scripts, unproven FROM osgprod_data.projects").fetchall()
    assert (row["tested_scripts"], row["unproven"]) == ([16 * "0"], 0)
    assert [world.checkout(n, **new)["status"] for n in (3, 4)] == ["assigned", "wait"]


def test_client_that_names_no_work_script_begins_no_test(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    (row,) = world.db.execute("SELECT tested_scripts FROM osgprod_data.projects").fetchall()
    assert row["tested_scripts"] == []


def test_changed_work_script_that_fails_pauses_the_project_after_its_first_jobs(world: World) -> None:
    world.set(probe_jobs=3)
    world.add_file(90)
    old, new = ({"templates": json.dumps({"osgprod_work.bash": 64 * digit})} for digit in "0a")
    run_jobs(world, 30, lambda answer, node: {"exitcode": 0}, **old)
    broken = {"exitcode": 1, "reason": "syntax error near line 3"}
    seen = run_jobs(world, 40, lambda answer, node: broken, first=100, **new)
    assert seen == {"assigned": 3, "OG501": 37}
    assert "syntax error near line 3" in project(world)["pause_reason"]
    assert {row["failures"] for row in slices(world)} == {0}


def test_first_jobs_that_all_fail_pause_the_project(world: World) -> None:
    world.set(probe_jobs=5)
    world.add_file(50)
    for n in range(5):
        world.checkout(n, host=f"wn{n}")
    for n in range(5):
        world.report(n, 1, reason="hd_root: no such plugin")
    assert project(world)["pause_cause"] == "work"
    assert "hd_root: no such plugin" in project(world)["pause_reason"]
    assert {row["failures"] for row in slices(world)} == {0}
    time_passes(world, 61)
    assert world.checkout(99)["status"] == "assigned"
    world.report(99)
    assert project(world)["state"] == "active"


@pytest.mark.parametrize("merge_by", ["none", "file"])
def test_job_without_time_does_not_use_up_the_probe_of_a_pause(world: World, merge_by: str) -> None:
    world.set(probe_jobs=1, merge_by=merge_by, mergescript="osgprod_merge.bash")
    world.add_file(5)
    world.checkout(0)
    world.report(0, 1)
    assert project(world)["pause_cause"] == "work"
    time_passes(world, 61)
    assert world.checkout(1, time_left_s=0)["status"] == "no-time"
    assert world.checkout(2)["status"] == "assigned"
    with pytest.raises(psycopg.Error, match="has paused itself"):
        world.checkout(3)


def test_operator_ends_a_pause_that_the_project_began(world: World) -> None:
    world.set(probe_jobs=1)
    world.add_file(5)
    world.checkout(0)
    world.report(0, 1)
    assert project(world)["pause_cause"] == "work"
    world.set(state="active")
    assert (project(world)["pause_cause"], project(world)["state"]) == (None, "active")
    world.set(probe_jobs=0)
    assert world.checkout(1)["status"] == "assigned"


def test_failures_with_the_former_work_script_do_not_fail_the_test_of_a_new_one(world: World) -> None:
    """In a full production a few bad blocks would pause it when somebody edits the script."""
    world.set(probe_jobs=3, backoff_s=0, maxblockspercore=1)
    for seqno in range(2):
        world.add_file(20, seqno=seqno)
    old, new = ({"templates": json.dumps({"osgprod_work.bash": digest * 64})} for digest in "ab")
    run_jobs(world, 10, lambda answer, node: {"exitcode": 0}, **old)
    where = [{"host": f"wn{n}", "client": f"127.0.{n}.1", "site": f"S{n}"} for n in range(4)]
    for n in range(3):
        assert world.checkout(100 + n, **where[n], **old)["status"] == "assigned"
    world.checkout(200, **where[3], **new)
    for n in range(3):
        world.report(100 + n, exitcode=1, host=where[n]["host"], client=where[n]["client"])
    assert project(world)["state"] == "active"
