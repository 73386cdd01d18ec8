"""A job fetches its slice for any name of the file's folder: the shim's own URL, a real site, the real scripts."""

from __future__ import annotations

import urllib.parse
from pathlib import Path

import pytest

from shim.evio.writer import write_file
from tests.support import World
from tests.worker.conftest import Node, slow
from tests.worker.site import Site

ODD_FOLDERS = ["a space", "hash#1", "query?x=1&y", "literal %41", "Müller…", "plus+comma,1", "quote'\"$(x)`"]
# All of them in one name, and each alone in the slow tests.
FOLDERS = [" ".join(ODD_FOLDERS), *slow(*ODD_FOLDERS)]


@pytest.mark.parametrize("is_http", [True, False], ids=["http", "path"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_slice_is_fetched_from_a_folder_with_an_odd_name(
    node: Node,
    world: World,
    site: Site,
    folder: Path,
    name: str,
    is_http: bool,
) -> None:
    path = folder / name / "hd_rawdata_000001_001.evio"
    path.parent.mkdir()
    write_file(path, 2, 10, filler_words=100)
    world.set(xrootd_prefix=site.url if is_http else "", strip_prefix="", maxblockspercore=9)
    world.load_raw(path)
    site.files[urllib.parse.quote(str(path))] = path.read_bytes()
    code, output = node.run(0)
    assert code == 0, output
    assert world.progress()["blocks_done"] == 2
    assert bool(site.seen) == is_http
