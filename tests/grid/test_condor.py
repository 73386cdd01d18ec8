"""A real HTCondor pool runs the submit file that ships: a production to its end, and what each exit code does."""

from __future__ import annotations

import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shim.database import call, connect
from shim.evio.writer import write_file
from shim.local.embedded import temporary_server
from shim.migrate import migrate
from tests.grid.pool import HELD, IDLE, RUNNING, USER, Pool
from tests.grid.xrootd import XRootD
from tests.support import LiveShim, World

EVENTS = 5
COMPLETED = 4


def add_files(world: World, project: str, xrootd: XRootD, sizes: list[int], run: int) -> int:
    """Makes files with so many blocks the work of a project, served by XRootD; returns the number of events."""
    first = 1
    paths = [xrootd.data / "raw" / f"hd_rawdata_{run:06d}_{n:03d}.evio" for n in range(len(sizes))]
    for path, nblocks in zip(paths, sizes, strict=True):
        first += write_file(path, nblocks, EVENTS, first_event=first)
    prefix = f"http://127.0.0.1:{xrootd.https_port}//raw"
    world.set(project, xrootd_prefix=prefix, strip_prefix=str(xrootd.data / "raw"))
    world.load_raw(*paths, project=project, runs=[run])
    return first - 1


def credentials(pool: Pool, xrootd: XRootD) -> str:
    """Puts the server's certificate and a token where jobs find them; returns the environment that says so."""
    (pool.srv / "cert.pem").write_bytes(xrootd.certificate.read_bytes())
    (pool.srv / "token").write_text(xrootd.token())
    return "CURL_CA_BUNDLE=/srv/cert.pem BEARER_TOKEN_FILE=/srv/token"


# --- a production --------------------------------------------------------------------------------------------


def leased(world: World, begun_within_s: float = 3600) -> list[int]:
    """The processes whose first start holds a slice, since no longer than that."""
    rows = world.db.execute(
        "SELECT a.process FROM osgprod_data.slices s JOIN osgprod_data.attempts a USING (project_id, cluster,"
        " process, nstart) WHERE s.state = 'leased' AND a.nstart = 1"
        " AND a.started_at > now() - make_interval(secs => %s)",
        [begun_within_s],
    ).fetchall()
    return [row["process"] for row in rows]


def slices_of(world: World, process: int) -> list[tuple[int, int]]:
    """What the starts of a job got, in their order."""
    rows = world.db.execute(
        "SELECT rawdata_id, block1 FROM osgprod_data.attempts WHERE process = %s ORDER BY nstart", [process]
    ).fetchall()
    return [(row["rawdata_id"], row["block1"]) for row in rows]


def reported(world: World, process: int, by_worker: bool = True) -> list[tuple[int, str]]:
    """The ends of a job's starts, as it reported them, or as the server noted them of leases that expired."""
    rows = world.db.execute(
        "SELECT nstart, outcome FROM osgprod_data.reports WHERE process = %s AND by_worker = %s ORDER BY nstart",
        [process, by_worker],
    ).fetchall()
    return [(row["nstart"], row["outcome"]) for row in rows]


def kill_starter(pool: Pool, cluster: int, process: int) -> bool:
    """Kills the condor_starter above a job, and nothing else; false when the job is gone."""
    find = f'job=$(pgrep -o -f "osgprod_exec.sh {cluster} {process} 1") && kill -9 $(ps -o ppid= -p $job)'
    return bool(pool.run("bash", "-c", find, check=False).returncode == 0)


