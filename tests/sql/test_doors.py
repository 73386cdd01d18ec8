"""Where jobs read raw data: prefixes in order of preference, by site, by file; and which prefixes are refused."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call
from tests.support import World

FILE = "/hd_rawdata_000001_001.evio"


def urls(world: World, process: int, **more: object) -> list[str]:
    answer = world.checkout(process, **more)
    found = answer["urls"] or [answer["url"]]
    assert answer["url"] == found[0]
    return [url.removesuffix(FILE) for url in found]


@pytest.mark.parametrize("separator", [" ", ", ", ",", "\n", "  ,  "])
def test_job_gets_a_url_for_each_prefix_in_the_order_of_preference(world: World, separator: str) -> None:
    world.add_file(1)
    world.set(xrootd_prefix=separator.join(["https://a:1094", "root://b/", "osdf:///gluex", "/mnt"]))
    assert urls(world, 0) == ["https://a:1094", "root://b/", "osdf:///gluex", "/mnt"]
    (row,) = (
        r
        for r in call(world.db, "set_project", project="p", settings="{}")
        if r["setting"] == "xrootd_prefix"
    )
    assert row["value"] == "https://a:1094 root://b/ osdf:///gluex /mnt"


def test_prefixes_of_the_jobs_site_come_first_and_those_of_other_sites_are_left_out(world: World) -> None:
    world.add_file(3)
    world.set(xrootd_prefix="https://a uconn=https://near JLab=/mnt/raw https://b")
    assert urls(world, 0, site="UConn") == ["https://near", "https://a", "https://b"]
    assert urls(world, 1, site="jlab") == ["/mnt/raw", "https://a", "https://b"]
    assert urls(world, 2, site="MIT") == ["https://a", "https://b"]


def test_job_that_names_no_site_gets_the_prefixes_for_all(world: World) -> None:
    world.add_file(1)
    world.set(xrootd_prefix="uconn=https://near, https://a")
    assert urls(world, 0) == ["https://a"]


@pytest.mark.parametrize(
    "prefix",
    ["", "/mnt/a b", "/mnt/a,b=c", "https://h/x?a=b,c", "root://h/", "file://", "https://user@h:1/a b"],
)
def test_single_prefix_stands_before_the_path_as_it_is(world: World, prefix: str) -> None:
    world.add_file(1)
    world.set(xrootd_prefix=prefix)
    assert urls(world, 0) == [prefix]


def test_path_is_encoded_for_each_url_as_its_scheme_needs_it(db: psycopg.Connection[dict[str, Any]]) -> None:
    row = db.execute(
        "SELECT osgprod._source_urls('https://a root://b/ osdf:///x', '/a b', NULL) AS u"
    ).fetchone()
    assert row == {"u": ["https://a/a%20b", "root://b//a b", "osdf:///x/a%20b"]}


def test_prefix_of_a_file_takes_the_place_of_the_projects_until_it_is_removed(world: World) -> None:
    path = world.add_file(3)
    world.set(xrootd_prefix="https://a")
    assert urls(world, 0) == ["https://a"]
    again = dict(world.registered)
    assert call(world.db, "register_rawdata", **again, prefix="https://b, root://c/")[0]["status"] == "same"
    assert urls(world, 1) == ["https://b", "root://c/"]
    assert call(world.db, "register_rawdata", **again)[0]["status"] == "same"
    assert call(world.db, "list_rawdata", path=path)[0]["prefix"] == "https://b root://c/", "it stays"
    assert call(world.db, "register_rawdata", **again, prefix="")[0]["status"] == "same"
    assert urls(world, 2) == ["https://a"]


WRONG = {
    "gsiftp://host": "prefix 'gsiftp://host' has a scheme that no job knows",
    "s3://bucket": "prefix 's3://bucket' has a scheme that no job knows",
    "https://a gsiftp://host": "prefix 'gsiftp://host' has a scheme that no job knows",
    "xrootd.example.org": "prefix 'xrootd.example.org' is neither a URL nor an absolute folder",
    "https:/xrootd.example.org": "prefix 'https:/xrootd.example.org' is neither a URL nor an absolute folder",
    "mnt/raw": "prefix 'mnt/raw' is neither a URL nor an absolute folder",
    "https:///path": "prefix 'https:///path' names no host",
    "pelican:///path": "prefix 'pelican:///path' names no host",
    "file://host/path": "prefix 'file://host/path' names no host",
    "uconn=https://near": "prefix 'uconn=https://near' is for jobs of some sites only",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_prefix_that_no_job_can_read_is_refused_and_changes_nothing(world: World, wrong: str) -> None:
    world.set(xrootd_prefix="https://a")
    path = world.add_file(1)
    more = {"subnet_pattern": "127.0.0.0/8", "workscript": "w", "maxblockspercore": 1}
    for function, arguments in (
        ("set_project", {"project": "p", "settings": json.dumps({"xrootd_prefix": wrong})}),
        ("add_project", {"project": "q", "xrootd_prefix": wrong, **more}),
        ("register_rawdata", {**world.registered, "prefix": wrong}),
    ):
        with pytest.raises(psycopg.Error) as refused:
            call(world.db, function, **arguments)
        assert (refused.value.sqlstate, refused.value.diag.message_primary) == ("OG108", WRONG[wrong])
        assert refused.value.diag.message_hint
    assert [row["project"] for row in call(world.db, "progress")] == ["p"]
    assert call(world.db, "list_rawdata", path=path)[0]["prefix"] is None
    assert urls(world, 0) == ["https://a"]


@pytest.mark.parametrize(
    "scheme", ["http", "https", "dav", "davs", "root", "roots", "xroot", "xroots", "HTTPS"]
)
def test_each_scheme_that_a_job_can_read_is_taken(world: World, scheme: str) -> None:
    world.set(xrootd_prefix=f"{scheme}://host:1/")
    world.set(xrootd_prefix=f"osdf:///gluex {scheme}://host pelican://host/x file:///mnt")


def test_prefix_of_an_older_release_that_no_job_can_read_does_not_stop_other_settings(world: World) -> None:
    world.db.execute("UPDATE osgprod_data.projects SET xrootd_prefix = 'gsiftp://host'")
    world.set(lease_s=7700)


def test_door_of_a_report_is_on_record_without_secrets(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    assert world.report(0, door="https://me:secret@cache:8443")["status"] == "done"
    assert call(world.db, "list_attempts", project="p")[0]["door"] == "https://cache:8443"


def test_doors_are_listed_with_their_files_and_what_no_job_can_read(world: World) -> None:
    world.set(xrootd_prefix="https://a uconn=/mnt")
    for seqno in (1, 2, 3):
        world.add_file(1, seqno=seqno)
    call(world.db, "register_rawdata", **world.registered, prefix="root://c/")
    world.db.execute("UPDATE osgprod_data.rawdata SET prefix = 's3://b' WHERE seqno = 2")  # as nobody should
    rows = [tuple(row.values()) for row in call(world.db, "list_doors", project="p")]
    assert rows == [
        ("https://a", None, 1, None),
        ("/mnt", "uconn", 1, None),
        ("root://c/", None, 1, None),
        ("s3://b", None, 1, "has a scheme that no job knows"),
    ]
