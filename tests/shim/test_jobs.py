"""How many jobs a project needs, and a queue that is kept filled."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from shim.cli.jobs import HELD, IDLE, RUNNING, jobs_to_submit
from shim.database import call
from tests.support import PATIENCE_S, Run, World, wait_until

# A queue in a file, a job a line: what condor_q prints of it. condor_submit adds as many lines as count says. Both, and
# a test that takes a job from the queue, lock it.
CONDOR_Q = '#!/bin/bash\nexec 9>>lock; flock 9\necho "$@" >> asked; cat queue\n'
CONDOR_SUBMIT = """#!/bin/bash
exec 9>>lock; flock 9
echo "$@" >> submitted
for word; do [[ $word == count=* ]] && count=${word#count=}; done
for ((n = 0; n < count; n++)); do echo 1 >> queue; done
echo "$count job(s) submitted to cluster 7."
"""


@pytest.fixture
def queue(tmp_path: Path, operator: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("condor_q", CONDOR_Q), ("condor_submit", CONDOR_SUBMIT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counts(folder: Path) -> list[int]:
    path = folder / "submitted"
    return [int(n) for n in re.findall(r"count=(\d+)", path.read_text())] if path.exists() else []


def needed(world: World, **more: object) -> dict[str, object]:
    row: dict[str, object] = call(world.db, "jobs_needed", project="p", **more)[0]
    return row


def test_jobs_needed_are_the_slices_that_are_left(world: World) -> None:
    world.set(maxblockspercore=3, backoff_s=3600)
    world.add_file(10, run=1)
    world.add_file(7, run=2)
    # 10 blocks are 4 slices of 3, and 7 are 3.
    assert (needed(world)["jobs"], needed(world)["blocks_left"]) == (7, 17)
    assert needed(world, cores=2)["jobs"] == 2 + 2
    assert needed(world, slices=4)["jobs"] == 2
    world.checkout(1)
    assert (needed(world)["jobs"], needed(world)["running"]) == (6, 1)
    world.report(1, 1)  # in its backoff: a job will get it
    assert (needed(world)["jobs"], needed(world)["running"]) == (7, 0)


def test_no_job_is_needed_when_the_work_is_leased_done_or_stopped(world: World) -> None:
    assert needed(world)["is_complete"] is True
    world.add_file(2)
    world.set(state="paused")
    assert (needed(world)["jobs"], needed(world)["reason"]) == (0, "project p is paused")
    world.set(state="active", max_live=1)
    assert (needed(world)["jobs"], needed(world)["reason"]) == (1, "max_live is 1")
    world.set(max_live=None)
    for process in (1, 2):
        world.checkout(process)
    row = needed(world)
    assert (row["jobs"], row["is_complete"]) == (0, False)
    assert row["reason"] == "all remaining work of project p is leased"
    for process in (1, 2):
        world.report(process)
    row = needed(world)
    assert (row["jobs"], row["is_complete"], row["reason"]) == (0, True, "no work is left in project p")


def test_memory_and_disk_to_request_are_those_of_99_of_100_attempts_with_so_many_cores(world: World) -> None:
    world.add_file(60)
    for process in range(21):
        world.checkout(process, cpus=2)
        world.report(process, memory_bytes=(1 + process) << 30, disk_bytes=10 << 20)
        row = needed(world, cores=2)
        if process < 19:
            assert (row["memory_mb"], row["disk_mb"]) == (None, None), "too few attempts to say anything"
    assert (row["memory_mb"], row["disk_mb"]) == (math.ceil(1.1 * 21 * 1024), 11)
    assert needed(world, cores=1)["memory_mb"] is None


def test_what_no_attempt_measured_is_not_requested(world: World) -> None:
    world.add_file(60)
    for process in range(20):
        world.checkout(process)
        world.report(process, wall_s=60, disk_bytes=10 << 20)
    assert (needed(world)["memory_mb"], needed(world)["disk_mb"]) == (None, 11)


def test_jobs_are_needed_for_slices_of_the_size_that_the_target_gives(world: World) -> None:
    world.set(maxblockspercore=100, target_s=3600)
    world.add_file(100)
    assert needed(world)["jobs"] == 100, "probes of one block"
    world.db.execute(
        "INSERT INTO osgprod_data.paces"
        " SELECT project_id, '', '{60}', '{50}', 1, 360, 360, 50 FROM osgprod_data.projects"
    )
    assert (needed(world)["jobs"], needed(world, cores=2)["jobs"]) == (10, 5)
    for cores, slices in ((1, 10), (2, 5)):
        (foretold,) = call(world.db, "foretell_work", project="p", cores=cores)
        assert foretold["slices"] == slices, "the same rule"


def test_dry_run_foretells_the_events_and_bytes_that_status_shows(world: World) -> None:
    world.add_file(30, run=1)
    world.add_file(20, run=1, seqno=1)
    (foretold,) = call(world.db, "foretell_work", project="p")
    (amounts,) = call(world.db, "amounts", project="p")
    assert foretold["events"] == amounts["events"] > 0 and foretold["bytes"] == amounts["bytes"] > 0


@pytest.mark.parametrize("arguments", [{"cores": 0}, {"cores": 5000}, {"slices": 0}, {"slices": -1}])
def test_absurd_jobs_are_refused(world: World, arguments: dict[str, int]) -> None:
    with pytest.raises(psycopg.Error) as caught:
        needed(world, **arguments)
    assert caught.value.sqlstate == "OG108"


def test_argument_for_condor_submit_is_printed_alone(run: Run, world: World, queue: Path) -> None:
    world.add_file(5)
    result = run("jobs", "needed", "p", "--for", "condor_submit")
    assert (result.exit_code, result.stdout) == (0, "count=5\n")
    rows = json.loads(run("jobs", "needed", "p", "--json").stdout)
    assert rows[0]["slices_left"] == 5
    world.set(state="draining")
    result = run("jobs", "needed", "p", "--for", "condor_submit")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no job is needed: project p is draining" in result.stderr


def test_jobs_are_submitted_for_the_work_that_is_left_and_no_more() -> None:
    some = Counter({IDLE: 3, RUNNING: 5, HELD: 2})
    assert jobs_to_submit(100, some, 10, 1000) == 7
    assert jobs_to_submit(100, some, 10, 12) == 2
    assert jobs_to_submit(4, some, 10, 1000) == 1, "those that are idle get three slices"
    assert jobs_to_submit(3, some, 10, 1000) == 0
    assert jobs_to_submit(0, Counter(), 10, 1000) == 0


def test_queue_is_kept_filled_until_the_project_is_complete(world: World, queue: Path) -> None:
    """A job of the queue does a slice each time somebody looks; at the end nothing more is submitted."""
    world.add_file(12)
    command = [
        sys.executable,
        "-m",
        "shim",
        "jobs",
        "keep",
        "p",
        "--idle",
        "3",
        "--max",
        "5",
        "--interval",
        "0.1",
    ]
    keeper = subprocess.Popen(
        [*command, "--", "server=http://x", "osgprod.sub"], cwd=queue, stdout=subprocess.PIPE, text=True
    )
    try:
        for process in range(12):
            wait_until((queue / "queue").read_text, f"job {process} is in the queue", keeper)
            world.checkout(process)
            with (queue / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                lines = (queue / "queue").read_text().splitlines(keepends=True)
                assert len(lines) <= 5
                (queue / "queue").write_text("".join(lines[1:]))  # it has begun, and ended
            assert world.report(process)["status"] == "done"
        output, _ = keeper.communicate(timeout=PATIENCE_S)
    finally:
        keeper.kill()
    assert keeper.returncode == 0
    assert "project p is complete" in output
    submitted = counts(queue)
    assert submitted[0] == 3 and 12 <= sum(submitted) <= 12 + 3
    assert all(0 < n <= 3 for n in submitted)
    line = (queue / "submitted").read_text().splitlines()[0]
    assert "server=http://x osgprod.sub" in line
    assert 'My.OsgprodProject = "p"' in line
    assert 'OsgprodProject == "p"' in (queue / "asked").read_text()


def test_queue_is_kept_filled_though_the_log_of_that_is_on_a_full_disk(world: World, queue: Path) -> None:
    world.add_file(12)
    command = [sys.executable, "-m", "shim", "jobs", "keep", "p", "--interval", "0.1", "--", "osgprod.sub"]
    with Path("/dev/full").open("w") as full:
        keeper = subprocess.Popen(command, cwd=queue, stdout=full, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (queue / "submitted").exists(), "it submits jobs", keeper)
        (queue / "asked").write_text("")
        wait_until((queue / "asked").read_text, "it looks again", keeper)
    finally:
        keeper.kill()
        keeper.wait(PATIENCE_S)


def test_complete_or_paused_project_gets_no_jobs(run: Run, world: World, queue: Path) -> None:
    result = run("jobs", "keep", "p", "--", "x.sub")
    assert (result.exit_code, result.stdout) == (0, "project p is complete\n")
    world.add_file(4)
    world.set(state="paused")
    result = run("jobs", "keep", "p", "--dry-run", "--", "x.sub")
    assert (result.exit_code, result.stdout) == (0, "0 jobs would be submitted\n")
    world.set(state="active")
    result = run("jobs", "keep", "p", "--dry-run", "--", "x.sub")
    assert result.stdout == "4 jobs would be submitted\n"
    assert counts(queue) == []


def test_failing_condor_submit_is_told_in_one_line(run: Run, world: World, queue: Path) -> None:
    world.add_file(4)
    (queue / "condor_submit").write_text("#!/bin/bash\necho 'ERROR: no such file x.sub' >&2\nexit 1\n")
    result = run("jobs", "keep", "p", "--", "x.sub")
    assert result.exit_code == 1
    assert "condor_submit failed: ERROR: no such file x.sub" in result.stderr
    (queue / "condor_q").unlink()
    if shutil.which("condor_q") is None:
        result = run("jobs", "keep", "p", "--", "x.sub")
        assert "there is no condor_q here" in result.stderr


def test_keeper_survives_hiccups_of_htcondor_and_of_the_database(world: World, queue: Path) -> None:
    def become(program: str, text: str) -> None:
        (queue / "new").write_text(text)
        (queue / "new").chmod(0o755)
        (queue / "new").replace(queue / program)

    world.add_file(1)
    command = [sys.executable, "-m", "shim", "jobs", "keep", "p", "--interval", "0.1", "--", "x.sub"]
    with (queue / "said").open("w") as said:
        keeper = subprocess.Popen(command, cwd=queue, stdout=said)
    known = 0

    def wait_for(word: str) -> None:
        nonlocal known
        wait_until(lambda: keeper.poll() is not None or word in (queue / "said").read_text()[known:], word)
        text = (queue / "said").read_text()
        assert word in text[known:], text
        known = len(text)

    try:
        wait_for("1 job idle")
        become("condor_q", "#!/bin/bash\necho 'failed to fetch ads' >&2; exit 1\n")
        wait_for("failed to fetch ads; trying again")
        become("condor_q", CONDOR_Q)
        wait_for("1 job idle")
        world.db.execute("ALTER FUNCTION osgprod.jobs_needed RENAME TO away")
        wait_for("jobs_needed")
        world.db.execute("ALTER FUNCTION osgprod.away RENAME TO jobs_needed")
        wait_for("1 job idle")
        world.checkout(0)
        world.report(0)
        assert keeper.wait(timeout=PATIENCE_S) == 0
        wait_for("project p is complete")
    finally:
        keeper.kill()
        keeper.wait()


def test_list_of_jobs_needs_no_name(run: Run, world: World, queue: Path) -> None:
    world.add_file(2)
    world.checkout(1)
    short, long = (run("jobs", *a, "--json").stdout for a in (["p"], ["list", "p"]))
    assert json.loads(short)[0]["process"] == json.loads(long)[0]["process"] == 1


def test_dry_run_of_slices_load_foretells_what_the_files_will_take(
    run: Run, world: World, queue: Path
) -> None:
    world.set(maxblockspercore=3)
    world.add_file(10, run=1, project=None)
    world.add_file(7, run=2, project=None)

    def foretold(*more: str) -> dict[str, object]:
        result = run("slices", "load", "p", "--dry-run", "--json", *more)
        assert result.exit_code == 0, result.stderr
        row: dict[str, object] = json.loads(result.stdout)[0]
        return row

    row = foretold()
    assert (row["files"], row["blocks"], row["slices"], row["core_hours"]) == (2, 17, 4 + 3, None)
    assert row["events"] == 10 * 10 + 7 * 10, "without the begin-of-run event of each file"
    assert foretold("--runs", "2", "--cores", "2")["slices"] == 2
    assert call(world.db, "list_files", project="p") == [], "nothing was loaded"
    call(world.db, "load_slices", project="p", runs=[1])
    world.checkout(1, cpus=4)
    world.report(1)
    world.db.execute("UPDATE osgprod_data.reports SET ran_s = 3600, nblocks = 10")
    assert foretold("--runs", "2")["core_hours"] == pytest.approx(7 * 4 / 10)
    for cores in ("0", "9999"):
        assert run("slices", "load", "p", "--dry-run", "--cores", cores).exit_code == 2


def test_paused_project_needs_the_one_job_that_tries_again(world: World) -> None:
    """With an empty queue nobody else could end the pause."""
    world.add_file(9)
    for n in range(3):
        world.checkout(n, host=f"wn{n}")
    for n in range(3):
        world.report(n, 74, fault="delivery")
    row = needed(world)
    assert (row["jobs"], row["slices_left"]) == (1, 9)
    assert row["reason"] == "project p has paused itself, and one job at a time tries again"
    world.set(state="paused")
    assert needed(world)["jobs"] == 0, "by the operator"


def test_no_job_is_needed_for_what_waits_in_a_suspended_file_or_on_tape(world: World) -> None:
    """But for one that tries the suspended file again, when nothing else is left. It is work all the same."""
    world.set(skip_nearline=True)
    for n, suspended in enumerate((4, 3)):
        world.add_file(suspended, seqno=n + 1)
    for n in range(3):
        world.checkout(n, host=f"wn{n}")
    for n in range(3):
        world.report(n, 75, fault="fetch")
    assert (needed(world)["jobs"], needed(world)["slices_left"]) == (3, 7)
    world.db.execute(
        "SELECT osgprod.record_locality(jsonb_build_array(jsonb_build_object('file_id', w.rawdata_id,"
        " 'locality', 'nearline'))) FROM osgprod_data.rawdata w WHERE w.seqno = 2"
    )
    row = needed(world)
    assert (row["jobs"], row["slices_left"], row["is_complete"]) == (1, 7, False)
    assert row["reason"] == "all that is left is in suspended files, and one job at a time tries again"
    call(world.db, "resume_files", project="p")
    assert needed(world)["jobs"] == 4
    world.db.execute("UPDATE osgprod_data.slices SET not_before = now()")
    for n in range(10, 14):
        world.checkout(n)
    row = needed(world)
    assert (row["jobs"], row["is_complete"], row["reason"]) == (0, False, "all that is left is on tape")
