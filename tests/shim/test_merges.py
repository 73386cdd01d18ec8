"""Merges over HTTP: the merge script is filled with its inputs, and is read again when it changes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shim.web import timer
from tests.support import LiveShim, World, wait_until

MERGE = b"""#!/usr/bin/env bash
# source:
#osgprod_task=slice or merge
#osgprod_inputs=array: URL BYTES ADLER32 BLOCK1 BLOCK2
#osgprod_run=
#osgprod_seqno=
#osgprod_merge_output_url=
#osgprod_merge_cleanup=
#osgprod_token=
#osgprod_block1=
printf '%s|' "$osgprod_task" "$osgprod_run" "$osgprod_seqno" "$osgprod_merge_output_url" "$osgprod_merge_cleanup"
printf '%s|' "${osgprod_inputs[@]}"
"""


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim's timer ticks, and notes answers, ten times a second."""
    monkeypatch.setattr(timer, "TICK_S", 0.1)


@pytest.fixture
def merging(world: World, shim: LiveShim) -> World:
    """A file of two slices, both done, in a project that merges by file; the merge script is there."""
    world.set(merge_by="file", merge_output_url="https://s/{project}/{kind}/{run}/{kind}_{run}_{seqno}.x")
    world.add_file(2)
    (shim.add_template("p").parent / "osgprod_merge.bash").write_bytes(MERGE)
    for n in range(2):
        answer = shim.checkout(n)
        assert answer.headers["Osgprod-Task"] == "slice"
        shim.report(n, output_url=f"https://s/{n}$(touch x)'.tgz", output_bytes=5, output_adler32="ab")
    world.tick()
    return world


def why_no_merges(world: World) -> str | None:
    row = world.db.execute("SELECT osgprod._why_no_merges(p) AS why FROM osgprod_data.projects p").fetchone()
    assert row
    why: str | None = row["why"]
    return why


def versions(world: World) -> list[tuple[Any, ...]]:
    rows = world.db.execute(
        "SELECT v.script, v.digest, v.exec_version, v.image, count(*) AS attempts FROM osgprod_data.attempts"
        " JOIN osgprod_data.versions v USING (version_id) GROUP BY 1, 2, 3, 4 ORDER BY 1, 2"
    )
    return [tuple(row.values()) for row in rows]


def test_merge_script_has_its_inputs_and_runs(merging: World, shim: LiveShim) -> None:
    answer = shim.checkout(7)
    assert (answer.headers["Osgprod-Status"], answer.headers["Osgprod-Task"]) == ("assigned", "merge")
    assert answer.headers["Osgprod-Slice"] == "merge 000001_001"
    assert "# source: merge 000001_001\n" in answer.text
    ran = subprocess.run(["bash", "-c", answer.text], capture_output=True, text=True, check=True)
    assert ran.stdout.split("|") == [
        "merge", "1", "1", "https://s/p/{kind}/000001/{kind}_000001_001.x", "keep",
        "https://s/0$(touch%20x)'.tgz 5 000000ab 1 2", "https://s/1$(touch%20x)'.tgz 5 000000ab 2 3", "",
    ]  # fmt: skip
    listed = json.dumps([{"kind": "a", "url": "https://s/a.x", "bytes": 1, "adler32": "1"}])
    assert shim.report(7, outputs_list=listed, token=answer.headers["Osgprod-Token"]).status_code == 200
    assert shim.checkout(8).headers["Osgprod-Status"] == "no-work"


def test_job_learns_which_hosts_the_projects_settings_and_its_files_prefixes_name(
    merging: World, shim: LiveShim, folder: Path
) -> None:
    with (folder / "www" / "p" / "osgprod_merge.bash").open("a") as script:
        script.write("#osgprod_token_hosts=\nprintf '%s' \"$osgprod_token_hosts\"\n")
    merging.set(
        merge_output_url="https://u@merged.example.org/{project}/{kind}/{run}/{seqno}",
        output_home="root://home.example.org:1095//{project}",
        xrootd_prefix="osdf:///gluex JLab=/mnt/raw SITE=https://door.example.org:8443/a",
    )
    merging.db.execute(
        "UPDATE osgprod_data.rawdata SET prefix = 'JLab=davs://own.example.org:2880/d SITE=/mnt/own'"
    )
    answer = shim.checkout(7)
    named = "davs://own.example.org:2880 https://door.example.org:8443 https://u@merged.example.org osdf:// root://home.example.org:1095"
    assert answer.headers["Osgprod-Token-Hosts"] == named
    ran = subprocess.run(["bash", "-c", answer.text], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith(f"|{named}")


def test_attempts_record_what_they_ran(merging: World, shim: LiveShim) -> None:
    shim.checkout(7, exec_version="2.1", image="/cvmfs/image")
    work = (shim.add_template("p")).read_bytes()
    assert versions(merging) == [
        ("osgprod_merge.bash", hashlib.sha256(MERGE).hexdigest(), "2.1", "/cvmfs/image", 1),
        ("osgprod_work.bash", hashlib.sha256(work).hexdigest(), "", "", 2),
    ]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "merge script osgprod_merge.bash: No such file or directory"),
        (b"#osgprod_block1=\n", "merge script osgprod_merge.bash: has no place for #osgprod_inputs="),
    ],
)
def test_merge_script_that_can_not_be_used_is_not_handed_out_and_is_on_record(
    merging: World, shim: LiveShim, monkeypatch: pytest.MonkeyPatch, text: bytes | None, why: str
) -> None:
    script = shim.add_template("p").parent / "osgprod_merge.bash"
    script.unlink()
    if text is not None:
        script.write_bytes(text)
    assert shim.checkout(7).headers["Osgprod-Status"] == "no-work"
    wait_until(lambda: why_no_merges(merging), "the shim's timer has noted its answers")
    assert str(why_no_merges(merging)).startswith(why)
    merging.add_file(1, seqno=2)
    assert shim.checkout(7).headers["Osgprod-Task"] == "slice"
    monkeypatch.setattr("shim.workscript.RETRY_S", 0.0)
    script.write_bytes(MERGE)
    assert shim.checkout(8).headers["Osgprod-Task"] == "merge"
    assert why_no_merges(merging) is None


def test_changed_merge_script_is_served_at_once(merging: World, shim: LiveShim, folder: Path) -> None:
    script = shim.add_template("p").parent / "osgprod_merge.bash"
    for n in range(3):
        script.write_bytes(MERGE + f"echo {'x' * n}\n".encode())
        assert shim.checkout(7).text.endswith(f"\necho {'x' * n}\n")
