"""The exec script: how a job asks, sends heartbeats, delivers, reports and ends, on hostile nodes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from shim.database import call
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World, wait_until
from tests.worker.conftest import (
    EXEC,
    SHIPPED,
    Node,
    is_root,
    kill,
    names,
    reachable_for_all,
    report_of,
    slow,
    state,
    wait_for_end,
)
from tests.worker.site import Site

DONE, FAILED, NODE_FAULT, LATER, REFUSED, TERM = 0, 10, 20, 30, 40, 143

LAST_WORDS = [
    (r"temperature 20\xb0 too high", "temperature 20 too high"),
    (r"\xc3\xa4" * 150, "\u00e4" * 150),
    (r"x" * 299 + r"\xc2\xb5s", "x" * 299 + "\u00b5s"),
    (r"x" * 3000 + ": cause", "x" * 400 + " ... " + "x" * 583 + ": cause"),
    (r"\xc3\xa4" * 1200 + ": cause", "\u00e4" * 200 + " ... " + "\u00e4" * 291 + ": cause"),
    (r"a\xe2\x82", "a"),
    (r"\x1b[31mred\x07", "[31mred"),
]
IDENTITIES = [
    ('globaljobid="ap#7.1#12"\nQDATE = time()\n', ("ap", 12)),
    ("QDate = 13\n", (None, 13)),
    ("GlobalJobId = undefined\nQDate = -1\n", (None, None)),
    ("", (None, None)),
]
TIMES = [
    ("GLIDEIN_ToDie = {7000}\n", "", "5000", 5000),
    ("GLIDEIN_ToDie = undefined\n", "AllowedJobDuration = 3600.5\n", None, None),
    ("GLIDEIN_ToRetire = {6000}\nGLIDEIN_ToDie = {7000}\n", "", None, 7000),
    ("glidein_toretire={6000}\n", "", None, 6000),
    (
        "GLIDEIN_ToDie = {9000}\n",
        "AllowedJobDuration = 8000\nJobCurrentStartDate = {-1000}\n",
        None,
        7000,
    ),
    ("", "AllowedJobDuration = 8000\n", None, 8000),
    (
        "",
        "AllowedExecuteDuration = 8000\nJobCurrentStartDate = {-1000}\nJobCurrentStartExecutingDate = {-500}\n",
        None,
        7500,
    ),
    (
        "",
        "AllowedExecuteDuration = 8000\nJobCurrentStartDate = {-500}\nJobCurrentStartExecutingDate = {-9000}\n",
        None,
        7500,
    ),
    ("GLIDEIN_ToDie = {7000}\n", "", "9000", 7000),
    # HTCondor has started the job again in its folder after a checkpoint: that gives it no new time.
    ("", "JobCurrentStartDate = {-1000}\n", "5000", 4000),
]


def one_and_slow(cases: list[Any], one: int = 0) -> list[Any]:
    """Cases that test_parts.py shows with functions: whole jobs show one of them in each run."""
    return [cases[one], *slow(*cases[:one], *cases[one + 1 :])]


@pytest.fixture
def node(node: Node, rawdata: Path) -> Node:
    return node


def run_at_report(node: Node, command: str) -> str:
    """A PATH with a curl that runs a command once, before it sends the report."""
    (node.folder.parent / "bin").mkdir()
    (node.folder.parent / "bin").chmod(0o777)
    once = node.folder.parent / "bin" / "once"
    node.program(
        "bin/curl",
        f"config=$(cat); [[ $config != */workscript.exit* || -e {once} ]] || {{ touch {once}; {command}; }}\n"
        'exec /usr/bin/curl "$@" <<<"$config"',
    )
    return f"{node.folder.parent}/bin:/usr/bin:/bin"


def wait_for(path: Path) -> None:
    wait_until(path.exists, f"{path} comes")


# --- how a job ends ------------------------------------------------------------------------------------------


def test_done_slice_leaves_its_tarball_for_htcondor_and_sends_no_log(node: Node, world: World) -> None:
    code, log = node.run(1)
    assert code == DONE, log
    tarball = node.folder / "job_7_1.tar.gz"
    assert names(tarball) == {"osgprod_work.log"}
    assert [path.name for path in node.folder.iterdir()] == [tarball.name], "nothing else stays"
    report = report_of(world)
    assert report["outcome"] == "done"
    assert report["output_bytes"] == tarball.stat().st_size
    assert report["output_adler32"] == f"{zlib.adler32(tarball.read_bytes()):08x}"
    assert report["output_url"] is None
    assert call(world.db, "log_tail", project="p", cluster=7, process=1) == []


def test_events_and_outputs_are_reported(node: Node, world: World) -> None:
    recon = node.program("recon", "echo 31 >events_read; mkdir d; echo a >d/a.root; echo b >b.root")
    assert node.run(1, OSGPROD_RECON=recon)[0] == DONE
    assert names(node.folder / "job_7_1.tar.gz") == {"d/a.root", "b.root", "events_read", "osgprod_work.log"}
    assert (report_of(world)["events"], report_of(world)["outputs"]) == (31, 3)


@pytest.mark.parametrize(
    "recon, code, exit_code, outcome, reason",
    [
        ("echo; echo no such bank; exit 3", FAILED, 3, "failed", "no such bank"),
        ("kill -KILL $$", NODE_FAULT, 137, "node-fault", None),
        *slow(
            ("exit 75", NODE_FAULT, 75, "node-fault", None),
            ("/cvmfs/that/is/not/there", NODE_FAULT, 127, "node-fault", None),
        ),
    ],
)
def test_failure_is_reported_with_its_last_line_and_what_it_has_used(
    node: Node, world: World, recon: str, code: int, exit_code: int, outcome: str, reason: str | None
) -> None:
    assert node.run(1, OSGPROD_RECON=node.program("recon", recon))[0] == code
    report = report_of(world)
    assert (report["exit_code"], report["outcome"]) == (exit_code, outcome)
    assert reason is None or report["reason"] == reason
    assert report["disk_bytes"] > 0 and report["fetched_bytes"] > 0
    assert report["wall_s"] >= 0 and report["cpu_s"] >= 0
    # What a failed job left is not to be taken for an output, nor is the slice taken along.
    assert [path.name for path in node.folder.iterdir()] == ["failed_job_7_1.tar.gz"]
    assert names(node.folder / "failed_job_7_1.tar.gz") == {"osgprod_work.log"}


def test_failure_sends_the_end_of_its_log_and_its_reason_without_secrets(
    node: Node, world: World, folder: Path
) -> None:
    (folder / "magic").write_text("top secret magic")
    call(world.db, "set_magic", project="p", magic="top secret magic")
    lines = (
        "seq 2000",
        r"""printf 'tab\there "quoted" back\\slash %% top secret magic %s\n' "$BEARER_TOKEN""" + '"',
        r"printf 'x\303\251\n'",
        f"echo {'x' * 60} top secret magic {'y' * 30} very.secret.token",
        "exit 9",
    )
    recon = node.program("recon", "\n".join(lines))
    node.run(1, OSGPROD_RECON=recon, OSGPROD_MAGIC_FILE=folder / "magic", BEARER_TOKEN="very.secret.token")
    assert report_of(world)["exit_code"] == 9
    (row,) = call(world.db, "log_tail", project="p", cluster=7, process=1)
    assert 'tab here "quoted" back\\slash % (secret) ' in row["tail"] and "x\u00e9" in row["tail"]
    assert "\n1999\n2000\n" in row["tail"] and len(row["tail"]) <= 4096
    assert "secret magic" not in row["tail"] and "very.secret" not in row["tail"]
    assert report_of(world)["reason"] == f"{'x' * 60} (secret) {'y' * 30} (secret)"


