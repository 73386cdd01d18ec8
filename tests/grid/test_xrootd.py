"""The scripts of a job against a real XRootD: slices by byte ranges over http and root, outputs with a token."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.grid.conftest import write_sparse_file
from tests.grid.proxy import Proxy
from tests.grid.xrootd import XRootD
from tests.support import PATIENCE_S, LiveShim, World, wait_until
from tests.worker.conftest import EXEC, Node, kill, report_of

NOT_FETCHED, DONE, LATER = 75, 0, 30
BLOCKS, BLOCK_BYTES = 2000, 540_000
FILE = "hd_rawdata_000001_001.evio"
PLACE = "http://storage.invalid"
DELAY_S = 0.03
# Of folders, as they are on the disk.
ODD_FOLDERS = (
    "a space",
    "a#fragment",
    "a%41percent",
    "a+plus&and;",
    "münchen",
    "a[1-2]{x,y}",
    "a\\backslash",
    "a?query",
)


@pytest.fixture(scope="module")
def big_file(xrootd: XRootD) -> Path:
    """A raw data file of more than 1 GB, served by XRootD."""
    path = xrootd.data / "raw" / FILE
    write_sparse_file(path, BLOCKS, BLOCK_BYTES)
    assert path.stat().st_size > 1 << 30
    return path


@pytest.fixture(scope="module")
def assigned() -> dict[int, bytes]:
    """The scripts of the slices that begin at a block, kept for all tests."""
    return {}


@pytest.fixture
def scripts(request: pytest.FixtureRequest, assigned: dict[int, bytes], big_file: Path) -> dict[int, bytes]:
    """Scripts of slices with 4 blocks from 1 and from 1,900 on, by the real shim."""
    if not assigned:
        world, shim = request.getfixturevalue("world"), request.getfixturevalue("shim")
        load(world, big_file, PLACE)
        assigned[1] = shim.checkout(1, cpus=4).content
        assert shim.checkout(2, cpus=1895).headers["Osgprod-Slice"] == f"{FILE}+5,1900"
        assigned[1900] = shim.checkout(3, cpus=4).content
    return assigned


def load(world: World, path: Path, prefix: str) -> None:
    world.set(xrootd_prefix=prefix, strip_prefix=str(path.parent))
    world.load_raw(path)


class Fetched:
    """One run of a work script: how it ended, how long it took, and the slice's checksum."""

    def __init__(self, folder: Path, script: bytes, url: str | None, **environment: str) -> None:
        """url: of the folder with the raw data file; None = as the server gave it."""
        work = folder / f"work-{time.monotonic_ns()}"
        work.mkdir()
        if url is not None:
            source = f"osgprod_source_url={shlex.quote(url)}/{FILE}".encode()
            script, count = re.subn(rb"^osgprod_source_url=.*$", lambda _: source, script, flags=re.MULTILINE)
            assert count == 1
            sources = f"osgprod_source_urls=({shlex.quote(url)}/{FILE})".encode()
            every = rb"^osgprod_source_urls=\(\n(?: .*\n)*\)$"
            script, count = re.subn(every, lambda _: sources, script, flags=re.MULTILINE)
            assert count == 1
        (work / "script").write_bytes(script)
        started = time.monotonic()
        done = subprocess.run(
            ["/bin/bash", "script"],
            cwd=work,
            env={"PATH": "/usr/bin:/bin", "OSGPROD_RECON": "sha256sum", **environment},
            capture_output=True,
            text=True,
        )
        self.ended_at = time.monotonic()
        self.took_s = self.ended_at - started
        self.code, self.log = done.returncode, done.stderr
        self.sha256 = done.stdout.split()[0] if done.stdout else ""


