"""A production on a simulated grid: the real functions on a real PostgreSQL, in simulated time.

Each checkout and each report of a job is a separate call. Heartbeats are one batch of all jobs that run, at the
heartbeats' interval. Jobs that wait ask in one batch. Only the clock is simulated
(grid_clock.sql), and what happens on the nodes.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shim.database import call, connect

HERE = Path(__file__).resolve().parent
MAGIC = "simulated"
BLOCK_BYTES = 1_000_000
ENDED_AT_MOST = 4.0  # ideals, after which a run is given up
HEARTBEAT_S = 120.0
REFUSED_S = 300.0  # after which a job asks again that is refused (banned, paused)
REFUSALS = ("OG501", "OG502", "OG601", "OG602", "OG603")
POLL_S = 10.0  # between two calls of tick, as a shim makes them; after 30 s the server counts as away
BLACK_HOLE_S = 30.0  # in which the black-hole site fails a slice
OUTAGE_FAILS_S = 60.0  # in which a fetch from storage that is away fails
RECOVERY_S = 1800.0  # after the outage; a node without work then is idle because of it
WAITS, REFUSED, DELIVERS, RUNNING = "no work", "bans and pauses", "waits to deliver", "runs at the end"
SUPERSEDED = "attempts that were too late"


@dataclass(frozen=True)
class Grid:
    """The simulated grid, and the work. Times in seconds.

    Parameters
    ----------
    workers, sites
        Slots in all, and over how many sites; the last site fails everything fast.
    cores
        Of a slot.
    spread
        Speed of the fastest node over that of the slowest; between them speeds are equally frequent on a log scale.
    start_s
        From the end of a slot's job to the first question of the next one.
    vanish
        Share of attempts that vanish without a report, at any moment of their run.
    evicted_s
        Mean time a job runs until it is evicted; it starts again, on the next slot that is free.
    poisoned
        Share of blocks that fail in each attempt.
    outage_s
        How long storage is away, from the middle of the ideal makespan on.
    files, blocks
        The work, and of a file.
    block_s
        Core seconds of a block on a node of speed 1.
    """

    workers: int = 1000
    sites: int = 10
    cores: int = 4
    spread: float = 5.0
    start_s: float = 60.0
    vanish: float = 0.10
    evicted_s: float = 4 * 3600.0
    poisoned: float = 1e-4
    outage_s: float = 3600.0
    files: int = 400
    blocks: int = 2000
    block_s: float = 144.0
    seed: int = 1

    def speeds(self) -> list[float]:
        """Speed of each node, the same in every run; 0 at the black-hole site."""
        lottery = random.Random(self.seed)
        edge = math.log(self.spread) / 2
        return [
            0.0 if n % self.sites == self.sites - 1 else math.exp(lottery.uniform(-edge, edge))
            for n in range(self.workers)
        ]

    @property
    def ideal_s(self) -> float:
        """Work over the sum of speeds: nothing starts, waits, fails or is done twice."""
        return self.files * self.blocks * self.block_s / (self.cores * sum(self.speeds()))

    def efficiency(self, slice_s: float) -> float:
        """Share of a node's time that counts, with slices of one length and without an outage or a tail.

        Attempts vanish at any moment of their run, evictions come at a constant rate, and each of both costs the
        work on one slice and the start of another job.

        Parameters
        ----------
        slice_s
            Run time of a slice.
        """
        stays = math.exp(-slice_s / self.evicted_s)
        counts_s = (1 - self.vanish) * slice_s * stays
        runs_s = -self.evicted_s * math.expm1(-slice_s / self.evicted_s)
        vanishes_s = self.evicted_s * (1 - runs_s / slice_s)
        ends = (1 - self.vanish) * (1 - stays) + self.vanish
        return counts_s / ((1 - self.vanish) * runs_s + self.vanish * vanishes_s + ends * self.start_s)

    @property
    def least_s(self) -> float:
        """What no dispatcher can go below on this grid.

        That is the ideal with slices of the best length for vanishing attempts, evictions and starts, and the time
        without storage; no failure, no wait, no tail.
        """
        best = max(self.efficiency(1.05**n) for n in range(1, 250))
        return self.ideal_s / best + self.outage_s


@dataclass(frozen=True)
class Way:
    """A way to cut and assign the work.

    Parameters
    ----------
    name
        As the table shows it.
    maxblockspercore
        Blocks of a slice for each core at most.
    slices
        That a job does one after the other.
    settings
        Of the project.
    """

    name: str
    maxblockspercore: int
    slices: int = 1
    settings: dict[str, object] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a run measured: times in seconds of simulated time, core times in core seconds."""

    name: str
    makespan_s: float = 0.0
    ideal_s: float = 0.0
    used_s: float = 0.0  # core time of attempts
    wasted_s: float = 0.0  # of those whose outputs do not count
    attempts: int = 0
    done: int = 0
    tail_s: float = 0.0  # from the moment that nothing is unallocated
    is_complete: bool = True
    curve: list[tuple[float, int]] = field(default_factory=list)  # blocks done in time
    # Where the time of the nodes went until the end, each node's by its speed, as shares of the ideal: their sum is
    # makespan_s / ideal_s.
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class _Job:
    process: int
    slices: int = 0  # that it has done
    ends_at: float = math.inf
    after: str | None = None


