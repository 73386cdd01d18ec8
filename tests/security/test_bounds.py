"""Limits of one connection: what it may send, and how long it may take."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.web import bounds
from shim.web.bounds import MAX_HEAD_BYTES
from tests.support import PATIENCE_S, LiveShim, World, run_each, wait_until

GOOD = b"GET /osgprod/workscript.bash?project=p&cluster=1&process=%d&magic=m HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bounds, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(bounds, "UNREAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(bounds, "CHECK_S", 0.05)
    yield


def dial(shim: LiveShim) -> socket.socket:
    return socket.create_connection(("127.0.0.1", shim.port), timeout=PATIENCE_S)


def answer(line: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    got = b""
    try:
        while piece := line.recv(65536):
            got += piece
    except ConnectionError:
        pass
    return got


def test_endless_request_head_is_cut_off(shim: LiveShim) -> None:
    without_end = {
        "one header": (GOOD % 0 + b"X-Long: ", b"x" * 3000),
        "headers": (GOOD % 0, b"X: y\r\n" * 500),
        "line": (b"GET /osgprod/healthz", b"x" * 3000),
    }
    for kind, (start, piece) in without_end.items():
        with dial(shim) as line:
            sent = 0
            with contextlib.suppress(ConnectionError):
                line.sendall(start)
                while sent < 64 << 20:
                    line.sendall(piece)
                    sent += len(piece)
            got = answer(line)
        assert sent < 8 << 20, f"{kind}: what the kernel had taken before the end of it"
        assert got == b"" or got.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), kind


def test_a_long_head_within_the_bounds_is_taken(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    with dial(shim) as line:
        line.sendall(
            GOOD % 0 + b"X-Long: " + b"x" * (MAX_HEAD_BYTES - 300) + b"\r\nConnection: close\r\n\r\n"
        )
        assert answer(line).startswith(b"HTTP/1.1 200 OK")


def test_body_that_is_announced_too_long_is_refused_before_it_comes(shim: LiveShim) -> None:
    for length, more in ((b"65537", b""), (b"65537", b"Expect: 100-continue\r\n"), (b"9" * 19, b"")):
        head = b"POST /osgprod/workscript.exit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += b"Content-Length: %s\r\n" % length
        with dial(shim) as line:
            line.sendall(head + more + b"\r\n")
            got = answer(line)
        assert got.startswith(b"HTTP/1.1 400 ") and b"the body is longer than 65536 bytes" in got, got


UNENDING = [
    b"",
    b"G",
    GOOD % 0,
    GOOD % 0 + b"X: ",
    b"POST /osgprod/workscript.bash HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nproject=p",
    b"POST /osgprod/workscript.bash HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nproje",
]


def test_endless_request_is_disconnected(shim: LiveShim, quick: None) -> None:
    for start in UNENDING:
        begin = time.monotonic()
        with dial(shim) as line:
            line.sendall(start)
            got = answer(line)
        assert time.monotonic() - begin > 0.2, start
        assert got.startswith(b"HTTP/1.1 408 "), start


def test_client_that_reads_no_answers_is_disconnected(
    shim: LiveShim, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with dial(shim) as line:
        line.sendall(1000 * b"GET /osgprod/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(shim.connections, "it is connected")
        wait_until(lambda: not shim.connections(), "it is disconnected")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_no_client_keeps_the_server_from_ending(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bounds, "END_S", 0.3)
    with contextlib.ExitStack() as lines:
        with LiveShim(world.dsn, folder / "www") as shim:
            for start in (*UNENDING, 1000 * b"GET /osgprod/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"):
                lines.enter_context(dial(shim)).sendall(start)
            wait_until(lambda: shim.connections() == len(UNENDING) + 1, "all are connected")
            begin = time.monotonic()
        assert time.monotonic() - begin < bounds.REQUEST_TIMEOUT_S / 2
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_slow_bytes_do_not_extend_the_time_for_a_request(shim: LiveShim, quick: None) -> None:
    with dial(shim) as line:
        line.sendall(GOOD % 0)
        begin = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - begin < PATIENCE_S:
                line.sendall(b"X")
                time.sleep(0.02)


def test_many_requests_on_one_connection_are_no_long_one(world: World, shim: LiveShim, quick: None) -> None:
    world.add_file(50)
    with dial(shim) as line:
        begin, number = time.monotonic(), 0
        while time.monotonic() - begin < 0.8 or number <= 5:
            line.sendall(GOOD % number + b"\r\n")
            got = b""
            while b"\r\n\r\n" not in got:
                got += line.recv(65536)
            assert got.startswith(b"HTTP/1.1 200 OK")
            length = int(re.search(rb"content-length: (\d+)", got)[1])  # type: ignore[index]
            while len(got.partition(b"\r\n\r\n")[2]) < length:
                got += line.recv(65536)
            number += 1
            time.sleep(0.03)
        # and several at once: each is answered, in order
        line.sendall(b"".join(GOOD % n + b"\r\n" for n in range(5)) + GOOD % 5 + b"Connection: close\r\n\r\n")
        assert answer(line).count(b"HTTP/1.1 200 OK") == 6


def test_request_that_is_not_http_gets_one_line(shim: LiveShim) -> None:
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01",
        b"\0" * 100,
        b"A" * 9000 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /osgprod/healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /osgprod/healthz HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        with dial(shim) as line:
            line.sendall(nonsense)
            line.shutdown(socket.SHUT_WR)
            got = answer(line)
        assert got == b"" or re.match(rb"HTTP/1.1 4\d\d ", got), (nonsense, got)
        assert b"Traceback" not in got


WRONG_SETTINGS = {
    "OSGPROD_TRUSTED_PROXIES": "*",
    "OSGPROD_CLIENT_RATE": "many",
    "OSGPROD_BEARER_ISSUERS": "http://x",
    "OSGPROD_BEARER_KEYS": "/nonexistent",
    "OSGPROD_POOL_SIZE": "0",
}


def test_wrong_setting_ends_the_start_with_one_line_and_a_hint(folder: Path) -> None:
    ended = run_each(
        [(["serve", "--port", "0"], {name: value}) for name, value in WRONG_SETTINGS.items()], folder
    )
    for name, done in zip(WRONG_SETTINGS, ended, strict=True):
        assert done.returncode == 2, done
        lines = done.stderr.splitlines()
        assert len(lines) == 2 and name in lines[0] and lines[1].startswith("hint: "), done.stderr


DATA_SEGMENTS_IN = 152  # in struct tcp_info of linux/tcp.h


def pieces_received(line: socket.socket) -> int:
    """How many pieces of data a connection has received, whether or not they were read one by one."""
    found = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(found) < DATA_SEGMENTS_IN + 4:
        pytest.skip("this kernel does not count them")
    return int.from_bytes(found[DATA_SEGMENTS_IN : DATA_SEGMENTS_IN + 4], sys.byteorder)


def test_head_and_body_of_an_answer_arrive_in_one_piece(world: World, shim: LiveShim) -> None:
    """Two pieces wake the client up twice."""
    small = b"GET /osgprod/healthz HTTP/1.1\r\nHost: x\r\n"  # a work script has more than one piece on some networks
    with dial(shim) as line:
        for number, request in enumerate((GOOD % 0, small)):  # (no work: the first is small, too)
            line.sendall(request + b"\r\n")
            head, _, body = line.recv(1 << 20).partition(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head)
            assert found and len(body) == int(found[1])
            assert pieces_received(line) <= number + 1


def test_client_that_waits_for_permission_to_send_its_body_gets_it(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    head = b"POST /osgprod/workscript.bash HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    body = b"project=p&cluster=1&process=1&magic=m"
    with dial(shim) as line:
        line.sendall(head % len(body))
        assert line.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        assert line.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_answer_to_head_comes_at_once_and_the_connection_stays(world: World, shim: LiveShim) -> None:
    with dial(shim) as line:
        for _ in range(2):
            line.sendall(b"HEAD /osgprod/static/style.css HTTP/1.1\r\nHost: x\r\n\r\n")
            answered = line.recv(65536)
            assert answered.startswith(b"HTTP/1.1 ") and answered.endswith(b"\r\n\r\n")
