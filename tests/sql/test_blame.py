"""Whose fault it is when many jobs are in flight at once: the storage, a site, a file, or the merges."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.sql.test_merges import TEMPLATES, merged, merges, slices
from tests.sql.test_outages import DELIVERY, FETCH, project, suspended, time_passes
from tests.sql.test_plans import count_at_once
from tests.support import World

NO_PROGRAM = {"exitcode": 127, "fault": "program"}


class Grid:
    """Jobs in flight on nodes of sites: they start, and each reports later."""

    def __init__(self, world: World) -> None:
        self.world, self.next = world, 0
        self.jobs: dict[int, dict[str, Any]] = {}

    def start(self, site: str, count: int = 1, first: int = 0, **more: Any) -> list[int]:
        """Lets so many nodes of a site ask for work; returns the jobs that got some."""
        started = []
        for node in range(first, first + count):
            job, self.next = self.next, self.next + 1
            where = {"host": f"{site}{node}", "client": f"127.0.{ord(site[0])}.{node + 1}"}
            try:
                answer = self.world.checkout(job, site=site, **where, **more)
            except psycopg.Error as error:
                assert error.sqlstate in ("OG501", "OG601")
                continue
            if answer["status"] == "assigned":
                self.jobs[job] = where | {"task": answer["task"]}
                started.append(job)
        return started

    def end(self, jobs: list[int], **result: Any) -> None:
        """Lets jobs report."""
        for job in jobs:
            where = {name: self.jobs[job][name] for name in ("host", "client")}
            self.world.report(job, **where, **result)


@pytest.fixture
def grid(world: World) -> Grid:
    return Grid(world)


def banned(world: World) -> list[str]:
    return sorted(row["worker"] for row in call(world.db, "blocked_workers"))


def by_turns(*groups: list[int]) -> list[int]:
    """One of each group, then the next of each."""
    return [job for row in zip(*groups, strict=True) for job in row]


def test_storage_outage_bans_no_site_while_hundreds_of_jobs_are_in_flight(world: World, grid: Grid) -> None:
    """Most are on one file, which is suspended first: the failures of the next one must not look like a site's."""
    world.set(backoff_s=0)
    for seqno in range(2):
        world.add_file(90, seqno=seqno)
    running = [grid.start(site, 30) for site in "PQR"]
    grid.end(by_turns(*running), **FETCH)
    for turn in range(4):
        running = [grid.start(site, 5, first=5 * turn) for site in "PQR"]
        for jobs in running:
            grid.end(jobs, **FETCH)
    assert banned(world) == []
    assert project(world)["pause_cause"] == "input"
    assert suspended(world) == []
    assert {
        row["faults"] + row["failures"] for row in world.db.execute("SELECT * FROM osgprod_data.slices")
    } == {0}
    time_passes(world, 120)
    grid.end(grid.start("R"))
    assert project(world)["state"] == "active"


@pytest.mark.parametrize("fault", [FETCH, DELIVERY])
def test_site_with_most_of_the_jobs_is_not_banned_before_others_succeed(
    world: World, grid: Grid, fault: dict[str, Any]
) -> None:
    """Its failures come first: what they mean is known once somebody else has fetched or delivered, or failed to."""
    world.set(suspend_after=100)
    for seqno in range(3):
        world.add_file(10, seqno=seqno)
    most, others = grid.start("P", 25), grid.start("Q", 4)
    grid.end(most[:20], **fault)
    assert banned(world) == []
    if fault == FETCH:
        others = grid.start("Q", first=10)
    grid.end(others)
    grid.end(grid.start("P", 1, first=30), **fault)
    assert banned(world) == ["site:P"]


def test_pause_ends_the_bans_of_sites_that_the_same_cause_made(world: World, grid: Grid) -> None:
    world.set(block_worker_s=86400)
    world.add_file(200)
    p, q, r, s = (grid.start(site, 6) for site in "PQRS")
    grid.end(p[:4], **DELIVERY)
    grid.end(q[:1])
    grid.end(r[:1], **DELIVERY)
    grid.end(p[4:], **DELIVERY)
    assert banned(world) == ["site:P"], "others had delivered since"
    grid.end([q[1], s[0]], **DELIVERY)
    assert project(world)["pause_cause"] == "output"
    assert banned(world) == []


