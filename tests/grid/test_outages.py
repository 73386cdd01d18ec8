"""A production meets an outage: real job scripts on many nodes, a real store, the real server, nobody who helps.

How many attempts may fail before the server acts follows from its rule: those that it needs, and those that run beside
the last of them, which have begun before. If reports that arrive together do not see each other, the next one decides,
and what runs beside that has begun before, too: so at the end of each sum stands twice what runs beside one.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.evio.writer import write_file
from tests.grid.mounts import fill, small_file_system
from tests.grid.xrootd import XRootD
from tests.support import LiveShim, World
from tests.worker.fleet import Figures, Fleet, machines

GOOD = [
    node
    for group in zip(
        *(machines(site, 4, n) for n, site in enumerate(("SITE_B", "SITE_C", "SITE_D"))), strict=True
    )
    for node in group
]


# With these each attempt of an outage has a node of its own until the project pauses.
MORE = [
    node
    for group in zip(
        *(machines(site, 9, n)[4:] for n, site in enumerate(("SITE_B", "SITE_C", "SITE_D"))), strict=True
    )
    for node in group
]


@pytest.fixture
def production(world: World) -> World:
    """Default settings, but for short times until a suspect or a slice is tried again, and one block a slice."""
    world.set(retest_s=1, wait_s=1, probe_jobs=5, heartbeat_s=60)
    return world


def load(world: World, folder: Path, files: int, blocks: int) -> list[Path]:
    """Makes raw data files, and makes them the work of project "p"."""
    paths = [folder / f"hd_rawdata_000001_{n:03d}.evio" for n in range(files)]
    for path in paths:
        write_file(path, blocks, 10, filler_words=100)
        path.chmod(0o644)
    world.load_raw(*paths)
    return paths


@pytest.fixture
def raw(xrootd: XRootD) -> Iterator[Path]:
    """An empty folder at the real XRootD."""
    folder = Path(tempfile.mkdtemp(dir=xrootd.data / "raw"))
    folder.chmod(0o755)
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def paused(world: World) -> str | None:
    (row,) = world.db.execute("SELECT pause_cause FROM osgprod_data.projects").fetchall()
    return row["pause_cause"]  # type: ignore[no-any-return]


def at(xrootd: XRootD, world: World, folder: Path) -> None:
    """Files of the folder are read from XRootD."""
    where = f"http://127.0.0.1:{xrootd.https_port}//raw/{folder.name}"
    world.set(xrootd_prefix=where, strip_prefix=str(folder))


@pytest.fixture
def small_store() -> Iterator[Path]:
    """A separate file system that is filled soon; mounting one takes root."""
    with small_file_system("size=2m,mode=1777") as folder:
        yield folder


def test_door_that_is_switched_off_and_on_again_costs_a_handful_of_attempts_and_nothing_else(
    production: World, shim: LiveShim, xrootd: XRootD, raw: Path, folder: Path
) -> None:
    load(production, raw, files=4, blocks=9)
    at(xrootd, production, raw)
    figures = Figures(production)
    with Fleet(folder, shim.url, [*GOOD, *MORE]) as fleet:
        fleet.wait_until(lambda: figures.blocks_done >= 8)
        with fleet.at_rest():
            xrootd.stop()
        fleet.wait_until(lambda: paused(production) == "input")
        fleet.wait_until(lambda: figures.wasted_after("project-paused") >= 2)  # probes
        xrootd.start()
        recovery_s = fleet.wait_until(lambda: paused(production) is None)
        fleet.wait_until(lambda: figures.is_done)
    until_pause = figures.wasted_before("project-paused")
    figures.say("door off and on", recovered_after_s=f"{recovery_s:.1f}", wasted_before_the_pause=until_pause)
    assert figures.events("project-paused")[0].startswith("the input can't be read: ")
    assert len(figures.events("project-paused")) == len(figures.events("project-resumed"))
    assert figures.events("worker-banned") == figures.events("block-quarantined") == []
    assert figures.successes == 36, "each block once"
    # Three workers fail on a file before it is suspended. With the first failure on a third file the project pauses.
    assert until_pause <= 2 * (3 + fleet.beside) + 1 + 2 * fleet.beside


def test_store_of_the_outputs_that_fills_pauses_the_project_until_there_is_room(
    production: World, shim: LiveShim, small_store: Path, folder: Path
) -> None:
    production.set(backoff_s=1)
    load(production, folder, files=2, blocks=15)
    figures = Figures(production)
    recon = folder / "recon"
    recon.write_text("#!/bin/bash\nhead -c 30000 /dev/urandom >out.root\n")
    recon.chmod(0o755)
    where = {"OSGPROD_RECON": str(recon), "OSGPROD_OUTPUT_URL": f"file://{small_store}"}
    with Fleet(folder, shim.url, GOOD, **where) as fleet:
        fleet.wait_until(lambda: figures.blocks_done >= 5)
        with fleet.at_rest():  # so that no output finds room after one that finds none
            fill(small_store / "ballast")
        fleet.wait_until(lambda: paused(production) == "output")
        fleet.wait_until(lambda: figures.wasted_after("project-paused") >= 2)
        subprocess.run(["mount", "-o", "remount,size=20m", str(small_store)], check=True)
        recovery_s = fleet.wait_until(lambda: paused(production) is None)
        fleet.wait_until(lambda: figures.is_done)
    until_pause = figures.wasted_before("project-paused")
    figures.say(
        "store full, then room", recovered_after_s=f"{recovery_s:.1f}", wasted_before_the_pause=until_pause
    )
    assert "No space left on" in figures.events("project-paused")[0]
    assert figures.events("worker-banned") == figures.events("block-quarantined") == []
    assert figures.successes == 30, "each block once"
    # The project pauses with the first report by which three workers at three sites have failed. How many reports that
    # takes depends on the sites of those that end first.
    assert until_pause <= figures.failures_until(workers=3, sites=3) + 2 * fleet.beside
    delivered = list(small_store.glob("job_*"))
    assert len(delivered) == 30, "and no half of an output stays"


def test_work_script_that_reads_an_event_too_few_of_every_slice_pauses_the_production(
    production: World, shim: LiveShim, folder: Path
) -> None:
    """220 of 220 good blocks were quarantined once. Here it breaks in mid-production, and is repaired later."""
    production.set(demand_events=True)
    load(production, folder, files=6, blocks=8)
    figures = Figures(production)
    recon, is_broken = folder / "recon", folder / "is_broken"
    recon.write_text(f"#!/bin/bash\n[[ -e {is_broken} ]] && echo 10 >events_read || echo 11 >events_read\n")
    recon.chmod(0o755)
    with Fleet(folder, shim.url, GOOD, OSGPROD_RECON=str(recon)) as fleet:
        fleet.wait_until(lambda: figures.blocks_done >= 8)
        is_broken.touch()
        fleet.wait_until(lambda: paused(production) == "work")
        fleet.wait_until(lambda: figures.wasted_after("project-paused") >= 2)
        counted = production.db.execute("SELECT max(failures) AS n FROM osgprod_data.slices").fetchone()
        is_broken.unlink()
        recovery_s = fleet.wait_until(lambda: paused(production) is None)
        fleet.wait_until(lambda: figures.is_done)
    until_pause = figures.wasted_before("project-paused")
    figures.say(
        "an event too few", recovered_after_s=f"{recovery_s:.1f}", wasted_before_the_pause=until_pause
    )
    assert "exit code 0 with 10 of 11 events read" in figures.events("project-paused")[0]
    assert figures.events("worker-banned") == figures.events("block-quarantined") == []
    assert counted == {"n": 0}, "nothing counts against the slices"
    assert figures.successes == 48, "each block once"
    # Five slices of a file fail before it is suspended. With the first failure on a third file the project pauses.
    assert until_pause <= 2 * (5 + fleet.beside) + 1 + 2 * fleet.beside


def test_site_of_40_nodes_that_fails_everything_is_banned_after_a_handful_of_attempts(
    production: World, shim: LiveShim, folder: Path
) -> None:
    """Its nodes don't see the software, a third of the nodes elsewhere do the work."""
    load(production, folder, files=3, blocks=10)
    bad = machines("SITE_A", 40, 9, OSGPROD_RECON="/cvmfs/not/mounted/hd_root")
    nodes = [node for n in range(20) for node in (*bad[2 * n : 2 * n + 2], GOOD[n % len(GOOD)])]
    nodes = list({node.name: node for node in nodes}.values())
    figures = Figures(production)
    with Fleet(folder, shim.url, nodes) as fleet:
        ban_s = fleet.wait_until(lambda: figures.events("worker-banned"))
        until_ban = figures.wasted
        fleet.wait_until(lambda: figures.is_done)
    figures.say("site of 40 nodes", banned_after_s=f"{ban_s:.1f}", wasted_before_the_ban=until_ban)
    assert figures.events("worker-banned") == ["site:SITE_A"], "no good node, and no node one by one"
    assert figures.wasted <= 5 + 2 * fleet.beside, "five nodes"
    assert figures.events("block-quarantined") == figures.events("project-paused") == []
    assert figures.events("file-suspended") == []
    assert figures.successes == 30, "each block once"


def test_unreadable_file_is_suspended_alone_and_resumes_when_it_can_be_read(
    production: World, shim: LiveShim, xrootd: XRootD, raw: Path, folder: Path
) -> None:
    paths = load(production, raw, files=3, blocks=8)
    at(xrootd, production, raw)
    paths[0].chmod(0)
    figures = Figures(production)
    with Fleet(folder, shim.url, GOOD) as fleet:
        fleet.wait_until(lambda: figures.events("file-suspended"))
        fleet.wait_until(lambda: figures.blocks_done >= 16)
        until_suspended = figures.wasted_before("file-suspended")
        probes = figures.wasted_after("file-suspended")
        paths[0].chmod(0o644)
        recovery_s = fleet.wait_until(lambda: figures.events("file-resumed"))
        fleet.wait_until(lambda: figures.is_done)
    figures.say("unreadable file", recovered_after_s=f"{recovery_s:.1f}", probes=probes)
    assert figures.events("file-suspended") == figures.events("file-resumed") == [str(paths[0])]
    assert figures.events("worker-banned") == figures.events("block-quarantined") == []
    assert figures.events("project-paused") == []
    assert until_suspended <= 3 + 2 * fleet.beside, "three workers"
    assert figures.successes == 24, "each block once"
