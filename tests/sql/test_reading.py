"""What operators and the dashboard see: lists, rates, the map, notifications."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import BLOCK_EVENTS, PATIENCE_S, WORKER_ROLE, World, wait_until

SHOWN_BY_THE_DASHBOARD = (
    "health",
    "idle_and_leased",
    "progress",
    "totals",
    "rate",
    "estimate",
    "attempts_by_exit",
    "attempts_by_site",
    "attempts_by_worker",
    "list_attempts",
    "live_attempts",
    "list_jobs",
    "list_files",
    "map_files",
    "list_slices",
    "quarantined",
    "blocked_workers",
)


def put_reports(world: World, rows: list[tuple[float, str, int | None, str | None, int]]) -> None:
    """Puts reports of project "p" on record: age [s], outcome, exit code, site, blocks."""
    ages, outcomes, codes, sites, blocks = map(list, zip(*rows, strict=True))
    world.db.execute(
        "INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code,"
        " reported_at, ran_s, nblocks, worker, site) SELECT p.project_id, 9, r.n, 1, true, r.o, r.e, clock_timestamp()"
        " - make_interval(secs => r.age), 50, r.b, 'wn' || r.n %% 3, r.s FROM osgprod_data.projects p,"
        " unnest(%s::float8[], %s::osgprod_data.outcome[], %s::int[], %s::text[], %s::int[]) WITH ORDINALITY"
        " AS r (age, o, e, s, b, n) WHERE p.name = 'p'",
        [ages, outcomes, codes, sites, blocks],
    )


def outcomes_counted(world: World) -> dict[str, tuple[int, int]]:
    rows = world.db.execute(
        "SELECT outcome, count(*), sum(nblocks) FROM osgprod_data.reports GROUP BY 1"
    ).fetchall()
    return {row["outcome"]: (row["count"], row["sum"]) for row in rows}


@pytest.mark.history_by_hand
def test_tallies_and_what_is_not_yet_tallied_are_all_reports_exactly_once(world: World) -> None:
    rng = random.Random(7)
    for round_ in range(4):
        world.db.execute("DELETE FROM osgprod_data.reports WHERE cluster = 10")
        put_reports(
            world,
            [
                (rng.uniform(0, 7200), rng.choice(["done", "failed", "lost"]), rng.choice([0, 1, None]),
                 rng.choice(["A", None]), rng.randrange(1, 9))
                for _ in range(200)
            ],
        )  # fmt: skip
        world.db.execute("UPDATE osgprod_data.reports SET cluster = %s WHERE cluster = 9", [100 + round_])
        # what this round put before the last tally is found as if it had been there in time
        world.db.execute("DELETE FROM osgprod_data.tallies")
        world.db.execute("DELETE FROM osgprod_data.totals")
        world.db.execute("UPDATE osgprod_data.projects SET tallied_until = '-infinity'")
        for _ in range(1 + round_ % 2):
            call(world.db, "tick")
        counted = {
            row["outcome"]: (row["reports"], row["blocks"]) for row in call(world.db, "totals", project="p")
        }
        assert {k: v for k, v in counted.items() if v[0]} == outcomes_counted(world)
        by_exit = call(world.db, "attempts_by_exit", project="p", hours=3)
        assert sum(row["attempts"] for row in by_exit) == 200 * (round_ + 1)
        by_site = call(world.db, "attempts_by_site", project="p", hours=3)
        assert sum(row["attempts"] for row in by_site) == 200 * (round_ + 1)
        rate = call(world.db, "rate", project="p", hours=24)
        assert sum(row["blocks_done"] for row in rate) == outcomes_counted(world)["done"][1]
        assert sum(row["lost"] for row in rate) == outcomes_counted(world)["lost"][0]


@pytest.mark.history_by_hand
def test_clock_that_is_set_back_counts_each_report_once(world: World) -> None:
    put_reports(
        world, [(3600, "done", 0, None, 5), (3000, "lost", None, None, 1), (2400, "done", 0, None, 2)]
    )
    call(world.db, "tick")
    # as if the clock had been a year ahead until now, but for the first report
    for what in (
        "reports SET reported_at = reported_at + interval '365 days' WHERE nblocks < 5",
        "tallies SET began_at = began_at + interval '365 days' WHERE blocks < 5",
        "projects SET tallied_until = tallied_until + interval '365 days'",
    ):
        world.db.execute(f"UPDATE osgprod_data.{what}".encode())
    world.db.execute("UPDATE osgprod_data.reports SET cluster = 8")
    put_reports(world, [(1, "done", 0, None, 3)])  # too recent to be in the tallies
    for _ in range(2):
        call(world.db, "tick")
        counted = {row["outcome"]: row["blocks"] for row in call(world.db, "totals", project="p")}
        assert {k: v for k, v in counted.items() if v} == {"done": 10, "lost": 1}
        assert sum(row["blocks_done"] for row in call(world.db, "rate", project="p")) == 8


@pytest.mark.history_by_hand
def test_report_in_flight_is_counted_when_the_clock_was_set_back_between_two_looks(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    call(world.db, "tick")  # notes until when it will count
    world.db.execute("UPDATE osgprod_data.projects SET tally_next = tally_next + interval '365 days'")
    with connect(world.dsn) as stalled, stalled.transaction():
        world.report(0, db=stalled)

        def is_tallied() -> bool:
            call(world.db, "tick")
            tallied = "SELECT FROM osgprod_data.projects WHERE tallied_until > now() + interval '1 day'"
            return bool(world.db.execute(tallied).fetchall())

        wait_until(is_tallied, "no transaction of another test on this server is waited for")
    assert sum(row["blocks"] for row in call(world.db, "totals", project="p")) == 1


@pytest.mark.history_by_hand
def test_tally_happens_once_for_each_ten_minutes_and_never_waits_for_an_operator(world: World) -> None:
    put_reports(world, [(3600, "done", 0, None, 5)])
    with connect(world.dsn) as other, other.transaction():
        other.execute("SELECT FROM osgprod_data.projects FOR UPDATE")
        world.db.execute("SET lock_timeout = '60s'")
        call(world.db, "tick")
        assert world.db.execute("SELECT count(*) AS n FROM osgprod_data.tallies").fetchone() == {"n": 0}
    for _ in range(3):
        call(world.db, "tick")
    assert world.db.execute("SELECT count(*) AS n FROM osgprod_data.tallies").fetchone() == {"n": 1}
    assert call(world.db, "totals", project="p")[0]["blocks"] == 5


@pytest.mark.history_by_hand
def test_report_whose_transaction_ends_late_is_tallied_once(world: World) -> None:
    """An hour late, as with a commit that waits for its standby: no clock says when a report is there."""
    world.add_file(1)
    world.checkout(0)
    with connect(world.dsn) as stalled, stalled.transaction():
        world.report(0, db=stalled)
        stalled.execute("UPDATE osgprod_data.reports SET reported_at = now() - interval '1 h'")
        for _ in range(3):
            world.tick()
        assert {row["blocks"] for row in call(world.db, "totals", project="p")} == {0}

    def tallied() -> list[int]:
        world.tick()
        return [
            row["reports"] for row in world.db.execute("SELECT reports FROM osgprod_data.tallies").fetchall()
        ]

    wait_until(tallied, "no transaction of another test on this server is waited for")
    assert [tallied() for _ in range(3)] == [[1]] * 3
    assert sum(row["blocks"] for row in call(world.db, "totals", project="p")) == 1


def test_rate_has_every_interval_and_at_most_145(world: World) -> None:
    for hours, interval in ((1, 60), (2, 60), (3, 600), (24, 600), (25, 1200), (720, 18000), (8760, 219000)):
        rows = call(world.db, "rate", project="p", hours=hours)
        assert {row["interval_s"] for row in rows} == {interval}
        assert hours * 3600 / interval <= len(rows) <= 145
        steps = {(b["began_at"] - a["began_at"]).total_seconds() for a, b in itertools.pairwise(rows)}
        assert steps <= {float(interval)}


@pytest.mark.history_by_hand
def test_estimate_holds_the_true_rate_about_as_often_as_it_promises(world: World) -> None:
    """Success times are a Poisson process of known rate; 95 % are promised, 15 tries may miss a few."""
    rng = random.Random(20261)
    world.add_file(10_000)
    held, off = 0, []
    for _ in range(15):
        world.db.execute("DELETE FROM osgprod_data.reports")
        age, rows, true_per_hour = 0.0, [], 600.0
        while (age := age + rng.expovariate(true_per_hour / 3600)) < 6 * 3600:
            rows.append((age, "done", 0, None, 1))
        put_reports(world, rows)
        row = call(world.db, "estimate", project="p", hours=6)[0]
        assert row["blocks_left"] == 10_000
        assert row["least_per_hour"] < row["blocks_per_hour"] < row["most_per_hour"]
        assert row["ends_early_at"] < row["ends_at"] < row["ends_late_at"]
        held += row["least_per_hour"] <= true_per_hour <= row["most_per_hour"]
        off.append(row["blocks_per_hour"] / true_per_hour)
    assert held >= 12, f"the true rate was inside {held} of 15 times"
    assert abs(statistics.mean(off) - 1) < 0.03


@pytest.mark.history_by_hand
def test_estimate_is_empty_without_enough_data(world: World) -> None:
    world.add_file(5)
    row = call(world.db, "estimate", project="p")[0]
    assert (row["blocks_left"], row["blocks_per_hour"], row["ends_at"]) == (5, None, None)
    put_reports(world, [(30, "done", 0, None, 1)])
    row = call(world.db, "estimate", project="p")[0]
    assert row["ends_late_at"] is None and row["ends_early_at"] is None


def test_lists_show_what_happened(world: World) -> None:
    world.set(max_failures=1)
    first, second = world.add_file(3, seqno=0), world.add_file(2, seqno=1)
    world.checkout(0, host="wn1", site="A")
    world.report(
        0, 0, events=11, output_bytes=7, output_adler32="11e60398", output_url="https://me:pw@store/0?key=1"
    )
    world.checkout(1, host="wn2", site="B")
    world.report(1, 9, reason="bank 3", output_url="https://me:pw@store/log?key=secret")
    world.checkout(2, host="wn3", site="A")
    world.checkout(3, host="wn3", site="A")

    files = call(world.db, "list_files", project="p")
    assert [(f["path"], f["state"], f["blocks"], f["blocks_done"], f["blocks_leased"], f["blocks_quarantined"],
             f["blocks_unallocated"]) for f in files] == [
        (first, "allocated", 3, 1, 1, 1, 0), (second, "in_progress", 2, 0, 1, 0, 1)]  # fmt: skip
    slices = call(world.db, "list_slices", project="p")
    assert [(s["block1"], s["state"]) for s in slices] == [
        (1, "done"), (2, "quarantined"), (3, "leased"), (1, "leased")]  # fmt: skip
    assert [(s["output_bytes"], s["output_adler32"], s["output_url"]) for s in slices] == [
        (7, "11e60398", "https://store/0"), *[(None, None, None)] * 3]  # fmt: skip
    with world.db.transaction():  # at one time: what is left of a lease is shown in seconds
        slices = call(world.db, "list_slices", project="p")
        for state in ("done", "quarantined", "leased", "ready"):
            only = call(world.db, "list_slices", project="p", state=state)
            assert only == [s for s in slices if s["state"] == state]
    live = call(world.db, "live_attempts", project="p")
    assert [(a["process"], a["worker"].split("@")[0], a["path"]) for a in live] == [
        (2, "wn3", first),
        (3, "wn3", second),
    ]
    assert all(0 <= a["age_s"] < 60 and 21500 < a["lease_left_s"] <= 21600 for a in live)
    ended = call(world.db, "list_attempts", project="p")
    assert [(a["process"], a["outcome"], a["exit_code"]) for a in ended] == [(1, "failed", 9), (0, "done", 0)]
    assert ended[0]["log_url"] == "https://store/log", "no key to a store is shown"
    assert call(world.db, "list_attempts", project="p", exit_code=9) == ended[:1]
    assert call(world.db, "list_attempts", project="p", site="A") == ended[1:]
    jobs = call(world.db, "list_jobs", project="p")
    assert [(j["process"], j["state"]) for j in jobs] == [
        (3, "live"),
        (2, "live"),
        (1, "failed"),
        (0, "done"),
    ]
    assert call(world.db, "list_jobs", project="p", cluster=1) == jobs
    rawdata = call(world.db, "list_rawdata", runs="{1}")
    assert [(r["path"], r["blocks"], r["events"], r["projects"]) for r in rawdata] == [
        (first, 4, 31, 1), (second, 3, 21, 1)]  # fmt: skip
    workers = call(world.db, "attempts_by_worker", project="p", order="failing")
    assert [(w["worker"].split("@")[0], w["failed"]) for w in workers] == [("wn2", 1)]


def test_history_of_a_job_has_each_attempt_and_each_outcome(world: World) -> None:
    world.add_file(2)
    world.checkout(5, cpus=2, host="wn1")
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    world.report(5, 0)  # it was only slow
    world.checkout(6, host="wn2")
    history = call(world.db, "job_history", project="p", cluster=1, process=5)
    assert [(h["nstart"], h["outcome"], h["by_worker"]) for h in history] == [
        (1, "lost", False), (1, "done", True)]  # fmt: skip
    with pytest.raises(psycopg.errors.DatabaseError, match=r"job 1\.99 has no attempt"):
        call(world.db, "job_history", project="p", cluster=1, process=99)


def test_map_has_a_character_for_each_file(world: World) -> None:
    world.set(max_failures=1)
    for run, seqno in ((1, 0), (1, 1), (1, 3), (2, 0), (4, 7)):
        world.add_file(2, run=run, seqno=seqno)
    for process in range(2):
        world.checkout(process)
        world.report(process)
    world.checkout(2)
    world.report(2, 9)
    rows = call(world.db, "map_files", project="p")
    assert [(r["first_run"], r["last_run"], r["files"], r["cells"]) for r in rows] == [
        (1, 1, 3, "#q.0"), (2, 2, 1, "0"), (4, 4, 1, ".......0")]  # fmt: skip
    assert call(world.db, "map_files", project="p", rows=2, columns=4)[0] == {
        **rows[0], "last_run": 2, "files": 4, "blocks": 8, "files_a_cell": 2, "cells": "q0",
    }  # fmt: skip
    assert sum(r["blocks_done"] for r in rows) == world.progress()["blocks_done"] == 2


def test_map_is_the_same_as_the_list_of_files_whatever_their_states(world: World) -> None:
    """Compared with a model in Python. Runs whose files all have one state are drawn without reading their files."""
    rng = random.Random(4)
    world.set(max_failures=1)
    for run in range(1, 9):
        for seqno in range(rng.randrange(1, 9)):
            if run % 4 or rng.random() < 0.7:
                world.add_file(2, run=run, seqno=seqno)
    for process in range(60):
        if world.checkout(process)["status"] == "assigned" and process % 7:
            world.report(process, 9 if process % 20 == 19 else 0)
    call(world.db, "tick")
    for rows, columns in ((100, 100), (100, 3), (3, 100), (1, 1), (2, 2)):
        files = call(world.db, "list_files", project="p", limit=1000)
        drawn = call(world.db, "map_files", project="p", rows=rows, columns=columns)
        runs = sorted({f["run"] for f in files})
        a_line = -(-len(runs) // rows)
        a_cell = max(f["seqno"] for f in files) // columns + 1
        for line, row in enumerate(drawn):
            chosen = [f for f in files if f["run"] in runs[line * a_line : (line + 1) * a_line]]
            cells = ["."] * (max(f["seqno"] for f in chosen) // a_cell + 1)
            for place in range(len(cells)):
                here = [f for f in chosen if f["seqno"] // a_cell == place]
                if here:
                    done, blocks = (sum(f[name] for f in here) for name in ("blocks_done", "blocks"))
                    bad = any(f["blocks_quarantined"] for f in here)
                    part = str(max(10 * done // blocks, 1)) if done else "0"
                    cells[place] = "q" if bad else "#" if done == blocks else part
            assert row["cells"] == "".join(cells)
            assert row["files_a_cell"] == a_cell and row["files"] == len(chosen)
            assert row["blocks_done"] == sum(f["blocks_done"] for f in chosen)
            assert row["blocks_quarantined"] == sum(f["blocks_quarantined"] for f in chosen)
            assert row["files_finished"] == sum(f["state"] == "complete" for f in chosen)
        assert sum(row["files"] for row in drawn) == len(files)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("rate", {"hours": 0}, "hours must be a number from 1 to 8760, not 0"),
        ("estimate", {"hours": 9000}, "hours must be"),
        ("list_slices", {"limit": 0}, "limit must be a number from 1 to 100000, not 0"),
        ("list_slices", {"state": "lost"}, "the state of a slice is"),
        ("list_files", {"state": "x"}, "the state of a file is"),
        ("list_attempts", {"outcome": "x"}, "an outcome is"),
        ("attempts_by_worker", {"order": "x"}, "the order of workers is"),
        ("map_files", {"rows": 0}, "a map has 1 to 10000"),
        ("add_notify_target", {"name": None, "place": "env:X"}, "the name of a target can't be NULL"),
        ("add_notify_target", {"name": "me", "place": None}, "the place of a target is .*, not NULL"),
    ],
)
def test_impossible_argument_is_refused_with_a_hint(
    world: World, function: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match=message) as caught:
        call(world.db, function, project="p", **arguments)
    assert caught.value.sqlstate == "OG108" and caught.value.diag.message_hint


def test_shim_login_may_read_what_the_dashboard_shows_and_nothing_else(world: World) -> None:
    world.add_file(2)
    world.checkout(0)
    secrets = ("magic", "digest", "salt", "token")
    with connect(world.dsn + WORKER_ROLE) as shim:
        for function in SHOWN_BY_THE_DASHBOARD:
            for row in call(shim, function, project="p"):
                assert not [name for name in row if any(secret in name for secret in secrets)]
        assert call(shim, "job_history", project="p", cluster=1, process=0)
        for function, arguments in (("list_rawdata", {}), ("diagnose", {}), ("verify", {"project": "p"})):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                call(shim, function, **arguments)


def test_listeners_are_notified_of_rare_events_only(world: World) -> None:
    world.set(max_failures=1, max_fast_failures=2)
    paths = [world.add_file(1, seqno=seqno) for seqno in range(3)]
    with connect(world.dsn) as listener:
        listener.execute("LISTEN osgprod")
        for process, code in enumerate((0, 9)):
            world.checkout(process, host=f"wn{process}")
            world.report(process, code)
        world.checkout(7, host="wn7")
        world.report(7, 0)
        call(world.db, "tick")
        call(world.db, "ban_worker", project="p", worker="wn9", seconds=60, reason="r" * 3000)
        call(world.db, "ban_worker", project="p", worker="wn9", seconds=0)
        events = [json.loads(n.payload) for n in listener.notifies(timeout=PATIENCE_S, stop_after=7)]
        assert not list(listener.notifies(timeout=0.05))
    assert all(event["project"] == "p" and event["at"] for event in events)
    assert [(e["event"], e.get("path"), e.get("block"), e.get("worker")) for e in events] == [
        ("block-quarantined", paths[1], 1, None),
        ("file-finished", paths[0], None, None),
        ("file-finished", paths[1], None, None),
        ("file-finished", paths[2], None, None),
        ("run-finished", None, None, None),
        ("project-done", None, None, None),
        ("worker-banned", None, None, "wn9"),
    ]
    assert len(events[-1]["reason"]) == 800


@pytest.mark.history_by_hand
def test_names_that_jobs_give_their_sites_make_no_more_rows_to_be_read_but_for_the_table_of_sites(
    world: World,
) -> None:
    put_reports(world, [(60 + n, "done", 0, f"SITE_{n}", 1) for n in range(400)])
    counted = "SELECT count(*) AS n FROM osgprod._recent(1, '-infinity', %s)"
    rows = [world.db.execute(counted.encode(), [by_site]).fetchone() for by_site in (False, True)]
    assert rows[0] and rows[0]["n"] <= 2, "a row for each ten minutes"
    assert rows[1] == {"n": 400}
    sites = call(world.db, "attempts_by_site", project="p", limit=1000)
    assert {row["site"]: row["attempts"] for row in sites} == {f"SITE_{n}": 1 for n in range(400)}
    assert call(world.db, "attempts_by_site", project="p", site="SITE_7") == [
        row for row in sites if row["site"] == "SITE_7"
    ]
    assert call(world.db, "attempts_by_site", project="p", site="nowhere") == []
    (row,) = call(world.db, "attempts_by_exit", project="p", site="SITE_7")
    assert (row["outcome"], row["attempts"]) == ("done", 1)
    assert call(world.db, "attempts_by_exit", project="p")[0]["attempts"] == 400


def test_diagnosis_names_each_fault_and_what_to_do(world: World) -> None:
    found = {row["what"]: row for row in call(world.db, "diagnose")}
    assert not found["work of p"]["is_well"] and "osgprod slices load p" in found["work of p"]["advice"]
    assert found["magic of p"]["is_well"] and found["leases of p"]["is_well"]
    assert found["leases of p"]["found"] == "none has expired without being looked after"
    assert found["shim cannot read tables"]["is_well"]
    world.add_file(2)
    world.checkout(0)
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() - interval '1 h'")
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = now() - interval '1 h'")
    world.db.execute("GRANT SELECT ON osgprod_data.projects TO osgprod_worker")
    found = {row["what"]: row for row in call(world.db, "diagnose")}
    assert not found["leases of p"]["is_well"] and not found["shim cannot read tables"]["is_well"]
    assert found["leases of p"]["found"].startswith("1 slice or merge whose lease expired")
    assert found["shim cannot read tables"]["found"] == "projects"
    assert found["work of p"]["is_well"]


def test_diagnosis_sees_the_expired_lease_of_a_merge(world: World) -> None:
    world.set(merge_by="file")
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    world.tick()
    assert world.checkout(1)["task"] == "merge"
    world.db.execute("UPDATE osgprod_data.merges SET due_at = now() - interval '1 h' WHERE state = 'leased'")
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = now() - interval '1 h'")
    found = {row["what"]: row for row in call(world.db, "diagnose")}
    assert not found["leases of p"]["is_well"]


def test_health_names_each_finding_and_the_command_that_helps(world: World) -> None:
    def health() -> list[tuple[str, str]]:
        rows = call(world.db, "health", project="p")
        assert all(row["found"] and row["advice"] for row in rows)
        return [(row["level"], row["what"]) for row in rows]

    assert health() == [("attention", "empty")]
    world.set(suspend_after=100, max_fast_failures=1000)
    world.add_file(100)
    assert health() == [("attention", "waiting")], "no job has asked yet"
    world.db.execute("UPDATE osgprod_data.loaded_files SET loaded_at = now() - interval '3 h'")
    assert health() == [("bad", "stalled")]
    world.checkout(0)
    assert health() == [("bad", "stalled")]
    world.report(0)
    assert health() == [("well", "healthy")]
    for process in range(1, 11):
        world.checkout(process, host=f"wn{process}")
        world.report(process, 9)
    assert health() == [("bad", "failing")]
    put_reports(world, [(60, "done", 0, None, 1)] * 60)
    assert health() == [("well", "healthy")], "ten of seventy are not yet failing"
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60)
    world.set(state="paused")
    assert health() == [("attention", "banned-workers"), ("attention", "paused")]
    for name in ("site:A", "10.1.2.3", "merges:all"):
        call(world.db, "ban_worker", project="p", worker=name, seconds=60)
    (banned,) = (row for row in call(world.db, "health", project="p") if row["what"] == "banned-workers")
    assert banned["found"] == "4 bans are in force, 1 for merges only"
    world.set(state="draining")
    assert ("attention", "draining") in health()
    world.set(state="active")
    world.checkout(77)
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = now() - interval '1 h'")
    assert ("bad", "leases") not in health(), "none has run out"
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() - interval '1 h' WHERE state = 'leased'")
    assert health()[0] == ("bad", "leases")
    world.set(wait_s=30)
    assert health()[0] == ("bad", "leases"), "a changed setting helps nobody"
    world.db.execute("DELETE FROM osgprod_data.reports WHERE cluster = 9")  # they have no attempts


def test_finished_production_is_called_done_and_names_its_quarantine(world: World) -> None:
    world.set(max_failures=1)
    world.add_file(2)
    for process, code in ((0, 0), (1, 9)):
        world.checkout(process)
        world.report(process, code)
    rows = call(world.db, "health", project="p")
    assert [(row["level"], row["what"]) for row in rows] == [("attention", "quarantine"), ("well", "done")]
    assert call(world.db, "idle_and_leased", project="p") == [
        {"project": "p", "leased": 0, "ready": 0, "quarantined": 1}
    ]


def test_finished_production_is_not_called_failing_for_an_outage_that_it_got_through(world: World) -> None:
    world.add_file(1)
    put_reports(world, [(60, "node-fault", 75, None, 1)] * 20)
    levels = {row["what"]: row["level"] for row in call(world.db, "health", project="p")}
    assert levels["failing"] == "bad"
    world.checkout(0)
    world.report(0)
    assert [row["what"] for row in call(world.db, "health", project="p")] == ["done"]
    world.db.execute("DELETE FROM osgprod_data.reports WHERE cluster = 9")  # they have no attempts


def test_slow_slices_are_not_called_stalled_before_their_time(world: World) -> None:
    world.add_file(100)
    world.db.execute("UPDATE osgprod_data.loaded_files SET loaded_at = now() - interval '30 h'")
    put_reports(world, [(4 * 3600, "done", 0, None, 1)])
    world.db.execute("UPDATE osgprod_data.reports SET ran_s = 3 * 3600")
    for _ in range(2):  # one look notes the time, the next one counts the reports from before it
        call(world.db, "tick")
    assert call(world.db, "health", project="p")[0]["what"] == "healthy", "a success takes three hours"
    world.db.execute("UPDATE osgprod_data.tallies SET began_at = began_at - interval '3 h'")
    assert call(world.db, "health", project="p")[0]["what"] == "stalled"
    world.db.execute("DELETE FROM osgprod_data.reports")  # they have no attempts


def test_amounts_count_events_bytes_and_core_hours_of_what_is_done(world: World) -> None:
    world.set(max_failures=1)
    for seqno in (1, 2, 3):
        world.add_file(4, seqno=seqno)
    before = call(world.db, "amounts", project="p")[0]
    files = world.db.execute("SELECT sum(size_bytes)::bigint AS bytes FROM osgprod_data.rawdata").fetchone()
    assert files and before["bytes"] == files["bytes"]
    assert before["events"] == 3 * 4 * BLOCK_EVENTS == before["events_done"] + 120
    assert (before["running"], before["core_hours_done"], before["is_idle"]) == (0, None, False)
    for process in range(7):  # the whole first file, one block of it bad; three blocks of the second one
        world.checkout(process, host="wn1")
    world.attempts_pass(720)
    for process in range(6):
        world.report(process, 9 if process == 1 else 0)
    world.db.execute(
        "INSERT INTO osgprod_data.paces (project_id, site, rates, sizes, attempts, s_per_block, slow_s_per_block,"
        " most_per_core) SELECT project_id, '', '{7200}', '{1}', 1, 7200, 7200, 1 FROM osgprod_data.projects"
    )
    row = call(world.db, "amounts", project="p")[0]
    assert (row["running"], row["events_done"]) == (1, (3 + 2) * BLOCK_EVENTS)
    assert row["bytes_done"] == before["bytes"] * 5 // 12
    assert row["core_hours_done"] == pytest.approx(5 * 2) and row["core_hours_left"] == pytest.approx(6 * 2)
    world.set(state="paused")
    assert not call(world.db, "amounts", project="p")[0]["is_idle"], "a job runs"
    world.report(6, 0)
    assert call(world.db, "amounts", project="p")[0]["is_idle"]


@pytest.mark.history_by_hand
@pytest.mark.parametrize("age_h", [0.5, 30])
def test_done_over_time_grows_from_nothing_to_what_is_done_now(world: World, age_h: float) -> None:
    assert call(world.db, "done_over_time", project="p") == []
    world.add_file(50)
    for process in range(40):
        world.checkout(process)
        world.report(process, 0 if process < 30 else 137)
    half = world.db.execute("SELECT now() - make_interval(secs => %s) AS at", [age_h * 1800]).fetchone()
    assert half
    world.db.execute(
        "UPDATE osgprod_data.reports SET reported_at = now() - make_interval(secs => %s * (1 - process / 40.0))",
        [age_h * 3600],
    )
    for _ in range(2):
        call(world.db, "tick")
        rows = call(world.db, "done_over_time", project="p", points=50)
        assert 2 <= len(rows) <= 52
        done = [row["blocks_done"] for row in rows]
        assert done[0] == 0 and done == sorted(done) and done[-1] == 30
        steps = {(b["at"] - a["at"]).total_seconds() for a, b in itertools.pairwise(rows[:-1])}
        assert len(steps) <= 1
        until_half = max(row["blocks_done"] for row in rows if row["at"] <= half["at"])
        assert 15 <= until_half <= 20, "the first half of the time had 20 of the 30 blocks"
    call(world.db, "recycle", project="p", states=["done"])
    rows = call(world.db, "done_over_time", project="p", points=50)
    assert {row["blocks_done"] for row in rows} == {0}, "blocks that are processed again are not done"


@pytest.mark.history_by_hand
def test_attempts_of_a_worker_are_the_sum_of_its_outcomes(world: World) -> None:
    world.add_file(4)
    outcomes = ("done", "failed", "node-fault", "lost", "superseded")
    put_reports(world, [(60 + n, outcome, 0, "M", 0) for n, outcome in enumerate(outcomes * 2)])
    rows = call(world.db, "attempts_by_worker", project="p", order="busy")
    names = [outcome.replace("-", "_") + "s" * (outcome == "node-fault") for outcome in outcomes]
    assert sum(row["attempts"] for row in rows) == 10
    for row in rows:
        assert row["attempts"] == sum(row[name] for name in names), row


@pytest.mark.history_by_hand
def test_site_and_worker_where_only_merges_succeeded_are_counted(world: World) -> None:
    """A merge has no blocks: a time for each of them is not known, and no error."""
    world.add_file(4)
    put_reports(world, [(60, "done", 0, "M", 0), (50, "failed", 9, "M", 1)])
    (site,) = call(world.db, "attempts_by_site", project="p")
    assert (site["done"], site["failed"], site["s_per_block"]) == (1, 1, None)
    workers = call(world.db, "attempts_by_worker", project="p", order="busy")
    assert [row["s_per_block"] for row in workers] == [None] * len(workers)
    for function in (
        "rate",
        "estimate",
        "amounts",
        "done_over_time",
        "health",
        "resources",
        "attempts_by_exit",
    ):
        call(world.db, function, project="p")
    assert call(world.db, "done_over_time", project="p")[-1]["blocks_done"] == 0


@pytest.mark.history_by_hand
def test_merges_add_no_time_to_that_of_a_block(world: World) -> None:
    world.add_file(4)
    put_reports(world, [(60, "done", 0, "M", 4), (50, "done", 0, "M", 0)])
    world.db.execute("UPDATE osgprod_data.reports SET ran_s = CASE nblocks WHEN 0 THEN 9000 ELSE 40 END")
    for _ in range(2):  # from the reports themselves, then from the tallies
        (site,) = call(world.db, "attempts_by_site", project="p")
        assert (site["done"], site["s_per_block"]) == (2, 10)
        (worker,) = call(world.db, "attempts_by_worker", project="p", order="slow")
        assert worker["s_per_block"] == 10
        assert {row["ran_s"] for row in call(world.db, "totals", project="p")} == {0, 40}
        world.db.execute("UPDATE osgprod_data.projects SET tallied_until = now() - interval '1 d'")
        for _ in range(2):
            world.tick()


def test_merges_are_no_leased_slices(world: World) -> None:
    world.set(merge_by="file")
    world.add_file(1)
    world.checkout(0)
    assert call(world.db, "idle_and_leased", project="p")[0]["leased"] == 1
    world.report(0)
    world.tick()
    assert world.checkout(1)["task"] == "merge"
    assert call(world.db, "idle_and_leased", project="p")[0]["leased"] == 0
    assert call(world.db, "amounts", project="p")[0]["running"] == 1


@pytest.mark.parametrize("name", ["wn@127.0.0.1", "wn", "127.0.0.1", "127.0.0.0/24", "site:M", "all"])
def test_worker_is_shown_as_banned_by_whatever_name(world: World, name: str) -> None:
    world.add_file(2)
    world.checkout(0, host="wn", site="M")
    world.report(0, 1, host="wn", site="M")
    for until, is_banned in (("now() + interval '1 h'", True), ("now()", False)):
        world.db.execute(
            f"INSERT INTO osgprod_data.worker_bans SELECT project_id, %s, {until}, 'x' FROM osgprod_data.projects"
            " ON CONFLICT (project_id, worker) DO UPDATE SET until = excluded.until",
            [name],
        )
        (worker,) = call(world.db, "attempts_by_worker", project="p")
        assert (worker["banned_until"] is not None) == is_banned
        (found,) = [row for row in call(world.db, "find", text="wn") if row["kind"] == "worker"]
        assert (found["banned_until"], found["banned_by"]) == (
            worker["banned_until"],
            name if is_banned else None,
        )


def test_ban_by_a_clock_that_was_ahead_is_shown_nowhere(world: World) -> None:
    world.add_file(1)
    world.checkout(0, host="wn")
    world.report(0, 1, host="wn")
    world.db.execute(
        "INSERT INTO osgprod_data.worker_bans SELECT project_id, 'wn@127.0.0.1', now() + interval '2 d', 'x', 1,"
        " now() + interval '1 d' FROM osgprod_data.projects"
    )
    assert "banned-workers" not in {row["what"] for row in call(world.db, "health")}
    assert call(world.db, "attempts_by_worker", project="p")[0]["banned_until"] is None
    assert call(world.db, "blocked_workers") == []


def test_production_whose_merge_waits_for_a_quarantined_block_is_not_called_done(world: World) -> None:
    world.set(max_failures=1, merge_by="file")
    world.add_file(2)
    for process, code in ((0, 9), (1, 0)):
        world.checkout(process)
        world.report(process, code)
    found = {row["what"]: row for row in call(world.db, "health", project="p")}
    assert "done" not in found and found["unmerged"]["found"].endswith("1 merge is left")
    assert "merge_incomplete=true" in found["unmerged"]["advice"]
    assert not call(world.db, "amounts", project="p")[0]["is_idle"]
    world.set(merge_by="none")
    assert "done" in {row["what"] for row in call(world.db, "health", project="p")}
    assert call(world.db, "amounts", project="p")[0]["is_idle"]