@pytest.mark.parametrize(("fault", "hours"), [(DELIVERY, 6), ({"exitcode": 137}, 2)])
def test_site_whose_jobs_fail_after_hours_is_banned(
    world: World, grid: Grid, fault: dict[str, Any], hours: int
) -> None:
    """One that blocks uploads, or whose nodes kill after 70 minutes."""
    for seqno in range(3):
        world.add_file(4, seqno=seqno)
    bad, good = grid.start("P", 6), grid.start("Q", 6)
    world.attempts_pass(3600 * hours)
    grid.end(bad[:1], **fault)
    grid.end(good[:1])
    grid.end(bad[1:], **fault)
    assert banned(world) == ["site:P"]
    assert project(world)["state"] == "active"
    counted = world.db.execute("SELECT sum(failures + faults)::int AS n FROM osgprod_data.slices").fetchone()
    assert counted == {"n": 0}, "the last one comes from a banned site, too"


def test_site_without_software_pauses_nothing_while_jobs_elsewhere_take_hours(
    world: World, grid: Grid
) -> None:
    """Nobody else has started or ended for two hours."""
    world.add_file(100)
    grid.start("B", 20)
    world.attempts_pass(7200)
    grid.end(grid.start("A", 10), **NO_PROGRAM)
    assert project(world)["state"] == "active"
    assert banned(world) == ["site:A"]


def test_running_jobs_of_a_banned_site_are_no_evidence_that_others_work(world: World, grid: Grid) -> None:
    world.add_file(100)
    grid.start("B", 20)
    call(world.db, "ban_worker", project="p", worker="site:B", seconds=86400)
    world.db.execute("UPDATE osgprod_data.worker_bans SET banned_at = banned_at - interval '2 h'")
    world.attempts_pass(7200)
    world.db.execute("UPDATE osgprod_data.worker_bans SET until = now() + interval '1 d'")
    grid.end(grid.start("A", 10), **NO_PROGRAM)
    assert banned(world) == ["site:B"]
    assert project(world)["state"] == "paused"


def test_site_whose_good_jobs_run_for_hours_is_not_banned_for_a_few_nodes_that_fail_fast(
    world: World, grid: Grid
) -> None:
    world.set(max_fast_failures=1000, max_faults=100)
    for seqno in range(5):
        world.add_file(10, seqno=seqno)
    good = grid.start("P", 12)
    grid.start("Q", 3)
    world.attempts_pass(4 * 3600)
    grid.end(grid.start("P", 8, first=100), exitcode=137)
    assert banned(world) == []
    world.db.execute(  # the good ones fall silent
        "UPDATE osgprod_data.slices SET due_at = due_at - interval '2 h' WHERE process = ANY (%s)", [good]
    )
    grid.end(grid.start("P", 1, first=200), exitcode=137)
    assert banned(world) == ["site:P"]


def test_site_where_more_workers_fail_than_run_on_is_banned(world: World, grid: Grid) -> None:
    world.set(max_fast_failures=1000, max_faults=100)
    for seqno in range(5):
        world.add_file(10, seqno=seqno)
    grid.start("P", 6)
    grid.start("Q", 3)
    world.attempts_pass(4 * 3600)
    failing = grid.start("P", 8, first=100)
    grid.end(failing[:6], exitcode=137)
    assert banned(world) == []
    grid.end(failing[6:], exitcode=137)
    assert banned(world) == ["site:P"]


def test_failure_on_a_banned_site_does_not_count_against_the_data(world: World, grid: Grid) -> None:
    world.add_file(1)
    (job,) = grid.start("P")
    call(world.db, "ban_worker", project="p", worker="site:P", seconds=60)
    assert world.report(job, 1, **{"client": grid.jobs[job]["client"]})["status"] == "node-fault"


def test_worker_is_on_probation_for_a_day_after_its_ban(world: World, grid: Grid) -> None:
    world.set(max_fast_failures=3, backoff_s=0, block_worker_s=3600)
    world.add_file(100)
    grid.start("Q", 5)
    for _ in range(3):
        grid.end(grid.start("P"), exitcode=1)
    assert banned(world) == ["P0@127.0.80.1"]
    time_passes(world, 3600 + 86000)
    grid.end(grid.start("P"), exitcode=1)
    assert banned(world) == ["P0@127.0.80.1"], "a single failure on probation"
    time_passes(world, 7200 + 87000)
    grid.end(grid.start("P"), exitcode=1)
    assert banned(world) == []


