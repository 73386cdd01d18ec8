"""The merge script delivers one whole file of each kind, or names the obstacle."""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import functools
import importlib.util
import io
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shim.evio.tags import CONTROL
from shim.evio.writer import BEGIN_OF_RUN, PHYSICS, bank, block, file_of_records, record, write_file
from tests import prepared
from tests.support import CHECKOUT, PATIENCE_S, real_files, wait_until
from tests.worker.conftest import kill, living, slow, wait_for_end
from tests.worker.fetching import trusting
from tests.worker.site import Site

SCRIPT = CHECKOUT / "worker" / "osgprod_merge.bash"
PROGRAM = CHECKOUT / "worker" / "merge_files.py"
BAD_INPUTS, NOT_MERGED, NOT_DELIVERED, NODE_FAULT, NO_PROGRAM, MISCONFIGURED = 65, 66, 74, 75, 127, 40
SLICES = ((0, 3), (3, 6), (6, 8))
HDDM = b'<HDDM class="s" version="1.0">\n  <event/>\n</HDDM>\n'
NAMES = {
    "dana_rest": "dana_rest_001234_005.hddm",
    "hd_root": "hd_root_001234_005.root",
    "job_info": "job_info_001234_005.tgz",
    "sync": "sync_001234_005.evio",
}
# Their lines in a table of kinds.
LINES = {
    "dana_rest": "'dana_rest dana_rest.hddm hddm {kind}_{run}_{seqno}.hddm all'",
    "hd_root": "'hd_root hd_root.root root {kind}_{run}_{seqno}.root all'",
    "job_info": "'job_info *.log tar {kind}_{run}_{seqno}.tgz some'",
    "sync": "'sync *.sync.evio evio {kind}_{run}_{seqno}.evio some'",
}


# --- what slices leave ---------------------------------------------------------------------------------------


