"""Jobs merge what the slices of a file left: the real server, osgprod_exec.sh and merge script."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim.database import call
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World, wait_until
from tests.worker.conftest import CLUSTER, Node, kill, slow
from tests.worker.fetching import trusting
from tests.worker.site import Site

DONE, FAILED, REFUSED = 0, 10, 40


@pytest.fixture
def merging(node: Node, world: World, rawdata: Path, folder: Path, site: Site) -> Callable[..., None]:
    """Switches merges on, and has two jobs process the slices of the file."""

    def start(place: Path | None = None, by_jobs: bool = False, at: Site = site, **settings: object) -> None:
        """place: where the tarballs go [default: /out of the site]; by_jobs: the jobs run, and don't only report."""
        shutil.copy(CHECKOUT / "worker" / "osgprod_merge.bash", folder / "www" / "p")
        world.set(
            merge_by="file", merge_output_url=f"{site.url}/merged/{{kind}}", maxblockspercore=3, **settings
        )
        out = f"file://{place}" if place else f"{at.url}/out"
        node.environment.update(OSGPROD_OUTPUT_URL=out, OSGPROD_RECON="cksum")
        for process in (1, 2):
            if by_jobs:
                code, log = node.run(process)
                assert code == DONE, log
            else:
                report_slice(world, at, process, place)
        until_ready(world)

    return start


def report_slice(
    world: World, site: Site, process: int, place: Path | None = None, project: str = "p"
) -> None:
    """Does what a job does for a slice that leaves nothing but its log; place: as above."""
    answer = world.checkout(process, cluster=CLUSTER, project=project)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("./osgprod_work.log")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"log\n"))
    name, tarball = f"job_{CLUSTER}_{process}.tar.gz", content.getvalue()
    if place:
        (place / name).write_bytes(tarball)
    else:
        site.files[f"/out/{name}"] = tarball
    done = {"output_url": f"file://{place}/{name}" if place else f"{site.url}/out/{name}"}
    done |= {"output_bytes": len(tarball), "output_adler32": f"{zlib.adler32(tarball):08x}"}
    answer = world.report(process, cluster=CLUSTER, project=project, token=str(answer["token"]), **done)
    assert answer["status"] == "done"


def merges(world: World) -> list[dict[str, Any]]:
    return world.db.execute(
        "SELECT m.state::text AS state, m.failures FROM osgprod_data.merges m ORDER BY m.merge_id"
    ).fetchall()


def until_ready(world: World) -> None:
    """Returns when the merge is ready: a job that comes while the shim's tick looks at the file has to wait."""

    def is_ready() -> bool:
        call(world.db, "tick")
        return any(merge["state"] == "ready" for merge in merges(world))

    wait_until(is_ready, "the merge is ready")


def stored(site: Site) -> set[str]:
    return {path for path in site.files if path.startswith(("/out/", "/merged/"))}


MERGED = "/merged/job_info/job_info_000001_001.tgz"
TARBALLS = {"/out/job_7_1.tar.gz", "/out/job_7_2.tar.gz"}


def test_job_merges_a_file_whose_slices_are_done(
    merging: Callable[..., None], node: Node, world: World, site: Site, folder: Path
) -> None:
    merging(by_jobs=True)
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


@pytest.mark.slow
def test_merged_files_of_two_projects_with_one_folder_for_outputs_do_not_replace_each_other(
    merging: Callable[..., None], node: Node, world: World, site: Site, shim: LiveShim, folder: Path
) -> None:
    """Without merge_output_url; both over the same raw data file."""
    merging()
    world.with_project("q", maxblockspercore=3, merge_by="file")
    call(world.db, "load_slices", project="q")
    world.set(merge_output_url=None)
    shim.add_template("q")
    shutil.copy(CHECKOUT / "worker" / "osgprod_merge.bash", folder / "www" / "q")
    code, log = node.run(3)
    assert code == DONE, log
    for process in (4, 5):
        report_slice(world, site, process, project="q")
    until_ready(world)
    code, log = node.run(6, OSGPROD_PROJECT="q")
    assert code == DONE, log
    assert "is replaced" not in log
    for project in ("p", "q"):
        (row,) = call(world.db, "list_outputs", project=project, what="merged")
        assert row["url"] == f"{site.url}/out/{project}/job_info_000001_001.tgz"
        assert row["bytes"] == len(site.files[row["url"].removeprefix(site.url)])