def test_failure_reads_a_bounded_number_of_others(world: World) -> None:
    """However many there were within the hour: 20,000 of a file and an address here."""
    world.add_file(9)
    world.checkout(0)
    world.db.execute(
        "INSERT INTO osgprod_data.recent_failures (project_id, failed_at, started_at, fault, exit_code, is_failure,"
        " is_first, worker, address, place, rawdata_id, block1, opened_at)"
        " SELECT a.project_id, now() - n * interval '0.1 s', now() - n * interval '0.2 s', 'work', n % 100, true,"
        " false, 'wn' || n % 999 || '@127.0.0.1', '127.0.0.1', 'S' || n % 9, a.rawdata_id, 1, now()"
        " FROM osgprod_data.attempts a, generate_series(1, 20000) n"
    )
    world.db.execute("ANALYZE osgprod_data.recent_failures")
    fetched = (
        "SELECT sum(idx_tup_fetch + seq_tup_read)::int AS n FROM pg_stat_user_tables"
        " WHERE relname = 'recent_failures'"
    )
    count_at_once(world.db)
    before = world.db.execute(fetched).fetchone()
    world.report(0, 1)
    count_at_once(world.db)
    after = world.db.execute(fetched).fetchone()
    assert before and after
    assert after["n"] - before["n"] <= 1500


@pytest.fixture
def merging(world: World) -> World:
    """A project whose merges of eight files are ready, with slices left in a ninth."""
    world.set(merge_by="file", backoff_s=0, max_failures=2, max_faults=2)
    for seqno in range(8):
        world.add_file(1, seqno=seqno)
    slices(world, 9000, 8)
    world.add_file(90, seqno=9)
    world.tick()
    return world


def states(world: World) -> dict[str, int]:
    found = [merge["state"] for merge in merges(world)]
    return {state: found.count(state) for state in set(found)}


def test_full_store_of_merged_files_stops_merges_and_nothing_else(merging: World, grid: Grid) -> None:
    """Each was failed by 11 workers before, until an operator came."""
    running = [grid.start(site, 2) for site in "PQR"]
    assert {job["task"] for job in grid.jobs.values()} == {"merge"}
    grid.end(by_turns(*running), **DELIVERY | {"reason": "status 507"})
    assert banned(merging) == ["merges:all"]
    assert states(merging) == {"ready": 8}
    assert {merge["faults"] + merge["failures"] for merge in merges(merging)} == {0}
    assert project(merging)["state"] == "active"
    later = grid.start("P", 5)
    assert [grid.jobs[job]["task"] for job in later] == ["slice"] * 5
    (found,) = [row for row in call(merging.db, "health") if row["what"] == "merges"]
    assert "status 507" in found["found"]
    assert "osgprod workers unban p merges:all" in found["advice"]


def test_stopped_merges_are_tried_one_at_a_time_until_one_succeeds(merging: World, grid: Grid) -> None:
    grid.end(by_turns(*(grid.start(site, 1) for site in "PQR")), **DELIVERY)
    for seconds in (61, 121, 241):
        time_passes(merging, seconds)
        tasks = [grid.jobs[job]["task"] for job in grid.start("Q", 4)]
        assert sorted(tasks) == ["merge", "slice", "slice", "slice"]
        probe = max(job for job in grid.jobs if grid.jobs[job]["task"] == "merge")
        grid.end([probe], **DELIVERY)
        assert banned(merging) == ["merges:all"]
    assert states(merging) == {"ready": 8}
    time_passes(merging, 600)
    (probe,) = grid.start("R")
    grid.end([probe], outputs_list=merged("hd_root"))
    assert banned(merging) == []
    assert [grid.jobs[job]["task"] for job in grid.start("P", 7)] == ["merge"] * 7


def test_wrong_setting_of_merges_stops_merges_and_no_slice(merging: World, grid: Grid) -> None:
    """Each job would be held with a merge in place of a slice, until an operator came."""
    wrong = {"exitcode": 40, "fault": "setting", "reason": "no URL is known: set output_home of the project"}
    grid.end(grid.start("P"), **wrong)
    assert banned(merging) == ["merges:all"]
    assert {merge["faults"] + merge["failures"] for merge in merges(merging)} == {0}
    assert [grid.jobs[job]["task"] for job in grid.start("P", 5)] == ["slice"] * 5
    (found,) = [row for row in call(merging.db, "health") if row["what"] == "merges"]
    assert "a setting is wrong: 1 attempt" in found["found"] and "set output_home" in found["found"]
    time_passes(merging, 61)
    (probe,) = [job for job in grid.start("P", 3) if grid.jobs[job]["task"] == "merge"]
    grid.end([probe], **wrong)
    assert [grid.jobs[job]["task"] for job in grid.start("P", 3)] == ["slice"] * 3
    time_passes(merging, 600)
    grid.end(grid.start("P"), outputs_list=merged("hd_root"))
    assert [grid.jobs[job]["task"] for job in grid.start("P", 5)] == ["merge"] * 5


