"""The shape of plans: what jobs and the shim's timer call never reads a large table from end to end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.databases import Databases
from tests.production import fill
from tests.support import World

pytestmark = pytest.mark.fresh_database

# May be read as a whole, since it never gets large.
SMALL = {
    "projects": "one row a production",
    "presence": "one row",
    "recent_failures": "failures of six hours, by index when there are many",
    "notify_targets": "one row a person or chat",
    "answers": "at most 500 rows a minute, of one day",
    "log_tails": "failures of 30 days; read from end to end once in ten minutes, to prune them",
    "tallied_sites": "at most 200 rows a project",
    "worker_bans": "one row a worker that failed; looked at only while one is banned",
}
Plan = dict[str, Any]


class Plans:
    """Every plan that the session of a world executes, nested ones and those of foreign keys, too."""

    LARGE = frozenset({"slices", "attempts", "reports", "loaded_files", "rawdata"})

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self.seen: list[tuple[str, Plan]] = []
        # Before PostgreSQL 14 a plan has both ways of a subquery, also the one that is never gone.
        self.shows_all_ways = db.info.server_version < 140000
        try:
            db.execute("LOAD 'auto_explain'")
        except psycopg.Error:
            pytest.skip("this server has no auto_explain")
        for setting in (
            "log_min_duration = 0",
            "log_nested_statements = on",
            "log_format = json",
            "log_timing = off",
            "log_analyze = on",
        ):
            db.execute(f"SET auto_explain.{setting}".encode())
        db.execute("SET client_min_messages = log")
        db.add_notice_handler(self._take)

    def _take(self, notice: psycopg.errors.Diagnostic) -> None:
        _, has_plan, text = (notice.message_primary or "").partition("plan:\n")
        if has_plan:
            plan = json.loads(text)
            self.seen.append((plan["Query Text"], plan["Plan"]))

    def whole_scans(self) -> set[str]:
        """The statements that read a table from end to end, with its name; but for tables that never get large."""
        return {
            f"{node['Relation Name']}: {query}"
            for query, plan in self.seen
            for node in _nodes(plan)
            if node["Node Type"] == "Seq Scan"
            and node["Relation Name"] not in SMALL
            and (node["Actual Loops"] or not self.shows_all_ways)
        }

    def project_scans(self) -> set[str]:
        """The statements that read all of a project's slices, attempts or reports, by a plan that is kept."""
        return {
            query
            for query, plan in self.seen
            for node in _nodes(plan)
            # slices_ready and slices_not_ready hold few of them
            if re.match("(slices|attempts|reports)(?!_(not_)?ready)", node.get("Index Name", ""))
            and re.fullmatch(r"\(project_id = \$\d+\)", node.get("Index Cond", ""))
            and node["Actual Loops"]
        }

    def repeated_reads(self) -> set[str]:
        """The statements that read rows several times: a subquery is pulled up into each place that uses it."""
        return {
            query
            for query, plan in self.seen
            for times in Counter(
                (node["Index Name"], re.sub(r"\b\w+\.", "", node["Index Cond"]), node.get("Filter"))
                for node in _nodes(plan)
                if node.get("Relation Name") in self.LARGE and "Index Cond" in node and node["Actual Loops"]
            ).values()
            if times > 1
        }

    def tables(self) -> set[str]:
        return {
            node["Relation Name"] for _, plan in self.seen for node in _nodes(plan) if "Relation Name" in node
        }


