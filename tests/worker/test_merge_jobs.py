"""Jobs merge what the slices of a file left: the real server, osgprod_exec.sh and merge script."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import CHECKOUT, World
from tests.worker.conftest import Node
from tests.worker.site import Site

DONE, FAILED = 0, 10


@pytest.fixture
def merging(node: Node, world: World, rawdata: Path, folder: Path, site: Site) -> Callable[..., None]:
    """Switches merges on, and lets two jobs process the slices of the file."""

    def start(**settings: object) -> None:
        shutil.copy(CHECKOUT / "worker" / "osgprod_merge.bash", folder / "www" / "p")
        world.set(
            merge_by="file", merge_output_url=f"{site.url}/merged/{{kind}}", maxblockspercore=3, **settings
        )
        node.environment.update(OSGPROD_OUTPUT_URL=f"{site.url}/out", OSGPROD_RECON="cksum")
        for process in (1, 2):
            code, log = node.run(process)
            assert code == DONE, log

    return start


def merges(world: World) -> list[dict[str, Any]]:
    return world.db.execute(
        "SELECT m.state::text AS state, m.failures FROM osgprod_data.merges m ORDER BY m.merge_id"
    ).fetchall()


def stored(site: Site) -> set[str]:
    return {path for path in site.files if path.startswith(("/out/", "/merged/"))}


MERGED = "/merged/job_info/job_info_000001_001.tgz"
TARBALLS = {"/out/job_7_1.tar.gz", "/out/job_7_2.tar.gz"}


def test_job_merges_a_file_whose_slices_are_done(
    merging: Callable[..., None], node: Node, world: World, site: Site, folder: Path
) -> None:
    merging()
    code, log = node.run(3)
    assert code == DONE, log
    assert [merge["state"] for merge in merges(world)] == ["done"], log
    assert stored(site) == {*TARBALLS, MERGED}, "the tarball of a merge holds its log only, and is not sent"
    (folder / "merged.tgz").write_bytes(site.files[MERGED])
    with tarfile.open(folder / "merged.tgz") as archive:
        folders = {name.partition("/")[0] for name in archive.getnames()}
    slices = world.db.execute("SELECT s.block1, s.block2 FROM osgprod_data.slices s").fetchall()
    assert folders == {f"{slice_['block1']},{slice_['block2']}" for slice_ in slices}
    outputs = world.db.execute("SELECT o.kind, o.url, o.bytes FROM osgprod_data.outputs o").fetchall()
    assert outputs == [{"kind": "job_info", "url": f"{site.url}{MERGED}", "bytes": len(site.files[MERGED])}]


def test_merged_inputs_are_removed_after_the_report_if_the_project_wants_that(
    merging: Callable[..., None], node: Node, site: Site
) -> None:
    merging(merge_cleanup="delete")
    code, log = node.run(3)
    assert code == DONE, log
    assert stored(site) == {MERGED}


def test_inputs_stay_when_the_merge_is_superseded_before_its_report(
    merging: Callable[..., None], node: Node, site: Site, world: World, folder: Path
) -> None:
    merging(merge_cleanup="delete")
    script, gate = folder / "www" / "p" / "osgprod_merge.bash", folder / "gate"
    wait = f"  report_merged\n  until [[ -e {gate} ]]; do sleep 0.05; done\n"
    script.write_text(script.read_text().replace("  report_merged\n", wait))
    job = node.start(3)
    while MERGED not in site.files:
        assert job.poll() is None
        time.sleep(0.01)
    world.db.execute("UPDATE osgprod_data.merges SET state = 'superseded', is_ready = NULL")
    gate.touch()
    log, _ = job.communicate(timeout=60)
    assert job.returncode == FAILED, log
    assert stored(site) >= TARBALLS


@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped"])
def test_bad_input_is_processed_again_and_the_merge_succeeds_later(
    merging: Callable[..., None], node: Node, world: World, site: Site, damage: str
) -> None:
    merging()
    content = site.files.pop("/out/job_7_2.tar.gz")
    if damage == "truncated":
        site.files["/out/job_7_2.tar.gz"] = content[:-20]
    elif damage == "flipped":
        site.files["/out/job_7_2.tar.gz"] = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
    code, log = node.run(3)
    assert code == FAILED, log
    assert [merge["state"] for merge in merges(world)] == ["waiting"], log
    world.db.execute(
        "UPDATE osgprod_data.slices SET not_before = now(), is_ready = true WHERE state = 'ready'"
    )
    code, log = node.run(4)
    assert code == DONE, log
    world.db.execute(
        "UPDATE osgprod_data.merges SET not_before = now(), is_ready = true WHERE state = 'ready'"
    )
    code, log = node.run(5)
    assert code == DONE, log
    assert [merge["state"] for merge in merges(world)] == ["done"], log
    assert MERGED in site.files
