"""Indexes files over http: the same index as from a disk, with few requests, and not one after the other."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shim.database import call
from shim.evio import remote
from shim.evio.ahead import read_headers
from shim.evio.errors import EvioError
from shim.evio.index import read_index
from shim.evio.remote import path_of
from shim.evio.writer import bank, block, write_file
from tests.grid.xrootd import make_certificate
from tests.support import World, run_osgprod
from tests.worker.site import Site

NAME = "hd_rawdata_000001_000.evio"
Answer = Callable[[BaseHTTPRequestHandler], bool]


class Server:
    """A web server for the files of a folder that answers one range a request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests = 0
        self.bytes = 0
        self.delay_s = 0.0
        self.at_once = self.most_at_once = 0
        self.authorizations: set[str | None] = set()
        self.instead: Answer = lambda _: False  # answers a request in place of the server
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[Server]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                with outer.lock:
                    outer.requests += 1
                    outer.authorizations.add(self.headers["Authorization"])
                    outer.at_once += 1
                    outer.most_at_once = max(outer.at_once, outer.most_at_once)
                time.sleep(outer.delay_s)
                try:
                    if not outer.instead(self):
                        self.send_range()
                finally:
                    with outer.lock:
                        outer.at_once -= 1

            def send_range(self) -> None:
                path = outer.folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                size = path.stat().st_size
                with path.open("rb") as file:
                    file.seek(first)
                    data = file.read(last - first + 1)
                with outer.lock:
                    outer.bytes += len(data)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder).running() as running:
        yield running


def long_file(path: Path, blocks: int, seed: int = 1) -> None:
    """A file of blocks of 10 to 70 KB, with words in them that look like a block header."""
    chance = random.Random(seed)
    trap = [8, 1, 8, 0, 0, 4, 0, 0xC0DA0100]
    with path.open("wb") as file:
        file.write(block(1, [bank(0x70, [1, 2])]))
        for n in range(2, blocks + 2):
            words = [n, *trap, *trap, *[7] * chance.randrange(2500, 17500)]
            file.write(block(n, [bank(0xFF50, words)]))
        file.write(block(blocks + 2, [], info=1 << 9))


def test_index_over_http_is_that_of_the_file(server: Server, folder: Path) -> None:
    for blocks in (1, 5, 300):
        long_file(folder / NAME, blocks)
        there, here = read_index(f"{server.url}/{NAME}"), read_index(folder / NAME)
        assert replace(there, path=here.path) == here
        assert there.path == f"/{NAME}"


def test_far_file_is_walked_from_several_places_at_once(server: Server, folder: Path) -> None:
    long_file(folder / NAME, 600)
    server.delay_s = 0.01
    index = read_index(f"{server.url}/{NAME}")
    assert index == replace(read_index(folder / NAME), path=f"/{NAME}")
    assert server.requests < 1.1 * index.nblocks, "one request a block, and few more"
    assert server.bytes < 0.1 * index.size_bytes
    assert server.most_at_once >= 8


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_data_that_looks_like_a_block_header_does_not_mislead_the_walk(rounds: int) -> None:
    """Only chains that meet count."""
    chance = random.Random(5)
    for _ in range(rounds):
        parts = []
        for n in range(chance.randrange(1, 1500)):
            size = chance.randrange(0, 40)
            words = [chance.choice([8, 4, 16, 0xC0DA0100]) for _ in range(size)]
            parts.append(struct.pack(f">8I{size}I", 8 + size, n, 8, 0, 0, 4, 0, 0xC0DA0100, *words))
        data = b"".join(parts)
        starts, headers = read_headers(
            lambda at, n, data=data: data[at : at + n], len(data), ">", 0xC0DA0100, 10**6
        )
        expected = [0]
        for part in parts:
            expected.append(expected[-1] + len(part))
        assert starts == expected
        assert headers == [part[:32] for part in parts]


def answer_once(status: int, location: str = "") -> Answer:
    """Answers the first request with a status."""
    done: list[int] = []

    def instead(handler: BaseHTTPRequestHandler) -> bool:
        if done:
            return False
        done.append(1)
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        if location:
            handler.send_header("Location", location)
        handler.end_headers()
        return True

    return instead


def test_transient_failure_is_retried_and_a_redirection_followed(server: Server, folder: Path) -> None:
    write_file(folder / NAME, 3, 2)
    server.instead = answer_once(503)
    assert read_index(f"{server.url}/{NAME}").nblocks == 4
    server.instead = answer_once(307, f"/{NAME}")
    assert read_index(f"{server.url}/elsewhere/{NAME}").nblocks == 4


