"""The tail of a production: a second attempt on slices that would end last, and smaller slices before."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call
from tests.support import World
from tests.whole.test_concurrency import Waiting, held

Db = psycopg.Connection[dict[str, Any]]


def finish_one(world: World, process: int = 900) -> None:
    """One slice of history, so that the server knows how long slices take: a second a block."""
    assert world.checkout(process)["status"] == "assigned"
    assert world.report(process)["status"] == "done"
    world.db.execute(
        "INSERT INTO osgprod_data.totals SELECT project_id, 'done', 1, 1, 1 FROM osgprod_data.projects"
        " ON CONFLICT ON CONSTRAINT totals_pkey DO UPDATE SET blocks = 1, ran_s = 1"
    )


def age(world: World, process: int, seconds: int) -> None:
    """The attempts of a job began so long ago, and their heartbeats have come ever since."""
    world.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = now() - make_interval(secs => %s) WHERE process = %s",
        [seconds, process],
    )


def in_tail(world: World, blocks: int = 3, **settings: object) -> World:
    """A file whose blocks are all leased or done: job 1 has been at one for an hour, others at theirs for seconds."""
    world.set(**settings)
    world.add_file(blocks)
    finish_one(world)
    for process in range(1, blocks):
        assert world.checkout(process, host=f"wn{process}", job_key=f"key {process}")["status"] == "assigned"
    age(world, 1, 3600)
    call(world.db, "tick")
    return world


def backups(db: Db) -> list[dict[str, Any]]:
    return db.execute(
        "SELECT block1, cluster, process, nstart FROM osgprod_data.backups ORDER BY block1"
    ).fetchall()


def the_slice(db: Db, block1: int) -> dict[str, Any]:
    row = db.execute("SELECT * FROM osgprod_data.slices WHERE block1 = %s", [block1]).fetchone()
    assert row is not None
    return row


def expire(db: Db, table: str) -> None:
    db.execute(f"UPDATE osgprod_data.{table} SET due_at = now() - interval '1 s' WHERE due_at IS NOT NULL")
    db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")


def let_server_be_away(db: Db, seconds: int) -> None:
    """Moves leases and the last tick into the past, in place of an absence of the server."""
    db.execute("UPDATE osgprod_data.presence SET seen_at = now() - make_interval(secs => %s)", [seconds])
    for table in ("slices", "backups"):
        db.execute(f"UPDATE osgprod_data.{table} SET due_at = due_at - make_interval(secs => %s)", [seconds])
    db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")


def test_idle_job_gets_a_backup_of_the_slice_that_ends_last_and_the_first_success_wins(world: World) -> None:
    in_tail(world)
    backup = world.checkout(7, host="wn7")
    assert (backup["status"], backup["block1"], backup["nstarts"]) == ("assigned", 2, 1)
    assert (the_slice(world.db, 2)["process"], the_slice(world.db, 2)["state"]) == (1, "leased")
    for process in (1, 7):
        assert world.heartbeat(process, job_key=f"key {process}")["status"] == "alive"
    assert world.report(7)["status"] == "done"
    assert (the_slice(world.db, 2)["process"], the_slice(world.db, 2)["state"]) == (7, "done")
    assert world.heartbeat(1, job_key="key 1")["http_status"] == 409
    late = world.report(1, job_key="key 1")
    assert (late["http_status"], late["status"]) == (409, "superseded")
    call(world.db, "tick")
    assert backups(world.db) == []


def test_project_that_paused_itself_makes_no_backup_its_probe(world: World) -> None:
    in_tail(world)
    age(world, 2, 7200)  # before the pause, as job 1
    world.db.execute(
        "UPDATE osgprod_data.projects SET state = 'paused', pause_cause = 'work', pause_reason = 'all fail',"
        " paused_at = now() - interval '1 min', probe_at = now() - interval '1 s'"
    )
    assert world.checkout(7, host="wn7")["status"] == "wait"
    world.set(state="active")
    assert world.checkout(7, host="wn7")["task"] == "slice"


def test_primary_that_is_first_stops_its_backup(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    assert world.report(1, job_key="key 1")["status"] == "done"
    assert world.heartbeat(7)["http_status"] == 409
    assert world.report(7)["status"] == "superseded"


def test_backup_counts_as_a_live_attempt(world: World) -> None:
    """It uses a core and the storage like any other: max_live is a promise about all that live."""
    in_tail(world, blocks=4, max_live=4)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    world.add_file(1, seqno=2)
    call(world.db, "tick")
    assert len(call(world.db, "live_attempts", project="p")) == 4
    assert call(world.db, "jobs_needed", project="p")[0]["running"] == 4
    with pytest.raises(psycopg.Error, match="4 live attempts of at most 4"):
        world.checkout(8, host="wn8")
    world.report(7)
    call(world.db, "tick")
    assert world.checkout(8, host="wn8")["status"] == "assigned"


def test_slice_never_has_three_attempts_and_a_worker_never_two_of_it(world: World) -> None:
    in_tail(world)
    assert world.checkout(6, host="wn1")["status"] == "wait"  # the worker that has it
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    for process in (8, 9):
        call(world.db, "tick")
        assert world.checkout(process, host=f"wn{process}")["status"] == "wait"


def test_no_more_backups_than_max_backups_live_at_a_time(world: World) -> None:
    in_tail(world, blocks=6, max_backups=2)
    for process in range(1, 6):
        age(world, process, 3600 + process)
    call(world.db, "tick")
    given = [world.checkout(100 + n, host="other")["status"] for n in range(5)]
    assert sorted(given) == ["assigned", "assigned", "wait", "wait", "wait"]
    world.set(max_backups=0)
    call(world.db, "tick")
    assert world.checkout(200, host="other")["status"] == "wait"


def test_slice_that_failed_as_data_gets_no_backup(world: World) -> None:
    in_tail(world, backoff_s=0)
    assert world.report(1, 1, job_key="key 1")["status"] == "failed"
    assert world.checkout(7, host="wn7")["block1"] == 2  # requeued, this is not a backup
    assert the_slice(world.db, 2)["process"] == 7
    age(world, 7, 3600)
    call(world.db, "tick")
    assert world.checkout(8, host="wn8")["status"] == "wait"


@pytest.mark.parametrize(("exitcode", "may_have_another"), [(1, False), (137, True)])
def test_failed_backup_leaves_the_slice_to_its_holder(
    world: World, exitcode: int, may_have_another: bool
) -> None:
    in_tail(world)
    before = the_slice(world.db, 2)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    for _ in range(2):  # the same report again gets the same answer
        answer = world.report(7, exitcode)
        assert (answer["http_status"], answer["status"]) == (200, "node-fault")
    assert the_slice(world.db, 2) == before
    call(world.db, "tick")
    again = world.checkout(8, host="wn8")
    assert again["status"] == ("assigned" if may_have_another else "wait")
    assert world.report(1, job_key="key 1")["status"] == "done"


@pytest.mark.parametrize(("fault", "bans"), [("setting", 0), ("program", 1)])
def test_backup_that_fails_bans_its_node_unless_a_setting_is_wrong(
    world: World, fault: str, bans: int
) -> None:
    in_tail(world, max_fast_failures=1)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    assert world.report(7, 75, fault=fault, reason="of the test")["status"] == "node-fault"
    assert len(call(world.db, "blocked_workers", project="p")) == bans


@pytest.mark.parametrize("how", ["lost", "node-fault", "failed", "removed"])
def test_backup_holds_the_slice_when_its_holder_is_gone(world: World, how: str) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    if how == "lost":
        world.db.execute("UPDATE osgprod_data.slices SET due_at = now() - interval '1 s' WHERE block1 = 2")
        world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
        call(world.db, "tick")
    elif how == "removed":
        call(world.db, "reclaim_lost", project="p", cluster=1, process=1)
    else:
        assert world.report(1, 1 if how == "failed" else 137, job_key="key 1")["status"] == how
    held = the_slice(world.db, 2)
    assert (held["state"], held["process"], held["nstart"]) == ("leased", 7, 1)
    assert (held["failures"], backups(world.db)) == (int(how == "failed"), [])
    assert world.heartbeat(7)["status"] == "alive"
    assert world.heartbeat(1, job_key="key 1")["http_status"] == 409
    assert world.report(7)["status"] == "done"


def test_lost_holder_that_lives_may_still_be_first(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() - interval '1 s' WHERE block1 = 2")
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
    call(world.db, "tick")
    assert world.report(1, job_key="key 1")["status"] == "done"
    assert world.report(7)["status"] == "superseded"


def test_silent_backup_is_lost_and_another_job_may_have_the_next(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    expire(world.db, "backups")
    world.db.execute(
        "UPDATE osgprod_data.slices SET due_at = now() + interval '5 h 59 min' WHERE state = 'leased'"
    )
    call(world.db, "tick")
    assert world.heartbeat(7)["http_status"] == 409
    assert world.checkout(8, host="wn8")["block1"] == 2
    assert world.heartbeat(8)["status"] == "alive"


def test_living_backup_goes_on_when_the_server_was_away_longer_than_a_lease(world: World) -> None:
    in_tail(world, lease_s=60, heartbeat_s=20)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    let_server_be_away(world.db, 100)
    call(world.db, "tick")
    assert world.heartbeat(7)["status"] == "alive"
    assert world.report(7)["status"] == "done"


def test_silent_backup_is_lost_when_it_had_the_time_to_be_heard(world: World) -> None:
    in_tail(world, lease_s=60, heartbeat_s=20)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    let_server_be_away(world.db, 100)
    call(world.db, "tick")
    assert world.heartbeat(1, job_key="key 1")["status"] == "alive"
    world.db.execute("UPDATE osgprod_data.presence SET back_at = back_at - interval '141 s'")
    call(world.db, "tick")
    assert world.heartbeat(7)["http_status"] == 409


def test_backup_gets_the_slice_of_a_holder_that_fails_when_the_server_is_back(world: World) -> None:
    in_tail(world, lease_s=60, heartbeat_s=20)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    let_server_be_away(world.db, 100)
    call(world.db, "tick")
    assert world.report(1, 137, job_key="key 1")["status"] == "node-fault"
    assert (the_slice(world.db, 2)["state"], the_slice(world.db, 2)["process"]) == ("leased", 7)
    assert world.heartbeat(7)["status"] == "alive"


def test_nobody_counts_as_silent_because_the_server_was_away(world: World) -> None:
    """A minute after an absence no job could send a heartbeat: that alone isn't a reason for a backup."""
    in_tail(world, blocks=6, lease_s=600, heartbeat_s=20)
    offered = [row["block1"] for row in backups(world.db)]
    let_server_be_away(world.db, 100)
    call(world.db, "tick")
    assert [row["block1"] for row in backups(world.db)] == offered == [2]