def test_merges_are_tried_at_once_when_a_setting_is_changed(merging: World, grid: Grid) -> None:
    """The change may be the repair: the server need not wait for the next attempt, nor an operator unban merges."""
    wrong = {"exitcode": 40, "fault": "setting", "reason": "no URL is known: set output_home of the project"}
    grid.end(grid.start("P"), **wrong)
    merging.set(backoff_s=0)
    assert banned(merging) == ["merges:all"], "nothing has changed"
    merging.set(output_home="https://wrong.example.org/outputs")
    tasks = [grid.jobs[job]["task"] for job in grid.start("P", 4)]
    assert sorted(tasks) == ["merge", "slice", "slice", "slice"], "one at a time"
    grid.end([job for job in grid.jobs if grid.jobs[job]["task"] == "merge"][-1:], **wrong)
    assert [grid.jobs[job]["task"] for job in grid.start("P", 2)] == ["slice"] * 2
    merging.set(output_home="https://storage.example.org/outputs")
    (probe,) = [job for job in grid.start("P", 2) if grid.jobs[job]["task"] == "merge"]
    grid.end([probe], outputs_list=merged("hd_root"))
    assert [grid.jobs[job]["task"] for job in grid.start("P", 6)] == ["merge"] * 6
    call(merging.db, "ban_worker", project="p", worker="merges:all", seconds=600)
    merging.set(output_home=None)
    assert banned(merging) == ["merges:all"], "an operator banned them"


def test_wrong_setting_of_some_jobs_stops_no_merges_of_others(merging: World, grid: Grid) -> None:
    """That of one submit file, for instance."""
    good = grid.start("Q", 2)
    grid.end(grid.start("P", 2), exitcode=40, fault="setting")
    assert banned(merging) == []
    grid.end(good, outputs_list=merged("hd_root"))
    assert [grid.jobs[job]["task"] for job in grid.start("Q", 4)] == ["merge"] * 4


def test_operator_lets_merges_go_on(merging: World, grid: Grid) -> None:
    grid.end(by_turns(*(grid.start(site, 1) for site in "PQR")), **DELIVERY)
    call(merging.db, "ban_worker", project="p", worker="merges:all", seconds=0)
    assert [grid.jobs[job]["task"] for job in grid.start("P", 8)] == ["merge"] * 8


def test_site_without_the_program_that_merges_gets_slices_only(merging: World, grid: Grid) -> None:
    good, bad = grid.start("Q", 2), grid.start("P", 5)
    grid.end(bad, **NO_PROGRAM)
    assert banned(merging) == ["merges:site:P"]
    assert {merge["faults"] + merge["failures"] for merge in merges(merging)} == {0}
    assert [grid.jobs[job]["task"] for job in grid.start("P", 3)] == ["slice"] * 3
    grid.end(good, outputs_list=merged("hd_root"))
    assert [grid.jobs[job]["task"] for job in grid.start("Q", 6)] == ["merge"] * 6


def test_worker_that_fails_merges_gets_slices_only(merging: World, grid: Grid) -> None:
    """Fast failures of merges say nothing of slices, and successes of slices nothing of merges."""
    merging.set(max_fast_failures=3, max_failures=9, suspend_after=9)
    grid.start("Q", 1)
    for _ in range(3):
        (job,) = grid.start("P")
        assert grid.jobs[job]["task"] == "merge"
        grid.end([job], exitcode=1)
    assert banned(merging) == ["merges:P0@127.0.80.1"]
    (job,) = grid.start("P")
    assert grid.jobs[job]["task"] == "slice"
    assert {merge["failures"] for merge in merges(merging)} == {0}


def test_merge_is_left_to_another_worker_after_a_node_fault(world: World, grid: Grid) -> None:
    world.set(merge_by="file", backoff_s=0)
    world.add_file(1)
    slices(world, 9000, 1)
    grid.end(grid.start("P"), exitcode=137)
    assert grid.start("P") == []
    (job,) = grid.start("Q")
    assert grid.jobs[job]["task"] == "merge"