def test_token_goes_to_the_named_host_only_and_over_https_only(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(folder)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    write_file(folder / NAME, 3, 2)
    data = {f"/{NAME}": (folder / NAME).read_bytes()}
    with Site(files=data, certificate=folder) as named, Site(files=data, certificate=folder) as other:
        read_index(f"{named.url}/{NAME}", token="secret")
        assert {seen.headers.get("authorization") for seen in named.seen} == {"Bearer secret"}
        for elsewhere in (other.url, server.url):
            named.faults = [f"redirect {elsewhere}"]
            read_index(f"{named.url}/{NAME}", token="secret")
        assert not any("authorization" in seen.headers for seen in other.seen)
    read_index(f"{server.url}/{NAME}", token="secret")
    assert server.authorizations == {None} and other.seen


def test_server_without_the_file_or_without_ranges_is_named(server: Server, folder: Path) -> None:
    url = f"{server.url}/{NAME}"
    with pytest.raises(EvioError, match=f"^{url}: status 404 Not Found$"):
        read_index(url)

    def whole(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"hello")
        return True

    server.instead = whole
    with pytest.raises(EvioError, match=f"^{url}: the server ignores byte ranges$"):
        read_index(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("root://server.example.org:1094//raw/run%1/a.evio", "/raw/run%1/a.evio"),
        ("root://server.example.org/raw/a.evio", "/raw/a.evio"),
        ("https://server.example.org:8443/raw/with%20space/a.evio?authz=secret", "/raw/with space/a.evio"),
    ],
)
def test_prefix_and_path_give_the_url_again(url: str, path: str) -> None:
    assert path_of(url) == path


def load(*arguments: str) -> tuple[int, dict[str, int], str]:
    result = run_osgprod("rawdata", "load", *arguments, "--json")
    return result.exit_code, json.loads(result.stdout)[0] if result.stdout else {}, result.stderr


def test_urls_of_a_list_are_loaded_and_leased_as_urls(operator: World, server: Server, folder: Path) -> None:
    (folder / "run 1").mkdir()
    for name in (NAME, "hd_rawdata_000001_001.evio"):
        write_file(folder / "run 1" / name, 3, 2)
    server.folder = folder
    served = {f"/run%201/{name}": folder / "run 1" / name for name in (NAME, "hd_rawdata_000001_001.evio")}
    for quoted, path in served.items():  # the server looks for names as they are sent
        (folder / quoted.lstrip("/")).parent.mkdir(exist_ok=True)
        shutil.copy(path, folder / quoted.lstrip("/"))
    listing = folder / "files.txt"
    listing.write_text("# two files\n\n" + "".join(f"{server.url}{quoted}\n" for quoted in served))
    code, counts, _ = load("--list", str(listing))
    assert (code, counts["new"]) == (0, 2)
    assert load("--list", str(listing))[1]["same"] == 2
    assert load("--list", str(listing), "--new")[1]["same"] == 0
    operator.set(xrootd_prefix=server.url, strip_prefix="")
    call(operator.db, "load_slices", project="p")
    answer = operator.checkout(1)
    assert answer["url"] == f"{server.url}/run%201/{NAME}"


def test_one_bad_url_does_not_stop_the_others(operator: World, server: Server, folder: Path) -> None:
    write_file(folder / NAME, 3, 2)
    code, counts, err = load(
        f"{server.url}/hd_rawdata_000001_009.evio", f"{server.url}/x.evio", f"{server.url}/{NAME}"
    )
    assert (code, counts["new"], counts["bad"]) == (1, 1, 2)
    assert "hd_rawdata_000001_009.evio: status 404" in err and "x.evio: the name is not" in err


