"""What an operator reads is true: health, estimate, counts, the state of a file."""

from __future__ import annotations

import json
import shlex
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
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
    assert findings(world)["healthy"]["found"].startswith("1 block done since ")


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


@pytest.mark.history_by_hand
def test_mean_time_by_exit_is_that_of_slices_tallied_or_not(world: World) -> None:
    merge = 0  # blocks
    put_reports(world, [(7000, "done", 0, "A", 2), (7000, "done", 0, "A", merge), (3000, "done", 0, None, 1)])
    world.db.execute("UPDATE osgprod_data.reports SET cluster = 10, ran_s = 70 * (1 + nblocks)")
    put_reports(world, [(7000, "failed", 9, "A", merge)])
    for _ in range(3):
        for site, mean_s in ((None, (210 + 140) / 2), ("A", 210)):
            rows = call(world.db, "attempts_by_exit", project="p", site=site)
            means = {row["outcome"]: (row["attempts"], row["mean_s"]) for row in rows}
            assert means == {"done": (2 + (site is None), mean_s), "failed": (1, None)}
        call(world.db, "tick")


@pytest.mark.history_by_hand
def test_merges_make_health_no_more_impatient_with_slices(world: World) -> None:
    put_reports(world, [(20_000, "done", 0, None, 5)] + [(20_000, "done", 0, None, 0)] * 9)
    world.db.execute("UPDATE osgprod_data.reports SET ran_s = 7200 WHERE nblocks > 0")
    for _ in range(2):
        call(world.db, "tick")
    (patience,) = world.db.execute("SELECT now() - osgprod._patience(1) AS it").fetchall()
    assert timedelta(hours=4) <= patience["it"] < timedelta(hours=4, minutes=10)


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
    assert "starts are 12" in found["restarting"]["found"] and found["restarting"]["found"].startswith(
        "1 job has"
    )
    assert "without-progress" not in found
    world.db.execute("UPDATE osgprod_data.attempts SET started_at = started_at - interval '20 h'")
    assert findings(world)["without-progress"]["found"].startswith(
        "2 leased slices or merges without progress"
    )
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


def test_bans_that_keep_every_job_from_work_are_bad(world: World) -> None:
    world.add_file(5)
    call(world.db, "ban_worker", project="p", worker="site:A", seconds=3600)
    note(world, status=429, reason="OG601", message="worker wn1 is banned", times=30)
    note(world, status=403, reason="OG202", message="parameter magic is wrong or missing")
    row = findings(world)["banned-workers"]
    assert (row["level"], row["found"]) == (
        "bad",
        "1 ban is in force, and no slice is leased: no request for work was let in for 15 minutes, and 30 met a ban",
    )
    world.checkout(0)
    assert findings(world)["banned-workers"]["level"] == "attention", "something runs"
    world.report(0)
    assert findings(world)["banned-workers"]["level"] == "bad"
    note(world, status=429, reason="OG603", message="project p has 1 live attempts of at most 1")
    assert findings(world)["banned-workers"]["level"] == "attention", "others are let in"


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


def test_tick_does_not_wait_for_a_shim_that_notes_answers(world: World) -> None:
    world.add_file(1)
    rows = [{"minute": time.time(), "project": "p", "route": "checkout", "status": 400, "reason": f"r{n}",
             "times": 1 if n < 450 else 9} for n in range(900)]  # fmt: skip
    rare, others = json.dumps(rows[:450]), json.dumps(rows[450:])
    call(world.db, "note_answers", answers=rare)
    call(world.db, "note_answers", answers=others)
    world.db.execute("SET lock_timeout = '1s'")
    with connect(world.dsn) as shim, shim.transaction():
        call(shim, "note_answers", answers=rare)
        call(world.db, "tick")
    call(world.db, "tick")
    kept = world.db.execute("SELECT count(*) AS n FROM osgprod_data.answers").fetchone()
    assert kept == {"n": 500}


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