def test_merged_inputs_are_removed_after_the_report_if_the_project_wants_that(
    merging: Callable[..., None], node: Node, site: Site
) -> None:
    merging(merge_cleanup="delete")
    code, log = node.run(3)
    assert code == DONE, log
    assert stored(site) == {MERGED}


@pytest.mark.parametrize("is_named", [True, False])
def test_exec_script_shows_its_token_for_the_removal_of_inputs_to_named_hosts_only(
    merging: Callable[..., None], node: Node, world: World, certificate: Path, is_named: bool
) -> None:
    with Site(certificate=certificate) as merged, Site(certificate=certificate) as tarballs:
        merged.demands = "Bearer secret"
        node.environment |= {**trusting(certificate), "BEARER_TOKEN": "secret"}
        home = {"output_home": f"{tarballs.url}/home"} if is_named else {}
        merging(at=tarballs, merge_cleanup="delete", **home)
        world.set(merge_output_url=f"{merged.url}/merged/{{kind}}")
        code, log = node.run(3, OSGPROD_OUTPUT_URL=None)
        assert code == DONE, log
        assert set(merged.files) == {MERGED} and not tarballs.files
        assert {"DELETE", "GET", "HEAD"} == {seen.method for seen in tarballs.seen}
        shown = {seen.headers.get("authorization") for seen in tarballs.seen}
        assert shown == {"Bearer secret" if is_named else None}


@pytest.mark.slow
def test_inputs_in_a_folder_with_a_space_in_its_name_are_merged_and_removed(
    merging: Callable[..., None], node: Node, folder: Path, site: Site
) -> None:
    (folder / "my files").mkdir()
    merging(folder / "my files", by_jobs=True, merge_cleanup="delete")
    code, log = node.run(3)
    assert code == DONE, log
    assert stored(site) == {MERGED}
    assert list((folder / "my files").iterdir()) == [], log


def test_inputs_stay_when_the_merged_file_is_not_where_its_script_has_seen_it(
    merging: Callable[..., None], node: Node, site: Site, world: World, folder: Path
) -> None:
    merging(merge_cleanup="delete")
    script, gate = folder / "www" / "p" / "osgprod_merge.bash", folder / "gate"
    wait = f"  report_merged\n  touch {gate}.at; until [[ -e {gate} ]]; do sleep 0.05; done\n"
    script.write_text(script.read_text().replace("  report_merged\n", wait))
    job = node.start(3)
    wait_until(Path(f"{gate}.at").exists, "it has delivered")
    del site.files[MERGED]
    gate.touch()
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == DONE, log
    assert "not all merged files can be seen from here" in log
    assert stored(site) == TARBALLS


def test_inputs_stay_when_the_merge_is_superseded_before_its_report(
    merging: Callable[..., None], node: Node, site: Site, world: World, folder: Path
) -> None:
    merging(merge_cleanup="delete")
    script, gate = folder / "www" / "p" / "osgprod_merge.bash", folder / "gate"
    wait = f"  report_merged\n  until [[ -e {gate} ]]; do sleep 0.05; done\n"
    script.write_text(script.read_text().replace("  report_merged\n", wait))
    job = node.start(3)
    wait_until(lambda: MERGED in site.files, "it has delivered", job)
    assert call(world.db, "recycle", project="p", states=["done"])  # takes the merge back
    gate.touch()
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == FAILED, log
    assert stored(site) >= TARBALLS
    world.set(merge_by="none")  # nobody plans another one


