"""The work script reads its slice through a Pelican federation: the director, its caches, the token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import free_port
from tests.worker.conftest import slow
from tests.worker.federation import Federation
from tests.worker.fetching import NOT_FETCHED, Slice, call, trusting
from tests.worker.site import Site

FILE = "/hd_rawdata_000001_001.evio"


@pytest.fixture
def caches(slice_: Slice, site: Site, certificate: Path) -> Iterator[list[Site]]:
    """Two caches that have the raw data file, by https."""
    with (
        Site(files=dict(site.files), certificate=certificate) as one,
        Site(files=dict(site.files), certificate=certificate) as two,
    ):
        yield [one, two]


@pytest.fixture
def federation(certificate: Path, caches: list[Site]) -> Iterator[Federation]:
    with Federation(certificate, [cache.url for cache in caches]) as federation:
        yield federation


class Fetch:
    """Runs the work script on a Pelican URL."""

    def __init__(self, assigned: dict[str, bytes], folder: Path, certificate: Path) -> None:
        self._assigned, self._folder, self._certificate = assigned, folder, certificate
        self.report = folder / "report"

    def __call__(self, prefix: str, **environment: str) -> tuple[int, str, bool]:
        """Returns the exit code, the log, and whether the reconstruction saw the right slice."""
        self.report.unlink(missing_ok=True)
        slice_ = Slice(self._assigned, self._folder, prefix)
        environment = {
            **trusting(self._certificate),
            "OSGPROD_REPORT": str(self.report),
            **environment,
        }
        code, log, seen = slice_.run(**environment)
        assert seen in (None, slice_.expected), "wrong bytes reached the reconstruction"
        return code, log, seen is not None

    def door(self) -> str:
        lines = [line for line in self.report.read_text().splitlines() if line.startswith("door=")]
        assert len(lines) == 1
        return lines[0].removeprefix("door=")


@pytest.fixture
def fetch(assigned: dict[str, bytes], folder: Path, certificate: Path) -> Fetch:
    return Fetch(assigned, folder, certificate)


def test_slice_comes_from_the_cache_that_the_director_prefers(
    fetch: Fetch, federation: Federation, caches: list[Site]
) -> None:
    assert fetch(federation.url, BEARER_TOKEN="secret") == (0, "", True)
    assert [path for path, _ in federation.seen] == [
        "/.well-known/pelican-configuration",
        f"/director{FILE}",
    ]
    assert [len(cache.seen) for cache in caches] == [2, 0]
    assert fetch.door() == caches[0].url


def test_token_goes_nowhere_when_the_namespace_is_public(
    fetch: Fetch, federation: Federation, caches: list[Site]
) -> None:
    fetch(federation.url, BEARER_TOKEN="secret")
    headers = [headers for _, headers in federation.seen] + [seen.headers for seen in caches[0].seen]
    assert len(headers) == 4
    assert not any("authorization" in each for each in headers)


def test_token_goes_to_the_caches_and_not_to_the_director_when_it_is_demanded(
    fetch: Fetch, federation: Federation, caches: list[Site]
) -> None:
    federation.needs_token = True
    caches[0].faults = [500]
    code, log, fetched = fetch(federation.url, BEARER_TOKEN="secret")
    assert (code, fetched) == (0, True), log
    assert not any("authorization" in headers for _, headers in federation.seen)
    seen = [seen.headers.get("authorization") for cache in caches for seen in cache.seen]
    assert seen == ["Bearer secret"] * 3
    assert "secret" not in log


def test_federation_that_nobody_named_gets_no_token_though_it_demands_one(
    fetch: Fetch,
    assigned: dict[str, bytes],
    federation: Federation,
    caches: list[Site],
    folder: Path,
    certificate: Path,
) -> None:
    """As a merge's input, which a job has reported: the work script names the federations of its sources."""
    federation.needs_token = True
    script = assigned["script"].replace(b'trust_only "${doors[@]}"', b"trust_only")
    assert script != assigned["script"]
    fetch = Fetch({**assigned, "script": script}, folder, certificate)
    code, log, _ = fetch(federation.url, BEARER_TOKEN="secret")
    assert code == NOT_FETCHED
    assert "the director demands a token; no credentials were shown to" in log.splitlines()[-1]
    assert not any(cache.seen for cache in caches)
    assert not any("authorization" in headers for _, headers in federation.seen)


