"""Slices through a Pelican federation: a director on loopback, real XRootD as origin and caches, the real job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.database import call
from shim.evio.writer import write_file
from tests.grid.xrootd import Cache, XRootD
from tests.support import World
from tests.worker.conftest import Node
from tests.worker.federation import Federation

FILE = "hd_rawdata_000001_001.evio"


@pytest.fixture
def cache(xrootd: XRootD, certificate: Path) -> Iterator[Cache]:
    with Cache(xrootd, certificate) as cache:
        yield cache


@pytest.fixture
def federation(
    world: World,
    xrootd: XRootD,
    cache: Cache,
    certificate: Path,
    node: Node,
) -> Iterator[Federation]:
    """Files of the origin are the work of the project, and jobs get them through the federation."""
    raw = xrootd.data / "raw" / FILE
    raw.unlink(missing_ok=True)
    write_file(raw, 6, 10, filler_words=20_000)
    raw.chmod(0o644)
    world.load_raw(raw)
    node.environment["X509_CERT_DIR"] = str(certificate)
    with Federation(certificate, [cache.https_url]) as federation:
        world.set(xrootd_prefix=federation.url, strip_prefix=str(xrootd.data))
        yield federation
    raw.unlink()


def checksum(log: str) -> list[str]:
    """What cksum, the reconstruction, said of the slice: checksum, size and name."""
    (found,) = re.findall(r"^\d+ \d+ \S*evio\S*$", log, re.MULTILINE)
    return found.split()


def test_slice_comes_from_the_origin_through_a_cache_and_is_the_one_of_the_file(
    world: World, node: Node, federation: Federation, cache: Cache, xrootd: XRootD
) -> None:
    code, log = node.run(1)
    assert code == 0, log
    assert federation.asked() == 1
    assert cache.keeps(FILE)
    (row,) = call(world.db, "list_attempts", project="p")
    assert (row["outcome"], row["door"]) == ("done", cache.https_url)
    world.set(xrootd_prefix=f"http://127.0.0.1:{xrootd.https_port}")
    call(world.db, "recycle", project="p", states=["done"])
    code, directly = node.run(2)
    assert code == 0, directly
    assert checksum(log) == checksum(directly)


def test_job_goes_on_to_the_next_cache_when_the_first_one_is_gone(
    world: World,
    node: Node,
    federation: Federation,
    cache: Cache,
    xrootd: XRootD,
    certificate: Path,
) -> None:
    with Cache(xrootd, certificate) as first:
        federation.answers = [[first.https_url, cache.https_url]]
        assert node.run(1)[0] == 0
        first.stop()
        code, log = node.run(2, OSGPROD_BACKOFF_MS="600000")  # a pause would be seen
        assert code == 0, log
        assert f"going on to {cache.https_url}" in log
        doors = {row["process"]: row["door"] for row in call(world.db, "list_attempts", project="p")}
        assert doors == {1: first.https_url, 2: cache.https_url}
    assert call(world.db, "blocked_workers") == []