def with_uproot() -> list[str]:
    """What begins the command line of a Python program that needs uproot; see warm.py.

    One process imports it for all workers of a run, as long as there is the folder that they share.
    """
    shared, program = Path(os.environ[prepared.FOLDER]), CHECKOUT / "tests" / "worker" / "warm.py"
    socket = shared / "uproot"
    with (shared / "uproot.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not socket.exists():
            run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            subprocess.run([sys.executable, program, socket, str(run)], check=True, stdin=subprocess.DEVNULL)
    return [sys.executable, "-I", "-S", str(program), str(socket)]


def rootfile(*arguments: object) -> str:
    """Calls rootfile.py; returns what it prints."""
    command = [*with_uproot(), str(CHECKOUT / "tests" / "worker" / "rootfile.py"), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@functools.cache
def root_file(first: int, count: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="osgprod-") as folder:
        path = Path(folder) / "t.root"
        rootfile("write", path, first, count)
        return path.read_bytes()


def hddm_file(numbers: range) -> bytes:
    records = [struct.pack(">3I", 8, number, number * 7) for number in numbers]
    return HDDM + b"".join(records)


def packed_hddm_file(numbers: range, pack: Callable[[bytes], bytes], how: int) -> bytes:
    """As GlueX's library writes compressed files: a control record, and blocks that don't end where records do."""
    records = hddm_file(numbers)[len(HDDM) :]
    blocks = [pack(records[:21]), pack(records[21:])]
    return HDDM + struct.pack(">IIQ", 1, 8, how) + b"".join(struct.pack(">I", len(b)) + b for b in blocks)


def skim(numbers: range, *, order: str = "big") -> bytes:
    """An EVIO file as a skim of a slice is: begin-of-run record, events, trailer."""
    begin = bank(BEGIN_OF_RUN, [7, 8, 9], order)
    events = [bank(PHYSICS, [number, 1, 2], order) for number in numbers]
    return block(1, [begin], order) + block(2, events, order) + block(3, [], order, 1 << 9)


def events_of(evio: bytes) -> list[tuple[int, int]]:
    """Tag and first payload word of each event, as the demo's strict reader finds them."""
    sys.path.insert(0, str(CHECKOUT / "worker"))
    try:
        import demo_recon
    finally:
        sys.path.pop(0)
    return [(tag, payload[0]) for tag, payload in demo_recon.events(evio)]


def numbers_of(evio: bytes) -> list[int]:
    """The numbers of the physics events."""
    return [number for tag, number in events_of(evio) if tag == PHYSICS]


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def contents(slice_: tuple[int, int]) -> dict[str, bytes]:
    """What a slice of 10 events a block leaves."""
    numbers = range(10 * slice_[0], 10 * slice_[1])
    files = {
        "hd_root.root": root_file(numbers[0], len(numbers)),
        "dana_rest.hddm": hddm_file(numbers),
        "osgprod_work.log": f"blocks {slice_}\n".encode(),
    }
    if slice_ != (3, 6):
        files[f"hd_rawdata_001234_005+{slice_[0]},{slice_[1]}.sync.evio"] = skim(numbers)
    return files


# --- a merge -------------------------------------------------------------------------------------------------


@dataclass
class Merge:
    """The merge of three slices, whose tarballs are at a site; the script is filled as the server fills it."""

    folder: Path
    site: Site
    inputs: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    table: str = ""
    kinds: tuple[str, ...] = tuple(NAMES)
    is_on_disk: bool = False  # do the merged files go to this node?

    def __post_init__(self) -> None:
        programs = self.folder / "programs"
        programs.mkdir()
        tests, warm, python = f"{CHECKOUT}/tests/worker", shlex.join(with_uproot()), f"{sys.executable} -I -S"
        self.program("hadd", f'exec {warm} {tests}/hadd.py "$@"')
        self.program("hddmcat", f'exec {python} {tests}/hddmcat.py "$@"')
        self.program("python3", f'[[ "${{2:-}}" != root ]] || exec {warm} "$@"; exec {python} "$@"')
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "OSGPROD_BACKOFF_MS": "1",
            "OSGPROD_TRIES": "3",
        }
        self.variables = {
            "osgprod_task": "merge",
            "osgprod_run": "1234",
            "osgprod_seqno": "5",
            "osgprod_merge_output_url": f"{self.place}/merged/{{kind}}",
            "osgprod_merge_cleanup": "keep",
            "osgprod_token": "0123456789abcdef",
            "osgprod_lease_s": "60",
        }

    def program(self, name: str, text: str) -> None:
        path = self.folder / "programs" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def add(self, slice_: tuple[int, int], content: bytes) -> None:
        path = f"/out/job_7_{len(self.inputs)}.tar.gz"
        self.site.files[path] = content
        adler = f"{zlib.adler32(content):08x}"
        self.inputs.append(f"{self.site.url}{path} {len(content)} {adler} {slice_[0]} {slice_[1]}")

    def only(self, *kinds: str) -> None:
        """Fewer kinds, for a promise that is not about the kinds."""
        self.kinds = kinds
        self.table = "\n".join(LINES[kind] for kind in kinds)

    @property
    def place(self) -> str:
        """URL of the folder that has the folder merged/."""
        return f"file://{self.folder}" if self.is_on_disk else self.site.url

    def on_disk(self) -> None:
        """Inputs and merged files on this node, for a promise that is not about transfers.

        Call it when all inputs are made.
        """
        self.local()
        self.to_disk()

    def to_disk(self) -> None:
        """Merged files on this node."""
        self.is_on_disk = True
        self.variables["osgprod_merge_output_url"] = f"{self.place}/merged/{{kind}}"

    def local(self) -> None:
        """The same inputs as files."""
        for n, line in enumerate(self.inputs):
            url, words = line.split(" ", 1)
            path = self.folder / url.rpartition("/")[2]
            path.write_bytes(self.site.files[url.removeprefix(self.site.url)])
            self.inputs[n] = f"file://{path} {words}"

    def start(self) -> subprocess.Popen[str]:
        values = {name: shlex.quote(value) for name, value in self.variables.items()}
        values["osgprod_inputs"] = "(\n" + "".join(f" {shlex.quote(line)}\n" for line in self.inputs) + ")"
        lines, table = [], self.table
        for line in SCRIPT.read_text().splitlines():
            lines.append(line)
            name = line[1:].partition("=")[0]
            if line.startswith("#osgprod_") and name in values:
                lines.append(f"{name}={values[name]}")
            if line == ")" and table and "merge_kinds=(" in lines:
                lines.append(f"merge_kinds=(\n{table}\n)")
                table = ""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        own = self.folder / "own"
        own.mkdir(exist_ok=True)
        (own / "report.txt").unlink(missing_ok=True)
        (self.folder / "script").write_text("\n".join(lines) + "\n")
        return subprocess.Popen(
            ["/bin/bash", str(self.folder / "script")],
            cwd=work,
            env={**self.environment, "OSGPROD_REPORT": str(own / "report.txt")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str]:
        """Returns exit code and log. Nothing that the script made stays in the folder."""
        job = self.start()
        log, _ = job.communicate(timeout=PATIENCE_S)
        assert list((self.folder / "work").iterdir()) == [], log
        assert "unbound variable" not in log
        return job.returncode, log

    def reported(self, name: str) -> str | None:
        path = self.folder / "own" / "report.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
        return found[-1] if found else None

    def delivered(self) -> dict[str, bytes]:
        """The files below merged/, at the site and on this node, by name."""
        here = self.folder / "merged"
        return {
            path.removeprefix("/merged/"): content
            for path, content in self.site.files.items()
            if path.startswith("/merged/")
        } | {str(path.relative_to(here)): path.read_bytes() for path in here.rglob("*") if path.is_file()}

    def outputs(self) -> dict[str, dict[str, object]]:
        return {entry["kind"]: entry for entry in json.loads(self.reported("outputs_list") or "[]")}


@pytest.fixture
def merge(folder: Path, site: Site) -> Merge:
    merge = Merge(folder, site)
    for slice_ in SLICES:
        merge.add(slice_, tarball(contents(slice_)))
    return merge


def check_delivered(merge: Merge) -> None:
    """Every merged file is whole, holds every event once and in order, and is on the list."""
    delivered, outputs = merge.delivered(), merge.outputs()
    assert set(delivered) == {f"{kind}/{NAMES[kind]}" for kind in merge.kinds}
    for kind in merge.kinds:
        content, entry = delivered[f"{kind}/{NAMES[kind]}"], outputs[kind]
        assert entry["url"] == f"{merge.place}/merged/{kind}/{NAMES[kind]}"
        assert (entry["bytes"], entry["adler32"]) == (len(content), f"{zlib.adler32(content):08x}")
        CHECKS[kind](content)
    events = {"dana_rest": 80, "hd_root": 80, "job_info": None, "sync": 51}
    assert {kind: entry.get("events") for kind, entry in outputs.items()} == {
        kind: events[kind] for kind in merge.kinds
    }


def check_hddm(content: bytes) -> None:
    assert content == hddm_file(range(80))


def check_evio(content: bytes) -> None:
    assert numbers_of(content) == [*range(30), *range(60, 80)]


def check_root(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="osgprod-", suffix=".root") as file:
        file.write(content)
        file.flush()
        assert json.loads(rootfile("read", file.name)) == [list(range(80)), 80]


def check_tar(content: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getnames() == [f"{b1},{b2}/osgprod_work.log" for b1, b2 in SLICES]


CHECKS = {"dana_rest": check_hddm, "hd_root": check_root, "job_info": check_tar, "sync": check_evio}


def test_each_kind_is_merged_with_every_event_once_and_delivered(merge: Merge) -> None:
    code, log = merge.run()
    assert code == 0, log
    check_delivered(merge)


def test_inputs_and_merged_files_may_be_on_a_disk_in_folders_with_spaces_in_their_names(merge: Merge) -> None:
    merge.only("hd_root", "sync")
    merge.local()
    folder = merge.folder / "my files"
    folder.mkdir()
    for n, line in enumerate(merge.inputs):
        path, words = line.removeprefix("file://").split(" ", 1)
        Path(path).rename(folder / Path(path).name)
        merge.inputs[n] = (
            f"file://{merge.folder}/my%20files/{Path(path).name} {words}"  # as the server has it
        )
    merge.variables["osgprod_merge_output_url"] = f"file://{folder}/{{kind}}"
    code, log = merge.run()
    assert code == 0, log
    for kind in merge.kinds:
        entry, path = merge.outputs()[kind], folder / kind / NAMES[kind]
        assert (entry["url"], entry["bytes"]) == (f"file://{path}", path.stat().st_size)


def test_a_whole_run_has_names_without_a_file_number(merge: Merge) -> None:
    merge.only("dana_rest", "job_info")
    merge.on_disk()
    merge.variables["osgprod_seqno"] = ""
    assert merge.run()[0] == 0
    assert {path.rpartition("/")[2] for path in merge.delivered()} == {
        NAMES[kind].replace("_005", "") for kind in merge.kinds
    }


def test_fetch_goes_on_where_a_transfer_broke_off_and_wrong_bytes_are_fetched_again(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.to_disk()
    merge.site.faults = ["close", 503, "short", None, "zeros"]
    code, log = merge.run()
    assert code == 0, log
    assert merge.site.faults == []
    check_delivered(merge)


def test_bytes_that_stay_wrong_on_the_way_are_the_nodes_fault(merge: Merge) -> None:
    merge.site.faults = ["zeros", "zeros"]
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log


# --- credentials -----------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(merge: Merge, certificate: Path) -> Iterator[Site]:
    """The inputs are at another https site than the merged files, and this job has a token."""
    with (
        Site(certificate=certificate) as storage,
        Site(files=dict(merge.site.files), certificate=certificate) as site,
    ):
        merge.inputs = [line.replace(merge.site.url, site.url) for line in merge.inputs]
        merge.site = storage
        merge.variables["osgprod_merge_output_url"] = f"{storage.url}/merged/{{kind}}"
        merge.environment |= {**trusting(certificate), "BEARER_TOKEN": "secret"}
        merge.only("job_info")
        yield site


def tokens_at(site: Site) -> set[str | None]:
    return {seen.headers.get("authorization") for seen in site.seen}


def test_token_goes_to_the_merged_files_and_not_to_the_host_of_an_input_that_nobody_named(
    merge: Merge, foreign: Site
) -> None:
    code, log = merge.run()
    assert code == 0, log
    check_delivered(merge)
    assert (tokens_at(merge.site), tokens_at(foreign)) == ({"Bearer secret"}, {None})


@pytest.mark.parametrize("who", ["operator", "submitter's outputs", *slow("submitter")])
def test_token_goes_to_the_host_of_an_input_that_somebody_named(
    merge: Merge, foreign: Site, who: str
) -> None:
    foreign.demands = "Bearer secret"
    match who:
        case "operator":
            merge.variables["osgprod_token_hosts"] = f"root://other.example.org {foreign.url}"
        case "submitter":
            merge.environment["OSGPROD_TOKEN_HOSTS"] = f"other.example.org,{foreign.url.partition('//')[2]}"
        case _:
            merge.environment["OSGPROD_OUTPUT_URL"] = f"{foreign.url}/outputs"
    code, log = merge.run()
    assert code == 0, log
    assert (tokens_at(merge.site), tokens_at(foreign)) == ({"Bearer secret"}, {"Bearer secret"})


@pytest.mark.parametrize("status", [401, 404, *slow(403)])
def test_refusal_of_a_host_that_nobody_named_blames_no_input_and_names_the_setting(
    merge: Merge, foreign: Site, status: int
) -> None:
    if status == 401:
        foreign.demands = "Bearer secret"
    else:  # some storage hides from strangers what it has
        foreign.faults, foreign.files = [status] * 99, {}
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log
    assert "OSGPROD_TOKEN_HOSTS" in log.splitlines()[-1] and "secret" not in log
    assert tokens_at(foreign) == {None}


# --- bad inputs ----------------------------------------------------------------------------------------------


def deleted(content: bytes) -> bytes | None:
    return None


def truncated(content: bytes) -> bytes | None:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes | None:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage, has_checksums",  # deleted: see test_all_bad_inputs_are_named_at_once
    [
        *((truncated, True), (flipped, False)),
        *slow((deleted, True), (deleted, False), (truncated, False), (flipped, True)),
    ],
)
def test_input_that_does_not_fit_its_record_is_named_and_nothing_is_delivered(
    merge: Merge, damage: Callable[[bytes], bytes | None], has_checksums: bool
) -> None:
    merge.site.has_checksums = has_checksums
    spoil(merge, damage)
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "3,6"), log
    assert merge.delivered() == {}


def spoil(merge: Merge, damage: Callable[[bytes], bytes | None]) -> bytes:
    """Damages the second input; returns the good one."""
    good = merge.site.files.pop("/out/job_7_1.tar.gz")
    content = damage(good)
    if content is not None:
        merge.site.files["/out/job_7_1.tar.gz"] = content
    return good


@pytest.mark.slow  # test_merge_jobs.py has it with whole jobs
@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("damage", [deleted, truncated, flipped])
def test_merge_succeeds_when_a_bad_slice_was_processed_again(
    merge: Merge, has_checksums: bool, damage: Callable[[bytes], bytes | None]
) -> None:
    merge.only("dana_rest")
    merge.to_disk()
    merge.site.has_checksums = has_checksums
    good = spoil(merge, damage)
    assert merge.run()[0] == BAD_INPUTS
    merge.site.files["/out/job_7_1.tar.gz"] = good
    code, log = merge.run()
    assert code == 0, log
    check_delivered(merge)


@pytest.mark.parametrize("damage", [truncated, flipped, *slow(deleted)])
def test_bad_input_on_a_disk_is_named(merge: Merge, damage: Callable[[bytes], bytes | None]) -> None:
    merge.local()
    merge.environment["BEARER_TOKEN"] = "secret"  # a disk is not shown it, and says what is so
    path = merge.folder / "job_7_2.tar.gz"
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "6,8"), log


def test_all_bad_inputs_are_named_at_once(merge: Merge) -> None:
    merge.environment["BEARER_TOKEN"] = "secret"  # plain http is not shown it, and says what is so
    del merge.site.files["/out/job_7_0.tar.gz"]
    merge.site.files["/out/job_7_2.tar.gz"] = flipped(merge.site.files["/out/job_7_2.tar.gz"]) or b""
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "0,3:6,8"), log


