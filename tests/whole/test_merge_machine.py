"""Merges against a model: any sequence of calls of jobs and operators does what a hundred lines of Python say.

After each step the output of each done slice is in exactly one done merge if its file is delivered, and in none if it
isn't. In the suite a few hundred steps are tried; OSGPROD_STATE_MACHINE_S=600 tries new sequences for ten minutes.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shim.database import call
from tests.support import World
from tests.whole.machine import run_machine

FILES = {(1, 1): 2, (1, 2): 1, (2, 0): 2}  # blocks of the file of that run and number, in the order of work
JOBS = st.integers(0, 4)
KINDS = ("hd_root", "dana_rest")
File = tuple[int, int]
Key = tuple[int, int | None]  # of a merge: run and number, or None for a whole run
numbers = itertools.count()
opened = itertools.count()


@dataclass
class Slice:
    file: File
    block1: int
    state: str = "leased"
    holder: tuple[int, int] | None = None  # job, nstart
    is_silent: bool = False  # leased: its lease has expired; ready: since then
    opened: int = field(default_factory=lambda: next(opened))


@dataclass
class Merge:
    key: Key
    state: str = "ready"
    is_planned: bool = True  # ready: no tick has made it so for jobs
    holder: tuple[int, int] | None = None
    is_silent: bool = False
    failures: int = 0
    inputs: tuple[tuple[File, int, tuple[int, int]], ...] = ()  # file, block1, attempt
    opened: int = field(default_factory=lambda: next(opened))


@dataclass
class Attempt:
    job: int
    nstart: int
    work: Slice | Merge
    opened: int
    token: str
    names: tuple[str, ...] = ()  # of the inputs of a merge
    report: tuple[int, bool, str] | None = None
    outcome: str = ""

    @property
    def who(self) -> tuple[int, int]:
        return self.job, self.nstart


class Model:
    """What a project that merges should be, by docs/merging.md."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.merge_by = "file"
        self.files: dict[File, str] = dict.fromkeys(FILES, "open")  # open or complete
        self.slices: list[Slice] = []
        self.merges: list[Merge] = []
        self.attempts: dict[int, list[Attempt]] = {}

    def of_file(self, file: File) -> list[Slice]:
        return [s for s in self.slices if s.file == file]

    def live(self) -> list[Merge]:
        return [m for m in self.merges if m.state != "superseded"]

    def in_order(self, state: str) -> list[Merge]:
        return sorted((m for m in self.merges if m.state == state), key=lambda m: (m.key[0], m.key[1] or 0))

    # --- what a job gets

    def checkout(self, job: int) -> tuple[str, Slice | Merge | None]:
        last = self.attempts[job][-1] if self.attempts.get(job) else None
        if last:
            is_its_own = last.work.holder == last.who and last.work in self._all()
            if last.work.state == "done" and is_its_own:  # not when another attempt has done it again since
                return "completed", None
            if last.work.state == "leased" and is_its_own:
                if self.merge_by != "none" or isinstance(last.work, Slice):
                    return "assigned", last.work
                last.work.state, last.work.is_silent = "ready", False
        found = self._merge() or self._ready_slice() or self._new_slice()
        if found:
            return "assigned", found
        is_open = any(not self._is_settled(file) for file in self.files)
        if self.merge_by != "none":  # a tick has to call the last files complete
            is_open |= any(state != "complete" for state in self.files.values())
            is_open |= any(m.state in ("ready", "leased") for m in self.merges)
        return ("wait" if is_open else "no-work"), None

    def _all(self) -> list[Slice | Merge]:
        return [*self.slices, *self.merges]

    def _merge(self) -> Merge | None:
        ready = [m for m in self.in_order("ready") if not m.is_planned]
        if self.merge_by == "none" or not ready:
            return None
        merge = ready[0]
        run, seqno = merge.key
        merge.inputs = tuple(
            (s.file, s.block1, s.holder)
            for s in self.slices
            if s.state == "done" and s.holder and s.file[0] == run and seqno in (None, s.file[1])
        )
        return merge

    def _ready_slice(self) -> Slice | None:
        return next((s for s in self.slices if s.state == "ready"), None)

    def _new_slice(self) -> Slice | None:
        for file in sorted(self.files):
            done = len(self.of_file(file))
            if done < FILES[file]:
                self.slices.append(Slice(file, done + 1))
                self.slices.sort(key=lambda s: (s.file, s.block1))
                return next(s for s in self.slices if s.file == file and s.block1 == done + 1)
        return None

    def reclaim(self) -> int:
        lost = [work for work in self._all() if work.state == "leased" and work.is_silent]
        for work in lost:
            work.state = "ready"
        return len(lost)

    # --- files that are complete, and their merges

    def settle(self) -> None:
        for file in sorted(self.files):
            if self.files[file] == "complete" or len(self.of_file(file)) < FILES[file]:
                continue  # only files that are allocated to their end are looked at
            if self._is_settled(file):
                self.files[file] = "complete"
                self.plan({file[0]})

    def _is_settled(self, file: File) -> bool:
        slices = self.of_file(file)
        return len(slices) == FILES[file] and all(s.state == "done" for s in slices)

    def plan(self, runs: set[int]) -> None:
        if self.merge_by == "none":
            return
        groups: dict[Key, list[File]] = {}
        for file in sorted(self.files):
            if file[0] in runs:
                groups.setdefault((file[0], file[1] if self.merge_by == "file" else None), []).append(file)
        for key, files in groups.items():
            if any(self.files[file] != "complete" for file in files):
                continue
            merge = next((m for m in self.live() if m.key == key), None)
            if merge is None:
                self.merges.append(Merge(key))
            elif merge.state == "waiting":
                merge.state, merge.is_silent, merge.is_planned = "ready", False, True

    def make_merges_ready(self) -> None:
        for m in self.merges:
            m.is_planned = False

    def reopen_merges(self, run: int, seqno: int | None = None) -> None:
        """seqno -1: those of the whole run only; None: all of the run."""
        for m in self.live():
            if m.key[0] != run or (seqno is not None and m.key[1] not in (None, seqno)):
                continue
            if m.state != "waiting":
                m.state = "superseded" if m.state == "done" else "waiting"
                m.opened, m.failures, m.is_silent = next(opened), 0, False

    def reopen(self, s: Slice) -> None:
        s.state, s.opened, s.is_silent = "ready", next(opened), False
        self.files[s.file] = "open"
        self.reopen_merges(*s.file)

    # --- what becomes of a report or a heartbeat

    def report(self, a: Attempt, code: int, lists: bool, bad: list[int]) -> str:
        said = code, lists, ""
        if a.report:
            is_over = isinstance(a.work, Merge) and not (a.work.state == "done" and a.work.holder == a.who)
            outcome = "superseded" if a.outcome == "done" and is_over else a.outcome
            return outcome if a.report[0] == code else "contradicted"
        a.report, work = said, a.work
        a.outcome = "done" if code == 0 else "node-fault" if code == 75 else "failed"
        if isinstance(work, Merge) and a.outcome == "done" and not lists:
            a.outcome = "failed"
        holds = work.state == "leased" and work.holder == a.who and work in self._all()
        if a.outcome == "done":
            is_same = work in self._all() and work.opened == a.opened
            is_same &= isinstance(work, Slice) or work.holder == a.who  # nobody has had the merge since
            if is_same and work.state in ("ready", "leased", "failed"):
                work.state, work.holder, work.is_silent = "done", a.who, False
            else:
                a.outcome = "superseded"
        elif not holds:
            a.outcome = "superseded"
        elif isinstance(work, Merge) and bad:
            failures = work.failures + 1
            for n in bad:
                file, block1, _ = work.inputs[n]
                self.reopen(next(s for s in self.of_file(file) if s.block1 == block1))
            work.failures = failures
            work.state = "failed" if failures >= self.max_failures else "waiting"
        else:
            work.state, work.is_silent = "ready", False
            if isinstance(work, Merge) and a.outcome == "failed":
                work.failures += 1
                work.state = "failed" if work.failures >= self.max_failures else "ready"
        return a.outcome

    def heartbeat(self, a: Attempt) -> str:
        work = a.work
        is_last = a is self.attempts[a.job][-1] and not a.report
        if work not in self._all() or work.holder != a.who:
            return "superseded"
        if work.state == "ready" and work.is_silent and work.opened == a.opened and is_last:
            work.state = "leased"
        if work.state != "leased":
            return "superseded"
        work.is_silent = False
        return "alive"

    # --- the operator

    def supersede(self, merges: list[Merge]) -> None:
        for m in merges:
            m.state, m.opened, m.is_silent = "superseded", next(opened), False

    def set_merge_by(self, merge_by: str) -> bool:
        is_other = [m for m in self.live() if (m.key[1] is None) != (merge_by == "run")]
        if merge_by != "none" and merge_by != self.merge_by:
            if any(m.state == "done" for m in is_other):
                return False
            self.supersede(is_other)
        is_new, self.merge_by = merge_by != self.merge_by, merge_by
        if is_new:
            self.plan({run for run, _ in self.files})
        return True

    def unload(self, run: int) -> int:
        gone = [
            file
            for file in self.files
            if file[0] == run and all(s.state == "ready" for s in self.of_file(file))
        ]
        for file in gone:
            del self.files[file]
            self.slices = [s for s in self.slices if s.file != file]
        left = {(r, seqno) for r, seqno in self.files} | {(r, None) for r, _ in self.files}
        if gone:
            self.reopen_merges(run, -1)
            self.supersede([m for m in self.live() if m.key[0] == run and m.key not in left])
            self.plan({run})
        return len(gone)

    def load(self, start_over: bool) -> None:
        if start_over:
            self.slices = []
            for file in self.files:
                self.files[file] = "open"
            for run in {run for run, _ in FILES}:
                self.reopen_merges(run)
        new = [file for file in FILES if file not in self.files]
        for file in new:
            self.files[file] = "open"
            self.reopen_merges(file[0], -1)