def test_backup_that_has_expired_ends_with_the_holder_so_that_its_job_may_hold_the_slice(
    world: World,
) -> None:
    in_tail(world, backoff_s=0)
    first = world.checkout(7, host="wn7", job_key="key 7")
    world.db.execute("UPDATE osgprod_data.backups SET due_at = now() - interval '1 s'")
    assert world.report(1, 137, job_key="key 1")["status"] == "node-fault"
    again = world.checkout(7, host="wn7", job_key="key 7")
    assert (again["status"], again["block1"]) == ("assigned", 2)
    assert world.heartbeat(7, token=str(first["token"]))["http_status"] == 409, "of the job's first start"
    assert world.heartbeat(7, token=str(again["token"]))["status"] == "alive"


@pytest.mark.parametrize(
    ("time_left_s", "status"), [(None, "assigned"), (600, "assigned"), (50, "no-time"), (100, "wait")]
)
def test_backup_fits_into_the_time_that_the_job_has_left(
    world: World, time_left_s: int | None, status: str
) -> None:
    """A block takes 60 s, the slices have 3 blocks, and a fifth of the time stays free."""
    world.set(maxblockspercore=3, target_s=60)
    world.add_file(6)
    for process in (1, 2):
        assert world.checkout(process, cpus=3, host=f"wn{process}")["status"] == "assigned"
    world.db.execute(
        "INSERT INTO osgprod_data.totals (project_id, outcome, reports, ran_s, blocks)"
        " SELECT project_id, 'done', 1, 60, 1 FROM osgprod_data.projects"
    )
    world.db.execute(
        "INSERT INTO osgprod_data.paces (project_id, site, rates, sizes, attempts, s_per_block,"
        " slow_s_per_block, most_per_core)"
        " SELECT project_id, '', '{60}', '{3}', 1, 60, 60, 3 FROM osgprod_data.projects"
    )
    age(world, 1, 3600)
    call(world.db, "tick")
    answer = world.checkout(7, host="wn7", time_left_s=time_left_s)
    assert (answer["status"], answer["block1"]) == (status, 1 if status == "assigned" else None)