def test_end_of_a_secret_at_the_beginning_of_the_sent_log_is_not_sent(node: Node, world: World) -> None:
    call(world.db, "set_magic", project="p", magic="top secret magic")
    recon = node.program("recon", "echo top secret magic; head -c 3991 /dev/zero | tr '\\0' z; exit 3")
    node.run(1, OSGPROD_RECON=recon, OSGPROD_MAGIC="top secret magic")
    (row,) = call(world.db, "log_tail", project="p", cluster=7, process=1)
    assert "magic" not in row["tail"] and row["tail"].endswith("zzz")


def test_slice_that_was_not_fetched_is_reported_with_its_reason(node: Node, world: World, site: Site) -> None:
    world.set(xrootd_prefix=f"{site.url}/there")
    code, log = node.run(1)
    assert code == NODE_FAULT, log
    report = report_of(world)
    assert (report["exit_code"], report["outcome"]) == (75, "node-fault")
    assert re.fullmatch(
        r"not fetched: status 404 \(3 attempts, 0 of \d+ bytes at \d+ came\): http://.*", report["reason"]
    )


def test_success_without_the_evidence_that_the_project_demands_takes_its_output_away(
    node: Node, world: World, site: Site
) -> None:
    world.set(demand_events=True)
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == FAILED, log
    assert "events read" in report_of(world)["reason"]
    assert [path for path in site.files if path.startswith("/out")] == ["/out/failed_job_7_1.tar.gz"]
    assert [path.name for path in node.folder.iterdir()] == ["failed_job_7_1.tar.gz"]
    assert names(node.folder / "failed_job_7_1.tar.gz") == {"osgprod_work.log"}, "the log of a failure stays"


@pytest.mark.parametrize(
    "environment, word", [({"OSGPROD_MAGIC": "wrong"}, "403"), ({"OSGPROD_PROJECT": "other"}, "404")]
)
def test_job_that_the_server_refuses_is_to_be_held(
    node: Node, world: World, environment: dict[str, str], word: str
) -> None:
    code, log = node.run(1, **environment)
    assert code == REFUSED
    assert word in log
    assert re.search(r"osgprod error OG\d{3}: .+; hint: .+", log), log
    assert state(world) == {}, "no slice is taken"