class Machine(RuleBasedStateMachine):
    world: World  # set by the test

    @initialize(max_failures=st.integers(1, 3), n=st.just(0))
    def project(self, max_failures: int, n: int) -> None:
        self.name = f"p{next(numbers)}"
        self.model = Model(max_failures)
        self.fresh = itertools.count(100)
        self.world.with_project(
            self.name, merge_by="file", backoff_s=0, max_failures=max_failures, max_faults=1000, max_backups=0,
            max_fast_failures=10000, max_starts_per_min=100000, max_starts=10000, suspend_after=100,
        )  # fmt: skip
        call(self.world.db, "load_slices", project=self.name)

    def attempt(self, data: Any) -> Attempt | None:
        """Mostly an attempt that may still run, at times any."""
        attempts = [a for job in self.model.attempts.values() for a in job]
        running = [a for a in attempts if not a.report] or attempts
        merging = [a for a in running if isinstance(a.work, Merge)] or running
        if not attempts:
            return None
        chosen: Attempt = data.draw(
            st.sampled_from(merging) | st.sampled_from(running) | st.sampled_from(attempts)
        )
        return chosen

    # --- jobs

    @rule(job=JOBS)
    def ask(self, job: int) -> None:
        self._ask(job)

    def _ask(self, job: int) -> Attempt | None:
        status, work = self.model.checkout(job)
        answer = self.world.checkout(job, project=self.name)
        assert answer["status"] == status
        if work is None:
            return None
        attempts = self.model.attempts.setdefault(job, [])
        names: tuple[str, ...] = ()
        if isinstance(work, Slice):
            assert (answer["task"], answer["block1"]) == ("slice", work.block1)
            assert answer["url"] == "/hd_rawdata_{:06d}_{:03d}.evio".format(*work.file)
        else:
            assert (answer["task"], answer["merge"]["run"], answer["merge"]["seqno"]) == ("merge", *work.key)
            inputs = [line.split() for line in answer["merge"]["inputs"]]
            assert [words[0] for words in inputs] == [
                "s/{}/{}".format(*attempt) for _, _, attempt in work.inputs
            ]
            names = tuple(",".join(words[3:]) for words in inputs)
        work.state, work.holder, work.is_silent = "leased", (job, len(attempts) + 1), False
        attempts.append(Attempt(job, len(attempts) + 1, work, work.opened, str(answer["token"]), names))
        return attempts[-1]

    @rule(count=st.integers(1, 5))
    def jobs_come_and_succeed(self, count: int) -> None:
        for _ in range(count):
            a = self._ask(next(self.fresh))
            if a is None:
                return
            self._report(a, 0, True, [])

    @precondition(lambda self: self.model.attempts)
    @rule(code=st.sampled_from([0, 0, 1, 75]), lists=st.sampled_from([True, True, False]), data=st.data())
    def report(self, code: int, lists: bool, data: Any) -> None:
        if a := self.attempt(data):
            self._report(a, 75 if code == 1 and isinstance(a.work, Slice) else code, lists, [])

    @precondition(lambda self: any(m.state == "leased" for m in self.model.merges))
    @rule(data=st.data())
    def bad_inputs(self, data: Any) -> None:
        leased = [m for m in self.model.merges if m.state == "leased"]
        merge = data.draw(st.sampled_from(leased))
        assert merge.holder
        job, nstart = merge.holder
        a = self.model.attempts[job][nstart - 1]
        bad = data.draw(st.lists(st.sampled_from(range(len(merge.inputs))), min_size=1, unique=True))
        self._report(a, 65, False, bad)

    def _report(self, a: Attempt, code: int, lists: bool, bad: list[int]) -> None:
        expected = self.model.report(a, code, lists, bad)
        more: dict[str, Any] = {"output_url": "s/{}/{}".format(*a.who), "output_bytes": 1}
        if isinstance(a.work, Merge):
            files = [
                {"kind": kind, "url": f"m/{kind}/{a.job}/{a.nstart}", "bytes": 1, "adler32": "1"}
                for kind in KINDS
            ]
            more = {"outputs_list": json.dumps(files) if lists else None}
        if bad:
            more["bad_inputs"] = ":".join(a.names[n] for n in bad)
        answer = self.world.report(a.job, code, project=self.name, token=a.token, **more)
        assert answer["status"] == expected
        assert answer["http_status"] == (409 if expected in ("superseded", "contradicted") else 200)

    @precondition(lambda self: self.model.attempts)
    @rule(data=st.data())
    def heartbeat(self, data: Any) -> None:
        if a := self.attempt(data):
            expected = self.model.heartbeat(a)
            assert self.world.heartbeat(a.job, project=self.name, token=a.token)["status"] == expected

    @precondition(lambda self: any(work.state == "leased" for work in self.model._all()))
    @rule(data=st.data())
    def lease_expires(self, data: Any) -> None:
        leased = [work for work in self.model._all() if work.state == "leased"]
        merges = [work for work in leased if isinstance(work, Merge)] or leased
        work = data.draw(st.sampled_from(merges) | st.sampled_from(leased))
        assert work.holder
        work.is_silent = True
        table = "merges" if isinstance(work, Merge) else "slices"
        self.world.db.execute(
            f"UPDATE osgprod_data.{table} x SET due_at = now() - interval '10000 s' FROM osgprod_data.projects p"
            " WHERE p.name = %s AND x.project_id = p.project_id AND x.state = 'leased'"
            " AND (x.process, x.nstart) = (%s, %s)",
            [self.name, *work.holder],
        )
        self._look_at_leases()

    def _look_at_leases(self) -> None:
        self.world.db.execute(
            "UPDATE osgprod_data.projects SET next_due_at = '-infinity' WHERE name = %s", [self.name]
        )

    @rule()
    def tick(self) -> None:
        self._look_at_leases()
        rows = {row["project"]: row["reclaimed"] for row in call(self.world.db, "tick")}
        assert rows.get(self.name, 0) == self.model.reclaim()
        self.model.settle()
        self.model.make_merges_ready()

    # --- operators

    @rule(file=st.sampled_from(sorted(FILES)), sure=st.sampled_from([False, True]))
    def recycle(self, file: File, sure: bool) -> None:
        done = [s for s in self.model.of_file(file) if s.state == "done"]
        if not sure:
            return
        path = "%hd_rawdata_{:06d}_{:03d}.evio".format(*file)
        rows = call(self.world.db, "recycle", project=self.name, states=["done"], path=path)
        assert len(rows) == len(done)
        for s in done:
            self.model.reopen(s)

    @precondition(lambda self: any(a.outcome == "done" for job in self.model.attempts.values() for a in job))
    @rule(data=st.data())
    def output_is_lost(self, data: Any) -> None:
        a = data.draw(
            st.sampled_from([a for j in self.model.attempts.values() for a in j if a.outcome == "done"])
        )
        lost = json.dumps([{"cluster": 1, "process": a.job, "nstart": a.nstart, "reason": "gone"}])
        rows = call(self.world.db, "lose_outputs", project=self.name, attempts=lost)
        work = a.work
        is_there = work in self.model._all() and work.state == "done" and work.holder == a.who
        assert len(rows) == is_there
        if is_there and isinstance(work, Slice):
            self.model.reopen(work)
        elif is_there and isinstance(work, Merge):
            self.model.supersede([work])
            self.model.plan({work.key[0]})

    @precondition(lambda self: any(m.state in ("failed", "done") for m in self.model.merges))
    @rule(states=st.sampled_from([["failed"], ["failed"], ["done"], ["failed", "done"]]))
    def retry(self, states: list[str]) -> None:
        chosen = [m for m in self.model.merges if m.state in states]
        assert len(call(self.world.db, "retry_merges", project=self.name, states=states)) == len(chosen)
        for m in chosen:
            if m.state == "done":
                self.model.supersede([m])
            else:
                m.state, m.failures = "waiting", 0
            self.model.plan({m.key[0]})

    @rule(run=st.sampled_from([1, 2]))
    def unload(self, run: int) -> None:
        if any(file[0] == run for file in self.model.files):
            row = call(self.world.db, "unload_slices", project=self.name, runs=[run])[0]
            assert row["files"] == self.model.unload(run)

    @rule(start_over=st.sampled_from([False, False, False, True]))
    def load(self, start_over: bool) -> None:
        call(self.world.db, "load_slices", project=self.name, start_over=start_over)
        self.model.load(start_over)

    @rule(merge_by=st.sampled_from(["file", "file", "run", "none"]))
    def change_merge_by(self, merge_by: str) -> None:
        if self.model.set_merge_by(merge_by):
            self.world.set(self.name, merge_by=merge_by)
        else:
            with pytest.raises(psycopg.Error, match="done merges by"):
                self.world.set(self.name, merge_by=merge_by)

    # --- what holds after each step

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        found = self.world.db.execute(query.encode(), [self.name]).fetchall()
        return [tuple(row.values()) for row in found]

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        slices = self.rows(
            "SELECT s.run, s.seqno, s.block1, s.state::text, s.process, s.nstart FROM osgprod_data.slices s"
            " JOIN osgprod_data.projects p USING (project_id) WHERE p.name = %s ORDER BY 1, 2, 3"
        )
        assert [row[:4] for row in slices] == [(*s.file, s.block1, s.state) for s in self.model.slices]
        assert [row[4:] for row in slices] == [s.holder for s in self.model.slices]
        merges = self.rows(
            "SELECT m.run, m.seqno, m.state::text, m.failures, m.process, m.nstart"
            " FROM osgprod_data.merges m JOIN osgprod_data.projects p USING (project_id)"
            " WHERE p.name = %s AND m.state <> 'superseded' ORDER BY 1, 2"
        )
        expected = sorted(self.model.live(), key=lambda m: (m.key[0], m.key[1] or 0))
        assert [row[:4] for row in merges] == [(*m.key, m.state, m.failures) for m in expected]
        held = {"leased", "done"}
        assert [row[4:] for row in merges if row[2] in held] == [
            m.holder for m in expected if m.state in held
        ]

    @invariant()
    def each_output_is_in_one_delivered_merge_or_in_none(self) -> None:
        assert call(self.world.db, "verify", project=self.name, deep=True) == []
        done = {m.key: m for m in self.model.merges if m.state == "done"}
        held = self.rows(
            "SELECT f.run, f.seqno, i.block1, i.process, i.nstart FROM osgprod_data.merges m"
            " CROSS JOIN unnest(m.inputs) i JOIN osgprod_data.projects p USING (project_id)"
            " JOIN osgprod_data.loaded_files f ON (f.project_id, f.rawdata_id) = (m.project_id, i.rawdata_id)"
            " WHERE p.name = %s AND m.state = 'done' ORDER BY 1, 2, 3"
        )
        assert held == [
            (*s.file, s.block1, *(s.holder or ()))
            for s in self.model.slices
            if done.keys() & {s.file, (s.file[0], None)}
        ]
        merged = call(self.world.db, "list_outputs", project=self.name, what="merged")
        assert sorted((row["run"], row["seqno"] or 0, row["kind"]) for row in merged) == sorted(
            (run, seqno or 0, kind) for run, seqno in done for kind in KINDS
        )
        delivery = call(self.world.db, "delivery", project=self.name)[0]
        delivered = [file for file in self.model.files if done.keys() & {file, (file[0], None)}]
        complete = [file for file, state in self.model.files.items() if state == "complete"]
        assert delivery["files_delivered"] == len(delivered)
        assert sum(
            delivery[f"files_{stage}"] for stage in ("complete", "delivered", "without_outputs")
        ) == len(complete)

    def teardown(self) -> None:
        """After all of it, jobs that succeed deliver everything."""
        if sys.exc_info()[0]:  # a step has failed
            return
        if self.model.merge_by == "none":
            self.change_merge_by(merge_by="file" if self.model.set_merge_by("file") else "run")
        self.load(start_over=False)
        for work in self.model._all():
            if work.state == "leased":
                work.is_silent = True
        self.world.db.execute(
            "UPDATE osgprod_data.slices SET due_at = now() - interval '10000 s' WHERE state = 'leased'"
        )
        self.world.db.execute(
            "UPDATE osgprod_data.merges SET due_at = now() - interval '10000 s' WHERE state = 'leased'"
        )
        self.tick()
        if any(m.state == "failed" for m in self.model.merges):
            self.retry(states=["failed"])
        self.jobs_come_and_succeed(count=100)
        self.tick()
        self.jobs_come_and_succeed(count=100)
        if any(m.state == "failed" for m in self.model.merges):  # failed before its slices were done again
            self.retry(states=["failed"])
            self.tick()
            self.jobs_come_and_succeed(count=100)
        assert call(self.world.db, "delivery", project=self.name)[0]["is_delivered"]
        self.each_output_is_in_one_delivered_merge_or_in_none()


@pytest.mark.parametrize("examples", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_any_sequence_of_calls_delivers_each_output_once(
    db: psycopg.Connection[dict[str, Any]], dsn: str, examples: int
) -> None:
    class Here(Machine):
        world = World(db, dsn)

    for (run, seqno), nblocks in FILES.items():
        Here.world.add_file(nblocks, run=run, seqno=seqno, project=None)
    run_machine(Here, examples=examples, steps=40)