def set_pace(world: World, seconds: int) -> None:
    """The last accepted attempts took so long for a block on a core."""
    world.db.execute(
        "INSERT INTO osgprod_data.paces (project_id, site, rates, sizes, attempts, s_per_block,"
        " slow_s_per_block, most_per_core) SELECT project_id, '', '{1}', '{1}', 1, %s, %s, 1"
        " FROM osgprod_data.projects ON CONFLICT ON CONSTRAINT paces_pkey DO UPDATE"
        " SET s_per_block = excluded.s_per_block, slow_s_per_block = excluded.slow_s_per_block",
        [seconds, seconds],
    )


def test_backup_that_takes_twice_its_time_makes_room_for_another(world: World) -> None:
    """It may have vanished; if it lives it stops at its next heartbeat, and the holder goes on."""
    in_tail(world)
    set_pace(world, 100)
    assert world.checkout(7, host="wn7", job_key="key 7")["block1"] == 2
    for seconds, other in ((190, "wait"), (210, "assigned")):
        age(world, 7, seconds)
        call(world.db, "tick")
        assert world.checkout(8, host="wn8")["status"] == other
    assert world.heartbeat(7, job_key="key 7")["http_status"] == 409
    assert world.heartbeat(1, job_key="key 1")["status"] == "alive"
    assert world.report(8)["status"] == "done"