def test_merges_that_succeed_are_no_successes_of_the_work_script(merging: World, grid: Grid) -> None:
    merging.set(probe_jobs=3)
    slices(merging, 9100, 0)
    scripts = json.dumps(json.loads(TEMPLATES) | {"osgprod_work.bash": 64 * "1"})
    merging.db.execute("UPDATE osgprod_data.projects SET tested_scripts = '{0000000000000000}'")
    running = grid.start("P", 3, templates=scripts)
    assert {grid.jobs[job]["task"] for job in running} == {"merge"}
    grid.end(running, outputs_list=merged("hd_root"))
    assert merging.db.execute("SELECT unproven FROM osgprod_data.projects").fetchone() == {"unproven": 3}


def test_merge_does_not_end_a_pause_that_came_from_slices(merging: World, grid: Grid) -> None:
    (merge,) = grid.start("P")
    merging.db.execute(
        "UPDATE osgprod_data.merges SET is_ready = false, not_before = 'infinity' WHERE is_ready"
    )
    running = [grid.start(site, 2) for site in "PQR"]
    grid.end(by_turns(*running), **DELIVERY)
    assert project(merging)["pause_cause"] == "output"
    grid.end([merge], outputs_list=merged("hd_root"))
    assert project(merging)["pause_cause"] == "output"


def test_merge_ends_a_pause_when_no_slice_is_left_that_could(world: World, grid: Grid) -> None:
    world.set(merge_by="file")
    world.add_file(2)
    running = grid.start("P", 2)
    world.db.execute(  # in place of failures of slices that are done by now
        "UPDATE osgprod_data.projects SET (state, pause_cause, pause_reason, paused_at, probe_at)"
        " = ('paused', 'work', 'all fail alike', clock_timestamp(), now())"
    )
    grid.end(running)
    assert project(world)["pause_cause"] == "work", "these had started before"
    world.tick()
    (job,) = grid.start("Q")
    assert grid.jobs[job]["task"] == "merge"
    grid.end([job], outputs_list=merged("hd_root"))
    assert project(world)["state"] == "active"


def test_job_that_has_to_ask_again_with_another_script_is_no_probe(world: World, grid: Grid) -> None:
    world.add_file(10)
    running = [grid.start(site, 1) for site in "PQR"]
    grid.end(by_turns(*running), **DELIVERY)
    time_passes(world, 61)
    call(world.db, "set_project", project="p", settings='{"workscript": "new.bash"}')
    for _ in range(3):
        answer = world.checkout(800, workscript="osgprod_work.bash")
        assert (answer["status"], answer["workscript"]) == ("template", "new.bash")
    assert world.checkout(800, workscript="new.bash")["status"] == "assigned"


def test_job_that_restarts_during_a_pause_gets_its_own_slice_again(world: World, grid: Grid) -> None:
    """It holds it anyway, and is not the probe."""
    world.add_file(10)
    running = [grid.start(site, 2) for site in "PQR"]
    grid.end([jobs[0] for jobs in running], **DELIVERY)
    assert project(world)["pause_cause"] == "output"
    mine = running[0][1]
    where = {name: grid.jobs[mine][name] for name in ("host", "client")}
    assert world.checkout(mine, site="P", **where)["status"] == "assigned"
    world.report(mine, **where)
    assert project(world)["state"] == "active"


def test_jobs_that_restart_during_a_pause_delay_no_probe(world: World, grid: Grid) -> None:
    world.add_file(10)
    running = [grid.start(site, 2) for site in "PQR"]
    grid.end([jobs[0] for jobs in running], **DELIVERY)
    time_passes(world, 30)
    mine = running[0][1]
    where = {name: grid.jobs[mine][name] for name in ("host", "client")}
    assert world.checkout(mine, site="P", **where)["status"] == "assigned"
    time_passes(world, 60)
    assert len(grid.start("S")) == 1, "the probe"
    assert grid.start("T") == [], "one at a time"


def test_ban_is_made_and_notified_once_though_two_sessions_decide_on_it(world: World) -> None:
    """The second one found the cause before the first one had committed. It may have begun before it, too."""
    ban = "SELECT osgprod._ban(p, 'site:SITE_A', 1, 'all fail') AS is_made FROM osgprod_data.projects p"
    with connect(world.dsn) as earlier, earlier.transaction():
        earlier.execute("SELECT")
        made = [connection.execute(ban).fetchall() for connection in (world.db, earlier, world.db)]
    assert made == [[{"is_made": True}], [{"is_made": False}], [{"is_made": False}]]
    noted = world.db.execute("SELECT event FROM osgprod_data.notifications").fetchall()
    assert noted == [{"event": "worker-banned"}]