def _nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def jobs_come_and_go(world: World, other: psycopg.Connection[Any], cluster: int) -> None:
    """Each way of a checkout, a heartbeat and a report, often enough for a plan to become a generic one."""
    job = {"cluster": cluster}
    for n in range(8):
        first = [world.checkout(10 * n + k, host="wn1", **job) for k in range(7)]
        assert {answer["status"] for answer in first} == {"assigned"}
        token = str(first[0]["token"])
        world.checkout(10 * n, host="wn1", **job)  # restarted
        assert world.heartbeat(10 * n, token=token, **job)["status"] == "superseded"
        assert world.heartbeat(10 * n, bytes=n, **job)["status"] == "alive"
        for k, code in enumerate((0, 1, 137, 0)):
            world.report(10 * n + k, code, host="wn1", **job)
        assert world.report(10 * n, **job)["status"] == "done"  # once more
        assert world.report(10 * n, 3, **job)["status"] == "contradicted"
        assert world.report(10 * n, token="wrong", **job)["status"] == "refused"
        assert world.checkout(10 * n, **job)["status"] == "completed"
        many = [
            {"n": k, "project": "p", "cluster": cluster, "process": 10 * n + 7 + k, "cpus": 1, "magic": "m"}
            | {"client": "127.0.0.1", "exitcode": k % 2}
            for k in range(3)
        ]
        for function in ("checkout_slices", "heartbeats", "report_exits"):
            call(world.db, function, calls=json.dumps(many))
        other.execute(  # in place of waiting
            "UPDATE osgprod_data.slices s SET due_at = now() - interval '1 s' FROM osgprod_data.attempts a"
            " WHERE a.cluster = %s AND a.process = ANY (%s) AND s.project_id = a.project_id"
            " AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1 AND s.state = 'leased'",
            [cluster, [10 * n + 4, 10 * n + 5]],
        )
        other.execute(
            "UPDATE osgprod_data.projects SET next_due_at = '-infinity', tallied_until = now() - interval '25 min'"
        )
        call(world.db, "tick" if n % 2 else "reclaim_lost")
        world.heartbeat(10 * n + 4, **job)  # alive after all, if nobody was faster
        world.report(10 * n + 5, **job)


def make_production(dsn: str) -> None:
    with connect(dsn) as db:
        fill(db, "p", runs=20, files=40, blocks=200, a_slice=4, finished=0.8, in_flight=60, attempts=20000)