def test_backup_is_offered_when_an_attempt_takes_a_quarter_longer_than_it_should(world: World) -> None:
    world.add_file(2)
    set_pace(world, 200)
    assert world.checkout(1, cpus=2, host="wn1")["block2"] == 3
    for seconds, offered in ((245, []), (255, [1])):  # 2 blocks of 200 s on 2 cores
        age(world, 1, seconds)
        call(world.db, "tick")
        assert [row["block1"] for row in backups(world.db)] == offered


def test_time_of_an_attempt_is_that_of_its_job_before(world: World) -> None:
    """A fast node needs a backup sooner than a slow one: the project's pace is 200 s a block, the job's 100 s."""
    world.add_file(3)
    first = world.checkout(1, host="wn1")
    age(world, 1, 100)
    world.report(1)
    slow = world.checkout(2, host="wn2")
    set_pace(world, 200)
    second = world.checkout(1, host="wn1", after=str(first["token"]))
    assert [slow["block1"], second["block1"]] == [2, 3]
    world.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = now() - interval '150 s' WHERE block1 > 1"
    )
    call(world.db, "tick")
    assert [row["block1"] for row in backups(world.db)] == [3]


def test_backup_is_offered_when_an_attempt_has_missed_a_heartbeat(world: World) -> None:
    world.set(lease_s=600, heartbeat_s=100)
    world.add_file(2)
    set_pace(world, 5000)
    for process in (1, 2):
        world.checkout(process, host=f"wn{process}")
    for seconds, offered in ((140, []), (160, [1])):
        world.db.execute(
            "UPDATE osgprod_data.slices SET due_at = now() + make_interval(secs => 600 - %s) WHERE block1 = 1",
            [seconds],
        )
        call(world.db, "tick")
        assert [row["block1"] for row in backups(world.db)] == offered


