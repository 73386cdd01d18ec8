"""Comparing outputs with storage: who sees the operator's token, and what a job's report can't do to it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shim.deadline import ends_within
from shim.evio import locality, remote
from shim.evio.errors import EvioError
from shim.storage import Storage
from tests.support import Run, World
from tests.worker.chaos import make_authority


@dataclass
class Server:
    """A web server of files; keeps what each request said of itself, and sends redirections."""

    certificate: Path | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    later: dict[str, bytes] = field(default_factory=dict)  # there from the second question on
    redirected: dict[str, str] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.tokens.append(handler.headers.get("Authorization"))
        content = self.files.get(handler.path)
        if handler.path in self.later:
            self.files[handler.path] = self.later.pop(handler.path)
        if handler.path in self.redirected:
            handler.send_response(302)
            handler.send_header("Location", self.redirected[handler.path])
        else:
            handler.send_response(404 if content is None else 200)
        handler.send_header("Content-Length", str(len(content or b"")))
        handler.end_headers()


def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if server.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http{'s' if server.certificate else ''}://127.0.0.1:{http.server_port}"
    yield server
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def plain() -> Iterator[Server]:
    yield from serving(Server())


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    certificate, _ = make_authority(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority" / "ca.pem"))
    yield from serving(Server(certificate))


def report_outputs(world: World, *urls: str) -> None:
    world.add_file(len(urls))
    for n, url in enumerate(urls):
        world.checkout(n)
        world.report(n, output_url=url, output_bytes=1)


def test_the_token_goes_over_tls_to_the_named_hosts_only(plain: Server, secure: Server) -> None:
    secure.redirected["/away"] = f"{plain.url}/a"
    for server in (plain, secure):
        server.files["/a"] = b"x"
    with Storage("secret", ["127.0.0.1"]) as storage:
        for url in (f"{plain.url}/a", f"dav{plain.url[4:]}/a", f"{secure.url}/away"):
            assert storage.compare(url, 1, None) == ("", True)
        assert plain.tokens == [None] * 3
        assert storage.asked_without_token == {"http://127.0.0.1"}
        secure.tokens.clear()
        for url in (f"{secure.url}/a", f"davs{secure.url[5:]}/a", f"HTTPS{secure.url[5:]}/a"):
            assert storage.compare(url, 1, None) == ("", True)
        assert secure.tokens == ["Bearer secret"] * 3
    secure.tokens.clear()
    with Storage("secret", ["storage.example.org"]) as storage:
        assert storage.compare(f"{secure.url}/a", 1, None) == ("", True)
        # What is before an @ is a name of a user, not of a host.
        with_user = f"https://storage.example.org@{secure.url.removeprefix('https://')}/a"
        assert storage.compare(with_user, 1, None) == ("", True)
        assert storage.asked_without_token == {"https://127.0.0.1"}
    assert secure.tokens == [None] * 2


def test_outputs_check_gives_the_token_to_hosts_of_the_settings_and_says_who_was_asked_without(
    world: World, run: Run, plain: Server, secure: Server, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret\n")
    report_outputs(world, f"{plain.url}/a", f"{secure.url}/a")
    for server in (plain, secure):
        server.files["/a"] = b"x"
    command = ("outputs", "check", "p", "--token-file", tmp_path / "token")
    done = run(*command)
    assert (done.exit_code, plain.tokens, secure.tokens) == (0, [None], [None]), done.output
    assert "asked without the token: http://127.0.0.1, https://127.0.0.1" in done.stderr
    for more, setting in (((), f"{secure.url}/p"), (("--token-host", "127.0.0.1"), None)):
        world.set(output_home=setting)
        secure.tokens.clear()
        done = run(*command, *more)
        assert (done.exit_code, secure.tokens) == (0, ["Bearer secret"]), done.output
        assert "asked without the token: http://127.0.0.1\n" in done.stderr
    assert plain.tokens == [None] * 3
    assert "without the token" not in run("outputs", "check", "p").stderr


@pytest.mark.parametrize(
    "url",
    [
        "http://[",
        "root://[",
        "davs://x:99999/a",
        "http:///a",
        "http://127.0.0.1:1/ü",
        "http://127.0.0.1:1/a b",
        "odd://x/a",
        "/dev/zero",
        "file:///dev/zero",
        "/",
    ],
)
def test_an_odd_url_is_not_known_and_ends_nothing(url: str) -> None:
    with Storage() as storage:
        found = storage.compare(url, 1, "00000001")
    assert found.fault and not found.is_known


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Storage() as storage:
        assert storage.compare(str(tmp_path / "fifo"), 1, None) == ("is not a regular file", False)


def test_one_odd_url_leaves_the_check_of_the_others_complete(world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    report_outputs(world, "http://[", "/dev/zero", "http://127.0.0.1:1/ü", str(tmp_path / "a"))
    done = run("outputs", "check", "p", "--json")
    assert done.exit_code == 0, done.output
    assert '"same": 1' in done.stdout and '"unknown": 3' in done.stdout


def test_a_passing_404_requeues_nothing(world: World, run: Run, plain: Server) -> None:
    plain.later["/a"] = b"x"
    report_outputs(world, f"{plain.url}/a")
    done = run("outputs", "check", "p", "--requeue", "--again-after", "0", "--json")
    assert done.exit_code == 0, done.output
    assert '"same": 1' in done.stdout and len(plain.tokens) == 2
    assert world.progress()["blocks_done"] == 1


def test_more_than_some_files_are_requeued_only_when_the_operator_says_so(
    world: World, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "good").write_bytes(b"x")
    gone = [str(tmp_path / f"gone{n}") for n in range(51)]
    report_outputs(world, *gone, *[str(tmp_path / "good")] * 9)
    done = run("outputs", "check", "p", "--requeue")
    assert done.exit_code == 1
    assert "the slices and merges of 51 of 60 files would be requeued" in done.stderr
    assert world.progress()["blocks_done"] == 60
    done = run("outputs", "check", "p", "--requeue", "--dry-run", "--json")
    assert '"requeued": 51' in done.stdout, done.output
    assert world.progress()["blocks_done"] == 60
    done = run("outputs", "check", "p", "--requeue", "--all", "--json")
    assert '"requeued": 51' in done.stdout, done.output
    assert world.progress()["blocks_done"] == 9


def test_a_check_of_a_storage_that_is_not_mounted_stops_and_requeues_nothing(
    world: World, run: Run, tmp_path: Path
) -> None:
    report_outputs(world, *[str(tmp_path / f"gone{n}") for n in range(101)])
    done = run("outputs", "check", "p", "--requeue")
    assert done.exit_code == 1
    assert "100 of the first 100 files are gone or differ, so nothing was requeued" in done.stderr
    assert "mount the storage here" in done.stderr
    assert world.progress()["blocks_done"] == 101
    assert '"bad": 101' in run("outputs", "check", "p", "--json").stdout


@pytest.fixture
def dripping() -> Iterator[str]:
    """URL of a server that sends the head of its answer a byte at a time, and never ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def drip(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\n")
            for byte in itertools.cycle(b"x: y\r\n"):
                client.sendall(bytes([byte]))
                time.sleep(0.01)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=drip, args=(client,)))
                threads[-1].start()

    server = threading.Thread(target=serve)
    server.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join()
    for thread in threads:
        thread.join()