def test_storage_that_has_lost_everything_is_the_nodes_fault_first(merge: Merge) -> None:
    for n in range(3):
        del merge.site.files[f"/out/job_7_{n}.tar.gz"]
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log
    assert "is the storage away?" in log.splitlines()[-1]


def test_node_without_the_folder_of_the_inputs_blames_no_input(merge: Merge) -> None:
    merge.inputs[0] = f"file://{merge.folder}/nonexistent/job.tar.gz {merge.inputs[0].split(' ', 1)[1]}"
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log


@pytest.mark.parametrize("status", [503, *slow(403)])
def test_storage_that_is_away_blames_no_input(merge: Merge, status: int) -> None:
    merge.site.faults = [status] * 40
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log


def test_input_without_a_url_is_a_setting_of_the_project_that_is_missing(merge: Merge) -> None:
    merge.inputs[0] = f"- {merge.inputs[0].split(' ', 1)[1]}"
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (MISCONFIGURED, None), log
    said = merge.reported("misconfigured") or ""
    assert "no URL is known of the output of blocks " in said and "output_home" in said, log


@pytest.mark.parametrize("scheme", ["root", "pelican"])
def test_node_without_a_storage_client_blames_no_input(merge: Merge, scheme: str) -> None:
    words = (
        "error while loading shared libraries: libXrdCl.so.3: cannot open shared object file: No such file"
    )
    for name in ("xrdfs", "pelican"):
        merge.program(name, f"echo '{words} or directory' >&2; exit 127")
    merge.inputs[1] = f"{scheme}://127.0.0.1:1//out/job.tar.gz {merge.inputs[1].split(' ', 1)[1]}"
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NO_PROGRAM if scheme == "root" else NODE_FAULT, None), log