def test_job_of_a_backup_that_starts_again_gets_the_same_slice(world: World) -> None:
    in_tail(world)
    first = world.checkout(7, host="wn7", job_key="key 7")
    again = world.checkout(7, host="wn8", job_key="key 7")
    assert (again["status"], again["block1"], again["nstarts"]) == ("assigned", first["block1"], 2)
    assert world.heartbeat(7, token=str(first["token"]))["http_status"] == 409
    assert world.heartbeat(7, token=str(again["token"]))["status"] == "alive"
    stranger = world.checkout(7, host="wn7", job_key="another")
    assert stranger["status"] == "wait"
    call(world.db, "reclaim_lost", project="p", cluster=1, process=7)
    assert backups(world.db) == []
    assert the_slice(world.db, 2)["process"] == 1


@pytest.mark.parametrize("restarts", [True, False])
def test_backup_that_gets_its_slice_at_this_moment_goes_on_with_it(world: World, restarts: bool) -> None:
    """Its call waits for the slice, which another session takes from the holder."""
    in_tail(world)
    world.checkout(7, host="wn7", job_key="key 7")
    world.add_file(1, seqno=2)
    with held(world) as operator:
        call(operator, "reclaim_lost", project="p", cluster=1, process=1)
        waiting = Waiting(
            world,
            lambda db: (
                world.checkout(7, host="wn7", job_key="key 7", db=db)
                if restarts
                else World(db, world.dsn).heartbeat(7, job_key="key 7")
            ),
        )
    answer = waiting.result()
    assert answer["block1"] == 2 if restarts else answer["status"] == "alive"
    row = the_slice(world.db, 2)
    assert (row["state"], row["process"], row["nstart"]) == ("leased", 7, 1 + restarts)
    assert backups(world.db) == []


@pytest.mark.parametrize("ticks", [True, False])
def test_job_that_gives_a_backup_up_has_no_part_in_its_slice_any_more(world: World, ticks: bool) -> None:
    in_tail(world, max_starts=3)
    for _ in range(3):
        assert world.checkout(7, host="wn7")["block1"] == 2
    for _ in range(2):
        answer = world.checkout(7, host="wn7")
        assert (answer["status"], "has started too often on its work" in answer["message"]) == ("wait", True)
    if ticks:
        world.add_file(1, seqno=2)
        world.tick()
        assert world.checkout(7, host="wn7")["filename"].endswith("_002.evio")
        assert backups(world.db) == []
    assert world.report(1, 137, job_key="key 1")["status"] == "node-fault"
    held = world.db.execute("SELECT seqno FROM osgprod_data.slices WHERE process = 7 AND state = 'leased'")
    assert held.fetchall() == [{"seqno": 2}] * ticks
    assert call(world.db, "verify", project="p", deep=True) == []


@pytest.mark.parametrize("asks_for_other_work", [True, False])
def test_stopped_project_counts_its_backups_and_ends_them_at_their_next_heartbeat(
    world: World, asks_for_other_work: bool
) -> None:
    in_tail(world)
    backup = world.checkout(7, host="wn7")
    assert backup["block1"] == 2
    assert call(world.db, "stop_project", project="p")[0]["stop_project"] == 3
    assert call(world.db, "amounts", project="p")[0]["running"] == 3, "as stop --wait and the dashboard count"
    for _ in range(2):
        answer = world.heartbeat(7)
        assert (answer["http_status"], answer["message"]) == (
            409,
            "stop: the operator has stopped this project",
        )
    assert backups(world.db) == []
    assert the_slice(world.db, 2)["process"] == 1
    (row,) = call(world.db, "job_history", project="p", cluster=1, process=7)
    assert row["outcome"] == "superseded"
    world.set(state="active")
    if asks_for_other_work:
        call(world.db, "tick")
        assert world.checkout(7, host="wn7", job_key="key 7")["status"] == "assigned"
    else:  # a success that came all the same counts
        assert world.report(7, token=str(backup["token"]))["status"] == "done"