def test_merge_script_that_the_server_can_not_fill_in_holds_the_job_and_blames_no_merge(
    merging: Callable[..., None], node: Node, world: World, folder: Path
) -> None:
    merging()
    script = folder / "www" / "p" / "osgprod_merge.bash"
    script.write_text(script.read_text().replace("\n#osgprod_run=", "\n# run: "))
    code, log = node.run(3)
    assert code == REFUSED, log
    assert "configuration: no merge is filled in" in log
    assert [merge["failures"] for merge in merges(world)] == [0]


def test_files_that_a_failed_merge_has_delivered_are_on_record(
    merging: Callable[..., None], node: Node, site: Site, world: World, folder: Path
) -> None:
    merging()
    script = folder / "www" / "p" / "osgprod_merge.bash"
    script.write_text(script.read_text().replace("  report_merged\n", "  exit 66\n"))
    code, log = node.run(3)
    assert code == FAILED, log
    rows = call(world.db, "list_outputs", project="p", what="merged", any=True)
    assert [(row["url"], row["state"]) for row in rows] == [(f"{site.url}{MERGED}", "failed")]


@pytest.mark.parametrize(
    "damage",
    ["flipped", *slow("deleted", "truncated")],
)
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
    until_ready(world)
    code, log = node.run(5)
    assert code == DONE, log
    assert [merge["state"] for merge in merges(world)] == ["done"], log
    assert MERGED in site.files


# --- kills -----------------------------------------------------------------------------------------------------

# Where a job that merges is killed: the line in front of that place in the merge script.
ARROWS = {
    "before the inputs are fetched": '  fetch_inputs "$area/slices" "$area/input.tar.gz"\n',
    "in the merge": '      merge_kind "$how" "$area/merged/$name" "$list"\n',
    "before the delivery": "  # Nothing is delivered before all is merged.\n",
    "between upload and rename": '    if make_way "$kind" "$url"; then\n',
    "between removal and rename": '      storage "move_$kind" "$part" "$url" ||',
    "after the delivery": "  report_merged\n",
}
# A curl that hangs before, or behind, the report of the exit code, if that is asked for.
CURL = """config="$(cat)"
if [[ $config == */workscript.exit* ]]; then
  [[ $HANG != "before the report" ]] || { touch "$GATE.at"; sleep 1000; }
  [[ $HANG != "after the report" ]] || { /usr/bin/curl "$@" <<<"$config" >/dev/null; touch "$GATE.at"; sleep 1000; }
fi
exec /usr/bin/curl "$@" <<<"$config\""""