def operations(world: World, **more: object) -> list[tuple[str, str | None, int]]:
    rows = call(world.db, "list_operations", **more)
    return [(row["operation"], row["project"], row["times"]) for row in reversed(rows)]


def test_what_operators_change_is_on_record_and_what_is_rolled_back_is_not(world: World) -> None:
    world.db.execute("SET osgprod.person = 'kim@login1'")
    before = len(operations(world))
    world.add_file(3)
    world.set(lease_s=7200, wait_s=30)
    world.set(lease_s=7200)  # changes nothing
    call(world.db, "set_magic", project="p", magic="n", overlap_s=600)
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60, reason="disk")
    with world.db.transaction(force_rollback=True):
        world.set(wait_s=31)
    call(world.db, "forget_rawdata", path=world.add_file(1, run=9, project=None))
    assert operations(world)[before:] == [
        ("register_rawdata", None, 1),
        ("load_slices", "p", 1),
        ("set_project", "p", 2),
        ("set_magic", "p", 1),
        ("ban_worker", "p", 1),
        ("register_rawdata", None, 1),
        ("forget_rawdata", None, 1),
    ]
    rows = call(world.db, "list_operations", project="p")
    assert rows[0]["who"] == "postgres (kim@login1)"
    assert rows[0]["details"] == {"worker": "wn1", "seconds": 60, "reason": "disk"}
    assert rows[2]["details"] == {"lease_s": "21600 -> 7200", "wait_s": "60 -> 30"}
    assert "n" not in rows[1]["details"].values(), "no secret"


def test_many_files_of_a_transaction_are_one_operation(world: World) -> None:
    with world.db.transaction():
        for seqno in range(40):
            world.add_file(1, run=5, seqno=seqno, project=None)
    assert operations(world)[-1] == ("register_rawdata", None, 40)
    world.add_file(1, run=5, seqno=40, project=None)
    assert operations(world)[-2:] == [("register_rawdata", None, 40), ("register_rawdata", None, 1)]


def test_functions_can_not_change_the_log_of_operations(world: World) -> None:
    world.db.execute("SET ROLE osgprod_owner")
    for change in ("UPDATE osgprod_data.operations SET times = 7", "DELETE FROM osgprod_data.operations"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="only ever added to"):
            world.db.execute(change)
    world.db.execute("RESET ROLE")


def test_each_function_with_which_an_operator_changes_something_writes_the_log(world: World) -> None:
    changing = world.db.execute(
        "SELECT p.proname AS name, p.prosrc AS body FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace"
        " AND p.provolatile = 'v' AND p.proname NOT LIKE '\\_%' AND has_function_privilege('osgprod_operator', p.oid,"
        " 'EXECUTE') AND NOT has_function_privilege('osgprod_worker', p.oid, 'EXECUTE')"
    ).fetchall()
    assert len(changing) > 10
    by_programs = {
        "next_notifications",
        "mark_notified",
        "note_health",
        "record_locality",
    }
    assert [row["name"] for row in changing if "_log_operation(" not in row["body"]
            and "_log_settings(" not in row["body"] and row["name"] not in by_programs] == []  # fmt: skip


def test_log_of_a_removed_project_stays(world: World) -> None:
    world.with_project("q").add_file(1, project="q")
    call(world.db, "remove_project", project="q")
    assert [name for name, _, _ in operations(world, project="q")] == [
        "add_project",
        "set_magic",
        "set_project",
        "load_slices",
        "remove_project",
    ]