def test_page_in_place_of_an_input_blames_no_input(merge: Merge) -> None:
    merge.site.pages["/out/job_7_1.tar.gz"] = b"<html>We are down for maintenance</html>"
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log
    assert "but sends another file" in log.splitlines()[-1]


def test_input_that_was_cut_to_nothing_is_named(merge: Merge) -> None:
    merge.site.files["/out/job_7_1.tar.gz"] = b""
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "3,6"), log


def test_checksum_that_storage_writes_in_another_way_blames_no_input(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.site.digest = "adler32={}"  # decimal
    merge.to_disk()
    code, log = merge.run()
    assert code == 0, log
    assert set(merge.outputs()) == set(merge.kinds)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gzip", "kill -KILL $$"),
        ("tar", '/usr/bin/tar "$@"; [[ $1 != -xzf ]] || { echo "Cannot utime" >&2; exit 2; }'),
    ],
)
def test_node_that_can_not_unpack_a_whole_tarball_blames_no_input(merge: Merge, name: str, text: str) -> None:
    merge.program(name, text)
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NODE_FAULT, None), log


def test_note_of_a_merge_that_can_not_be_written_is_the_nodes_fault(merge: Merge) -> None:
    """As on a disk that the merged file has filled. It ended with 1, a failure of the merge."""
    merge.only("dana_rest")
    merge.on_disk()
    merge.program("python3", f'mkdir -p ../kinds/dana_rest.events; exec {sys.executable} "$@"')
    code, log = merge.run()
    assert (code, merge.delivered()) == (NODE_FAULT, {}), log
    assert "dana_rest.events can't be written: is the disk full?" in log


def test_input_without_a_checksum_on_record_is_merged(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.to_disk()
    merge.inputs = [" ".join([line.split()[0], "-", "-", *line.split()[3:]]) for line in merge.inputs]
    code, log = merge.run()
    assert code == 0, log
    check_delivered(merge)


def replace(merge: Merge, n: int, files: dict[str, bytes]) -> None:
    """The tarball is as its slice left it, and fits its record; its content is bad."""
    content = tarball(files)
    merge.site.files[f"/out/job_7_{n}.tar.gz"] = content
    url, _, _, *blocks = merge.inputs[n].split()
    merge.inputs[n] = " ".join([url, str(len(content)), f"{zlib.adler32(content):08x}", *blocks])


ROOT, HDDM_FILE, EVIO = "hd_root.root", "dana_rest.hddm", "hd_rawdata_001234_005+0,3.sync.evio"


@pytest.mark.parametrize(
    "name, damage",
    [
        *((ROOT, "cut"), (HDDM_FILE, "missing"), (HDDM_FILE, "zeros"), (EVIO, "cut"), (EVIO, "missing")),
        *slow((ROOT, "missing"), (ROOT, "zeros"), (HDDM_FILE, "cut"), (EVIO, "zeros")),
    ],
)
def test_slice_with_a_damaged_file_is_named(merge: Merge, name: str, damage: str) -> None:
    files = contents((0, 3))
    content = files.pop(name)
    if damage != "missing":
        files[name] = content[:-9] if damage == "cut" else bytes(len(content))
    replace(merge, 0, files)
    merge.only("dana_rest", "hd_root" if name.endswith("root") else "sync")
    merge.on_disk()
    code, log = merge.run()
    if damage == "missing" and name.endswith("evio"):
        assert code == 0, "slices may lack sync events"
        return
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "0,3"), log
    assert merge.delivered() == {}


def test_tarball_that_is_none_is_named(merge: Merge) -> None:
    content = b"no tarball"
    merge.site.files["/out/job_7_0.tar.gz"] = content
    url, _, _, *blocks = merge.inputs[0].split()
    merge.inputs[0] = " ".join([url, str(len(content)), f"{zlib.adler32(content):08x}", *blocks])
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "0,3"), log


def test_tarball_writes_nothing_outside_of_its_folder(merge: Merge) -> None:
    replace(merge, 0, {**contents((0, 3)), "../../../../evil": b"x"})
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "0,3"), log
    assert not list(merge.folder.glob("evil"))


# --- programs ------------------------------------------------------------------------------------------------


def merge_files(*arguments: object) -> tuple[int, str, str]:
    """Calls the program that the merge script contains, in this process; returns exit code, output and log."""
    output, log = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(log):
        code = program().main([str(argument) for argument in arguments])
    return code, output.getvalue(), log.getvalue()


@functools.cache
def program() -> Any:
    spec = importlib.util.spec_from_file_location("merge_files", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PACKED = {"zlib": (zlib.compress, 0x110), "bzip2": (bz2.compress, 0x120)}


@pytest.mark.parametrize("how", PACKED)
def test_compressed_hddm_files_are_joined_so_that_every_record_can_be_read(folder: Path, how: str) -> None:
    pack, code = PACKED[how]
    inputs = [folder / f"in{n}.hddm" for n in range(3)]
    for path, (first, end) in zip(inputs, SLICES, strict=True):
        path.write_bytes(packed_hddm_file(range(10 * first, 10 * end), pack, code))
    joined = folder / "out.hddm"
    assert merge_files("hddm", joined, *inputs) == (0, "80\n", "")
    content = joined.read_bytes()
    assert content.count(struct.pack(">IIQ", 1, 8, code)) == 1, "a second one ends what readers find"
    at, records = len(HDDM) + 16, b""
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "big")
        records += (zlib if how == "zlib" else bz2).decompress(content[at + 4 : end])
        at = end
    assert HDDM + records == hddm_file(range(80))
    whole = inputs[1].read_bytes()
    inputs[1].write_bytes(whole[:-1])
    status, _, log = merge_files("hddm", joined, *inputs)
    assert (status, f"bad input {inputs[1]}: " in log) == (BAD_INPUTS, True)
    inputs[1].write_bytes(whole.replace(b"s", b"t", 1))
    status, _, log = merge_files("hddm", joined, *inputs)
    assert (status, "has another header than" in log) == (1, True)
    other = "zlib" if how == "bzip2" else "bzip2"
    inputs[1].write_bytes(packed_hddm_file(range(30, 60), *PACKED[other]))
    status, _, log = merge_files("hddm", joined, *inputs)
    assert (status, "is packed in another way than" in log) == (1, True)


UNKNOWN = 0x7F0  # of a packing that Python has not


