"""A job that processes several slices: what it delivers, how it ends, and where it may be killed."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from shim.database import call
from tests.support import PATIENCE_S, LiveShim, World, wait_until
from tests.worker.conftest import Node, kill, slow, state
from tests.worker.site import Site

DONE, FAILED, NODE_FAULT, REFUSED, SAVED = 0, 10, 20, 40, 85
pytestmark = pytest.mark.usefixtures("rawdata")
# A work script that fetches nothing: what is shown here begins behind that.
SHORT = b"""#!/bin/bash
#osgprod_block1=
#osgprod_block2=
$OSGPROD_RECON "slice+$osgprod_block1,$osgprod_block2.evio"
"""


@pytest.fixture
def three(world: World) -> World:
    """The file's 6 blocks are 3 slices."""
    world.set(maxblockspercore=2)
    return world


@pytest.fixture
def short(node: Node, shim: LiveShim, three: World) -> World:
    """The same with a work script that is short."""
    shim.add_template("p", SHORT)
    node.environment["OSGPROD_RECON"] = "echo"
    return three


def reports(world: World) -> list[tuple[int, int, str]]:
    rows = world.db.execute(
        "SELECT process, nstart, outcome FROM osgprod_data.reports WHERE by_worker ORDER BY reported_at"
    ).fetchall()
    return [(row["process"], row["nstart"], row["outcome"]) for row in rows]


def listed(world: World) -> list[str]:
    """The outputs that count."""
    rows = world.db.execute(
        "SELECT r.output_url FROM osgprod_data.slices s JOIN osgprod_data.reports r"
        " USING (project_id, cluster, process, nstart) WHERE s.state = 'done' AND r.by_worker"
    ).fetchall()
    return sorted(row["output_url"].rpartition("/")[2] for row in rows)


def delivered(site: Site) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in site.files if path.startswith("/out/"))