def test_files_of_which_nothing_was_done_are_taken_out_and_no_others(world: World) -> None:
    world.set(max_failures=1)
    paths = [world.add_file(1, run=run) for run in (1, 2, 3, 4, 5)]
    for process, code in enumerate((0, None, 9)):
        world.checkout(process)
        if code is not None:
            world.report(process, code)
    with pytest.raises(psycopg.Error, match="neither runs nor a path are given for project p"):
        call(world.db, "unload_slices", project="p")
    with pytest.raises(psycopg.Error, match="no such file is work of project p"):
        call(world.db, "unload_slices", project="p", runs="{77}")
    expected = [{"files": 2, "blocks": 2, "files_kept": 2}]
    for dry_run in (True, False):
        assert call(world.db, "unload_slices", project="p", runs="{1,2,3,4}", dry_run=dry_run) == expected
        left = [f["path"] for f in call(world.db, "list_files", project="p")]
        assert left == (paths if dry_run else [paths[0], paths[1], paths[4]])
    assert call(world.db, "unload_slices", project="p", path=paths[4])[0]["files"] == 1
    assert call(world.db, "load_slices", project="p", runs="{3,4,5}")[0]["files"] == 3


def test_stopped_project_ends_its_jobs_at_their_next_heartbeat_and_blames_nobody(world: World) -> None:
    world.set(max_failures=1, max_fast_failures=1)
    world.add_file(3)
    for process in range(2):
        world.checkout(process, host=f"wn{process}")
    assert call(world.db, "stop_project", project="p")[0]["stop_project"] == 2
    with pytest.raises(psycopg.Error, match="paused"):
        world.checkout(2)
    for _ in range(2):
        answer = world.heartbeat(0, bytes=5)
        assert (answer["http_status"], answer["status"]) == (409, "superseded")
        assert answer["message"] == "stop: the operator has stopped this project"
    assert call(world.db, "stop_project", project="p")[0]["stop_project"] == 1
    assert world.report(0, 143)["status"] == "superseded"
    assert world.report(1, 0)["status"] == "done", "a success counts all the same"
    row = world.db.execute(
        "SELECT state, failures, faults FROM osgprod_data.slices WHERE block1 = 1"
    ).fetchone()
    assert row == {"state": "ready", "failures": 0, "faults": 0}
    assert call(world.db, "blocked_workers") == []
    world.set(state="active")
    world.checkout(3)
    assert world.heartbeat(3)["status"] == "alive"
    assert operations(world)[-2:] == [("stop_project", "p", 1), ("set_project", "p", 1)]


def test_end_of_a_failed_attempts_log_is_kept_and_shown_plainly(world: World) -> None:
    world.add_file(4)
    for process, code in enumerate((9, 75, 0)):
        world.checkout(process)
        world.report(process, code, log_tail="x" * 5000 + "\r\nevent 4\x1b[31m\n\nbank 3")
    for process in (0, 1):
        (row,) = call(world.db, "log_tail", project="p", cluster=1, process=process)
        assert row["tail"].endswith("x\nevent 4 [31m\n\nbank 3") and len(row["tail"]) <= 4096
    assert call(world.db, "log_tail", project="p", cluster=1, process=2) == [], "of a success nothing is kept"
    world.set(keep_log_tail=False)
    world.checkout(3)
    world.report(3, 9, log_tail="bank 3")
    assert call(world.db, "log_tail", project="p", cluster=1, process=3) == []


