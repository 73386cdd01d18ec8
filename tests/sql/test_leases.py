"""Silent jobs: promise I4, a lease that ran out gives the slice back, and nothing that can stall is in between."""

from __future__ import annotations

import psycopg
import pytest

from shim.database import call, connect
from tests.production import fill
from tests.support import World


def test_slice_of_a_vanished_job_is_requeued_by_the_next_tick_and_by_no_checkout(world: World) -> None:
    world.add_file(1)
    lost = world.checkout(0)
    world.let_leases_run_out()
    assert world.checkout(1)["status"] == "wait"
    assert world.tick() == 1
    again = world.checkout(1)
    assert (again["status"], again["block1"]) == ("assigned", lost["block1"])
    outcomes = world.db.execute("SELECT process, by_worker, outcome FROM osgprod_data.reports").fetchall()
    assert outcomes == [{"process": 0, "by_worker": False, "outcome": "lost"}]


def test_each_part_of_a_lost_slice_may_go_to_the_worker_that_lost_it(world: World) -> None:
    world.add_file(4)
    world.checkout(0, cpus=4, host="node")
    world.let_leases_run_out()
    assert world.tick() == 1
    parts = [world.checkout(process, cpus=2, host="node") for process in (1, 2)]
    assert [(part["status"], part["block1"]) for part in parts] == [("assigned", 1), ("assigned", 3)]


def test_reclaim_tells_how_many_and_a_repeated_call_finds_none(world: World) -> None:
    world.add_file(3)
    for process in range(3):
        world.checkout(process)
    assert call(world.db, "reclaim_lost") == []
    world.let_leases_run_out()
    assert call(world.db, "reclaim_lost", project="p") == [{"project": "p", "reclaimed": 3}]
    assert call(world.db, "reclaim_lost") == []
    assert world.progress()["blocks_ready"] == 3


def test_slices_of_removed_jobs_are_requeued_before_their_leases_expire(world: World) -> None:
    world.add_file(9)
    mine = [world.checkout(process) for process in range(3)]
    other = world.checkout(0, cluster=2)
    with pytest.raises(psycopg.Error, match="process 1 is given without its cluster") as error:
        call(world.db, "reclaim_lost", process=1)
    assert error.value.sqlstate == "OG108"
    assert call(world.db, "reclaim_lost", project="p", cluster=1, process=1) == [
        {"project": "p", "reclaimed": 1}
    ]
    assert world.checkout(9, cluster=3)["block1"] == mine[1]["block1"]
    assert call(world.db, "reclaim_lost", cluster=1) == [{"project": "p", "reclaimed": 2}]
    assert call(world.db, "reclaim_lost", cluster=1) == []
    assert world.progress()["blocks_leased"] == 2
    # None of them was gone: those whose slices nobody has taken go on.
    answers = [world.heartbeat(n, token=str(mine[n]["token"]))["status"] for n in range(3)]
    assert answers == ["alive", "superseded", "alive"]
    assert world.heartbeat(0, cluster=2, token=str(other["token"]))["status"] == "alive"


def test_jobs_that_are_removed_again_and_again_cost_nobody_anything(world: World) -> None:
    world.add_file(8)
    world.set(max_failures=1, max_faults=1, backoff_s=0)
    for cluster in range(1, 10):
        assigned = world.checkout(0, cluster=cluster, cpus=8, host="node")
        assert (assigned["block1"], assigned["block2"]) == (1, 9), "it is not suspected, and so not split"
        assert call(world.db, "reclaim_lost", cluster=cluster) == [{"project": "p", "reclaimed": 1}]
    row = world.db.execute("SELECT failures, faults, repeats, faulted_on FROM osgprod_data.slices").fetchone()
    assert row == {"failures": 0, "faults": 0, "repeats": 0, "faulted_on": None}
    assert world.db.execute("SELECT DISTINCT outcome, reason FROM osgprod_data.reports").fetchall() == [
        {"outcome": "superseded", "reason": None}
    ]
    assert call(world.db, "attempts_by_worker", project="p") == []
    assert [row["what"] for row in call(world.db, "health", project="p")] == ["healthy"]
    world.set(max_fast_failures=1)
    world.checkout(0, cluster=10, host="node")
    world.report(0, 1, cluster=10)
    assert len(call(world.db, "blocked_workers", project="p")) == 1, "they are no proof that the node is good"