def test_job_without_work_sends_nothing(node: Node, world: World, site: Site) -> None:
    site.files["/out/job_7_2.tar.gz"] = b"of a former success"
    (node.folder / "job_7_2.tar.gz").write_bytes(b"of a former success")
    assert node.run(1, cpus=6, OSGPROD_OUTPUT_URL=f"{site.url}/out")[0] == DONE
    requests = len(site.seen)
    code, log = node.run(2, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    assert "no work" in log
    assert len(site.seen) == requests
    assert (node.folder / "job_7_2.tar.gz").read_bytes() == b"of a former success"


def test_completed_job_that_runs_again_keeps_its_good_output(node: Node, site: Site) -> None:
    environment = {"OSGPROD_OUTPUT_URL": f"{site.url}/out"}
    assert node.run(1, **environment)[0] == DONE
    good, requests = site.files["/out/job_7_1.tar.gz"], len(site.seen)
    code, log = node.run(1, **environment)
    assert code == DONE
    assert "already completed" in log
    assert site.files["/out/job_7_1.tar.gz"] == good == (node.folder / "job_7_1.tar.gz").read_bytes()
    assert len(site.seen) == requests


def test_job_waits_for_work_that_is_out_and_then_says_later(node: Node, world: World, shim: LiveShim) -> None:
    shim.checkout(50, cpus=6)
    assert node.run(1, OSGPROD_MAX_WAIT_S="0")[0] == DONE
    world.set(wait_s=1)
    assert node.run(1, OSGPROD_MAX_WAIT_S="2")[0] == LATER

    def waits() -> list[str]:
        return re.findall(r'answer="wait".* (\S+)\n', shim.raw("metrics").text)

    before = waits()
    job = node.start(1, OSGPROD_MAX_WAIT_S="120")
    wait_until(lambda: waits() != before, "it asks")
    world.let_leases_run_out()
    world.tick()
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == DONE, output
    assert state(world) == {"done": 1, "ready": 1}


# --- outputs -------------------------------------------------------------------------------------------------


def test_slice_whose_output_can_not_be_sent_goes_to_another_job(node: Node, world: World, site: Site) -> None:
    world.set(node_fault_codes=[74, 75])
    site.faults = ["truncate"] * 3
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == LATER, log
    assert report_of(world)["outcome"] == "node-fault"
    assert report_of(world)["exit_code"] == 74, "could not deliver"
    assert report_of(world)["reason"].startswith("outputs not delivered")
    assert state(world) == {"ready": 1}


def test_restart_never_overwrites_what_another_start_sent(node: Node, shim: LiveShim, site: Site) -> None:
    shim.checkout(1, cluster=7, host=socket.gethostname())
    site.files["/out/job_7_1.tar.gz"] = b"sent by the first start, which was killed before its report"
    assert node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")[0] == DONE
    assert site.files["/out/job_7_1.tar.gz"].startswith(b"sent by")
    assert site.files["/out/job_7_1.2.tar.gz"] == (node.folder / "job_7_1.2.tar.gz").read_bytes()


@is_root
def test_only_tarball_of_a_done_slice_stays_when_it_can_not_be_renamed(node: Node, world: World) -> None:
    reachable_for_all(node.folder.parent)
    os.chown(node.folder, 65534, 65534)
    path = run_at_report(node, f"chmod 500 {node.folder}")
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    code, log = node.run(1, *as_nobody, PATH=path, TMPDIR="/tmp", _CONDOR_SCRATCH_DIR=None)
    assert code == DONE, log
    assert report_of(world)["outcome"] == "done"
    kept = node.folder / "unreported_job_7_1.p.tar.gz"
    assert f"stays here: {kept}" in log
    assert names(kept) == {"osgprod_work.log"}


def test_success_whose_only_tarball_was_removed_during_its_report_is_an_error(
    node: Node, world: World
) -> None:
    path = run_at_report(node, f"rm {node.folder}/unreported_job_7_1.p.tar.gz")
    code, log = node.run(1, PATH=path)
    assert code == NODE_FAULT, log
    assert "somebody has removed its only tarball" in log
    code, log = node.run(1)
    assert code == REFUSED, "HTCondor starts the job again, and holds it then"


@pytest.mark.parametrize("outcome", [0, 3])
def test_tarball_of_another_job_with_the_same_numbers_in_this_folder_stays(
    node: Node, world: World, outcome: int
) -> None:
    name = "job_7_1" if outcome == 0 else "failed_job_7_1"
    theirs = node.folder / f"{name}.tar.gz"
    theirs.write_bytes(b"of another project")
    code, log = node.run(1, OSGPROD_RECON=node.program("recon", f"exit {outcome}"))
    assert code == (DONE if outcome == 0 else FAILED), log
    assert theirs.read_bytes() == b"of another project"
    (ours,) = node.folder.glob(f"{name}.?*.tar.gz")
    assert names(ours) == {"osgprod_work.log"}


@pytest.mark.parametrize(
    ("outputs_list", "outputs"),
    [('[{"kind": "a", "url" : "file:///a"}]', 2), ("no list", 1), *slow(("[]", 1))],
)
def test_any_list_of_outputs_is_reported_and_a_number_of_events_that_is_none_is_not(
    node: Node, world: World, outputs_list: str, outputs: int
) -> None:
    recon = node.program(
        "recon",
        "echo a >a.root; echo 12345678901234567890 >events_read;"
        f""" echo 'outputs_list={outputs_list}' >>"$OSGPROD_REPORT\"""",
    )
    code, log = node.run(1, OSGPROD_RECON=recon)
    assert code == DONE, log
    report = report_of(world)
    # The file with the number is an output, too.
    assert (report["outcome"], report["outputs"], report["events"]) == ("done", outputs + 1, None)


@is_root
def test_folders_that_can_not_be_written_stop_no_slice(node: Node, world: World, folder: Path) -> None:
    """As copies from CVMFS are. The job does not run as root, which may write them."""
    world.set(maxblockspercore=3)
    recon = node.program("recon", "mkdir -p copy/of; echo a >copy/of/it; chmod 0555 copy/of copy")
    reachable_for_all(folder)
    code, log = node.run(
        1, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", OSGPROD_RECON=recon,
        OSGPROD_SLICES="2", OSGPROD_CHECKPOINT_CODE="0", _CONDOR_SCRATCH_DIR=None, TMPDIR=str(node.folder),
    )  # fmt: skip
    assert code == DONE, log
    assert state(world) == {"done": 2}, log
    assert sorted(path.name for path in node.folder.iterdir()) == ["job_7_1.2.tar.gz", "job_7_1.tar.gz"]
    assert names(node.folder / "job_7_1.2.tar.gz") == {"copy/of/it", "osgprod_work.log"}


def test_output_of_a_superseded_attempt_is_taken_away(
    node: Node, world: World, shim: LiveShim, site: Site
) -> None:
    go = node.folder.parent / "go"
    recon = node.program("recon", f"touch {go}.at; until [[ -e {go} ]]; do sleep 0.02; done")
    job = node.start(1, OSGPROD_OUTPUT_URL=f"{site.url}/out", OSGPROD_RECON=recon)
    wait_for(Path(f"{go}.at"))
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    assert shim.checkout(2).headers["Osgprod-Status"] == "assigned"
    assert shim.report(2).status_code == 200
    go.touch()
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == FAILED, output
    assert report_of(world)["outcome"] == "superseded"
    assert not any(path.startswith("/out") for path in site.files)
    assert list(node.folder.iterdir()) == []


# --- a success that has not been reported --------------------------------------------------------------------


def test_output_whose_destination_is_down_is_kept_and_delivered_by_the_next_start(
    node: Node, world: World, site: Site
) -> None:
    ran = node.folder.parent / "ran"
    environment = {
        "OSGPROD_RECON": node.program("recon", f"echo >>{ran}; echo 31 >events_read; echo precious >out"),
        "OSGPROD_OUTPUT_URL": f"{site.url}/out",
        "OSGPROD_CHECKPOINT_CODE": "85",
    }
    site.faults = [503] * 6
    assert node.run(1, **environment)[0] == 85, "HTCondor saves the folder, and starts the job again in it"
    kept = {path.name: path.stat().st_mode & 0o777 for path in node.folder.iterdir()}
    assert set(kept) == {"unreported_job_7_1.p.tar.gz", "unreported_job_7_1.p.report"}
    assert kept["unreported_job_7_1.p.report"] == 0o600, "it holds the token of the attempt"
    assert node.run(1, **environment)[0] == LATER
    assert state(world) == {"leased": 1}
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    assert state(world) == {"ready": 1}, "the lease has expired while the job was held"
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert ran.read_text() == "\n", "it was computed once"
    assert report_of(world)["nstart"] == 1, "the attempt that computed it reports it"
    assert (report_of(world)["outcome"], report_of(world)["events"]) == ("done", 31)
    assert [path.name for path in node.folder.iterdir()] == ["job_7_1.tar.gz"]
    assert site.files["/out/job_7_1.tar.gz"] == (node.folder / "job_7_1.tar.gz").read_bytes()


def test_job_that_is_killed_between_delivery_and_report_reports_when_it_starts_again(
    node: Node, world: World, site: Site, shim: LiveShim
) -> None:
    environment = {"OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_CHECKPOINT_CODE": "85"}
    cut = node.folder.parent / "cut"
    # A curl that hangs in the report: as long as the file is there, the job is stuck at that point.
    program = f"""config="$(cat)"; [[ $config != */workscript.exit* || ! -e {cut} ]] || {{ touch {cut}.at; sleep 100; }}
exec /usr/bin/curl "$@" <<<"$config\""""
    (node.folder.parent / "bin").mkdir()
    node.program("bin/curl", program)
    cut.touch()
    job = node.start(1, PATH=f"{node.folder.parent}/bin:/usr/bin:/bin", **environment)
    wait_for(Path(f"{cut}.at"))
    kill(job.pid)
    job.communicate()
    cut.unlink()
    assert list(path for path in site.files if path.startswith("/out")) == ["/out/job_7_1.tar.gz"]
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert list(path for path in site.files if path.startswith("/out")) == ["/out/job_7_1.tar.gz"], (
        "sent once"
    )
    assert (report_of(world)["outcome"], report_of(world)["nstart"]) == ("done", 1)


def test_job_that_is_stopped_for_its_run_time_gets_another_slice_in_the_end(node: Node, world: World) -> None:
    """HTCondor holds it, kills it, and releases it: the same job starts again, and would take as long again."""
    world.set(max_starts=3, maxblockspercore=3, wait_s=3600)
    ran = node.folder.parent / "ran"
    recon = node.program("recon", f'[[ "$*" != *+1,4.* ]] || {{ touch {ran}; sleep 600; }}')
    for _ in range(3):
        job = node.start(1, OSGPROD_RECON=recon)
        wait_for(ran)
        kill(job.pid)
        job.communicate()
        ran.unlink()
    _, log = node.run(1, OSGPROD_RECON=recon)
    assert "has started too often on its work without a report" in log
    world.tick()
    code, log = node.run(1, OSGPROD_RECON=recon)
    assert code == DONE, log
    assert state(world) == {"ready": 1, "done": 1}, f"the first one is for another node: {log}"


@pytest.mark.parametrize("damage", ["tarball", *slow("report")])
def test_what_is_left_of_another_start_is_used_only_when_it_is_whole(
    node: Node, world: World, site: Site, damage: str
) -> None:
    environment = {"OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_CHECKPOINT_CODE": "85"}
    site.faults = [503] * 3
    assert node.run(1, **environment)[0] == 85
    tarball, report = (node.folder / f"unreported_job_7_1.p.{ending}" for ending in ("tar.gz", "report"))
    if damage == "tarball":
        tarball.write_bytes(tarball.read_bytes()[:-1])
    else:
        report.write_text(report.read_text()[:30])
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert "can't be used" in log
    assert report_of(world)["nstart"] == 2, "it was computed again"
    assert [path.name for path in node.folder.iterdir()] == ["job_7_1.2.tar.gz"]


def test_kept_success_of_one_project_survives_a_job_of_another_with_the_same_numbers(
    node: Node, world: World, site: Site, rawdata: Path, shim: LiveShim
) -> None:
    """By hand, in one folder."""
    world.with_project("q", maxblockspercore=6)
    call(world.db, "load_slices", project="q")
    shim.add_template("q")
    ran = node.folder.parent / "ran"
    environment = {
        "OSGPROD_RECON": node.program("recon", f"echo >>{ran}"),
        "OSGPROD_OUTPUT_URL": f"{site.url}/out",
        "_CONDOR_SCRATCH_DIR": None,
        "TMPDIR": "/tmp",
    }
    site.faults = [503] * 3
    assert node.run(1, **environment)[0] == LATER
    kept = {path.name: path.read_bytes() for path in node.folder.iterdir()}
    assert set(kept) == {"unreported_job_7_1.p.tar.gz", "unreported_job_7_1.p.report"}
    code, log = node.run(1, **{**environment, "OSGPROD_PROJECT": "q", "OSGPROD_OUTPUT_URL": None})
    assert code == DONE, log
    assert {name: (node.folder / name).read_bytes() for name in kept} == kept
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert ran.read_text() == "\n\n", "each was computed once"
    assert len(list(node.folder.glob("job_7_1*.tar.gz"))) == 2


@pytest.mark.parametrize("project", ["p", *slow("q")])
def test_success_that_release_0_11_has_kept_is_delivered_if_it_is_of_this_project(
    node: Node, world: World, site: Site, project: str
) -> None:
    environment = {"OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_CHECKPOINT_CODE": "85"}
    site.faults = [503] * 3
    assert node.run(1, **environment)[0] == 85
    for ending in ("tar.gz", "report"):
        new, old = (node.folder / f"unreported_job_7_1{word}.{ending}" for word in (".p", ""))
        content = new.read_bytes().replace(b"project=p", f"project={project}".encode())
        old.write_bytes(content)
        new.unlink()
    code, log = node.run(1, **environment)
    assert code == DONE, log
    assert report_of(world)["nstart"] == (1 if project == "p" else 2)
    assert (node.folder / "unreported_job_7_1.report").exists() == (project == "q")


@pytest.mark.parametrize("status", [507, *slow(403)])
def test_storage_that_refuses_is_asked_twice_and_the_server_is_told(
    node: Node, world: World, site: Site, status: int
) -> None:
    site.faults = [status] * 9
    environment = {
        "OSGPROD_OUTPUT_URL": f"{site.url}/out",
        "OSGPROD_CHECKPOINT_CODE": "85",
        "OSGPROD_TRIES": "9",
    }
    code, log = node.run(1, **environment)
    assert code == LATER
    assert sum(seen.method == "PUT" for seen in site.seen) == 2, log
    report = report_of(world)
    assert (report["exit_code"], report["outcome"]) == (74, "node-fault")
    assert report["reason"].startswith(f"outputs not delivered: status {status}")
    assert list(node.folder.iterdir()) == []


# --- what the work leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, reason", one_and_slow(LAST_WORDS, 4))
def test_last_words_are_text_and_keep_both_ends(node: Node, world: World, line: str, reason: str) -> None:
    code, log = node.run(1, OSGPROD_RECON=node.program("recon", f"printf '{line}\\n'; exit 3"))
    assert code == FAILED, log
    kept = f"{reason[:120]} ... {reason[-175:]}" if len(reason) > 300 else reason
    assert (report_of(world)["exit_code"], report_of(world)["reason"]) == (3, kept)


def test_work_script_that_the_server_can_not_fill_in_holds_the_job_and_blames_no_slice(
    node: Node, world: World, shim: LiveShim
) -> None:
    script = (CHECKOUT / "worker" / "osgprod_work.bash").read_text()
    for name in ("input_eviofile_list", "osgprod_source_url", "osgprod_source_urls"):
        script = script.replace(f"\n#{name}=", f"\n# {name}: ")
    shim.add_template("p", script.encode())
    code, log = node.run(1)
    assert code == REFUSED, log
    assert "configuration: no slice is filled in" in log
    assert report_of(world)["outcome"] == "node-fault"


def test_site_that_is_not_utf_8_stops_no_report(node: Node, world: World) -> None:
    assert node.run(1, OSGPROD_SITE="Z\udcfcrich")[0] == DONE
    assert report_of(world)["site"] == "Zrich"


def test_source_with_a_scheme_that_nobody_knows_holds_the_job_and_blames_neither_data_nor_node(
    node: Node, world: World
) -> None:
    # As an older release took it.
    world.db.execute("UPDATE osgprod_data.projects SET xrootd_prefix = 'gsiftp://host'")
    code, log = node.run(1)
    assert code == REFUSED, log
    report = report_of(world)
    assert (report["exit_code"], report["outcome"]) == (40, "node-fault")
    assert report["reason"].startswith("configuration: ")


# --- containers ----------------------------------------------------------------------------------------------

# A container that shows the system and the folder that it is given, and nothing else: no /tmp, no home.
BOX = """\
folder="$1"; shift
exec unshare -m /bin/bash -c '
  mkdir -p /mnt/box.$$ && mount --make-rprivate / && mount -t tmpfs none /mnt && mkdir /mnt/box &&
  mount --bind "$0" /mnt/box &&
  for d in /tmp /root /home /var/tmp; do [[ ! -d $d ]] || mount -t tmpfs none $d; done &&
  mkdir -p "$0" && mount --bind /mnt/box "$0" && umount /mnt/box && cd "$0" && exec "$@"' "$folder" "$@"
"""


BUBBLEWRAP = (
    "bwrap --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64"
    " --ro-bind /etc /etc --dev /dev --proc /proc --tmpfs /tmp --bind {} {} --chdir {}"
)


@is_root
@pytest.mark.parametrize("kind", ["namespace", "bubblewrap"])
def test_container_sees_its_folder_with_all_that_the_work_needs(
    node: Node, world: World, site: Site, folder: Path, kind: str
) -> None:
    """Script, report, token and proxy are in the folder that a container shows."""
    if kind == "bubblewrap" and not shutil.which("bwrap"):
        pytest.skip("bwrap is not installed (package bubblewrap)")
    world.set(xrootd_prefix=site.url, heartbeat_s=1)
    (folder / "proxy").write_text("proxy")
    (folder / "token").write_text("token")
    program = Path("/usr/local/bin") / f"osgprod-test-box-{os.getpid()}"
    recon = (
        "bash -c 'cat $X509_USER_PROXY $BEARER_TOKEN_FILE >seen; ls -A /tmp >tmp; stat -c %a $BEARER_TOKEN_FILE >mode;"
        " echo 31 >events_read' work"
    )
    script = Path("/usr/local/bin") / f"osgprod-test-recon-{os.getpid()}"
    try:
        program.write_text(f"#!/bin/bash\n{BOX}")
        script.write_text(f"#!/bin/bash\n{recon}\n")
        program.chmod(0o755)
        script.chmod(0o755)
        code, log = node.run(
            1,
            OSGPROD_CONTAINER=BUBBLEWRAP if kind == "bubblewrap" else f"{program} {{}}",
            OSGPROD_RECON=str(script),
            X509_USER_PROXY=str(folder / "proxy"),
            BEARER_TOKEN_FILE=str(folder / "token"),
        )
    finally:
        program.unlink()
        script.unlink()
    assert code == DONE, log
    with tarfile.open(node.folder / "job_7_1.tar.gz") as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    assert content["./seen"] == b"proxytoken"
    assert content["./mode"] == b"600\n"
    assert folder.name.encode() not in content["./tmp"] or b"proxy" not in content["./tmp"]
    assert not [name for name in content if ".osgprod" in name], "the credentials are not packed"
    assert report_of(world)["events"] == 31, "the report is read from the container's folder"


# --- heartbeats and ends before the end ----------------------------------------------------------------------


HUNGRY = """head -c 3000000 /dev/zero >out
printf -v memory '%60000000s'  # kept by this process
end=$((SECONDS + 3)) confirm="${OSGPROD_REPORT%/*}/confirm-lease" fields=([13]=0 [14]=0)
# Ticks, since another job may have the processor.
while ((fields[13] + fields[14] < 110)); do read -r -a fields </proc/$$/stat; done
for n in 1 2; do  # whole heartbeats, each with a look at the memory
  touch "$confirm"
  while [[ -e "$confirm" ]]; do sleep 0.1; done
done
while ((SECONDS < end)); do sleep 0.2; done
[[ ${#memory} == 60000000 ]] || exit 9"""


def used(report: dict[str, Any]) -> dict[str, int]:
    return {name: report[name] for name in ("memory_bytes", "disk_bytes", "fetched_bytes", "wall_s", "cpu_s")}


def test_heartbeats_and_reports_tell_what_the_work_has_used_even_those_of_a_start_that_resumes(
    node: Node, world: World, site: Site
) -> None:
    world.set(heartbeat_s=1)
    environment = {"OSGPROD_OUTPUT_URL": f"{site.url}/out", "OSGPROD_CHECKPOINT_CODE": "85"}
    site.faults = [503] * 3
    began = time.monotonic()
    assert node.run(1, OSGPROD_RECON=node.program("recon", HUNGRY), **environment)[0] == 85
    took_s = time.monotonic() - began
    (row,) = world.db.execute("SELECT bytes_fetched, cpu_s FROM osgprod_data.slices").fetchall()
    assert row["bytes_fetched"] > 2_900_000 and row["cpu_s"] >= 1, "as the last heartbeat has told"
    text = (node.folder / "unreported_job_7_1.p.report").read_text()
    code, log = node.run(1, OSGPROD_RECON="false", **environment)
    assert code == DONE, log
    report = used(report_of(world))
    assert all(f"\n{name}={value}\n" in text for name, value in report.items())
    (row,) = world.db.execute("SELECT size_bytes FROM osgprod_data.rawdata").fetchall()
    assert 60_000_000 < report["memory_bytes"] < 2_000_000_000
    assert 3_000_000 < report["disk_bytes"] < 10_000_000
    assert 0 < report["fetched_bytes"] <= row["size_bytes"]
    assert 2 <= report["wall_s"] <= took_s + 1
    assert 1 <= report["cpu_s"] <= report["wall_s"] * 4


def pings(shim: LiveShim) -> int:
    found = re.findall(r'route="heartbeat".*status="200".* ([0-9.]+)\n', shim.raw("metrics").text)
    return int(sum(map(float, found)))


@pytest.mark.parametrize("exit_code", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_heartbeats_go_on_while_the_outputs_are_delivered(
    node: Node, world: World, site: Site, shim: LiveShim, exit_code: int
) -> None:
    """Those of a failure, too: when its lease expires before that, it does not count."""
    world.set(heartbeat_s=1)
    site.faults = ["held"]
    recon = node.program("recon", f"head -c 60000 /dev/urandom >big; exit {exit_code}")
    job = node.start(1, OSGPROD_RECON=recon, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    wait_until(lambda: any(seen.method == "PUT" for seen in site.seen), "it delivers", job)
    before = pings(shim)
    wait_until(lambda: pings(shim) > before, "a heartbeat comes", job, pause_s=0.1)
    site.lets_go.set()
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == (FAILED if exit_code else DONE), log


def test_attempt_that_lost_its_slice_stops_its_work(node: Node, world: World, shim: LiveShim) -> None:
    world.set(heartbeat_s=1)
    started = node.folder.parent / "started"
    job = node.start(1, OSGPROD_RECON=node.program("recon", f"touch {started}; sleep 1000 & wait"))
    wait_for(started)
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    assert shim.checkout(2).headers["Osgprod-Status"] == "assigned"
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == FAILED, f"its node is not to blame: {output}"
    assert "stopping the work: osgprod error: stop: this attempt no longer has the slice" in output
    wait_for_end(job.pid)
    assert list(node.folder.iterdir()) == []


def test_attempt_without_progress_stops_its_work_and_leaves_the_node(node: Node, world: World) -> None:
    world.set(heartbeat_s=1, wedged_s=1)
    code, log = node.run(1, OSGPROD_RECON=node.program("recon", "sleep 1000 & wait"))
    assert code == NODE_FAULT, log
    assert "stopping the work: osgprod error: stop: " in log


def test_sigterm_ends_work_that_is_deaf_to_it_and_the_restart_gets_the_slice_back(
    node: Node, world: World
) -> None:
    assert "readonly KILL_AFTER_S=3 " in EXEC.read_text()
    started = node.folder.parent / "started"
    deaf = node.program("recon", f"trap '' TERM; touch {started}; while :; do sleep 1; done")
    job = node.start(1, OSGPROD_RECON=deaf)
    wait_for(started)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == TERM, output
    wait_for_end(job.pid)
    assert list(node.folder.iterdir()) == []
    assert state(world) == {"leased": 1}
    code, log = node.run(1)
    assert code == DONE
    assert "start 2 on" in log
    assert state(world) == {"done": 1}


@pytest.mark.parametrize("where", ["upload", "waiting"])
def test_sigterm_is_heard_at_once_elsewhere_too(node: Node, site: Site, where: str) -> None:
    if where == "upload":
        site.faults = ["slow"]
        recon = node.program("recon", "head -c 9000000 /dev/urandom >big")  # 450 s
        job = node.start(1, OSGPROD_OUTPUT_URL=f"{site.url}/out", OSGPROD_RECON=recon)
    else:
        site.faults = [503] * 9
        site.headers = {"Retry-After": "1000"}
        job = node.start(1, OSGPROD_URL=f"{site.url}/osgprod")
    method = "PUT" if where == "upload" else "POST"
    wait_until(lambda: any(seen.method == method for seen in site.seen), "it asks the site")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=PATIENCE_S)  # without it, many minutes
    assert job.returncode == TERM, output
    wait_for_end(job.pid)


def test_work_does_not_outlive_a_killed_job(node: Node, world: World) -> None:
    world.set(heartbeat_s=1)
    started = node.folder.parent / "started"
    job = node.start(1, OSGPROD_RECON=node.program("recon", f"touch {started}; sleep 1000"))
    wait_for(started)
    job.kill()
    job.wait()
    wait_for_end(job.pid)
    job.communicate()
    assert list(node.folder.iterdir()) == []


@pytest.mark.parametrize("where", ["request", "tar"])
def test_sigterm_is_heard_in_every_wait_and_nothing_is_left(
    node: Node, world: World, folder: Path, where: str
) -> None:
    at = folder / "at"
    (folder / "bin").mkdir()
    # Programs that take for ever, at the place in question.
    if where == "tar":
        node.program("bin/tar", f'echo begun >"$2"; touch {at}; sleep 1000')
    else:
        node.program("bin/curl", f"touch {at}; sleep 1000")
    job = node.start(1, PATH=f"{folder}/bin:/usr/bin:/bin")
    wait_for(at)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == TERM, output
    assert list(node.folder.iterdir()) == []
    wait_for_end(job.pid)


# --- hostile nodes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nonexistent", None, *slow("")])
def test_empty_path_and_no_home(node: Node, path: str | None) -> None:
    assert "HOME" not in node.environment
    code, log = node.run(1, PATH=path)
    assert code == DONE, log


def test_clock_plays_no_part(node: Node, folder: Path) -> None:
    """The scripts ask the clock for the log and the end of the job alone; one that fails fails nothing."""
    for script in SHIPPED:
        text = (CHECKOUT / script).read_text()
        assert text.count("TZ=UTC0 printf '%(") == 1 and not re.search(r"\bdate -", text)
        assert not any(
            word in text for word in ("EPOCHSECONDS", "EPOCHREALTIME", "date +", "-newer", "mtime")
        )
    (folder / "bin").mkdir()
    (folder / "bin" / "date").write_text("#!/bin/bash\nexit 1\n")
    (folder / "bin" / "date").chmod(0o755)
    code, log = node.run(1, PATH=f"{folder}/bin:/usr/bin:/bin")
    assert code == DONE, log


READ_ONLY = """mount --bind / / && mount -o remount,bind,ro / &&
    for d in /dev/shm /var/tmp; do mount -t tmpfs -o ro none $d; done && exec "$@\""""


@is_root
def test_node_where_only_the_jobs_own_folder_can_be_written(node: Node) -> None:
    mounts = f"mount --bind {node.folder} {node.folder} && cd {node.folder} && {READ_ONLY}"
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", mounts, "-")
    assert code == DONE, log
    assert "Read-only" not in log
    assert (node.folder / "job_7_1.tar.gz").exists()


@is_root
@pytest.mark.parametrize("how", ["success", "failure", "judged", "over", "killed"])
def test_files_in_storage_that_the_work_has_mounted_stay_there_and_are_no_outputs(
    node: Node, world: World, folder: Path, how: str
) -> None:
    store, pid, seen, started = (folder / name for name in ("store", "pid", "seen", "started"))
    store.mkdir()
    ending = {"failure": "exit 3", "killed": f"touch {started}; sleep 100"}.get(how, "true")
    where = "." if how == "over" else "storage"
    recon = node.program("recon", f"mkdir storage; mount --bind {store} {where}; echo a >out; {ending}")
    if how == "judged":
        world.set(demand_events=True)
    script = f"""mount -t tmpfs -o size=1m none {store}; head -c 300000 /dev/zero >{store}/precious; chmod 500 {store}
"$@" & echo $! >{pid}; wait $!; code=$?; ls -l {store} >{seen}; exit $code"""
    job = node.start(1, "unshare", "-m", "/bin/bash", "-c", script, "-", OSGPROD_RECON=recon)
    if how == "killed":
        wait_for(started)
        os.kill(int(pid.read_text()), signal.SIGTERM)
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == {"success": DONE, "over": DONE, "killed": TERM}.get(how, FAILED), log
    assert " 300000 " in seen.read_text()
    assert " stays: something is mounted there" in log
    if how in ("success", "failure", "judged"):
        (tarball,) = node.folder.glob("*job_7_1.tar.gz")
        assert names(tarball) == {"osgprod_work.log", *({"out"} if how != "judged" else ())}
        assert report_of(world)["disk_bytes"] < 300_000


@is_root
def test_node_where_nothing_can_be_written_is_at_fault(node: Node, world: World) -> None:
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", READ_ONLY, "-")
    assert code == NODE_FAULT, log
    assert "this folder can't be written: " in log
    assert state(world) == {}


@is_root
def test_disk_that_is_full_at_the_start_is_the_nodes_fault_and_no_slice_is_leased(
    node: Node, world: World
) -> None:
    hide = f'mount -t tmpfs -o size=48k none {node.folder} && cd {node.folder} && exec "$@"'
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", hide, "-", cpus=6)
    assert code == NODE_FAULT, log
    assert log.splitlines()[-1].endswith("the disk of this node is full")
    assert state(world) == {}


def pad_script(shim: LiveShim, kilobytes: int) -> None:
    """The work script of project "p", made as long as this by a comment."""
    script = (CHECKOUT / "worker" / "osgprod_work.bash").read_bytes()
    shim.add_template("p", script.ljust(1024 * kilobytes - 1, b"#") + b"\n")


@is_root
def test_disk_that_can_not_take_the_work_script_is_the_nodes_fault_at_once(
    node: Node, world: World, shim: LiveShim
) -> None:
    pad_script(shim, 400)
    hide = f'mount -t tmpfs -o size=200k none {node.folder} && cd {node.folder} && exec "$@"'
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", hide, "-", cpus=6)
    assert code == NODE_FAULT, log
    assert "the disk of this node is full: the work script can't be written" in log
    report = report_of(world)
    assert (report["nstart"], report["exit_code"], report["outcome"]) == (1, 75, "node-fault")


@is_root
def test_disk_full_in_mid_fetch_is_reported_as_the_nodes_fault(
    node: Node, world: World, shim: LiveShim
) -> None:
    pad_script(shim, 62)
    hide = f'mount -t tmpfs -o size=72k none {node.folder} && cd {node.folder} && exec "$@"'
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", hide, "-", cpus=6)
    assert code == NODE_FAULT, log
    assert "is the disk full?" in log
    assert (report_of(world)["exit_code"], report_of(world)["outcome"]) == (75, "node-fault")


@is_root
def test_disk_that_the_reconstruction_fills_is_the_nodes_fault(node: Node, world: World) -> None:
    """The outputs may be incomplete, so the reconstruction's exit code does not count."""
    hide = f'mount -t tmpfs -o size=400k none {node.folder} && cd {node.folder} && exec "$@"'
    recon = node.program("recon", "head -c 1000000 /dev/zero >out; exit 0")
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", hide, "-", OSGPROD_RECON=recon)
    assert code == NODE_FAULT, log
    report = report_of(world)
    assert (report["exit_code"], report["outcome"]) == (75, "node-fault")
    assert "full" in report["reason"]


def test_scratch_folder_with_a_line_end_in_its_name(node: Node, world: World) -> None:
    world.set(heartbeat_s=1)
    (node.folder / "a\nb c").mkdir()
    recon = node.program("recon", "head -c 3000000 /dev/zero >out; sleep 2.5")
    code, log = node.run(1, _CONDOR_SCRATCH_DIR=str(node.folder / "a\nb c"), OSGPROD_RECON=recon)
    assert code == DONE, log
    assert "out" in names(node.folder / "job_7_1.tar.gz")
    assert list((node.folder / "a\nb c").iterdir()) == []


@is_root
def test_no_python3_on_the_node(node: Node, world: World) -> None:
    hide = """for p in /usr/bin/python3* /usr/local/bin/python3*; do mount --bind /dev/null "$p"; done
              ! python3 -c 1 2>/dev/null && exec "$@\""""
    code, log = node.run(1, "unshare", "-m", "/bin/bash", "-c", hide, "-")
    assert code == DONE, log
    stored = (node.folder / "job_7_1.tar.gz").read_bytes()
    assert report_of(world)["output_adler32"] == f"{zlib.adler32(stored):08x}"


def test_checksum_is_the_same_whoever_works_it_out(folder: Path) -> None:
    data = os.urandom(70_001) + b"\xff" * 70_000 + b"\0" * 5000
    (folder / "data").write_bytes(data)
    for broken in ([], ["xrdadler32"], ["xrdadler32", "python3"]):
        # Programs that are there and fail, or print something else, are passed over like those that are missing.
        stubs = "".join(
            f"{name}() {{ echo 'no such version'; return {len(broken) % 2}; }}\n" for name in broken
        )
        script = f"source {EXEC}\n{stubs}adler32 {folder}/data"
        done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True)
        assert done.stdout == f"{zlib.adler32(data):08x}\n", (broken, done.stderr)


# --- what a job learns of itself -----------------------------------------------------------------------------


def test_credentials_may_be_named_by_relative_paths(node: Node, world: World) -> None:
    """As HTCondor brings them: beside the script, not in the folder of the work."""
    (node.folder / "magic").write_text("m\r\n")
    (node.folder / "proxy").write_text("p")
    recon = node.program("recon", 'cat "$X509_USER_PROXY" >seen')
    code, log = node.run(
        1, OSGPROD_MAGIC=None, OSGPROD_MAGIC_FILE="magic", X509_USER_PROXY="proxy", OSGPROD_RECON=recon
    )
    assert code == DONE, log
    assert "seen" in names(node.folder / "job_7_1.tar.gz")


def test_site_is_the_one_that_htcondor_tells(node: Node, world: World, folder: Path) -> None:
    (folder / "machine.ad").write_text('Machine = "n1"\nGLIDEIN_Site = "Far Away"\n')
    assert node.run(1, _CONDOR_MACHINE_AD=str(folder / "machine.ad"))[0] == DONE
    assert report_of(world)["site"] == "Far Away"


def job_ad(folder: Path, schedd: str, qdate: int, more: str = "") -> str:
    """A job ad as HTCondor's starter writes it; returns its path."""
    path = folder / f"{schedd}.{qdate}.job.ad"
    ad = f'Err = "logs/7.1.err"\nGlobalJobId = "{schedd}#7.1#{qdate}"\nCluster = "QDate = 1"\n'
    path.write_text(f"{ad}{more}QDate = {qdate}")
    return str(path)


def identities(world: World) -> list[tuple[str | None, int | None, int]]:
    rows = world.db.execute(
        "SELECT schedd, qdate, nstart FROM osgprod_data.attempts ORDER BY nstart"
    ).fetchall()
    return [(row["schedd"], row["qdate"], row["nstart"]) for row in rows]


def test_jobs_of_two_access_points_with_the_same_numbers_are_different_jobs(
    node: Node, world: World, folder: Path, site: Site
) -> None:
    world.set(maxblockspercore=1)
    queues = [("ap 1@a.org", 1700000000), ("b.org", 1700000000), ("b.org", 1800000000)]
    for schedd, qdate in queues:
        ad = job_ad(folder, schedd, qdate)
        code, log = node.run(1, _CONDOR_JOB_AD=ad, OSGPROD_OUTPUT_URL=f"{site.url}/out")
        assert code == DONE, log
    assert identities(world) == [(*queue, n) for n, queue in enumerate(queues, 1)]
    assert state(world) == {"done": 3}, "each got another slice"
    assert sorted(path for path in site.files if path.startswith("/out")) == [
        "/out/job_7_1.ap_1_a.org.1700000000.tar.gz",
        "/out/job_7_1.b.org.1700000000.tar.gz",
        "/out/job_7_1.b.org.1800000000.tar.gz",
    ]


def test_job_that_starts_again_is_the_same_job(node: Node, world: World, folder: Path) -> None:
    ad = job_ad(folder, "ap.org", 1700000000)
    recon = node.program("recon", "exit 75")
    assert node.run(1, _CONDOR_JOB_AD=ad, OSGPROD_RECON=recon)[0] == NODE_FAULT
    assert node.run(1, _CONDOR_JOB_AD=ad)[0] == DONE
    assert node.run(1, _CONDOR_JOB_AD=ad)[0] == DONE, "it has completed its work"
    assert {identity[:2] for identity in identities(world)} == {("ap.org", 1700000000)}
    assert len(identities(world)) == 2


@pytest.mark.parametrize("text, identity", one_and_slow(IDENTITIES))
def test_identity_is_what_the_job_ad_holds(
    node: Node, world: World, folder: Path, text: str, identity: tuple[str | None, int | None]
) -> None:
    (folder / "job.ad").write_text(text)
    assert node.run(1, _CONDOR_JOB_AD=str(folder / "job.ad"))[0] == DONE
    assert identities(world) == [(*identity, 1)]


def time_left(world: World) -> int | None:
    (row,) = world.db.execute("SELECT time_left_s FROM osgprod_data.attempts").fetchall()
    return row["time_left_s"]


def write_ads(folder: Path, machine: str, job: str, now: int) -> dict[str, str]:
    """HTCondor's files, where {n} is n seconds from now; returns the variables that name them."""
    for name, text in (("machine.ad", machine), ("job.ad", job)):
        times = re.sub(r"\{(-?\d+)\}", lambda found: str(now + int(found[1])), text)
        (folder / name).write_text(times)
    return {"_CONDOR_MACHINE_AD": str(folder / "machine.ad"), "_CONDOR_JOB_AD": str(folder / "job.ad")}


@pytest.mark.parametrize("machine, job, setting, at_most", one_and_slow(TIMES))
def test_time_left_is_the_smallest_that_anybody_tells(
    node: Node, world: World, folder: Path, machine: str, job: str, setting: str | None, at_most: int | None
) -> None:
    now = int(time.time())
    ads = write_ads(folder, machine, job, now)
    code, log = node.run(1, **ads, OSGPROD_TIME_LEFT_S=setting)
    assert code == DONE, log
    left = time_left(world)
    if at_most is None:
        assert left is None
    else:
        assert left is not None and at_most - (time.time() - now) - 1 <= left <= at_most


@pytest.mark.parametrize("left_s", [0, -3600])
def test_job_without_time_leaves_the_queue_and_takes_nothing(
    node: Node, world: World, folder: Path, left_s: int
) -> None:
    (folder / "machine.ad").write_text(f"GLIDEIN_ToDie = {int(time.time()) + left_s}\n")
    code, log = node.run(1, _CONDOR_MACHINE_AD=str(folder / "machine.ad"))
    assert code == DONE, log
    assert "no-time: " in log
    assert state(world) == {} and list(node.folder.iterdir()) == []


# --- what stock nodes have -----------------------------------------------------------------------------------

# curl 7.29 (CentOS 7), of the options that are of use here.
CURL_OPTIONS = {
    *("-q", "-g", "-s", "-S", "-sS", "-f", "-L", "-I", "-K", "-D", "-o", "-w", "-r", "-T", "-X", "-H"),
    *("--noproxy", "--connect-timeout", "--max-time", "--speed-limit", "--speed-time", "--max-redirs"),
}
CURL_CONFIG = {"header", "data-urlencode", "output", "cert", "key", "capath", "cacert", "url"}
# What came after bash 4.2, and what it gets wrong.
NEWER_THAN_BASH_4_2 = {
    r"\$\{[^}]*@[QEPAaUuLK]\}": "${x@Q}",
    r"\b(local|declare|typeset) -\w*n": "local -n",
    r"\bwait -n": "wait -n",
    r"\$\{?(EPOCH|BASH_ARGV0|SRANDOM)": "newer variables",
    r"\b(mapfile|readarray) [^|;]*-d": "mapfile -d",
    r"inherit_errexit": "inherit_errexit",
    r"\blocal -$": "local -",
    r"\[\[? -v": "test -v of elements",
    r"\w\[-\d": "negative subscripts",
    r"\bread [^|;]*-N": "read -N with delimiters",
}


def test_curl_gets_only_options_that_centos_7_knows() -> None:
    for script in SHIPPED:
        text = (CHECKOUT / script).read_text()
        calls = re.findall(
            r"(?:\bcurl -|curl_storage |CURL\[@\]\}\"|CURL=\(curl )(?:[^\n]*\\\n)*[^\n]*", text
        )
        assert calls
        for one in calls:
            used = set(re.findall(r"(?<=\s)--?[a-zA-Z][a-z-]*", one.partition(" | ")[0]))
            assert used <= CURL_OPTIONS, one
        assert set(re.findall(r"\bcurl_option ([a-z-]+) ", text)) <= CURL_CONFIG


def test_scripts_use_what_bash_4_2_has() -> None:
    for script in SHIPPED:
        for number, line in enumerate((CHECKOUT / script).read_text().splitlines(), 1):
            code = re.sub(r"(^|\s)#.*", "", line)
            for pattern, name in NEWER_THAN_BASH_4_2.items():
                assert not re.search(pattern, code), f"{script}:{number}: {name}"
    # "${a[@]}" of an empty array is an error there under set -u: only arrays that can't be empty are written so.
    plain = re.findall(r'(?<!\+)"\$\{(\w+)\[@\]\}"', (CHECKOUT / "condor/osgprod_exec.sh").read_text())
    assert set(plain) == {"CURL", "PIPESTATUS", "SIGNALS"}
    plain = re.findall(r'(?<!\+)"\$\{(\w+)\[@\]\}"', (CHECKOUT / "worker/osgprod_work.bash").read_text())
    ours = {"CURL", "reconstruction", "inputs", "doors", "urls", "caches"}
    assert set(plain) == {*ours, "osgprod_pieces", "osgprod_source_urls"}
    plain = re.findall(r'(?<!\+)"\$\{(\w+)\[@\]\}"', (CHECKOUT / "worker/osgprod_merge.bash").read_text())
    ours = {
        "CURL",
        "inputs",
        "doors",
        "urls",
        "caches",
        "names",
        "merge_kinds",
        "hadd_command",
        "hddmcat_command",
        "PIPESTATUS",
    }
    assert set(plain) == {*ours, "osgprod_pieces", "osgprod_source_urls", "osgprod_inputs"}


def test_settings_of_the_exec_script_are_told_in_its_head() -> None:
    text = EXEC.read_text()
    head, code = text.split("set -euo pipefail", 1)
    used = set(re.findall(r"(?:\$\{?|number_setting )(OSGPROD_[A-Z_]+)", code)) - {"OSGPROD_REPORT"}
    assert used == set(re.findall(r"OSGPROD_[A-Z_]+", head))