def test_missing_token_is_named_and_no_cache_is_asked(
    fetch: Fetch, federation: Federation, caches: list[Site], folder: Path
) -> None:
    federation.needs_token = True
    code, log, _ = fetch(federation.url, BEARER_TOKEN_FILE=str(folder / "none"))
    assert code == NOT_FETCHED
    assert "the director demands a token, and this job has none" in log.splitlines()[-1]
    assert not any(cache.seen for cache in caches)


def test_cache_of_plain_http_is_used_for_public_data_and_never_where_a_token_is_demanded(
    fetch: Fetch, federation: Federation, site: Site
) -> None:
    federation.answers = [[site.url]]
    assert fetch(federation.url, BEARER_TOKEN="secret") == (0, "", True)
    assert not any("authorization" in seen.headers for seen in site.seen)
    site.seen.clear()
    federation.needs_token = True
    code, log, _ = fetch(federation.url, BEARER_TOKEN="secret")
    assert (code, site.seen) == (NOT_FETCHED, [])
    assert "the director names no cache" in log.splitlines()[-1]


# With a cache that is gone and a good one these are the six caches that a job tries.
@pytest.mark.parametrize("faults", [(500, 404, 401, 429), ("wrong-range", "ignore-range", "close", "short")])
def test_next_cache_is_tried_at_once_when_one_is_gone_or_misbehaves(
    fetch: Fetch, federation: Federation, site: Site, certificate: Path, faults: tuple[str | int, ...]
) -> None:
    dead = f"https://localhost:{free_port()}"
    with contextlib.ExitStack() as sites:

        def cache(*faults: str | int) -> Site:
            return sites.enter_context(
                Site(files=dict(site.files), faults=[*faults], certificate=certificate)
            )

        bad, good = [cache(*[fault] * 9) for fault in faults], cache()
        urls = [dead, *(one.url for one in bad), good.url]
        federation.answers = [urls]
        code, log, fetched = fetch(federation.url, OSGPROD_BACKOFF_MS="600000")  # a pause would be seen
        assert (code, fetched) == (0, True), log
        assert f"{dead}: no answer: " in log and all(f"going on to {url}" in log for url in urls[1:]), log
        assert [len(one.seen) for one in bad] == [1] * len(faults)
        assert federation.asked() == 1
        assert fetch.door() == good.url


def test_slice_is_fetched_from_the_next_cache_when_wrong_bytes_came(
    fetch: Fetch, federation: Federation, caches: list[Site], site: Site, certificate: Path
) -> None:
    caches[0].faults, caches[1].faults = [None, "zeros"], [None, "shifted"]
    with Site(files=dict(site.files), certificate=certificate) as good:
        federation.answers = [[*(cache.url for cache in caches), good.url]]
        code, log, fetched = fetch(federation.url, OSGPROD_BACKOFF_MS="600000")
        assert (code, fetched) == (0, True), log
        assert log.count("wrong bytes came") == 2
        assert fetch.door() == good.url


def test_cache_that_breaks_off_in_mid_slice_leaves_only_the_rest_to_the_next_one(
    fetch: Fetch,
    federation: Federation,
    caches: list[Site],
    slice_: Slice,
) -> None:
    caches[0].faults = [None, "close"]
    code, log, fetched = fetch(federation.url)
    assert (code, fetched) == (0, True), log
    assert caches[0].sent() + caches[1].sent() == slice_.ranges