def test_a_server_that_drips_its_answer_is_waited_for_no_longer_than_the_limit(
    dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.storage.REQUEST_S", 0.3)
    with Storage() as storage:
        found = storage.compare(f"{dripping}/a", 1, None)
    assert found.fault == "no whole answer within 0.3 s"
    assert not found.is_known


def test_no_request_for_a_file_waits_for_ever_for_a_server_that_drips(
    dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("remote", "locality"):
        monkeypatch.setattr(f"shim.evio.{module}.REQUEST_S", 0.3)
    monkeypatch.setattr("shim.evio.remote.RETRY_S", (0.0, None))
    with pytest.raises(EvioError, match=r"no whole answer within 0\.3 s"):
        remote.open_source(f"{dripping}/a.evio")
    assert locality._of_web_server(dripping, [f"{dripping}/a.evio"], None) == {f"{dripping}/a.evio": None}


def test_an_end_in_time_leaves_the_connection_to_the_next_request(plain: Server) -> None:
    plain.files["/a"] = b"12"
    host = plain.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    for _ in range(2):
        with ends_within(connection, 60):
            connection.request("HEAD", "/a")
            response = connection.getresponse()
            response.read()
        assert response.getheader("Content-Length") == "2"
        link = connection.sock
    assert connection.sock is link
    connection.close()
