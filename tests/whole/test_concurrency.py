"""Calls at the same time: chosen orders of two or three sessions, and everything at once.

A session "holds" when its transaction, with a call's changes in it, is still open: the other must see the rows as they
were, and wait or skip. OSGPROD_SOAK_S=60 (make soak) lets everything happen at once for a minute.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import PATIENCE_S, World, wait_until

SOAK_S = float(os.environ.get("OSGPROD_SOAK_S", "0.5"))
Db = psycopg.Connection[dict[str, Any]]


@contextmanager
def held(world: World) -> Iterator[Db]:
    """A session whose transaction is open until the end of the block."""
    with connect(world.dsn) as db, db.transaction():
        yield db


class Waiting:
    """A call in another session that is seen to wait for a lock."""

    def __init__(self, world: World, function: Callable[[Db], Any]) -> None:
        self._world = world
        self._db = connect(world.dsn)
        self.pid = self._db.info.backend_pid
        self._threads = ThreadPoolExecutor(1)
        self._future: Future[Any] = self._threads.submit(function, self._db)
        waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"

        def waits_or_is_done() -> bool:
            return self._future.done() or bool(world.db.execute(waits, [self.pid]).fetchall())

        wait_until(waits_or_is_done, "a call waits for a lock", pause_s=0.002)
        assert not self._future.done(), f"it did not wait: {self._future.result()}"

    def is_behind(self, *pids: int) -> bool:
        """Does it wait for a lock that one of these sessions has, or waits for before it?"""
        blocking = "SELECT pg_blocking_pids(%s) && %s::int[] AS is_so"
        row = self._world.db.execute(blocking, [self.pid, [*pids]]).fetchone()
        return row == {"is_so": True}

    def result(self) -> Any:
        try:
            return self._future.result(PATIENCE_S)
        finally:
            self._threads.shutdown()
            self._db.close()


@pytest.fixture
def world(world: World) -> World:
    """Ends a call that waits although it should not."""
    world.db.execute("SET statement_timeout = '120s'")
    return world


def lost(world: World, process: int = 0, cpus: int = 1) -> None:
    """A job got a slice, and its lease has expired."""
    world.checkout(process, cpus=cpus)
    world.let_leases_run_out()


def lost_and_then_failed(world: World) -> None:
    """The only slice is quarantined: job 0 was lost, and job 1 has reported a failure."""
    world.set(max_failures=1)
    world.add_file(1)
    lost(world)
    call(world.db, "reclaim_lost")
    world.checkout(1)
    world.report(1, 1)


def files(world: World) -> list[str]:
    rows = world.db.execute("SELECT state FROM osgprod_data.loaded_files ORDER BY run, seqno").fetchall()
    return [row["state"] for row in rows]


def merges(world: World) -> list[str]:
    rows = world.db.execute("SELECT state FROM osgprod_data.merges ORDER BY merge_id").fetchall()
    return [row["state"] for row in rows]


def test_claim_of_a_ready_slice_leaves_the_rest_of_its_file_to_others(world: World) -> None:
    world.set(backoff_s=0, max_fast_failures=1000)
    world.add_file(3)
    world.checkout(0)
    world.report(0, 1)
    world.tick()
    with held(world) as db, connect(world.dsn) as other:
        assert world.checkout(1, db=db)["block1"] == 1
        other.execute("SET lock_timeout = '10ms'")
        assert world.checkout(2, db=other)["block1"] == 2


@pytest.mark.parametrize("merge_incomplete", [False, True])
def test_late_success_of_a_quarantined_block_takes_its_files_merge_back(
    world: World, merge_incomplete: bool
) -> None:
    world.set(merge_by="file", merge_incomplete=merge_incomplete, max_failures=1)
    world.add_file(2)
    lost(world)
    world.tick()
    world.checkout(1)
    assert world.report(1, 1)["status"] == "failed"
    world.checkout(5)
    world.report(5)
    world.tick()
    assert files(world) == ["complete"]
    assert merges(world) == ["ready" if merge_incomplete else "waiting"]
    calls = [
        {
            "n": n,
            "project": "p",
            "cluster": 1,
            "process": n,
            "magic": "m",
            "client": "127.0.0.1",
            "exitcode": 0,
        }
        for n in (0, 7)
    ]
    codes = [row["code"] for row in call(world.db, "report_exits", calls=json.dumps(calls))]
    assert codes == ["55P03", "OG303"], (
        "it may have to wait for the merge, so a batch leaves it to a call alone"
    )
    assert world.report(0)["status"] == "done"
    assert (files(world), merges(world)) == (["allocated"], ["waiting"])
    world.tick()
    answer = world.checkout(2)
    assert (answer["task"], len(answer["merge"]["inputs"])) == ("merge", 2)


def test_run_is_not_merged_while_a_file_of_it_is_being_reprocessed(world: World) -> None:
    world.set(merge_by="run")
    first = world.add_file(1)
    world.add_file(1, seqno=2)
    for process in (0, 1):
        world.checkout(process)
    world.report(0)
    world.tick()
    assert files(world) == ["complete", "allocated"]
    world.report(1)
    with held(world) as db:
        assert len(call(db, "recycle", project="p", states=["done"], path=first)) == 1
        world.tick()
        assert merges(world) == ["ready"], "it is planned, but no job gets it"
        assert world.checkout(2)["status"] == "wait"
    world.tick()
    assert merges(world) == ["waiting"]
    assert world.checkout(2)["task"] == "slice"
    world.report(2)
    world.tick()
    assert len(world.checkout(3)["merge"]["inputs"]) == 2


def test_batch_does_not_wait_for_the_merge_of_a_restarted_job(world: World) -> None:
    world.set(merge_by="file", merge_incomplete=True, max_failures=1)
    world.add_file(2)
    for process, exitcode in ((0, 0), (1, 1)):
        world.checkout(process)
        world.report(process, exitcode)
    world.tick()
    assert world.checkout(2)["task"] == "merge"
    calls = [
        {"n": n, "project": "p", "cluster": 1, "process": n, "cpus": 1, "magic": "m", "client": "127.0.0.1"}
        for n in (2, 3)
    ]
    with held(world) as db:
        assert len(call(db, "recycle", project="p", states=["quarantined"])) == 1
        rows = sorted(call(world.db, "checkout_slices", calls=json.dumps(calls)), key=lambda row: row["n"])
        assert [(row["status"], row["code"]) for row in rows] == [("error", "55P03"), ("wait", None)]
    assert world.checkout(2)["task"] == "slice", "its merge waits for the slice again"


def test_late_success_first_then_checkout_skips_its_slice(world: World) -> None:
    world.add_file(1)
    lost(world)
    call(world.db, "reclaim_lost")
    with held(world) as db:
        assert world.report(0, db=db)["status"] == "done"
        assert world.checkout(1)["status"] == "wait"
    assert world.checkout(1)["status"] == "no-work"


def test_checkout_first_then_late_success_waits_and_wins(world: World) -> None:
    world.add_file(1)
    lost(world)
    call(world.db, "reclaim_lost")
    with held(world) as db:
        assert world.checkout(1, db=db)["status"] == "assigned"
        late = Waiting(world, lambda other: world.report(0, db=other))
    assert late.result()["status"] == "done"
    assert world.report(1)["status"] == "superseded"


def test_reclaim_first_then_report_waits_and_still_counts(world: World) -> None:
    world.add_file(1)
    lost(world)
    with held(world) as db:
        assert call(db, "reclaim_lost")[0]["reclaimed"] == 1
        late = Waiting(world, lambda other: world.report(0, db=other))
    assert late.result()["status"] == "done"


def test_report_first_then_reclaim_skips_its_slice(world: World) -> None:
    world.add_file(1)
    lost(world)
    with held(world) as db:
        assert world.report(0, db=db)["status"] == "done"
        assert call(world.db, "reclaim_lost") == []
    assert world.progress()["blocks_done"] == 1


def test_reclaim_first_then_heartbeat_waits_and_revives(world: World) -> None:
    world.add_file(1)
    lost(world)
    with held(world) as db:
        call(db, "reclaim_lost")
        heartbeat = Waiting(world, lambda other: World(other, world.dsn).heartbeat(0))
    assert heartbeat.result()["status"] == "alive"
    assert world.progress()["blocks_leased"] == 1


def test_recycle_first_then_late_report_waits_and_is_void(world: World) -> None:
    lost_and_then_failed(world)
    with held(world) as db:
        assert len(call(db, "recycle", project="p")) == 1
        late = Waiting(world, lambda other: world.report(0, db=other))
    assert late.result()["status"] == "superseded"
    assert world.progress()["blocks_ready"] == 1


def test_late_report_first_then_recycle_skips_its_slice(world: World) -> None:
    lost_and_then_failed(world)
    with held(world) as db:
        assert world.report(0, db=db)["status"] == "done"
        assert call(world.db, "recycle", project="p") == []
    assert world.progress()["blocks_done"] == 1


def test_recycle_first_then_file_is_not_called_finished(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    with held(world) as db:
        assert len(call(db, "recycle", project="p", states=["done"])) == 1
        call(world.db, "tick")
        assert files(world) == ["allocated"]
    call(world.db, "tick")
    assert files(world) == ["allocated"]
    assert world.checkout(1)["status"] == "assigned"


def test_file_called_finished_first_then_recycle_waits_and_opens_it(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    with held(world) as db:
        call(db, "tick")
        recycle = Waiting(world, lambda other: call(other, "recycle", project="p", states=["done"]))
    assert len(recycle.result()) == 1
    assert files(world) == ["allocated"]


def test_split_first_then_cut_of_the_same_file_waits_and_follows(world: World) -> None:
    world.set(max_failures=1)
    world.add_file(6)
    world.checkout(0, cpus=4)
    with held(world) as db:
        assert world.report(0, 1, db=db)["status"] == "failed"
        cut = Waiting(world, lambda other: world.checkout(1, db=other))
    assert cut.result()["block1"] == 5


def test_cut_first_then_split_of_the_slice_before_waits(world: World) -> None:
    world.set(max_failures=1)
    world.add_file(6)
    world.checkout(0, cpus=4)
    with held(world) as db:
        assert world.checkout(1, db=db)["block1"] == 5
        split = Waiting(world, lambda other: world.report(0, 1, db=other))
    assert split.result()["status"] == "failed"


def test_checkout_first_then_reset_waits_and_other_jobs_must_try_again(world: World) -> None:
    world.add_file(3)
    world.checkout(0)
    with held(world) as db:
        world.checkout(1, db=db)
        start_over = Waiting(world, lambda other: call(other, "load_slices", project="p", start_over=True))
        for ask in (world.checkout, world.report):
            with pytest.raises(
                psycopg.Error, match="an operator resets, unloads or removes files of project p"
            ) as caught:
                ask(0)
            assert caught.value.sqlstate == "OG502"
        with pytest.raises(psycopg.Error, match="an operator resets"):
            call(world.db, "recycle", project="p")
        assert call(world.db, "reclaim_lost") == []
    assert start_over.result()[0]["blocks"] == 3
    assert world.report(0)["status"] == "superseded", "leases from before the reset are void"
    assert world.heartbeat(1)["status"] == "superseded"
    assert world.checkout(0)["block1"] == 1


def test_forgotten_transaction_delays_exclusive_calls_and_no_jobs(world: World) -> None:
    world.add_file(2)
    world.db.execute("ALTER FUNCTION osgprod._enter_alone SET lock_timeout = '50ms'")  # in place of waiting
    with held(world) as forgotten:
        world.checkout(0, db=forgotten)
        with pytest.raises(psycopg.Error, match="a call that works on project p has not ended") as caught:
            call(world.db, "load_slices", project="p", start_over=True)
        assert caught.value.sqlstate == "OG505"
        with pytest.raises(psycopg.Error, match="has no attempt"):
            world.report(1)  # accepted, without a request to try again
    assert call(world.db, "load_slices", project="p", start_over=True)[0]["files"] == 1


def test_two_loads_at_once_load_each_file_once(world: World) -> None:
    for seqno in range(20):
        world.add_file(1, seqno=seqno, project=None)
    rows = world.at_once(4, lambda n, db: call(db, "load_slices", project="p")[0]["files"])
    assert sum(rows) == 20


def test_stuck_checkout_of_one_file_does_not_delay_requeueing_in_others(world: World) -> None:
    world.set(max_failures=1, max_faults=1)
    for seqno in (1, 2):
        world.add_file(2, seqno=seqno)
    for process in (0, 1):  # each is lost once on another node: the next loss splits it
        world.checkout(process, cpus=2, host="a")
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    for process in (0, 1):
        world.checkout(process, cpus=2, host="b")
    world.let_leases_run_out()
    with held(world) as stuck:
        stuck.execute("SELECT FROM osgprod_data.loaded_files WHERE seqno = 1 FOR NO KEY UPDATE")
        assert call(world.db, "reclaim_lost")[0]["reclaimed"] == 1
    assert call(world.db, "reclaim_lost")[0]["reclaimed"] == 1
    assert world.progress()["blocks_ready"] == 4


def test_operator_with_an_open_transaction_stalls_neither_tick_nor_reports_nor_bans(world: World) -> None:
    world.set(max_live=9, max_fast_failures=1, max_failures=9, backoff_s=0)
    world.add_file(3)
    lost(world, 0)
    with held(world) as operator:
        call(operator, "set_project", project="p", settings='{"wait_s": 5}')
        world.checkout(1, host="wn")
        assert world.report(1, 1)["status"] == "failed"
        assert call(world.db, "tick") == [{"project": "p", "reclaimed": 1}]
    call(world.db, "tick")
    with pytest.raises(psycopg.Error, match=r"worker wn@127\.0\.0\.1 is banned"):
        world.checkout(2, host="wn")


def test_settings_changed_by_two_at_once_are_both_changed(world: World) -> None:
    with held(world) as db:
        call(db, "set_project", project="p", settings='{"state": "paused"}')
        assert call(world.db, "set_project", project="p", settings="{}"), "who only looks does not wait"
        other = Waiting(world, lambda db: call(db, "set_project", project="p", settings='{"wait_s": 7}'))
    settings = {row["setting"]: row["value"] for row in other.result()}
    assert (settings["state"], settings["wait_s"]) == ("paused", "7")


def test_loading_files_does_not_wait_for_a_scan(world: World) -> None:
    world.add_file(3, project=None)
    world.db.execute("SET lock_timeout = '60s'")
    with held(world) as db:
        World(db, world.dsn).add_file(3, project=None)  # found unchanged
        assert call(world.db, "load_slices", project="p")[0]["files"] == 1


def test_stuck_tick_does_not_keep_leases_from_expiring(world: World) -> None:
    world.add_file(2)
    world.checkout(0)
    world.checkout(1)
    with held(world) as stuck:
        assert call(stuck, "tick") == []
        world.db.execute("UPDATE osgprod_data.slices SET due_at = now()")
        assert world.tick() == 2, "requeueing is nobody's alone"
        assert [world.checkout(n)["status"] for n in (2, 3)] == ["assigned"] * 2


def test_wrong_clock_keeps_no_slice_leased_for_ever(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() + interval '1 year'")
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = now() + interval '1 year'")
    world.tick()
    assert world.checkout(1)["status"] == "assigned"
    world.report(1, 1)
    world.db.execute("UPDATE osgprod_data.slices SET not_before = now() + interval '10 days'")
    call(world.db, "reclaim_lost")
    assert world.checkout(2)["status"] == "wait", "so long a backoff may be intended"
    world.db.execute("UPDATE osgprod_data.slices SET not_before = now() + interval '1 year'")
    call(world.db, "reclaim_lost")
    assert world.checkout(2)["status"] == "assigned"


def test_leases_are_checked_soon_after_a_longer_lease_is_set(world: World) -> None:
    """A lease that began before lease_s was raised expires at its old time."""
    world.add_file(2)
    world.set(lease_s=2592000)
    lost(world, 0)
    call(world.db, "tick")
    row = world.db.execute("SELECT next_due_at < now() + interval '6 min' AS soon FROM osgprod_data.projects")
    assert row.fetchone() == {"soon": True}


def test_files_behind_an_unfinished_one_are_finished_too(world: World) -> None:
    for seqno in (1, 2):
        world.add_file(1, seqno=seqno)
        world.checkout(seqno)
    world.report(2)
    world.let_leases_run_out()
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() + interval '1 h' WHERE state = 'leased'")
    call(world.db, "tick")
    assert files(world) == ["allocated", "complete"]


def test_files_whose_last_reports_came_while_nothing_ticked_are_finished_one_at_each_tick(
    world: World,
) -> None:
    """Or all of them when leases are looked at, after five minutes at most."""
    for seqno in (1, 2):
        world.add_file(1, seqno=seqno)
        world.checkout(seqno)
        world.report(seqno)
    world.db.execute("UPDATE osgprod_data.reports SET reported_at = now() - interval '2 min'")
    world.db.execute("UPDATE osgprod_data.projects SET next_due_at = now() + interval '4 min'")
    for state in ("allocated", "complete"):
        call(world.db, "tick")
        assert files(world) == ["complete", state]


# --- everything at once --------------------------------------------------------------------------------------

EXPECTED = {
    "OG303",  # a job that has not asked yet
    "OG501",  # paused
    "OG502",  # being reset
    "OG601",  # banned
}


@contextmanager
def merge_planned_unseen(world: World) -> Iterator[None]:
    """A done merge is retried while the output of one of its slices is lost: neither session sees what the other does.

    The retry is committed when the block begins; the loss stays open until its end.
    """
    world.set(merge_by="file")
    world.add_file(3)
    for n in range(3):
        world.checkout(n)
        world.report(n, output_url=f"https://s/{n}.tgz", output_bytes=1, output_adler32="1")
    world.tick()
    assert world.checkout(10)["task"] == "merge"
    listed = json.dumps([{"kind": "a", "url": "https://s/a", "bytes": 1, "adler32": "1"}])
    assert world.report(10, outputs_list=listed)["status"] == "done"
    is_lost, may_end = threading.Event(), threading.Event()

    def lose(db: Db) -> int:
        attempt = {"cluster": 1, "process": 1, "nstart": 1, "reason": "not there"}
        with db.transaction():
            rows = call(db, "lose_outputs", project="p", attempts=json.dumps([attempt]))
            is_lost.set()
            may_end.wait(PATIENCE_S)
        return len(rows)

    with held(world) as db:
        assert len(call(db, "retry_merges", project="p", states=["done"])) == 1
        losing = Waiting(world, lose)
    assert is_lost.wait(PATIENCE_S)
    yield
    may_end.set()
    assert losing.result() == 1


def test_merge_is_not_assigned_while_one_of_its_slices_is_made_ready(world: World) -> None:
    with merge_planned_unseen(world):
        assert world.checkout(20)["status"] == "wait"
    assert world.checkout(20)["block1"] == 2
    assert world.checkout(21)["status"] == "wait"
    world.report(20, output_url="https://s/20.tgz", output_bytes=1, output_adler32="1")
    world.tick()
    assert len(world.checkout(21)["merge"]["inputs"]) == 3


def test_merge_planned_unseen_waits_when_its_slice_ends_in_quarantine(world: World) -> None:
    world.set(max_failures=1)
    with merge_planned_unseen(world):
        pass
    assert world.checkout(20)["block1"] == 2
    assert world.report(20, exitcode=1)["status"] == "failed"
    world.tick()
    assert world.checkout(21)["status"] == "no-work"
    assert [row["state"] for row in call(world.db, "list_merges", project="p")] == ["superseded", "waiting"]


def test_batch_leaves_a_locked_merge_to_a_call_that_is_made_alone(world: World) -> None:
    """An open recycle has the merge: in a batch, heartbeat and report of its job do not wait for it."""
    world.set(merge_by="file")
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    world.tick()
    assert world.checkout(10)["task"] == "merge"
    job = {"project": "p", "cluster": 1, "process": 10, "magic": "m", "client": "127.0.0.1", "n": 0}
    with held(world) as db:
        call(db, "recycle", project="p", states=["done"])
        for function, more in (("heartbeats", {}), ("report_exits", {"exitcode": 1})):
            calls = [{**job, **more}, {**job, **more, "process": 11, "n": 1}]
            answer = next(row for row in call(world.db, function, calls=json.dumps(calls)) if row["n"] == 0)
            assert (answer["status"], answer["code"]) == ("error", "55P03"), function
        waiting = Waiting(world, lambda other: world.checkout(10, db=other))
    assert waiting.result()["status"] == "wait"
    assert world.checkout(10)["task"] == "slice"


class Soak:
    """One of 32 sessions that make the calls below in random order until the time is up and all have called enough.

    Parameters
    ----------
    together
        Gets the counters of all sessions.
    """

    def __init__(self, world: World, seed: int, end: float, together: list[Counter[str]]) -> None:
        self.world, self.chance, self.end, self.together = world, random.Random(seed), end, together
        self.calls: Counter[str] = Counter()
        together.append(self.calls)
        self.work: dict[Callable[[], object], int] = {
            self.checkout: 60,
            self.report: 50,
            self.heartbeat: 20,
            self.leases_run_out: 2,
            self.reclaim: 4,
            self.tick: 4,
            self.recycle: 3,
            self.ban: 1,
            self.stop_jobs: 2,
            self.stop: 1,
            self.resume_files: 1,
            self.settings: 2,
            self.start_over: 1,
            self.look: 1,
        }

    def run(self, n: int, db: Db) -> Counter[str]:
        self.db, self.mine = db, World(db, self.world.dsn)
        while time.monotonic() < self.end or not self.is_enough():
            step = self.chance.choices(list(self.work), list(self.work.values()))[0]
            try:
                step()
                self.calls[step.__name__] += 1
            except psycopg.Error as error:
                assert error.sqlstate in EXPECTED, (step.__name__, error.sqlstate, str(error))
                self.calls[error.sqlstate] += 1
        return self.calls

    def is_enough(self) -> bool:
        often = ("checkout", "report", "heartbeat", "tick")
        return all(sum(calls[name] for calls in list(self.together)) > 10 for name in often)

    def job(self) -> dict[str, Any]:
        return {"process": self.chance.randrange(60), "cluster": self.chance.randrange(2)}

    def node(self) -> str:
        return f"wn{self.chance.randrange(20)}"

    def checkout(self) -> None:
        self.mine.checkout(**self.job(), cpus=self.chance.randint(1, 4), host=self.node())

    def report(self) -> None:
        self.mine.report(**self.job(), exitcode=self.chance.choice([0, 0, 0, 0, 1, 9, 137, 143]))

    def heartbeat(self) -> None:
        self.mine.heartbeat(**self.job(), **self.chance.choice([{}, {"bytes": time.monotonic_ns()}]))

    def leases_run_out(self) -> None:
        # SKIP LOCKED: the test's own statement must not be what deadlocks
        self.db.execute(
            "UPDATE osgprod_data.slices SET due_at = now(), progress_at = now() - interval '1 h'"
            " WHERE ctid = ANY (ARRAY(SELECT ctid FROM osgprod_data.slices"
            " WHERE state = 'leased' AND random() < 0.2 FOR NO KEY UPDATE SKIP LOCKED))"
        )
        self.db.execute(
            "UPDATE osgprod_data.projects SET next_due_at = '-infinity' WHERE project_id IN ("
            "SELECT project_id FROM osgprod_data.projects FOR NO KEY UPDATE SKIP LOCKED)"
        )

    def reclaim(self) -> None:
        call(self.db, "reclaim_lost", project="p")

    def tick(self) -> None:
        call(self.db, "tick")

    def recycle(self) -> None:
        states = self.chance.sample(["quarantined", "failed", "done"], self.chance.randint(1, 3))
        call(self.db, "recycle", project="p", states=states, runs=[self.chance.randint(1, 4)])

    def ban(self) -> None:
        call(self.db, "ban_worker", project="p", worker=self.node(), seconds=self.chance.randint(0, 1))

    def stop_jobs(self) -> None:
        worker = self.chance.choice([self.node(), f"{self.node()}@127.0.0.1", "127.0.0.1", "all"])
        call(self.db, "stop_jobs", project="p", worker=worker)

    def stop(self) -> None:
        call(self.db, "stop_project", project="p")

    def resume_files(self) -> None:
        call(self.db, "resume_files", project="p")

    def settings(self) -> None:
        state = self.chance.choice(["active"] * 8 + ["paused", "draining"])
        self.mine.set(
            max_failures=self.chance.randint(1, 3), maxblockspercore=self.chance.randint(1, 5), state=state
        )

    def start_over(self) -> None:
        if self.chance.random() < 0.1:
            call(self.db, "load_slices", project="p", start_over=True, runs=[self.chance.randint(1, 4)])

    def look(self) -> None:
        assert call(self.db, "verify", project="p", deep=True) == []
        call(self.db, "progress")
        call(self.db, "quarantined", project="p")


def test_everything_at_once_from_32_sessions_without_a_deadlock(world: World) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    world.set(
        max_fast_failures=4, block_worker_s=1, backoff_s=0, wedged_s=5, max_faults=2, max_starts_per_min=99999
    )
    for run in range(1, 5):
        for seqno in range(3):
            world.add_file(100, run=run, seqno=seqno)
    end = time.monotonic() + SOAK_S
    together: list[Counter[str]] = []
    calls: Counter[str] = Counter()
    for counted in world.at_once(32, lambda n, db: Soak(world, seed + n, end, together).run(n, db)):
        calls += counted
    print(dict(calls))
    # Each session has written its statistics when it has ended.
    sessions = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        " AND application_name <> 'tests'"
    )
    wait_until(lambda: len(world.db.execute(sessions).fetchall()) == 1, "the sessions have ended")
    deadlocks = world.db.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks.fetchone() == {"deadlocks": 0}
    assert call(world.db, "verify", project="p", deep=True) == []

    # And then the production ends by itself.
    world.set(state="active", max_failures=50, max_faults=1000)
    world.db.execute("UPDATE osgprod_data.worker_bans SET until = now()")
    call(world.db, "recycle", project="p")
    done = threading.Event()

    def finish(n: int, db: Db) -> None:
        process = 0
        while not done.is_set():
            answer = world.checkout(process, cluster=100 + n, cpus=4, db=db)
            if answer["status"] == "assigned":
                world.report(process, 0, cluster=100 + n, db=db)
                process += 1
            elif answer["status"] == "no-work":
                done.set()
            else:
                World(db, world.dsn).let_leases_run_out()
                World(db, world.dsn).tick()

    world.at_once(4, finish)
    assert world.progress()["blocks_done"] == 1200