@pytest.mark.parametrize("empty", [0, 1, 2])
@pytest.mark.parametrize("code", [0x110, UNKNOWN])
def test_hddm_file_with_a_header_only_is_joined_with_packed_ones(folder: Path, empty: int, code: int) -> None:
    inputs, joined = [folder / f"in{n}.hddm" for n in range(3)], folder / "out.hddm"
    packed = [packed_hddm_file(range(10 * n, 10 * n + 10), zlib.compress, code) for n in range(3)]
    for n, path in enumerate(inputs):
        path.write_bytes(HDDM if n == empty else packed[n])
    status, counted, log = merge_files("hddm", joined, *inputs)
    assert (status, counted) == (0, "-\n" if code == UNKNOWN else "20\n"), log
    control = len(HDDM) + 16
    following = b"".join(content[control:] for n, content in enumerate(packed) if n != empty)
    assert joined.read_bytes() == packed[0][:control] + following
    inputs[empty].write_bytes(hddm_file(range(3)))  # neither empty nor packed
    status, _, log = merge_files("hddm", joined, *inputs)
    assert (status, f"{inputs[empty]} is packed in another way than" in log) == (1, True)


@pytest.mark.parametrize(("with_events", "is_packed"), [([0, 2], True), ([], False), *slow(([0, 2], False))])
def test_slices_that_left_an_hddm_header_only_are_merged(
    merge: Merge, with_events: list[int], is_packed: bool
) -> None:
    merge.only("dana_rest")
    merge.inputs.clear()
    for n, slice_ in enumerate(SLICES):
        numbers = range(10 * slice_[0], 10 * slice_[1]) if n in with_events else range(0)
        content = packed_hddm_file(numbers, *PACKED["bzip2"]) if is_packed and numbers else hddm_file(numbers)
        merge.add(slice_, tarball({**contents(slice_), "dana_rest.hddm": content}))
    merge.on_disk()
    code, log = merge.run()
    assert code == 0, log
    assert merge.outputs()["dana_rest"]["events"] == (50 if with_events else 0)
    delivered = merge.delivered()[f"dana_rest/{NAMES['dana_rest']}"]
    assert delivered.startswith(HDDM)
    assert with_events or delivered == HDDM


@pytest.mark.parametrize("is_packed", [True, *slow(False)])
def test_hddm_files_with_different_headers_blame_no_slice(merge: Merge, is_packed: bool) -> None:
    """After a change of software the first slice may be the odd one: to process the second again would not help."""
    content = packed_hddm_file(range(30), *PACKED["zlib"]) if is_packed else hddm_file(range(30))
    replace(merge, 0, {**contents((0, 3)), "dana_rest.hddm": content.replace(b"1.0", b"1.1", 1)})
    merge.only("dana_rest")
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NOT_MERGED, None), log
    assert "has another header than" in log.splitlines()[-1]


def test_slices_with_compressed_hddm_files_are_merged_without_hddmcat(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.program("hddmcat", "exit 1")
    merge.inputs.clear()
    for slice_ in SLICES:
        numbers = range(10 * slice_[0], 10 * slice_[1])
        files = {"dana_rest.hddm": packed_hddm_file(numbers, *PACKED["bzip2"])}
        merge.add(slice_, tarball({**contents(slice_), **files}))
    merge.on_disk()
    code, log = merge.run()
    assert code == 0, log
    assert merge.outputs()["dana_rest"]["events"] == 80


def test_merge_whose_events_nobody_can_count_says_so(merge: Merge) -> None:
    """hddmcat needs no Python."""
    merge.only("dana_rest")
    for n, slice_ in enumerate(SLICES):
        replace(merge, n, {"dana_rest.hddm": hddm_file(range(10 * slice_[0], 10 * slice_[1]))})
    merge.environment["OSGPROD_PYTHON"] = "python3-of-nobody"
    merge.on_disk()
    code, log = merge.run()
    assert code == 0, log
    assert "nobody has counted the events: python3-of-nobody is not on this node" in log
    software = merge.reported("software")
    assert software == "merged without a count of events: python3-of-nobody is not on the node"
    assert "events" not in merge.outputs()["dana_rest"]


@pytest.mark.parametrize("name", ["hadd", "hddmcat", "python3"])
def test_missing_program_is_a_fault_of_the_node_with_its_own_code(merge: Merge, name: str) -> None:
    merge.only("dana_rest", "hd_root" if name == "hadd" else "sync")
    merge.on_disk()
    (merge.folder / "programs" / name).unlink()
    if name == "python3":  # the system may have one
        name = merge.environment["OSGPROD_PYTHON"] = "python3-of-nobody"
    code, log = merge.run()
    assert code == NO_PROGRAM, log
    assert log.splitlines()[-1].endswith(f"{name} is not on this node")
    assert merge.delivered() == {}


@pytest.mark.parametrize(
    "fault, code, bad, words",
    [
        ("HADD_FAULT=drop", NOT_MERGED, None, "has 60 entries in events, its inputs have 80"),
        ("HADD_FAULT=cut", NOT_MERGED, None, "no whole ROOT file"),
        ("HADD_FAULT=fail", BAD_INPUTS, "3,6", "3,6"),
        ("HDDMCAT_FAULT=drop", NOT_MERGED, None, "is not what it must be"),
        *slow(("HADD_FAULT=nothing", NOT_MERGED, None, "no whole ROOT file")),
    ],
)
def test_result_that_lacks_something_is_not_delivered(
    merge: Merge, fault: str, code: int, bad: str | None, words: str
) -> None:
    merge.only("dana_rest", "hd_root")
    merge.on_disk()
    merge.environment.update([fault.split("=")])
    done, log = merge.run()
    assert (done, merge.reported("bad_inputs")) == (code, bad), log
    assert words in log.splitlines()[-1]
    assert merge.delivered() == {}


def test_table_says_how_kinds_are_named_and_merged(merge: Merge) -> None:
    merge.table = (
        "'all_root *.root root {run}-{kind}.{seqno}.root must'\n'{stem} *.sync.evio tar x.{run}.{seqno}.tgz some'\n"
        "'text *.log cat {kind}.{seqno}.{run}.txt all'\n'rest * tar rest_{run}_{seqno}.tar.gz some'"
    )
    merge.on_disk()
    code, log = merge.run()
    assert code == 0, log
    delivered = merge.delivered()
    assert set(delivered) == {
        "all_root/001234-all_root.005.root",
        "sync/x.001234.005.tgz",
        "text/text.005.001234.txt",
        "rest/rest_001234_005.tar.gz",
    }
    assert delivered["text/text.005.001234.txt"].decode() == "".join(
        f"blocks {slice_}\n" for slice_ in SLICES
    )


def test_name_of_a_file_is_no_word_of_an_error(merge: Merge) -> None:
    merge.inputs.clear()
    for slice_ in SLICES:
        files = contents(slice_)
        merge.add(slice_, tarball({"error_hist.root": files.pop("hd_root.root")}))
    merge.environment["HADD_FAULT"] = "fail"
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (BAD_INPUTS, "3,6"), log


def test_files_of_one_stem_that_are_merged_in_two_ways_hold_no_job(merge: Merge) -> None:
    files = contents((0, 3))
    replace(merge, 0, {**files, "x.root": files["hd_root.root"], "x.hddm": files["dana_rest.hddm"]})
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("misconfigured")) == (NOT_MERGED, None), log
    assert "x.root is of the kind x" in log.splitlines()[-1]


