"""A job reads its slice from the next door when one fails, and reports which one it used."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from shim.database import call
from tests.support import CHECKOUT, World, free_port
from tests.worker.conftest import Node
from tests.worker.site import Site

DONE, NODE_FAULT = 0, 20


@pytest.fixture
def doors(site: Site, rawdata: Path, world: World) -> Any:
    """Two servers that have the raw data file."""
    with Site(files=dict(site.files)) as second:
        world.set(xrootd_prefix=f"{site.url} {second.url}", strip_prefix="", maxblockspercore=1)
        yield site, second


def door_of(world: World, process: int) -> str | None:
    rows = call(world.db, "list_attempts", project="p")
    return next(row["door"] for row in rows if row["process"] == process)


def test_job_reads_from_the_next_door_without_a_pause_when_one_is_gone_or_misbehaves(
    node: Node, world: World, doors: tuple[Site, Site]
) -> None:
    good, dead = doors[0], f"http://127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as sites:
        faults: tuple[str | int, ...] = (404, 403, 410, 500, "wrong-range", "zeros", "close")
        bad = [sites.enter_context(Site(files=good.files, faults=[fault] * 99)) for fault in faults]
        urls = [dead, *(door.url for door in bad), good.url]
        world.set(xrootd_prefix=", ".join(urls))
        code, log = node.run(1, OSGPROD_BACKOFF_MS="600000")
        assert code == DONE, log
        assert f"{dead}: no answer" in log and all(f"going on to {url}" in log for url in urls[1:]), log
        assert all(door.seen for door in bad)
    assert door_of(world, 1) == good.url


def test_job_that_finds_no_door_open_says_so_of_the_last_one_and_blames_no_data(
    node: Node, world: World, doors: tuple[Site, Site]
) -> None:
    for door in doors:
        door.faults = [503] * 99
    code, log = node.run(1)
    assert code == NODE_FAULT, log
    (row,) = call(world.db, "list_attempts", project="p")
    assert (row["exit_code"], row["outcome"], row["door"]) == (75, "node-fault", None)
    assert row["reason"].startswith("not fetched: status 503 (3 attempts, 0 of")
    assert doors[1].url in row["reason"], "the last one"
    assert [len(door.seen) for door in doors] == [3, 3]


def test_first_door_is_used_and_reported_or_that_of_the_jobs_site(
    node: Node, world: World, doors: tuple[Site, Site]
) -> None:
    world.set(xrootd_prefix=f"{doors[0].url} Elsewhere=/mnt UConn={doors[1].url}")
    assert node.run(2, OSGPROD_SITE="MIT")[0] == DONE
    assert doors[1].seen == []
    assert node.run(1, OSGPROD_SITE="UConn")[0] == DONE
    assert [door_of(world, process) for process in (1, 2)] == [doors[1].url, doors[0].url]


def test_path_of_the_node_and_a_federation_can_be_doors_beside_others(
    node: Node, world: World, doors: tuple[Site, Site], rawdata: Path
) -> None:
    world.set(xrootd_prefix=f"pelican://localhost:{free_port()} /nonexistent file:// {doors[0].url}")
    code, log = node.run(1)
    assert code == DONE, log
    assert log.count("going on to file") == 2, log
    assert (door_of(world, 1), doors[0].seen) == ("file", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding the XRootD bindings takes root")
def test_door_that_the_node_has_no_client_for_is_left_out(
    node: Node, world: World, doors: tuple[Site, Site]
) -> None:
    world.set(xrootd_prefix=f"root://127.0.0.1:{free_port()}/ {doors[1].url}")
    hide = 'mount -t tmpfs none /usr/lib/python3/dist-packages; exec "$@"'
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", hide, "-")
    assert code == DONE, log
    assert "going on" not in log
    assert door_of(world, 1) == doors[1].url


def test_older_work_script_that_knows_one_url_gets_the_preferred_one(
    node: Node, world: World, doors: tuple[Site, Site], folder: Path
) -> None:
    script = (CHECKOUT / "worker" / "osgprod_work.bash").read_text()
    old = "\n".join(line for line in script.split("\n") if not line.startswith("#osgprod_source_urls="))
    (folder / "www" / "p" / "old.bash").write_text(old)
    world.set(workscript="old.bash")
    code, log = node.run(1)
    assert code == DONE, log
    assert door_of(world, 1) == doors[0].url


@pytest.mark.slow
def test_production_goes_on_while_its_doors_are_switched_off_and_on_in_turn(
    node: Node, world: World, doors: tuple[Site, Site]
) -> None:
    world.set(maxblockspercore=2)
    used = []
    for process in range(3):
        gone = doors[process % 2]
        gone.faults = [503] * 1000
        code, log = node.run(process)
        gone.faults = []
        assert code == DONE, log
        used.append(door_of(world, process))
    assert used == [doors[(process + 1) % 2].url for process in range(3)]
    (progress,) = call(world.db, "progress")
    assert progress["blocks_done"] == progress["blocks"] == 6
    assert len(call(world.db, "list_attempts", project="p")) == 3, "no attempt was wasted"
    assert call(world.db, "blocked_workers", project="p") == []
