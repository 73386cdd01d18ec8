"""What becomes of texts: labels of jobs, magics with line ends, paths in URLs."""

from __future__ import annotations

import sys
import unicodedata
import urllib.parse
from typing import Any

import psycopg
import pytest

from shim.database import call
from tests.support import World

UNSEEN = ("Cc", "Cf", "Zl", "Zp")


def test_a_label_holds_no_character_of_unicode_that_is_unseen_or_ends_a_line(
    db: psycopg.Connection[dict[str, Any]],
) -> None:
    kinds = [(n, unicodedata.category(chr(n))) for n in range(1, sys.maxunicode + 1)]
    others = [n for n, kind in kinds if kind in ("Lo", "So", "Zs")]
    codes = [n for n, kind in kinds if kind in UNSEEN] + others[::20]
    rows = db.execute(
        "SELECT n, osgprod._label('a' || chr(n) || 'b') AS label FROM unnest(%s::int[]) AS n", (codes,)
    ).fetchall()
    assert len(rows) > 6_000
    for row in rows:
        character = chr(row["n"])
        is_unseen = unicodedata.category(character) in UNSEEN
        assert row["label"] == ("a b" if is_unseen else f"a{character}b"), f"U+{row['n']:04X}"


def test_host_site_reason_and_url_of_a_job_are_one_plain_line_each(world: World) -> None:
    bad = "\ufeffa\u202eb\u200b\u2028c\u2066\x1b[2J\x85 "
    world.add_file(1)
    world.checkout(0, host=bad, site=bad)
    world.report(0, 1, reason=bad, output_url="file:///" + bad)
    row = world.db.execute("SELECT worker, site, reason, output_url FROM osgprod_data.reports").fetchone()
    assert row == {
        "worker": "a b c [2J@127.0.0.1",
        "site": "a b c [2J",
        "reason": "a b c [2J",
        "output_url": "file:/// a b c [2J",
    }


@pytest.mark.parametrize("stored", ["secret", "secret\n", "secret\r\n"])
@pytest.mark.parametrize("sent", ["secret", "secret\n", "secret\r\n", "secret\r"])
def test_line_ends_behind_a_magic_are_not_part_of_it_on_either_side(
    world: World, stored: str, sent: str
) -> None:
    call(world.db, "set_magic", project="p", magic=stored)
    world.add_file(1)
    assert world.checkout(0, magic=sent)["status"] == "assigned"
    for wrong in ("\r\nsecret", "secret ", "sec\r\nret", "\r\n", ""):
        with pytest.raises(psycopg.Error) as refused:
            world.checkout(1, magic=wrong)
        assert refused.value.sqlstate == "OG202"


@pytest.mark.parametrize("magic", ["\r\n", "a\r\nb", "\nsecret"])
def test_a_magic_of_line_ends_or_with_one_inside_is_refused(world: World, magic: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        call(world.db, "set_magic", project="p", magic=magic)
    assert refused.value.sqlstate == "OG109"


ODD_PATHS = [
    "/a/hd_rawdata_000001_001.evio",
    "/a b/hd#1?x=%41&y=ü/…/𝔘_000001_001.evio",
    "/a+b/:@!$'()*,;=[]|\\\"<>^`{}~_000001_001.evio",
]


@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize("prefix", ["http://h", "https://h:1094/", "HTTPS://h", "dav://h", "davs://h"])
def test_a_path_is_percent_encoded_once_in_a_url_of_http(
    db: psycopg.Connection[dict[str, Any]], prefix: str, path: str
) -> None:
    row = db.execute("SELECT osgprod._source_url(%s, %s) AS url", (prefix, path)).fetchone()
    assert row and row["url"] == prefix + urllib.parse.quote(path, safe="/~")
    assert urllib.parse.unquote(row["url"]) == prefix + path
    parts = urllib.parse.urlsplit(row["url"])
    assert (parts.query, parts.fragment) == ("", "")


@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize("prefix", ["root://h/", "roots://h/", "xroot://h/", "file://", ""])
def test_xrootd_and_a_file_system_get_a_path_as_it_is(
    db: psycopg.Connection[dict[str, Any]], prefix: str, path: str
) -> None:
    row = db.execute("SELECT osgprod._source_url(%s, %s) AS url", (prefix, path)).fetchone()
    assert row == {"url": prefix + path}


def test_the_url_of_a_slice_is_encoded_behind_the_stripped_folder_and_the_prefix_stays(world: World) -> None:
    world.add_file(2)
    world.db.execute(
        "UPDATE osgprod_data.rawdata SET path = '/dcache/RunPeriod #1/hd_rawdata_000001_001.evio'"
    )
    for process, (prefix, url) in enumerate(
        {
            "https://h/data%20here": "https://h/data%20here/RunPeriod%20%231/hd_rawdata_000001_001.evio",
            "root://h/": "root://h//RunPeriod #1/hd_rawdata_000001_001.evio",
        }.items()
    ):
        world.set(xrootd_prefix=prefix)
        answer = world.checkout(process)
        assert (answer["url"], answer["filename"]) == (url, "hd_rawdata_000001_001.evio")
