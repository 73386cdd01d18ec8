"""Merges in two sessions at once: what one has not committed is neither delivered without it nor lost.

A run is merged of all its files, or not at all. See tests/whole/test_concurrency.py for what "held" and "waiting" mean.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import PATIENCE_S, World, wait_until
from tests.whole.test_concurrency import SOAK_S, Db, Waiting, held

MERGED = json.dumps([{"kind": "a", "url": "https://s/a", "bytes": 1, "adler32": "1"}])


@pytest.fixture
def world(world: World) -> World:
    """Ends a call that waits although it should not."""
    world.db.execute("SET statement_timeout = '120s'")
    return world


def do(world: World, *processes: int) -> None:
    """Each of these jobs gets a slice, and does it, each at another address."""
    for process in processes:
        assert world.checkout(process, client=f"127.0.0.{process + 1}")["task"] == "slice"
        done = {"output_url": f"https://s/{process}", "output_bytes": 1, "output_adler32": "1"}
        world.report(process, client=f"127.0.0.{process + 1}", **done)


def lose(db: Db, *processes: int) -> int:
    """Says that the outputs of these jobs are gone; returns how many slices that requeued."""
    gone = [{"cluster": 1, "process": process, "nstart": 1, "reason": "not there"} for process in processes]
    return len(call(db, "lose_outputs", project="p", attempts=json.dumps(gone)))


def merges(world: World) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = call(world.db, "list_merges", project="p")
    return rows


def states(world: World) -> list[str]:
    return [row["state"] for row in merges(world)]


@pytest.fixture
def run(world: World) -> World:
    """Run 1 is merged as a whole, its one file is done, and another file of it is registered. Run 2 has a file."""
    world.set(merge_by="run")
    world.add_file(1, run=1, seqno=1)
    world.add_file(1, run=2, seqno=1)
    do(world, 0)
    world.add_file(1, run=1, seqno=2, project=None)
    return world


def load(db: Db) -> int:
    """Loads the other file of run 1; returns how many files that are."""
    return int(call(db, "load_slices", project="p", runs=[1])[0]["files"])


def test_run_that_is_planned_while_a_file_of_it_is_loaded_waits_for_that_file(run: World) -> None:
    """The plan does not see the file, and the loading does not see the merge."""
    with held(run) as db:
        assert load(db) == 1
        run.tick()
        assert states(run) == ["ready"]
        assert run.checkout(1)["filename"] == "hd_rawdata_000002_001.evio", "it is not assigned"
    run.tick()
    assert states(run) == ["waiting"]
    do(run, 2)
    run.tick()
    assert len(run.checkout(3)["merge"]["inputs"]) == 2
    run.report(1)
    run.tick()
    assert run.checkout(4)["filename"] == "000002"


def test_load_waits_for_a_tick_that_makes_its_run_ready_and_takes_the_merge_back(run: World) -> None:
    with held(run) as db:
        call(db, "tick")
        loading = Waiting(run, load)
    assert loading.result() == 1
    assert states(run) == ["waiting"]


def reopen(how: str, db: Db) -> int:
    """Requeues the slice of file 1."""
    if how == "lose_outputs":
        return lose(db, 0)
    return len(call(db, "recycle", project="p", states=["done"], path="%_001.evio"))


@pytest.mark.parametrize("how", ["recycle", "lose_outputs"])
@pytest.mark.parametrize("merge_by", ["file", "run"])
@pytest.mark.parametrize("held_by", ["tick", "claim", "heartbeat", "report"])
def test_what_requeues_a_slice_waits_for_its_merge_and_takes_that_back(
    world: World, how: str, merge_by: str, held_by: str
) -> None:
    """Whoever has the merge, or its file, has not committed when the other session comes."""
    world.set(merge_by=merge_by)
    for seqno in (1, 2):
        world.add_file(1, seqno=seqno)
    do(world, 0, 1)
    if held_by != "tick":
        world.tick()
    if held_by in ("heartbeat", "report"):
        assert world.checkout(10)["task"] == "merge"
    with held(world) as db:
        if held_by == "tick":
            call(db, "tick")
        elif held_by == "claim":
            assert world.checkout(10, db=db)["task"] == "merge"
        elif held_by == "heartbeat":
            sent = {"project": "p", "cluster": 1, "process": 10, "magic": "m", "client": "127.0.0.1"}
            assert call(db, "heartbeat", **sent)[0]["status"] == "alive"
        else:
            assert world.report(10, outputs_list=MERGED, db=db)["status"] == "done"
        reopening = Waiting(world, lambda other: reopen(how, other))
    assert reopening.result() == 1
    assert merges(world)[0]["state"] == ("superseded" if held_by == "report" else "waiting")
    assert call(world.db, "verify", project="p", deep=True) == []
    if held_by in ("claim", "heartbeat"):
        assert world.report(10, outputs_list=MERGED)["status"] == "superseded"
    if merge_by == "file":
        assert world.checkout(11)["filename"] == "000001_002"
    do(world, 20)
    world.tick()
    assert [row["process"] for row in inputs_of(world)] == ([20] if merge_by == "file" else [20, 1])


def inputs_of(world: World) -> list[dict[str, Any]]:
    """The slices of the merge of file 1, or of its run."""
    return world.db.execute(
        "SELECT i.* FROM osgprod_data.merges m CROSS JOIN unnest(m.inputs) WITH ORDINALITY i"
        " WHERE m.is_ready AND coalesce(m.seqno, 1) = 1 ORDER BY i.ordinality"
    ).fetchall()


@pytest.mark.parametrize("how", ["recycle", "lose_outputs"])
def test_tick_leaves_a_merge_whose_slice_is_being_requeued(world: World, how: str) -> None:
    world.set(merge_by="none")
    world.add_file(1, seqno=1)
    do(world, 0)
    world.tick()
    world.set(merge_by="file")
    with held(world) as db:
        assert reopen(how, db) == 1
        world.tick()
        assert world.checkout(10)["status"] == "wait"
    world.tick()
    assert states(world) == ["waiting"]


def test_imported_merge_waits_for_a_session_that_requeues_a_slice_of_its_file(world: World) -> None:
    """Otherwise it is done, and lacks the slice."""
    world.add_file(2, seqno=1)
    do(world, 0, 1)
    world.tick()
    with held(world) as db:
        assert len(call(db, "recycle", project="p", states=["done"], client="127.0.0.1")) == 1
        path = "/dcache/hd_rawdata_000001_001.evio"
        importing = Waiting(
            world, lambda other: call(other, "import_merge", project="p", path=path, ended_at="2026-01-01")
        )
    assert importing.result()[0]["import_merge"] == "unchanged"
    assert states(world) == []


def test_run_is_not_assigned_while_files_are_being_loaded(run: World) -> None:
    run.tick()
    with held(run) as db:
        call(db, "load_slices", project="p", runs=[1])
        assert run.checkout(3)["task"] == "slice"
    assert states(run) == ["waiting"]


def test_load_waits_for_an_open_claim_of_its_run_and_takes_the_merge_back(run: World) -> None:
    run.tick()
    with held(run) as db:
        assert run.checkout(3, db=db)["task"] == "merge"
        loading = Waiting(run, lambda other: call(other, "load_slices", project="p", runs=[1])[0]["files"])
    assert loading.result() == 1
    assert states(run) == ["waiting"]
    assert run.report(3, outputs_list=MERGED)["status"] == "superseded"


def test_run_that_becomes_one_merge_while_a_file_is_recycled_waits_for_that_file(world: World) -> None:
    """The recycling sees no merge of the run, and the plan sees no file that is processed again."""
    for seqno in (1, 2):
        world.add_file(1, seqno=seqno)
    do(world, 0, 1)
    world.tick()
    with held(world) as db:
        assert len(call(db, "recycle", project="p", states=["done"], path="%_002.evio")) == 1
        call(world.db, "set_project", project="p", settings='{"merge_by": "run"}')
        world.tick()
        assert states(world) == ["ready"]
        assert world.checkout(3)["status"] == "wait"
    world.tick()
    assert states(world) == ["waiting"]
    assert world.checkout(3)["task"] == "slice"


def test_run_is_merged_whose_last_incomplete_file_is_unloaded_beside_a_tick(run: World) -> None:
    """The tick does not see that the file is gone, and the unloading does not see that the other one is complete."""
    call(run.db, "load_slices", project="p", runs=[1])
    with held(run) as db:
        call(db, "unload_slices", project="p", path="%_000001_002.evio")
        run.tick()
    run.tick()
    assert run.checkout(3)["filename"] == "000001"


@pytest.mark.parametrize("how", ["a report", "lose_outputs", "import_merge"])
def test_bad_inputs_and_a_recycling_of_the_same_file_do_not_lock_each_other_out(
    world: World, how: str
) -> None:
    """Both want slices 1 and 2 of a file that a third session has."""
    world.set(merge_by="file")
    world.add_file(3)
    do(world, 0, 1, 2)
    world.tick()
    bad, path = "1,2:2,3", "/dcache/hd_rawdata_000001_001.evio"
    if how == "a report":
        assert world.checkout(10)["task"] == "merge"

    def name_bad(db: Db) -> Any:
        if how == "a report":
            return world.report(10, exitcode=3, bad_inputs=bad, db=db)["status"]
        if how == "lose_outputs":
            return lose(db, 0, 1)
        return call(db, "import_merge", project="p", path=path, ended_at="2100-01-01", bad_inputs=bad)[0][
            "import_merge"
        ]

    with held(world) as db:
        assert len(call(db, "recycle", project="p", states=["done"], client="127.0.0.3")) == 1  # has the file
        naming = Waiting(world, name_bad)
        with ThreadPoolExecutor(1) as threads, connect(world.dsn) as other:
            recycling = threads.submit(call, other, "recycle", project="p", states=["done"])
            assert recycling.result(PATIENCE_S) == [], "the slices are taken, so it waits for nothing"
    assert naming.result() == {"a report": "failed", "lose_outputs": 2, "import_merge": "requeued"}[how]
    assert states(world) == ["waiting"]


@pytest.mark.parametrize("how", ["lose_outputs", "recycle"])
@pytest.mark.parametrize("merge_by", ["file", "run"])
def test_two_sessions_that_requeue_slices_beside_a_tick_do_not_lock_each_other_out(
    world: World, how: str, merge_by: str
) -> None:
    """The tick makes the merge ready, so neither has seen it when it waits for its first file."""
    world.add_file(2, seqno=2)
    do(world, 1, 2)
    world.tick()
    world.add_file(1, seqno=1)
    do(world, 0)
    world.set(merge_by=merge_by)

    def requeue_others(db: Db) -> int:
        if how == "lose_outputs":
            return lose(db, 0, 1)
        return len(call(db, "recycle", project="p", states=["done"]))

    with held(world) as third:
        third.execute("SELECT FROM osgprod_data.loaded_files WHERE seqno = 2 FOR SHARE")  # as a tick has it
        with held(world) as db:
            call(db, "tick")
            one = Waiting(world, lambda other: lose(other, 2))
            two = Waiting(world, requeue_others)
        wait_until(lambda: two.is_behind(third.info.backend_pid, one.pid), "it waits for the second file")
        first = world.checkout(10)
        assert first["task"] == "merge", "what waits for a file has no merge yet"
        assert first["filename"] == ("000001_001" if merge_by == "file" else "000001")
    assert (one.result(), two.result()) == (1, 2)
    assert set(states(world)) == {"waiting"}
    assert world.report(10, outputs_list=MERGED)["status"] == "superseded"


@pytest.mark.parametrize("merge_by", ["file", "run"])
def test_tick_leaves_a_file_to_the_next_one_while_a_session_has_its_merge(
    world: World, merge_by: str
) -> None:
    """That session may wait for the file, and the tick would wait with it."""
    world.set(merge_by=merge_by, max_failures=1)
    world.add_file(1)
    do(world, 0)
    world.tick()
    world.checkout(1)
    assert world.report(1, exitcode=65, bad_inputs="1,2")["status"] == "failed"
    world.add_file(1, run=2)
    do(world, 2, 3)
    with held(world) as db:
        assert len(call(db, "retry_merges", project="p")) == 1
        world.db.execute("SET lock_timeout = '1s'")
        world.tick()
        assert [row["state"] for row in call(world.db, "list_files", project="p")] == [
            "allocated",
            "complete",
        ]
    world.tick()
    assert [world.checkout(n)["filename"] for n in (4, 5)] == [
        "000001_001" if merge_by == "file" else "000001",
        "000002_001" if merge_by == "file" else "000002",
    ]


class Soak:
    """Jobs of a production that is merged, ticks, and operators who requeue what is done: each call is repeated."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed, self.end = world, seed, time.monotonic() + SOAK_S

    def run(self, n: int, db: Db) -> Counter[str]:
        chance, calls = random.Random(self.seed + n), Counter[str]()
        process = n * 1000000
        while time.monotonic() < self.end:
            if n < 8:
                process += 1
                name = self.job(chance, process, db)
            elif n < 10:
                name = "tick"
                call(db, name)
            else:
                name = self.operate(chance, db)
                time.sleep(0.2 * chance.random())  # otherwise no merge would ever be ready
            calls[name] += 1
        return calls

    def job(self, chance: random.Random, process: int, db: Db) -> str:
        """A job gets work, and reports how it ended."""
        who: dict[str, Any] = {"client": f"127.{process // 1000000}.0.{process % 250 + 1}", "db": db}
        answer = self.world.checkout(process, **who)
        if answer["task"] == "merge":
            if chance.random() < 0.7:
                self.world.report(process, outputs_list=MERGED, **who)
            else:
                bad = [",".join(one.split()[-2:]) for one in answer["merge"]["inputs"]]
                bad = chance.sample(bad, min(len(bad), 3))
                self.world.report(process, exitcode=65, bad_inputs=":".join(bad), **who)
        elif answer["task"] == "slice":
            self.world.report(process, exitcode=int(chance.random() < 0.1), **who)
        return str(answer["task"] or answer["status"])

    def operate(self, chance: random.Random, db: Db) -> str:
        """Operators requeue slices and merges, of all runs or some, or change what is merged."""
        name = chance.choice(
            ["recycle", "recycle", "lose_outputs", "lose_outputs", "retry_merges", "set_project"]
        )
        if name == "recycle":
            runs = chance.sample([1, 2, 3], chance.randint(1, 3))
            call(db, name, project="p", states=["done", "quarantined"], runs=runs)
        elif name == "lose_outputs":
            done = db.execute(
                "SELECT cluster, process, nstart, 'gone' AS reason FROM ("
                "  SELECT cluster, process, nstart FROM osgprod_data.slices WHERE state = 'done' UNION ALL"
                "  SELECT cluster, process, nstart FROM osgprod_data.merges WHERE state = 'done') o"
                " ORDER BY random() LIMIT 8"
            ).fetchall()
            call(db, name, project="p", attempts=json.dumps(done))
        elif name == "retry_merges":
            call(db, name, project="p", states=["failed", "done"])
        else:
            settings = json.dumps({"merge_incomplete": chance.random() < 0.5})
            call(db, name, project="p", settings=settings)
        return name


