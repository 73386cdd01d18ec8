"""Between the jobs and the server everything goes wrong, and each event is delivered and counted exactly once.

Real sockets, the real shim on a real PostgreSQL, the real exec script. OSGPROD_CHAOS_S=600 (make soak) goes on for that
many seconds, and cuts every answer at every byte.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import tarfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shim.evio.writer import write_file
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World
from tests.worker.chaos import ChaosProxy, Fault, make_authority, random_plan
from tests.worker.conftest import EXEC, Node, kill, slow

CHAOS_S = float(os.environ.get("OSGPROD_CHAOS_S", "0"))
# A work script that is short, so that each of its bytes can be the last one that arrives.
SHORT = b"#!/bin/bash\n#osgprod_token=\n#osgprod_block1=\necho done\n"
REFUSED = 40
TRY = """\
source "$1"
# The script's own functions, one request after the other.
cluster=7 process=1 magic=m job_key="" host=h site="" token="" CHECKPOINT_CODE=0
OSGPROD_PROJECT=p
make_scratch
find_token() { bearer=""; }
while read -r position route more; do
  rm -f "$scratch/script"
  request "$route" $more
  printf '%s %s %s %s\\n' "$position" "$route" "$http_status" "$answer"
done
rm -rf "$scratch"
"""


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_authority(tmp_path_factory.mktemp("authority") / "new")


@pytest.mark.parametrize(
    ("scheme", "step"),
    [("http", 139), *slow(("http", 23), ("https", 23))],
)
def test_an_answer_that_was_cut_anywhere_is_no_answer(
    scheme: str,
    step: int,
    rawdata: Path,
    world: World,
    shim: LiveShim,
    folder: Path,
    authority: tuple[Path, Path],
) -> None:
    """step: of the cut positions; each with make soak."""
    step = 1 if CHAOS_S else step
    shim.add_template("p", SHORT)
    world.set(max_starts_per_min=100000, max_starts=10000)
    certificate, authorities = authority
    expected = {
        "workscript.bash": "200 assigned",
        "workscript.ping": "200 alive",
        "workscript.exit": "200 failed",
    }
    more = {"workscript.bash": "cpus 1", "workscript.ping": "bytes 5", "workscript.exit": "exitcode 3"}
    fault: list[Fault | None] = [None]
    with ChaosProxy(shim.port, lambda _: fault[0], certificate if scheme == "https" else None) as proxy:
        job = subprocess.Popen(
            ["/bin/bash", "-c", TRY, "try", str(EXEC)],
            env={
                "PATH": "/usr/bin:/bin",
                "OSGPROD_URL": proxy.url,
                "X509_CERT_DIR": str(authorities),
                "_CONDOR_SCRATCH_DIR": str(folder),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert job.stdin and job.stdout

        def ask(route: str, position: int | None, kind: str = "cut") -> str:
            fault[0] = None if position is None else Fault(kind, position)
            assert job.stdin and job.stdout
            job.stdin.write(f"{position} {route} {more[route]}\n")
            job.stdin.flush()
            return " ".join(job.stdout.readline().split()[2:])

        asked = 0
        for route, answer in expected.items():
            assert ask(route, None) == answer
            length = len(proxy.last_answer)
            head = proxy.last_answer.index(b"\r\n\r\n") + 4
            # For any step: around the end of each header and of the head, in make test of one route only, since one
            # function reads the answers of all.
            ends = [n for n in range(head) if proxy.last_answer[n : n + 2] == b"\r\n"]
            ends = ends[-2:] if step > 23 and route != "workscript.bash" else ends
            near = {n + more for n in ends for more in (0, 1, 2)} | {head, head + 1, length - 1}
            positions = sorted({*range(0, length, step), *(near if step > 1 else ())} - {length})
            for position, kind in itertools.product(positions, ("cut", "reset") if CHAOS_S else ("cut",)):
                answer_length = len(proxy.last_answer)
                if position >= answer_length - 8:  # a token or a number may have another length the next time
                    continue
                assert ask(route, position, kind) == "000", f"{route} cut at byte {position}"
                asked += 1
            assert ask(route, len(proxy.last_answer) - 1) == "000"
        job.stdin.close()
        assert job.wait(PATIENCE_S) == 0
        job.stdout.close()
        print(f"{scheme}: {asked} answers cut, none taken for a whole one")
        assert asked > 60


def events_of(tarball: Path) -> list[int]:
    with tarfile.open(tarball) as archive:
        text = archive.extractfile("./events.txt")
        assert text
        return [int(line) for line in text.read().split() if line != b"begin-of-run"]


def all_events(path: Path) -> list[int]:
    """The numbers of the events of a raw data file, read by a program that shares nothing with the server."""
    folder = path.parent / "whole"
    folder.mkdir()
    recon = CHECKOUT / "worker" / "demo_recon.py"
    subprocess.run(["python3", str(recon), str(path)], cwd=folder, check=True)
    return [int(line) for line in (folder / "events.txt").read_text().split() if line != "begin-of-run"]


class Production:
    """Jobs that are started again, killed, and started again, until the server has no work."""

    def __init__(self, node: Node, world: World, out: Path, seed: int) -> None:
        self.node, self.world, self.out = node, world, out
        self.dice, self.lock = random.Random(seed), threading.Lock()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def job(self, process: int, url: str, **environment: str) -> None:
        """Like HTCondor: the same job again and again, until it leaves the queue."""
        folder = self.node.folder / str(process)
        folder.mkdir(exist_ok=True)
        for _ in range(60):
            with self.lock:
                kill_after_s = self.dice.choice([None, None, self.dice.uniform(0.1, 2.5)])
                is_moved = self.dice.random() < 0.3
            started = subprocess.Popen(
                [str(EXEC), "7", str(process), "1"],
                cwd=folder,
                env={
                    **self.node.environment,
                    **environment,
                    "OSGPROD_URL": url,
                    "OSGPROD_OUTPUT_URL": f"file://{self.out}",
                    "_CONDOR_SCRATCH_DIR": str(folder),
                    "OSGPROD_CHECKPOINT_CODE": "85",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                log, _ = started.communicate(timeout=kill_after_s or 120)
            except subprocess.TimeoutExpired:
                kill(started.pid)
                log, _ = started.communicate()
                self.counts["kills"] += 1
            self.counts["starts"] += 1
            if started.returncode == REFUSED:
                self.problems.append(log)
                return
            if started.returncode == 0:
                return
            if is_moved:  # to a node where nothing of this one is left
                folder = self.node.folder / f"{process}.{self.counts['starts']}"
                folder.mkdir()
        self.problems.append(f"job {process} does not end: {log}")


def produce(
    node: Node, world: World, shim: LiveShim, folder: Path, authority: tuple[Path, Path], seed: int, jobs: int
) -> Counter[str]:
    """Runs a production to its end under chaos, and checks it; returns the figures."""
    certificate, authorities = authority
    out = folder / f"out{seed}"
    out.mkdir()
    production = Production(node, world, out, seed)
    plan = random_plan(seed, 0.5)
    with ChaosProxy(shim.port, plan) as plain, ChaosProxy(shim.port, plan, certificate) as tls:
        # The lease of a job that was killed ends when all jobs have left the queue; then there are new ones.
        first = seed * 1000
        for n in range(20):
            threads = [
                threading.Thread(
                    target=production.job,
                    args=(first + n * jobs + k, (plain, tls)[k % 2].url),
                    kwargs={"X509_CERT_DIR": str(authorities)},
                )
                for k in range(jobs)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert production.problems == []
            states = world.db.execute(
                "SELECT count(*) FILTER (WHERE state <> 'done') AS n FROM osgprod_data.slices"
            ).fetchall()
            unallocated = world.progress()
            if states[0]["n"] == 0 and unallocated["blocks_done"] == unallocated["blocks"]:
                break
            world.let_leases_run_out()
            world.let_backoff_pass()
    return production.counts + plain.counts + tls.counts


def delivered_and_counted(world: World, out: Path) -> tuple[list[int], int]:
    """The events in the outputs that count, each compared with its report; and how many the server counts."""
    slices = world.db.execute(
        "SELECT * FROM osgprod.list_slices(p_project => 'p', p_state => 'done', p_limit => 100000)"
    ).fetchall()
    events, counted = [], 0
    for row in slices:
        path = Path(row["output_url"].removeprefix("file://"))
        data = path.read_bytes()
        assert (len(data), f"{zlib.adler32(data):08x}") == (row["output_bytes"], row["output_adler32"]), path
        events += events_of(path)
        history = world.db.execute(
            "SELECT events FROM osgprod.job_history(p_project => 'p', p_cluster => %s, p_process => %s)"
            " WHERE nstart = %s AND outcome = 'done'",
            [row["cluster"], row["process"], row["nstart"]],
        ).fetchall()
        counted += history[0]["events"] - 1  # the begin-of-run record comes with each slice
    return sorted(events), counted


@pytest.mark.timeout(max(3600, CHAOS_S * 2))
@pytest.mark.parametrize("jobs", [4, *slow(12)])
def test_each_event_is_delivered_and_counted_once_under_chaos(
    node: Node,
    world: World,
    shim: LiveShim,
    db: psycopg.Connection[dict[str, Any]],
    folder: Path,
    authority: tuple[Path, Path],
    jobs: int,
) -> None:
    # The lease is long: chaos must not end it, only a kill.
    world.set(heartbeat_s=1, lease_s=600, backoff_s=0, max_starts_per_min=100000)
    node.environment |= {
        "OSGPROD_TRIES": "12",
        "OSGPROD_BACKOFF_MS": "5",
        "OSGPROD_RECON": f"python3 {CHECKOUT}/worker/demo_recon.py",
        "OSGPROD_DEMO_PAUSE_S": "0.2",
    }
    total: Counter[str] = Counter()
    end = time.monotonic() + CHAOS_S
    for seed in itertools.count(1):
        path = folder / f"hd_rawdata_{seed:06d}_001.evio"
        write_file(path, jobs, 10, filler_words=100)
        world.load_raw(path)
        total += produce(node, world, shim, folder, authority, seed, jobs)
        if time.monotonic() >= end:
            break
    expected: list[int] = []
    for n in range(1, seed + 1):
        path = folder / f"hd_rawdata_{n:06d}_001.evio"
        expected += all_events(path)
        (folder / "whole").rename(folder / f"whole{n}")
    delivered, counted = delivered_and_counted(world, folder)
    cuts = total["cut"] + total["reset"] + total["halves"]
    print(
        f"{total['requests']} requests, {cuts} cuts, {total['kills']} kills in {total['starts']} starts of jobs;"
        f" all faults: {dict(total)}; events in {len(expected)} = counted {counted}"
        f" = delivered {len(delivered)}"
    )
    assert delivered == sorted(expected)
    assert counted == len(expected)
    assert db.execute("SELECT * FROM osgprod.verify(p_project => 'p')").fetchall() == []
