"""What a job packs, and how it delivers that; in place of the server, the test assigns a short script."""

from __future__ import annotations

import re
import subprocess
import tarfile
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT, PATIENCE_S, wait_until
from tests.worker.conftest import EXEC, Node, is_root, living, names, reachable_for_all, slow
from tests.worker.site import Site

DONE, FAILED, NODE_FAULT = 0, 10, 20
TOKEN = "token-of-the-attempt"


@pytest.fixture
def server() -> Iterator[Site]:
    with Site() as server:
        server.files["/osgprod/workscript.bash"] = b"#!/bin/bash\n$OSGPROD_RECON\n"
        server.headers = {"Osgprod-Status": "assigned", "Osgprod-Token": TOKEN, "Osgprod-Slice": "a.evio+1,2"}
        yield server


@pytest.fixture
def node(folder: Path, server: Site) -> Iterator[Node]:
    (folder / "node").mkdir()
    node = Node(folder / "node", f"{server.url}/osgprod")
    node.environment["OSGPROD_RECON"] = "true"
    yield node
    node.end()


def reported(server: Site) -> dict[str, str]:
    """The last report of an exit code."""
    bodies = [seen.body for seen in server.seen if seen.path.endswith("workscript.exit")]
    return dict(urllib.parse.parse_qsl(bodies[-1].decode()))


# --- delivery ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults, has_checksums",
    [(["truncate", "abort", 507], False), (["truncate", "corrupt"], True), *slow(([], True), ([], False))],
)
def test_upload_counts_only_when_it_arrived_whole(
    node: Node, server: Site, site: Site, faults: list[str | int | None], has_checksums: bool
) -> None:
    site.has_checksums, tries = has_checksums, len(faults) + 1
    site.faults = [*faults]
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out/", OSGPROD_TRIES=str(tries + 1))
    assert code == DONE, log
    stored, report = site.files["/out/job_7_1.tar.gz"], reported(server)
    assert stored == (node.folder / "job_7_1.tar.gz").read_bytes()
    assert report["output_url"] == f"{site.url}/out/job_7_1.tar.gz"
    assert report["output_bytes"] == str(len(stored))
    assert report["output_adler32"] == f"{zlib.adler32(stored):08x}"
    assert sum(seen.method == "PUT" for seen in site.seen) == tries
    assert len([path for path in site.files if path.startswith("/out")]) == 1, "nothing else stays there"