@pytest.mark.parametrize("merge_by", ["file", "run"])
def test_jobs_ticks_and_operators_at_once_merge_without_a_deadlock(world: World, merge_by: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    world.set(merge_by=merge_by, backoff_s=0, max_failures=2, max_starts_per_min=99999, suspend_after=100)
    for run in (1, 2, 3):
        for seqno in (1, 2, 3):
            world.add_file(2, run=run, seqno=seqno)
    print(dict(sum(world.at_once(16, Soak(world, seed).run), Counter[str]())))
    assert call(world.db, "verify", project="p", deep=True) == []


def ends(world: World) -> list[str]:
    """Notifications that something as a whole has ended."""
    rows = world.db.execute(
        "SELECT event FROM osgprod_data.notifications WHERE event IN ('run-finished', 'project-done',"
        " 'production-delivered') ORDER BY notification_id"
    ).fetchall()
    return [row["event"] for row in rows]


def test_delivery_is_notified_once_though_the_last_two_merges_end_at_the_same_time(world: World) -> None:
    world.set(merge_by="run")
    for run in (1, 2):
        world.add_file(1, run=run)
    do(world, 0, 1)
    world.tick()
    for process in (2, 3):
        assert world.checkout(process)["task"] == "merge"
    with held(world) as one, held(world) as other:  # neither sees that the other one's merge is done
        assert world.report(2, outputs_list=MERGED, db=one)["status"] == "done"
        assert world.report(3, outputs_list=MERGED, db=other)["status"] == "done"
    for _ in range(2):
        world.tick()
        assert ends(world) == ["run-finished", "run-finished", "project-done", "production-delivered"]
    world.add_file(1, run=3)
    do(world, 4)
    world.tick()
    assert ends(world)[4:] == ["run-finished", "project-done"]
    world.checkout(5)
    world.report(5, outputs_list=MERGED)
    world.tick()
    assert ends(world)[6:] == ["production-delivered"]


def test_end_of_run_and_project_is_notified_when_the_last_incomplete_file_is_unloaded(run: World) -> None:
    call(run.db, "unload_slices", project="p", runs=[2])
    call(run.db, "load_slices", project="p", runs=[1])
    run.tick()
    assert ends(run) == []
    call(run.db, "unload_slices", project="p", path="%_000001_002.evio")
    run.tick()
    assert ends(run) == ["run-finished", "project-done"]


@pytest.fixture(params=["run", "file"])
def spoilt(world: World, request: pytest.FixtureRequest) -> World:
    """Node "bad" has failed the only block of file 2, which is quarantined. The merge of its file, or run, is live."""
    world.set(merge_by=request.param, merge_incomplete=True, max_failures=1, max_fast_failures=2)
    for seqno in (1, 2):
        world.add_file(2 if seqno == 2 else 1, seqno=seqno)
    do(world, 0, 1)
    world.checkout(2, host="bad")
    assert world.report(2, exitcode=1, host="bad")["status"] == "failed"
    world.tick()
    for n in range(len(merges(world))):
        assert world.checkout(10 + n)["task"] == "merge"
    world.add_file(1, run=2)
    world.checkout(20, host="bad")
    return world


@pytest.mark.parametrize("locked", ["merges", "other file", "own file", "nothing"])
def test_report_that_bans_a_node_waits_for_no_merge_and_no_file_of_what_the_node_failed(
    spoilt: World, locked: str
) -> None:
    """It has its slice, the node's ban and the file by then; the session that has the others may wait for that file."""
    with held(spoilt) as db, held(spoilt) as job:
        if locked == "merges":
            for n in range(len(merges(spoilt))):
                sent = {"project": "p", "cluster": 1, "process": 10 + n, "magic": "m", "client": "127.0.0.1"}
                assert call(db, "heartbeat", **sent)[0]["status"] == "alive"
        elif locked != "nothing":
            seqno = 1 if locked == "other file" else 2
            db.execute(
                "SELECT FROM osgprod_data.loaded_files WHERE run = 1 AND seqno = %s FOR NO KEY UPDATE",
                [seqno],
            )
        job.execute("SET LOCAL lock_timeout = '1s'")
        assert spoilt.report(20, exitcode=1, host="bad", db=job)["status"] == "failed"
    assert [row["worker"] for row in call(spoilt.db, "blocked_workers")] == ["bad@127.0.0.1"]
    quarantined = {row["run"] for row in call(spoilt.db, "quarantined", project="p")}
    assert quarantined == ({1} if locked in ("own file", "merges") else set())
    assert call(spoilt.db, "verify", project="p", deep=True) == []


# --- settings that are changed beside what plans by them ------------------------------------------------------------


@pytest.fixture
def one_bad_block(world: World) -> World:
    """Two files of a run: one is done, of the other the only block is quarantined. No tick has seen that yet."""
    world.set(max_failures=1)
    for seqno in (1, 2):
        world.add_file(1, seqno=seqno)
    do(world, 0)
    world.checkout(1)
    assert world.report(1, exitcode=1)["status"] == "failed"
    return world


CHANGES = {
    "file to run": ({"merge_by": "file"}, {"merge_by": "run"}, ["waiting"]),
    "run to file": ({"merge_by": "run"}, {"merge_by": "file"}, ["ready", "waiting"]),
    "none to file": ({"merge_by": "none"}, {"merge_by": "file"}, ["ready", "waiting"]),
    "incomplete": ({"merge_by": "run"}, {"merge_incomplete": True}, ["ready"]),
    "complete": ({"merge_by": "run", "merge_incomplete": True}, {"merge_incomplete": False}, ["waiting"]),
}


def counting(world: World) -> list[str]:
    return [state for state in states(world) if state != "superseded"]


@pytest.mark.parametrize("change", CHANGES)
def test_setting_that_is_changed_beside_a_tick_holds_for_what_the_tick_plans(
    one_bad_block: World, change: str
) -> None:
    before, after, expected = CHANGES[change]
    world = one_bad_block
    world.set(**before)
    with held(world) as db:
        with held(world) as third:  # else the tick would have the project's row from its tally on
            third.execute("SELECT FROM osgprod_data.projects FOR NO KEY UPDATE")
            call(db, "tick")
        setting = Waiting(
            world, lambda other: call(other, "set_project", project="p", settings=json.dumps(after))
        )
    setting.result()
    assert counting(world) == expected
    assert call(world.db, "verify", project="p", deep=True) == []


@pytest.mark.parametrize("change", CHANGES)
def test_tick_waits_for_no_session_that_changes_what_is_merged_and_plans_by_the_new_setting(
    one_bad_block: World, change: str
) -> None:
    before, after, expected = CHANGES[change]
    world = one_bad_block
    world.set(**before)
    with held(world) as db:
        call(db, "set_project", project="p", settings=json.dumps(after))
        world.tick()
        assert states(world) == []
    world.tick()
    assert counting(world) == expected


@pytest.mark.parametrize("how", ["retry_merges", "lose_outputs", "unload_slices"])
def test_call_that_plans_merges_beside_a_change_of_merge_by_plans_by_the_new_setting(
    world: World, how: str
) -> None:
    """It has read the former setting when it waits. With merge_by none, nothing is planned."""
    world.set(merge_by="run", max_failures=1)
    world.add_file(1, run=1, seqno=1)
    do(world, 0)
    world.tick()
    assert world.checkout(2)["task"] == "merge"
    done = {"outputs_list": MERGED} if how == "lose_outputs" else {"exitcode": 1}
    world.report(2, **done)
    if how == "unload_slices":
        world.add_file(1, run=1, seqno=2)

    def planning(db: Db) -> Any:
        if how == "retry_merges":
            return call(db, how, project="p")
        if how == "lose_outputs":
            return lose(db, 2)
        return call(db, how, project="p", path="%_000001_002.evio")

    with held(world) as db:
        call(db, "set_project", project="p", settings='{"merge_by": "none"}')
        waiting = Waiting(world, planning)
    waiting.result()
    assert states(world)[-1] in ("superseded", "waiting")


def test_merge_by_is_not_changed_while_a_report_does_a_merge_by_the_former_setting(world: World) -> None:
    """The files of that merge are delivered: it must not be superseded unseen."""
    world.set(merge_by="file")
    world.add_file(1)
    do(world, 0)
    world.tick()
    assert world.checkout(1)["task"] == "merge"
    with held(world) as db:
        assert world.report(1, outputs_list=MERGED, db=db)["status"] == "done"
        setting = Waiting(
            world, lambda other: call(other, "set_project", project="p", settings='{"merge_by": "run"}')
        )
    with pytest.raises(psycopg.Error) as refused:
        setting.result()
    assert refused.value.sqlstate == "OG420"
    assert states(world) == ["done"]


def test_import_that_waits_for_a_change_of_settings_has_no_merge_that_the_change_waits_for(
    run: World,
) -> None:
    run.tick()
    assert states(run) == ["ready"]
    file = {name: run.registered[name] for name in ("path", "size_bytes", "nblocks")}
    with held(run) as db:
        call(db, "set_project", project="p", settings='{"lease_s": 7200}')
        importing = Waiting(
            run, lambda other: call(other, "import_file", project="p", slices="[]", **file)[0]["status"]
        )
        call(db, "set_project", project="p", settings='{"merge_by": "file"}')
    assert importing.result() == "imported"
    assert states(run) == ["ready", "superseded"]


def hold_files(db: Db, seqnos: range) -> None:
    db.execute(
        "SELECT FROM osgprod_data.loaded_files f WHERE f.seqno = ANY (%s) ORDER BY f.seqno FOR NO KEY UPDATE",
        [list(seqnos)],
    )


def test_tick_makes_those_merges_ready_whose_files_nobody_has_locked(world: World) -> None:
    """The merges behind it were ready for nobody while a session had the first one's file."""
    world.set(maxblockspercore=1)
    for seqno in range(1, 7):
        world.add_file(1, seqno=seqno)
    do(world, *range(6))
    world.tick()
    world.set(merge_by="file")
    with held(world) as other:
        hold_files(other, range(1, 4))
        world.tick()
        answers = [world.checkout(process) for process in (20, 21)]
        assert [(row["task"], row["filename"]) for row in answers] == [
            ("merge", "000001_004"),
            ("merge", "000001_005"),
        ]
    world.tick()
    with held(world) as other:  # a claim needs no file
        hold_files(other, range(1, 7))
        assert world.checkout(22)["filename"] == "000001_001"
    for process in (20, 21, 22):
        assert world.report(process, outputs_list=MERGED)["status"] == "done"
    assert call(world.db, "verify", project="p", deep=True) == []