def expected(big_file: Path, block1: int, block2: int) -> tuple[str, int]:
    """Checksum and size of a slice, cut here from the file: preamble, blocks, and a trailer with its number."""
    with big_file.open("rb") as file:
        preamble_bytes = 4 * int.from_bytes(file.read(4), "big")
        file.seek(0)
        head = file.read(preamble_bytes)
        file.seek(preamble_bytes + (block1 - 1) * BLOCK_BYTES)
        body = file.read((block2 - block1) * BLOCK_BYTES)
        file.seek(-32, os.SEEK_END)
        trailer = file.read()
    data = head + body + trailer
    return hashlib.sha256(data).hexdigest(), len(data)


@pytest.mark.parametrize("block1", [1, 1900])
@pytest.mark.parametrize("protocol", ["http", "root"])
def test_slice_of_a_large_file_costs_its_own_bytes(
    xrootd: XRootD, scripts: dict[int, bytes], big_file: Path, folder: Path, protocol: str, block1: int
) -> None:
    port = xrootd.port if protocol == "root" else xrootd.https_port
    with Proxy(port) as proxy:
        fetched = Fetched(folder, scripts[block1], f"{protocol}://127.0.0.1:{proxy.port}//raw")
    sha256, size = expected(big_file, block1, block1 + 4)
    assert (fetched.code, fetched.sha256) == (0, sha256), fetched.log
    assert proxy.to_client < 1.05 * size
    assert proxy.to_server < 20_000
    if protocol == "http":
        assert len(proxy.first_lines) <= 3, "round trips"
        assert all(line.startswith(b"GET /") for line in proxy.first_lines)


@pytest.mark.parametrize("protocol", ["http", "root"])
def test_block_far_behind_takes_no_longer_from_far_away(
    xrootd: XRootD, scripts: dict[int, bytes], folder: Path, protocol: str
) -> None:
    port = xrootd.port if protocol == "root" else xrootd.https_port
    took: dict[int, list[float]] = {1: [], 1900: []}
    with Proxy(port, DELAY_S) as proxy:

        def takes_no_longer() -> bool:
            for block1, times in took.items():
                fetched = Fetched(folder, scripts[block1], f"{protocol}://127.0.0.1:{proxy.port}//raw")
                assert fetched.code == 0, fetched.log
                times.append(fetched.took_s)
            return min(took[1900]) - min(took[1]) < 1.5

        # The machine may be busy with something else.
        wait_until(takes_no_longer, "a block far behind takes no longer", seen=lambda: took)
    print(f"{protocol}, {1000 * DELAY_S:.0f} ms each way: {took}")


@pytest.mark.parametrize("protocol", ["http", "root"])
@pytest.mark.parametrize("folder_there, status", [("raw/none", "404"), ("secret", "403")])
def test_missing_and_forbidden_files_are_given_up_on_after_four_attempts(
    xrootd: XRootD, scripts: dict[int, bytes], folder: Path, protocol: str, folder_there: str, status: str
) -> None:
    port = xrootd.port if protocol == "root" else xrootd.https_port
    url = f"{protocol}://127.0.0.1:{port}//{folder_there}"
    fetched = Fetched(folder, scripts[1900], url, OSGPROD_BACKOFF_MS="10")
    assert fetched.code == NOT_FETCHED
    reason = fetched.log.splitlines()[-1]
    assert "(4 attempts, 0 of" in reason
    assert (f"not fetched: status {status}" if protocol == "http" else "not fetched: [ERROR] ") in reason


@pytest.mark.parametrize("protocol", ["http", "root"])
@pytest.mark.parametrize("name", [name for name in ODD_FOLDERS if "?" not in name])
def test_file_in_a_folder_with_an_odd_name_is_fetched(
    xrootd: XRootD, scripts: dict[int, bytes], big_file: Path, folder: Path, protocol: str, name: str
) -> None:
    """Over http by its encoded URL, over root by its name. XRootD opens no name with a "?" by either."""
    (xrootd.data / "raw" / name).mkdir(exist_ok=True)
    (xrootd.data / "raw" / name / FILE).unlink(missing_ok=True)
    os.link(big_file, xrootd.data / "raw" / name / FILE)
    port, place = (xrootd.port, name) if protocol == "root" else (xrootd.https_port, quote(name))
    fetched = Fetched(folder, scripts[1900], f"{protocol}://127.0.0.1:{port}//raw/{place}")
    assert (fetched.code, fetched.sha256) == (0, expected(big_file, 1900, 1904)[0]), fetched.log