def test_director_is_asked_again_when_none_of_its_caches_serves_any_more(
    fetch: Fetch, federation: Federation, caches: list[Site]
) -> None:
    """Its answer has expired: an expired signature, caches that are gone."""
    gone = [f"https://localhost:{free_port()}"]
    caches[0].faults = [403, 403]
    federation.answers = [gone, [caches[0].url], gone, [caches[0].url], [caches[1].url]]
    code, log, fetched = fetch(federation.url, OSGPROD_TRIES="9")
    assert (code, fetched) == (0, True), log
    assert federation.asked() == 5


def test_signed_location_is_used_as_it_is_and_not_twice(
    fetch: Fetch,
    federation: Federation,
    caches: list[Site],
    assigned: dict[str, bytes],
) -> None:
    federation.query = "?authz=secret"
    caches[0].files = {f"{FILE}?authz=secret": assigned["rawdata"]}
    code, log, fetched = fetch(federation.url)
    assert (code, log, fetched) == (0, "", True)
    caches[0].seen.clear()
    caches[0].faults = [503]
    code, log, fetched = fetch(federation.url)
    assert (code, fetched, len(caches[0].seen)) == (0, True, 1)
    assert "secret" not in log


def test_links_are_enough_and_their_priority_is_kept(
    fetch: Fetch, federation: Federation, caches: list[Site]
) -> None:
    federation.has_location = False
    assert fetch(federation.url) == (0, "", True)
    assert [len(cache.seen) for cache in caches] == [2, 0]


@pytest.mark.parametrize(
    "statuses, words",
    [
        ([404] * 4, "the director answers 404 instead of a redirect (4 attempts"),
        ([503] * 5, "the director answers 503 instead of a redirect (5 attempts"),
        *slow(([200] * 5, "the director answers 200 instead of a redirect (5 attempts")),
    ],
)
def test_director_that_does_not_direct_is_given_up_on(
    fetch: Fetch, federation: Federation, statuses: list[int], words: str
) -> None:
    federation.statuses = list(statuses)
    code, log, _ = fetch(federation.url, OSGPROD_TRIES="5")
    assert code == NOT_FETCHED
    assert words in log.splitlines()[-1]
    assert federation.asked() == len(statuses)


def test_director_that_fails_for_a_while_is_waited_for(fetch: Fetch, federation: Federation) -> None:
    federation.statuses = [503, 404, 500]
    code, log, fetched = fetch(federation.url)
    assert (code, fetched) == (0, True), log


def test_federation_that_is_away_or_none_is_named(fetch: Fetch, federation: Federation) -> None:
    host = f"localhost:{free_port()}"
    code, log, _ = fetch(f"pelican://{host}", OSGPROD_TRIES="2")
    assert code == NOT_FETCHED
    assert f"no configuration of the federation {host}: curl: (7)" in log.splitlines()[-1]
    for configuration in ({}, {"director_endpoint": "http://localhost:1"}, {"director_endpoint": 7}):
        federation.configuration = configuration
        code, log, _ = fetch(federation.url)
        assert code == NOT_FETCHED
        assert f"the federation {federation.host} names no director" in log.splitlines()[-1]


def test_slashes_of_the_configuration_may_be_escaped(fetch: Fetch, federation: Federation) -> None:
    federation.escapes_slashes = True
    assert fetch(federation.url) == (0, "", True)


@pytest.mark.parametrize(
    "url, federation_of",
    [
        ("osdf:///gluex/a/b.evio", "osg-htc.org /gluex/a/b.evio"),
        ("osdf://gluex/a/b.evio", "osg-htc.org /gluex/a/b.evio"),
        ("OSDF:///gluex/a?x=y", "osg-htc.org /gluex/a"),
        ("pelican://host:8444/a/b", "host:8444 /a/b"),
        ("Pelican://host//a/b", "host /a/b"),
        ("pelican://host", "host /"),
    ],
)
def test_host_and_path_of_a_pelican_url(url: str, federation_of: str) -> None:
    code, output, _ = call('federation_of "$1"', url)
    assert (code, output) == (0, federation_of)