def test_job_that_is_removed_does_not_bring_a_suspected_slice_nearer_to_its_end(world: World) -> None:
    world.add_file(1)
    world.set(max_failures=3, backoff_s=0)
    for process in (0, 1):
        world.checkout(process)
        world.report(process, 1)
    world.checkout(2, cluster=2)
    world.set(max_failures=2)
    assert call(world.db, "reclaim_lost", cluster=2) == [{"project": "p", "reclaimed": 1}]
    assert world.progress()["blocks_ready"] == 1


def test_slices_of_removed_jobs_are_requeued_while_their_file_is_locked(world: World) -> None:
    world.add_file(1002)
    world.set(max_failures=1)
    for process in range(501):
        world.checkout(process, cpus=2)
    with connect(world.dsn) as other, other.transaction():
        other.execute("SELECT FROM osgprod_data.loaded_files FOR NO KEY UPDATE")
        assert call(world.db, "reclaim_lost", cluster=1) == [{"project": "p", "reclaimed": 501}]


def test_requeued_slices_are_assigned_before_new_ones(world: World) -> None:
    world.add_file(9)
    world.checkout(0)
    world.checkout(1)
    world.report(0, 143)
    assert world.checkout(2)["block1"] == 1
    assert world.checkout(3)["block1"] == 3


def test_requeued_slice_is_split_to_the_size_that_fits_the_job(world: World) -> None:
    world.add_file(8)
    world.checkout(0, cpus=8)
    world.report(0, 143)
    assert [(a["block1"], a["block2"]) for a in (world.checkout(n, cpus=3) for n in (1, 2, 3))] == [
        (1, 4),
        (4, 7),
        (7, 9),
    ]


def test_tick_by_several_shims_reclaims_once(world: World) -> None:
    world.add_file(40)
    for process in range(40):
        world.checkout(process)
    world.let_leases_run_out()
    rows = world.at_once(8, lambda n, db: call(db, "tick"))
    assert sum(row["reclaimed"] for answer in rows for row in answer) == 40
    assert world.progress()["blocks_ready"] == 40


def test_a_stuck_session_does_not_delay_requeueing_of_other_slices(world: World) -> None:
    world.add_file(3)
    for process in range(3):
        world.checkout(process)
    world.let_leases_run_out()
    with connect(world.dsn) as stuck, stuck.transaction():
        stuck.execute("SELECT FROM osgprod_data.slices WHERE block1 = 2 FOR UPDATE")
        assert call(world.db, "reclaim_lost")[0]["reclaimed"] == 2
        assert {world.checkout(n)["block1"] for n in (7, 8)} == {1, 3}
    world.let_leases_run_out()
    assert call(world.db, "reclaim_lost")[0]["reclaimed"] == 3


def test_an_operators_open_transaction_does_not_keep_leases_from_running_out(world: World) -> None:
    world.add_file(2)
    world.checkout(0)
    world.let_leases_run_out()
    world.db.execute("SET statement_timeout = '120s'")
    with connect(world.dsn) as stuck, stuck.transaction():
        call(stuck, "set_project", project="p", settings='{"wait_s": 5}')
        assert world.tick() == 1
        assert {world.checkout(n)["block1"] for n in (1, 2)} == {1, 2}


def test_restarted_job_whose_lease_ran_out_keeps_its_slice_if_nobody_took_it(world: World) -> None:
    world.add_file(3)
    first = world.checkout(0)
    world.let_leases_run_out()
    again = world.checkout(0)
    assert (again["block1"], again["nstarts"]) == (first["block1"], 2)


