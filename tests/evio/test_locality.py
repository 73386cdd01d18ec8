"""Which files are online, on tape or gone: what storage says, and that jobs skip files on tape."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shim.database import call
from shim.evio.locality import localities
from tests.support import Run, World


class Tape:
    """A web server that has files on disk and on tape, and tells which in one of three ways."""

    def __init__(self, way: str) -> None:
        self.way = way  # rest, webdav or none
        self.error = "no such file"  # of a path that is not there, by rest
        self.places: dict[str, str] = {}  # by path: DISK, TAPE, DISK_AND_TAPE, LOST or UNAVAILABLE
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                outer.requests.append(f"GET {self.path}")
                if self.path != "/.well-known/wlcg-tape-rest-api" or outer.way != "rest":
                    self.answer(404)
                    return
                endpoints = [
                    {"uri": f"{outer.url}/api/v0", "version": "v0"},
                    {"uri": f"{outer.url}/api/v1", "version": "v1"},
                ]
                self.answer(200, json.dumps({"sitename": "X", "endpoints": endpoints}).encode())

            def do_POST(self) -> None:
                outer.requests.append(f"POST {self.path}")
                assert self.path == "/api/v1/archiveinfo"
                paths = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
                known = [
                    {"path": path, "locality": outer.places[path]}
                    if path in outer.places
                    else {"path": path, "error": outer.error}
                    for path in paths
                ]
                self.answer(200, json.dumps(known).encode())

            def do_PROPFIND(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                place = outer.places.get(self.path)
                if place is None or outer.way == "none":
                    self.answer(404 if place is None else 405)
                    return
                word = {"DISK": "ONLINE", "TAPE": "NEARLINE", "DISK_AND_TAPE": "ONLINE_AND_NEARLINE"}.get(
                    place, place
                )
                self.answer(
                    207,
                    f'<d:a xmlns:d="DAV:"><s:FileLocality xmlns:s="x">{word}</s:FileLocality></d:a>'.encode(),
                )

            def do_HEAD(self) -> None:
                self.answer(200 if self.path in outer.places else 404)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def tape() -> Iterator[Callable[[str], Tape]]:
    started: list[Tape] = []

    def start(way: str) -> Tape:
        started.append(Tape(way))
        return started[-1]

    yield start
    for one in started:
        one.end()


PLACES = {"/a": "DISK", "/b": "TAPE", "/c": "DISK_AND_TAPE", "/d": "LOST", "/e": "UNAVAILABLE"}


@pytest.mark.parametrize("way", ["rest", "webdav"])
def test_storage_tells_what_is_on_tape_by_rest_or_webdav(tape: Callable[[str], Tape], way: str) -> None:
    server = tape(way)
    server.places = PLACES
    found = localities([f"{server.url}{path}" for path in (*PLACES, "/none")])
    assert list(found.values()) == ["online", "nearline", "online", "gone", None, "gone"]
    if way == "rest":
        assert server.requests == ["GET /.well-known/wlcg-tape-rest-api", "POST /api/v1/archiveinfo"]


@pytest.mark.parametrize(
    ("error", "locality"),
    [
        ("No such file or directory: /x", "gone"),
        ("[ERROR] file not found", "gone"),
        ("USER ERROR: file does not exist or is not accessible to you", None),
        ("permission denied", None),
        ("internal error", None),
        ("", None),
    ],
)
def test_only_an_error_that_says_so_means_gone(
    tape: Callable[[str], Tape], error: str, locality: str | None
) -> None:
    server = tape("rest")
    server.error = error
    assert list(localities([f"{server.url}/x"]).values()) == [locality]


def test_server_without_tape_has_its_files_online(tape: Callable[[str], Tape]) -> None:
    server = tape("none")
    server.places = {"/a": "TAPE"}
    url = server.url.replace("http://", "dav://")
    assert localities([f"{url}/a", f"{url}/b"]) == {f"{url}/a": "online", f"{url}/b": "gone"}


@pytest.mark.parametrize(
    "text, code, locality",
    [
        ("Flags:  24 (Offline|IsReadable)", 0, "nearline"),
        ("Flags:  16 (IsReadable)", 0, "online"),
        ("[ERROR] Server responded with an error: [3011] Unable to locate /x; no such file", 54, "gone"),
        ("[FATAL] Connection error", 51, None),
    ],
)
def test_xrootds_client_tells_by_its_flags(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, locality: str | None
) -> None:
    """Its words are those of xrdfs 5.5; a stock server has no tape, so a program in its place says them."""
    program = folder / "xrdfs"
    check = '[ "$*" = "host:1094 stat /raw/x" ] || exit 9'
    program.write_text(f"#!/bin/sh\n{check}\nprintf '\\nPath: /raw/x\\n{text}\\n'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert localities(["root://host:1094//raw/x"]) == {"root://host:1094//raw/x": locality}


def test_what_storage_can_not_tell_is_not_known(folder: Path) -> None:
    (folder / "x").write_text("x")
    urls = [str(folder / "x"), "/nonexistent/x", "osdf:///gluex/x", "http://127.0.0.1:1/x"]
    assert list(localities(urls).values()) == ["online", None, None, None]


def test_project_skips_files_on_tape_until_they_are_online(
    run: Run, world: World, tape: Callable[[str], Tape]
) -> None:
    server = tape("rest")
    world.set(xrootd_prefix=server.url, strip_prefix="", skip_nearline=True)
    paths = [world.add_file(1, seqno=seqno) for seqno in (1, 2, 3)]
    server.places = dict(zip(paths, ["TAPE", "DISK", "TAPE"], strict=True))
    result = run("rawdata", "check-online", "p", "--json")
    assert (result.exit_code, [row["path"] for row in json.loads(result.stdout)]) == (1, [paths[0], paths[2]])
    assert world.checkout(1)["url"].endswith("_002.evio")
    answer = world.checkout(2)
    assert (answer["status"], "or on tape" in answer["message"]) == ("wait", True)
    assert [row["is_skipped"] for row in call(world.db, "list_next_files", project="p")] == [True, True]
    server.places[paths[2]] = "DISK_AND_TAPE"
    run("rawdata", "check-online", "p")
    assert world.checkout(3)["url"].endswith("_003.evio")
    server.places[paths[0]] = "DISK"
    assert run("rawdata", "check-online", "p").exit_code == 0
    assert world.checkout(4)["url"].endswith("_001.evio")
    for process in (1, 3, 4):
        assert world.report(process)["status"] == "done"
    assert world.checkout(5)["status"] == "no-work"


def test_project_that_skips_nothing_assigns_what_is_on_tape(world: World) -> None:
    world.add_file(2)
    (row,) = call(world.db, "list_next_files", project="p")
    call(world.db, "record_locality", found=json.dumps([{"file_id": row["file_id"], "locality": "nearline"}]))
    assert world.checkout(1)["status"] == "assigned"
    world.set(skip_nearline=True)
    assert world.checkout(2)["status"] == "wait"
    world.set(skip_nearline=False)
    assert world.checkout(3)["status"] == "assigned"


def test_storage_that_gives_no_answer_changes_nothing_of_what_it_said_before(world: World) -> None:
    world.set(skip_nearline=True)
    world.add_file(2)
    (row,) = call(world.db, "list_next_files", project="p")
    for locality in ("nearline", None):
        found = json.dumps([{"file_id": row["file_id"], "locality": locality}])
        (counts,) = call(world.db, "record_locality", found=found)
    assert (counts["unknown"], counts["files_resumed"]) == (1, 0)
    assert world.checkout(1)["status"] == "wait"


def test_requeued_slices_of_a_file_that_went_to_tape_wait_until_it_is_online(world: World) -> None:
    """Those that are ready, in a backoff, lost, or recycled later: each way that makes a slice ready asks for that."""
    world.set(skip_nearline=True, backoff_s=3600, max_failures=2, probe_jobs=0)
    world.add_file(4)
    (row,) = call(world.db, "list_next_files", project="p")
    for process in range(4):
        world.checkout(process, host=f"wn{process}")
    world.report(0, 137, host="wn0")  # ready
    world.report(1, 1, host="wn1")  # in a backoff
    world.report(3, host="wn3")
    call(world.db, "record_locality", found=json.dumps([{"file_id": row["file_id"], "locality": "nearline"}]))
    world.let_leases_run_out()
    assert world.tick() == 1
    call(world.db, "recycle", project="p", states=["done"])
    world.let_backoff_pass()
    assert world.checkout(10, host="wn10")["status"] == "wait"
    call(world.db, "record_locality", found=json.dumps([{"file_id": row["file_id"], "locality": "online"}]))
    world.tick()
    assert [world.checkout(n, host=f"wn{n}")["status"] for n in range(10, 14)] == ["assigned"] * 4


def test_storage_is_asked_again_about_a_file_that_was_skipped_when_all_its_blocks_were_allocated(
    run: Run, world: World, tape: Callable[[str], Tape]
) -> None:
    server = tape("rest")
    world.set(xrootd_prefix=server.url, strip_prefix="")
    path = world.add_file(2)
    server.places[path] = "TAPE"
    assert run("rawdata", "check-online", "p").exit_code == 1
    server.places[path] = "DISK_AND_TAPE"
    world.checkout(1)
    world.checkout(2)
    world.set(skip_nearline=True)  # what storage said before applies
    world.report(1, 137)
    assert world.checkout(3)["status"] == "wait"
    assert [row["path"] for row in call(world.db, "list_next_files", project="p")] == [path]
    assert run("rawdata", "check-online", "p").exit_code == 0
    world.tick()
    assert world.checkout(3)["status"] == "assigned"
    assert call(world.db, "list_next_files", project="p") == [], "no slice of it is requeued"


@pytest.mark.parametrize("way", ["the setting ends", "storage has it online"])
def test_slices_that_are_recycled_are_assigned_after_a_complete_file_is_skipped_no_longer(
    run: Run, world: World, tape: Callable[[str], Tape], way: str
) -> None:
    server = tape("rest")
    world.set(xrootd_prefix=server.url, strip_prefix="", skip_nearline=True)
    path = world.add_file(1)
    server.places[path] = "DISK"
    world.checkout(1)
    (row,) = call(world.db, "list_rawdata")
    call(world.db, "record_locality", found=json.dumps([{"file_id": row["file_id"], "locality": "nearline"}]))
    world.report(1)
    world.tick()
    assert [row["state"] for row in call(world.db, "list_files", project="p")] == ["complete"]
    if way == "the setting ends":
        world.set(skip_nearline=False)
        call(world.db, "recycle", project="p", states=["done"])
    else:
        call(world.db, "recycle", project="p", states=["done"])
        assert world.checkout(2)["status"] == "wait"
        run("rawdata", "check-online", "p")
        world.tick()
    assert world.checkout(2)["status"] == "assigned"


def test_files_that_are_loaded_later_are_skipped_too(world: World) -> None:
    world.set(skip_nearline=True)
    world.add_file(1, project=None)
    file_id = call(world.db, "list_rawdata")[0]["file_id"]
    call(world.db, "record_locality", found=json.dumps([{"file_id": file_id, "locality": "nearline"}]))
    call(world.db, "load_slices", project="p")
    assert world.checkout(1)["status"] == "wait"


def test_unknown_locality_is_refused_and_changes_nothing(world: World) -> None:
    world.add_file(1)
    with pytest.raises(psycopg.Error) as refused:
        call(world.db, "record_locality", found='[{"file_id": 1, "locality": "shelf"}]')
    assert refused.value.sqlstate == "OG108"


def test_urls_of_the_files_that_come_next_are_printed_to_be_staged(run: Run, world: World) -> None:
    world.set(xrootd_prefix="https://tape.example.org", strip_prefix="")
    paths = [world.add_file(1, seqno=seqno) for seqno in range(1, 6)]
    world.checkout(1)
    result = run("rawdata", "list", "--next", "2", "--urls")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [f"https://tape.example.org{path}" for path in paths[1:3]],
    )
    assert run("rawdata", "list", "--urls").exit_code == 2


def test_doctor_and_the_files_page_name_what_is_on_tape(run: Run, world: World) -> None:
    world.add_file(2)
    (row,) = call(world.db, "list_next_files", project="p")
    call(world.db, "record_locality", found=json.dumps([{"file_id": row["file_id"], "locality": "nearline"}]))
    found: dict[str, Any] = {row["what"]: row for row in json.loads(run("doctor", "--json").stdout)}
    assert not found["tape of p"]["is_well"]
    assert found["tape of p"]["found"] == "1 of the next 1 file is on tape only"
    assert call(world.db, "list_files", project="p")[0]["locality"] == "nearline"