def test_find_tells_jobs_workers_files_runs_sites_and_projects_apart(world: World) -> None:
    path = world.add_file(4, run=90001, seqno=3)
    world.checkout(0, cluster=4711, host="wn17.example.org", site="SITE-A")
    call(world.db, "ban_worker", project="p", worker="wn17.example.org", seconds=60)

    def found(text: str) -> list[tuple[str, str, str]]:
        return [(row["kind"], row["name"], row["command"]) for row in call(world.db, "find", text=text)]

    worker = "wn17.example.org@127.0.0.1"
    assert found("4711.0") == [("job", "4711.0", "osgprod jobs p 4711.0")]
    assert found(" 4711 ") == [("cluster", "4711", "osgprod jobs p --cluster 4711")]
    assert found("90001") == [("run", "90001", "osgprod files p --runs 90001")]
    for name in ("hd_rawdata_090001_003", "hd_rawdata_090001_003.evio", path):
        assert found(name) == [("file", path, f"osgprod slices list p --path {path}")]
    for name in ("wn17", "wn17.example.org", "127.0.0.1", worker):
        assert found(name) == [("worker", worker, f"osgprod attempts p --worker {worker}")]
    assert call(world.db, "find", text="wn17")[0]["banned_by"] == "wn17.example.org"
    assert call(world.db, "find", text="4711.0")[0]["found"].startswith("1 start, ")
    assert call(world.db, "find", text="SITE-A")[0]["found"] == "1 attempt on 1 worker in seven days"
    assert found("wn1") == found("wn17.example.org@127.0.0.2") == found("wn18@127.0.0.1") == []
    assert found("SITE-A") == [("site", "SITE-A", "osgprod attempts p --site SITE-A")]
    assert found("p") == [("project", "p", "osgprod status p")]
    assert found("nothing%_") == []
    world.checkout(0, cluster=4712, host=None)
    world.checkout(0, cluster=4713, host="slot1@wn18")
    nameless = "unnamed@127.0.0.1"
    assert found(nameless) == [("worker", nameless, f"osgprod attempts p --worker {nameless}")]
    assert [row[1] for row in found("slot1@wn18")] == [row[1] for row in found("slot1@wn18@127.0.0.1")]
    assert [row[1] for row in found("127.0.0.1")] == ["slot1@wn18@127.0.0.1", nameless, worker]


@pytest.mark.parametrize("name", ["$(reboot)", "a b", "it's; reboot", "x`id`", "--help me", "*"])
def test_find_quotes_what_jobs_and_files_are_called_for_the_shell(world: World, name: str) -> None:
    world.add_file(1)
    world.db.execute("UPDATE osgprod_data.rawdata SET path = '/d/' || %s", [name])
    world.checkout(0, host=name, site=f"S {name}")
    rows = call(world.db, "find", text=name) + call(world.db, "find", text=f"S\t{name}\n")
    words = {row["kind"]: shlex.split(row["command"]) for row in rows}
    assert words == {
        "file": ["osgprod", "slices", "list", "p", "--path", f"/d/{name}"],
        "worker": ["osgprod", "attempts", "p", "--worker", f"{name}@127.0.0.1"],
        "site": ["osgprod", "attempts", "p", "--site", f"S {name}"],
    }


def test_diagnose_names_requests_for_projects_that_do_not_exist(world: World) -> None:
    def found() -> dict[str, Any]:
        rows = call(world.db, "diagnose")
        return next(row for row in rows if row["what"] == "requests for unknown projects")

    assert found()["is_well"] and "none" in found()["found"]
    answer = {"minute": time.time(), "route": "checkout", "status": 404, "reason": "OG301", "times": 40}
    answers = [answer | {"project": f"no{n}", "message": "there is no project 'sprnig26'"} for n in range(3)]
    call(world.db, "note_answers", answers=json.dumps(answers))
    assert not found()["is_well"]
    assert found()["found"] == "120 in the last 15 minutes; most often: there is no project 'sprnig26'"


def load_long_ago(world: World) -> None:
    world.db.execute("UPDATE osgprod_data.loaded_files SET loaded_at = now() - interval '30 d'")


def test_project_with_little_left_to_assign_and_no_job_is_not_said_to_need_none(world: World) -> None:
    world.add_file(4)
    for process in range(4):
        world.checkout(process)
    for process in range(3):
        world.report(process)
    assert "running-out" in findings(world)
    world.report(3)
    call(world.db, "recycle", project="p", runs=[1], states=["done"])
    assert "running-out" not in findings(world)
    assert world.checkout(5)["status"] == "assigned"


def test_resumed_project_is_not_called_stalled_before_jobs_had_time(world: World) -> None:
    world.add_file(5)
    load_long_ago(world)
    for state in ("paused", "draining"):
        assert "stalled" in findings(world)
        world.set(state=state)
        assert "stalled" not in findings(world)
        world.set(state="active")
        assert "stalled" not in findings(world)
        world.db.execute("UPDATE osgprod_data.projects SET activated_at = activated_at - interval '2 h'")
        world.set(state="active")  # it is that already
    assert "stalled" in findings(world)