def test_backup_that_is_silent_is_replaced_by_its_job_wherever_that_runs(world: World) -> None:
    """While the primary sends its heartbeats: they are no sign of life of the backup."""
    in_tail(world, lease_s=1000, heartbeat_s=100, restart_proof="address")
    world.checkout(7, host="wn7")
    age(world, 7, 250)
    for silent_s, status in ((250, "wait"), (350, "assigned")):
        world.db.execute(
            "UPDATE osgprod_data.backups SET due_at = now() + make_interval(secs => 1000 - %s)", [silent_s]
        )
        age(world, 7, silent_s)
        assert world.heartbeat(1, job_key="key 1", bytes=silent_s)["status"] == "alive"
        assert world.checkout(7, host="elsewhere")["status"] == status


def test_removed_cluster_keeps_neither_slices_nor_backups(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    call(world.db, "reclaim_lost", project="p", cluster=1)
    assert backups(world.db) == []
    assert the_slice(world.db, 2)["state"] == "ready"


def test_reclaim_waits_for_no_backup_and_the_next_call_ends_it(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    with held(world) as db, held(world) as operator:
        job = {"project": "p", "cluster": 1, "process": 7, "magic": "m", "client": "127.0.0.1"}
        assert call(db, "heartbeat", **job)[0]["status"] == "alive"
        operator.execute("SET LOCAL lock_timeout = '1s'")
        call(operator, "reclaim_lost", project="p", cluster=1, process=7)
    assert len(backups(world.db)) == 1
    call(world.db, "reclaim_lost", project="p", cluster=1, process=7)
    assert backups(world.db) == []
    assert the_slice(world.db, 2)["state"] == "leased"


def test_backup_of_a_slice_that_is_split_recycled_or_reset_does_not_count(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    call(world.db, "load_slices", project="p", start_over=True)
    assert world.heartbeat(7)["http_status"] == 409
    assert world.report(7)["status"] == "superseded"
    assert world.checkout(8)["block1"] == 1
    call(world.db, "tick")
    assert backups(world.db) == []


def test_nobody_gets_a_backup_while_blocks_are_unallocated_or_without_history(world: World) -> None:
    world.add_file(3)
    assert world.checkout(1)["status"] == "assigned"
    age(world, 1, 10**6)
    call(world.db, "tick")
    assert backups(world.db) == []
    finish_one(world)
    call(world.db, "tick")
    assert backups(world.db) == []
    assert world.checkout(2)["status"] == "assigned"
    call(world.db, "tick")
    assert [row["block1"] for row in backups(world.db)] == [1]
    assert call(world.db, "progress")[0]["blocks_leased"] == 2


def test_jobs_that_ask_in_the_tail_read_one_place_of_an_index(world: World) -> None:
    """With a thousand slices leased, a job that asks in vain reads no more rows than with two."""
    world.set(max_backups=10_000, maxblockspercore=1)
    world.add_file(60)
    finish_one(world)
    calls = [
        {"n": n, "project": "p", "cluster": 1, "process": n, "cpus": 1, "magic": "m", "client": "127.0.0.1",
         "host": f"wn{n}"}
        for n in range(1, 60)
    ]  # fmt: skip
    rows = call(world.db, "checkout_slices", calls=json.dumps(calls))
    assert {row["status"] for row in rows} == {"assigned"}
    world.db.execute("UPDATE osgprod_data.attempts SET started_at = now() - interval '1 h'")
    call(world.db, "tick")
    assert len(backups(world.db)) == 59
    world.db.execute("ANALYZE osgprod_data.backups")
    with world.db.transaction():
        world.db.execute("SET LOCAL enable_seqscan = off")
        plan = world.db.execute(
            "EXPLAIN SELECT b.rawdata_id, b.block1 FROM osgprod_data.backups b WHERE b.project_id = 1"
            " AND b.nstart IS NULL AND b.worker <> 'x' AND b.nblocks <= 5 ORDER BY b.expected_end DESC LIMIT 1"
            " FOR UPDATE SKIP LOCKED"
        ).fetchall()
    text = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "backups_offered" in text
    assert "Sort" not in text
    statuses = [world.checkout(1000 + n, host="new")["status"] for n in range(61)]
    assert statuses == ["assigned"] * 59 + ["wait"] * 2


def test_slices_shrink_when_little_is_unallocated(world: World) -> None:
    world.set(maxblockspercore=10, shrink_tail=True)
    world.add_file(100)
    sizes = []
    for process in range(100):
        world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
        call(world.db, "tick")
        slice_ = world.checkout(process)
        if slice_["status"] != "assigned":
            break
        sizes.append(slice_["block2"] - slice_["block1"])
    assert sum(sizes) == 100
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (10, 1)


def test_slices_stay_as_large_as_they_are_without_the_setting(world: World) -> None:
    world.set(maxblockspercore=10)
    world.add_file(30)
    for process in range(3):
        world.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
        call(world.db, "tick")
        assert world.checkout(process)["block2"] - 1 == 10 * (process + 1)


@pytest.mark.history_by_hand
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE osgprod_data.backups SET nstart = 9", "backup attempt 9 of job 1.7 is not on record"),
        ("UPDATE osgprod_data.attempts SET block2 = 9 WHERE process = 7", "backup by attempt 1 of job 1.7"),
        (
            "UPDATE osgprod_data.slices SET process = 7, nstart = 1 WHERE block1 = 3",
            "holds a slice and has a",
        ),
    ],
)
def test_verify_names_a_backup_that_is_not_what_it_should_be(world: World, change: str, fault: str) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    assert call(world.db, "verify", project="p", deep=True) == []
    world.db.execute(change)
    found = [row["fault"] for row in call(world.db, "verify", project="p", deep=True)]
    assert any(fault in text for text in found), found


def test_lists_say_which_attempt_is_a_backup_and_that_it_is_live(world: World) -> None:
    in_tail(world)
    assert world.checkout(7, host="wn7")["status"] == "assigned"
    jobs = {row["process"]: row for row in call(world.db, "list_jobs", project="p")}
    assert {n: (jobs[n]["state"], jobs[n]["task"]) for n in (1, 2, 7, 900)} == {
        1: ("live", "slice"), 2: ("live", "slice"), 7: ("live", "backup"), 900: ("done", "slice")}  # fmt: skip
    live = {row["process"]: row for row in call(world.db, "live_attempts", project="p")}
    assert {n: (row["task"], row["block1"]) for n, row in live.items()} == {
        1: ("slice", 2), 2: ("slice", 3), 7: ("backup", 2)}  # fmt: skip
    assert 21500 < live[7]["lease_left_s"] <= 21600
    (row,) = call(world.db, "job_history", project="p", cluster=1, process=7)
    assert (row["task"], row["holds_slice"], row["lease_left_s"] > 21500) == ("backup", False, True)
    assert world.report(7)["status"] == "done"
    for process, state in ((7, "done"), (1, "silent")):
        (found,) = (j for j in call(world.db, "list_jobs", project="p") if j["process"] == process)
        assert (found["state"], found["task"]) == (state, "slice")
    assert [row["process"] for row in call(world.db, "live_attempts", project="p")] == [2]


@pytest.mark.parametrize("value", [-1, 10_001, "many"])
def test_absurd_max_backups_is_refused(world: World, value: object) -> None:
    with pytest.raises(psycopg.Error, match="max_backups") as caught:
        world.set(max_backups=value)
    assert caught.value.sqlstate == "OG108"
