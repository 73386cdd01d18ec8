"""The calls of a batch do what the same calls do one after the other."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st

from shim.database import call
from tests.examples import given, settings
from tests.support import World
from tests.whole.test_concurrency import Waiting, held

JOBS = st.integers(0, 7)
ASKS = st.tuples(
    st.just("checkout_slice"), st.lists(st.fixed_dictionaries({"process": JOBS, "cpus": st.integers(1, 3)}))
)
REPORTS = st.tuples(
    st.just("report_exit"),
    st.lists(
        st.fixed_dictionaries(
            {
                "process": JOBS,
                "exitcode": st.sampled_from([0, 0, 0, 1, 137]),
                "output_adler32": st.sampled_from([None, "11E60398"]),
            }
        ),
        unique_by=lambda call: call["process"],  # of two different words of one job either may count
    ),
)
STATES = st.tuples(st.just("set_project"), st.sampled_from(["active", "draining"]))
BEATS = st.tuples(st.just("heartbeat"), st.lists(st.fixed_dictionaries({"process": JOBS, "bytes": JOBS})))
MANY = {"checkout_slice": "checkout_slices", "report_exit": "report_exits", "heartbeat": "heartbeats"}
WANTED = {
    "checkout_slice": {"project", "cluster", "process", "magic", "client", "cpus"},
    "report_exit": {"project", "cluster", "process", "magic", "client", "exitcode"},
    "heartbeat": {"project", "cluster", "process", "magic", "client"},
}
numbers = itertools.count()


def batched(world: World, function: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers in the order of the calls."""
    numbered = [{**one, "n": n} for n, one in enumerate(calls)]
    rows = call(world.db, MANY[function], calls=json.dumps(numbered))
    assert sorted(row["n"] for row in rows) == list(range(len(calls)))
    return sorted(rows, key=lambda row: row["n"])


def job(project: str, **more: object) -> dict[str, Any]:
    return {"project": project, "cluster": 1, "magic": "m", "client": "127.0.0.1", **more}


