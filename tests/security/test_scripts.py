"""A script does only what its template says, with any stored text; templates are read from their folder only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import strategies as st

from shim.database import call
from shim.workscript import MAX_TEMPLATE_BYTES, TemplateError, TemplateFolder
from tests.examples import given, settings
from tests.support import PATIENCE_S, LiveShim, World

NASTY = [
    "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "\"'; touch pwned; #",
    "\ntouch pwned\n", "\r\ntouch pwned\r\n", "x\ntouch pwned #", ";touch pwned;", "|touch pwned|",
    "&touch pwned&", "&& touch pwned", "\\", "\\\\", "\\\n", "\\'", '\\"', "\\$(touch pwned)",
    "\\`touch pwned`", "$((a[$(touch pwned)]))", "${x:=$(touch pwned)}", "${IFS}touch${IFS}pwned",
    "<(touch pwned)", ">pwned", ")\ntouch pwned\n(", "')\ntouch pwned\n('", "!!", "!touch", "#", "# ", "~", "*",
    "{a,b}", "[a-z]*", "\tx", "\u2028touch pwned\u2028", "\u2029touch pwned", "\x85touch pwned\x85",
    "\x0btouch pwned", "\x0ctouch pwned", "\x1b]0;touch pwned\x07", "\x1b[2J", "\x7f", "\u202etouch", "%s%n%x",
    "%0atouch pwned", "é日本\U0001f4a5", "EOF\ntouch pwned\nEOF", "$'\\ntouch pwned'", "\ufeff", "-rf .",
    "--help", "a" * 3000,
]  # fmt: skip
# Prints all that is filled in, each value ended by a NUL byte, which none can hold.
TEMPLATE = rb"""#!/usr/bin/env bash
# ncpus:
# cluster:
# process:
# nstarts:
# project:
# source:
# started:
#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."
#output_filename="file.evio"
#osgprod_token=x
#osgprod_lease_s=x
#osgprod_heartbeat_s=x
#osgprod_source_url=x
#osgprod_size_bytes=x
#osgprod_events=x
#osgprod_block1=x
#osgprod_block2=x
#osgprod_source_urls=x
#osgprod_pieces=x
printf '%s\0' "$input_eviofile_list" "$output_filename" "$osgprod_token" "$osgprod_lease_s" "$osgprod_heartbeat_s" \
  "$osgprod_source_url" "$osgprod_size_bytes" "$osgprod_events" "$osgprod_block1" \
  "$osgprod_block2" "${osgprod_source_urls[@]}" "${osgprod_pieces[@]}"
"""


def shown(text: str) -> str:
    """The text as a script may hold it: no control characters, no other ends of a line."""
    return "".join("?" if unicodedata.category(c) == "Cc" or c in "\u2028\u2029" else c for c in text)


def register(world: World, path: str, seqno: int) -> None:
    path_before = world.add_file(2, seqno=seqno, project=None)
    world.db.execute("UPDATE osgprod_data.rawdata SET path = %s WHERE path = %s", [path, path_before])
    call(world.db, "load_slices", project="p")


def run(script: bytes, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a script in an empty folder; nothing may be there afterwards."""
    place = folder / "run"
    place.mkdir()
    (place / "script").write_bytes(script)
    done = subprocess.run(["bash", "script", *arguments], cwd=place, capture_output=True, timeout=PATIENCE_S,
                          env={"PATH": os.environ["PATH"], "HOME": str(place), "OSGPROD_TRIES": "1"})  # fmt: skip
    assert [entry.name for entry in place.iterdir()] == ["script"], script
    shutil.rmtree(place)
    return done


def check(world: World, shim: LiveShim, folder: Path, prefix: str, path: str, number: int) -> None:
    """Stores a prefix and a path, fetches a job's script, runs it, and compares each value with the stored one."""
    world.set(strip_prefix="", maxblockspercore=2)
    # set_project refuses what no job could read. Without a slash in it the prefix is not a list.
    prefix = "/" + prefix.replace("/", "_")
    world.db.execute("UPDATE osgprod_data.projects SET xrootd_prefix = %s", (prefix,))
    register(world, path, number)
    answer = shim.checkout(number, cluster=7, cpus=1, host=prefix[:500], site=path[:500])
    assert answer.status_code == 200, answer.text
    assert answer.headers["Osgprod-Status"] == "assigned"
    done = run(answer.content, folder)
    assert (done.returncode, done.stderr) == (0, b""), answer.text
    values = done.stdout.decode().split("\0")
    url = shown(prefix + path)
    name, _, suffix = path.rpartition("/")[2].rpartition(".")
    assert values[0] == f"{url}+1,2 {url}+2,3 "
    assert values[1] == shown(f"{name}+1,3.{suffix}")
    assert values[2] == answer.headers["Osgprod-Token"]
    assert values[5] == url
    assert values[6:10] == ["3032", "21", "1", "3"]
    assert values[10] == url
    assert values[11:] == ["range 0 3000", "hex " + "00" * 32, ""]
    lines = re.split("[\n\r\x0b\x0c\x85\u2028\u2029]", answer.content.decode())
    assert lines[6] == f"# source: {url}+1,3", "a comment of one line, in every way to count lines"


