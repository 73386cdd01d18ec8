"""What an operator reads is true: health, estimate, counts, the state of a file."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shim.database import call
from tests.sql.test_reading import put_reports
from tests.support import World


def findings(world: World) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in call(world.db, "health", project="p")}


def forget_reports(world: World) -> None:
    """Takes back reports that were put on record without attempts."""
    world.db.execute("DELETE FROM osgprod_data.reports WHERE cluster = 9")


@pytest.mark.history_by_hand
def test_health_names_the_exit_code_of_most_reports_not_of_most_rows(world: World) -> None:
    world.add_file(100)
    # 75 at twenty sites, once each; 134 at one site, 160 times
    put_reports(world, [(600, "node-fault", 75, f"S{n}", 1) for n in range(20)])
    world.db.execute("UPDATE osgprod_data.reports SET cluster = 10 WHERE cluster = 9")
    put_reports(world, [(600, "node-fault", 134, "S0", 1)] * 160)
    assert "180 of the last 180" in findings(world)["failing"]["found"]
    assert findings(world)["failing"]["found"].endswith("most with exit code 134")


@pytest.mark.history_by_hand
def test_estimate_of_a_production_that_has_just_begun_is_its_rate_since_it_began(world: World) -> None:
    world.add_file(4000)
    put_reports(world, [(40, "done", 0, None, 3560)])  # ran_s is 50: it began 90 s ago
    row = call(world.db, "estimate", project="p")[0]
    assert row["blocks_per_hour"] == pytest.approx(3560 * 3600 / 90, rel=0.1)
    left_s = row["blocks_left"] / row["blocks_per_hour"] * 3600
    assert row["ends_at"] - datetime.now(UTC) == pytest.approx(
        timedelta(seconds=left_s), abs=timedelta(seconds=20)
    )
    assert (row["least_per_hour"], row["ends_early_at"], row["ends_late_at"]) == (None, None, None)


@pytest.mark.history_by_hand
def test_estimate_is_there_whenever_a_block_was_done_in_its_hours(world: World) -> None:
    world.add_file(100)
    for age in (30, 700, 3000, 5000, 7000, 20000):
        forget_reports(world)
        put_reports(world, [(age, "done", 0, None, 10)])
        assert call(world.db, "estimate", project="p")[0]["blocks_per_hour"] > 0, age
    forget_reports(world)
    put_reports(world, [(7 * 3600, "done", 0, None, 10)])
    assert call(world.db, "estimate", project="p")[0]["blocks_per_hour"] is None


def test_project_that_no_job_has_reached_is_not_called_healthy(world: World) -> None:
    world.add_file(2)
    assert list(findings(world)) == ["waiting"]
    world.checkout(0)
    world.report(0)
    assert findings(world)["healthy"]["found"].startswith("1 blocks done since ")


@pytest.mark.history_by_hand
def test_counts_by_exit_say_when_the_last_one_ended_tallied_or_not(world: World) -> None:
    put_reports(world, [(3600, "done", 0, None, 1), (3000, "done", 0, None, 1), (7000, "failed", 1, None, 1)])
    last = {
        row["outcome"]: row["at"]
        for row in world.db.execute(
            "SELECT outcome, max(reported_at) AS at FROM osgprod_data.reports GROUP BY 1"
        )
    }
    for _ in range(3):
        rows = call(world.db, "attempts_by_exit", project="p")
        assert {row["outcome"]: row["last_at"] for row in rows} == last
        call(world.db, "tick")


def test_file_is_complete_at_the_next_tick_though_an_earlier_one_hangs(world: World) -> None:
    for seqno in range(3):
        world.add_file(1, seqno=seqno)
    for process in range(3):
        world.checkout(process)
    call(world.db, "tick")  # now no lease is due for a while
    world.report(1)
    call(world.db, "tick")
    assert [f["state"] for f in call(world.db, "list_files", project="p")] == [
        "allocated",
        "complete",
        "allocated",
    ]
    world.report(2, 0)
    world.report(0, 0)
    call(world.db, "tick")
    assert world.progress()["files_finished"] == 3


def test_health_names_leases_without_progress_and_jobs_that_start_again_and_again(world: World) -> None:
    world.add_file(5)
    world.checkout(0)
    world.heartbeat(0, bytes=5)
    world.checkout(1)
    for _ in range(12):
        world.db.execute("UPDATE osgprod_data.attempts SET started_at = started_at - interval '2 min'")
        assert world.checkout(2)["nstarts"] > 0
    found = findings(world)
    assert "12 times" in found["restarting"]["found"] and found["restarting"]["found"].startswith("1 jobs")
    assert "without-progress" not in found
    world.db.execute("UPDATE osgprod_data.attempts SET started_at = started_at - interval '20 h'")
    assert findings(world)["without-progress"]["found"].startswith("2 leased slices without progress")
    world.db.execute("UPDATE osgprod_data.slices SET progress_at = now() - interval '20 h'")
    assert findings(world)["without-progress"]["found"].startswith("3 leased slices")
    world.heartbeat(0, bytes=7)
    assert findings(world)["without-progress"]["found"].startswith("2 leased slices")
    world.report(2, 1)
    assert "restarting" not in findings(world)


def note(world: World, **answer: object) -> None:
    row = {"minute": time.time(), "project": "p", "route": "checkout", "status": 200, "reason": "assigned"}
    call(world.db, "note_answers", answers=json.dumps([{**row, "times": 1, **answer}]))


def test_health_says_what_the_shims_answered(world: World) -> None:
    world.add_file(5)
    note(world, status=500, reason="TemplateError", message="no work script in /www/p", times=200)
    note(world, status=500, reason="TemplateError", times=20)
    row = findings(world)["answers"]
    assert row["level"] == "bad"
    assert row["found"] == (
        "220 of 220 requests of the last 15 minutes were answered 500: no work script in /www/p"
    )
    note(world, status=403, reason="OG202", message="parameter magic is wrong or missing", times=500)
    assert "answers" not in findings(world), "most answers are others"
    assert findings(world)["refused-requests"]["found"] == (
        "500 of 720 requests of the last 15 minutes were refused; most with 403: parameter magic is wrong or missing"
    )
    world.db.execute("UPDATE osgprod_data.answers SET answered_at = answered_at - interval '20 min'")
    assert not {"answers", "refused-requests"} & set(findings(world))


def test_pause_and_late_reports_are_no_faults_of_the_shims(world: World) -> None:
    world.add_file(5)
    note(world, status=503, reason="OG501", message="project p is paused", times=50)
    note(world, route="report", status=409, reason="superseded", times=50)
    assert not {"answers", "refused-requests"} & set(findings(world))


def test_answers_are_bounded_a_minute_and_kept_for_a_day(world: World) -> None:
    world.add_file(1)
    rows = [{"minute": time.time(), "project": "p", "route": "checkout", "status": 400, "reason": f"r{n}",
             "times": n + 1} for n in range(2000)]  # fmt: skip
    for start in range(0, 2000, 400):
        call(world.db, "note_answers", answers=json.dumps(rows[start : start + 400]))
    call(world.db, "tick")
    kept = world.db.execute("SELECT count(*) AS n, min(times) AS least FROM osgprod_data.answers").fetchone()
    assert kept is not None and kept["n"] <= 1000 and kept["least"] > 1, "those of the most answers"
    world.db.execute("UPDATE osgprod_data.answers SET answered_at = answered_at - interval '25 h'")
    call(world.db, "tick")
    assert world.db.execute("SELECT FROM osgprod_data.answers").fetchall() == []


def test_wild_numbers_of_a_shim_are_left_out(world: World) -> None:
    for wild in ({"status": 42}, {"times": 0}, {"minute": 0}, {"minute": time.time() + 1e6}):
        note(world, **wild)
    note(world, project="nobody")
    assert [(row["project_id"], row["times"]) for row in world.db.execute("SELECT * FROM osgprod_data.answers")] == [
        (None, 1)
    ]  # fmt: skip


@pytest.mark.history_by_hand
def test_sites_of_a_project_are_bounded_and_their_sums_whole(world: World) -> None:
    names = [f"S{n:05}" for n in range(1000)] + ["big"] * 30 + ["other"] * 7
    put_reports(world, [(3000, "done", 0, name, 1) for name in names])
    for _ in range(3):
        rows = call(world.db, "attempts_by_site", project="p", hours=2)
        assert len(rows) == 101 and rows[0]["site"] == "big" and rows[-1]["site"] == "other"
        assert sum(row["attempts"] for row in rows) == 1037
        assert len(call(world.db, "attempts_by_site", project="p", hours=2, limit=3)) == 4
        call(world.db, "tick")
    counted = world.db.execute(
        "SELECT count(*) AS n, count(DISTINCT site) AS sites, sum(reports) AS reports FROM osgprod_data.tallies"
    ).fetchone()
    assert counted == {"n": 201, "sites": 201, "reports": 1037}, "200 names and 'other'"