class Merging:
    """A file of two slices that are done, and jobs that merge it, and that can be held anywhere."""

    def __init__(self, node: Node, world: World, site: Site, folder: Path) -> None:
        self.node, self.world, self.site, self.folder = node, world, site, folder
        text = (CHECKOUT / "worker" / "osgprod_merge.bash").read_text()
        for arrow, line in ARROWS.items():
            assert text.count(line) == 1
            wait = 'touch "$GATE.at"; until [[ -e "$GATE.go" ]]; do sleep 0.05; done'
            hold = f'[[ "${{HANG:-}}" != "{arrow}" ]] || {{ {wait}; }}\n'
            text = text.replace(line, hold + line)
        # Two merges of the same inputs differ, like those of hadd, which writes the time into its files.
        sort = '  sort_by_kind "$area/slices" "$area/kinds"\n'
        assert text.count(sort) == 1
        text = text.replace(sort, '  echo "$osgprod_token" >"$area/slices/1,4/token.log"\n' + sort)
        (folder / "www" / "p" / "osgprod_merge.bash").write_text(text)
        world.set(merge_by="file", merge_output_url=f"{site.url}/merged/{{kind}}", maxblockspercore=3)
        for process in (1, 2):
            report_slice(world, site, process)
        until_ready(world)
        (folder / "bin").mkdir()
        node.program("bin/curl", CURL)

    def start_until(self, process: int, arrow: str) -> subprocess.Popen[str]:
        """Starts a job, and returns when it is at that place."""
        gate = self.folder / f"gate{process}"
        path = f"{self.folder}/bin:/usr/bin:/bin"
        job = self.node.start(process, PATH=path, HANG=arrow, GATE=str(gate))
        wait_until(gate.with_suffix(".at").exists, f"it is at {arrow!r}", job)
        return job

    def go(self, process: int) -> None:
        (self.folder / f"gate{process}.go").touch()

    def expire(self) -> None:
        self.world.db.execute(
            "UPDATE osgprod_data.merges SET due_at = now() - interval '1 s' WHERE state = 'leased'"
        )
        self.world.let_leases_run_out()
        call(self.world.db, "tick")

    def check(self) -> None:
        """The merge is done once, and the files on record are there, whole, and made of each slice once."""
        assert [merge["state"] for merge in merges(self.world)] == ["done"]
        outputs = call(self.world.db, "list_outputs", project="p", what="merged")
        content = self.site.files[MERGED]
        assert [(row["url"], row["bytes"], row["adler32"]) for row in outputs] == [
            (f"{self.site.url}{MERGED}", len(content), f"{zlib.adler32(content):08x}")
        ]
        assert {path for path in stored(self.site) if not path.endswith(".part")} == {*TARBALLS, MERGED}
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            names = sorted(archive.getnames())
        assert names == ["1,4/osgprod_work.log", "1,4/token.log", "4,7/osgprod_work.log"]


@pytest.fixture
def ready(node: Node, world: World, rawdata: Path, folder: Path, site: Site) -> Merging:
    return Merging(node, world, site, folder)


# In the delivery, and after the report. In the next tests jobs end in other places.
FAST = ("between removal and rename", "after the report")


SLOW = (*(arrow for arrow in ARROWS if arrow not in FAST), "before the report")


@pytest.mark.parametrize("arrow", [*FAST, *slow(*SLOW)])
def test_merge_of_a_killed_job_is_delivered_once_by_another_job(ready: Merging, arrow: str) -> None:
    job = ready.start_until(3, arrow)
    kill(job.pid)
    job.communicate()
    ready.expire()
    code, log = ready.node.run(4)
    assert code == DONE, log
    ready.check()


@pytest.mark.parametrize("arrow", ["between upload and rename", *slow("after the report")])
def test_killed_job_that_starts_again_delivers_its_merge_once(ready: Merging, arrow: str) -> None:
    job = ready.start_until(3, arrow)
    kill(job.pid)
    job.communicate()
    shutil.rmtree(ready.node.folder)
    ready.node.folder.mkdir()
    code, log = ready.node.run(3)
    assert code == DONE, log
    ready.check()


@pytest.mark.parametrize(
    "arrow", ["between removal and rename", *slow("after the delivery", "between upload and rename")]
)
def test_late_success_does_not_count_while_another_job_replaces_its_files(ready: Merging, arrow: str) -> None:
    """The first one delivers, is silent for longer than its lease, and reports while the second one delivers."""
    first = ready.start_until(3, "after the delivery")
    ready.expire()
    second = ready.start_until(4, arrow)
    ready.go(3)
    log, _ = first.communicate(timeout=PATIENCE_S)
    assert (first.returncode, "superseded" in log) == (FAILED, True), log
    ready.go(4)
    log, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == DONE, log
    ready.check()


def test_job_that_was_frozen_for_longer_than_its_lease_replaces_nothing(ready: Merging) -> None:
    first = ready.start_until(3, "between upload and rename")
    ready.expire()
    code, log = ready.node.run(4)
    assert code == DONE, log
    ready.go(3)
    log, _ = first.communicate(timeout=PATIENCE_S)
    assert (first.returncode, "stopping the work" in log) == (FAILED, True), log
    ready.check()