@pytest.mark.timeout(900)
def test_production_ends_with_each_output_there_once_whatever_happens_to_its_jobs(
    pool: Pool, xrootd: XRootD, world: World, shim: LiveShim
) -> None:
    """200 jobs over 3 files; some are vacated, removed, held, or lose their starter, and the storage crashes."""
    events = add_files(world, "p", xrootd, [64, 63, 63], run=2)
    world.set(lease_s=60, heartbeat_s=3, wait_s=2)
    (pool.srv / "home" / "magic").write_text("m")
    environment = f"{credentials(pool, xrootd)} OSGPROD_MAX_WAIT_S=120 OSGPROD_DEMO_PAUSE_S=10"
    cluster = pool.submit(
        "home",
        server=shim.url,
        project="p",
        magic_file="magic",
        count=200,
        memory="100MB",
        disk="10MB",
        outputs=f"{xrootd.https_url}/outputs",
        env=environment,
        release_after=5,
        same_machine_after=5,  # the pool has one, and the storage's crash may have looked like its fault
    )
    victims: dict[str, list[int]] = {"vacated": [], "removed": [], "held": [], "starter": []}

    def tell(*command: str) -> bool:
        return bool(pool.run(*command, check=False, user=USER).returncode == 0)

    what_to_do: list[tuple[str, Callable[[int], bool]]] = [
        ("vacated", lambda job: tell("condor_vacate_job", "-fast", f"{cluster}.{job}")),
        ("removed", lambda job: tell("condor_rm", f"{cluster}.{job}")),
        ("held", lambda job: tell("condor_hold", f"{cluster}.{job}")),
        ("starter", lambda job: kill_starter(pool, cluster, job)),
    ]
    pool.wait(120, "too few jobs get a slice", lambda: len(leased(world)) >= 12)

    def one_more(name: str, act: Callable[[int], bool]) -> bool:
        """Does it to a job that has just begun and is not a victim yet; one that has ended can't be chosen anything."""
        fresh = set(leased(world, begun_within_s=5)) - {n for those in victims.values() for n in those}
        chosen = next(filter(act, sorted(fresh, reverse=True)), None)
        if chosen is not None:
            victims[name].append(chosen)
        return chosen is not None

    for _ in range(4):
        xrootd.crash()
        for name, act in what_to_do:
            pool.wait(60, f"no job to be {name}", partial(one_more, name, act))
        for process in victims["held"]:
            pool.run("condor_release", f"{cluster}.{process}", check=False, user=USER)

    def is_empty(jobs: list[dict[str, Any]]) -> bool:
        held = [f"{cluster}.{job['ProcId']}" for job in jobs if job["JobStatus"] == HELD]
        if held:  # those whose hold was under way when they were released
            pool.run("condor_release", *held, check=False, user=USER)
        return not jobs

    pool.wait_for(cluster, "the queue does not empty", is_empty, timeout_s=540)
    pool.wait(120, "no tick calls all files complete", lambda: world.progress()["files_finished"] == 3)

    progress = world.progress()
    assert (progress["blocks_done"], progress["files_finished"]) == (190, 3)
    assert call(world.db, "verify", project="p") == []
    for name in ("vacated", "held", "starter"):
        again = 0
        for process in victims[name]:
            if reported(world, process)[:1] == [(1, "done")]:
                continue  # it was done just before
            if (1, "lost") in reported(world, process, by_worker=False):
                continue  # it started again too late for its lease
            first, second = slices_of(world, process)[:2]
            assert first == second, f"job {cluster}.{process} was {name} and got another slice"
            assert reported(world, process)[0] == (2, "done")
            again += 1
        assert again, f"no job that was {name} started again within its lease: {victims[name]}"
    gone = [n for n in victims["removed"] if not reported(world, n)]
    assert gone, f"all jobs to be removed had been done just before: {victims['removed']}"
    for process in gone:
        (its,) = slices_of(world, process)
        rows = world.db.execute(
            "SELECT state, process FROM osgprod_data.slices WHERE rawdata_id = %s AND block1 = %s", its
        ).fetchall()
        assert [row["state"] for row in rows] == ["done"]
        assert rows[0]["process"] != process, "another job did it"

    outputs = sorted(
        (xrootd.data / "outputs").glob("job_*.tar.gz")
    )  # a crash may leave a part that was being sent
    urls = world.db.execute("SELECT output_url FROM osgprod_data.reports WHERE outcome = 'done'").fetchall()
    assert sorted(row["output_url"].rpartition("/")[2] for row in urls) == [path.name for path in outputs]
    assert events_in(outputs) == Counter(range(1, events + 1))


