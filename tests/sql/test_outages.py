"""Outages burn neither good nodes nor good blocks: the cause is found before anybody is blamed."""

from __future__ import annotations

from typing import Any

import psycopg

from shim.database import call
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
    """62 s away with leases of 60 s: no new job gets a slice of a living one, and none of these is told to stop."""
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


def test_forgiven_failures_end_their_backoff(world: World) -> None:
    """What a node failed before it was banned is assigned to others at once."""
    world.set(max_fast_failures=3, backoff_s=3600)
    world.add_file(3)
    for process in range(3):
        world.checkout(process, host="bad")
        world.report(process, 1, host="bad")
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["bad@127.0.0.1"]
    assert [world.checkout(10 + n, host="good")["status"] for n in range(3)] == ["assigned"] * 3


def test_job_that_restarts_for_ever_gives_its_slice_up(world: World) -> None:
    world.set(max_starts=5)
    world.add_file(2)
    blocks = [world.checkout(0, host="short-pilot")["block1"] for _ in range(6)]
    assert blocks == [1] * 5 + [2], "it gets another slice, and the first is for another worker"
    history = call(world.db, "job_history", project="p", cluster=1, process=0)
    assert any("has started 5 times on it without a report" in str(row) for row in history)
    assert world.checkout(1, host="long-pilot")["block1"] == 1


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