def test_block_that_kills_its_machines_is_isolated(world: World) -> None:
    # Losses alone never quarantine at first; beyond max_faults they count as failures.
    world.set(max_faults=3, max_failures=2, backoff_s=0)
    for seqno, (nodes, expected) in enumerate(((50, 5), (1, 17)), 1):
        world.add_file(1, seqno=seqno)
        starts = 0
        while world.checkout(starts, cluster=seqno, host=f"wn{starts % nodes}")["status"] == "assigned":
            starts += 1
            world.let_leases_run_out()
            call(world.db, "reclaim_lost")
            assert starts < 30, "the production does not end"
        assert starts == expected, "on one machine alone only each fourth loss counts"
        assert world.progress()["blocks_quarantined"] == seqno


def test_thousands_of_slices_that_have_to_be_split_are_requeued_at_once_with_few_locks(world: World) -> None:
    """The server has room for some thousand locks that are no row locks."""
    fill(world.db, "p", runs=11, files=60, blocks=12, a_slice=2, finished=0, in_flight=999, attempts=9999)
    world.set(max_failures=1, max_faults=1)
    world.db.execute("UPDATE osgprod_data.slices SET faults = 1")
    world.let_leases_run_out()
    with connect(world.dsn) as db, db.transaction():
        first = call(db, "reclaim_lost")[0]["reclaimed"]
        locks = db.execute(
            "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        ).fetchone()
    assert first > 300 and locks and locks["n"] < 10
    assert world.progress()["blocks_leased"] == 0


def test_draining_project_ends_when_its_live_slices_do(world: World) -> None:
    world.add_file(4)
    world.checkout(0)
    world.set(state="draining")
    assert world.checkout(1)["status"] == "no-work"
    world.report(0)
    assert world.progress()["blocks_unallocated"] == 3


def in_backoff(world: World) -> None:
    """The only slice failed, and no lease or backoff is noted to end soon."""
    world.set(backoff_s=1000)
    world.add_file(1)
    call(world.db, "tick")
    world.checkout(0)
    world.report(0, 1)
    assert world.checkout(1)["status"] == "wait"
    row = world.db.execute(
        "SELECT next_due_at > now() + interval '1 min' AS is_far FROM osgprod_data.projects"
    )
    assert row.fetchone() == {"is_far": True}


def test_slice_is_assigned_as_soon_as_its_backoff_ends(world: World) -> None:
    in_backoff(world)
    world.let_backoff_pass()
    assert world.checkout(1)["status"] == "assigned"


def test_tick_requeues_a_slice_as_soon_as_its_backoff_ends(world: World) -> None:
    in_backoff(world)
    call(world.db, "tick")
    is_ready = "SELECT is_ready FROM osgprod_data.slices"
    assert world.db.execute(is_ready).fetchone() == {"is_ready": False}
    world.let_backoff_pass()
    call(world.db, "tick")
    assert world.db.execute(is_ready).fetchone() == {"is_ready": True}


def test_error_in_the_requeue_of_one_project_keeps_no_slice_of_another_from_being_requeued(
    world: World,
) -> None:
    world.with_project("q")
    world.add_file(2)
    call(world.db, "load_slices", project="q")
    for project in ("p", "q"):
        world.checkout(0, project=project)
    world.db.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk of p'; END $$;"
        " CREATE TRIGGER fails BEFORE UPDATE ON osgprod_data.slices FOR EACH ROW"
        " WHEN (NEW.project_id = 1 AND NEW.state = 'ready') EXECUTE FUNCTION fail()"
    )
    assert world.db.execute("SELECT name FROM osgprod_data.projects WHERE project_id = 1").fetchone() == {
        "name": "p"
    }
    world.let_leases_run_out()
    warnings: list[str] = []
    world.db.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    assert call(world.db, "tick") == [{"project": "q", "reclaimed": 1}]
    assert warnings[0] == "tick of project p: disk of p"
    assert world.checkout(1, project="q")["status"] == "assigned"
    world.db.execute("DROP TRIGGER fails ON osgprod_data.slices")
    assert call(world.db, "tick") == [{"project": "p", "reclaimed": 1}]