def in_turn(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order in which they are served: by the numbers of the jobs."""
    return sorted(calls, key=lambda one: one["process"])


def answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What doesn't depend on the clock, on chance, and on the project's name."""
    volatile = {"n", "token", "started_at", "workscript"}
    alike = [{k: v for k, v in row.items() if k not in volatile} for row in rows]
    return [{**row, "message": re.sub(r"(batched|alone)-\d+", "p", row["message"] or "")} for row in alike]


def tables(world: World, project: str) -> list[Any]:
    """Slices, attempts and reports of a project, without times."""
    rows: list[Any] = []
    for table, columns in (
        ("slices", "rawdata_id, block1, block2, follows, state, failures, faults, cluster, process, nstart"),
        ("attempts", "cluster, process, nstart, rawdata_id, block1, block2, cpus, client, host, site"),
        (
            "reports",
            "cluster, process, nstart, outcome, exit_code, nblocks, worker, output_adler32, by_worker, reason",
        ),
        ("loaded_files", "rawdata_id, state"),
    ):
        rows += world.db.execute(
            f"SELECT {columns} FROM osgprod_data.{table} WHERE project_id = (SELECT project_id"
            f" FROM osgprod_data.projects WHERE name = %s) ORDER BY {columns}",
            [project],
        ).fetchall()
    return rows


def twins(world: World, **settings: object) -> tuple[str, str]:
    """Two projects that are alike."""
    n = next(numbers)
    names = f"batched-{n}", f"alone-{n}"
    for name in names:
        world.with_project(name, maxblockspercore=2, backoff_s=0, block_worker_s=0, **settings)
        call(world.db, "load_slices", project=name)
    return names


CLAIMS = {"iss": "https://issuer.example.org", "aud": "ANY", "scope": "work", "exp": 4102444800}


@pytest.mark.parametrize(
    ("more", "bearer"),
    [
        ({}, None),
        ({"max_failures": 2, "demand_checksum": True}, None),
        ({"bearer_issuer": CLAIMS["iss"], "bearer_scope": "work"}, CLAIMS),
    ],
)
@pytest.mark.parametrize("examples", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_any_calls_made_together_do_what_they_do_one_after_the_other(
    world: World, more: dict[str, object], bearer: dict[str, object] | None, examples: int
) -> None:
    world.add_file(9, run=1, project=None)
    world.add_file(6, run=2, project=None)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
    )
    @given(st.lists(st.one_of(ASKS, ASKS, REPORTS, BEATS, STATES), min_size=4, max_size=12))
    def try_out(steps: list[tuple[str, list[dict[str, Any]]]]) -> None:
        one, other = twins(world, **more)
        for function, calls in steps:
            if function == "set_project":
                for name in (one, other):
                    world.set(name, state=calls)
                continue
            calls = in_turn(calls)
            if function != "checkout_slice":  # of a job that has never asked
                calls = [c for c in calls if has_asked(world, one, c["process"])]
            text = bearer and json.dumps(bearer)

            def by_itself(
                name: str, one_call: dict[str, Any], function: str = function, text: Any = text
            ) -> Any:
                return call(world.db, function, **job(name, bearer=text, **one_call))[0]

            many = batched(world, function, [job(one, bearer=bearer, **c) for c in calls])
            # A job that is in a batch twice, or whose slice another call of the batch gets, is busy: its call is made
            # again, behind those of the batch.
            busy = [n for n, row in enumerate(many) if row["code"] == "55P03"]
            for n in busy:
                many[n] = by_itself(one, calls[n])
            order = [n for n in range(len(calls)) if n not in busy] + busy
            alone = {n: by_itself(other, calls[n]) for n in order}
            assert answers(many) == answers([alone[n] for n in range(len(calls))])
        assert tables(world, one) == tables(world, other)

    try_out()


def has_asked(world: World, project: str, process: int) -> bool:
    return bool(
        world.db.execute(
            "SELECT FROM osgprod_data.attempts a JOIN osgprod_data.projects p USING (project_id)"
            " WHERE p.name = %s AND a.process = %s",
            [project, process],
        ).fetchall()
    )


def test_new_jobs_get_one_stretch_of_a_file_in_their_order(world: World) -> None:
    world.add_file(20)
    rows = batched(world, "checkout_slice", [job("p", process=n, cpus=1 + n % 3) for n in (5, 3, 4)])
    assert [(row["block1"], row["block2"]) for row in rows] == [(4, 7), (1, 2), (2, 4)]
    assert len({row["token"] for row in rows}) == 3
    assert {row["url"] for row in rows} == {"/hd_rawdata_000001_001.evio"}


def test_file_that_ends_within_a_batch_is_allocated_to_its_end(world: World) -> None:
    world.add_file(3, run=1)
    world.add_file(3, run=2)
    rows = batched(world, "checkout_slice", [job("p", process=n, cpus=2) for n in range(5)])
    assert [(row["status"], row["block1"], row["block2"]) for row in rows] == [
        ("assigned", 1, 3),
        ("assigned", 3, 4),
        ("assigned", 1, 3),
        ("assigned", 3, 4),
        ("wait", None, None),
    ]


def test_jobs_of_several_projects_are_served_each_from_its_own(world: World) -> None:
    world.with_project("q")
    world.add_file(5)
    call(world.db, "load_slices", project="q")
    rows = batched(world, "checkout_slice", [job("pq"[n % 2], process=n, cpus=1) for n in range(6)])
    assert [row["block1"] for row in rows] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"magic": "no"}, "OG202"),
        ({"cpus": 0}, "OG104"),
        ({"cluster": None}, "OG102"),
        ({"project": "nobody"}, "OG301"),
        ({"project": None}, "OG101"),
        ({"client": None}, "OG207"),
    ],
)
@pytest.mark.parametrize("function", MANY)
def test_error_of_one_is_its_own_answer_and_nothing_to_the_others(
    world: World, function: str, wrong: dict[str, object], code: str
) -> None:
    world.add_file(5)
    for process in (1, 2, 3):
        world.checkout(process)
    if code == "OG104" and function != "checkout_slice":
        return
    calls = [job("p", process=n, cpus=1, exitcode=0) for n in (1, 2, 3)]
    rows = batched(world, function, [calls[0], {**calls[1], **wrong}, calls[2]])
    with pytest.raises(psycopg.Error) as alone:
        call(world.db, function, **{k: v for k, v in {**calls[1], **wrong}.items() if k in WANTED[function]})
    assert alone.value.sqlstate == code
    expected = (code, alone.value.diag.message_primary, alone.value.diag.message_hint)
    assert (rows[1]["code"], rows[1]["message"], rows[1]["hint"]) == expected
    assert {rows[0]["status"], rows[2]["status"]} < {"assigned", "done", "alive"}


