"""Job scripts of the former release against the present server.

Jobs run for days: those that were submitted before an upgrade of the server end after it, with their exec script, and a
project's folder has the work and merge script of the former release until somebody copies the new ones. The folder
"former" has these scripts as they were released.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support import CHECKOUT, LiveShim, World
from tests.worker.conftest import Node, report_of, slow, state
from tests.worker.site import Site
from tests.worker.test_exec import DONE, FAILED, LATER, NODE_FAULT, REFUSED, pings
from tests.worker.test_merge_jobs import MERGED, merges, stored, until_ready

FORMER = Path(__file__).with_name("former")
# Of the work: it lets the job send a heartbeat, and waits for the answer.
HEARTBEAT = 'at="${OSGPROD_REPORT%/*}/confirm-lease"; touch $at; while [[ -e $at ]]; do sleep 0.1; done'


def versions() -> list[str]:
    return re.findall(r"^## (\d+\.\d+\.\d+)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)


def exec_version(path: Path) -> str:
    return re.findall(r"^readonly EXEC_VERSION=(\S+)$", path.read_text(), re.MULTILINE)[0]


def test_former_scripts_are_those_of_the_release_before_this_one() -> None:
    present, former = versions()[:2]
    assert exec_version(CHECKOUT / "condor/osgprod_exec.sh") == present
    assert exec_version(FORMER / "osgprod_exec.sh") == former, (
        f"copy condor/osgprod_exec.sh and worker/osgprod_*.bash, as release {former} has them, to {FORMER}"
    )


@pytest.fixture(params=["former/former", *slow("former/present", "present/former")])
def node(
    request: pytest.FixtureRequest, node: Node, rawdata: Path, world: World, site: Site, folder: Path
) -> Node:
    """Which exec script, and which scripts the project's folder has."""
    of_job, of_project = request.param.split("/")
    if of_job == "former":
        node.use(FORMER / "osgprod_exec.sh")
    place = FORMER if of_project == "former" else CHECKOUT / "worker"
    for name in ("osgprod_work.bash", "osgprod_merge.bash"):
        shutil.copy(place / name, folder / "www" / "p")
    world.set(maxblockspercore=3, heartbeat_s=1)
    node.environment["OSGPROD_OUTPUT_URL"] = f"{site.url}/out"
    return node


def test_job_of_the_former_release_does_slices_and_a_merge(
    node: Node, world: World, shim: LiveShim, site: Site
) -> None:
    world.set(merge_by="file", merge_output_url=f"{site.url}/merged/{{kind}}", merge_cleanup="delete")
    before = pings(shim)
    recon = node.program("recon", f"echo 31 >events_read; echo a >a; {HEARTBEAT}")
    code, log = node.run(1, OSGPROD_RECON=recon, OSGPROD_SLICES="2")
    assert code == DONE, log
    assert state(world) == {"done": 2}
    assert pings(shim) >= before + 2
    report = report_of(world)
    assert (report["outcome"], report["events"], report["outputs"]) == ("done", 31, 2)
    assert report["output_bytes"] == len(site.files["/out/job_7_1.2.tar.gz"])
    until_ready(world)
    code, log = node.run(3)
    assert code == DONE, log
    assert [merge["state"] for merge in merges(world)] == ["done"], log
    assert stored(site) == {MERGED}, "the inputs are removed, as the project wants it"


@pytest.mark.parametrize(
    ("recon", "code", "outcome", "counted"),
    [
        ("echo no such bank; exit 3", FAILED, "failed", 1),
        *slow(("kill -KILL $$", NODE_FAULT, "node-fault", 0)),
    ],
)
def test_failure_of_a_job_of_the_former_release_is_judged_as_ever(
    node: Node, world: World, recon: str, code: int, outcome: str, counted: int
) -> None:
    assert node.run(1, OSGPROD_RECON=node.program("recon", recon))[0] == code
    report = report_of(world)
    assert report["outcome"] == outcome
    assert world.db.execute(
        "SELECT s.state::text AS state, s.failures FROM osgprod_data.slices s"
    ).fetchall() == [{"state": "ready", "failures": counted}]


def test_answers_without_work_end_a_job_of_the_former_release_as_ever(
    node: Node, world: World, shim: LiveShim
) -> None:
    assert node.run(1, OSGPROD_MAGIC="wrong")[0] == REFUSED
    shim.checkout(50, cpus=6)
    world.set(wait_s=2)
    assert node.run(1, OSGPROD_MAX_WAIT_S="1")[0] == LATER, "all work is leased"
    world.let_leases_run_out()
    world.tick()
    assert node.run(1, OSGPROD_SLICES="2")[0] == DONE
    assert node.run(1)[0] == DONE, "completed"
    assert node.run(2)[0] == DONE, "no work"