def test_upload_that_storage_acknowledges_too_late_is_not_sent_again(
    node: Node, server: Site, site: Site
) -> None:
    (node.folder.parent / "bin").mkdir()
    # curl waits for two minutes.
    node.program("bin/curl", '[[ " $* " != *" -T "* ]] || set -- "${@/#120/1}"; exec /usr/bin/curl "$@"')
    site.faults = ["silent"]
    path = f"{node.folder.parent}/bin:/usr/bin:/bin"
    code, log = node.run(1, PATH=path, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    assert [seen.method for seen in site.seen].count("PUT") == 1, log
    assert reported(server)["output_url"] == f"{site.url}/out/job_7_1.tar.gz"


def test_storage_that_can_not_rename_will_do(node: Node, site: Site) -> None:
    site.can_rename = False
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    assert [path for path in site.files if path.startswith("/out")] == ["/out/job_7_1.tar.gz"]
    assert site.files["/out/job_7_1.tar.gz"] == (node.folder / "job_7_1.tar.gz").read_bytes()


@pytest.mark.parametrize("where", ["file", *slow("http")])
def test_output_of_somebody_else_with_the_same_name_stays(
    node: Node, server: Site, site: Site, folder: Path, where: str
) -> None:
    """Of another access point, for instance, whose cluster has the same number."""
    (folder / "out").mkdir()
    (folder / "out" / "job_7_1.tar.gz").write_bytes(b"another's")
    site.files["/out/job_7_1.tar.gz"] = b"another's"
    url = f"file://{folder}/out" if where == "file" else f"{site.url}/out"
    code, log = node.run(1, OSGPROD_OUTPUT_URL=url)
    assert code == DONE, log
    stored = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    if where == "http":
        stored = {
            path.removeprefix("/out/"): data for path, data in site.files.items() if path.startswith("/out")
        }
    assert stored.pop("job_7_1.tar.gz") == b"another's"
    ((name, data),) = stored.items()
    assert data == (node.folder / "job_7_1.tar.gz").read_bytes()
    assert reported(server)["output_url"] == f"{url}/{name}"


@pytest.mark.parametrize("moment", ["-I", "MOVE"], ids=["before", "during"])
def test_output_of_somebody_else_with_the_same_size_stays_where_storage_tells_no_checksum(
    node: Node, server: Site, site: Site, moment: str
) -> None:
    """It came before this job looked, or just before the rename."""
    site.has_checksums = False
    (node.folder.parent / "bin").mkdir()
    once, tarball = node.folder.parent / "once", node.folder / "unreported_job_7_1.p.tar.gz"
    node.program(
        "bin/curl",
        f"for a; do [[ $a != {moment} || -e {once} ]] || {{ touch {once}; head -c $(stat -c %s {tarball}) /dev/zero |"
        f" /usr/bin/curl -sS -T - -H Expect: -H Transfer-Encoding: -H Content-Length:$(stat -c %s {tarball})"
        f' {site.url}/out/job_7_1.tar.gz; }}; done; exec /usr/bin/curl "$@"',
    )
    path = f"{node.folder.parent}/bin:/usr/bin:/bin"
    code, log = node.run(1, PATH=path, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    stored = {path: data for path, data in site.files.items() if path.startswith("/out")}
    ours = (node.folder / "job_7_1.tar.gz").read_bytes()
    assert stored.pop("/out/job_7_1.tar.gz") == bytes(len(ours))
    assert list(stored.values()) == [ours]
    assert reported(server)["output_url"] == f"{site.url}{next(iter(stored))}"


def test_output_of_somebody_else_that_storage_did_not_show_at_once_stays(
    node: Node, server: Site, site: Site
) -> None:
    """The rename is refused: the job must not send its tarball over it."""
    site.files["/out/job_7_1.tar.gz"] = b"another's"
    site.unseen["/out/job_7_1.tar.gz"] = 1
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    stored = {path: data for path, data in site.files.items() if path.startswith("/out")}
    assert stored.pop("/out/job_7_1.tar.gz") == b"another's"
    assert list(stored.values()) == [(node.folder / "job_7_1.tar.gz").read_bytes()]
    assert reported(server)["output_url"] == f"{site.url}{next(iter(stored))}"


@pytest.mark.parametrize(
    "digest",
    [
        "md5=abc=, Adler32={:x}",
        *slow("ADLER32={:08X}", "adler32={:x}"),
    ],
)
def test_checksums_are_compared_as_numbers(node: Node, site: Site, digest: str) -> None:
    site.digest = digest
    site.faults = ["corrupt"]
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    assert sum(seen.method == "PUT" for seen in site.seen) == 2, (
        "a wrong checksum was seen, a right one believed"
    )
    assert site.files["/out/job_7_1.tar.gz"] == (node.folder / "job_7_1.tar.gz").read_bytes()


def test_storage_that_does_not_see_a_new_file_at_once_is_asked_again(node: Node, site: Site) -> None:
    site.blind = 2
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert code == DONE, log
    assert [seen.method for seen in site.seen if seen.method in ("PUT", "MOVE", "DELETE")] == ["PUT", "MOVE"]
    assert [path for path in site.files if path.startswith("/out")] == ["/out/job_7_1.tar.gz"]


@pytest.mark.parametrize("scheme", ["", *slow("file://")])
def test_output_goes_to_a_file_system(node: Node, server: Site, folder: Path, scheme: str) -> None:
    code, log = node.run(1, OSGPROD_OUTPUT_URL=f"{scheme}{folder}/outputs/deep")
    assert code == DONE, log
    (stored,) = (folder / "outputs" / "deep").iterdir()
    assert stored.name == "job_7_1.tar.gz"
    assert reported(server)["output_bytes"] == str(stored.stat().st_size)
    assert reported(server)["output_url"] == f"{scheme}{stored}"


@pytest.mark.parametrize(
    "script, call",
    [
        (EXEC, 'deliver file "$PWD/out/t" t "$size_of" "$adler" word 1'),
        (
            CHECKOUT / "worker" / "osgprod_merge.bash",
            'deliver_merged file "$PWD/out/t" t "$size_of" "$adler" 1',
        ),
    ],
)
def test_file_that_another_start_delivers_at_the_same_moment_leaves_no_copy(
    folder: Path, script: Path, call: str
) -> None:
    """It is there when this one renames its own: some mv say nothing then."""
    (folder / "t").write_bytes(b"the same")
    (folder / "out").mkdir()
    meanwhile = 'make_way() { :; }; send_file() { cp "$1" "${2#file://}" && cp "$1" out/t; }'
    done = subprocess.run(
        [
            *("/bin/bash", "-pc"),
            f"source {script}; scratch=$PWD/s pipe=$PWD/s/pipe BACKOFF_MS=1; exec 9<>/dev/null; {meanwhile}\n"
            f'size_of t; adler="$(adler32 t)"; {call}; rm -rf s',
        ],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "renaming failed: " in done.stderr
    assert [path.name for path in (folder / "out").iterdir()] == ["t"]


# The two commands of the Pelican client that the script uses; "cut" makes the first upload lose its end.
PELICAN = """[[ $1 == object ]] || exit 1
there=$STORE/${4##*/}
case $2 in
  put) if [[ -e $STORE/cut ]]; then rm "$STORE/cut"; head -c 10 "$3" >"$there"; else cp "$3" "$there"; fi ;;
  stat) there=$STORE/${3##*/}; [[ -e $there ]] && echo "Name: $3" && echo "Size: $(stat -c %s "$there")" ;;
esac"""


def test_upload_by_the_pelican_client_is_compared_too(node: Node, server: Site, folder: Path) -> None:
    (folder / "pelican").mkdir()
    (folder / "store").mkdir()
    (folder / "store" / "cut").touch()
    Path(node.program("pelican/pelican", PELICAN))
    environment = {"PATH": f"{folder}/pelican:/usr/bin:/bin", "STORE": str(folder / "store")}
    code, log = node.run(1, OSGPROD_OUTPUT_URL="osdf:///group/out", **environment)
    assert code == DONE, log
    assert "outputs not delivered to osdf:///group/out/job_7_1.tar.gz (attempt 1 of 3)" in log
    # Half an object stays under the first name, and the client replaces none.
    url = reported(server)["output_url"]
    assert re.fullmatch(r"osdf:///group/out/job_7_1\.\w+\.2\.tar\.gz", url)
    stored = (folder / "store" / url.rpartition("/")[2]).read_bytes()
    assert stored == (node.folder / "job_7_1.tar.gz").read_bytes()


# --- what is packed ------------------------------------------------------------------------------------------


def test_files_with_any_name_are_packed_and_counted_and_core_dumps_are_left_out_and_named(
    node: Node, server: Site
) -> None:
    recon = node.program(
        "recon",
        "touch -- -v $'a\\nb' 'c d' .hidden '*'; mkdir empty; ln -s none link\n"
        "mkdir d; for f in core d/core.123 core.txt; do echo x >$f; done; cp /bin/true core; cp /bin/true d/core.123",
    )
    code, log = node.run(1, OSGPROD_RECON=recon)
    assert code == DONE, log
    packed = {"-v", "a\nb", "c d", ".hidden", "*", "core.txt", "osgprod_work.log"}
    assert names(node.folder / "job_7_1.tar.gz") == packed
    assert reported(server)["outputs"] == "7", "with the link, without the empty folder"
    assert re.search(r"left out: core dump d/core.123, \d+ bytes", log)


def as_nobody(node: Node) -> tuple[str, ...]:
    """A command before a job that must not run as root, which may read everything."""
    reachable_for_all(node.folder.parent)
    node.environment.update(TMPDIR=str(node.folder))
    del node.environment["_CONDOR_SCRATCH_DIR"]
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@is_root
@pytest.mark.parametrize("leaves", ["chmod 0 d/e d c", *slow("chmod 0 .", "chmod 0 .. .", "chmod 500 .. .")])
def test_outputs_that_the_work_has_made_unreadable_for_itself_are_packed(
    node: Node, server: Site, leaves: str
) -> None:
    recon = node.program("recon", f"mkdir -p d/e; echo a >a; echo b >d/e/b; echo c >c; {leaves}")
    code, log = node.run(1, *as_nobody(node), OSGPROD_RECON=recon)
    assert code == DONE, log
    assert names(node.folder / "job_7_1.tar.gz") == {"a", "d/e/b", "c", "osgprod_work.log"}
    assert reported(server)["outputs"] == "3"


@is_root
def test_umask_that_takes_a_jobs_own_rights_stops_nothing(node: Node, server: Site) -> None:
    umask = ("/bin/bash", "-c", 'umask 777; exec "$@"', "-")
    recon = node.program("recon", "echo a >a; umask >umask")
    code, log = node.run(1, *as_nobody(node), *umask, OSGPROD_RECON=recon)
    assert code == DONE, log
    assert names(node.folder / "job_7_1.tar.gz") == {"a", "umask", "osgprod_work.log"}


@is_root
@pytest.mark.parametrize(("kind", "name"), [("d", "di\nr"), *slow(("f", "file"))])
def test_outputs_that_the_work_has_left_unreadable_fail_by_its_doing_and_are_not_packed_in_part(
    node: Node, server: Site, kind: str, name: str
) -> None:
    """Made by another user in a container, for example. Each node would have them so: none is to be blamed."""
    recon = node.program(
        "recon",
        "echo words; echo a >a; pwd -P >../../at.new; mv ../../at{.new,}; until [[ -e go ]]; do sleep 0.02; done",
    )
    job = node.start(1, *as_nobody(node), OSGPROD_RECON=recon)
    at = node.folder / "at"
    wait_until(at.exists, "the work runs")
    theirs = Path(at.read_text().rstrip("\n"), name)
    theirs.mkdir(mode=0o700) if kind == "d" else theirs.touch(mode=0o600)
    Path(theirs.parent, "go").touch()
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == FAILED, log
    report = reported(server)
    assert (report["exitcode"], report.get("fault")) == ("77", None)
    assert report["reason"] == (
        "the outputs could not be packed: the work has left a file or folder that this job may not read: "
        + name.replace("\n", "?")
    )
    assert report["log_tail"] == "words", "the log is sent all the same"
    assert {path.name for path in node.folder.glob("*.tar.gz")} == {"failed_job_7_1.tar.gz"}
    assert names(node.folder / "failed_job_7_1.tar.gz") == {"osgprod_work.log"}


@pytest.mark.parametrize("name", ["report", "report.new"])
def test_success_that_can_not_be_noted_leaves_no_tarball_that_nobody_could_report(
    node: Node, server: Site, name: str
) -> None:
    """As on a disk that has room for the tarball and none for the note beside it. The note's text is secret."""
    (node.folder / f"unreported_job_7_1.p.{name}").mkdir()
    code, log = node.run(1)
    assert code == NODE_FAULT, log
    assert (reported(server)["exitcode"], reported(server)["fault"]) == ("75", "node")
    assert [path.name for path in node.folder.iterdir()] == [f"unreported_job_7_1.p.{name}"], log
    assert TOKEN not in log


@pytest.mark.parametrize(
    ("ends", "code"), [(True, DONE), pytest.param(False, FAILED, marks=pytest.mark.slow)]
)
def test_output_that_changes_while_it_is_packed_is_packed_again_and_blames_no_node(
    node: Node, server: Site, ends: bool, code: int
) -> None:
    """By a process of another user, which the job can't end; or it seems so on a network file system."""
    (node.folder.parent / "bin").mkdir()
    node.program(
        "bin/tar",
        f'[[ -e once ]] || {{ {"touch once" if ends else "true"}; echo "tar: ./a: file changed as we read it" >&2\n'
        '[[ " $(tr "\\0" " ") " != *" ./a "* ]] || exit 1; }; exec /usr/bin/tar "$@"',
    )
    path = f"{node.folder.parent}/bin:/usr/bin:/bin"
    assert node.run(1, PATH=path, OSGPROD_RECON=node.program("recon", "echo a >a"))[0] == code
    report = reported(server)
    assert report["exitcode"] == ("0" if ends else "77")
    assert ends or report["reason"] == "the outputs could not be packed: tar: ./a: file changed as we read it"


@pytest.mark.parametrize("tries", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_output_that_vanishes_while_it_is_packed_blames_no_node(node: Node, server: Site, tries: int) -> None:
    (node.folder.parent / "bin").mkdir()
    recon = node.program("recon", "touch 1 2 3 4")
    node.program("bin/tar", f'rm -f "$(ls | grep -m 1 "[1-{tries}]")"; exec /usr/bin/tar "$@"')
    code, log = node.run(1, PATH=f"{node.folder.parent}/bin:/usr/bin:/bin", OSGPROD_RECON=recon)
    report = reported(server)
    if tries == 1:
        assert (code, report["outputs"]) == (DONE, "3"), log
    else:
        assert (code, report["exitcode"]) == (FAILED, "77"), log
        assert report["reason"].endswith("a file vanished while it was packed: 3")


def test_tar_that_fails_otherwise_is_the_nodes_fault_in_its_own_words(node: Node, server: Site) -> None:
    (node.folder.parent / "bin").mkdir()
    node.program(
        "bin/tar",
        'echo "tar: ./a: Cannot read: Input/output error\n'
        'tar: Exiting with failure status due to previous errors" >&2; exit 2',
    )
    recon = node.program("recon", "echo a >a")
    assert node.run(1, PATH=f"{node.folder.parent}/bin:/usr/bin:/bin", OSGPROD_RECON=recon)[0] == NODE_FAULT
    report = reported(server)
    assert (report["exitcode"], report["fault"]) == ("75", "node")
    assert report["reason"] == "the outputs could not be packed: tar: ./a: Cannot read: Input/output error"


def test_only_files_and_links_are_outputs(node: Node, server: Site) -> None:
    recon = node.program(
        "recon", "echo a >a; ln -s none dangling; ln -s . loop; mkfifo fifo osgprod_work.log"
    )
    code, log = node.run(1, OSGPROD_RECON=recon)
    assert code == DONE, log
    assert reported(server)["outputs"] == "3"
    with tarfile.open(node.folder / "job_7_1.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["./a", "./dangling", "./loop", "./osgprod_work.log"]


# --- output and secrets --------------------------------------------------------------------------------------


def test_of_a_long_output_head_and_tail_are_printed(node: Node) -> None:
    recon = node.program("recon", "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last")
    code, log = node.run(1, OSGPROD_RECON=recon, OSGPROD_MAX_LOG_BYTES="10000")
    assert code == DONE
    assert len(log) < 20_000
    assert "first\nxxx" in log and "xxx\nlast\n" in log
    assert re.search(r"--- osgprod_exec: 2990\d\d\d bytes of the work's output are left out here ---", log)


@pytest.mark.parametrize("output", ["closed", *slow("/dev/full")])
def test_output_that_can_not_be_written_stops_no_report(node: Node, server: Site, output: str) -> None:
    redirect = ">/dev/full 2>&1" if output == "/dev/full" else "1>&- 2>&-"
    code, _ = node.run(1, "/bin/bash", "-c", f'exec "$@" {redirect}', "-")
    assert code == DONE
    assert reported(server)["exitcode"] == "0"


def test_output_into_a_pipe_that_nobody_reads_stops_no_report(node: Node, server: Site) -> None:
    code, _ = node.run(1, "/bin/bash", "-c", '"$@" 2>&1 | true; exit "${PIPESTATUS[0]}"', "-")
    assert code == DONE
    assert reported(server)["exitcode"] == "0"


def test_secrets_stay_out_of_tarball_and_command_lines(
    node: Node, server: Site, site: Site, folder: Path
) -> None:
    (folder / "magic").write_text("top secret")
    look = 'env >"$OSGPROD_LOOK"; head -c 50000 /dev/urandom >good'
    (folder / "proxy").write_text("certificate and key")
    recon = node.program(
        "recon", f"ln {folder}/proxy proxy; echo >x509_plot; echo >bt_u1; echo >a.use; {look}"
    )
    site.faults = ["held"]
    job = node.start(
        1,
        OSGPROD_RECON=recon,
        OSGPROD_LOOK=str(folder / "look"),
        OSGPROD_OUTPUT_URL=f"{site.url}/out",
        OSGPROD_MAGIC_FILE=str(folder / "magic"),
        OSGPROD_JOB_KEY="secret-job-key",
        X509_USER_PROXY=str(folder / "proxy"),
        BEARER_TOKEN="very.secret.token",
    )
    lines: set[str] = set()
    while job.poll() is None:
        lines |= set(living(job.pid).values())
        if any("-T" in line for line in lines):
            site.lets_go.set()  # the upload was seen
        time.sleep(0.02)
    output, _ = job.communicate()
    assert job.returncode == DONE, output
    packed = {"good", "x509_plot", "bt_u1", "a.use", "osgprod_work.log"}
    assert names(node.folder / "job_7_1.tar.gz") == packed, "all but the credentials, under any name"
    assert reported(server)["outputs"] == str(len(packed) - 1), "the job counts the files that it packs"
    assert any("-T" in line for line in lines), "the upload was seen"
    assert reported(server)["magic"] == "top secret"
    seen = (folder / "look").read_text().replace("BEARER_TOKEN=very.secret.token", "")
    everything = "".join(lines) + seen + output
    assert "top secret" not in everything
    assert "OSGPROD_MAGIC" not in seen
    assert "secret-job-key" not in everything
    assert "very.secret" not in everything
    assert TOKEN not in everything, "the token of the attempt"