def test_batch_neither_waits_for_a_busy_job_or_slice_nor_leaves_anything_undone_for_it(world: World) -> None:
    world.add_file(5)
    for process in (1, 2, 3):
        world.checkout(process)
    with held(world) as other:
        call(other, "heartbeat", **job("p", process=1))
        other.execute("SELECT FROM osgprod_data.slices WHERE process = 2 FOR NO KEY UPDATE")
        for function, status in (
            ("checkout_slice", "assigned"), ("heartbeat", "alive"), ("report_exit", "done")
        ):  # fmt: skip
            rows = batched(world, function, [job("p", process=n, cpus=1, exitcode=0) for n in (1, 2, 3)])
            assert [row["code"] for row in rows] == ["55P03", "55P03", None]
            assert rows[2]["status"] == status
    assert [world.report(n)["status"] for n in (1, 2)] == ["done", "done"]


def test_batch_waits_for_the_only_file_in_vain_for_half_a_second(world: World) -> None:
    world.add_file(5)
    world.checkout(1)
    with held(world) as other:
        other.execute("SELECT FROM osgprod_data.loaded_files FOR NO KEY UPDATE")
        rows = batched(world, "checkout_slice", [job("p", process=n, cpus=1) for n in (1, 2)])
    assert [(row["status"], row["code"]) for row in rows] == [("assigned", None), ("error", "55P03")]
    assert world.checkout(2)["block1"] == 2


def test_checkout_waits_for_the_only_file_in_vain_for_half_a_second_whatever_lock_timeout_is(
    world: World,
) -> None:
    world.add_file(5)
    with held(world) as other:
        other.execute("SELECT FROM osgprod_data.loaded_files FOR NO KEY UPDATE")
        answer = world.checkout(1)
    assert (answer["status"], answer["message"]) == ("wait", "project p is busy, ask again soon")
    assert answer["retry_s"] == 5
    assert world.checkout(1)["status"] == "assigned"


def test_jobs_with_bearer_tokens_are_served_as_one_set(world: World) -> None:
    world.set(bearer_issuer=CLAIMS["iss"], bearer_scope="work")
    world.add_file(5)
    calls = [job("p", process=n, cpus=1, magic=None, bearer=CLAIMS) for n in range(3)]
    assert [row["block1"] for row in batched(world, "checkout_slice", calls)] == [1, 2, 3]
    calls[1]["bearer"] = {**CLAIMS, "scope": "play"}
    rows = batched(world, "heartbeat", calls)
    assert [row["code"] for row in rows] == [None, "OG206", None]
    assert "claim scope" in rows[1]["message"]


def test_unauthorized_report_learns_only_that_it_is_refused(world: World) -> None:
    world.add_file(5)
    world.checkout(1)
    for wrong in ({"exitcode": 300}, {"exitcode": 0, "output_adler32": "xyz"}, {"exitcode": 0, "events": -1}):
        with pytest.raises(psycopg.Error) as refused:
            world.report(1, **{"magic": "no", **wrong})  # type: ignore[arg-type]
        assert refused.value.sqlstate == "OG202"