def tarballs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_job_processes_as_many_slices_as_it_may_and_each_has_its_own_tarball(
    node: Node, three: World, site: Site
) -> None:
    code, log = node.run(1, OSGPROD_SLICES="2", OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    assert reports(three) == [(1, 1, "done"), (1, 2, "done")]
    assert delivered(site) == listed(three) == ["job_7_1.2.tar.gz", "job_7_1.tar.gz"]
    assert tarballs(node.folder) == [], "delivered tarballs need no room on the node"
    assert site.files["/out/job_7_1.tar.gz"] != site.files["/out/job_7_1.2.tar.gz"]
    assert call(three.db, "verify", project="p", deep=True) == []


def test_each_slice_is_measured_and_logged_alone(node: Node, short: World) -> None:
    hungry = "[[ -e ../../first ]] || head -c 3000000 /dev/zero >big; touch ../../first; echo a line"
    # Not under HTCondor: the folder outlives the job, and no tarball can be lost.
    recon = node.program("recon", hungry)
    code, log = node.run(1, OSGPROD_SLICES="9", OSGPROD_RECON=recon, _CONDOR_SCRATCH_DIR=None)
    assert code == DONE, log
    assert log.count("a line") == 3
    rows = short.db.execute("SELECT disk_bytes FROM osgprod_data.reports ORDER BY reported_at").fetchall()
    assert rows[0]["disk_bytes"] > 3_000_000 > max(row["disk_bytes"] for row in rows[1:])


@pytest.mark.parametrize("how", ["no-work", "leased", "paused", *slow("wait", "no-time")])
def test_job_that_gets_no_other_slice_ends_well(node: Node, short: World, site: Site, how: str) -> None:
    first = node.folder.parent / "first"
    environment = {"OSGPROD_SLICES": "9", "OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_TRIES": "1"}
    if how == "no-work":
        code, log = node.run(1, cpus=6, **environment)
        assert "no-work: " in log
    elif how in ("wait", "leased"):
        short.set(wait_s=1)
        short.checkout(50, cpus=2)  # 4 of the 6 blocks
        code, log = node.run(1, OSGPROD_MAX_WAIT_S="0" if how == "wait" else "2", **environment)
        assert "wait: " in log if how == "wait" else "no work can be assigned yet" in log
    else:
        recon = node.program("recon", f"touch {first}; until [[ -e {first}.go ]]; do sleep 0.1; done")
        (node.folder.parent / "machine.ad").write_text(f"GLIDEIN_ToDie = {int(time.time()) + 10000}\n")
        job = node.start(
            1, OSGPROD_RECON=recon, _CONDOR_MACHINE_AD=str(node.folder.parent / "machine.ad"), **environment
        )
        wait_until(first.exists, "it is at work", job)
        if how == "no-time":  # a block takes longer than the job has left
            short.db.execute(
                "INSERT INTO osgprod_data.paces SELECT project_id, '', '{9e6}', '{1}', 1, 9e6, 9e6, 1"
                " FROM osgprod_data.projects"
            )
        else:
            short.set(state="paused")
        Path(f"{first}.go").touch()
        log, _ = job.communicate(timeout=PATIENCE_S)
        code = job.returncode
        assert ("no-time: " if how == "no-time" else "no other slice was assigned: this job ends") in log
    assert code == DONE, log
    assert reports(short) == [(1, 1, "done")]


@pytest.mark.parametrize(
    ("exit_code", "code", "outcome"), [(3, FAILED, "failed"), *slow((75, NODE_FAULT, "node-fault"))]
)
def test_second_slice_that_fails_decides_how_the_job_ends_and_the_restart_goes_on(
    node: Node, short: World, site: Site, exit_code: int, code: int, outcome: str
) -> None:
    short.set(backoff_s=1000)
    failed = node.folder.parent / "failed"
    recon = node.program(
        "recon", f"[[ $1 != *+3,5.* || -e {failed} ]] || {{ touch {failed}; exit {exit_code}; }}"
    )
    environment = {"OSGPROD_SLICES": "9", "OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_RECON": recon}
    found, log = node.run(1, **environment)
    assert found == code, log
    assert reports(short) == [(1, 1, "done"), (1, 2, outcome)]
    found, log = node.run(1, **environment)
    assert found == DONE, log
    assert reports(short)[2:] == [(1, 3, "done")], "the slice that failed is left to others for a while"
    assert [name for name in delivered(site) if name.startswith("failed_")] == ["failed_job_7_1.2.tar.gz"]
    assert listed(short) == [name for name in delivered(site) if name.startswith("job_")]


def test_job_that_is_evicted_from_its_second_slice_gets_that_one_again(
    node: Node, short: World, site: Site
) -> None:
    second = node.folder.parent / "second"
    recon = node.program("recon", f"[[ $1 != *+3,5.* || -e {second} ]] || {{ touch {second}; sleep 100; }}")
    environment = {"OSGPROD_SLICES": "9", "OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_RECON": recon}
    job = node.start(1, **environment)
    wait_until(second.exists, "it is at its second slice", job)
    job.terminate()
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 143, log
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert "start 3 on hd_rawdata_000001_001.evio+3,5" in log
    assert reports(short) == [(1, 1, "done"), (1, 3, "done"), (1, 4, "done")]
    assert delivered(site) == listed(short)


def test_kept_outputs_of_the_second_slice_are_delivered_by_the_next_start_which_goes_on(
    node: Node, short: World, site: Site
) -> None:
    down = node.folder.parent / "down"
    down.mkdir()
    # In the second slice a file takes the place of the destination's folder.
    recon = f"[[ $1 != *+3,5.* || -e {down}.away ]] || {{ mv {down} {down}.away; touch {down}; }}"
    environment = {
        "OSGPROD_SLICES": "3",
        "OSGPROD_OUTPUT_URL": f"file://{down}/out",
        "OSGPROD_CHECKPOINT_CODE": str(SAVED),
        "OSGPROD_RECON": node.program("recon", recon),
    }
    code, log = node.run(1, **environment)
    assert code == SAVED, log
    assert reports(short) == [(1, 1, "done")]
    down.unlink()
    Path(f"{down}.away").rename(down)
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert reports(short) == [(1, 1, "done"), (1, 2, "done"), (1, 3, "done")]
    assert tarballs(down / "out") == listed(short)
    assert len(listed(short)) == 3


# --- HTCondor brings the tarballs home -----------------------------------------------------------------------


def test_tarball_that_htcondor_brings_home_is_saved_before_its_success_is_reported(
    node: Node, short: World
) -> None:
    environment = {"OSGPROD_SLICES": "2", "OSGPROD_CHECKPOINT_CODE": str(SAVED)}
    code, log = node.run(1, **environment)
    assert code == SAVED, log
    assert reports(short) == []
    assert tarballs(node.folder) == ["unreported_job_7_1.p.report", "unreported_job_7_1.p.tar.gz"]
    saved = {path.name: path.read_bytes() for path in node.folder.iterdir()}
    code, log = node.run(1, **environment)
    assert code == SAVED, log
    assert reports(short) == [(1, 1, "done")], "the last one must be safe as well"
    saved = {path.name: path.read_bytes() for path in node.folder.iterdir()}
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert reports(short) == [(1, 1, "done"), (1, 2, "done")]
    assert tarballs(node.folder) == ["job_7_1.2.tar.gz", "job_7_1.tar.gz"]
    # The node is lost before these come home: HTCondor starts the job with what it has saved.
    for path in node.folder.iterdir():
        path.unlink()
    for name, content in saved.items():
        (node.folder / name).write_bytes(content)
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert tarballs(node.folder) == ["job_7_1.2.tar.gz", "job_7_1.tar.gz"]
    assert reports(short) == [(1, 1, "done"), (1, 2, "done")]


def test_only_slice_of_a_job_is_safe_before_its_success_is_reported_and_is_not_computed_again(
    node: Node, short: World
) -> None:
    environment = {"OSGPROD_CHECKPOINT_CODE": str(SAVED)}
    code, log = node.run(1, **environment)
    assert code == SAVED, log
    assert reports(short) == []
    saved = {path.name: path.read_bytes() for path in node.folder.iterdir()}
    for _ in range(2):  # the second time after the node was lost behind the report
        for path in node.folder.iterdir():
            path.unlink()
        for name, content in saved.items():
            (node.folder / name).write_bytes(content)
        code, log = node.run(1, **environment)
        assert code == DONE, log
        assert "start 1 on " not in log and "start 2 on " not in log
        assert tarballs(node.folder) == ["job_7_1.tar.gz"]
        assert reports(short) == [(1, 1, "done")]


def test_job_whose_tarball_is_nowhere_after_its_success_is_to_be_held(node: Node, short: World) -> None:
    assert node.run(1)[0] == DONE
    assert node.run(1)[0] == DONE, "its tarball is here"
    (node.folder / "job_7_1.tar.gz").unlink()  # the node was lost
    code, log = node.run(1)
    assert code == REFUSED, log
    assert (
        "`osgprod jobs p 7.1`" in log
        and "`osgprod slices recycle p --state done --cluster 7 --process 1`" in log
    )
    code, log = node.run(1, _CONDOR_SCRATCH_DIR=None)
    assert code == DONE, "HTCondor has nothing to do with it"


def test_job_that_is_evicted_keeps_the_saved_tarballs_and_goes_on(node: Node, short: World) -> None:
    environment = {"OSGPROD_SLICES": "3", "OSGPROD_CHECKPOINT_CODE": str(SAVED)}
    second = node.folder.parent / "second"
    recon = node.program("recon", f"[[ $1 != *+3,5.* || -e {second} ]] || {{ touch {second}; sleep 100; }}")
    assert node.run(1, OSGPROD_RECON=recon, **environment)[0] == SAVED
    saved = {path.name: path.read_bytes() for path in node.folder.iterdir()}
    job = node.start(1, OSGPROD_RECON=recon, **environment)
    wait_until(second.exists, "it is at its second slice", job)
    kill(job.pid)
    job.communicate()
    for path in node.folder.iterdir():
        if path.is_file():
            path.unlink()
    for name, content in saved.items():
        (node.folder / name).write_bytes(content)
    for expected in (SAVED, SAVED, DONE):
        code, log = node.run(1, OSGPROD_RECON=recon, **environment)
        assert code == expected, log
    found = [name for name in tarballs(node.folder) if name.endswith(".tar.gz")]
    assert found == ["job_7_1.3.tar.gz", "job_7_1.4.tar.gz", "job_7_1.tar.gz"]
    assert [row[1] for row in reports(short)] == [1, 3, 4]
    assert state(short) == {"done": 3}


def test_job_that_could_lose_tarballs_is_refused(node: Node, short: World) -> None:
    code, log = node.run(1, OSGPROD_SLICES="2")
    assert code == REFUSED
    assert "OSGPROD_SLICES is 2: an eviction would lose the tarballs" in log
    assert state(short) == {}


@pytest.mark.parametrize("slices", ["0", "-1", "many", "100001", "1.5"])
def test_number_of_slices_that_is_none_is_refused(node: Node, short: World, slices: str) -> None:
    code, log = node.run(1, OSGPROD_SLICES=slices)
    assert code == REFUSED
    assert f"OSGPROD_SLICES is '{slices}': it must be a whole number from 1 to 100000" in log


def test_success_of_an_earlier_start_that_does_not_count_does_not_end_the_job(
    node: Node, short: World, site: Site
) -> None:
    """HTCondor starts the job with the saved files again, after any exit code."""
    environment = {"OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_CHECKPOINT_CODE": str(SAVED)}
    site.faults = [503] * 3
    assert node.run(1, **environment)[0] == SAVED
    short.let_leases_run_out()
    call(short.db, "reclaim_lost")
    other = short.checkout(2)
    assert short.report(2, token=str(other["token"]))["status"] == "done"
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert reports(short) == [(2, 1, "done"), (1, 1, "superseded"), (1, 2, "done")]
    assert delivered(site) == ["job_7_1.2.tar.gz"]


# --- kills ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrow", "folder_survives", "when"),
    [
        ("workscript.bash 2", False, "after"),
        ("workscript.exit 2", False, "after"),
        ("-T 2", True, "after"),
        *slow(
            ("workscript.bash 2", False, "before"),
            ("workscript.exit 1", False, "before"),
            ("workscript.exit 1", False, "after"),
            ("workscript.exit 2", True, "before"),
            ("workscript.exit 2", True, "after"),
            ("workscript.exit 2", False, "before"),
            ("-T 2", True, "before"),
            ("-T 2", False, "before"),
            ("-T 2", False, "after"),
        ),
    ],
)
def test_job_may_be_killed_at_every_request_and_each_slice_counts_once(
    node: Node, short: World, site: Site, arrow: str, when: str, folder_survives: bool
) -> None:
    """The job is killed before its nth request of that kind, or before it knows the answer. -T is the upload."""
    word, nth = arrow.split()
    at = node.folder.parent / "at"
    (node.folder.parent / "bin").mkdir()
    hang = f'touch "{at}"; sleep 100'
    program = f"""config="$(cat)"
case " $* $config" in *" {word} "* | */{word}'"'*) echo >>{at}.count ;; *) exec /usr/bin/curl "$@" <<<"$config" ;; esac
n=$(wc -l <{at}.count)
[[ $n != {nth} || {when} != before || -e {at} ]] || {{ {hang}; }}
/usr/bin/curl "$@" <<<"$config"
code=$?
[[ $n != {nth} || {when} != after || -e {at} ]] || {{ {hang}; }}
exit $code"""
    node.program("bin/curl", program)
    environment = {
        "PATH": f"{node.folder.parent}/bin:/usr/bin:/bin",
        "OSGPROD_SLICES": "3",
        "OSGPROD_OUTPUT_URL": f"{site.url}/out",
        "OSGPROD_CHECKPOINT_CODE": str(SAVED),
    }
    job = node.start(1, **environment)
    wait_until(at.exists, f"request {nth} of {word}", job)
    kill(job.pid)
    job.communicate()
    if not folder_survives:
        for path in node.folder.iterdir():
            if path.is_file():
                path.unlink()
    code, log = node.run(1, **environment)
    assert code == DONE, log
    code, log = node.run(
        2, **environment
    )  # does the remaining slices, if the first got the answer that it is complete
    assert code == DONE, log
    assert state(short) == {"done": 3}
    assert call(short.db, "verify", project="p", deep=True) == []
    assert set(listed(short)) <= set(delivered(site))
    assert len(listed(short)) == 3
    rows: list[dict[str, Any]] = short.db.execute(
        "SELECT output_url, output_bytes FROM osgprod_data.reports WHERE by_worker AND outcome = 'done'"
    ).fetchall()
    assert len(rows) == 3, "no slice was computed twice for the record"
    for row in rows:
        path = re.sub("^http://[^/]*", "", row["output_url"])
        assert len(site.files[path]) == row["output_bytes"]
