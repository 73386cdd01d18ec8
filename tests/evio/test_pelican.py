"""Indexes files through a Pelican federation: the director, its caches, the token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shim.evio import pelican, remote
from shim.evio.errors import EvioError
from shim.evio.index import read_index
from shim.evio.remote import open_source, path_of
from shim.evio.writer import write_file
from tests.grid.xrootd import make_certificate
from tests.support import free_port
from tests.worker.federation import Federation
from tests.worker.site import Site

PATH = "/raw data/hd_rawdata_000001_001.evio"
ENCODED = PATH.replace(" ", "%20")


@pytest.fixture
def caches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Site]]:
    make_certificate(folder)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    write_file(folder / "here.evio", 6, 10, filler_words=4000)
    files = {ENCODED: (folder / "here.evio").read_bytes()}
    with Site(files=dict(files), certificate=folder) as one, Site(files=files, certificate=folder) as two:
        yield [one, two]


@pytest.fixture
def federation(folder: Path, caches: list[Site]) -> Iterator[Federation]:
    with Federation(folder, [cache.url for cache in caches]) as federation:
        yield federation


def test_index_through_a_federation_is_that_of_the_file(
    federation: Federation, caches: list[Site], folder: Path
) -> None:
    index = read_index(f"{federation.url}{ENCODED}", token="secret")
    assert index == replace(read_index(folder / "here.evio"), path=PATH)
    assert caches[0].seen and not caches[1].seen
    assert not any("authorization" in seen.headers for seen in caches[0].seen), "it is public"


def test_token_goes_to_the_caches_only_where_it_is_demanded(
    federation: Federation, caches: list[Site]
) -> None:
    federation.needs_token = True
    read_index(f"{federation.url}{ENCODED}", token="secret")
    assert {seen.headers.get("authorization") for seen in caches[0].seen} == {"Bearer secret"}
    assert not any("authorization" in headers for _, headers in federation.seen)


@pytest.mark.parametrize("fault", [404, 403, "ignore-range", "wrong-range"])
def test_next_cache_is_used_when_one_fails(
    federation: Federation,
    caches: list[Site],
    folder: Path,
    fault: str | int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "RETRY_S", (0.1, None))
    federation.answers = [[f"https://localhost:{free_port()}", caches[0].url, caches[1].url]]
    caches[0].faults = [None, fault]
    source = open_source(f"{federation.url}{ENCODED}")
    whole = (folder / "here.evio").read_bytes()
    assert source.size == len(whole)
    assert source.read(70000, 1000) == whole[70000:71000]
    assert source.read(80000, 1000) == whole[80000:81000]
    source.close()
    assert (len(caches[0].seen), len(caches[1].seen) > 0) == (2, True)


def test_file_that_no_cache_serves_and_a_federation_that_is_away_are_errors_of_one_line(
    federation: Federation, caches: list[Site]
) -> None:
    for cache in caches:
        cache.files.clear()
    wrong = [f"{federation.url}{ENCODED}", f"pelican://localhost:{free_port()}{ENCODED}"]
    for url, words in zip(wrong, ["no cache serves it", "refused"], strict=True):
        with pytest.raises(EvioError, match=words) as caught:
            open_source(url)
        assert "\n" not in str(caught.value)
    federation.statuses = [404]
    with pytest.raises(EvioError, match="the director answers 404 instead of a redirect"):
        open_source(wrong[0])


@pytest.mark.parametrize(
    "url, path",
    [
        ("osdf:///gluex/a%20b.evio", "/gluex/a b.evio"),
        ("osdf://gluex/a.evio", "/gluex/a.evio"),
        ("pelican://host:8444//gluex/a.evio", "/gluex/a.evio"),
    ],
)
def test_path_that_is_registered_has_no_federation(url: str, path: str) -> None:
    assert path_of(url) == path
    assert pelican.split(url)[0] == ("host:8444" if url.startswith("pelican") else "osg-htc.org")