def test_calls_that_have_the_same_number_are_all_taken(world: World) -> None:
    world.add_file(5)
    for n in (1, 2):
        world.checkout(n)
    calls = [{**job("p", process=n, exitcode=n - 1), "n": 0} for n in (1, 2)]
    rows = call(world.db, "report_exits", calls=json.dumps(calls))
    assert sorted((row["n"], row["status"]) for row in rows) == [(0, "done"), (0, "failed")]


def test_list_that_waits_for_a_file_goes_on_where_the_call_before_it_ended(world: World) -> None:
    world.add_file(9)
    with held(world) as first:
        world.checkout(1, cpus=2, db=first)
        calls = json.dumps([{**job("p", process=n, cpus=2), "n": n} for n in (2, 3, 4)])
        waiting = Waiting(world, lambda db: call(db, "checkout_slices", calls=calls))
    assert sorted((row["block1"], row["block2"]) for row in waiting.result()) == [(3, 5), (5, 7), (7, 9)]


def test_wait_brings_no_slice_when_the_file_was_cut_to_its_end_meanwhile(world: World) -> None:
    world.add_file(1)
    with held(world) as first:
        first.execute("SELECT * FROM osgprod.checkout_slice('p', 1, 1, 1, 'm')")
        waiting = Waiting(world, lambda db: call(db, "checkout_slice", **job("p", process=2, cpus=1)))
    (answer,) = waiting.result()
    assert answer["status"] == "wait"
    assert not any(
        answer[name] for name in ("nstarts", "url", "filename", "block2", "token", "lease_s", "pieces")
    )


def test_what_a_call_brings_besides_its_parameters_changes_nothing(world: World) -> None:
    world.add_file(5)
    odd = {
        "status": "wait",
        "nstart": 7,
        "rawdata_id": "x",
        "block1": 4,
        "block2": 5,
        "token": "x",
        "opened_at": 0,
    }
    (row,) = batched(world, "checkout_slice", [job("p", process=1, cpus=1, **odd)])
    assert (row["status"], row["block1"], row["nstarts"]) == ("assigned", 1, 1)


@pytest.mark.parametrize("function", MANY)
def test_empty_list_is_answered_with_nothing(world: World, function: str) -> None:
    assert batched(world, function, []) == []


# --- what other sessions have locked --------------------------------------------------------------------------------


def fails(world: World, db: Any, *processes: int) -> list[dict[str, Any]]:
    db.execute("SET LOCAL lock_timeout = '60s'")
    calls = [{**job("p", process=n, exitcode=1), "n": n} for n in processes]
    return call(db, "report_exits", calls=json.dumps(calls))


@pytest.mark.parametrize("was_banned", [False, True])
def test_batches_that_ban_the_same_workers_in_different_orders_do_not_wait(
    world: World, was_banned: bool
) -> None:
    world.set(max_fast_failures=1)
    world.add_file(4)
    workers = {1: "w1", 2: "w2", 3: "w2", 4: "w1"}
    if was_banned:
        for host in ("w1", "w2"):
            call(world.db, "ban_worker", project="p", worker=f"{host}@127.0.0.1", seconds=0)
    for process, host in workers.items():
        world.checkout(process, host=host)
    with held(world) as one, held(world) as other:
        first = fails(world, one, 1) + fails(world, other, 3)
        second = fails(world, one, 2) + fails(world, other, 4)
        assert {row["status"] for row in first + second} == {"failed"}
    banned = {row["worker"] for row in call(world.db, "blocked_workers")}
    assert banned == {"w1@127.0.0.1", "w2@127.0.0.1"}


def test_report_does_not_wait_for_a_ban_that_an_operator_has_not_committed(world: World) -> None:
    world.set(max_fast_failures=1)
    world.add_file(2)
    call(world.db, "ban_worker", project="p", worker="w2@127.0.0.1", seconds=0)
    for process, host in ((1, "w1"), (2, "w2")):
        world.checkout(process, host=host)
    with held(world) as operator:
        call(operator, "ban_worker", project="p", worker="w1@127.0.0.1", seconds=60)
        operator.execute("SELECT FROM osgprod_data.worker_bans FOR NO KEY UPDATE")
        with held(world) as batch:
            assert [row["status"] for row in fails(world, batch, 1, 2)] == ["failed", "failed"]