def test_server_that_is_away_for_30_seconds_is_waited_for(
    xrootd: XRootD, scripts: dict[int, bytes], big_file: Path, folder: Path
) -> None:
    """With the settings that ship."""
    xrootd.stop()
    back_at = time.monotonic() + 30
    returning = threading.Timer(30, xrootd.start)
    returning.start()
    urls = [f"http://127.0.0.1:{xrootd.https_port}//raw", f"root://127.0.0.1:{xrootd.port}//raw"]
    with ThreadPoolExecutor() as threads:
        for fetched in threads.map(lambda url: Fetched(folder, scripts[1900], url), urls):
            assert (fetched.code, fetched.sha256) == (0, expected(big_file, 1900, 1904)[0]), fetched.log
            assert fetched.ended_at > back_at
    returning.join()


# --- outputs -------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(node: Node, world: World, big_file: Path, xrootd: XRootD) -> Iterator[Node]:
    """A node with work in the big file, the server's certificate, and a token; outputs folders empty."""
    load(world, big_file, f"http://127.0.0.1:{xrootd.https_port}//raw")
    node.environment |= {"CURL_CA_BUNDLE": str(xrootd.certificate), "BEARER_TOKEN": xrootd.token()}
    for name in ("outputs", "open"):
        for path in (xrootd.data / name).iterdir():
            path.unlink()
    yield node


@pytest.mark.parametrize("protocol", ["https", "root"])
def test_output_arrives_and_its_size_and_checksum_are_on_record(
    ready: Node, world: World, xrootd: XRootD, protocol: str
) -> None:
    base, name = (xrootd.https_url, "outputs") if protocol == "https" else (xrootd.root_url, "open")
    code, log = ready.run(1, OSGPROD_OUTPUT_URL=f"{base}/{name}")
    assert code == DONE, log
    assert "can't rename" not in log
    assert [path.name for path in (xrootd.data / name).iterdir()] == ["job_7_1.tar.gz"]
    stored, report = (xrootd.data / name / "job_7_1.tar.gz").read_bytes(), report_of(world)
    assert stored == (ready.folder / "job_7_1.tar.gz").read_bytes()
    assert (report["outcome"], report["output_bytes"]) == ("done", len(stored))
    assert report["output_adler32"] == f"{zlib.adler32(stored):08x}"
    assert report["output_url"] == f"{base}/{name}/job_7_1.tar.gz"


@pytest.mark.parametrize(
    "claims", [{"exp": 1}, {"scope": "storage.read:/"}, {"iss": "https://other.invalid"}]
)
def test_upload_without_a_good_token_is_no_success(
    ready: Node, world: World, xrootd: XRootD, claims: dict[str, object]
) -> None:
    environment = {"BEARER_TOKEN": xrootd.token(**claims), "OSGPROD_TRIES": "2"}  # type: ignore[arg-type]
    code, log = ready.run(1, OSGPROD_OUTPUT_URL=f"{xrootd.https_url}/outputs", **environment)
    assert code == LATER, log
    assert report_of(world)["outcome"] == "node-fault"
    assert list((xrootd.data / "outputs").iterdir()) == []


class TokensOnly(XRootD):
    """Its clients have to show a token when they connect."""

    def _config(self) -> str:
        return super()._config().replace("sec.protocol unix\nsec.protbind * unix", "sec.protocol ztn")