def linked(merge: Merge, target: str) -> None:
    """The first slice has its hd_root.root as a link to another file, and a file whose name begins with a dot."""
    files = contents((0, 3))
    content, buffer = files.pop("hd_root.root"), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("./hd_root.root")
        link.type, link.linkname = tarfile.SYMTYPE, target
        archive.addfile(link)
        for name, data in {**files, "own.data": content, ".x.sync.evio": skim(range(3))}.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    path, words = "/out/job_7_0.tar.gz", merge.inputs[0].split()
    merge.site.files[path] = buffer.getvalue()
    size, adler = len(buffer.getvalue()), zlib.adler32(buffer.getvalue())
    merge.inputs[0] = " ".join([words[0], str(size), f"{adler:08x}", *words[3:]])


def test_links_inside_of_a_slice_and_names_with_a_dot_in_front_are_merged(merge: Merge) -> None:
    linked(merge, "own.data")
    name = "{kind}_{run}_{seqno}"
    merge.table = f"'hd_root hd_root.root root {name}.root all'\n'{{stem}} .* evio {name}.evio some'"
    merge.on_disk()
    code, log = merge.run()
    assert code == 0, log
    assert set(merge.delivered()) == {
        "hd_root/hd_root_001234_005.root",
        "_x.sync/_x.sync_001234_005.evio",
    }
    assert merge.outputs()["hd_root"]["events"] == 80


def test_link_out_of_its_slice_is_refused(merge: Merge) -> None:
    linked(merge, "/etc/passwd")
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NOT_MERGED, None), log
    assert "0,3/hd_root.root is a symbolic link" in log.splitlines()[-1]


@pytest.mark.parametrize(
    "table, words",
    [
        ("'a * paste a.txt some'", "merge_kinds has a line that is none: a * paste"),
        (
            "'a *.root tar x{run}{seqno} all'\n'b * tar x{run}{seqno} all'",
            "gives the name x001234005 to two kinds",
        ),
        ("'a *.root tar x{run}{seqno} all'\n'a * cat y{run}{seqno} all'", "merges a in two ways"),
        ("'a *.root tar {seqno}.tgz all'", "the name {seqno}.tgz lacks {run}"),
        ("'a *.root tar {run}.tgz all'", "the name {run}.tgz lacks {seqno}"),
    ],
)
def test_table_that_is_wrong_is_named(merge: Merge, table: str, words: str) -> None:
    merge.table = table
    merge.on_disk()
    code, log = merge.run()
    assert code == MISCONFIGURED, log
    assert words in (merge.reported("misconfigured") or "")


@pytest.mark.parametrize(
    "seqno, url, table",
    [
        ("5", "/merged/run001234/005", "'rest * tar rest.tgz some'"),
        ("", "/merged", "'rest * tar rest_{run}.tgz some'"),
    ],
    ids=["numbers in the folder", "a whole run"],
)
def test_name_may_lack_a_number_that_its_folder_has_or_that_is_none(
    merge: Merge, seqno: str, url: str, table: str
) -> None:
    merge.on_disk()
    merge.variables.update(osgprod_seqno=seqno, osgprod_merge_output_url=f"{merge.place}{url}")
    merge.table = table
    code, log = merge.run()
    assert code == 0, log


def test_kind_that_no_slice_has_but_each_must_have_is_named(merge: Merge) -> None:
    merge.table = (
        "'calib calib.root root c_{run}_{seqno}.root must'\n'rest * tar rest_{run}_{seqno}.tgz some'"
    )
    merge.on_disk()
    code, log = merge.run()
    assert (code, merge.reported("bad_inputs")) == (NOT_MERGED, None), log
    assert "no slice has a file of the kind calib" in log.splitlines()[-1]


# --- delivery ------------------------------------------------------------------------------------------------


def test_uploads_that_fail_are_repeated(merge: Merge) -> None:
    merge.only("dana_rest", "job_info")
    merge.local()
    merge.site.faults = ["abort", 503, None, "truncate", "corrupt"]
    code, log = merge.run()
    assert code == 0, log
    assert merge.site.faults == []
    check_delivered(merge)