def test_project_that_ended_a_pause_itself_is_not_called_stalled_at_once(world: World) -> None:
    world.set(suspend_after=2)
    for seqno in range(3):
        world.add_file(5, seqno=seqno)
    for n in range(3):
        world.checkout(n, host=f"wn{n}", client=f"127.0.{n}.1")
    for n in range(3):
        world.report(n, 75, fault="delivery", client=f"127.0.{n}.1")
    assert "paused-itself" in findings(world)
    world.attempts_pass(7200)
    load_long_ago(world)
    world.set(state="active")
    assert "stalled" not in findings(world)


def test_runs_that_are_added_or_recycled_after_a_long_time_are_not_called_stalled(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    world.tick()
    world.attempts_pass(30 * 24 * 3600)
    load_long_ago(world)
    assert list(findings(world)) == ["done"]
    call(world.db, "recycle", project="p", states=["done"])
    assert "stalled" not in findings(world)
    world.checkout(1)
    world.report(1)
    world.tick()
    world.attempts_pass(30 * 24 * 3600)
    world.add_file(1, seqno=2)
    assert "stalled" not in findings(world)
    load_long_ago(world)
    world.add_file(1, seqno=3)
    assert "stalled" in findings(world), "files that arrive now and then hide nothing"


def test_work_that_is_all_on_tape_is_named_so(world: World) -> None:
    world.set(skip_nearline=True)
    world.add_file(2)
    load_long_ago(world)
    (file,) = call(world.db, "list_next_files", project="p")
    world.checkout(0)

    def storage_has_it(locality: str) -> None:
        found = [{"file_id": file["file_id"], "locality": locality}]
        call(world.db, "record_locality", found=json.dumps(found))

    storage_has_it("nearline")
    assert set(findings(world)) == {"on-tape"}
    assert findings(world)["on-tape"]["found"].startswith("no block can be assigned: 1 file is on tape only")
    world.add_file(1, seqno=2)
    assert "on-tape" not in findings(world), "there is other work"
    storage_has_it("online")
    assert "stalled" in findings(world)


def test_a_full_project_and_banned_workers_are_not_called_refused_requests(world: World) -> None:
    world.add_file(5)
    for code in ("OG601", "OG602", "OG603", "OG604"):
        note(world, status=429, reason=code, message="later", times=500)
    assert "refused-requests" not in findings(world)
    note(world, status=403, reason="OG202", message="wrong magic", times=1000)
    assert findings(world)["refused-requests"]["found"].startswith("1000 of 3000 requests")


def test_health_names_a_wrong_setting_of_slices_and_merges_though_it_counts_against_nothing(
    world: World,
) -> None:
    world.set(merge_by="file", max_failures=2, backoff_s=0)
    world.add_file(1)
    world.checkout(0, host="wn0")
    world.report(0, 74, fault="setting", reason="configuration: no output folder", host="wn0")
    assert findings(world)["wrong-setting"]["found"] == (
        "1 attempt of the last hour ended since a setting is wrong; the last: configuration: no output folder"
    )
    world.checkout(1, host="wn1")
    world.report(1, host="wn1")
    world.tick()
    for process in range(2, 6):
        world.let_backoff_pass()
        world.db.execute("UPDATE osgprod_data.merges SET is_ready = true WHERE is_ready = false")
        call(world.db, "ban_worker", project="p", worker="merges:all", seconds=0)
        answer = world.checkout(process, host=f"wn{process}")
        assert (answer["status"], answer["task"]) == ("assigned", "merge")
        world.report(process, 74, fault="setting", reason="merge_output_url is no URL", host=f"wn{process}")
    (merge,) = call(world.db, "list_merges", project="p")
    assert merge["state"] == "ready", "it never becomes failed"
    row = findings(world)["wrong-setting"]
    assert row["level"] == "attention"
    assert row["found"] == (
        "5 attempts of the last hour ended since a setting is wrong; the last: merge_output_url is no URL"
    )
    world.attempts_pass(3601)
    assert "wrong-setting" not in findings(world)
