"""The functions against a model: any sequence of calls does what a hundred lines of Python say, and every invariant of
docs/design.md holds after each step.

In the suite a few hundred steps are tried, in make test-slow some thousands. OSGPROD_STATE_MACHINE_S=600 tries new
sequences for ten minutes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from hypothesis import assume
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

NBLOCKS = {"/hd_rawdata_000001_001.evio": 7, "/hd_rawdata_000002_000.evio": 4}  # in the order of work
JOBS = st.integers(0, 9)  # 5 to 9 have the numbers of 0 to 4, at another access point
HOSTS = st.sampled_from(["wn1", "wn2"])
CODES = st.sampled_from([0, 0, 0, 1, 9, 75, 137])
WHICH = st.sampled_from("aaaab")  # the second project is there to be left alone
MAX_BACKUPS = 2
THERE = {"schedd": "ap2", "qdate": 1}
generations = itertools.count()
numbers = itertools.count()


def identity(job: int) -> dict[str, Any]:
    return {"process": job - 5, **THERE} if 5 <= job < 10 else {"process": job}


@dataclass
class Slice:
    block1: int
    block2: int
    state: str = "leased"
    holder: tuple[int, int] | None = None  # job, nstart
    failures: int = 0
    faults: int = 0
    repeats: int = 0
    faulted_on: str | None = None
    is_resting: bool = False
    has_failed: bool = False
    is_silent: bool = False  # leased: past its lease; ready: since its holder was lost
    generation: int = field(default_factory=lambda: next(generations))

    @property
    def nblocks(self) -> int:
        return self.block2 - self.block1


@dataclass
class Attempt:
    job: int
    nstart: int
    path: str
    block1: int
    block2: int
    generation: int
    host: str
    token: str
    follows: int | None = None
    code: int | None = None
    outcome: str = ""
    verdict: str = ""  # the server's own, the first
    is_old: bool = False


@dataclass
class Backup:
    """A slice that may have a second attempt, or has one."""

    generation: int
    host: str  # of the slice's holder: it gets none
    nblocks: int
    expected_end: Any  # the later, the sooner it is assigned
    holder: tuple[int, int] | None = None  # job, nstart; None = it is offered
    is_silent: bool = False
    has_failed: bool = False  # as data: there will be no other


class Model:
    """What a project should be, by the rules of docs/design.md."""

    def __init__(self, max_failures: int, max_faults: int, maxblocks: int) -> None:
        self.max_failures, self.max_faults, self.maxblocks = max_failures, max_faults, maxblocks
        self.state = "active"
        self.slices: dict[str, list[Slice]] = {path: [] for path in NBLOCKS}
        self.attempts: dict[int, list[Attempt]] = {}
        self.backups: dict[tuple[str, int], Backup] = {}

    def all(self) -> list[tuple[str, Slice]]:
        return [(path, s) for path, slices in self.slices.items() for s in slices]

    def at(self, path: str, block1: int) -> Slice | None:
        return next((s for s in self.slices[path] if s.block1 == block1), None)

    def end(self, path: str) -> int:
        return self.slices[path][-1].block2 if self.slices[path] else 1

    def follows(self, job: int, after: Attempt | None) -> int | None:
        """The attempt that a coming one follows; 0 = the question is refused."""
        last = self.attempts[job][-1] if self.attempts.get(job) else None
        if after is None:
            return last.follows if last else None
        is_right = after.outcome == "done" and last and (after is last or last.follows == after.nstart)
        return after.nstart if is_right else 0

    def checkout(
        self, job: int, cpus: int, host: str, after: Attempt | None
    ) -> tuple[str, str, Slice | None, Backup | None]:
        """Status, path, slice, and if it is a backup, which; the caller names its holder."""
        last = self.attempts[job][-1] if self.attempts.get(job) else None
        if last and after is not last:
            own = self.at(last.path, last.block1)
            if own and own.holder == (job, last.nstart):
                if own.state == "done":  # not when another attempt has done it again since
                    return "completed", "", None, None
                if own.state == "leased":
                    return "assigned", last.path, own, None
            backup = self.backup_of(last)
            if own and backup:
                return "assigned", last.path, own, backup
        if self.state == "draining":
            return "no-work", "", None, None
        found = self._take_idle(cpus) or self._cut(cpus)
        if found:
            return "assigned", *found, None
        second = self._second(job, cpus, host)
        if second:
            return "assigned", *second
        is_open = any(s.state in ("leased", "ready") for _, s in self.all())
        return ("wait" if is_open else "no-work"), "", None, None

    def _second(self, job: int, cpus: int, host: str) -> tuple[str, Slice, Backup] | None:
        offers = [
            (b.expected_end, path, block1)
            for (path, block1), b in self.backups.items()
            if b.holder is None and b.host != host and b.nblocks <= cpus * self.maxblocks
        ]
        if not offers:
            return None
        _, path, block1 = max(offers)
        s, b = self.at(path, block1), self.backups[path, block1]
        if not s or s.state != "leased" or s.generation != b.generation or s.failures:
            return None
        assert s.holder
        is_same_number = identity(s.holder[0])["process"] == identity(job)["process"]
        return None if is_same_number else (path, s, b)

    def backup_of(self, a: Attempt) -> Backup | None:
        """The backup that this attempt is, while its slice is leased to another."""
        b, s = self.backups.get((a.path, a.block1)), self.at(a.path, a.block1)
        is_so = b and s and s.state == "leased" and b.generation == s.generation == a.generation
        return b if is_so and b and b.holder == (a.job, a.nstart) and not b.has_failed else None

    def is_tail(self) -> bool:
        return all(self.end(path) > nblocks for path, nblocks in NBLOCKS.items())

    def end_backups(self) -> None:
        """What tick does before it offers others."""
        for (path, block1), b in list(self.backups.items()):
            s = self.at(path, block1)
            is_leased = s is not None and s.state == "leased" and s.generation == b.generation
            if not is_leased or (b.holder and b.is_silent and not b.has_failed):
                del self.backups[path, block1]

    def may_have_backup(self) -> list[tuple[str, int]]:
        if not self.is_tail() or self.state != "active":
            return []
        return [
            (path, s.block1)
            for path, s in self.all()
            if s.state == "leased"
            and s.failures == 0
            and self._holding(s).is_old
            and (path, s.block1) not in self.backups
        ]

    def _take_idle(self, cpus: int) -> tuple[str, Slice] | None:
        for path, s in self.all():
            if s.state == "ready" and not s.is_resting:
                if s.nblocks > cpus * self.maxblocks:
                    self._split(path, s, s.block1 + cpus * self.maxblocks)
                return path, s
        return None

    def _cut(self, cpus: int) -> tuple[str, Slice] | None:
        for path, nblocks in NBLOCKS.items():
            end = self.end(path)
            if end <= nblocks:
                self.slices[path].append(Slice(end, min(end + cpus * self.maxblocks, nblocks + 1)))
                return path, self.slices[path][-1]
        return None

    def _split(self, path: str, s: Slice, at: int) -> None:
        s.failures = 0
        second = replace(
            s, block1=at, state="ready", holder=None, is_silent=False, generation=next(generations)
        )
        self.slices[path].insert(self.slices[path].index(s) + 1, second)
        s.block2, s.generation = at, next(generations)

    def reclaim(self) -> int:
        lost = [(path, s) for path, s in self.all() if s.state == "leased" and s.is_silent]
        for path, s in lost:
            self._lose(path, s, "lost")
        return len(lost)

    def _lose(self, path: str, s: Slice, verdict: str) -> None:
        attempt = self._holding(s)
        attempt.verdict = attempt.verdict or verdict
        self._fail(path, s, verdict, attempt.host)
        s.is_silent = verdict == "lost" and s.state != "leased"

    def _holding(self, s: Slice) -> Attempt:
        assert s.holder
        job, nstart = s.holder
        return self.attempts[job][nstart - 1]

    def _fail(self, path: str, s: Slice, outcome: str, host: str) -> None:
        is_failure = outcome == "failed"
        backs_off = outcome == "node-fault" and s.has_failed
        s.has_failed = s.has_failed or outcome in ("failed", "node-fault")
        if not is_failure:
            s.repeats = (s.repeats + 1) % 4 if s.faulted_on == host else 0
            s.faulted_on = host
            if s.repeats == 0:
                is_failure = s.faults >= self.max_faults
                s.faults = min(s.faults + 1, self.max_faults)
        s.failures += is_failure
        is_at_limit = is_failure and s.failures >= self.max_failures
        if not is_at_limit and self._promote(path, s):
            return
        s.state, s.is_resting, s.is_silent = "ready", is_failure or backs_off, False
        if is_at_limit or (is_failure and self.is_tail() and s.nblocks > 1):
            if s.nblocks == 1:
                s.state, s.is_resting = "quarantined", False
            else:
                self._split(path, s, (s.block1 + s.block2) // 2)

    def _promote(self, path: str, s: Slice) -> bool:
        b = self.backups.get((path, s.block1))
        if not b or b.generation != s.generation or b.has_failed:
            return False
        del self.backups[path, s.block1]
        if b.holder is None or b.is_silent:
            return False
        s.state, s.holder, s.is_resting, s.is_silent = "leased", b.holder, False, False
        return True

    def report(self, a: Attempt, code: int) -> str:
        if a.code is not None:
            return a.outcome if a.code == code else "contradicted"
        a.code = code
        a.outcome = (
            "done" if code == 0 else "node-fault" if code > 128 or code in (75, 126, 127) else "failed"
        )
        s = self.at(a.path, a.block1)
        holds = s is not None and s.state == "leased" and s.holder == (a.job, a.nstart)
        if s is not None and a.outcome == "done" and s.state != "done" and s.generation == a.generation:
            s.state, s.holder, s.is_resting, s.is_silent = "done", (a.job, a.nstart), False, False
        elif s is not None and a.outcome != "done" and holds:
            self._fail(a.path, s, a.outcome, a.host)
        elif s is not None and a.outcome != "done" and s.state == "leased" and self._end_backup(a):
            a.outcome = "node-fault"
        else:
            a.outcome = "superseded"
        return a.outcome

    def _end_backup(self, a: Attempt) -> bool:
        b = self.backups.get((a.path, a.block1))
        if not b or b.holder != (a.job, a.nstart) or b.generation != a.generation:
            return False
        b.has_failed = a.outcome == "failed"
        if not b.has_failed:
            del self.backups[a.path, a.block1]
        return True

    def heartbeat(self, a: Attempt, is_stuck: bool) -> str:
        s, backup = self.at(a.path, a.block1), self.backup_of(a)
        if backup:
            backup.is_silent = False
            return "alive"
        if s is None or s.holder != (a.job, a.nstart) or s.state not in ("leased", "ready"):
            return "wedged" if a.verdict == "wedged" else "superseded"
        if s.state == "ready":
            is_last = a is self.attempts[a.job][-1] and a.code is None
            if not (s.is_silent and s.generation == a.generation and is_last):
                return "wedged" if a.verdict == "wedged" else "superseded"
            s.state, s.is_resting = "leased", False
        if is_stuck:
            self._lose(a.path, s, "wedged")
            return "wedged" if a.verdict == "wedged" else "superseded"
        s.is_silent = False
        return "alive"

    def stop_jobs(self, host: str) -> int:
        stopped = 0
        for (path, block1), b in list(self.backups.items()):
            s = self.at(path, block1)
            is_live = (
                s and s.state == "leased" and s.generation == b.generation and b.holder and not b.has_failed
            )
            if is_live and b.holder and self.attempts[b.holder[0]][b.holder[1] - 1].host == host:
                attempt = self.attempts[b.holder[0]][b.holder[1] - 1]
                attempt.verdict = attempt.verdict or "superseded"
                del self.backups[path, block1]
                stopped += 1
        for path, s in self.all():
            if s.state != "leased" and not (s.state == "ready" and s.is_silent):
                continue
            attempt = self._holding(s)
            if attempt.host != host:
                continue
            stopped += 1
            if s.state == "leased":
                attempt.verdict = attempt.verdict or "superseded"
                if self._promote(path, s):
                    continue
                s.state, s.is_resting = "ready", False
            s.is_silent = False
        return stopped

    def recycle(self, states: list[str]) -> int:
        chosen = [s for _, s in self.all() if self._kind(s) in states]
        for s in chosen:
            s.state, s.failures, s.faults, s.repeats, s.faulted_on = "ready", 0, 0, 0, None
            s.is_resting = s.is_silent = s.has_failed = False
            s.generation = next(generations)
        return len(chosen)

    @staticmethod
    def _kind(s: Slice) -> str:
        if s.state == "ready":
            return "failed" if s.failures + s.faults > 0 or s.is_resting else ""
        return s.state

    def start_over(self) -> None:
        self.slices = {path: [] for path in NBLOCKS}

    def has_ended(self) -> bool:
        return self.is_tail() and all(s.state in ("done", "quarantined") for _, s in self.all())


def some(test: Any) -> Any:
    """The precondition that some slice of project a fits: a rule that finds nothing to do is a step wasted."""
    return precondition(lambda self: any(test(self.models["a"], s) for _, s in self.models["a"].all()))


class Machine(RuleBasedStateMachine):
    world: World  # set by the test

    @initialize(
        max_failures=st.integers(1, 3),
        max_faults=st.integers(1, 3),
        maxblocks=st.integers(1, 4),
        n=st.just(0),
    )
    def two_projects(self, max_failures: int, max_faults: int, maxblocks: int, n: int) -> None:
        self.names, self.models, self.touched = {}, {}, set("ab")
        n = next(numbers)
        for which in "ab":
            self.names[which] = f"{which}{n}"
            self.models[which] = Model(max_failures, max_faults, maxblocks)
            self.world.with_project(
                self.names[which],
                maxblockspercore=maxblocks,
                max_failures=max_failures,
                max_faults=max_faults,
                max_fast_failures=10000,
                max_starts_per_min=100000,
                backoff_s=3600,
                max_starts=10000,
                max_backups=MAX_BACKUPS,
                suspend_after=100,
                wedged_s=5000,
            )
            call(self.world.db, "load_slices", project=self.names[which])

    def project(self, which: str) -> tuple[str, Model]:
        self.touched = {which}
        return self.names[which], self.models[which]

    def attempt(self, which: str, data: Any) -> tuple[str, Model, Attempt]:
        """One of the project's attempts: mostly one that may still be at work, at times any."""
        name, model = self.project(which)
        attempts = [a for job in model.attempts.values() for a in job]
        assume(attempts)
        open_ones = [a for a in attempts if a.code is None] or attempts
        return name, model, data.draw(st.sampled_from(open_ones) | st.sampled_from(attempts))

    @rule(which=WHICH, job=JOBS, cpus=st.integers(1, 3), host=HOSTS)
    def checkout(self, which: str, job: int, cpus: int, host: str, after: Attempt | None = None) -> None:
        name, model = self.project(which)
        assume(model.state != "paused")
        call_ = {"cpus": cpus, "host": host, "project": name, "job_key": f"key of {job}", **identity(job)}
        follows = model.follows(job, after)
        if follows == 0:
            assert after
            with pytest.raises(psycopg.Error, match="parameter after"):
                self.world.checkout(**call_, after=after.token)
            return
        status, path, s, backup = model.checkout(job, cpus, host, after)
        answer = self.world.checkout(**call_, after=after and after.token)
        assert answer["status"] == status
        if s is None:
            return
        attempts = model.attempts.setdefault(job, [])
        assert (answer["url"], answer["block1"], answer["block2"]) == (path, s.block1, s.block2)
        assert answer["nstarts"] == len(attempts) + 1
        if backup:
            backup.holder, backup.is_silent = (job, len(attempts) + 1), False
        else:
            s.state, s.holder, s.is_silent, s.is_resting = "leased", (job, len(attempts) + 1), False, False
        attempts.append(
            Attempt(
                job,
                len(attempts) + 1,
                path,
                s.block1,
                s.block2,
                s.generation,
                host,
                str(answer["token"]),
                follows,
            )
        )

    @precondition(lambda self: any(a.outcome for job in self.models["a"].attempts.values() for a in job))
    @rule(which=WHICH, data=st.data())
    def checkout_after(self, which: str, data: Any) -> None:
        """A job asks for another slice, after its last success or, at times, after something else."""
        _, model = self.project(which)
        attempts = [a for job in model.attempts.values() for a in job if a.job < 10]
        assume(attempts)
        right = [a for a in attempts if model.follows(a.job, a)] or attempts
        a = data.draw(st.sampled_from(right) | st.sampled_from(attempts))
        self.checkout(which=which, job=a.job, cpus=2, host="wn1", after=a)

    @precondition(lambda self: self.models["a"].attempts)
    @rule(which=WHICH, job=JOBS, job_key=st.sampled_from([None, "another"]))
    def checkout_by_a_stranger(self, which: str, job: int, job_key: str | None) -> None:
        """The slice of a living attempt is not for who does not prove to be its job: nothing changes."""
        name, model = self.project(which)
        holder = job, len(model.attempts.get(job, []))
        assume(model.state != "paused")
        assume(any(s.state == "leased" and s.holder == holder for _, s in model.all()))
        answer = self.world.checkout(host="wn1", project=name, job_key=job_key, **identity(job))
        assert (answer["status"], answer["token"], answer["retry_s"]) == ("wait", None, 60)

    @precondition(lambda self: self.models["a"].attempts)
    @rule(which=WHICH, code=CODES, data=st.data())
    def report(self, which: str, code: int, data: Any) -> None:
        name, model, a = self.attempt(which, data)
        expected = model.report(a, code)
        answer = self.world.report(identity(a.job)["process"], code, project=name, token=a.token)
        assert answer["status"] == expected
        assert answer["http_status"] == (409 if expected in ("superseded", "contradicted") else 200)
        self._let_others_pass()

    @precondition(lambda self: self.models["a"].attempts)
    @rule(which=WHICH, is_stuck=st.sampled_from([False, False, True]), data=st.data())
    def heartbeat(self, which: str, is_stuck: bool, data: Any) -> None:
        name, model, a = self.attempt(which, data)
        if is_stuck:
            self._move("progress_at", name, a)
        expected = model.heartbeat(a, is_stuck)
        numbers = {} if is_stuck else {"bytes": next(generations), "cpu_s": 1}
        process = identity(a.job)["process"]
        assert self.world.heartbeat(process, project=name, token=a.token, **numbers)["status"] == expected
        self._let_others_pass()

    @some(lambda model, s: s.state == "leased")
    @rule(which=WHICH, data=st.data())
    def lease_runs_out(self, which: str, data: Any) -> None:
        name, model = self.project(which)
        leased = [s for _, s in model.all() if s.state == "leased"]
        assume(leased)
        s = data.draw(st.sampled_from(leased))
        s.is_silent = True
        self._move("due_at", name, model._holding(s))
        self.world.db.execute(
            "UPDATE osgprod_data.projects SET next_due_at = '-infinity' WHERE name = %s", [name]
        )

    @some(lambda model, s: s.state == "leased" and model.is_tail())
    @rule(which=WHICH, data=st.data())
    def attempt_takes_long(self, which: str, data: Any) -> None:
        """A holder goes on far beyond the time that a success takes: its slice may have a backup."""
        name, model = self.project(which)
        holders = [model._holding(s) for _, s in model.all() if s.state == "leased"]
        # After three long starts on one slice, evictions, a job gives it back.
        holders = [a for a in holders if sum(other.is_old for other in model.attempts[a.job]) < 2]
        assume(holders)
        a = data.draw(st.sampled_from(holders))
        a.is_old = True
        self.world.db.execute(
            "UPDATE osgprod_data.attempts a SET started_at = a.started_at - interval '1 day'"
            " FROM osgprod_data.projects p WHERE p.name = %s AND a.project_id = p.project_id"
            " AND (a.process, coalesce(a.job_start, a.nstart)) = (%s, %s) AND a.schedd IS NOT DISTINCT FROM %s",
            [name, identity(a.job)["process"], a.nstart, identity(a.job).get("schedd")],
        )
        self.tick()

    @precondition(lambda self: any(b.holder and not b.has_failed for b in self.models["a"].backups.values()))
    @rule(which=WHICH, data=st.data())
    def lease_of_a_backup_runs_out(self, which: str, data: Any) -> None:
        name, model = self.project(which)
        live = [key for key, b in model.backups.items() if b.holder and not b.has_failed]
        assume(live)
        self._silence_backup(name, model, data.draw(st.sampled_from(live)))

    def _silence_backup(self, name: str, model: Model, key: tuple[str, int]) -> None:
        model.backups[key].is_silent = True
        self.world.db.execute(
            "UPDATE osgprod_data.backups b SET due_at = now() - interval '10000 s'"
            " FROM osgprod_data.projects p, osgprod_data.rawdata r"
            " WHERE p.name = %s AND b.project_id = p.project_id AND r.rawdata_id = b.rawdata_id"
            " AND r.path = '/dcache' || %s AND b.block1 = %s",
            [name, *key],
        )

    def _let_others_pass(self) -> None:
        """A slice that had a fault on a worker is left to others for a while: they have not asked."""
        self.world.db.execute(
            "UPDATE osgprod_data.slices SET not_before = not_before - interval '1 h' WHERE is_ready"
        )

    def _move(self, column: str, name: str, a: Attempt) -> None:
        """Moves a time of the slice that an attempt holds into the past, in place of waiting."""
        self.world.db.execute(
            f"UPDATE osgprod_data.slices s SET {column} = now() - interval '10000 s'"
            " FROM osgprod_data.projects p JOIN osgprod_data.attempts a USING (project_id)"
            " WHERE p.name = %s AND s.project_id = p.project_id"
            " AND (s.cluster, s.process, s.nstart) = (a.cluster, a.process, a.nstart)"
            " AND (a.process, coalesce(a.job_start, a.nstart)) = (%s, %s) AND a.schedd IS NOT DISTINCT FROM %s"
            " AND (s.state = 'leased' OR s.due_at IS NOT NULL)",
            [name, identity(a.job)["process"], a.nstart, identity(a.job).get("schedd")],
        )

    @some(lambda model, s: s.is_resting)
    @rule(which=WHICH)
    def backoff_passes(self, which: str) -> None:
        name, model = self.project(which)
        assume(any(s.is_resting for _, s in model.all()))
        for _, s in model.all():
            s.is_resting = False
        self.world.db.execute(
            "UPDATE osgprod_data.slices s SET is_ready = true, not_before = now() - interval '1 h'"
            " FROM osgprod_data.projects p"
            " WHERE p.name = %s AND s.project_id = p.project_id AND NOT s.is_ready AND s.not_before IS NOT NULL",
            [name],
        )

    @some(lambda model, s: s.is_silent)
    @rule(which=WHICH)
    def reclaim(self, which: str) -> None:
        name, model = self.project(which)
        rows = call(self.world.db, "reclaim_lost", project=name)
        assert sum(row["reclaimed"] for row in rows) == model.reclaim()

    @some(lambda model, s: s.state == "leased")
    @rule(which=WHICH, host=HOSTS)
    def stop_jobs(self, which: str, host: str) -> None:
        """The operator ends all jobs of a worker: their slices are requeued, and nothing counts against anybody."""
        name, model = self.project(which)
        expected = model.stop_jobs(host)
        assert call(self.world.db, "stop_jobs", project=name, worker=host)[0]["stop_jobs"] == expected
        self._let_others_pass()

    @some(lambda model, s: s.is_silent or model.backups)
    @rule()
    def tick(self) -> None:
        self.touched = set("ab")
        # Successes take no time, and an attempt without a stated duration has just begun.
        self.world.db.execute("UPDATE osgprod_data.paces SET s_per_block = 0.001")
        self.world.db.execute("UPDATE osgprod_data.reports SET ran_s = 0 WHERE by_worker AND ran_s > 0")
        self.world.db.execute(
            "UPDATE osgprod_data.attempts SET started_at = now() - interval '10 s'"
            " WHERE started_at BETWEEN now() - interval '12 h' AND now() - interval '10 s'"
        )
        self.world.db.execute(
            "INSERT INTO osgprod_data.totals SELECT project_id, 'done', 1, 1, 0 FROM osgprod_data.projects"
            " ON CONFLICT ON CONSTRAINT totals_pkey DO UPDATE SET blocks = 1, ran_s = 0"
        )
        rows = {row["project"]: row["reclaimed"] for row in call(self.world.db, "tick")}
        for which, name in self.names.items():
            model = self.models[which]
            assert rows.get(name, 0) == model.reclaim()
            model.end_backups()
            may, offers = model.may_have_backup(), self._backups(name)
            room = MAX_BACKUPS - sum(not b.has_failed for b in model.backups.values())
            new = [key for key in offers if key not in model.backups]
            assert set(new) <= set(may) and len(new) == min(len(may), room)
            for path, block1 in new:
                s = model.at(path, block1)
                assert s
                model.backups[path, block1] = Backup(
                    s.generation, model._holding(s).host, s.nblocks, offers[path, block1]["expected_end"]
                )

    def _backups(self, name: str) -> dict[tuple[str, int], dict[str, Any]]:
        rows = self.world.db.execute(
            "SELECT regexp_replace(r.path, '^/dcache', '') AS path, b.*,"
            " b.process + CASE WHEN a.schedd IS NULL THEN 0 ELSE 5 END AS job,"
            " coalesce(a.job_start, a.nstart) AS job_start"
            " FROM osgprod_data.backups b"
            " LEFT JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)"
            " JOIN osgprod_data.rawdata r ON r.rawdata_id = b.rawdata_id"
            " JOIN osgprod_data.projects p USING (project_id) WHERE p.name = %s",
            [name],
        ).fetchall()
        return {(row["path"], row["block1"]): row for row in rows}

    @some(lambda model, s: model._kind(s) in ("quarantined", "failed"))
    @rule(
        which=WHICH,
        states=st.lists(st.sampled_from(["quarantined", "failed", "done"]), min_size=1, unique=True),
    )
    def recycle(self, which: str, states: list[str]) -> None:
        name, model = self.project(which)
        foretold = call(self.world.db, "recycle", project=name, states=states, dry_run=True)
        assert len(call(self.world.db, "recycle", project=name, states=states)) == len(foretold)
        assert len(foretold) == model.recycle(states)

    @rule(which=WHICH, sure=st.sampled_from([False, False, False, True]))
    def start_over(self, which: str, sure: bool) -> None:
        if not sure:  # assume() would end the sequence
            return
        name, model = self.project(which)
        call(self.world.db, "load_slices", project=name, start_over=True)
        model.start_over()

    @rule(which=WHICH, state=st.sampled_from(["active", "active", "draining", "paused"]))
    def pause_drain_resume(self, which: str, state: str) -> None:
        name, model = self.project(which)
        self.world.set(name, state=state)
        model.state = state

    @rule(which=WHICH, sure=st.sampled_from([False, False, True]))
    def everything_ends(self, which: str, sure: bool) -> None:
        """Live attempts are lost, and new jobs do the remaining work."""
        name, model = self.project(which)
        if not sure or model.state != "active":
            return
        for _, s in model.all():
            if s.state == "leased":
                s.is_silent = True
                self._move("due_at", name, model._holding(s))
        for key, b in model.backups.items():
            if b.holder and not b.has_failed:
                self._silence_backup(name, model, key)
        self.reclaim(which=which)
        if any(s.is_resting for _, s in model.all()):
            self.backoff_passes(which=which)
        for job in itertools.count(next(numbers) * 1000):
            self.checkout(which=which, job=job, cpus=3, host="wn3")
            if job not in model.attempts:
                break
            a = model.attempts[job][0]
            assert (
                self.world.report(job, project=name, token=a.token)["status"] == model.report(a, 0) == "done"
            )
        assert model.has_ended()

    @rule(which=WHICH, max_failures=st.integers(1, 3), maxblocks=st.integers(1, 4))
    def change_settings(self, which: str, max_failures: int, maxblocks: int) -> None:
        name, model = self.project(which)
        self.world.set(name, max_failures=max_failures, maxblockspercore=maxblocks)
        model.max_failures, model.maxblocks = max_failures, maxblocks

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        for which, name in self.names.items():
            rows = self.world.db.execute(
                "SELECT regexp_replace(r.path, '^/dcache', '') AS path, s.*,"
                " s.process + CASE WHEN a.schedd IS NULL THEN 0 ELSE 5 END AS job,"
                " coalesce(a.job_start, a.nstart) AS job_start"
                " FROM osgprod_data.slices s"
                " LEFT JOIN osgprod_data.attempts a USING (project_id, cluster, process, nstart)"
                " JOIN osgprod_data.rawdata r ON r.rawdata_id = s.rawdata_id"
                " JOIN osgprod_data.projects p USING (project_id)"
                " WHERE p.name = %s ORDER BY r.run, r.seqno, s.block1",
                [name],
            ).fetchall()
            assert [
                (r["path"], r["block1"], r["block2"], r["state"], r["failures"], r["faults"], r["repeats"])
                for r in rows
            ] == [
                (path, s.block1, s.block2, s.state, s.failures, s.faults, s.repeats)
                for path, s in self.models[which].all()
            ]
            assert [(r["job"], r["job_start"]) for r in rows if r["state"] in ("leased", "done")] == [
                s.holder for _, s in self.models[which].all() if s.state in ("leased", "done")
            ]

    @invariant()
    def backups_are_as_the_model(self) -> None:
        for which in self.touched:
            model = self.models[which]
            found = {
                key: ((row["job"], row["job_start"]), row["due_at"] is None) if row["nstart"] else None
                for key, row in self._backups(self.names[which]).items()
            }
            assert found == {
                key: (b.holder, b.has_failed) if b.holder else None for key, b in model.backups.items()
            }
            assert sum(not b.has_failed for b in model.backups.values()) <= MAX_BACKUPS

    @invariant()
    def every_invariant_holds(self) -> None:
        for which in self.touched:
            assert call(self.world.db, "verify", project=self.names[which], deep=True) == []
            progress = self.world.progress(self.names[which])
            model = self.models[which]
            for state in ("done", "leased", "ready", "quarantined"):
                assert progress[f"blocks_{state}"] == sum(
                    s.nblocks for _, s in model.all() if s.state == state
                )


@pytest.mark.parametrize("examples", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_any_sequence_of_calls_does_what_the_model_says(
    db: psycopg.Connection[dict[str, Any]], dsn: str, examples: int
) -> None:
    class Here(Machine):
        world = World(db, dsn)

    for path, nblocks in NBLOCKS.items():
        Here.world.add_file(nblocks, run=int(path[12:18]), seqno=int(path[19:22]), project=None)
    run_machine(Here, examples=examples, steps=60)
