"""Random HTTP requests and files: each gets an answer in one line, no internal error, no hang, bounded memory.

Short here; `make fuzz` runs each for FUZZ_S seconds (600). A failure prints what reproduces it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shim.app import create_app
from shim.config import Settings
from shim.dashboard import api
from shim.evio import index as evio
from shim.evio.writer import PHYSICS, bank, block
from shim.web.openapi import PARAMETERS, PROTOCOL, document
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World

FUZZ_S = float(os.environ.get("FUZZ_S", "1"))
ROUTES = (*PROTOCOL, "healthz", "openapi.json", "api/list_jobs")
SLOW_S = 60.0
ALLOWED = {200, 400, 403, 404, 405, 409, 429, 431}

# --- the description of the routes -------------------------------------------------------------------------------


def test_each_route_of_the_protocol_is_described(shim: LiveShim) -> None:
    served = {
        route.path.rpartition("/")[2]  # type: ignore[attr-defined]
        for route in create_app(Settings()).routes
        if route.path.startswith("/osgprod/")  # type: ignore[attr-defined]
    }
    answer = shim.raw("openapi.json")
    assert answer.headers["content-type"] == "application/json"
    described = answer.json()
    assert described == json.loads(json.dumps(document("/osgprod", api.paths())))
    names = {path.rpartition("/")[2] for path in described["paths"] if "/api/" not in path}
    assert names <= served
    assert {name for name in served if name.startswith("workscript.")} <= names
    for path in described["paths"].values():
        for operation in path.values():
            assert operation["summary"] and operation["operationId"] and "200" in operation["responses"]


def test_what_is_described_is_what_the_functions_take(world: World) -> None:
    """A parameter of a function that is missing in the document, or the other way round, is a mistake."""
    functions = {
        "workscript.bash": "checkout_slice",
        "workscript.exit": "report_exit",
        "workscript.ping": "heartbeat",
    }
    other = {"p_client", "p_bearer", "p_workscript", "p_templates"}  # the shim's own
    for route, function in functions.items():
        row = world.db.execute(
            "SELECT p.proargnames[1:p.pronargs] AS names FROM pg_proc p WHERE p.oid = ("
            "SELECT q.oid FROM pg_proc q WHERE q.proname = %s AND q.pronamespace = 'osgprod'::regnamespace)",
            [function],
        ).fetchone()
        assert row is not None
        described = {"project", "cluster", "process", *PROTOCOL[route][1]}
        if "cpu" in described:  # of a heartbeat
            described = described - {"cpu"} | {"cpu_s"}
        assert described == {name.removeprefix("p_") for name in row["names"] if name not in other}


# --- HTTP --------------------------------------------------------------------------------------------------------

LIMITS = [255, 256, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**18 - 1, 10**18, -1, -(2**63), 10**400]
ODD = [
    "",
    "p",
    "m",
    " ",
    "\0",
    "null",
    "NaN",
    "1e5",
    "0x10",
    "+1",
    "١",
    "true",
    "[]",
    "'",
    '"',
    "--",
    "%s",
    "{}",
]
ODD += ["a" * 5000, "\U0001f600", "\u202e", "\r\nX: y", "127.0.0.1", "0" * 400]
TAILS = [b";", b"&", b"%", b"&&=&", b"=" * 50, b"&magic=2", b"&\xff", b"&a"]
METHODS = [b"GET"] * 6 + [b"POST"] * 6 + [b"HEAD", b"PUT", b"OPTIONS", b"PATCH", b"TRACE", b"FOO"]
HEADERS = [
    b"Authorization",
    b"X-Forwarded-For",
    b"Content-Type",
    b"Transfer-Encoding",
    b"Expect",
    b"Upgrade",
    b"Range",
]
VALUES = [
    b"Bearer a.b.c",
    b"Bearer " + b"x" * 9000,
    b"127.0.0.1",
    b"chunked",
    b"websocket",
    b"100-continue",
    b"gzip",
]


def one_in(chance: random.Random, n: int) -> bool:
    return chance.randrange(n) == 0


def some_bytes(chance: random.Random, most: int) -> bytes:
    return chance.randbytes(chance.randrange(most))


def value_for(chance: random.Random, name: str) -> str:
    if PARAMETERS[name][0] == "integer" and not one_in(chance, 10):
        return str(chance.choice(LIMITS) if one_in(chance, 3) else chance.randrange(4))
    if one_in(chance, 2):
        return chance.choice(ODD)
    return "".join(
        chr(chance.choice((0x20, 0x7F, 0x500, 0xD000))) + chr(chance.randrange(0xD800)) for _ in range(9)
    )


def quoted(text: str) -> bytes:
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass")).encode()


def query_of(chance: random.Random) -> bytes:
    """Mostly a right request with a few wrong parts, since an entirely wrong one is refused at once."""
    right = {
        "project": "p",
        "magic": "m",
        "cluster": "1",
        "process": str(chance.randrange(40)),
        "exitcode": "0",
    }
    for _ in range(chance.randrange(4)):
        name = chance.choice(sorted(PARAMETERS))
        right[name] = value_for(chance, name)
    if one_in(chance, 8):
        right.pop(chance.choice(sorted(right)))
    query = b"&".join(name.encode() + b"=" + quoted(value) for name, value in right.items())
    if one_in(chance, 8):
        query += chance.choice(TAILS) if one_in(chance, 2) else some_bytes(chance, 9)
    return query


def url_bytes(query: bytes) -> bytes:
    """What a request line can hold."""
    return bytes(byte for byte in query if 0x21 <= byte <= 0x7E or byte >= 0x80)


def request_of(chance: random.Random) -> tuple[bytes, bool]:
    """A request, byte by byte as it goes over the line; and does it have an end, so that an answer must come?"""
    if one_in(chance, 30):
        return some_bytes(chance, 300), False
    has_end = True
    method, query, body = chance.choice(METHODS), query_of(chance), b""
    route = url_bytes(some_bytes(chance, 30)) if one_in(chance, 12) else chance.choice(ROUTES).encode()
    if method == b"POST":
        query, body = chance.choice(((b"", query), (query, b""), (query, some_bytes(chance, 200))))
    head = [
        b"%s /osgprod/%s?%s HTTP/1.1" % (method, route, url_bytes(query)),
        b"Host: x",
        b"Connection: close",
    ]
    if body or one_in(chance, 10):
        has_end = not one_in(chance, 10)
        head.append(b"Content-Length: %d" % (len(body) if has_end else chance.choice((-1, 0, 7, 1 << 40))))
    if one_in(chance, 6):
        value = chance.choice(VALUES) if one_in(chance, 2) else url_bytes(some_bytes(chance, 30))
        head.append(chance.choice(HEADERS) + b": " + value)
        has_end = has_end and not head[-1].startswith((b"Transfer-Encoding", b"Upgrade"))
    return b"\r\n".join(head) + b"\r\n\r\n" + body, has_end


def exchange(port: int, request: bytes, has_end: bool) -> bytes:
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SLOW_S) as line:
        try:
            line.sendall(request)
            if not has_end:
                select.select([line], [], [], 0.02)
                line.shutdown(socket.SHUT_WR)
            while piece := line.recv(1 << 16):
                got += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return got


def check_answer(request: bytes, got: bytes) -> int:
    assert b"Traceback" not in got and b"psycopg" not in got, (request, got)
    got = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not got:
        return 0  # it disconnected, because this was not a request
    head, _, body = got.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert status in ALLOWED or (status == 503 and b"bearer" in body), (request, got)
    # The dashboard's errors are pages, and those of api/ are JSON.
    is_page = b"content-type: text/html" in head.lower() or b"application/json" in head.lower()
    if (
        status >= 400
        and b"osgprod-request" in head.lower()
        and not request.startswith(b"HEAD")
        and not is_page
    ):
        assert all(line.startswith(b"# ") for line in body.splitlines()), (request, got)
    return status


def test_every_http_request_gets_one_line_and_no_internal_error(
    world: World, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LiveShim(world.dsn, folder / "www", OSGPROD_CLIENT_RATE="0") as live:
        live.add_template("p")
        fuzz_http(world, live, caplog)


def fuzz_http(world: World, shim: LiveShim, caplog: pytest.LogCaptureFixture) -> None:
    world.set(backoff_s=0, max_starts_per_min=100000)
    for seqno in range(3):
        world.add_file(2000, seqno=seqno)
    counts: dict[int, int] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, slowest, number = time.monotonic(), 0.0, random.randrange(1 << 32)
    print(f"seed {number}")
    chance = random.Random(number)
    # On a busy machine few requests are answered in a second.
    while time.monotonic() - begin < FUZZ_S or (
        not (counts.get(200) and counts.get(400)) and time.monotonic() - begin < PATIENCE_S
    ):
        (request, has_end), start = request_of(chance), time.monotonic()
        got = exchange(shim.port, request, has_end)
        assert got or not has_end, request
        status = check_answer(request, got)
        slowest = max(slowest, time.monotonic() - start)
        counts[status] = counts.get(status, 0) + 1
        if any(record.exc_info for record in caplog.records):
            pytest.fail(f"{request!r}: {caplog.text[-3000:]}")
        caplog.clear()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"HTTP: {sum(counts.values())} requests, seed {number}: {dict(sorted(counts.items()))}")
    print(f"HTTP: slowest {slowest:.2f} s, {grown} MiB more than before")
    assert grown < 300
    assert slowest < SLOW_S
    assert counts.get(200) and counts.get(400), "the requests reach something"
    assert shim.checkout(10**6).status_code == 200, "it serves as before"


# --- EVIO --------------------------------------------------------------------------------------------------------


def test_every_file_gives_an_index_or_one_line(tmp_path: Path) -> None:
    """In a separate process, with an end to its memory and to the time of each file; pytest keeps the file."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.fuzz_evio", str(FUZZ_S), str(random.randrange(1 << 32))],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=FUZZ_S + 300,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files" in done.stdout


@pytest.mark.parametrize(("limit", "words"), [
    ("index.MAX_BLOCKS", "byte 352: more than 3 blocks"),
    ("head.MAX_CONTROL_EVENTS", "more than 3 events of run control"),
])  # fmt: skip
def test_a_file_can_not_use_up_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, words: str
) -> None:
    path = folder / "hd_rawdata_000001_001.evio"
    control = [bank(0xFFD1, [1, 2, 3])] * 4
    path.write_bytes(block(1, control) + b"".join(block(n, [bank(PHYSICS, [n] * 20)]) for n in range(2, 9)))
    evio.read_index(path)
    monkeypatch.setattr(f"shim.evio.{limit}", 3)
    with pytest.raises(evio.EvioError, match=words):
        evio.read_index(path)