@contextmanager
def split_before(world: World) -> Iterator[None]:
    """Job 0 has the file's first slice, which another session splits in a transaction that is still open."""
    world.set(max_failures=1)
    with held(world) as splitting:
        assert world.report(0, 1, db=splitting)["status"] == "failed"
        yield
    world.set(max_failures=3)


def test_ready_slices_are_claimed_without_waiting_for_a_session_that_splits_the_one_before(
    world: World,
) -> None:
    world.set(backoff_s=1000, maxblockspercore=2)
    world.add_file(2, run=1)
    world.add_file(4, run=2)
    world.checkout(1)
    world.checkout(0)
    world.checkout(2)
    for process in (1, 2):
        world.report(process, 1)
    world.let_backoff_pass()
    calls = [job("p", process=n, cpus=1) for n in (11, 12)]
    with split_before(world), held(world) as batch:
        batch.execute("SET LOCAL lock_timeout = '60s'")
        rows = batched(World(batch, world.dsn), "checkout_slice", calls)
        assert [row["status"] for row in rows] == ["assigned", "assigned"]


@pytest.mark.parametrize(
    ("function", "statuses"),
    [("heartbeat", ["alive", "error"]), ("checkout_slice", ["assigned", "error"])],
)
def test_job_that_is_twice_in_a_batch_is_served_once_without_waiting(
    world: World, function: str, statuses: list[str]
) -> None:
    world.set(maxblockspercore=2)
    world.add_file(4)
    for process in (0, 1):
        world.checkout(process)
    with split_before(world), held(world) as batch:
        batch.execute("SET LOCAL lock_timeout = '60s'")
        rows = batched(World(batch, world.dsn), function, [job("p", process=1, cpus=1)] * 2)
        assert [row["status"] for row in rows] == statuses
        assert rows[1]["code"] == "55P03"


@pytest.mark.parametrize("function", ["report_exit", "heartbeat"])
def test_call_of_a_batch_whose_slice_is_gone_is_made_again_alone(world: World, function: str) -> None:
    world.add_file(2)
    for process in (0, 1):
        world.checkout(process)
    call(world.db, "load_slices", project="p", start_over=True)
    calls = [job("p", process=n, exitcode=0) for n in (0, 1)]
    assert [row["code"] for row in batched(world, function, calls)] == ["55P03", "55P03"]
    assert batched(world, function, calls[:1])[0]["status"] == "superseded"


def test_two_reports_on_one_slice_in_a_batch_do_not_wait(world: World) -> None:
    world.set(maxblockspercore=2)
    world.add_file(4)
    for process in (0, 3):
        world.checkout(process)
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() - interval '1 s' WHERE process = 3")
    call(world.db, "reclaim_lost")
    world.checkout(2)
    calls = [job("p", process=2, exitcode=137), job("p", process=3, exitcode=0)]
    with split_before(world), held(world) as batch:
        batch.execute("SET LOCAL lock_timeout = '60s'")
        rows = batched(World(batch, world.dsn), "report_exit", calls)
        assert [row["code"] for row in rows] == [None, "55P03"]
    assert world.report(3)["status"] == "done"


def test_wait_of_a_batch_for_a_file_leaves_lock_timeout_as_it_was(world: World) -> None:
    world.add_file(9)

    def ask(db: Any) -> Any:
        calls = json.dumps([{**job("p", process=n, cpus=2), "n": n} for n in (2, 3)])
        with db.transaction():
            db.execute("SET LOCAL lock_timeout = '7s'")
            call(db, "checkout_slices", calls=calls)
            return db.execute("SHOW lock_timeout").fetchone()

    with held(world) as first:
        world.checkout(1, cpus=2, db=first)
        waiting = Waiting(world, ask)
    assert waiting.result() == {"lock_timeout": "7s"}
