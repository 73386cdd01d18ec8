"""Slices sized by time: the measured pace, the size that a job gets, and jobs that end soon."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import World

MOST = 100


@pytest.fixture
def timed(world: World) -> World:
    world.set(target_s=3600, maxblockspercore=MOST, token_required=False)
    world.add_file(20000)
    return world


def blocks(answer: dict[str, Any]) -> int:
    return answer["block2"] - answer["block1"]


def work(
    world: World, process: int, ran_s: float, site: str | None = None, cpus: int = 1, code: int = 0
) -> int:
    """One job that processes its slice in exactly ran_s; returns the number of its blocks."""
    answer = world.checkout(process, cpus=cpus, site=site)
    with world.db.transaction():
        world.db.execute(
            "UPDATE osgprod_data.attempts SET started_at = now() - make_interval(secs => %s)"
            " WHERE token_digest = sha256(%s)",
            [ran_s, str(answer["token"]).encode()],
        )
        world.report(process, code)
    return blocks(answer)


def measure(world: World) -> None:
    """A tick half a minute later."""
    world.attempts_pass(31)
    world.db.execute(
        "UPDATE osgprod_data.pace_looks SET (looked_at, since) = (looked_at - i, since - i)"
        " FROM (SELECT interval '31 s' AS i) x"
    )
    call(world.db, "tick")


def size(world: World, cpus: int = 1, **more: object) -> dict[str, Any]:
    return call(world.db, "slice_size", project="p", cpus=cpus, **more)[0]


def test_without_target_slices_are_as_before_and_nothing_is_read_for_it(world: World) -> None:
    world.set(maxblockspercore=7)
    world.add_file(100)
    assert blocks(world.checkout(0, cpus=2)) == 14
    row = size(world, cpus=2)
    assert (row["blocks"], row["limited_by"], row["why"]) == (14, "maxblockspercore", "maxblockspercore = 7")


def test_first_slices_are_probes_of_one_block_a_core(timed: World) -> None:
    assert [blocks(timed.checkout(n, cpus=4)) for n in range(3)] == [4, 4, 4]
    row = size(timed, cpus=4)
    assert (row["limited_by"], row["s_per_block"]) == ("probe", None)
    assert row["why"] == "no attempt has been measured yet: one block a core, as a probe"


def test_slices_grow_four_times_a_step_up_to_what_fits_into_the_target(timed: World) -> None:
    sizes = []
    for step in range(5):
        sizes.append(work(timed, step, 60 * size(timed)["blocks"]))
        measure(timed)
    assert sizes == [1, 4, 16, 60, 60]
    row = size(timed)
    assert (row["blocks"], row["limited_by"], row["measured_at_site"]) == (60, "target_s", "")
    assert (row["s_per_block"], row["expected_s"]) == (
        pytest.approx(60, rel=0.02),
        pytest.approx(3600, rel=0.02),
    )


def test_growth_is_named_as_the_reason(timed: World) -> None:
    work(timed, 0, 10)
    measure(timed)
    row = size(timed, cpus=2)
    assert (row["blocks"], row["limited_by"]) == (8, "growth")
    assert "the largest recent success had 1 block a core" in row["why"]


def test_blocks_of_a_core_are_what_is_measured(timed: World) -> None:
    work(timed, 0, 100, cpus=8)  # 8 blocks
    measure(timed)
    assert size(timed)["s_per_block"] == pytest.approx(100, rel=0.02)


def test_slice_never_has_more_than_maxblockspercore_nor_less_than_a_block(timed: World) -> None:
    for n in range(5):
        work(timed, n, 1)
        measure(timed)
    assert (size(timed)["blocks"], size(timed)["limited_by"]) == (MOST, "maxblockspercore")
    timed.set(target_s=60)
    for n in range(60):
        work(timed, 10 + n, 100_000)
    measure(timed)
    assert size(timed)["blocks"] == 1


def test_outliers_and_clocks_that_jump_change_little(timed: World) -> None:
    for n in range(20):
        work(timed, n, 60)
    for n, ran_s in enumerate([30 * 86400, 1e9, -86400, -1e9, 0]):
        work(timed, 30 + n, ran_s)
    measure(timed)
    assert size(timed)["s_per_block"] == pytest.approx(60, rel=0.02)


def test_attempts_of_no_length_are_a_rate_that_is_not_zero(timed: World) -> None:
    for n in range(3):
        work(timed, n, 0)
    measure(timed)
    row = size(timed)
    assert 0 < row["s_per_block"] <= 1
    assert row["blocks"] == 4


def test_only_accepted_attempts_are_measured(timed: World) -> None:
    work(timed, 0, 5000, code=1)
    measure(timed)
    assert size(timed)["limited_by"] == "probe"


def test_site_counts_by_itself_when_it_has_ten_attempts(timed: World) -> None:
    for n in range(30):
        work(timed, n, 20, site="fast")
    for n in range(9):
        work(timed, 100 + n, 200, site="slow")
    measure(timed)
    assert size(timed, site="slow")["measured_at_site"] == ""
    work(timed, 200, 200, site="slow")
    measure(timed)
    slow, fast, new = (size(timed, site=site) for site in ("slow", "fast", "new"))
    assert (slow["measured_at_site"], slow["attempts"]) == ("slow", 10)
    assert slow["s_per_block"] == pytest.approx(200, rel=0.02)
    assert fast["s_per_block"] == pytest.approx(20, rel=0.06)
    assert new["measured_at_site"] == ""


def test_recent_attempts_replace_older_ones(timed: World) -> None:
    for n in range(50):
        work(timed, n, 10)
    measure(timed)
    for n in range(50):
        work(timed, 100 + n, 400)
    measure(timed)
    assert size(timed)["s_per_block"] > 90


def test_another_work_script_restarts_the_measurement(timed: World) -> None:
    work(timed, 0, 10)
    under_way = timed.checkout(1)
    measure(timed)
    timed.set(workscript="other.bash")
    call(timed.db, "tick")
    assert size(timed)["limited_by"] == "probe"
    timed.report(1)  # of the former script
    measure(timed)
    assert size(timed)["limited_by"] == "probe", under_way
    work(timed, 2, 0)
    measure(timed)
    assert size(timed)["limited_by"] == "growth"


def test_other_content_of_the_work_script_restarts_the_measurement(timed: World) -> None:
    def held(digest: str) -> dict[str, str]:
        return {"templates": json.dumps({"osgprod_work.bash": digest * 64})}

    timed.checkout(0, **held("a"))
    timed.report(0)
    under_way = timed.checkout(1, **held("a"))
    measure(timed)
    assert size(timed)["attempts"] == 1
    timed.checkout(2, **held("b"))  # same name
    measure(timed)
    assert size(timed)["limited_by"] == "probe"
    timed.report(1)  # of the former content
    measure(timed)
    assert size(timed)["limited_by"] == "probe", under_way
    timed.report(2)
    measure(timed)
    assert (size(timed)["limited_by"], size(timed)["attempts"]) == ("growth", 1)
    timed.checkout(3, **held("b"))
    timed.report(3)
    measure(timed)
    assert size(timed)["attempts"] == 2, "the same content goes on"


def test_attempts_whose_work_script_is_not_known_are_measured_and_start_nothing_anew(timed: World) -> None:
    for process, templates in enumerate([None, json.dumps({"osgprod_work.bash": "a" * 64}), None]):
        timed.checkout(process, templates=templates)
        timed.report(process)
        measure(timed)
    assert size(timed)["attempts"] == 3


def test_look_that_was_noted_by_a_clock_that_was_ahead_does_not_stop_the_measurement(timed: World) -> None:
    call(timed.db, "tick")
    timed.db.execute("UPDATE osgprod_data.pace_looks SET looked_at = now() + interval '10 years'")
    work(timed, 0, 10)
    call(timed.db, "tick")
    assert size(timed)["attempts"] == 1


def test_names_of_sites_that_jobs_invent_are_bounded(timed: World) -> None:
    for first, end in ((0, 150), (150, 310)):
        for n in range(first, end):
            work(timed, n, 10, site=f"site{n}")
        measure(timed)
    assert timed.db.execute("SELECT count(*) AS n FROM osgprod_data.paces").fetchone() == {"n": 201}


@pytest.mark.parametrize("target_s", [0, 59, -1, 2592001])
def test_target_out_of_range_is_refused(world: World, target_s: int) -> None:
    with pytest.raises(psycopg.Error, match="target_s must be from 60 to 2592000"):
        world.set(target_s=target_s)


def test_estimate_has_the_core_hours_that_are_left_from_the_same_numbers(timed: World) -> None:
    assert call(timed.db, "estimate", project="p")[0]["core_hours_left"] is None
    work(timed, 0, 360)
    measure(timed)
    row = call(timed.db, "estimate", project="p")[0]
    assert row["core_hours_left"] == pytest.approx(row["blocks_left"] / 10, rel=0.02)


# --- jobs that end soon ---


@pytest.fixture
def minute_a_block(timed: World) -> World:
    for n in range(12):
        work(timed, n, 60 * size(timed)["blocks"])
        measure(timed)
    return timed


def test_job_gets_no_more_than_fits_into_its_time_with_a_margin(minute_a_block: World) -> None:
    answer = minute_a_block.checkout(100, cpus=2, time_left_s=900)
    assert 0.7 * 30 <= blocks(answer) <= 0.8 * 30


def test_time_left_counts_without_a_target_too(minute_a_block: World) -> None:
    minute_a_block.set(target_s=None)
    assert blocks(minute_a_block.checkout(100)) == MOST
    assert blocks(minute_a_block.checkout(101, time_left_s=600)) < 9


@pytest.mark.parametrize("time_left_s", [60, 0, -1, -(2**63)])
def test_job_for_which_nothing_fits_is_told_so_and_leases_nothing(
    minute_a_block: World, time_left_s: int
) -> None:
    before = minute_a_block.progress()["blocks_leased"]
    answer = minute_a_block.checkout(100, time_left_s=time_left_s)
    assert (answer["status"], answer["retry_s"], answer["token"]) == ("no-time", 0, None)
    assert answer["message"].startswith(f"the job ends in {max(time_left_s, 0)} s, and a block takes up to 6")
    assert minute_a_block.progress()["blocks_leased"] == before


def test_job_with_an_absurdly_long_time_gets_what_others_get(minute_a_block: World) -> None:
    assert blocks(minute_a_block.checkout(100, time_left_s=2**63 - 1)) == blocks(minute_a_block.checkout(101))


def test_time_left_without_anything_measured_changes_nothing(world: World) -> None:
    world.set(maxblockspercore=7)
    world.add_file(20)
    assert blocks(world.checkout(0, time_left_s=1)) == 7
    assert world.checkout(1, time_left_s=0)["status"] == "no-time"


def test_requeued_slice_is_split_for_a_job_that_ends_soon(minute_a_block: World) -> None:
    first = minute_a_block.checkout(100)
    minute_a_block.report(100, 137)
    answer = minute_a_block.checkout(101, time_left_s=600)
    assert answer["block1"] == first["block1"]
    assert blocks(answer) < 9


def test_restarted_job_that_ends_soon_keeps_what_fits_of_its_slice(minute_a_block: World) -> None:
    first = minute_a_block.checkout(100)
    again = minute_a_block.checkout(100, time_left_s=600)
    assert again["block1"] == first["block1"]
    assert 0 < blocks(again) < 9
    other = minute_a_block.checkout(101)
    assert (other["block1"], other["block2"]) == (again["block2"], first["block2"])
    assert minute_a_block.report(100, token=str(again["token"]))["status"] == "done"


def test_restarted_job_with_ample_time_keeps_its_slice_though_slices_would_be_smaller_now(
    minute_a_block: World,
) -> None:
    first = minute_a_block.checkout(100)
    assert blocks(first) == 60
    minute_a_block.set(workscript="other.bash")  # its pace is not known yet
    call(minute_a_block.db, "tick")
    assert size(minute_a_block)["blocks"] == 1
    again = minute_a_block.checkout(100, time_left_s=10**6)
    assert (again["block1"], again["block2"]) == (first["block1"], first["block2"])
    assert minute_a_block.report(100, token=str(first["token"]))["status"] == "done"


def test_restarted_job_without_time_gives_its_slice_back_and_nothing_counts(minute_a_block: World) -> None:
    first = minute_a_block.checkout(100)
    assert minute_a_block.checkout(100, time_left_s=30)["status"] == "no-time"
    other = minute_a_block.checkout(101)
    assert (other["block1"], other["block2"]) == (first["block1"], first["block2"])
    row = minute_a_block.db.execute(
        "SELECT failures, faults FROM osgprod_data.slices WHERE block1 = %s", [first["block1"]]
    ).fetchone()
    assert row == {"failures": 0, "faults": 0}


def test_restarted_job_may_have_any_time_left(minute_a_block: World) -> None:
    first = minute_a_block.checkout(100)
    again = minute_a_block.checkout(100, time_left_s=2**62)
    assert (again["block1"], again["block2"]) == (first["block1"], first["block2"])


# --- jobs that are evicted again and again ---


def evict(world: World, process: int) -> dict[str, Any]:
    """A job that ran for an hour is evicted and starts again."""
    world.db.execute(
        "UPDATE osgprod_data.attempts SET started_at = started_at - interval '1 h' WHERE process = %s",
        [process],
    )
    return world.checkout(process)


def test_slice_from_which_its_job_is_evicted_three_times_is_halved_and_has_not_failed(world: World) -> None:
    world.set(maxblockspercore=8)
    world.add_file(8)
    first = world.checkout(0)
    sizes = [blocks(evict(world, 0)) for _ in range(3)]
    assert sizes == [8, 8, 4]
    other = world.checkout(1)
    assert (other["block1"], other["block2"]) == (first["block1"] + 4, first["block2"])
    assert [blocks(evict(world, 0)) for _ in range(3)] == [4, 4, 2]
    assert world.db.execute("SELECT sum(failures + faults) AS n FROM osgprod_data.slices").fetchone() == {
        "n": 0
    }


def test_one_block_is_not_split_however_often_its_job_is_evicted(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    assert [blocks(evict(world, 0)) for _ in range(6)] == [1] * 6


def test_starts_that_end_at_once_are_no_evictions(world: World) -> None:
    world.set(maxblockspercore=8)
    world.add_file(8)
    assert [blocks(world.checkout(0)) for _ in range(10)] == [8] * 10


def test_slice_with_a_backup_attempt_stays_whole_when_its_job_is_evicted(world: World) -> None:
    world.set(maxblockspercore=8)
    world.add_file(8)
    world.checkout(0)
    world.db.execute(
        "INSERT INTO osgprod_data.backups (project_id, rawdata_id, block1, opened_at, worker, expected_end, nblocks)"
        " SELECT project_id, rawdata_id, block1, opened_at, 'w', now(), 8 FROM osgprod_data.slices"
    )
    backup = world.checkout(1, host="another")
    assert blocks(backup) == 8
    assert [blocks(evict(world, 0)) for _ in range(4)] == [8] * 4
    assert world.report(1, token=str(backup["token"]))["status"] == "done"


def test_evicted_job_gets_no_backup_that_is_too_long_for_it(world: World) -> None:
    world.set(maxblockspercore=8, max_live=9)
    world.add_file(16)
    world.checkout(0)
    world.checkout(1, host="another")
    evict(world, 0)
    evict(world, 0)
    world.db.execute(
        "INSERT INTO osgprod_data.backups (project_id, rawdata_id, block1, opened_at, worker, expected_end, nblocks)"
        " SELECT project_id, rawdata_id, block1, opened_at, 'w', now(), 8 FROM osgprod_data.slices WHERE process = 1"
    )
    world.db.execute(
        "UPDATE osgprod_data.slices SET state = 'quarantined', is_ready = false WHERE process = 0"
    )
    assert evict(world, 0)["status"] == "wait"


@pytest.mark.parametrize("calls_together", [1, 2])
def test_job_that_gives_its_slice_back_waits_for_no_session_that_has_the_file(
    world: World, calls_together: int
) -> None:
    world.set(maxblockspercore=8)
    world.add_file(8)
    world.checkout(0)
    evict(world, 0)
    evict(world, 0)
    world.db.execute("UPDATE osgprod_data.attempts SET started_at = started_at - interval '1 h'")
    common = {"project": "p", "cluster": 1, "cpus": 1, "magic": "m", "client": "127.0.0.1"}
    calls = json.dumps([{"n": n, "process": n, **common} for n in range(calls_together)])
    with connect(world.dsn) as other, other.transaction():
        other.execute("SELECT FROM osgprod_data.loaded_files FOR NO KEY UPDATE")
        answers = call(world.db, "checkout_slices", calls=calls)
        assert {row["status"] for row in answers} == {"wait"}
    again, other = world.checkout(0), world.checkout(1)
    assert (blocks(again), blocks(other)) == (4, 4)
    assert world.db.execute("SELECT failures + faults AS n FROM osgprod_data.slices").fetchone() == {"n": 0}


def test_job_that_gives_its_slice_back_gets_the_first_one_that_is_ready(world: World) -> None:
    world.set(maxblockspercore=8, backoff_s=0)
    world.add_file(16)
    first, second = world.checkout(0), world.checkout(1)
    world.report(0, 137)
    sizes = [(answer["block1"], blocks(answer)) for answer in (evict(world, 1) for _ in range(3))]
    assert sizes == [(second["block1"], 8)] * 2 + [(first["block1"], 4)]
    others = [world.checkout(n) for n in (2, 3)]
    assert [answer["block1"] for answer in others] == [first["block1"] + 4, second["block1"]]


@pytest.mark.parametrize("setting", [{"state": "draining"}, {"max_live": 1}])
def test_evicted_job_loses_nothing_where_no_new_work_is_assigned(
    world: World, setting: dict[str, object]
) -> None:
    world.set(maxblockspercore=8)
    world.add_file(8)
    first = world.checkout(0)
    world.set(**setting)
    call(world.db, "tick")
    again = [evict(world, 0) for _ in range(3)][-1]
    assert (again["status"], again["block1"]) == ("assigned", first["block1"])


# --- resources ---


def test_resources_are_summed_up_together_and_by_site(world: World) -> None:
    world.add_file(40)
    for n, (site, memory) in enumerate([("A", 1000), ("A", 3000), ("B", 9000)]):
        world.checkout(n, cpus=2, site=site)
        world.report(n, memory_bytes=memory, wall_s=100, cpu_s=150, fetched_bytes=10**8, disk_bytes=7)
    world.checkout(3, site="C")
    world.report(3)
    (row,) = call(world.db, "resources", project="p")
    assert (row["attempts"], row["memory_median"], row["memory_99"], row["disk_99"]) == (3, 3000, 9000, 7)
    assert (row["cpu_efficiency"], row["fetched_mb_per_s"], row["wall_median_s"]) == (0.75, 1.0, 100)
    rows = {row["site"]: row for row in call(world.db, "resources", project="p", by="site")}
    assert {site: row["memory_99"] for site, row in rows.items()} == {"A": 3000, "B": 9000}
    for site, row in rows.items():
        assert call(world.db, "resources", project="p", by="site", site=site) == [row]
    assert call(world.db, "resources", project="p", cores=1) == []
    assert call(world.db, "resources", project="p", cores=2)[0]["attempts"] == 3
    with pytest.raises(psycopg.Error, match="resources are listed by all, site or workscript, not 'x'"):
        call(world.db, "resources", project="p", by="x")


def test_resources_are_summed_up_by_content_of_the_work_script(world: World) -> None:
    world.add_file(40)
    for n, (digest, memory) in enumerate([("a" * 64, 1000), ("a" * 64, 3000), ("b" * 64, 9000), (None, 5)]):
        world.checkout(n, templates=digest and json.dumps({"osgprod_work.bash": digest}))
        world.report(n, memory_bytes=memory, wall_s=100, cpu_s=50)
    rows = call(world.db, "resources", project="p", by="workscript")
    found = [(row["workscript"], row["digest"], row["attempts"], row["memory_99"]) for row in rows]
    name = "osgprod_work.bash"
    assert found == [(name, "a" * 12, 2, 3000), ("", "", 1, 5), (name, "b" * 12, 1, 9000)]
    assert {row["cpu_efficiency"] for row in rows} == {0.5}


def test_resources_of_a_project_that_measured_nothing_are_no_rows_or_not_known(world: World) -> None:
    assert call(world.db, "resources", project="p") == []
    world.add_file(1)
    world.checkout(0)
    world.report(0, cpu_s=0, wall_s=0)
    (row,) = call(world.db, "resources", project="p")
    assert (row["cpu_efficiency"], row["memory_99"], row["fetched_mb_per_s"]) == (None, None, None)