@pytest.mark.parametrize("is_named", [True, False])
def test_xrootd_gets_no_token_from_a_job_unless_somebody_named_it(
    folder: Path, certificates: Path, is_named: bool
) -> None:
    with TokensOnly() as server:
        (certificates / "server.pem").write_bytes(server.certificate.read_bytes())
        subprocess.run(["openssl", "rehash", str(certificates)], check=True)
        url = f"roots://localhost:{server.port}//outputs"
        done = subprocess.run(
            ["/bin/bash", "-c", 'source "$1"; trust_only; stored_root "$2"', "-", str(EXEC), url],
            env={
                "PATH": "/usr/bin:/bin",
                "BEARER_TOKEN": server.token(),
                "X509_CERT_DIR": str(certificates),
                "OSGPROD_TOKEN_HOSTS": f"localhost:{server.port}" if is_named else "localhost:1",
                "XrdSecDEBUG": "1",
            },
            capture_output=True,
            text=True,
        )
    assert ("Using ztn protocol" in done.stderr) is is_named, done.stderr
    assert ("only want unix" in done.stderr) is not is_named
    assert bool(done.stdout) is is_named


@pytest.fixture
def certificates(folder: Path) -> Path:
    (folder / "certificates").mkdir()
    return folder / "certificates"


def test_certificate_that_nobody_signed_is_not_trusted(ready: Node, xrootd: XRootD) -> None:
    url = f"{xrootd.https_url}/outputs"
    code, log = ready.run(1, OSGPROD_OUTPUT_URL=url, CURL_CA_BUNDLE=None, OSGPROD_TRIES="1")
    assert code == LATER, log
    assert "SSL certificate" in log


@pytest.mark.parametrize("protocol", ["https", "root"])
def test_killed_upload_never_counts(ready: Node, world: World, xrootd: XRootD, protocol: str) -> None:
    secure = protocol == "https"
    recon = ready.program("recon", "head -c 3000000 /dev/urandom >big")
    # 10 s: also on a busy machine it is killed long before the end.
    with Proxy(xrootd.https_port if secure else xrootd.port, bytes_per_s=3e5) as proxy:
        host = f"https://localhost:{proxy.port}/outputs" if secure else f"root://127.0.0.1:{proxy.port}//open"
        job = ready.start(1, OSGPROD_OUTPUT_URL=host, OSGPROD_RECON=recon)
        wait_until(lambda: proxy.to_server > 500_000, "a sixth is sent", job)
        kill(job.pid)
        job.communicate()
    stored = xrootd.data / ("outputs" if secure else "open")
    assert world.db.execute("SELECT FROM osgprod_data.reports").fetchall() == []
    assert not (stored / "job_7_1.tar.gz").exists(), "a part does not look like an output"
    url = f"{xrootd.https_url}/outputs" if secure else f"{xrootd.root_url}/open"
    code, log = ready.run(1, OSGPROD_OUTPUT_URL=url, OSGPROD_RECON=recon)
    assert code == DONE, log
    report = report_of(world)
    # The next start finds the whole tarball in the job's folder, and delivers that.
    assert report["output_url"].endswith("/job_7_1.tar.gz")
    assert (stored / "job_7_1.tar.gz").stat().st_size == report["output_bytes"] > 2_900_000


@pytest.mark.parametrize("protocol", ["https", "root"])
def test_output_of_a_superseded_attempt_is_removed_from_storage(
    ready: Node, world: World, shim: LiveShim, xrootd: XRootD, protocol: str
) -> None:
    at_work, go = ready.folder.parent / "at_work", ready.folder.parent / "go"
    recon = ready.program("recon", f"touch {at_work}; until [[ -e {go} ]]; do sleep 0.02; done")
    base, name = (xrootd.https_url, "outputs") if protocol == "https" else (xrootd.root_url, "open")
    job = ready.start(1, OSGPROD_OUTPUT_URL=f"{base}/{name}", OSGPROD_RECON=recon)
    wait_until(at_work.exists, "it is at work", job)
    world.let_leases_run_out()
    world.db.execute("SELECT osgprod.reclaim_lost()")
    assert shim.checkout(2).headers["Osgprod-Status"] == "assigned"
    assert shim.report(2).status_code == 200
    go.touch()
    output, _ = job.communicate(timeout=PATIENCE_S)
    assert (
        report_of(world).get("outcome") == "superseded" or "superseded" in output or "too late" in output
    ), output
    assert list((xrootd.data / name).iterdir()) == [], output