def events_in(tarballs: list[Path]) -> Counter[int]:
    seen: Counter[int] = Counter()
    for tarball in tarballs:
        with tarfile.open(tarball) as archive:
            file = archive.extractfile("./events.txt")
            assert file is not None
            lines = file.read().decode().split()
        assert lines[0] == "begin-of-run", tarball.name
        seen.update(int(line) for line in lines[1:])
    return seen


# --- what an exit code does ----------------------------------------------------------------------------------


class Policies:
    """One job, or a few, for each line of the table in osgprod.sub; all sent at once."""

    def __init__(self, pool: Pool, xrootd: XRootD, world: World, shim: LiveShim) -> None:
        self.pool, self.world = pool, world
        self._xrootd, self._shim = xrootd, shim
        self._run = 100
        self.clusters: dict[str, int] = {}

    def send(self, name: str, script: str = "true", blocks: int = 8, **settings: object) -> None:
        """Sends a job of a project of that name, whose reconstruction is a bash script."""
        self._run += 1
        self.world.with_project(name, token_required=True, backoff_s=0, max_fast_failures=1000)
        add_files(self.world, name, self._xrootd, [blocks], self._run)
        self._shim.add_template(name)
        folder = self.pool.submit_folder(name)
        (folder / "magic").write_text("m")
        program = self.pool.srv / f"{name}.sh"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
        (self.pool.srv / f"{name}.d").mkdir()
        (self.pool.srv / f"{name}.d").chmod(0o777)
        values = {
            "server": self._shim.url,
            "project": name,
            "magic_file": "magic",
            "count": 1,
            "memory": "100MB",
            "disk": "10MB",
            "recon": f"/srv/{name}.sh",
            "env": "OSGPROD_TRIES=1 OSGPROD_MAX_WAIT_S=0",
            "release_after": 6,
            **settings,
        }
        self.clusters[name] = self.pool.submit(name, **values)

    def wait_for(self, name: str, what: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        cluster = self.clusters[name]
        last: dict[str, Any] = {}

        def look(jobs: list[dict[str, Any]]) -> bool:
            nonlocal last
            last = jobs[0] if jobs else self.pool.job(cluster)
            return bool(last) and is_so(last)

        self.pool.wait_for(cluster, f"{name}: {what}", look)
        return last

    def attempts(self, name: str) -> list[dict[str, Any]]:
        return self.world.db.execute(
            "SELECT a.nstart, a.block1, a.site, a.schedd, r.exit_code, r.outcome FROM osgprod_data.attempts a"
            " JOIN osgprod_data.projects p USING (project_id) LEFT JOIN osgprod_data.reports r"
            " USING (project_id, cluster, process, nstart) WHERE p.name = %s ORDER BY a.process, a.nstart",
            [name],
        ).fetchall()


@pytest.fixture(scope="module")
def policies(pool: Pool, xrootd: XRootD, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    with temporary_server() as dsn:
        migrate(dsn, say=lambda line: None)
        with connect(dsn) as db:
            world = World(db, dsn)
            with LiveShim(dsn, tmp_path_factory.mktemp("www")) as shim:
                policies = Policies(pool, xrootd, world, shim)
                policies.send("done")
                policies.send("nowork", blocks=1, count=3)
                policies.send("fails", "echo bad event; exit 3", retries=2)
                policies.send("starts", "exit 3", max_starts=1)
                policies.send("node", "[[ -e /srv/node.d/once ]] || { touch /srv/node.d/once; kill -9 $$; }")
                policies.send(
                    "lone",
                    "[[ -e /srv/lone.d/once ]] || { touch /srv/lone.d/once; kill -9 $$; }",
                    same_machine_after=1,
                )
                policies.send("away", server="http://127.0.0.1:9/osgprod")
                policies.send("refused")
                (pool.srv / "refused" / "magic").write_text("wrong")
                policies.send("forgotten", server="http://127.0.0.1:9/x", release_after=99, max_held_hours=0)
                policies.send("killed", "touch /srv/killed.d/at_work; [[ -e /srv/killed.d/go ]] || sleep 600")
                policies.send("hangs", "sleep 60", max_hours=0, release_after=99)
                policies.send(
                    "greedy", "exec python3 -c 'x = bytearray(600 << 20); import time; time.sleep(600)'",
                    memory=20, more_memory=200,
                )  # fmt: skip
                policies.send("several", "echo >out", slices=3)
                policies.send(
                    "vacated",
                    "[[ $1 != *+2,3.* ]] || { echo >>/srv/vacated.d/ran; [[ -e /srv/vacated.d/go ]] || sleep 600; }",
                    slices=3,
                )
                policies.send(
                    "lost",
                    "echo >>/srv/lost.d/ran; echo >out; chmod 500 /srv/lost",
                    max_holds=1000,  # it is held every few seconds until its test comes
                )
                policies.send("there", destination="toy:///there")
                policies.send("both", destination="toy:///there", slices=2)
                (pool.srv / "kept.store").write_text("no folder, as long as this file is here")
                policies.send(
                    "kept", "echo >>/srv/kept.d/ran; echo >out", outputs="file:///srv/kept.store/out"
                )
                yield policies


def test_done_job_leaves_the_queue_and_its_tarball_comes_home(policies: Policies, pool: Pool) -> None:
    job = policies.wait_for("done", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert (job["ExitCode"], job["NumJobStarts"]) == (0, 1)
    (tarball,) = (pool.srv / "done").glob("*.tar.gz")
    assert tarball.name == f"job_{policies.clusters['done']}_0.tar.gz"
    (attempt,) = policies.attempts("done")
    assert (attempt["outcome"], attempt["site"]) == ("done", "Here")


def test_jobs_without_work_leave_the_queue_and_bring_nothing(policies: Policies, pool: Pool) -> None:
    pool.wait_for(policies.clusters["nowork"], "leave the queue", lambda jobs: not jobs)
    assert len(list((pool.srv / "nowork").glob("*.tar.gz"))) == 1


def test_job_whose_slice_fails_asks_for_others_until_its_retries_are_used_up(policies: Policies) -> None:
    job = policies.wait_for("fails", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert (job["ExitCode"], job["NumJobCompletions"]) == (10, 3)
    assert [(row["nstart"], row["exit_code"]) for row in policies.attempts("fails")] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]


def test_job_that_was_started_too_often_leaves_the_queue(policies: Policies) -> None:
    job = policies.wait_for("starts", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert (job["ExitCode"], job["NumJobStarts"]) == (10, 1)


def test_job_runs_on_another_machine_after_a_node_fault(policies: Policies, pool: Pool) -> None:
    cluster = policies.clusters["node"]
    job = policies.wait_for(
        "node", "is idle", lambda job: job["JobStatus"] == IDLE and job.get("ExitCode") == 20
    )
    machine = pool.run("condor_status", "-af", "Machine").stdout.split()[0]
    assert job["MachineAttrMachine0"] == machine
    idle_since = job["EnteredCurrentStatus"]
    policies.wait_for(
        "node", "is rejected by the negotiator", lambda job: job.get("LastRejMatchTime", 0) > idle_since
    )
    job = pool.job(cluster)
    assert (job["JobStatus"], job["NumJobStarts"]) == (IDLE, 1), "not here again"

    def is_done(job: dict[str, Any]) -> bool:
        # Once more if a machine refused the job: HTCondor writes its name with the match, before the job begins.
        if job["JobStatus"] == IDLE and job["MachineAttrMachine0"] == machine:
            pool.run(
                "condor_qedit", str(cluster), "MachineAttrMachine0", '"elsewhere"', check=False, user=USER
            )
        return bool(job["JobStatus"] == COMPLETED)

    policies.wait_for("node", "leaves the queue", is_done)
    assert [row["outcome"] for row in policies.attempts("node")] == ["node-fault", "done"]


def test_job_runs_on_the_same_machine_after_a_node_fault_when_there_is_no_other(policies: Policies) -> None:
    job = policies.wait_for("lone", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert (job["ExitCode"], job["NumJobStarts"]) == (0, 2)
    assert [row["outcome"] for row in policies.attempts("lone")] == ["node-fault", "done"]


def test_job_is_held_and_released_by_itself_while_the_server_is_down(policies: Policies) -> None:
    job = policies.wait_for("away", "is held", lambda job: job["JobStatus"] == HELD)
    assert (job["HoldReasonSubCode"], job["ExitCode"]) == (30, 30)
    policies.wait_for("away", "runs again", lambda job: job["NumJobStarts"] >= 2)


def test_refused_job_is_held_until_an_operator_releases_it(policies: Policies, pool: Pool) -> None:
    job = policies.wait_for("refused", "is held", lambda job: job["JobStatus"] == HELD)
    assert (job["HoldReasonSubCode"], job["ExitCode"]) == (40, 40)
    assert "refused" in job["HoldReason"]
    time.sleep(max(0.0, job["EnteredCurrentStatus"] + 10 - time.time()))  # longer than release_after
    assert pool.job(policies.clusters["refused"])["JobStatus"] == HELD
    (pool.srv / "refused" / "magic").write_text("m")
    pool.as_user("condor_release", str(policies.clusters["refused"]))
    job = policies.wait_for("refused", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert job["ExitCode"] == 0


def test_success_that_could_not_be_delivered_is_kept_over_a_hold_and_not_computed_again(
    policies: Policies, pool: Pool
) -> None:
    store, ran = pool.srv / "kept.store", pool.srv / "kept.d" / "ran"
    job = policies.wait_for("kept", "is held by its exit code", lambda job: is_held([job], 3))
    assert (job["HoldReasonSubCode"], job["ExitCode"]) == (30, 30)
    assert [row["outcome"] for row in policies.attempts("kept")] == [None], "nothing is reported yet"
    store.unlink()
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    job = policies.wait_for("kept", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert job["ExitCode"] == 0
    assert [row["outcome"] for row in policies.attempts("kept")] == ["done"]
    assert ran.read_text() == "\n", "it was computed once"
    (tarball,) = (store / "out").iterdir()
    assert re.fullmatch(rf"job_{policies.clusters['kept']}_0\.[A-Za-z0-9._-]+\.\d+\.tar\.gz", tarball.name)
    (attempt,) = policies.attempts("kept")
    assert attempt["schedd"], "HTCondor's job ad tells the access point"


def test_tarball_that_could_not_come_home_after_the_report_is_not_lost(
    policies: Policies, pool: Pool
) -> None:
    job = policies.wait_for("lost", "is held for its output", lambda job: is_held([job], 12))
    assert job["ExitCode"] == 0
    assert [row["outcome"] for row in policies.attempts("lost")] == ["done"]
    (pool.srv / "lost").chmod(0o755)
    job = policies.wait_for("lost", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert job["NumJobStarts"] >= 2, "its machine kept nothing"
    (tarball,) = (pool.srv / "lost").glob("*.tar.gz")
    assert tarball.name == f"job_{policies.clusters['lost']}_0.tar.gz"
    assert (pool.srv / "lost.d" / "ran").read_text() == "\n", "it was computed once"
    assert [row["outcome"] for row in policies.attempts("lost")] == ["done"]


def test_files_for_spool_do_not_go_to_a_destination(policies: Policies, pool: Pool) -> None:
    policies.wait_for("there", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    found = {str(path.relative_to(pool.toy)) for path in pool.toy.rglob("*") if path.is_file()}
    assert {name for name in found if name.endswith((".tar.gz", ".report"))} == {
        f"there/job_{policies.clusters['there']}_0.tar.gz"
    }
    job = policies.wait_for("both", "is held", lambda job: job["JobStatus"] == HELD)
    assert job["ExitCode"] == 40
    assert policies.attempts("both") == []


def submit_held(pool: Pool, name: str) -> int:
    """Submits a job that is held, and transfers a file "extra"; returns its cluster."""
    (pool.submit_folder(name) / "extra").write_text("needed")
    settings = (
        "server=http://127.0.0.1:9/osgprod",
        "inputs=extra",
        "memory=100MB",
        "disk=10MB",
        "count=1",
        "release_after=3",
    )
    submit = ("condor_submit", "-terse", "-append", "hold = true", *settings, "env=OSGPROD_TRIES=1")
    done = pool.run(*submit, "/srv/condor/osgprod.sub", user=USER, cwd=f"/srv/{name}")
    return int(done.stdout.split(".")[0])


def is_held(jobs: list[dict[str, Any]], code: int) -> bool:
    return bool(jobs) and (jobs[0]["JobStatus"], jobs[0].get("HoldReasonCode")) == (HELD, code)


def test_job_whose_files_can_not_be_transferred_is_released_by_itself(pool: Pool) -> None:
    cluster = submit_held(pool, "transfer")
    extra = pool.srv / "transfer" / "extra"
    extra.unlink()
    pool.run("condor_release", str(cluster), user=USER)
    pool.wait_for(cluster, "is held", lambda jobs: is_held(jobs, 13))
    extra.write_text("needed")
    pool.wait_for(cluster, "runs", lambda jobs: is_held(jobs, 3))  # the server is away
    pool.run("condor_rm", str(cluster), user=USER)


def test_job_whose_files_could_not_be_saved_is_released_by_itself(pool: Pool) -> None:
    """FailedToCheckpoint, 36: HTCondor holds a job so if it can't save the files after checkpoint_exit_code."""
    cluster = submit_held(pool, "unsaved")
    pool.as_user("condor_qedit", str(cluster), "HoldReasonCode", "36")
    pool.wait_for(cluster, "runs", lambda jobs: is_held(jobs, 3))  # the server is away
    pool.run("condor_rm", str(cluster), user=USER)


def test_refused_claim_does_not_prolong_the_wait_for_the_machine_of_a_node_fault(pool: Pool) -> None:
    """As HTCondor leaves a job then: it was to start just now, and began for the last time before the node fault."""
    cluster = submit_held(pool, "refusal")
    machine = pool.run("condor_status", "-af", "Machine").stdout.split()[0]
    now = int(time.time())
    for name, value in (
        ("ExitCode", "20"),
        ("MachineAttrMachine0", f'"{machine}"'),
        ("JobCurrentStartDate", str(now)),
        ("JobCurrentStartExecutingDate", str(now - 1801)),  # same_machine_after is 1800
    ):
        pool.as_user("condor_qedit", f"{cluster}.0", name, value)
    pool.run("condor_release", str(cluster), user=USER)
    pool.wait_for(cluster, "runs", lambda jobs: is_held(jobs, 3))  # the server is away
    pool.run("condor_rm", str(cluster), user=USER)


def test_job_that_is_held_for_long_is_removed(policies: Policies, pool: Pool) -> None:
    pool.wait_for(policies.clusters["forgotten"], "is removed", lambda jobs: not jobs)
    assert pool.job(policies.clusters["forgotten"])["JobStatus"] == 3


def test_job_that_is_killed_by_a_signal_runs_again_and_gets_its_slice_back(
    policies: Policies, pool: Pool
) -> None:
    at_work = pool.srv / "killed.d" / "at_work"
    policies.wait_for("killed", "is at work", lambda job: job["JobStatus"] == RUNNING and at_work.exists())
    (pool.srv / "killed.d" / "go").touch()
    pool.run("bash", "-c", f'kill -9 $(pgrep -o -f "osgprod_exec.sh {policies.clusters["killed"]} 0 1")')
    job = policies.wait_for("killed", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert (job["ExitCode"], job["NumJobStarts"]) == (0, 2)
    first, second = policies.attempts("killed")
    assert (first["block1"], first["outcome"]) == (second["block1"], None)
    assert second["outcome"] == "done"


def test_job_with_several_slices_brings_all_its_tarballs_home(policies: Policies, pool: Pool) -> None:
    job = policies.wait_for("several", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert (job["ExitCode"], job["NumJobStarts"]) == (0, 1)
    assert [row["outcome"] for row in policies.attempts("several")] == ["done"] * 3
    name = f"job_{policies.clusters['several']}_0"
    found = sorted(path.name for path in (pool.srv / "several").glob("job_*.tar.gz"))
    assert found == [f"{name}.2.tar.gz", f"{name}.3.tar.gz", f"{name}.tar.gz"]
    rows = policies.world.db.execute(
        "SELECT r.nstart, r.output_bytes FROM osgprod_data.reports r JOIN osgprod_data.projects p"
        " USING (project_id) WHERE p.name = 'several' ORDER BY r.nstart"
    ).fetchall()
    for row in rows:
        path = pool.srv / "several" / (f"{name}.{row['nstart']}".removesuffix(".1") + ".tar.gz")
        assert path.stat().st_size == row["output_bytes"]


def test_job_that_is_vacated_in_its_second_slice_loses_no_tarball_of_the_first(
    policies: Policies, pool: Pool
) -> None:
    ran, cluster = pool.srv / "vacated.d" / "ran", policies.clusters["vacated"]
    policies.wait_for("vacated", "is in its second slice", lambda job: ran.exists())
    pool.run("condor_vacate_job", "-fast", str(cluster), user=USER)
    (pool.srv / "vacated.d" / "go").touch()
    job = policies.wait_for("vacated", "leaves the queue", lambda job: job["JobStatus"] == COMPLETED)
    assert job["ExitCode"] == 0
    assert [row["outcome"] for row in policies.attempts("vacated")] == ["done", None, "done", "done"]
    found = sorted(path.name for path in (pool.srv / "vacated").glob("job_*.tar.gz"))
    assert found == [f"job_{cluster}_0{n}.tar.gz" for n in (".3", ".4", "")]


def test_job_that_hangs_is_held_with_the_reason(policies: Policies) -> None:
    job = policies.wait_for("hangs", "is held", lambda job: job["JobStatus"] == HELD)
    assert (job["HoldReasonSubCode"], job["HoldReason"]) == (30, "it ran for more than 0 hours a slice")


def test_job_that_is_held_for_memory_is_released_once_with_more(policies: Policies) -> None:
    job = policies.wait_for(
        "greedy", "is held again", lambda job: job["JobStatus"] == HELD and job.get("NumHolds") == 2
    )
    assert (job["HoldReasonCode"], job["HoldReasonSubCode"]) == (21, 102)
    assert job["NumHoldsByReason"] == {"StartdHeldJob": 2}
    assert job["MemoryProvisioned"] == 256, "its second start had what more_memory says"


# --- the submit file as text ---------------------------------------------------------------------------------


def dry_run(pool: Pool, **settings: object) -> dict[str, str]:
    """The first job as condor_submit would send it."""
    arguments = [f"{name}={value}" for name, value in settings.items()]
    command = ["condor_submit", "-dry-run", "-", *arguments, "/srv/condor/osgprod.sub"]
    lines = pool.run(*command, user=USER, cwd="/srv/home").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_submit_file_takes_its_settings_from_the_command_line(pool: Pool) -> None:
    ad = dry_run(pool, project="x", count=7, cores=4, memory="8GB", disk="20GB", server="https://h/osgprod")
    assert (ad["RequestCpus"], ad["RequestMemory"], ad["RequestDisk"]) == ("4", "8192", str(20 << 20))
    assert ad["Args"] == '"1 0 4"' or ad["Arguments"] == '"1 0 4"'
    assert "OSGPROD_URL=https://h/osgprod" in str(ad)
    assert ad["ProjectName"] == '"x"'
    assert ad["Cmd"] == '"/srv/condor/osgprod_exec.sh"'


def test_idle_jobs_of_a_cluster_are_one_autocluster_whatever_their_keys(pool: Pool) -> None:
    folder = pool.submit_folder("alike")
    for settings in ({}, {"memory": 4096, "more_memory": 8192}):
        cluster = pool.submit(folder.name, count=40, sites='Machine == "none"', **settings)
        pool.wait_for(
            cluster,
            "are known to the negotiator",
            lambda jobs: len(jobs) == 40 and all("AutoClusterId" in job for job in jobs),
        )
        assert len({job["AutoClusterId"] for job in pool.jobs(cluster)}) == 1
        pool.run("condor_rm", str(cluster), user=USER)


def test_submit_file_follows_the_conventions_of_the_osg(pool: Pool) -> None:
    image = "/cvmfs/singularity.opensciencegrid.org/group/image:latest"
    ad = dry_run(
        pool,
        osg_project="Group_Project",
        accounting_group="group.prod",
        image=image,
        sites='GLIDEIN_Site =!= "There"',
        destination="osdf:///group/out",
        recon="hd_root -PPLUGINS=danarest",
        inputs="/srv/token",
        env="A=1 B='two words'",
    )
    assert ad["ProjectName"] == '"Group_Project"'
    assert ad["SingularityImage"] == f'"{image}"'
    assert ad["AcctGroup"] == '"group.prod"'
    assert '(GLIDEIN_Site =!= "There")' in ad["Requirements"]
    assert ad["OutputDestination"] == '"osdf:///group/out"'
    assert ad["TransferInput"] == '"/srv/token"'
    assert "two words" in str(ad) and "hd_root -PPLUGINS=danarest" in str(ad)


def test_magic_travels_as_a_file_and_stays_out_of_the_job(pool: Pool) -> None:
    (pool.srv / "home" / "magic").write_text("very secret")
    ad = dry_run(pool, magic_file="/srv/home/magic")
    assert "very secret" not in str(ad)
    assert ad["TransferInput"] == '"/srv/home/magic"'
    assert ad["EncryptInputFiles"] == '"magic"'
    assert "OSGPROD_MAGIC_FILE=magic" in str(ad)


def test_each_job_draws_a_key_of_its_own_and_keeps_it(pool: Pool) -> None:
    folder = pool.submit_folder("keys")
    cluster = pool.submit(
        folder.name,
        server="http://127.0.0.1:9/osgprod",
        count=5,
        memory="100MB",
        disk="10MB",
        env="OSGPROD_TRIES=1",
    )

    def keys() -> dict[int, str]:
        found = {}
        for job in pool.jobs(cluster):
            (key,) = [word for word in job["Environment"].split() if word.startswith("OSGPROD_JOB_KEY=")]
            found[job["ProcId"]] = key
        return found

    pool.wait_for(
        cluster, "are held", lambda jobs: len(jobs) == 5 and {job["JobStatus"] for job in jobs} == {HELD}
    )
    first = keys()
    assert len(set(first.values())) == 5
    assert all(len(key) >= len("OSGPROD_JOB_KEY=") + 27 for key in first.values())
    pool.run("condor_release", str(cluster), user=USER)
    pool.wait_for(
        cluster,
        "ran again",
        lambda jobs: all(job["NumJobStarts"] == 2 and job["JobStatus"] == HELD for job in jobs),
    )
    assert keys() == first
    pool.run("condor_rm", str(cluster), user=USER)


def test_pool_leaves_nothing_mounted(pool: Pool) -> None:
    assert str(pool.srv) not in Path("/proc/mounts").read_text()