@pytest.fixture
def dsn(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new database with the project "p"; in the middle of its production for tests that name production."""
    of = "production" if "production" in request.fixturenames else "world"
    if of == "production":
        databases.prepare(of, make_production, of="world")
    with databases.copy(of, fresh=True) as dsn:
        yield dsn


@pytest.fixture
def production() -> None:
    """Project "p" has some 600 files with 27,000 slices, most of them done; see dsn."""


@pytest.fixture
def plans(world: World) -> Plans:
    world.set(
        max_failures=2, backoff_s=0, max_faults=1, max_live=100000, max_fast_failures=3, block_worker_s=0
    )
    return Plans(world.db)


@pytest.mark.history_by_hand
def test_nothing_that_jobs_call_reads_a_large_table_from_end_to_end(
    production: None, world: World, plans: Plans
) -> None:
    with connect(world.dsn) as other:
        jobs_come_and_go(world, other, 9_000_001)
    assert plans.whole_scans() == plans.project_scans() == set()
    assert plans.tables() >= plans.LARGE
    assert plans.repeated_reads() == set()
    world.db.execute("SELECT count(events) FROM osgprod_data.reports")
    assert plans.whole_scans(), "one would have been seen"


@pytest.mark.history_by_hand
def test_verify_finds_the_few_slices_that_are_ready_or_quarantined_by_index(
    production: None, world: World, plans: Plans
) -> None:
    """The planner takes NOT is_ready for true of every slice that is done."""
    call(world.db, "verify", project="p")
    looks = [query for query, _ in plans.seen if "x.is_ready" in query]
    assert looks
    assert not [scan for scan in plans.whole_scans() if scan.removeprefix("slices: ") in looks]


@pytest.mark.history_by_hand
def test_verify_looks_for_reports_by_other_software_without_reading_all_reports(
    production: None, world: World, plans: Plans
) -> None:
    with connect(world.dsn) as other:
        other.execute("UPDATE osgprod_data.reports SET software = 'recon-4'")
        other.execute("VACUUM ANALYZE osgprod_data.reports")
    call(world.db, "verify", project="p")
    reads = [plan for query, plan in plans.seen if "r.software COLLATE" in query]
    assert reads
    assert {node["Index Name"] for node in _nodes(reads[0]) if "Index Name" in node} == {"reports_software"}


@pytest.mark.history_by_hand
def test_beginning_of_a_time_window_is_computed_once_and_not_for_each_row(world: World, plans: Plans) -> None:
    with connect(world.dsn) as other:
        fill(other, "p", runs=2, files=10, blocks=100, attempts=500)
    for function in ("attempts_by_worker", "attempts_by_site", "attempts_by_exit", "rate", "estimate"):
        call(world.db, function, project="p", hours=100)
    call(world.db, "list_operations", hours=100)
    nodes = [node for _, plan in plans.seen for node in _nodes(plan)]
    assert nodes
    assert not [node for node in nodes if "_since(" in node.get("Filter", "") + node.get("Index Cond", "")]


def test_plans_made_while_the_tables_were_empty_are_good_ones_too(world: World, plans: Plans) -> None:
    """A session of the shim lives for weeks: what it planned on the first day holds until somebody counts the rows."""
    with connect(world.dsn) as other:
        for table in plans.LARGE:
            other.execute(f"ALTER TABLE osgprod_data.{table} SET (autovacuum_enabled = off)".encode())
        World(other, world.dsn).add_file(200)
        jobs_come_and_go(world, other, 9_000_001)
    # tick names the sites: it has a new connection each time, whose plans are never old.
    kept = {query for query in plans.project_scans() if "INSERT INTO osgprod_data.tallied_sites" not in query}
    assert plans.whole_scans() == kept == plans.repeated_reads() == set()


def count_at_once(db: psycopg.Connection[Any]) -> None:
    """Makes PostgreSQL show what it has counted until now."""
    if db.info.server_version < 150000:
        pytest.skip("before version 15 PostgreSQL shows its counts when it likes")
    db.execute("SELECT pg_stat_force_next_flush()")


def test_neither_a_slice_nor_nothing_is_found_by_reading_slices_in_backoff_or_quarantine(
    world: World,
) -> None:
    world.add_file(81)
    for limit, processes in ((1, range(40)), (2, range(40, 80))):
        world.set(max_failures=limit, backoff_s=3600, max_fast_failures=1000)
        for process in processes:
            world.checkout(process)
            world.report(process, 1)
    assert world.progress()["blocks_quarantined"] == world.progress()["blocks_ready"] == 40
    fetched = (
        "SELECT sum(idx_tup_read) AS n FROM pg_stat_user_indexes WHERE indexrelname ~ '^slices_(not_)?ready$'"
    )
    assert world.checkout(100)["status"] == "assigned"
    world.add_file(1, seqno=2)
    for status, process in (("assigned", 101), ("wait", 102), ("wait", 103)):
        count_at_once(world.db)
        before = world.db.execute(fetched).fetchone()
        assert world.checkout(process)["status"] == status
        count_at_once(world.db)
        assert world.db.execute(fetched).fetchone() == before, status


@pytest.mark.history_by_hand
def test_recycling_what_failed_reads_none_of_the_slices_that_are_done(
    production: None, world: World, plans: Plans
) -> None:
    for _ in range(7):  # until the plan becomes a generic one
        assert len(call(world.db, "recycle", project="p", dry_run=True)) > 50
    assert {scan for scan in plans.whole_scans() if scan.startswith(("slices", "reports"))} == set()
    assert plans.project_scans() == set()


@pytest.mark.history_by_hand
def test_counting_the_jobs_needed_reads_none_of_the_slices_that_are_done(
    production: None, world: World, plans: Plans
) -> None:
    for _ in range(7):  # until the plan becomes a generic one
        assert call(world.db, "jobs_needed", project="p")[0]["slices_left"] > 50
        assert call(world.db, "list_next_files", project="p")
    assert {scan for scan in plans.whole_scans() if scan.startswith("slices")} == set()
    assert {scan for scan in plans.project_scans() if "slices" in scan} == set()


@pytest.mark.history_by_hand
@pytest.mark.parametrize("merge_by", ["file", "run"])
def test_outputs_find_their_merge_without_a_comparison_with_others(
    production: None, world: World, plans: Plans, merge_by: str
) -> None:
    with connect(world.dsn) as other:
        other.execute(
            "INSERT INTO osgprod_data.merges (project_id, run, seqno, rawdata_id, state, done_at)"
            " SELECT project_id, run, CASE WHEN %s THEN seqno END, min(rawdata_id), 'done', now()"
            " FROM osgprod_data.loaded_files WHERE state = 'complete' GROUP BY 1, 2, 3",
            [merge_by == "file"],
        )
    rows = call(world.db, "list_outputs", project="p")
    assert {row["seqno"] is not None for row in rows if row["merged_in"]} == {True}
    named = {row["merged_in"]: (row["run"], row["seqno"]) for row in rows if row["merged_in"]}
    merges = world.db.execute("SELECT merge_id, run, seqno FROM osgprod_data.merges").fetchall()
    of_merge = {merge["merge_id"]: (merge["run"], merge["seqno"]) for merge in merges}
    assert all(of_merge[merge_id] in (place, (place[0], None)) for merge_id, place in named.items())
    file_id = world.db.execute(
        "SELECT rawdata_id FROM osgprod_data.loaded_files WHERE state = 'complete' ORDER BY 1 DESC LIMIT 1"
    ).fetchone()
    assert file_id and call(world.db, "outputs_of", project="p", file_id=file_id["rawdata_id"])
    assert call(world.db, "delivery", project="p")[0]["files_delivered"] > 100
    compared = [
        (node["Rows Removed by Join Filter"], query)
        for query, plan in plans.seen
        for node in _nodes(plan)
        if node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"] > 1000
    ]
    assert compared == []
    world.db.execute("DELETE FROM osgprod_data.merges")


@pytest.mark.history_by_hand
def test_outputs_are_listed_without_the_history_that_nobody_asked_for(world: World, plans: Plans) -> None:
    with connect(world.dsn) as other:
        fill(other, "p", runs=6, files=40, blocks=200, a_slice=4, finished=0.8, in_flight=10, attempts=10**6)
        file = other.execute("SELECT rawdata_id FROM osgprod_data.loaded_files WHERE run = 71010").fetchone()
        assert file
    choices: list[tuple[dict[str, Any], int]] = [
        ({"runs": [71010], "limit": 7}, 7),
        ({"limit": 7}, 7),
        ({"file_id": file["rawdata_id"]}, 50),
        ({"file_id": file["rawdata_id"], "runs": [71010]}, 50),
        ({"runs": [71010], "what": "merged"}, 0),
    ]
    for choice, rows in choices:
        plans.seen.clear()
        assert len(call(world.db, "list_outputs", project="p", **choice)) == rows
        read = [
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for _, plan in plans.seen
            for node in _nodes(plan)
            if node.get("Relation Name") in ("attempts", "reports")
        ]
        assert max(read) <= rows, choice


# What reads all slices of a project, since it lists or recounts them all.
READS_ALL_SLICES = {"verify", "list_outputs"}


@pytest.mark.history_by_hand
def test_what_only_reads_reads_neither_the_slices_that_are_done_nor_the_bans_that_have_ended(
    production: None, world: World, plans: Plans
) -> None:
    """All functions that pages and commands call, by the statistics that autovacuum gathers."""
    with connect(world.dsn) as other:
        other.execute(
            "INSERT INTO osgprod_data.worker_bans (project_id, worker, until, reason)"
            " SELECT p.project_id, 'wn' || n, now() - interval '1 d', 'x'"
            " FROM osgprod_data.projects p, generate_series(1, 20000) AS n"
        )
        other.execute("ANALYZE")
        job = other.execute("SELECT cluster, process FROM osgprod_data.attempts LIMIT 1").fetchone()
    arguments: dict[str, Any] = {
        "p_project": "p",
        "p_text": "wn7",
        "p_file_id": 5,
        **{f"p_{k}": v for k, v in job.items()},
    }
    functions = world.db.execute(
        "SELECT p.proname AS name, p.proargnames[:p.pronargs - p.pronargdefaults] AS needed,"
        " 'p_project' = ANY (p.proargnames) AS has_project"
        " FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proname !~ '^_'"
        " AND p.provolatile = 's' AND p.proname <> 'next_notifications'"
    ).fetchall()
    assert len(functions) > 30
    large = {}
    for function in functions:
        names = {*(function["needed"] or []), *(["p_project"] if function["has_project"] else [])}
        plans.seen.clear()
        call(world.db, function["name"], **{name.removeprefix("p_"): arguments[name] for name in names})
        for _, plan in plans.seen:
            for node in _nodes(plan):
                rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                if node.get("Relation Name") in ("slices", "worker_bans") and rows > 5000:
                    large[function["name"]] = (node["Node Type"], node["Relation Name"], rows)
    assert set(large) <= READS_ALL_SLICES, large
    assert set(large) == READS_ALL_SLICES, "the others would have been seen"
    world.db.execute("DELETE FROM osgprod_data.worker_bans")


def test_next_slice_of_a_job_reads_none_of_its_former_attempts(world: World) -> None:
    world.add_file(40)
    token = None
    for _ in range(30):
        token = str(world.checkout(0, after=token, schedd="ap1")["token"])
        assert world.report(0, token=token)["status"] == "done"
    read = []
    with world.db.transaction():
        for is_asking in (False, True):
            if is_asking:
                assert world.checkout(0, after=token, schedd="ap1")["status"] == "assigned"
            rows = world.db.execute(
                "SELECT relname, idx_tup_fetch AS n FROM pg_stat_xact_user_tables"
                " WHERE relname IN ('attempts', 'reports')"
            )
            read.append(Counter({row["relname"]: row["n"] for row in rows}))
    assert read[1] - read[0] == {"attempts": 3, "reports": 1}