@pytest.mark.parametrize("more", [(), ("--new",)])
def test_a_broken_url_is_one_bad_file(
    operator: World, folder: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_S", (None,))
    write_file(folder / NAME, 3, 2)
    places = (
        "https://127.0.0.1:99999",
        "https://[x",
        "root://[x",
        "osdf://[x",
        "http://127.0.0.1:1/ü",
        "http://",
    )
    urls = [f"{place}/{NAME}" for place in places]
    code, counts, err = load(*urls, str(folder / NAME), *more)
    assert (code, counts["new"], counts["bad"]) == (1, 1, len(urls)), err
    assert [url for url in urls if url not in err] == [] and "Traceback" not in err


def test_a_name_whose_run_or_seqno_is_no_number_is_one_bad_file(operator: World, folder: Path) -> None:
    names = {
        "abc_1.evio": r"(?P<run>[a-z]+)_(?P<seqno>\d+)\.evio",
        "7.evio": r"(?P<run>\d+)(_(?P<seqno>\d+))?\.evio",
        "99999999999_1.evio": r"(?P<run>\d+)_(?P<seqno>\d+)\.evio",
    }
    for name, pattern in names.items():
        write_file(folder / name, 3, 2)
        code, counts, err = load(str(folder / name), "--pattern", pattern)
        assert (code, counts["new"], counts["bad"]) == (1, 0, 1)
        assert f"{name}: run" in err and "must be numbers up to 2147483647" in err


def test_a_dangling_link_is_one_bad_file_also_with_since(operator: World, folder: Path) -> None:
    write_file(folder / NAME, 3, 2)
    (folder / "hd_rawdata_000001_009.evio").symlink_to("gone")
    code, counts, err = load(str(folder), "--since", "2001-01-01")
    assert (code, counts["new"], counts["bad"]) == (1, 1, 1)
    assert "hd_rawdata_000001_009.evio: No such file" in err


def test_web_server_is_asked_for_files_not_for_folders(operator: World, server: Server) -> None:
    code, _, err = load(f"{server.url}/raw/")
    assert code == 1
    assert "a folder of a web server can't be listed: name its files with --list" in err


def test_other_names_single_files_and_what_is_new(operator: World, folder: Path) -> None:
    for name in ("clas_012345.evio.00007", "clas_012345.evio.00008"):
        write_file(folder / name, 3, 2)
    pattern = r"clas_(?P<run>\d+)\.evio\.(?P<seqno>\d+)"
    first = str(folder / "clas_012345.evio.00007")
    assert load(first, "--pattern", pattern)[1]["new"] == 1
    assert load(str(folder), "--pattern", pattern, "--new")[1]["new"] == 1
    listed = call(operator.db, "list_rawdata")
    assert [(row["run"], row["seqno"]) for row in listed] == [(12345, 7), (12345, 8)]
    assert load(str(folder), "--pattern", pattern, "--since", "2100-01-01")[1]["same"] == 0
    assert load(str(folder), "--pattern", pattern, "--since", "2001-01-01 00:00")[1]["same"] == 2
    code, _, err = load(str(folder), "--pattern", r"clas_(\d+)")
    assert code == 2 and "it needs groups named run and seqno" in err
    code, _, err = load(first)
    assert code == 1 and "the name is not hd_rawdata_RRRRRR_SSS.evio" in err
    assert load()[0] == 2 and load("/nowhere")[0] == 2


def wrong_count(path: Path, count: int) -> None:
    """Gives block 2 another event count."""
    write_file(path, 3, 4)
    data = bytearray(path.read_bytes())
    at = read_index(path).offsets[2]
    data[at + 12 : at + 16] = struct.pack(">I", count)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (3, "3 events are counted in a block with more: 92 bytes follow"),
        (5, "5 events are counted in a block that holds 4"),
    ],
)
def test_deep_load_finds_counts_that_are_not_true(
    operator: World, folder: Path, count: int, message: str
) -> None:
    wrong_count(folder / NAME, count)
    assert load(str(folder))[1]["new"] == 1, "a count is believed otherwise"
    code, counts, err = load(str(folder), "--deep")
    assert (code, counts["bad"]) == (1, 1)
    assert message in err


@pytest.mark.usefixtures("operator")
def test_deep_load_takes_every_sound_file(folder: Path) -> None:
    for seqno, kind in enumerate([{}, {"byte_order": "little"}, {"dictionary": True}, {"first_file": True}]):
        write_file(folder / f"hd_rawdata_000001_{seqno:03d}.evio", 5, 3, **kind)  # type: ignore[arg-type]
    long_file(folder / "hd_rawdata_000001_009.evio", 300)
    assert load(str(folder), "--deep")[1] == {
        "new": 5, "same": 0, "renewed": 0, "differs": 0, "bad": 0, "without_bor": 0
    }  # fmt: skip


def test_root_url_without_the_bindings_says_what_to_install() -> None:
    have = subprocess.run(["python3", "-c", "from XRootD import client"], capture_output=True).returncode == 0
    if have:
        pytest.skip("the XRootD bindings are here: tests/grid tries them")
    with pytest.raises(EvioError, match="no XRootD bindings for Python: pip install xrootd"):
        read_index("root://127.0.0.1:1//raw/" + NAME)