def test_storage_that_can_not_rename_gets_whole_files_under_their_names(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.local()
    merge.site.can_rename = False
    code, log = merge.run()
    assert code == 0, log
    check_delivered(merge)


def test_what_can_not_be_delivered_is_no_success(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.local()
    merge.site.faults = [503] * 100
    code, log = merge.run()
    assert (code, merge.reported("outputs_list")) == (NOT_DELIVERED, None), log
    assert merge.delivered() == {}


def test_what_was_delivered_before_a_failure_is_reported(merge: Merge) -> None:
    merge.only("dana_rest", "job_info", "sync")
    merge.local()
    target = merge.folder / "target"
    target.mkdir()
    (target / "sync").write_text("no folder")
    merge.variables["osgprod_merge_output_url"] = f"{target}/{{kind}}"
    code, log = merge.run()
    assert code == NOT_DELIVERED, log
    delivered = {path.parent.name for path in target.glob("*/*")}
    assert delivered == {"dana_rest", "job_info"}
    assert merge.outputs().keys() == delivered


def test_file_that_an_earlier_attempt_left_is_replaced(merge: Merge) -> None:
    merge.only("dana_rest")
    merge.local()
    merge.site.files[f"/merged/dana_rest/{NAMES['dana_rest']}"] = b"of an earlier attempt"
    code, log = merge.run()
    assert code == 0, log
    check_delivered(merge)


@pytest.mark.parametrize("can_remove", [False, *slow(True)])
def test_other_file_of_the_same_size_is_replaced_where_storage_tells_no_checksum(
    merge: Merge, can_remove: bool
) -> None:
    merge.only("dana_rest")
    merge.local()
    name, content = f"/merged/dana_rest/{NAMES['dana_rest']}", hddm_file(range(80))
    merge.site.files[name] = bytes(len(content))
    merge.site.has_checksums, merge.site.can_remove = False, can_remove
    code, log = merge.run()
    assert code == 0, log
    assert merge.site.files[name] == content
    assert merge.outputs()["dana_rest"]["adler32"] == f"{zlib.adler32(content):08x}"


def test_folder_that_is_not_mounted_here_is_not_made(merge: Merge) -> None:
    merge.only("job_info")
    merge.local()
    merge.variables["osgprod_merge_output_url"] = "file:///osgprod-mount/of-nobody/{kind}"
    code, log = merge.run()
    assert (code, merge.reported("outputs_list")) == (NOT_DELIVERED, None), log
    assert "this node has no folder /osgprod-mount/of-nobody" in log.splitlines()[-1]
    assert not Path("/osgprod-mount").exists()


def test_nothing_is_replaced_while_heartbeats_are_not_answered(merge: Merge) -> None:
    """The lease may have ended, and another job may have merged the same, and reported what lies there."""
    merge.only("job_info")
    merge.local()
    name = f"/merged/job_info/{NAMES['job_info']}"
    merge.site.files[name] = b"of another job"
    (merge.folder / "own").mkdir()
    (merge.folder / "own" / "no-lease").touch()
    code, log = merge.run()
    assert code == NODE_FAULT, log
    assert merge.site.files[name] == b"of another job"


def test_script_without_a_merge_is_a_wrong_setting_in_a_job_and_an_error_by_hand(merge: Merge) -> None:
    merge.inputs = []
    code, log = merge.run()
    assert code == MISCONFIGURED, log
    assert "no merge is filled in" in (merge.reported("misconfigured") or "")
    by_hand = subprocess.run(["/bin/bash", SCRIPT], cwd=merge.folder, capture_output=True, text=True)
    assert (by_hand.returncode, "fetch this script from the server" in by_hand.stderr) == (64, True)


def test_without_a_place_for_merged_files_the_setting_is_named(merge: Merge) -> None:
    merge.variables["osgprod_merge_output_url"] = ""
    code, log = merge.run()
    assert code == MISCONFIGURED
    assert "merge_output_url" in (merge.reported("misconfigured") or ""), log
    merge.environment["OSGPROD_OUTPUT_URL"] = f"{merge.site.url}/merged"
    code, log = merge.run()
    assert code == MISCONFIGURED
    assert "OSGPROD_PROJECT" in (merge.reported("misconfigured") or ""), log


@pytest.mark.parametrize("slash", ["/", *slow("")])
def test_without_a_setting_merged_files_of_two_projects_go_to_a_folder_each(merge: Merge, slash: str) -> None:
    merge.only("job_info")
    merge.local()
    merge.variables["osgprod_merge_output_url"] = ""
    merge.environment["OSGPROD_OUTPUT_URL"] = f"{merge.site.url}/merged{slash}"
    for project in ("spring26", "spring26.again"):
        merge.environment["OSGPROD_PROJECT"] = project
        code, log = merge.run()
        assert code == 0, log
        assert "is replaced" not in log
        urls = {entry["url"] for entry in merge.outputs().values()}
        assert urls == {f"{merge.site.url}/merged/{project}/{NAMES[kind]}" for kind in merge.kinds}
    assert len(merge.delivered()) == 2 * len(merge.kinds)


def test_without_a_setting_the_projects_folder_is_made_below_a_first_folder_that_exists(merge: Merge) -> None:
    """As tarballs may go to /outputs itself. Everybody may write to /tmp."""
    merge.only("job_info")
    merge.local()
    project = f"osgprod-{uuid.uuid4().hex}"
    try:
        merge.variables["osgprod_merge_output_url"] = ""
        merge.environment |= {"OSGPROD_OUTPUT_URL": "/tmp", "OSGPROD_PROJECT": project}
        code, log = merge.run()
        assert code == 0, log
        assert {path.name for path in Path("/tmp", project).iterdir()} == {NAMES["job_info"]}
    finally:
        shutil.rmtree(Path("/tmp", project), ignore_errors=True)


def test_without_a_setting_the_folder_of_tarballs_that_is_not_mounted_is_not_made(merge: Merge) -> None:
    merge.only("job_info")
    merge.local()
    merge.variables["osgprod_merge_output_url"] = ""
    merge.environment |= {"OSGPROD_OUTPUT_URL": "/osgprod-mount/of-nobody", "OSGPROD_PROJECT": "spring26"}
    code, log = merge.run()
    assert (code, merge.reported("outputs_list")) == (NOT_DELIVERED, None), log
    assert not Path("/osgprod-mount").exists()


@pytest.mark.parametrize("cleanup", ["delete", *slow("keep")])
def test_inputs_are_kept_until_the_report_and_named_for_removal_only_if_wanted(
    merge: Merge, cleanup: str
) -> None:
    merge.only("job_info")
    merge.to_disk()
    merge.variables["osgprod_merge_cleanup"] = cleanup
    assert merge.run()[0] == 0
    assert {f"/out/job_7_{n}.tar.gz" for n in range(3)} <= set(merge.site.files)
    text = (merge.folder / "own" / "report.txt").read_text()
    named = [line.partition("=")[2] for line in text.splitlines() if line.startswith("merged_input=")]
    wanted = [" ".join(line.split()[:3]) for line in merge.inputs] if cleanup == "delete" else []
    assert named == wanted


# --- kills ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [5, *slow(*range(1, 5))])
def test_merge_that_is_killed_at_any_request_is_done_by_the_next_attempt(merge: Merge, moment: int) -> None:
    merge.only("dana_rest", "job_info")  # 18 requests
    before = len(merge.site.seen)
    job = merge.start()
    while len(merge.site.seen) < before + 3 * moment and job.poll() is None:
        time.sleep(0.001)
    kill(job.pid)
    job.communicate()
    shutil.rmtree(merge.folder / "work")
    merge.variables["osgprod_token"] = "fedcba9876543210"
    code, log = merge.run()
    assert code == 0, log
    for path in [path for path in merge.site.files if path.endswith(".part")]:
        del merge.site.files[path]  # what the killed one left
    check_delivered(merge)


def test_end_of_its_process_group_ends_all_that_it_started(merge: Merge) -> None:
    """This is how osgprod_exec.sh ends the work."""
    merge.program("hadd", "exec sleep 600")
    merge.only("hd_root")
    merge.on_disk()
    job = merge.start()
    wait_until(lambda: any("sleep" in text for text in living(job.pid).values()), "hadd runs", job)
    os.killpg(job.pid, signal.SIGTERM)
    job.communicate(timeout=PATIENCE_S)
    wait_for_end(job.pid)


# --- EVIO ----------------------------------------------------------------------------------------------------


def join(folder: Path, *files: bytes) -> tuple[int, str, bytes]:
    """Returns the exit code, the output, and the joined file."""
    for n, content in enumerate(files):
        (folder / str(n)).write_bytes(content)
    output = folder / "joined"
    output.unlink(missing_ok=True)
    code, counted, said = merge_files("evio", output, *[folder / str(n) for n in range(len(files))])
    content = output.read_bytes() if output.exists() else b""
    return code, (counted + said).strip(), content


def headers(content: bytes, order: str = ">") -> list[tuple[int, ...]]:
    offset, found = 0, []
    while offset < len(content):
        found.append(struct.unpack_from(order + "8I", content, offset))
        offset += 4 * found[-1][0]
    return found


@pytest.mark.parametrize("order", ["big", "little"])
def test_joined_file_is_numbered_from_one_and_ends_in_one_trailer(folder: Path, order: str) -> None:
    code, _, joined = join(folder, *[skim(range(n, n + 5), order=order) for n in (0, 5, 10)])
    assert code == 0
    assert numbers_of(joined) == list(range(15))
    found = headers(joined, ">" if order == "big" else "<")
    assert [words[1] for words in found] == list(range(1, len(found) + 1))
    assert [bool(words[5] & 1 << 9) for words in found] == [False] * (len(found) - 1) + [True]
    assert [words[3] for words in found] == [1, 5, 5, 5, 0]


def test_begin_of_run_record_that_differs_is_kept(folder: Path) -> None:
    other = block(1, [bank(BEGIN_OF_RUN, [1])]) + block(2, [bank(PHYSICS, [5])]) + block(3, [], "big", 1 << 9)
    code, said, joined = join(folder, skim(range(5)), other)
    assert (code, said) == (0, "8")
    assert [words[3] for words in headers(joined)] == [1, 5, 1, 1, 0]


def test_run_control_in_the_block_of_physics_is_left_out_of_that_block(folder: Path) -> None:
    begin = bank(BEGIN_OF_RUN, [7, 8, 9])
    mixed = block(1, [begin, bank(PHYSICS, [5, 0])]) + block(2, [], "big", 1 << 9)
    code, said, joined = join(folder, skim(range(5)), mixed, mixed)
    assert (code, said.splitlines()[0]) == (0, "8")
    assert numbers_of(joined) == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize(
    "shape", [{"trailer": False}, {"dictionary": True}, {"first_file": True}, {"trailer_bit": False}]
)
def test_files_of_any_shape_are_joined(folder: Path, shape: dict[str, bool]) -> None:
    files = []
    for n in range(3):
        write_file(folder / "x.evio", 4, 3, first_event=1 + 12 * n, **shape)
        files.append((folder / "x.evio").read_bytes())
    code, said, joined = join(folder, *files)
    assert code == 0, said
    assert numbers_of(joined) == list(range(1, 37))


@pytest.mark.parametrize("is_compressed", [False, True])
def test_records_of_version_6_are_joined_as_they_are(folder: Path, is_compressed: bool) -> None:
    first = bank(BEGIN_OF_RUN, [7])
    parts = [
        [record(n, [bank(PHYSICS, [10 * file + n])], is_compressed=is_compressed) for n in (1, 2)]
        for file in range(3)
    ]
    files = [file_of_records(part, first_event=first, trailer=n != 1) for n, part in enumerate(parts)]
    code, said, joined = join(folder, *files)
    assert (code, said) == (0, "6")
    expected = file_of_records([], first_event=first, trailer=False)
    assert joined.startswith(expected)
    following = joined[len(expected) :]
    found = headers(following)
    assert [words[1] for words in found] == list(range(1, 7))
    bodies = [body for part in parts for body in (one[56:] for one in part)]
    assert b"".join(bodies) == b"".join(
        following[at + 56 : at + 4 * words[0]]
        for at, words in zip([sum(4 * w[0] for w in found[:n]) for n in range(6)], found, strict=True)
    )


@pytest.mark.parametrize(
    "content, words",
    [
        (skim(range(5))[:-40], "ends inside the block"),
        (skim(range(5))[:-10], "ends inside the header"),
        (b"", "has 0 bytes"),
        (bytes(200), "no magic word"),
        (skim(range(5))[:-32] + bytes(32), "has no block header"),
        (skim(range(5)) + skim(range(5)), "has events behind its last block"),
        (
            block(1, [bank(PHYSICS, [1])]).replace(struct.pack(">I", 1), struct.pack(">I", 2), 2),
            "fewer events",
        ),
    ],
)
def test_damaged_evio_file_is_named_with_what_is_wrong(folder: Path, content: bytes, words: str) -> None:
    code, said, _ = join(folder, skim(range(5)), content)
    assert code == BAD_INPUTS
    assert said.splitlines()[-1].startswith(f"bad input {folder}/1: ")
    assert words in said


@pytest.mark.parametrize(
    "other, words",
    [
        (skim(range(5), order="little"), "not the same byte order"),
        (file_of_records([record(1, [bank(PHYSICS, [1])])]), "not the same version"),
        (
            block(1, [bank(PHYSICS, [1])], dictionary=bank(0x0E, [5])) + block(2, [], "big", 1 << 9),
            "another dictionary",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(folder: Path, other: bytes, words: str) -> None:
    code, said, _ = join(folder, skim(range(5)), other)
    assert code == 1
    assert words in said


@pytest.mark.parametrize("tag", sorted(CONTROL))
def test_each_event_that_precedes_every_slice_is_joined_once(folder: Path, tag: int) -> None:
    before = [bank(tag, [7]), bank(BEGIN_OF_RUN, [1])]
    slices = [
        block(1, before) + block(2, [bank(PHYSICS, [n])]) + block(3, [], "big", 1 << 9) for n in range(3)
    ]
    code, said, joined = join(folder, *slices)
    assert code == 0, said
    assert events_of(joined) == [(tag, 7), (BEGIN_OF_RUN, 1), *[(PHYSICS, n) for n in range(3)]]


@pytest.mark.skipif(not real_files().is_dir(), reason="no real EVIO files: REAL_EVIO_FILES")
def test_real_file_joined_with_itself_has_twice_its_physics(folder: Path) -> None:
    real = (real_files() / "rawdata_001068_10evt.evio").read_bytes()
    code, said, joined = join(folder, real, real)
    assert code == 0, said
    single = [words[3] for words in headers(real, "<")]
    both = [words[3] for words in headers(joined, "<")]
    assert sum(both) == 2 * sum(single) - int(said.split(" repeated")[0].split()[-1])
