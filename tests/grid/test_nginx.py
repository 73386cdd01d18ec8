"""The work script against a real nginx: HTTP/2, and names that a URL must encode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.evio.writer import write_file
from tests.grid.nginx import Nginx
from tests.grid.parts import need
from tests.grid.test_xrootd import FILE, ODD_FOLDERS, PLACE, Fetched
from tests.support import LiveShim, World
from tests.worker.site import Site


@pytest.fixture
def nginx(site: Site) -> Iterator[Nginx]:
    need("nginx")
    with Nginx(site.port) as server:
        yield server


@pytest.fixture
def script(world: World, shim: LiveShim, rawdata: Path) -> bytes:
    """The script of a slice in the middle of the file: two ranges."""
    world.set(xrootd_prefix=PLACE, strip_prefix=str(rawdata.parent))
    shim.checkout(1, cpus=2)
    return shim.checkout(2, cpus=3).content


@pytest.fixture
def sha256(script: bytes, rawdata: Path, folder: Path) -> str:
    """The checksum of the slice, fetched from the disk."""
    fetched = Fetched(folder, script, str(rawdata.parent))
    assert fetched.code == 0, fetched.log
    return fetched.sha256


def test_broken_stream_of_http_2_is_continued_over_http_1(
    nginx: Nginx, site: Site, script: bytes, sha256: str, rawdata: Path, folder: Path
) -> None:
    site.files[f"/{FILE}"] = rawdata.read_bytes()
    site.faults = [None, "close"]
    fetched = Fetched(
        *(folder, script, f"{nginx.url}/behind"),
        CURL_CA_BUNDLE=str(nginx.certificate),
        OSGPROD_BACKOFF_MS="10",
    )
    assert (fetched.code, fetched.sha256) == (0, sha256), fetched.log
    assert "curl: (92) HTTP/2 stream" in fetched.log
    assert [line.split()[0] for line in nginx.requests()] == ["HTTP/2.0", "HTTP/2.0", "HTTP/1.1"]
    ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in site.seen]
    assert ranges[2][1] == ranges[1][1] and int(ranges[2][0]) > int(ranges[1][0]), "it goes on where it broke"


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_file_in_a_folder_with_an_odd_name_is_fetched_as_the_server_says(
    nginx: Nginx, world: World, shim: LiveShim, folder: Path, name: str
) -> None:
    path = nginx.data / name / FILE
    path.parent.mkdir()
    write_file(path, 6, 10)
    world.set(xrootd_prefix=nginx.url, strip_prefix=str(nginx.data))
    world.load_raw(path)
    script = shim.checkout(1, cpus=3).content
    fetched = Fetched(folder, script, None, CURL_CA_BUNDLE=str(nginx.certificate))
    from_disk = Fetched(folder, script, str(path.parent))
    assert (fetched.code, fetched.sha256) == (0, from_disk.sha256), fetched.log
    assert len(fetched.sha256) == 64