def test_stored_texts_add_no_commands_to_a_script(world: World, shim: LiveShim, folder: Path) -> None:
    shim.add_template("p", TEMPLATE)
    for number, text in enumerate(NASTY):
        check(
            world,
            shim,
            folder,
            text,
            f"/x{number}/{shown(text).replace('/', '_')}/hd_{shown(text)[:100]}.evio",
            number,
        )


PREFIXES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60
)


@settings(max_examples=20)
@given(prefix=PREFIXES, name=NAMES)
def test_random_texts_add_no_commands_to_a_script(
    world: World, shim: LiveShim, folder: Path, prefix: str, name: str
) -> None:
    shim.add_template("p", TEMPLATE)
    row = world.db.execute("SELECT count(*) AS n FROM osgprod_data.rawdata").fetchone()
    assert row is not None
    check(world, shim, folder, prefix, f"/y{row['n']}/{name}.evio", 1000 + row["n"])


@pytest.mark.parametrize(
    "nasty", [NASTY[::4], pytest.param(NASTY, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_shipped_script_runs_nothing_of_a_path_either(
    world: World, shim: LiveShim, folder: Path, nasty: list[str]
) -> None:
    """It finds no such file here: the site's fault, exit code 75; and it leaves nothing behind."""
    world.set(strip_prefix="", maxblockspercore=2)
    for number, text in enumerate(nasty):
        register(world, f"/nowhere{number}/{shown(text).replace('/', '_')[:200]}/hd.evio", number)
        answer = shim.checkout(number)
        assert run(answer.content, folder).returncode == 75, answer.text


def test_messages_to_idle_jobs_and_errors_run_nothing(shim: LiveShim, folder: Path) -> None:
    place = folder / "empty"
    place.mkdir()
    said, idle = [], set()
    for text in NASTY:
        for wrong in ({"project": text}, {"magic": text}, {"cpus": text}, {"token": text}, {text[:50]: "1"}):
            good = {"project": "p", "cluster": 1, "process": 1, "magic": "m"}
            answer = shim.get("workscript.bash", **{**good, **wrong})
            if answer.status_code == 200:
                assert answer.headers["Osgprod-Status"] == "no-work"
                idle.add(answer.content)
                continue
            lines = re.split("[\n\r\x0b\x0c\x85\u2028\u2029]", answer.text)
            assert all(line.startswith("# ") for line in lines[:-1]) and lines[-1] == "", answer.text
            said.append(answer.content)
    done = subprocess.run(["bash"], input=b"".join(said), cwd=place, capture_output=True)
    assert (done.stdout, done.stderr, list(place.iterdir())) == (b"", b"", [])
    (script,) = idle  # it has nothing of what the job said
    done = run(script, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"osgprod: no work left in project p\n", b"")


def test_names_of_projects_and_work_scripts_can_not_leave_their_folder(world: World) -> None:
    arguments: dict[str, Any] = {"subnet_pattern": "%", "xrootd_prefix": "", "maxblockspercore": 1}
    for name in ("..", ".", "", "../x", "/etc/passwd", "a/b", ".hidden", "x\n", "x y", "-x", "x" * 200):
        for project, workscript in ((name, "w"), ("new", name)):
            with pytest.raises(psycopg.Error) as refused:
                call(world.db, "add_project", project=project, workscript=workscript, **arguments)
            assert refused.value.sqlstate == "OG108", name
        with pytest.raises(psycopg.Error) as refused:
            call(world.db, "set_project", project="p", settings=json.dumps({"workscript": name}))
        assert refused.value.sqlstate == "OG108", name


@pytest.fixture
def place(folder: Path) -> Path:
    """A document root, and beside it a secret file."""
    (folder / "secret").write_bytes(b"# source:\nSECRET")
    (folder / "www" / "p").mkdir(parents=True)
    (folder / "www" / "q").mkdir()
    (folder / "www" / "q" / "w").write_bytes(b"# source:\nof q")
    return folder


@pytest.mark.parametrize("name", ["..", ".", "", "../../secret", "../q/w", "/etc/passwd", "./w", "sub/../w"])
def test_name_that_leaves_its_folder_is_refused_even_if_the_database_has_it(place: Path, name: str) -> None:
    (place / "www" / "p" / "w").write_bytes(b"# source:\nmine")
    with pytest.raises(TemplateError):
        TemplateFolder(place / "www").load("p", name)


def test_links_lead_to_names_of_the_same_folder_only(place: Path) -> None:
    folder = place / "www" / "p"
    (folder / "v1").write_bytes(b"# source:\nmine")
    for number, target in enumerate(
        (
            "../../secret",
            str(place / "secret"),
            "../q/w",
            "/dev/zero",
            "/proc/self/environ",
            "./v1",
            f"{folder}/v1",
            "nothing",
        )
    ):
        (folder / f"out{number}").symlink_to(target)
        (folder / f"chain{number}").symlink_to(f"out{number}")
        for name in (f"out{number}", f"chain{number}"):
            with pytest.raises(TemplateError):
                TemplateFolder(place / "www").load("p", name)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(TemplateError):
        TemplateFolder(place / "www").load("p", "loop")
    (folder / "w").symlink_to("current")
    (folder / "current").symlink_to("v1")
    templates = TemplateFolder(place / "www")
    assert templates.load("p", "w")[0] == "w"
    assert templates.at_hand("p")[0] == "w"


def test_a_link_that_is_switched_is_noticed(world: World, shim: LiveShim) -> None:
    world.add_file(9)
    path = shim.add_template("p", b"# source:\necho first\n")
    path.rename(path.with_name("v1"))
    path.with_name("v2").write_bytes(b"# source:\necho other\n")
    os.utime(path.with_name("v2"), ns=(path.with_name("v1").stat().st_mtime_ns,) * 2)
    path.symlink_to("v1")
    assert shim.checkout(0).text.endswith("\necho first\n")
    path.unlink()
    path.symlink_to("v2")
    assert shim.checkout(1).text.endswith("\necho other\n")


def test_a_folder_that_is_a_link_is_not_followed(place: Path) -> None:
    (place / "outside").mkdir()
    (place / "outside" / "w").write_bytes(b"# source:\nSECRET")
    (place / "www" / "linked").symlink_to(place / "outside")
    with pytest.raises(TemplateError):
        TemplateFolder(place / "www").load("linked", "w")


@pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "unreadable place"])
def test_template_that_is_not_a_plain_file_is_refused_at_once(place: Path, kind: str) -> None:
    path = place / "www" / "p" / "w"
    if kind == "pipe":
        os.mkfifo(path)  # a read from it would never end
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(MAX_TEMPLATE_BYTES + 1)
    with pytest.raises(TemplateError):
        TemplateFolder(place / "www").load("p", "w")


def test_file_swapped_for_a_link_while_it_is_opened_is_not_read(place: Path) -> None:
    """Swaps the file for a link, over and over, while it is read."""
    path, spare = place / "www" / "p" / "w", place / "www" / "p" / "spare"
    path.write_bytes(b"# source:\nmine")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            spare.symlink_to("../../secret")
            spare.replace(path)
            spare.write_bytes(b"# source:\nmine")
            spare.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    read, refused, digest = 0, 0, hashlib.sha256(b"# source:\nmine").hexdigest()
    try:
        templates = TemplateFolder(place / "www")
        end = time.monotonic() + 60
        while read + refused < 3000 or (not (read and refused) and time.monotonic() < end):
            try:
                _, template = templates.load("p", "w")
                assert (template.digest, template._rest) == (digest, b"\nmine")
                read += 1
            except TemplateError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert read and refused, "both were met"


def test_template_out_of_place_leases_no_slice_and_shows_the_job_no_path(
    world: World, shim: LiveShim, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "osgprod")
    world.add_file(1)
    (folder / "secret").write_bytes(b"# source:\necho SECRET")
    path = shim.add_template("p")
    path.unlink()
    path.symlink_to(folder / "secret")
    answer: httpx.Response = shim.checkout(0)
    assert (answer.status_code, "SECRET" in answer.text) == (500, False)
    assert str(folder) not in answer.text
    assert f"{path}: lies outside of the project's folder" in caplog.text, "the operator reads it in the log"
    assert world.progress()["blocks_leased"] == 0
