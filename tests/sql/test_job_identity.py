"""Which job asks: access points that give the same numbers, and jobs that process several slices."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import CHECKOUT, World

HERE, THERE = (
    {"schedd": "login04.pool.org", "qdate": 1795000000},
    {"schedd": "ap2.lab.org", "qdate": 1795000001},
)
LATER = {**HERE, "qdate": 1796000000}


@pytest.fixture
def full(world: World) -> World:
    world.add_file(50)
    return world


def blocks(answer: dict[str, Any]) -> tuple[int, int]:
    return answer["block1"], answer["block2"]


def test_jobs_of_two_access_points_with_the_same_numbers_get_slices_of_their_own(full: World) -> None:
    first, second = full.checkout(0, **HERE), full.checkout(0, **THERE)
    assert blocks(first) != blocks(second)
    assert [a["nstarts"] for a in (first, second)] == [1, 1]
    again, back = full.checkout(0, **THERE), full.checkout(0, **HERE)
    assert (blocks(again), again["nstarts"]) == (blocks(second), 2)
    assert (blocks(back), back["nstarts"]) == (blocks(first), 2)
    assert full.progress()["blocks_leased"] == 2


def test_job_of_a_queue_that_counts_from_one_again_is_not_told_completed(full: World) -> None:
    done = full.checkout(0, **HERE)
    assert full.report(0, token=str(done["token"]))["status"] == "done"
    assert full.checkout(0, **HERE)["status"] == "completed"
    new = full.checkout(0, **LATER)
    assert (new["status"], new["nstarts"]) == ("assigned", 1)
    assert blocks(new) != blocks(done)


def test_job_that_names_no_access_point_is_another_job_than_one_that_does(full: World) -> None:
    plain, named = full.checkout(0), full.checkout(0, **HERE)
    assert blocks(plain) != blocks(named)
    assert blocks(full.checkout(0)) == blocks(plain)
    # Without a token only the job that named no access point can be meant.
    assert full.report(0)["status"] == "done"
    assert full.checkout(0)["status"] == "completed"
    assert full.heartbeat(0, token=str(named["token"]))["status"] == "alive"


def test_empty_access_point_is_none(full: World) -> None:
    assert blocks(full.checkout(0)) == blocks(full.checkout(0, schedd="", qdate=None))


@pytest.mark.parametrize("qdate", [-1, 0, 2**63 - 1])
def test_absurd_time_of_submission_is_an_identity_like_any_other(full: World, qdate: int) -> None:
    first = full.checkout(0, schedd="x", qdate=qdate)
    assert blocks(full.checkout(0, schedd="x", qdate=qdate)) == blocks(first)
    assert len(call(full.db, "list_jobs", project="p")) == 1


def test_starts_within_a_minute_count_for_each_job_alone(full: World) -> None:
    full.set(max_starts_per_min=3)
    for _ in range(3):
        full.checkout(0, **HERE)
        full.checkout(0, **THERE)
    for job in (HERE, THERE):
        with pytest.raises(psycopg.Error, match="has started too often within a minute"):
            full.checkout(0, **job)
    assert full.checkout(0, **LATER)["status"] == "assigned"


def test_job_key_of_one_access_point_does_not_bar_the_job_of_another(full: World) -> None:
    assert full.checkout(0, job_key="a", **HERE)["status"] == "assigned"
    assert full.checkout(0, job_key="b", **THERE)["status"] == "assigned"
    assert full.checkout(0, job_key="b", **HERE)["status"] == "wait"


def test_job_found_alive_gets_its_slice_back_although_another_one_has_its_numbers(full: World) -> None:
    first = full.checkout(0, **HERE)
    full.let_leases_run_out()
    call(full.db, "reclaim_lost", project="p")
    full.set(state="draining")  # nobody gets the slice until then
    full.checkout(0, **THERE)
    full.set(state="active")
    assert full.heartbeat(0, token=str(first["token"]))["status"] == "alive"


def test_lists_show_access_points_and_the_starts_of_each_job(full: World) -> None:
    full.checkout(0, **HERE)
    full.checkout(0, **THERE)
    full.checkout(0, **THERE)
    jobs = {row["schedd"]: row for row in call(full.db, "list_jobs", project="p", cluster=1)}
    assert {name: row["starts"] for name, row in jobs.items()} == {HERE["schedd"]: 1, THERE["schedd"]: 2}
    assert jobs[THERE["schedd"]]["submitted_at"].timestamp() == THERE["qdate"]
    history = call(full.db, "job_history", project="p", cluster=1, process=0)
    assert [(row["schedd"], row["job_start"]) for row in history] == [
        (THERE["schedd"], 1),
        (THERE["schedd"], 2),
        (HERE["schedd"], 1),
    ]
    assert {row["schedd"] for row in call(full.db, "live_attempts", project="p")} == set(jobs)


def test_slices_of_a_removed_cluster_are_requeued_for_one_access_point_alone(full: World) -> None:
    full.checkout(0, **HERE)
    other = full.checkout(0, **THERE)
    rows = call(full.db, "reclaim_lost", project="p", cluster=1, schedd=HERE["schedd"])
    assert [row["reclaimed"] for row in rows] == [1]
    assert full.heartbeat(0, token=str(other["token"]))["status"] == "alive"
    with pytest.raises(psycopg.Error, match="without a cluster"):
        call(full.db, "reclaim_lost", project="p", schedd="x")


def test_jobs_from_before_the_upgrade_go_on_as_jobs_that_named_no_access_point(full: World) -> None:
    """The migration and its rollback, on a database with live, restarted and finished jobs."""
    full.set(token_required=False)
    restarted, done = [full.checkout(0), full.checkout(0)][1], full.checkout(1)
    full.report(1)
    for script in ("0015-grid.rollback.sql", "0015-grid.sql"):
        full.db.execute((CHECKOUT / "sql" / "migrations" / script).read_bytes())
    with connect(full.dsn) as db:
        assert full.checkout(1, db=db)["status"] == "completed"
        again = full.checkout(0, db=db)
        assert (blocks(again), again["nstarts"]) == (blocks(restarted), 3)
        named = full.checkout(1, db=db, **HERE)
        assert (named["status"], named["nstarts"]) == ("assigned", 1)
        assert blocks(named) != blocks(done)


# --- several slices a job ---


def succeed(world: World, answer: dict[str, Any]) -> str:
    token = str(answer["token"])
    assert world.report(0, token=token)["status"] == "done"
    return token


def test_job_gets_another_slice_after_the_success_of_one(full: World) -> None:
    first = full.checkout(0)
    after = succeed(full, first)
    second = full.checkout(0, after=after)
    assert (second["status"], second["nstarts"]) == ("assigned", 2)
    assert blocks(second) != blocks(first)
    third = full.checkout(0, after=succeed(full, second))
    assert blocks(third) not in (blocks(first), blocks(second))
    history = call(full.db, "job_history", project="p", cluster=1, process=0)
    assert [row["follows"] for row in history] == [None, 1, 2]


def test_same_question_after_a_success_gets_the_same_slice_again(full: World) -> None:
    after = succeed(full, full.checkout(0))
    second = full.checkout(0, after=after)
    again = full.checkout(0, after=after.upper())
    assert blocks(again) == blocks(second)
    assert again["token"] != second["token"]
    assert full.progress()["blocks_leased"] == 1


def test_question_that_is_sent_twice_at_once_gets_one_slice(full: World) -> None:
    after = succeed(full, full.checkout(0))
    answers = full.at_once(8, lambda n, db: full.checkout(0, after=after, db=db))
    assert len({blocks(answer) for answer in answers}) == 1
    assert full.progress()["blocks_leased"] == 1


def test_job_that_was_killed_with_its_second_slice_gets_that_one_again_without_after(full: World) -> None:
    after = succeed(full, full.checkout(0))
    second = full.checkout(0, after=after)
    restarted = full.checkout(0)
    assert blocks(restarted) == blocks(second)
    # The question of the killed start arrives once more: still one slice.
    assert blocks(full.checkout(0, after=after)) == blocks(second)
    assert full.progress()["blocks_leased"] == 1


def test_job_that_was_killed_between_two_slices_is_told_completed(full: World) -> None:
    succeed(full, full.checkout(0))
    assert full.checkout(0)["status"] == "completed"


def test_question_from_before_the_last_success_is_told_completed(full: World) -> None:
    after = succeed(full, full.checkout(0))
    succeed(full, full.checkout(0, after=after))
    assert full.checkout(0, after=after)["status"] == "completed"


def test_after_of_an_earlier_slice_of_the_chain_is_refused(full: World) -> None:
    first = succeed(full, full.checkout(0))
    second = succeed(full, full.checkout(0, after=first))
    full.checkout(0, after=second)
    with pytest.raises(psycopg.Error, match=r"job 1\.0 has started again since start 1") as error:
        full.checkout(0, after=first)
    assert error.value.sqlstate == "OG410"
    assert full.progress()["blocks_leased"] == 1


@pytest.mark.parametrize("case", ["another job's", "another access point's", "nobody's", "garbage"])
def test_after_that_is_not_of_this_job_is_refused_and_changes_nothing(full: World, case: str) -> None:
    mine = full.checkout(0, **HERE)
    others = full.checkout(1) if case == "another job's" else full.checkout(0, **THERE)
    full.report(1 if case == "another job's" else 0, token=str(others["token"]))
    full.report(0, token=str(mine["token"]))
    after = {"nobody's": str(uuid.uuid4()), "garbage": "' OR 1"}.get(case, str(others["token"]))
    before = full.progress()
    with pytest.raises(psycopg.Error, match=r"is not the token of an attempt of job 1\.0") as error:
        full.checkout(0, after=after, **HERE)
    assert error.value.sqlstate == "OG111"
    assert full.progress() == before


def test_after_of_an_attempt_that_failed_or_has_not_reported_is_refused(full: World) -> None:
    first = full.checkout(0)
    with pytest.raises(
        psycopg.Error, match=r"start 1 of job 1\.0 has not succeeded, it has not reported"
    ) as error:
        full.checkout(0, after=str(first["token"]))
    assert error.value.sqlstate == "OG409"
    full.report(0, 1, token=str(first["token"]))
    with pytest.raises(psycopg.Error, match="it is failed"):
        full.checkout(0, after=str(first["token"]))
    assert full.progress()["blocks_leased"] == 0


def test_job_asks_after_a_success_in_a_batch_as_it_does_alone(full: World) -> None:
    import json

    after = succeed(full, full.checkout(0))
    common = {"project": "p", "cluster": 1, "cpus": 1, "magic": "m", "client": "127.0.0.1"}
    calls = [
        {"n": 1, "process": 0, "after": after, **common},
        {"n": 2, "process": 1, "after": "x", **common},
        {"n": 3, "process": 2, **common, **HERE},
    ]
    answers = {row["n"]: row for row in call(full.db, "checkout_slices", calls=json.dumps(calls))}
    assert [answers[n]["status"] for n in (1, 2, 3)] == ["assigned", "error", "assigned"]
    assert answers[2]["code"] == "OG111"
    assert blocks(full.checkout(2, **HERE)) == blocks(answers[3])


def test_recycled_slice_of_a_success_does_not_keep_the_job_from_another_one(full: World) -> None:
    after = succeed(full, full.checkout(0))
    call(full.db, "recycle", project="p", states=["done"])
    assert full.checkout(0, after=after)["status"] == "assigned"


def test_job_whose_slice_another_job_has_done_again_since_gets_other_work(full: World) -> None:
    """As it does while that other job runs."""
    first = full.checkout(0)
    succeed(full, first)
    assert full.checkout(0)["status"] == "completed"
    call(full.db, "recycle", project="p", states=["done"])
    again = full.checkout(1)
    assert again["block1"] == first["block1"]
    assert full.report(1)["status"] == "done"
    assert full.checkout(0)["status"] == "assigned"
    assert full.checkout(1)["status"] == "completed"


def test_draining_project_gives_no_further_slice_after_a_success(full: World) -> None:
    after = succeed(full, full.checkout(0))
    full.set(state="draining")
    assert full.checkout(0, after=after)["status"] == "no-work"


# --- what the exec script measured ---


def test_measured_resources_are_on_record_and_nonsense_is_named_and_left_out(full: World) -> None:
    full.checkout(0)
    full.report(0, memory_bytes=2_000_000_000, wall_s=600, cpu_s=550, fetched_bytes=10_000_000, disk_bytes=3)
    row = call(full.db, "job_history", project="p", cluster=1, process=0)[0]
    assert (row["memory_bytes"], row["wall_s"], row["used_cpu_s"]) == (2_000_000_000, 600, 550)
    assert (row["fetched_bytes"], row["disk_bytes"]) == (10_000_000, 3)
    full.checkout(1)
    answer = full.report(1, memory_bytes=-1, wall_s=2**40, cpu_s=5)
    assert answer["status"] == "done"
    assert answer["message"].endswith("ignored: memory_bytes (below 0), wall_s (not from 0 to 2147483647)")
    row = call(full.db, "job_history", project="p", cluster=1, process=1)[0]
    assert (row["memory_bytes"], row["wall_s"], row["used_cpu_s"]) == (None, None, 5)
