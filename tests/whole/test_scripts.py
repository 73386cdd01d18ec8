"""The real scripts of a job, killed at any moment, wedged, or slow: promises I3 to I5 of docs/design.md."""

from __future__ import annotations

import random
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.evio.writer import write_file
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World, wait_until
from tests.worker.conftest import Node, kill, wait_for_end
from tests.worker.site import Site

NBLOCKS = 10


@pytest.fixture
def nevents(world: World, folder: Path) -> int:
    """A real file, one block a slice, is the work of project "p"; gives the number of its physics events."""
    return load(world, folder / "hd_rawdata_000001_001.evio", NBLOCKS)


def load(world: World, path: Path, nblocks: int, **more: int) -> int:
    events = write_file(path, nblocks, 5, **more)
    world.load_raw(path)
    return events


@pytest.fixture
def node(folder: Path, shim: LiveShim, nevents: int) -> Iterator[Node]:
    (folder / "node").mkdir()
    node = Node(folder / "node", shim.url)
    node.environment |= {
        "OSGPROD_RECON": f"{sys.executable} {CHECKOUT / 'worker' / 'demo_recon.py'}",
        "OSGPROD_OUTPUT_URL": f"file://{folder}/outputs",
    }
    yield node
    node.end()


def counted_events(world: World) -> Counter[int]:
    """Physics events in the outputs that count: reported as done, and named by the report."""
    rows = world.db.execute("SELECT output_url FROM osgprod_data.reports WHERE outcome = 'done'").fetchall()
    seen: Counter[int] = Counter()
    for row in rows:
        with tarfile.open(row["output_url"].removeprefix("file://")) as archive:
            member = archive.extractfile("./events.txt")
            assert member
            begin, *events = member.read().decode().split()
        assert begin == "begin-of-run"
        seen.update(map(int, events))
    return seen


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_jobs_killed_at_any_moment_and_restarted(world: World, node: Node, nevents: int, kills: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    states = Counter[str]()
    for process in range(kills):  # each is killed once; from its first line to its report takes about 0.5 s
        job = node.start(process)
        time.sleep(0.7 * chance.random())
        kill(job.pid)
        output = job.communicate()[0]
        states["before" if "start " not in output else "after" if "reported" in output else "at work"] += 1
    print(dict(states))
    for process in range(kills):
        code, output = node.run(process)
        assert code == 0, output
    while (
        world.progress()["blocks_done"] < NBLOCKS
    ):  # a job that had completed before it was killed did nothing now
        process += 1
        code, output = node.run(process)
        assert code == 0, output
    seen = counted_events(world)
    assert len(seen) == nevents
    assert set(seen.values()) == {1}


def test_job_sends_heartbeats_during_a_slow_fetch(world: World, node: Node, folder: Path) -> None:
    raw, started = folder / "hd_rawdata_000000_001.evio", folder / "started"
    load(world, raw, 1, filler_words=8000)
    with Site(files={str(raw): raw.read_bytes()}, faults=["held"]) as site:
        world.set(heartbeat_s=1, xrootd_prefix=site.url)
        job = node.start(0, OSGPROD_RECON=node.program("recon", f"touch {started}"))
        leases = set()

        def is_renewed_twice() -> bool:
            rows = world.db.execute("SELECT due_at FROM osgprod_data.slices").fetchall()
            leases.update(row["due_at"] for row in rows)
            return len(leases) == 3  # that of the checkout, and of two heartbeats

        wait_until(is_renewed_twice, "two heartbeats come", job)
        assert not started.exists(), "all that while the slice was being fetched"
        kill(job.pid)
        job.communicate()


def test_wedged_job_stops_with_a_clear_line_and_its_slice_is_leased_again(world: World, node: Node) -> None:
    world.set(heartbeat_s=1, wedged_s=1)
    job = node.start(0, OSGPROD_RECON=node.program("recon", "sleep 60"))
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert re.search(r"stopping the work: .*stop: no progress for more than 1 s", output), output
    wait_for_end(job.pid)
    assert world.progress()["blocks_ready"] == 1
    assert world.checkout(1)["block1"] == 1