@dataclass
class _Slot:
    number: int
    speed: float
    job: _Job
    turn: int = 0  # events of earlier turns are void
    token: str | None = None
    since: float = 0.0
    blocks: int = 0
    asks_at: float = math.inf  # again, when it waits
    ready_at: float = 0.0  # when its outputs are there; it may deliver them later
    does: str = "starts of jobs"
    does_since: float = 0.0


class Simulation:
    """One run of one way.

    Parameters
    ----------
    dsn
        A database that is migrated and empty; it is spoilt for anything else.
    grid, way
        What happens, and how the work is assigned.
    """

    def __init__(self, dsn: str, grid: Grid, way: Way) -> None:
        self._grid, self._way = grid, way
        self._db = connect(dsn)
        self._db.execute("SET sim.at = '0'")
        self._db.execute((HERE / "grid_clock.sql").read_text())
        self._lottery = random.Random(grid.seed + 1)
        self._events: list[tuple[float, int, str, int, int]] = []
        self._order = 0
        self._jobs = 0
        self._asked = 0
        self._idle: list[_Job] = []  # evicted, waiting for a slot
        self._heartbeat_s = HEARTBEAT_S
        self._outage = (grid.ideal_s / 2, grid.ideal_s / 2 + grid.outage_s)
        self._spent: list[tuple[str, float, float, float]] = []  # on what, from when to when, at which speed
        self._load()
        self._slots = [_Slot(n, speed, self._new_job()) for n, speed in enumerate(grid.speeds())]
        self.outcome = Outcome(way.name, ideal_s=grid.ideal_s)

    def run(self) -> Outcome:
        """Runs until all work is settled, and returns the measurements."""
        for slot in self._slots:
            self._start_job(slot, self._lottery.uniform(0, self._grid.start_s), slot.job)
        self._push(self._heartbeat_s, "heartbeat", -1, 0)
        self._push(POLL_S, "tick", -1, 0)
        last, tail_from = 0.0, None
        done = 0
        while self._events:
            at, _, kind, number, turn = heapq.heappop(self._events)
            if kind == "tick":
                row = self._db.execute("SELECT * FROM sim.tick(%s)", [at]).fetchone() or {}
                if tail_from is None and not row["has_unallocated"]:
                    tail_from = at
                if at % 60 < POLL_S:
                    self.outcome.curve.append((at, done))
                if row["is_complete"]:
                    break
                if at > ENDED_AT_MOST * self._grid.ideal_s:
                    self.outcome.is_complete = False
                    last = at
                    break
                self._ask(at, [slot for slot in self._slots if slot.asks_at <= at])
                self._push(at + POLL_S, "tick", -1, 0)
            elif kind == "heartbeat":
                self._send_heartbeats(at)
                self._push(at + self._heartbeat_s, "heartbeat", -1, 0)
            elif turn == self._slots[number].turn:
                slot = self._slots[number]
                if kind == "ask":
                    self._ask(at, [slot])
                elif self._end(slot, at, kind):
                    last = at
                    done += slot.blocks
        self.outcome.makespan_s = last
        self.outcome.tail_s = last - (tail_from if tail_from is not None else last)
        for slot in self._slots:
            self._turn_to(slot, "", last, RUNNING if slot.token else None)
        self._add_up(last, last if tail_from is None else tail_from)
        return self.outcome

    def _turn_to(self, slot: _Slot, what: str, at: float, was: str | None = None) -> None:
        """A node begins with something; what it did before is known by now, maybe by another name."""
        if was is None and what == slot.does:
            return  # it goes on
        self._spent.append((was or slot.does, slot.does_since, at, slot.speed))
        slot.does, slot.does_since = what, at

    def _add_up(self, end: float, tail_from: float) -> None:
        """The parts of the makespan: idle time by its cause."""
        all_speeds = sum(slot.speed for slot in self._slots)
        bounds = [("before", self._outage[0]), ("storage away", self._outage[1]),
                  ("recovery", self._outage[1] + RECOVERY_S), ("before", tail_from), ("tail", math.inf)]  # fmt: skip
        for what, since, until, speed in self._spent:
            until = min(until, end)
            for cause, bound in bounds:
                if since >= until:
                    break
                piece = min(until, bound) - since
                if piece <= 0:
                    continue
                name = what
                if what in (WAITS, REFUSED, DELIVERS):
                    name = {
                        "before": f"{what}, other", "storage away": "storage away",
                        "recovery": "recovery from the outage", "tail": "no work in the tail",
                    }[cause]  # fmt: skip
                share = piece * speed / (all_speeds * self._grid.ideal_s)
                self.outcome.parts[name] = self.outcome.parts.get(name, 0.0) + share
                since = min(until, bound)

    def check(self) -> list[dict[str, Any]]:
        """What verify finds in the whole history."""
        return call(self._db, "verify", project="grid", deep=True)

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()

    def _load(self) -> None:
        grid, way = self._grid, self._way
        call(
            self._db,
            "add_project",
            project="grid",
            subnet_pattern="10.0.0.0/8",
            workscript="osgprod_work.bash",
            xrootd_prefix="root://xrootd.example.org/",
            maxblockspercore=way.maxblockspercore,
            magic=MAGIC,
        )
        call(
            self._db,
            "set_project",
            project="grid",
            settings=json.dumps(
                {"heartbeat_s": int(HEARTBEAT_S), "lease_s": 3 * int(HEARTBEAT_S), **way.settings}
            ),
        )
        entries = []
        for n in range(grid.blocks + 2):
            entries += [n * BLOCK_BYTES, 1 + (n - 1) * 10 if n else 0]
        index = struct.pack(">" + "QI" * (grid.blocks + 2), *entries)
        for number in range(grid.files):
            call(
                self._db,
                "register_rawdata",
                path=f"/data/hd_rawdata_{1 + number // 100:06d}_{number % 100:03d}.evio",
                run=1 + number // 100,
                seqno=number % 100,
                size_bytes=(grid.blocks + 1) * BLOCK_BYTES + 32,
                nblocks=grid.blocks + 1,
                first_block=1,
                byte_order="big",
                has_trailer=True,
                last_has_bit=False,
                trailer=bytes(32),
                preamble='[{"from_block": 1, "offset": 0, "bytes": 1000, "events": 1}]',
                block_index=index,
            )
        call(self._db, "load_slices", project="grid")
        self._db.execute("ANALYZE")
        self._db.execute("SELECT setseed(0.5)")
        lottery = random.Random(grid.seed + 2)
        count = max(round(grid.files * grid.blocks * grid.poisoned), 1) if grid.poisoned else 0
        self._poisoned: dict[str, list[int]] = {}
        for _ in range(count):
            number = lottery.randrange(grid.files)
            name = f"hd_rawdata_{1 + number // 100:06d}_{number % 100:03d}.evio"
            self._poisoned.setdefault(name, []).append(lottery.randint(1, grid.blocks))

    def _push(self, at: float, kind: str, number: int, turn: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, kind, number, turn))

    def _new_job(self) -> _Job:
        self._jobs += 1
        return _Job(self._jobs)

    def _start_job(self, slot: _Slot, after_s: float, job: _Job, at: float = 0.0) -> None:
        slot.turn += 1
        self._turn_to(slot, "starts of jobs", at)
        slot.job, slot.token, slot.asks_at = job, None, math.inf
        job.ends_at = at + after_s + self._lottery.expovariate(1 / self._grid.evicted_s)
        job.slices, job.after = 0, None
        self._push(at + after_s, "ask", slot.number, slot.turn)

    def _next_job(self, slot: _Slot, at: float) -> None:
        """The slot's job has ended: another one starts there."""
        self._start_job(slot, self._grid.start_s, self._idle.pop(0) if self._idle else self._new_job(), at)

    def _identity(self, slot: _Slot) -> dict[str, object]:
        site = slot.number % self._grid.sites
        return {
            "n": slot.number, "project": "grid", "cluster": 1, "process": slot.job.process, "magic": MAGIC,
            "client": f"10.{site}.{slot.number // 250}.{slot.number % 250 + 1}",
        }  # fmt: skip

    def _ask(self, at: float, slots: list[_Slot]) -> None:
        """Jobs ask for work; those that wait ask in one batch."""
        questions = [
            {
                **self._identity(slot),
                "cpus": self._grid.cores,
                "workscript": "osgprod_work.bash",
                "host": f"wn{slot.number}",
                "site": f"site-{slot.number % self._grid.sites}",
                "job_key": f"key-{slot.job.process}",
                "after": slot.job.after,
            }
            for slot in slots
        ]
        if not slots:
            return
        self._asked += len(slots)
        rows = self._db.execute("SELECT * FROM sim.checkout(%s, %s)", [at, json.dumps(questions)]).fetchall()
        for row in rows:
            slot = self._slots[row["n"]]
            slot.turn += 1
            slot.asks_at = math.inf
            if row["status"] == "assigned":
                self._begin(slot, at, row)
            elif row["status"] == "wait":
                self._turn_to(slot, WAITS, at)
                slot.asks_at = at + row["retry_s"]
            elif row["code"] == "55P03":
                self._push(at, "ask", slot.number, slot.turn)
            elif row["code"] in REFUSALS:
                self._turn_to(slot, REFUSED, at)
                slot.asks_at = at + REFUSED_S
            elif row["status"] == "error":
                raise RuntimeError(f"{row['code']}: {row['message']}")
            elif row["status"] == "completed" or slot.job.slices:
                self._next_job(slot, at)  # this job is at its end, another one may find work

    def _begin(self, slot: _Slot, at: float, row: dict[str, Any]) -> None:
        """An attempt begins: what will end it, and when?"""
        grid = self._grid
        self._turn_to(slot, RUNNING, at)
        slot.token, slot.since, slot.blocks = str(row["token"]), at, row["block2"] - row["block1"]
        self.outcome.attempts += 1
        if slot.speed == 0:
            ends = [(at + BLACK_HOLE_S, "1")]
        elif self._outage[0] <= at < self._outage[1]:
            ends = [(at + OUTAGE_FAILS_S, "75")]
        else:
            a_block_s = grid.block_s / (grid.cores * slot.speed)
            run_s = slot.blocks * a_block_s
            ends = [(at + run_s, "0")]
            bad = [b for b in self._poisoned.get(row["filename"], []) if row["block1"] <= b < row["block2"]]
            if bad:
                ends.append((at + (min(bad) - row["block1"] + 1) * a_block_s, "1"))
            if self._lottery.random() < grid.vanish:
                ends.append((at + self._lottery.random() * run_s, "vanish"))
        ends.append((slot.job.ends_at, "evict"))
        ends_at, kind = min(ends)
        slot.ready_at = ends_at
        if kind == "0" and self._outage[0] <= ends_at < self._outage[1]:
            ends_at = self._outage[1]  # the job keeps its outputs and sends them until somebody accepts them
        self._push(max(ends_at, at), kind, slot.number, slot.turn)

    def _end(self, slot: _Slot, at: float, kind: str) -> bool:
        """An attempt ends; returns whether its slice is done."""
        core_s = (at - slot.since) * self._grid.cores
        self.outcome.used_s += core_s
        token, slot.token = slot.token, None
        if kind == "vanish":
            self._turn_to(slot, "", at, "attempts that vanish")
            self.outcome.wasted_s += core_s
            self._next_job(slot, at)
            return False
        if kind == "evict":
            self._turn_to(slot, "", at, "evictions")
            self.outcome.wasted_s += core_s
            self._idle.append(slot.job)
            self._next_job(slot, at)
            return False
        report = {**self._identity(slot), "token": token, "exitcode": int(kind)}
        row = self._db.execute("SELECT * FROM sim.report(%s, %s)", [at, json.dumps([report])]).fetchone()
        assert row is not None
        if row["status"] == "error":
            raise RuntimeError(f"{row['code']}: {row['message']}")
        is_done = bool(row["status"] == "done")
        if kind == "0" and slot.ready_at < at:
            self._turn_to(slot, DELIVERS, slot.ready_at, "work that counts" if is_done else SUPERSEDED)
            self._turn_to(slot, "", at)
        else:
            failed = "failed fetches" if kind == "75" else "failures of bad blocks"
            self._turn_to(
                slot, "", at, "work that counts" if is_done else SUPERSEDED if kind == "0" else failed
            )
        if is_done:
            self.outcome.done += 1
            slot.job.slices += 1
        else:
            self.outcome.wasted_s += core_s
        if is_done and slot.job.slices < self._way.slices:
            slot.turn += 1
            slot.job.after = token
            self._push(at, "ask", slot.number, slot.turn)
        else:
            self._next_job(slot, at)
        return is_done

    def _send_heartbeats(self, at: float) -> None:
        """All that run send a heartbeat, in one batch; those that must stop, stop."""
        running = {slot.number: slot for slot in self._slots if slot.token}
        calls = json.dumps([{**self._identity(slot), "token": slot.token} for slot in running.values()])
        for row in self._db.execute("SELECT * FROM sim.send_heartbeats(%s, %s)", [at, calls]).fetchall():
            if row["http_status"] == 409:
                slot = running[row["n"]]
                core_s = (at - slot.since) * self._grid.cores
                self.outcome.used_s += core_s
                self.outcome.wasted_s += core_s
                self._turn_to(slot, "", at, SUPERSEDED)
                self._next_job(slot, at)


def simulate(dsn: str, grid: Grid, way: Way) -> Outcome:
    """Runs one way on its own database, and returns the measurements.

    Raises
    ------
    RuntimeError
        The database contradicts itself afterwards (verify, deep), or refused a call for another reason than a ban.
    """
    simulation = Simulation(dsn, grid, way)
    try:
        outcome = simulation.run()
        faults = simulation.check()
        if faults:
            raise RuntimeError(f"verify: {faults[:3]}")
        return outcome
    finally:
        simulation.close()
